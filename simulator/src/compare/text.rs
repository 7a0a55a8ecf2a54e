//! The report for a terminal.

use super::scenario::Outcome;
use crate::plot::round;
use crate::table::table;

/// A scenario's table, with a line above and one below.
pub(super) fn tell(title: &str, outcome: &Outcome) -> String {
    let heading = [
        "policy",
        "mean TTFT",
        "p50",
        "p90",
        "p99",
        "hit rate",
        "of oracle's",
        "imbalance",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    for summary in &outcome.policies {
        let ttft = summary.ttft_s;
        let seconds = |time: f64| format!("{} s", round(time));
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        rows.push([
            summary.policy.to_owned(),
            seconds(ttft.mean),
            seconds(ttft.p50),
            seconds(ttft.p90),
            seconds(ttft.p99),
            percent(summary.hit_rate),
            summary.of_oracle.map_or("-".into(), percent),
            format!("{:.2}", summary.imbalance),
        ]);
    }
    let (requests, left_out) = (outcome.requests, outcome.left_out);
    let too_long = match left_out {
        0 => String::new(),
        _ => format!(", {left_out} left out since no pod could hold them"),
    };
    let ideal = outcome.ideal_hit_rate * 100.0;
    format!(
        "\n{title}: {requests} requests{too_long}\n\n{}\n  one cache without limits: {ideal:.1} %\n",
        table(1, &rows)
    )
}
