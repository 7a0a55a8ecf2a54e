//! Workloads: plans from a few numbers.

mod agents;
mod groups;
mod mooncake;
mod rounds;

use std::collections::HashSet;

use kvscout::blocks::{Chain, Identity};

use super::clock::{Time, seconds};
use super::plan::Plan;
use crate::dice::Dice;

pub use agents::Agents;
pub use groups::Groups;
pub use mooncake::Mooncake;
pub use rounds::Rounds;

/// Arrivals that know nothing of each other, so many per second, until a time.
fn poisson(dice: &mut Dice, rate: f64, until: f64) -> Vec<Time> {
    let (mut at, mut arrivals) = (0.0, Vec::new());
    loop {
        at += -(1.0 - dice.share()).ln() / rate;
        if at >= until {
            return arrivals;
        }
        arrivals.push(seconds(at));
    }
}

/// The hit rate of one cache without limits that everyone shares, in the plan's order: what no
/// policy can pass by more than luck with the order of answers.
#[must_use]
pub fn ideal_hit_rate(plan: &Plan, block_size: u32) -> f64 {
    let (mut held, identity) = (HashSet::new(), Identity::default());
    let (mut cached, mut prompt_tokens) = (0u64, 0u64);
    for asked in &plan.requests {
        let mut tokens = asked.spell_prompt();
        let chain = Chain::of_prompt(&tokens, block_size, &identity);
        let hits = chain.keys.iter().take_while(|key| held.contains(*key));
        cached += hits.count() as u64 * u64::from(block_size);
        prompt_tokens += tokens.len() as u64;
        tokens.extend(asked.spell_answer());
        // The last token of an answer is said and never computed.
        tokens.pop();
        held.extend(Chain::of_full_blocks(&tokens, block_size, &identity).keys);
    }
    cached as f64 / prompt_tokens.max(1) as f64
}

#[cfg(test)]
mod tests;
