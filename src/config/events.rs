//! Where KV events come from, as far as an operator decides it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::yaml::Section;
use super::{Nats, nats, print};

/// Where KV events come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Events {
    /// By which way.
    pub source: EventSourceKind,
    /// Where publishers connect to us; endpoints without an address of theirs are heard there.
    pub bind: Option<SocketAddr>,
    /// Where bridges keep them.
    pub nats: Nats,
    /// A file with what names of blocks are mixed with; the same for all who tell each other.
    pub keys_secret: Option<PathBuf>,
    /// Only topics that start so.
    pub topic: String,
    /// Bytes of undecoded events kept per endpoint before the newest are dropped.
    pub queue_bytes_max: usize,
}

/// A way for KV events to reach us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventSourceKind {
    /// Straight from each endpoint's publisher.
    Zmq,
    /// From the stream that bridges fill.
    Nats,
    /// Not at all: every choice is by load.
    Off,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            source: EventSourceKind::Zmq,
            bind: None,
            nats: Nats::default(),
            keys_secret: None,
            topic: String::new(),
            queue_bytes_max: 64 << 20,
        }
    }
}

pub(super) fn read(events: &mut Section<'_>, folder: &Path) -> Events {
    let defaults = Events::default();
    Events {
        source: events.word("source", print::EVENT_SOURCES, defaults.source),
        bind: read_bind(events),
        nats: events
            .section("nats", |nats| Some(nats::read(nats, folder)))
            .unwrap_or(defaults.nats),
        keys_secret: events
            .optional::<PathBuf>("keys_secret")
            .map(|path| folder.join(path)),
        topic: events.get("topic", defaults.topic),
        queue_bytes_max: events.within(
            "queue_bytes_max",
            (1 << 20, 16 << 30),
            defaults.queue_bytes_max,
        ),
    }
}

/// As vLLM writes it: `tcp://ip:port`, or `tcp://*:port` for every address that we have.
fn read_bind(events: &mut Section<'_>) -> Option<SocketAddr> {
    let text = events.text("bind")?;
    let address = text.strip_prefix("tcp://").map(|address| {
        let any = address
            .strip_prefix("*:")
            .map(|port| format!("0.0.0.0:{port}"));
        any.unwrap_or_else(|| address.to_owned()).parse()
    });
    match address {
        Some(Ok(address)) => Some(address),
        _ => {
            let problem =
                format!("{text:?} is not tcp://ip:port of this host, as tcp://0.0.0.0:5557");
            events.complain("bind", problem);
            None
        }
    }
}
