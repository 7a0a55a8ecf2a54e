//! Workloads: plans from a few numbers.

mod agents;
mod groups;
mod ideal;
mod mooncake;
mod rounds;

use super::clock::{Time, seconds};
use crate::dice::Dice;

pub use agents::Agents;
pub use groups::Groups;
pub use ideal::ideal_hit_rate;
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

#[cfg(test)]
mod tests;
