//! A server as its clients see it: real HTTP, real sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use kvscout::events::zmq::{Limits, ZmqSource};
use kvscout::events::{Delivery, EventSource as _};
use kvscout_sim::engine::EngineConfig;
use kvscout_sim::events::{EventConfig, Layout};
use kvscout_sim::timing::Timing;
use kvscout_sim::{Bound, Config, Server};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

struct Sim {
    bound: Bound,
    client: Client,
}

impl Sim {
    async fn start(config: Config) -> Self {
        let bound = Server::start(config).await.expect("free ports");
        let client = kvscout_sim::outgoing::client()
            .timeout(PATIENCE)
            .build()
            .expect("a client");
        Self { bound, client }
    }

    async fn instant() -> Self {
        Self::start(Config {
            timing: Timing::INSTANT,
            adapters: vec!["adapter-a".into()],
            ..Config::default()
        })
        .await
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.bound.addresses.http)
    }

    async fn send(&self, path: &str, body: &Value) -> Response {
        let request = self.client.post(self.url(path)).body(body.to_string());
        request.send().await.expect("an answer")
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.send(path, &body).await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json().await.expect("JSON")
    }

    async fn get(&self, path: &str) -> String {
        let answer = self
            .client
            .get(self.url(path))
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        answer.text().await.expect("text")
    }

    /// The value of a family of `/metrics` with one sample.
    async fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").await;
        let line = page
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{")));
        let value = line
            .and_then(|line| line.rsplit(' ').next())
            .expect("the family is there");
        value.parse().expect("a number")
    }

    /// Asks until a family has this value.
    async fn metric_becomes(&self, name: &str, value: f64) {
        let become_so = async { while self.metric(name).await != value {} };
        tokio::time::timeout(PATIENCE, become_so)
            .await
            .expect("the metric changes");
    }
}

fn chat(content: &str) -> Value {
    json!({"model": "sim", "messages": [{"role": "user", "content": content}], "max_tokens": 8})
}

fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

/// The chunks of a stream, which must end with `[DONE]`.
fn chunks(stream: &str) -> Vec<Value> {
    let mut lines: Vec<&str> = stream.split_terminator("\n\n").collect();
    assert_eq!(lines.pop(), Some("data: [DONE]"));
    let chunk = |line: &str| line.strip_prefix("data: ").expect("an event").to_owned();
    lines
        .iter()
        .map(|line| serde_json::from_str(&chunk(line)).expect("JSON"))
        .collect()
}

/// 100 words.
fn long() -> String {
    (0..100).map(|n| format!("word{n} ")).collect()
}

#[tokio::test]
async fn a_repeated_chat_is_served_from_the_cache() {
    let sim = Sim::instant().await;
    let first = sim.post("/v1/chat/completions", chat(&long())).await;
    let second = sim.post("/v1/chat/completions", chat(&long())).await;
    let details = |answer: &Value| answer["usage"]["prompt_tokens_details"].clone();
    let tokens = first["usage"]["prompt_tokens"].as_u64().expect("a count");
    let cached = (tokens - 1) / 16 * 16;
    assert_eq!(details(&first)["cached_tokens"], 0);
    assert_eq!(details(&first)["created_cache_tokens"], tokens / 16 * 16);
    assert_eq!(details(&second)["cached_tokens"], cached);
    assert_eq!(first["choices"], second["choices"]);
    assert_eq!(
        sim.metric("vllm:prefix_cache_hits_total").await,
        cached as f64
    );
    assert_eq!(
        sim.metric("vllm:prefix_cache_queries_total").await,
        2.0 * tokens as f64
    );
}

#[tokio::test]
async fn the_next_round_finds_the_answer_in_the_cache_too() {
    let sim = Sim::instant().await;
    let first = sim
        .post(
            "/v1/chat/completions",
            with(chat("hi"), json!({"max_tokens": 100})),
        )
        .await;
    let message = &first["choices"][0]["message"];
    let next = json!({"messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": message["content"]},
        {"role": "user", "content": "go on"},
    ]});
    let second = sim.post("/v1/chat/completions", next).await;
    let computed = first["usage"]["total_tokens"].as_u64().expect("a count") - 1;
    let cached = &second["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert_eq!(cached.as_u64(), Some(computed / 16 * 16));
}

#[tokio::test]
async fn a_stream_begins_with_the_role_and_ends_with_usage() {
    let sim = Sim::instant().await;
    let asked = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = sim
        .send("/v1/chat/completions", &with(chat("hi"), asked))
        .await;
    assert_eq!(
        answer.headers()["content-type"],
        "text/event-stream; charset=utf-8"
    );
    let chunks = chunks(&answer.text().await.expect("text"));
    assert_eq!(chunks.len(), 1 + 8 + 1);
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    assert_eq!(chunks[8]["choices"][0]["finish_reason"], "length");
    assert_eq!(chunks[9]["choices"], json!([]));
    assert_eq!(chunks[9]["usage"]["completion_tokens"], 8);
    let told: String = chunks[1..9]
        .iter()
        .map(|chunk| {
            chunk["choices"][0]["delta"]["content"]
                .as_str()
                .expect("text")
        })
        .collect();
    let whole = sim.post("/v1/chat/completions", chat("hi")).await;
    assert_eq!(whole["choices"][0]["message"]["content"], told);
}

#[tokio::test]
async fn completions_take_tokens_and_give_them_back() {
    let sim = Sim::instant().await;
    let prompt: Vec<u32> = (0..20).collect();
    let asked = json!({"prompt": prompt, "max_tokens": 3, "return_token_ids": true, "n": 2});
    let answer = sim.post("/v1/completions", asked.clone()).await;
    let choices = answer["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 2);
    assert_eq!(choices[0]["prompt_token_ids"], json!(prompt));
    assert_eq!(choices[1]["token_ids"].as_array().map(Vec::len), Some(3));
    assert_eq!(answer["usage"]["completion_tokens"], 6);
    let stream = sim
        .send("/v1/completions", &with(asked, json!({"stream": true})))
        .await;
    let chunks = chunks(&stream.text().await.expect("text"));
    let told = |index: u64| -> Vec<Value> {
        let of = chunks.iter().map(|chunk| &chunk["choices"][0]);
        of.filter(|choice| choice["index"] == index)
            .map(|choice| choice["token_ids"][0].clone())
            .collect()
    };
    assert_eq!(json!(told(0)), choices[0]["token_ids"]);
    assert_eq!(json!(told(1)), choices[1]["token_ids"]);
}

#[tokio::test]
async fn refusals_are_worded_as_vllm_does() {
    let sim = Sim::instant().await;
    let unknown = with(chat("hi"), json!({"model": "nobody"}));
    let answer = sim.send("/v1/chat/completions", &unknown).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let error: Value = answer.json().await.expect("JSON");
    let message = "The model `nobody` does not exist. Valid aliases: sim, adapter-a.";
    assert_eq!(
        error["error"],
        json!({
            "message": message, "type": "NotFoundError", "param": "model", "code": 404,
        })
    );
    let prompt: Vec<u32> = (0..70_000).collect();
    for body in [
        json!({"prompt": ""}),
        json!({"prompt": prompt}),
        json!({"prompt": "a", "n": 0}),
    ] {
        let answer = sim.send("/v1/completions", &body).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        let error: Value = answer.json().await.expect("JSON");
        assert_eq!(error["error"]["type"], "BadRequestError");
    }
}

#[tokio::test]
async fn a_request_keeps_its_id() {
    let sim = Sim::instant().await;
    let request = sim
        .client
        .post(sim.url("/v1/chat/completions"))
        .header("x-request-id", "mine");
    let answer = request
        .body(chat("hi").to_string())
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.headers()["x-request-id"], "mine");
    let answer: Value = answer.json().await.expect("JSON");
    assert_eq!(answer["id"], "chatcmpl-mine");
}

#[tokio::test]
async fn models_and_tokens_can_be_asked_for() {
    let sim = Sim::instant().await;
    let models: Value = serde_json::from_str(&sim.get("/v1/models").await).expect("JSON");
    assert_eq!(models["data"][0]["id"], "sim");
    assert_eq!(models["data"][1]["parent"], "sim");
    let asked = with(chat("hi there"), json!({"return_token_ids": true}));
    let tokens = sim.post("/tokenize", asked.clone()).await;
    let answer = sim.post("/v1/chat/completions", asked).await;
    assert_eq!(tokens["tokens"], answer["prompt_token_ids"]);
    assert_eq!(tokens["max_model_len"], models["data"][0]["max_model_len"]);
    for path in ["/health", "/ping", "/version"] {
        sim.get(path).await;
    }
}

#[tokio::test]
async fn a_reset_empties_the_cache() {
    let sim = Sim::instant().await;
    sim.post("/v1/chat/completions", chat(&long())).await;
    let reset = sim.post("/reset_prefix_cache", Value::Null).await;
    assert_eq!(reset, json!({"success": true}));
    let answer = sim.post("/v1/chat/completions", chat(&long())).await;
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

/// A server on which one answer takes minutes.
async fn slow() -> Sim {
    Sim::start(Config {
        timing: Timing {
            step_overhead: Duration::from_millis(5),
            ..Timing::INSTANT
        },
        ..Config::default()
    })
    .await
}

/// The same in the middle of that answer.
async fn answering() -> (Sim, reqwest::Response) {
    let sim = slow().await;
    let asked = with(chat("hi"), json!({"max_tokens": 50_000, "stream": true}));
    let mut answer = sim.send("/v1/chat/completions", &asked).await;
    answer
        .chunk()
        .await
        .expect("a chunk")
        .expect("the stream goes on");
    (sim, answer)
}

#[tokio::test]
async fn who_hangs_up_gives_the_blocks_back() {
    let (sim, answer) = answering().await;
    assert_eq!(sim.metric("vllm:num_requests_running").await, 1.0);
    assert!(sim.metric("vllm:kv_cache_usage_perc").await > 0.0);
    drop(answer);
    sim.metric_becomes("vllm:num_requests_running", 0.0).await;
    assert_eq!(sim.metric("vllm:kv_cache_usage_perc").await, 0.0);
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_long_answers() {
    let (sim, _answer) = answering().await;
    let over = tokio::time::timeout(PATIENCE, sim.bound.shutdown()).await;
    assert!(over.is_ok());
}

#[tokio::test]
async fn a_restart_breaks_answers_and_leaves_nothing() {
    let (sim, mut answer) = answering().await;
    sim.post("/sim/restart", json!({})).await;
    while let Ok(chunk) = answer.chunk().await {
        assert!(
            chunk.is_some(),
            "a process that dies does not end its stream"
        );
    }
    let held = sim.get("/sim/blocks").await;
    assert_eq!(held, "{}");
    assert_eq!(sim.metric("vllm:prompt_tokens_total").await, 0.0);
    sim.post("/v1/completions", json!({"prompt": "hi", "max_tokens": 1}))
        .await;
}

/// A server that publishes on free ports.
async fn publishing(layout: Layout, ranks: u32) -> Sim {
    let any = "tcp://127.0.0.1:0".to_owned();
    Sim::start(Config {
        timing: Timing::INSTANT,
        data_parallel_size: ranks,
        engine: EngineConfig::default(),
        events: Some(EventConfig {
            endpoint: any.clone(),
            replay_endpoint: Some(any),
            topic: Some("kv@test".into()),
            layout,
            rank: 3,
        }),
        ..Config::default()
    })
    .await
}

/// A server with events, a subscriber to them, and a way to ask for old ones.
async fn published(layout: Layout) -> (Sim, SubSocket, DealerSocket) {
    let sim = publishing(layout, 1).await;
    let sources = sim.bound.addresses.events.clone().expect("events are on");
    let mut live = SubSocket::new();
    live.connect(&sources.endpoint).await.expect("it listens");
    live.subscribe("").await.expect("a subscription");
    let mut old = DealerSocket::new();
    old.connect(&sources.replay_endpoint.expect("replay is on"))
        .await
        .expect("it listens");
    (sim, live, old)
}

async fn receive(socket: &mut impl SocketRecv) -> Vec<Vec<u8>> {
    let message = tokio::time::timeout(PATIENCE, socket.recv())
        .await
        .expect("a message");
    message
        .expect("frames")
        .into_vec()
        .into_iter()
        .map(|frame| frame.to_vec())
        .collect()
}

/// A subscription takes a moment to arrive: asks for blocks until one is heard of.
async fn first_heard(sim: &Sim, live: &mut SubSocket) -> Vec<Vec<u8>> {
    for n in 0u32.. {
        let prompt: Vec<u32> = (n * 100..n * 100 + 40).collect();
        sim.post(
            "/v1/completions",
            json!({"prompt": prompt, "max_tokens": 1}),
        )
        .await;
        if let Ok(message) = tokio::time::timeout(Duration::from_millis(50), live.recv()).await {
            let frames = message.expect("frames").into_vec();
            return frames.into_iter().map(|frame| frame.to_vec()).collect();
        }
    }
    unreachable!("the loop ends by returning")
}

#[tokio::test]
async fn events_come_live_and_again_on_request() {
    let (sim, mut live, mut old) = published(Layout::Map).await;
    let heard = first_heard(&sim, &mut live).await;
    assert_eq!(heard[0], b"kv@test");
    let (_, events, rank): (f64, Vec<Value>, u32) =
        rmp_serde::from_slice(&heard[2]).expect("a batch");
    assert_eq!((events[0]["type"].as_str(), rank), (Some("BlockStored"), 3));
    assert_eq!(events[0]["token_ids"].as_array().map(Vec::len), Some(32));

    old.send(ask_from(&heard[1])).await.expect("sent");
    let again = receive(&mut old).await;
    assert_eq!(again[0], b"");
    assert_eq!(again[1..], heard[..], "topic, number, payload");
    assert_eq!(receive(&mut old).await, [&b""[..], b"", &[0xff; 8], b""]);
}

#[tokio::test]
async fn older_versions_replay_without_the_topic() {
    let (sim, mut live, mut old) = published(Layout::Array).await;
    let heard = first_heard(&sim, &mut live).await;
    old.send(ask_from(&heard[1])).await.expect("sent");
    let again = receive(&mut old).await;
    assert_eq!(again[1..], heard[1..], "number, payload");
    assert_eq!(receive(&mut old).await, [&b""[..], &[0xff; 8], b""]);
}

/// Hears a server as a picker does.
fn ears(endpoint: &str) -> ZmqSource {
    ZmqSource::connect(endpoint, "", Limits::default()).expect("an address")
}

/// The next batch's number, and whether the connection was lost before it. Asks for blocks until
/// one comes.
async fn next_seq(sim: &Sim, ears: &mut ZmqSource, prompts: &mut u32) -> (u64, bool) {
    let mut lost = false;
    loop {
        let next = tokio::time::timeout(Duration::from_millis(50), ears.next()).await;
        match next {
            Ok(Some(Delivery::Batch(batch))) => return (batch.seq, lost),
            Ok(Some(Delivery::Disconnected { .. })) => lost = true,
            Ok(_) => {}
            Err(_nothing_came) => {
                *prompts += 1;
                let prompt: Vec<u32> = (*prompts * 100..*prompts * 100 + 40).collect();
                let asked = json!({"prompt": prompt, "max_tokens": 1});
                // A process that dies answers nothing.
                sim.send("/v1/completions", &asked).await;
            }
        }
    }
}

#[tokio::test]
async fn a_restart_closes_connections_and_counts_from_0() {
    let (sim, _, _) = published(Layout::Map).await;
    let bound = sim.bound.addresses.events.clone().expect("events are on");
    let (mut ears, mut prompts) = (ears(&bound.endpoint), 0);
    next_seq(&sim, &mut ears, &mut prompts).await;
    let sources = sim.post("/sim/restart", json!({})).await;
    assert_eq!(sources["3"]["endpoint"], bound.endpoint);
    let before = prompts;
    let (seq, lost) = next_seq(&sim, &mut ears, &mut prompts).await;
    // A batch for each prompt; the first ones may have gone before we were connected again.
    assert!(lost && seq < u64::from(prompts - before), "{seq}");
}

#[tokio::test]
async fn a_restart_on_other_ports_is_found_by_asking() {
    let (sim, _, _) = published(Layout::Map).await;
    let bound = sim.bound.addresses.events.clone().expect("events are on");
    let sources = sim
        .post("/sim/restart", json!({"change_ports": true}))
        .await;
    let told: Value = serde_json::from_str(&sim.get("/kv_event_sources").await).expect("JSON");
    assert_eq!(told, sources);
    let (endpoint, replay) = (&told["3"]["endpoint"], &told["3"]["replay_endpoint"]);
    assert_ne!(endpoint, &bound.endpoint);
    assert_ne!(replay, &json!(bound.replay_endpoint));
    let (mut ears, mut prompts) = (ears(endpoint.as_str().expect("a text")), 0);
    next_seq(&sim, &mut ears, &mut prompts).await;
}

#[tokio::test]
async fn an_engine_restarts_as_often_as_it_is_told() {
    let (sim, _, _) = published(Layout::Map).await;
    let bound = sim.bound.addresses.events.clone().expect("events are on");
    let (mut ears, mut prompts) = (ears(&bound.endpoint), 0);
    next_seq(&sim, &mut ears, &mut prompts).await;
    let told = sim.send("/sim/faults", &json!({"restart_every": 3})).await;
    assert_eq!(told.status(), StatusCode::OK);
    let again = async {
        loop {
            let (seq, lost) = next_seq(&sim, &mut ears, &mut prompts).await;
            if lost {
                return seq;
            }
        }
    };
    let again = tokio::time::timeout(PATIENCE, again).await;
    assert!(again.expect("another process") < 3);
}

#[tokio::test]
async fn a_cache_that_is_reset_every_time_gives_nothing() {
    let (sim, _, _) = published(Layout::Map).await;
    sim.send("/sim/faults", &json!({"reset_every": 1})).await;
    for _ in 0..2 {
        let again = sim.post("/v1/chat/completions", chat(&long())).await;
        assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    }
}

/// What the ranks of a server hold.
async fn held(sim: &Sim) -> [String; 2] {
    [
        sim.get("/sim/blocks/3").await,
        sim.get("/sim/blocks/4").await,
    ]
}

/// Asks a rank for blocks.
async fn fill(sim: &Sim, rank: &str) -> StatusCode {
    let request = sim.client.post(sim.url("/v1/chat/completions"));
    let request = request.header("X-data-parallel-rank", rank);
    let answer = request.body(chat(&long()).to_string()).send().await;
    answer.expect("an answer").status()
}

#[tokio::test]
async fn ranks_hold_what_they_are_asked_and_lose_it_together() {
    let sim = publishing(Layout::Map, 2).await;
    let sources = sim.get("/kv_event_sources").await;
    assert_eq!(fill(&sim, "5").await, StatusCode::BAD_REQUEST);
    for (path, body) in [("/reset_prefix_cache", ""), ("/sim/restart", "{}")] {
        assert_eq!(fill(&sim, "4").await, StatusCode::OK);
        let [first, second] = held(&sim).await;
        assert!(first == "{}" && second != "{}", "{first} {second}");
        assert_eq!(fill(&sim, "3").await, StatusCode::OK);
        let answer = sim.client.post(sim.url(path)).body(body).send().await;
        assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
        assert_eq!(held(&sim).await, ["{}", "{}"], "{path}");
    }
    assert_eq!(sim.get("/kv_event_sources").await, sources);
    let moved = sim.post("/sim/restart", json!({"change_ports": true}));
    let (moved, sources) = (moved.await, serde_json::from_str::<Value>(&sources));
    let sources = sources.expect("JSON");
    for rank in ["3", "4"] {
        assert_ne!(moved[rank]["endpoint"], sources[rank]["endpoint"]);
    }
}

#[tokio::test]
async fn a_rank_that_is_to_die_takes_the_others_along() {
    let sim = publishing(Layout::Map, 2).await;
    fill(&sim, "3").await;
    sim.send("/sim/faults", &json!({"restart_every": 1})).await;
    fill(&sim, "4").await;
    let lost = async { while held(&sim).await != ["{}", "{}"] {} };
    let lost = tokio::time::timeout(PATIENCE, lost).await;
    lost.expect("both are gone");
}

/// Families of a page by type, and the labels that their samples have: those of adapters apart,
/// which only a server with adapters shows.
fn families(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut families = BTreeMap::<_, BTreeSet<_>>::new();
    for line in page.lines().filter(|line| !line.contains(":lora_")) {
        if line.starts_with("# TYPE vllm:") {
            families.entry(line.to_owned()).or_default();
        } else if let Some((name, labels)) = line.split_once('{') {
            let labels = labels
                .split("\",")
                .filter_map(|label| label.split_once("=\""));
            let labels = labels.map(|(name, _)| name.to_owned());
            families.entry(name.to_owned()).or_default().extend(labels);
        }
    }
    families
}

#[tokio::test]
async fn a_page_of_metrics_is_a_part_of_what_vllm_shows() {
    let real = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/vllm/v0.32.0-dp2/metrics.txt");
    let real = families(&std::fs::read_to_string(real).expect("a page of vLLM 0.32.0"));
    let page = Sim::instant().await.get("/metrics").await;
    let page = families(&page);
    assert!(page.len() > 25, "{page:?}");
    for (family, labels) in page {
        let theirs = real.get(&family).unwrap_or_else(|| panic!("no {family}"));
        assert!(labels.is_subset(theirs), "{family}: {labels:?}");
    }
}

#[tokio::test]
async fn each_rank_has_its_lines_on_the_page_and_a_prompt_counts_when_it_is_done() {
    let sim = publishing(Layout::Map, 2).await;
    assert_eq!(fill(&sim, "4").await, StatusCode::OK);
    let page = sim.get("/metrics").await;
    let page = kvscout::fleet::report::Page::read(&page);
    let prefilled = |rank| {
        let report = page.of(Some(rank)).expect("its lines");
        let prefilled = report.prefilled.expect("its counts");
        (prefilled.requests, prefilled.tokens > 0.0)
    };
    assert_eq!((prefilled(3), prefilled(4)), ((0.0, false), (1.0, true)));
}

fn ask_from(number: &[u8]) -> ZmqMessage {
    let frames = vec![Bytes::new(), Bytes::copy_from_slice(number)];
    ZmqMessage::try_from(frames).expect("two frames")
}
