//! Whatever stands in a snapshot or comes from another replica, it is taken up or refused, and what is
//! taken up can be written again. The first byte says which it is.

#![no_main]

use kvscout::events::snapshot::Snapshot;
use kvscout::fleet::EndpointId;
use kvscout::index::Index;
use kvscout::replicas::wire::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    if choice & 1 == 1 {
        let Ok(message) = Message::from_bytes(bytes) else { return };
        let again = Message::from_bytes(&message.to_bytes()).expect("what is written can be read");
        assert_eq!(format!("{again:?}"), format!("{message:?}"));
        return;
    }
    // Packed here: no fuzzer finds what zstd makes of it.
    let packed = zstd::bulk::compress(bytes, 1).expect("memory is written");
    let Ok(snapshot) = Snapshot::from_bytes(&packed) else { return };
    assert_eq!(Snapshot::from_bytes(&snapshot.to_bytes()).expect("what is written can be read"), snapshot);
    let (index, endpoint) = (Index::default(), EndpointId(0));
    index.restore(endpoint, &snapshot.picture);
    let digest = index.digest(endpoint);
    if let Some(picture) = index.picture(endpoint) {
        index.restore(endpoint, &picture);
        assert_eq!(index.digest(endpoint), digest, "a kept picture is another one");
    }
    index.forget(endpoint);
    assert_eq!(index.size().pairs, 0, "something of a forgotten endpoint is left");
});
