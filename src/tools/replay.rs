//! `kvscout replay`: a recording of a real vLLM server, predicted request by request.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::blocks::{BlockKey, Chain, Identity, TokenId};
use crate::events::follow::Follower;
use crate::events::wire;
use crate::fleet::EndpointId;
use crate::index::Index;
use crate::prompt::template::{RenderSettings, Renderer};
use crate::prompt::{PromptError, Request};
use crate::tokens::{self, Engine, Tokenizer};

/// Predicts the cached tokens of every sequential request in a recording and compares them
/// with what vLLM reported.
///
/// DIR holds events.jsonl (only the raw `frames` are read), requests.jsonl and meta.json, as
/// `kvscout record` and the project's golden recordings lay them out. One JSON object goes to
/// stdout:
///
///   {"requests", "sequential", "exact", "explained", "wrong", "events", "decode_errors"}
///
/// `requests` counts lines, `sequential` those predicted (exact + explained + wrong), `events`
/// messages. `explained` is a difference that a picker can know of from the request or event
/// stream itself: a cache reset whose event is not published yet, or a cache salt that this
/// vLLM's events do not show (before 0.17.1). Each wrong or explained request gets a line on
/// stderr. Exit status: 0 if none is wrong, 1 if one is, 2 if the recording cannot be read.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The recording's folder.
    pub dir: PathBuf,
    /// Also render and tokenize each request body with this model folder (tokenizer.json,
    /// tokenizer_config.json) and add "token_mismatches" against the recorded ids.
    #[arg(long, value_name = "MODEL_DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Write the lines on stderr as JSON, too.
    #[arg(long)]
    pub json: bool,
}

/// The result, as printed.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Lines of requests.jsonl.
    pub requests: u64,
    /// Requests predicted.
    pub sequential: u64,
    /// Predicted to the token.
    pub exact: u64,
    /// Different, and knowably so.
    pub explained: u64,
    /// Different.
    pub wrong: u64,
    /// Messages of events.jsonl.
    pub events: u64,
    /// Messages or events that could not be decoded.
    pub decode_errors: u64,
    /// Requests whose own token ids differ from the recorded ones; with `--tokenizer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_mismatches: Option<u64>,
}

/// A prediction that was not exact.
#[derive(Debug, Serialize)]
struct Difference<'a> {
    request: i64,
    phase: &'a str,
    verdict: &'static str,
    predicted: u64,
    reported: u64,
    why: &'static str,
}

/// Runs the command; `false` where a prediction was wrong.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let mut replay = Replay::open(&args.dir)?;
    let tokens = args.tokenizer.as_deref().map(Tokens::load).transpose()?;
    let mut complaints = std::io::stderr().lock();
    let token_mismatches = match &tokens {
        Some(tokens) => Some(tokens.mismatches(&replay.requests, args.json, &mut complaints)?),
        None => None,
    };
    let summary = Summary {
        token_mismatches,
        ..replay.run(args.json, &mut complaints)?
    };
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, &summary)?;
    writeln!(stdout)?;
    Ok(summary.wrong == 0)
}

#[derive(Debug, Deserialize)]
struct EventLine {
    #[serde(default)]
    src: Option<String>,
    frames: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct RequestLine {
    #[serde(default)]
    i: i64,
    #[serde(default)]
    phase: String,
    #[serde(default)]
    sequential: bool,
    #[serde(default)]
    path: String,
    #[serde(default)]
    status: Option<i64>,
    #[serde(default)]
    request: Value,
    #[serde(default)]
    headers: BTreeMap<String, Value>,
    #[serde(default, alias = "dp_rank", alias = "data_parallel_rank")]
    rank: Option<u32>,
    #[serde(default)]
    prompt_token_ids: Option<Vec<TokenId>>,
    #[serde(default)]
    cached_tokens: Option<u64>,
    #[serde(default)]
    seq_before: Value,
    #[serde(default)]
    seq_after: Value,
}

impl RequestLine {
    /// The data-parallel rank that served it: recorded, or pinned by header.
    fn rank(&self) -> u32 {
        let pinned = self
            .headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("x-data-parallel-rank"));
        let pinned = pinned.and_then(|(_, value)| match value {
            Value::String(text) => text.parse().ok(),
            value => value.as_u64().and_then(|rank| u32::try_from(rank).ok()),
        });
        self.rank.or(pinned).unwrap_or(0)
    }

    /// A field that is given and not null.
    fn given(&self, field: &str) -> Option<&Value> {
        self.request.get(field).filter(|value| !value.is_null())
    }

    /// vLLM reads no cache for a request that wants log-probabilities of its prompt; `echo`
    /// with `logprobs` asks for the same (`CompletionRequest.to_sampling_params`).
    fn reads_cache(&self) -> bool {
        let echoes = self.given("echo").and_then(Value::as_bool).unwrap_or(false);
        self.given("prompt_logprobs").is_none() && !(echoes && self.given("logprobs").is_some())
    }

    fn wants_report(&self) -> bool {
        let xargs = self.given("vllm_xargs");
        xargs
            .and_then(|xargs| xargs.get("kv_cache_report_mode"))
            .and_then(Value::as_str)
            == Some("full")
    }
}

/// `seq_before` and `seq_after`: one number, or one per rank (a list, or a map).
fn sequence_of(value: &Value, rank: u32) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::Array(list) => list.get(rank as usize).and_then(Value::as_i64),
        Value::Object(map) => map.get(&rank.to_string()).and_then(Value::as_i64),
        _ => None,
    }
}

struct Message {
    seq: u64,
    payload: Vec<u8>,
}

/// One rank's stream and how far it was applied.
struct Stream {
    follower: Follower,
    messages: Vec<Message>,
    applied: usize,
    cleared: u64,
}

struct Replay {
    index: Index,
    streams: BTreeMap<u32, Stream>,
    requests: Vec<RequestLine>,
    adapters: Vec<String>,
    summary: Summary,
    /// Resets asked for, and times that a cache was seen cleared.
    resets: u64,
    /// Blocks that a salted request made where events hide the salt.
    hidden: HashSet<BlockKey>,
}

impl Replay {
    fn open(dir: &Path) -> anyhow::Result<Self> {
        let mut replay = Self {
            index: Index::default(),
            streams: BTreeMap::new(),
            requests: lines(&dir.join("requests.jsonl"))?,
            adapters: adapters(&dir.join("meta.json"))?,
            summary: Summary::default(),
            resets: 0,
            hidden: HashSet::new(),
        };
        for line in lines::<EventLine>(&dir.join("events.jsonl"))? {
            if !line
                .src
                .as_deref()
                .is_some_and(|src| src.starts_with("replay"))
            {
                replay.add_message(&line.frames)?;
            }
        }
        Ok(replay)
    }

    /// Files a message under its rank. One that cannot be decoded belongs to rank 0, whose
    /// follower will say so.
    fn add_message(&mut self, frames: &[String]) -> anyhow::Result<()> {
        self.summary.events += 1;
        let frames: Vec<Vec<u8>> = frames
            .iter()
            .map(|frame| BASE64_STANDARD.decode(frame))
            .collect::<Result<_, _>>()
            .context("frames: not base64")?;
        let [_topic, seq, payload] = <[Vec<u8>; 3]>::try_from(frames).map_err(|frames| {
            anyhow::anyhow!(
                "frames: {} of them, not topic, sequence, payload",
                frames.len()
            )
        })?;
        let seq =
            <[u8; 8]>::try_from(seq).map_err(|_| anyhow::anyhow!("frames[1]: not 8 bytes"))?;
        let rank = wire::decode(&payload).map_or(0, |batch| batch.rank);
        let message = Message {
            seq: u64::from_be_bytes(seq),
            payload,
        };
        let (index, adapters) = (&self.index, &self.adapters);
        let stream = self.streams.entry(rank).or_insert_with(|| {
            index.name_adapters(EndpointId(rank), adapters.clone());
            let follower = Follower::new(EndpointId(rank));
            Stream {
                follower,
                messages: Vec::new(),
                applied: 0,
                cleared: 0,
            }
        });
        stream.messages.push(message);
        Ok(())
    }

    fn run(&mut self, json: bool, complaints: &mut impl Write) -> anyhow::Result<Summary> {
        let requests = std::mem::take(&mut self.requests);
        self.summary.requests = requests.len() as u64;
        for line in &requests {
            if line.path == "/reset_prefix_cache" {
                self.streams
                    .keys()
                    .copied()
                    .collect::<Vec<_>>()
                    .into_iter()
                    .for_each(|rank| {
                        self.apply_up_to(rank, sequence_of(&line.seq_after, rank));
                    });
                self.resets += 1;
            } else if line.sequential && line.status.unwrap_or(200) == 200 {
                let difference = self.compare(line)?;
                if let Some(difference) = difference {
                    complain(&difference, json, complaints)?;
                }
            }
            self.remember_hidden(line);
        }
        for rank in self.streams.keys().copied().collect::<Vec<_>>() {
            self.apply_up_to(rank, Some(i64::MAX));
        }
        Ok(std::mem::take(&mut self.summary))
    }

    /// Applies a rank's messages until `seq` is behind; the file's order is the wire's.
    fn apply_up_to(&mut self, rank: u32, seq: Option<i64>) {
        let (Some(stream), Some(seq)) = (self.streams.get_mut(&rank), seq) else {
            return;
        };
        while let Some(message) = stream.messages.get(stream.applied) {
            if i64::try_from(message.seq).unwrap_or(i64::MAX) > seq {
                break;
            }
            let followed = stream
                .follower
                .on_batch(&self.index, message.seq, &message.payload);
            self.summary.decode_errors +=
                u64::from(followed.undecodable) + u64::from(followed.malformed);
            stream.cleared += u64::from(followed.applied.cleared);
            stream.applied += 1;
        }
    }

    fn compare<'a>(&mut self, line: &'a RequestLine) -> anyhow::Result<Option<Difference<'a>>> {
        let rank = line.rank();
        let Some(before) = sequence_of(&line.seq_before, rank) else {
            bail!(
                "request {}: seq_before is not a number, nor one per rank",
                line.i
            );
        };
        let Some(tokens) = line.prompt_token_ids.as_deref() else {
            return Ok(None);
        };
        self.apply_up_to(rank, Some(before));
        let chain = self.chain(line, rank, tokens);
        let predicted = self.predict(line, rank, &chain);
        let reported = line.cached_tokens.unwrap_or(0);
        self.summary.sequential += 1;
        if predicted == reported {
            self.summary.exact += 1;
            return Ok(None);
        }
        let why = self.explanation(line, rank, reported, &chain);
        let (verdict, count) = match why {
            Some(_) => ("explained", &mut self.summary.explained),
            None => ("wrong", &mut self.summary.wrong),
        };
        *count += 1;
        let why = why.unwrap_or("no reason known");
        Ok(Some(Difference {
            request: line.i,
            phase: &line.phase,
            verdict,
            predicted,
            reported,
            why,
        }))
    }

    fn chain(&self, line: &RequestLine, rank: u32, tokens: &[TokenId]) -> Chain {
        let model = line.given("model").and_then(Value::as_str);
        let adapter = model.filter(|model| self.adapters.iter().any(|name| name == model));
        let cache_salt = line.given("cache_salt").and_then(Value::as_str);
        let identity = Identity {
            adapter: adapter.map(str::to_owned),
            cache_salt: cache_salt.map(str::to_owned),
        };
        // Before the first store nothing is held, whatever the size.
        let block_size = self.index.block_size(EndpointId(rank)).unwrap_or(16);
        Chain::of_prompt(tokens, block_size, &identity)
    }

    /// Predicted cached tokens; announces the report that the request may ask for.
    fn predict(&self, line: &RequestLine, rank: u32, chain: &Chain) -> u64 {
        if !line.reads_cache() {
            return 0;
        }
        let endpoint = EndpointId(rank);
        let overlap = self.index.overlap(chain);
        let blocks = overlap
            .iter()
            .find(|(of, _)| *of == endpoint)
            .map_or(0, |(_, blocks)| *blocks);
        if line.wants_report() {
            self.index.expect_report(endpoint, chain, blocks);
        }
        u64::from(blocks) * u64::from(chain.block_size)
    }

    /// Only what a picker can know from the request and event streams.
    fn explanation(
        &self,
        line: &RequestLine,
        rank: u32,
        reported: u64,
        chain: &Chain,
    ) -> Option<&'static str> {
        let cleared = self.streams.get(&rank).map_or(0, |stream| stream.cleared);
        if self.resets > cleared && reported == 0 {
            return Some("the cache was reset; its clearing event goes out with the next step");
        }
        if self.index.shows_salt(EndpointId(rank)) == Some(false)
            && (line.given("cache_salt").is_some()
                || chain.keys.iter().any(|key| self.hidden.contains(key)))
        {
            return Some("this vLLM (before 0.17.1) does not show cache salts in its events");
        }
        None
    }

    /// Notes the plain names under which a salted request's blocks will appear.
    fn remember_hidden(&mut self, line: &RequestLine) {
        let rank = line.rank();
        let (Some(_), Some(tokens)) = (line.given("cache_salt"), &line.prompt_token_ids) else {
            return;
        };
        if self.index.shows_salt(EndpointId(rank)) == Some(false) {
            let block_size = self.index.block_size(EndpointId(rank)).unwrap_or(16);
            let mut tokens = tokens.clone();
            tokens.push(0);
            self.hidden
                .extend(Chain::of_prompt(&tokens, block_size, &Identity::default()).keys);
        }
    }
}

/// Our own reading of request bodies, against the recorded ids.
struct Tokens {
    renderer: Renderer,
    tokenizer: Arc<dyn Tokenizer>,
}

impl Tokens {
    fn load(folder: &Path) -> anyhow::Result<Self> {
        let renderer = Renderer::load(folder, RenderSettings::default(), SystemTime::now)?;
        Ok(Self {
            renderer,
            tokenizer: tokens::load(folder, Engine::default())?,
        })
    }

    /// How many requests whose ids were recorded read otherwise here; a line for each.
    fn mismatches(
        &self,
        requests: &[RequestLine],
        json: bool,
        complaints: &mut impl Write,
    ) -> anyhow::Result<u64> {
        let mut mismatches = 0;
        for line in requests {
            let Some(recorded) = line.prompt_token_ids.as_deref() else {
                continue;
            };
            let problem = match self.read(line) {
                // Recordings of vLLM's own cache manager have no request bodies.
                Err(PromptError::UnknownPath) => continue,
                Ok(ours) if ours == recorded => continue,
                Ok(ours) => {
                    let at = ours
                        .iter()
                        .zip(recorded)
                        .take_while(|(ours, theirs)| ours == theirs)
                        .count();
                    format!(
                        "{} tokens, recorded {}, first difference at {at}",
                        ours.len(),
                        recorded.len()
                    )
                }
                Err(error) => error.to_string(),
            };
            mismatches += 1;
            let RequestLine { i, phase, .. } = line;
            if json {
                let value = serde_json::json!({"request": i, "phase": phase, "verdict": "tokens", "why": problem});
                writeln!(complaints, "{value}")?;
            } else {
                writeln!(
                    complaints,
                    "request {i} ({phase}): tokens differ: {problem}"
                )?;
            }
        }
        Ok(mismatches)
    }

    fn read(&self, line: &RequestLine) -> Result<Vec<TokenId>, PromptError> {
        let body = line.request.to_string();
        let prompt = Request::parse(&line.path, body.as_bytes())?.render(&self.renderer)?;
        let texts = tokens::tokens_of(&prompt, self.tokenizer.as_ref());
        Ok(texts
            .unwrap_or_default()
            .into_iter()
            .next()
            .unwrap_or_default())
    }
}

fn complain(difference: &Difference<'_>, json: bool, to: &mut impl Write) -> anyhow::Result<()> {
    if json {
        serde_json::to_writer(&mut *to, difference)?;
        writeln!(to)?;
    } else {
        let Difference {
            request,
            phase,
            verdict,
            predicted,
            reported,
            why,
        } = difference;
        writeln!(
            to,
            "request {request} ({phase}): {verdict}: predicted {predicted}, reported {reported}: {why}"
        )?;
    }
    Ok(())
}

/// LoRA adapters in their order of loading: models with a parent.
fn adapters(meta: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(meta).with_context(|| format!("{}", meta.display()))?;
    let meta: Value = serde_json::from_str(&text).with_context(|| format!("{}", meta.display()))?;
    let models = meta
        .pointer("/models/data")
        .or(meta.get("models"))
        .and_then(Value::as_array);
    let adapters = models
        .into_iter()
        .flatten()
        .filter(|model| model.get("parent").is_some_and(|p| !p.is_null()));
    Ok(adapters
        .filter_map(|model| model.get("id")?.as_str().map(str::to_owned))
        .collect())
}

fn lines<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<T>> {
    let file = File::open(path).with_context(|| format!("{}: not a recording?", path.display()))?;
    let mut values = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let line = line?;
        if !line.trim().is_empty() {
            let value = serde_json::from_str(&line);
            values.push(value.with_context(|| format!("{}:{number}", path.display()))?);
        }
    }
    Ok(values)
}
