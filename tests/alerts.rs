//! The alert rules: promtool tests what they do (`make alerts`), this what they refer to.

use std::fs;
use std::path::{Path, PathBuf};

use kvscout::metrics::families;
use marked_yaml::Node;
use marked_yaml::types::MarkedMappingNode;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn text(node: &MarkedMappingNode, key: &str) -> String {
    let value = node.get_scalar(key);
    value
        .unwrap_or_else(|| panic!("no {key}"))
        .as_str()
        .to_owned()
}

/// Every rule of the file, checked one by one.
fn each_rule(mut check: impl FnMut(&str, &MarkedMappingNode)) {
    let file = marked_yaml::parse_yaml(0, read("deploy/alerts/kvscout.yaml")).expect("YAML");
    let groups = file
        .as_mapping()
        .and_then(|file| file.get_sequence("groups"));
    let mut rules = 0;
    for group in groups.expect("groups").iter().filter_map(Node::as_mapping) {
        let of_group = group.get_sequence("rules").expect("rules");
        for rule in of_group.iter().filter_map(Node::as_mapping) {
            check(&text(rule, "alert"), rule);
            rules += 1;
        }
    }
    assert!(rules > 0, "no rule was found");
}

#[test]
fn an_alert_asks_for_families_that_are_declared() {
    each_rule(|name, rule| {
        let expr = text(rule, "expr");
        let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let asked: Vec<&str> = words.filter(|word| word.starts_with("kvscout_")).collect();
        assert!(!asked.is_empty(), "{name} asks for nothing of ours");
        for series in asked {
            let declared = families::of_series(series);
            assert!(declared.is_some(), "{name}: {series} is not declared");
        }
    });
}

#[test]
fn an_alert_says_what_happened_and_where_its_runbook_is() {
    each_rule(|name, rule| {
        let notes = rule.get_mapping("annotations").expect("annotations");
        assert!(!text(notes, "summary").is_empty() && !text(notes, "description").is_empty());
        let link = text(notes, "runbook_url");
        let (file, anchor) = link.split_once('#').expect("a section");
        let heading = |line: &str| {
            line.strip_prefix("## ")
                .map(|h| h.to_lowercase().replace(' ', "-"))
        };
        let runbook = read(file);
        let found = runbook
            .lines()
            .filter_map(heading)
            .any(|heading| heading == anchor);
        assert!(found, "{name}: {file} has no section {anchor}");
    });
}

#[test]
fn every_alert_is_tested_by_promtool() {
    let tests = read("deploy/alerts/tests/kvscout.yaml");
    each_rule(|name, _| {
        let tested = format!("alertname: {name}");
        assert!(tests.contains(&tested), "{name} has no test");
    });
}
