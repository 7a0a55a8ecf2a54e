//! Whatever a configuration says, it is read or complained about, and what `kvscout check` prints of one
//! that is good says the same again.

#![no_main]

use std::path::Path;

use kvscout::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let file = Path::new("kvscout.yaml");
    match Config::parse(file, text) {
        Ok(config) => {
            let printed = config.to_yaml();
            let again = Config::parse(file, &printed).unwrap_or_else(|complaints| panic!("{complaints}\n{printed}"));
            assert_eq!(again.to_yaml(), printed);
        }
        Err(complaints) => assert!(!complaints.to_string().is_empty()),
    }
});
