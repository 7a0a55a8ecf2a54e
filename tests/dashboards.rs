//! The dashboards and alert rules: what they ask for is declared, and a real Prometheus that scrapes a running
//! fleet answers it (`make test-dashboards`).

mod harness;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::{http, soon, stack};
use kvscout::metrics::families;
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

/// A Prometheus that scrapes kvscout every second and knows the alert rules; killed when dropped.
struct Prometheus {
    address: SocketAddr,
    _child: tokio::process::Child,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    async fn start(kvscout: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("bound");
        drop(free);
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [root().join("deploy/alerts/kvscout.yaml")],
            "scrape_configs": [{"job_name": "kvscout", "static_configs": [
                {"targets": [kvscout.to_string()], "labels": {"namespace": "llm"}}]}],
        });
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config.to_string()).expect("written");
        let child =
            tokio::process::Command::new(root().join(".tools/prometheus/usr/bin/prometheus"))
                .arg(format!("--config.file={}", file.display()))
                .arg(format!("--storage.tsdb.path={}", folder.path().display()))
                .arg(format!("--web.listen-address={address}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("run make test-dashboards");
        let started = Self {
            address,
            _child: child,
            _folder: folder,
        };
        // Rates need one from before the load.
        soon("Prometheus has scraped", async {
            while !started.has_data("kvscout_build_info").await {
                tokio::time::sleep(harness::PATIENCE / 100).await;
            }
        })
        .await;
        started
    }

    /// Whether an expression gives a number; it is a failure that Prometheus does not understand it.
    async fn has_data(&self, expr: &str) -> bool {
        let asked = form_urlencoded::Serializer::new(String::new());
        let asked = { asked }.append_pair("query", expr).finish();
        let Ok(answer) = http::try_get(self.address, &format!("/api/v1/query?{asked}")).await
        else {
            return false;
        };
        assert_eq!(answer.status, 200, "{expr}: {answer:?}");
        let answer = answer.json();
        let found = answer["data"]["result"].as_array().expect("a list");
        found.iter().any(|one| one["value"][1] != "NaN")
    }

    /// The alert rules, and how each fares.
    async fn rules(&self) -> Vec<Value> {
        let answer = http::get(self.address, "/api/v1/rules").await.json();
        let groups = answer["data"]["groups"].as_array().expect("groups");
        let rules = groups.iter().flat_map(|group| group["rules"].as_array());
        rules.flatten().cloned().collect()
    }
}

/// `make test-dashboards`, which brings Prometheus.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Prometheus: make test-dashboards"]
async fn every_panel_shows_something_of_a_fleet_that_serves_and_every_rule_is_understood() {
    let stack = stack::start(env!("CARGO_BIN_EXE_kvscout"), 3).await;
    let prometheus = Prometheus::start(stack.admin).await;
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
