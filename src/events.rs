//! next → decode → order → apply.
pub mod wire;
pub mod order;
pub mod follow;
