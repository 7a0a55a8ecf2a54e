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

/// The tokens of a stored event, in either layout.
fn stored_tokens(event: &Value) -> Option<Vec<TokenId>> {
    let tokens = tokens(event.get("token_ids").or(event.get(3))?);
    (!tokens.is_empty()).then_some(tokens)
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
        let number = |name: &str| line[name].as_i64().expect("a number");
        let size = self.config.block_size;
        let (head, tail) = first.prompt.split_at(first.prompt.len() / size * size);
        assert!(
            head.len() + 2 * size > first.prompt.len() + first.output.len(),
            "one block"
        );
        let answers = self
            .batches(number("seq_before"), number("seq_after"))
            .into_iter()
            .filter_map(|event| {
                let block = stored_tokens(&event)?;
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

    /// The recorded events of the batches after `before`, up to `last`.
    fn batches(&self, before: i64, last: i64) -> Vec<Value> {
        let batches = &self.batches[(before + 1) as usize..(last + 1) as usize];
        batches
            .iter()
            .flat_map(|batch| array(batch["decoded"].get(1)).to_vec())
            .collect()
    }

    /// When each of `lines` reached the engine, in steps: known from the step that stored its
    /// first block, or else one step after the first.
    fn arrivals(&self, lines: &[Value]) -> Vec<Vec<usize>> {
        if lines.len() == 1 {
            return vec![vec![0]];
        }
        let mut steps = vec![Vec::new(); 2];
        let mut late: Vec<usize> = (0..lines.len()).collect();
        let before = lines
            .iter()
            .filter_map(|line| line["seq_before"].as_i64())
            .min()
            .expect("a line");
        for step in 0..2i64.min(self.batches.len() as i64 - 2 - before) {
            for event in self.batches(before + step, before + step + 1) {
                let Some(stored) = stored_tokens(&event) else {
                    continue;
                };
                let of =
                    |&line: &usize| tokens(&lines[line]["prompt_token_ids"]).starts_with(&stored);
                if let Some(position) = late.iter().position(of) {
                    steps[step as usize].push(late.remove(position));
                }
            }
        }
        if steps[0].is_empty() {
            steps[0] = late
        } else {
            steps[1].extend(late)
        }
        steps
    }

    fn shows_salt(&self) -> bool {
        self.batches
            .iter()
            .any(|batch| batch["decoded"].to_string().contains("tenant-"))
    }
}

/// A server's engine, driven with the requests that the real one got.
struct Replica<'a> {
    recording: &'a Recording,
    engine: Engine,
    names: Names,
    /// The last recorded batch that a request accounts for.
    seen: i64,
}

/// How many requests of a recording the engine answered as the real one did.
#[derive(Debug, Default)]
struct Agreement {
    requests: usize,
    /// Found as many tokens in the cache.
    cached_tokens: usize,
    /// Caused the same events in the same order.
    events: usize,
    differences: Vec<String>,
}

impl<'a> Replica<'a> {
    fn new(recording: &'a Recording) -> Self {
        Self {
            recording,
            engine: Engine::new(recording.config.clone()),
            names: Names::new(recording.shows_salt()),
            seen: -1,
        }
    }

    /// Runs all requests; those that were sent together count together.
    fn compare(&mut self) -> Agreement {
        let mut agreement = Agreement::default();
        // A lone cache manager says "cleared" at once, the engine with the next step.
        let mut cleared = Vec::new();
        let sent = |line: &Value| (line["sequential"] == true, line["phase"].clone());
        let together = |a: &Value, b: &Value| a["sequential"] != true && sent(a) == sent(b);
        for lines in self.recording.requests.chunk_by(together) {
            if lines[0]["status"] != 200 {
                continue;
            }
            self.abandon_what_was_abandoned(&lines[0]);
            let mut recorded = std::mem::take(&mut cleared);
            recorded.extend(self.recorded(lines));
            if lines[0]["path"] == "/reset_prefix_cache" {
                assert!(self.engine.reset_prefix_cache());
                cleared = recorded;
                continue;
            }
            let (cached, words) = self.run(lines);
            agreement.add(lines, &cached, &words, &recorded);
        }
        agreement
    }

    fn recorded(&mut self, lines: &[Value]) -> Vec<Word> {
        let last = |line: &Value| line["seq_after"].as_i64();
        let last = lines.iter().filter_map(last).max().expect("a line");
        let events = self.recording.batches(self.seen, last);
        self.seen = last;
        events
            .iter()
            .map(|event| self.names.recorded(event))
            .collect()
    }

    /// Runs requests until all are answered: what each found in the cache, and the events.
    fn run(&mut self, lines: &[Value]) -> (Vec<usize>, Vec<Word>) {
        let mut arrivals = self.recording.arrivals(lines).into_iter().peekable();
        let mut submitted = Vec::new();
        let mut cached = vec![None; lines.len()];
        let mut words = Vec::new();
        loop {
            for line in arrivals.next().unwrap_or_default() {
                for request in self.recording.asked(&lines[line]) {
                    let id = self
                        .engine
                        .submit(request)
                        .expect("the real server had room");
                    submitted.push((id, line));
                }
            }
            if self.engine.begin_step().is_none() && arrivals.peek().is_none() {
                break;
            }
            let outcome = self.engine.finish_step();
            words.extend(
                outcome
                    .events
                    .iter()
                    .map(|event| self.names.simulated(event)),
            );
            for emission in outcome.emissions {
                let of = submitted.iter().find(|(id, _)| *id == emission.request);
                let line = of.expect("it was submitted").1;
                cached[line].get_or_insert(emission.cached_tokens);
            }
        }
        let cached = cached
            .into_iter()
            .map(|tokens| tokens.expect("an answer"))
            .collect();
        (cached, words)
    }

    /// A gap in the sequence numbers is a request whose client hung up: only its events are
    /// known. It had some tokens more than its last full block.
    fn abandon_what_was_abandoned(&mut self, next: &Value) {
        let seen = std::mem::replace(
            &mut self.seen,
            next["seq_before"].as_i64().expect("a number"),
        );
        let events = self.recording.batches(seen, self.seen);
        let Some(mut prompt) = events.iter().find_map(stored_tokens) else {
            return;
        };
        prompt.push(0);
        let request = Request {
            prompt,
            output: vec![0; 20],
            ..Request::default()
        };
        let id = self
            .engine
            .submit(request)
            .expect("the real server had room");
        self.engine.begin_step();
        let outcome = self.engine.finish_step();
        self.engine.abort(id);
        let simulated: Vec<Word> = outcome
            .events
            .iter()
            .map(|event| self.names.simulated(event))
            .collect();
        let recorded: Vec<Word> = events
            .iter()
            .map(|event| self.names.recorded(event))
            .collect();
        assert_eq!(
            simulated, recorded,
            "an aborted request before {} {seen} {}",
            next["i"], self.seen
        );
    }
}

impl Agreement {
    fn add(&mut self, lines: &[Value], cached: &[usize], words: &[Word], recorded: &[Word]) {
        // vLLM before 0.24 reports null for 0.
        let reported = |line: &Value| line["cached_tokens"].as_u64().unwrap_or(0) as usize;
        let reported: Vec<usize> = lines.iter().map(reported).collect();
        self.requests += lines.len();
        self.cached_tokens += reported.iter().zip(cached).filter(|(a, b)| a == b).count();
        self.events += if words == recorded { lines.len() } else { 0 };
        if cached != reported || words != recorded {
            self.differences.push(format!("{} {}: {cached:?} for {reported:?} cached tokens\n  simulated {words:?}\n  recorded  {recorded:?}", lines[0]["i"], lines[0]["phase"]));
        }
    }
}

/// Runs a recording and expects this much agreement: (requests, cached tokens, events).
fn expect(folder: &str, free_order: FreeOrder, expected: (usize, usize, usize)) {
    let recording = Recording::load(folder, free_order);
    let agreement = Replica::new(&recording).compare();
    let found = (
        agreement.requests,
        agreement.cached_tokens,
        agreement.events,
    );
    assert_eq!(
        found,
        expected,
        "{folder}\n{}",
        agreement.differences.join("\n")
    );
}

#[test]
fn the_cache_managers_of_five_versions_are_repeated_event_by_event() {
    for folder in ["v0.9.2-py-builtin", "v0.11.2-py", "v0.17.1-py"] {
        expect(folder, FreeOrder::Lru, (34, 34, 34));
    }
    for folder in ["v0.24.0-py", "v0.33.0-py"] {
        expect(folder, FreeOrder::UnhashedFirst, (34, 34, 34));
    }
}

/// Repeats, evictions, salts, preemptions, a reset and an abort agree event by event. What
/// does not: 27 + 6 requests sent at once, whose steps of arrival are not recorded, and the
/// few after them until everything they left behind is evicted.
#[test]
fn the_server_of_0_20_2_is_repeated_but_for_the_timing_of_its_clients() {
    expect("v0.20.2-bs32", FreeOrder::Lru, (331, 325, 293));
}

/// As above, and one request with `n = 2`, whose second choice came a step later than the first.
#[test]
fn the_server_of_0_32_0_is_repeated_but_for_the_timing_of_its_clients() {
    expect("v0.32.0-bs32", FreeOrder::UnhashedFirst, (452, 452, 413));
}
