//! Hears of the cluster's changes, however the API server is.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::api::{Api, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::cluster::{Change, Cluster};
use super::lead::Candidate;
use super::resources::{Resource, WATCHED};
use crate::config::{Config, Kubernetes, LeaderElection};
use crate::events::backoff::Backoff;
use crate::fleet::{Fleet, Pool};
use crate::metrics::Metrics;
use crate::readiness::{Readiness, Ticket};
use crate::routes::Routes;

/// Seconds until the API server ends a watch, and another begins where it ended. A connection that
/// died without a word is noticed then, for one cheap request a minute and kind.
const WATCH_S: u32 = 60;
/// For a page of a list, and for the first word of a watch.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Between two attempts. An API server that restarts is back within seconds, and thousands of clients
/// come back to it.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Rules that cannot be read for so long are done without.
const RULES_MAX: Duration = Duration::from_secs(30);
/// Changes that wait: each watch is told to stop reading by the one that follows.
const CHANGES_MAX: usize = 64;

/// Why the cluster cannot be reached at all, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The file that an operator named.
    #[error("fleet.kubernetes.kubeconfig: {path}: {reason}")]
    Kubeconfig {
        /// Which.
        path: String,
        /// The library's words.
        reason: String,
    },
    /// Neither a file nor a pod's account.
    #[error(
        "fleet.kubernetes: no cluster is known: this is no pod with an account, and KUBECONFIG or \
         fleet.kubernetes.kubeconfig name no usable file: {0}"
    )]
    Nowhere(String),
    /// Of what is known no client can be made.
    #[error("fleet.kubernetes: no client can be made of the cluster's settings: {0}")]
    Client(String),
}

/// Publishes the fleet and its rules as the cluster has them.
pub struct Watcher {
    client: Client,
    namespace: String,
    absent_retry: Duration,
    cluster: Cluster,
    fleet: watch::Sender<Arc<Fleet>>,
    routes: watch::Sender<Arc<Routes>>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    /// Given back when the fleet was published for the first time.
    first: Option<Ticket>,
    leader_election: Option<LeaderElection>,
    /// Where this process runs: pools may be elsewhere.
    own_namespace: String,
}

impl Watcher {
    /// Finds out how the cluster is reached. It is not asked yet, and may be away.
    ///
    /// # Errors
    /// See [`KubernetesError`].
    pub async fn open(
        settings: &Kubernetes,
        config: &Config,
        metrics: &Arc<Metrics>,
        readiness: &Readiness,
    ) -> Result<Self, KubernetesError> {
        let mut access = match &settings.kubeconfig {
            Some(path) => access(path).await?,
            None => kube::Config::infer()
                .await
                .map_err(|error| KubernetesError::Nowhere(error.to_string()))?,
        };
        // Longer than a watch is silent, so that a connection that says nothing at all ends.
        access.read_timeout = Some(Duration::from_secs(u64::from(WATCH_S)) + ANSWER_MAX);
        // We try again ourselves, and want to hear of it.
        access.default_retry = false;
        let own_namespace = access.default_namespace.clone();
        let namespace = settings.namespace.clone();
        let namespace = namespace.unwrap_or_else(|| own_namespace.clone());
        let client =
            Client::try_from(access).map_err(|error| KubernetesError::Client(error.to_string()))?;
        tracing::info!(namespace, "following InferencePools");
        Ok(Self {
            leader_election: settings.leader_election.clone(),
            own_namespace,
            client,
            namespace,
            absent_retry: Duration::from_millis(settings.absent_retry_ms),
            cluster: Cluster::new(settings.clone(), config),
            fleet: watch::Sender::default(),
            routes: watch::Sender::default(),
            metrics: metrics.clone(),
            readiness: readiness.clone(),
            first: Some(readiness.ticket("fleet")),
        })
    }

    /// Who would lead the replicas, where one is to; asked for once.
    pub fn candidate(&mut self) -> Option<Candidate> {
        let leases = Api::namespaced(self.client.clone(), &self.own_namespace);
        let election = self.leader_election.take()?;
        Some(Candidate::new(leases, election, self.readiness.clone()))
    }

    /// The endpoints, empty until they are known.
    #[must_use]
    pub fn fleet(&self) -> watch::Receiver<Arc<Fleet>> {
        self.fleet.subscribe()
    }

    /// The rules, none until they are known.
    #[must_use]
    pub fn routes(&self) -> watch::Receiver<Arc<Routes>> {
        self.routes.subscribe()
    }

    /// Follows the cluster until nobody listens.
    pub async fn run(mut self) {
        let (tell, mut told) = mpsc::channel(CHANGES_MAX);
        let mut watches = JoinSet::new();
        for (kind, resource) in WATCHED.iter().enumerate() {
            let watch = Watch {
                kind,
                resource,
                api: Api::namespaced_with(self.client.clone(), &self.namespace, &resource.api()),
                absent_retry: self.absent_retry,
                tell: tell.clone(),
                metrics: self.metrics.clone(),
                readiness: self.readiness.clone(),
                began: Instant::now(),
            };
            watches.spawn(watch.run());
        }
        loop {
            tokio::select! {
                change = told.recv() => match change {
                    Some(change) => self.cluster.apply(change),
                    None => return,
                },
                // They end when nobody listens to them; one that ends otherwise ends the app.
                _ended = watches.join_next() => return,
                () = self.fleet.closed() => return,
            }
            while let Ok(change) = told.try_recv() {
                self.cluster.apply(change);
            }
            self.publish();
        }
    }

    /// Publishes what has changed, once everything was heard of.
    fn publish(&mut self) {
        if !self.cluster.is_listed() {
            return;
        }
        // Rules first: an endpoint without them could be asked for a model that it does not know.
        let routes = self.cluster.routes();
        self.routes.send_if_modified(|held| {
            let changed = **held != routes;
            if changed {
                *held = Arc::new(routes);
            }
            changed
        });
        let (first, fleet) = (self.first.take(), self.cluster.fleet());
        self.fleet.send_if_modified(|held| {
            let changed = first.is_some() || !same(held, &fleet);
            if changed {
                let (endpoints, resting) = (fleet.endpoints.len(), fleet.resting.len());
                tracing::info!(endpoints, resting, "fleet of the cluster's pools");
                *held = Arc::new(fleet);
            }
            changed
        });
        let remark = self.cluster.remark().map(str::to_owned);
        self.readiness.remark("pools", remark);
    }
}

fn same(one: &Fleet, other: &Fleet) -> bool {
    let ids = |fleet: &Fleet| {
        let ids = |endpoints: &[Arc<_>]| endpoints.iter().map(Arc::as_ptr).collect::<Vec<_>>();
        (ids(&fleet.endpoints), ids(&fleet.resting))
    };
    let pools = |fleet: &Fleet| {
        let pool = |pool: &Pool| (pool.name.clone(), pool.services.clone(), ids(&pool.fleet));
        fleet.pools.iter().map(pool).collect::<Vec<_>>()
    };
    ids(one) == ids(other) && pools(one) == pools(other)
}

async fn access(path: &Path) -> Result<kube::Config, KubernetesError> {
    let complain = |reason: String| KubernetesError::Kubeconfig {
        path: path.display().to_string(),
        reason,
    };
    let file = Kubeconfig::read_from(path).map_err(|error| complain(error.to_string()))?;
    let options = KubeConfigOptions::default();
    let access = kube::Config::from_custom_kubeconfig(file, &options).await;
    access.map_err(|error| complain(error.to_string()))
}

/// Follows one kind of resource.
struct Watch {
    kind: usize,
    resource: &'static Resource,
    api: Api<DynamicObject>,
    absent_retry: Duration,
    tell: mpsc::Sender<Change>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    began: Instant,
}

/// Why a watch begins anew, with a list.
enum Anew {
    /// The kind is not installed.
    Absent,
    /// Something failed.
    Failed,
    /// Nobody listens any more.
    Unheard,
}

impl Watch {
    async fn run(self) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            let began = Instant::now();
            match self.follow(&mut backoff).await {
                Anew::Unheard => return,
                Anew::Absent => sleep(self.absent_retry).await,
                Anew::Failed => sleep(backoff.after(began.elapsed())).await,
            }
        }
    }

    /// Lists, then watches, until that makes no sense any more.
    async fn follow(&self, backoff: &mut Backoff) -> Anew {
        let config = watcher::Config::default().timeout(WATCH_S);
        let mut events = pin!(watcher(self.api.clone(), config));
        let mut listing: Option<Vec<DynamicObject>> = Some(Vec::new());
        let mut failed_at: Option<Instant> = None;
        loop {
            let next = match listing {
                Some(_) => timeout(ANSWER_MAX, events.next()).await,
                None => Ok(events.next().await),
            };
            let change = match next {
                Err(_late) => return self.failed("no answer in time", 0, Anew::Failed).await,
                // It never ends.
                Ok(None) => return Anew::Failed,
                Ok(Some(Err(error))) => match self.fate(&error) {
                    Some(anew) => return self.failed(&words(&error), code(&error), anew).await,
                    None => {
                        self.told(&words(&error));
                        let lasted = failed_at.map_or(BACKOFF.1 * 2, |at| at.elapsed());
                        failed_at = Some(Instant::now());
                        sleep(backoff.after(lasted)).await;
                        continue;
                    }
                },
                Ok(Some(Ok(Event::Init))) => {
                    listing = Some(Vec::new());
                    continue;
                }
                Ok(Some(Ok(Event::InitApply(object)))) => {
                    listing.get_or_insert_default().push(slim(object));
                    continue;
                }
                Ok(Some(Ok(Event::InitDone))) => {
                    self.readiness.remark(&self.resource.name(), None);
                    Change::Listed(self.kind, listing.take().unwrap_or_default())
                }
                Ok(Some(Ok(Event::Apply(object)))) => {
                    Change::Applied(self.kind, Box::new(slim(object)))
                }
                Ok(Some(Ok(Event::Delete(object)))) => {
                    Change::Deleted(self.kind, object.name_any())
                }
            };
            if self.tell.send(change).await.is_err() {
                return Anew::Unheard;
            }
        }
    }

    /// Whether a watch that met an error begins anew; else it goes on from where it was.
    fn fate(&self, error: &watcher::Error) -> Option<Anew> {
        use watcher::Error::{InitialListFailed, NoResourceVersion, WatchStartFailed};
        match (error, code(error)) {
            // The API server answers so for a group, version or kind that it does not know.
            (_, 404) if !self.resource.group.is_empty() => Some(Anew::Absent),
            // "Gone": where the watch was is forgotten. kube-rs knows it as an event, not as an answer.
            (InitialListFailed(_) | NoResourceVersion, _) | (WatchStartFailed(_), 404 | 410) => {
                Some(Anew::Failed)
            }
            _ => None,
        }
    }

    async fn failed(&self, error: &str, code: u16, anew: Anew) -> Anew {
        let (name, is_absent) = (self.resource.name(), matches!(anew, Anew::Absent));
        let is_refused = matches!(code, 401 | 403);
        if is_absent {
            tracing::debug!(kind = name, "is not installed");
        } else {
            let fix = match is_refused {
                true => "; is deploy/manifests/rbac.yaml applied, and bound to this account?",
                false => "",
            };
            self.told(error);
            let remark = format!("cannot be listed: {error}{fix}");
            self.readiness.remark(&name, Some(remark));
        }
        // Without rules that cannot be read there is a fleet all the same; without pods there is none.
        let is_late = is_refused || self.began.elapsed() > RULES_MAX;
        if is_absent || (is_late && !self.resource.is_needed()) {
            let told = self.tell.send(Change::Unanswered(self.kind)).await;
            if told.is_err() {
                return Anew::Unheard;
            }
        }
        anew
    }

    fn told(&self, error: &str) {
        let name = self.resource.name();
        self.metrics.kubernetes_error(&name);
        tracing::warn!(kind = name, "what is known of it stays: {error}");
    }
}

/// Of the API server's answer; 0 where there was none.
fn code(error: &watcher::Error) -> u16 {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status)) => status.code,
        _ => 0,
    }
}

/// For people: what the API server says, without how the library holds it, else what the library says,
/// down to the cause.
fn words(error: &watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, WatchError, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchError(status) => format!("{} {}: {}", status.code, status.reason, status.message),
        other => {
            let mut words = other.to_string();
            let mut cause = std::error::Error::source(other);
            while let Some(inner) = cause {
                let more = inner.to_string();
                if !words.contains(&more) {
                    words = format!("{words}: {more}");
                }
                cause = inner.source();
            }
            words
        }
    }
}

/// Without the bookkeeping of who wrote which field, which is half of an object.
fn slim(mut object: DynamicObject) -> DynamicObject {
    object.metadata.managed_fields = None;
    object
}
