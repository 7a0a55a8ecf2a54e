//! What a person wants to see.

use std::net::SocketAddr;
use std::time::Duration;

use super::story::{Round, Story};
use super::{Comparison, Settings};
use crate::load::command::{HEADING, errors, row, seconds};
use crate::load::{Decision, Predictions, Summary};
use crate::stack::{Pod, Stack};
use crate::table::table;

/// What runs where, and how fast.
#[must_use]
pub fn stack(stack: &Stack, settings: &Settings) -> String {
    let Settings { engine, timing, .. } = settings;
    let (pods, overhead) = (stack.pods.len(), timing.step_overhead.as_millis());
    let (blocks, tokens) = (engine.num_gpu_blocks, engine.block_size);
    let line = |what: &str, address: SocketAddr, note: &str| {
        [what.to_owned(), address.to_string(), note.to_owned()]
    };
    let pod = |pod: &Pod| line(&pod.name, pod.address(), "OpenAI API; KV events over ZMQ");
    let mut rows: Vec<_> = stack.pods.iter().map(pod).collect();
    rows.push(line("Envoy, plain", stack.plain, "least request"));
    rows.push(line("Envoy, routed", stack.routed, "kvscout picks"));
    rows.push(line("kvscout", stack.admin, "/metrics"));
    format!(
        "{pods} simulated vLLM servers of {blocks} blocks of {tokens} tokens: prefill {:.0} tokens/s,\n\
         decode {:.0} tokens/s, {overhead} ms a step\n\n{}",
        timing.prefill_rate,
        timing.decode_rate,
        table(3, &rows),
    )
}

/// Who got which round and why, and whether the prediction was right.
#[must_use]
pub fn story(story: &Story) -> String {
    let heading = [
        "round",
        "pod",
        "chosen by",
        "prompt",
        "predicted cached",
        "reported cached",
        "TTFT",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    let mut reasons = String::new();
    for (number, round) in (1..).zip(&story.rounds) {
        rows.push(round_row(number, round));
        reasons.push_str(&format!("  round {number}: {}\n", why(&round.decision)));
    }
    let [first, second] = &story.rounds;
    let verdict = match (
        story.came_true(),
        first.decision.endpoint == second.decision.endpoint,
    ) {
        (true, _) => "Predicted is reported, to the token, and round 2 landed on round 1's pod.",
        (false, true) => "FAILED: predicted and reported differ.",
        (false, false) => "FAILED: round 2 did not land on round 1's pod.",
    };
    let (table, log_line) = (table(3, &rows), &story.log_line);
    format!("{table}\n{reasons}\nkvscout's log, round 2:\n\n  {log_line}\n\n{verdict}\n")
}

fn round_row(number: usize, round: &Round) -> [String; 7] {
    let Round { answer, decision } = round;
    let reported = answer.cached_tokens().map(|tokens| tokens.to_string());
    [
        number.to_string(),
        decision.endpoint.clone(),
        decision.by.clone(),
        answer.usage.prompt_tokens.to_string(),
        decision.predicted_cached_tokens.to_string(),
        reported.unwrap_or_else(|| "not said".into()),
        seconds(answer.ttft),
    ]
}

fn why(decision: &Decision) -> String {
    let Decision {
        endpoint,
        predicted_cached_tokens: held,
        prompt_tokens: all,
        ..
    } = decision;
    match (held, decision.by.as_str()) {
        (0, _) => format!("no server holds any of its {all} tokens, so load decides"),
        (_, "prefix") => {
            let percent = 100.0 * decision.matching_ratio();
            format!("{endpoint} holds {held} of its {all} tokens ({percent:.0} %)")
        }
        (_, by) => format!("{by} decides, though {endpoint} holds {held} of its {all} tokens"),
    }
}

/// Both listeners side by side.
#[must_use]
pub fn comparison(comparison: &Comparison) -> String {
    let Comparison { plain, routed, .. } = comparison;
    let ratio = |of: fn(&Summary) -> Duration| {
        format!(
            "{:.2}x",
            of(plain).as_secs_f64() / of(routed).as_secs_f64().max(f64::EPSILON)
        )
    };
    let rows = [
        HEADING.map(str::to_owned),
        row("plain", plain),
        row("routed", routed),
        [
            "plain / routed".into(),
            String::new(),
            String::new(),
            ratio(|summary| summary.ttft.mean),
            ratio(|summary| summary.ttft.p50),
            ratio(|summary| summary.ttft.p90),
            ratio(|summary| summary.ttft.p99),
            String::new(),
        ],
    ];
    let errors = errors("plain", plain) + &errors("routed", routed);
    format!("{}\n{}{errors}", table(1, &rows), notes(comparison))
}

fn notes(comparison: &Comparison) -> String {
    let Comparison {
        routed,
        decision_seconds,
        ..
    } = comparison;
    let Predictions { exact, over, under } = routed.predictions;
    let placed = routed
        .placed
        .iter()
        .map(|(pod, count)| format!("{pod} {count}"));
    let placed = placed.collect::<Vec<_>>().join(", ");
    let mut text = format!(
        "  routed requests by pod: {placed}\n\
         \x20 kvscout's predictions: {exact} exact, {over} over, {under} under\n"
    );
    if let [Some(p50), Some(p99)] = decision_seconds.map(|bound| bound.map(bounded)) {
        text.push_str(&format!("  kvscout's decisions: p50 {p50}, p99 {p99}\n"));
    }
    text
}

/// What to try by hand, whatever came of the demo.
#[must_use]
pub fn invitation(stack: &Stack, model: &str, shown: &anyhow::Result<()>) -> String {
    let body = format!(
        r#"{{"model": "{model}", "messages": [{{"role": "user", "content": "Who built the mill?"}}], "max_tokens": 32}}"#
    );
    let chat = |to| {
        format!(
            "  curl -i http://{to}/v1/chat/completions -H 'content-type: application/json' \\\n    -d '{body}'\n"
        )
    };
    let failure = shown
        .as_ref()
        .err()
        .map_or(String::new(), |error| format!("\n{error:#}\n"));
    format!(
        "{failure}\nEverything stays up; Ctrl-C ends it. Try:\n\n{}\n{}\n  curl http://{}/metrics\n  tail -f {}\n",
        chat(stack.plain),
        chat(stack.routed),
        stack.admin,
        stack.folder().join("kvscout.log").display(),
    )
}

/// A histogram's bucket by its upper bound, in seconds.
fn bounded(bound: f64) -> String {
    if bound.is_infinite() {
        "beyond all buckets".into()
    } else if bound < 1e-3 {
        format!("at most {:.0} us", bound * 1e6)
    } else {
        format!("at most {:.0} ms", bound * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_says_what_it_rests_on() {
        let header = |by: &str, held: u64| {
            let text = format!(
                "endpoint=pod-2; by={by}; basis=overlap; trust=live; predicted_cached_tokens={held}; prompt_tokens=200"
            );
            why(&Decision::parse(&text).expect("a decision"))
        };
        assert_eq!(
            header("load", 0),
            "no server holds any of its 200 tokens, so load decides"
        );
        assert_eq!(
            header("prefix", 160),
            "pod-2 holds 160 of its 200 tokens (80 %)"
        );
        assert_eq!(
            header("load", 48),
            "load decides, though pod-2 holds 48 of its 200 tokens"
        );
    }

    #[test]
    fn a_bound_is_said_in_the_unit_that_fits() {
        assert_eq!(bounded(0.0005), "at most 500 us");
        assert_eq!(bounded(0.02), "at most 20 ms");
        assert_eq!(bounded(f64::INFINITY), "beyond all buckets");
    }
}
