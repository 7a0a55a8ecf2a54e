//! Names for hashes that nobody can choose.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// A one-to-one mixing of hashes by numbers that nobody knows, so that names chosen to collide do not.
#[derive(Debug, Clone, Copy)]
pub struct Mixing {
    added: u64,
    odd: [u64; 2],
    inverse: [u64; 2],
}

impl Default for Mixing {
    fn default() -> Self {
        let random = RandomState::new();
        let odd = [random.hash_one(1) | 1, random.hash_one(2) | 1];
        Self {
            added: random.hash_one(0),
            odd,
            inverse: odd.map(inverse),
        }
    }
}

impl Mixing {
    #[inline]
    pub fn mixed(&self, hash: u64) -> u64 {
        let first = (hash ^ self.added).wrapping_mul(self.odd[0]);
        let second = (first ^ (first >> 32)).wrapping_mul(self.odd[1]);
        second ^ (second >> 32)
    }

    pub fn unmixed(&self, name: u64) -> u64 {
        let second = (name ^ (name >> 32)).wrapping_mul(self.inverse[1]);
        (second ^ (second >> 32)).wrapping_mul(self.inverse[0]) ^ self.added
    }
}

/// The number whose product with an odd one is 1 (modulo 2^64), by Newton's steps: each doubles the
/// bits that are right.
fn inverse(odd: u64) -> u64 {
    let step = |x: u64, _| x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
    (0..5).fold(odd.wrapping_mul(3) ^ 2, step)
}
