//! Recordings of real vLLM servers, predicted to the token.

mod harness;

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
    // Several answers, several prompts, prompts that are scored, truncation, streams, aborts.
    ("v0.32.0-answers-bin32", 58, 0),
    // Pinned to either of two ranks, by header.
    ("v0.32.0-dp2", 59, 0),
    ("v0.32.0-lora-bin32", 60, 0),
    ("v0.33.0-py", 34, 0),
    // Hybrid models: a window's group before the one of full attention, two windows, a recurrent
    // state, and groups of other block sizes.
    ("v0.32.0-py-window", 50, 0),
    ("v0.32.0-py-windows", 47, 0),
    ("v0.32.0-py-state", 20, 0),
    ("v0.32.0-py-state-sizes", 32, 0),
    ("v0.32.0-py-sizes", 50, 0),
    // Hashes that cover tokens ahead.
    ("v0.33.0-py-lookahead", 50, 0),
    ("v0.33.0-py-state-lookahead", 34, 0),
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

/// Folder, and requests whose last full block the server had to store.
const WATCHED: &[(&str, u64)] = &[
    ("v0.9.2-py-builtin", 17),
    ("v0.11.2-py", 17),
    ("v0.17.1-py", 19),
    ("v0.20.2-bs32", 256),
    ("v0.24.0-py", 19),
    ("v0.32.0-bs32", 373),
    ("v0.32.0-answers-bin32", 21),
    ("v0.32.0-dp2", 46),
    ("v0.32.0-lora-bin32", 44),
    ("v0.33.0-py", 19),
    ("v0.32.0-py-window", 36),
    ("v0.32.0-py-windows", 42),
    ("v0.32.0-py-state", 15),
    // A state that may be taken up within a block: that pod is not trusted to the token.
    ("v0.32.0-py-state-sizes", 0),
    ("v0.32.0-py-sizes", 39),
    ("v0.33.0-py-lookahead", 34),
    ("v0.33.0-py-state-lookahead", 30),
];

#[test]
fn every_server_stored_the_tokens_that_it_was_sent_alone_or_among_others() {
    for (folder, watched) in WATCHED {
        let parity = &summary(&replay(&fixtures().join(folder), &[]))["token_parity"];
        let expected = serde_json::json!({"agree": watched, "differ": 0, "unjudged": 0});
        assert_eq!(*parity, expected, "{folder}");
    }
}

/// Requests that differ: their numbers, positions, and whether the position is exact.
fn differing(output: &Output) -> Vec<(usize, usize, bool)> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines = stderr
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let of_parity = lines.filter(|line| line["verdict"] == "parity");
    of_parity
        .map(|line| {
            let number = line["request"].as_str().and_then(|text| text.parse().ok());
            let position = line["position"].as_u64().expect("a position") as usize;
            let exact = line["why"] == "another token at this position";
            (number.expect("a number"), position, exact)
        })
        .collect()
}

/// A recording whose requests claim other tokens than the server read: `change` says how, and
/// where the first difference is.
fn misread(
    folder: &str,
    size: usize,
    change: impl Fn(usize, &mut Vec<u64>) -> usize,
) -> (Output, Vec<usize>) {
    let positions = std::cell::RefCell::new(Vec::new());
    let copy = changed_in("requests.jsonl", folder, |at, line| {
        let mut line: serde_json::Value = serde_json::from_str(line).expect("a line");
        let ids: Option<Vec<u64>> = serde_json::from_value(line["prompt_token_ids"].take()).ok();
        // Alone, so that nobody else's blocks come before its answer.
        let long = ids.filter(|ids| ids.len() >= size && line["sequential"] == true);
        positions.borrow_mut().push(usize::MAX);
        // Those that cannot differ are left out: they would be watched for nothing.
        let mut ids = long.unwrap_or_default();
        if !ids.is_empty() {
            positions.borrow_mut()[at] = change(at, &mut ids);
            line["prompt_token_ids"] = ids.into();
        }
        Some(line.to_string())
    });
    let output = replay(copy.path(), &["--json"]);
    (output, positions.into_inner())
}

fn is_found(folder: &str, size: usize, change: impl Fn(usize, &mut Vec<u64>) -> usize) {
    let (output, positions) = misread(folder, size, change);
    let parity = &summary(&output)["token_parity"];
    let differing = differing(&output);
    assert_eq!(parity["agree"], 0, "{folder}: {parity}");
    assert_eq!(parity["differ"], differing.len(), "{folder}");
    assert!(differing.len() > 10, "{folder}: {parity}");
    for (number, position, exact) in &differing {
        let expected = match exact {
            true => positions[*number],
            false => positions[*number] / size * size,
        };
        assert_eq!(*position, expected, "{folder}, request {number}");
    }
    let exact = differing.iter().filter(|(_, _, exact)| *exact).count();
    assert!(exact > 0, "{folder}");
}

#[test]
fn one_token_read_wrongly_is_found_and_its_position_named() {
    for (folder, size) in [
        ("v0.20.2-bs32", 32),
        ("v0.32.0-bs32", 32),
        ("v0.33.0-py", 16),
        ("v0.9.2-py-builtin", 16),
    ] {
        is_found(folder, size, |at, ids| {
            let position = at * 7 % (ids.len() / size * size);
            ids[position] += 1;
            position
        });
    }
}

#[test]
fn shifted_tokens_are_found_where_the_shift_begins() {
    for (folder, size) in [("v0.20.2-bs32", 32), ("v0.32.0-bs32", 32)] {
        is_found(folder, size, |at, ids| {
            // A token of no vocabulary, so that the shift begins with it.
            let position = at * 11 % (ids.len() / size * size);
            ids.insert(position, 4_000_000);
            position
        });
    }
}

/// A copy of a recording with its event lines changed.
fn changed(folder: &str, change: impl Fn(usize, &str) -> Option<String>) -> tempfile::TempDir {
    changed_in("events.jsonl", folder, change)
}

/// A copy of a recording with the lines of one file changed.
fn changed_in(
    file: &str,
    folder: &str,
    change: impl Fn(usize, &str) -> Option<String>,
) -> tempfile::TempDir {
    let (from, copy) = (
        fixtures().join(folder),
        tempfile::tempdir().expect("a folder"),
    );
    for name in ["events.jsonl", "requests.jsonl", "meta.json"] {
        std::fs::copy(from.join(name), copy.path().join(name)).expect("copied");
    }
    let text = std::fs::read_to_string(from.join(file)).expect("the file");
    let lines: Vec<_> = text
        .lines()
        .enumerate()
        .filter_map(|(at, line)| change(at, line))
        .collect();
    std::fs::write(copy.path().join(file), lines.join("\n")).expect("written");
    copy
}

/// The two-rank recording as another recorder might have written its requests.
fn respelled(change: impl Fn(&mut serde_json::Value)) -> serde_json::Value {
    let copy = changed_in("requests.jsonl", "v0.32.0-dp2", |_, line| {
        let mut line = serde_json::from_str(line).expect("a line");
        change(&mut line);
        Some(line.to_string())
    });
    summary(&replay(copy.path(), &[]))
}

#[test]
fn ranks_are_told_apart_however_the_recorder_spells_them() {
    let take_rank = |line: &mut serde_json::Value| {
        let mut headers = line["headers"].take();
        headers["X-data-parallel-rank"].take()
    };
    let by_field = respelled(|line| line["dp_rank"] = take_rank(line));
    let sequence_as_list = respelled(|line| {
        for field in ["seq_before", "seq_after"] {
            let of = line[field].take();
            line[field] = serde_json::json!([of["0"], of["1"]]);
        }
    });
    let time_alone = respelled(|line| {
        line["seq_before"] = serde_json::Value::Null;
        line["seq_after"] = serde_json::Value::Null;
    });
    for summary in [by_field, sequence_as_list, time_alone] {
        assert_eq!(
            (&summary["exact"], &summary["wrong"]),
            (&59.into(), &0.into())
        );
    }
}

#[test]
fn a_rank_that_nobody_recorded_is_read_off_the_blocks_that_were_stored() {
    let summary = respelled(|line| {
        line["headers"].take();
    });
    // Of one request no block was stored, and the ranks would not find the same.
    assert_eq!(summary["exact"], 58, "{summary}");
    assert_eq!(
        (&summary["wrong"], &summary["sequential"]),
        (&0.into(), &58.into())
    );
}

#[test]
fn adapters_are_known_by_their_events_where_nobody_lists_them() {
    let copy = changed("v0.32.0-lora-bin32", |_, line| Some(line.to_owned()));
    std::fs::write(copy.path().join("meta.json"), "{}").expect("written");
    assert_eq!(summary(&replay(copy.path(), &[]))["exact"], 60);
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
    let copy = changed("v0.33.0-py", |at, line| (at != 0).then(|| line.to_owned()));
    let output = replay(copy.path(), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(summary(&output)["wrong"].as_u64() > Some(0));
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line: serde_json::Value =
        serde_json::from_str(stderr.lines().next().expect("a line")).expect("JSON");
    assert_eq!(line["verdict"], "wrong");
}

#[test]
fn what_was_known_before_a_gap_is_not_thrown_away() {
    for lost in [3, 8, 20] {
        let copy = changed("v0.33.0-py", |at, line| {
            (at != lost).then(|| line.to_owned())
        });
        assert_eq!(summary(&replay(copy.path(), &[]))["exact"], 34, "{lost}");
    }
}

#[test]
fn a_server_that_restarts_holds_nothing_from_its_first_request_on() {
    let copy = changed("v0.33.0-py", |_, line| Some(line.to_owned()));
    for file in ["events.jsonl", "requests.jsonl"] {
        let path = copy.path().join(file);
        let once = std::fs::read_to_string(&path).expect("the file");
        std::fs::write(&path, format!("{once}\n{once}")).expect("written");
    }
    assert_eq!(summary(&replay(copy.path(), &[]))["exact"], 68);
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
    let folder = harness::tokenizer().display().to_string();
    for recording in ["v0.20.2-bs32", "v0.32.0-bs32", "v0.33.0-py"] {
        let output = replay(&fixtures().join(recording), &["--tokenizer", &folder]);
        assert_eq!(
            summary(&output)["token_mismatches"],
            0,
            "{recording}: {output:?}"
        );
    }
}

#[test]
fn another_chat_template_is_found_where_it_first_says_something_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| harness::tokenizer().join(name);
    std::fs::copy(file("tokenizer.json"), folder.path().join("tokenizer.json")).expect("copied");
    let config = std::fs::read_to_string(file("tokenizer_config.json")).expect("run make setup");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    let template = config["chat_template"].as_str().expect("a template");
    let other = format!("<|im_start|>assistant\nHello.<|im_end|>\n{template}");
    config["chat_template"] = other.into();
    std::fs::write(
        folder.path().join("tokenizer_config.json"),
        config.to_string(),
    )
    .expect("written");
    let model = folder.path().display().to_string();
    let flags = ["--json", "--tokenizer", model.as_str()];
    let output = replay(&fixtures().join("v0.20.2-bs32"), &flags);
    let differing = differing(&output);
    assert!(differing.len() > 10, "{}", summary(&output));
    // Ours say "assistant" where the servers' say "system" or "user": the second token.
    let exact: Vec<_> = differing.iter().filter(|(_, _, exact)| *exact).collect();
    assert!(!exact.is_empty());
    assert!(
        exact.iter().all(|(_, position, _)| *position == 1),
        "{exact:?}"
    );
}
