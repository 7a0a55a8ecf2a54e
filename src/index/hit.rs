//! How much of a prompt an engine finds in its own cache, by the rules of its groups.
//!
//! vLLM 0.33: `find_longest_cache_hit` of `kv_cache_coordinator.py` (the least that all groups
//! agree on, at a multiple of all their block sizes) and of each manager in
//! `single_type_kv_cache_manager.py`. Not told in events, so not modelled: that speculative
//! decoding drops a block where hashes have no lookahead (`audit/habit.rs` learns it from reports), and hits at finer
//! steps than a block.

use crate::blocks::Rule;

/// One group: its rule, its block size, how many leading blocks of the prompt it holds, and whether it
/// holds any one of them.
pub(super) struct Held<F> {
    pub rule: Rule,
    pub block_size: u64,
    pub depth: u64,
    pub has: F,
}

/// Tokens that every group agrees on, of at most `tokens_max`.
pub(super) fn agreed<F: FnMut(u64) -> bool>(groups: &mut [Held<F>], tokens_max: u64) -> u64 {
    if groups.is_empty() {
        return 0;
    }
    let alignment = alignment_of(groups.iter().map(|group| group.block_size));
    // All of a shorter prefix is held where all of a longer one is, so these are asked once.
    let (full, others): (Vec<_>, Vec<_>) =
        groups.iter_mut().partition(|group| group.rule == Rule::All);
    let mut tokens = tokens_max;
    for group in full {
        tokens = group.hit(tokens, alignment);
    }
    let mut others = others;
    for _ in 0..ROUNDS_MAX {
        let before = tokens;
        for group in &mut others {
            tokens = group.hit(tokens, alignment);
        }
        if tokens == before || tokens == 0 {
            return tokens;
        }
    }
    0
}

/// A round makes the prefix shorter, or is the last. vLLM evicts from the end, so one or two are
/// enough; somebody who means harm can make each of them long.
const ROUNDS_MAX: usize = 100;

/// Where blocks of all these sizes end at once.
pub(super) fn alignment_of(block_sizes: impl Iterator<Item = u64>) -> u64 {
    block_sizes.fold(1, |all, size| lcm(all, size.max(1)))
}

impl<F: FnMut(u64) -> bool> Held<F> {
    fn hit(&mut self, tokens_max: u64, alignment: u64) -> u64 {
        let size = self.block_size.max(1);
        let blocks = tokens_max / size;
        let aligned = |blocks: u64| (blocks * size).is_multiple_of(alignment);
        let held = match self.rule {
            Rule::All => self.depth.min(blocks),
            Rule::Window(window) => {
                let needed = u64::from(window).saturating_sub(1).div_ceil(size).max(1);
                self.window(blocks, needed, aligned)
            }
            Rule::Last => {
                let last = (0..blocks).rev();
                let mut last = last.filter(|at| aligned(at + 1));
                last.find(|at| (self.has)(*at)).map_or(0, |at| at + 1)
            }
            Rule::Unknown => 0,
        };
        let held = (0..=held).rev().find(|blocks| aligned(*blocks));
        held.unwrap_or(0) * size
    }

    /// The last run of so many blocks, or what there is of one at the start.
    fn window(&mut self, blocks: u64, needed: u64, aligned: impl Fn(u64) -> bool) -> u64 {
        let mut run = 0;
        for at in (0..blocks).rev() {
            if !(self.has)(at) {
                run = 0;
            } else if run > 0 || aligned(at + 1) {
                run += 1;
                if run >= needed {
                    return at + run;
                }
            }
        }
        run
    }
}

fn lcm(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    (a / x).saturating_mul(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group of one-token blocks, given which it holds: `#` is held.
    fn group(rule: Rule, block_size: u64, held: &str) -> Held<impl FnMut(u64) -> bool + use<>> {
        let held: Vec<bool> = held.bytes().map(|byte| byte == b'#').collect();
        let has = move |at: u64| held.get(at as usize).copied().unwrap_or(false);
        let depth = (0..).take_while(|at| has(*at)).count() as u64;
        Held {
            rule,
            block_size,
            depth,
            has,
        }
    }

    #[test]
    fn full_attention_needs_every_block() {
        assert_eq!(agreed(&mut [group(Rule::All, 4, "##.#")], 16), 8);
        assert_eq!(agreed(&mut [group(Rule::All, 4, "####")], 15), 12);
    }

    #[test]
    fn a_window_needs_what_it_reaches_and_a_short_prefix_all_of_it() {
        let window = |held, tokens| agreed(&mut [group(Rule::Window(8), 4, held)], tokens);
        assert_eq!(
            window(".####.", 24),
            20,
            "ceil(7 / 4) = 2 blocks are enough"
        );
        assert_eq!(window("..#.#.", 24), 0);
        assert_eq!(window("#.#.#.", 24), 4, "the first block needs no other");
    }

    #[test]
    fn a_state_needs_the_block_that_it_stands_at() {
        assert_eq!(agreed(&mut [group(Rule::Last, 4, ".#..#.")], 24), 20);
        assert_eq!(agreed(&mut [group(Rule::Last, 4, ".#..#.")], 19), 8);
    }

    #[test]
    fn groups_go_on_until_they_agree() {
        let full = || group(Rule::All, 4, "#####.");
        assert_eq!(agreed(&mut [group(Rule::Last, 4, ".#...#"), full()], 24), 8);
        // The window agrees with five blocks and the state with two, where the window lacks one.
        let window = group(Rule::Window(5), 4, "#..##.");
        let state = group(Rule::Last, 4, "##....");
        assert_eq!(agreed(&mut [window, state, full()], 24), 4);
    }

    #[test]
    fn groups_of_other_block_sizes_meet_at_a_multiple_of_both() {
        let full = group(Rule::All, 2, "#######");
        let state = group(Rule::Last, 6, "##");
        assert_eq!(agreed(&mut [full, state], 14), 12);
        let (four, six) = (group(Rule::All, 4, "####"), group(Rule::All, 6, "##"));
        assert_eq!(agreed(&mut [four, six], 16), 12);
    }

    #[test]
    fn what_is_not_modelled_hits_nothing() {
        assert_eq!(agreed(&mut [group(Rule::Unknown, 4, "####")], 16), 0);
    }
}
