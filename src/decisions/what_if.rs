//! The same decisions under another policy. Pure.
//!
//! Each is made again from what was known then. What would have followed from another choice (other caches,
//! other queues) is not: for that there is `kvscout-sim compare`.

use serde::{Deserialize, Serialize};

use super::json::Decision;
use crate::choice::{Candidate, Case, Choice};
use crate::config::Strategy;
use crate::fleet::EndpointId;

/// What is otherwise; what is not said stays.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Knobs {
    /// `policy.strategy`: with `DEFAULT` overlap counts for nothing.
    pub strategy: Option<Strategy>,
    /// `policy.matching_ratio_min`.
    pub matching_ratio_min: Option<f64>,
    /// `policy.media.gpu`.
    pub media_gpu: Option<f64>,
    /// `policy.media.cpu`.
    pub media_cpu: Option<f64>,
    /// `policy.media.storage`.
    pub media_storage: Option<f64>,
    /// Endpoints, by name, that cannot be chosen.
    pub without: Vec<String>,
}

/// No share of a prompt exceeds it: its last token is always computed.
const RATIO_OF_NONE: f64 = 1.0;

impl Knobs {
    /// The case as it would be. `name` tells an endpoint's.
    pub fn turn<'a>(&self, case: &mut Case, name: impl Fn(EndpointId) -> &'a str) {
        let weights = &mut case.weights;
        for (knob, weight) in [
            (self.matching_ratio_min, &mut weights.matching_ratio_min),
            (self.media_gpu, &mut weights.media.gpu),
            (self.media_cpu, &mut weights.media.cpu),
            (self.media_storage, &mut weights.media.storage),
        ] {
            *weight = knob.unwrap_or(*weight);
        }
        if self.strategy == Some(Strategy::Default) {
            weights.matching_ratio_min = RATIO_OF_NONE;
            case.home = None;
        }
        let home = case.home.and_then(|home| case.candidates.get(home));
        let home = home.map(|home| home.endpoint);
        let gone = |candidate: &Candidate| {
            let name = name(candidate.endpoint);
            self.without.iter().any(|gone| gone == name)
        };
        case.candidates.retain(|candidate| !gone(candidate));
        case.home = home.and_then(|home| {
            let mut left = case.candidates.iter();
            left.position(|candidate| candidate.endpoint == home)
        });
    }
}

/// What came of replaying a log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Decisions made again.
    pub decisions: u64,
    /// Of these, under the policy they were logged with, those that came out as they were.
    pub reproduced: u64,
    /// Under the other policy, those that chose another endpoint.
    pub changed: u64,
    /// Those that nobody was left for.
    pub nobody: u64,
    /// Under the policy they were logged with.
    pub before: Sum,
    /// Under the other one.
    pub after: Sum,
}

/// What some choices come to. Costs are as of each decision: tokens that are computed before a first
/// token, whatever the policy thinks of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sum {
    /// Tokens of the prompts that the chosen endpoints held.
    pub cached_tokens: u64,
    /// Tokens of the prompts that they had to compute.
    pub computed_tokens: u64,
    /// Tokens that were to be computed there before.
    pub queued_tokens: u64,
    /// Choices of an endpoint that had just failed or whose cache was full.
    pub unfit: u64,
}

impl Sum {
    fn add(&mut self, case: &Case, choice: &Choice) {
        let mut all = case.candidates.iter();
        let Some(chosen) = all.find(|candidate| candidate.endpoint == choice.endpoint) else {
            return;
        };
        let tokens = case.prompt(chosen).tokens;
        let cached = chosen.cached.tokens().min(tokens);
        self.cached_tokens += cached;
        self.computed_tokens += tokens - cached;
        self.queued_tokens += chosen.queued_tokens;
        self.unfit += u64::from(chosen.avoided || chosen.full);
    }
}

impl Report {
    /// Makes one more decision again, both ways.
    ///
    /// # Errors
    /// What its line lacks.
    pub fn replay(&mut self, logged: &Decision, knobs: &Knobs) -> Result<(), String> {
        let case = logged.case()?;
        let names: std::collections::HashMap<EndpointId, &str> = logged
            .candidates
            .iter()
            .map(|candidate| (EndpointId(candidate.number), candidate.endpoint.as_str()))
            .collect();
        let name = |endpoint| names.get(&endpoint).copied().unwrap_or_default();
        let before = case.choose().ok_or("has no candidates")?;
        self.decisions += 1;
        self.reproduced += u64::from(name(before.endpoint) == logged.endpoint);
        let mut other = case.clone();
        knobs.turn(&mut other, name);
        let Some(after) = other.choose() else {
            self.nobody += 1;
            return Ok(());
        };
        self.before.add(&case, &before);
        self.after.add(&other, &after);
        self.changed += u64::from(after.endpoint != before.endpoint);
        Ok(())
    }
}
