//! What a server reports again on a request's demand (`kv_cache_report_mode=full`), and did not store.

use std::collections::VecDeque;

use crate::blocks::{BlockKey, EngineHash, Rule, Stored};
use crate::index::book::Book;

/// Prompts whose reports are awaited per endpoint: as many as vLLM runs at once by default
/// (`max_num_seqs`).
const REPORTS_MAX: usize = 256;

/// Blocks of all of them: forty prompts of 100,000 tokens in 16-token blocks, 2 MB.
const REPORTED_MAX: usize = 1 << 18;

/// What is to be reported. Beside the book: who announces it does not wait for one that is being cleared.
#[derive(Debug, Default)]
pub(in crate::index) struct Reports(VecDeque<Awaited>);

/// Reports of a prompt's leading blocks.
#[derive(Debug)]
struct Awaited {
    prompt: Vec<BlockKey>,
    /// How many from each group of the engine's own cache.
    reports: u32,
    /// How many came, by cache.
    came: Vec<u32>,
}

impl Reports {
    pub fn expect(&mut self, prompt: Vec<BlockKey>, reports: u32) {
        let awaited = self.0.iter().map(|awaited| awaited.prompt.len());
        let mut keys = awaited.sum::<usize>() + prompt.len();
        while keys > REPORTED_MAX || self.0.len() == REPORTS_MAX {
            let Some(first) = self.0.pop_front() else {
                return;
            };
            keys -= first.prompt.len();
        }
        self.0.push_back(Awaited {
            prompt,
            reports,
            came: Vec::new(),
        });
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl Book {
    /// A report starts at the prompt's start, names only what is held, and was announced. Those of a
    /// window name what is not held, too: every block before it.
    pub(super) fn is_report(&self, at: usize, stored: &Stored, last: Option<&BlockKey>) -> bool {
        if stored.parent.is_some() {
            return false;
        }
        let mut expected = self.reports.lock();
        if expected.0.is_empty() {
            return false;
        }
        let cache = &self.caches[at];
        let held = |hash: &EngineHash| cache.rule != Rule::All || cache.copies.get(*hash).is_some();
        let Some(end) = stored.hashes.len().checked_sub(1) else {
            return false;
        };
        if !stored.hashes.iter().all(held) {
            return false;
        }
        let of = |awaited: &Awaited| {
            let came = awaited.came.get(at).copied().unwrap_or(0);
            came < awaited.reports && last.is_some() && awaited.prompt.get(end) == last
        };
        let Some(which) = expected.0.iter().position(of) else {
            return false;
        };
        let Awaited { reports, came, .. } = &mut expected.0[which];
        came.resize(self.caches.len().max(came.len()), 0);
        came[at] += 1;
        let (reports, mut all) = (*reports, self.caches.iter().zip(came));
        if all.all(|(cache, came)| !cache.is_own() || *came == reports) {
            expected.0.remove(which);
        }
        true
    }
}
