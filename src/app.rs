//! build(Config) → Bound.
