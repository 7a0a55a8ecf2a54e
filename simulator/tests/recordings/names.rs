//! Events in words that mean the same for every server: a block is the number under which
//! its (parent, tokens, extra keys) was first seen.

use std::collections::HashMap;

use kvscout::blocks::{BlockEvent, ExtraKey};
use serde_json::Value;

use super::{array, integer};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    Stored(Vec<usize>),
    Removed(usize),
    Cleared,
}

/// Gives equal numbers to equal blocks, whatever a server calls them.
pub struct Names {
    seen: HashMap<(Option<usize>, Vec<u64>, String), usize>,
    recorded: HashMap<String, usize>,
    simulated: HashMap<u64, usize>,
    /// Events of vLLM before 0.17.1 do not show a cache salt.
    salt_is_visible: bool,
}

impl Names {
    pub fn new(salt_is_visible: bool) -> Self {
        Self {
            seen: HashMap::new(),
            recorded: HashMap::new(),
            simulated: HashMap::new(),
            salt_is_visible,
        }
    }

    /// Numbers a run of blocks, each the parent of the next.
    fn number<'a>(
        &mut self,
        mut parent: Option<usize>,
        blocks: impl Iterator<Item = (&'a [u64], String)>,
    ) -> Vec<usize> {
        let mut numbers = Vec::new();
        for (tokens, extra) in blocks {
            let next = self.seen.len();
            let number = *self
                .seen
                .entry((parent, tokens.to_vec(), extra))
                .or_insert(next);
            numbers.push(number);
            parent = Some(number);
        }
        numbers
    }

    /// An event of a recording, in either layout.
    pub fn recorded(&mut self, event: &Value) -> Word {
        let field = |position: usize, name: &str| event.get(name).or_else(|| event.get(position));
        let hashes = array(field(1, "block_hashes"));
        match field(0, "type").and_then(Value::as_str) {
            Some("BlockStored") => {}
            Some("BlockRemoved") => return Word::Removed(self.recorded[&hashes[0].to_string()]),
            _ => return Word::Cleared,
        }
        let tokens: Vec<u64> = array(field(3, "token_ids")).iter().map(integer).collect();
        let size = field(4, "block_size").map_or(1, integer) as usize;
        let extras = array(field(8, "extra_keys"));
        let parent = field(2, "parent_block_hash").filter(|parent| !parent.is_null());
        let parent = parent.map(|parent| self.recorded[&parent.to_string()]);
        let extra = |position: usize| extras.get(position).filter(|extra| !extra.is_null());
        let text = |position| extra(position).map_or(String::new(), Value::to_string);
        let blocks = tokens
            .chunks(size)
            .enumerate()
            .map(|(i, block)| (block, text(i)));
        let numbers = self.number(parent, blocks);
        for (hash, &number) in hashes.iter().zip(&numbers) {
            self.recorded.insert(hash.to_string(), number);
        }
        Word::Stored(numbers)
    }

    /// An event of the engine.
    pub fn simulated(&mut self, event: &BlockEvent) -> Word {
        let stored = match event {
            BlockEvent::Cleared => return Word::Cleared,
            BlockEvent::Removed { hashes, .. } => {
                return Word::Removed(self.simulated[&hashes[0].0]);
            }
            BlockEvent::Stored(stored) => stored,
        };
        let tokens: Vec<u64> = stored.tokens.iter().map(|&token| token.into()).collect();
        let salt_is_visible = self.salt_is_visible;
        let extras = stored.extra_keys.as_deref().unwrap_or_default();
        let text = |position: usize| match extras[position].first() {
            Some(ExtraKey::Text(salt)) if salt_is_visible => format!("[{salt:?}]"),
            _ => String::new(),
        };
        let parent = stored.parent.map(|parent| self.simulated[&parent.0]);
        let size = stored.block_size as usize;
        let blocks = tokens
            .chunks(size)
            .enumerate()
            .map(|(i, block)| (block, text(i)));
        let numbers = self.number(parent, blocks);
        for (hash, &number) in stored.hashes.iter().zip(&numbers) {
            self.simulated.insert(hash.0, number);
        }
        Word::Stored(numbers)
    }
}
