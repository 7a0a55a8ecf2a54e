//! `kvscout record`: a live server's events into a folder, to replay and to explain later.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};

use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::events::recording::{EVENTS_FILE, RecordingWriter};
use crate::events::zmq::{Limits, ZmqSource};
use crate::events::{Batch, Delivery, EventSource};

/// Records the KV-cache events that a vLLM server publishes.
///
/// The server must run with `--kv-events-config '{"enable_kv_cache_events": true, "publisher":
/// "zmq", "endpoint": "tcp://*:5557"}'`. Recording does not disturb it and may begin at any
/// time; only a recording that begins before the first request is complete. Ends with Ctrl-C
/// or at a limit; whatever was written until then is a valid recording.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The server's event publisher, such as tcp://10.0.0.7:5557; rank r of a data-parallel
    /// server publishes at the configured port + r
    #[arg(long, value_name = "ADDRESS")]
    pub zmq: String,
    /// Record only topics that start so [default: all]
    #[arg(
        long,
        value_name = "PREFIX",
        default_value = "",
        hide_default_value = true
    )]
    pub topic: String,
    /// The folder to create; one that holds a recording already is left alone
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// End after so many seconds
    #[arg(long, value_name = "N")]
    pub seconds: Option<u64>,
    /// End after so many batches
    #[arg(long, value_name = "N")]
    pub batches: Option<u64>,
}

/// What `meta.json` tells of a recording.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Meta {
    recorder: &'static str,
    publisher: String,
    topic_prefix: String,
    /// Seconds since 1970.
    started: f64,
    ended: f64,
    events: u64,
    first_seq: Option<u64>,
    last_seq: Option<u64>,
    /// Places where the sequence did not go on by one; a restarted server makes one too.
    gaps: u64,
    malformed: u64,
    disconnects: u64,
}

impl Meta {
    fn new(args: &Args, started: f64) -> Self {
        Self {
            recorder: concat!("kvscout ", env!("CARGO_PKG_VERSION")),
            publisher: args.zmq.clone(),
            topic_prefix: args.topic.clone(),
            started,
            ended: started,
            events: 0,
            first_seq: None,
            last_seq: None,
            gaps: 0,
            malformed: 0,
            disconnects: 0,
        }
    }

    fn count(&mut self, batch: &Batch) {
        self.events += 1;
        self.first_seq.get_or_insert(batch.seq);
        let previous = self.last_seq.replace(batch.seq);
        let follows = previous.is_none_or(|seq| seq.wrapping_add(1) == batch.seq);
        self.gaps += u64::from(!follows);
    }

    fn progress(&self) -> String {
        let Self {
            events,
            gaps,
            malformed,
            ..
        } = self;
        let last = self.last_seq.map_or("none".into(), |seq| seq.to_string());
        format!("{events} batches, last sequence number {last}, {gaps} gaps, {malformed} malformed")
    }
}

/// Records until Ctrl-C or a limit.
///
/// # Errors
/// A bad address, a folder that holds a recording, a disk that takes no more.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut source = ZmqSource::connect(&args.zmq, &args.topic, Limits::default())?;
    let mut writer = RecordingWriter::new(create(&args.out)?);
    let mut meta = Meta::new(&args, now());
    let recorded = record(&args, &mut source, &mut writer, &mut meta).await;
    // A disk that is full may still take the summary; a recording without one is valid too.
    meta.ended = now();
    let json = serde_json::to_string_pretty(&meta)?;
    let written = fs::write(args.out.join("meta.json"), json).context("cannot write meta.json");
    eprintln!("{}{} in {}", clear(), meta.progress(), args.out.display());
    recorded.and(written)
}

async fn record(
    args: &Args,
    source: &mut ZmqSource,
    writer: &mut RecordingWriter<File>,
    meta: &mut Meta,
) -> anyhow::Result<()> {
    let limit = Duration::from_secs(args.seconds.unwrap_or(u64::MAX));
    let mut ended = std::pin::pin!(async {
        tokio::select! {
            () = sleep(limit) => Ok(()),
            interrupted = tokio::signal::ctrl_c() => interrupted,
        }
    });
    let mut progress = interval(Duration::from_secs(1));
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while args.batches.is_none_or(|batches| meta.events < batches) {
        tokio::select! {
            ended = &mut ended => return ended.context("cannot wait for Ctrl-C"),
            _ = progress.tick() => show(&meta.progress()),
            delivery = source.next() => {
                let delivery = delivery.context("the source ended by itself")?;
                take(delivery, writer, meta)?;
            }
        }
    }
    Ok(())
}

fn take(
    delivery: Delivery,
    writer: &mut RecordingWriter<File>,
    meta: &mut Meta,
) -> anyhow::Result<()> {
    match delivery {
        Delivery::Batch(batch) => {
            meta.count(&batch);
            writer
                .write(now(), &batch)
                .context("cannot write a batch")?;
        }
        Delivery::Malformed { reason } => {
            meta.malformed += 1;
            eprintln!("{}not a batch, left out: {reason}", clear());
        }
        Delivery::Connected => eprintln!("{}connected", clear()),
        Delivery::Disconnected { reason } => {
            meta.disconnects += 1;
            eprintln!("{}disconnected, trying again: {reason}", clear());
        }
        // What a bridge alone says; a recorder hears a publisher.
        Delivery::Snapshot(_)
        | Delivery::Restarted
        | Delivery::Resumed
        | Delivery::Doubted { .. } => {}
        Delivery::Overrun { messages } => {
            eprintln!("{}the disk is too slow: {messages} batches lost", clear());
        }
    }
    Ok(())
}

/// The events file of a new recording in `folder`.
fn create(folder: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join(EVENTS_FILE);
    ensure!(
        !path.exists(),
        "{} exists: a recording is never overwritten, name another folder",
        path.display()
    );
    // `create_new`: nor is one that appeared just now.
    File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// Rewrites the progress line, for people only.
fn show(progress: &str) {
    if io::stderr().is_terminal() {
        eprint!("{}{progress}", clear());
        // A progress line that cannot be shown is no reason to stop recording.
        drop(io::stderr().flush());
    }
}

/// Takes a progress line off the terminal.
fn clear() -> &'static str {
    if io::stderr().is_terminal() {
        "\r\x1b[2K"
    } else {
        ""
    }
}
