//! Whatever JSON says, reading it ends without a panic, agrees with serde_json where that reads
//! it too, and what is written reads back as it was.

#![no_main]

use kvscout::prompt::json::{Fault, Json, JsonError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let ours = Json::loads_bytes(bytes);
    if serde_json::from_slice::<serde_json::Value>(bytes).is_ok() {
        let too_long = |error: &JsonError| error.fault == Fault::HugeInteger;
        assert!(ours.as_ref().map_or_else(too_long, |_| true), "serde_json reads it");
    }
    let Ok(value) = ours else { return };
    let Some(text) = value.dumps() else { return };
    let again = Json::loads(&text).expect("what is written can be read");
    // Compared as text: NaN equals nothing.
    assert_eq!(again.dumps().as_deref(), Some(text.as_str()));
});
