use super::*;
use crate::fleet::EndpointId;

fn world() -> (Endpoint, Arc<Metrics>, Counted) {
    let address = "127.0.0.1:8000".parse().expect("an address");
    let endpoint = Endpoint::new(EndpointId(0), "pod-1".into(), address, None);
    let metrics = Arc::new(Metrics::default());
    let counted = Counted {
        metrics: metrics.endpoint("pod-1"),
        score: Score::default(),
        habit: Habit::default(),
    };
    (endpoint, metrics, counted)
}

fn evidence(reported: u64) -> Evidence {
    Evidence::of(64, reported)
}

#[test]
fn only_exact_predictions_are_held_against_reports() {
    let (endpoint, metrics, counted) = world();
    let now = Instant::now();
    let verdict = |evidence: &Evidence| {
        compare(&endpoint, evidence, &counted, now).map(|audited| audited.verdict)
    };
    assert_eq!(verdict(&evidence(64)), Some(Verdict::Exact));
    assert_eq!(verdict(&evidence(32)), Some(Verdict::Over));
    assert_eq!(verdict(&evidence(96)), Some(Verdict::Under));
    let silent = Evidence {
        trust: Trust::Silent,
        ..evidence(64)
    };
    let by_load = Evidence {
        basis: Basis::LoadOnly("unknown_model"),
        ..evidence(64)
    };
    assert_eq!(verdict(&silent), None);
    assert_eq!(verdict(&by_load), None);
    let text = metrics.handle().render();
    for line in [
        "kvscout_reported_cached_tokens_total{endpoint=\"pod-1\"} 320",
        "kvscout_prediction_errors_total{endpoint=\"pod-1\",cause=\"unknown\"} 2",
        "kvscout_prediction_error_tokens_bucket{endpoint=\"pod-1\",le=\"0\"} 1",
        "kvscout_prediction_error_tokens_bucket{endpoint=\"pod-1\",le=\"64\"} 3",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_hidden_salt_is_a_cause_and_no_verdict() {
    let (endpoint, metrics, counted) = world();
    let salted = Evidence {
        basis: Basis::Partial(cause::SALT_REASON),
        ..evidence(0)
    };
    assert_eq!(compare(&endpoint, &salted, &counted, Instant::now()), None);
    let text = metrics.handle().render();
    let line = "kvscout_prediction_errors_total{endpoint=\"pod-1\",cause=\"salt\"} 1";
    assert!(text.contains(line), "{text}");
    assert_eq!(counted.score.tally().compared, 0);
}

#[test]
fn an_endpoint_that_keeps_missing_is_mistrusted() {
    let (endpoint, _, counted) = world();
    for _ in 0..8 {
        assert!(!endpoint.take_mistrusted());
        compare(&endpoint, &evidence(0), &counted, Instant::now());
    }
    assert!(endpoint.take_mistrusted() && !endpoint.take_mistrusted());
}
