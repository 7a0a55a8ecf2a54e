use kvscout::blocks::{BlockEvent, EngineHash, Group, Identity, Medium, Stored};

use super::*;

fn seen(pod: u32, load: Load) -> Seen {
    Seen {
        endpoint: EndpointId(pod),
        load,
        gauges: Gauges::default(),
        trust: Trust::Live,
        pace: None,
        underway_tokens: 0,
        recent_tokens: 0,
    }
}

fn stored(tokens: &[u32]) -> BlockEvent {
    let blocks = tokens.len() / 16;
    BlockEvent::Stored(Stored {
        hashes: (0..blocks as u64).map(EngineHash).collect(),
        parent: None,
        tokens: tokens[..blocks * 16].to_vec(),
        block_size: 16,
        adapter: None,
        adapter_id: None,
        medium: Medium::Gpu,
        group: Group::default(),
        extra_keys: Some(vec![Vec::new(); blocks]),
        lookahead: Vec::new(),
    })
}

/// Where each of `asks` equal prompts goes; pod 2 of 4 holds it if anybody does.
fn picks(policy: Policy, pods: &[Seen], asks: usize) -> Vec<usize> {
    let (tokens, identity): (Vec<u32>, _) = ((0..400).collect(), Identity::default());
    let index = Index::default();
    index.apply(EndpointId(2), &[stored(&tokens)]);
    let mut router = policy.router(1, 1000);
    let pick = |_| {
        let ask = &mut Ask {
            request: "r",
            session: 5,
            prompt: &mut Chains::new(&tokens, &identity),
            block_size: 16,
            index: Some(&index),
            pods,
        };
        router.pick(ask).place
    };
    (0..asks).map(pick).collect()
}

fn idle() -> Vec<Seen> {
    (0..4).map(|pod| seen(pod, Load::default())).collect()
}

#[test]
fn an_idle_pod_with_the_prefix_wins() {
    for policy in [Policy::Kvscout, Policy::Oracle, Policy::Dynamo] {
        assert_eq!(picks(policy, &idle(), 2), [2, 2], "{policy:?}");
    }
}

#[test]
fn a_pod_that_was_sent_the_prefix_wins_where_nobody_hears_events() {
    for policy in [
        Policy::Approximate,
        Policy::LlmdAffinity,
        Policy::ConsistentHash,
    ] {
        let picks = picks(policy, &idle(), 5);
        assert!(
            picks.iter().all(|pick| *pick == picks[0]),
            "{policy:?}: {picks:?}"
        );
    }
}

#[test]
fn a_long_queue_outweighs_a_prefix() {
    let mut pods = idle();
    pods[2] = seen(
        2,
        Load {
            requests: 9,
            prefill_tokens: 5000,
            prompt_tokens: 9000,
        },
    );
    for policy in [
        Policy::Kvscout,
        Policy::Dynamo,
        Policy::LeastRequest,
        Policy::ConsistentHash,
    ] {
        assert_ne!(picks(policy, &pods, 1), [2], "{policy:?}");
    }
}

#[test]
fn round_robin_takes_turns() {
    let mut picks = picks(Policy::RoundRobin, &idle(), 4);
    picks.sort_unstable();
    assert_eq!(picks, [0, 1, 2, 3]);
}
