use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::blocks::{Chains, EngineHash, ExtraKey, Group, Identity, Medium, Rule, Stored, TokenId};

const POD: EndpointId = EndpointId(1);

fn stored(parent: Option<u64>, hashes: &[u64], tokens: &[TokenId]) -> Stored {
    let hashes = hashes.iter().copied().map(EngineHash).collect();
    Stored {
        // Also where it names no block.
        block_size: 2,
        ..Stored::plain(parent.map(EngineHash), hashes, tokens.to_vec())
    }
}

fn store(parent: Option<u64>, hashes: &[u64], tokens: &[TokenId]) -> BlockEvent {
    BlockEvent::Stored(stored(parent, hashes, tokens))
}

fn remove(hash: u64) -> BlockEvent {
    let (medium, group) = (Medium::Gpu, Group::default());
    BlockEvent::Removed {
        hashes: vec![EngineHash(hash)],
        medium,
        group,
    }
}

/// These tokens and one more, which the engine computes itself.
fn prompt(tokens: &[TokenId]) -> Vec<TokenId> {
    [tokens, &[0]].concat()
}

fn chain(tokens: &[TokenId]) -> Chain {
    Chain::of_prompt(&prompt(tokens), 2, &Identity::default())
}

/// What the pod holds of these tokens.
fn cached(index: &Index, tokens: &[TokenId]) -> Cached {
    index.cached_at(POD, &prompt(tokens), &Identity::default())
}

/// How many blocks of the engine's own these are.
fn blocks(index: &Index, tokens: &[TokenId]) -> u64 {
    cached(index, tokens).own / 2
}

#[test]
fn an_evicted_copy_leaves_the_other_one_hittable() {
    let index = Index::default();
    index.apply(
        POD,
        &[
            store(None, &[10, 11], &[1, 2, 3, 4]),
            store(Some(10), &[11], &[3, 4]),
        ],
    );
    index.apply(POD, &[remove(11)]);
    assert_eq!(blocks(&index, &[1, 2, 3, 4]), 2);
    index.apply(POD, &[remove(11)]);
    assert_eq!(blocks(&index, &[1, 2, 3, 4]), 1);
}

#[test]
fn a_hole_ends_the_overlap_and_filling_it_restores_the_rest() {
    let index = Index::default();
    index.apply(
        POD,
        &[store(None, &[1, 2, 3], &[1, 1, 2, 2, 3, 3]), remove(2)],
    );
    assert_eq!(blocks(&index, &[1, 1, 2, 2, 3, 3]), 1);
    index.apply(POD, &[store(Some(1), &[2], &[2, 2])]);
    assert_eq!(blocks(&index, &[1, 1, 2, 2, 3, 3]), 3);
}

#[test]
fn orphans_are_counted_but_never_claimed() {
    let index = Index::default();
    let applied = index.apply(POD, &[store(Some(99), &[5], &[1, 2])]);
    assert_eq!((applied.stored, applied.orphans), (1, 1));
    assert_eq!(blocks(&index, &[1, 2]), 0);
    assert_eq!(index.apply(POD, &[remove(5), remove(5)]).unknown, 1);
}

#[test]
fn an_announced_report_adds_no_copies() {
    let index = Index::default();
    index.apply(POD, &[store(None, &[1, 2], &[1, 1, 2, 2])]);
    index.expect_reports(POD, &chain(&[1, 1, 2, 2]), 2, 1);
    let report = store(None, &[1, 2], &[1, 1, 2, 2]);
    assert_eq!(index.apply(POD, std::slice::from_ref(&report)).reported, 2);
    assert_eq!(
        index.apply(POD, &[report]).stored,
        2,
        "only once per announcement"
    );
}

#[test]
fn a_report_is_announced_beside_a_book_that_is_busy() {
    let index = Index::default();
    index.apply(POD, &[store(None, &[1], &[1, 1])]);
    let book = index.book(POD).expect("a book");
    {
        let _locked = book.lock();
        index.expect_reports(POD, &chain(&[1, 1]), 1, 1);
    }
    assert_eq!(index.apply(POD, &[store(None, &[1], &[1, 1])]).reported, 1);
}

#[test]
fn every_group_reports_and_none_of_it_counts() {
    let index = Index::default();
    let tokens = [1, 1, 2, 2];
    let window = |hashes: &[u64]| store_in(Medium::Gpu, WINDOW, stored(None, hashes, &tokens));
    let full = || store(None, &[1, 2], &tokens);
    index.apply(POD, &[full(), window(&[1, 2])]);
    index.expect_reports(POD, &chain(&tokens), 2, 1);
    let applied = index.apply(POD, &[full(), window(&[1, 2])]);
    assert_eq!((applied.reported, applied.stored), (4, 0));
    assert_eq!(index.physical(POD), 4);
    assert_eq!(index.apply(POD, &[window(&[1, 2])]).stored, 2, "only once");
}

#[test]
fn every_answer_to_a_prompt_reports_what_it_found() {
    let index = Index::default();
    let whole = store(None, &[1, 2], &[1, 1, 2, 2]);
    // Nothing is held: the first answer is silent, the second finds what the first stored.
    index.expect_reports(POD, &chain(&[1, 1, 2, 2]), 0, 2);
    let applied = index.apply(POD, &[whole.clone(), whole]);
    assert_eq!((applied.stored, applied.reported), (2, 2));
    // One block is held: the first reports that, the second all.
    index.apply(POD, &[remove(2)]);
    index.expect_reports(POD, &chain(&[1, 1, 2, 2]), 1, 2);
    let (one, rest) = (store(None, &[1], &[1, 1]), store(Some(1), &[2], &[2, 2]));
    let all = store(None, &[1, 2], &[1, 1, 2, 2]);
    let applied = index.apply(POD, &[one, rest, all]);
    assert_eq!((applied.stored, applied.reported), (1, 3));
}

#[test]
fn old_adapter_ids_get_their_names() {
    let index = Index::default();
    index.name_adapters(POD, vec!["sql".into(), "chat".into()]);
    let event = Stored {
        adapter_id: Some(2),
        ..stored(None, &[1], &[1, 2])
    };
    index.apply(POD, &[BlockEvent::Stored(event)]);
    let of = |adapter: &str| {
        let identity = Identity {
            adapter: Some(adapter.into()),
            cache_salt: None,
        };
        index.cached_at(POD, &[1, 2, 0], &identity).own
    };
    assert_eq!((of("chat"), of("sql")), (2, 0));
}

#[test]
fn salted_blocks_are_found_with_their_salt_only() {
    let index = Index::default();
    let extra_keys = Some(vec![vec![ExtraKey::Text("tenant".into())], vec![]]);
    let event = Stored {
        extra_keys,
        ..stored(None, &[1, 2], &[1, 1, 2, 2])
    };
    index.apply(POD, &[BlockEvent::Stored(event)]);
    let identity = Identity {
        adapter: None,
        cache_salt: Some("tenant".into()),
    };
    let salted = index.cached_at(POD, &[1, 1, 2, 2, 0], &identity);
    assert_eq!(salted.own, 4);
    assert_eq!(blocks(&index, &[1, 1, 2, 2]), 0);
}

#[test]
fn forgetting_leaves_nothing_behind() {
    let index = Index::default();
    index.apply(POD, &[store(None, &[1, 2], &[1, 1, 2, 2])]);
    index.forget(POD);
    assert_eq!(index.size(), Size::default());
    assert_eq!(index.shape(POD), None);
}

/// Of a group by its number and rule, on a medium.
fn store_in(medium: Medium, group: Group, event: Stored) -> BlockEvent {
    BlockEvent::Stored(Stored {
        medium,
        group,
        ..event
    })
}

const WINDOW: Group = Group {
    index: 1,
    rule: Rule::Window(3),
};

#[test]
fn a_hybrid_prefix_counts_where_all_groups_agree() {
    let index = Index::default();
    let tokens = [1, 1, 2, 2, 3, 3, 4, 4];
    // The window's group stores the tail alone: which blocks these are, its sibling's names say, and
    // that comes later in the batch.
    let tail = stored(Some(10), &[12, 13], &tokens[2..]);
    let applied = index.apply(
        POD,
        &[
            store_in(Medium::Gpu, WINDOW, tail),
            store(None, &[10, 11, 12, 13], &tokens),
        ],
    );
    assert_eq!(
        (applied.stored, applied.orphans, applied.unmodelled),
        (6, 0, 0)
    );
    assert_eq!(blocks(&index, &tokens), 4);
    assert_eq!(index.physical(POD), 6);
    let remove_in = |group, hash| BlockEvent::Removed {
        hashes: vec![EngineHash(hash)],
        medium: Medium::Gpu,
        group,
    };
    index.apply(POD, &[remove_in(WINDOW, 12)]);
    assert_eq!(
        blocks(&index, &tokens),
        4,
        "ceil(2 / 2) = 1 block is enough"
    );
    index.apply(POD, &[remove_in(WINDOW, 13)]);
    assert_eq!(
        blocks(&index, &tokens),
        0,
        "the full group alone hits nothing"
    );
}

#[test]
fn a_group_that_has_stored_nothing_agrees_to_nothing() {
    let index = Index::default();
    let state = Group {
        index: 1,
        rule: Rule::Last,
    };
    let within = stored(None, &[], &[1, 1]);
    index.apply(
        POD,
        &[
            store(None, &[7], &[1, 1]),
            store_in(Medium::Gpu, state, within),
        ],
    );
    assert_eq!(blocks(&index, &[1, 1]), 0);
    let at_end = store_in(Medium::Gpu, state, stored(None, &[7], &[1, 1]));
    index.apply(POD, &[at_end]);
    assert_eq!(blocks(&index, &[1, 1]), 1);
}

#[test]
fn a_group_of_an_unknown_kind_is_told_and_left_out() {
    let index = Index::default();
    let unknown = Group {
        index: 1,
        rule: Rule::Unknown,
    };
    let event = store_in(Medium::Gpu, unknown, stored(None, &[7], &[1, 1]));
    let applied = index.apply(POD, &[store(None, &[7], &[1, 1]), event]);
    assert_eq!((applied.stored, applied.unmodelled), (1, 1));
    assert_eq!(blocks(&index, &[1, 1]), 1);
}

#[test]
fn the_beginning_of_a_block_is_no_block() {
    let index = Index::default();
    let large = |size, event| {
        let group = Group {
            index: 1,
            rule: Rule::All,
        };
        let event = Stored {
            block_size: size,
            ..event
        };
        store_in(Medium::Gpu, group, event)
    };
    let tokens = [1, 1, 2, 2, 3, 3, 4, 4];
    let small = store(None, &[11, 12, 13], &tokens[..6]);
    // Whichever comes first, the group's own size is the larger one.
    let begun = large(2, stored(Some(12), &[13], &tokens[4..6]));
    index.apply(POD, std::slice::from_ref(&begun));
    index.apply(
        POD,
        &[small, large(4, stored(None, &[12], &tokens[..4])), begun],
    );
    assert_eq!(
        blocks(&index, &tokens),
        2,
        "four tokens are a multiple of both sizes"
    );
    let ended = BlockEvent::Removed {
        hashes: vec![EngineHash(13); 2],
        medium: Medium::Gpu,
        group: Group {
            index: 1,
            rule: Rule::Unknown,
        },
    };
    assert_eq!(index.apply(POD, std::slice::from_ref(&ended)).unknown, 0);
    assert_eq!(index.apply(POD, &[ended]).unknown, 2);
}

#[test]
fn lower_media_go_on_where_the_engines_own_cache_ends() {
    let index = Index::default();
    let tokens = [1, 1, 2, 2, 3, 3, 4, 4];
    let group = Group::default();
    // A placeholder names a block that the engine has named before.
    let placeholder = |medium, hash| {
        let event = Stored {
            block_size: 0,
            ..stored(None, &[hash], &[])
        };
        store_in(medium, group, event)
    };
    index.apply(POD, &[store(None, &[1, 2, 3, 4], &tokens)]);
    index.apply(POD, &[1, 2, 3].map(|hash| placeholder(Medium::Cpu, hash)));
    index.apply(POD, &[placeholder(Medium::Storage, 4)]);
    index.apply(POD, &[remove(2), remove(3), remove(4)]);
    let expected = Cached {
        own: 2,
        cpu: 4,
        storage: 2,
        ..Cached::default()
    };
    assert_eq!(cached(&index, &tokens), expected);
    // What may be gone there is not waited for.
    let doubted = Index::default();
    doubted.restore(POD, &index.picture(POD).expect("a picture"));
    doubted.doubt(POD);
    assert_eq!(
        (
            cached(&doubted, &tokens).cpu,
            cached(&doubted, &tokens).unsure
        ),
        (0, 2)
    );
    // An engine that clears its cache keeps what it has offloaded.
    index.apply(POD, &[BlockEvent::Cleared]);
    let expected = Cached {
        own: 0,
        cpu: 6,
        ..expected
    };
    assert_eq!(cached(&index, &tokens), expected);
    assert_eq!(index.physical(POD), 0);
}

#[test]
fn a_hash_that_covers_what_follows_is_shared_only_there() {
    let index = Index::default();
    let event = Stored {
        lookahead: vec![vec![2], vec![3]],
        ..stored(None, &[1, 2], &[1, 1, 2, 2])
    };
    index.apply(POD, &[BlockEvent::Stored(event)]);
    let own = |tokens: &[TokenId]| index.cached_at(POD, tokens, &Identity::default()).own;
    assert_eq!(own(&[1, 1, 2, 2, 3]), 4);
    assert_eq!(
        own(&[1, 1, 2, 2, 9]),
        2,
        "the second block was drafted on another token"
    );
    assert_eq!(
        own(&[1, 1, 2, 2]),
        2,
        "what follows the second is not known"
    );
}

#[test]
fn orphans_are_claimed_once_their_parent_appears() {
    let index = Index::default();
    let applied = index.apply(
        POD,
        &[store(Some(2), &[3], &[3, 3]), store(Some(3), &[4], &[4, 4])],
    );
    assert_eq!(applied.orphans, 2);
    let tokens = [1, 1, 2, 2, 3, 3, 4, 4];
    index.apply(POD, &[store(None, &[1, 2], &tokens[..4])]);
    assert_eq!(blocks(&index, &tokens), 4);
    index.apply(POD, &[remove(3)]);
    assert_eq!(blocks(&index, &tokens), 2);
    index.forget(POD);
    assert_eq!(index.size(), Size::default());
}

#[test]
fn what_is_unsure_is_told_apart_until_it_is_heard_of_again() {
    let index = Index::default();
    let tokens = [1, 1, 2, 2, 3, 3];
    index.apply(
        POD,
        &[store(None, &[1, 2, 3], &tokens), store(None, &[1], &[1, 1])],
    );
    index.doubt(POD);
    let found = |index: &Index| (cached(index, &tokens).own, cached(index, &tokens).unsure);
    assert_eq!(found(&index), (6, 6));
    index.apply(POD, &[store(None, &[1], &[1, 1])]);
    assert_eq!(found(&index), (6, 4));
    assert_eq!(
        index.physical(POD),
        3,
        "of two copies before the gap nobody knows"
    );
    index.apply(POD, &[remove(2)]);
    assert_eq!(found(&index), (2, 0));
    index.drop_unsure(POD);
    assert_eq!((index.blocks_of(POD), index.physical(POD)), (1, 1));
}

#[test]
fn what_is_unsure_is_given_up_once_as_much_was_stored() {
    let index = Index::default();
    index.apply(POD, &[store(None, &[1, 2], &[1, 1, 2, 2])]);
    index.doubt(POD);
    index.apply(
        POD,
        &[store(None, &[3], &[3, 3]), store(None, &[4], &[4, 4])],
    );
    assert_eq!(blocks(&index, &[1, 1, 2, 2]), 2);
    index.apply(POD, &[store(None, &[5], &[5, 5])]);
    assert_eq!(blocks(&index, &[1, 1, 2, 2]), 0);
}

#[test]
fn a_picture_is_restored_as_it_was_but_for_what_is_unsure() {
    let index = Index::default();
    let tokens = [1, 1, 2, 2];
    let window = store_in(Medium::Gpu, WINDOW, stored(None, &[1, 2], &tokens));
    index.apply(POD, &[store(None, &[1, 2], &tokens), window]);
    let picture = index.picture(POD).expect("a picture");
    let other = Index::default();
    other.restore(POD, &picture);
    assert_eq!(other.digest(POD), index.digest(POD));
    assert_eq!(cached(&other, &tokens), cached(&index, &tokens));
    index.doubt(POD);
    let picture = index.picture(POD).expect("a picture");
    assert!(picture.caches.iter().all(|cache| cache.copies.is_empty()));
}

fn expected(index: &Arc<Index>, tokens: &[TokenId]) -> Option<Expectation> {
    let (tokens, identity) = (prompt(tokens), Identity::default());
    let mut chains = Chains::new(&tokens, &identity);
    chains.of(2.into());
    index.expect(POD, &chains)
}

#[test]
fn a_prompt_counts_where_it_was_placed_until_events_tell_of_it() {
    let index = Arc::new(Index::default());
    let tokens = [1, 1, 2, 2, 3, 3];
    let found = || {
        let cached = cached(&index, &tokens);
        (cached.own, cached.expected)
    };
    assert!(
        expected(&index, &tokens).is_none(),
        "how it cuts prompts is not known"
    );
    index.apply(POD, &[store(None, &[9], &[9, 9])]);
    let (one, two) = (expected(&index, &tokens[..4]), expected(&index, &tokens));
    assert_eq!(found(), (0, 6));
    index.apply(POD, &[store(None, &[1], &[1, 1])]);
    assert_eq!(found(), (2, 4), "what is held is not expected");
    drop(two);
    assert_eq!(found(), (2, 2), "the second failed");
    one.expect("expected").answered();
    assert_eq!(found(), (2, 2), "its last events are on their way");
    index.apply(POD, &[]);
    index.apply(POD, &[store(Some(1), &[2], &[2, 2])]);
    assert_eq!(found(), (4, 0));
    index.apply(POD, &[remove(2)]);
    assert_eq!(found(), (2, 0), "what was told is not expected any more");
    index.shared.forest.assert_sound();
}

proptest! {
    /// However prompts begin alike, and in whatever order they end.
    #[test]
    fn what_is_expected_is_the_most_that_one_of_the_prompts_shares(
        steps in prop::collection::vec((prop::collection::vec(0u32..3, 1..9), 0usize..6), 1..40),
    ) {
        let index = Arc::new(Index::default());
        index.apply(POD, &[store(None, &[9], &[9, 9])]);
        let mut open: Vec<(Vec<TokenId>, Expectation)> = Vec::new();
        for (blocks, ends) in steps {
            let tokens: Vec<TokenId> = blocks.iter().flat_map(|block| [*block, *block]).collect();
            if let Some(expectation) = expected(&index, &tokens) {
                open.push((tokens.clone(), expectation));
            }
            for _ in 0..ends.saturating_sub(2).min(open.len()) {
                open.swap_remove(ends % open.len());
            }
            let alike = |(other, _): &(Vec<TokenId>, Expectation)| {
                let both = other.chunks(2).zip(tokens.chunks(2));
                2 * both.take_while(|(one, other)| one == other).count() as u64
            };
            let most = open.iter().map(alike).max().unwrap_or(0);
            prop_assert_eq!(cached(&index, &tokens).expected, most);
            index.shared.forest.assert_sound();
        }
        drop(open);
        prop_assert_eq!(index.size().blocks, 1, "of what was expected nothing is left");
    }
}

#[test]
fn expectations_end_where_the_room_does_and_go_on_once_there_is_some() {
    let limit = 1 << 18;
    let index = Arc::new(Index::default().limited(limit));
    index.apply(POD, &[store(None, &[9], &[9, 9])]);
    let prompts = (0..1_000).map_while(|number| expected(&index, &session(number)));
    let prompts: Vec<Expectation> = prompts.collect();
    let taken = index.bytes();
    assert!((100..1_000).contains(&prompts.len()), "{}", prompts.len());
    assert!(taken < limit + (64 << 10), "{taken} bytes");
    drop(prompts);
    assert!(index.bytes() < taken, "which is a look");
    assert!(expected(&index, &session(0)).is_some());
}

#[test]
fn a_request_that_ends_while_the_book_is_locked_is_seen_by_the_next_batch() {
    let index = Arc::new(Index::default());
    index.apply(POD, &[store(None, &[9], &[9, 9])]);
    let (tokens, book) = ([1, 1, 2, 2], index.book(POD).expect("a book"));
    let (one, two) = (expected(&index, &tokens), expected(&index, &tokens[..2]));
    {
        let _locked = book.lock();
        drop(one);
        two.expect("expected").answered();
    }
    assert_eq!(cached(&index, &tokens).expected, 4, "nobody has looked yet");
    index.apply(POD, &[]);
    assert_eq!(cached(&index, &tokens).expected, 2, "the first failed");
    index.apply(POD, &[]);
    assert_eq!(cached(&index, &tokens).expected, 0);
}

#[test]
fn what_was_expected_of_a_process_goes_with_it() {
    let index = Arc::new(Index::default());
    index.apply(POD, &[store(None, &[9], &[9, 9])]);
    let left = expected(&index, &[1, 1, 2, 2]);
    index.empty(POD);
    index.apply(POD, &[store(None, &[9], &[9, 9])]);
    let other = expected(&index, &[3, 3]);
    assert_eq!(cached(&index, &[1, 1]).expected, 0);
    // Of one that ended late nothing is withdrawn twice.
    drop(left);
    assert_eq!(cached(&index, &[3, 3]).expected, 2);
    drop(other);
    index.forget(POD);
    assert_eq!(index.size(), Size::default());
}

/// Which shows itself piece by piece.
#[test]
fn a_long_store_is_worth_what_short_ones_are() {
    let (long, short) = (Index::default(), Index::default());
    let tokens: Vec<TokenId> = (0..40).collect();
    let names: Vec<u64> = (1..=20).collect();
    let parts = |at: usize| {
        let parent = at.checked_sub(1).map(|before| names[before]);
        store(parent, &names[at..=at], &tokens[2 * at..2 * at + 2])
    };
    short.apply(POD, &(0..20).map(parts).collect::<Vec<_>>());
    // Behind nothing, behind a block, and again.
    let rest = store(Some(names[6]), &names[7..], &tokens[14..]);
    long.apply(
        POD,
        &[store(None, &names[..7], &tokens[..14]), rest.clone()],
    );
    assert_eq!(long.digest(POD), short.digest(POD));
    assert_eq!(blocks(&long, &tokens), 20);
    long.apply(POD, &[rest]);
    assert_eq!(long.physical(POD), 33);
    let hashes = names[7..].iter().copied().map(EngineHash).collect();
    let (medium, group) = (Medium::Gpu, Group::default());
    let gone = BlockEvent::Removed {
        hashes,
        medium,
        group,
    };
    long.apply(POD, &[gone.clone(), gone]);
    assert_eq!((blocks(&long, &tokens), long.physical(POD)), (7, 7));
    long.shared.forest.assert_sound();
}

/// Piece by piece too: what is named stays though others let go of it meanwhile.
#[test]
fn long_orphans_are_named_while_others_come_and_go() {
    let index = Index::default();
    let tokens: Vec<TokenId> = (0..80).collect();
    let names: Vec<u64> = (1..=40).collect();
    let rest = store(Some(names[0]), &names[1..20], &tokens[2..40]);
    let last = store(Some(names[19]), &names[20..], &tokens[40..]);
    let first = store(None, &names[..1], &tokens[..2]);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            for _ in 0..200 {
                index.apply(EndpointId(9), &[store(None, &names, &tokens)]);
                index.empty(EndpointId(9));
            }
        });
        while !other.is_finished() {
            index.apply(POD, &[rest.clone(), last.clone(), remove(names[19])]);
            index.apply(POD, &[remove(names[5]), first.clone()]);
            assert_eq!(blocks(&index, &tokens), 5, "up to the first that is gone");
            let filled = store(Some(names[4]), &names[5..6], &tokens[10..12]);
            index.apply(POD, &[filled]);
            assert_eq!(blocks(&index, &tokens), 19);
            let filled = store(Some(names[18]), &names[19..20], &tokens[38..40]);
            index.apply(POD, &[filled]);
            assert_eq!(blocks(&index, &tokens), 40);
            index.empty(POD);
        }
    });
    index.shared.forest.assert_sound();
    assert_eq!(index.size(), Size::default());
}

/// A prompt of its own behind one that all begin with: 64 blocks and 64.
fn session(number: u32) -> Vec<TokenId> {
    let own = (0..64).flat_map(|at| [1000 + number, at]);
    (0..64).flat_map(|at| [7, at]).chain(own).collect()
}

/// Under names that no other session's blocks have, but for the shared ones.
fn store_session(index: &Index, pod: EndpointId, number: u32) {
    let name = |at: u64| match at {
        0..64 => 1 + at,
        at => u64::from(number + 1) << 32 | at,
    };
    let (tokens, names): (_, Vec<u64>) = (session(number), (0..128).map(name).collect());
    if index.blocks_of(pod) == 0 {
        index.apply(pod, &[store(None, &names[..64], &tokens[..128])]);
    }
    index.apply(pod, &[store(Some(names[63]), &names[64..], &tokens[128..])]);
}

#[test]
fn past_its_limit_the_prompts_left_alone_longest_go_first() {
    let (limit, other) = (1 << 20, EndpointId(2));
    let index = Index::default().limited(limit);
    let held = |pod: EndpointId, number: u32| {
        let tokens = prompt(&session(number));
        index.cached_at(pod, &tokens, &Identity::default()).own / 2
    };
    (0..2_000).for_each(|number| store_session(&index, POD, number));
    store_session(&index, other, 5_000);
    // What comes between two looks is not counted yet.
    assert!(index.bytes() < limit + (100 << 10), "{}", index.bytes());
    index.shared.forest.assert_sound();
    let kept = (0..2_000).filter(|number| held(POD, *number) == 128);
    let kept: Vec<u32> = kept.collect();
    assert!(kept.len() > 100, "{} sessions are left", kept.len());
    // Of those stored between two looks any may go first.
    let between = room::LOOK as usize / 64;
    let left_out = 2_000 - kept[0] as usize - kept.len();
    assert!(left_out <= between, "the oldest are gone, and {left_out}");
    assert_eq!(held(POD, 0), 64, "what all begin with stays");
    assert_eq!((index.gave_up(POD), index.gave_up(other)), (true, false));
    assert_eq!(index.given_up(), (64 * 2_001 - index.blocks_of(POD)) as u64);
    // An engine that clears its cache is known whole again.
    index.apply(POD, &[BlockEvent::Cleared]);
    assert!(!index.gave_up(POD));
    assert_eq!(held(other, 5_000), 128);
}

#[test]
fn pictures_in_nobodys_prompts_are_bounded_too() {
    let index = Index::default().limited(1 << 20);
    for batch in 0..100u64 {
        store_orphans(&index, POD, batch);
        assert!(index.bytes() < 2 << 20, "{} bytes", index.bytes());
    }
    assert!(index.gave_up(POD));
}

/// Stores blocks whose parents were never seen: so many that the memory is looked at after them.
fn store_orphans(index: &Index, pod: EndpointId, batch: u64) {
    let orphan = |at: u64| store(Some(1 << 40 | at), &[batch << 20 | at], &[1, 2]);
    let events: Vec<BlockEvent> = (0..u64::from(room::LOOK)).map(orphan).collect();
    index.apply(pod, &events);
}

#[test]
fn a_picture_that_names_nothing_goes_before_those_that_do() {
    let (limit, other) = (2 << 20, EndpointId(2));
    let index = Index::default().limited(limit);
    let long = vec![vec![ExtraKey::Text("x".repeat(4 << 20))]];
    let waiting = Stored {
        extra_keys: Some(long),
        ..stored(Some(9), &[1], &[1, 1])
    };
    index.apply(POD, &[BlockEvent::Stored(waiting)]);
    index.apply(POD, &[remove(1)]);
    assert_eq!(index.blocks_of(POD), 0);
    store_orphans(&index, other, 0);
    assert!(index.bytes() < limit, "{} bytes", index.bytes());
    assert_eq!(index.blocks_of(other), room::LOOK as usize);
    assert_eq!((index.gave_up(POD), index.gave_up(other)), (false, false));
    assert_eq!(index.given_up(), 0);
}

#[test]
fn what_is_going_already_costs_no_picture_that_lives() {
    let index = Index::default().limited(1 << 20);
    // An endpoint's blocks, which leave the trees at this moment.
    index
        .shared
        .room
        .going
        .fetch_add(100_000, Ordering::Relaxed);
    (0..3).for_each(|batch| store_orphans(&index, POD, batch));
    assert!(index.bytes() > 1 << 20, "{} bytes", index.bytes());
    assert_eq!(index.blocks_of(POD), 3 * room::LOOK as usize);
    index
        .shared
        .room
        .going
        .fetch_sub(100_000, Ordering::Relaxed);
    store_orphans(&index, POD, 3);
    assert_eq!((index.blocks_of(POD), index.gave_up(POD)), (0, true));
}

#[test]
fn whoever_is_forgotten_meanwhile_is_passed_over() {
    let index = Index::default().limited(1 << 20);
    let other = EndpointId(2);
    (0..2).for_each(|batch| store_orphans(&index, other, batch));
    // Its book was looked up before it went.
    index.book(other).expect("a book").lock().closed = true;
    store_orphans(&index, POD, 2);
    assert_eq!((index.blocks_of(POD), index.given_up()), (0, 1024));
    assert_eq!(index.blocks_of(other), 2 * room::LOOK as usize);
}

#[test]
fn a_hash_that_means_another_prompt_after_a_gap_harms_nobody() {
    for other in 2..40 {
        let index = Index::default();
        index.apply(POD, &[store(None, &[1], &[1, 1])]);
        index.doubt(POD);
        index.apply(POD, &[store(None, &[1, 2], &[other, other, 7, 7])]);
        index.shared.forest.assert_sound();
        index.apply(POD, &[remove(1), remove(2)]);
        index.shared.forest.assert_sound();
        assert_eq!(index.size(), Size::default());
    }
}

#[test]
fn a_picture_of_nonsense_harms_nobody() {
    let index = Index::default();
    let honest = EndpointId(2);
    let tokens = [1, 1, 2, 2, 3, 3];
    index.apply(honest, &[store(None, &[1, 2, 3], &tokens)]);
    let held = || {
        index
            .cached_at(honest, &prompt(&tokens), &Identity::default())
            .own
    };
    let key = |at: usize| chain(&tokens).keys[at];
    let of = |rule, copies| CachePicture {
        place: Place::OWN,
        rule,
        shape: Some(2.into()),
        copies,
    };
    let copies = || {
        (0..9)
            .map(|at| (u64::from(at), Some(at), u32::MAX))
            .collect()
    };
    // Keys of an honest prompt in the middle of a row, before themselves, and behind nothing.
    let [one, two, three] = [key(0), key(1), key(2)];
    let rows = [
        vec![(0, two), (1, one), (1, three), (1, two)],
        vec![(0, three), (1, three), (1, three), (9, one), (1, two)],
        vec![
            (0, one),
            (1, three),
            (1, two),
            (0, two),
            (1, one),
            (2, three),
        ],
    ];
    for (blocks, rule) in rows
        .into_iter()
        .flat_map(|rows| [Rule::All, Rule::Last, Rule::Unknown].map(|rule| (rows.clone(), rule)))
    {
        let picture = Picture {
            shows_salt: None,
            blocks,
            caches: vec![of(rule, copies()), of(Rule::All, copies())],
        };
        index.restore(POD, &picture);
        for (parent, token) in [(0, 1), (1, 2), (2, 3), (3, 1)] {
            index.apply(POD, &[store(Some(parent), &[50 + parent], &[token, token])]);
        }
        index.picture(POD).expect("a picture");
        index.apply(POD, &(0..60).map(remove).collect::<Vec<_>>());
        assert_eq!(held(), 6);
        index.forget(POD);
        index.shared.forest.assert_sound();
        assert_eq!(
            index.size(),
            Size {
                blocks: 3,
                pairs: 3
            }
        );
    }
}

/// Keeps every copy by name: what the index must equal, written to be obviously right.
#[derive(Default)]
struct Naive {
    copies: BTreeMap<(u32, u64), (Vec<TokenId>, u32)>,
}

impl Naive {
    /// Whole prefixes stand for themselves, so that "held" is a comparison of token lists.
    fn overlap(&self, endpoint: u32, tokens: &[TokenId]) -> u32 {
        let holds = |prefix: &[TokenId]| {
            self.copies
                .iter()
                .any(|((pod, _), (held, _))| *pod == endpoint && held == prefix)
        };
        (1..)
            .take_while(|n| 2 * n <= tokens.len() && holds(&tokens[..2 * n]))
            .count() as u32
    }
}

#[derive(Debug, Clone)]
enum Act {
    Store {
        pod: u32,
        tokens: Vec<TokenId>,
        from: usize,
    },
    Remove {
        pod: u32,
        tokens: Vec<TokenId>,
    },
    Clear {
        pod: u32,
    },
    Forget {
        pod: u32,
    },
}

/// Two token values and at most four blocks: prompts meet often.
fn tokens() -> impl Strategy<Value = Vec<TokenId>> {
    prop::collection::vec(0u32..2, 1..=4)
        .prop_map(|blocks| blocks.iter().flat_map(|b| [*b, *b]).collect())
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0u32..3, tokens(), 0usize..4).prop_map(|(pod, tokens, from)| Act::Store { pod, tokens, from }),
        4 => (0u32..3, tokens()).prop_map(|(pod, tokens)| Act::Remove { pod, tokens }),
        1 => (0u32..3).prop_map(|pod| Act::Clear { pod }),
        1 => (0u32..3).prop_map(|pod| Act::Forget { pod }),
    ]
}

/// The engine's name of a prefix: injective, and different on every pod.
fn name(pod: u32, prefix: &[TokenId]) -> u64 {
    prefix.iter().fold(u64::from(pod) + 7, |name, token| {
        name * 3 + u64::from(*token) + 1
    })
}

proptest! {
    /// Under any order of stores (duplicates and re-parented holes included), removals, clears
    /// and forgets, the index answers as a list of copies does.
    #[test]
    fn the_index_equals_a_list_of_copies(acts in prop::collection::vec(act(), 0..60), ask in tokens()) {
        let (index, mut naive) = (Index::default(), Naive::default());
        for act in acts {
            match act {
                Act::Store { pod, tokens, from } => {
                    let from = from.min(tokens.len() / 2 - 1);
                    // An engine only ever builds on a parent that it holds.
                    let parent = &tokens[..2 * from];
                    if from > 0 && !naive.copies.contains_key(&(pod, name(pod, parent))) {
                        continue;
                    }
                    let prefixes: Vec<&[TokenId]> =
                        (from + 1..=tokens.len() / 2).map(|n| &tokens[..2 * n]).collect();
                    let hashes: Vec<u64> = prefixes.iter().map(|prefix| name(pod, prefix)).collect();
                    let parent = (from > 0).then(|| name(pod, parent));
                    index.apply(EndpointId(pod), &[store(parent, &hashes, &tokens[2 * from..])]);
                    for (prefix, hash) in prefixes.iter().zip(hashes) {
                        naive.copies.entry((pod, hash)).or_insert((prefix.to_vec(), 0)).1 += 1;
                    }
                }
                Act::Remove { pod, tokens } => {
                    let hash = name(pod, &tokens);
                    index.apply(EndpointId(pod), &[remove(hash)]);
                    if let Some(copies) = naive.copies.get_mut(&(pod, hash)) {
                        copies.1 -= 1;
                        if copies.1 == 0 {
                            naive.copies.remove(&(pod, hash));
                        }
                    }
                }
                Act::Clear { pod } => {
                    index.apply(EndpointId(pod), &[BlockEvent::Cleared]);
                    naive.copies.retain(|(of, _), _| *of != pod);
                }
                Act::Forget { pod } => {
                    index.forget(EndpointId(pod));
                    naive.copies.retain(|(of, _), _| *of != pod);
                }
            }
        }
        index.shared.forest.assert_sound();
        let (identity, prompt) = (Identity::default(), prompt(&ask));
        let mut chains = Chains::new(&prompt, &identity);
        let found = index.cached(&[0, 1, 2].map(EndpointId), &mut chains);
        for (pod, found) in (0..3).zip(found) {
            prop_assert_eq!(found.own, 2 * u64::from(naive.overlap(pod, &ask)));
            prop_assert_eq!(found.unsure, 0);
        }
        prop_assert_eq!(index.size().pairs, naive.copies.len());
    }
}

#[test]
fn shared_prefixes_are_told_with_their_holders_and_what_stands_behind() {
    let (index, other) = (Index::default(), EndpointId(2));
    // A system prompt of two blocks, from which two chats go on at one pod and one at another; and a prompt that
    // nobody shares, longer than all of these.
    let system = || store(None, &[1, 2], &[1, 1, 2, 2]);
    index.apply(
        POD,
        &[
            system(),
            store(Some(2), &[3, 4, 5], &[3, 3, 3, 4, 3, 5]),
            store(Some(2), &[6], &[6, 6]),
            store(None, &[20, 21, 22, 23, 24, 25], &[9; 12]),
        ],
    );
    index.apply(other, &[system(), store(Some(2), &[3, 4], &[3, 3, 3, 4])]);
    let [shared, chat] = &index.prefixes(10)[..] else {
        panic!("{:?}", index.prefixes(10));
    };
    assert_eq!((shared.parent, shared.before, shared.blocks), (None, 0, 2));
    assert_eq!((shared.ends, shared.pairs), (2, 2 * 2 + 3 + 2 + 1));
    let sorted = |prefix: &Prefix| {
        let mut holders = prefix.holders.clone();
        holders.sort_unstable();
        holders
    };
    assert_eq!(sorted(shared), [(POD, 2), (other, 2)]);
    assert_eq!((chat.parent, chat.before, chat.blocks), (Some(0), 2, 3));
    assert_eq!(sorted(chat), [(POD, 3), (other, 2)]);
    let whole = chain(&[1, 1, 2, 2, 3, 3, 3, 4, 3, 5]);
    assert_eq!(whole.keys.last(), Some(&chat.key));
    assert_eq!(index.prefixes(1).len(), 1, "the largest");
    index.forget(POD);
    assert_eq!(
        index.prefixes(10),
        [],
        "one holds all, and no two prompts part"
    );
}

proptest! {
    /// Of what is shared, whoever is told of has the one that it goes on from before it, which holds as much and
    /// more.
    #[test]
    fn a_prefix_follows_the_one_that_it_goes_on_from(
        prompts in prop::collection::vec((1u32..4, prop::collection::vec(0u8..3, 1..8)), 1..40),
        limit in 1usize..20,
    ) {
        let index = Index::default();
        for (endpoint, branches) in prompts {
            let tokens: Vec<TokenId> = branches.iter().flat_map(|at| [TokenId::from(*at); 2]).collect();
            let names = (1..=branches.len()).map(|end| xxh3_64_with_seed(&branches[..end], 0));
            let names: Vec<u64> = names.collect();
            index.apply(EndpointId(endpoint), &[store(None, &names, &tokens)]);
        }
        let told = index.prefixes(limit);
        prop_assert!(told.len() <= limit);
        for (at, prefix) in told.iter().enumerate() {
            prop_assert!(prefix.holders.len() > 1 || prefix.ends > 1);
            prop_assert!(prefix.holders.iter().all(|(_, len)| *len <= prefix.blocks));
            let Some(parent) = prefix.parent else { continue };
            prop_assert!(parent < at && told[parent].pairs > prefix.pairs);
            prop_assert_eq!(prefix.before, told[parent].before + told[parent].blocks);
            for (holder, _) in &prefix.holders {
                prop_assert!(told[parent].holders.contains(&(*holder, told[parent].blocks)));
            }
        }
    }
}
