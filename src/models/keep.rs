//! One model followed: had, loaded, published, and loaded again.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use super::hub::Fetched;
use super::watch_files::{Watch, look};
use super::{Model, ModelError, Models, Shared};
use crate::config::{self, Repo, Source};
use crate::metrics::ModelMetrics;
use crate::readiness::Ticket;
use crate::tokens::{CacheBudget, Tokenizer};

/// How often a folder is looked at: as often as the fleet's file, and four `stat`s cost less.
const LOOK: Duration = Duration::from_secs(1);
/// After the first failure; doubled with each.
const AGAIN_MIN: Duration = Duration::from_secs(1);
/// A hub that is down is asked 12 times an hour.
const AGAIN_MAX: Duration = Duration::from_secs(300);

/// Who keeps one model fresh.
pub(super) struct Keeper {
    number: usize,
    config: config::Model,
    shared: Arc<Shared>,
    counted: ModelMetrics,
    cache: CacheBudget,
    /// Until the first attempt has ended.
    first: Option<Ticket>,
    /// Since the last success.
    failures: u32,
    /// So that the log has it once.
    said: Option<String>,
}

impl Keeper {
    pub fn new(
        number: usize,
        config: config::Model,
        shared: Arc<Shared>,
        counted: ModelMetrics,
        cache: CacheBudget,
    ) -> Self {
        Self {
            number,
            first: Some(shared.readiness.ticket("models")),
            config,
            shared,
            counted,
            cache,
            failures: 0,
            said: None,
        }
    }

    pub async fn keep(self) -> Infallible {
        match self.config.source.clone() {
            Source::Folder(folder) => self.keep_folder(&folder).await,
            Source::Hub(repo) => self.keep_repo(&repo).await,
        }
    }

    async fn keep_folder(mut self, folder: &Path) -> Infallible {
        let (mut watch, mut vocabulary) = (Watch::default(), None);
        let template = self.config.render.chat_template_path().map(PathBuf::from);
        let template = template.as_deref();
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let before = look(folder, template).await;
            if !watch.is_due(&before, Instant::now()) {
                continue;
            }
            // A template that changes takes milliseconds, and none of the vocabulary's caches.
            let known = vocabulary.as_ref();
            let known = known.filter(|(look, _)| before.has_vocabulary_of(look));
            let known = known.map(|(_, tokenizer)| Arc::clone(tokenizer));
            let mut loaded = self.load(known, folder).await;
            if loaded.is_ok() && look(folder, template).await != before {
                loaded = Err(ModelError::Changed);
            }
            let again = match loaded {
                Ok(model) => {
                    vocabulary = Some((before.clone(), model.tokenizer.clone()));
                    self.loaded(model, folder);
                    None
                }
                Err(error) => Some(Instant::now() + self.failed(&error)),
            };
            watch.tried(before, again);
        }
    }

    /// What the hub has at the start is kept until the end, as a server keeps what it loaded.
    /// Where the hub cannot be asked the cache serves, and the hub is asked again.
    async fn keep_repo(mut self, repo: &Repo) -> Infallible {
        // The folder that was loaded, and whether the network brought one in our time.
        let (mut from, mut fetched) = (None, false);
        loop {
            let outcome = self.shared.hub.fetch(&self.shared.cache, repo).await;
            let (found, mut failure) = match outcome {
                Ok(Fetched { folder, new }) => {
                    fetched |= new;
                    (Some(folder), None)
                }
                Err(error) => (self.shared.cache.find(repo).await, Some(error.into())),
            };
            match found {
                Some(folder) if from.as_ref() != Some(&folder) => {
                    match self.load(None, &folder).await {
                        Ok(model) => {
                            self.loaded(model, &folder);
                            from = Some(folder);
                        }
                        Err(error) => {
                            // A disk may have spoilt it: once, the hub is asked for it anew.
                            if failure.is_none() && !fetched {
                                self.shared.cache.forget(&folder).await;
                            }
                            failure = Some(error);
                        }
                    }
                }
                _ => {}
            }
            match failure {
                None => {
                    self.mended();
                    std::future::pending::<()>().await;
                }
                Some(error) => tokio::time::sleep(self.failed(&error)).await,
            }
        }
    }

    /// One of few at a time.
    async fn load(
        &self,
        vocabulary: Option<Arc<dyn Tokenizer>>,
        folder: &Path,
    ) -> Result<Model, ModelError> {
        // An error would mean that nobody may load any more, which nobody says.
        let _permit = self.shared.loads.acquire().await;
        let (folder, config) = (folder.to_owned(), self.config.clone());
        let cache = self.cache.clone();
        let load = move || Model::load_around(vocabulary, &folder, &config, &cache);
        match aside(load) {
            Ok(loaded) => loaded.await.unwrap_or(Err(ModelError::Panicked)),
            Err(error) => Err(ModelError::Thread(error)),
        }
    }

    /// Publishes. Requests under way end with the model that they began with.
    fn loaded(&mut self, model: Model, folder: &Path) {
        let mut before = None;
        self.shared.models.send_modify(|models| {
            let mut next = Models::clone(models);
            before = next.loaded[self.number].replace(Arc::new(model));
            *models = Arc::new(next);
        });
        self.counted.loads.increment(1);
        let (model, again) = (self.config.counted_as(None), before.is_some());
        tracing::info!(%model, folder = %folder.display(), again, "model loaded");
        // To drop a vocabulary of 150,000 words takes a while.
        tokio::task::spawn_blocking(move || drop(before));
        self.mended();
    }

    /// Nothing is wrong any more.
    fn mended(&mut self) {
        self.failures = 0;
        self.said = None;
        self.shared.readiness.remark(&self.about(), None);
        self.first = None;
    }

    /// Says what is wrong, and how long to wait before the next attempt.
    fn failed(&mut self, error: &ModelError) -> Duration {
        self.counted.failures.increment(1);
        let wait = again(self.failures);
        self.failures += 1;
        let model = self.config.counted_as(None);
        let old = self.shared.models.borrow().loaded[self.number].is_some();
        let state = match old {
            true => "what was loaded before serves on",
            false => "is not loaded, so that load decides",
        };
        let told = format!("{state}: {error}");
        if self.said.as_ref() != Some(&told) {
            tracing::error!(%model, "{told}; it is tried again, no restart is needed");
            self.said = Some(told.clone());
        }
        self.shared.readiness.remark(&self.about(), Some(told));
        self.first = None;
        wait
    }

    fn about(&self) -> String {
        format!("model {}", self.config.counted_as(None))
    }
}

/// Does something on a thread of its own, which ends with it: the fast engine keeps 17 MB and more for each of the last four
/// vocabularies that a thread has used (`tokens/pool.rs`). Those for blocking work outlive it wherever others of
/// such work come every second, as looks at files do.
fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (tell, told) = oneshot::channel();
    // Nobody may wait for it any more.
    let work = move || drop(tell.send(work()));
    thread::Builder::new().name("load".into()).spawn(work)?;
    Ok(told)
}

/// The wait after so many failures before this one.
fn again(failures: u32) -> Duration {
    // 1 s, doubled nine times, is past the maximum.
    (AGAIN_MIN * (1 << failures.min(9))).min(AGAIN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A word when a thread ends.
    struct AtEnd(std::sync::mpsc::SyncSender<()>);

    impl Drop for AtEnd {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }

    thread_local! {
        static KEPT: std::cell::RefCell<Option<AtEnd>> = const { std::cell::RefCell::new(None) };
    }

    #[tokio::test]
    async fn what_a_thread_keeps_for_itself_goes_when_a_model_is_loaded() {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let work = move || KEPT.set(Some(AtEnd(tell)));
        aside(work).expect("a thread").await.expect("it is done");
        let gone = told.recv_timeout(Duration::from_secs(5));
        gone.expect("a thread for blocking work would keep it for ten seconds");
    }

    #[tokio::test]
    async fn a_load_that_panics_is_told() {
        let loaded = aside::<()>(|| panic!("as a test")).expect("a thread");
        assert!(loaded.await.is_err());
    }

    #[test]
    fn waits_double_up_to_five_minutes() {
        let waits = [0, 1, 2, 8, 9, 10, u32::MAX].map(|failures| again(failures).as_secs());
        assert_eq!(waits, [1, 2, 4, 256, 300, 300, 300]);
    }
}
