//! Token parity over a recording: each answered request's prompt against the events that
//! followed it, as `kvscout serve` watches them.

use std::io::Write;
use std::sync::Arc;

use serde::Serialize;

use super::line::{Line, Moment};
use super::predict::Reading;
use super::stream::{Message, Stream};
use crate::blocks::TokenId;
use crate::events::follow::Followed;
use crate::fleet::{EndpointId, Trust};
use crate::index::Index;
use crate::parity::{Fork, Heard, Judgement, Parity, Placed, Record, Verdict, Watch};

/// How many requests' tokens were the ones that the server stored.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// To the end of the last full block.
    pub agree: u64,
    /// Other tokens.
    pub differ: u64,
    /// Nobody knows.
    pub unjudged: u64,
}

/// A request that differed.
#[derive(Debug, Serialize)]
pub(super) struct Differed {
    request: String,
    verdict: &'static str,
    position: Option<usize>,
    why: &'static str,
}

/// The watches of a recording.
pub(super) struct Parities {
    parity: Arc<Parity>,
    model: Arc<str>,
    open: Vec<Open>,
    differed: Vec<Differed>,
}

/// A request that is on its way.
struct Open {
    rank: u32,
    watch: Watch,
    after: Moment,
    done_s: Option<f64>,
}

impl Default for Parities {
    fn default() -> Self {
        let model: Arc<str> = "recording".into();
        Self {
            parity: Parity::of([model.clone()]),
            model,
            open: Vec::new(),
            differed: Vec::new(),
        }
    }
}

impl Parities {
    /// An index whose stores are watched.
    pub fn index(&self) -> Index {
        self.parity.index()
    }

    /// Watches a request from where `stream` stands, if it was answered, and not sent earlier.
    pub fn open(
        &mut self,
        line: &Line,
        (stream, ranks): (&Stream, usize),
        index: &Index,
        (reading, tokens): (&Reading, &[TokenId]),
    ) {
        let rank = reading.endpoint.0;
        let before = line.before(rank, ranks);
        let late = before.is_none_or(|before| stream.is_past(before));
        let Some(after) = line
            .after(rank, ranks)
            .filter(|_| line.is_answered() && !late)
        else {
            return;
        };
        let placed = Placed {
            request: &line.number().to_string(),
            model: &self.model,
            tokens: &Arc::new(tokens.to_vec()),
            identity: &reading.identity,
            chain: None,
            cached_tokens: cached_tokens(index, reading, tokens),
        };
        let watch = self
            .parity
            .open(index, reading.endpoint, &placed, || stream.trust());
        self.open.extend(watch.map(|watch| Open {
            rank,
            watch,
            after,
            done_s: line.done_s(),
        }));
    }

    /// Ends the requests that were answered before a message of their rank came.
    pub fn end_before(&mut self, rank: u32, message: &Message) {
        let over = |open: &mut Open| open.rank == rank && !message.by(open.after);
        for Open { watch, done_s, .. } in self.open.extract_if(.., over) {
            watch.ended(done_s.unwrap_or(message.time));
        }
    }

    /// Hears one message of a rank.
    pub fn hear(&mut self, rank: u32, message: &Message, followed: &Followed, trust: Trust) {
        let now_s = match message.time {
            0.0 => followed.timestamp.unwrap_or_default(),
            time => time,
        };
        let heard = Heard {
            timestamp: followed.timestamp,
            now_s,
            unbroken: trust == Trust::Live && !followed.forgotten && followed.missed == 0,
        };
        self.judge(EndpointId(rank), heard);
    }

    /// The recording is over: whatever was to follow has followed.
    pub fn end(&mut self, ranks: impl IntoIterator<Item = u32>) -> Counts {
        for Open { watch, .. } in self.open.drain(..) {
            watch.ended(0.0);
        }
        for rank in ranks {
            let heard = Heard {
                timestamp: Some(f64::MAX),
                now_s: f64::MAX,
                unbroken: true,
            };
            self.judge(EndpointId(rank), heard);
        }
        let Record {
            agree,
            differ,
            unjudged,
            ..
        } = self
            .parity
            .records()
            .remove(&self.model)
            .unwrap_or_default();
        Counts {
            agree,
            differ,
            unjudged,
        }
    }

    fn judge(&mut self, endpoint: EndpointId, heard: Heard) {
        for judgement in self.parity.heard(endpoint, heard) {
            if let Judgement {
                request,
                verdict: Verdict::Differ(fork),
                ..
            } = judgement
            {
                self.differed.push(Differed::new(request, fork));
            }
        }
    }

    /// Says which requests have differed since it was last asked.
    pub fn complain(&mut self, json: bool, to: &mut impl Write) -> anyhow::Result<()> {
        for differed in self.differed.drain(..) {
            if json {
                serde_json::to_writer(&mut *to, &differed)?;
                writeln!(to)?;
                continue;
            }
            let Differed {
                request,
                position,
                why,
                ..
            } = &differed;
            let at = position.map_or(String::new(), |at| format!(", first at position {at}"));
            writeln!(to, "request {request}: token parity: {why}{at}")?;
        }
        Ok(())
    }
}

/// What the picker would predict.
fn cached_tokens(index: &Index, reading: &Reading, tokens: &[TokenId]) -> u64 {
    let cached = index.cached_at(reading.endpoint, tokens, &reading.identity);
    cached.tokens()
}

impl Differed {
    fn new(request: String, fork: Fork) -> Self {
        Self {
            request,
            verdict: "parity",
            position: fork.position(),
            why: fork.as_str(),
        }
    }
}
