//! The main job, end to end: Envoy asks, kvscout answers with the pod that holds the prefix,
//! because it has heard that pod's events. Pods are simulated, over their real protocols.

mod harness;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

use harness::envoy::{Bodies, Envoy, Follow};
use harness::http::{self, Answer, full, post};
use harness::publisher::Publisher;
use harness::running::Running;
use harness::sim::fleet_yaml;
use harness::{PATIENCE, soon, tokenizer};
use kvscout::config::{Config, Engine, Model, RenderSettings, Replies, Source};
use kvscout_sim::events::{EventConfig, Layout};
use kvscout_sim::server::{self, Server};
use kvscout_sim::timing::Timing;
use serde_json::{Value, json};

const MODEL: &str = "/model/qwen";
const CHAT: &str = "/v1/chat/completions";

/// Pods, kvscout as the process runs it, and Envoy before both.
struct World {
    pods: Vec<server::Bound>,
    kvscout: Running,
    envoy: Envoy,
}

async fn pod(layout: Layout) -> server::Bound {
    let config = server::Config {
        model: MODEL.into(),
        tokenizer: Some(tokenizer()),
        timing: Timing::INSTANT,
        events: Some(EventConfig {
            endpoint: "tcp://127.0.0.1:0".into(),
            replay_endpoint: Some("tcp://127.0.0.1:0".into()),
            topic: None,
            layout,
            rank: 0,
        }),
        ..server::Config::default()
    };
    Server::start(config).await.expect("run make setup")
}

impl World {
    async fn start(pods: usize, layout: Layout, bodies: Bodies) -> Self {
        let pods = futures::future::join_all((0..pods).map(|_| pod(layout))).await;
        Self::over(pods, "", bodies).await
    }

    /// Over pods that may have served before, and endpoints of which the fleet file has lines.
    async fn over(pods: Vec<server::Bound>, more: &str, bodies: Bodies) -> Self {
        Self::reading(pods, more, bodies, RenderSettings::default()).await
    }

    /// Over pods whose flags may be others than kvscout is told.
    async fn reading(
        pods: Vec<server::Bound>,
        more: &str,
        bodies: Bodies,
        render: RenderSettings,
    ) -> Self {
        let mut config = Config::default();
        config.replies = Replies {
            decision_header: true,
            ..config.replies
        };
        config.models.push(Model {
            names: vec![MODEL.into()],
            adapters: Vec::new(),
            source: Source::Folder(tokenizer()),
            engine: Engine::Fast,
            render,
        });
        let kvscout = Running::over(&fleet_yaml(&pods, more), config).await;
        let addresses: Vec<SocketAddr> = pods.iter().map(|pod| pod.addresses.http).collect();
        let envoy =
            Envoy::start(&addresses, kvscout.bound.ext_proc, bodies, Follow::Metadata).await;
        kvscout.ready().await;
        Self {
            pods,
            kvscout,
            envoy,
        }
    }

    async fn metrics(&self) -> String {
        let answer = http::get(self.kvscout.bound.admin, "/metrics").await;
        String::from_utf8(answer.body.to_vec()).expect("text")
    }

    /// Waits for something that only the metrics tell.
    async fn until(&self, what: &str, condition: impl Fn(&str) -> bool) {
        soon(what, async {
            while !condition(&self.metrics().await) {
                tokio::time::sleep(PATIENCE / 1000).await;
            }
        })
        .await;
    }

    /// Waits until kvscout's picture of a pod has exactly so many blocks: events come after
    /// answers.
    async fn holds(&self, pod: &str, blocks: u64) {
        let line = format!("kvscout_endpoint_blocks{{endpoint=\"{pod}\"}} {blocks}\n");
        self.until(&line, |metrics| metrics.contains(&line)).await;
    }

    async fn chat(&self, messages: &Value, stream: bool) -> Reply {
        Reply::read(&chat(self.envoy.routed, messages, stream).await)
    }

    async fn shut_down(self) {
        self.kvscout.shut_down().await;
    }
}

async fn chat(to: SocketAddr, messages: &Value, stream: bool) -> Answer {
    let body = json!({
        "model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 40,
        "stream": stream, "stream_options": {"include_usage": true},
    });
    let request = post(CHAT).body(full(body.to_string())).expect("a request");
    http::send(to, request).await
}

/// What a client sees of a chat.
#[derive(Debug)]
struct Reply {
    text: String,
    pod: String,
    by: String,
    predicted: u64,
    prompt_tokens: u64,
    reported: u64,
}

impl Reply {
    /// Blocks that the pod's cache holds of the prompt and its answer of 40 tokens: all that
    /// are full before the last token.
    fn stored_blocks(&self) -> u64 {
        (self.prompt_tokens + 40 - 1) / 16
    }

    fn read(answer: &Answer) -> Self {
        assert_eq!(answer.status, 200, "{answer:?}");
        let decision = answer.header("x-kvscout-decision");
        let field = |name: &str| {
            let found = decision
                .split("; ")
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            found
                .unwrap_or_else(|| panic!("no {name} in {decision:?}"))
                .to_owned()
        };
        let body = String::from_utf8(answer.body.to_vec()).expect("text");
        let chunks: Vec<Value> = match body.strip_prefix("data: ") {
            None => vec![answer.json()],
            Some(_) => {
                let lines = body.lines().filter_map(|line| line.strip_prefix("data: "));
                lines
                    .filter_map(|line| serde_json::from_str(line).ok())
                    .collect()
            }
        };
        let mut text = String::new();
        let mut usage = Value::Null;
        for chunk in &chunks {
            let choice = &chunk["choices"][0];
            let said = choice["delta"]["content"]
                .as_str()
                .or(choice["message"]["content"].as_str());
            text += said.unwrap_or("");
            if chunk["usage"].is_object() {
                usage = chunk["usage"].clone();
            }
        }
        assert_eq!(field("prompt_tokens"), usage["prompt_tokens"].to_string());
        Self {
            text,
            pod: field("endpoint"),
            by: field("by"),
            predicted: field("predicted_cached_tokens").parse().expect("a number"),
            prompt_tokens: usage["prompt_tokens"].as_u64().expect("a number"),
            reported: usage["prompt_tokens_details"]["cached_tokens"]
                .as_u64()
                .expect("a number"),
        }
    }
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// A few hundred words, like a system prompt.
fn long_text(about: &str) -> String {
    let rules = (1..=40).map(|n| {
        format!(
            "Rule {n} of {about}: say what rule {} forbids, and why.",
            n * 7 % 41
        )
    });
    rules.collect::<Vec<_>>().join(" ")
}

/// Round 2 of the mission's conversation.
fn second_round(first: &str, answer: &str) -> Value {
    json!([
        user(first),
        {"role": "assistant", "content": answer},
        user("And rule 7?"),
        {"role": "assistant", "content": "It holds."},
        user("Why?"),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn round_two_lands_on_round_ones_pod_and_is_predicted_to_the_token() {
    for (bodies, layout, stream) in [
        (Bodies::FullDuplex, Layout::Map, true),
        (Bodies::Buffered, Layout::Array, true),
        (Bodies::FullDuplex, Layout::Array, false),
    ] {
        let world = World::start(3, layout, bodies).await;
        let mut held: BTreeMap<String, u64> = BTreeMap::new();
        for about in ["banking", "sailing", "chess"] {
            let first = long_text(about);
            let one = world.chat(&json!([user(&first)]), stream).await;
            assert_eq!((one.predicted, one.reported), (0, 0), "{one:?}");
            let held = held.entry(one.pod.clone()).or_default();
            world.holds(&one.pod, *held + one.stored_blocks()).await;
            let two = world.chat(&second_round(&first, &one.text), stream).await;
            let said = format!("{bodies:?} {layout:?} {two:?}");
            assert_eq!((&two.pod, two.by.as_str()), (&one.pod, "prefix"), "{said}");
            assert_eq!(two.predicted, two.reported, "{said}");
            assert!(
                two.predicted >= one.prompt_tokens / 16 * 16,
                "round 1's blocks: {said}"
            );
            // Round 2 begins with all that round 1 stored.
            *held += two.stored_blocks();
            world.holds(&two.pod, *held).await;
        }
        let metrics = world.metrics().await;
        let exact = |line: &&str| line.contains("verdict=\"exact\"") && !line.ends_with(" 0");
        assert!(metrics.lines().any(|line| exact(&line)), "{metrics}");
        let wrong = |line: &&str| {
            line.starts_with("kvscout_predictions_total{")
                && !line.contains("exact")
                && !line.ends_with(" 0")
        };
        assert!(!metrics.lines().any(|line| wrong(&line)), "{metrics}");
        world.shut_down().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_pod_is_left_alone() {
    let mut world = World::start(2, Layout::Map, Bodies::FullDuplex).await;
    let first = long_text("gardening");
    let one = world.chat(&json!([user(&first)]), true).await;
    world.holds(&one.pod, one.stored_blocks()).await;
    let number: usize = one
        .pod
        .trim_start_matches("pod-")
        .parse()
        .expect("a number");
    world.pods.remove(number).shutdown().await;
    let silent = format!(
        "kvscout_endpoint_trust{{endpoint=\"{}\",trust=\"silent\"}} 1",
        one.pod
    );
    world
        .until("the loss is noticed", |metrics| metrics.contains(&silent))
        .await;
    let two = world.chat(&second_round(&first, &one.text), true).await;
    assert_ne!(two.pod, one.pod, "its cache is gone with it");
    assert_eq!((two.predicted, two.reported), (0, 0));
    world.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kvscout_that_comes_late_asks_for_what_it_missed() {
    for layout in [Layout::Map, Layout::Array] {
        let pods = vec![pod(layout).await, pod(layout).await];
        let first = long_text("rowing");
        let before = chat(pods[1].addresses.http, &json!([user(&first)]), false)
            .await
            .json();
        let answer = before["choices"][0]["message"]["content"]
            .as_str()
            .expect("an answer");
        let world = World::over(pods, "", Bodies::FullDuplex).await;
        let live = "kvscout_endpoint_trust{endpoint=\"pod-1\",trust=\"live\"} 1";
        world
            .until("the past is known", |metrics| metrics.contains(live))
            .await;
        let two = world.chat(&second_round(&first, answer), true).await;
        assert_eq!(
            (two.pod.as_str(), two.by.as_str()),
            ("pod-1", "prefix"),
            "{layout:?}"
        );
        assert!(
            two.predicted > 300 && two.predicted == two.reported,
            "{layout:?} {two:?}"
        );
        world.shut_down().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_do_not_decode_cost_their_pod_its_trust_and_nothing_else() {
    let mut publisher = Publisher::start();
    let good = pod(Layout::Map).await;
    let (http, events) = (good.addresses.http, publisher.port);
    let odd =
        format!("  - {{name: odd, address: \"{http}\", events: \"tcp://127.0.0.1:{events}\"}}\n");
    // The same server under two names would be given twice: the good one goes by another port.
    let odd = odd.replace(&http.to_string(), "127.0.0.1:9");
    let world = World::over(vec![good], &odd, Bodies::FullDuplex).await;
    publisher.tell("await_subscriber");
    let trust =
        |trust: &str| format!("kvscout_endpoint_trust{{endpoint=\"odd\",trust=\"{trust}\"}} 1");
    // [1.0, [], 0] as MessagePack, numbered 0: complete so far.
    publisher.tell("raw - 0000000000000000 93cb3ff00000000000009000");
    world
        .until("a readable batch is Live", |metrics| {
            metrics.contains(&trust("live"))
        })
        .await;
    // Not MessagePack; two frames; a sequence number of one byte; an event that says nothing.
    for (frames, kind) in [
        ("- 0000000000000001 c1", "batch"),
        ("- 0000000000000002", "batch"),
        ("- 03 90", "batch"),
        (
            "- 0000000000000002 93cb3ff00000000000009191ab426c6f636b53746f72656400",
            "event",
        ),
    ] {
        let before = world.metrics().await;
        publisher.tell(&format!("raw {frames}"));
        let family = format!("kvscout_event_errors_total{{endpoint=\"odd\",kind=\"{kind}\"}} ");
        let count = |metrics: &str| {
            metrics
                .lines()
                .find_map(|line| line.strip_prefix(&family)?.parse::<u64>().ok())
        };
        let seen = count(&before).expect("the family is there");
        world
            .until(frames, |metrics| count(metrics) == Some(seen + 1))
            .await;
        assert!(
            world.metrics().await.contains(&trust("doubtful")),
            "{frames}"
        );
    }
    // Requests that land on nobody's port are tried again where somebody is.
    for number in 0..4 {
        let one = world
            .chat(&json!([user(&format!("Hello, number {number}."))]), false)
            .await;
        assert_eq!(one.predicted, one.reported);
    }
    world.shut_down().await;
}

/// How many requests came to this verdict by now.
fn parity(metrics: &str, verdict: &str) -> u64 {
    let line = format!("kvscout_token_parity_total{{model=\"{MODEL}\",verdict=\"{verdict}\"}} ");
    let count = metrics.lines().find_map(|found| found.strip_prefix(&line));
    count.map_or(0, |count| count.parse().expect("a number"))
}

fn is_doubtful(metrics: &str) -> bool {
    metrics.contains(&format!(
        "kvscout_model_prompts_doubtful{{model=\"{MODEL}\"}} 1"
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_servers_store_as_we_read_them_agree() {
    let world = World::start(2, Layout::Map, Bodies::FullDuplex).await;
    // The first request at each pod tells its block size, and is not watched.
    for about in ["one", "two", "three", "four"] {
        let first = long_text(about);
        let one = world.chat(&json!([user(&first)]), true).await;
        let before = parity(&world.metrics().await, "agree");
        world.chat(&second_round(&first, &one.text), false).await;
        world
            .until("the second round agrees", |metrics| {
                parity(metrics, "agree") > before
            })
            .await;
    }
    let metrics = world.metrics().await;
    assert_eq!(parity(&metrics, "differ"), 0, "{metrics}");
    assert!(!is_doubtful(&metrics));
    world.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_is_not_the_servers_costs_the_model_its_basis_and_is_told_without_a_prompt()
{
    let logs = Logs::of_this_process();
    let config = std::fs::read_to_string(tokenizer().join("tokenizer_config.json"));
    let config: Value = serde_json::from_str(&config.expect("run make setup")).expect("JSON");
    let template = config["chat_template"].as_str().expect("a template");
    let render = RenderSettings {
        chat_template: Some(format!(
            "<|im_start|>assistant\nHello.<|im_end|>\n{template}"
        )),
        ..RenderSettings::default()
    };
    let pods = vec![pod(Layout::Map).await];
    let world = World::reading(pods, "", Bodies::FullDuplex, render).await;
    let ask = async |about: usize| {
        let messages = json!([user(&long_text(&format!("number {about}")))]);
        chat(world.envoy.routed, &messages, false).await
    };
    soon("the model is doubtful", async {
        for about in 0.. {
            assert_eq!(ask(about).await.status, 200);
            if is_doubtful(&world.metrics().await) {
                return;
            }
            tokio::time::sleep(PATIENCE / 1000).await;
        }
    })
    .await;
    let answer = ask(0).await;
    let decision = answer.header("x-kvscout-decision");
    assert!(
        decision.contains("basis=partial; reason=token_parity"),
        "{decision}"
    );
    let metrics = world.metrics().await;
    assert!(parity(&metrics, "differ") >= 4, "{metrics}");
    assert_eq!(parity(&metrics, "agree"), 0, "{metrics}");
    world.shut_down().await;

    let logs = logs.text();
    let with = |word: &str| logs.lines().filter(|line| line.contains(word)).count();
    assert_eq!(with("docs/runbook.md#token-parity"), 1, "{logs}");
    let told = "the server did not store the tokens that we computed";
    let told: Vec<_> = logs.lines().filter(|line| line.contains(told)).collect();
    assert!(told.len() >= 4, "a line for each: {logs}");
    let of_first_block = |line: &str| line.contains("position=1 ") || line.contains("position=0 ");
    let is_right = |line: &&str| line.contains("DEBUG") && of_first_block(line);
    assert!(told.iter().all(is_right), "{told:?}");
    // An event that a busy machine brings after its answer's end tells the block alone.
    assert!(
        told.iter().any(|line| line.contains("position=1 ")),
        "the second token: {told:?}"
    );
    assert_eq!(with("Rule 1"), 0, "no prompt in any line");
}

/// What this process has logged, at DEBUG.
#[derive(Clone, Default)]
struct Logs(Arc<Mutex<Vec<u8>>>);

impl Logs {
    /// Of all tests that run in it, from the first call on.
    fn of_this_process() -> Self {
        static LOGS: OnceLock<Logs> = OnceLock::new();
        let begin = || {
            let logs = Self::default();
            let to = logs.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_env_filter("kvscout=debug")
                .with_ansi(false);
            subscriber.with_writer(move || to.clone()).init();
            logs
        };
        LOGS.get_or_init(begin).clone()
    }

    fn text(&self) -> String {
        let bytes = self.0.lock().expect("nobody panicked while writing");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl std::io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut held = self.0.lock().expect("nobody panicked while writing");
        held.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
