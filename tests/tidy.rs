//! The house's laws, read off its own source.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

/// The library's modules in the order that `lib.rs` declares them.
fn modules() -> Vec<String> {
    let lib = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let declared = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    declared.map(str::to_owned).collect()
}

/// Every source file below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// A file's path from `src/`, its module, and its code: comments and unit tests left out.
fn rooms() -> Vec<(String, String, String)> {
    let src = root().join("src");
    let mut rooms = Vec::new();
    for path in sources(&src) {
        let name = path
            .strip_prefix(&src)
            .expect("below src")
            .display()
            .to_string();
        let module = name
            .split(['/', '.'])
            .next()
            .expect("a first part")
            .to_owned();
        if name.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source file");
        let code = text.split("#[cfg(test)]").next().expect("a first part");
        let lines = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        rooms.push((name, module, lines.collect::<Vec<_>>().join("\n")));
    }
    rooms
}

/// The words that follow `crate::` in a text: `crate::a` gives a, `crate::{a, b::c}` a and b.
fn imported(code: &str) -> Vec<String> {
    let word = |text: &str| {
        text.trim()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let mut words = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => words.extend(list.split('}').next().unwrap_or("").split(',').map(word)),
            None => words.push(word(rest)),
        }
    }
    words
}

#[test]
fn imports_point_up_the_page() {
    let modules = modules();
    assert!(
        modules.len() > 10,
        "lib.rs declares the modules: {modules:?}"
    );
    let place = |name: &str| modules.iter().position(|module| module == name);
    let mut wrong = Vec::new();
    for (name, module, code) in rooms() {
        let Some(own) = place(&module) else { continue };
        for used in imported(&code) {
            if place(&used).is_some_and(|used| used > own) {
                wrong.push(format!(
                    "{name} uses {used}, which lib.rs declares below {module}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Plain functions from value to value: no task, no clock, no socket, no file.
const CORE: &[&str] = &[
    "prompt/",
    "blocks.rs",
    "fleet/load",
    "fleet/report",
    "index",
    "parity",
    "choice",
    "audit/",
    "decisions/json.rs",
    "decisions/what_if.rs",
    "spans/stages.rs",
    "routes.rs",
    "kubernetes/resources.rs",
    "kubernetes/objects.rs",
    "kubernetes/pods.rs",
    "kubernetes/rules.rs",
    "kubernetes/cluster",
    "kubernetes/election.rs",
    "admission/line.rs",
    "replicas/wire.rs",
    "replicas/own.rs",
    "replicas/peers",
    "events/wire",
    "events/order.rs",
    "events/follow.rs",
    "events/silence.rs",
    "ext_proc/exchange",
    "ext_proc/reply",
    "ext_proc/restore",
    "ext_proc/usage",
];

#[test]
fn the_core_never_waits() {
    let mut wrong = Vec::new();
    for (name, _, code) in rooms() {
        if CORE.iter().any(|core| name.starts_with(core)) {
            for word in [
                "async fn",
                ".await",
                "tokio::",
                "Instant::now",
                "SystemTime::now",
                "std::net::Tcp",
            ] {
                if code.contains(word) {
                    wrong.push(format!("{name}: {word}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Who reads the wall clock, which may jump: to say when something was, in a prompt, a log line or a measured
/// lag, and beside events' own stamps. Deadlines, ages and intervals are monotonic.
const WALL_CLOCK: &[&str] = &[
    "prompt/template",
    "models.rs",
    "decisions.rs",
    "parity.rs",
    "spans.rs",
    "scheduler/placement.rs",
    "events/listen/tell.rs",
    "kubernetes/",
    "tools/",
];

#[test]
fn no_deadline_rests_on_the_wall_clock() {
    let mut wrong = Vec::new();
    for (name, _, code) in rooms() {
        let may = WALL_CLOCK.iter().any(|room| name.starts_with(room));
        for word in ["SystemTime", "Timestamp::now", "Utc::now"] {
            if !may && code.contains(word) {
                wrong.push(format!("{name}: {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_is_unbounded() {
    let mut wrong = Vec::new();
    let simulator = root().join("simulator/src");
    for path in sources(&root().join("src"))
        .into_iter()
        .chain(sources(&simulator))
    {
        let text = fs::read_to_string(&path).expect("a source file");
        for word in [
            "unbounded_channel",
            "mpsc::unbounded",
            "std::sync::mpsc::channel()",
        ] {
            if text.contains(word) {
                wrong.push(format!("{}: {word}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_is_left_unfinished() {
    let mut wrong = Vec::new();
    for folder in ["src", "simulator", "tests"] {
        for path in sources(&root().join(folder)) {
            let text = fs::read_to_string(&path).expect("a source file");
            // Split, so that this file does not find itself.
            for word in [
                concat!("todo", "!("),
                concat!("unimplemented", "!("),
                concat!("FIX", "ME"),
                concat!("#[ig", "nore]"),
            ] {
                if text.contains(word) {
                    wrong.push(format!("{}: {word}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Names and versions that a `Cargo.lock` holds.
fn locked(file: &str) -> Vec<(String, String)> {
    let lock = fs::read_to_string(root().join(file)).expect(file);
    let field = |package: &str, name: &str| {
        let mut lines = package.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        value.map(|value| value.trim_matches('"').to_owned())
    };
    let packages = lock.split("[[package]]").skip(1);
    packages
        .filter_map(|package| Some((field(package, "name")?, field(package, "version")?)))
        .collect()
}

/// What a `Cargo.toml` asks for: names and versions, without what says "that of the workspace".
fn asked_for(manifest: &str) -> Vec<(String, String)> {
    let mut asked = Vec::new();
    let mut is_dependency = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_dependency = line.contains("dependencies");
        }
        let Some((name, what)) = line.split_once(" = ").filter(|_| is_dependency) else {
            continue;
        };
        let version = what.strip_prefix("{ version = ").unwrap_or(what);
        let version = version
            .strip_prefix('"')
            .and_then(|rest| rest.split('"').next());
        if let Some(version) = version {
            asked.push((name.to_owned(), version.trim_start_matches('=').to_owned()));
        }
    }
    asked
}

// Whoever resolves dependencies anew, to the oldest that we allow, gets what was tested.
#[test]
fn the_oldest_version_asked_for_is_the_one_tested() {
    // The index bench builds kvscout, too, with an older tokio that a peer holds on to.
    let mut known = locked("Cargo.lock");
    known.extend(locked("simulator/index-bench/Cargo.lock"));
    let mut asked = 0;
    for manifest in ["Cargo.toml", "simulator/Cargo.toml"] {
        let text = fs::read_to_string(root().join(manifest)).expect("a manifest");
        for (name, version) in asked_for(&text) {
            asked += 1;
            let is_tested = known.iter().any(|(known, tested)| {
                // What follows a plus sign names a build, and asks for nothing.
                *known == name && tested.split('+').next() == Some(&version)
            });
            assert!(
                is_tested,
                "{manifest}: {name} {version} is in no Cargo.lock"
            );
        }
    }
    assert!(asked > 60, "read only {asked} dependencies");
}
