//! What the picker took over time: the picture of docs/benchmarks.md.

use std::fmt::Write as _;

use super::run::Report;
use super::sample::Sample;
use crate::plot::{Plot, style};

const PANEL: (f64, f64) = (430.0, 260.0);
const COLUMNS: usize = 2;

/// A line's name and value.
type Line = (&'static str, fn(&Sample) -> f64);

struct Panel {
    title: &'static str,
    log: bool,
    lines: &'static [Line],
}

const PANELS: [Panel; 6] = [
    Panel {
        title: "memory, MB",
        log: false,
        lines: &[
            ("resident", |sample| sample.resident_bytes as f64 / 1e6),
            ("segment caches", |sample| {
                sample.token_cache_bytes as f64 / 1e6
            }),
            ("index", |sample| sample.index_bytes as f64 / 1e6),
        ],
    },
    Panel {
        title: "stream to pick, ms",
        log: true,
        lines: &[
            ("p99", |sample| sample.pick_p99_ms),
            ("p50", |sample| sample.pick_p50_ms),
        ],
    },
    Panel {
        title: "picks a second",
        log: false,
        lines: &[("", |sample| sample.picks_per_s)],
    },
    Panel {
        title: "descriptors, threads",
        log: false,
        lines: &[
            ("descriptors", |sample| sample.descriptors as f64),
            ("threads", |sample| sample.threads as f64),
        ],
    },
    Panel {
        title: "events' lag, mean, ms",
        log: true,
        lines: &[("", |sample| sample.event_lag_ms)],
    },
    Panel {
        title: "pods, CPU",
        log: false,
        lines: &[
            ("pods", |sample| sample.pods as f64),
            ("kvscout's cores", |sample| sample.cores),
        ],
    },
];
/// Numbers of colours.
const COLOURS: [usize; 3] = [4, 5, 2];

/// The whole picture.
pub(super) fn picture(report: &Report) -> String {
    let rows = PANELS.len().div_ceil(COLUMNS);
    let (width, height) = (PANEL.0 * COLUMNS as f64, PANEL.1 * rows as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\">\n\
         <title>A picker under load for long, while pods, adapters and certificates come and go</title>\n\
         <style>{}</style>\n<rect class=\"p\" width=\"{width}\" height=\"{height}\" rx=\"8\"/>\n",
        style()
    );
    for (nth, panel) in PANELS.iter().enumerate() {
        let at = (
            (nth % COLUMNS) as f64 * PANEL.0,
            (nth / COLUMNS) as f64 * PANEL.1,
        );
        panel.draw(&mut svg, &report.samples, at);
    }
    svg.push_str("</svg>\n");
    svg
}

impl Panel {
    fn draw(&self, svg: &mut String, samples: &[Sample], (left, top): (f64, f64)) {
        let over_time = |(_, of): &Line| -> Vec<(f64, f64)> {
            let point = |sample: &Sample| (sample.at_s / 60.0, of(sample));
            samples.iter().map(point).collect()
        };
        let lines: Vec<_> = self.lines.iter().map(over_time).collect();
        let coloured = COLOURS.into_iter().zip(lines.iter().map(Vec::as_slice));
        let plot = Plot {
            title: self.title,
            x: "minutes",
            log_x: false,
            log_y: self.log,
            y_range: if self.log { (1.0, 1.0) } else { (0.0, 0.0) },
            lines: coloured.collect(),
            dots: false,
        };
        svg.push_str(&plot.svg((left, top)));
        // Names stand to the right of the title, the last one outermost.
        let mut right = left + 408.0;
        for (colour, (name, _)) in COLOURS.into_iter().zip(self.lines).rev() {
            // Writing into a string cannot fail.
            let _ = writeln!(
                svg,
                "<text class=\"e f{colour}\" x=\"{right}\" y=\"{}\">{name}</text>",
                top + 20.0
            );
            right -= 14.0 + 6.0 * name.len() as f64;
        }
    }
}
