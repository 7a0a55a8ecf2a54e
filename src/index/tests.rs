use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::blocks::{EngineHash, ExtraKey, Group, Identity, Medium, Stored, TokenId};

const POD: EndpointId = EndpointId(1);

fn stored(parent: Option<u64>, hashes: &[u64], tokens: &[TokenId]) -> Stored {
    Stored {
        hashes: hashes.iter().copied().map(EngineHash).collect(),
        parent: parent.map(EngineHash),
        tokens: tokens.to_vec(),
        block_size: 2,
        adapter: None,
        adapter_id: None,
        medium: Medium::Gpu,
        group: Group::default(),
        extra_keys: None,
        lookahead: false,
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

fn chain(tokens: &[TokenId]) -> Chain {
    let mut with_last = tokens.to_vec();
    with_last.push(0);
    Chain::of_prompt(&with_last, 2, &Identity::default())
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
    assert_eq!(index.overlap(&chain(&[1, 2, 3, 4])), [(POD, 2)]);
    index.apply(POD, &[remove(11)]);
    assert_eq!(index.overlap(&chain(&[1, 2, 3, 4])), [(POD, 1)]);
}

#[test]
fn a_hole_ends_the_overlap_and_filling_it_restores_the_rest() {
    let index = Index::default();
    index.apply(
        POD,
        &[store(None, &[1, 2, 3], &[1, 1, 2, 2, 3, 3]), remove(2)],
    );
    assert_eq!(index.overlap(&chain(&[1, 1, 2, 2, 3, 3])), [(POD, 1)]);
    index.apply(POD, &[store(Some(1), &[2], &[2, 2])]);
    assert_eq!(index.overlap(&chain(&[1, 1, 2, 2, 3, 3])), [(POD, 3)]);
}

#[test]
fn orphans_are_counted_but_never_claimed() {
    let index = Index::default();
    let applied = index.apply(POD, &[store(Some(99), &[5], &[1, 2])]);
    assert_eq!((applied.stored, applied.orphans), (1, 1));
    assert_eq!(index.overlap(&chain(&[1, 2])), []);
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
        index.overlap(&Chain::of_prompt(&[1, 2, 0], 2, &identity))
    };
    assert_eq!((of("chat"), of("sql")), (vec![(POD, 1)], vec![]));
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
    assert_eq!(
        index.overlap(&Chain::of_prompt(&[1, 1, 2, 2, 0], 2, &identity)),
        [(POD, 2)]
    );
    assert_eq!(index.overlap(&chain(&[1, 1, 2, 2])), []);
}

#[test]
fn forgetting_leaves_nothing_behind() {
    let index = Index::default();
    index.apply(POD, &[store(None, &[1, 2], &[1, 1, 2, 2])]);
    index.forget(POD);
    assert_eq!(index.size(), Size::default());
    assert_eq!(index.block_size(POD), None);
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
        let found: BTreeMap<_, _> = index.overlap(&chain(&ask)).into_iter().collect();
        for pod in 0..3 {
            let blocks = found.get(&EndpointId(pod)).copied().unwrap_or(0);
            prop_assert_eq!(blocks, naive.overlap(pod, &ask));
        }
        prop_assert_eq!(index.size().pairs, naive.copies.len());
    }
}
