//! Prompt → token ids.
