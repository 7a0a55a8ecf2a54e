use proptest::prelude::*;

use super::*;

fn again(text: &str) -> String {
    Json::loads(text).unwrap().dumps().unwrap()
}

fn fault(text: &str) -> Fault {
    Json::loads(text).unwrap_err().fault
}

#[test]
fn numbers_print_as_python_prints_them() {
    let pairs = [
        ("1.00", "1.0"),
        ("1E3", "1000.0"),
        ("1e400", "Infinity"),
        ("-1e400", "-Infinity"),
        ("-0", "0"),
        ("-0.0", "-0.0"),
        ("1e16", "1e+16"),
        ("1e15", "1000000000000000.0"),
        ("123456789.123456789", "123456789.12345679"),
        ("1e-4", "0.0001"),
        ("0.00001", "1e-05"),
        ("1e22", "1e+22"),
        ("1.5e-7", "1.5e-07"),
        ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ("5e-324", "5e-324"),
        ("890663775828858.25", "890663775828858.2"),
        ("890663775828858.75", "890663775828858.8"),
        ("9007199254740993.0", "9007199254740992.0"),
        ("100.0", "100.0"),
        ("0.00012", "0.00012"),
        ("0.000012", "1.2e-05"),
        ("1234567890123456.7", "1234567890123456.8"),
        ("0e5", "0.0"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        (
            "123456789012345678901234567890",
            "123456789012345678901234567890",
        ),
        ("9223372036854775808", "9223372036854775808"),
    ];
    for (text, expected) in pairs {
        assert_eq!(again(text), expected, "{text}");
    }
}

#[test]
fn a_repeated_key_keeps_its_first_place_and_its_last_value() {
    assert_eq!(again(r#"{"a":1,"b":2,"a":3}"#), r#"{"a": 3, "b": 2}"#);
    let many: Vec<String> = (0..100).map(|i| format!("\"k{}\":{i}", i % 40)).collect();
    let Json::Object(object) = Json::loads(&format!("{{{}}}", many.join(","))).unwrap() else {
        panic!("an object")
    };
    assert_eq!(object.len(), 40);
    assert_eq!(object.get("k0"), Some(&Json::Int(80)));
    assert_eq!(object.iter().next().map(|(key, _)| &**key), Some("k0"));
}

#[test]
fn a_hundred_thousand_keys_are_no_trouble() {
    let keys: Vec<String> = (0..200_000)
        .map(|i| format!("\"{}\":{i}", i % 100_000))
        .collect();
    let text = format!("{{{}}}", keys.join(","));
    let Ok(Json::Object(object)) = Json::loads(&text) else {
        panic!("an object")
    };
    let merged = object.clone().merged(object.without(&["5"]));
    assert_eq!(
        (merged.len(), merged.get("5")),
        (100_000, Some(&Json::Int(100_005)))
    );
}

#[test]
fn strings_escape_as_python_escapes_them() {
    assert_eq!(
        again(r#""\u0000\u001f\u007f\u2028\ud83d\ude00\/""#),
        "\"\\u0000\\u001f\u{7f}\u{2028}😀/\""
    );
    let ascii = Style {
        ensure_ascii: true,
        ..Style::default()
    };
    let text = Json::from("é😀\u{7f}").dumps_in(&ascii).unwrap();
    assert_eq!(text, r#""\u00e9\ud83d\ude00\u007f""#);
}

#[test]
fn half_a_surrogate_pair_is_a_string_that_nothing_can_encode() {
    for text in [r#""\ud800""#, r#""a\udc00\ud83d""#, r#""\ud83d\u0041""#] {
        assert_eq!(Json::loads(text), Ok(Json::LoneSurrogate), "{text}");
    }
    assert_eq!(Json::LoneSurrogate.dumps(), None);
    assert_eq!(fault(r#"{"\ud800":1}"#), Fault::LoneSurrogate);
}

#[test]
fn only_bytes_may_start_with_a_byte_order_mark() {
    assert_eq!(Json::loads_bytes(b"\xef\xbb\xbf1"), Ok(Json::Int(1)));
    assert_eq!(fault("\u{feff}1"), Fault::Syntax);
    assert_eq!(
        Json::loads_bytes(b"\"\xff\"").unwrap_err().fault,
        Fault::NotUtf8
    );
}

#[test]
fn what_python_refuses_is_refused() {
    let texts = [
        "",
        " ",
        "01",
        "1.",
        ".5",
        "-",
        "+1",
        "1e",
        "--1",
        "nul",
        "[1,]",
        "{\"a\":1,}",
        "{a:1}",
        "{\"a\"}",
        "\"\n\"",
        "\"\\x\"",
        "\"\\u12g4\"",
        "\"",
        "[",
        "1 2",
        "'a'",
        "Nan",
        "\u{a0}1",
        "\"\\",
        "\"\\u",
        "\"\\ud800\\u",
        "{",
        "{\"a\":",
        "-Inf",
    ];
    for text in texts {
        assert_eq!(fault(text), Fault::Syntax, "{text:?}");
    }
    assert_eq!(fault(&"9".repeat(4301)), Fault::HugeInteger);
    assert!(Json::loads(&format!("-{}", "9".repeat(4300))).is_ok());
}

#[test]
fn a_body_of_brackets_is_an_error_not_a_crash() {
    for bracket in ["[", "{\"a\":"] {
        assert_eq!(fault(&bracket.repeat(5_000_000)), Fault::TooDeep);
    }
    assert_eq!(
        fault(&format!("[{}1]", "1,".repeat(2_000_000))),
        Fault::TooManyValues
    );
}

#[test]
fn indented_output_is_pythons() {
    let style = Style {
        indent: Some("  ".to_owned()),
        item_separator: ",".to_owned(),
        ..Style::default()
    };
    let value = Json::loads(r#"{"a":[1,{}],"b":[]}"#).unwrap();
    let expected = "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}";
    assert_eq!(value.dumps_in(&style).unwrap(), expected);
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        any::<i64>().prop_map(Json::Int),
        any::<f64>()
            .prop_filter("NaN is not itself", |x| !x.is_nan())
            .prop_map(Json::Float),
        any::<String>().prop_map(|text| Json::from(text.as_str())),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Json::List),
            prop::collection::vec((any::<String>(), inner), 0..24).prop_map(|members| {
                Json::Object(members.into_iter().map(|(k, v)| (k.into(), v)).collect())
            }),
        ]
    })
}

/// A value with its floats rounded.
fn shape(value: &Json) -> Json {
    match value {
        Json::Float(number) => Json::from(format!("{number:.10e}").as_str()),
        Json::List(items) => Json::List(items.iter().map(shape).collect()),
        Json::Object(object) => Json::Object(
            object
                .iter()
                .map(|(key, value)| (key.clone(), shape(value)))
                .collect(),
        ),
        other => other.clone(),
    }
}

proptest! {
    /// What we write, we read back as it was.
    #[test]
    fn dumps_then_loads_is_identity(value in any_json()) {
        let text = value.dumps().expect("no surrogates here");
        prop_assert_eq!(Json::loads(&text).expect("our own text"), value);
    }

    /// Python's float text is the nearest of the shortest that read back the same.
    #[test]
    fn floats_read_back(bits in any::<u64>()) {
        let number = f64::from_bits(bits);
        prop_assume!(number.is_finite());
        let text = float_repr(number);
        prop_assert_eq!(text.parse::<f64>().map(f64::to_bits), Ok(number.to_bits()), "{}", text);
        prop_assert!(text.len() <= 24, "{}", text);
    }

    /// Another reader understands what we write, and we what it writes.
    #[test]
    fn others_read_what_we_write(value in any_json(), ascii in any::<bool>()) {
        let style = Style { ensure_ascii: ascii, ..Style::default() };
        let text = value.dumps_in(&style).expect("no surrogates here");
        // Infinities are Python's own; and serde_json reads floats to the last digit only.
        prop_assume!(!text.contains("Infinity"));
        let other: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let theirs = Json::loads(&other.to_string()).expect("JSON");
        prop_assert_eq!(shape(&theirs), shape(&value));
    }

    /// Nothing panics, and nothing but JSON is taken for JSON.
    #[test]
    fn any_bytes_are_answered(text in r#"[\[\]{}",:\\u0-9eE+.\- a-zé]{0,40}"#) {
        let ours = Json::loads(&text).is_ok();
        if serde_json::from_str::<serde_json::Value>(&text).is_ok() {
            prop_assert!(ours || text.contains("\\u"));
        }
    }
}

#[test]
fn strict_numbers_are_those_of_serde_json() {
    let style = Style {
        dialect: crate::config::Dialect::Rust,
        ..Style::default()
    };
    let pairs = [
        ("1E5", "100000.0"),
        ("0.00001", "0.00001"),
        ("1e-7", "1e-7"),
        ("1e22", "1e+22"),
        ("-0", "-0.0"),
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "1.8446744073709552e+19"),
        ("-9223372036854775809", "-9.223372036854776e+18"),
        // Python reads it as it is written.
        ("8.766181456747535e-11", "8.766181456747534e-11"),
    ];
    for (text, printed) in pairs {
        let value = Json::loads_strict(text.as_bytes()).unwrap();
        assert_eq!(value.dumps_in(&style).as_deref(), Some(printed), "{text}");
    }
}

#[test]
fn strict_reading_refuses_what_only_python_reads() {
    let deep = format!("{}{}", "[".repeat(128), "]".repeat(128));
    let refused = [
        "NaN",
        "-Infinity",
        "1e400",
        r#""\ud800""#,
        "\u{feff}1",
        "",
        "1 2",
        &deep,
    ];
    for text in refused {
        let error = Json::loads_strict(text.as_bytes()).unwrap_err();
        assert_eq!(error.fault, Fault::Syntax, "{text}");
    }
    let error = Json::loads_strict(b"{\n\"a\": nope}").unwrap_err();
    assert_eq!(error.at, 9);
    let many = format!("[{}0]", "0,".repeat(2_000_000));
    let error = Json::loads_strict(many.as_bytes()).unwrap_err();
    assert_eq!(error.fault, Fault::TooManyValues);
}

#[test]
fn strict_reading_keeps_order_and_last_values() {
    let value = Json::loads_strict(br#"{"b": 1, "a": [null, "x"], "b": {"c": true}}"#).unwrap();
    let printed = r#"{"b": {"c": true}, "a": [null, "x"]}"#;
    assert_eq!(value.dumps().as_deref(), Some(printed));
}
