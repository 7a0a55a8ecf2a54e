//! The figures as a picture, readable on light and dark pages.

use std::fmt::Write as _;

use crate::card::{Card, Figure, short};
use crate::contender::Entry;
use crate::run::{CHURN, FIND, LOAD, PEERS, WEIGHT_SWEPT};

const PANELS: [(Figure, &str); 4] = [
    (LOAD, "load, M blocks/s of a core"),
    (CHURN, "store and remove, M blocks/s of a core"),
    (FIND, "find, µs, p50"),
    (WEIGHT_SWEPT, "heap bytes per block and endpoint"),
];

const WIDTH: usize = 960;
const PANEL: (usize, usize) = (440, 200);
/// Of the bars, within a panel.
const HEIGHT: f64 = 130.0;
const BAR: usize = 32;

const STYLE: &str = "
text{font:12px system-ui,sans-serif;fill:#1f2328} .t{font-size:14px;font-weight:600} .v{font-size:10px}
.m{text-anchor:middle} .q{fill:#57606a} .p{fill:#ffffff} .l{stroke:#8c959f}
.c0{fill:#0969da} .c1{fill:#bc4c00} .c2{fill:#2da44e}
@media (prefers-color-scheme:dark){
text{fill:#e6edf3} .q{fill:#9198a1} .p{fill:#0d1117} .l{stroke:#6e7681}
.c0{fill:#4493f8} .c1{fill:#f0883e} .c2{fill:#3fb950}}
";

/// Of cards, each under the name of its fleet's size: what is compared, without the plain reference.
pub fn svg(cards: &[(u32, Card)]) -> String {
    let height = 70 + 2 * (PANEL.1 + 30);
    let mut svg = String::new();
    // Writing into a string cannot fail, here and below.
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\">\n\
         <title>kvscout's index beside its peers</title>\n<style>{STYLE}</style>\n\
         <rect class=\"p\" width=\"{WIDTH}\" height=\"{height}\" rx=\"8\"/>"
    );
    for (at, Entry { name, .. }) in PEERS.iter().enumerate() {
        let x = 20 + at * 200;
        let _ = writeln!(
            svg,
            "<rect class=\"c{at}\" x=\"{x}\" y=\"20\" width=\"14\" height=\"14\" rx=\"2\"/>\
             <text x=\"{}\" y=\"32\">{name}</text>",
            x + 20
        );
    }
    for (at, (figure, title)) in PANELS.into_iter().enumerate() {
        let (x, y) = (20 + at % 2 * (PANEL.0 + 40), 60 + at / 2 * (PANEL.1 + 30));
        panel(&mut svg, cards, figure, title, (x, y));
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(
    svg: &mut String,
    cards: &[(u32, Card)],
    figure: Figure,
    title: &str,
    (x, y): (usize, usize),
) {
    let better = if figure.more_is_better {
        "more"
    } else {
        "less"
    };
    let _ = writeln!(
        svg,
        "<text class=\"t\" x=\"{x}\" y=\"{}\">{title} <tspan class=\"q\">· {better} is better</tspan></text>",
        y + 14
    );
    let values = |card: &Card| -> Vec<Option<f64>> {
        (0..PEERS.len()).map(|at| card.figure(figure, at)).collect()
    };
    let all = cards.iter().flat_map(|(_, card)| values(card));
    let most = all.flatten().fold(f64::MIN_POSITIVE, f64::max);
    let floor = y + 40 + HEIGHT as usize;
    let group = PANEL.0 / cards.len().max(1);
    for (at, (endpoints, card)) in cards.iter().enumerate() {
        let values = values(card);
        let left = x + at * group + (group - values.len() * (BAR + 4)) / 2;
        for (bar, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let (x, tall) = (left + bar * (BAR + 4), (value / most * HEIGHT).max(1.0));
            let top = floor as f64 - tall;
            let _ = writeln!(
                svg,
                "<rect class=\"c{bar}\" x=\"{x}\" y=\"{top:.1}\" width=\"{BAR}\" height=\"{tall:.1}\" rx=\"2\"/>\
                 <text class=\"v m\" x=\"{}\" y=\"{:.1}\">{}</text>",
                x + BAR / 2,
                top - 4.0,
                short(*value)
            );
        }
        let _ = writeln!(
            svg,
            "<text class=\"m q\" x=\"{}\" y=\"{}\">{endpoints} endpoints</text>",
            x + at * group + group / 2,
            floor + 18
        );
    }
    let _ = writeln!(
        svg,
        "<line class=\"l\" x1=\"{x}\" x2=\"{}\" y1=\"{floor}\" y2=\"{floor}\"/>",
        x + PANEL.0
    );
}
