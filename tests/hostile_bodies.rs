//! Bodies that mean harm, sent as Envoy sends them to a kvscout process: each is placed in time and
//! passed on as it was, memory stays bounded, and an honest question is read right after.

mod harness;

use std::net::SocketAddr;

use bytes::Bytes;
use harness::exchange::{Exchange, body, channel, headers, streamed};
use harness::process::{ANY_PORT, Served, write};
use harness::{http, soon, tokenizer};
use kvscout::proto::ext_proc::processing_response::Response as Reply;
use tonic::transport::Channel;

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";
/// What Envoy sends at once.
const CHUNK_BYTES: usize = 1 << 20;
const MB: usize = 1_000_000;
/// Memory at the worst moment: a body of 64 MB thrice (as it came, parsed, and rendered) and its
/// ids, beside the tokenizer, the segment cache and the allocator's slack. 640 MB were seen.
const MEMORY_BYTES_MAX: usize = 1_200 * MB;

/// A kvscout process with a model and an endpoint.
struct World {
    served: Served,
    channel: Channel,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let fleet = "endpoints: [{address: '127.0.0.1:1'}]";
        write(folder.path(), "fleet.yaml", fleet);
        let config = write(folder.path(), "kvscout.yaml", ANY_PORT);
        let model = format!("m={}", tokenizer().display());
        let served = Served::start(&["--config", &config, "--plaintext", "--model", &model]);
        let (ext_proc, admin) = served.addresses();
        let channel = channel(ext_proc).await;
        let world = Self {
            served,
            channel,
            admin,
            _folder: folder,
        };
        world.until_it_reads().await;
        world
    }

    /// Asks honestly until the prompt is read.
    async fn until_it_reads(&self) {
        let asked = async { while self.place(CHAT, honest()).await != "overlap" {} };
        soon("an honest question is read", asked).await;
    }

    /// Sends a request, sees it passed on whole, and says what the choice was based on.
    async fn place(&self, path: &str, sent: impl Into<Bytes>) -> String {
        let sent = sent.into();
        let before = self.placed().await;
        let mut exchange = Exchange::open(self.channel.clone()).await;
        exchange.say(headers(path, false)).await;
        let say = exchange.say.clone();
        let chunks: Vec<Bytes> = (0..sent.len())
            .step_by(CHUNK_BYTES)
            .map(|at| sent.slice(at..sent.len().min(at + CHUNK_BYTES)))
            .collect();
        let last = chunks.len() - 1;
        let saying = tokio::spawn(async move {
            for (at, chunk) in chunks.into_iter().enumerate() {
                let message = kvscout::proto::ext_proc::ProcessingRequest {
                    request: Some(body(chunk, at == last)),
                    ..Default::default()
                };
                say.send(message).await.expect("it listens");
            }
        });
        assert!(matches!(exchange.hear().await, Reply::RequestHeaders(_)));
        let mut passed = 0;
        loop {
            let chunk = streamed(exchange.hear().await);
            let end = passed + chunk.body.len();
            assert!(sent[passed..end] == chunk.body[..], "passed on as it was");
            passed = end;
            if chunk.end_of_stream {
                break;
            }
        }
        assert_eq!(passed, sent.len());
        saying.await.expect("all was said");
        let after = self.placed().await;
        let new = after.into_iter().find(|line| !before.contains(line));
        new.expect("a request is counted").0
    }

    /// The counts of requests by basis and reason.
    async fn placed(&self) -> Vec<(String, String)> {
        let metrics = http::get(self.admin, "/metrics").await.body;
        let metrics = String::from_utf8(metrics.to_vec()).expect("text");
        let counts = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("kvscout_requests_total{"));
        counts
            .map(|line| {
                let label = |name: &str| {
                    let value = line.split(&format!("{name}=\"")).nth(1);
                    value
                        .and_then(|value| value.split('"').next())
                        .unwrap_or_default()
                };
                let what = [label("basis"), label("reason")].join(" ");
                (what.trim().to_owned(), line.to_owned())
            })
            .collect()
    }

    /// The most memory that the process ever had.
    fn memory_bytes(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.served.child.id()));
        let status = status.expect("Linux");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
        kilobytes
            .and_then(|number| number.parse::<usize>().ok())
            .expect("a number")
            * 1024
    }
}

fn honest() -> String {
    chat("A question of an honest person.")
}

/// A chat of one message, of text that JSON need not escape.
fn chat(text: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#)
}

fn completion(text: &str) -> String {
    format!(r#"{{"model":"m","prompt":"{text}"}}"#)
}

/// `unit` until there are so many bytes.
fn long(unit: &str, bytes: usize) -> String {
    unit.repeat(bytes / unit.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_body_says_it_is_placed_in_time_and_passed_on() {
    let world = World::start().await;
    let message = r#"{"role":"user","content":"hi"}"#;
    let messages = |count: usize| {
        let all = vec![message; count].join(",");
        format!(r#"{{"model":"m","messages":[{all}]}}"#)
    };
    let members = |count: usize, name: fn(usize) -> String| {
        let all: Vec<String> = (0..count).map(|n| format!("\"{}\":{n}", name(n))).collect();
        format!(
            r#"{{"model":"m","prompt":"hi","vllm_xargs":{{{}}}}}"#,
            all.join(",")
        )
    };
    let deep = |open: &str, close: &str, count: usize| {
        let (open, close) = (open.repeat(count), close.repeat(count));
        format!(r#"{{"model":"m","prompt":"hi","x":{open}{close}}}"#)
    };
    let malformed = ["load_only malformed_json"].as_slice();
    let unbroken = ["load_only unbroken_text"].as_slice();
    // Read where the machine is quick enough, and placed by load where it is not.
    let read = ["overlap", "load_only tokenizer_wait", "load_only deadline"].as_slice();
    // Four seconds of our own quadratic search would be too late.
    let linear = ["overlap", "load_only tokenizer_wait"].as_slice();
    let cases: Vec<(&str, &str, Vec<u8>, &[&str])> = vec![
        (
            "100 MB",
            CHAT,
            chat(&long("word ", 100 * MB)).into(),
            &["load_only body_too_long"],
        ),
        ("60 MB", CHAT, chat(&long("word ", 60 * MB)).into(), read),
        (
            "a million messages",
            CHAT,
            messages(1_000_000).into(),
            malformed,
        ),
        (
            "many messages",
            CHAT,
            messages(200_000).into(),
            &["overlap", "load_only template"],
        ),
        (
            "deep lists",
            COMPLETION,
            deep("[", "]", 10 * MB).into(),
            malformed,
        ),
        (
            "deep objects",
            COMPLETION,
            deep(r#"{"a":"#, "1}", MB).into(),
            malformed,
        ),
        (
            "lists without end",
            COMPLETION,
            long("[", 20 * MB).into(),
            malformed,
        ),
        (
            "a lone surrogate",
            CHAT,
            chat(r"hi \ud83d there").into(),
            &["load_only bad_field"],
        ),
        (
            "lone surrogates",
            COMPLETION,
            completion(&long(r"\ud83d", 10 * MB)).into(),
            &["load_only bad_field"],
        ),
        (
            "a key with half a pair",
            COMPLETION,
            br#"{"model":"m","prompt":"hi","\udc00":1}"#.to_vec(),
            malformed,
        ),
        (
            "pairs",
            COMPLETION,
            completion(&long(r"\ud83e\udd37", 10 * MB)).into(),
            unbroken,
        ),
        (
            "bytes that are no text",
            COMPLETION,
            completion("\u{fffd}")
                .replace('\u{fffd}', "x")
                .into_bytes()
                .into_iter()
                .map(|b| if b == b'x' { 0xff } else { b })
                .collect(),
            malformed,
        ),
        (
            "one letter",
            COMPLETION,
            completion(&long("a", 10 * MB)).into(),
            unbroken,
        ),
        (
            "spaces",
            COMPLETION,
            completion(&long(" ", 10 * MB)).into(),
            unbroken,
        ),
        (
            "digits",
            COMPLETION,
            completion(&long("7", 10 * MB)).into(),
            unbroken,
        ),
        (
            "marks on one letter",
            COMPLETION,
            completion(&format!("a{}", long("\u{301}\u{323}", 4 * MB))).into(),
            unbroken,
        ),
        (
            "joiners",
            COMPLETION,
            completion(&long("👩\u{200d}", 4 * MB)).into(),
            unbroken,
        ),
        (
            "jamo",
            COMPLETION,
            completion(&long("\u{1112}\u{1161}\u{11ab}", 4 * MB)).into(),
            unbroken,
        ),
        (
            "one ideograph",
            COMPLETION,
            completion(&long("龘", 10 * MB)).into(),
            unbroken,
        ),
        (
            "letters without a space",
            COMPLETION,
            completion(&long("कि", 4 * MB)).into(),
            unbroken,
        ),
        (
            "half-typed tokens",
            COMPLETION,
            completion(&long("<|im_", 4 * MB)).into(),
            linear,
        ),
        (
            "added tokens",
            COMPLETION,
            completion(&long("<|im_end|>", 10 * MB)).into(),
            read,
        ),
        (
            "escapes",
            COMPLETION,
            completion(&long(r"\n", 10 * MB)).into(),
            unbroken,
        ),
        (
            "many ids",
            COMPLETION,
            format!(r#"{{"model":"m","prompt":[{}1]}}"#, "1,".repeat(1_900_000)).into(),
            read,
        ),
        (
            "too many ids",
            COMPLETION,
            format!(r#"{{"model":"m","prompt":[{}1]}}"#, "1,".repeat(2_100_000)).into(),
            malformed,
        ),
        (
            "a long integer",
            COMPLETION,
            format!(
                r#"{{"model":"m","prompt":"hi","n":{}}}"#,
                long("7", 10 * MB)
            )
            .into(),
            malformed,
        ),
        (
            "a long fraction",
            COMPLETION,
            format!(
                r#"{{"model":"m","prompt":"hi","x":0.{}}}"#,
                long("7", 10 * MB)
            )
            .into(),
            read,
        ),
        (
            "many members",
            COMPLETION,
            members(300_000, |n| format!("key {n}")).into(),
            read,
        ),
        (
            "one member often",
            COMPLETION,
            members(300_000, |_| "key".to_owned()).into(),
            read,
        ),
        (
            "nothing but quotes",
            COMPLETION,
            long("\"", 10 * MB).into(),
            malformed,
        ),
    ];
    let mut wrong = Vec::new();
    for (name, path, sent, expected) in cases {
        let basis = world.place(path, sent).await;
        if !expected.contains(&basis.as_str()) {
            wrong.push(format!("{name}: {basis}"));
        }
        world.until_it_reads().await;
        let memory = world.memory_bytes();
        if memory > MEMORY_BYTES_MAX {
            wrong.push(format!("{name}: {} MB", memory / MB));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
