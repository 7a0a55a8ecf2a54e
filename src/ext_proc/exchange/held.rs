//! A request's body while it is held: in the memory that it came in, or in one piece of its length.

use bytes::{Bytes, BytesMut};

/// What is taken at once on a client's word for a body's length; more comes with its bytes.
const ANNOUNCED_MAX: usize = 4 << 20;

/// Chunks so far, of a body that is said to have `announced` bytes.
#[derive(Debug)]
pub struct Held {
    chunks: Chunks,
    announced: usize,
}

#[derive(Debug)]
enum Chunks {
    /// As it came, with nothing after it: a short body has no other.
    One(Bytes),
    Many(BytesMut),
}

impl Held {
    /// Nothing yet of a body that is said to have so many bytes.
    pub fn announced(bytes: usize) -> Self {
        Self {
            chunks: Chunks::One(Bytes::new()),
            announced: bytes.min(ANNOUNCED_MAX),
        }
    }

    /// In bytes.
    pub fn len(&self) -> usize {
        match &self.chunks {
            Chunks::One(chunk) => chunk.len(),
            Chunks::Many(all) => all.len(),
        }
    }

    /// One more chunk.
    pub fn push(&mut self, chunk: Bytes) {
        match &mut self.chunks {
            _ if chunk.is_empty() => {}
            Chunks::One(first) if first.is_empty() => *first = chunk,
            Chunks::One(first) => {
                let bytes = self.announced.max(first.len() + chunk.len());
                let mut all = BytesMut::with_capacity(bytes);
                all.extend_from_slice(first);
                all.extend_from_slice(&chunk);
                self.chunks = Chunks::Many(all);
            }
            Chunks::Many(all) => all.extend_from_slice(&chunk),
        }
    }

    /// The body.
    pub fn whole(self) -> Bytes {
        match self.chunks {
            Chunks::One(chunk) => chunk,
            Chunks::Many(all) => all.freeze(),
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
        let Chunks::Many(all) = &held.chunks else {
            panic!("there are two");
        };
        let at = all.as_ptr();
        held.push(Bytes::from(vec![7; 1_000]));
        assert_eq!(held.whole().as_ptr(), at);
    }
}
