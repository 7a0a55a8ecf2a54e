//! Hashing of what is a hash already: two multiplications, by a number that nobody knows, so that
//! names chosen to collide do not.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// A map by engine hashes, block keys or endpoints.
pub(super) type KeyedMap<K, V> = HashMap<K, V, Keyed>;

/// Its numbers, drawn for each map.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keyed {
    added: u64,
    odd: u64,
}

impl Default for Keyed {
    fn default() -> Self {
        let random = RandomState::new();
        Self {
            added: random.hash_one(0),
            odd: random.hash_one(1) | 1,
        }
    }
}

impl BuildHasher for Keyed {
    type Hasher = Mixed;

    fn build_hasher(&self) -> Mixed {
        Mixed {
            keyed: *self,
            hash: 0,
        }
    }
}

pub(super) struct Mixed {
    keyed: Keyed,
    hash: u64,
}

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.hash
    }

    fn write(&mut self, bytes: &[u8]) {
        // Our keys are numbers alone.
        for byte in bytes {
            self.write_u64(self.hash ^ u64::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        let Keyed { added, odd } = self.keyed;
        // Twice: with one product, names in a row fall on few places for some of the numbers.
        self.hash = folded(folded(value ^ added, odd) ^ PRIMES.0, PRIMES.1);
    }
}

/// wyhash's secrets.
const PRIMES: (u64, u64) = (0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db);

/// Both halves of the whole product: tables take their places from one, their tags from the other.
fn folded(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_that_differ_in_few_bits_are_spread() {
        for shift in (0..50).flat_map(|_| [0, 16, 32, 48]) {
            let keyed = Keyed::default();
            let hashes = (0..1u64 << 12).map(|name| keyed.hash_one(name << shift));
            let places: HashSet<u64> = hashes.map(|hash| hash % (1 << 14)).collect();
            assert!(
                places.len() > 3_000,
                "{} places, shift {shift}",
                places.len()
            );
        }
    }
}
