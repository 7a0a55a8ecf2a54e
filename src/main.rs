//! The `kvscout` command: parse, build, wait.
fn main() {}
