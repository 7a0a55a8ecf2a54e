//! Simulated servers in the test's own process.

use std::net::SocketAddr;
use std::path::Path;

use kvscout_sim::engine::EngineConfig;
use kvscout_sim::events::{EventConfig, Layout};
use kvscout_sim::server::{self, Server};
use kvscout_sim::timing::Timing;

/// A server of so many blocks, so that much is evicted, at the addresses of one that is gone or
/// anywhere.
pub async fn pod(
    blocks: u32,
    hash_seed: u64,
    at: Option<&server::Addresses>,
) -> anyhow::Result<server::Bound> {
    Server::start(config(blocks, hash_seed, at, 0)).await
}

/// One that reads prompts as a model's folder says, at this address and wherever its ip has a free port.
pub async fn reading(folder: &Path, at: SocketAddr) -> anyhow::Result<server::Bound> {
    let any = format!("tcp://{}:0", at.ip());
    let plain = config(1_000, 0, None, 0);
    let events = plain.events.map(|events| EventConfig {
        endpoint: any.clone(),
        replay_endpoint: Some(any),
        ..events
    });
    Server::start(server::Config {
        listen: at.to_string(),
        tokenizer: Some(folder.to_owned()),
        events,
        ..plain
    })
    .await
}

/// One data-parallel rank, anywhere.
pub async fn rank(rank: u32) -> anyhow::Result<server::Bound> {
    Server::start(config(64, 0, None, rank)).await
}

fn config(
    blocks: u32,
    hash_seed: u64,
    at: Option<&server::Addresses>,
    rank: u32,
) -> server::Config {
    let any = || "tcp://127.0.0.1:0".to_owned();
    let events = at.and_then(|at| at.events.as_ref());
    server::Config {
        listen: at.map_or_else(|| "127.0.0.1:0".to_owned(), |at| at.http.to_string()),
        timing: Timing::INSTANT,
        engine: EngineConfig {
            num_gpu_blocks: blocks,
            hash_seed,
            ..EngineConfig::default()
        },
        events: Some(EventConfig {
            endpoint: events.map_or_else(any, |events| events.endpoint.clone()),
            replay_endpoint: Some(events.map_or_else(any, |events| {
                events.replay_endpoint.clone().expect("replay is on")
            })),
            topic: Some("kv".into()),
            layout: Layout::Map,
            rank,
        }),
        ..server::Config::default()
    }
}

/// A fleet of these pods, in order, and of more lines.
pub fn fleet_yaml(pods: &[server::Bound], more: &str) -> String {
    let mut yaml = format!("endpoints:\n{more}");
    for (number, pod) in pods.iter().enumerate() {
        let events = pod.addresses.events.as_ref().expect("events are on");
        let (http, replay) = (
            pod.addresses.http,
            events.replay_endpoint.as_ref().expect("replay is on"),
        );
        let events = &events.endpoint;
        yaml += &format!(
            "  - {{name: pod-{number}, address: \"{http}\", events: \"{events}\", replay: \"{replay}\"}}\n"
        );
    }
    yaml
}
