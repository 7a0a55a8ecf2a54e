//! Figures of several contenders beside each other.

use serde_json::{Value, json};

use crate::measure::median;
use crate::table::table;

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
    names: Vec<&'static str>,
    rows: Vec<(Figure, Vec<Vec<f64>>)>,
}

impl Card {
    /// An empty one for these contenders.
    pub fn new(title: String, names: Vec<&'static str>) -> Self {
        Self {
            title,
            names,
            rows: Vec::new(),
        }
    }

    /// Its contenders.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// One more sample of a contender's figure. A contender's n-th sample was taken beside the
    /// others' n-th.
    pub fn note(&mut self, figure: Figure, contender: usize, value: f64) {
        let at = self.rows.iter().position(|(of, _)| *of == figure);
        let at = at.unwrap_or_else(|| {
            self.rows.push((figure, vec![Vec::new(); self.names.len()]));
            self.rows.len() - 1
        });
        self.rows[at].1[contender].push(value);
    }

    /// A contender's figure: the median of its samples.
    pub fn figure(&self, figure: Figure, contender: usize) -> Option<f64> {
        let (_, samples) = self.rows.iter().find(|(of, _)| *of == figure)?;
        let samples = &samples[contender];
        (!samples.is_empty()).then(|| median(samples.clone()))
    }

    /// How many times better the first contender is than the second: the median over samples taken
    /// beside each other, since the machine's clock swings between them.
    fn ratio(&self, figure: Figure) -> Option<f64> {
        let (_, samples) = self.rows.iter().find(|(of, _)| *of == figure)?;
        let [ours, theirs, ..] = &samples[..] else {
            return None;
        };
        let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| {
            if figure.more_is_better {
                ours / theirs
            } else {
                theirs / ours
            }
        });
        let ratios: Vec<f64> = ratios.collect();
        (!ratios.is_empty()).then(|| median(ratios))
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), short);
        let of = |at: usize| self.names.get(at).copied().unwrap_or_default();
        let head = ["", "", of(0), of(1), of(2), of(3), "better by"].map(str::to_owned);
        let rows = self.rows.iter().map(|(figure, _)| {
            let value = |at: usize| match at < self.names.len() {
                true => cell(self.figure(*figure, at)),
                false => String::new(),
            };
            let ratio = self
                .ratio(*figure)
                .map_or_else(String::new, |ratio| format!("{ratio:.2}x"));
            let (what, unit) = (figure.what.to_owned(), figure.unit.to_owned());
            [what, unit, value(0), value(1), value(2), value(3), ratio]
        });
        let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
        format!("{}\n{}", self.title, table(2, &rows))
    }

    /// For machines.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|(figure, samples)| {
            let contenders = self.names.iter().zip(samples).enumerate();
            let contenders = contenders.map(|(at, (name, samples))| {
                let median = self.figure(*figure, at);
                (
                    (*name).to_owned(),
                    json!({"median": median, "samples": samples}),
                )
            });
            json!({
                "id": figure.id,
                "what": figure.what,
                "unit": figure.unit,
                "better_by": self.ratio(*figure),
                "contenders": contenders.collect::<serde_json::Map<_, _>>(),
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
