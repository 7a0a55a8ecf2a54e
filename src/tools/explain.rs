//! `kvscout explain`: where a running picker would send a request, and why.

use std::io::{Read, Write};

use anyhow::Context;

use crate::admin::explain::Explanation;
use crate::decisions::json::{Candidate, Decision, Reading};
use crate::tools::{AdminPort, WhatIf};

/// Asks a running kvscout where it would send a request now, and why. Places nothing.
///
/// Reads the request's body, as a client would send it, from stdin:
///
///   kvscout explain < request.json
///
/// and prints what came of the prompt (bytes, tokens, blocks), the winner and by how much, and all
/// candidates, best first: what each holds of the prompt by medium, how sure that is, what it was
/// credited with, its load, and the cost, which is compared from left to right. With --without, or
/// another policy, it says what would be otherwise. No prompt text is printed. The picker answers
/// this host alone unless `decisions.pages` says otherwise: in Kubernetes, `kubectl port-forward
/// POD 9090`.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Where to ask.
    #[command(flatten)]
    pub admin: AdminPort,
    /// Where the request would be sent.
    #[arg(long, default_value = "/v1/chat/completions")]
    pub path: String,
    /// Its x-request-id: ties are scattered by it.
    #[arg(long)]
    pub request_id: Option<String>,
    /// What a header of policy.session_headers would say.
    #[arg(long)]
    pub session: Option<String>,
    /// What x-gateway-inference-objective would say.
    #[arg(long)]
    pub objective: Option<String>,
    /// The InferencePool that it is for, where there is more than one.
    #[arg(long)]
    pub pool: Option<String>,
    /// An endpoint that the gateway allows, ip or ip:port; may be given again.
    #[arg(long, value_name = "IP[:PORT]")]
    pub subset: Vec<String>,
    /// What is to be otherwise.
    #[command(flatten)]
    pub what_if: WhatIf,
    /// Print the answer as JSON, every field of it.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// Nobody answers, or the picker says why it cannot.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let mut body = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut body);
    read.context("stdin: the request's body cannot be read")?;
    let answer = args.admin.post(&args.query(), body).await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        out.write_all(&answer)?;
        return Ok(());
    }
    let explanation = serde_json::from_slice(&answer).context("is that kvscout's admin port?")?;
    out.write_all(told(&explanation).as_bytes())?;
    Ok(())
}

impl Args {
    fn query(&self) -> String {
        let (page, after) = ("/explain?".to_owned(), "/explain?".len());
        let mut query = form_urlencoded::Serializer::for_suffix(page, after);
        query.append_pair("path", &self.path);
        for (key, value) in [
            ("request_id", &self.request_id),
            ("session", &self.session),
            ("objective", &self.objective),
            ("pool", &self.pool),
        ] {
            if let Some(value) = value {
                query.append_pair(key, value);
            }
        }
        query.extend_pairs(self.subset.iter().map(|one| ("subset", one)));
        query.extend_pairs(self.what_if.pairs());
        query.finish()
    }
}

/// As people read it.
fn told(explanation: &Explanation) -> String {
    let Explanation { decision, .. } = explanation;
    let mut text = format!("{}\n{}\n", prompt(explanation), winner(decision));
    if explanation.admission != "at_once" {
        let (criticality, admission) = (&explanation.criticality, &explanation.admission);
        text += &format!("every endpoint is saturated: {criticality}, so it {admission}\n");
    }
    let header = [
        "endpoint", "trust", "own", "unsure", "expected", "cpu", "storage", "credit", "queued",
        "slowness", "avoided", "full", "prefill", "recent", "requests",
    ];
    let rows = decision.candidates.iter().map(row);
    let rows: Vec<Vec<String>> = std::iter::once(header.map(str::to_owned).to_vec())
        .chain(rows)
        .collect();
    text += &otherwise(decision.candidates.iter().map(|one| &one.reading));
    text + "\n" + &crate::tools::table(&rows)
}

/// What candidates make of the prompt that read it otherwise than the winner does: a line for each way.
fn otherwise<'a>(readings: impl ExactSizeIterator<Item = &'a Option<Reading>>) -> String {
    let all = readings.len();
    let mut ways: Vec<(&Reading, usize)> = Vec::new();
    for reading in readings.flatten() {
        match ways.iter_mut().find(|(known, _)| *known == reading) {
            Some((_, count)) => *count += 1,
            None => ways.push((reading, 1)),
        }
    }
    let line = |(reading, count): &(&Reading, usize)| match reading.basis.as_str() {
        "load_only" => format!(
            "not read ({}) for {count} of {all} endpoints\n",
            reading.reason
        ),
        _ => format!(
            "read otherwise by {count} of {all} endpoints: {} tokens\n",
            reading.prompt_tokens
        ),
    };
    ways.iter().map(line).collect()
}

fn prompt(explanation: &Explanation) -> String {
    let decision = &explanation.decision;
    if decision.basis == "load_only" {
        let (reason, estimate) = (&decision.reason, decision.prompt_tokens);
        return format!("prompt not read ({reason}); about {estimate} tokens by its length");
    }
    let cut = |cut: &crate::admin::explain::Blocks| {
        format!("{} blocks of {}", cut.blocks, cut.block_size)
    };
    let cuts: Vec<String> = explanation.blocks.iter().map(cut).collect();
    let rendered = explanation
        .rendered_bytes
        .map(|bytes| format!("{bytes} bytes, "));
    let partly = match decision.basis.as_str() {
        "partial" => format!("; known in part: {}", decision.reason),
        _ => String::new(),
    };
    let several = match explanation.prompts {
        1 => String::new(),
        prompts => format!(" in {prompts} prompts"),
    };
    format!(
        "prompt: {}{} tokens{several}{}{}{partly}",
        rendered.unwrap_or_default(),
        decision.prompt_tokens,
        if cuts.is_empty() { "" } else { ", " },
        cuts.join(" or "),
    )
}

fn winner(decision: &Decision) -> String {
    let lead = match (&decision.runner_up, &decision.margin) {
        (Some(other), Some(margin)) => {
            format!("; before {other} by {} {}", margin.by, margin.field)
        }
        _ => String::new(),
    };
    let pool = decision.pool.as_ref();
    let pool = pool.map(|pool| format!(" of pool {pool}"));
    format!(
        "winner: {}{} by {}, {} of {} tokens cached there ({}){lead}",
        decision.endpoint,
        pool.unwrap_or_default(),
        decision.decided_by,
        decision.predicted_cached_tokens,
        decision.prompt_tokens,
        decision.trust,
    )
}

fn row(candidate: &Candidate) -> Vec<String> {
    let (cached, cost) = (&candidate.cached, &candidate.cost);
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    vec![
        candidate.endpoint.clone(),
        candidate.trust.clone(),
        cached.own.to_string(),
        cached.unsure.to_string(),
        cached.expected.to_string(),
        cached.cpu.to_string(),
        cached.storage.to_string(),
        candidate.credit_tokens.to_string(),
        candidate.queued_tokens.to_string(),
        format!("{:.2}", candidate.slowness),
        yes(cost.avoided),
        yes(cost.full),
        cost.prefill_tokens.to_string(),
        cost.recent_tokens.to_string(),
        cost.requests.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_read_a_prompt_that_are_not_the_winners_are_told_once_each() {
        let reading = |basis: &str, reason: &str, prompt_tokens: u64| {
            Some(Reading {
                basis: basis.into(),
                reason: reason.into(),
                prompt_tokens,
                prompt_doubtful: false,
            })
        };
        let longer = || reading("overlap", "", 655);
        let unread = reading("load_only", "unknown_entry", 649);
        let readings = [None, longer(), unread, longer()];
        let text = otherwise(readings.iter());
        assert_eq!(
            text,
            "read otherwise by 2 of 4 endpoints: 655 tokens\n\
             not read (unknown_entry) for 1 of 4 endpoints\n"
        );
        assert_eq!(otherwise([None, None].iter()), "");
    }
}
