//! The `kvscout-sim` command.
fn main() {}
