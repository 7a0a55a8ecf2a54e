//! What must happen before requests are welcome.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// A [`Ticket`] for each thing to wait for, given back when it is done.
#[derive(Debug, Clone)]
pub struct Readiness {
    pending: watch::Sender<BTreeMap<&'static str, usize>>,
    /// By what they are about, so that each has one.
    remarks: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            pending: watch::Sender::new(BTreeMap::new()),
            remarks: Arc::default(),
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

    /// Says, or takes back, what is wrong with something that requests need not wait for.
    pub fn remark(&self, about: &str, remark: Option<String>) {
        let mut remarks = self.remarks.lock();
        match remark {
            Some(remark) => remarks.insert(about.to_owned(), remark),
            None => remarks.remove(about),
        };
    }

    /// Everything remarked and not taken back, each as "about: remark".
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let remarks = self.remarks.lock();
        remarks
            .iter()
            .map(|(about, remark)| format!("{about}: {remark}"))
            .collect()
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

    #[test]
    fn a_remark_stays_until_it_is_taken_back() {
        let readiness = Readiness::default();
        readiness.remark("model b", Some("is not loaded".into()));
        readiness.remark("model a", Some("is old".into()));
        readiness.remark("model a", Some("is older".into()));
        assert_eq!(
            readiness.remarks(),
            ["model a: is older", "model b: is not loaded"]
        );
        readiness.remark("model b", None);
        assert_eq!(readiness.remarks(), ["model a: is older"]);
        assert!(
            readiness.pending().is_empty(),
            "a remark is nothing to wait for"
        );
    }
}
