//! The operators' book: its commands run, its output comes, its links lead somewhere.

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::http::{self, full, post};
use harness::process::{ANY_PORT, Served, text, write};
use harness::{sim, soon, tokenizer};
use kvscout_sim::server;
use serde_json::json;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

/// Chapters by name.
fn chapters() -> Vec<(String, String)> {
    let files = fs::read_dir(root().join("docs")).expect("docs/");
    let files = files.map(|entry| entry.expect("an entry").path());
    let chapters = files.filter(|file| file.extension().is_some_and(|ending| ending == "md"));
    let read = |file: PathBuf| {
        let name = file
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        (name, fs::read_to_string(&file).expect("a chapter"))
    };
    chapters.map(read).collect()
}

/// A command, and parts of what it is to print, in order.
#[derive(Debug)]
struct Shown {
    chapter: String,
    command: String,
    output: Vec<String>,
}

/// Of blocks marked `console`: lines with `$` and what follows each.
fn commands() -> Vec<Shown> {
    let mut all: Vec<Shown> = Vec::new();
    for (chapter, text) in chapters() {
        let mut inside = false;
        for line in text.lines().map(str::trim_start) {
            match (inside, line.strip_prefix("$ ")) {
                (_, None) if line.starts_with("```") => inside = line == "```console",
                (true, Some(command)) => all.push(Shown {
                    chapter: chapter.clone(),
                    command: command.to_owned(),
                    output: Vec::new(),
                }),
                (true, None) => {
                    let shown = all.last_mut().expect("a command before its output");
                    shown.output.push(line.to_owned());
                }
                (false, _) => {}
            }
        }
    }
    assert!(all.len() > 10, "{all:#?}");
    all
}

/// A picker of two servers that hold what request.json asks.
async fn served(folder: &Path) -> (Served, [server::Bound; 2]) {
    let pods = [sim::pod(64, 0, None).await, sim::pod(64, 1, None).await];
    let pods = pods.map(|pod| pod.expect("a server"));
    write(folder, "fleet.yaml", &sim::fleet_yaml(&pods, ""));
    let model = tokenizer().display().to_string();
    let config = format!("{ANY_PORT}models: [{{names: [sim], folder: '{model}'}}]\n");
    let served = Served::start(&[
        "--plaintext",
        "--config",
        &write(folder, "served.yaml", &config),
    ]);
    let words = "Where does a request go whose beginning is cached in one place? ".repeat(4);
    let request =
        json!({"model": "sim", "messages": [{"role": "user", "content": words}]}).to_string();
    write(folder, "request.json", &request);
    // What a server has told nothing of is not live.
    for pod in &pods {
        let asked = post("/v1/chat/completions").body(full(request.clone()));
        let answer = http::send(pod.addresses.http, asked.expect("a request")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    (served, pods)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_book_does_what_it_shows() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let (served, _pods) = served(folder).await;
    let admin = served.admin();
    soon("both are live, and the model is loaded", async {
        let live = |all: &serde_json::Value| (0..2).all(|at| all[at]["trust"] == "live");
        while !live(&http::get(admin, "/endpoints").await.json())
            || http::get(admin, "/readyz").await.status != 200
        {
            tokio::time::sleep(harness::PATIENCE / 1000).await;
        }
    })
    .await;
    fs::create_dir(folder.join("deploy")).expect("a folder");
    for file in ["kvscout.yaml", "fleet.yaml"] {
        fs::copy(
            root().join("deploy").join(file),
            folder.join("deploy").join(file),
        )
        .expect("copied");
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_kvscout"));
    let binaries = binary.parent().expect("a folder").display();
    let path = format!("{binaries}:{}", std::env::var("PATH").expect("a path"));
    for Shown {
        chapter,
        command,
        output,
    } in commands()
    {
        // Both streams as a terminal shows them.
        let command = format!(
            "exec 2>&1; {}",
            command.replace("localhost:9090", &admin.to_string())
        );
        let mut shell = Command::new("bash");
        shell.args(["-o", "pipefail", "-c", &command]);
        let ended = shell
            .current_dir(folder)
            .env("PATH", &path)
            .output()
            .expect("a shell");
        let said = text(&ended.stdout);
        assert!(ended.status.success(), "{chapter}: {command}\n{said}");
        let mut rest = &said[..];
        for part in output {
            let Some(at) = rest.find(&part) else {
                panic!("{chapter}: {command}\nsays no {part:?}:\n{said}");
            };
            rest = &rest[at + part.len()..];
        }
    }
}

/// GitHub's: words in lower case with hyphens, without what is neither.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_link_of_the_book_leads_somewhere() {
    let mut links = 0;
    for (chapter, text) in chapters() {
        for rest in text.split("](").skip(1) {
            let link = rest.split(')').next().expect("an end");
            if link.contains("://") {
                continue;
            }
            let (file, section) = link.split_once('#').unwrap_or((link, ""));
            let file = if file.is_empty() { &chapter } else { file };
            let path = root().join("docs").join(file);
            assert!(path.exists(), "{chapter}: {link}");
            if !section.is_empty() {
                let target = fs::read_to_string(&path).expect("a chapter");
                let headings = target.lines().filter_map(|line| line.strip_prefix("## "));
                let found = headings.map(anchor).any(|known| known == section);
                assert!(found, "{chapter}: {link}");
            }
            links += 1;
        }
    }
    assert!(links > 20, "{links}");
}
