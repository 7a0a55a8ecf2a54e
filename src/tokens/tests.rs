use super::*;
use crate::prompt::{Side, Truncation};

/// One id a byte; 0 in front if special tokens are added.
struct Bytes;

impl Tokenizer for Bytes {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TokenizeError> {
        let front = add_special_tokens.then_some(0);
        Ok(front
            .into_iter()
            .chain(text.bytes().map(TokenId::from))
            .collect())
    }
}

fn prompt(texts: Vec<PromptText>, truncation: Option<Truncation>) -> Prompt {
    Prompt {
        model: None,
        texts,
        cache_salt: None,
        reads_cache: true,
        truncation,
        stream: false,
    }
}

fn text(text: &str, add_special_tokens: bool) -> PromptText {
    PromptText::Text {
        text: text.to_owned(),
        add_special_tokens,
        whole: true,
    }
}

#[test]
fn a_batch_keeps_all_its_prompts() {
    let batch = prompt(
        vec![
            text("\u{1}", true),
            text("\u{2}", false),
            PromptText::Ids(vec![7]),
        ],
        None,
    );
    assert_eq!(
        tokens_of(&batch, &Bytes),
        Ok(vec![vec![0, 1], vec![2], vec![7]])
    );
}

#[test]
fn truncation_keeps_the_last_tokens_or_the_first() {
    let of = |keep_tokens, side| {
        let ids = PromptText::Ids(vec![1, 2, 3]);
        tokens_of(
            &prompt(vec![ids], Some(Truncation { keep_tokens, side })),
            &Bytes,
        )
        .unwrap()
        .remove(0)
    };
    assert_eq!(of(2, Side::Left), [2, 3]);
    assert_eq!(of(2, Side::Right), [1, 2]);
    assert_eq!(of(0, Side::Left), [0; 0]);
    assert_eq!(of(9, Side::Left), [1, 2, 3]);
}

#[test]
fn a_folder_without_a_tokenizer_says_which_file_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let Err(error) = load(folder.path(), Engine::Fast, &CacheBudget::none()) else {
        panic!("nothing to load")
    };
    assert!(
        error.to_string().contains("tokenizer.json: no such file"),
        "{error}"
    );
}
