//! Wherever a response is cut, the usage found in it is the same, and so is what the client reads where
//! the model's name is put back. The first byte says how long the pieces are, and whether it is an
//! event stream.

#![no_main]

use bytes::Bytes;
use kvscout::ext_proc::restore::Restorer;
use kvscout::ext_proc::usage::UsageScanner;
use libfuzzer_sys::fuzz_target;

fn usage<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> String {
    let mut scanner = UsageScanner::new(Some("application/json"), None);
    pieces.for_each(|piece| scanner.feed(piece));
    format!("{:?}", scanner.usage())
}

fn restored(pieces: impl Iterator<Item = Bytes>, events: bool) -> Vec<u8> {
    let mut restorer = Restorer::new("a \"client's\" name", events);
    let piece = |piece: Bytes| restorer.feed(&piece).unwrap_or(piece);
    pieces.map(piece).collect::<Vec<Bytes>>().concat()
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, body)) = bytes.split_first() else { return };
    let (length, events) = (usize::from(choice >> 1).max(1), choice & 1 == 1);
    assert_eq!(usage(body.chunks(length)), usage(std::iter::once(body)));
    let body = Bytes::copy_from_slice(body);
    let pieces = (0..body.len()).step_by(length).map(|at| body.slice(at..body.len().min(at + length)));
    let whole = restored(std::iter::once(body.clone()), events);
    assert_eq!(restored(pieces, events), whole);
    if serde_json::from_slice::<serde_json::Value>(&body).is_ok() && !events {
        let after: serde_json::Value = serde_json::from_slice(&whole).expect("it stays JSON");
        if let Some(model) = after.get("model").filter(|model| model.is_string()) {
            // Of a body that says it twice the first is put right; no server does so.
            let says = |text: &[u8]| whole.windows(text.len()).filter(|part| *part == text).count();
            let is_first = says(br#""model""#) > 1 && says(br#""a \"client's\" name""#) > 0;
            assert!(model == "a \"client's\" name" || is_first, "{model}");
        }
    }
});
