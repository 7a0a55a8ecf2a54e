//! What a person wants to see.

use std::fmt::Write as _;
use std::time::Duration;

use super::story::{Round, Story};
use super::{Comparison, Settings};
use crate::load::command::{HEADING, errors, row, seconds};
use crate::load::{Predictions, Summary};
use crate::stack::Stack;
use crate::table::table;

/// What runs where, and how fast.
#[must_use]
pub fn stack(stack: &Stack, settings: &Settings) -> String {
    let Settings { engine, timing, .. } = settings;
    let mut text = format!(
        "{} simulated vLLM servers: prefill {:.0} tokens/s, decode {:.0} tokens/s, {} ms a step,\n\
         {} blocks of {} tokens each\n\n",
        stack.pods.len(),
        timing.prefill_rate,
        timing.decode_rate,
        timing.step_overhead.as_millis(),
        engine.num_gpu_blocks,
        engine.block_size,
    );
    let row = |what: &str, address: String, note: &str| [format!("{what:<14}{address:<24}{note}")];
    let mut rows: Vec<_> = stack
        .pods
        .iter()
        .map(|pod| {
            row(
                &pod.name,
                pod.address().to_string(),
                "OpenAI API, KV events over ZMQ",
            )
        })
        .collect();
    rows.push(row("Envoy plain", stack.plain.to_string(), "least request"));
    rows.push(row(
        "Envoy routed",
        stack.routed.to_string(),
        "kvscout picks",
    ));
    rows.push(row("kvscout", stack.admin.to_string(), "/metrics"));
    text.push_str(&table(&rows));
    text
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
    for (number, round) in story.rounds.iter().enumerate() {
        let Round { answer, decision } = round;
        rows.push([
            (number + 1).to_string(),
            decision.endpoint.clone(),
            decision.by.clone(),
            answer.usage.prompt_tokens.to_string(),
            decision.predicted_cached_tokens.to_string(),
            answer
                .cached_tokens()
                .map_or("not said".into(), |tokens| tokens.to_string()),
            seconds(answer.ttft),
        ]);
    }
    let [first, second] = &story.rounds;
    let why = format!(
        "round 1: no server held any of it, so load decided\n\
         round 2: {} holds {} of its {} tokens ({:.0} %), from round 1",
        second.decision.endpoint,
        second.decision.predicted_cached_tokens,
        second.decision.prompt_tokens,
        100.0 * second.decision.matching_ratio(),
    );
    let verdict = match (
        story.came_true(),
        first.decision.endpoint == second.decision.endpoint,
    ) {
        (true, _) => "predicted = reported in both rounds, to the token",
        (false, true) => "FAILED: predicted and reported differ",
        (false, false) => "FAILED: round 2 did not land on round 1's pod",
    };
    format!(
        "{}\n{}\n\nkvscout's log, round 2:\n  {}\n\n  {verdict}\n",
        table(&rows),
        indent(&why),
        story.log_line
    )
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
    format!("{}\n{}{errors}", table(&rows), indent(&notes(comparison)))
}

fn notes(comparison: &Comparison) -> String {
    let Comparison {
        routed,
        decision_seconds,
        ..
    } = comparison;
    let Predictions { exact, over, under } = routed.predictions;
    let placed: Vec<String> = routed
        .placed
        .iter()
        .map(|(pod, count)| format!("{pod} {count}"))
        .collect();
    let mut text = format!(
        "routed requests by pod: {}\n\
         kvscout's predictions: {exact} exact, {over} over, {under} under\n",
        placed.join(", ")
    );
    if let [Some(p50), Some(p99)] = decision_seconds {
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "kvscout's decisions took at most {} (p50), {} (p99)",
            micros(*p50),
            micros(*p99)
        );
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

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// A histogram's bound, in seconds.
fn micros(bound: f64) -> String {
    if bound < 1e-3 {
        format!("{:.0} us", bound * 1e6)
    } else {
        format!("{:.0} ms", bound * 1e3)
    }
}
