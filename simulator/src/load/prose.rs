//! Words for prompts: as many as asked for, always the same from the same seed.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::text::WORDS;

/// Words in each sentence.
const SENTENCE: usize = 12;

/// Sentences of common words, nearly all of which are one token in any large vocabulary.
#[must_use]
pub fn prose(seed: u64, words: usize) -> String {
    let vocabulary: Vec<&str> = WORDS.split_whitespace().collect();
    let mut text = String::new();
    for position in 0..words {
        let draw = xxh3_64_with_seed(&(position as u64).to_le_bytes(), seed);
        if position > 0 {
            text.push_str(if position % SENTENCE == 0 { ". " } else { " " });
        }
        text.push_str(vocabulary[(draw % vocabulary.len() as u64) as usize]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_differ_from_the_first_words_on() {
        assert_eq!(prose(1, 30), prose(1, 30));
        assert_eq!(prose(1, 30).split(' ').count(), 30);
        assert_ne!(prose(1, 8), prose(2, 8));
        assert!(prose(1, 30).starts_with(&prose(1, 20)));
    }
}
