//! One prompt against the stores that follow it.

use std::sync::Arc;

use super::{GRACE_S, Heard, PENDING_MAX_S, Verdict};
use crate::blocks::{BlockKey, Chain, TokenId};
use crate::index::Seen;

/// Where the server's tokens part from ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// At this position, counted from 0: a store shows it.
    Token(usize),
    /// Somewhere in the block that begins at this position: it is the first of ours that the
    /// server neither held nor stored, and what it computed instead it held already.
    Block(usize),
    /// The tokens are ours, but stored for another LoRA adapter or cache salt.
    Identity,
}

impl Fork {
    /// The position, where tokens differ.
    #[must_use]
    pub fn position(self) -> Option<usize> {
        match self {
            Self::Token(position) | Self::Block(position) => Some(position),
            Self::Identity => None,
        }
    }

    /// The words for logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token(_) => "another token at this position",
            Self::Block(_) => "other tokens in the block at this position",
            Self::Identity => "the same tokens for another adapter or cache salt",
        }
    }
}

/// A prompt whose last full block has not been stored.
#[derive(Debug)]
pub(super) struct Waiting {
    pub id: u64,
    pub request: String,
    pub model: Arc<str>,
    pub root: BlockKey,
    /// All full blocks; never empty.
    pub chain: Arc<Chain>,
    /// As many as they hold, and those after them.
    pub tokens: Arc<Vec<TokenId>>,
    /// Leading blocks of ours that the server holds or has stored since.
    pub known: usize,
    /// The last one was stored.
    pub stored: bool,
    /// The deepest position at which a store parts from our tokens, of those that came before
    /// the answer's end: the prompt's own, or one of a sibling that shares as much with it.
    pub parts_at: Option<usize>,
    /// A store began with our tokens, under another name.
    pub renamed: bool,
    /// When the answer ended well.
    pub ended_s: Option<f64>,
}

impl Waiting {
    /// Holds one store against the prompt.
    pub fn compare(&mut self, seen: &Seen<'_>) {
        let theirs = &seen.stored.tokens;
        if self.stored || seen.stored.block_size != self.chain.shape.block_size {
            return;
        }
        let Some(depth) = seen.parent.and_then(|parent| self.depth_of(parent)) else {
            self.renamed |= seen.stored.parent.is_none() && self.begins_like(theirs);
            return;
        };
        let ours = self.chain.keys[depth..].iter();
        let both = ours.zip(seen.keys.iter());
        let equal = both.take_while(|(ours, theirs)| ours == theirs).count();
        self.known = self.known.max(depth + equal);
        self.stored = equal > 0 && depth + equal == self.chain.keys.len();
        let size = self.chain.shape.block_size as usize;
        let (begin, theirs) = ((depth + equal) * size, &theirs[equal * size..]);
        let ours = &self.tokens[begin..self.chain.keys.len() * size];
        let differ = |(ours, theirs)| ours != theirs;
        match ours.iter().zip(theirs).take(size).position(differ) {
            Some(_) if self.ended_s.is_some() => {}
            Some(at) => self.parts_at = self.parts_at.max(Some(begin + at)),
            None => self.renamed |= depth + equal == 0 && self.begins_like(theirs),
        }
    }

    /// How many of our blocks end with this one. A root is none's end; the last block of a
    /// conversation is found first.
    fn depth_of(&self, parent: BlockKey) -> Option<usize> {
        if parent == self.root {
            return Some(0);
        }
        let at = self.chain.keys.iter().rposition(|key| *key == parent);
        at.map(|at| at + 1)
    }

    fn begins_like(&self, theirs: &[TokenId]) -> bool {
        let size = self.chain.shape.block_size as usize;
        theirs.get(..size) == self.tokens.get(..size)
    }

    /// Where the server's tokens part from ours, as far as its stores have shown.
    fn fork(&self) -> Fork {
        let size = self.chain.shape.block_size as usize;
        let block = self.known.min(self.chain.keys.len() - 1);
        match self.parts_at {
            Some(position) if position / size == block => Fork::Token(position),
            None if self.renamed && block == 0 => Fork::Identity,
            _ => Fork::Block(block * size),
        }
    }

    /// What the watch comes to, where that can be told by now.
    pub fn verdict(&self, heard: &Heard) -> Option<Verdict> {
        if self.stored {
            return Some(Verdict::Agree);
        }
        if !heard.unbroken {
            return Some(Verdict::Unjudged);
        }
        let ended = self.ended_s?;
        let after = |time: f64| time >= ended + GRACE_S;
        if heard.timestamp.is_some_and(after) && after(heard.now_s) {
            return Some(Verdict::Differ(self.fork()));
        }
        (heard.now_s > ended + PENDING_MAX_S).then_some(Verdict::Unjudged)
    }
}
