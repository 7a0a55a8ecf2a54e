//! Who says which endpoints there are: a file, or Kubernetes.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::{Config, FleetSource};
use crate::fleet::Fleet;
use crate::fleet::fixed::FleetFile;
use crate::fleet::roster;
use crate::kubernetes::{Candidate, Watcher};
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::routes::Routes;

/// The writer of the fleet and its rules.
pub struct Discovery {
    writer: Writer,
    fleet: watch::Receiver<Arc<Fleet>>,
    routes: watch::Receiver<Arc<Routes>>,
}

enum Writer {
    /// With the rules' sender: they are the configuration's, and stay.
    File(FleetFile, watch::Sender<Arc<Routes>>),
    Kubernetes(Box<Watcher>),
}

impl Discovery {
    /// Reads the file a first time, or finds out how the cluster is reached, which is asked later.
    ///
    /// # Errors
    /// A bad file; credentials that are missing or wrong.
    pub async fn open(
        config: &Config,
        metrics: &Arc<Metrics>,
        readiness: &Readiness,
    ) -> anyhow::Result<Self> {
        match &config.fleet {
            FleetSource::File(path) => {
                let (file, fleet) = FleetFile::open(path, roster::Settings::of(config))?;
                let rules = Routes::of(&config.inference_models, &config.inference_objectives);
                let (sender, routes) = watch::channel(Arc::new(rules));
                Ok(Self {
                    writer: Writer::File(file, sender),
                    fleet,
                    routes,
                })
            }
            FleetSource::Kubernetes(settings) => {
                let watcher = Watcher::open(settings, config, metrics, readiness).await?;
                Ok(Self {
                    fleet: watcher.fleet(),
                    routes: watcher.routes(),
                    writer: Writer::Kubernetes(Box::new(watcher)),
                })
            }
        }
    }

    /// The endpoints. A change is seen once they are known for the first time.
    #[must_use]
    pub fn fleet(&self) -> watch::Receiver<Arc<Fleet>> {
        self.fleet.clone()
    }

    /// The rules.
    #[must_use]
    pub fn routes(&self) -> watch::Receiver<Arc<Routes>> {
        self.routes.clone()
    }

    /// Who would lead the replicas, where one is to; asked for once.
    pub fn candidate(&mut self) -> Option<Candidate> {
        match &mut self.writer {
            Writer::File(..) => None,
            Writer::Kubernetes(watcher) => watcher.candidate(),
        }
    }

    /// Follows whatever changes until nobody listens.
    pub async fn run(self) {
        drop((self.fleet, self.routes));
        match self.writer {
            Writer::File(file, _rules) => file.run().await,
            Writer::Kubernetes(watcher) => watcher.run().await,
        }
    }
}
