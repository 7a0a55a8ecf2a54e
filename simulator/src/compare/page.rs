//! The report: one page that needs nothing else.

use std::fmt::Write as _;

use super::picture::{colour, picture};
use super::scenario::Outcome;
use super::summary::{Summary, Ttft};
use crate::plot::{Plot, round, style};

const CSS: &str = "
:root{color-scheme:light dark;--ink:#1f2328;--soft:#57606a;--line:#d1d9e0;--good:#dafbe1;--page:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--line:#30363d;--good:#12351d;--page:#0d1117}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:1300px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin:2.2rem 0 .4rem}p{color:var(--soft);max-width:75ch}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid var(--line)}
td:first-child,th:first-child{text-align:left}td.best{background:var(--good)}.plots{display:flex;flex-wrap:wrap}
td i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.5em}
svg{max-width:100%;height:auto}nav a{margin-right:1.2em;color:inherit}
";

/// The page.
pub(super) fn page(titles: &[String], outcomes: &[Outcome], seed: u64) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>Routing policies in simulation</title>\n<style>{CSS}{}{}</style></head><body>\n\
         <h1>Routing policies in simulation</h1>\n\
         <p>Virtual time, seed {seed}. Every policy gets the same requests and the same pods: vLLM's \
         block pool and scheduler copy by copy, with chunked prefill, continuous batching, eviction and \
         preemption. kvscout and the oracle run the choice and the index that serve; the oracle sees \
         every cache at once, in one router, so it shows what better events could still bring. It makes \
         the same choice, so it is no upper bound: near the limit, others may hit more. Of each column, \
         the best and what is within 2 % of it is marked, the oracle left out.</p>\n\
         <p>Rivals get the benefit of the doubt: exact tokens instead of estimates, gauges as fresh as \
         their scrapes, hash weights of pods that are alike. Of Dynamo's active blocks, those that \
         requests share count each time. Attention's cost grows with length on real hardware; here a \
         prompt token costs the same wherever it stands.</p>\n",
        style(),
        swatches()
    );
    page.push_str(&picture(outcomes));
    page.push_str("<nav>");
    // Writing into a string cannot fail, here and below.
    for (nth, title) in titles.iter().enumerate() {
        let _ = write!(page, "<a href=\"#s{nth}\">{title}</a> ");
    }
    page.push_str("</nav>\n");
    for (nth, (title, outcome)) in titles.iter().zip(outcomes).enumerate() {
        section(&mut page, nth, title, outcome);
    }
    page.push_str("</body></html>\n");
    page
}

/// Colours of the table's keys are those of lines.
fn swatches() -> String {
    (0..8).fold(String::new(), |mut css, nth| {
        let _ = write!(
            css,
            ".k{nth}{{display:inline-block;width:22px;height:8px;margin-right:.5em}}"
        );
        css
    })
}

fn section(page: &mut String, nth: usize, title: &str, outcome: &Outcome) {
    let Outcome {
        requests,
        left_out,
        ideal_hit_rate,
        ..
    } = outcome;
    let (ideal, too_long) = (
        ideal_hit_rate * 100.0,
        match left_out {
            0 => String::new(),
            _ => format!(" {left_out} were left out: no pod could hold them."),
        },
    );
    let _ = writeln!(
        page,
        "<h2 id=\"s{nth}\">{title}</h2>\n<p>{requests} requests.{too_long} One cache without limits \
         would hit {ideal:.1} %.</p>"
    );
    table(page, outcome);
    let lines = |of: for<'a> fn(&'a Summary) -> &'a [(f64, f64)]| {
        let line = move |summary| (colour_of(summary), of(summary));
        outcome.policies.iter().map(line).collect::<Vec<_>>()
    };
    let plot = |title, x, log_x, y_range, lines| {
        Plot {
            title,
            x,
            log_x,
            log_y: false,
            y_range,
            lines,
            dots: false,
        }
        .svg((0.0, 0.0))
    };
    let ttft = lines(|summary| &summary.curves.ttft);
    let hits = lines(|summary| &summary.curves.hit_rate);
    let load = lines(|summary| &summary.curves.imbalance);
    let _ = writeln!(
        page,
        "<div class=\"plots\">{}{}{}</div>",
        plot(
            "Share of requests with a first token by then",
            "seconds to first token",
            true,
            (0.0, 1.0),
            ttft
        ),
        plot("Hit rate over time", "seconds", false, (0.0, 1.0), hits),
        plot(
            "Busiest pod's requests / the mean",
            "seconds",
            false,
            (1.0, 2.0),
            load
        )
    );
}

fn colour_of(summary: &Summary) -> usize {
    colour(summary.policy)
}

fn table(page: &mut String, outcome: &Outcome) {
    type Of = fn(&Summary) -> f64;
    let ttft = |of: fn(Ttft) -> f64| of;
    let (mean, p50, p90, p99) = (
        ttft(|t| t.mean),
        ttft(|t| t.p50),
        ttft(|t| t.p90),
        ttft(|t| t.p99),
    );
    page.push_str(
        "<table><tr><th>policy</th><th>mean TTFT, s</th><th>p50</th><th>p90</th><th>p99</th>\
         <th>hit rate, %</th><th>of the oracle's, %</th><th>load imbalance</th>\
         <th>prefill imbalance</th><th>preemptions</th></tr>\n",
    );
    let hits: Of = |summary| -summary.hit_rate;
    let best = |of: &dyn Fn(&Summary) -> f64| {
        let rivals = outcome
            .policies
            .iter()
            .filter(|summary| summary.policy != "oracle");
        rivals.map(of).fold(f64::INFINITY, f64::min)
    };
    let times = [mean, p50, p90, p99];
    let best_times = times.map(|of| best(&|summary: &Summary| of(summary.ttft_s)));
    let best_hits = best(&hits);
    for summary in &outcome.policies {
        let rival = summary.policy != "oracle";
        let cell = |text: String, is_best: bool| match is_best && rival {
            true => format!("<td class=\"best\">{text}</td>"),
            false => format!("<td>{text}</td>"),
        };
        let _ = write!(
            page,
            "<tr><td><svg class=\"k{0}\" viewBox=\"0 0 22 8\"><path class=\"c s{0}\" d=\"M0 4h22\"/></svg>{1}</td>",
            colour_of(summary),
            summary.policy
        );
        for (of, best) in times.iter().zip(best_times) {
            let time = of(summary.ttft_s);
            page.push_str(&cell(round(time), time <= best * 1.02));
        }
        let rate = summary.hit_rate;
        page.push_str(&cell(
            format!("{:.1}", rate * 100.0),
            -rate <= best_hits * 0.98,
        ));
        let of_oracle = summary
            .of_oracle
            .map_or("–".into(), |of| format!("{:.1}", of * 100.0));
        let _ = writeln!(
            page,
            "<td>{of_oracle}</td><td>{:.2}</td><td>{:.2}</td><td>{}</td></tr>",
            summary.imbalance, summary.prefill_imbalance, summary.preemptions
        );
    }
    page.push_str("</table>\n");
}
