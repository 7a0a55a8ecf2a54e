//! The whole of a choice, for people: the case as it was, and what each candidate was weighed at.
//! The latter is only made when asked for.

use smallvec::SmallVec;

use super::cost::{Crowd, cost, credit};
use super::{Candidate, Choice, Cost, Problem, Prompt, choose, prefix_aware};
use crate::config::Media;

/// What of the policy a choice is made with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// See [`Problem::matching_ratio_min`].
    pub matching_ratio_min: f64,
    /// See [`Problem::media`].
    pub media: Media,
}

/// All that a choice rests on, kept, so that it can be made again: the same, or otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// The request's id, which scatters ties.
    pub request_id: String,
    /// See [`Problem::prompts`].
    pub prompts: SmallVec<[Prompt; 1]>,
    /// With what.
    pub weights: Weights,
    /// Who could get it.
    pub candidates: Vec<Candidate>,
    /// The place of the only one that may, where a conversation stays at home.
    pub home: Option<usize>,
}

impl Case {
    fn problem(&self) -> Problem<'_> {
        Problem {
            prompts: &self.prompts,
            matching_ratio_min: self.weights.matching_ratio_min,
            media: self.weights.media,
            request: &self.request_id,
        }
    }

    /// The prompt as a candidate reads it.
    #[must_use]
    pub fn prompt(&self, candidate: &Candidate) -> &Prompt {
        self.problem().prompt(candidate)
    }

    /// The choice; none without candidates.
    #[must_use]
    pub fn choose(&self) -> Option<Choice> {
        let home = self.home.and_then(|home| self.candidates.get(home));
        self.among(home.map_or(&self.candidates[..], std::slice::from_ref))
    }

    /// The same among these.
    #[must_use]
    pub fn among(&self, candidates: &[Candidate]) -> Option<Choice> {
        choose(&self.problem(), candidates)
    }

    /// See [`Account::weight`].
    #[must_use]
    pub fn token_weight(&self) -> f64 {
        Crowd::of(&self.candidates).weight
    }

    /// What all candidates were weighed at, at home or not.
    #[must_use]
    pub fn account(&self) -> Account {
        account(&self.problem(), &self.candidates)
    }
}

/// What all candidates were weighed at.
#[derive(Debug, Clone, PartialEq)]
pub struct Account {
    /// The best one's overlap exceeds the threshold, so everybody's counts.
    pub prefix_aware: bool,
    /// What one uncached token of the prompt costs: 1 among idle endpoints, more where it delays others.
    pub weight: f64,
    /// Best first.
    pub entries: Vec<Entry>,
}

/// One candidate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// What was known of it.
    pub candidate: Candidate,
    /// Tokens of the prompt that it was credited with: what it holds, less for what is unsure or far.
    pub credit_tokens: u64,
    /// How many times as long as on average a token takes there.
    pub slowness: f64,
    /// What came of it.
    pub cost: Cost,
}

/// Weighs as [`choose`] does.
fn account(problem: &Problem<'_>, candidates: &[Candidate]) -> Account {
    let prefix_aware = prefix_aware(problem, candidates);
    let crowd = Crowd::of(candidates);
    let entry = |candidate: &Candidate| Entry {
        candidate: *candidate,
        credit_tokens: match prefix_aware {
            true => credit(problem, candidate),
            false => 0,
        },
        slowness: crowd.slowness(candidate.pace),
        cost: cost(problem, candidate, prefix_aware, &crowd),
    };
    let mut entries: Vec<Entry> = candidates.iter().map(entry).collect();
    entries.sort_by_key(|entry| entry.cost);
    Account {
        prefix_aware,
        weight: crowd.weight,
        entries,
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;
    use crate::choice::Basis;
    use crate::fleet::{EndpointId, Trust};
    use crate::index::Cached;

    fn case(home: Option<usize>) -> Case {
        let candidate = |id: u32| Candidate {
            endpoint: EndpointId(id),
            prompt: 0,
            cached: Cached {
                own: 200 * u64::from(id),
                ..Cached::default()
            },
            trust: Trust::Live,
            avoided: false,
            full: id == 3,
            queued_tokens: 50,
            requests: id,
            recent_tokens: 0,
            pace: Some(1000.0 * f64::from(id + 1)),
        };
        Case {
            request_id: "r".into(),
            prompts: smallvec![Prompt {
                tokens: 1000,
                basis: Basis::Overlap,
                doubtful: false,
            }],
            weights: Weights {
                matching_ratio_min: 0.5,
                media: Media {
                    gpu: 1.0,
                    cpu: 0.9,
                    storage: 0.6,
                },
            },
            candidates: (0..4).map(candidate).collect(),
            home,
        }
    }

    #[test]
    fn an_account_weighs_as_the_choice_did_and_names_everybody() {
        let case = case(None);
        let (choice, account) = (case.choose().expect("a choice"), case.account());
        let first = &account.entries[0];
        assert_eq!(
            (first.candidate.endpoint, first.cost),
            (choice.endpoint, choice.cost)
        );
        let second = account.entries.get(1).map(|entry| entry.cost);
        assert_eq!(second, choice.runner_up.map(|other| other.cost));
        assert!(account.prefix_aware && account.weight > 1.0);
        let last = account.entries.last().expect("four");
        assert!(last.cost.full && last.credit_tokens == 600, "{last:?}");
    }

    #[test]
    fn at_home_there_is_no_choice_and_the_others_are_weighed_all_the_same() {
        let case = case(Some(0));
        let choice = case.choose().expect("home");
        assert_eq!((choice.endpoint, choice.runner_up), (EndpointId(0), None));
        assert_eq!(case.account().entries.len(), 4);
    }
}
