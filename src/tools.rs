//! What each command does.

pub mod check;

pub mod replay;
pub mod serve;

