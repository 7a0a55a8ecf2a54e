//! Figures of several contenders beside each other.

use serde_json::{Map, Value, json};

use crate::measure::median;
use crate::table::table;

/// Those in every table.
pub const CONTENDERS: usize = 5;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// A name for machines.
    pub id: &'static str,
    /// A name for readers.
    pub what: &'static str,
    /// In what.
    pub unit: &'static str,
    /// Whether more of it is better.
    pub more_is_better: bool,
}

impl Figure {
    /// Of which more is better.
    pub const fn more(id: &'static str, what: &'static str, unit: &'static str) -> Self {
        Self {
            id,
            what,
            unit,
            more_is_better: true,
        }
    }

    /// Of which less is better.
    pub const fn less(id: &'static str, what: &'static str, unit: &'static str) -> Self {
        Self {
            more_is_better: false,
            ..Self::more(id, what, unit)
        }
    }
}

/// A table under a title, in which the first contender is compared with the second.
#[derive(Debug)]
pub struct Card {
    title: String,
    names: [&'static str; CONTENDERS],
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    figure: Figure,
    samples: [Vec<f64>; CONTENDERS],
}

impl Row {
    /// A contender's figure: the median of its samples.
    fn median(&self, contender: usize) -> Option<f64> {
        let samples = &self.samples[contender];
        (!samples.is_empty()).then(|| median(samples.clone()))
    }

    /// How many times better the first contender is than the second: the median over samples taken
    /// beside each other, since the machine's clock swings between them.
    fn better_by(&self) -> Option<f64> {
        let [ours, theirs, ..] = &self.samples;
        let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| {
            if self.figure.more_is_better {
                ours / theirs
            } else {
                theirs / ours
            }
        });
        let ratios: Vec<f64> = ratios.collect();
        (!ratios.is_empty()).then(|| median(ratios))
    }
}

impl Card {
    /// An empty one for these contenders.
    pub fn new(title: String, names: [&'static str; CONTENDERS]) -> Self {
        let rows = Vec::new();
        Self { title, names, rows }
    }

    /// One more sample of a contender's figure. A contender's n-th sample was taken beside the
    /// others' n-th.
    pub fn note(&mut self, figure: Figure, contender: usize, value: f64) {
        let at = self.rows.iter().position(|row| row.figure == figure);
        let at = at.unwrap_or_else(|| {
            let samples = Default::default();
            self.rows.push(Row { figure, samples });
            self.rows.len() - 1
        });
        self.rows[at].samples[contender].push(value);
    }

    /// A contender's figure: the median of its samples.
    pub fn figure(&self, figure: Figure, contender: usize) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.figure == figure)?;
        row.median(contender)
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let [ours, chain, tree, flat, counted] = self.names;
        let head = ["", "", ours, chain, tree, flat, counted, "better by"].map(str::to_owned);
        let rows = self.rows.iter().map(|row| {
            let cell = |at| row.median(at).map_or_else(|| "-".to_owned(), short);
            let better_by = row.better_by().map(|ratio| format!("{ratio:.2}x"));
            let (what, unit) = (row.figure.what.to_owned(), row.figure.unit.to_owned());
            let better_by = better_by.unwrap_or_default();
            let [ours, chain, tree, flat, counted] = [0, 1, 2, 3, 4].map(cell);
            [what, unit, ours, chain, tree, flat, counted, better_by]
        });
        let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
        format!("{}\n{}", self.title, table(2, &rows))
    }

    /// For machines.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let of = |(at, name): (usize, &&str)| {
                let value = json!({"median": row.median(at), "samples": row.samples[at]});
                ((*name).to_owned(), value)
            };
            let contenders: Map<_, _> = self.names.iter().enumerate().map(of).collect();
            json!({
                "id": row.figure.id,
                "what": row.figure.what,
                "unit": row.figure.unit,
                "better_by": row.better_by(),
                "contenders": contenders,
            })
        });
        json!({"title": self.title, "figures": rows.collect::<Vec<_>>()})
    }
}

/// Three digits that matter.
pub fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
