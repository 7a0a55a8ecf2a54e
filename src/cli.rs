//! The words an operator types.
