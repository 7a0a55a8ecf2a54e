use std::path::Path;

use smallvec::smallvec;

use super::*;
use crate::audit::{Audited, Cause, Verdict};
use crate::choice::{Basis, Prompt, Weights};
use crate::config::{Config, Strategy};
use crate::decisions::json::Decision as Told;
use crate::decisions::what_if::{Knobs, Report};
use crate::fleet::Trust;
use crate::index::Cached;

fn made(request: &str) -> Made {
    let endpoints = (0..3).map(|id| {
        let address = "127.0.0.1:8000".parse().expect("an address");
        Arc::new(Endpoint::new(
            EndpointId(id),
            format!("pod-{id}"),
            address,
            None,
        ))
    });
    let candidate = |id: u32, own, queued_tokens| Candidate {
        endpoint: EndpointId(id),
        prompt: 0,
        cached: Cached {
            own,
            ..Cached::default()
        },
        trust: Trust::Live,
        avoided: false,
        full: false,
        queued_tokens,
        requests: id,
        recent_tokens: 7,
        pace: None,
    };
    let policy = Config::default().policy;
    let case = Case {
        request_id: request.to_owned(),
        prompts: smallvec![Prompt {
            tokens: 1_000,
            basis: Basis::Overlap,
            doubtful: false,
        }],
        weights: Weights {
            matching_ratio_min: policy.matching_ratio_min,
            media: policy.media,
        },
        candidates: vec![
            candidate(0, 800, 300),
            candidate(1, 608, 0),
            candidate(2, 0, 0),
        ],
        home: None,
    };
    Made {
        trace: None,
        model: Some("chat".into()),
        pool: None,
        target: None,
        choice: case.choose().expect("three candidates"),
        case,
        fleet: Arc::new(Fleet::of(endpoints.collect())),
        took: Took::default(),
    }
}

/// Three endpoints, of which pod-1 gets it: it holds less than pod-0, and is idle.
pub fn decision(request: &str) -> Decision {
    Decision::of(made(request), 1)
}

/// What is in a log; nothing where there is none.
pub fn log_lines(file: &Path) -> Vec<Told> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = |line| serde_json::from_str(line).expect("a decision");
    text.lines().map(line).collect()
}

fn kept(bytes_max: usize) -> Arc<Decisions> {
    Arc::new(Decisions::new(bytes_max, None, Arc::default()))
}

#[test]
fn the_newest_stay_within_their_bytes_and_are_found_by_their_request() {
    let decisions = kept(10 * decision("r00").bytes());
    for request in 0..25 {
        drop(decisions.keep(made(&format!("r{request:02}"))));
    }
    let numbers = |count, after| -> Vec<u64> {
        let newest = decisions.newest(count, after);
        newest.iter().map(|decision| decision.number).collect()
    };
    assert!(decisions.kept_bytes() <= 10 * decision("r00").bytes());
    assert_eq!(numbers(100, 0), (16..=25).rev().collect::<Vec<_>>());
    assert_eq!(numbers(3, 0), [25, 24, 23]);
    assert_eq!(numbers(100, 23), [25, 24]);
    assert!(decisions.of_request("r14").is_none());
    let found = decisions.of_request("r20").expect("kept");
    assert_eq!(found.number, 21);
}

#[test]
fn none_is_kept_where_none_may_be() {
    let decisions = kept(0);
    drop(decisions.keep(made("r")));
    assert!(decisions.of_request("r").is_none());
}

#[test]
fn a_decision_says_why_and_how_it_ended_and_nothing_of_the_prompt() {
    let decisions = kept(1 << 20);
    let open = decisions.keep(made("r"));
    open.end(Ended {
        status: Some(200),
        served: Some(EndpointId(0)),
        predicted: Some(800),
        cached_tokens: Some(784),
        audited: Some(Audited {
            verdict: Verdict::Over,
            cause: Some(Cause::LastBlock),
        }),
        ..Ended::default()
    });
    let told = Told::whole(&decisions.of_request("r").expect("kept"));
    assert_eq!((&*told.endpoint, &*told.decided_by), ("pod-1", "prefix"));
    assert_eq!(told.runner_up.as_deref(), Some("pod-0"));
    let margin = told.margin.as_ref().expect("two others");
    assert_eq!(margin.field, "prefill_tokens");
    let names: Vec<&str> = told.candidates.iter().map(|one| &*one.endpoint).collect();
    assert_eq!(names, ["pod-1", "pod-0", "pod-2"], "best first");
    assert_eq!(told.candidates[0].credit_tokens, 608);
    let outcome = told.outcome.as_ref().expect("it ended");
    assert_eq!(outcome.served.as_deref(), Some("pod-0"), "a retry");
    assert_eq!(outcome.cause.as_deref(), Some("last_block"));
    let text = serde_json::to_string(&told).expect("JSON");
    let back: Told = serde_json::from_str(&text).expect("a decision");
    assert_eq!(back, told);
}

/// Others read them: a page, dashboards, logs of another version.
#[test]
fn the_names_of_fields_stay() {
    let open = kept(0).keep(made("r"));
    open.end(Ended::default());
    let told = serde_json::to_value(Told::whole(&open)).expect("JSON");
    let keys = |of: &serde_json::Value| -> Vec<String> {
        of.as_object().expect("an object").keys().cloned().collect()
    };
    let words = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
    let decision = "number id time_ms trace_id model target pool basis reason prompt_tokens prompt_doubtful endpoint \
        decided_by trust predicted_cached_tokens runner_up margin policy token_weight took_us \
        candidates outcome";
    assert_eq!(keys(&told), words(decision));
    let candidate = "endpoint number trust cached credit_tokens queued_tokens requests recent_tokens pace \
        slowness cost";
    assert_eq!(keys(&told["candidates"][0]), words(candidate));
    let cost = "avoided full prefill_tokens recent_tokens requests scatter";
    assert_eq!(keys(&told["candidates"][0]["cost"]), words(cost));
    let cached = "own unsure expected cpu storage";
    assert_eq!(keys(&told["candidates"][0]["cached"]), words(cached));
    let outcome = "status served first_output_ms took_ms prompt_tokens completion_tokens cached_tokens \
        predicted_cached_tokens verdict cause";
    assert_eq!(keys(&told["outcome"]), words(outcome));
}

#[test]
fn a_log_that_takes_no_more_loses_lines_and_counts_them() {
    let metrics = Arc::<Metrics>::default();
    let (log, _unread) = mpsc::channel(2);
    let decisions = Arc::new(Decisions::new(0, Some(log), metrics.clone()));
    for request in 0..5 {
        drop(decisions.keep(made(&format!("r{request}"))));
    }
    let text = metrics.handle().render();
    let lost = "kvscout_decision_log_lines_total{outcome=\"lost\"} 3";
    assert!(text.contains(lost), "{text}");
}

#[test]
fn a_logged_decision_is_made_again_as_it_was_and_otherwise() {
    let logged = Told::whole(&decision("r"));
    let replay = |knobs: &Knobs| {
        let mut report = Report::default();
        report.replay(&logged, knobs).expect("whole");
        report
    };
    let same = replay(&Knobs::default());
    assert_eq!((same.decisions, same.reproduced, same.changed), (1, 1, 0));
    assert_eq!(same.before, same.after);
    assert_eq!(
        (same.before.cached_tokens, same.before.computed_tokens),
        (608, 392)
    );

    let gone = replay(&Knobs {
        without: vec!["pod-1".into()],
        ..Knobs::default()
    });
    assert_eq!(
        (
            gone.changed,
            gone.after.cached_tokens,
            gone.after.queued_tokens
        ),
        (1, 800, 300)
    );

    let by_load = replay(&Knobs {
        strategy: Some(Strategy::Default),
        without: vec!["pod-1".into()],
        ..Knobs::default()
    });
    assert_eq!(
        by_load.after.computed_tokens, 1_000,
        "pod-2 is idle, and holds nothing"
    );

    let nobody = replay(&Knobs {
        without: ["pod-0", "pod-1", "pod-2"].map(str::to_owned).to_vec(),
        ..Knobs::default()
    });
    assert_eq!((nobody.decisions, nobody.nobody, nobody.changed), (1, 1, 0));
}

#[test]
fn a_line_without_candidates_says_so() {
    let short = Told::short(&decision("r"));
    let why = Report::default().replay(&short, &Knobs::default());
    assert_eq!(why, Err("has no candidates".to_owned()));
}
