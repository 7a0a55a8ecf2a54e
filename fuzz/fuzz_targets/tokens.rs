//! Through the segment cache every text has the ids that the engine gives it whole, and what is
//! settled stays. Wants the Qwen3 tokenizer of `make setup`.

#![no_main]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use kvscout::tokens::{self, CacheBudget, Engine, Tokenizer};
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64;

fn load(cache: &CacheBudget) -> Arc<dyn Tokenizer> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/tokenizer-qwen3");
    tokens::load(&folder, Engine::Fast, cache).expect("`make setup` fetched it")
}

static WHOLE: LazyLock<Arc<dyn Tokenizer>> = LazyLock::new(|| load(&CacheBudget::none()));
static CACHED: LazyLock<Arc<dyn Tokenizer>> = LazyLock::new(|| load(&CacheBudget::of_bytes(16 << 20)));

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    // A text repeated reaches the cuts inside a segment, and pages where it has lines. It takes a hundred times as
    // long, so it is for one in 256; by a hash, since the fuzzer would soon find out which byte reaches more.
    let repeated = (xxh3_64(bytes) % 256 == 0).then(|| {
        let length = if text.contains('\n') { 70_000 } else { 4_000 };
        text.repeat(length / (text.len() + 1) + 1)
    });
    for text in [Some(text.to_string()), repeated].into_iter().flatten() {
        let whole = WHOLE.encode(&text, false).expect("it encodes");
        assert_eq!(CACHED.encode(&text, false).expect("it encodes"), whole);
        let settled = &text[..CACHED.settled_bytes(&text)];
        assert!(whole.starts_with(&WHOLE.encode(settled, false).expect("it encodes")));
    }
});
