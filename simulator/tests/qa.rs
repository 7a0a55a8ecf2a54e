//! `kvscout-sim multi-round-qa` as a process: its requests as an endpoint sees them, its table,
//! its exit status.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::{interval, timeout};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an endpoint was asked: headers and body.
type Asked = Arc<Mutex<Vec<(HeaderMap, Value)>>>;

/// An endpoint that refuses question 3 and has nothing to say to question 2 of user 4.
async fn endpoint() -> (SocketAddr, Asked) {
    let asked = Asked::default();
    let app = Router::new().route("/v1/chat/completions", post(answer));
    let app = app.with_state(Arc::clone(&asked));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, asked)
}

async fn answer(State(asked): State<Asked>, headers: HeaderMap, body: String) -> Response {
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let question = last_said(&body).to_owned();
    let user = headers.get("x-user-id").map(|id| id.to_owned());
    asked.lock().expect("no panic").push((headers, body));
    if question.contains("question #3") {
        return (StatusCode::SERVICE_UNAVAILABLE, "no room").into_response();
    }
    let role = json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]});
    let word = json!({"choices": [{"delta": {"content": "Once"}}]});
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 16}}});
    let silent = question.contains("question #2") && user.is_some_and(|user| user == "4");
    let chunks = if silent {
        vec![role, usage]
    } else {
        vec![role, word, usage]
    };
    let events = chunks.iter().map(|chunk| format!("data: {chunk}\n\n"));
    (events.collect::<String>() + "data: [DONE]\n\n").into_response()
}

fn last_said(body: &Value) -> &str {
    let messages = body["messages"].as_array().expect("messages");
    let last = messages.last().expect("one message");
    last["content"].as_str().expect("text")
}

/// 10 s between a user's requests and 5 s between users, in a fortieth of the time.
fn start(to: SocketAddr, output: &Path, more: &[&str]) -> Child {
    let base = format!("http://{to}/v1");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvscout-sim"));
    let workload = "--num-users 4 --shared-system-prompt 10 --user-history-prompt 20 --answer-len 5 \
        --num-rounds 3 --qps 0.4 --model m --compress 40 --api-key secret";
    command
        .arg("multi-round-qa")
        .args(workload.split_whitespace())
        .args(["--base-url", &base, "--output"])
        .arg(output)
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command.spawn().expect("it starts")
}

async fn end(child: Child) -> (Output, String) {
    let output = timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.expect("in time").expect("it ends");
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    (output, text)
}

/// (user, question) of every row.
fn rows(file: &Path) -> Vec<(u64, u64)> {
    let text = std::fs::read_to_string(file).expect("the table is there");
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        let [user, question] = [4, 5].map(|at| cells[at].parse().expect("a number"));
        (user, question)
    };
    text.lines().skip(1).map(row).collect()
}

#[tokio::test]
async fn what_failed_or_was_empty_is_counted_and_in_no_row() {
    let (address, asked) = endpoint().await;
    let folder = tempfile::tempdir().expect("a folder");
    let table = folder.path().join("summary.csv");
    let (output, text) = end(start(address, &table, &["--time", "8", "--no-warm-up"])).await;
    // User 5 asks at once; users 2 and 4, and 6 who joins, ask after 5 s.
    let asked = asked.lock().expect("no panic");
    assert_eq!(asked.len(), 4, "{text}");
    let mut answered = rows(&table);
    answered.sort_unstable();
    assert_eq!(answered, [(5, 1), (6, 1)]);
    assert!(text.contains("  Left out: 1 failed, 1 empty\n"), "{text}");
    assert!(
        text.contains("    1 x 503 Service Unavailable: no room\n"),
        "{text}"
    );
    assert!(
        text.contains("  Prompt tokens from cache: 80.00 %\n"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(1));

    let (headers, body) = &asked[0];
    assert_eq!(
        (&headers["x-user-id"], &headers["authorization"]),
        (
            &"5".parse().expect("a value"),
            &"Bearer secret".parse().expect("a value")
        )
    );
    let fields = [
        "model",
        "temperature",
        "max_tokens",
        "stream",
        "stream_options",
    ];
    assert_eq!(
        fields.map(|field| &body[field]),
        [
            &json!("m"),
            &json!(0),
            &json!(5),
            &json!(true),
            &json!({"include_usage": true})
        ]
    );
    let said = last_said(body);
    assert!(
        said.contains("For user 5, here are some other context: hi hi"),
        "{said}"
    );
}

#[tokio::test]
async fn an_interrupted_run_prints_its_summary_and_writes_its_table() {
    let (address, asked) = endpoint().await;
    let folder = tempfile::tempdir().expect("a folder");
    let table = folder.path().join("summary.csv");
    let child = start(address, &table, &[]);
    let mut ticks = interval(Duration::from_millis(10));
    // Ten chats to warm up, one of user 5.
    let begun = async {
        while asked.lock().expect("no panic").len() < 11 {
            ticks.tick().await;
        }
    };
    timeout(PATIENCE, begun).await.expect("it asks");
    let id = child.id().expect("it runs");
    let pid = Pid::from_raw(i32::try_from(id).expect("a pid")).expect("a pid");
    kill_process(pid, Signal::INT).expect("it runs");
    let (output, text) = end(child).await;
    assert!(text.contains("Average TTFT"), "{text}");
    assert_eq!(rows(&table)[0], (5, 1));
    let warm_ups = asked
        .lock()
        .expect("no panic")
        .iter()
        .take(10)
        .filter(|(headers, body)| {
            last_said(body).starts_with("WARMUP: ") && !headers.contains_key("x-user-id")
        })
        .count();
    assert_eq!(warm_ups, 10);
    assert_eq!(output.status.code(), Some(0));

    let mut again = Command::new(env!("CARGO_BIN_EXE_kvscout-sim"));
    let again = again
        .args(["multi-round-qa", "--process-summary"])
        .arg(&table)
        .output();
    let again = String::from_utf8(again.await.expect("it runs").stdout).expect("UTF-8");
    let line = |text: &str| {
        let line = text.lines().find(|line| line.contains("Average TTFT"));
        line.map(str::to_owned)
    };
    assert_eq!(line(&again), line(&text));
    assert!(again.contains("QPS: \u{1b}[32m0.0000 reqs/s"), "{again}");
}
