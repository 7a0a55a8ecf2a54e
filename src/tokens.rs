//! Prompt → token ids.
//!
//! [`Tokenizer`] is a seam since two engines live: [`Engine::Fast`] is a hundred times quicker
//! than [`Engine::Reference`], which is what vLLM itself runs and what the tests compare with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use crate::config::Engine;
pub use crate::metrics::CacheSizes;
pub use crate::prompt::TokenId;
use crate::prompt::{Prompt, PromptText};

mod clauses;
mod fast;
mod pool;
mod reference;
mod segments;

use clauses::{Clauses, Neighbours};
pub use pool::{NotDone, Size, TokenPool};
use segments::cuts::Cuts;
use segments::{Segmented, Whole};

/// Turns text into the ids that the model's servers compute.
pub trait Tokenizer: Send + Sync {
    /// The ids of a text. Special tokens that are typed in the text become their ids, as in
    /// vLLM; `add_special_tokens` is about those that the post-processor adds, such as BOS.
    ///
    /// # Errors
    /// [`TokenizeError`], without the text.
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TokenizeError>;

    /// The same for one tenant. How long it takes tells nothing of what others have asked for: what it finds in a cache of
    /// texts was put there under the same salt, as in vLLM's cache of blocks.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    fn encode_salted(
        &self,
        text: &str,
        add_special_tokens: bool,
        salt: Option<&str>,
    ) -> Result<Vec<TokenId>, TokenizeError> {
        let _without_a_cache = salt;
        self.encode(text, add_special_tokens)
    }

    /// How many leading bytes of a text keep their tokens whatever follows the text.
    fn settled_bytes(&self, text: &str) -> usize {
        let _unknown = text;
        0
    }

    /// Whether what it has encoded takes much less time again.
    fn remembers(&self) -> bool {
        false
    }

    /// How large its segment cache is and what it did; zeros where it has none.
    fn cache_sizes(&self) -> CacheSizes {
        CacheSizes::default()
    }
}

/// What a model's segment cache may take. Its counts outlive a reload of the tokenizer.
#[derive(Debug, Clone, Default)]
pub struct CacheBudget {
    /// Bytes of texts and ids; no cache with 0.
    pub bytes_max: u64,
    counts: Arc<segments::Counts>,
}

impl CacheBudget {
    /// So many bytes.
    #[must_use]
    pub fn of_bytes(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            ..Self::default()
        }
    }

    /// No cache.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }
}

/// A text that is not encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenizeError {
    /// An engine cannot.
    #[error("the tokenizer refused a text of {text_bytes} bytes")]
    Refused {
        /// How long the text is.
        text_bytes: usize,
    },
    /// An engine would take seconds, which only harm asks for.
    #[error("{text_bytes} bytes of a text have no place to cut them in, which is too many")]
    Unbroken {
        /// How long that part of the text is.
        text_bytes: usize,
    },
}

impl TokenizeError {
    /// A short, stable word for metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Refused { .. } => "tokenizer",
            Self::Unbroken { .. } => "unbroken_text",
        }
    }
}

/// A folder whose tokenizer no engine takes.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}; a model's folder holds Hugging Face's tokenizer.json")]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// The engine's word.
    pub reason: String,
}

/// Loads `tokenizer.json` of a model's folder, with a segment cache; half a second to two
/// seconds. A tokenizer that the fast engine does not know is
/// given to the reference engine.
///
/// # Errors
/// [`LoadError`] if the file is missing or neither engine takes it.
pub fn load(
    folder: &Path,
    engine: Engine,
    cache: &CacheBudget,
) -> Result<Arc<dyn Tokenizer>, LoadError> {
    let path = folder.join("tokenizer.json");
    let explain = |reason: String| LoadError {
        path: path.clone(),
        reason,
    };
    if !path.is_file() {
        return Err(explain("no such file".to_owned()));
    }
    let cuts = Cuts::of_file(&path).map_err(explain)?;
    if engine == Engine::Fast {
        match fast::Fast::load(&path) {
            Ok(tokenizer) => return quickened(tokenizer, &path, cuts, cache).map_err(explain),
            Err(reason) => tracing::warn!(
                path = %path.display(),
                %reason,
                "the fast engine does not take this tokenizer; the reference engine is slower"
            ),
        }
    }
    let tokenizer = reference::Reference::load(&path).map_err(explain)?;
    cached(tokenizer, cuts, cache).map_err(explain)
}

/// With a look-up of short parts, where the tokenizer's rules allow it and anything may be kept.
fn quickened(
    engine: fast::Fast,
    path: &Path,
    cuts: Cuts,
    cache: &CacheBudget,
) -> Result<Arc<dyn Tokenizer>, String> {
    let neighbours = match cuts.are_inside() && cache.bytes_max > 0 {
        true => Neighbours::of_file(path)?,
        false => None,
    };
    match neighbours {
        Some(neighbours) => {
            let engine = Clauses::new(engine, neighbours).map_err(|error| error.to_string())?;
            cached(engine, cuts, cache)
        }
        None => cached(engine, cuts, cache),
    }
}

fn cached(
    engine: impl Tokenizer + 'static,
    cuts: Cuts,
    cache: &CacheBudget,
) -> Result<Arc<dyn Tokenizer>, String> {
    if cache.bytes_max == 0 {
        return Ok(Arc::new(Whole { engine, cuts }));
    }
    let segmented = Segmented::new(engine, cuts, cache);
    Ok(Arc::new(segmented.map_err(|error| error.to_string())?))
}

/// The ids of every text of a prompt, truncated as the engine truncates them.
///
/// # Errors
/// The first text that cannot be encoded.
pub fn tokens_of(
    prompt: &Prompt,
    tokenizer: &dyn Tokenizer,
) -> Result<Vec<Vec<TokenId>>, TokenizeError> {
    prompt
        .texts
        .iter()
        .map(|text| {
            let ids = match text {
                PromptText::Text {
                    text,
                    add_special_tokens,
                    whole,
                } => {
                    let end = if *whole {
                        text.len()
                    } else {
                        tokenizer.settled_bytes(text)
                    };
                    let salt = prompt.cache_salt.as_deref();
                    tokenizer.encode_salted(&text[..end], *add_special_tokens, salt)?
                }
                PromptText::Ids(ids) => ids.clone(),
            };
            Ok(match prompt.truncation {
                Some(truncation) => truncation.apply(ids),
                None => ids,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
