//! A request's way from body bytes to block keys, on one thread, beside the reference engine that
//! vLLM itself runs: `make bench-prompt`,
//! or `make bench-prompt ONLY=turns` for some of the cases.
//!
//! CPU time of the process, which does nothing else, so that no engine's own threads are missed;
//! medians. Both ways run in turn on the same bodies in the same run, so
//! the ratios hold on a noisy machine where the milliseconds do not. Every way's keys are compared
//! with the reference's while it is timed.

#![allow(clippy::print_stdout, reason = "a benchmark's table is its output")]

mod corpus;

use std::alloc::System;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use kvscout::blocks::{BlockKey, Chain, Identity};
use kvscout::config::TOKEN_CACHE_BYTES_MAX;
use kvscout::prompt::Request;
use kvscout::prompt::template::{RenderSettings, Renderer};
use kvscout::tokens::{self, CacheBudget, Engine, Tokenizer};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use corpus::{Corpus, Kind};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BLOCK_SIZE: u32 = 16;
/// Texts seen for the first time, per case.
const FIRST_ROUNDS: usize = 15;
/// Repeats of one text, per case.
const REPEAT_ROUNDS: usize = 100;
/// Runs of the reference, per case: up to half a second each.
const REFERENCE_ROUNDS: usize = 5;

/// One model's way from bytes to keys.
struct Way {
    renderer: Renderer,
    tokenizer: Arc<dyn Tokenizer>,
}

/// CPU time by stage.
#[derive(Debug, Clone, Copy, Default)]
struct Took {
    parse: Duration,
    render: Duration,
    tokens: Duration,
    blocks: Duration,
}

impl Took {
    fn all(self) -> Duration {
        self.parse + self.render + self.tokens + self.blocks
    }
}

/// What one request gave and cost.
struct Run {
    keys: Vec<BlockKey>,
    tokens: usize,
    took: Took,
    allocations: usize,
    bytes: usize,
}

impl Way {
    fn load(folder: &Path, engine: Engine, cache: &CacheBudget) -> anyhow::Result<Self> {
        Ok(Self {
            renderer: Renderer::load(folder, RenderSettings::default(), SystemTime::now)?,
            tokenizer: tokens::load(folder, engine, cache)?,
        })
    }

    fn go(&self, path: &str, body: &[u8]) -> anyhow::Result<Run> {
        let region = Region::new(ALLOCATOR);
        let t0 = cpu_time();
        let request = Request::parse(path, body)?;
        let t1 = cpu_time();
        let prompt = request.render(&self.renderer)?;
        let t2 = cpu_time();
        let ids = tokens::tokens_of(&prompt, self.tokenizer.as_ref())?;
        let t3 = cpu_time();
        let ids = ids.first().context("a prompt")?;
        let chain = Chain::of_prompt(ids, BLOCK_SIZE, &Identity::default());
        let t4 = cpu_time();
        let used = region.change();
        let took = Took {
            parse: t1 - t0,
            render: t2 - t1,
            tokens: t3 - t2,
            blocks: t4 - t3,
        };
        Ok(Run {
            keys: chain.keys,
            tokens: ids.len(),
            took,
            allocations: used.allocations + used.reallocations,
            bytes: used.bytes_allocated,
        })
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn median<T: Copy, K: Ord>(mut items: Vec<T>, key: impl Fn(&T) -> K) -> T {
    items.sort_by_key(key);
    items[items.len() / 2]
}

fn median_run(runs: Vec<Run>) -> (Took, usize, usize, usize) {
    let rows: Vec<_> = runs
        .iter()
        .map(|run| (run.took, run.tokens, run.allocations, run.bytes))
        .collect();
    median(rows, |row| row.0.all())
}

const CHAT: &str = "/v1/chat/completions";

struct Bench {
    ours: Way,
    reference: Way,
    corpus: Corpus,
    /// Only cases whose names have this in them.
    only: String,
}

impl Bench {
    /// One question of a kind and size: each text new, then one again and again.
    fn question(&self, kind: Kind, tokens: usize, bytes: usize) -> anyhow::Result<()> {
        let name = format!("{} {}k", kind.as_str(), tokens / 1000);
        if !name.contains(&self.only) {
            return Ok(());
        }
        let body = |seed: u64| {
            let text = self.corpus.text(kind, bytes, seed);
            corpus::chat(vec![json!({"role": "user", "content": text})])
        };
        let (mut first, mut reference) = (Vec::new(), Vec::new());
        for round in 0..FIRST_ROUNDS {
            let body = body(7_000_000 + tokens as u64 * 1000 + round as u64);
            first.push(self.ours.go(CHAT, &body)?);
            if round < REFERENCE_ROUNDS {
                reference.push(self.reference(&body, &first[round].keys)?);
            }
        }
        let same = body(9_000_000 + tokens as u64);
        let repeat = self.repeated(&same)?;
        self.row(&name, same.len(), median_run(first), repeat, reference);
        Ok(())
    }

    fn repeated(&self, body: &[u8]) -> anyhow::Result<Vec<Run>> {
        self.ours.go(CHAT, body)?;
        (0..REPEAT_ROUNDS)
            .map(|_| self.ours.go(CHAT, body))
            .collect()
    }

    /// The reference's time for a body that it has not seen, its keys held against ours.
    fn reference(&self, body: &[u8], keys: &[BlockKey]) -> anyhow::Result<Duration> {
        let run = self.reference.go(CHAT, body)?;
        ensure!(
            run.keys == keys,
            "the reference makes other keys of this body"
        );
        Ok(run.took.all())
    }

    /// A conversation whose last turn alone is new, each time another one.
    fn conversation(&self, name: &str, turns: usize, bytes: usize) -> anyhow::Result<()> {
        if !name.contains(&self.only) {
            return Ok(());
        }
        let messages = |seed: u64| {
            let mut messages = self.corpus.conversation(turns, bytes, 800, 42);
            let last = self.corpus.text(Kind::English, 800, seed);
            *messages.last_mut().expect("a turn") = json!({"role": "user", "content": last});
            messages
        };
        let mut before = messages(1);
        before.truncate(before.len() - 2);
        self.ours.go(CHAT, &corpus::chat(before))?;
        let (mut runs, mut reference) = (Vec::new(), Vec::new());
        for round in 0..REPEAT_ROUNDS {
            let body = corpus::chat(messages(100 + round as u64));
            runs.push(self.ours.go(CHAT, &body)?);
            if round < REFERENCE_ROUNDS {
                reference.push(self.reference(&body, &runs[round].keys)?);
            }
        }
        let body = corpus::chat(messages(99));
        let repeat = self.repeated(&body)?;
        let warm = median_run(runs);
        self.row(name, body.len(), warm, repeat, reference);
        let Took {
            parse,
            render,
            tokens,
            blocks,
        } = warm.0;
        println!(
            "    of it: parse {:.3}, render {:.3}, tokens {:.3}, block keys {:.3} ms",
            ms(parse),
            ms(render),
            ms(tokens),
            ms(blocks)
        );
        Ok(())
    }

    fn row(
        &self,
        name: &str,
        body: usize,
        first: (Took, usize, usize, usize),
        repeat: Vec<Run>,
        reference: Vec<Duration>,
    ) {
        let repeat = median_run(repeat);
        let reference = median(reference, |time| *time);
        println!(
            "{name:<20} {:>8} {:>7.1} {:>9.3} {:>9.3} {:>10.2} {:>8.0}x {:>8.0}x {:>7} {:>7.1}",
            repeat.1,
            body as f64 / 1e3,
            ms(first.0.all()),
            ms(repeat.0.all()),
            ms(reference),
            reference.as_secs_f64() / first.0.all().as_secs_f64(),
            reference.as_secs_f64() / repeat.0.all().as_secs_f64(),
            first.2,
            first.3 as f64 / 1e3,
        );
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn main() -> anyhow::Result<()> {
    let folder = std::env::var_os("TOKENIZER").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/tokenizer-qwen3"),
        PathBuf::from,
    );
    let bench = Bench {
        ours: Way::load(
            &folder,
            Engine::Fast,
            &CacheBudget::of_bytes(TOKEN_CACHE_BYTES_MAX),
        )?,
        reference: Way::load(&folder, Engine::Reference, &CacheBudget::none())?,
        corpus: Corpus::of_this_repository(),
        only: std::env::args()
            .skip(1)
            .find(|arg| !arg.starts_with('-'))
            .unwrap_or_default(),
    };
    println!(
        "From body bytes to the keys of {BLOCK_SIZE}-token blocks, one thread, CPU ms (medians); ratios to"
    );
    println!(
        "the reference engine on bodies it has not seen, its keys held against ours. First: a text not"
    );
    println!(
        "seen before; of a conversation, its last turn alone is new. Allocations and the kB in them"
    );
    println!("are the first way's; a byte that is copied is copied into one of them.");
    println!();
    println!(
        "{:<20} {:>8} {:>7} {:>9} {:>9} {:>10} {:>9} {:>9} {:>7} {:>7}",
        "", "tokens", "body kB", "first", "repeat", "reference", "first", "repeat", "allocs", "kB"
    );
    // Bytes per token of each kind, on Qwen3.
    for (kind, bytes_per_token) in [
        (Kind::English, 4.3),
        (Kind::Code, 4.0),
        (Kind::Chinese, 4.3),
    ] {
        for tokens in [1_000, 8_000, 32_000, 100_000] {
            bench.question(kind, tokens, (tokens as f64 * bytes_per_token) as usize)?;
        }
    }
    bench.conversation("20 turns, 32k", 20, 140_000)?;
    bench.conversation("60 turns, 100k", 60, 440_000)?;
    Ok(())
}
