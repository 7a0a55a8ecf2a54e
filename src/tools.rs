//! What each command does.

pub mod check;
pub mod record;
pub mod replay;
pub mod serve;
pub mod tokenize;
