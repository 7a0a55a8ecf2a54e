//! Mean times to first token over load, a panel for each workload: the picture of the README.

use std::fmt::Write as _;

use super::policies::Policy;
use super::scenario::Outcome;
use super::summary::Summary;
use crate::plot::{Plot, style};

const PANEL: (f64, f64) = (430.0, 260.0);
const LEGEND: f64 = 48.0;

/// A workload with one number of routers at all its loads.
struct Panel {
    title: String,
    lines: Vec<(usize, Vec<(f64, f64)>)>,
}

/// The number of a policy's colour.
pub(super) fn colour(policy: &str) -> usize {
    let is_it = |of: &Policy| of.name() == policy;
    Policy::ALL.iter().position(is_it).unwrap_or(0)
}

/// The whole picture; workloads with a single load have no line to draw and are left out, unless
/// there is nothing else.
pub(super) fn picture(outcomes: &[Outcome]) -> String {
    let panels = panels(outcomes);
    let rows = panels.len().div_ceil(2).max(1);
    let (width, height) = (PANEL.0 * 2.0, LEGEND + rows as f64 * PANEL.1);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\">\n\
         <title>Routing policies in simulation: mean time to first token by load</title>\n\
         <style>{}</style>\n<rect class=\"p\" width=\"{width}\" height=\"{height}\" rx=\"8\"/>\n",
        style()
    );
    let policies = outcomes.first().map(|outcome| outcome.policies.as_slice());
    svg.push_str(&legend(policies.unwrap_or_default()));
    for (nth, panel) in panels.iter().enumerate() {
        let plot = Plot {
            title: &panel.title,
            x: "requests per second",
            log_x: false,
            log_y: true,
            y_range: (0.1, 1.0),
            lines: panel
                .lines
                .iter()
                .map(|(colour, line)| (*colour, line.as_slice()))
                .collect(),
            dots: true,
        };
        svg.push_str(&plot.svg((
            (nth % 2) as f64 * PANEL.0,
            LEGEND + (nth / 2) as f64 * PANEL.1,
        )));
    }
    svg.push_str("</svg>\n");
    svg
}

/// A coloured name for each policy.
fn legend(policies: &[Summary]) -> String {
    let mut svg = String::new();
    for (nth, Summary { policy, .. }) in policies.iter().enumerate() {
        let (x, y) = (48 + nth % 4 * 200, 16 + nth / 4 * 18);
        // Writing into a string cannot fail.
        let _ = writeln!(
            svg,
            "<path class=\"c s{}\" d=\"M{x} {y}h22\"/><text x=\"{}\" y=\"{}\">{policy}</text>",
            colour(policy),
            x + 28,
            y + 4
        );
    }
    svg
}

fn panels(outcomes: &[Outcome]) -> Vec<Panel> {
    let mut panels: Vec<(Vec<&Outcome>, String)> = Vec::new();
    for outcome in outcomes {
        let Outcome {
            workload,
            pods,
            routers,
            ..
        } = outcome;
        let more = if *routers > 1 {
            format!(", {routers} routers")
        } else {
            String::new()
        };
        let title = format!("{workload}, {pods} pods{more}: mean TTFT, s");
        match panels.iter_mut().find(|(_, of)| *of == title) {
            Some((at_loads, _)) => at_loads.push(outcome),
            None => panels.push((vec![outcome], title)),
        }
    }
    if panels.iter().any(|(at_loads, _)| at_loads.len() > 1) {
        panels.retain(|(at_loads, _)| at_loads.len() > 1);
    }
    let panel = |(at_loads, title): (Vec<&Outcome>, String)| {
        let of = |policy: &Summary| {
            let name = policy.policy;
            let point = |outcome: &&Outcome| {
                let summary = outcome
                    .policies
                    .iter()
                    .find(|summary| summary.policy == name)?;
                Some((outcome.rate, summary.ttft_s.mean))
            };
            (colour(name), at_loads.iter().filter_map(point).collect())
        };
        let policies = at_loads
            .first()
            .map(|outcome| outcome.policies.iter().map(of).collect());
        Panel {
            title,
            lines: policies.unwrap_or_default(),
        }
    };
    panels.into_iter().map(panel).collect()
}
