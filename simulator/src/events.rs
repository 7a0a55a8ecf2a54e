//! KV cache events as vLLM puts them on the wire.

mod faults;
mod publisher;

use kvscout::blocks::{BlockEvent, EngineHash, ExtraKey, Stored};
use serde::Serialize;

pub use faults::{FaultSwitch, Faults, ReplayFault};
pub use publisher::{EventConfig, Publisher, Sources};

/// Batches that can still be asked for: vLLM's `buffer_steps`.
const REPLAYABLE_BATCHES_MAX: usize = 10_000;

/// How events are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Layout {
    /// vLLM 0.24 and later: `{"type": "BlockStored", …}`, as in the recording of 0.32.0.
    #[default]
    Map,
    /// Up to 0.23: `["BlockStored", …]`, as in the recording of 0.20.2.
    Array,
}

/// The msgpack payload of one message: `[seconds, [event, …], rank]`.
#[must_use]
pub fn encode(layout: Layout, seconds: f64, events: &[BlockEvent], rank: u32) -> Vec<u8> {
    let events: Vec<Event> = events
        .iter()
        .map(|event| Event::of(event, layout))
        .collect();
    let batch = (seconds, events, rank);
    // A struct's fields are named in the one layout and only counted in the other.
    let bytes = match layout {
        Layout::Map => rmp_serde::to_vec_named(&batch),
        Layout::Array => rmp_serde::to_vec(&batch),
    };
    bytes.expect("numbers and strings always encode")
}

/// Fields in vLLM's order; optional ones are written as nil, since vLLM gives them no default.
#[derive(Serialize)]
#[serde(untagged)]
enum Event<'a> {
    Stored {
        r#type: &'static str,
        block_hashes: Vec<u64>,
        parent_block_hash: Option<u64>,
        token_ids: &'a [u32],
        block_size: u32,
        lora_id: Option<i64>,
        medium: &'static str,
        lora_name: Option<&'a str>,
        extra_keys: Vec<Option<Vec<Extra<'a>>>>,
        group_idx: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        kv_cache_spec_kind: Option<&'static str>,
    },
    Removed {
        r#type: &'static str,
        block_hashes: Vec<u64>,
        medium: &'static str,
        group_idx: u32,
    },
    Cleared {
        r#type: &'static str,
    },
}

#[derive(Serialize)]
#[serde(untagged)]
enum Extra<'a> {
    Text(&'a str),
    At(&'a str, i64),
    Digest(&'a [u8]),
}

/// vLLM says so on every platform, CPU included.
const MEDIUM: &str = "GPU";

impl<'a> Event<'a> {
    fn of(event: &'a BlockEvent, layout: Layout) -> Self {
        match event {
            BlockEvent::Stored(stored) => Self::stored(stored, layout),
            BlockEvent::Removed { hashes, group, .. } => Self::Removed {
                r#type: "BlockRemoved",
                block_hashes: numbers(hashes),
                medium: MEDIUM,
                group_idx: group.index,
            },
            BlockEvent::Cleared => Self::Cleared {
                r#type: "AllBlocksCleared",
            },
        }
    }

    fn stored(stored: &'a Stored, layout: Layout) -> Self {
        let adapter = stored.adapter.as_deref();
        let of_block = |extras: &'a Vec<ExtraKey>| {
            let all: Vec<Extra> = adapter
                .map(Extra::Text)
                .into_iter()
                .chain(extras.iter().map(Extra::of))
                .collect();
            (!all.is_empty()).then_some(all)
        };
        Self::Stored {
            r#type: "BlockStored",
            block_hashes: numbers(&stored.hashes),
            parent_block_hash: stored.parent.map(|hash| hash.0),
            token_ids: &stored.tokens,
            block_size: stored.block_size,
            lora_id: stored.adapter_id,
            medium: MEDIUM,
            lora_name: adapter,
            extra_keys: stored.extra_keys.iter().flatten().map(of_block).collect(),
            group_idx: stored.group.index,
            kv_cache_spec_kind: (layout == Layout::Map).then_some("full_attention"),
        }
    }
}

impl<'a> Extra<'a> {
    fn of(key: &'a ExtraKey) -> Self {
        match key {
            ExtraKey::Text(text) => Self::Text(text),
            ExtraKey::At(text, offset) => Self::At(text, *offset),
            ExtraKey::Digest(bytes) => Self::Digest(bytes),
        }
    }
}

fn numbers(hashes: &[EngineHash]) -> Vec<u64> {
    hashes.iter().map(|hash| hash.0).collect()
}
