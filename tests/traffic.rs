//! Models with rules, through a real Envoy: which model serves a conversation, and who waits or is
//! refused where all servers are busy.

mod harness;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use harness::envoy::{Bodies, Envoy, Follow};
use harness::http::{self, Answer, full, post};
use harness::pod::Pod;
use harness::running::Running;
use harness::{soon, tokenizer};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use kvscout::config::{
    Config, Criticality, Engine, InferenceModel, InferenceObjective, Model, RenderSettings, Source,
    Target,
};
use kvscout_sim::events::{EventConfig, Layout};
use kvscout_sim::server::{self, Server};
use kvscout_sim::timing::Timing;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const MODEL: &str = "/model/qwen";
const BOTH: [Bodies; 2] = [Bodies::FullDuplex, Bodies::Buffered];

/// kvscout as the process runs it, and Envoy before it and servers.
struct World {
    kvscout: Running,
    envoy: Envoy,
}

impl World {
    /// Over servers at these addresses, of which the fleet file says this.
    async fn over(addresses: &[SocketAddr], fleet: &str, bodies: Bodies, config: Config) -> Self {
        let mut config = config;
        config.replies.decision_header = true;
        let kvscout = Running::over(fleet, config).await;
        let ext_proc = kvscout.bound.ext_proc;
        let envoy = Envoy::start(addresses, ext_proc, bodies, Follow::Metadata).await;
        kvscout.ready().await;
        Self { kvscout, envoy }
    }

    /// Waits for something that only the metrics tell.
    async fn until(&self, line: &str) {
        self.kvscout.counts(line).await;
    }

    async fn shut_down(self) {
        self.kvscout.shut_down().await;
    }
}

/// A server with two adapters, which refuses every other model.
async fn server_of_two() -> server::Bound {
    let config = server::Config {
        model: MODEL.into(),
        adapters: vec!["chat-v1".into(), "chat-v2".into()],
        tokenizer: Some(tokenizer()),
        timing: Timing::INSTANT,
        events: Some(EventConfig {
            endpoint: "tcp://127.0.0.1:0".into(),
            replay_endpoint: Some("tcp://127.0.0.1:0".into()),
            topic: None,
            layout: Layout::Map,
            rank: 0,
        }),
        ..server::Config::default()
    };
    Server::start(config).await.expect("run make setup")
}

/// Requests for "chat" go to the adapters, three in four to the first.
fn split() -> Config {
    let target = |model: &str, weight| Target {
        model: model.into(),
        weight,
    };
    let mut config = Config::default();
    config.models.push(Model {
        names: vec![MODEL.into()],
        adapters: vec!["chat-v1".into(), "chat-v2".into()],
        source: Source::Folder(tokenizer()),
        engine: Engine::Fast,
        render: RenderSettings::default(),
    });
    config.inference_models.push(InferenceModel {
        name: "chat".into(),
        criticality: Criticality::Standard,
        priority: 0,
        targets: vec![target("chat-v1", 75), target("chat-v2", 25)],
    });
    config
}

fn number(decision: &str, name: &str) -> Option<u64> {
    let found = decision
        .split("; ")
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    found?.parse().ok()
}

/// A turn of a conversation, sent with its length or in chunks.
async fn say(to: SocketAddr, messages: &[Value], in_chunks: bool) -> Answer {
    let body = json!({"messages": messages, "max_tokens": 20, "model": "chat", "temperature": 0});
    let bytes = Bytes::from(body.to_string());
    let body = match in_chunks {
        false => full(bytes),
        true => {
            let halves = [bytes.slice(..99), bytes.slice(99..)].map(|half| Ok(Frame::data(half)));
            BodyExt::boxed(StreamBody::new(futures::stream::iter(halves)))
        }
    };
    let request = post("/v1/chat/completions").body(body);
    http::send(to, request.expect("a request")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_keeps_each_conversation_on_its_target_and_its_cache() {
    for bodies in BOTH {
        let pods = futures::future::join_all((0..2).map(|_| server_of_two())).await;
        let addresses: Vec<SocketAddr> = pods.iter().map(|pod| pod.addresses.http).collect();
        let fleet = harness::sim::fleet_yaml(&pods, "");
        let world = World::over(&addresses, &fleet, bodies, split()).await;
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        let mut cached = 0;
        for conversation in 0..24 {
            let system = json!({"role": "system", "content": "One rule for all. ".repeat(40)});
            let first = format!("Conversation {conversation}: {}", "what then? ".repeat(30));
            let mut messages = vec![system, json!({"role": "user", "content": first})];
            let mut targets = Vec::new();
            for round in 0..3 {
                let answer = say(world.envoy.routed, &messages, round == 2).await;
                assert_eq!(answer.status, 200, "{bodies:?} {answer:?}");
                let said = answer.json();
                let decision = answer.header("x-kvscout-decision");
                assert_eq!(said["model"], "chat", "as it was asked for: {said}");
                let target = decision
                    .split("; model=")
                    .nth(1)
                    .expect("a target")
                    .to_owned();
                let usage = &said["usage"];
                assert_eq!(
                    number(decision, "prompt_tokens"),
                    usage["prompt_tokens"].as_u64()
                );
                cached += usage["prompt_tokens_details"]["cached_tokens"]
                    .as_u64()
                    .unwrap_or(0);
                targets.push(target);
                messages.push(said["choices"][0]["message"].clone());
                messages.push(json!({"role": "user", "content": "And then?"}));
            }
            assert!(
                targets.iter().all(|target| *target == targets[0]),
                "{targets:?}"
            );
            *counts.entry(targets.remove(0)).or_default() += 1;
        }
        let first = counts["chat-v1"];
        assert!(
            (14..=22).contains(&first) && first + counts["chat-v2"] == 24,
            "{counts:?}"
        );
        assert!(
            cached > 24 * 2 * 300,
            "rounds two and three find round one: {cached}"
        );
        let targets = format!(
            "kvscout_model_targets_total{{model=\"chat\",target=\"chat-v1\"}} {}",
            3 * first
        );
        world.until(&targets).await;
        world.shut_down().await;
    }
}

/// Two servers that 100 tokens saturate, and objectives for who is shed and who is not.
async fn busy(bodies: Bodies) -> (World, Vec<Pod>, Vec<Client>) {
    let (pods, addresses) = Pod::several(2).await;
    let lines = addresses.iter().enumerate();
    let lines = lines.map(|(n, at)| format!("  - {{name: pod-{n}, address: \"{at}\"}}\n"));
    let fleet = format!("endpoints:\n{}", lines.collect::<String>());
    let mut config = Config::default();
    config.admission.queued_tokens_max = 100;
    config.admission.wait_ms_max = 60_000;
    config.inference_objectives = [("batch", -1), ("paid", 1)]
        .map(|(name, priority)| InferenceObjective {
            name: name.into(),
            priority,
        })
        .into();
    let world = World::over(&addresses, &fleet, bodies, config).await;
    // A thousand tokens each, as far as is known, and no answer.
    let mut clients = Vec::new();
    for _ in &pods {
        clients.push(Client::send(world.envoy.routed, "/hold", "x".repeat(4_000)));
        let arrived = pods.iter().map(|pod| Box::pin(pod.arrived.notified()));
        soon("a pod has it", futures::future::select_all(arrived)).await;
    }
    (world, pods, clients)
}

/// A client on its own; dropped, it hangs up.
struct Client(JoinHandle<Answer>);

impl Client {
    fn send(to: SocketAddr, path: &'static str, body: impl Into<Bytes>) -> Self {
        let request = post(path).body(full(body)).expect("a request");
        Self(tokio::spawn(async move {
            let (response, _connection) = http::open(to, request).await.expect("a response");
            http::whole(response).await.expect("a whole body")
        }))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_are_busy_the_sheddable_is_refused_and_the_critical_served() {
    for bodies in BOTH {
        let (world, _pods, clients) = busy(bodies).await;
        let ask = async |header: &str, objective: &str| {
            let request = post("/v1/completions").header(header, objective);
            let request = request.body(full("{\"prompt\": \"hi\"}"));
            http::send(world.envoy.routed, request.expect("a request")).await
        };
        for header in [
            "x-gateway-inference-objective",
            "x-llm-d-inference-objective",
        ] {
            let shed = ask(header, "batch").await;
            assert_eq!(shed.status, 429, "{bodies:?} {shed:?}");
            let reason = shed.header("x-llm-d-request-dropped-reason");
            assert_eq!(
                (reason, shed.header("retry-after")),
                ("rejected-saturated", "60")
            );
            assert_eq!(shed.json()["error"]["code"], "saturated");
            let served = ask(header, "paid").await;
            assert_eq!(
                (served.status, &served.body[..]),
                (200, &b"{\"prompt\": \"hi\"}"[..])
            );
        }
        // Nothing to compute is nothing to wait for.
        let post = post("/tokenize").header("x-llm-d-inference-objective", "batch");
        let post = post.body(full("{}")).expect("a request");
        assert_eq!(
            http::send(world.envoy.routed, post).await.status,
            200,
            "{bodies:?}"
        );
        let get = hyper::Request::get("/v1/models").header("host", "model");
        let get = get
            .header("x-llm-d-inference-objective", "batch")
            .body(full(""));
        let get = http::send(world.envoy.routed, get.expect("a request")).await;
        assert_eq!(get.status, 200, "{bodies:?}");
        let counted =
            "kvscout_requests_shed_total{reason=\"saturated\",criticality=\"Sheddable\"} 2";
        world.until(counted).await;
        drop(clients);
        world.shut_down().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_standard_waits_and_is_served_when_load_goes() {
    for bodies in BOTH {
        let (world, _pods, mut clients) = busy(bodies).await;
        let waiting = |count: usize| format!("kvscout_admission_waiting {count}");
        let gone = Client::send(world.envoy.routed, "/v1/completions", "{}");
        world.until(&waiting(1)).await;
        drop(gone);
        world.until(&waiting(0)).await;
        world
            .until("kvscout_admission_wait_seconds_count{outcome=\"hung_up\"} 1")
            .await;

        let body = format!("{{\"prompt\": \"{}\"}}", "word ".repeat(100_000));
        let mut served = Client::send(world.envoy.routed, "/v1/completions", body.clone());
        world.until(&waiting(1)).await;
        assert!(!served.0.is_finished());
        clients.pop();
        let answer = soon("an answer", &mut served.0).await.expect("no panic");
        assert!(
            answer.status == 200 && answer.body == body,
            "{bodies:?} {}",
            answer.status
        );
        world
            .until("kvscout_admission_wait_seconds_count{outcome=\"called\"} 1")
            .await;
        drop(clients);
        world.shut_down().await;
    }
}
