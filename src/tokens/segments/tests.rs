use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use proptest::prelude::*;

use super::cuts::{self, SEGMENT_BYTES};
use super::*;
use crate::tokens::fast::Fast;

fn tokenizer_json() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join(".tools/tokenizer-qwen3/tokenizer.json")
}

/// Two seconds to load, so all tests share one.
static QWEN3: std::sync::LazyLock<Segmented<Fast>> = std::sync::LazyLock::new(|| {
    let cuts = Cuts::of_file(&tokenizer_json()).expect("`make setup` fetched it");
    let engine = Fast::load(&tokenizer_json()).expect("a tokenizer");
    Segmented::new(engine, cuts, &CacheBudget::of_bytes(64 << 20)).expect("it encodes")
});

fn whole(text: &str) -> Vec<TokenId> {
    QWEN3.engine.encode(text, false).expect("it encodes")
}

/// What words, contractions, numbers, marks and half-typed tokens are made of.
const PIECES: &[&str] = &[
    "a",
    "Zq",
    "the",
    " the",
    "word",
    "'s",
    "'LL",
    "'",
    "é",
    "e\u{301}",
    "\u{301}",
    "ß",
    "ñ",
    "İ",
    "ı",
    "Σ",
    "1",
    "23",
    "4567",
    " 8",
    "٣",
    "½",
    "²",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\r\n",
    "\n\n",
    " \n",
    "\u{a0}",
    "\u{3000}",
    ".",
    ", ",
    "...",
    "!?",
    "();",
    "{}",
    "_",
    "-",
    "<",
    "<|",
    "<|im_",
    "<|im_end|",
    "|>",
    "<|im_start|>",
    "<think>",
    "中",
    "文字",
    "，",
    "。",
    "（",
    "９",
    "が",
    "か\u{3099}",
    "カ",
    "ﾞ",
    "ー",
    "한",
    "\u{1112}\u{1161}",
    "\u{11ab}",
    "\u{200d}",
    "🤷\u{200d}♀\u{fe0f}",
    "👍🏽",
    "ไทย",
    "नमस्ते",
    "\u{93c}",
    "Ж",
    "ё",
    "\u{0}",
    "\u{7f}",
    "\u{180e}",
    "\u{feff}",
    "\u{fffd}",
];

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(PIECES), 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Wherever a cut is called safe, the two halves' ids are those of the whole.
    #[test]
    fn halves_of_a_safe_cut_are_the_whole(text in text()) {
        for span in QWEN3.cuts.spans(&text) {
            let Span::Text(text) = span else { continue };
            for at in cuts::safe_cuts(text) {
                let halves = [whole(&text[..at]), whole(&text[at..])].concat();
                prop_assert_eq!(halves, whole(text), "cut at {} of {:?}", at, text);
            }
        }
    }

    /// Wherever a page ends, its ids and those of the rest are those of the whole.
    #[test]
    fn pages_are_the_whole(text in text(), bytes in 1usize..60) {
        let Some(page) = QWEN3.cuts.page(&text, bytes) else { return Ok(()) };
        prop_assert!((bytes..=2 * bytes).contains(&page.len()));
        let halves = [whole(page), whole(&text[page.len()..])].concat();
        prop_assert_eq!(halves, whole(&text), "cut at {} of {:?}", page.len(), text);
    }

    /// Through the cache, first and again, a text's ids are those that the engine gives.
    #[test]
    fn the_cache_changes_no_token(text in text(), times in 1usize..60) {
        let text = text.repeat(times);
        prop_assert_eq!(QWEN3.encode(&text, true).expect("it encodes"), whole(&text));
        prop_assert_eq!(QWEN3.encode(&text, true).expect("it encodes"), whole(&text));
    }

    /// What is settled keeps its tokens whatever follows.
    #[test]
    fn settled_tokens_stay(text in text(), more in text()) {
        let settled = &text[..QWEN3.settled_bytes(&text)];
        let longer = whole(&format!("{text}{more}"));
        prop_assert!(longer.starts_with(&whole(settled)), "{:?} + {:?}", text, more);
    }
}

#[test]
fn every_text_of_vllm_is_the_sum_of_its_segments() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/prompt/texts.jsonl");
    let mut cuts = 0;
    for line in std::fs::read_to_string(path).expect("a fixture").lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let text = line["text"].as_str().expect("a text");
        assert_eq!(
            QWEN3.encode(text, false).unwrap(),
            whole(text),
            "{}",
            line["id"]
        );
        for span in QWEN3.cuts.spans(text) {
            let Span::Text(text) = span else { continue };
            // Every cut of short windows: whole texts of 60 kB would take minutes.
            for window in text
                .as_bytes()
                .chunks(512)
                .filter_map(|w| std::str::from_utf8(w).ok())
            {
                for at in cuts::safe_cuts(window).step_by(7) {
                    let halves = [whole(&window[..at]), whole(&window[at..])].concat();
                    assert_eq!(halves, whole(window), "{at} in {window:?}");
                    cuts += 1;
                }
            }
        }
    }
    assert!(cuts > 5_000, "{cuts} cuts were tried");
}

#[test]
fn a_long_text_is_found_by_the_page() {
    let mut text = String::new();
    while text.len() < 10 * PAGE_BYTES {
        text += &format!("<|im_start|>user\nLine {} is new.<|im_end|>\n", text.len());
    }
    let first = QWEN3.encode(&text, false).unwrap();
    assert_eq!(first, whole(&text));
    // Others use the same cache at the same time, so the least of several is taken.
    let looked_up = |text: &str| {
        let before = QWEN3.cache_sizes().hits;
        assert_eq!(QWEN3.encode(text, false).unwrap(), whole(text));
        QWEN3.cache_sizes().hits - before
    };
    let pages_only = &text[..9 * PAGE_BYTES];
    let least = (0..20).map(|_| looked_up(pages_only)).min().expect("tries");
    let segments = pages_only.matches("user").count() as u64;
    assert!(
        least < segments / 4,
        "{least} look-ups, {segments} messages"
    );
}

#[test]
fn a_growing_text_costs_what_was_added() {
    let (mut text, mut asked) = (String::new(), BTreeMap::new());
    for round in 0..200 {
        text.push_str(&format!(
            "In round {round} the text grows by about forty bytes.\n"
        ));
        let before = QWEN3.cache_sizes().missed_bytes;
        assert_eq!(QWEN3.encode(&text, false).unwrap(), whole(&text));
        asked.insert(round, QWEN3.cache_sizes().missed_bytes - before);
    }
    let most = asked.values().max().expect("rounds");
    assert!(
        *most < 2 * SEGMENT_BYTES as u64,
        "{most} bytes were tokenized in one round"
    );
}

/// One id a byte, and a count of the bytes that it was asked for.
#[derive(Default)]
struct Bytes(Mutex<usize>);

impl Tokenizer for Bytes {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TokenizeError> {
        *self.0.lock().unwrap() += text.len();
        let bytes = text.bytes().map(TokenId::from);
        Ok(match add_special_tokens {
            true => [256].into_iter().chain(bytes).chain([257, 258]).collect(),
            false => bytes.collect(),
        })
    }
}

fn segmented(json: &str, bytes_max: u64) -> Segmented<Bytes> {
    let cuts = Cuts::of_json(json.as_bytes()).expect("a tokenizer's JSON");
    Segmented::new(Bytes::default(), cuts, &CacheBudget::of_bytes(bytes_max)).expect("it encodes")
}

fn json(pre_tokenizer: &str, lstrip: bool) -> String {
    format!(
        r#"{{"added_tokens": [{{"id": 900, "content": "<a>", "lstrip": {lstrip}}}, {{"id": 901, "content": "<a><b>"}}],
            "normalizer": null, "pre_tokenizer": {pre_tokenizer}, "model": {{"type": "BPE", "vocab": {{"x": 1}}}}}}"#
    )
}

const BYTE_LEVEL: &str = r#"{"type": "ByteLevel", "add_prefix_space": false}"#;

#[test]
fn what_the_post_processor_adds_stands_around_the_whole_text() {
    let tokenizer = segmented(&json(BYTE_LEVEL, false), 1 << 20);
    assert_eq!(
        tokenizer.encode("x<a>", true).unwrap(),
        [256, 120, 900, 257, 258]
    );
    assert_eq!(tokenizer.encode("", true).unwrap(), [256, 257, 258]);
    assert_eq!(
        tokenizer.encode("<a><b>x", false).unwrap(),
        [901, 120],
        "the longest token wins"
    );
}

#[test]
fn tokenizers_of_other_makes_are_not_cut() {
    for (pre_tokenizer, lstrip) in [
        (BYTE_LEVEL, true),
        (r#"{"type": "ByteLevel", "add_prefix_space": true}"#, false),
        (r#"{"type": "Metaspace", "prepend_scheme": "first"}"#, false),
    ] {
        let tokenizer = segmented(&json(pre_tokenizer, lstrip), 1 << 20);
        let text = "x<a>y";
        assert_eq!(
            tokenizer.cuts.spans(text).collect::<Vec<_>>(),
            [Span::Text(text)]
        );
        assert_eq!(tokenizer.settled_bytes(text), 0);
    }
    let unknown = segmented(&json(BYTE_LEVEL, false), 1 << 20);
    let long = "word ".repeat(SEGMENT_BYTES);
    assert_eq!(
        unknown.cuts.spans(&long).count(),
        1,
        "an unknown pattern is not cut inside"
    );
    assert_eq!(unknown.settled_bytes("x<a>y"), 4);
    assert_eq!(unknown.settled_bytes("x<a>"), 0, "<a><b> may come of it");
}

#[test]
fn the_cache_is_bounded_in_bytes_and_counts_what_it_does() {
    let tokenizer = segmented(&json(BYTE_LEVEL, false), 100_000);
    for number in 0..1_000 {
        tokenizer
            .encode(&format!("a text of its own, number {number:0>200}"), false)
            .unwrap();
    }
    tokenizer.cache.run_pending_tasks();
    let sizes = tokenizer.cache_sizes();
    assert!(sizes.bytes <= 100_000 && sizes.entries > 0, "{sizes:?}");
    assert_eq!((sizes.hits, sizes.misses), (0, 1_000));
    assert!(sizes.evictions >= 900, "{sizes:?}");
    tokenizer
        .encode(&format!("a text of its own, number {:0>200}", 999), false)
        .unwrap();
    assert_eq!(
        tokenizer.cache_sizes().hits,
        1,
        "the last text is still there"
    );
}

#[test]
fn no_tenant_finds_what_another_has_asked_for() {
    let tokenizer = segmented(&json(BYTE_LEVEL, false), 1 << 20);
    let hits = |salt| {
        let before = tokenizer.cache_sizes().hits;
        let ids = tokenizer.encode_salted("a text of both", false, salt);
        assert_eq!(ids, tokenizer.engine.encode("a text of both", false));
        tokenizer.cache_sizes().hits - before
    };
    for salt in [None, Some("one"), Some("other")] {
        assert_eq!((hits(salt), hits(salt)), (0, 1), "{salt:?}");
    }
}

#[test]
fn a_collision_gives_no_wrong_ids() {
    let tokenizer = segmented(&json(BYTE_LEVEL, false), 1 << 20);
    let hash = xxh3_64_with_seed(b"asked", tokenizer.seed);
    let stranger = Segment {
        text: "other".into(),
        ids: Box::new([7]),
    };
    tokenizer.cache.insert(hash, Arc::new(stranger));
    assert_eq!(
        tokenizer.encode("asked", false).unwrap(),
        [97, 115, 107, 101, 100]
    );
}
