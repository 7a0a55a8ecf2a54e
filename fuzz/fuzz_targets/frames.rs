//! Whatever bytes a ZMTP peer sends, and wherever they are cut, the same messages come out of them; and
//! whatever frames a replay has, they are a batch or a named error. The first byte says how long
//! the pieces are.

#![no_main]

use bytes::BytesMut;
use kvscout::events::replay::read_reply;
use kvscout::events::zmtp::frame::{Decoder, Incoming};
use libfuzzer_sys::fuzz_target;

/// Above what `-max_len` lets one message have, and small enough to be passed by a lie.
const MESSAGE_BYTES_MAX: usize = 32 * 1024;

fn heard<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Incoming>, Option<String>) {
    let (mut decoder, mut buffer) = (Decoder::new(MESSAGE_BYTES_MAX), BytesMut::new());
    let mut heard = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(incoming)) => heard.push(incoming),
                Ok(None) => break,
                Err(error) => return (heard, Some(error.to_string())),
            }
        }
    }
    (heard, None)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((length, bytes)) = bytes.split_first() else { return };
    let whole = heard(std::iter::once(bytes));
    assert_eq!(heard(bytes.chunks(usize::from(*length).max(1))), whole);
    for incoming in whole.0 {
        if let Incoming::Message(frames) = incoming {
            let _batch_or_error = read_reply(&frames);
        }
    }
});
