//! A request's body while it is held: in the memory that it came in, or in one piece of its length.

use bytes::{Bytes, BytesMut};

/// What is taken at once on a client's word for a body's length; more comes with its bytes.
const ANNOUNCED_MAX: usize = 4 << 20;

/// Chunks so far.
#[derive(Debug, Default)]
pub struct Held {
    /// The first chunk as it came: a short body has no other.
    first: Bytes,
    /// All of it from the second chunk on.
    all: BytesMut,
    announced: usize,
}

impl Held {
    /// Nothing yet of a body that is said to have so many bytes.
    pub fn announced(bytes: usize) -> Self {
        let announced = bytes.min(ANNOUNCED_MAX);
        Self {
            announced,
            ..Self::default()
        }
    }

    /// In bytes.
    pub fn len(&self) -> usize {
        self.first.len() + self.all.len()
    }

    /// One more chunk.
    pub fn push(&mut self, chunk: Bytes) {
        if self.len() == 0 {
            self.first = chunk;
        } else if !chunk.is_empty() {
            let first = std::mem::take(&mut self.first);
            if self.all.is_empty() {
                self.all
                    .reserve(self.announced.max(first.len() + chunk.len()));
            }
            self.all.extend_from_slice(&first);
            self.all.extend_from_slice(&chunk);
        }
    }

    /// The body.
    pub fn whole(self) -> Bytes {
        match self.all.is_empty() {
            true => self.first,
            false => self.all.freeze(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_body_is_its_chunks_whatever_was_announced(
            chunks in proptest::collection::vec(proptest::collection::vec(0_u8.., 0..20), 0..8), announced in 0_usize..100,
        ) {
            let mut held = Held::announced(announced);
            for chunk in &chunks {
                held.push(Bytes::copy_from_slice(chunk));
            }
            let body = chunks.concat();
            proptest::prop_assert_eq!(held.len(), body.len());
            proptest::prop_assert_eq!(held.whole(), body);
        }
    }

    #[test]
    fn a_body_of_one_chunk_is_not_copied() {
        let (chunk, mut held) = (Bytes::from(vec![7; 100]), Held::announced(100));
        held.push(chunk.clone());
        held.push(Bytes::new());
        assert_eq!(held.whole().as_ptr(), chunk.as_ptr());
    }

    #[test]
    fn a_body_of_its_announced_length_is_moved_once() {
        let mut held = Held::announced(3_000);
        held.push(Bytes::from(vec![7; 1_000]));
        held.push(Bytes::from(vec![7; 1_000]));
        let at = held.all.as_ptr();
        held.push(Bytes::from(vec![7; 1_000]));
        assert_eq!(held.whole().as_ptr(), at);
    }
}
