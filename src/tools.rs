//! What each command does.

pub mod tokenize;
