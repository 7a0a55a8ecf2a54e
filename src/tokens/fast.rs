//! fastokens, exact on every text we know (`tests/prompts.rs`) and warm from the start.

use std::path::Path;

use super::{TokenId, TokenizeError, Tokenizer};

/// Texts that fill the engine's tables: its first call ever takes 160 ms on a long text.
const WARM_UP: &str = "The quick brown fox doesn't jump over 12 lazy dogs.\n\n  fn main() { a[0] += 1; }\
    \r\n北京的天气，今天很好。 Съешь ещё этих мягких булок. これはテストです。 안녕하세요 🤷‍♀️ e\u{301}\n";

/// A loaded tokenizer.
pub struct Fast(fastokens::Tokenizer);

impl Fast {
    /// Loads and warms up.
    pub fn load(path: &Path) -> Result<Self, String> {
        let mut inner = fastokens::Tokenizer::from_file(path).map_err(|error| error.to_string())?;
        // tokenizer.json may carry a length of its authors' training; vLLM never applies it.
        inner.set_truncation(None);
        inner.set_padding(None);
        let tokenizer = Self(inner);
        tokenizer
            .encode(&WARM_UP.repeat(100), true)
            .map_err(|error| error.to_string())?;
        Ok(tokenizer)
    }
}

impl Tokenizer for Fast {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TokenizeError> {
        self.0
            .encode_with_special_tokens(text, add_special_tokens)
            .map_err(|_| TokenizeError::Refused {
                text_bytes: text.len(),
            })
    }
}
