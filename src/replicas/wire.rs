//! What replicas say to each other: one byte of version, then MessagePack.
//!
//! Names of endpoints, counts and block keys; never tokens or text. What cannot be true is not read:
//! behind [`Message::from_bytes`] every number is within its limit.

use serde::{Deserialize, Serialize};

use crate::blocks::Chain;
use crate::fleet::load::ENGINE_REQUESTS_MAX;

/// Others are not read: replicas of different versions know nothing of each other.
const VERSION: u8 = 1;

/// NATS's own default for a payload.
const BYTES_MAX: usize = 1 << 20;

/// What a message is filled with, so that it is well below [`BYTES_MAX`].
pub const FILLED_BYTES: usize = 256 << 10;

/// Requests that one replica tells of at once: 128 servers with 256 each. Of 100 bytes where they are
/// heard, so 200 MB for all of [`super::peers::PEERS_MAX`], and two or three messages for a full state.
pub const ENTRIES_MAX: usize = 32_768;

/// Blocks of one prompt that are told: 65,000 tokens in blocks of 16, 37 KB. Of a longer one its beginning.
pub const KEYS_MAX: usize = 4_096;

/// A token is a byte at least, and no body is longer (`limits.body_bytes_max`). So the sum over all
/// entries of all peers is below 2^51.
const PREFILL_TOKENS_MAX: u64 = 1 << 30;

/// One replica's word to the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// What has happened since the one before; nothing: it is still there.
    Deltas {
        /// Counts these from 1, so that a lost one is missed.
        seq: u64,
        /// What.
        work: Work,
    },
    /// All that is in flight, without keys, in place of what was told before.
    Full {
        /// Of the last deltas that are in it.
        seq: u64,
        /// Which part, from 0.
        part: u32,
        /// Of so many, each right after the one before.
        parts: u32,
        /// What.
        work: Work,
    },
    /// Asks for a full state.
    Ask {
        /// Of one replica, or of all.
        whom: Option<u64>,
    },
    /// It ends.
    Bye,
}

/// What happened to requests, which have numbers that their replica never gives again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// [`crate::blocks::keys_version`] of the keys in it.
    pub keys: u32,
    /// Names, which `placed` counts from 0.
    pub endpoints: Vec<String>,
    /// They begin.
    pub placed: Vec<Placed>,
    /// Their first output came.
    pub prefilled: Vec<u64>,
    /// They ended, and whether answered: then events tell of their prompts.
    pub ended: Vec<(u64, bool)>,
}

/// A request in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// Its number.
    pub number: u64,
    /// Where, by its place in [`Work::endpoints`].
    pub endpoint: u32,
    /// None once they are done.
    pub prefill_tokens: Option<u64>,
    /// What the engine makes of it.
    pub requests: u32,
    /// The beginning of its prompt, where that counts as held there.
    pub chain: Option<Chain>,
}

/// Why something that was heard does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Skipped {
    /// Longer than any that we send.
    TooLong,
    /// Of another version of these messages.
    OtherVersion,
    /// Not a message, or one that cannot be true.
    Malformed,
    /// More replicas than are listened to.
    PeersMax,
    /// More requests than one replica may tell of.
    EntriesMax,
    /// A request at an endpoint that our fleet does not have.
    UnknownEndpoint,
    /// A prompt whose blocks another version named.
    OtherKeys,
}

impl Skipped {
    /// The word for labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::OtherVersion => "other_version",
            Self::Malformed => "malformed",
            Self::PeersMax => "peers_max",
            Self::EntriesMax => "entries_max",
            Self::UnknownEndpoint => "unknown_endpoint",
            Self::OtherKeys => "other_keys",
        }
    }
}

impl Message {
    /// The word for labels.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Deltas { .. } => "deltas",
            Self::Full { .. } => "full",
            Self::Ask { .. } => "ask",
            Self::Bye => "bye",
        }
    }

    /// As bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        rmp_serde::encode::write(&mut bytes, self).expect("plain data is written to memory");
        bytes
    }

    /// Reads bytes of anybody.
    ///
    /// # Errors
    /// [`Skipped::TooLong`], [`Skipped::OtherVersion`] or [`Skipped::Malformed`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Skipped> {
        if bytes.len() > BYTES_MAX {
            return Err(Skipped::TooLong);
        }
        let (version, rest) = bytes.split_first().ok_or(Skipped::Malformed)?;
        if *version != VERSION {
            return Err(Skipped::OtherVersion);
        }
        let message: Self = rmp_serde::from_slice(rest).map_err(|_| Skipped::Malformed)?;
        let can_be_true = match &message {
            Self::Deltas { work, .. } => work.can_be_true(),
            Self::Full {
                part, parts, work, ..
            } => part < parts && work.can_be_true(),
            Self::Ask { .. } | Self::Bye => true,
        };
        can_be_true.then_some(message).ok_or(Skipped::Malformed)
    }
}

impl Work {
    fn can_be_true(&self) -> bool {
        let is_short = |chain: &Chain| chain.keys.len() <= KEYS_MAX;
        self.placed.iter().all(|placed| {
            (placed.endpoint as usize) < self.endpoints.len()
                && placed.requests <= ENGINE_REQUESTS_MAX
                && placed.prefill_tokens.unwrap_or(0) <= PREFILL_TOKENS_MAX
                && placed.chain.as_ref().is_none_or(is_short)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{BlockKey, KEYS_VERSION};

    fn deltas(change: impl FnOnce(&mut Placed)) -> Message {
        let mut placed = Placed {
            number: u64::MAX,
            endpoint: 0,
            prefill_tokens: Some(PREFILL_TOKENS_MAX),
            requests: ENGINE_REQUESTS_MAX,
            chain: Some(Chain {
                shape: 16.into(),
                keys: vec![BlockKey::root(None); KEYS_MAX],
            }),
        };
        change(&mut placed);
        let work = Work {
            keys: KEYS_VERSION,
            endpoints: vec!["pod-1/3".into()],
            placed: vec![placed],
            prefilled: vec![7],
            ended: vec![(0, true), (1, false)],
        };
        Message::Deltas { seq: 9, work }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let full = Message::Full {
            seq: 0,
            part: 1,
            parts: 2,
            work: Work::default(),
        };
        let ask = |whom| Message::Ask { whom };
        for message in [deltas(|_| {}), full, ask(None), ask(Some(3)), Message::Bye] {
            assert_eq!(Message::from_bytes(&message.to_bytes()), Ok(message));
        }
    }

    #[test]
    fn the_previous_versions_words_are_read() {
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/previous/deltas.bin"
        );
        let short = |placed: &mut Placed| {
            placed.chain = Some(Chain {
                shape: 16.into(),
                keys: vec![BlockKey::root(None)],
            });
        };
        let kept = std::fs::read(file).expect("a fixture");
        assert_eq!(
            Message::from_bytes(&kept),
            Ok(deltas(short)),
            "raise VERSION"
        );
    }

    #[test]
    fn a_heartbeat_takes_few_bytes_and_a_block_nine() {
        let beat = Message::Deltas {
            seq: 1_000_000,
            work: Work::default(),
        };
        assert!(beat.to_bytes().len() < 24);
        let one = deltas(|placed| placed.chain = None).to_bytes().len();
        let all = deltas(|_| {}).to_bytes().len();
        assert!(all - one <= 9 * KEYS_MAX + 8, "{}", all - one);
    }

    #[test]
    fn what_cannot_be_true_is_not_read() {
        let wrong: [fn(&mut Placed); 4] = [
            |placed| placed.endpoint = 1,
            |placed| placed.requests += 1,
            |placed| placed.prefill_tokens = Some(u64::MAX),
            |placed| {
                let chain = placed.chain.as_mut().expect("has one");
                chain.keys.push(BlockKey::root(None));
            },
        ];
        let read = |message: Message| Message::from_bytes(&message.to_bytes());
        for wrong in wrong {
            assert_eq!(read(deltas(wrong)), Err(Skipped::Malformed));
        }
        let past_its_end = Message::Full {
            seq: 0,
            part: 2,
            parts: 2,
            work: Work::default(),
        };
        assert_eq!(read(past_its_end), Err(Skipped::Malformed));
    }

    #[test]
    fn other_versions_and_garbage_are_told_apart() {
        let bytes = deltas(|_| {}).to_bytes();
        let of_tomorrow = [&[VERSION + 1], &bytes[1..]].concat();
        assert_eq!(
            Message::from_bytes(&of_tomorrow),
            Err(Skipped::OtherVersion)
        );
        for garbage in [
            &b""[..],
            &[VERSION],
            &bytes[..bytes.len() / 2],
            b"\x01hello",
        ] {
            assert_eq!(Message::from_bytes(garbage), Err(Skipped::Malformed));
        }
        let long = vec![VERSION; BYTES_MAX + 1];
        assert_eq!(Message::from_bytes(&long), Err(Skipped::TooLong));
        // A list that claims to have four billion entries.
        let claims = b"\x01\x81\xa6Deltas\x92\x01\x95\x03\x90\x90\xdd\xff\xff\xff\xff";
        assert_eq!(Message::from_bytes(claims), Err(Skipped::Malformed));
    }
}
