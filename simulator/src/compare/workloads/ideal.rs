//! What one cache without limits would give, had everyone shared it.

use std::collections::{HashMap, HashSet};

use super::super::plan::{Piece, Plan};

/// The hit rate of one cache without limits that everyone shares, in the plan's order: what no
/// policy can pass by more than luck with the order of answers.
#[must_use]
pub fn ideal_hit_rate(plan: &Plan, block_size: u32) -> f64 {
    let (mut held, size) = (Texts::default(), block_size as usize);
    let (mut cached, mut prompt_tokens) = (0, 0);
    let mut pieces = Vec::new();
    for asked in &plan.requests {
        let tokens = asked.prompt_tokens();
        // The engine computes a prompt's last token itself.
        let hittable = tokens.saturating_sub(1);
        cached += held.shared(&asked.prompt, hittable) / size * size;
        prompt_tokens += tokens;
        let answer = asked.answer.tokens.max(1);
        pieces.clone_from(&asked.prompt);
        pieces.push(Piece {
            tokens: answer,
            ..asked.answer
        });
        // The last token of an answer is said and never computed.
        held.keep(&pieces, (tokens + answer as usize - 1) / size * size);
    }
    cached as f64 / prompt_tokens.max(1) as f64
}

/// Which texts were computed, as a tree of pieces: an hour of a fleet has half a billion blocks, and
/// some millions of pieces.
#[derive(Debug, Default)]
struct Texts {
    /// How many tokens of a piece's text were computed, behind a path.
    longest: HashMap<(u64, u64), u32>,
    /// Paths that whole pieces lead to.
    paths: HashSet<u64>,
}

/// The path behind a piece; 0 is the root.
fn behind(path: u64, piece: Piece) -> u64 {
    let coordinates = [path, piece.text, u64::from(piece.tokens)];
    Piece::of(coordinates, 0).text
}

/// An empty piece is no step on a path.
fn written(pieces: &[Piece]) -> impl Iterator<Item = &Piece> {
    pieces.iter().filter(|piece| piece.tokens > 0)
}

impl Texts {
    /// Leading tokens that were computed before, `most` of them at most.
    fn shared(&self, pieces: &[Piece], most: usize) -> usize {
        let (mut path, mut shared) = (0, 0);
        for piece in written(pieces) {
            let known = self.longest.get(&(path, piece.text)).copied().unwrap_or(0);
            shared += known.min(piece.tokens) as usize;
            path = behind(path, *piece);
            if known < piece.tokens || !self.paths.contains(&path) {
                break;
            }
        }
        shared.min(most)
    }

    /// Notes the first `computed` tokens.
    fn keep(&mut self, pieces: &[Piece], computed: usize) {
        let (mut path, mut left) = (0, computed);
        for piece in written(pieces) {
            let kept = left.min(piece.tokens as usize);
            let longest = self.longest.entry((path, piece.text)).or_default();
            *longest = (*longest).max(kept as u32);
            if kept < piece.tokens as usize {
                break;
            }
            path = behind(path, *piece);
            self.paths.insert(path);
            left -= kept;
        }
    }
}

#[cfg(test)]
mod tests {
    use kvscout::blocks::{Chain, Identity};

    use super::super::super::plan::Asked;
    use super::*;
    use crate::dice::Dice;

    /// The same, block by block.
    fn by_blocks(plan: &Plan, block_size: u32) -> f64 {
        let (mut held, identity) = (HashSet::new(), Identity::default());
        let (mut cached, mut prompt_tokens) = (0, 0);
        for asked in &plan.requests {
            let mut tokens = asked.spell_prompt();
            let chain = Chain::of_prompt(&tokens, block_size, &identity);
            let hits = chain.keys.iter().take_while(|key| held.contains(*key));
            cached += hits.count() * block_size as usize;
            prompt_tokens += tokens.len();
            tokens.extend(asked.spell_answer());
            tokens.pop();
            held.extend(Chain::of_full_blocks(&tokens, block_size, &identity).keys);
        }
        cached as f64 / prompt_tokens.max(1) as f64
    }

    #[test]
    fn pieces_share_what_their_blocks_share() {
        let mut dice = Dice::new(7);
        let mut piece = || Piece {
            text: dice.roll() % 3,
            tokens: (dice.roll() % 40) as u32,
        };
        for pieces in [1, 2, 5] {
            let mut asked = || Asked {
                prompt: (0..pieces).map(|_| piece()).collect(),
                answer: piece(),
                ..Asked::default()
            };
            let requests = (0..300).map(|_| asked()).collect();
            let plan = Plan {
                requests,
                ..Plan::default()
            };
            let rate = ideal_hit_rate(&plan, 4);
            assert!(rate > 0.2, "{rate}: nothing is shared");
            assert_eq!(rate, by_blocks(&plan, 4), "{pieces} pieces");
        }
    }
}
