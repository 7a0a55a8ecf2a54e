//! `kvscout replay`: a recording of a real vLLM server, predicted request by request.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::Value;

use crate::blocks::{BlockKey, Stored};
use crate::events::recording::{EVENTS_FILE, Recorded, Recording};
use crate::events::{Batch, wire};
use crate::fleet::EndpointId;
use crate::index::Index;

mod bodies;
mod difference;
mod line;
mod parity;
mod predict;
mod stream;

use bodies::Tokens;
use difference::{Difference, Verdict, complain};
use line::{Line, Moment, Prompts};
use parity::{Counts, Parities};
use predict::Reading;
use stream::{Applying, Message, Stream, is_part_of};

/// Adapters that may be known by their ids alone.
const ADAPTERS_MAX: usize = 1024;

/// Predicts the cached tokens of every sequential request in a recording and compares them
/// with what vLLM reported.
///
/// DIR holds events.jsonl (only the raw `frames` are read), requests.jsonl and meta.json, as
/// `kvscout record` and the project's golden recordings lay them out. One JSON object goes to
/// stdout:
///
///   {"requests", "sequential", "exact", "explained", "wrong", "events", "decode_errors",
///    "token_parity": {"agree", "differ", "unjudged"}}
///
/// `requests` counts lines, `sequential` those predicted (exact + explained + wrong), `events`
/// messages. `explained` is a difference that a picker can know of from the request or event
/// stream itself: a cache reset whose event is not published yet, or a cache salt that this
/// vLLM's events do not show (before 0.17.1). Each wrong or explained request gets a line on
/// stderr, and so does a sequential request that cannot be predicted: of several data-parallel
/// ranks, neither the recording nor the blocks it stored tell which one served it, and they would
/// not all find the same. `token_parity` counts, of all answered requests for which the server had
/// to store their last full block, those whose token ids are the ones that it stored; one that
/// differs gets a line, with the first differing position where the events show it. Exit status: 0 if none is wrong, 1 if one is, 2 if the recording cannot be read.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The recording's folder.
    pub dir: PathBuf,
    /// Also render and tokenize each request body with this model folder (tokenizer.json,
    /// tokenizer_config.json) and add "token_mismatches" against the recorded ids; token parity
    /// is then that of our own reading.
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
    /// Requests whose token ids are those in the events that followed.
    pub token_parity: Counts,
    /// Requests whose own token ids differ from the recorded ones; with `--tokenizer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_mismatches: Option<u64>,
}

/// Runs the command; `false` where a prediction was wrong.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let mut replay = Replay::open(&args.dir)?;
    let tokens = args.tokenizer.as_deref().map(Tokens::load).transpose()?;
    let mut complaints = std::io::stderr().lock();
    let token_mismatches = match &tokens {
        Some(tokens) => Some(tokens.mismatches(&replay.lines, args.json, &mut complaints)?),
        None => None,
    };
    replay.tokens = tokens;
    let summary = Summary {
        token_mismatches,
        ..replay.run(args.json, &mut complaints)?
    };
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, &summary)?;
    writeln!(stdout)?;
    Ok(summary.wrong == 0)
}

struct Replay {
    index: Index,
    parities: Parities,
    /// Who reads request bodies; without, their tokens are the recorded ones.
    tokens: Option<Tokens>,
    streams: BTreeMap<u32, Stream>,
    lines: Vec<Line>,
    adapters: HashSet<String>,
    summary: Summary,
    /// Blocks that a salted request made where events hide the salt.
    hidden: HashSet<BlockKey>,
}

impl Replay {
    fn open(dir: &Path) -> anyhow::Result<Self> {
        let parities = Parities::default();
        let mut replay = Self {
            index: parities.index(),
            parities,
            tokens: None,
            streams: BTreeMap::new(),
            lines: lines(&dir.join("requests.jsonl"))?,
            adapters: HashSet::new(),
            summary: Summary::default(),
            hidden: HashSet::new(),
        };
        let path = dir.join(EVENTS_FILE);
        let mut recording = Recording::open(&path).with_context(|| not_a_recording(&path))?;
        while let Some(recorded) = recording.read() {
            let recorded = recorded.with_context(|| path.display().to_string())?;
            if !recorded.replayed {
                replay.add_message(&recorded)?;
            }
        }
        replay.name_adapters(adapters(&dir.join("meta.json"))?);
        Ok(replay)
    }

    /// Files a message under its rank. One that cannot be decoded is of the rank whose stream
    /// it continues, and its follower will say so.
    fn add_message(&mut self, recorded: &Recorded) -> anyhow::Result<()> {
        self.summary.events += 1;
        let batch = Batch::from_frames(&recorded.frames);
        let Batch { seq, payload, .. } =
            batch.map_err(|reason| anyhow::anyhow!("frames: {reason}"))?;
        let continued = || {
            let ends =
                |stream: &Stream| stream.messages.last().map(|last| last.seq.wrapping_add(1));
            let of = self
                .streams
                .iter()
                .find(|(_, stream)| ends(stream) == Some(seq));
            of.map_or(0, |(rank, _)| *rank)
        };
        let rank = wire::decode(&payload).map_or_else(|_| continued(), |batch| batch.rank);
        let message = Message {
            time: recorded.t,
            seq,
            payload,
        };
        let stream = self.streams.entry(rank);
        let stream = stream.or_insert_with(|| Stream::new(EndpointId(rank)));
        stream.messages.push(message);
        Ok(())
    }

    /// Adapters are known by the server's list of models, by their names in events, or, before
    /// 0.14.1, by the requests whose blocks carry their ids.
    fn name_adapters(&mut self, listed: Vec<String>) {
        let mut by_id = listed.clone();
        self.adapters.extend(listed);
        for at in 0..self.lines.len() {
            let Some(model) = self.lines[at].body("model").and_then(Value::as_str) else {
                continue;
            };
            let id = self.stored_by(at).find_map(|(_, stored)| match stored {
                Stored {
                    adapter: None,
                    adapter_id,
                    ..
                } => adapter_id,
                _ => None,
            });
            if let Some(nth) = id.and_then(|id| usize::try_from(id).ok()?.checked_sub(1))
                && nth < ADAPTERS_MAX
            {
                by_id.resize(by_id.len().max(nth + 1), String::new());
                by_id[nth] = model.to_owned();
                self.adapters.insert(model.to_owned());
            }
        }
        for stream in self.streams.values() {
            self.index.name_adapters(stream.endpoint, by_id.clone());
            let stores = stream.messages.iter().flat_map(Message::stores);
            self.adapters
                .extend(stores.filter_map(|stored| stored.adapter));
        }
    }

    /// What was stored for a line, and where: the blocks of its own tokens that were published
    /// from its sending until the next line's.
    fn stored_by(&self, at: usize) -> impl Iterator<Item = (u32, Stored)> {
        let (line, next) = (&self.lines[at], self.lines.get(at + 1));
        let (tokens, ranks) = (line.all_tokens(), self.streams.len());
        self.streams.iter().flat_map(move |(rank, stream)| {
            let from = line.before(*rank, ranks);
            let to = next.map_or(Some(Moment::Seq(i64::MAX)), |next| {
                next.before(*rank, ranks)
            });
            let came = from.zip(to).map(|(from, to)| stream.between(from, to));
            let stores = came.into_iter().flatten().flat_map(Message::stores);
            let own = stores.filter(|stored| is_part_of(stored, &tokens));
            own.map(|stored| (*rank, stored)).collect::<Vec<_>>()
        })
    }

    /// The rank that served a line: recorded, the only one, or the one that stored its blocks.
    fn rank(&self, at: usize) -> Option<u32> {
        let only = || match self.streams.len() {
            0 => Some(0),
            1 => self.streams.keys().next().copied(),
            _ => None,
        };
        let recorded = self.lines[at].rank();
        let stored = || self.stored_by(at).next().map(|(rank, _)| rank);
        only().or(recorded).or_else(stored)
    }

    fn run(&mut self, json: bool, complaints: &mut impl Write) -> anyhow::Result<Summary> {
        self.summary.requests = self.lines.len() as u64;
        for at in 0..self.lines.len() {
            if self.lines[at].is_reset() {
                self.reset(at);
            } else if let Some(difference) = self.follow(at)? {
                complain(&difference, json, complaints)?;
            }
            self.parities.complain(json, complaints)?;
        }
        let ranks: Vec<u32> = self.streams.keys().copied().collect();
        for rank in &ranks {
            self.apply_until(*rank, Moment::Seq(i64::MAX));
        }
        self.summary.token_parity = self.parities.end(ranks);
        self.parities.complain(json, complaints)?;
        Ok(std::mem::take(&mut self.summary))
    }

    /// Every rank is reset, and says so with its next step.
    fn reset(&mut self, at: usize) {
        let ranks: Vec<u32> = self.streams.keys().copied().collect();
        for rank in &ranks {
            let (line, next) = (&self.lines[at], self.lines.get(at + 1));
            let after = line.after(*rank, ranks.len());
            let after = after.or_else(|| next?.before(*rank, ranks.len()));
            if let Some(after) = after {
                self.apply_until(*rank, after);
            }
        }
        self.streams
            .values_mut()
            .for_each(|stream| stream.reset = true);
    }

    fn apply_until(&mut self, rank: u32, moment: Moment) {
        let Self {
            streams,
            index,
            parities,
            summary,
            ..
        } = self;
        if let Some(stream) = streams.get_mut(&rank) {
            stream.apply_until(moment, index, |applying| match applying {
                Applying::Next(message) => parities.end_before(rank, message),
                Applying::Done(message, followed, trust) => {
                    summary.decode_errors +=
                        u64::from(followed.undecodable) + u64::from(followed.malformed);
                    parities.hear(rank, message, &followed, trust);
                }
            });
        }
    }

    /// Predicts a line, if its tokens are known and it was alone; says where that went wrong.
    fn follow(&mut self, at: usize) -> anyhow::Result<Option<Difference>> {
        let prompts = match self.lines[at].prompts() {
            Prompts::Unknown => return Ok(None),
            Prompts::One(tokens) => vec![tokens],
            Prompts::Batch(prompts) => prompts,
        };
        let ranks = match self.rank(at) {
            Some(rank) => vec![rank],
            None => self.streams.keys().copied().collect(),
        };
        for rank in &ranks {
            let line = &self.lines[at];
            match line.before(*rank, self.streams.len()) {
                Some(before) => self.apply_until(*rank, before),
                None if line.is_predicted() => {
                    let number = line.number();
                    bail!("request {number}: neither seq_before nor t_send says when it was sent");
                }
                None => {}
            }
        }
        let line = &self.lines[at];
        let read = |rank: &u32| self.read(line, *rank, &prompts);
        let readings: Vec<Reading> = ranks.iter().map(read).collect();
        let difference = line.is_predicted().then(|| self.compare(line, &readings));
        if let [reading] = &readings[..] {
            self.watch(at, reading);
            self.announce_reports(reading);
            self.remember_hidden(reading);
        }
        let Some(difference) = difference.flatten() else {
            self.summary.sequential += u64::from(self.lines[at].is_predicted());
            self.summary.exact += u64::from(self.lines[at].is_predicted());
            return Ok(None);
        };
        let (sequential, counted) = match difference.verdict {
            Verdict::Explained => (1, &mut self.summary.explained),
            Verdict::Wrong => (1, &mut self.summary.wrong),
            Verdict::NotPredicted => (0, &mut 0),
        };
        self.summary.sequential += sequential;
        *counted += 1;
        Ok(Some(difference))
    }

    /// Watches the line's first prompt, as the picker does.
    fn watch(&mut self, at: usize, reading: &Reading) {
        let line = &self.lines[at];
        let read = self
            .tokens
            .as_ref()
            .and_then(|tokens| tokens.read(line).ok());
        let prompts = read.as_ref().unwrap_or(&reading.prompts);
        if let (Some(stream), Some(tokens)) =
            (self.streams.get(&reading.endpoint.0), prompts.first())
        {
            let stream = (stream, self.streams.len());
            self.parities
                .open(line, stream, &self.index, (reading, tokens));
        }
    }
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

fn not_a_recording(path: &Path) -> String {
    format!("{}: not a recording?", path.display())
}

fn lines<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<T>> {
    let file = File::open(path).with_context(|| not_a_recording(path))?;
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
