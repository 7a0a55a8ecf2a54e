use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::tokens::fast::Fast;

fn tokenizer_json() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join(".tools/tokenizer-qwen3/tokenizer.json")
}

/// A second to load, so all tests share one.
static QWEN3: LazyLock<Clauses<Fast>> = LazyLock::new(|| {
    let neighbours = Neighbours::of_file(&tokenizer_json()).expect("`make setup` fetched it");
    let engine = Fast::load(&tokenizer_json()).expect("a tokenizer");
    Clauses::new(engine, neighbours.expect("Qwen3 merges alone")).expect("it encodes")
});

/// What a clause is made of, and what may stand in it: kana that compose, marks, letters spelled
/// by bytes, Latin, digits, spaces, and added tokens.
const PIECES: &[&str] = &[
    "的",
    "了",
    "在",
    "是",
    "我们",
    "我",
    "们",
    "服务器",
    "服",
    "务",
    "器",
    "数据",
    "据",
    "第一",
    "一",
    "中华人民共和国",
    "龘",
    "鿿",
    "㐀",
    "豈",
    "𠮷",
    "删除",
    "获取",
    "函数",
    "更新",
    "が",
    "か",
    "\u{3099}",
    "カ",
    "ー",
    "データ",
    "です",
    "ます",
    "こ",
    "れ",
    "は",
    "、",
    "。",
    "，",
    "！",
    "！！",
    "（",
    "）",
    "：",
    "？",
    "…",
    "“",
    "”",
    "《",
    "　",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "a",
    "use",
    "'s",
    "1",
    "23",
    "９",
    ".",
    "-",
    "한",
    "다",
    "\u{11ab}",
    "Ж",
    "é",
    "e\u{301}",
    "<|im_end|>",
    "👍🏽",
    "\u{fe00}",
    "\u{200d}",
];

fn text() -> impl Strategy<Value = String> {
    // Any Han and kana too, most of which no list would name.
    let any = prop::char::ranges(vec!['\u{4e00}'..='\u{9fff}', '\u{3041}'..='\u{30fa}'].into());
    let piece = prop_oneof![
        3 => prop::sample::select(PIECES).prop_map(str::to_owned),
        1 => any.prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn the_ids_of_parts_are_those_of_the_whole(text in text()) {
        prop_assert_eq!(QWEN3.encode(&text, false), QWEN3.engine.encode(&text, false));
    }
}

#[test]
fn whatever_a_token_holds_is_joined() {
    let json = std::fs::read(tokenizer_json()).expect("`make setup` fetched it");
    let file: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    let spelled = bytes_of_letters();
    let mut seen = 0;
    for token in file["model"]["vocab"].as_object().expect("tokens").keys() {
        let bytes: Vec<u8> = token.chars().map(|letter| spelled[&letter]).collect();
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        let chars: Vec<char> = text.chars().collect();
        for pair in chars.windows(2) {
            if is_ours(pair[0]) && is_letter(pair[1]) {
                assert!(QWEN3.neighbours.are_joined(pair[0], pair[1]), "{text}");
                seen += 1;
            }
        }
    }
    assert!(seen > 20_000, "{seen}");
}

#[test]
fn most_neighbours_are_joined_by_no_token() {
    let set = QWEN3.neighbours.joined.iter();
    let set: u32 = set.map(|word| word.count_ones()).sum();
    let share = f64::from(set) / f64::from(1 << PLACE_BITS);
    assert!(share < 0.1, "{share} of the places");
}

#[test]
fn what_is_beyond_the_keys_is_not_looked_up() {
    // Tangut U+17684 has the lower half of 的, U+7684, as its own.
    let beyond = ["\u{17684}", "的\u{17684}", "\u{17684}的", "我的\u{17684}了"];
    for text in beyond
        .into_iter()
        .chain(["字\0字", "\0字", "我们\0的", "\0\0字"])
    {
        assert_eq!(QWEN3.encode(text, false), QWEN3.engine.encode(text, false));
    }
}

#[test]
fn a_model_that_looks_words_up_whole_is_left_alone() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(
        file.path(),
        r#"{"model": {"type": "BPE", "ignore_merges": true, "vocab": {"a": 0}}}"#,
    )
    .expect("written");
    assert!(Neighbours::of_file(file.path()).is_ok_and(|none| none.is_none()));
}
