//! Whatever a publisher sends, decoding it ends, the index takes it, and what it then holds can be
//! kept and taken up again. The input is batches, each behind its length in two bytes.

#![no_main]

use kvscout::events::wire;
use kvscout::fleet::EndpointId;
use kvscout::index::Index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (index, endpoint) = (Index::default(), EndpointId(0));
    let mut rest = bytes;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let (payload, tail) = tail.split_at(tail.len().min(u16::from_le_bytes(*length).into()));
        rest = tail;
        if let Ok(batch) = wire::decode(payload) {
            index.apply(endpoint, &batch.events);
        }
    }
    let digest = index.digest(endpoint);
    if let Some(picture) = index.picture(endpoint) {
        let other = Index::default();
        other.restore(endpoint, &picture);
        assert_eq!(other.digest(endpoint), digest, "a kept picture is another one");
    }
    index.forget(endpoint);
    assert_eq!(index.size().pairs, 0, "something of a forgotten endpoint is left");
});
