//! A fleet from a file.
