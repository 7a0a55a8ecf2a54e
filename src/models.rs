//! The models whose prompts can be read: their files had, loaded, and loaded again.
//!
//! [`Models`] is a snapshot in a watch, as the fleet is. A request works with the snapshot that
//! it began with; a vocabulary that was replaced goes, with all that it caches, when the last
//! such request ends. No failure here ends the process or refuses a request: a model that is
//! not loaded is routed by load, named in `/readyz`, and tried again.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::config::yaml::{Complaint, Complaints};
use crate::config::{self, Config, ReadsAs, Source};
use crate::metrics::Metrics;
use crate::prompt::template::{Renderer, RendererError};
use crate::readiness::Readiness;
use crate::tokens::{self, CacheBudget, CacheSizes, Tokenizer};

mod cache;
mod hub;
mod keep;
mod watch_files;

pub(crate) use hub::words;
pub use hub::{Hub, HubError};

use cache::Cache;
use keep::Keeper;

/// One model's template and vocabulary.
pub struct Model {
    /// Chats become texts here.
    pub renderer: Renderer,
    /// Texts become token ids here.
    pub tokenizer: Arc<dyn Tokenizer>,
}

/// Why a model's files are of no use.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// `tokenizer_config.json` or a chat template.
    #[error(transparent)]
    Renderer(#[from] RendererError),
    /// `tokenizer.json`.
    #[error(transparent)]
    Tokenizer(#[from] tokens::LoadError),
    /// They could not be fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// Somebody writes them.
    #[error("the files changed while they were read")]
    Changed,
    /// The system has no more threads.
    #[error("no thread to load it on: {0}")]
    Thread(std::io::Error),
    /// A bug of ours or of the tokenizer's.
    #[error("loading panicked; the panic's own message is on stderr")]
    Panicked,
}

impl Model {
    /// Reads a folder's files: seconds of one core.
    ///
    /// # Errors
    /// A [`ModelError`] that names the file.
    pub fn load(
        folder: &Path,
        model: &config::Model,
        cache: &CacheBudget,
    ) -> Result<Self, ModelError> {
        Self::load_around(None, folder, model, cache)
    }

    /// The same around a vocabulary that was loaded before, in place of the folder's: with all that it caches.
    fn load_around(
        vocabulary: Option<Arc<dyn Tokenizer>>,
        folder: &Path,
        model: &config::Model,
        cache: &CacheBudget,
    ) -> Result<Self, ModelError> {
        let clock = std::time::SystemTime::now;
        // The renderer first: it takes milliseconds, so that what is wrong with it is told soon.
        Ok(Self {
            renderer: Renderer::load(folder, model.render.clone(), clock)?,
            tokenizer: match vocabulary {
                Some(vocabulary) => vocabulary,
                None => tokens::load(folder, model.engine, cache)?,
            },
        })
    }
}

/// A model by a name that requests give.
pub struct Named {
    /// Its place in the configuration.
    pub entry: usize,
    /// Its template and vocabulary.
    pub model: Arc<Model>,
    /// The name that its tokens are counted by: the model's first, or the adapter's.
    pub counted_as: Arc<str>,
    /// The name that its requests are counted by: the same, but where another entry reads them.
    pub asked_for: Arc<str>,
    /// The name is a LoRA adapter's: part of every block's identity.
    pub adapter: Option<String>,
}

/// Why a name gives no model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The configuration does not have it.
    Unknown,
    /// The configuration does not have the entry that an endpoint says it reads as.
    UnknownEntry,
    /// Its files are not loaded, or not yet.
    NotLoaded,
}

impl Missing {
    /// The word for labels.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_model",
            Self::UnknownEntry => "unknown_entry",
            Self::NotLoaded => "model_not_loaded",
        }
    }
}

/// The models as of now.
#[derive(Clone, Default)]
pub struct Models {
    fixed: Arc<Fixed>,
    /// By the configuration's order.
    loaded: Vec<Option<Arc<Model>>>,
}

/// What the configuration says of them.
#[derive(Default)]
struct Fixed {
    /// Every name that requests may give: of which model, and whether it is an adapter's.
    names: HashMap<String, (usize, bool)>,
    labels: Vec<Arc<str>>,
    runs_foreign_templates: bool,
}

impl Models {
    fn none_loaded(models: &[config::Model]) -> Self {
        let mut names = HashMap::new();
        for (number, model) in models.iter().enumerate() {
            names.extend(
                model
                    .names
                    .iter()
                    .map(|name| (name.clone(), (number, false))),
            );
            names.extend(
                model
                    .adapters
                    .iter()
                    .map(|name| (name.clone(), (number, true))),
            );
        }
        let foreign = |model: &config::Model| model.render.trust_request_chat_template;
        let fixed = Fixed {
            names,
            labels: models.iter().map(|model| model.counted_as(None)).collect(),
            runs_foreign_templates: models.iter().any(foreign),
        };
        Self {
            fixed: Arc::new(fixed),
            loaded: vec![None; models.len()],
        }
    }

    /// The model that a request asks for.
    ///
    /// # Errors
    /// [`Missing`]: load decides.
    pub fn get(&self, name: &str) -> Result<Named, Missing> {
        self.read_as(ReadsAs::Named, name)
    }

    /// The same as an endpoint reads it. Who says which entry it reads as, reads every name so, also one that the
    /// configuration lacks; adapters are known by their names, whichever entry has them.
    ///
    /// # Errors
    /// [`Missing`]: load decides.
    pub fn read_as(&self, reads_as: ReadsAs, name: &str) -> Result<Named, Missing> {
        let known = self.fixed.names.get(name).copied();
        let entry = match (reads_as, known) {
            (ReadsAs::Unknown, _) => return Err(Missing::UnknownEntry),
            (ReadsAs::Entry(entry), _) | (ReadsAs::Named, Some((entry, _))) => entry,
            (ReadsAs::Named, None) => return Err(Missing::Unknown),
        };
        let model = self.loaded.get(entry).ok_or(Missing::UnknownEntry)?;
        let model = model.clone().ok_or(Missing::NotLoaded)?;
        let label = |(entry, is_adapter): (usize, bool)| match is_adapter {
            true => Arc::from(name),
            false => Arc::clone(&self.fixed.labels[entry]),
        };
        let adapter = known.filter(|(_, is_adapter)| *is_adapter);
        // An adapter's own tokens are those that its own entry makes.
        let own = adapter.filter(|(of, _)| *of == entry);
        let counted_as = label(own.unwrap_or((entry, false)));
        Ok(Named {
            entry,
            model,
            asked_for: known.map_or_else(|| counted_as.clone(), label),
            counted_as,
            adapter: adapter.map(|_| name.to_owned()),
        })
    }

    /// The name of what serves a request that names no model: a server's own, whichever it is; none
    /// where there are several.
    #[must_use]
    pub fn unnamed(&self, reads_as: ReadsAs) -> Option<&str> {
        match (reads_as, &*self.fixed.labels) {
            (ReadsAs::Entry(entry), _) => self.label(entry),
            (ReadsAs::Named, [only]) => Some(&**only),
            _ => None,
        }
    }

    /// The name that an entry is counted by.
    #[must_use]
    pub fn label(&self, entry: usize) -> Option<&str> {
        self.fixed.labels.get(entry).map(|label| &**label)
    }

    /// A request may bring a template of its own, which can run long on few bytes.
    #[must_use]
    pub fn run_foreign_templates(&self) -> bool {
        self.fixed.runs_foreign_templates
    }

    /// Every model by its first name, and its segment cache if it is loaded.
    pub fn states(&self) -> impl Iterator<Item = (&str, Option<CacheSizes>)> {
        let cache = |model: &Arc<Model>| model.tokenizer.cache_sizes();
        let labels = self.fixed.labels.iter().map(|label| &**label);
        labels.zip(
            self.loaded
                .iter()
                .map(move |model| model.as_ref().map(cache)),
        )
    }
}

/// Loads every model and keeps it fresh.
pub struct Loader {
    keepers: Vec<Keeper>,
    shared: Arc<Shared>,
}

/// What all of them work with.
struct Shared {
    models: watch::Sender<Arc<Models>>,
    hub: Hub,
    cache: Cache,
    /// Loads at one time.
    loads: Semaphore,
    readiness: Readiness,
}

impl Loader {
    /// A loader, and the models as it will publish them: none is loaded yet. The readiness
    /// waits for the first attempt at each.
    #[must_use]
    pub fn new(
        config: &Config,
        hub: Hub,
        metrics: &Metrics,
        readiness: &Readiness,
    ) -> (Self, watch::Receiver<Arc<Models>>) {
        let models = Models::none_loaded(&config.models);
        let (sender, receiver) = watch::channel(Arc::new(models));
        // A load keeps a core busy for seconds: of those that serve requests, half stay with them.
        let cores = config::threads();
        let shared = Arc::new(Shared {
            models: sender,
            hub,
            cache: Cache::new(&config.models_cache),
            loads: Semaphore::new((cores / 2).max(1)),
            readiness: readiness.clone(),
        });
        let keeper = |(number, model): (usize, &config::Model)| {
            let counted = metrics.model(&model.counted_as(None));
            let budget = CacheBudget::of_bytes(config.limits.token_cache_bytes_max);
            Keeper::new(number, model.clone(), shared.clone(), counted, budget)
        };
        let keepers = config.models.iter().enumerate().map(keeper).collect();
        (Self { keepers, shared }, receiver)
    }

    /// Works until nobody wants models any more.
    ///
    /// # Errors
    /// A bug of ours.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut keeping = JoinSet::new();
        for keeper in self.keepers {
            keeping.spawn(keeper.keep());
        }
        tokio::select! {
            () = self.shared.models.closed() => Ok(()),
            Some(ended) = keeping.join_next() => match ended.context("a model's keeper")? {},
        }
    }
}

/// Everything wrong with the folders that a configuration names: each is loaded, as `serve`
/// would. The hub is not asked.
///
/// # Errors
/// The models that do not load.
pub fn check(file: &Path, config: &Config) -> Result<(), Complaints> {
    let complaint = |(number, model): (usize, &config::Model)| {
        let Source::Folder(folder) = &model.source else {
            return None;
        };
        let error = Model::load(folder, model, &CacheBudget::none()).err()?;
        Some(Complaint {
            line: 0,
            field: format!("models[{number}].folder"),
            problem: error.to_string(),
        })
    };
    let models = config.models.iter().enumerate();
    Complaints::unless_none(file, models.filter_map(complaint).collect())
}
