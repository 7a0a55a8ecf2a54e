//! Which models there are, and where their files come from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::yaml::Section;
use super::{Dialect, RenderSettings, print};

/// A model that endpoints serve, and how its prompts are made.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Names that requests give (`--served-model-name`).
    pub names: Vec<String>,
    /// Adapters served beside it, by the names that requests give, in order of loading.
    pub adapters: Vec<String>,
    /// Where its files come from.
    pub source: Source,
    /// What tokenizes.
    pub engine: Engine,
    /// The server's flags that decide what its prompts look like.
    pub render: RenderSettings,
}

impl Model {
    /// The name that prompts are counted by: the model's first, whichever of its names a request
    /// gives, and an adapter's own.
    #[must_use]
    pub fn counted_as(&self, adapter: Option<&str>) -> Arc<str> {
        let first = || self.names.first().map_or("", String::as_str);
        adapter.unwrap_or_else(first).into()
    }

    /// Its adapters by order of loading.
    pub fn adapter_names(&self) -> impl Iterator<Item = String> + '_ {
        self.adapters.iter().cloned()
    }

    /// All of these names.
    pub fn counted_names(&self) -> impl Iterator<Item = Arc<str>> {
        let adapters = self.adapters.iter().map(|name| Some(name.as_str()));
        std::iter::once(None)
            .chain(adapters)
            .map(|adapter| self.counted_as(adapter))
    }
}

/// As which of the configured models an endpoint reads prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReadsAs {
    /// The one that a request names.
    #[default]
    Named,
    /// This place in the configuration's `models`, by whatever name a request calls it.
    Entry(usize),
    /// Who says so names none of them: nobody knows.
    Unknown,
}

/// Where a model's `tokenizer.json`, `tokenizer_config.json` and chat templates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder; read again when it changes.
    Folder(PathBuf),
    /// The Hugging Face hub; fetched once.
    Hub(Repo),
}

/// A model's repository on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repo {
    /// `owner/name`; a few old ones have no owner.
    pub id: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

/// A tokenizer implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// `fastokens`: a hundred times faster, equal on every text tried.
    #[default]
    Fast,
    /// Hugging Face `tokenizers`, which vLLM uses.
    Reference,
}

pub(super) fn read_models(root: &mut Section<'_>, folder: &Path) -> Vec<Model> {
    let mut seen = std::collections::BTreeSet::new();
    root.sections("models", |model| {
        let names = model.texts("names");
        let adapters = model.texts("adapters");
        if names.is_empty() {
            model.complain(
                "names",
                "is missing: the names by which requests ask for the model",
            );
        }
        for name in names.iter().chain(&adapters) {
            if !seen.insert(name.clone()) {
                model.complain(
                    "names",
                    format!("{name:?} is given twice; a name means one model"),
                );
            }
        }
        // The others first, so that their complaints come as well.
        let engine = model.word("engine", print::ENGINES, Engine::Fast);
        let render = read_render(model, folder);
        Some(Model {
            names,
            adapters,
            source: read_source(model, folder)?,
            engine,
            render,
        })
    })
}

/// Whether the files can be had is not a question of the configuration: they may come later.
fn read_source(model: &mut Section<'_>, base: &Path) -> Option<Source> {
    let what = "the folder that holds tokenizer.json and tokenizer_config.json (or hub: {repo, \
        revision})";
    let repo = model.section("hub", read_repo);
    if model.has("hub") {
        if model.has("folder") {
            model.complain(
                "hub",
                "is given beside folder; files come from one of the two",
            );
        }
        model.optional::<PathBuf>("folder");
        return repo.map(Source::Hub);
    }
    let folder = model.required::<PathBuf>("folder", what)?;
    Some(Source::Folder(base.join(folder)))
}

fn read_repo(hub: &mut Section<'_>) -> Option<Repo> {
    let id = hub.required::<String>("repo", "owner/name, as the hub's page shows it");
    let revision = hub.get("revision", "main".to_owned());
    if !is_path(&revision, 255) {
        let problem = format!("{revision:?} is not a branch, a tag or a commit");
        hub.complain("revision", problem);
    }
    let id = id?;
    // Without "--", which stands for the slash where a repository becomes a folder.
    if !is_path(&id, 96) || id.split('/').count() > 2 || id.contains("--") {
        hub.complain("repo", format!("{id:?} is not owner/name"));
    }
    Some(Repo { id, revision })
}

/// Plain parts between slashes: safe as a path and within an address. The hub allows 96 bytes
/// for a repository (`validate_repo_id` of huggingface_hub), git 255 for a name's part.
fn is_path(text: &str, bytes_max: usize) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(plain)
            && !part.starts_with(['.', '-'])
            && !part.ends_with(['.', '-'])
            && !part.contains("..")
    };
    text.len() <= bytes_max && text.split('/').all(part)
}

/// The keys are vLLM's flags; the types say what each takes.
fn read_render(model: &mut Section<'_>, base: &Path) -> RenderSettings {
    let flags = model
        .json("server")
        .unwrap_or_else(|| serde_json::json!({}));
    let mut settings: RenderSettings = serde_json::from_value(flags).unwrap_or_else(|error| {
        model.complain("server", error.to_string());
        RenderSettings::default()
    });
    if settings.dialect != Dialect::default() {
        model.complain("server", "dialect stands beside server: it is no flag");
    }
    // The names of a model's own templates are words.
    let path = settings.chat_template_path();
    if let Some(path) = path.filter(|path| path.contains(['/', '.'])) {
        settings.chat_template = Some(base.join(path).display().to_string());
    }
    settings.dialect = model.word("dialect", print::DIALECTS, Dialect::default());
    settings
}
