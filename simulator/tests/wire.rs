//! Payloads byte for byte as real vLLM servers published them.

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kvscout::blocks::{BlockEvent, EngineHash, ExtraKey, Group, Medium, Stored};
use kvscout_sim::events::{Layout, encode};
use serde_json::Value;

fn hashes(value: &Value) -> Vec<EngineHash> {
    let hash = |value: &Value| EngineHash(value.as_u64().expect("an unsigned hash"));
    value.as_array().expect("hashes").iter().map(hash).collect()
}

fn extras(value: &Value) -> Vec<ExtraKey> {
    let text = |value: &Value| ExtraKey::Text(value.as_str().expect("a salt").to_owned());
    value
        .as_array()
        .map_or_else(Vec::new, |keys| keys.iter().map(text).collect())
}

/// The event that a recording shows in readable form.
fn event(shown: &Value) -> BlockEvent {
    let field = |position: usize, name: &str| {
        let field = shown.get(name).or_else(|| shown.get(position));
        field.unwrap_or(&Value::Null).clone()
    };
    let kind = field(0, "type");
    if kind == "AllBlocksCleared" {
        return BlockEvent::Cleared;
    }
    let group = Group::default();
    if kind == "BlockRemoved" {
        let hashes = hashes(&field(1, "block_hashes"));
        let medium = Medium::Gpu;
        return BlockEvent::Removed {
            hashes,
            medium,
            group,
        };
    }
    let tokens = field(3, "token_ids");
    let tokens = tokens.as_array().expect("tokens").iter();
    let keys = field(8, "extra_keys");
    let keys = keys.as_array().expect("a list").iter();
    BlockEvent::Stored(Stored {
        hashes: hashes(&field(1, "block_hashes")),
        parent: field(2, "parent_block_hash").as_u64().map(EngineHash),
        tokens: tokens
            .map(|token| token.as_u64().expect("an id") as u32)
            .collect(),
        block_size: field(4, "block_size").as_u64().expect("a size") as u32,
        adapter: None,
        adapter_id: None,
        medium: Medium::Gpu,
        group,
        extra_keys: Some(keys.map(extras).collect()),
        lookahead: Vec::new(),
    })
}

fn payloads_are_repeated(folder: &str, layout: Layout, expected: usize) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/vllm");
    let text = fs::read_to_string(root.join(folder).join("events.jsonl")).expect("a fixture");
    let mut checked = 0;
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let payload = STANDARD.decode(line["frames"][2].as_str().expect("a frame"));
        let payload = payload.expect("base64");
        // An array of three that begins with an 8-byte float.
        let seconds = f64::from_be_bytes(payload[2..10].try_into().expect("eight bytes"));
        let shown = line["decoded"][1].as_array().expect("events");
        let events: Vec<BlockEvent> = shown.iter().map(event).collect();
        let ours = encode(layout, seconds, &events, 0);
        assert!(
            ours == payload,
            "{folder} {}:\n{ours:02x?}\n{payload:02x?}",
            line["seq"]
        );
        checked += 1;
    }
    assert_eq!(checked, expected);
}

#[test]
fn maps_are_those_of_0_32_0() {
    payloads_are_repeated("v0.32.0-bs32", Layout::Map, 652);
}

#[test]
fn arrays_are_those_of_0_20_2() {
    payloads_are_repeated("v0.20.2-bs32", Layout::Array, 570);
}
