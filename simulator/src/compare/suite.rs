//! What `make bench-policy` runs: every workload at loads from idle to full.

use std::path::Path;

use super::scenario::Scenario;
use super::setting::Setting;
use super::workloads::{Agents, Groups, Mooncake, Rounds};

/// From loads that any policy carries to those that only a cache makes bearable.
const ROUNDS: [f64; 4] = [8.0, 16.0, 24.0, 32.0];
const GROUPS: [f64; 4] = [10.0, 20.0, 25.0, 30.0];
const AGENTS: [f64; 4] = [10.0, 20.0, 30.0, 40.0];
/// 3.4 requests/s is as it was recorded.
const MOONCAKE: [f64; 3] = [3.4, 6.0, 9.0];
/// 320 users with 23,000 tokens each are 73 % of what 32 pods hold, as 150 groups are of what 8 hold in
/// llm-d's published set-up.
const ROUNDS_PODS: usize = 32;
/// Router replicas, on groups at the second load.
const ROUTERS: [usize; 2] = [4, 8];
/// What goes wrong, on groups at the second load.
const TROUBLES: [Trouble; 6] = [
    Trouble {
        name: "a pod becomes 3x as slow",
        changes: &["20:slow:0:3"],
        ..NOTHING
    },
    Trouble {
        name: "an engine restarts",
        changes: &["30:reset:0"],
        ..NOTHING
    },
    Trouble {
        name: "2 pods go, 4 come",
        changes: &["30:scale:-2", "60:scale:+4"],
        ..NOTHING
    },
    Trouble {
        name: "4 requests/s past the routers",
        outside: 4.0,
        ..NOTHING
    },
    Trouble {
        name: "1 % of event batches lost",
        event_loss: 0.01,
        ..NOTHING
    },
    Trouble {
        name: "1 % of event batches lost for good",
        event_loss: 0.01,
        event_replay: false,
        ..NOTHING
    },
];

struct Trouble {
    name: &'static str,
    changes: &'static [&'static str],
    /// Requests per second past the routers.
    outside: f64,
    /// The share of event batches lost, and whether they can be asked for.
    event_loss: f64,
    event_replay: bool,
}

const NOTHING: Trouble = Trouble {
    name: "",
    changes: &[],
    outside: 0.0,
    event_loss: 0.0,
    event_replay: true,
};

/// Each scenario is drawn so many times: of one draw, chance decides what differs by a twentieth.
const DRAWS: u64 = 5;

/// The scenarios; without a trace, Mooncake's are left out.
///
/// # Errors
/// The trace cannot be read.
pub(super) fn drawn(trace: Option<&Path>, seed: u64) -> anyhow::Result<Vec<Scenario>> {
    let mut all = scenarios(trace, seed)?;
    for draw in 1..DRAWS {
        let others = scenarios(trace, seed.wrapping_add(draw))?;
        let both = all.into_iter().zip(others);
        all = both.map(|(one, other)| one.with(other)).collect();
    }
    Ok(all)
}

fn scenarios(trace: Option<&Path>, seed: u64) -> anyhow::Result<Vec<Scenario>> {
    let setting = Setting {
        seed,
        ..Setting::default()
    };
    let mut scenarios = Vec::new();
    for rate in ROUNDS {
        let rounds = Rounds {
            users: 320,
            rounds: 10,
            system_tokens: 1000,
            history_tokens: 20_000,
            answer_tokens: 100,
            rate,
            seconds: 90.0,
        };
        let setting = Setting {
            pods: ROUNDS_PODS,
            ..setting.clone()
        };
        scenarios.push(Scenario::new(rounds.plan(), rate, setting));
    }
    let groups = |rate| Groups {
        groups: 150,
        users: 5,
        prefix_tokens: 6000,
        question_tokens: 1200,
        answer_tokens: 1000,
        rate,
        seconds: 90.0,
        seed,
    };
    for rate in GROUPS {
        scenarios.push(Scenario::new(groups(rate).plan(), rate, setting.clone()));
    }
    for rate in AGENTS {
        let agents = Agents {
            system_tokens: 3000,
            task_tokens: 1000,
            steps: 5,
            tool_tokens: 400,
            branches: 4,
            levels: 2,
            answer_tokens: 150,
            tool_seconds: 1.0,
            rate,
            // Some tens of trees: of fewer, chance decides.
            seconds: 240.0,
            seed,
        };
        scenarios.push(Scenario::new(agents.plan(), rate, setting.clone()));
    }
    if let Some(trace) = trace {
        let trace = Mooncake::read(trace)?;
        for rate in MOONCAKE {
            let plan = trace.plan(rate, 1, 600.0, seed);
            scenarios.push(Scenario::new(plan, rate, setting.clone()));
        }
    }
    for routers in ROUTERS {
        let setting = Setting {
            routers,
            ..setting.clone()
        };
        scenarios.push(Scenario::new(groups(GROUPS[1]).plan(), GROUPS[1], setting));
    }
    for trouble in TROUBLES {
        let changes = trouble.changes.iter().map(|change| change.parse());
        let changes: Result<_, String> = changes.collect();
        let setting = Setting {
            changes: changes.map_err(anyhow::Error::msg)?,
            outside: trouble.outside,
            event_loss: trouble.event_loss,
            event_replay: trouble.event_replay,
            ..setting.clone()
        };
        let mut plan = groups(GROUPS[1]).plan();
        plan.name = format!("{}, {}", plan.name, trouble.name);
        scenarios.push(Scenario::new(plan, GROUPS[1], setting));
    }
    Ok(scenarios)
}
