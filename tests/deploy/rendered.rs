//! What Helm and `kubectl` would see of `deploy/`, as JSON.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;

use super::harness;
use super::harness::process::text;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

/// Helm and the schemas, where `make test` puts them.
pub fn python(script: &str, args: &[&Path]) -> Output {
    let mut command = Command::new(root().join(".tools/deploy/bin/python"));
    let ran = command.arg(root().join(script)).args(args).output();
    ran.expect("make test installs Helm and the schemas")
}

/// The files in a folder, and below it, that end so.
pub fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => found.extend(files(&path, end)),
            false if path.to_string_lossy().ends_with(end) => found.push(path),
            false => {}
        }
    }
    found.sort();
    found
}

/// The objects in these files, each of which fits its schema.
pub fn objects(files: &[PathBuf]) -> Vec<Value> {
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let read = python("tests/deploy/objects.py", &files);
    assert!(read.status.success(), "{}", text(&read.stderr));
    let all = text(&read.stdout);
    let all = all
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    all.collect()
}

/// The chart with such values: its objects, or Helm's complaint.
pub fn render(values: Option<&Path>) -> Result<Vec<Value>, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let args: Vec<&Path> = std::iter::once(folder.path()).chain(values).collect();
    let rendered = python("deploy/chart/render.py", &args);
    match rendered.status.success() {
        true => Ok(objects(&files(folder.path(), ".yaml"))),
        false => Err(text(&rendered.stderr)),
    }
}

/// The chart with its defaults, with the value sets of its folder `ci`, and with those of the examples.
pub static RENDERINGS: LazyLock<Vec<(String, Vec<Value>)>> = LazyLock::new(|| {
    let mut sets = files(&root().join("deploy/chart/kvscout/ci"), "-values.yaml");
    sets.extend(files(&root().join("deploy/examples"), "/values.yaml"));
    assert!(sets.len() >= 6, "{sets:?}");
    let rendered = |set: &PathBuf| {
        let name = set.display().to_string();
        let all = render(Some(set)).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, all)
    };
    let defaults = render(None).expect("the defaults render");
    std::iter::once(("defaults".to_owned(), defaults))
        .chain(sets.iter().map(rendered))
        .collect()
});

/// What `deploy/examples` holds beside value sets, by file.
pub static EXAMPLES: LazyLock<Vec<(String, Vec<Value>)>> = LazyLock::new(|| {
    let all = files(&root().join("deploy/examples"), ".yaml");
    let manifests = all
        .into_iter()
        .filter(|path| !path.ends_with("values.yaml"));
    let read = |path: PathBuf| (path.display().to_string(), objects(&[path]));
    manifests.map(read).collect()
});

pub fn each_rendering(mut check: impl FnMut(&str, &[Value])) {
    for (name, all) in RENDERINGS.iter() {
        check(name, all);
    }
}

/// A configuration with what is mounted in a cluster in place: a fleet's file, and a model's folder.
pub fn mounted(written: &str, folder: &Path) -> String {
    let fleet = "endpoints: [{name: pod-1, address: '10.0.0.7:8000'}]\n";
    let fleet = harness::process::write(folder, "fleet.yaml", fleet);
    let model = harness::tokenizer().display().to_string();
    let folders = [
        ("/etc/kvscout-fleet/fleet.yaml", fleet.as_str()),
        ("/fleet/fleet.yaml", &fleet),
        ("folder: /model/qwen", &format!("folder: {model}")),
    ];
    let put = |text: String, (there, here): (&str, &str)| text.replace(there, here);
    folders.into_iter().fold(written.to_owned(), put)
}

pub fn of<'a>(all: &'a [Value], kind: &str) -> impl Iterator<Item = &'a Value> {
    let kind = kind.to_owned();
    all.iter().filter(move |one| one["kind"] == *kind)
}

pub fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Pods' templates, by their owner's name.
pub fn pods(all: &[Value]) -> Vec<(&Value, &Value)> {
    let owners = all
        .iter()
        .filter(|one| one["spec"]["template"]["spec"].is_object());
    owners
        .map(|one| (&one["metadata"]["name"], &one["spec"]["template"]))
        .collect()
}

pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["spec"]["initContainers"]).chain(list(&pod["spec"]["containers"]))
}

/// The text of kvscout.yaml in a rendering.
pub fn configuration(all: &[Value]) -> &str {
    let mut found = of(all, "ConfigMap").filter_map(|map| map["data"]["kvscout.yaml"].as_str());
    found.next().expect("a configuration")
}

/// A whole number of kvscout.yaml, wherever it is.
pub fn number(text: &str, key: &str) -> Option<u64> {
    let line = |line: &str| -> Option<u64> {
        let value = line.trim().strip_prefix(key)?.strip_prefix(": ")?;
        Some(value.parse().expect("a whole number"))
    };
    text.lines().find_map(line)
}
