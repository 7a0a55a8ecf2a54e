//! The `kvscout` process as an operator sees it.

mod harness;

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use harness::PATIENCE;
use harness::process::{ANY_PORT, Served, kvscout, output, text, write};

#[test]
fn help_teaches_every_command() {
    for command in [
        "serve", "bridge", "check", "replay", "tokenize", "record", "crds", "explain", "what-if",
        "audit",
    ] {
        let help = output(&[command, "--help"]);
        assert!(help.status.success(), "{command}");
        assert!(
            text(&help.stdout).lines().count() > 10,
            "{command}: {}",
            text(&help.stdout)
        );
    }
}

#[test]
fn tokenize_answers_every_line_it_is_given() {
    let folder = harness::tokenizer().display().to_string();
    let mut command = kvscout(&["tokenize", "--tokenizer", &folder]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kvscout runs");
    let mut stdin = child.stdin.take().expect("piped");
    writeln!(stdin, "{{\"id\": \"a\", \"text\": \"hello\"}}\nnot JSON").expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = text(&output.stdout);
    let lines: Vec<serde_json::Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines[0], serde_json::json!({"id": "a", "ids": [14990]}));
    assert!(lines[1]["error"].is_string() && lines.len() == 2, "{said}");
}

/// Nothing is wrong with a configuration, and so much is in it.
fn assert_checks(config: &str, found: &str) {
    let checked = output(&["check", config]);
    let said = text(&checked.stderr);
    assert!(checked.status.success() && said.contains(found), "{said}");
}

/// All of this is wrong with a configuration; what was said of it.
fn assert_refuses(config: &str, parts: &[&str]) -> String {
    let checked = output(&["check", config]);
    let said = text(&checked.stderr);
    assert_eq!(checked.status.code(), Some(1), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part}\n{said}");
    }
    said
}

#[test]
fn check_names_everything_that_is_wrong_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = write(
        folder.path(),
        "bad.yaml",
        "polcy: {}\nlisten: {admin: here}\n",
    );
    assert_refuses(
        &config,
        &[
            "line 1: polcy: is not a known key",
            "line 2: listen.admin: \"here\"",
        ],
    );
    write(
        folder.path(),
        "fleet.yaml",
        "endpoints: [{address: '10.0.0.1:8000'}]",
    );
    let config = write(folder.path(), "good.yaml", "log: json\n");
    assert_checks(&config, "0 models, 1 endpoints");
}

#[test]
fn check_looks_at_the_secrets_that_are_there_and_names_those_that_are_not() {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "fleet.yaml", "endpoints: []");
    for (name, text) in [
        ("tls.crt", "no PEM"),
        ("tls.key", "no PEM"),
        ("token", " \n"),
        ("short", "guess"),
    ] {
        write(folder.path(), name, text);
    }
    let tls = "tls: {mode: files, cert: tls.crt, key: tls.key}\n";
    let bad = format!("{tls}listen: {{admin_token: token}}\nevents: {{keys_secret: short}}\n");
    let bad = write(folder.path(), "bad.yaml", &bad);
    assert_refuses(
        &bad,
        &[
            "bad.yaml: listen.admin_token: ",
            "token is empty",
            "bad.yaml: tls: ",
            "tls.crt is not PEM with ",
            "bad.yaml: events.keys_secret: ",
            "holds 5 bytes",
        ],
    );
    std::fs::remove_file(folder.path().join("tls.key")).expect("removed");
    let elsewhere =
        format!("{tls}events: {{source: nats, nats: {{credentials: /nowhere/user.creds}}}}\n");
    let elsewhere = write(folder.path(), "elsewhere.yaml", &elsewhere);
    assert_checks(&elsewhere, "0 models, 0 endpoints");
    for field in [
        "tls.key: ",
        "events.nats.credentials: /nowhere/user.creds is not on this host",
    ] {
        assert_checks(&elsewhere, field);
    }
}

#[test]
fn the_shipped_example_checks() {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kvscout.yaml");
    assert_checks(config, "0 models, 4 endpoints");
}

#[test]
fn the_printed_configuration_has_the_flags_in_it_and_checks() {
    let printed = output(&[
        "serve",
        "--print-config",
        "--admin",
        "127.0.0.1:1234",
        "--plaintext",
    ]);
    assert!(printed.status.success(), "{}", text(&printed.stderr));
    let yaml = text(&printed.stdout);
    assert!(
        yaml.contains("admin: \"127.0.0.1:1234\"") && yaml.contains("mode: off"),
        "{yaml}"
    );
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "fleet.yaml", "endpoints: []");
    let config = write(folder.path(), "kvscout.yaml", &yaml);
    assert_checks(&config, "0 models, 0 endpoints");
}

#[test]
fn what_cannot_be_served_is_said_before_anything_listens() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = write(folder.path(), "kvscout.yaml", ANY_PORT);
    let missing = output(&["serve", "--config", &config]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(
        text(&missing.stderr).contains("fleet.yaml: cannot be read"),
        "{}",
        text(&missing.stderr)
    );

    write(folder.path(), "fleet.yaml", "endpoints: []");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let refused = output(&["serve", "--config", &config, "--admin", &address]);
    assert_eq!(refused.status.code(), Some(2));
    let said = text(&refused.stderr);
    assert!(
        said.contains("listen.admin") && said.contains(&address) && said.contains("--admin"),
        "{said}"
    );

    let model = output(&["serve", "--config", &config, "--model", "/model/qwen"]);
    assert_eq!(model.status.code(), Some(2));
    let said = text(&model.stderr);
    assert!(said.contains("is not NAME=DIR"), "{said}");
}

#[test]
fn check_loads_what_serve_would_load() {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "fleet.yaml", "endpoints: [{}]");
    write(
        folder.path(),
        "tokenizer_config.json",
        "{\"chat_template\": \"{% if %}\"}",
    );
    let models = "models: [{names: [a], folder: nowhere}, {names: [b], folder: .}, {names: [c], hub: {repo: a/b}}]";
    let config = write(folder.path(), "bad.yaml", models);
    let said = assert_refuses(
        &config,
        &[
            "bad.yaml: models[0].folder: ",
            "nowhere/tokenizer_config.json",
            "bad.yaml: models[1].folder: the chat template \"default\" does not compile",
            "fleet.yaml: line 1: endpoints[0].address",
        ],
    );
    assert!(!said.contains("models[2]"), "the hub is not asked: {said}");
    write(folder.path(), "fleet.yaml", "endpoints: []");
    let qwen = harness::tokenizer();
    let models = format!(
        "models: [{{names: [a], folder: {:?}}}]",
        qwen.display().to_string()
    );
    assert_checks(
        &write(folder.path(), "good.yaml", &models),
        "1 models, 0 endpoints",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_does_not_load_is_named_and_mends_without_a_restart() {
    let hub = harness::hub::FakeHub::start().await;
    let qwen = harness::tokenizer();
    let read = |name: &str| std::fs::read_to_string(qwen.join(name)).expect("run make setup");
    let files = ["tokenizer.json", "tokenizer_config.json"].map(|name| (name, read(name)));
    hub.commit(
        '1',
        &files.each_ref().map(|(name, text)| (*name, text.as_str())),
    );
    hub.set_mood(harness::hub::Mood::Broken);
    hub.require("hf_secret");
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "fleet.yaml", "endpoints: []");
    let models = "models_cache: cache\nmodels:\n  - {names: [far], hub: {repo: owner/name}}\n  - {names: [near], folder: near}\n";
    let config = write(
        folder.path(),
        "kvscout.yaml",
        &format!("{ANY_PORT}{models}"),
    );
    let set = [
        ("HF_ENDPOINT", hub.endpoint()),
        ("HF_TOKEN", "hf_secret".to_owned()),
    ];
    let served = Served::start_with(&["--config", &config], &set);
    let admin = served.admin();
    let get = async |path: &str| {
        let answer = harness::http::get(admin, path).await;
        (answer.status, text(&answer.body))
    };
    let until = async |what: &str, condition: &dyn Fn(u16, &str) -> bool| {
        harness::soon(what, async {
            loop {
                let (status, said) = get("/readyz").await;
                if condition(status, &said) {
                    return said;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    };
    let said = until("ready all the same", &|status, _| status == 200).await;
    assert!(said.starts_with("ready\n"), "{said}");
    for part in [
        "\nmodel far: is not loaded, so that load decides: http://127.0.0.1:",
        "500 Internal Server Error",
        "\nmodel near: is not loaded, so that load decides: ",
        "near/tokenizer_config.json",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert!(
        get("/metrics")
            .await
            .1
            .contains("kvscout_model_loaded{model=\"far\"} 0")
    );

    hub.set_mood(harness::hub::Mood::Fine);
    std::os::unix::fs::symlink(&qwen, folder.path().join("near")).expect("a link");
    until("both are loaded", &|_, said| said == "ready\n").await;
    let metrics = get("/metrics").await.1;
    for line in [
        "kvscout_model_loaded{model=\"far\"} 1",
        "kvscout_model_loaded{model=\"near\"} 1",
        "kvscout_model_load_failures_total{model=\"near\"}",
        "kvscout_tokenizer_waiting 0",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert!(folder.path().join("cache/owner--name").is_dir());
}

#[test]
fn it_serves_rereads_its_fleet_and_ends_when_told() {
    let folder = tempfile::tempdir().expect("a folder");
    write(
        folder.path(),
        "fleet.yaml",
        "endpoints: [{address: '127.0.0.1:1'}]",
    );
    let config = write(folder.path(), "kvscout.yaml", ANY_PORT);
    let mut served = Served::start(&["--config", &config]);
    let admin = served.admin();
    let get = |path: &str| {
        use std::io::Read;
        let mut stream = std::net::TcpStream::connect(admin).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    assert!(
        get("/healthz").starts_with("HTTP/1.1 200"),
        "{}",
        get("/healthz")
    );
    assert!(
        get("/readyz").starts_with("HTTP/1.1 200"),
        "{}",
        get("/readyz")
    );
    assert!(get("/metrics").contains("kvscout_endpoint_requests{endpoint=\"127.0.0.1:1\"} 0"));
    assert!(get("/nothing").starts_with("HTTP/1.1 404"));

    write(
        folder.path(),
        "fleet.yaml",
        "endpoints: [{addres: '127.0.0.1:1'}]",
    );
    let line = served.line("the fleet stays as it was");
    let line = if line.contains("addres") {
        line
    } else {
        served.line("addres")
    };
    assert!(line.contains("endpoints[0].addres"), "{line}");
    write(
        folder.path(),
        "fleet.yaml",
        "endpoints: [{name: new, address: '127.0.0.1:2'}]",
    );
    served.line("fleet read");
    assert!(get("/metrics").contains("kvscout_endpoint_requests{endpoint=\"new\"} 0"));

    served.terminate();
    served.line("draining");
    served.line("ended");
    let status = served.child.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
}
