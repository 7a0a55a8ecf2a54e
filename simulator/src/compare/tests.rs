use kvscout::blocks::Identity;
use kvscout::fleet::EndpointId;
use kvscout::index::Index;

use super::plan::{Asked, Piece, Plan};
use super::pods::Pod;
use super::policies::Policy;
use super::scenario::{Scenario, run_all};
use super::setting::Setting;
use super::workloads::Groups;
use super::world::run;
use crate::dice::Dice;
use crate::engine::{EngineConfig, Request};

/// Pods whose caches cannot hold all groups each.
fn small() -> Setting {
    Setting {
        pods: 4,
        engine: EngineConfig {
            num_gpu_blocks: 600,
            ..EngineConfig::default()
        },
        ..Setting::default()
    }
}

fn groups() -> Plan {
    Groups {
        groups: 24,
        users: 3,
        prefix_tokens: 1000,
        question_tokens: 100,
        answer_tokens: 20,
        rate: 20.0,
        seconds: 20.0,
        seed: 1,
    }
    .plan()
}

fn hit_rate(policy: Policy, setting: &Setting) -> f64 {
    run(&groups(), setting, policy, &|| ()).hit_rate()
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let setting = Setting {
        event_loss: 0.02,
        outside: 2.0,
        routers: 2,
        changes: ["3:scale:+1", "5:reset:0", "8:slow:1:3", "9:scale:-2"]
            .map(|change| change.parse().expect("a change"))
            .to_vec(),
        ..small()
    };
    let scenarios = [Scenario::new(groups(), 20.0, setting)];
    let bytes = |threads| {
        let outcomes = run_all(&scenarios, &Policy::ALL, threads, &|| ());
        serde_json::to_string(&outcomes).expect("numbers always encode")
    };
    assert_eq!(bytes(1), bytes(3));
}

#[test]
fn every_request_is_answered_whatever_changes() {
    let setting = Setting {
        changes: ["3:scale:+1", "5:reset:0", "9:scale:-3", "10:reset:2"]
            .map(|change| change.parse().expect("a change"))
            .to_vec(),
        ..small()
    };
    for policy in Policy::ALL {
        let record = run(&groups(), &setting, policy, &|| ());
        assert_eq!(
            record.answered().count(),
            groups().requests.len(),
            "{policy:?}"
        );
    }
}

#[test]
fn the_oracle_never_hits_less_than_a_blind_policy() {
    let oracle = hit_rate(Policy::Oracle, &small());
    for policy in [Policy::RoundRobin, Policy::LeastRequest] {
        let blind = hit_rate(policy, &small());
        assert!(oracle > blind, "{oracle} against {blind} of {policy:?}");
    }
}

#[test]
fn what_was_not_heard_cannot_be_used() {
    let of = |event_loss, event_replay| {
        let setting = Setting {
            event_loss,
            event_replay,
            ..small()
        };
        hit_rate(Policy::Kvscout, &setting)
    };
    let (hears, deaf) = (of(0.0, false), of(1.0, false));
    assert!(hears > deaf + 0.1, "{hears} against {deaf}");
    let (asks, resigned) = (of(0.2, true), of(0.2, false));
    assert!(asks > resigned + 0.01, "{asks} against {resigned}");
    assert!(asks > hears - 0.01, "{asks} against {hears}");
}

/// Prompts that share starts of many lengths, through a cache that holds a few of them.
#[test]
fn what_the_oracle_predicts_is_what_the_engine_finds() {
    let setting = small();
    let (mut pod, index) = (Pod::new(setting.engine, setting.timing), Index::default());
    let (endpoint, mut dice) = (EndpointId(0), Dice::new(7));
    let mut prompt = || {
        let (stem, parts) = (dice.below(4) as u64, dice.below(40));
        let part = |nth| Piece::of([stem, nth as u64, 0], 50 + 13 * (nth % 3));
        let mut prompt: Vec<Piece> = (0..parts).map(part).collect();
        prompt.push(Piece::of([99, dice.roll(), 0], 1 + dice.below(60)));
        let asked = Asked {
            prompt,
            ..Asked::default()
        };
        asked.spell_prompt()
    };
    let (mut hits, mut evicted) = (0, 0);
    for round in 0..200 {
        // Three at once, and then one that finds the engine idle: nothing comes between.
        for burst in [3, 1] {
            let mut predicted = 0;
            for number in 0..burst {
                let prompt = prompt();
                predicted = index.cached_at(endpoint, &prompt, &Identity::default()).own;
                let output = vec![1; 20];
                let request = Request {
                    prompt,
                    output,
                    ..Request::default()
                };
                assert!(pod.submit(number, request));
            }
            while pod.begin().is_some() {
                evicted += index.apply(endpoint, pod.scheduled()).removed;
                for (_, emission) in pod.end().emissions {
                    if burst == 1 {
                        assert_eq!(emission.cached_tokens as u64, predicted, "round {round}");
                        hits += usize::from(emission.last && predicted > 0);
                    }
                }
            }
        }
    }
    assert!(
        hits > 50 && evicted > 1000,
        "{hits} hits, {evicted} evictions"
    );
}
