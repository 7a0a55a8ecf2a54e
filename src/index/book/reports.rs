//! What a server reports again on a request's demand (`kv_cache_report_mode=full`), and did not store.

use crate::blocks::{BlockKey, EngineHash, Rule, Stored};
use crate::index::book::Book;

/// Prompts whose reports are awaited per endpoint: as many as vLLM runs at once by default
/// (`max_num_seqs`).
const REPORTS_MAX: usize = 256;

/// Blocks of all of them: forty prompts of 100,000 tokens in 16-token blocks, 2 MB.
const REPORTED_MAX: usize = 1 << 18;

/// Reports of a prompt's leading blocks.
#[derive(Debug)]
pub(super) struct Awaited {
    prompt: Vec<BlockKey>,
    /// How many from each group of the engine's own cache.
    reports: u32,
    /// How many came, by cache.
    came: Vec<u32>,
}

impl Book {
    pub(in crate::index) fn expect_reports(&mut self, prompt: Vec<BlockKey>, reports: u32) {
        let awaited = self.reports.iter().map(|awaited| awaited.prompt.len());
        let mut keys = awaited.sum::<usize>() + prompt.len();
        while keys > REPORTED_MAX || self.reports.len() == REPORTS_MAX {
            let Some(first) = self.reports.pop_front() else {
                return;
            };
            keys -= first.prompt.len();
        }
        self.reports.push_back(Awaited {
            prompt,
            reports,
            came: Vec::new(),
        });
    }

    /// A report starts at the prompt's start, names only what is held, and was announced. Those of a
    /// window name what is not held, too: every block before it.
    pub(super) fn is_report(
        &mut self,
        at: usize,
        stored: &Stored,
        last: Option<&BlockKey>,
    ) -> bool {
        if self.reports.is_empty() || stored.parent.is_some() {
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
        let Some(which) = self.reports.iter().position(of) else {
            return false;
        };
        let Awaited { reports, came, .. } = &mut self.reports[which];
        came.resize(self.caches.len().max(came.len()), 0);
        came[at] += 1;
        let (reports, mut all) = (*reports, self.caches.iter().zip(came));
        if all.all(|(cache, came)| !cache.is_own() || *came == reports) {
            self.reports.remove(which);
        }
        true
    }
}
