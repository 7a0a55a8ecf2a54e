//! A tokenizer without files: a run of letters and digits with the space before it is a
//! token, so is any other character; ids are hashes.

use kvscout::blocks::TokenId;
use kvscout::tokens::{TokenizeError, Tokenizer};
use xxhash_rust::xxh3::xxh3_64;

/// In the manner of most chat templates: role, content, end, and the assistant's turn begun.
pub(super) const TEMPLATE: &str = "\
{%- for message in messages %}{{ '[' + message.role + ']\\n' + message.content + '[end]\\n' }}\
{%- endfor %}{%- if add_generation_prompt %}{{ '[assistant]\\n' }}{%- endif %}";

/// About the size of a real vocabulary, so that ids take as many bytes on the wire.
const VOCABULARY: u64 = 150_000;

/// Splits text into words.
pub(super) struct Words;

impl Tokenizer for Words {
    fn encode(&self, text: &str, _: bool) -> Result<Vec<TokenId>, TokenizeError> {
        let mut tokens = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(piece_len(rest));
            tokens.push((xxh3_64(piece.as_bytes()) % VOCABULARY) as TokenId);
            rest = tail;
        }
        Ok(tokens)
    }
}

/// Bytes of the first piece: ` word`, `word`, or one character.
fn piece_len(text: &str) -> usize {
    let space = usize::from(text.starts_with(' '));
    let body = &text[space..];
    let word = body
        .find(|c: char| !c.is_alphanumeric())
        .unwrap_or(body.len());
    if word > 0 {
        return space + word;
    }
    text.chars().next().map_or(0, char::len_utf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &str) -> Vec<TokenId> {
        Words.encode(text, false).expect("it takes any text")
    }

    #[test]
    fn a_word_takes_the_space_before_it() {
        let joined = |pieces: &[&str]| -> Vec<TokenId> {
            pieces.iter().flat_map(|piece| encode(piece)).collect()
        };
        let pieces = ["Once", " upon", ",", " é", " 9", "!"];
        assert_eq!(encode("Once upon, é 9!"), joined(&pieces));
        assert_eq!(encode("  a"), joined(&[" ", " a"]));
        assert!(encode("").is_empty());
    }
}
