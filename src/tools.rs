//! What each command does.
pub mod replay;
