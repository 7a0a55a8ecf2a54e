//! Request bodies of a recording, read as `kvscout serve` reads them.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::line::{Line, Prompts};
use crate::blocks::TokenId;
use crate::config::TOKEN_CACHE_BYTES_MAX;
use crate::prompt::PromptError;
use crate::prompt::template::{RenderSettings, Renderer};
use crate::tokens::{self, CacheBudget, Engine, Tokenizer};

/// Our own reading of request bodies, against the recorded ids.
pub(super) struct Tokens {
    renderer: Renderer,
    tokenizer: Arc<dyn Tokenizer>,
}

impl Tokens {
    pub(super) fn load(folder: &Path) -> anyhow::Result<Self> {
        let renderer = Renderer::load(folder, RenderSettings::default(), SystemTime::now)?;
        let cache = CacheBudget::of_bytes(TOKEN_CACHE_BYTES_MAX);
        Ok(Self {
            renderer,
            tokenizer: tokens::load(folder, Engine::default(), &cache)?,
        })
    }

    /// How many requests whose ids were recorded read otherwise here; a line for each.
    pub(super) fn mismatches(
        &self,
        lines: &[Line],
        json: bool,
        complaints: &mut impl Write,
    ) -> anyhow::Result<u64> {
        let mut mismatches = 0;
        for line in lines {
            let recorded = match line.prompts() {
                Prompts::Unknown => continue,
                Prompts::One(tokens) => vec![tokens],
                Prompts::Batch(prompts) => prompts,
            };
            let problem = match self.read(line) {
                // Recordings of vLLM's own cache manager have no request bodies.
                Err(PromptError::UnknownPath) => continue,
                Ok(ours) if ours == recorded => continue,
                Ok(ours) => {
                    let (ours, recorded) = (ours.concat(), recorded.concat());
                    let both = ours.iter().zip(&recorded);
                    let at = both.take_while(|(ours, theirs)| ours == theirs).count();
                    format!(
                        "{} tokens, recorded {}, first difference at {at}",
                        ours.len(),
                        recorded.len()
                    )
                }
                Err(error) => error.to_string(),
            };
            mismatches += 1;
            let (i, phase) = (line.number(), line.phase());
            if json {
                let value = serde_json::json!({"request": i, "phase": phase, "verdict": "tokens", "why": problem});
                writeln!(complaints, "{value}")?;
            } else {
                writeln!(
                    complaints,
                    "request {i} ({phase}): tokens differ: {problem}"
                )?;
            }
        }
        Ok(mismatches)
    }

    /// A token list for each prompt.
    pub(super) fn read(&self, line: &Line) -> Result<Vec<Vec<TokenId>>, PromptError> {
        let request = line.request().ok_or(PromptError::UnknownPath)?;
        let prompt = request.render(&self.renderer)?;
        Ok(tokens::tokens_of(&prompt, self.tokenizer.as_ref()).unwrap_or_default())
    }
}
