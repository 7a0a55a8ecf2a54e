//! What watching decisions costs: a request from its body to its end, with nothing of it on, and with all.
//! `make bench-decision`.
//!
//! CPU time of the whole process, so the log's thread counts; medians are told, and those of the rounds' ratios to
//! the same round with nothing on.

#![allow(clippy::print_stdout, reason = "a benchmark's table is its output")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kvscout::audit::{Audit, Usage};
use kvscout::blocks::{BlockEvent, EngineHash, Stored};
use kvscout::config::{self, Config, DecisionLog, Engine, Model, RenderSettings, Source};
use kvscout::decisions::{Decisions, log};
use kvscout::fleet::{Endpoint, EndpointId, EventAddress, Fleet, Publisher, Trust};
use kvscout::index::Index;
use kvscout::metrics::Metrics;
use kvscout::models::{Hub, Loader, Models};
use kvscout::parity::Parity;
use kvscout::readiness::Readiness;
use kvscout::scheduler::{Ask, Outcome, Parts, Reader, Scheduler};
use kvscout::spans::{self, Spans, Trace};
use kvscout::tokens::TokenPool;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, watch};
use tonic::transport::server::TcpIncoming;

/// Pickers are made anew so often: how one lies in memory is worth more than what is measured.
const SETS: usize = 12;
const ROUNDS: usize = 8;
const REQUESTS: usize = 400;
const MODEL: &str = "m";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    /// No decision is kept.
    Off,
    /// Recent decisions, and the inference extension's names.
    Kept,
    /// The same and the log.
    Logged,
    /// The same, and one request in ten is traced.
    Traced,
}

/// A collector that throws away what it is sent. It runs in this process, so its CPU counts as well.
struct Sink;

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        _: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn sink() -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let served = tonic::transport::Server::builder()
        .serve_with_incoming(TraceServiceServer::new(Sink), TcpIncoming::from(listener));
    tokio::spawn(served);
    Ok(address)
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn tokenizer() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/tokenizer-qwen3");
    std::env::var_os("KVSCOUT_TOKENIZER_DIR").map_or_else(default, PathBuf::from)
}

fn fleet(count: u32) -> Arc<Fleet> {
    let endpoint = |id: u32| {
        let address = SocketAddr::from(([10, 0, (id >> 8) as u8, id as u8], 8000));
        let events = EventAddress {
            publisher: Publisher::At("tcp://127.0.0.1:1".into()),
            replay: None,
        };
        let endpoint = Endpoint::new(EndpointId(id), format!("pod-{id}"), address, Some(events));
        endpoint.set_trust(Trust::Live, "for the bench", Instant::now());
        Arc::new(endpoint)
    };
    Arc::new(Fleet::of((0..count).map(endpoint).collect()))
}

/// One picker, and what keeps it alive.
struct Picker {
    scheduler: Scheduler,
    metrics: Arc<Metrics>,
    spans: Option<Arc<Spans>>,
    _fleet: watch::Sender<Arc<Fleet>>,
    _writing: Vec<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

impl Picker {
    fn new(
        watched: Watched,
        endpoints: u32,
        models: &watch::Receiver<Arc<Models>>,
        folder: &Path,
        collector: SocketAddr,
    ) -> anyhow::Result<Self> {
        let config = Config::default();
        let metrics = Arc::new(Metrics::new(&config::Metrics {
            inference_extension_names: watched != Watched::Off,
            ..config.metrics
        }));
        let (sender, receiver) = watch::channel(fleet(endpoints));
        let index = Arc::new(Index::default());
        for id in 0..endpoints {
            let hashes = (0..64).map(EngineHash).collect();
            let stored = Stored::plain(None, hashes, (0..64 * 16).collect());
            index.apply(EndpointId(id), &[BlockEvent::Stored(stored)]);
        }
        let mut writing = Vec::new();
        let log = match watched {
            Watched::Logged | Watched::Traced => {
                let (sender, lines) = mpsc::channel(log::QUEUE_MAX);
                let settings = DecisionLog {
                    file: folder.join(format!("{watched:?}-{endpoints}.jsonl")),
                    bytes_max: 64 << 20,
                    files_max: 2,
                };
                let ending = std::future::pending();
                let lines = log::run(settings, lines, metrics.clone(), ending);
                writing.push(tokio::spawn(lines));
                Some(sender)
            }
            _ => None,
        };
        let spans = match watched {
            Watched::Traced => {
                let settings = config::Tracing {
                    endpoint: Some(format!("http://{collector}")),
                    ..config::Tracing::default()
                };
                let exporter = spans::export::exporter(&settings)?.context("an endpoint")?;
                let (sender, queue) = mpsc::channel(spans::QUEUE_MAX);
                let ending = std::future::pending();
                let sending = spans::export::run(exporter, queue, metrics.clone(), ending);
                writing.push(tokio::spawn(sending));
                let spans = Spans::new(settings.sampling, "default", sender, metrics.clone());
                Some(Arc::new(spans))
            }
            _ => None,
        };
        let kept = match watched {
            Watched::Off => 0,
            _ => config.decisions.kept_bytes_max,
        };
        let pool =
            TokenPool::new(2, 64, Duration::from_secs(5), metrics.tokenizer()).expect("threads");
        let scheduler = Scheduler::new(Parts {
            fleet: receiver,
            index,
            replicas: None,
            audit: Arc::new(Audit::new(metrics.clone())),
            decisions: Arc::new(Decisions::new(kept, log, metrics.clone())),
            parity: Parity::of([MODEL.into()]),
            routes: watch::channel(Arc::default()).1,
            reader: Reader::new(models.clone(), Arc::new(pool)),
            policy: config.policy,
            saturation: config.load.saturation,
            admission: config.admission,
            decision_max: Duration::from_secs(60),
            metrics: metrics.clone(),
        });
        Ok(Self {
            scheduler,
            metrics,
            spans,
            _fleet: sender,
            _writing: writing,
        })
    }

    /// CPU of a request, from its body to its end.
    async fn round(&self, bodies: &[String]) -> anyhow::Result<Duration> {
        let began = cpu();
        for (number, body) in bodies.iter().enumerate() {
            let mut trace = Trace::of(None, self.spans.as_ref());
            trace.received("/v1/chat/completions");
            let ask = Ask {
                request_id: format!("request-{number}"),
                trace: trace.id(),
                path: "/v1/chat/completions".into(),
                body: body.clone().into(),
                ..Ask::default()
            };
            let mut placed = self.scheduler.place(ask).await?;
            trace.placed(|| placed.decision());
            placed.first_output(true);
            let usage = Usage {
                prompt_tokens: placed.choice().prompt_tokens,
                completion_tokens: 10,
                cached_tokens: Some(placed.choice().predicted_cached_tokens),
                unasked: false,
            };
            placed.finish(Outcome {
                status: Some(200),
                usage: Some(usage),
                served: None,
                whole: true,
                ..Outcome::default()
            });
            drop(trace);
            tokio::task::yield_now().await;
        }
        self.metrics.handle().run_upkeep();
        Ok((cpu() - began) / bodies.len() as u32)
    }
}

/// Conversations of eight turns, some 2,000 tokens, whose last turn is new.
fn bodies(round: usize) -> Vec<String> {
    let words = "the cache holds what it was asked and answers as it did before ";
    let body = |request: usize| {
        let turn = |at: usize| {
            let role = if at.is_multiple_of(2) {
                "user"
            } else {
                "assistant"
            };
            let new = if at == 7 { round } else { 0 };
            let text = format!("{request} {at} {new} {}", words.repeat(18));
            serde_json::json!({"role": role, "content": text})
        };
        let turns: Vec<_> = (0..8).map(turn).collect();
        serde_json::json!({"model": MODEL, "messages": turns}).to_string()
    };
    (0..REQUESTS).map(|request| body(request % 50)).collect()
}

fn micros(took: Duration) -> f64 {
    took.as_secs_f64() * 1e6
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}

async fn models(config: &mut Config) -> anyhow::Result<watch::Receiver<Arc<Models>>> {
    config.models.push(Model {
        names: vec![MODEL.into()],
        adapters: Vec::new(),
        source: Source::Folder(tokenizer()),
        engine: Engine::default(),
        render: RenderSettings::default(),
    });
    let hub = Hub::new("http://127.0.0.1:1", None);
    let (loader, mut models) = Loader::new(config, hub, &Metrics::default(), &Readiness::default());
    tokio::spawn(loader.run());
    let loaded = |models: &Arc<Models>| models.states().all(|(_, cache)| cache.is_some());
    models.wait_for(loaded).await.context("run make setup")?;
    Ok(models)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let models = models(&mut Config::default()).await?;
    let (folder, collector) = (tempfile::tempdir()?, sink().await?);
    println!(
        "CPU of a request of some 2,000 tokens, from body to end; medians of {} rounds of {REQUESTS}",
        SETS * ROUNDS
    );
    println!(
        "{:>9}  {:>9}  {:>18}  {:>18}  {:>18}",
        "endpoints", "off", "kept", "and logged", "and traced, 10 %"
    );
    for endpoints in [4, 64] {
        let all = [
            Watched::Off,
            Watched::Kept,
            Watched::Logged,
            Watched::Traced,
        ];
        let mut took = [const { Vec::new() }; 4];
        for set in 0..SETS {
            let mut pickers = Vec::new();
            for watched in all {
                let picker = Picker::new(watched, endpoints, &models, folder.path(), collector);
                pickers.push(picker?);
            }
            for round in 0..=ROUNDS {
                let bodies = bodies(set * ROUNDS + round);
                // Each in its turn is the one that meets these bodies first.
                for turn in 0..pickers.len() {
                    let place = (set + round + turn) % pickers.len();
                    let one = pickers[place].round(&bodies).await?;
                    // The first round fills caches.
                    if round > 0 {
                        took[place].push(one);
                    }
                }
            }
        }
        let [off, kept, logged, traced] = took;
        let told = [kept, logged, traced].map(|all| {
            let ratio = |(one, off): (&Duration, &Duration)| one.as_secs_f64() / off.as_secs_f64();
            let mut ratios: Vec<f64> = all.iter().zip(&off).map(ratio).collect();
            ratios.sort_by(f64::total_cmp);
            let more = 100.0 * (ratios[ratios.len() / 2] - 1.0);
            format!("{:>6.1} us {more:>+4.1} %", micros(median(all)))
        });
        println!(
            "{endpoints:>9}  {:>6.1} us  {:>18}  {:>18}  {:>18}",
            micros(median(off)),
            told[0],
            told[1],
            told[2],
        );
    }
    Ok(())
}
