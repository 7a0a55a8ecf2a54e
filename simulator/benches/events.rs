//! Events end to end, a core each: a publisher → ZMQ → bridge → nats-server → picker's index.
//! `make bench-events`.
//!
//! The bridge and the picker each run on one thread, whose CPU time is what is divided by: events
//! per second of it is what one core sustains. Afterwards, how long a picker that just started
//! takes to know 64 servers of 10,000 blocks each from their snapshots.

#![allow(clippy::print_stdout, reason = "a benchmark's table is its output")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kvscout::blocks::{
    BlockEvent, BlockKey, Chain, EngineHash, Group, Identity, KEYS_VERSION, Medium, Rule, Stored,
};
use kvscout::bridge::Bridge;
use kvscout::config::Nats;
use kvscout::events::listen::{Listeners, Way};
use kvscout::events::nats::{Beat, Cluster, born};
use kvscout::events::snapshot::Snapshot;
use kvscout::events::zmq;
use kvscout::fleet::{self, Endpoint, EndpointId, EventAddress, Fleet, Trust};
use kvscout::index::{CachePicture, Index, Picture, Place};
use kvscout_sim::decisions::process::cpu;
use kvscout_sim::events::{EventConfig, FaultSwitch, Layout, Publisher};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_stream::StreamExt as _;

/// Block events in all, half of them stores.
const EVENTS: usize = 2_000_000;
/// Blocks that a batch stores, and removes once the cache is full.
const BLOCKS_A_BATCH: usize = 8;
/// Blocks that the server keeps.
const CACHE_BLOCKS: usize = 10_000;
const BLOCK_SIZE: usize = 16;
/// Block events a second that are published.
const RATE: f64 = 200_000.0;

const COLD_SERVERS: u32 = 64;
const COLD_BLOCKS: u64 = 10_000;

struct NatsServer {
    child: Child,
    settings: Nats,
    _folder: tempfile::TempDir,
}

impl NatsServer {
    fn start() -> anyhow::Result<Self> {
        let binary = std::env::var_os("KVSCOUT_NATS_SERVER").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/venv/bin/nats-server"),
            PathBuf::from,
        );
        let free = TcpListener::bind("127.0.0.1:0")?;
        let port = free.local_addr()?.port().to_string();
        drop(free);
        let folder = tempfile::tempdir()?;
        let child = Command::new(&binary)
            .args(["-js", "-a", "127.0.0.1", "-p", &port, "-sd"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{}: run make setup", binary.display()))?;
        let settings = Nats {
            servers: vec![format!("nats://127.0.0.1:{port}")],
            ..Nats::default()
        };
        Ok(Self {
            child,
            settings,
            _folder: folder,
        })
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // One that has ended cannot be killed, and need not be.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn listeners(
    endpoints: Vec<Arc<Endpoint>>,
    index: &Arc<Index>,
    way: Way,
    bridge: Option<&Bridge>,
) -> (Listeners, watch::Sender<Arc<Fleet>>) {
    let (sender, fleet) = watch::channel(Arc::new(Fleet::of(endpoints)));
    let listeners = Listeners {
        tap: bridge.map(Bridge::tap),
        ..Listeners::new(fleet, index.clone(), way)
    };
    (listeners, sender)
}

/// A thread with a runtime of its own, and the CPU time that it took.
fn thread<F: Future<Output = anyhow::Result<()>>>(
    name: &str,
    work: impl FnOnce() -> F + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<anyhow::Result<Duration>>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(work())?;
            Ok(thread_cpu())
        })
}

fn endpoint(number: u32, events: Option<EventAddress>) -> Arc<Endpoint> {
    let address = ([127, 0, 0, 1], 1).into();
    let name = format!("pod-{number}");
    Arc::new(Endpoint::new(EndpointId(number), name, address, events))
}

/// The batches of a full cache: each stores a chain of blocks and removes the oldest.
fn batch(number: usize) -> Vec<BlockEvent> {
    let hash = |block: usize| EngineHash(block as u64 + 1);
    let first = number * BLOCKS_A_BATCH;
    let removed = first.checked_sub(CACHE_BLOCKS);
    let removals = removed
        .into_iter()
        .flat_map(|from| from..from + BLOCKS_A_BATCH);
    let mut events: Vec<BlockEvent> = removals
        .map(|block| BlockEvent::Removed {
            hashes: vec![hash(block)],
            medium: Medium::Gpu,
            group: Group::default(),
        })
        .collect();
    let tokens = (0..BLOCKS_A_BATCH * BLOCK_SIZE).map(|at| (number * 7 + at) as u32 % 150_000);
    let hashes = (first..first + BLOCKS_A_BATCH).map(hash).collect();
    events.push(BlockEvent::Stored(Stored {
        extra_keys: Some(vec![Vec::new(); BLOCKS_A_BATCH]),
        ..Stored::plain(None, hashes, tokens.collect())
    }));
    events
}

async fn wait(what: &str, mut condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !condition() {
        ensure!(
            begun.elapsed() < Duration::from_secs(120),
            "not in time: {what}"
        );
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted
        .get(at.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

async fn throughput(nats: &NatsServer) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    let config = EventConfig {
        endpoint: "tcp://127.0.0.1:0".into(),
        replay_endpoint: Some("tcp://127.0.0.1:0".into()),
        topic: None,
        layout: Layout::Map,
        rank: 0,
    };
    let faults = FaultSwitch::default();
    let (publisher, sources) = Publisher::start(&config, "kv".into(), &faults, &mut tasks).await?;
    let events = EventAddress {
        publisher: fleet::Publisher::At(sources.endpoint),
        replay: sources.replay_endpoint,
    };
    let (heard, seen) = (endpoint(0, Some(events)), endpoint(0, None));
    let index = Arc::new(Index::default());
    let (bridge_end, bridge_ended) = oneshot::channel::<()>();
    let (picker_end, picker_ended) = oneshot::channel::<()>();
    let (settings, endpoint) = (nats.settings.clone(), heard.clone());
    let bridge = thread("bridge", move || async move {
        let bridge = Bridge::new(Cluster::connect(&settings).await?);
        let limits = zmq::Limits {
            queue_messages_max: 1_000_000,
            queue_bytes_max: 1 << 30,
            ..zmq::Limits::default()
        };
        let way = Way::Zmq {
            topic: String::new(),
            limits,
            acceptor: None,
        };
        let index = Arc::new(Index::default());
        let (listeners, _fleet) = listeners(vec![endpoint], &index, way, Some(&bridge));
        tokio::select! {
            () = listeners.run() => {}
            _ = bridge_ended => {}
        }
        Ok(())
    })?;
    let (settings, endpoint, picture) = (nats.settings.clone(), seen.clone(), index.clone());
    let picker = thread("picker", move || async move {
        let way = Way::Nats(Box::new(Cluster::connect(&settings).await?));
        let (listeners, _fleet) = listeners(vec![endpoint], &picture, way, None);
        tokio::select! {
            () = listeners.run() => {}
            _ = picker_ended => {}
        }
        Ok(())
    })?;
    publisher.publish(batch(0)).await;
    wait("the first batch arrives", || seen.trust() == Trust::Live).await?;
    let (begun, nats_before) = (Instant::now(), cpu(nats.child.id())?);
    let batches = EVENTS / (2 * BLOCKS_A_BATCH);
    let per_batch = 2.0 * BLOCKS_A_BATCH as f64 / RATE;
    let mut lags = Vec::new();
    for number in 1..batches {
        publisher.publish(batch(number)).await;
        let due = Duration::from_secs_f64(per_batch * number as f64);
        if let Some(early) = due.checked_sub(begun.elapsed())
            && early > Duration::from_millis(1)
        {
            sleep(early).await;
        }
        // Every two-hundredth batch is waited for by its last block, beside the others.
        if number % 200 == 0 {
            let (sent, blocks, chain) = (Instant::now(), index.clone(), chain_of(number));
            lags.push(tokio::spawn(async move {
                while !blocks.holds(EndpointId(0), &chain) {
                    sleep(Duration::from_micros(200)).await;
                    if sent.elapsed() > Duration::from_secs(60) {
                        return f64::NAN;
                    }
                }
                sent.elapsed().as_secs_f64() * 1e3
            }));
        }
    }
    let published = begun.elapsed();
    let last = chain_of(batches - 1);
    wait("the last batch arrives", || {
        index.holds(EndpointId(0), &last)
    })
    .await?;
    let arrived = begun.elapsed();
    let mut sorted = Vec::new();
    for lag in lags {
        sorted.push(lag.await?);
    }
    sorted.sort_by(f64::total_cmp);
    drop((bridge_end, picker_end));
    let join = |thread: std::thread::JoinHandle<anyhow::Result<Duration>>| {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))?
    };
    let (bridge, picker) = (join(bridge)?, join(picker)?);
    let server = cpu(nats.child.id())? - nats_before;
    println!(
        "{EVENTS} block events in {batches} batches at {:.0} a second; all there {:.0} ms after the last",
        EVENTS as f64 / published.as_secs_f64(),
        (arrived - published).as_secs_f64() * 1e3
    );
    println!(
        "lag: p50 {:.1} ms, p90 {:.1}, p99 {:.1}",
        percentile(&sorted, 0.5),
        percentile(&sorted, 0.9),
        percentile(&sorted, 0.99)
    );
    for (name, cpu) in [
        ("bridge", bridge),
        ("nats-server", server),
        ("picker", picker),
    ] {
        println!(
            "{name:<12} {:>7.2} s of CPU: {:>9.0} block events a second and core",
            cpu.as_secs_f64(),
            EVENTS as f64 / cpu.as_secs_f64()
        );
    }
    Ok(())
}

/// The prompt that ends with a batch's last block.
fn chain_of(number: usize) -> Chain {
    let events = batch(number);
    let Some(BlockEvent::Stored(stored)) = events.last() else {
        unreachable!("every batch stores");
    };
    Chain::of_full_blocks(&stored.tokens, BLOCK_SIZE as u32, &Identity::default())
}

async fn cold_start(nats: &NatsServer) -> anyhow::Result<()> {
    let cluster = Cluster::connect(&nats.settings).await?;
    let created = born(&cluster.stream().await?);
    let mut bridges = JoinSet::new();
    let mut endpoints = Vec::new();
    for number in 0..COLD_SERVERS {
        let endpoint = endpoint(1000 + number, None);
        // Prompts of a hundred blocks.
        let block = |at| {
            let key = BlockKey::root(Some(&format!("{number} {at}")));
            (u32::from(at % 100 > 0), key)
        };
        let snapshot = Snapshot {
            keys: KEYS_VERSION,
            epoch: u64::from(number),
            seq: 9,
            hash: 0,
            stream_seq: 0,
            stream_created: created,
            whole: true,
            reason: String::new(),
            picture: Picture {
                shows_salt: Some(true),
                blocks: (0..COLD_BLOCKS).map(block).collect(),
                caches: vec![CachePicture {
                    place: Place::OWN,
                    rule: Rule::All,
                    shape: Some(16.into()),
                    copies: (0..COLD_BLOCKS)
                        .map(|at| (at, Some(at as u32), 1))
                        .collect(),
                }],
            },
        };
        cluster
            .write_snapshot(&endpoint, &snapshot.to_bytes())
            .await?;
        let (cluster, heard) = (cluster.clone(), endpoint.clone());
        bridges.spawn(async move {
            let asked = cluster
                .client()
                .subscribe(cluster.ask_subject(&heard))
                .await;
            let mut asked = asked.expect("connected");
            let beat = Beat {
                last: Some((u64::from(number), 9)),
                trust: Trust::Live.as_str().to_owned(),
                reason: String::new(),
            };
            while asked.next().await.is_some() {
                // A beat that is lost shows as a slow start.
                let _ = cluster.beat(&heard, &beat).await;
            }
        });
        endpoints.push(endpoint);
    }
    // What the bridges asked for has reached the server.
    cluster.client().flush().await?;
    let index = Arc::new(Index::default());
    let begun = Instant::now();
    let way = Way::Nats(Box::new(Cluster::connect(&nats.settings).await?));
    let (listeners, _fleet) = listeners(endpoints.clone(), &index, way, None);
    let listening = tokio::spawn(listeners.run());
    wait("every server is known", || {
        endpoints
            .iter()
            .all(|endpoint| endpoint.trust() == Trust::Live)
    })
    .await?;
    println!(
        "{COLD_SERVERS} servers of {COLD_BLOCKS} blocks known from snapshots after {:.2} s",
        begun.elapsed().as_secs_f64()
    );
    listening.abort();
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let nats = NatsServer::start()?;
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let cluster = Cluster::connect(&nats.settings).await?;
        let begun = Instant::now();
        while cluster.init().await.is_err() {
            ensure!(
                begun.elapsed() < Duration::from_secs(20),
                "nats-server does not answer"
            );
            sleep(Duration::from_millis(50)).await;
        }
        throughput(&nats).await?;
        cold_start(&nats).await
    })
}
