//! What each command does.

pub mod bridge;
pub mod check;
pub mod record;
pub mod replay;
pub mod serve;
pub mod tokenize;
