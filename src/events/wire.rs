//! MessagePack bytes → [`Batch`], for every layout that vLLM has published (0.9 to 0.33).
//!
//! Decoding goes by shape: an event is an array led by its tag (up to 0.23) or a map with a
//! `type` (from 0.24); fields were only ever appended; hashes are i64, u64 or bytes. What this
//! version does not know is skipped and counted, one event at a time: only bytes that are not a
//! batch at all fail it.

use serde::Deserialize;

use crate::blocks::{BlockEvent, EngineHash, ExtraKey, Group, Medium, Rule, Stored, TokenId};
use crate::events::wire::value::Value;

mod value;

/// What a server did in one engine step.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Seconds since the epoch by the server's clock.
    pub timestamp: f64,
    /// In the order of the engine's operations.
    pub events: Vec<BlockEvent>,
    /// The data-parallel rank; vLLM 0.9.0 has no such element.
    pub rank: u32,
    /// Events of a type that this version does not know.
    pub unknown: u32,
    /// Events of a known type that do not say what they must; the picture has a hole.
    pub malformed: u32,
}

/// Why bytes are not a batch.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not MessagePack, cut short, or nested too deep.
    #[error("not MessagePack: {0}")]
    NotMessagePack(#[from] rmp_serde::decode::Error),
    /// Not `[timestamp, [event…], rank]`.
    #[error("not an event batch: {0}")]
    NotABatch(&'static str),
}

/// Reads one payload.
pub fn decode(payload: &[u8]) -> Result<Batch, DecodeError> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(payload);
    reader.set_max_depth(DEPTH_MAX);
    let Value::List(fields) = Value::deserialize(&mut reader)? else {
        return Err(DecodeError::NotABatch("the payload is not an array"));
    };
    let mut fields = fields.into_iter();
    let timestamp = fields.next().and_then(|ts| ts.float());
    let timestamp = timestamp.ok_or(DecodeError::NotABatch("the timestamp is not a number"))?;
    let events = fields.next().and_then(Value::list);
    let events = events.ok_or(DecodeError::NotABatch("the events are not an array"))?;
    let rank = fields.next().and_then(|rank| rank.int()).unwrap_or(0);
    let rank = u32::try_from(rank).unwrap_or(0);

    let mut batch = Batch {
        timestamp,
        events: Vec::new(),
        rank,
        unknown: 0,
        malformed: 0,
    };
    for event in events {
        match Fields::of(event).map(read_event) {
            Some(Reading::Event(event)) => batch.events.push(event),
            Some(Reading::Unknown) => batch.unknown += 1,
            Some(Reading::Malformed) | None => batch.malformed += 1,
        }
    }
    Ok(batch)
}

/// A batch nests four deep (batch, events, event, field) and extra keys two more.
const DEPTH_MAX: usize = 16;

/// Field names in the order in which the array layout gives them, after the tag.
const STORED: &[&str] = &[
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
    "locality",
    "ownership",
    "session_id",
    "lookahead_token_ids",
];
const REMOVED: &[&str] = &[
    "block_hashes",
    "medium",
    "group_idx",
    "locality",
    "ownership",
];

/// An event's fields in either layout.
struct Fields<'a> {
    tag: String,
    layout: Layout<'a>,
}

enum Layout<'a> {
    Array(Vec<Value<'a>>),
    Map(Vec<(Value<'a>, Value<'a>)>),
}

impl<'a> Fields<'a> {
    fn of(event: Value<'a>) -> Option<Self> {
        let layout = match event {
            Value::List(fields) => Layout::Array(fields),
            Value::Map(fields) => Layout::Map(fields),
            _ => return None,
        };
        let tag = match &layout {
            Layout::Array(fields) => fields.first()?.str()?.to_owned(),
            Layout::Map(fields) => fields
                .iter()
                .find(|(key, _)| key.str() == Some("type"))?
                .1
                .str()?
                .to_owned(),
        };
        Some(Self { tag, layout })
    }

    /// The field, taken out; `None` where the event does not have it.
    fn take(&mut self, names: &[&str], name: &str) -> Option<Value<'a>> {
        match &mut self.layout {
            Layout::Array(fields) => {
                let position = names.iter().position(|known| *known == name)?;
                fields.get_mut(position + 1).map(std::mem::take)
            }
            Layout::Map(fields) => fields
                .iter_mut()
                .find(|(key, _)| key.str() == Some(name))
                .map(|(_, value)| std::mem::take(value)),
        }
    }
}

enum Reading {
    Event(BlockEvent),
    Unknown,
    Malformed,
}

fn read_event(mut fields: Fields<'_>) -> Reading {
    let event = match fields.tag.as_str() {
        "BlockStored" => read_stored(&mut fields).map(BlockEvent::Stored),
        "BlockRemoved" => read_removed(&mut fields),
        "AllBlocksCleared" => Some(BlockEvent::Cleared),
        _ => return Reading::Unknown,
    };
    event.map_or(Reading::Malformed, Reading::Event)
}

fn read_stored(fields: &mut Fields<'_>) -> Option<Stored> {
    let hashes = read_hashes(fields.take(STORED, "block_hashes")?)?;
    let parent = match fields.take(STORED, "parent_block_hash")? {
        Value::Nil => None,
        hash => Some(read_hash(&hash)?),
    };
    let tokens = read_tokens(fields.take(STORED, "token_ids")?)?;
    let block_size = u32::try_from(fields.take(STORED, "block_size")?.int()?).ok()?;
    let adapter_id = fields.take(STORED, "lora_id").and_then(|id| id.int());
    let medium = read_medium(fields.take(STORED, "medium"))?;
    let adapter = fields
        .take(STORED, "lora_name")
        .and_then(|name| name.str().map(str::to_owned));
    let extra_keys = match fields.take(STORED, "extra_keys") {
        None => None,
        Some(Value::Nil) => Some(Vec::new()),
        Some(keys) => Some(read_extra_keys(keys, adapter.as_deref())?),
    };
    let group = read_group(fields, STORED)?;
    let lookahead = read_lookahead(fields.take(STORED, "lookahead_token_ids"), hashes.len())?;
    // Placeholder events of offload connectors name hashes only; those of the engine itself
    // must give every token. Groups that do not need every block do not store every block.
    let complete = tokens.len() as u64 == hashes.len() as u64 * u64::from(block_size);
    (complete || medium != Medium::Gpu || group.rule != Rule::All).then_some(Stored {
        hashes,
        parent,
        tokens,
        block_size,
        adapter,
        adapter_id,
        medium,
        group,
        extra_keys,
        lookahead,
    })
}

fn read_removed(fields: &mut Fields<'_>) -> Option<BlockEvent> {
    let hashes = read_hashes(fields.take(REMOVED, "block_hashes")?)?;
    let medium = read_medium(fields.take(REMOVED, "medium"))?;
    let group = read_group(fields, REMOVED)?;
    Some(BlockEvent::Removed {
        hashes,
        medium,
        group,
    })
}

fn read_hashes(hashes: Value<'_>) -> Option<Vec<EngineHash>> {
    match hashes {
        Value::Ints(ints) => Some(ints.into_iter().map(|int| EngineHash(int as u64)).collect()),
        Value::List(list) => list.iter().map(read_hash).collect(),
        _ => None,
    }
}

/// Integers keep their bits (0.9 had signed ones); of bytes the last eight count, which is how
/// vLLM itself shortens a digest (`VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES`).
fn read_hash(hash: &Value<'_>) -> Option<EngineHash> {
    match hash {
        Value::Int(int) => Some(EngineHash(*int as u64)),
        Value::Bytes(bytes) if !bytes.is_empty() => {
            let tail = &bytes[bytes.len().saturating_sub(8)..];
            Some(EngineHash(
                tail.iter()
                    .fold(0, |hash, byte| hash << 8 | u64::from(*byte)),
            ))
        }
        _ => None,
    }
}

fn read_tokens(tokens: Value<'_>) -> Option<Vec<TokenId>> {
    match tokens {
        Value::Ints(ints) => ints
            .into_iter()
            .map(|id| TokenId::try_from(id).ok())
            .collect(),
        Value::List(list) if list.is_empty() => Some(Vec::new()),
        _ => None,
    }
}

/// vLLM before 0.10.2 names no medium: there was only one.
fn read_medium(medium: Option<Value<'_>>) -> Option<Medium> {
    match medium {
        None | Some(Value::Nil) => Some(Medium::Gpu),
        Some(name) => Some(match name.str()? {
            "GPU" => Medium::Gpu,
            "CPU" => Medium::Cpu,
            "STORAGE" => Medium::Storage,
            _ => Medium::Other,
        }),
    }
}

/// Only stores name the kind of their group (vLLM 0.22 and later), removals just its number.
fn read_group(fields: &mut Fields<'_>, names: &[&str]) -> Option<Group> {
    let index = match fields.take(names, "group_idx") {
        None | Some(Value::Nil) => 0,
        Some(index) => u32::try_from(index.int()?).ok()?,
    };
    let window = fields.take(names, "kv_cache_spec_sliding_window");
    let window = window.and_then(|window| u32::try_from(window.int()?).ok());
    let kind = fields.take(names, "kv_cache_spec_kind");
    let rule = match (kind.as_ref().and_then(Value::str), window) {
        // Before kinds were told, a model of one group had nothing else to tell.
        (None, _) if index == 0 => Rule::All,
        (Some("full_attention" | "sink_full_attention" | "mla_attention"), _) => Rule::All,
        (Some("sliding_window" | "sliding_window_mla"), Some(window)) => Rule::Window(window),
        (Some("mamba"), _) => Rule::Last,
        _ => Rule::Unknown,
    };
    Some(Group { index, rule })
}

/// Tokens that a hash covers beyond its block: vLLM's are as many as a draft has, a handful. Each
/// is hashed once more with every block of every prompt.
const LOOKAHEAD_MAX: usize = 64;

/// As many for each block, or none.
fn read_lookahead(lists: Option<Value<'_>>, blocks: usize) -> Option<Vec<Vec<TokenId>>> {
    let lists = match lists {
        None | Some(Value::Nil) => return Some(Vec::new()),
        Some(lists) => lists.list()?,
    };
    let lists: Option<Vec<_>> = lists.into_iter().map(read_tokens).collect();
    let lists = lists?;
    let length = lists.first().map_or(0, Vec::len);
    let alike = lists.iter().all(|list| list.len() == length);
    let few = length <= LOOKAHEAD_MAX;
    (lists.is_empty() || (lists.len() == blocks && alike && few)).then_some(lists)
}

fn read_extra_keys(keys: Value<'_>, adapter: Option<&str>) -> Option<Vec<Vec<ExtraKey>>> {
    keys.list()?
        .into_iter()
        .map(|block| match block {
            Value::Nil => Some(Vec::new()),
            block => read_block_extras(block.list()?, adapter),
        })
        .collect()
}

/// One block's extras: `lora name, multimodal…, cache salt, embeddings…`, untagged. The adapter
/// is part of every chain's root already.
fn read_block_extras(extras: Vec<Value<'_>>, adapter: Option<&str>) -> Option<Vec<ExtraKey>> {
    let named = extras.first().and_then(Value::str);
    let skip = usize::from(adapter.is_some() && named == adapter);
    extras.into_iter().skip(skip).map(read_extra).collect()
}

fn read_extra(extra: Value<'_>) -> Option<ExtraKey> {
    match extra {
        Value::Str(text) => Some(ExtraKey::Text(text.into_owned())),
        Value::Bytes(bytes) => Some(ExtraKey::Digest(bytes.into_owned())),
        Value::Int(int) => Some(ExtraKey::Text(int.to_string())),
        Value::List(pair) => {
            let offset = pair.get(1)?.int()?;
            Some(ExtraKey::At(pair.first()?.str()?.to_owned(), offset))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
