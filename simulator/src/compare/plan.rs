//! What is asked, when, and after what: the same for every policy.

use kvscout::blocks::TokenId;

use super::clock::Time;
use crate::dice::Dice;

/// Everything that will be asked. A request may wait for others, so arrivals are the policy's
/// doing too: who answers late is asked later.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// What it is, for people.
    pub name: String,
    /// Each stands behind those it waits for.
    pub requests: Vec<Asked>,
}

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Not before.
    pub at: Time,
    /// And not before these.
    pub after: Vec<After>,
    /// The prompt.
    pub prompt: Vec<Piece>,
    /// The answer.
    pub answer: Piece,
    /// What a client would send as its session: equal ones belong together.
    pub session: u64,
}

/// A wait for another request.
#[derive(Debug, Clone, Copy)]
pub struct After {
    /// Which.
    pub request: usize,
    /// From when it was asked.
    pub gap: Time,
    /// From when its answer ended.
    pub think: Time,
}

/// The first so many tokens of an endless text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Piece {
    /// Which text.
    pub text: u64,
    /// How many.
    pub tokens: u32,
}

/// Real vocabularies have 128,000 and more; a power of two makes a token a mask.
const VOCABULARY: u64 = 1 << 17;

impl Piece {
    /// Of a text that its coordinates name: equal ones, equal text.
    #[must_use]
    pub fn of(coordinates: [u64; 3], tokens: usize) -> Self {
        let mix = |text: u64, coordinate: &u64| Dice::new(text ^ coordinate).roll();
        let text = coordinates.iter().fold(0x6b76, mix);
        let tokens = tokens as u32;
        Self { text, tokens }
    }

    fn spell(self, tokens: &mut Vec<TokenId>) {
        let mut dice = Dice::new(self.text);
        tokens.extend((0..self.tokens).map(|_| (dice.roll() % VOCABULARY) as TokenId));
    }
}

impl Asked {
    /// Tokens of the prompt.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        self.prompt.iter().map(|piece| piece.tokens as usize).sum()
    }

    /// The prompt's tokens.
    #[must_use]
    pub fn spell_prompt(&self) -> Vec<TokenId> {
        let mut tokens = Vec::with_capacity(self.prompt_tokens());
        self.prompt
            .iter()
            .for_each(|piece| piece.spell(&mut tokens));
        tokens
    }

    /// The answer's tokens; at least one, as engines give.
    #[must_use]
    pub fn spell_answer(&self) -> Vec<TokenId> {
        let mut tokens = Vec::new();
        let piece = self.answer;
        let tokens_wanted = piece.tokens.max(1);
        Piece {
            tokens: tokens_wanted,
            ..piece
        }
        .spell(&mut tokens);
        tokens
    }
}

impl Plan {
    /// Leaves out what no pod could ever hold, and says how many that were. What waited for them
    /// goes too: a conversation does not go on after a request that failed.
    pub fn fit(&mut self, capacity_tokens: usize) -> usize {
        let mut kept = Vec::with_capacity(self.requests.len());
        let mut places: Vec<Option<usize>> = Vec::with_capacity(self.requests.len());
        for mut asked in std::mem::take(&mut self.requests) {
            let tokens = asked.prompt_tokens() + asked.answer.tokens.max(1) as usize;
            let waits = asked
                .after
                .iter()
                .map(|after| places.get(after.request).copied().flatten());
            let waits: Option<Vec<usize>> = waits.collect();
            let (Some(waits), true) = (waits, tokens <= capacity_tokens && tokens > 1) else {
                places.push(None);
                continue;
            };
            for (after, request) in asked.after.iter_mut().zip(waits) {
                after.request = request;
            }
            places.push(Some(kept.len()));
            kept.push(asked);
        }
        self.requests = kept;
        places.iter().filter(|place| place.is_none()).count()
    }

    /// Requests that wait for each one.
    #[must_use]
    pub fn followers(&self) -> Vec<Vec<usize>> {
        let mut followers = vec![Vec::new(); self.requests.len()];
        for (number, asked) in self.requests.iter().enumerate() {
            for after in &asked.after {
                followers[after.request].push(number);
            }
        }
        followers
    }

    /// The arrival of those that wait for nobody, the last of them.
    #[must_use]
    pub fn last_arrival(&self) -> Time {
        let arrivals = self.requests.iter().map(|asked| asked.at);
        arrivals.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_coordinates_are_equal_text_and_a_longer_piece_begins_with_a_shorter_one() {
        let spell = |piece: Piece| {
            let prompt = vec![piece];
            Asked {
                prompt,
                ..Asked::default()
            }
            .spell_prompt()
        };
        let (short, long) = (
            spell(Piece::of([1, 2, 3], 40)),
            spell(Piece::of([1, 2, 3], 99)),
        );
        assert_eq!(short, long[..40]);
        assert_ne!(short, spell(Piece::of([1, 3, 2], 40)));
    }

    #[test]
    fn a_conversation_ends_with_the_request_that_fits_nowhere() {
        let asked = |tokens, after: &[usize]| {
            let wait = |request: &usize| After {
                request: *request,
                gap: 0,
                think: 0,
            };
            Asked {
                prompt: vec![Piece { text: 0, tokens }],
                after: after.iter().map(wait).collect(),
                ..Asked::default()
            }
        };
        let requests = vec![
            asked(10, &[]),
            asked(99, &[]),
            asked(5, &[1]),
            asked(20, &[0]),
        ];
        let mut plan = Plan {
            requests,
            ..Plan::default()
        };
        assert_eq!(plan.fit(50), 2);
        assert_eq!(plan.requests[1].after[0].request, 0);
        assert_eq!(plan.followers(), [vec![1], vec![]]);
    }
}
