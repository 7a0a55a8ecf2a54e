use super::*;
use crate::blocks::Identity;

const POD: EndpointId = EndpointId(0);

/// A batch that stores one two-token block, made at the second that its hash says.
fn stored(hash: u64, parent: Option<u64>) -> Vec<u8> {
    rmp_serde::to_vec(&(
        hash as f64,
        (("BlockStored", (hash,), parent, (1, 1), 2, ()),),
        0,
    ))
    .expect("packs")
}

/// Tokens held, and of these those that may be gone.
fn held(index: &Index) -> (u64, u64) {
    let cached = index.cached_at(POD, &[1, 1, 0], &Identity::default());
    (cached.tokens(), cached.unsure)
}

fn follow(seqs: &[(u64, Vec<u8>)]) -> (Index, Follower) {
    let (index, mut follower) = (Index::default(), Follower::new(POD));
    for (seq, payload) in seqs {
        follower.on_batch(&index, *seq, payload);
    }
    (index, follower)
}

/// A replay from the last known batch on brings that and the missed one; the live stream goes on.
fn a_replay_makes_it_whole(index: &Index, follower: &mut Follower) {
    assert!(follower.on_recognition(index, Some(&stored(1, None))));
    follower.on_replayed(index, 0, &stored(1, None));
    follower.on_replayed(index, 1, &stored(2, Some(1)));
    follower.on_batch(index, 2, &stored(3, Some(2)));
    assert_eq!(
        (follower.verdict().trust, index.blocks_of(POD)),
        (Trust::Live, 3)
    );
}

#[test]
fn a_gap_is_never_silent() {
    let (index, follower) = follow(&[(0, stored(1, None)), (2, stored(7, Some(6)))]);
    assert_eq!(follower.verdict().trust, Trust::Doubtful);
    assert!(
        follower
            .verdict()
            .reason
            .starts_with("1 batches lost before sequence 2")
    );
    assert_eq!(
        held(&index),
        (2, 2),
        "what a lost batch may have removed is unsure"
    );
}

#[test]
fn what_comes_twice_or_late_is_no_restart() {
    let (index, mut follower) = follow(&[
        (0, stored(1, None)),
        (1, stored(2, Some(1))),
        (1, stored(2, Some(1))),
        (0, stored(1, None)),
        (2, stored(3, Some(2))),
    ]);
    assert_eq!(
        (follower.verdict().trust, index.blocks_of(POD)),
        (Trust::Live, 3)
    );
    assert_eq!(follower.missing_before(1, &stored(2, Some(1))), None);
    assert_eq!(index.physical(POD), 3);
    let damaged = follower.on_batch(&index, 1, b"\x93");
    assert!(!damaged.taken && follower.verdict().trust == Trust::Live);
    // Behind the one that followed it, it can no longer be applied in order.
    follower.on_batch(&index, 4, &stored(5, None));
    let late = follower.on_batch(&index, 3, &stored(4, Some(3)));
    assert!(!late.taken);
    assert_eq!(follower.verdict().trust, Trust::Doubtful);
}

#[test]
fn a_restarted_engine_is_live_again_with_an_empty_cache() {
    let (index, follower) = follow(&[
        (0, stored(1, None)),
        (1, stored(2, Some(1))),
        (0, stored(9, Some(8))),
    ]);
    assert_eq!(held(&index), (0, 0));
    assert_eq!(
        follower.verdict().trust,
        Trust::Doubtful,
        "its block has a parent that we never saw"
    );
    let (index, follower) = follow(&[
        (0, stored(5, None)),
        (1, stored(6, Some(5))),
        (0, stored(11, None)),
    ]);
    assert_eq!(held(&index), (2, 0));
    assert_eq!(follower.verdict().trust, Trust::Live);
}

#[test]
fn a_replay_fills_a_gap_and_what_comes_twice_counts_once() {
    let (index, mut follower) = follow(&[(0, stored(1, None))]);
    assert_eq!(follower.missing_before(3, b""), Some(1));
    for seq in 1..=4 {
        follower.on_replayed(&index, seq, &stored(seq + 1, Some(seq)));
    }
    for seq in 3..=4 {
        assert_eq!(follower.missing_before(seq, b""), None);
        let again = follower.on_batch(&index, seq, &stored(seq + 1, Some(seq)));
        assert_eq!((again.applied.stored, again.forgotten), (0, false));
    }
    assert_eq!(
        follower
            .on_batch(&index, 5, &stored(6, Some(5)))
            .applied
            .stored,
        1
    );
    assert_eq!(
        (follower.verdict().trust, index.blocks_of(POD)),
        (Trust::Live, 6)
    );
}

#[test]
fn a_restart_right_after_a_replay_is_not_taken_for_an_echo() {
    let (index, mut follower) = follow(&[]);
    follower.on_replayed(&index, 0, &stored(1, None));
    follower.on_replayed(&index, 1, &stored(2, Some(1)));
    let other = follower.on_batch(&index, 0, &stored(77, None));
    assert!(other.forgotten);
    assert_eq!(
        (follower.verdict().trust, index.blocks_of(POD)),
        (Trust::Live, 1)
    );
}

#[test]
fn a_late_joiner_knows_what_it_heard_and_does_not_claim_more() {
    let (index, follower) = follow(&[(41, stored(1, None))]);
    assert_eq!(held(&index), (2, 0));
    assert_eq!(follower.verdict().trust, Trust::Doubtful);
}

#[test]
fn a_cleared_cache_ends_all_doubt() {
    let cleared = rmp_serde::to_vec(&(1.0, (("AllBlocksCleared",),), 0)).expect("packs");
    let (_, follower) = follow(&[(41, stored(1, None)), (42, cleared)]);
    assert_eq!(follower.verdict().trust, Trust::Live);
}

#[test]
fn a_batch_that_cannot_be_read_is_a_gap() {
    let (index, follower) = follow(&[(0, stored(1, None)), (1, b"\xc1".to_vec())]);
    assert_eq!(held(&index), (2, 2));
    assert_eq!(follower.verdict().trust, Trust::Doubtful);
}

#[test]
fn a_lost_connection_is_silence_then_doubt_until_the_next_batch_proves_otherwise() {
    let (index, mut follower) = follow(&[(0, stored(1, None))]);
    follower.on_disconnected("reset by peer");
    follower.on_disconnected("refused");
    assert_eq!(follower.verdict().trust, Trust::Silent);
    follower.on_connected();
    assert_eq!(follower.verdict().trust, Trust::Doubtful);
    assert_eq!(held(&index), (2, 0));
    follower.on_batch(&index, 1, &stored(2, Some(1)));
    assert_eq!(
        (follower.verdict().trust, held(&index)),
        (Trust::Doubtful, (2, 2)),
        "a restarted engine may count as far"
    );
}

#[test]
fn a_replay_of_the_last_batch_shows_that_the_process_is_the_same() {
    let (index, mut follower) = follow(&[(0, stored(1, None))]);
    follower.on_disconnected("reset by peer");
    follower.on_connected();
    assert_eq!(
        (follower.missing_now(), follower.missing_before(2, b"")),
        (Some(0), Some(0))
    );
    a_replay_makes_it_whole(&index, &mut follower);
}

#[test]
fn another_process_on_the_same_port_inherits_nothing() {
    for last in [Some(stored(9, None)), None] {
        let (index, mut follower) = follow(&[(0, stored(1, None))]);
        follower.on_disconnected("reset by peer");
        follower.on_connected();
        assert!(!follower.on_recognition(&index, last.as_deref()));
        assert_eq!((index.blocks_of(POD), follower.missing_now()), (0, Some(0)));
        follower.on_replayed(&index, 0, &stored(9, None));
        assert_eq!(
            (follower.verdict().trust, index.blocks_of(POD)),
            (Trust::Live, 1)
        );
    }
}

#[test]
fn a_picture_thrown_away_does_not_come_back_with_the_connection() {
    let (index, mut follower) = follow(&[(0, stored(1, None))]);
    follower.on_disconnected("reset by peer");
    follower.on_connected();
    follower.on_loss(&index, "a message is no batch");
    follower.on_batch(&index, 1, &stored(2, Some(1)));
    assert_eq!(follower.verdict().trust, Trust::Doubtful);
}

#[test]
fn what_we_dropped_ourselves_can_be_asked_for() {
    let (index, mut follower) = follow(&[(0, stored(1, None))]);
    follower.on_overrun(1);
    assert_eq!(
        (follower.verdict().trust, follower.missing_before(2, b"")),
        (Trust::Doubtful, Some(0))
    );
    a_replay_makes_it_whole(&index, &mut follower);
}

#[test]
fn a_cleared_cache_with_a_stranger_after_it_is_not_complete() {
    let cleared = ("AllBlocksCleared",);
    let orphan = ("BlockStored", (9,), 8, (1, 1), 2, ());
    let batch = rmp_serde::to_vec(&(1.0, (cleared, orphan), 0)).expect("packs");
    let (_, follower) = follow(&[(41, stored(1, None)), (42, batch)]);
    assert_eq!(follower.verdict().trust, Trust::Doubtful);
}

#[test]
fn an_engine_does_not_hold_more_than_it_can() {
    let (index, mut follower) = follow(&[(0, stored(1, None)), (1, stored(2, Some(1)))]);
    follower.on_capacity(&index, 2);
    assert_eq!(
        (follower.verdict().trust, held(&index)),
        (Trust::Live, (2, 0))
    );
    // A removal was lost on the way without a trace.
    follower.on_batch(&index, 2, &stored(3, Some(2)));
    follower.on_capacity(&index, 2);
    assert_eq!(
        (follower.verdict().trust, held(&index)),
        (Trust::Doubtful, (2, 2))
    );
    // What is heard from then on is sure; the rest makes room for it.
    follower.on_batch(&index, 3, &stored(4, None));
    follower.on_capacity(&index, 2);
    assert_eq!((index.physical(POD), held(&index)), (1, (2, 0)));
}

#[test]
fn a_cleared_cache_does_not_end_the_doubt_about_a_group_that_nobody_counts() {
    let stored = |group: u32, kind: &str| {
        (
            "BlockStored",
            (7,),
            (),
            (1, 1),
            2,
            (),
            "GPU",
            (),
            (),
            group,
            kind.to_owned(),
        )
    };
    let (full, other) = (
        stored(0, "full_attention"),
        stored(1, "chunked_local_attention"),
    );
    let first = rmp_serde::to_vec(&(1.0, (full.clone(), other), 0)).expect("packs");
    let cleared = rmp_serde::to_vec(&(2.0, (("AllBlocksCleared",), full), 0)).expect("packs");
    let (_, follower) = follow(&[(0, first), (1, cleared)]);
    assert_eq!(follower.verdict().trust, Trust::Doubtful);
}

#[test]
fn who_is_not_heard_is_not_believed_for_what_it_can_hold() {
    let (index, mut follower) = follow(&[(0, stored(1, None)), (1, stored(2, Some(1)))]);
    follower.on_disconnected("refused");
    follower.on_capacity(&index, 1);
    assert_eq!(
        (follower.verdict().trust, follower.missing_now()),
        (Trust::Silent, Some(1))
    );
}

#[test]
fn who_lost_blocks_for_room_is_doubtful_until_its_cache_is_cleared() {
    let (index, mut follower) = (Index::default().limited(64 << 10), Follower::new(POD));
    assert!(!follower.on_room(&index));
    // Prompts of one block each.
    let blocks = |first: u32| {
        (first..first + 3_000).map(|hash| ("BlockStored", (hash,), (), (hash, 1), 2, ()))
    };
    let batch = |second: u32, first: u32| {
        let events: Vec<_> = blocks(first).collect();
        rmp_serde::to_vec(&(f64::from(second), events, 0)).expect("packs")
    };
    follower.on_batch(&index, 0, &batch(1, 1));
    follower.on_batch(&index, 1, &batch(2, 10_000));
    assert_eq!(follower.verdict().trust, Trust::Doubtful);
    assert!(follower.verdict().reason.contains("index_bytes_max"));
    let cleared = rmp_serde::to_vec(&(3.0, (("AllBlocksCleared",),), 0)).expect("packs");
    follower.on_batch(&index, 2, &cleared);
    assert_eq!(follower.verdict().trust, Trust::Live);
}
