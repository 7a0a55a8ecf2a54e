//! The page for people, and what it asks: over HTTP here, and in Chromium by `make test-ui`.

mod harness;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use harness::http::{self, Answer, full};
use harness::stack;
use hyper::Request;
use kvscout_sim::stack::Stack;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

/// A fleet after some conversations.
async fn stack(pods: usize) -> Stack {
    let stack = stack::start(env!("CARGO_BIN_EXE_kvscout"), pods).await;
    stack::converse(&stack).await;
    stack
}

/// A page, asked for under a host's name.
async fn page(admin: SocketAddr, path: &str, host: &str) -> Answer {
    let request = Request::get(path).header("host", host).body(full(""));
    http::send(admin, request.expect("a request")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_served_with_its_own_script_alone_and_what_it_asks_is_there() {
    let stack = stack(3).await;
    let ui = page(stack.admin, "/ui", "localhost").await;
    assert_eq!(ui.status, 200);
    assert!(ui.header("content-type").starts_with("text/html"));
    let policy = ui.header("content-security-policy");
    for part in [
        "default-src 'none';",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "connect-src 'self';",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");

    let brief = page(stack.admin, "/endpoints?digests=off", "localhost")
        .await
        .json();
    assert_eq!(brief.as_array().map(Vec::len), Some(3));
    let one = &brief[0];
    assert_eq!(
        (&one["trust"], one["cache_blocks"].as_u64()),
        (&"live".into(), Some(1023))
    );
    assert!(
        one["own_copies"].as_u64() > Some(0) && one.get("digest").is_none(),
        "{one}"
    );
    assert!(one["says"]["age_s"].is_number(), "{one}");
    let whole = page(stack.admin, "/endpoints", "localhost").await.json();
    let digest = whole[0]["digest"].as_str().map(str::len);
    assert_eq!(
        (digest, &whole[0]["copies"]),
        (Some(16), &one["own_copies"])
    );
    let refused = page(stack.admin, "/endpoints?digest=off", "localhost").await;
    assert_eq!(
        (refused.status, &refused.body[..]),
        (400, &b"digest: is not one of digests\n"[..])
    );

    let shared = page(stack.admin, "/prefixes", "localhost").await.json();
    let system = &shared["prefixes"][0];
    assert_eq!(system["parent"], serde_json::Value::Null);
    // Everybody has instructions of 200 words, and each of eight conversations an end of its own.
    assert_eq!(
        system["holders"].as_array().map(Vec::len),
        Some(3),
        "{shared}"
    );
    assert!(
        system["blocks"].as_u64() > Some(10) && system["ends"].as_u64() >= Some(8),
        "{shared}"
    );
    let parts = shared["prefixes"].as_array().expect("a list");
    assert!(parts.len() > 1, "{shared}");
    let elsewhere = page(stack.admin, "/prefixes", "kvscout.example").await;
    assert_eq!(elsewhere.status, 403, "as /decisions is");
    stack.stop().await;
}

/// `make test-ui`, which brings Chromium; with `UI_SCREENSHOT=1` it renews the one in the README.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Chromium: make test-ui"]
async fn the_page_shows_the_fleet_in_chromium() {
    let stack = stack(6).await;
    let mut node = tokio::process::Command::new("node");
    node.args(["--input-type=module", "-"])
        .arg(format!("http://{}/ui", stack.admin))
        .stdin(std::fs::File::open(root().join("tests/ui.mjs")).expect("the script"))
        .stdout(Stdio::inherit())
        .current_dir(root().join(".tools/ui"))
        .kill_on_drop(true);
    if std::env::var_os("UI_SCREENSHOT").is_some() {
        node.arg(root().join("docs/img/ui.png"));
    }
    let ended = node.status().await.expect("run make test-ui");
    assert!(ended.success(), "{ended}");
    stack.stop().await;
}
