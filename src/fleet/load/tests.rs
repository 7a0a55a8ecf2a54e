use super::*;
use crate::fleet::EndpointId;

const INTERVAL: Duration = Duration::from_secs(1);
const SATURATION: Saturation = Saturation {
    queue_max: 5,
    kv_usage_max: 0.8,
};

fn endpoint() -> Arc<Endpoint> {
    let address = "127.0.0.1:8000".parse().expect("an address");
    Arc::new(Endpoint::new(EndpointId(0), "pod-1".into(), address, None))
}

fn report(waiting: u32, running: u32) -> Report {
    Report {
        waiting,
        running,
        ..Report::default()
    }
}

/// A server that has computed so many tokens of a prompt on average.
fn of_prompts(tokens: f64, report: Report) -> Report {
    let prefilled = Some(Prefilled {
        tokens: tokens * 100.0,
        requests: 100.0,
    });
    Report {
        prefilled,
        ..report
    }
}

/// Asks and is told at once.
fn told(endpoint: &Endpoint, now: Instant, report: Report) {
    let before = endpoint.load.ours();
    endpoint.load.told(report, before, now, INTERVAL);
}

fn outside(endpoint: &Endpoint, now: Instant) -> (u32, u64) {
    let outside = endpoint.load.outside(now);
    (outside.requests, outside.prefill_tokens)
}

#[test]
fn a_dropped_booking_leaves_no_load() {
    let endpoint = endpoint();
    let mut first = Booking::new(endpoint.clone(), 100, 1, Instant::now());
    let second = Booking::new(endpoint.clone(), 50, 1, Instant::now());
    first.prefilled();
    first.prefilled();
    let load = || (endpoint.load.requests(), endpoint.load.prefill_tokens());
    assert_eq!(load(), (2, 50));
    drop(first);
    drop(second);
    assert_eq!(load(), (0, 0));
}

#[test]
fn what_a_server_counts_beyond_ours_is_outside_work() {
    let (endpoint, now) = (endpoint(), Instant::now());
    assert_eq!(outside(&endpoint, now), (0, 0), "nobody has said anything");
    let _ours: Vec<_> = (0..3)
        .map(|_| Booking::new(endpoint.clone(), 10, 1, Instant::now()))
        .collect();
    told(&endpoint, now, of_prompts(500.0, report(5, 4)));
    // Nine, three of them ours; ours may be among the five that wait.
    assert_eq!(outside(&endpoint, now), (6, 2 * 500));
    told(&endpoint, now, of_prompts(500.0, report(0, 3)));
    assert_eq!(outside(&endpoint, now), (0, 0));
    told(&endpoint, now, of_prompts(500.0, report(0, 1)));
    assert_eq!(outside(&endpoint, now), (0, 0), "two are on their way");
}

#[test]
fn a_request_of_ours_that_runs_leaves_the_queue_to_others() {
    let (endpoint, now) = (endpoint(), Instant::now());
    let mut ours = Booking::new(endpoint.clone(), 10, 1, Instant::now());
    ours.prefilled();
    told(&endpoint, now, of_prompts(500.0, report(2, 1)));
    assert_eq!(outside(&endpoint, now), (2, 2 * 500));
}

#[test]
fn three_answers_to_one_request_are_three_to_the_engine_and_all_ours() {
    let (endpoint, now) = (endpoint(), Instant::now());
    let ours = Booking::new(endpoint.clone(), 10, 3, Instant::now());
    assert_eq!(endpoint.load.requests(), 3);
    told(&endpoint, now, of_prompts(500.0, report(2, 1)));
    assert_eq!(outside(&endpoint, now), (0, 0));
    drop(ours);
    assert_eq!(endpoint.load.requests(), 0);
}

#[test]
fn a_request_placed_or_ended_while_the_server_is_asked_is_not_taken_for_a_strangers() {
    let (endpoint, now) = (endpoint(), Instant::now());
    let ending = Booking::new(endpoint.clone(), 10, 1, Instant::now());
    let before = endpoint.load.ours();
    let _beginning = Booking::new(endpoint.clone(), 10, 1, Instant::now());
    drop(ending);
    // The server saw both, one after the other or together: nobody knows.
    let said = of_prompts(500.0, report(1, 1));
    endpoint.load.told(said, before, now, INTERVAL);
    assert_eq!(outside(&endpoint, now), (0, 0));
    // The next one knows better.
    told(&endpoint, now, of_prompts(500.0, report(1, 1)));
    assert_eq!(outside(&endpoint, now), (1, 0));
}

#[test]
fn a_report_counts_in_full_for_two_intervals_and_then_less_until_ten() {
    let at = |seconds: f64| weight(Duration::from_secs_f64(seconds), INTERVAL);
    assert_eq!([at(0.0), at(1.0), at(2.0)], [1.0; 3]);
    assert_eq!([at(4.0), at(6.0), at(8.0)], [0.75, 0.5, 0.25]);
    assert_eq!([at(10.0), at(1e6)], [0.0; 2]);
    let slow = weight(Duration::from_secs(12), INTERVAL * 2);
    assert_eq!(slow, 0.5, "six intervals");
}

#[test]
fn an_old_report_fades() {
    let (endpoint, now) = (endpoint(), Instant::now());
    told(&endpoint, now, of_prompts(500.0, report(8, 0)));
    let after = |seconds| outside(&endpoint, now + Duration::from_secs(seconds));
    assert_eq!(after(2), (8, 4_000));
    assert_eq!(after(6), (4, 2_000));
    assert_eq!(after(10), (0, 0));
}

#[test]
fn a_server_is_saturated_by_a_fresh_report_alone() {
    let (endpoint, now) = (endpoint(), Instant::now());
    let saturated = |after| {
        let now = now + Duration::from_secs(after);
        endpoint.load.saturated(now, &SATURATION)
    };
    assert!(!saturated(0), "nothing is known");
    told(&endpoint, now, report(5, 100));
    assert!(!saturated(0), "five may wait");
    told(&endpoint, now, report(6, 0));
    assert!(saturated(0) && saturated(2) && !saturated(3));
    let using = |kv_usage| Report {
        kv_usage: Some(kv_usage),
        ..report(0, 1)
    };
    told(&endpoint, now, using(0.8));
    assert!(!saturated(0));
    told(&endpoint, now, using(0.81));
    assert!(saturated(0));
}

#[test]
fn the_mean_prompt_follows_what_the_server_counts() {
    let mut mean = MeanPrefill::default();
    let mut tell = |requests, tokens| {
        mean.update(Prefilled { tokens, requests });
        mean.tokens
    };
    assert_eq!(tell(0.0, 0.0), 0.0, "nothing yet");
    assert_eq!(tell(10.0, 1_000.0), 100.0, "the server's life so far");
    assert_eq!(tell(10.0, 1_000.0), 100.0, "nothing new");
    // 32 prompts of 500 tokens: half of the way.
    assert_eq!(tell(42.0, 17_000.0), 300.0);
    assert_eq!(tell(2.0, 20.0), 10.0, "another process");
    // One count ahead of the other is no negative prompt.
    assert!(tell(3.0, 0.0) >= 0.0);
}

#[test]
fn counts_that_are_read_while_requests_come_and_go_never_go_below_nothing() {
    let endpoint = endpoint();
    std::thread::scope(|scope| {
        let coming = || {
            for _ in 0..20_000 {
                drop(Booking::new(endpoint.clone(), 1, 1, Instant::now()));
            }
        };
        let (one, two) = (scope.spawn(coming), scope.spawn(coming));
        while !(one.is_finished() && two.is_finished()) {
            assert!(endpoint.load.requests() <= 2 + 40_000, "no wrap around");
            let (before, now) = (endpoint.load.ours(), Instant::now());
            endpoint.load.told(report(0, 2), before, now, INTERVAL);
            assert_eq!(endpoint.load.outside(Instant::now()).prefill_tokens, 0);
        }
    });
    assert_eq!(endpoint.load.requests(), 0);
}

#[test]
fn pace_is_measured_while_prompts_are_computed_and_not_between_them() {
    let endpoint = endpoint();
    let pace = || endpoint.load.pace().map(f64::round);
    let now = Instant::now();
    let at = |s: f64| now + Duration::from_secs_f64(s);
    let book = |tokens, when| Booking::new(endpoint.clone(), tokens, 1, at(when));
    // Two at once: 20,000 tokens in a second, of which the first part takes its part.
    let (mut one, mut two) = (book(3000, 0.0), book(17_000, 0.0));
    one.first_token(at(0.2));
    assert_eq!(pace(), None, "3,000 tokens say little");
    two.first_token(at(1.0));
    assert_eq!(pace(), Some(20_000.0));
    // A long pause counts for nothing.
    let mut three = book(4000, 60.0);
    three.first_token(at(61.0));
    assert_eq!(pace(), Some(((16_000.0_f64 + 4000.0) / 1.8).round()));
    // Nor does an answer that comes whole, when its decode is done as well.
    let mut whole = book(50_000, 70.0);
    whole.prefilled();
    drop(book(50_000, 71.0));
    assert_eq!(pace(), Some(11_111.0));
}

#[test]
fn of_two_long_prompts_the_one_that_is_nearly_through_is_seen() {
    let endpoint = endpoint();
    let now = Instant::now();
    let at = |s: f64| now + Duration::from_secs_f64(s);
    let book = |tokens, when| Booking::new(endpoint.clone(), tokens, 1, at(when));
    let mut first = book(20_000, 0.0);
    let queued = |when| endpoint.load.queued_tokens(at(when));
    assert_eq!(queued(0.9), 20_000, "no pace is known yet");
    first.first_token(at(1.0));
    assert_eq!(queued(1.0), 0);
    let long = book(20_000, 5.0);
    assert_eq!((queued(5.0), queued(5.75)), (20_000, 5_000));
    // Late as it is, it is not done before its first token; and nobody behind it is begun.
    assert_eq!(queued(9.0), 1);
    drop((long, first));
    let (_long, _behind) = (book(20_000, 10.0), book(20_000, 10.0));
    assert_eq!((queued(11.0), queued(13.0)), (20_001, 20_001));
}

#[test]
fn prompts_that_end_in_one_step_make_no_server_fast_or_slow() {
    let endpoint = endpoint();
    let now = Instant::now();
    let (mut at, mut waiting) = (Duration::ZERO, std::collections::VecDeque::new());
    // 20,000 tokens a second, and always somebody who waits. Of two that end together the first seems to
    // take twice its time, and the second adds to whoever is next.
    for together in [1, 2].repeat(20) {
        while waiting.len() < 4 {
            waiting.push_back(Booking::new(endpoint.clone(), 7200, 1, now + at));
        }
        at += Duration::from_millis(360 * together);
        for mut booking in waiting.drain(..together as usize) {
            booking.first_token(now + at);
        }
        let far = |pace: &f64| !(15_000.0..25_000.0).contains(pace);
        assert_eq!(endpoint.load.pace().filter(far), None, "after {at:?}");
    }
    assert!(endpoint.load.pace().is_some());
}

#[test]
fn what_was_placed_lately_fades_without_a_seam() {
    let endpoint = endpoint();
    let now = Instant::now();
    drop(Booking::new(endpoint.clone(), 1000, 1, now));
    let after = |s| endpoint.load.recent_tokens(now + Duration::from_secs(s));
    assert_eq!([after(0), after(60), after(120)], [1000, 500, 250]);
    drop(Booking::new(
        endpoint.clone(),
        100,
        1,
        now + Duration::from_secs(60),
    ));
    assert_eq!(after(60), 600);
    assert_eq!(after(3600), 0);
}

#[test]
fn full_is_whose_cache_others_wait_for() {
    let endpoint = endpoint();
    let saturation = crate::config::Config::default().load.saturation;
    let now = Instant::now();
    let full = |waiting, kv_usage| {
        let report = Report {
            waiting,
            kv_usage: Some(kv_usage),
            ..Report::default()
        };
        let before = endpoint.load.ours();
        endpoint
            .load
            .told(report, before, now, Duration::from_secs(1));
        let is = |at| {
            (
                endpoint.load.full(at, &saturation),
                endpoint.load.saturated(at, &saturation),
            )
        };
        (is(now), is(now + Duration::from_secs(5)))
    };
    let (no, stale) = ((false, false), (false, false));
    assert_eq!(full(0, 0.5), (no, stale));
    assert_eq!(full(6, 0.5), ((false, true), stale), "a queue of prompts");
    assert_eq!(full(0, 0.9), ((false, true), stale), "nobody waits");
    assert_eq!(full(6, 0.9), ((true, true), stale));
}
