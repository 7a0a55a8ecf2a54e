//! Body → tokens, for models that are loaded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Ask;
use super::reading::Reading;
use super::seen::Seen;
use crate::blocks::{Identity, Shape};
use crate::choice::Basis;
use crate::config::ReadsAs;
use crate::models::{Missing, Models, Named};
use crate::prompt::{Prompt, PromptError, PromptText, Request};
use crate::tokens::{self, Size, TokenPool};

/// A body that took longer to parse and render is long work every time: that is done anew. 100,000 tokens take 0.5 ms.
const QUICK_MAX: Duration = Duration::from_millis(2);

/// Reads prompts of the models that are loaded as they come.
pub struct Reader {
    models: watch::Receiver<Arc<Models>>,
    pool: Arc<TokenPool>,
    seen: Seen,
}

impl Reader {
    /// A reader of these models, on this pool.
    #[must_use]
    pub fn new(models: watch::Receiver<Arc<Models>>, pool: Arc<TokenPool>) -> Self {
        Self {
            models,
            pool,
            seen: Seen::default(),
        }
    }

    /// Reads one request's prompt, as far as that is possible: as the target does, where one serves it
    /// in place of the model that it names, and as endpoints do that cut it in these shapes.
    pub(super) async fn read(
        &self,
        ask: &Ask,
        target: Option<Arc<str>>,
        (reads_as, shapes): (ReadsAs, Vec<Shape>),
        deadline: Instant,
    ) -> Reading {
        let models = self.models.borrow().clone();
        let (path, body, bytes) = (ask.path.clone(), ask.body.clone(), ask.body.len());
        let marks = self.seen.marks(&body);
        let size = match models.run_foreign_templates() {
            // A template that a request brings may run two seconds on few bytes.
            true => Size::new(bytes.max(TokenPool::LONG)),
            false => Size::known(bytes, self.seen.known_bytes(&marks)),
        };
        // What would come too late is not begun.
        let work = move || match Instant::now() < deadline {
            true => {
                let read = read(&models, (&path, &body), target.as_deref(), reads_as);
                read.map(|reading| reading.cut(&shapes))
            }
            false => Err("deadline"),
        };
        match self.pool.run(size, work).await {
            Ok(Ok(reading)) => {
                if reading.is_quick_again {
                    self.seen.keep(&marks);
                }
                reading
            }
            Ok(Err(reason)) => Reading::load_only(reason, bytes),
            Err(not_done) => Reading::load_only(not_done.label(), bytes),
        }
    }
}

/// The label of what stands in the way, otherwise.
fn read(
    models: &Models,
    (path, body): (&str, &[u8]),
    target: Option<&str>,
    reads_as: ReadsAs,
) -> Result<Reading, &'static str> {
    let began = Instant::now();
    let request = match Request::parse(path, body) {
        // The engine will have nothing to do, however long the body is.
        Err(PromptError::NoPrefill) => return Ok(Reading::load_only("no_prefill", 0)),
        parsed => parsed.map_err(|error| explain(&error))?,
    };
    let name = match (target, request.model()) {
        (Some(target), _) => target,
        (None, Ok(name)) => name,
        (None, Err(error)) => models.unnamed(reads_as).ok_or_else(|| explain(&error))?,
    };
    let named = models.read_as(reads_as, name).map_err(Missing::label)?;
    let reading = read_by(&named, request, body, began);
    let unread = |reason| Reading::load_only(reason, body.len());
    Ok(Reading {
        entry: Some(named.entry),
        ..reading.unwrap_or_else(unread)
    })
}

/// As a model reads it that is loaded.
fn read_by(
    named: &Named,
    request: Request,
    body: &[u8],
    began: Instant,
) -> Result<Reading, &'static str> {
    let renderer = &named.model.renderer;
    let request = request.reread(renderer, body);
    let prompt = request.render(renderer).map_err(|error| explain(&error))?;
    let rendered = Instant::now();
    // What a tenant with a salt has asked for is nobody's to find, by no sign.
    let is_quick_again = named.model.tokenizer.remembers()
        && rendered - began < QUICK_MAX
        && prompt.cache_salt.is_none();
    let texts = tokens::tokens_of(&prompt, named.model.tokenizer.as_ref())
        .map_err(|error| error.label())?;
    let prompt_tokens = texts.iter().map(|text| text.len() as u64).sum();
    // Of several engine requests only the last to end reports cached tokens, and it may have
    // found those before it.
    let several = (texts.len() > 1).then_some("batch");
    let partial = prompt.first().ends_at_medium().then_some("media");
    let basis = match partial.or(several).or(request.caveat()) {
        None => Basis::Overlap,
        Some(reason) => Basis::Partial(reason),
    };
    Ok(Reading {
        entry: Some(named.entry),
        prompts: texts.len(),
        model: Some(named.counted_as.clone()),
        asked_for: Some(named.asked_for.clone()),
        basis,
        // A batch goes to one endpoint as a whole; its first prompt stands for it.
        tokens: Arc::new(texts.into_iter().next().unwrap_or_default()),
        prompt_tokens,
        identity: Identity {
            adapter: named.adapter.clone(),
            cache_salt: prompt.cache_salt.clone(),
        },
        chains: Vec::new(),
        reads_cache: prompt.reads_cache,
        answers: request.answers(),
        wants_report: request.wants_cache_report(),
        rendered_bytes: rendered_bytes(&prompt),
        is_quick_again,
        rendered_in: rendered - began,
        tokenized_in: rendered.elapsed(),
    })
}

fn rendered_bytes(prompt: &Prompt) -> Option<usize> {
    let bytes = |text: &PromptText| match text {
        PromptText::Text { text, .. } => Some(text.len()),
        PromptText::Ids(_) => None,
    };
    prompt.texts.iter().map(bytes).sum()
}

fn explain(error: &PromptError) -> &'static str {
    tracing::debug!(%error, "a prompt is not scored");
    error.label()
}
