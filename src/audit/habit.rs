//! Whether an endpoint computes the last block of each hit again, as its reports tell. Pure.
//!
//! Before 0.33 vLLM does so with speculative decoding (EAGLE, MTP), whose drafter needs what the model makes of the
//! tokens before (`use_eagle` in `find_longest_cache_hit` of `single_type_kv_cache_manager.py`). No event tells of it.

use parking_lot::Mutex;

use super::Evidence;

/// Reports in a row that all say the same are enough: races between choice and schedule hit few, and seldom by
/// just one block.
const TELLING: u32 = 8;

/// One endpoint's.
#[derive(Debug, Default)]
pub struct Habit {
    /// Reports in a row that it is otherwise than was assumed.
    otherwise: Mutex<u32>,
}

impl Habit {
    /// Notes one more report of an endpoint of which that is assumed or not; how it is from now on, where that is news.
    pub fn note(&self, evidence: &Evidence, assumed: bool) -> Option<bool> {
        let block = u64::from(evidence.block_size?);
        let (predicted, reported) = (evidence.predicted.tokens(), evidence.reported);
        let tells = evidence.is_of_one_prompt() && evidence.has_whole_picture();
        // That a new prompt is nowhere, either would say; and of a hit of one block nothing is left.
        if !tells || predicted + reported == 0 {
            return None;
        }
        let is_otherwise = match assumed {
            true => predicted + block == reported,
            false => reported + block == predicted,
        };
        let mut otherwise = self.otherwise.lock();
        *otherwise = if is_otherwise { *otherwise + 1 } else { 0 };
        if *otherwise < TELLING {
            return None;
        }
        *otherwise = 0;
        Some(!assumed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Trust;
    use crate::fleet::heard::SoFar;

    fn note(habit: &Habit, count: u32, of: &Evidence, assumed: bool) -> Option<bool> {
        let times = 0..count;
        times.filter_map(|_| habit.note(of, assumed)).last()
    }

    #[test]
    fn eight_reports_in_a_row_tell_of_it_and_eight_that_it_is_over() {
        let habit = Habit::default();
        assert_eq!(note(&habit, 7, &Evidence::of(64, 48), false), None);
        assert_eq!(note(&habit, 1, &Evidence::of(96, 80), false), Some(true));
        assert_eq!(note(&habit, 100, &Evidence::of(48, 48), true), None);
        assert_eq!(note(&habit, 8, &Evidence::of(48, 64), true), Some(false));
    }

    #[test]
    fn one_that_says_otherwise_begins_it_anew() {
        let habit = Habit::default();
        for exact in [
            Evidence::of(64, 64),
            Evidence::of(64, 32),
            Evidence::of(48, 64),
        ] {
            assert_eq!(note(&habit, 7, &Evidence::of(64, 48), false), None);
            assert_eq!(habit.note(&exact, false), None);
        }
        assert_eq!(note(&habit, 7, &Evidence::of(64, 48), false), None);
    }

    #[test]
    fn what_tells_nothing_is_passed_over() {
        let habit = Habit::default();
        assert_eq!(note(&habit, 7, &Evidence::of(64, 48), false), None);
        let short = Evidence::of(64, 48);
        let broken = SoFar {
            broken: 1,
            ..SoFar::default()
        };
        for nothing in [
            Evidence::of(0, 0),
            Evidence {
                trust: Trust::Doubtful,
                ..short
            },
            Evidence {
                since: broken,
                ..short
            },
            Evidence {
                reported_prompt_tokens: 190,
                ..short
            },
            Evidence {
                block_size: None,
                ..short
            },
        ] {
            assert_eq!(note(&habit, 10, &nothing, false), None);
        }
        assert_eq!(note(&habit, 1, &short, false), Some(true));
    }
}
