//! Each part killed (`kill -9`) again and again under load, through a real Envoy with two pickers.
//!
//! `FAULT_ROUNDS` (1) says how often; `make test-faults` does it ten times.

mod harness;

use std::sync::atomic::Ordering;

use harness::envoy::Bodies;
use harness::world::{CLIENTS, Load, PODS, Setting, World};

fn rounds() -> usize {
    let given = std::env::var("FAULT_ROUNDS").ok();
    given.map_or(1, |text| text.parse().expect("a number"))
}

/// Every part in turn; how many requests failed. Only killed pickers may fail any, each at most what it had in hand.
#[expect(clippy::print_stdout, reason = "make test-faults shows how it goes on")]
async fn each_part_is_killed(bodies: Bodies) -> usize {
    let mut world = World::start(Setting::of(bodies)).await;
    let load = Load::start(world.envoy.routed);
    load.knows().await;
    let mut lost = 0;
    for round in 0..rounds() {
        for part in ["picker", "pod", "nats", "bridge", "envoy"] {
            let begun = std::time::Instant::now();
            match part {
                "picker" => lost += world.kill_picker(round % 2, &load).await,
                "pod" => world.kill_pod(round % PODS, &load).await,
                "nats" => world.kill_nats(&load).await,
                "bridge" => world.kill_bridge(&load).await,
                _ => world.kill_envoy(&load).await,
            }
            let failed = load.failures();
            assert!(failed.is_empty(), "{part} of round {round}: {failed:#?}");
            println!("round {round}: {part} killed, {:?}", begun.elapsed());
        }
    }
    load.knows().await;
    let served = load.served.load(Ordering::Relaxed);
    println!("{bodies:?}: {served} requests served, {lost} failed");
    load.end().await;
    lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_any_part_again_and_again_fails_no_request() {
    assert_eq!(each_part_is_killed(Bodies::Buffered).await, 0);
}

/// Envoy keeps no body then, and does not fail open once it has sent a piece of one (envoyproxy/envoy#41276): a
/// request that its picker has not answered is given to the other one, up to 64 KiB, and every other one fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_full_duplex_a_killed_picker_fails_what_it_had_in_hand_and_nothing_after() {
    let lost = each_part_is_killed(Bodies::FullDuplex).await;
    assert!(lost <= rounds() * CLIENTS, "{lost}");
}
