//! Generated words.
