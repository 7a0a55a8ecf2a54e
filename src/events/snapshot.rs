//! What one server held at a moment, as a bridge keeps it: MessagePack in zstd.

use serde::{Deserialize, Serialize};

use crate::blocks::keys_version;
use crate::index::Picture;

/// Four million copies, [`crate::index`]'s limit for one endpoint, of 21 bytes each.
pub const BYTES_MAX: usize = 128 << 20;
/// Hashes do not compress; what is around them does at the quickest level, too.
const LEVEL: i32 = 1;

/// A picture and where in its server's stream it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Which block names are in it: [`keys_version`].
    pub keys: u32,
    /// The engine's process, as its bridge tells it from others.
    pub epoch: u64,
    /// The last batch that is in it.
    pub seq: u64,
    /// XXH3 of that batch, by which its process is recognised.
    pub hash: u64,
    /// Where that batch stands in the stream; what follows is to be read from there.
    pub stream_seq: u64,
    /// When that stream was made (nanoseconds since 1970), since one made again counts from 1.
    pub stream_created: i64,
    /// Whether it is all that the server held.
    pub whole: bool,
    /// Why, for an operator.
    pub reason: String,
    /// What the server held.
    pub picture: Picture,
}

/// Why bytes are not a snapshot to use.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not zstd, or larger than any picture.
    #[error("a snapshot cannot be unpacked: {0}")]
    Packed(std::io::Error),
    /// Not ours.
    #[error("not a snapshot: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// Another version of kvscout wrote it.
    #[error(
        "a snapshot names blocks by scheme {0:x}, and this kvscout by {1:x}: upgrade bridges and pickers together, and give them the same events.keys_secret"
    )]
    OtherKeys(u32, u32),
}

impl Snapshot {
    /// As bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let plain = rmp_serde::to_vec(self).expect("plain data is written");
        zstd::bulk::compress(&plain, LEVEL).expect("memory is written")
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let plain = zstd::bulk::decompress(bytes, BYTES_MAX).map_err(SnapshotError::Packed)?;
        let snapshot: Self = rmp_serde::from_slice(&plain)?;
        match (snapshot.keys, keys_version()) {
            (theirs, ours) if theirs == ours => Ok(snapshot),
            (theirs, ours) => Err(SnapshotError::OtherKeys(theirs, ours)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::Rule;
    use crate::index::{CachePicture, Place};

    fn snapshot() -> Snapshot {
        Snapshot {
            keys: keys_version(),
            epoch: u64::MAX,
            seq: 7,
            hash: 1 << 63,
            stream_seq: 9,
            stream_created: -1,
            whole: true,
            reason: "complete from sequence 0".to_owned(),
            picture: Picture {
                shows_salt: Some(true),
                blocks: vec![(0, crate::blocks::BlockKey::root(None))],
                caches: vec![CachePicture {
                    place: Place::OWN,
                    rule: Rule::Window(4096),
                    shape: Some(16.into()),
                    copies: vec![(u64::MAX, None, 2), (1, Some(0), 1)],
                }],
            },
        }
    }

    #[test]
    fn the_previous_versions_snapshot_is_read() {
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/previous/snapshot.bin"
        );
        let kept = std::fs::read(file).expect("a fixture");
        let read = Snapshot::from_bytes(&kept);
        assert_eq!(
            read.expect("raise KEYS_VERSION, and say so in docs/upgrade.md"),
            snapshot()
        );
    }

    #[test]
    fn what_unpacks_without_end_is_not_unpacked() {
        let zeros = vec![0; BYTES_MAX + 1];
        let bomb = zstd::bulk::compress(&zeros, LEVEL).expect("memory is written");
        assert!(bomb.len() < BYTES_MAX / 1000);
        let error = Snapshot::from_bytes(&bomb).expect_err("too large");
        assert!(matches!(error, SnapshotError::Packed(_)), "{error}");
    }

    #[test]
    fn what_is_written_is_read_back_and_other_schemes_are_not() {
        let mut snapshot = snapshot();
        let bytes = snapshot.to_bytes();
        assert_eq!(Snapshot::from_bytes(&bytes).expect("ours"), snapshot);
        snapshot.keys += 1;
        let error = Snapshot::from_bytes(&snapshot.to_bytes()).expect_err("another scheme");
        assert!(error.to_string().contains("upgrade"), "{error}");
        assert!(Snapshot::from_bytes(&bytes[..bytes.len() / 2]).is_err());
        assert!(Snapshot::from_bytes(b"hello").is_err());
    }
}
