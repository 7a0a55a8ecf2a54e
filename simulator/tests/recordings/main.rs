//! The engine against real vLLM servers: the same requests must find the same tokens in the
//! cache and cause the same events.

mod names;

use std::fs;
use std::path::PathBuf;

use kvscout::blocks::{Identity, TokenId};
use kvscout_sim::engine::{Engine, EngineConfig, FreeOrder, Request};
use names::{Names, Word};
use serde_json::Value;

fn array(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn integer(value: &Value) -> u64 {
    value.as_u64().expect("an unsigned integer")
}

fn tokens(value: &Value) -> Vec<TokenId> {
    array(Some(value))
        .iter()
        .map(|token| integer(token) as TokenId)
        .collect()
}

/// A recording, and what its server was started with.
struct Recording {
    config: EngineConfig,
    requests: Vec<Value>,
    batches: Vec<Value>,
    /// Made with vLLM's cache manager alone: it computed the last token of an answer too, and
    /// published what a reset causes at once.
    without_server: bool,
}

impl Recording {
    fn load(folder: &str, free_order: FreeOrder) -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let root = root.join("../tests/fixtures/vllm").join(folder);
        let text = |name: &str| fs::read_to_string(root.join(name)).expect("a fixture");
        let parse = |line: &str| serde_json::from_str::<Value>(line).expect("a line of JSON");
        let meta = parse(&text("meta.json"));
        let number = |name: &str, default: u64| meta[name].as_u64().unwrap_or(default);
        Self {
            config: EngineConfig {
                block_size: number("block_size", 32) as usize,
                num_gpu_blocks: number("num_blocks", 96) as u32,
                free_order,
                ..EngineConfig::default()
            },
            requests: text("requests.jsonl").lines().map(parse).collect(),
            batches: text("events.jsonl").lines().map(parse).collect(),
            without_server: meta["kind"] == "python-level",
        }
    }

    /// What the client asked, as the engine is asked: once per choice (`n`).
    fn asked(&self, line: &Value) -> Vec<Request> {
        let body = &line["request"];
        let mut output = tokens(&line["output_token_ids"]);
        if self.without_server || output.is_empty() {
            output.push(0);
        }
        let request = Request {
            prompt: tokens(&line["prompt_token_ids"]),
            output,
            identity: Identity {
                adapter: None,
                cache_salt: body["cache_salt"].as_str().map(str::to_owned),
            },
            skip_cache_read: !body["prompt_logprobs"].is_null(),
            report_reused: body["vllm_xargs"]["kv_cache_report_mode"] == "full",
            ..Request::default()
        };
        if body["n"] != 2 {
            return vec![request];
        }
        let other = Request {
            output: self.other_answer(line, &request),
            ..request.clone()
        };
        vec![request, other]
    }

    /// The second choice's answer is not recorded; the one block that it filled is.
    fn other_answer(&self, line: &Value, first: &Request) -> Vec<TokenId> {
        let size = self.config.block_size;
        let (head, tail) = first.prompt.split_at(first.prompt.len() / size * size);
        assert!(
            head.len() + 2 * size > first.prompt.len() + first.output.len(),
            "one block"
        );
        let answers = self.events(line).into_iter().filter_map(|event| {
            let block = tokens(event.get("token_ids").or(event.get(3))?);
            block.strip_prefix(tail).map(<[_]>::to_vec)
        });
        let other = |answer: &Vec<TokenId>| !first.output.starts_with(answer);
        let mut answer = answers
            .filter(|a| !a.is_empty())
            .find(other)
            .expect("its block");
        answer.resize(first.output.len(), 0);
        answer
    }

    /// The recorded events between the sending of a request and its end.
    fn events(&self, line: &Value) -> Vec<Value> {
        let after = |name: &str| (line[name].as_i64().expect("a number") + 1) as usize;
        let batches = &self.batches[after("seq_before")..after("seq_after")];
        batches
            .iter()
            .flat_map(|batch| array(batch["decoded"].get(1)).to_vec())
            .collect()
    }

    fn shows_salt(&self) -> bool {
        self.batches
            .iter()
            .any(|batch| batch["decoded"].to_string().contains("tenant-"))
    }
}

/// What the engine did about one request.
struct Answer {
    cached_tokens: usize,
    words: Vec<Word>,
}

/// How a request of a recording compares.
#[derive(Debug, Default)]
struct Comparison {
    requests: usize,
    cached_tokens_agree: usize,
    events_agree: usize,
    differences: Vec<String>,
}

struct Replica<'a> {
    recording: &'a Recording,
    engine: Engine,
    names: Names,
}

impl<'a> Replica<'a> {
    fn new(recording: &'a Recording) -> Self {
        Self {
            recording,
            engine: Engine::new(recording.config.clone()),
            names: Names::new(recording.shows_salt()),
        }
    }

    fn run(&mut self, line: &Value) -> Answer {
        for request in self.recording.asked(line) {
            self.engine
                .submit(request)
                .expect("the real server had room");
        }
        let mut words = Vec::new();
        let mut cached_tokens = None;
        while self.engine.begin_step().is_some() {
            let outcome = self.engine.finish_step();
            words.extend(
                outcome
                    .events
                    .iter()
                    .map(|event| self.names.simulated(event)),
            );
            let first = outcome
                .emissions
                .first()
                .map(|emission| emission.cached_tokens);
            cached_tokens = cached_tokens.or(first);
        }
        Answer {
            cached_tokens: cached_tokens.expect("an answer has a token"),
            words,
        }
    }

    fn compare(&mut self, lines: &[Value]) -> Comparison {
        let mut comparison = Comparison::default();
        // A lone cache manager says "cleared" at once, the engine with the next step.
        let mut cleared = Vec::new();
        for line in lines {
            let events = self.recording.events(line);
            let names = &mut self.names;
            let mut recorded: Vec<Word> =
                events.iter().map(|event| names.recorded(event)).collect();
            if line["path"] == "/reset_prefix_cache" {
                assert!(self.engine.reset_prefix_cache());
                cleared = recorded;
            } else if line["status"] == 200 {
                recorded.splice(0..0, std::mem::take(&mut cleared));
                let answer = self.run(line);
                comparison.add(line, &answer, &recorded);
            }
        }
        comparison
    }
}

impl Comparison {
    fn add(&mut self, line: &Value, answer: &Answer, recorded: &[Word]) {
        // vLLM before 0.24 reports null for 0.
        let cached = line["cached_tokens"].as_u64().unwrap_or(0) as usize;
        self.requests += 1;
        self.cached_tokens_agree += usize::from(answer.cached_tokens == cached);
        self.events_agree += usize::from(answer.words == recorded);
        if answer.cached_tokens != cached || answer.words != recorded {
            self.differences.push(format!(
                "{} {}: {} for {cached} cached tokens\n  simulated {:?}\n  recorded  {recorded:?}",
                line["i"], line["phase"], answer.cached_tokens, answer.words
            ));
        }
    }
}

#[test]
fn explore() {
    for (folder, order) in [
        ("v0.9.2-py-builtin", FreeOrder::Lru),
        ("v0.11.2-py", FreeOrder::Lru),
        ("v0.17.1-py", FreeOrder::Lru),
        ("v0.20.2-bs32", FreeOrder::Lru),
        ("v0.24.0-py", FreeOrder::UnhashedFirst),
        ("v0.32.0-bs32", FreeOrder::UnhashedFirst),
        ("v0.33.0-py", FreeOrder::UnhashedFirst),
    ] {
        let recording = Recording::load(folder, order);
        let sequential = recording
            .requests
            .iter()
            .take_while(|l| l["sequential"] == true);
        let sequential: Vec<Value> = sequential.cloned().collect();
        let c = Replica::new(&recording).compare(&sequential);
        println!(
            "{folder} {} {} {}",
            c.requests, c.cached_tokens_agree, c.events_agree
        );
        for difference in c.differences.iter().take(3) {
            println!("{difference}");
        }
    }
}
