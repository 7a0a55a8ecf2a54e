//! What a find takes of a long prompt, by how much of it is held and by how many.

use crate::card::{Card, Figure};
use crate::contender::{Entry, best_times};
use crate::dice::Dice;
use crate::measure::median;
use crate::run::FIELD;
use crate::workload::{Change, Event, Query, Truth, chain};

const ENDPOINTS: u32 = 64;
/// 100,000 tokens.
const LONG: usize = 6250;
/// The mean of the other requests.
const SHORT: usize = 113;
/// Prompts of each kind, each held by another endpoint.
const PROMPTS: u32 = 16;
const ROUNDS: usize = 40;

const SHORT_HELD: Figure = Figure::less("short", "113 blocks, all held by 1", "µs");
const PARTLY_HELD: Figure = Figure::less("long_partly", "6,250 blocks, 300 held by 1", "µs");
const PARTLY_RATIO: Figure = Figure::less("long_partly_ratio", "… in times of the short one", "x");
const LONG_HELD: Figure = Figure::less("long", "6,250 blocks, all held by 1", "µs");
const LONG_RATIO: Figure = Figure::less("long_ratio", "… in times of the short one", "x");

/// Blocks of a kind of prompt, how many of them are held, and its figures.
const KINDS: [(usize, usize, Figure, Option<Figure>); 3] = [
    (SHORT, SHORT, SHORT_HELD, None),
    (LONG, 300, PARTLY_HELD, Some(PARTLY_RATIO)),
    (LONG, LONG, LONG_HELD, Some(LONG_RATIO)),
];

/// Times of the three kinds.
pub fn run(seed: u64) -> anyhow::Result<Card> {
    let mut dice = Dice::new(seed);
    let (mut events, mut queries) = (Vec::new(), Vec::new());
    for (blocks, held, ..) in KINDS {
        for endpoint in 0..PROMPTS {
            let contents: Vec<u64> = (0..blocks).map(|_| dice.roll()).collect();
            let (parent, blocks) = (None, chain(&contents[..held]));
            let change = Change::Stored { parent, blocks };
            events.push(Event { endpoint, change });
            let mut truth = Truth::default();
            truth.tell(endpoint, held as u32);
            queries.push(Query::new(contents, truth));
        }
    }
    let enter = |entry: &Entry| {
        let mut contender = (entry.enter)(ENDPOINTS, 1);
        contender.apply(&events);
        contender
    };
    let contenders: Vec<_> = FIELD.iter().map(enter).collect();
    for (contender, entry) in contenders.iter().zip(FIELD) {
        contender.is_right(entry.name, &queries)?;
    }
    let names = FIELD.map(|entry| entry.name);
    let mut card = Card::new(format!("{ENDPOINTS} endpoints, long prompts"), names);
    let best = best_times(&contenders, &queries, ROUNDS);
    for (at, best) in best.into_iter().enumerate() {
        let of_kinds = best
            .chunks(PROMPTS as usize)
            .map(|times| median(times.iter().map(|time| f64::from(*time) / 1e3).collect()));
        let mut short = f64::NAN;
        for (time, (.., figure, ratio)) in of_kinds.zip(KINDS) {
            card.note(figure, at, time);
            match ratio {
                None => short = time,
                Some(ratio) => card.note(ratio, at, time / short),
            }
        }
    }
    Ok(card)
}
