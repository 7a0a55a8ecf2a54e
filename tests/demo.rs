//! The demo's stack with small numbers: real Envoy, the real `kvscout` process, simulated
//! servers over real sockets.

mod harness;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use harness::stack;
use kvscout_sim::demo::{compare, story};
use kvscout_sim::load::{Load, Schedule};
use kvscout_sim::stack::{Plan, Stack};
use tokio::time::{Instant, interval};

/// Nothing that is polled for here may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

fn plan() -> Plan {
    stack::plan(env!("CARGO_BIN_EXE_kvscout"), 3)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let (began, mut ticks) = (Instant::now(), interval(Duration::from_millis(20)));
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        ticks.tick().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_round_lands_on_the_first_rounds_pod_and_is_predicted_to_the_token() {
    let mut stack = Stack::start(plan()).await.expect("a stack");
    let story = story::tell(&mut stack).await.expect("a story");
    assert!(story.came_true(), "{story:#?}");
    let [first, second] = &story.rounds;
    assert_eq!(
        (
            first.decision.predicted_cached_tokens,
            first.decision.by.as_str()
        ),
        (0, "load")
    );
    assert_eq!(second.decision.by, "prefix");
    assert!(second.answer.cached_tokens() > Some(300), "{second:?}");
    let ratio = format!(
        "\"matching ratio\": \" {:.2} > 0.50\"}}",
        second.decision.matching_ratio()
    );
    assert!(story.log_line.contains(&ratio), "{}", story.log_line);

    let (processes, folder) = (stack.process_ids(), stack.folder().to_owned());
    assert_eq!(processes.len(), 2);
    stack.stop().await;
    for process in processes {
        assert!(
            !PathBuf::from(format!("/proc/{process}")).exists(),
            "{process} is left"
        );
    }
    assert!(!folder.exists(), "{} is left", folder.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn routed_conversations_find_more_of_their_history() {
    let mut stack = Stack::start(plan()).await.expect("a stack");
    let load = Load {
        schedule: Schedule {
            users: 4,
            rounds: 3,
            rate: 20.0,
        },
        system_words: 50,
        user_words: 200,
        answer_tokens: 20,
        seed: 0,
    };
    let comparison = compare(&mut stack, &load).await.expect("both loads");
    let (plain, routed) = (&comparison.plain, &comparison.routed);
    assert_eq!((plain.requests, routed.requests), (24, 24));
    assert!(
        plain.errors.is_empty() && routed.errors.is_empty(),
        "{comparison:#?}"
    );
    assert!(
        routed.cached_tokens > plain.cached_tokens,
        "{comparison:#?}"
    );
    assert_eq!(routed.predictions.over, 0, "{comparison:#?}");
    assert_eq!(routed.placed.values().sum::<usize>(), 24);
    stack.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_named_before_anything_is_started() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let mut plan = plan();
    plan.ports.routed = port;
    let error = Stack::start(plan)
        .await
        .expect_err("it is taken")
        .to_string();
    for part in [&format!("port {port}"), "inference-routed", "--routed-port"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn what_make_setup_brings_is_missed_by_name() {
    let mut plan = plan();
    plan.parts.envoy = "nowhere/envoy".into();
    let error = Stack::start(plan)
        .await
        .expect_err("it is missing")
        .to_string();
    assert!(
        error.contains("nowhere/envoy") && error.contains("make setup"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_after_a_failure() {
    let admin = {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        free.local_addr().expect("bound")
    };
    let mut plan = plan();
    plan.ports.admin = admin.port();
    // An Envoy that does not come up, when kvscout already has.
    plan.parts.envoy = "/bin/false".into();
    let error = Stack::start(plan).await.expect_err("no Envoy").to_string();
    assert!(error.contains("envoy ended"), "{error}");
    let free = |address: SocketAddr| TcpListener::bind(address).is_ok();
    until("kvscout has left its port", || free(admin)).await;
}
