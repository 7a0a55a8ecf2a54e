//! The indexes of others.

mod chain;
mod flat;
mod tree;

pub use chain::Chain;
pub use flat::Flat;
pub use tree::Tree;
