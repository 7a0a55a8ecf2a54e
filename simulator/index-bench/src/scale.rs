//! A fleet as large as is ever planned for, loaded as a stream: `make bench-index-scale`.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::card::short;
use crate::contender::{find_each, wrong};
use crate::heap;
use crate::index::{Caller, Direct, Index, Lane};
use crate::measure::{Spread, median, nanoseconds};
use crate::progress::Progress;
use crate::workload::{Fleet, Query, Traffic, blocks};

/// How large.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Endpoints.
    pub endpoints: u32,
    /// Blocks that each holds.
    pub blocks: usize,
    /// Pairs at which finds are timed first.
    pub first: usize,
    /// Requests each time.
    pub queries: usize,
    /// Endpoints to forget.
    pub forgets: u32,
    /// Where the dice begin.
    pub seed: u64,
}

/// Times each request is asked, of which the best counts.
const ROUNDS: usize = 5;

struct Loaded<I: Index> {
    index: Arc<I>,
    lane: I::Lane,
    traffic: Traffic,
    heap: i64,
    /// Of its events, CPU time.
    took: Duration,
    blocks: usize,
}

impl<I: Index> Loaded<I> {
    fn new(scale: &Scale) -> Self {
        let fleet = Fleet {
            endpoints: scale.endpoints,
            groups: 50,
            holes: 0.0,
            // Of 51 million pairs, as many old sessions as there are requests.
            remembers: Some(25),
            seed: scale.seed,
        };
        let before = heap::live();
        let index = Arc::new(I::new(scale.endpoints));
        let lane = I::lane(&index);
        Self {
            heap: heap::live() - before,
            index,
            lane,
            traffic: Traffic::new(fleet),
            took: Duration::ZERO,
            blocks: 0,
        }
    }

    /// Goes on until so many pairs are held.
    fn load(&mut self, pairs: usize, progress: &Progress) {
        let (mut events, mut told) = (Vec::new(), 0);
        loop {
            let held = self.traffic.pairs();
            if held / 5_000_000 > told {
                told = held / 5_000_000;
                progress.at(&format!("{}: {} million pairs", I::NAME, held / 1_000_000));
            }
            if held >= pairs {
                return;
            }
            events.clear();
            self.traffic.wave(&mut events);
            let before = heap::live();
            self.lane.queue(&mut events.iter());
            self.took += self.lane.run().cpu;
            self.blocks += blocks(&events);
            self.heap += heap::live() - before;
        }
    }

    /// Times of finds, best of some, all checked.
    fn finds(&mut self, queries: usize) -> anyhow::Result<Spread> {
        let queries = self.traffic.queries(queries);
        let wrong = wrong(&*self.index, &queries);
        ensure!(wrong == 0, "{}: {wrong} answers are wrong", I::NAME);
        let mut best = vec![u32::MAX; queries.len()];
        for _ in 0..ROUNDS {
            let times = find_each(&*self.index, &queries);
            for (best, time) in best.iter_mut().zip(times) {
                *best = time.min(*best);
            }
        }
        Ok(Spread::of(best))
    }
}

/// Runs it with one index and says what came of it.
pub fn run<I>(scale: &Scale, progress: &Progress) -> anyhow::Result<Value>
where
    I: Index<Lane = Caller<I>> + Direct,
{
    heap::start();
    let mut loaded = Loaded::<I>::new(scale);
    loaded.load(scale.first, progress);
    let (few, begun) = (loaded.traffic.pairs(), loaded.finds(scale.queries)?);
    loaded.load(scale.endpoints as usize * scale.blocks, progress);
    let pairs = loaded.traffic.pairs();
    progress.at(&format!("{}: finds at {pairs} pairs", I::NAME));
    let full = loaded.finds(scale.queries)?;
    let resident = heap::resident();
    progress.at(&format!("{}: forgetting", I::NAME));
    let queries = loaded.traffic.queries(2000);
    let mut alone = Vec::new();
    for endpoint in 0..scale.forgets {
        let begun = Instant::now();
        loaded.lane.forget(endpoint);
        alone.push(begun.elapsed().as_secs_f64());
    }
    let usual = median(alone.clone());
    let (mut quiet, mut beside) = (Vec::new(), Vec::new());
    for endpoint in scale.forgets..2 * scale.forgets {
        let waits = || std::thread::sleep(Duration::from_secs_f64(usual));
        quiet.push(longest_find(&*loaded.index, &queries, waits));
        let forgets = || loaded.lane.forget(endpoint);
        beside.push(longest_find(&*loaded.index, &queries, forgets));
    }
    heap::stop();
    let percentiles = |spread: &Spread| [spread.percentile(50.0), spread.percentile(99.0)];
    let (begun, full) = (percentiles(&begun), percentiles(&full));
    Ok(json!({
        "index": I::NAME,
        "endpoints": scale.endpoints,
        "pairs": pairs,
        "pairs_first": few,
        "load_mblocks_per_s": loaded.blocks as f64 / loaded.took.as_secs_f64() / 1e6,
        "heap_bytes": loaded.heap,
        "heap_bytes_per_pair": loaded.heap as f64 / pairs as f64,
        "resident_bytes": resident,
        "find_first_us": begun,
        "find_us": full,
        "find_ratio": [full[0] / begun[0], full[1] / begun[1]],
        "forget_ms": usual_and_worst(alone.into_iter().map(|seconds| seconds * 1e3).collect()),
        "longest_find_while_forgetting_us": usual_and_worst(beside),
        "longest_find_otherwise_us": usual_and_worst(quiet),
    }))
}

/// What an index does shows each time; what the machine's other tenants do, in the worst alone.
fn usual_and_worst(values: Vec<f64>) -> [f64; 2] {
    let worst = values.iter().copied().fold(0.0, f64::max);
    [median(values), worst]
}

/// The longest find of a reader beside this work, in microseconds.
fn longest_find<I: Index>(index: &I, queries: &[Query], work: impl FnOnce()) -> f64 {
    let (reads, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut asks: Vec<_> = queries.iter().map(|query| index.ask(query)).collect();
            let (mut room, mut longest) = (index.room(), 0);
            for at in (0..asks.len()).cycle() {
                let begun = Instant::now();
                index.find(&mut asks[at], &mut room);
                black_box(&room);
                longest = longest.max(nanoseconds(begun.elapsed()));
                reads.store(true, Relaxed);
                if done.load(Relaxed) {
                    break;
                }
            }
            f64::from(longest) / 1e3
        });
        while !reads.load(Relaxed) {
            std::thread::yield_now();
        }
        work();
        done.store(true, Relaxed);
        reader.join().expect("no panic")
    })
}

/// For a terminal, beside each other.
pub fn text(ours: &Value, peer: &Value) -> String {
    let number = |of: &Value, key: &str| of[key].as_f64().unwrap_or(f64::NAN);
    let scaled = |key, factor: f64, unit: &str| {
        [ours, peer].map(|of| format!("{} {unit}", short(number(of, key) * factor)))
    };
    let pairs = |key: &str, unit: &str| {
        [ours, peer].map(|of| {
            let [a, b] = [0, 1].map(|at| short(of[key][at].as_f64().unwrap_or(f64::NAN)));
            format!("{a} / {b} {unit}").trim_end().to_owned()
        })
    };
    let names = [ours, peer].map(|of| of["index"].as_str().unwrap_or_default().to_owned());
    let rows = [
        ("", names),
        ("loaded", scaled("load_mblocks_per_s", 1.0, "M blocks/s")),
        ("heap", scaled("heap_bytes", 1e-9, "GB")),
        ("heap per pair", scaled("heap_bytes_per_pair", 1.0, "bytes")),
        (
            "resident, generator and all",
            scaled("resident_bytes", 1e-9, "GB"),
        ),
        ("find at first, p50 / p99", pairs("find_first_us", "µs")),
        ("find when full, p50 / p99", pairs("find_us", "µs")),
        ("full ÷ first, p50 / p99", pairs("find_ratio", "")),
        (
            "forgetting an endpoint, usual / worst",
            pairs("forget_ms", "ms"),
        ),
        (
            "longest find meanwhile",
            pairs("longest_find_while_forgetting_us", "µs"),
        ),
        (
            "… and in as long a time without",
            pairs("longest_find_otherwise_us", "µs"),
        ),
    ];
    let rows: Vec<_> = rows
        .map(|(what, [ours, peer])| [what.to_owned(), ours, peer])
        .into();
    let title = format!(
        "{} endpoints, {} pairs; at first {}",
        ours["endpoints"], ours["pairs"], ours["pairs_first"],
    );
    format!("{title}\n{}", crate::table::table(1, &rows))
}
