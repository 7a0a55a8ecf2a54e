//! What each command does.

pub mod record;
