//! Reads what servers say of their load, again and again.
//!
//! A task for each page, which the ranks behind one address share. Pages are spread over the
//! interval, few are read at once, and one that does not answer is read less and less often, by a
//! lane of its own: whoever hangs, hangs beside the others and not before them.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use super::load::Ours;
use super::report::{Page, Unread};
use super::{Endpoint, EndpointId, Fleet};
use crate::ask::{AskError, Client};
use crate::config;
use crate::metrics::Metrics;

/// Pages read at once: at some 5 ms each, 500 of them every second keep three busy.
const AT_ONCE: usize = 24;
/// And of those whose last reading failed.
const AT_ONCE_FAILED: usize = 8;
/// From question to the whole answer. A frontend that is as busy as that says nothing in time.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// vLLM's page has 60 KB, and some more for each rank and for each set of adapters.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// Between two readings of a page that fails and fails.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A failure in a row that an operator is told of: a pod that starts or ends has one or two.
const TOLD_AFTER: u32 = 3;
/// Whoever ended so long before the question may still be counted: a request that ends by a stop
/// string, or is broken off, leaves the engine with the step that follows.
const STEP_MAX: Duration = Duration::from_millis(200);

/// Reads the metrics of every server of a fleet.
pub struct Scraper {
    /// Who serves.
    pub fleet: watch::Receiver<Arc<Fleet>>,
    /// Where and how often.
    pub settings: config::Load,
    /// Where failures are counted.
    pub metrics: Arc<Metrics>,
    /// Called after each report.
    pub told: Arc<dyn Fn() + Send + Sync>,
}

impl Scraper {
    /// Runs until the fleet's writer is gone, or a task has failed.
    ///
    /// # Errors
    /// Nobody can be asked.
    pub async fn run(self) -> Result<(), AskError> {
        let client = Client::new()?;
        let get = move |url: String| {
            let client = client.clone();
            async move { client.get(&url, ANSWER_MAX, PAGE_BYTES_MAX).await }
        };
        self.run_with(get).await;
        Ok(())
    }

    async fn run_with<A>(mut self, get: impl Fn(String) -> A + Clone + Send + Sync + 'static)
    where
        A: Future<Output = Result<Vec<u8>, AskError>> + Send + 'static,
    {
        let interval = Duration::from_millis(self.settings.scrape_interval_ms.max(1));
        let (lanes, mut places) = (Arc::new(Lanes::default()), Places::new());
        let mut tasks = JoinSet::new();
        let mut read: HashMap<SocketAddr, (Vec<EndpointId>, AbortHandle)> = HashMap::new();
        loop {
            let mut pages = pages(&self.fleet.borrow_and_update());
            // A page whose ranks have changed is another one.
            read.retain(|address, (ids, task)| {
                let stays = pages.get(address).is_some_and(|told| ids_of(told) == *ids);
                match stays {
                    true => drop(pages.remove(address)),
                    false => task.abort(),
                }
                stays
            });
            for (address, endpoints) in pages {
                let ids = ids_of(&endpoints);
                let reader = Reader {
                    url: self.url(address),
                    endpoints,
                    interval,
                    lanes: lanes.clone(),
                    metrics: self.metrics.clone(),
                    told: self.told.clone(),
                    failures: 0,
                };
                let first = interval.mul_f64(places.next());
                let task = tasks.spawn(reader.run(first, get.clone()));
                read.insert(address, (ids, task));
            }
            tokio::select! {
                changed = self.fleet.changed() => if changed.is_err() { return },
                // A reader ends by being told to; one that ends otherwise ends the app.
                Some(ended) = tasks.join_next() => {
                    if !ended.is_err_and(|error| error.is_cancelled()) {
                        return;
                    }
                }
            }
        }
    }

    fn url(&self, mut address: SocketAddr) -> String {
        address.set_port(self.settings.scrape_port.unwrap_or(address.port()));
        format!("http://{address}{}", self.settings.scrape_path)
    }
}

/// Who shares which page.
fn pages(fleet: &Fleet) -> BTreeMap<SocketAddr, Vec<Arc<Endpoint>>> {
    let mut pages: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for endpoint in &fleet.endpoints {
        let page = pages.entry(endpoint.address).or_default();
        page.push(endpoint.clone());
    }
    pages
}

fn ids_of(endpoints: &[Arc<Endpoint>]) -> Vec<EndpointId> {
    endpoints.iter().map(|endpoint| endpoint.id).collect()
}

/// Places within the interval, 0 to 1: each falls into the widest gap that those before it left
/// (steps of the golden ratio), and every process begins with another one.
struct Places(f64);

impl Places {
    fn new() -> Self {
        use std::hash::{BuildHasher, RandomState};
        // Seeded at random by the standard library.
        Self((RandomState::new().hash_one(()) % 1024) as f64 / 1024.0)
    }

    fn next(&mut self) -> f64 {
        self.0 = (self.0 + 0.618_033_988_749_895).fract();
        self.0
    }
}

/// How many are read at once.
struct Lanes {
    well: Semaphore,
    failed: Semaphore,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            well: Semaphore::new(AT_ONCE),
            failed: Semaphore::new(AT_ONCE_FAILED),
        }
    }
}

impl Lanes {
    async fn enter(&self, failures: u32) -> SemaphorePermit<'_> {
        let lane = match failures {
            0 => &self.well,
            _ => &self.failed,
        };
        lane.acquire().await.expect("no lane is ever closed")
    }
}

/// Why a reading told nothing of an endpoint.
#[derive(Debug, thiserror::Error)]
enum Failure<'a> {
    #[error("{0}")]
    Ask(&'a AskError),
    #[error("{0}")]
    Unread(Unread),
}

impl Failure<'_> {
    /// The word for labels.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Ask(AskError::Client(_) | AskError::Transport(_)) => "unreachable",
            Self::Ask(AskError::Late(_)) => "late",
            Self::Ask(AskError::Status(_)) => "status",
            Self::Ask(AskError::Long(_)) => "too_long",
            Self::Unread(Unread::NotVllm) => "not_vllm",
            Self::Unread(Unread::NoRank(_)) => "no_rank",
        }
    }
}

/// Reads one page.
struct Reader {
    url: String,
    endpoints: Vec<Arc<Endpoint>>,
    interval: Duration,
    lanes: Arc<Lanes>,
    metrics: Arc<Metrics>,
    told: Arc<dyn Fn() + Send + Sync>,
    /// In a row.
    failures: u32,
}

impl Reader {
    async fn run<A>(mut self, first: Duration, get: impl Fn(String) -> A + Send)
    where
        A: Future<Output = Result<Vec<u8>, AskError>> + Send,
    {
        let mut ticks = interval_at(Instant::now() + first, self.interval);
        // One that comes late keeps its place.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut passed_over = 0;
        loop {
            ticks.tick().await;
            if passed_over > 0 {
                passed_over -= 1;
                continue;
            }
            let before: Vec<Ours> = self.endpoints.iter().map(|e| e.load.ours()).collect();
            sleep(STEP_MAX.min(self.interval / 2)).await;
            let page = {
                let _place = self.lanes.enter(self.failures).await;
                get(self.url.clone()).await
            };
            self.take(page, &before);
            (self.told)();
            passed_over = pause(self.failures, self.interval);
        }
    }

    fn take(&mut self, page: Result<Vec<u8>, AskError>, before: &[Ours]) {
        let now = Instant::now().into_std();
        let page = page.map(|body| Page::read(&String::from_utf8_lossy(&body)));
        let mut failed = None;
        for (endpoint, before) in self.endpoints.iter().zip(before) {
            let report = match &page {
                Ok(page) => page.of(endpoint.rank).map_err(Failure::Unread),
                Err(error) => Err(Failure::Ask(error)),
            };
            match report {
                Ok(report) => endpoint.load.told(report, *before, now, self.interval),
                Err(failure) => {
                    self.metrics.unscraped(&endpoint.name, failure.as_str());
                    failed = Some(failure.to_string());
                }
            }
        }
        self.tell(failed);
    }

    /// Once when it has failed for a while, and once when it is well again.
    fn tell(&mut self, failed: Option<String>) {
        let (pod, url) = (self.endpoints[0].pod.as_str(), self.url.as_str());
        let Some(failure) = failed else {
            if self.failures >= TOLD_AFTER {
                tracing::info!(pod, url, "its load is read again");
            }
            self.failures = 0;
            return;
        };
        self.failures = self.failures.saturating_add(1);
        if self.failures == TOLD_AFTER {
            tracing::warn!(
                pod,
                url,
                failure,
                "what the server says of its load cannot be read: only what is placed here counts; \
                 load.scrape_path and load.scrape_port say where it is, scrape_interval_ms: 0 turns \
                 this off"
            );
        } else {
            tracing::debug!(pod, url, failure, "its load was not read");
        }
    }
}

/// Intervals to pass over after so many failures in a row: 1, 3, 7 and so on.
fn pause(failures: u32, interval: Duration) -> u32 {
    let most = PAUSE_MAX.as_millis() / interval.as_millis().max(1);
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    2_u32.saturating_pow(failures).saturating_sub(1).min(most)
}

#[cfg(test)]
mod tests;
