//! What an operator can ask of decisions: explanations, recent ones, their log, and how predictions came out.

mod harness;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use harness::exchange::{Exchange, channel};
use harness::http::{self, full, post};
use harness::process::{ANY_PORT, Served, kvscout, text, write};
use harness::{sim, soon, tokenizer};
use hyper::Request;
use kvscout_sim::server;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};

/// A picker of two simulated servers, as the process runs it.
struct World {
    served: Served,
    ext_proc: SocketAddr,
    admin: SocketAddr,
    pods: Vec<server::Bound>,
    folder: tempfile::TempDir,
}

impl World {
    async fn start(more: &str) -> Self {
        let mut pods = Vec::new();
        for seed in 0..2 {
            pods.push(sim::pod(64, seed, None).await.expect("a server"));
        }
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), "fleet.yaml", &sim::fleet_yaml(&pods, ""));
        let model = tokenizer().display().to_string();
        let config = format!("{ANY_PORT}models: [{{names: [sim], folder: '{model}'}}]\n{more}");
        let config = write(folder.path(), "kvscout.yaml", &config);
        let served = Served::start(&["--config", &config, "--plaintext"]);
        let (ext_proc, admin) = served.addresses();
        let world = Self {
            served,
            ext_proc,
            admin,
            pods,
            folder,
        };
        // Sent past the picker: what it then knows, events have told it.
        let address = world.pods[1].addresses.http;
        let request = post("/v1/completions").body(full(prompt(100)));
        let answer = http::send(address, request.expect("a request")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        soon("both are live, and pod-1 holds the prompt", async {
            while !world.holds().await {
                tokio::time::sleep(harness::PATIENCE / 1000).await;
            }
        })
        .await;
        world
    }

    async fn holds(&self) -> bool {
        let all = self.get("/endpoints").await;
        let ready = http::get(self.admin, "/readyz").await.status == 200;
        ready && all[1]["trust"] == "live" && all[1]["blocks"].as_u64() > Some(0)
    }

    /// A page, asked for as a person on this host does.
    async fn get(&self, page: &str) -> Value {
        let request = Request::get(page).header("host", "localhost");
        let request = request.body(full("")).expect("a request");
        let answer = http::send(self.admin, request).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Runs a command that asks the admin port, with this on its stdin.
    fn run(&self, args: &[&str], stdin: &str) -> Output {
        let admin = self.admin.to_string();
        let mut command = kvscout(args);
        command.args(["--admin", &admin]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kvscout runs");
        let mut pipe = child.stdin.take().expect("piped");
        // A command that does not read has closed it.
        let _ = pipe.write_all(stdin.as_bytes());
        drop(pipe);
        child.wait_with_output().expect("it ends")
    }

    /// Places a request and answers it as a server that found so many tokens cached; the decision header.
    async fn ask(&self, id: &str, cached_tokens: u64) -> Option<String> {
        let mut exchange = Exchange::open(channel(self.ext_proc).await).await;
        let said = [(":path", "/v1/completions"), ("x-request-id", id)];
        exchange.placed(&said, prompt(100)).await;
        let usage = json!({"usage": {"prompt_tokens": 100, "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": cached_tokens}}});
        let added = exchange.answered(usage.to_string()).await;
        exchange.ended().await;
        let (name, value) = added.into_iter().next()?;
        assert_eq!(name, "x-kvscout-decision");
        Some(value)
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("decisions.jsonl")
    }
}

/// A completion of so many token ids, none of which is in any page below: 71,000 and up.
fn prompt(tokens: u32) -> String {
    let tokens: Vec<u32> = (0..tokens).map(|at| 71_000 + at).collect();
    json!({"model": "sim", "prompt": tokens, "max_tokens": 1}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_explained_before_it_is_sent() {
    let world = World::start("").await;
    let ask = |more: &[&str]| {
        let args = [&["explain", "--path", "/v1/completions"], more].concat();
        world.run(&args, &prompt(100))
    };
    let told = ask(&[]);
    assert!(told.status.success(), "{}", text(&told.stderr));
    let told = text(&told.stdout);
    assert!(
        told.contains("prompt: 100 tokens, 6 blocks of 16\n"),
        "{told}"
    );
    let winner = "winner: pod-1 by prefix, 96 of 100 tokens cached there (live); before pod-0 by 96 prefill_tokens\n";
    assert!(told.contains(winner), "{told}");
    let table: Vec<&str> = told
        .lines()
        .skip_while(|line| !line.starts_with("endpoint"))
        .collect();
    assert!(table.len() == 3 && table[1].starts_with("pod-1 "), "{told}");

    let otherwise = ask(&["--without", "pod-1", "--json"]);
    let otherwise: Value = serde_json::from_slice(&otherwise.stdout).expect("JSON");
    assert_eq!(otherwise["endpoint"], "pod-0", "{otherwise}");
    assert_eq!(otherwise["candidates"].as_array().map(Vec::len), Some(1));
    let stranger = ask(&["--without", "pod-7"]);
    assert_eq!(stranger.status.code(), Some(2));
    assert!(
        text(&stranger.stderr).contains("no endpoint is called \"pod-7\""),
        "{stranger:?}"
    );

    let none = world.get("/decisions").await;
    assert_eq!(none, json!({"decisions": []}), "nothing was placed");
    assert!(!told.contains("71000") && !otherwise.to_string().contains("71000"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_found_by_its_request_id_and_replayed_from_the_log() {
    let mut world = World::start(
        "replies: {decision_header: true}\ndecisions: {log: {file: decisions.jsonl}}\n",
    )
    .await;
    let header = world.ask("id-1", 96).await.expect("a decision header");
    assert!(
        header.starts_with("endpoint=pod-1; by=prefix; basis=overlap; trust=live"),
        "{header}"
    );
    assert!(header.contains("lead=prefill_tokens:96"), "{header}");
    world.ask("id-2", 80).await;

    let whole = world.get("/decisions/id-1").await;
    assert_eq!(whole["candidates"][0]["cached"]["own"], 96, "{whole}");
    assert_eq!(whole["outcome"]["verdict"], "exact", "{whole}");
    let newest = world.get("/decisions?limit=1").await;
    let newest = &newest["decisions"][0];
    assert_eq!(
        (&newest["id"], &newest["number"]),
        (&json!("id-2"), &json!(2))
    );
    assert_eq!(newest["outcome"]["verdict"], "over", "{newest}");
    assert_eq!(newest["outcome"]["cause"], "last_block", "{newest}");
    let later = world.get("/decisions?after=2").await;
    assert_eq!(later, json!({"decisions": []}));

    let audit = world.run(&["audit"], "");
    let told = text(&audit.stdout);
    assert!(audit.status.success(), "a last block excuses: {told}");
    let all = told.lines().last().expect("a line of all");
    let words: Vec<&str> = all.split_whitespace().collect();
    assert_eq!(words[..5], ["all", "2", "50.0", "%", "1"], "{told}");

    let log = world.log();
    soon("both are written", async {
        while std::fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 2 {
            tokio::time::sleep(harness::PATIENCE / 1000).await;
        }
    })
    .await;
    assert!(
        !std::fs::read_to_string(&log)
            .expect("a log")
            .contains("71000")
    );
    let log = log.display().to_string();
    let what_if = |more: &[&str]| {
        let output = kvscout(&[&["what-if"], more, &[&log]].concat()).output();
        let output = output.expect("kvscout runs");
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    };
    let same = what_if(&[]);
    assert!(
        same.contains("2 decisions, 2 made again as they were\n0 change"),
        "{same}"
    );
    let gone = what_if(&["--without", "pod-1"]);
    assert!(gone.contains("2 change (100.0 %)"), "{gone}");
    let otherwise = gone.lines().last().expect("a line");
    let words: Vec<&str> = otherwise.split_whitespace().collect();
    assert_eq!(
        words[1..3],
        ["0", "200"],
        "nothing cached, all computed: {gone}"
    );

    // What waits to be written when it is told to end is written.
    for id in ["id-3", "id-4", "id-5"] {
        world.ask(id, 96).await;
    }
    world.served.terminate();
    world.served.ended().await;
    let lines = std::fs::read_to_string(&log).expect("a log");
    assert_eq!(lines.lines().count(), 5, "{lines}");
    assert!(lines.trim_end().ends_with('}') && lines.contains("\"id-5\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_shows_cached_prompts_is_for_whoever_may_ask() {
    let world = World::start("decisions: {pages: off}\n").await;
    for (page, status) in [("/decisions", 403), ("/endpoints", 200), ("/audit", 200)] {
        let request = Request::get(page).header("host", "localhost");
        let request = request.body(full("")).expect("a request");
        let answer = http::send(world.admin, request).await;
        assert_eq!(answer.status, status, "{page}: {answer:?}");
    }
    let refused = world.run(&["explain"], "{}");
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        text(&refused.stderr).contains("decisions.pages"),
        "{refused:?}"
    );
}

/// `/dev/full` takes no byte, as a full disk does.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_lines_of_the_log_and_no_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let fleet = "endpoints: [{name: pod-0, address: '127.0.0.1:1'}]\n";
    write(folder.path(), "fleet.yaml", fleet);
    let config = format!("{ANY_PORT}decisions: {{log: {{file: /dev/full}}}}\n");
    let config = write(folder.path(), "kvscout.yaml", &config);
    let served = Served::start(&["--config", &config, "--plaintext"]);
    let (ext_proc, admin) = served.addresses();
    let place = async |requests: usize| {
        for _ in 0..requests {
            let mut exchange = Exchange::open(channel(ext_proc).await).await;
            assert_eq!(exchange.picked().await, "127.0.0.1:1");
            exchange.ended().await;
        }
    };
    let lost = async |count: usize| {
        let line = format!("kvscout_decision_log_lines_total{{outcome=\"lost\"}} {count}");
        soon(&line, async {
            loop {
                let page = text(&http::get(admin, "/metrics").await.body);
                if page.lines().any(|one| one == line) {
                    return;
                }
                tokio::time::sleep(harness::PATIENCE / 1000).await;
            }
        })
        .await;
    };
    place(1).await;
    lost(1).await;
    // The log rests now before it tries again, and requests do not.
    place(20).await;
    lost(21).await;
}

/// A way to a port on which whoever comes seems to come from elsewhere (`127.0.0.6`, as Istio's sidecar brings them).
async fn from_elsewhere(to: SocketAddr) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let door = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = door.local_addr().expect("bound");
    let forward = tokio::spawn(async move {
        while let Ok((mut guest, _)) = door.accept().await {
            let socket = TcpSocket::new_v4().expect("a socket");
            let elsewhere = "127.0.0.6:0".parse().expect("an address");
            socket.bind(elsewhere).expect("it is loopback, too");
            let mut host = socket.connect(to).await.expect("it listens");
            // Either may hang up as it likes.
            let _ = tokio::io::copy_bidirectional(&mut guest, &mut host).await;
        }
    });
    (at, forward)
}

#[tokio::test(flavor = "multi_thread")]
async fn from_another_host_a_command_shows_the_token() {
    let folder = tempfile::tempdir().expect("a folder");
    write(
        folder.path(),
        "fleet.yaml",
        "endpoints: [{address: '127.0.0.1:1'}]",
    );
    let token = write(folder.path(), "token", "open-sesame\n");
    let wrong = write(folder.path(), "wrong", "open-barley");
    let empty = write(folder.path(), "empty", "\n");
    let config = ANY_PORT.replacen('{', &format!("{{admin_token: '{token}', "), 1);
    let config = write(folder.path(), "kvscout.yaml", &config);
    let served = Served::start(&["--config", &config, "--plaintext"]);
    let (admin, forward) = from_elsewhere(served.admin()).await;
    let run = |command: &str, more: &[&str], environment: Option<&str>| {
        let mut run = kvscout(&[command, "--admin", &admin.to_string()]);
        run.args(more)
            .stdin(Stdio::null())
            .env_remove("KVSCOUT_ADMIN_TOKEN");
        run.envs(environment.map(|token| ("KVSCOUT_ADMIN_TOKEN", token)));
        let output = run.output().expect("kvscout runs");
        (output.status.code(), text(&output.stderr))
    };
    for command in ["audit", "explain"] {
        let (code, said) = run(command, &[], None);
        assert_eq!(code, Some(2), "{said}");
        assert!(
            said.contains("401") && said.contains("--admin-token"),
            "{said}"
        );
        assert_eq!(run(command, &["--admin-token", &token], None).0, Some(0));
        assert_eq!(run(command, &[], Some("open-sesame")).0, Some(0));
        let (code, said) = run(command, &["--admin-token", &wrong], Some("open-sesame"));
        assert_eq!(code, Some(2), "the file is what is shown");
        assert!(said.contains("another token"), "{said}");
        let (_, said) = run(command, &["--admin-token", &empty], None);
        assert!(said.contains("holds no token"), "{said}");
    }
    forward.abort();
}
