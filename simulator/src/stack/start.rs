//! The parts of a stack, started in the order that they need each other, and waited for.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use kvscout::config::{
    Config as Kvscout, DecisionLog, Decisions, Engine, FleetSource, Limits, Listen, Model, Replies,
    Source,
};
use kvscout::prompt::template::RenderSettings;
use serde_json::Value;

use super::child::{self, Child};
use super::elsewhere::Elsewhere;
use super::envoy as example;
use super::{Plan, Pod};
use crate::engine::EngineConfig;
use crate::events::{EventConfig, Layout};
use crate::server::{Config, Server};

pub(super) async fn pods(plan: &Plan, elsewhere: &Elsewhere) -> anyhow::Result<Vec<Pod>> {
    let mut pods = Vec::with_capacity(plan.pods);
    for number in 1..=plan.pods {
        pods.push(pod(plan, number, elsewhere).await?);
    }
    Ok(pods)
}

pub(super) async fn pod(plan: &Plan, number: usize, elsewhere: &Elsewhere) -> anyhow::Result<Pod> {
    let any = "tcp://127.0.0.1:0";
    let config = Config {
        model: plan.model.clone(),
        tokenizer: Some(plan.parts.tokenizer.clone()),
        adapters: plan.adapters.clone(),
        // No two engines name blocks alike.
        engine: EngineConfig {
            hash_seed: number as u64,
            ..plan.engine.clone()
        },
        timing: plan.timing,
        events: Some(EventConfig {
            endpoint: any.into(),
            replay_endpoint: Some(any.into()),
            topic: None,
            layout: Layout::Map,
            rank: 0,
        }),
        ..Config::default()
    };
    let name = format!("pod-{number}");
    let server = elsewhere
        .run(Server::start(config))
        .await
        .with_context(|| format!("{name} does not start"))?;
    Ok(Pod { name, server })
}

/// Loading a vocabulary takes a debug build on a busy machine half a minute.
const START_MAX: Duration = Duration::from_secs(90);

/// The process, and where its ext_proc and admin ports are.
pub(super) async fn kvscout(
    plan: &Plan,
    pods: &[Pod],
    folder: &Path,
    http: &reqwest::Client,
) -> anyhow::Result<(Child, SocketAddr, SocketAddr)> {
    write_fleet(pods, folder)?;
    let file = folder.join("kvscout.yaml");
    std::fs::write(&file, kvscout_config(plan, folder)?.to_yaml())?;
    let args = [
        "serve".to_owned(),
        "--config".to_owned(),
        file.display().to_string(),
    ];
    let mut kvscout = Child::start("kvscout", &plan.parts.kvscout, &args, folder)?;
    let log = kvscout.log().to_owned();
    let look = async || listening(&child::line_since(&log, 0, "listening")?);
    let (ext_proc, admin) = kvscout.until("kvscout to listen", START_MAX, look).await?;
    let ready = async || ok(http, format!("http://{admin}/readyz")).await;
    kvscout.until("kvscout's /readyz", START_MAX, ready).await?;
    Ok((kvscout, ext_proc, admin))
}

/// kvscout says where port 0 led to: `listening ext_proc=127.0.0.1:9002 … admin=…`.
fn listening(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let address = |field: &str| {
        let mut words = line.split_whitespace();
        words
            .find_map(|word| word.strip_prefix(field))?
            .parse()
            .ok()
    };
    Some((address("ext_proc=")?, address("admin=")?))
}

/// In one move, since kvscout reads it again every second.
pub(super) fn write_fleet(pods: &[Pod], folder: &Path) -> anyhow::Result<()> {
    let new = folder.join("fleet.new");
    std::fs::write(&new, fleet_file(pods)?)?;
    Ok(std::fs::rename(new, folder.join("fleet.yaml"))?)
}

fn fleet_file(pods: &[Pod]) -> anyhow::Result<String> {
    let mut text = "endpoints:\n".to_owned();
    for pod in pods {
        let events = pod
            .server
            .addresses
            .events
            .as_ref()
            .context("every pod has events")?;
        let replay = events
            .replay_endpoint
            .as_ref()
            .context("every pod has replay")?;
        writeln!(
            text,
            "  - name: {}\n    address: {}",
            pod.name,
            pod.address()
        )?;
        writeln!(
            text,
            "    events: {}\n    replay: {replay}",
            events.endpoint
        )?;
    }
    Ok(text)
}

pub(super) fn decision_log(folder: &Path) -> PathBuf {
    folder.join("decisions.jsonl")
}

fn kvscout_config(plan: &Plan, folder: &Path) -> anyhow::Result<Kvscout> {
    let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let Kvscout {
        limits, decisions, ..
    } = Kvscout::default();
    let log = plan.decision_log.then(|| DecisionLog {
        file: decision_log(folder),
        bytes_max: 64 << 20,
        files_max: 4,
    });
    Ok(Kvscout {
        listen: Listen {
            ext_proc: local(plan.ports.ext_proc),
            health: local(plan.ports.health),
            admin: local(plan.ports.admin),
            admin_token: None,
        },
        tls: plan.tls.clone(),
        fleet: FleetSource::File(folder.join("fleet.yaml")),
        models: vec![Model {
            names: vec![plan.model.clone()],
            adapters: plan.adapters.clone(),
            source: Source::Folder(std::fs::canonicalize(&plan.parts.tokenizer)?),
            engine: Engine::default(),
            render: RenderSettings::default(),
        }],
        limits: Limits {
            drain_notice_ms: 0,
            drain_ms_max: 1_000,
            ..limits
        },
        decisions: Decisions { log, ..decisions },
        replies: Replies {
            decision_header: true,
            ..Kvscout::default().replies
        },
        ..Kvscout::default()
    })
}

/// The process, and where its two listeners are.
pub(super) async fn envoy(
    plan: &Plan,
    pods: &[Pod],
    kvscout: SocketAddr,
    folder: &Path,
    http: &reqwest::Client,
) -> anyhow::Result<(Child, SocketAddr, SocketAddr)> {
    let addresses: Vec<SocketAddr> = pods.iter().map(Pod::address).collect();
    let (file, admin_file) = (folder.join("envoy.yaml"), folder.join("envoy-admin"));
    std::fs::write(&file, example::configure(&plan.ports, &addresses, kvscout)?)?;
    let (file, admin_path) = (file.display().to_string(), admin_file.display().to_string());
    let args = [
        "-c",
        &file,
        "--admin-address-path",
        &admin_path,
        "--use-dynamic-base-id",
    ];
    let quiet = ["--concurrency", "1", "--log-level", "warning"];
    let args: Vec<String> = args.into_iter().chain(quiet).map(str::to_owned).collect();
    let mut envoy = Child::start("envoy", &plan.parts.envoy, &args, folder)?;
    let look = async || {
        std::fs::read_to_string(&admin_file)
            .ok()?
            .trim()
            .parse::<SocketAddr>()
            .ok()
    };
    let admin = envoy.until("Envoy's admin page", START_MAX, look).await?;
    let ready = async || ok(http, format!("http://{admin}/ready")).await;
    envoy.until("Envoy to be ready", START_MAX, ready).await?;
    let page = http
        .get(format!("http://{admin}/listeners?format=json"))
        .send()
        .await?
        .text()
        .await?;
    let listeners: Value = serde_json::from_str(&page).context("Envoy's /listeners")?;
    Ok((
        envoy,
        listener(&listeners, "plain")?,
        listener(&listeners, "routed")?,
    ))
}

/// Envoy says where port 0 led to.
fn listener(listeners: &Value, name: &str) -> anyhow::Result<SocketAddr> {
    let all = listeners["listener_statuses"]
        .as_array()
        .context("Envoy lists its listeners")?;
    let one = all.iter().find(|one| one["name"] == name);
    let port = one.and_then(|one| one["local_address"]["socket_address"]["port_value"].as_u64());
    let port = port.with_context(|| format!("Envoy has no listener {name}"))?;
    Ok(SocketAddr::from(([127, 0, 0, 1], u16::try_from(port)?)))
}

async fn ok(http: &reqwest::Client, url: String) -> Option<()> {
    let answer = http.get(url).send().await.ok()?;
    answer.status().is_success().then_some(())
}
