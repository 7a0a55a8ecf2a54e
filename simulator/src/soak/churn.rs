//! What comes and goes meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::asking::Shared;
use super::audited::Restart;
use crate::decisions::ask::Asker;
use crate::decisions::certificate::Certificate;
use crate::stack::Stack;

/// Adapters that servers know, and those of them that are loaded at a time.
pub(super) const ADAPTERS: usize = 16;
const LOADED: usize = 4;
/// A vocabulary is read again in one round of this many: with its caches it begins anew. Each thread keeps what it made of
/// the last four (fastokens 0.3, `PARKED_CACHES`), so that in an hour memory is at its height before the second quarter.
const VOCABULARY_ROUNDS: usize = 2;
/// kvscout looks at its certificate every ten seconds.
const RENEWED_MAX: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(200);

/// The files that kvscout reads again when they change.
#[derive(Debug)]
pub(super) struct Files {
    pub certificate: Certificate,
    /// A vocabulary's folder that is ours alone.
    pub vocabulary: tempfile::TempDir,
}

impl Files {
    /// # Errors
    /// The disk does not take them.
    pub fn new(tokenizer: &Path) -> anyhow::Result<Self> {
        let vocabulary = tempfile::Builder::new()
            .prefix("kvscout-model-")
            .tempdir()?;
        for entry in std::fs::read_dir(tokenizer).context("run `make setup`")? {
            let from = entry?.path();
            if let (true, Some(name)) = (from.is_file(), from.file_name()) {
                std::fs::copy(&from, vocabulary.path().join(name))?;
            }
        }
        Ok(Self {
            certificate: Certificate::new()?,
            vocabulary,
        })
    }

    /// The same in another file, as a mounted volume is renewed.
    fn renew_vocabulary(&self) -> anyhow::Result<()> {
        let at = |name: &str| -> PathBuf { self.vocabulary.path().join(name) };
        std::fs::copy(at("tokenizer.json"), at("new"))?;
        Ok(std::fs::rename(at("new"), at("tokenizer.json"))?)
    }
}

/// Does something every so often, in turn, for ever.
///
/// # Errors
/// Something did not come back.
pub(super) async fn churn(
    stack: &mut Stack,
    shared: &Arc<Shared>,
    files: &Files,
    every: Duration,
) -> anyhow::Result<()> {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    for round in 0.. {
        ticks.tick().await;
        stack.add_pod().await?;
        shared.pods.send_replace(stack.pods.len());
        ticks.tick().await;
        shared.adapters.send_replace(adapters(round + 1));
        ticks.tick().await;
        let at = round % stack.pods.len();
        let (pod, began_ms) = (stack.pods[at].name.clone(), now_ms());
        stack.restart_pod(at).await?;
        let ended_ms = now_ms();
        let restart = Restart {
            pod,
            began_ms,
            ended_ms,
        };
        shared.restarted.send_modify(|all| all.push(restart));
        ticks.tick().await;
        stack.drop_pod().await?;
        shared.pods.send_replace(stack.pods.len());
        ticks.tick().await;
        if round % VOCABULARY_ROUNDS == 0 {
            files.renew_vocabulary()?;
        }
        ticks.tick().await;
        files.certificate.renew()?;
        let asker = reconnected(stack, &files.certificate).await?;
        shared.asker.send_replace(asker);
    }
    Ok(())
}

/// As the decision log counts.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// The adapters of a round: one goes, and one comes.
pub(super) fn adapters(round: usize) -> Vec<String> {
    (0..LOADED)
        .map(|at| adapter((round + at) % ADAPTERS))
        .collect()
}

/// An adapter's name.
pub(super) fn adapter(number: usize) -> String {
    format!("lora-{number}")
}

/// A connection that trusts the new certificate, once kvscout shows it.
async fn reconnected(stack: &Stack, certificate: &Certificate) -> anyhow::Result<Asker> {
    let connect = async {
        loop {
            // It shows the old one until it has looked.
            match Asker::connect(stack.ext_proc, &certificate.path()).await {
                Ok(asker) => return asker,
                Err(_) => sleep(LOOK).await,
            }
        }
    };
    let connected = tokio::time::timeout(RENEWED_MAX, connect).await;
    connected.context("kvscout does not show its new certificate")
}
