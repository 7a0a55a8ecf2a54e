//! Hugging Face tokenizers, the engine inside vLLM's own.

use std::path::Path;

use super::{TokenId, TokenizeError, Tokenizer};

/// A loaded tokenizer.
pub struct Reference(tokenizers::Tokenizer);

impl Reference {
    /// Loads.
    pub fn load(path: &Path) -> Result<Self, String> {
        let mut inner =
            tokenizers::Tokenizer::from_file(path).map_err(|error| error.to_string())?;
        // tokenizer.json may carry a length of its authors' training; vLLM never applies it.
        inner
            .with_truncation(None)
            .map_err(|error| error.to_string())?;
        inner.with_padding(None);
        Ok(Self(inner))
    }
}

impl Tokenizer for Reference {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TokenizeError> {
        let encoding =
            self.0
                .encode_fast(text, add_special_tokens)
                .map_err(|_| TokenizeError::Refused {
                    text_bytes: text.len(),
                })?;
        Ok(encoding.get_ids().to_vec())
    }
}
