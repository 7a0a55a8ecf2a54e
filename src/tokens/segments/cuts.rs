//! Where a text can be cut so that the ids of its parts, one after the other, are the ids of the
//! whole.
//!
//! Two kinds of cuts. *Around added tokens*, such as `<|im_end|>`: Hugging Face takes them out of
//! the text before anything else (`added_vocabulary.rs`, leftmost-longest) and normalizes and
//! splits what is between them piece by piece. *Inside a text*, between two characters where the
//! pre-tokenizer's pattern must end a word and no normalization reaches across: known for the
//! patterns of Qwen2 to Qwen3 and of Llama 3 alone, and tested there on text at random. A tokenizer
//! of another make is not cut at all, and its texts are cached whole.

use std::path::Path;

use aho_corasick::{AhoCorasick, MatchKind};
use memchr::memchr_iter;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::tokens::{TokenId, TokenizeError};

/// Bytes after which a text is cut at the next place that allows it. Shorter segments cost more
/// look-ups, longer ones more tokens when a text grows: 2 KiB of new text take about 20 µs.
pub const SEGMENT_BYTES: usize = 2 << 10;

/// Bytes of a page: a part of a text that is looked up before its segments. A long conversation is
/// some pages then, which lie together in memory, and not hundreds of segments, which do not.
pub const PAGE_BYTES: usize = 32 << 10;

/// Bytes without a cut that are still tokenized, where texts are cut inside. A word of so many is
/// nobody's: base64, with a digit every six letters, is cut.
const UNBROKEN_BYTES_MAX: usize = 1 << 20;
/// The same where only added tokens are cut around, and any long text looks so.
const UNCUT_BYTES_MAX: usize = 8 << 20;

/// Patterns of pre-tokenizers whose words end where [`is_safe`] says. The second differs in how
/// it groups digits, between which nothing is cut.
const PATTERNS: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// The cuts that one tokenizer allows.
#[derive(Debug)]
pub struct Cuts {
    /// Finds added tokens; none where texts are not cut around them.
    added: Option<AhoCorasick>,
    /// Their texts and ids, by the finder's numbers.
    tokens: Vec<(String, TokenId)>,
    /// Whether texts are cut inside.
    inside: bool,
    /// Whether no added token goes on in the next line, so that lines can be cut before it is
    /// known where added tokens are.
    by_lines: bool,
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span<'t> {
    /// An added token.
    Added(TokenId),
    /// Text without added tokens.
    Text(&'t str),
}

impl Cuts {
    /// No cuts: a text is one segment.
    #[must_use]
    pub fn none() -> Self {
        Self {
            added: None,
            tokens: Vec::new(),
            inside: false,
            by_lines: false,
        }
    }

    /// Reads off a `tokenizer.json` what cuts it allows.
    ///
    /// # Errors
    /// A file that cannot be read, or is not a tokenizer's.
    pub fn of_file(path: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
        Self::of_json(&bytes).map_err(|error| error.to_string())
    }

    pub(super) fn of_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        let file: TokenizerFile = serde_json::from_slice(json)?;
        let tokens: Vec<(String, TokenId)> = file
            .added_tokens
            .iter()
            .map(|token| (token.content.clone(), token.id))
            .collect();
        let plain = file.added_tokens.iter().all(AddedToken::is_plain);
        let independent = file.normalizer.as_ref().is_none_or(Step::is_local)
            && file.pre_tokenizer.as_ref().is_none_or(Step::is_local)
            && file.model.kind.as_deref() == Some("BPE")
            && file.model.dropout.is_none_or(|dropout| dropout == 0.0);
        if !(plain && independent) {
            return Ok(Self::none());
        }
        let added = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(text, _)| text))
            .ok();
        let inside = added.is_some()
            && file.pre_tokenizer.as_ref().is_some_and(Step::is_known)
            && file.normalizer.as_ref().is_none_or(Step::is_nfc);
        Ok(Self {
            inside,
            by_lines: inside && !tokens.iter().any(|(text, _)| text.contains(['\r', '\n'])),
            added,
            tokens,
        })
    }

    /// Whether texts are cut inside, of a pattern that is known.
    pub fn are_inside(&self) -> bool {
        self.inside
    }

    /// The whole lines that a text begins with, of `bytes` or up to twice that; none where it is
    /// shorter, or cannot be cut there. What follows does not change them.
    pub fn page<'t>(&self, text: &'t str, bytes: usize) -> Option<&'t str> {
        if !self.by_lines || text.len() < bytes {
            return None;
        }
        let within = text.len().min(2 * bytes);
        let lines = memchr_iter(b'\n', &text.as_bytes()[bytes..within]);
        let mut ends = lines.map(|at| bytes + at + 1);
        let end = ends.find(|end| {
            let after = text[*end..].chars().next();
            after.is_some_and(|after| is_safe('\n', after))
        })?;
        Some(&text[..end])
    }

    /// Refuses a segment that an engine would need long for: a second for a word of a megabyte,
    /// and more than as much again for each megabyte that follows.
    ///
    /// # Errors
    /// [`TokenizeError::Unbroken`].
    pub fn check(&self, segment: &str) -> Result<(), TokenizeError> {
        let bytes_max = match self.inside {
            true => UNBROKEN_BYTES_MAX,
            false => UNCUT_BYTES_MAX,
        };
        let text_bytes = segment.len();
        match text_bytes > bytes_max {
            true => Err(TokenizeError::Unbroken { text_bytes }),
            false => Ok(()),
        }
    }

    /// The parts of a text in order.
    pub fn spans<'t>(&self, text: &'t str) -> impl Iterator<Item = Span<'t>> {
        let matches = self.added.as_ref().map(|added| added.find_iter(text));
        // Past its end, the finder would search the same text again for every segment.
        let mut matches = matches.into_iter().flatten().fuse();
        let mut at = 0;
        let mut found = None;
        std::iter::from_fn(move || {
            if found.is_none() {
                found = matches.next();
            }
            let end = found.map_or(text.len(), |found| found.start());
            if at < end {
                let from = at;
                at = self.segment_end(text, from, end);
                return Some(Span::Text(&text[from..at]));
            }
            let token = found.take()?;
            at = token.end();
            Some(Span::Added(self.tokens[token.pattern().as_usize()].1))
        })
    }

    /// The end of the segment that begins at `from` in a text without added tokens up to `end`.
    fn segment_end(&self, text: &str, from: usize, end: usize) -> usize {
        let earliest = from + SEGMENT_BYTES;
        if !self.inside || earliest >= end {
            return end;
        }
        let earliest = text.floor_char_boundary(earliest);
        safe_cuts(&text[earliest..end])
            .next()
            .map_or(end, |at| earliest + at)
    }

    /// See [`super::Tokenizer::settled_bytes`].
    #[must_use]
    pub fn settled_bytes(&self, text: &str) -> usize {
        let Some(added) = &self.added else { return 0 };
        let end = self.unfinished_token(text);
        let whole = added.find_iter(text).map(|found| found.end());
        let after_added = whole.take_while(|at| *at <= end).last().unwrap_or(0);
        match self.inside {
            true => after_added + safe_cuts(&text[after_added..end]).next_back().unwrap_or(0),
            false => after_added,
        }
    }

    /// Where an added token may begin that the text's end cuts off; the end where none can.
    fn unfinished_token(&self, text: &str) -> usize {
        let longest = self.tokens.iter().map(|(token, _)| token.len()).max();
        let from = text.floor_char_boundary((text.len() + 1).saturating_sub(longest.unwrap_or(0)));
        let begins = |at: &usize| {
            let rest = &text[*at..];
            self.tokens
                .iter()
                .any(|(token, _)| token.len() > rest.len() && token.starts_with(rest))
        };
        let mut starts = text[from..].char_indices().map(|(at, _)| from + at);
        starts.find(begins).unwrap_or(text.len())
    }
}

/// Every safe cut of a text without added tokens, as the bytes before it.
pub(super) fn safe_cuts(text: &str) -> impl DoubleEndedIterator<Item = usize> {
    text.char_indices().filter_map(|(at, after)| {
        let before = text[..at].chars().next_back()?;
        is_safe(before, after).then_some(at)
    })
}

/// Whether every text with `before` and `after` side by side tokenizes as its two halves do.
///
/// Every word ends before a space, of which words have one at their beginning alone. A word of
/// letters ends at what is no letter; digits are words of their own, or of up to three,
/// and end at what is no digit; a run of line breaks ends at what is no white space. All of these
/// characters are unchanged by NFC, and compose with nothing beside them.
pub(in crate::tokens) fn is_safe(before: char, after: char) -> bool {
    let graphic = before.is_ascii_graphic() || is_letter(before);
    (after == ' ' && is_no_space(before))
        || (is_letter(before) && is_inert_other(after))
        || (before.is_ascii_digit() && after.is_ascii() && !after.is_ascii_digit())
        || (after.is_ascii_digit() && graphic && !before.is_ascii_digit())
        || (matches!(before, '\r' | '\n') && (after.is_ascii_graphic() || is_letter(after)))
}

/// What is white space in no version of Unicode: U+180E was until 6.3.
fn is_no_space(c: char) -> bool {
    !(c.is_whitespace() || c.is_control() || c == '\u{180e}')
}

/// Letters that nothing composes with: ASCII, Han, Kana, Hangul syllables.
fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic()
        || matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' | '\u{ac00}'..='\u{d7a3}')
}

/// What is no letter and composes with nothing: ASCII, and the punctuation of Chinese.
fn is_inert_other(c: char) -> bool {
    (c.is_ascii() && !c.is_ascii_alphabetic())
        || matches!(c, '\u{3000}'..='\u{3002}' | '\u{ff01}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff20}')
}

/// The parts of `tokenizer.json` that decide about cuts; the vocabulary is skipped.
#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Step>,
    pre_tokenizer: Option<Step>,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    id: TokenId,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
}

impl AddedToken {
    /// Found wherever it stands in the text as it came, and takes nothing else along.
    fn is_plain(&self) -> bool {
        !(self.single_word
            || self.lstrip
            || self.rstrip
            || self.normalized
            || self.content.is_empty())
    }
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f32>,
}

/// A normalizer or a pre-tokenizer.
#[derive(Deserialize)]
struct Step {
    #[serde(rename = "type")]
    kind: String,
    #[serde(alias = "normalizers", alias = "pretokenizers", default)]
    steps: Vec<Step>,
    pattern: Option<Pattern>,
    #[serde(default)]
    behavior: String,
    #[serde(default)]
    invert: bool,
    #[serde(default)]
    add_prefix_space: bool,
}

#[derive(Deserialize)]
enum Pattern {
    Regex(String),
    String(IgnoredAny),
}

impl Step {
    /// It treats each piece between added tokens by itself, wherever that stands.
    fn is_local(&self) -> bool {
        match self.kind.as_str() {
            "Sequence" => self.steps.iter().all(Self::is_local),
            "NFC" | "Split" | "Digits" => true,
            "ByteLevel" => !self.add_prefix_space,
            _ => false,
        }
    }

    fn is_nfc(&self) -> bool {
        match self.kind.as_str() {
            "Sequence" => self.steps.iter().all(Self::is_nfc),
            kind => kind == "NFC",
        }
    }

    /// It splits by one of the known patterns, and does nothing else but spell bytes.
    fn is_known(&self) -> bool {
        let [split, bytes] = self.steps.as_slice() else {
            return false;
        };
        let known = match &split.pattern {
            Some(Pattern::Regex(regex)) => PATTERNS.contains(&regex.as_str()),
            _ => false,
        };
        let isolates = split.kind == "Split" && split.behavior == "Isolated" && !split.invert;
        self.kind == "Sequence" && known && isolates && bytes.kind == "ByteLevel"
    }
}
