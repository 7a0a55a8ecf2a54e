//! The indexes of others.

mod chain;
mod counted;
mod flat;
mod tree;

pub use chain::Chain;
pub use counted::Counted;
pub use flat::Flat;
pub use tree::Tree;
