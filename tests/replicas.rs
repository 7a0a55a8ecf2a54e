//! Replicas over a real nats-server: what one places, the others know; what is gone, they forget.

mod harness;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Client;
use harness::exchange::{Exchange, channel};
use harness::http;
use harness::nats::NatsServer;
use harness::process::Served;
use harness::{PATIENCE, soon, tokenizer, until};
use kvscout::audit::Audit;
use kvscout::blocks::{BlockEvent, EngineHash, Stored, TokenId};
use kvscout::config::{self, Config, Model, Nats, RenderSettings, Source, Tls};
use kvscout::decisions::Decisions;
use kvscout::fleet::{Endpoint, EndpointId, Fleet, Trust};
use kvscout::index::Index;
use kvscout::metrics::Metrics;
use kvscout::models::{Hub, Loader};
use kvscout::readiness::Readiness;
use kvscout::replicas::Replicas;
use kvscout::replicas::share::Share;
use kvscout::replicas::wire::Message;
use kvscout::scheduler::{Ask, Outcome, Parts, Placement, Reader, Scheduler};
use kvscout::tokens::TokenPool;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const MODEL: &str = "sim";
const BLOCK: u32 = 16;

/// A scheduler that talks to others. Two pods, `Live`, that cut prompts into blocks of 16.
struct Picker {
    scheduler: Arc<Scheduler>,
    pods: Vec<Arc<Endpoint>>,
    index: Arc<Index>,
    replicas: Arc<Replicas>,
    talk: JoinHandle<()>,
    _fleet: watch::Sender<Arc<Fleet>>,
}

impl Picker {
    async fn start(settings: &Nats) -> Self {
        let (index, metrics) = (Arc::<Index>::default(), Arc::<Metrics>::default());
        let pod = |id: u32| {
            let address = SocketAddr::from(([127, 0, 0, 1], 8000 + id as u16));
            let pod = Endpoint::new(EndpointId(id), format!("pod-{id}"), address, None);
            pod.set_trust(Trust::Live, "for the test", Instant::now());
            Arc::new(pod)
        };
        let pods: Vec<_> = (0..2).map(pod).collect();
        let (sender, fleet) = watch::channel(Arc::new(Fleet {
            endpoints: pods.clone(),
            ..Fleet::default()
        }));
        let replicas = Replicas::new(index.clone());
        let mut config = Config::default();
        // Whoever waits is called, or nobody is in this test's time.
        config.admission.queued_tokens_max = 500;
        config.admission.wait_ms_max = 600_000;
        let scheduler = Arc::new(Scheduler::new(Parts {
            fleet: fleet.clone(),
            index: index.clone(),
            replicas: Some(replicas.clone()),
            audit: Arc::new(Audit::new(metrics.clone())),
            decisions: Arc::new(Decisions::new(1 << 20, None, metrics.clone())),
            parity: Arc::default(),
            routes: watch::channel(Arc::default()).1,
            reader: reader(&metrics).await,
            policy: config.policy,
            saturation: config.load.saturation,
            admission: config.admission,
            decision_max: PATIENCE,
            metrics: metrics.clone(),
        }));
        let waits = scheduler.clone();
        let freed = move || waits.freed();
        let share = Share::connect(replicas.clone(), settings, fleet, metrics, freed);
        let share = share.await.expect("an address");
        let picker = Self {
            scheduler,
            pods,
            index,
            replicas,
            talk: tokio::spawn(share.run()),
            _fleet: sender,
        };
        for pod in 0..2 {
            picker.stores(pod, 1);
        }
        picker
    }

    /// An event of a pod, about some other prompt.
    fn stores(&self, pod: u32, prompt: u32) {
        let tokens = vec![1_000 + prompt; BLOCK as usize];
        let stored = Stored::plain(None, vec![EngineHash(prompt.into())], tokens);
        self.index
            .apply(EndpointId(pod), &[BlockEvent::Stored(stored)]);
    }

    async fn place(&self, tokens: &[TokenId]) -> Placement {
        let ask = Ask {
            request_id: "r".into(),
            path: "/v1/completions".into(),
            content_type: Some("application/json".into()),
            body: format!("{{\"model\": \"{MODEL}\", \"prompt\": {tokens:?}}}").into(),
            ..Ask::default()
        };
        let placed = soon("a choice", self.scheduler.place(ask)).await;
        placed.expect("placed")
    }

    /// Waits until a pod has this much to do: requests, and prefill tokens.
    async fn knows(&self, pod: EndpointId, requests: u32, tokens: u64) {
        let load = &self.pods[pod.0 as usize].load;
        until(&format!("{pod:?} has {requests}, {tokens}"), || {
            (load.requests(), load.prefill_tokens()) == (requests, tokens)
        })
        .await;
    }
}

impl Drop for Picker {
    fn drop(&mut self) {
        self.talk.abort();
    }
}

async fn reader(metrics: &Metrics) -> Reader {
    let model = Model {
        names: vec![MODEL.into()],
        adapters: Vec::new(),
        source: Source::Folder(tokenizer()),
        engine: config::Engine::Fast,
        render: RenderSettings::default(),
    };
    let config = Config {
        models: vec![model],
        ..Config::default()
    };
    let (hub, readiness) = (Hub::new("http://127.0.0.1:1", None), Readiness::default());
    let (loader, mut models) = Loader::new(&config, hub, metrics, &readiness);
    tokio::spawn(loader.run());
    let loaded = models.wait_for(|models| models.states().all(|(_, cache)| cache.is_some()));
    let loaded = tokio::time::timeout(3 * PATIENCE, loaded).await;
    drop(loaded.expect("in time").expect("the loader runs"));
    let pool = TokenPool::new(2, 64, PATIENCE, metrics.tokenizer()).expect("threads");
    Reader::new(models, Arc::new(pool))
}

fn answered() -> Outcome {
    Outcome {
        status: Some(200),
        usage: None,
        served: None,
        whole: true,
        ..Outcome::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_places_is_load_for_the_other_and_draws_a_sibling_to_the_same_pod() {
    let nats = NatsServer::start().await;
    let settings = nats.settings();
    let (one, two) = (
        Picker::start(&settings).await,
        Picker::start(&settings).await,
    );
    // Who is heard is listened to from then on. A full state would bring the load, and no prompts.
    for picker in [&one, &two] {
        let peers = || picker.replicas.sizes(Instant::now()).peers;
        until("they hear each other", || peers() == 1).await;
    }
    let prompt: Vec<TokenId> = (1..=321).collect();
    let mut first = one.place(&prompt).await;
    let pod = first.endpoint().id;
    two.knows(pod, 1, 321).await;

    // A stranger avoids the queue that the other replica made.
    let other = two.place(&[7; 100]).await;
    assert_ne!(other.endpoint().id, pod);
    one.knows(other.endpoint().id, 1, 100).await;
    drop(other);

    // Its prefill is done, and no event of it has come: what it computed is known all the same.
    first.first_output(true);
    two.knows(pod, 1, 0).await;
    let sibling: Vec<TokenId> = prompt.iter().copied().chain([9; 20]).collect();
    let second = two.place(&sibling).await;
    assert_eq!(second.endpoint().id, pod, "by load alone the other is idle");
    assert_eq!(second.choice().predicted_cached_tokens, 320);
    drop(second);

    // It ended, answered: until its events come it counts, and not longer.
    first.finish(answered());
    two.knows(pod, 0, 0).await;
    let predicted =
        async |tokens: &[TokenId]| two.place(tokens).await.choice().predicted_cached_tokens;
    assert_eq!(predicted(&sibling).await, 320);
    two.stores(pod.0, 2);
    two.stores(pod.0, 3);
    assert_eq!(predicted(&sibling).await, 0);

    // What was not answered is not held.
    let prompt: Vec<TokenId> = (1_001..=1_321).collect();
    let third = one.place(&prompt).await;
    let pod = third.endpoint().id;
    two.knows(pod, 1, 321).await;
    drop(third);
    two.knows(pod, 0, 0).await;
    assert_eq!(predicted(&prompt).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_room_goes_when_a_replicas_work_ends() {
    let nats = NatsServer::start().await;
    let settings = nats.settings();
    let (one, two) = (
        Picker::start(&settings).await,
        Picker::start(&settings).await,
    );
    let (first, second) = (one.place(&[1; 600]).await, one.place(&[2; 600]).await);
    for full in [&first, &second] {
        two.knows(full.endpoint().id, 1, 600).await;
    }
    let (free, mut waits) = (first.endpoint().id, Box::pin(two.place(&[3; 50])));
    tokio::select! {
        _ = &mut waits => panic!("no endpoint has room"),
        () = until("it waits", || two.scheduler.waiting() == 1) => {}
    }
    drop(first);
    assert_eq!(waits.await.endpoint().id, free);
}

/// A kvscout process that chooses by load alone.
struct Process {
    served: Served,
    channel: tonic::transport::Channel,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Process {
    async fn start(settings: &Nats) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let fleet = "endpoints:\n  - {name: pod-0, address: \"127.0.0.1:8000\"}\n  - {name: pod-1, address: \"127.0.0.1:8001\"}\n";
        std::fs::write(path("fleet.yaml"), fleet).expect("written");
        let any = "127.0.0.1:0".parse().expect("an address");
        let mut config = Config {
            fleet: config::FleetSource::File(path("fleet.yaml")),
            tls: Tls::Off,
            share: config::Share::On,
            ..Config::default()
        };
        let listen = &mut config.listen;
        (listen.ext_proc, listen.health, listen.admin) = (any, any, any);
        config.events.nats = settings.clone();
        config.load.scrape_interval_ms = 0;
        (config.limits.drain_notice_ms, config.limits.drain_ms_max) = (0, 0);
        std::fs::write(path("kvscout.yaml"), config.to_yaml()).expect("written");
        let file = path("kvscout.yaml").display().to_string();
        let served = Served::start(&["--config", &file]);
        let (ext_proc, admin) = served.addresses();
        Self {
            served,
            channel: channel(ext_proc).await,
            admin,
            _folder: folder,
        }
    }

    /// A request that lasts as long as its stream, and its pod.
    async fn place(&self) -> (Exchange, String) {
        let mut exchange = Exchange::open(self.channel.clone()).await;
        let picked = exchange.picked().await;
        let pod = match picked.ends_with("8000") {
            true => "pod-0",
            false => "pod-1",
        };
        (exchange, pod.to_owned())
    }

    async fn page(&self) -> String {
        let answer = http::get(self.admin, "/metrics").await;
        String::from_utf8_lossy(&answer.body).into_owned()
    }

    async fn says(&self, line: &str) {
        let said = async {
            while !self.page().await.lines().any(|one| one == line) {
                tokio::time::sleep(PATIENCE / 1000).await;
            }
        };
        if tokio::time::timeout(PATIENCE, said).await.is_err() {
            let page = self.page().await;
            let ours = page.lines().filter(|line| line.contains("kvscout_replica"));
            let ours: Vec<_> = ours.filter(|line| !line.starts_with('#')).collect();
            panic!("not in time: {line}\n{}", ours.join("\n"));
        }
    }

    async fn hears(&self, peers: usize) {
        self.says(&format!("kvscout_replica_peers {peers}")).await;
    }
}

/// The line of a pod with so many requests.
fn requests(pod: &str, count: usize) -> String {
    format!("kvscout_endpoint_requests{{endpoint=\"{pod}\"}} {count}")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_late_learns_what_is_in_flight_and_who_is_gone_is_forgotten() {
    let nats = NatsServer::start().await;
    let settings = nats.settings();
    let first = Process::start(&settings).await;
    let (_first_stream, pod) = first.place().await;
    let second = Process::start(&settings).await;
    second.says(&requests(&pod, 1)).await;
    let (_second_stream, other) = second.place().await;
    assert_ne!(other, pod, "the one that has nothing to do");
    first.says(&requests(&other, 1)).await;

    let killed = Instant::now();
    drop(first);
    let page = second.page().await;
    assert!(page.lines().any(|line| line == requests(&pod, 1)), "{page}");
    second.says(&requests(&pod, 0)).await;
    let took = killed.elapsed();
    assert!(
        took > Duration::from_secs(3),
        "nobody said goodbye: {took:?}"
    );
    second.hears(0).await;

    let mut third = Process::start(&settings).await;
    third.says(&requests(&other, 1)).await;
    let mut second = second;
    second.served.terminate();
    let bye = "kvscout_replica_messages_total{direction=\"received\",kind=\"bye\"} 1";
    third.says(bye).await;
    third.says(&requests(&other, 0)).await;
    third.hears(0).await;
    assert!(second.served.child.wait().expect("it ends").success());
    assert!(third.served.child.try_wait().expect("known").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_cluster_each_goes_on_alone_and_they_find_each_other_again() {
    let mut nats = NatsServer::start().await;
    let settings = nats.settings();
    let (one, two) = (
        Process::start(&settings).await,
        Process::start(&settings).await,
    );
    let (_stream, pod) = one.place().await;
    two.says(&requests(&pod, 1)).await;
    nats.kill();
    one.hears(0).await;
    two.says(&requests(&pod, 0)).await;
    let (_another, other) = one.place().await;
    assert_ne!(other, pod, "what it placed itself it knows");
    nats.restart().await;
    two.says(&requests(&pod, 1)).await;
    two.says(&requests(&other, 1)).await;
    one.hears(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_counted_and_changes_nothing() {
    let nats = NatsServer::start().await;
    let picker = Process::start(&nats.settings()).await;
    let client: Client = soon(
        "a connection",
        async_nats::connect(nats.settings().servers[0].clone()),
    )
    .await
    .expect("it connects");
    let (_stream, pod) = picker.place().await;
    // It hears us once one question has come through.
    let ask = Message::Ask { whom: None }.to_bytes();
    let heard = "kvscout_replica_messages_total{direction=\"received\",kind=\"ask\"}";
    soon("it listens", async {
        while !picker.page().await.contains(heard) {
            let asked = client.publish("kv-work.default.default.aa", ask.clone().into());
            asked.await.expect("published");
            tokio::time::sleep(PATIENCE / 1000).await;
        }
    })
    .await;
    for (name, payload) in [
        ("00000000000000aa", &b"hello"[..]),
        ("00000000000000aa", b"\x01hello"),
        ("00000000000000aa", b""),
        ("no-number", b"\x01\xa3Bye"),
    ] {
        let subject = format!("kv-work.default.default.{name}");
        client
            .publish(subject, payload.into())
            .await
            .expect("published");
    }
    client.flush().await.expect("flushed");
    picker
        .says("kvscout_replica_skipped_total{reason=\"malformed\"} 3")
        .await;
    picker
        .says("kvscout_replica_skipped_total{reason=\"other_version\"} 1")
        .await;
    picker.hears(0).await;
    picker.says(&requests(&pod, 1)).await;
}
