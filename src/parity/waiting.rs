//! One prompt against the stores that follow it.

use std::sync::Arc;

use super::{GRACE_S, Heard, PENDING_MAX_S, Verdict};
use crate::blocks::{BlockKey, Chain, TokenId};
use crate::index::Seen;

/// Where the server's tokens part from ours, as far as its stores show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fork {
    /// No store touched the prompt: what the server computed it held already.
    Unseen,
    /// The tokens are ours, but stored for another LoRA adapter or cache salt.
    Identity,
    /// The first position that differs, counted from 0. Of several stores the one that shares
    /// most with us is most likely the request's own: siblings fork off where they may.
    Token(usize),
}

impl Fork {
    /// The position, where it is known.
    #[must_use]
    pub fn position(self) -> Option<usize> {
        match self {
            Self::Token(position) => Some(position),
            Self::Unseen | Self::Identity => None,
        }
    }

    /// The word for logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unseen => "not stored",
            Self::Identity => "another adapter or cache salt",
            Self::Token(_) => "other tokens",
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
    pub chain: Chain,
    /// As many as they hold.
    pub tokens: Arc<[TokenId]>,
    /// The last one was stored.
    pub stored: bool,
    pub fork: Fork,
    /// When the answer ended well.
    pub ended_s: Option<f64>,
}

impl Waiting {
    /// Holds one store against the prompt.
    pub fn compare(&mut self, seen: &Seen<'_>) {
        if self.stored || seen.stored.block_size != self.chain.block_size {
            return;
        }
        let Some(depth) = seen.parent.and_then(|parent| self.depth_of(parent)) else {
            if seen.stored.parent.is_none() && self.begins_like(&seen.stored.tokens) {
                self.fork = self.fork.max(Fork::Identity);
            }
            return;
        };
        let last = self.chain.keys.len() - 1;
        let at_last = last.checked_sub(depth).and_then(|at| seen.keys.get(at));
        if at_last == Some(&self.chain.keys.last().copied()) {
            self.stored = true;
            return;
        }
        let begin = depth * self.chain.block_size as usize;
        let both = self.tokens[begin..].iter().zip(&seen.stored.tokens);
        let compared = both.len();
        let equal = both.take_while(|(ours, theirs)| ours == theirs).count();
        let fork = if equal < compared {
            Fork::Token(begin + equal)
        } else if self.chain.keys.get(depth).copied() != seen.keys.first().copied().flatten() {
            Fork::Identity
        } else {
            Fork::Unseen
        };
        self.fork = self.fork.max(fork);
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
        let size = self.chain.block_size as usize;
        theirs.len() >= size && self.tokens[..size] == theirs[..size]
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
            return Some(Verdict::Differ(self.fork));
        }
        (heard.now_s > ended + PENDING_MAX_S).then_some(Verdict::Unjudged)
    }
}
