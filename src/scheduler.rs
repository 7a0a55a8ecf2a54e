//! The request sentence.
