//! One size of fleet: every contender over the same events and requests, round by round.

use std::time::Duration;

use crate::card::{CONTENDERS, Card, Figure};
use crate::contender::{Contender, Entry, best_times};
use crate::heap;
use crate::measure::Spread;
use crate::ours::{Ours, Product};
use crate::peers::{Chain, Counted, Flat, Tree};
use crate::progress::Progress;
use crate::workload::{Event, Fleet, Query, Traffic, blocks, stored};

/// Ours, the one that it is compared with, and the other.
pub const PEERS: [Entry; 3] = [
    Entry::of::<Ours>(),
    Entry::of::<Chain>(),
    Entry::of::<Tree>(),
];

/// Everything measured: the peers, what the plainest of all does, and kv-index with what it lacks to be
/// as right as ours.
pub const FIELD: [Entry; CONTENDERS] = [
    PEERS[0],
    PEERS[1],
    PEERS[2],
    Entry::of::<Flat>(),
    Entry::of::<Counted>(),
];

const RATE: &str = "M blocks/s";

/// What one lane loads.
pub const LOAD: Figure = Figure::more("load_1", "load, one lane", RATE);
/// What one lane stores and removes.
pub const CHURN: Figure = Figure::more("churn_1", "store and remove, one lane", RATE);
const CHURN_STEPS: Figure =
    Figure::more("churn_steps", "store and remove, one lane, by steps", RATE);
const LOAD_2: Figure = Figure::more("load_2", "load, two lanes", RATE);
const CHURN_2: Figure = Figure::more("churn_2", "store and remove, two lanes", RATE);
const LOAD_2_WALL: Figure = Figure::more("load_2_wall", "load, two lanes, by the wall", RATE);
const CHURN_2_WALL: Figure = Figure::more(
    "churn_2_wall",
    "store and remove, two lanes, by the wall",
    RATE,
);

const LOAD_PAUSE: Figure = Figure::less("load_pause_p9999", "longest stores, p99.99", "µs");
const LOAD_PAUSE_MAX: Figure = Figure::less("load_pause_max", "longest store", "µs");
const CHURN_PAUSE: Figure =
    Figure::less("churn_pause_p9999", "longest store or remove, p99.99", "µs");
const CHURN_PAUSE_MAX: Figure = Figure::less("churn_pause_max", "longest store or remove", "µs");

/// A find in a loaded index, the median.
pub const FIND: Figure = Figure::less("find_p50", "find after the load, p50", "µs");
const FIND_P99: Figure = Figure::less("find_p99", "find after the load, p99", "µs");
const CHURNED: Figure = Figure::less("find_churned_p50", "find after the churn, p50", "µs");
const CHURNED_P99: Figure = Figure::less("find_churned_p99", "find after the churn, p99", "µs");
const WHOLE: Figure = Figure::less("cached_p50", "the product's cached(), p50", "µs");
const WHOLE_P99: Figure = Figure::less("cached_p99", "the product's cached(), p99", "µs");
const BESIDE: Figure = Figure::less("find_beside_p50", "find beside a writer, p50", "µs");
const BESIDE_P99: Figure = Figure::less("find_beside_p99", "find beside a writer, p99", "µs");

const WEIGHT: Figure = Figure::less("bytes_load", "heap per pair after the load", "bytes");
const WEIGHT_CHURN: Figure = Figure::less("bytes_churn", "heap per pair after the churn", "bytes");
const WEIGHT_LONG: Figure =
    Figure::less("bytes_long", "heap per pair after the long churn", "bytes");
/// Heap bytes once much was stored and removed, and an index did what it leaves for later.
pub const WEIGHT_SWEPT: Figure = Figure::less("bytes_swept", "… once swept", "bytes");

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Pairs held after the load.
    pub pairs: usize,
    /// Blocks stored in the churn, and about as many removed.
    pub churn: usize,
    /// The same, for the memory that is left behind.
    pub long_churn: usize,
    /// Requests after the load, and after the churn.
    pub queries: usize,
    /// Times that everything is done.
    pub rounds: usize,
    /// Where the dice begin.
    pub seed: u64,
}

/// What a fleet does, and is asked.
struct Work {
    endpoints: u32,
    load: Vec<Event>,
    churn: Vec<Event>,
    loaded: Vec<Query>,
    churned: Vec<Query>,
}

impl Work {
    fn new(endpoints: u32, holes: f64, size: &Size) -> Self {
        let mut traffic = Traffic::new(fleet(endpoints, holes, size));
        let load = traffic.load(size.pairs);
        let loaded = traffic.queries(size.queries);
        traffic.fill();
        let churn = traffic.churn(size.churn);
        let churned = traffic.queries(size.queries);
        Self {
            endpoints,
            load,
            churn,
            loaded,
            churned,
        }
    }
}

fn fleet(endpoints: u32, holes: f64, size: &Size) -> Fleet {
    Fleet {
        endpoints,
        groups: 50,
        holes,
        remembers: None,
        seed: size.seed,
    }
}

/// Everything that is measured of a fleet of so many endpoints.
pub fn run(endpoints: u32, size: &Size, progress: &Progress) -> anyhow::Result<Card> {
    let of = |what: &str| progress.at(&format!("{endpoints} endpoints: {what}"));
    of("making events");
    let work = Work::new(endpoints, 0.0, size);
    let (loaded, stored) = (stored(&work.load), stored(&work.churn));
    let title = format!(
        "{endpoints} endpoints: {loaded} blocks loaded, then {stored} stored and {} removed",
        blocks(&work.churn) - stored,
    );
    let names = FIELD.map(|entry| entry.name);
    let mut card = Card::new(title, names);
    for round in 1..=size.rounds {
        of(&format!(
            "stores and removals, round {round} of {}",
            size.rounds
        ));
        rates(&work, &mut card);
        steps(&work, &mut card);
        pauses(&work, &mut card);
    }
    of("finds");
    finds(&work, size, &mut card)?;
    of("finds beside a writer");
    for _ in 0..2 {
        finds_beside(&work, &mut card);
    }
    of("memory");
    weights(endpoints, size, &mut card);
    progress.clear();
    Ok(card)
}

fn rates(work: &Work, card: &mut Card) {
    for lanes in [1, 2] {
        for (at, entry) in FIELD.iter().enumerate() {
            let mut contender = (entry.enter)(work.endpoints, lanes);
            let load = (&work.load, LOAD, LOAD_2, LOAD_2_WALL);
            let churn = (&work.churn, CHURN, CHURN_2, CHURN_2_WALL);
            for (events, one, two, wall) in [load, churn] {
                let took = contender.apply(events);
                let rate = |time: Duration| blocks(events) as f64 / time.as_secs_f64() / 1e6;
                if lanes == 1 {
                    card.note(one, at, rate(took.cpu));
                } else {
                    card.note(two, at, rate(took.cpu));
                    card.note(wall, at, rate(took.wall()));
                }
            }
        }
    }
}

fn steps(work: &Work, card: &mut Card) {
    for (at, entry) in FIELD.iter().enumerate() {
        let mut contender = (entry.enter)(work.endpoints, 1);
        contender.apply(&work.load);
        let took = contender.apply_steps(&work.churn);
        let rate = blocks(&work.churn) as f64 / took.cpu.as_secs_f64() / 1e6;
        card.note(CHURN_STEPS, at, rate);
    }
}

fn pauses(work: &Work, card: &mut Card) {
    for (at, entry) in FIELD.iter().enumerate() {
        let mut contender = (entry.enter)(work.endpoints, 1);
        let load = (LOAD_PAUSE, LOAD_PAUSE_MAX, &work.load);
        let churn = (CHURN_PAUSE, CHURN_PAUSE_MAX, &work.churn);
        for (rare, longest, events) in [load, churn] {
            let times = Spread::of(contender.apply_each(events));
            card.note(rare, at, times.percentile(99.99));
            card.note(longest, at, times.percentile(100.0));
        }
    }
}

fn finds(work: &Work, size: &Size, card: &mut Card) -> anyhow::Result<()> {
    let product = Entry::of::<Product>();
    let entries: Vec<Entry> = FIELD.into_iter().chain([product]).collect();
    let enter = |entry: &Entry| (entry.enter)(work.endpoints, 1);
    let mut contenders: Vec<_> = entries.iter().map(enter).collect();
    let loaded = (&work.load, &work.loaded, FIND, FIND_P99);
    let churned = (&work.churn, &work.churned, CHURNED, CHURNED_P99);
    for (events, queries, median, rare) in [loaded, churned] {
        for (contender, entry) in contenders.iter_mut().zip(&entries) {
            contender.apply(events);
            contender.is_right(entry.name, queries)?;
        }
        let times = best_times(&contenders, queries, 2 * size.rounds);
        let times: Vec<Spread> = times.into_iter().map(Spread::of).collect();
        for (at, times) in times[..FIELD.len()].iter().enumerate() {
            card.note(median, at, times.percentile(50.0));
            card.note(rare, at, times.percentile(99.0));
        }
        if median == FIND {
            let product = &times[FIELD.len()];
            card.note(WHOLE, 0, product.percentile(50.0));
            card.note(WHOLE_P99, 0, product.percentile(99.0));
        }
    }
    Ok(())
}

fn finds_beside(work: &Work, card: &mut Card) {
    for (at, entry) in FIELD.iter().enumerate() {
        let mut contender = (entry.enter)(work.endpoints, 1);
        contender.apply(&work.load);
        let queries = &work.loaded[..work.loaded.len().min(5000)];
        let times = Spread::of(contender.find_beside(&work.churn, queries));
        card.note(BESIDE, at, times.percentile(50.0));
        card.note(BESIDE_P99, at, times.percentile(99.0));
    }
}

/// The contenders take the same events bit by bit, so that what the heap grows by meanwhile is the
/// one's that took them.
fn weights(endpoints: u32, size: &Size, card: &mut Card) {
    let mut traffic = Traffic::new(fleet(endpoints, 0.0, size));
    heap::start();
    let mut contenders: Vec<(i64, Box<dyn Contender>)> = Vec::new();
    for entry in FIELD {
        let before = heap::live();
        let contender = (entry.enter)(endpoints, 1);
        contenders.push((heap::live() - before, contender));
    }
    let mut weigh =
        |traffic: &mut Traffic, figure: Figure, enough: &dyn Fn(&Traffic, usize) -> bool| {
            let (mut events, mut blocks) = (Vec::new(), 0);
            while !enough(traffic, blocks) {
                events.clear();
                traffic.wave(&mut events);
                blocks += stored(&events);
                for (weight, contender) in &mut contenders {
                    *weight += contender.weigh(&events);
                }
            }
            for (at, (weight, _)) in contenders.iter().enumerate() {
                card.note(figure, at, *weight as f64 / traffic.pairs() as f64);
            }
        };
    weigh(&mut traffic, WEIGHT, &|traffic, _| {
        traffic.pairs() >= size.pairs
    });
    traffic.fill();
    weigh(&mut traffic, WEIGHT_CHURN, &|_, blocks| {
        blocks >= size.churn
    });
    weigh(&mut traffic, WEIGHT_LONG, &|_, blocks| {
        blocks >= size.long_churn
    });
    for (at, (weight, contender)) in contenders.iter_mut().enumerate() {
        *weight += contender.weigh_sweep();
        card.note(WEIGHT_SWEPT, at, *weight as f64 / traffic.pairs() as f64);
    }
    heap::stop();
}

/// Fails where an answer is wrong, also where blocks go from the middle of what is held, event by event or
/// a step's at once.
pub fn check_holes(endpoints: u32, size: &Size) -> anyhow::Result<()> {
    let work = Work::new(endpoints, 0.1, size);
    for entry in FIELD.into_iter().chain([Entry::of::<Product>()]) {
        for by_steps in [false, true] {
            let mut contender = (entry.enter)(endpoints, 1);
            contender.apply(&work.load);
            contender.is_right(entry.name, &work.loaded)?;
            match by_steps {
                true => contender.apply_steps(&work.churn),
                false => contender.apply(&work.churn),
            };
            contender.is_right(entry.name, &work.churned)?;
        }
    }
    Ok(())
}
