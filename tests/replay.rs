//! Recordings of real vLLM servers, predicted to the token.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vllm")
}

fn replay(folder: &Path, flags: &[&str]) -> Output {
    let kvscout = env!("CARGO_BIN_EXE_kvscout");
    let run = Command::new(kvscout)
        .arg("replay")
        .arg(folder)
        .args(flags)
        .output();
    run.expect("kvscout runs")
}

fn summary(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?} {output:?}"))
}

/// Folder, requests predicted, and how many of them no event stream can tell.
const RECORDINGS: &[(&str, u64, u64)] = &[
    ("v0.9.2-py-builtin", 34, 1),
    ("v0.11.2-py", 34, 1),
    ("v0.17.1-py", 34, 0),
    ("v0.20.2-bs32", 290, 1),
    ("v0.24.0-py", 34, 0),
    ("v0.32.0-bs32", 411, 1),
    ("v0.33.0-py", 34, 0),
];

#[test]
fn every_recording_is_predicted_to_the_token() {
    for (folder, sequential, explained) in RECORDINGS {
        let output = replay(&fixtures().join(folder), &[]);
        let summary = summary(&output);
        assert_eq!(output.status.code(), Some(0), "{folder}: {output:?}");
        let count = |field: &str| {
            summary[field]
                .as_u64()
                .unwrap_or_else(|| panic!("{folder}: no {field}"))
        };
        assert_eq!(
            (count("wrong"), count("decode_errors")),
            (0, 0),
            "{folder}: {summary}"
        );
        assert_eq!(
            (count("sequential"), count("explained")),
            (*sequential, *explained),
            "{folder}"
        );
        assert_eq!(count("exact"), sequential - explained, "{folder}");
    }
}

/// A copy of a recording with its event lines changed.
fn changed(folder: &str, change: impl Fn(usize, &str) -> Option<String>) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    for name in ["requests.jsonl", "meta.json"] {
        std::fs::copy(fixtures().join(folder).join(name), copy.path().join(name)).expect("copied");
    }
    let events =
        std::fs::read_to_string(fixtures().join(folder).join("events.jsonl")).expect("events");
    let lines: Vec<_> = events
        .lines()
        .enumerate()
        .filter_map(|(at, line)| change(at, line))
        .collect();
    std::fs::write(copy.path().join("events.jsonl"), lines.join("\n")).expect("written");
    copy
}

#[test]
fn the_decoded_column_is_never_read() {
    let copy = changed("v0.33.0-py", |_, line| {
        let mut line: serde_json::Value = serde_json::from_str(line).expect("a line");
        let frames = line["frames"].take();
        Some(
            serde_json::json!({"t": 0, "src": "live", "frames": frames, "decoded": "lies"})
                .to_string(),
        )
    });
    assert_eq!(summary(&replay(copy.path(), &[]))["exact"], 34);
}

#[test]
fn a_lost_batch_makes_predictions_wrong_and_the_exit_status_says_so() {
    let copy = changed("v0.33.0-py", |at, line| (at != 3).then(|| line.to_owned()));
    let output = replay(copy.path(), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(summary(&output)["wrong"].as_u64() > Some(0));
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line: serde_json::Value =
        serde_json::from_str(stderr.lines().next().expect("a line")).expect("JSON");
    assert_eq!(line["verdict"], "wrong");
}

#[test]
fn a_payload_that_does_not_decode_is_counted_and_the_rest_goes_on() {
    let copy = changed("v0.33.0-py", |at, line| {
        let mut line: serde_json::Value = serde_json::from_str(line).expect("a line");
        if at == 40 {
            line["frames"][2] = "wQ==".into();
        }
        Some(line.to_string())
    });
    let summary = summary(&replay(copy.path(), &[]));
    assert_eq!(
        (
            summary["decode_errors"].as_u64(),
            summary["events"].as_u64()
        ),
        (Some(1), Some(43))
    );
}

#[test]
fn a_folder_that_is_no_recording_is_a_clear_error() {
    let empty = tempfile::tempdir().expect("a folder");
    let output = replay(empty.path(), &[]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("requests.jsonl"), "{stderr}");
}

#[test]
fn request_bodies_read_as_the_server_read_them() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/.tools/tokenizer-qwen3");
    let folder = std::env::var("KVSCOUT_TOKENIZER_DIR").unwrap_or_else(|_| folder.to_owned());
    for recording in ["v0.20.2-bs32", "v0.32.0-bs32", "v0.33.0-py"] {
        let output = replay(&fixtures().join(recording), &["--tokenizer", &folder]);
        assert_eq!(
            summary(&output)["token_mismatches"],
            0,
            "{recording}: {output:?}"
        );
    }
}
