//! Body → tokens, for models whose folders we have.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;

use super::{Ask, Reading};
use crate::blocks::Identity;
use crate::choice::Basis;
use crate::config::{self, Config};
use crate::prompt::template::Renderer;
use crate::prompt::{PromptError, Request};
use crate::tokens::{self, TokenPool, Tokenizer};

/// Reads prompts of the models that it was given.
pub struct Reader {
    models: Arc<HashMap<String, Named>>,
    pool: Arc<TokenPool>,
}

/// A name that requests give.
struct Named {
    model: Arc<Model>,
    /// The name is a LoRA adapter's: part of every block's identity.
    adapter: Option<String>,
}

/// One model's template and vocabulary.
struct Model {
    renderer: Renderer,
    tokenizer: Arc<dyn Tokenizer>,
}

impl Reader {
    /// Loads every configured model's folder, off the runtime: seconds each.
    ///
    /// # Errors
    /// A folder that cannot be loaded; says which and why.
    pub async fn load(config: &Config) -> anyhow::Result<Self> {
        let mut models = HashMap::new();
        for model in &config.models {
            let (of_config, loaded) = (model.clone(), model.folder.clone());
            let cache = config.limits.token_cache_bytes_max;
            let loading = tokio::task::spawn_blocking(move || load(&of_config, cache));
            let loaded = loading
                .await?
                .with_context(|| format!("model folder {}", loaded.display()))?;
            let loaded = Arc::new(loaded);
            let named = |adapter| Named {
                model: loaded.clone(),
                adapter,
            };
            models.extend(model.names.iter().map(|name| (name.clone(), named(None))));
            models.extend(
                model
                    .adapters
                    .iter()
                    .map(|name| (name.clone(), named(Some(name.clone())))),
            );
        }
        let pool = TokenPool::of_all_cores(config.limits.tokenizer_queue_max);
        Ok(Self {
            models: Arc::new(models),
            pool: Arc::new(pool),
        })
    }

    /// Reads one request's prompt, as far as that is possible.
    pub(super) async fn read(&self, ask: &Ask, deadline: Instant) -> Reading {
        let (models, path, body) = (self.models.clone(), ask.path.clone(), ask.body.clone());
        let bytes = ask.body.len();
        // What would come too late is not begun.
        let work = move || match Instant::now() < deadline {
            true => read(&models, &path, &body),
            false => Err("deadline"),
        };
        match self.pool.run(bytes, work).await {
            Ok(Ok(reading)) => reading,
            Ok(Err(reason)) => Reading::load_only(reason, bytes),
            Err(_busy) => Reading::load_only("tokenizer_busy", bytes),
        }
    }
}

fn load(model: &config::Model, cache_bytes_max: u64) -> anyhow::Result<Model> {
    let renderer = Renderer::load(
        &model.folder,
        model.render.clone(),
        std::time::SystemTime::now,
    )?;
    Ok(Model {
        renderer,
        tokenizer: tokens::load(&model.folder, model.engine, cache_bytes_max)?,
    })
}

/// The label of what stands in the way, otherwise.
fn read(models: &HashMap<String, Named>, path: &str, body: &[u8]) -> Result<Reading, &'static str> {
    let request = Request::parse(path, body).map_err(|error| explain(&error))?;
    let name = request.model().map_err(|error| explain(&error))?;
    let named = models.get(name).ok_or("unknown_model")?;
    let renderer = &named.model.renderer;
    let request = request.reread(renderer, body);
    let prompt = request.render(renderer).map_err(|error| explain(&error))?;
    let texts =
        tokens::tokens_of(&prompt, named.model.tokenizer.as_ref()).map_err(|_| "tokenizer")?;
    let prompt_tokens = texts.iter().map(|text| text.len() as u64).sum();
    // Of several engine requests only the last to end reports cached tokens, and it may have
    // found those before it.
    let basis = match (texts.len(), request.answers()) {
        (0 | 1, 0 | 1) => Basis::Overlap,
        (0 | 1, _) => Basis::Partial("answers"),
        _ => Basis::Partial("batch"),
    };
    Ok(Reading {
        basis,
        // A batch goes to one endpoint as a whole; its first prompt stands for it.
        tokens: texts.into_iter().next().unwrap_or_default(),
        prompt_tokens,
        identity: Identity {
            adapter: named.adapter.clone(),
            cache_salt: prompt.cache_salt,
        },
        reads_cache: prompt.reads_cache,
        answers: request.answers(),
        wants_report: request.wants_cache_report(),
    })
}

fn explain(error: &PromptError) -> &'static str {
    tracing::debug!(%error, "a prompt is not scored");
    error.label()
}
