//! How much of a body was read before: a guess, on which nothing but time hangs.
//!
//! A turn of a conversation comes with all that was said before it, so its body begins as the last one's did; and what was read before
//! is read again in a tenth of the time. Asking the caches that make it so would take as long as reading.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A body is looked at once in so many bytes,
const STEP_BYTES: usize = 8 << 10;
/// and there at so many, the last of them: a 32nd of it, so that 100,000 tokens take some 10 us. And at its first, where the model is
/// named.
const LOOK_BYTES: usize = 256;
/// Marks that are kept, of 128 MB of bodies: the token cache has room for about as many (`limits.token_cache_bytes_max`, 256 MB of texts
/// and ids).
const MARKS: usize = 1 << 14;

/// Marks of bodies that were read, each in a place of its own until another takes that.
pub(super) struct Seen {
    marks: Box<[AtomicU64]>,
    /// Random, so that nobody can prepare bodies that look alike.
    seed: u64,
}

/// What a body looks like: a mark for each step, which stands for all before it too.
#[derive(Debug)]
pub(super) struct Marks(Vec<u64>);

impl Default for Seen {
    fn default() -> Self {
        Self {
            marks: (0..MARKS).map(|_| AtomicU64::new(0)).collect(),
            seed: RandomState::new().hash_one(0),
        }
    }
}

impl Seen {
    /// What this body looks like.
    pub fn marks(&self, body: &[u8]) -> Marks {
        let mut mark = xxh3_64_with_seed(&body[..LOOK_BYTES.min(body.len())], self.seed);
        let steps = body.chunks_exact(STEP_BYTES);
        let marks = steps.map(|step| {
            mark = xxh3_64_with_seed(&step[STEP_BYTES - LOOK_BYTES..], mark);
            mark
        });
        Marks(marks.collect())
    }

    /// How many leading bytes of what looks so were read before.
    pub fn known_bytes(&self, marks: &Marks) -> usize {
        let known = |mark: &u64| self.place(*mark).load(Ordering::Relaxed) == *mark;
        let steps = marks.0.iter().rposition(known);
        steps.map_or(0, |last| (last + 1) * STEP_BYTES)
    }

    /// What looks so was read.
    pub fn keep(&self, marks: &Marks) {
        for mark in &marks.0 {
            self.place(*mark).store(*mark, Ordering::Relaxed);
        }
    }

    fn place(&self, mark: u64) -> &AtomicU64 {
        &self.marks[mark as usize % MARKS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at * at / 7) as u8).collect()
    }

    #[test]
    fn a_turn_is_known_as_far_as_the_one_before_it_went() {
        let (seen, before) = (Seen::default(), body(100_000));
        let known = |body: &[u8]| seen.known_bytes(&seen.marks(body));
        assert_eq!(known(&before), 0);
        seen.keep(&seen.marks(&before));
        assert_eq!(known(&before), 12 * STEP_BYTES);
        let after = [&before[..99_000], &body(30_000)[..]].concat();
        assert_eq!(known(&after), 12 * STEP_BYTES);
        assert_eq!(known(&before[..50_000]), 6 * STEP_BYTES);
        let mut other = after.clone();
        other[3 * STEP_BYTES - 1] ^= 1;
        assert_eq!(known(&other), 2 * STEP_BYTES, "what follows is another's");
        let mut for_another_model = after;
        for_another_model[10] ^= 1;
        assert_eq!(known(&for_another_model), 0);
    }

    #[test]
    fn what_is_shorter_than_a_step_is_never_known() {
        let (seen, short) = (Seen::default(), body(STEP_BYTES - 1));
        seen.keep(&seen.marks(&short));
        assert_eq!(seen.known_bytes(&seen.marks(&short)), 0);
    }

    #[test]
    fn the_first_of_very_many_are_forgotten() {
        let (seen, first) = (Seen::default(), body(STEP_BYTES));
        seen.keep(&seen.marks(&first));
        for number in 0..20 * MARKS as u64 {
            seen.keep(&Marks(vec![xxh3_64_with_seed(&number.to_le_bytes(), 1)]));
        }
        assert_eq!(seen.known_bytes(&seen.marks(&first)), 0);
    }
}
