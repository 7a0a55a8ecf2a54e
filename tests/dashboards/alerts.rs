//! Every alert, brought about by a fault: a picker and a server for each, whom something happens to.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use kvscout::config::{Config, Engine, EventSourceKind, Model, RenderSettings, Source, Tls};
use kvscout_sim::engine::EngineConfig;
use kvscout_sim::events::{EventConfig, Faults, Layout};
use kvscout_sim::server::{self, Server};
use kvscout_sim::timing::Timing;
use serde_json::{Value, json};

use super::harness::exchange::{Exchange, channel};
use super::harness::http::{self, full, post};
use super::harness::process::write;
use super::harness::running::Running;
use super::harness::{sim, soon};
use super::prometheus::Prometheus;
use super::root;

/// The rules as they are shipped.
pub fn rules() -> String {
    fs::read_to_string(root().join("deploy/alerts/kvscout.yaml")).expect("the rules")
}

/// The same, but that a second is long enough.
fn impatient() -> String {
    let rules = rules();
    let lines = rules.lines().map(|line| match line.split_once("for: ") {
        Some((before, _)) if before.trim().is_empty() => format!("{before}for: 1s\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}

/// What goes wrong, by the alert that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Nothing.
    None,
    /// The server publishes no event.
    NoEvents,
    /// One answer in three reports less cached than the server holds.
    Drift,
    /// Events are three seconds late.
    EventLag,
    /// Batches are lost for good.
    GapUnrepaired,
    /// The server's cache is full of a request that goes on and on.
    Saturated,
    /// Clients ask for a model that is not configured.
    LoadOnly,
    /// The server reads other tokens than kvscout does.
    TokenParity,
}

const FAULTS: [(Fault, &str); 7] = [
    (Fault::NoEvents, "KvscoutNoEvents"),
    (Fault::Drift, "KvscoutDrift"),
    (Fault::EventLag, "KvscoutEventLag"),
    (Fault::GapUnrepaired, "KvscoutGapUnrepaired"),
    (Fault::Saturated, "KvscoutSaturated"),
    (Fault::LoadOnly, "KvscoutLoadOnly"),
    (Fault::TokenParity, "KvscoutTokenParity"),
];

/// Prompts are token ids, so any tokenizer will do, and one of two words is loaded at once.
const TOKENIZER: &str = r#"{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"hello": 0, "!": 7}, "unk_token": "!"}}"#;

/// A picker of one server.
struct World {
    fault: Fault,
    picker: Running,
    pod: server::Bound,
    _model: tempfile::TempDir,
}

impl World {
    async fn start(fault: Fault) -> Self {
        let faults = match fault {
            Fault::NoEvents => Faults {
                silent: true,
                ..Faults::default()
            },
            Fault::EventLag => Faults {
                delay_ms: 3_000,
                ..Faults::default()
            },
            // Not the first ones: who never heard any is silent.
            Fault::GapUnrepaired => Faults {
                hole: 0.3,
                ..Faults::default()
            },
            _ => Faults::default(),
        };
        // A token a second, and room for one long request.
        let (num_gpu_blocks, decode_rate) = match fault {
            Fault::Saturated => (64, 1.0),
            _ => (4_096, f64::INFINITY),
        };
        let any = || "tcp://127.0.0.1:0".to_owned();
        let pod = Server::start(server::Config {
            engine: EngineConfig {
                num_gpu_blocks,
                ..EngineConfig::default()
            },
            timing: Timing {
                decode_rate,
                ..Timing::INSTANT
            },
            events: Some(EventConfig {
                endpoint: any(),
                replay_endpoint: Some(any()),
                topic: Some("kv".into()),
                layout: Layout::Map,
                rank: 0,
            }),
            faults,
            ..server::Config::default()
        });
        let pod = pod.await.expect("a server");
        let model = tempfile::tempdir().expect("a folder");
        write(model.path(), "tokenizer.json", TOKENIZER);
        write(model.path(), "tokenizer_config.json", "{}");
        let mut config = Config {
            models: vec![Model {
                // The one alert without a namespace has the model.
                names: vec![format!("{fault:?}")],
                adapters: Vec::new(),
                source: Source::Folder(model.path().into()),
                engine: Engine::Reference,
                render: RenderSettings::default(),
            }],
            tls: Tls::Off,
            ..Config::default()
        };
        config.events.source = EventSourceKind::Zmq;
        let fleet = sim::fleet_yaml(std::slice::from_ref(&pod), "");
        let picker = Running::over(&fleet, config).await;
        picker.ready().await;
        Self {
            fault,
            picker,
            pod,
            _model: model,
        }
    }

    /// A request by way of the picker, of a thousand new tokens or of those that were asked before.
    async fn ask(&self, number: u32) {
        let fresh = match self.fault {
            Fault::Drift => 1 + number % 8,
            _ => 1 + number,
        };
        let model = match self.fault {
            Fault::LoadOnly => "another".to_owned(),
            fault => format!("{fault:?}"),
        };
        let body = |first: u32| {
            let tokens: Vec<u32> = (0..1_001).map(|at| first * 1_000 + at).collect();
            json!({"model": model, "prompt": tokens, "max_tokens": 1})
        };
        let mut exchange = Exchange::open(channel(self.picker.bound.ext_proc).await).await;
        let id = format!("request-{number}");
        let said = [(":path", "/v1/completions"), ("x-request-id", id.as_str())];
        let to: SocketAddr = exchange
            .placed(&said, body(fresh).to_string())
            .await
            .parse()
            .expect("an address");
        // What the server gets is the gateway's to say: a filter that changes prompts, here.
        let mut sent = match self.fault {
            Fault::TokenParity => body(fresh + 50_000),
            _ => body(fresh),
        };
        sent["model"] = "sim".into();
        let request = post("/v1/completions").body(full(sent.to_string()));
        let answer = http::send(to, request.expect("a request")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let mut usage = json!({"usage": answer.json()["usage"]});
        if self.fault == Fault::Drift && number.is_multiple_of(3) {
            usage["usage"]["prompt_tokens_details"] = json!({"cached_tokens": 0});
        }
        exchange.answered(usage.to_string()).await;
        exchange.ended().await;
    }

    /// Whatever its fault needs to show, again and again.
    async fn live(&self) {
        if self.fault == Fault::Saturated {
            let tokens: Vec<u32> = (0..900).collect();
            let body = json!({"model": "sim", "prompt": tokens, "max_tokens": 100});
            let request = post("/v1/completions").body(full(body.to_string()));
            // Longer than the test.
            http::send(self.pod.addresses.http, request.expect("a request")).await;
        }
        for number in 0.. {
            self.ask(number).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Alerts that fire, each with its labels.
fn firing(rules: &[Value]) -> Vec<(String, Value)> {
    let mut firing = Vec::new();
    for rule in rules {
        let name = rule["name"].as_str().expect("a name");
        let alerts = rule["alerts"].as_array().expect("alerts");
        let alerts = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.extend(alerts.map(|alert| (name.to_owned(), alert["labels"].clone())));
    }
    firing
}

/// Whom an alert is about: his namespace, or his model.
fn is_about(labels: &Value, fault: Fault) -> bool {
    let of = match fault {
        Fault::TokenParity => "model",
        _ => "namespace",
    };
    labels[of] == format!("{fault:?}")
}

/// `make test-dashboards`, which brings Prometheus.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Prometheus: make test-dashboards"]
async fn every_alert_fires_by_its_fault_and_none_where_all_is_well() {
    let faults = FAULTS.iter().map(|(fault, _)| *fault);
    let worlds = faults.chain([Fault::None]).map(World::start);
    let worlds = futures::future::join_all(worlds).await;
    let names: Vec<String> = worlds
        .iter()
        .map(|world| format!("{:?}", world.fault))
        .collect();
    let pickers = names.iter().zip(&worlds);
    let pickers = pickers.map(|(name, world)| (name.as_str(), world.picker.bound.admin));
    let prometheus = Prometheus::start(&pickers.collect::<Vec<_>>(), &impatient()).await;
    let all_fire = async {
        loop {
            let firing = firing(&prometheus.rules().await);
            let fires = |(fault, alert): &(Fault, &str)| {
                let mut all = firing.iter();
                all.any(|(name, labels)| name == alert && is_about(labels, *fault))
            };
            let missing: Vec<_> = FAULTS.iter().filter(|one| !fires(one)).collect();
            if missing.is_empty() {
                return firing;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let lives = futures::future::join_all(worlds.iter().map(World::live));
    let firing = tokio::select! {
        firing = soon("every alert fires", all_fire) => firing,
        _ = lives => unreachable!("they go on"),
    };
    let well = firing
        .iter()
        .filter(|(_, labels)| is_about(labels, Fault::None));
    assert_eq!(well.count(), 0, "{firing:#?}");
    for world in worlds {
        world.picker.die();
    }
}
