//! Chinese and Japanese, a word or two at a time.
//!
//! They are written without spaces, so the pre-tokenizer takes a whole clause for one word: nearly
//! always a new one, which no cache of words knows, and which BPE merges byte by byte. But most
//! neighbours in such a clause stand together in no token of the vocabulary. BPE merges nothing
//! across such a place, for whatever it merges is a token; so the clause's tokens are those of its
//! parts. Nine in ten of these are one or two characters long, and there are not many of them:
//! their ids are looked up. The engine is asked for the rest.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::segments::Unhashed;
use super::segments::cuts::is_safe;
use super::{TokenId, TokenizeError, Tokenizer};

/// Bits of the table of neighbours: 128 KiB, in which those of Qwen3 fill one in twenty. Two pairs
/// on one bit are taken for joined, which costs a cut and harms nothing.
const PLACE_BITS: u32 = 20;

/// Characters of a part that may be looked up: so many fit a key.
const PART_CHARS_MAX: usize = 4;

/// Parts of more tokens are left to the engine: rare characters that are spelled by bytes.
const PART_TOKENS_MAX: usize = 3;

/// An engine that is asked only for what is not looked up.
pub struct Clauses<E> {
    engine: E,
    neighbours: Neighbours,
    /// The ids of every character, of every two that a token joins and of every short token, by
    /// [`key`].
    known: HashMap<u64, Part, Unhashed>,
}

/// Which characters stand side by side in tokens.
pub struct Neighbours {
    /// A bit for each pair, at its [`place`].
    joined: Box<[u64]>,
    /// The pairs that a token holds whole, and the tokens of up to [`PART_CHARS_MAX`] characters.
    parts: BTreeSet<String>,
}

/// The ids of a part.
#[derive(Clone, Copy)]
struct Part {
    ids: [TokenId; PART_TOKENS_MAX],
    len: u8,
}

impl Neighbours {
    /// Reads the vocabulary of a `tokenizer.json`; none where its model merges otherwise than by
    /// the rule above.
    ///
    /// # Errors
    /// A file that cannot be read, or is not a tokenizer's.
    pub fn of_file(path: &Path) -> Result<Option<Self>, String> {
        let json = std::fs::read(path).map_err(|error| error.to_string())?;
        let file: TokenizerFile =
            serde_json::from_slice(&json).map_err(|error| error.to_string())?;
        if !file.model.merges_alone() {
            return Ok(None);
        }
        let spelled = bytes_of_letters();
        let tokens = file.model.vocab.keys().filter_map(|token| {
            let bytes = token.chars().map(|letter| spelled.get(&letter).copied());
            bytes.collect::<Option<Vec<u8>>>()
        });
        let added = file.added_tokens.into_iter();
        Ok(Some(Self::of_tokens(
            tokens.chain(added.map(|token| token.content.into_bytes())),
        )))
    }

    fn of_tokens(tokens: impl Iterator<Item = Vec<u8>>) -> Self {
        let ours: Vec<char> = ours().collect();
        let mut neighbours = Self {
            joined: vec![0; (1 << PLACE_BITS) / 64].into(),
            parts: BTreeSet::new(),
        };
        for token in tokens {
            if let Ok(token) = std::str::from_utf8(&token)
                && token.chars().count() <= PART_CHARS_MAX
                && token.chars().all(|c| is_ours(c) || c == '\n')
            {
                neighbours.parts.insert(token.to_owned());
            }
            for at in (1..token.len()).filter(|at| begins_character(token[*at])) {
                // A token may begin or end within a character, which is any of several then.
                let last = token[..at].iter().rposition(|byte| begins_character(*byte));
                let next = token[at + 1..].iter().position(|b| begins_character(*b));
                let before = &token[last.unwrap_or(0)..at];
                let after = &token[at..next.map_or(token.len(), |next| at + 1 + next)];
                let whole = |bytes| std::str::from_utf8(bytes).ok()?.chars().next();
                if let (Some(before), Some(after)) = (whole(before), whole(after)) {
                    if is_ours(before) && is_letter(after) {
                        neighbours.join(before, after);
                        neighbours.parts.insert(String::from_iter([before, after]));
                    }
                    continue;
                }
                let spelled = |c: &char| c.encode_utf8(&mut [0; 4]).as_bytes().to_vec();
                let befores = ours.iter().filter(|c| spelled(c).ends_with(before));
                let afters = ours.iter().filter(|c| spelled(c).starts_with(after));
                let afters: Vec<char> = afters.copied().collect();
                for before in befores {
                    for after in &afters {
                        neighbours.join(*before, *after);
                    }
                }
            }
        }
        neighbours
    }

    fn join(&mut self, before: char, after: char) {
        let place = place(before, after);
        self.joined[place / 64] |= 1 << (place % 64);
    }

    /// Whether a token may hold both side by side.
    fn are_joined(&self, before: char, after: char) -> bool {
        let place = place(before, after);
        self.joined[place / 64] & (1 << (place % 64)) != 0
    }
}

impl<E: Tokenizer> Clauses<E> {
    /// Asks the engine for every part that is looked up later: 30 ms for Qwen3.
    pub fn new(engine: E, neighbours: Neighbours) -> Result<Self, TokenizeError> {
        let parts = neighbours.parts.iter().cloned();
        let mut known = HashMap::with_hasher(Unhashed);
        for text in ours().map(String::from).chain(parts) {
            let ids = engine.encode(&text, false)?;
            let mut part = Part {
                ids: [0; PART_TOKENS_MAX],
                len: ids.len() as u8,
            };
            if let Some(place) = part.ids.get_mut(..ids.len()) {
                place.copy_from_slice(&ids);
                known.insert(key(text.chars().fold(0, with)), part);
            }
        }
        Ok(Self {
            engine,
            neighbours,
            known,
        })
    }

    /// Whether a text's tokens are those before `after` and then those from there on.
    fn is_cut(&self, before: char, after: char, then: Option<char>) -> bool {
        // Kana compose with a mark that follows. Han compose with nothing.
        let stays = || is_han(after) || then.is_none_or(|then| is_ours(then) || then.is_ascii());
        match is_ours(before) && is_letter(after) {
            true => !self.neighbours.are_joined(before, after) && stays(),
            false => is_safe(before, after),
        }
    }
}

impl<E: Tokenizer> Tokenizer for Clauses<E> {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TokenizeError> {
        // Lead bytes of U+3000 to U+9FFF.
        let ours = text.bytes().filter(|byte| (0xe3..=0xe9).contains(byte));
        if add_special_tokens || ours.count() * 8 < text.len() {
            return self.engine.encode(text, add_special_tokens);
        }
        let mut ids = Vec::with_capacity(text.len() / 3 + 16);
        // Where the part begins, and where what the engine has yet to be asked for does.
        let (mut part, mut unasked) = (0, 0);
        // Its last characters, and how many it has.
        let (mut packed, mut len) = (0, 0);
        let mut chars = text.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            packed = with(packed, c);
            len += 1;
            let end = at + c.len_utf8();
            let ends = chars.peek().is_none_or(|&(_, after)| {
                let then = text[end + after.len_utf8()..].chars().next();
                self.is_cut(c, after, then)
            });
            if !ends {
                continue;
            }
            let known = match len <= PART_CHARS_MAX {
                true => self.known.get(&key(packed)),
                false => None,
            };
            if let Some(known) = known {
                if unasked < part {
                    ids.extend(self.engine.encode(&text[unasked..part], false)?);
                }
                ids.extend_from_slice(&known.ids[..usize::from(known.len)]);
                unasked = end;
            }
            (part, packed, len) = (end, 0, 0);
        }
        if unasked < text.len() {
            ids.extend(self.engine.encode(&text[unasked..], false)?);
        }
        Ok(ids)
    }
}

/// The letters and marks of this room: all spelled in three bytes, none composing with what is
/// before it.
fn ours() -> impl Iterator<Item = char> {
    ('\u{3000}'..='\u{ffff}').filter(|c| is_ours(*c))
}

fn is_ours(c: char) -> bool {
    is_letter(c)
        || matches!(c, '\u{3001}'..='\u{3002}' | '\u{ff01}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff20}')
}

/// Letters, which the pre-tokenizer's pattern takes as many of as there are, with at most one
/// mark before them.
fn is_letter(c: char) -> bool {
    is_han(c) || matches!(c, '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}')
}

fn is_han(c: char) -> bool {
    matches!(c, '\u{4e00}'..='\u{9fff}')
}

/// Packs one more character of a part: all that are looked up end before U+FFFF. U+0001, which is
/// none of them, stands for those beyond, and for U+0000, which would leave no trace.
fn with(packed: u64, c: char) -> u64 {
    packed << 16 | u64::from(u16::try_from(c).unwrap_or(1).max(1))
}

/// Another for every packed part, and mixed well.
fn key(packed: u64) -> u64 {
    // 2^64 divided by the golden ratio, odd, so that no two products are equal. A product's upper
    // half depends on all of the part; tables take the lower.
    packed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
}

fn place(before: char, after: char) -> usize {
    key(with(with(0, before), after)) as usize % (1 << PLACE_BITS)
}

fn begins_character(byte: u8) -> bool {
    byte & 0xc0 != 0x80
}

/// The letters that byte-level BPE spells bytes with: GPT-2's `bytes_to_unicode`.
fn bytes_of_letters() -> HashMap<char, u8> {
    let plain = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=u8::MAX).filter(|byte| !plain(byte));
    let others = others.zip('\u{100}'..).map(|(byte, letter)| (letter, byte));
    let plain = (0..=u8::MAX).filter(plain);
    plain
        .map(|byte| (char::from(byte), byte))
        .chain(others)
        .collect()
}

#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    content: String,
}

#[derive(Deserialize)]
struct Model {
    vocab: HashMap<String, IgnoredAny>,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    byte_fallback: bool,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

impl Model {
    /// A word's tokens come of merges alone: none is looked up whole or spelled otherwise.
    fn merges_alone(&self) -> bool {
        let is_empty = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
        !self.ignore_merges
            && !self.byte_fallback
            && is_empty(&self.continuing_subword_prefix)
            && is_empty(&self.end_of_word_suffix)
    }
}

#[cfg(test)]
mod tests;
