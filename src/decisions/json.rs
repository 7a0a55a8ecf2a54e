//! Decisions as JSON: what `/decisions` and `/explain` answer, and a line of the decision log.
//!
//! Fields may be added; none is renamed or removed. Tokens are counts. Nothing holds a prompt's text, its token
//! ids or its cache salt.

use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

use super::{Decision as Kept, Ended, Took as Times};
use crate::choice::{Account, Basis, Case, Choice, Entry, Prompt, Weights};
use crate::config;
use crate::fleet::{EndpointId, Trust};
use crate::index;

/// Where a request went, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Counts decisions of this process from 1; 0 where nothing was placed.
    pub number: u64,
    /// The request's `x-request-id`, or one that was made up.
    pub id: String,
    /// When it was placed, in milliseconds since 1970.
    pub time_ms: u64,
    /// The trace that it belongs to, 32 hexadecimal digits; null where its client or gateway names none.
    #[serde(default)]
    pub trace_id: Option<String>,
    /// The configured model whose prompt was read; null where none was.
    pub model: Option<String>,
    /// The model that serves it in place of the one that it names.
    pub target: Option<String>,
    /// The InferencePool that it is for; null where none is known, or a file says who serves.
    #[serde(default)]
    pub pool: Option<String>,
    /// `overlap`, `partial` or `load_only`.
    pub basis: String,
    /// Why it is not `overlap`; empty where it is.
    pub reason: String,
    /// Tokens of the prompt; an estimate where `basis` is `load_only`.
    pub prompt_tokens: u64,
    /// The model's prompts have often not been what its servers computed: overlap counts nine tenths.
    pub prompt_doubtful: bool,
    /// Who got it, by name.
    pub endpoint: String,
    /// `prefix`: the cache of `endpoint` holds enough of the prompt to count. `load`: it does not.
    /// `home`: the prompt could not be read, and its conversation stays where it is.
    pub decided_by: String,
    /// How complete the picture of `endpoint` was: `live`, `learning`, `doubtful` or `silent`.
    pub trust: String,
    /// Tokens that `endpoint` should report as cached.
    pub predicted_cached_tokens: u64,
    /// Who would have got it otherwise.
    pub runner_up: Option<String>,
    /// What put `endpoint` before `runner_up`.
    pub margin: Option<Margin>,
    /// What of the policy it was made with.
    pub policy: Policy,
    /// What one uncached token of the prompt cost: 1 among idle endpoints, more where it delays others.
    pub token_weight: f64,
    /// How long it took.
    pub took_us: Took,
    /// All who could have got it, best first; in lists of decisions there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate>,
    /// How it ended; null until it has.
    pub outcome: Option<Outcome>,
}

/// The first field of the cost in which two endpoints differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Margin {
    /// A field of [`Cost`]; `scatter` where nothing else tells them apart.
    pub field: String,
    /// By how much; 1 for a yes against a no.
    pub by: u64,
}

/// See the configuration's `policy`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Cached / prompt tokens that the best endpoint had to exceed for overlap to count.
    pub matching_ratio_min: f64,
    /// What a cached token was worth, by where it is.
    pub media: Media,
}

/// Shares of a computed token's cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Media {
    /// In the engine's own cache.
    pub gpu: f64,
    /// In host memory.
    pub cpu: f64,
    /// On disk or remote storage.
    pub storage: f64,
}

/// Microseconds of each stage of a decision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    /// From whole body to tokens: the wait for a core, `render`, `tokenize`.
    pub read: u64,
    /// Parsing the body and rendering its prompt.
    #[serde(default)]
    pub render: u64,
    /// Tokenizing what was rendered.
    #[serde(default)]
    pub tokenize: u64,
    /// For an endpoint with room.
    pub wait: u64,
    /// Block keys, and the look into the index.
    pub overlap: u64,
    /// Load, costs, and the booking.
    pub choose: u64,
}

/// A prompt as a server reads it that is another model's entry than the chosen one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// See [`Decision::basis`].
    pub basis: String,
    /// See [`Decision::reason`].
    pub reason: String,
    /// See [`Decision::prompt_tokens`].
    pub prompt_tokens: u64,
    /// See [`Decision::prompt_doubtful`].
    pub prompt_doubtful: bool,
}

/// An endpoint that could have got the request, as it was known then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its name.
    pub endpoint: String,
    /// Its number in this process, by which ties are scattered.
    pub number: u32,
    /// How complete the picture of its cache was.
    pub trust: String,
    /// Tokens of the prompt's start that it holds.
    pub cached: Cached,
    /// What it was credited with of these: less for what is unsure or far. 0 where overlap does not count.
    pub credit_tokens: u64,
    /// Prefill tokens before this request there: ours, replicas' and what its own metrics tell of others.
    pub queued_tokens: u64,
    /// Requests there that have not ended.
    pub requests: u32,
    /// Uncached prompt tokens placed there lately, fading by half in a minute.
    pub recent_tokens: u64,
    /// Prompt tokens that it computes in a second, as measured; null before that.
    pub pace: Option<f64>,
    /// How many times as long as on average a token takes there.
    pub slowness: f64,
    /// What the request would have cost there; compared from the first field down.
    pub cost: Cost,
    /// The prompt as it reads it, where that is not as `endpoint` of the decision does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<Reading>,
}

/// Tokens by where they are; all that is known to be held is their sum, `unsure` aside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cached {
    /// In the engine's own cache.
    pub own: u64,
    /// How many of these may be gone: last heard of before a gap.
    pub unsure: u64,
    /// After them, of prompts that were placed there and that no event has told of yet.
    pub expected: u64,
    /// After the engine's own, in host memory.
    pub cpu: u64,
    /// After the engine's own, on disk or remote storage.
    pub storage: u64,
}

/// Lower is better, from the first field down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// It failed a moment ago.
    pub avoided: bool,
    /// Its cache has no room for one more request.
    pub full: bool,
    /// (queued tokens + weight × uncached tokens) × slowness.
    pub prefill_tokens: u64,
    /// See [`Candidate::recent_tokens`].
    pub recent_tokens: u64,
    /// See [`Candidate::requests`].
    pub requests: u32,
    /// A hash of the request's id and the endpoint.
    pub scatter: u64,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The response's status; null where none came, as when the client hung up.
    pub status: Option<u16>,
    /// Who served it where that is not `endpoint`: a retry.
    pub served: Option<String>,
    /// Milliseconds from the choice to the first bytes of the answer.
    pub first_output_ms: Option<u64>,
    /// Milliseconds from the choice to the end.
    pub took_ms: u64,
    /// Tokens of the prompt, as the server counts them.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, as the server counts them.
    #[serde(default)]
    pub completion_tokens: Option<u64>,
    /// Tokens that the server reports as cached.
    pub cached_tokens: Option<u64>,
    /// Tokens that were predicted for the endpoint that served it.
    pub predicted_cached_tokens: Option<u64>,
    /// `exact`, `over` or `under`; null where nothing exact was predicted.
    pub verdict: Option<String>,
    /// Why a prediction missed, as far as it is known: `tokens_differ`, `salt`, `gap`, `expected`,
    /// `last_block`, `eviction_race`, `event_lag` or `unknown`.
    pub cause: Option<String>,
}

impl Decision {
    /// With everybody who could have got it.
    #[must_use]
    pub fn whole(kept: &Kept) -> Self {
        let account = kept.case.account();
        let candidates = candidates(kept, &account);
        Self {
            candidates,
            ..Self::short(kept)
        }
    }

    /// Without the candidates.
    #[must_use]
    pub fn short(kept: &Kept) -> Self {
        let Choice {
            basis,
            prompt_tokens,
            predicted_cached_tokens,
            trust,
            ..
        } = kept.choice;
        let name = |endpoint| kept.name(endpoint).to_owned();
        let since = kept.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            number: kept.number,
            id: kept.case.request_id.clone(),
            time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            trace_id: kept.trace.map(|trace| trace.to_string()),
            model: kept.model.as_deref().map(str::to_owned),
            target: kept.target.as_deref().map(str::to_owned),
            pool: kept.pool.as_deref().map(str::to_owned),
            basis: basis.as_str().to_owned(),
            reason: basis.reason().to_owned(),
            prompt_tokens,
            prompt_doubtful: kept.case.prompts[usize::from(kept.choice.prompt)].doubtful,
            endpoint: name(kept.choice.endpoint),
            decided_by: kept.decided_by().to_owned(),
            trust: trust.as_str().to_owned(),
            predicted_cached_tokens,
            runner_up: kept.choice.runner_up.map(|other| name(other.endpoint)),
            margin: kept.choice.margin().map(|margin| Margin {
                field: margin.field.to_owned(),
                by: margin.by,
            }),
            policy: kept.case.weights.into(),
            token_weight: kept.case.token_weight(),
            took_us: kept.took.into(),
            candidates: Vec::new(),
            outcome: kept.ended().map(|ended| Outcome::of(ended, kept)),
        }
    }

    /// What the choice rested on, to be made again: as far as a choice is concerned, all of it.
    ///
    /// # Errors
    /// What is missing, for an operator.
    pub fn case(&self) -> Result<Case, String> {
        if self.candidates.is_empty() {
            return Err("has no candidates".to_owned());
        }
        let mut prompts = smallvec![Prompt {
            tokens: self.prompt_tokens,
            // Costs do not ask for it.
            basis: Basis::Overlap,
            doubtful: self.prompt_doubtful,
        }];
        let known = |candidate: &Candidate| candidate.known(&mut prompts);
        let candidates: Result<Vec<_>, _> = self.candidates.iter().map(known).collect();
        let place = |name: &str| {
            let mut all = self.candidates.iter();
            all.position(|candidate| candidate.endpoint == name)
        };
        Ok(Case {
            request_id: self.id.clone(),
            weights: self.policy.into(),
            candidates: candidates?,
            prompts,
            home: match self.decided_by == "home" {
                true => place(&self.endpoint),
                false => None,
            },
        })
    }
}

fn candidates(kept: &Kept, account: &Account) -> Vec<Candidate> {
    let names = kept.names();
    let told = |entry: &Entry| {
        let name = names.get(&entry.candidate.endpoint).copied();
        let other = entry.candidate.prompt != kept.choice.prompt;
        let reading = other.then(|| kept.case.prompt(&entry.candidate).into());
        Candidate {
            reading,
            ..Candidate::of(entry, name.unwrap_or_default())
        }
    };
    account.entries.iter().map(told).collect()
}

impl Candidate {
    fn of(entry: &Entry, name: &str) -> Self {
        let (known, cost) = (&entry.candidate, &entry.cost);
        let index::Cached {
            own,
            unsure,
            expected,
            cpu,
            storage,
        } = known.cached;
        Self {
            endpoint: name.to_owned(),
            number: known.endpoint.0,
            trust: known.trust.as_str().to_owned(),
            cached: Cached {
                own,
                unsure,
                expected,
                cpu,
                storage,
            },
            credit_tokens: entry.credit_tokens,
            queued_tokens: known.queued_tokens,
            requests: known.requests,
            recent_tokens: known.recent_tokens,
            pace: known.pace,
            slowness: entry.slowness,
            cost: Cost {
                avoided: cost.avoided,
                full: cost.full,
                prefill_tokens: cost.prefill_tokens,
                recent_tokens: cost.recent_tokens,
                requests: cost.requests,
                scatter: cost.scatter,
            },
            reading: None,
        }
    }

    /// Adds its prompt to the case's, where it has one of its own.
    fn known(
        &self,
        prompts: &mut SmallVec<[Prompt; 1]>,
    ) -> Result<crate::choice::Candidate, String> {
        let all = [Trust::Live, Trust::Learning, Trust::Doubtful, Trust::Silent];
        let trust = all.into_iter().find(|trust| trust.as_str() == self.trust);
        let Cached {
            own,
            unsure,
            expected,
            cpu,
            storage,
        } = self.cached;
        let reading = self.reading.as_ref().map(|reading| Prompt {
            tokens: reading.prompt_tokens,
            basis: Basis::Overlap,
            doubtful: reading.prompt_doubtful,
        });
        let place = reading.map_or(0, |reading| {
            let known = prompts.iter().position(|prompt| *prompt == reading);
            known.unwrap_or_else(|| {
                prompts.push(reading);
                prompts.len() - 1
            })
        });
        Ok(crate::choice::Candidate {
            endpoint: EndpointId(self.number),
            prompt: u16::try_from(place).map_err(|_| "reading: there are too many")?,
            cached: index::Cached {
                own,
                unsure,
                expected,
                cpu,
                storage,
            },
            trust: trust.ok_or_else(|| format!("trust: {:?} is no trust", self.trust))?,
            avoided: self.cost.avoided,
            full: self.cost.full,
            queued_tokens: self.queued_tokens,
            requests: self.requests,
            recent_tokens: self.recent_tokens,
            pace: self.pace,
        })
    }
}

impl Outcome {
    fn of(ended: &Ended, kept: &Kept) -> Self {
        let millis =
            |took: std::time::Duration| u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let audited = ended.audited;
        let served = ended
            .served
            .filter(|served| *served != kept.choice.endpoint);
        Self {
            status: ended.status,
            served: served.map(|served| kept.name(served).to_owned()),
            first_output_ms: ended.first_output.map(millis),
            took_ms: millis(ended.took),
            prompt_tokens: ended.prompt_tokens,
            completion_tokens: ended.completion_tokens,
            cached_tokens: ended.cached_tokens,
            predicted_cached_tokens: ended.predicted,
            verdict: audited.map(|audited| audited.verdict.as_str().to_owned()),
            cause: audited
                .and_then(|audited| audited.cause)
                .map(|cause| cause.as_str().to_owned()),
        }
    }
}

impl From<&Prompt> for Reading {
    fn from(prompt: &Prompt) -> Self {
        Self {
            basis: prompt.basis.as_str().to_owned(),
            reason: prompt.basis.reason().to_owned(),
            prompt_tokens: prompt.tokens,
            prompt_doubtful: prompt.doubtful,
        }
    }
}

impl From<Weights> for Policy {
    fn from(weights: Weights) -> Self {
        let config::Media { gpu, cpu, storage } = weights.media;
        Self {
            matching_ratio_min: weights.matching_ratio_min,
            media: Media { gpu, cpu, storage },
        }
    }
}

impl From<Policy> for Weights {
    fn from(policy: Policy) -> Self {
        let Media { gpu, cpu, storage } = policy.media;
        Self {
            matching_ratio_min: policy.matching_ratio_min,
            media: config::Media { gpu, cpu, storage },
        }
    }
}

impl From<Times> for Took {
    fn from(took: Times) -> Self {
        let micros =
            |took: std::time::Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Self {
            read: micros(took.read),
            render: micros(took.render),
            tokenize: micros(took.tokenize),
            wait: micros(took.wait),
            overlap: micros(took.overlap),
            choose: micros(took.choose),
        }
    }
}
