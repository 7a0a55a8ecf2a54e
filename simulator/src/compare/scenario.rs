//! A workload in a setting, run under each policy.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use super::plan::Plan;
use super::policies::Policy;
use super::record::Record;
use super::setting::Setting;
use super::summary::{Summary, relate};
use super::workloads::ideal_hit_rate;
use super::world::run;

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What is asked; what no pod can hold is left out.
    pub plan: Plan,
    /// Requests per second, for people.
    pub rate: f64,
    /// Of whom.
    pub setting: Setting,
    /// Requests that were left out.
    pub left_out: usize,
    /// The same, drawn otherwise.
    again: Vec<(Plan, Setting)>,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The workload.
    pub workload: String,
    /// Requests per second.
    pub rate: f64,
    /// Pods at the start.
    pub pods: usize,
    /// Router replicas.
    pub routers: usize,
    /// Requests.
    pub requests: usize,
    /// Requests that no pod could hold, and those that waited for them.
    pub left_out: usize,
    /// The hit rate of one cache without limits.
    pub ideal_hit_rate: f64,
    /// One for each policy.
    pub policies: Vec<Summary>,
}

impl Scenario {
    /// Leaves out of the plan what no pod can hold.
    #[must_use]
    pub fn new(mut plan: Plan, rate: f64, setting: Setting) -> Self {
        let left_out = plan.fit(setting.engine.capacity_tokens());
        Self {
            plan,
            rate,
            setting,
            left_out,
            again: Vec::new(),
        }
    }

    /// With the same from another seed: of few draws chance decides.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.left_out += other.left_out;
        self.again.push((other.plan, other.setting));
        self.again.extend(other.again);
        self
    }

    fn draws(&self) -> impl Iterator<Item = (&Plan, &Setting)> {
        let others = self.again.iter().map(|(plan, setting)| (plan, setting));
        std::iter::once((&self.plan, &self.setting)).chain(others)
    }

    /// Requests of all draws.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.draws().map(|(plan, _)| plan.requests.len()).sum()
    }

    /// In a few words.
    #[must_use]
    pub fn title(&self) -> String {
        let Setting { pods, routers, .. } = self.setting;
        let routers = if routers > 1 {
            format!(", {routers} routers")
        } else {
            String::new()
        };
        format!(
            "{}, {} requests/s, {pods} pods{routers}",
            self.plan.name,
            crate::plot::round(self.rate)
        )
    }
}

/// Runs all policies over all scenarios, on so many threads; `progress` hears of each request.
#[must_use]
pub fn run_all(
    scenarios: &[Scenario],
    policies: &[Policy],
    threads: usize,
    progress: &(dyn Fn() + Sync),
) -> Vec<Outcome> {
    let mut jobs = Vec::new();
    for scenario in scenarios {
        for policy in policies {
            jobs.extend(scenario.draws().map(|draw| (draw, *policy)));
        }
    }
    let results: Vec<OnceLock<Record>> = jobs.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(((plan, setting), policy)) = jobs.get(number) else {
                        return;
                    };
                    results[number].get_or_init(|| run(plan, setting, *policy, &|| progress()));
                }
            });
        }
    });
    let mut records = results.into_iter().filter_map(OnceLock::into_inner);
    let outcome = |scenario: &Scenario| {
        let mut of_policy = |policy: &Policy| {
            let runs = records.by_ref().take(1 + scenario.again.len());
            Summary::of(*policy, &runs.reduce(Record::with).unwrap_or_default())
        };
        let mut of_it: Vec<Summary> = policies.iter().map(&mut of_policy).collect();
        relate(&mut of_it);
        Outcome {
            workload: scenario.plan.name.clone(),
            rate: scenario.rate,
            pods: scenario.setting.pods,
            routers: scenario.setting.routers,
            requests: scenario.requests(),
            left_out: scenario.left_out,
            ideal_hit_rate: ideal_hit_rate(
                &scenario.plan,
                scenario.setting.engine.block_size as u32,
            ),
            policies: of_it,
        }
    };
    scenarios.iter().map(outcome).collect()
}
