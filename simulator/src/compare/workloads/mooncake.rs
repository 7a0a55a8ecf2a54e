//! A trace in Mooncake's format (FAST'25): lengths, and an id for each 512 tokens of a prompt.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use super::super::clock::{SECOND, Time};
use super::super::plan::{Asked, Piece, Plan};
use crate::dice::Dice;

/// A trace.
#[derive(Debug, Clone)]
pub struct Mooncake {
    lines: Vec<Line>,
}

#[derive(Debug, Clone, Deserialize)]
struct Line {
    /// Milliseconds.
    timestamp: f64,
    input_length: usize,
    output_length: usize,
    /// Each stands for a block and everything before it.
    hash_ids: Vec<u64>,
}

/// Tokens that an id stands for.
const BLOCK_TOKENS: usize = 512;
/// A line has an id for each 512 tokens; a million tokens make 16 KB.
const LINE_BYTES_MAX: u64 = 1 << 20;

impl Mooncake {
    /// Reads a trace: lines of JSON, compressed if the name ends in `.zst`.
    ///
    /// # Errors
    /// It is not there, or not a trace.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let file = std::fs::File::open(path).with_context(|| {
            format!("--trace {shown}: give the path of a Mooncake trace (.jsonl or .jsonl.zst)")
        })?;
        let compressed = path.extension().is_some_and(|extension| extension == "zst");
        let bytes: Box<dyn Read> = match compressed {
            true => Box::new(zstd::Decoder::new(file).with_context(|| format!("--trace {shown}"))?),
            false => Box::new(file),
        };
        Self::parse(bytes).with_context(|| format!("--trace {shown}"))
    }

    fn parse(bytes: impl Read) -> anyhow::Result<Self> {
        let (mut reader, mut lines) = (BufReader::new(bytes), Vec::new());
        loop {
            let mut text = Vec::new();
            if reader
                .by_ref()
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut text)?
                == 0
            {
                break;
            }
            let number = lines.len() + 1;
            if text.len() as u64 == LINE_BYTES_MAX {
                bail!("line {number} is longer than a prompt can be: is it JSON lines?");
            }
            let line: Line = serde_json::from_slice(&text).with_context(|| {
                format!("line {number} is not {{\"timestamp\", \"input_length\", \"output_length\", \"hash_ids\"}}")
            })?;
            let ids = line.input_length.div_ceil(BLOCK_TOKENS);
            ensure!(
                line.hash_ids.len() == ids,
                "line {number} has {} ids for {} tokens; one for each {BLOCK_TOKENS} would be {ids}",
                line.hash_ids.len(),
                line.input_length
            );
            lines.push(line);
        }
        ensure!(!lines.is_empty(), "it is empty");
        Ok(Self { lines })
    }

    /// Requests per second at the speed it was recorded, over all of it.
    #[must_use]
    pub fn recorded_rate(&self) -> f64 {
        let last = self
            .lines
            .iter()
            .map(|line| line.timestamp)
            .fold(1.0, f64::max);
        self.lines.len() as f64 / last * 1000.0
    }

    /// The trace so many times at once, each with texts of its own, at so many requests per second
    /// in all, until a time in seconds. The seed draws the moments that the trace leaves open.
    #[must_use]
    pub fn plan(&self, rate: f64, copies: usize, until: f64, seed: u64) -> Plan {
        let (copies, mut dice) = (copies.max(1), Dice::new(seed ^ 0x6d6f6f6e));
        let speed = rate / (self.recorded_rate() * copies as f64);
        let mut requests = Vec::new();
        for (number, line) in self.lines.iter().enumerate() {
            for copy in 0..copies as u64 {
                // When within the trace's grain of some seconds nobody knows: not all at once.
                let at = (line.timestamp + dice.share() * GRAIN_MS) / speed / 1000.0;
                if at < until {
                    requests.push(line.asked(number as u64, copy, (at * SECOND as f64) as Time));
                }
            }
        }
        requests.sort_by_key(|asked| asked.at);
        Plan {
            name: "mooncake".into(),
            requests,
        }
    }
}

/// The recorded timestamps are multiples of three seconds.
const GRAIN_MS: f64 = 3000.0;

impl Line {
    fn asked(&self, number: u64, copy: u64, at: Time) -> Asked {
        let last = self.hash_ids.len().saturating_sub(1);
        let pieces = self.hash_ids.iter().enumerate().map(|(place, id)| {
            let tokens = match place == last {
                true => self.input_length - last * BLOCK_TOKENS,
                false => BLOCK_TOKENS,
            };
            Piece::of([5, copy, *id], tokens)
        });
        Asked {
            at,
            after: Vec::new(),
            prompt: pieces.collect(),
            answer: Piece::of([6, copy, number], self.output_length),
            // No client is told of; its first block is as near to one as there is.
            session: self
                .hash_ids
                .get(1)
                .or(self.hash_ids.first())
                .copied()
                .unwrap_or(0)
                ^ copy << 32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = r#"{"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]}
{"timestamp": 3000, "input_length": 1200, "output_length": 5, "hash_ids": [0, 1, 2]}
"#;

    #[test]
    fn equal_ids_are_equal_tokens_and_copies_share_none() {
        let trace = Mooncake::parse(TRACE.as_bytes()).expect("a trace");
        // Twice, and twice as fast.
        let plan = |seed| trace.plan(4.0 * trace.recorded_rate(), 2, 10.0, seed);
        let arrivals =
            |plan: &Plan| -> Vec<Time> { plan.requests.iter().map(|asked| asked.at).collect() };
        let (plan, other) = (plan(1), plan(2));
        let at = arrivals(&plan);
        assert!(
            at.is_sorted() && at[1] < 3 * SECOND / 2 && at[2] >= 3 * SECOND / 2,
            "{at:?}"
        );
        assert_ne!(at, arrivals(&other), "another seed, other moments");
        let tokens: Vec<_> = plan.requests.iter().map(Asked::spell_prompt).collect();
        let follows = |one: usize| {
            tokens[2..]
                .iter()
                .filter(|two| two[..1000] == tokens[one])
                .count()
        };
        assert_eq!((follows(0), follows(1)), (1, 1));
        assert_ne!(tokens[0][..16], tokens[1][..16]);
        assert!((trace.recorded_rate() - 2.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_no_trace_is_told_of_by_line() {
        let error = |text: &str| {
            format!(
                "{:#}",
                Mooncake::parse(text.as_bytes()).expect_err("no trace")
            )
        };
        assert!(error("").contains("empty"));
        assert!(error("{}\n").contains("line 1"));
        let short = TRACE.replace("[0, 1, 2]", "[0]");
        assert!(error(&short).contains("line 2 has 1 ids for 1200 tokens"));
    }
}
