use opentelemetry::trace::{SpanId, TraceFlags, TraceState};

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn spans(sampling: f64, room: usize) -> (Arc<Spans>, mpsc::Receiver<Box<Request>>) {
    let (sender, queue) = mpsc::channel(room);
    let spans = Spans::new(sampling, "default", sender, Arc::default());
    (Arc::new(spans), queue)
}

fn called(flags: TraceFlags) -> Option<SpanContext> {
    let (trace, span) = (TraceId::from(7), SpanId::from(9));
    let caller = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    Some(caller)
}

#[test]
fn a_request_is_traced_as_its_caller_says_and_else_by_its_share() {
    let (sampled, not) = (TraceFlags::SAMPLED, TraceFlags::NOT_SAMPLED);
    for (sampling, caller, traced) in [
        (0.0, called(sampled), true),
        (1.0, called(not), false),
        (0.0, None, false),
        (1.0, None, true),
    ] {
        let (spans, mut queue) = spans(sampling, 1);
        let trace = Trace::of(caller.clone(), Some(&spans));
        // Logs name the caller's trace whether it is traced or not.
        assert_eq!(trace.id().is_some(), traced || caller.is_some());
        drop(trace);
        assert_eq!(queue.try_recv().is_ok(), traced, "{sampling} {caller:?}");
    }
}

#[test]
fn of_many_that_bring_no_trace_the_share_is_traced() {
    let (spans, _queue) = spans(0.1, 1);
    let ids = RandomIdGenerator::default();
    let traced = (0..10_000).filter(|_| spans.samples(None, ids.new_trace_id()));
    let traced = traced.count();
    // Six standard deviations of a coin that falls so one time in ten: 180.
    assert!((820..1_180).contains(&traced), "{traced}");
}

#[test]
fn what_finds_the_queue_full_is_counted() {
    let (spans, _queue) = spans(1.0, 1);
    for _ in 0..3 {
        drop(Trace::of(None, Some(&spans)));
    }
    let page = spans.metrics.handle().render();
    let dropped = "kvscout_traces_total{outcome=\"dropped\"} 2";
    assert!(page.contains(dropped), "{page}");
}

#[test]
fn a_caller_is_who_a_valid_traceparent_names() {
    let of = |parent: &str, state: Option<&str>| {
        caller(|name| match name {
            "traceparent" => Some(parent.to_owned()),
            _ => state.map(str::to_owned),
        })
    };
    let good = format!("00-{TRACE}-b7ad6b7169203331-01");
    let found = of(&good, Some("vendor=x")).expect("valid");
    assert_eq!(found.trace_id().to_string(), TRACE);
    assert_eq!(found.trace_state().header(), "vendor=x");
    for bad in [
        "",
        "00-0-0-01",
        &format!("ff-{TRACE}-b7ad6b7169203331-01"),
        &format!("00-{TRACE}-0000000000000000-01"),
        &format!("00-{TRACE}"),
        &"-".repeat(60_000),
    ] {
        assert!(of(bad, None).is_none(), "{bad:.60}");
    }
    assert!(caller(|_| None).is_none());
}
