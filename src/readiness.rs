//! What must happen before requests are welcome.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// A [`Ticket`] for each thing to wait for, given back when it is done.
#[derive(Debug, Clone)]
pub struct Readiness {
    pending: watch::Sender<BTreeMap<&'static str, usize>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            pending: watch::Sender::new(BTreeMap::new()),
        }
    }
}

/// Something that is not ready yet, until dropped.
#[derive(Debug)]
pub struct Ticket {
    what: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Announces something to wait for.
    #[must_use]
    pub fn ticket(&self, what: &'static str) -> Ticket {
        self.pending
            .send_modify(|pending| *pending.entry(what).or_default() += 1);
        Ticket {
            what,
            readiness: self.clone(),
        }
    }

    /// What is waited for; empty once ready.
    #[must_use]
    pub fn pending(&self) -> Vec<&'static str> {
        self.pending.borrow().keys().copied().collect()
    }

    /// Hears of every change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<BTreeMap<&'static str, usize>> {
        self.pending.subscribe()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.readiness.pending.send_modify(|pending| {
            if let Some(count) = pending.get_mut(self.what) {
                *count -= 1;
                if *count == 0 {
                    pending.remove(self.what);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_waits_for_every_ticket() {
        let readiness = Readiness::default();
        let (one, two) = (readiness.ticket("fleet"), readiness.ticket("fleet"));
        let three = readiness.ticket("tokenizer");
        drop(one);
        assert_eq!(readiness.pending(), ["fleet", "tokenizer"]);
        drop(two);
        assert_eq!(readiness.pending(), ["tokenizer"]);
        drop(three);
        assert!(readiness.pending().is_empty());
    }
}
