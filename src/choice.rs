//! Overlap and load → [`Choice`]. Pure: the same problem always has the same solution, on
//! every replica.
