//! The dashboards and alert rules: what they ask for is declared, and a real Prometheus that scrapes a running
//! fleet answers it (`make test-dashboards`).

mod harness;

#[path = "dashboards/alerts.rs"]
mod alerts;
#[path = "dashboards/prometheus.rs"]
mod prometheus;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::stack;
use kvscout::metrics::families;
use prometheus::Prometheus;
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

/// One query of a panel.
#[derive(Debug)]
struct Query {
    place: String,
    expr: String,
    /// The panel says when it has nothing to show.
    may_be_empty: bool,
}

fn dashboards() -> Vec<(String, Value)> {
    let folder = fs::read_dir(root().join("deploy/grafana")).expect("a folder");
    let files = folder.map(|entry| entry.expect("an entry").path());
    let boards = files.filter(|file| file.extension().is_some_and(|ending| ending == "json"));
    let read = |file: PathBuf| {
        let board = serde_json::from_str(&fs::read_to_string(&file).expect("a file"));
        (file.display().to_string(), board.expect("JSON"))
    };
    boards.map(read).collect()
}

fn queries() -> Vec<Query> {
    let mut all = Vec::new();
    for (_, board) in dashboards() {
        let title = board["title"].as_str().expect("a title").to_owned();
        for panel in board["panels"].as_array().expect("panels") {
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            let why = text(&panel["description"]);
            for target in panel["targets"].as_array().expect("targets") {
                all.push(Query {
                    place: format!("{title}: {}", text(&panel["title"])),
                    expr: text(&target["expr"]),
                    may_be_empty: why.starts_with("Empty "),
                });
            }
        }
    }
    assert!(all.len() > 60, "{}", all.len());
    all
}

#[test]
fn a_panel_asks_for_families_that_are_declared_and_labels_that_they_have() {
    // Prometheus' own, and a histogram's.
    let labels = ["namespace", "instance", "le"];
    for Query { place, expr, .. } in queries() {
        let words = || expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let series: Vec<&str> = words()
            .filter(|word| word.starts_with("kvscout_"))
            .collect();
        assert!(!series.is_empty(), "{place}: {expr}");
        let asked = series.iter().map(|one| match families::of_series(one) {
            Some(family) => family,
            None => panic!("{place}: {one} is not declared"),
        });
        let asked: Vec<_> = asked.collect();
        let known = |label: &str| {
            let mut theirs = asked.iter().flat_map(|family| family.labels);
            labels.contains(&label) || theirs.any(|one| *one == label)
        };
        let by = expr
            .split(" by (")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for label in by.flat_map(|list| list.split(", ")) {
            assert!(known(label), "{place}: no family there has {label}");
        }
    }
}

#[test]
fn dashboards_are_what_their_source_makes_and_have_the_variables() {
    let source = root().join("deploy/grafana/dashboards.py");
    let checked = Command::new("python3").arg(source).arg("--check").output();
    let checked = checked.expect("Python is a prerequisite");
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
    let boards = dashboards();
    assert_eq!(boards.len(), 4);
    for (file, board) in boards {
        let variables = board["templating"]["list"].as_array().expect("variables");
        let names: Vec<_> = variables.iter().map(|one| one["name"].as_str()).collect();
        assert_eq!(
            names,
            [Some("datasource"), Some("namespace"), Some("pool")],
            "{file}"
        );
    }
}

/// `make test-dashboards`, which brings Prometheus.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Prometheus: make test-dashboards"]
async fn every_panel_shows_something_of_a_fleet_that_serves_and_every_rule_is_understood() {
    let stack = stack::start(env!("CARGO_BIN_EXE_kvscout"), 3).await;
    let prometheus = Prometheus::start(&[("llm", stack.admin)], &alerts::rules()).await;
    stack::converse(&stack).await;
    let mut empty = Vec::new();
    for Query {
        place,
        expr,
        may_be_empty,
    } in queries()
    {
        // What Grafana puts there.
        let expr = expr
            .replace("$__rate_interval", "2m")
            .replace("$__range", "2m")
            .replace("$namespace", "llm")
            .replace("$pool", "default");
        assert!(!expr.contains('$'), "{place}: {expr}");
        if prometheus.has_data(&expr).await || may_be_empty {
            continue;
        }
        let data = async {
            while !prometheus.has_data(&expr).await {
                tokio::time::sleep(harness::PATIENCE / 100).await;
            }
        };
        if tokio::time::timeout(harness::PATIENCE / 4, data)
            .await
            .is_err()
        {
            empty.push(format!("{place}: {expr}"));
        }
    }
    assert!(empty.is_empty(), "{empty:#?}");
    let rules = prometheus.rules().await;
    assert_eq!(rules.len(), 7);
    for rule in rules {
        assert_eq!(
            (&rule["health"], &rule["state"]),
            (&json!("ok"), &json!("inactive")),
            "{rule}"
        );
    }
    stack.stop().await;
}
