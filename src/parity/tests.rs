use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::blocks::{BlockEvent, Chains, EngineHash, ExtraKey, Group, Medium, Stored};

const POD: EndpointId = EndpointId(1);
const SIZE: usize = 4;

/// One pod, its index and its watches.
struct World {
    parity: Arc<Parity>,
    index: Index,
    model: Arc<str>,
}

impl World {
    fn new() -> Self {
        let model: Arc<str> = "qwen".into();
        let parity = Parity::of([model.clone()]);
        let world = Self {
            index: parity.index(),
            parity,
            model,
        };
        // The block size is known from the first store on.
        world.apply(&[store(None, &[90, 91, 92, 93])]);
        world
    }

    fn apply(&self, events: &[BlockEvent]) {
        self.index.apply(POD, events);
    }

    fn open_as(&self, tokens: &[TokenId], identity: &Identity, trust: Trust) -> Option<Watch> {
        let mut prompt = Chains::new(tokens, identity);
        let shape = self.index.shape(POD);
        let placed = Placed {
            request: "r",
            model: &self.model,
            tokens: &Arc::new(tokens.to_vec()),
            identity,
            chain: shape.map(|shape| prompt.of(shape)),
            cached_tokens: self.cached_tokens(tokens, identity),
        };
        self.parity.open(&self.index, POD, &placed, || trust)
    }

    fn cached_tokens(&self, tokens: &[TokenId], identity: &Identity) -> u64 {
        self.index.cached_at(POD, tokens, identity).tokens()
    }

    fn open(&self, tokens: &[TokenId]) -> Option<Watch> {
        self.open_as(tokens, &Identity::default(), Trust::Live)
    }

    /// What is judged with a batch that the engine made, and we heard, at this time.
    fn heard(&self, at: f64) -> Vec<Verdict> {
        self.heard_at(at, at)
    }

    fn heard_at(&self, timestamp: f64, now_s: f64) -> Vec<Verdict> {
        let heard = Heard {
            timestamp: Some(timestamp),
            now_s,
            unbroken: true,
        };
        let judged = self.parity.heard(POD, heard).into_iter();
        judged.map(|judgement| judgement.verdict).collect()
    }

    /// What a request comes to whose answer ended, when the server stored these.
    fn after(&self, tokens: &[TokenId], stores: &[BlockEvent]) -> Vec<Verdict> {
        let watch = self.open(tokens).expect("a watch");
        self.apply(stores);
        watch.ended(100.0);
        self.heard(200.0)
    }
}

/// A hash that only the tokens decide: the same prefix has the same name.
fn hash(prefix: &[TokenId]) -> EngineHash {
    let bytes: Vec<u8> = prefix.iter().flat_map(|id| id.to_le_bytes()).collect();
    EngineHash(xxh3_64(&bytes))
}

/// A store of the blocks of `tokens` that follow `parent`.
fn store(parent: Option<&[TokenId]>, tokens: &[TokenId]) -> BlockEvent {
    let before = parent.unwrap_or_default();
    let whole = [before, tokens].concat();
    let ends = (before.len() + SIZE..=whole.len()).step_by(SIZE);
    let hashes = ends.map(|end| hash(&whole[..end])).collect();
    BlockEvent::Stored(Stored::plain(parent.map(hash), hashes, tokens.to_vec()))
}

const PROMPT: [TokenId; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];

/// The prompt with one token changed.
fn but(position: usize) -> Vec<TokenId> {
    let mut tokens = PROMPT[..12].to_vec();
    tokens[position] = 77;
    tokens
}

#[test]
fn a_prompt_agrees_as_soon_as_its_last_full_block_is_stored() {
    let world = World::new();
    let _watch = world.open(&PROMPT).expect("a watch");
    world.apply(&[store(None, &PROMPT[..8])]);
    assert_eq!(world.heard(0.0), [], "a chunk of it");
    world.apply(&[store(Some(&PROMPT[..8]), &PROMPT[8..12])]);
    assert_eq!(world.heard(0.0), [Verdict::Agree]);
}

#[test]
fn whoever_stores_the_block_says_so_for_all() {
    let world = World::new();
    let sibling = [&PROMPT[..12], &[70, 71, 72, 73]].concat();
    let watches = [world.open(&PROMPT), world.open(&PROMPT)];
    assert!(watches.iter().all(Option::is_some));
    world.apply(&[store(None, &sibling)]);
    assert_eq!(world.heard(0.0), [Verdict::Agree; 2]);
}

#[test]
fn a_prompt_of_whole_blocks_is_compared_to_its_end() {
    let world = World::new();
    let at = |position| [Verdict::Differ(Fork::Token(position))];
    assert_eq!(world.after(&PROMPT[..12], &[store(None, &but(11))]), at(11));
}

#[test]
fn the_first_differing_position_is_named() {
    for position in [0, 3, 4, 9, 11] {
        let differ = [Verdict::Differ(Fork::Token(position))];
        let world = World::new();
        assert_eq!(world.after(&PROMPT, &[store(None, &but(position))]), differ);
        // The same where the server held what is equal.
        let world = World::new();
        let (equal, theirs) = (position / SIZE * SIZE, but(position));
        if equal > 0 {
            world.apply(&[store(None, &PROMPT[..equal])]);
            let stores = [store(Some(&PROMPT[..equal]), &theirs[equal..])];
            assert_eq!(world.after(&PROMPT, &stores), differ, "{position}");
        }
    }
}

#[test]
fn shifted_tokens_differ_where_the_shift_begins() {
    let shifted = [&PROMPT[..5], &[50], &PROMPT[5..11]].concat();
    let differ = [Verdict::Differ(Fork::Token(5))];
    assert_eq!(
        World::new().after(&PROMPT, &[store(None, &shifted)]),
        differ
    );
}

#[test]
fn of_several_stores_the_one_that_shares_most_is_the_prompts_own() {
    let stores = [2, 10, 6].map(|position| store(None, &but(position)));
    let differ = [Verdict::Differ(Fork::Token(10))];
    assert_eq!(World::new().after(&PROMPT, &stores), differ);
}

#[test]
fn a_repeated_wrong_prompt_stores_nothing_and_differs_in_the_first_block_that_is_not_held() {
    let world = World::new();
    world.apply(&[store(None, &but(5))]);
    assert_eq!(world.after(&PROMPT, &[]), [Verdict::Differ(Fork::Block(4))]);
    // A sibling that parts earlier says nothing of this prompt.
    let sibling = store(None, &but(2));
    assert_eq!(
        world.after(&PROMPT, &[sibling]),
        [Verdict::Differ(Fork::Block(4))]
    );
}

#[test]
fn our_tokens_under_another_salt_or_adapter_are_told_apart_from_other_tokens() {
    let with = |change: fn(&mut Stored)| {
        let BlockEvent::Stored(mut stored) = store(None, &PROMPT[..12]) else {
            unreachable!("it is a store")
        };
        change(&mut stored);
        World::new().after(&PROMPT, &[BlockEvent::Stored(stored)])
    };
    let differ = [Verdict::Differ(Fork::Identity)];
    let salt = || vec![vec![ExtraKey::Text("tenant".into())]];
    assert_eq!(with(|stored| stored.adapter = Some("sql".into())), differ);
    let salted = with(|stored| stored.extra_keys = Some(vec![vec![ExtraKey::Text("t".into())]]));
    assert_eq!(salted, differ);
    let world = World::new();
    let identity = Identity {
        cache_salt: Some("tenant".into()),
        ..Identity::default()
    };
    let _watch = world.open_as(&PROMPT, &identity, Trust::Live);
    let BlockEvent::Stored(mut stored) = store(None, &PROMPT[..12]) else {
        unreachable!("it is a store")
    };
    stored.extra_keys = Some(salt());
    world.apply(&[BlockEvent::Stored(stored)]);
    assert_eq!(world.heard(0.0), [Verdict::Agree]);
}

#[test]
fn nothing_is_watched_that_could_not_be_judged() {
    let world = World::new();
    let plain = Identity::default();
    assert!(world.open(&PROMPT[..3]).is_none(), "no full block");
    for trust in [Trust::Learning, Trust::Doubtful, Trust::Silent] {
        assert!(world.open_as(&PROMPT, &plain, trust).is_none(), "{trust:?}");
    }
    world.apply(&[store(None, &PROMPT[..12])]);
    assert!(world.open(&PROMPT).is_none(), "held already");
    let silent = EndpointId(2);
    let placed = Placed {
        request: "r",
        model: &world.model,
        tokens: &Arc::new(PROMPT.to_vec()),
        identity: &plain,
        chain: None,
        cached_tokens: 0,
    };
    let unheard = world
        .parity
        .open(&world.index, silent, &placed, || Trust::Live);
    assert!(unheard.is_none(), "no block size");
    assert_eq!(world.parity.records()["qwen"], Record::default());
    assert_eq!(world.parity.open.load(Ordering::Acquire), 0);
}

#[test]
fn a_salt_is_not_watched_where_events_do_not_show_it() {
    let world = World::new();
    let BlockEvent::Stored(mut stored) = store(None, &[80, 81, 82, 83]) else {
        unreachable!("it is a store")
    };
    stored.extra_keys = None;
    world.apply(&[BlockEvent::Stored(stored)]);
    let salted = Identity {
        cache_salt: Some("tenant".into()),
        ..Identity::default()
    };
    assert!(world.open_as(&PROMPT, &salted, Trust::Live).is_none());
    assert!(world.open(&PROMPT).is_some());
}

#[test]
fn a_store_that_comes_while_the_watch_opens_is_not_missed() {
    let world = World::new();
    let placed = Placed {
        request: "r",
        model: &world.model,
        tokens: &Arc::new(PROMPT.to_vec()),
        identity: &Identity::default(),
        chain: None,
        cached_tokens: 0,
    };
    let meanwhile = || {
        world.apply(&[store(None, &PROMPT[..12])]);
        Trust::Live
    };
    let watch = world.parity.open(&world.index, POD, &placed, meanwhile);
    watch.expect("a watch").ended(0.0);
    assert_eq!(world.heard(200.0), [Verdict::Agree]);
}

#[test]
fn an_answer_alone_is_no_proof_until_the_stream_has_passed_it() {
    let world = World::new();
    let watch = world.open(&PROMPT).expect("a watch");
    assert_eq!(world.heard(1000.0), [], "the answer has not ended");
    watch.ended(2000.0);
    let (soon, late) = (2000.0 + GRACE_S / 2.0, 2000.0 + GRACE_S);
    assert_eq!(world.heard_at(soon, soon), []);
    assert_eq!(world.heard_at(late, soon), [], "a clock ahead of ours");
    assert_eq!(world.heard_at(soon, late), [], "a stream behind");
    assert_eq!(
        world.heard_at(late, late),
        [Verdict::Differ(Fork::Block(0))],
        "and now it is"
    );
}

#[test]
fn an_engine_whose_clock_is_far_behind_is_not_judged() {
    let world = World::new();
    world.open(&PROMPT).expect("a watch").ended(2000.0);
    assert_eq!(world.heard_at(0.0, 2000.0 + PENDING_MAX_S), []);
    assert_eq!(
        world.heard_at(0.0, 2001.0 + PENDING_MAX_S),
        [Verdict::Unjudged]
    );
}

#[test]
fn a_broken_stream_or_a_cancelled_request_is_not_judged() {
    let world = World::new();
    let watch = world.open(&PROMPT).expect("a watch");
    let broken = Heard {
        timestamp: Some(0.0),
        now_s: 0.0,
        unbroken: false,
    };
    assert_eq!(
        world.parity.heard(POD, broken)[0].verdict,
        Verdict::Unjudged
    );
    watch.ended(0.0);
    drop(world.open(&PROMPT).expect("a watch"));
    let _lost = world.open(&PROMPT).expect("a watch");
    world.parity.lost(POD);
    assert_eq!(world.heard(1000.0), []);
    let record = world.parity.records()["qwen"];
    assert_eq!((record.agree, record.differ, record.unjudged), (0, 0, 3));
    assert_eq!(world.parity.state.lock().tokens, 0);
}

#[test]
fn a_request_that_was_cancelled_after_its_prompt_was_stored_has_agreed() {
    let world = World::new();
    let watch = world.open(&PROMPT).expect("a watch");
    world.apply(&[store(None, &PROMPT[..12])]);
    drop(watch);
    assert_eq!(world.heard(0.0), [Verdict::Agree]);
}

#[test]
fn past_the_limit_requests_are_a_sample() {
    let world = World::new();
    let prompt = |n: u32| PROMPT.map(|id| id + 100 * (n + 1));
    let mut open: Vec<_> = (0..40).filter_map(|n| world.open(&prompt(n))).collect();
    assert_eq!(open.len(), WATCHES_MAX);
    open.pop();
    assert!(world.open(&prompt(50)).is_some(), "room again");
    open.clear();
    let state = world.parity.state.lock();
    assert_eq!((state.tokens, state.waiting.len()), (0, 0));
}

#[test]
fn tokens_in_memory_are_bounded_over_all_endpoints() {
    let world = World::new();
    world.parity.state.lock().tokens = TOKENS_MAX - 13;
    assert!(world.open(&PROMPT).is_none());
    world.parity.state.lock().tokens = TOKENS_MAX - 14;
    assert!(world.open(&PROMPT).is_some());
}

#[test]
fn a_model_that_differs_is_doubtful_until_it_agrees_again() {
    let world = World::new();
    for n in 0..4 {
        assert!(!world.parity.is_doubtful("qwen"));
        let prompt = PROMPT.map(|id| id + 100 * (n + 1));
        world.after(&prompt, &[]);
    }
    assert!(world.parity.is_doubtful("qwen") && !world.parity.is_doubtful("sql"));
    for n in 10..38 {
        assert!(world.parity.is_doubtful("qwen"));
        let prompt = PROMPT.map(|id| id + 100 * (n + 1));
        world.after(&prompt, &[store(None, &prompt[..12])]);
    }
    assert!(!world.parity.is_doubtful("qwen"));
}

/// A server by vLLM's rules, and its stream, which we hear late.
#[derive(Default)]
struct Server {
    /// Copies by prefix.
    held: BTreeMap<Vec<TokenId>, u32>,
    stream: VecDeque<(f64, Vec<BlockEvent>)>,
}

impl Server {
    /// Computes a prompt: finds what it holds, stores the rest.
    fn run(&mut self, now: f64, prompt: &[TokenId]) {
        let hittable = (prompt.len() - 1) / SIZE;
        let holds = |blocks: &usize| self.held.contains_key(&prompt[..blocks * SIZE]);
        let hit = (1..=hittable).take_while(holds).count() * SIZE;
        let full = prompt.len() / SIZE * SIZE;
        for end in (hit + SIZE..=full).step_by(SIZE) {
            *self.held.entry(prompt[..end].to_vec()).or_default() += 1;
        }
        let parent = (hit > 0).then_some(&prompt[..hit]);
        let events = (full > hit).then(|| store(parent, &prompt[hit..full]));
        self.stream.push_back((now, events.into_iter().collect()));
    }

    /// Evicts one copy of a leaf.
    fn evict(&mut self, now: f64, nth: usize) {
        let is_leaf = |prefix: &Vec<TokenId>| {
            let mut after = self.held.range(prefix.clone()..).skip(1);
            !after
                .next()
                .is_some_and(|(next, _)| next.starts_with(prefix))
        };
        let leaves: Vec<_> = self.held.keys().filter(|p| is_leaf(p)).cloned().collect();
        let Some(leaf) = leaves.get(nth % leaves.len().max(1)) else {
            return;
        };
        let copies = self.held.get_mut(leaf).expect("held");
        *copies -= 1;
        if *copies == 0 {
            self.held.remove(leaf);
        }
        let removed = BlockEvent::Removed {
            hashes: vec![hash(leaf)],
            medium: Medium::Gpu,
            group: Group::default(),
        };
        self.stream.push_back((now, vec![removed]));
    }

    fn reset(&mut self, now: f64) {
        self.held.clear();
        self.stream.push_back((now, vec![BlockEvent::Cleared]));
    }
}

#[derive(Debug, Clone)]
enum Op {
    Place(Vec<TokenId>),
    Run,
    End,
    Evict(usize),
    Reset,
    Hear,
}

fn op() -> impl Strategy<Value = Op> {
    // Two tokens make many shared prefixes.
    let prompt = prop::collection::vec(0..2u32, SIZE..4 * SIZE);
    prop_oneof![
        4 => prompt.prop_map(Op::Place),
        4 => Just(Op::Run),
        4 => Just(Op::End),
        3 => any::<usize>().prop_map(Op::Evict),
        1 => Just(Op::Reset),
        6 => Just(Op::Hear),
    ]
}

proptest! {
    /// A server that computes prompts as we read them is never found to differ, however late we
    /// hear of it and whatever it evicts and computes in between.
    #[test]
    fn a_server_that_computes_what_we_read_always_agrees(ops in prop::collection::vec(op(), 1..200)) {
        let (world, mut server) = (World::new(), Server::default());
        let (mut placed, mut running) = (VecDeque::new(), VecDeque::new());
        let hear = |server: &mut Server, now: f64| {
            let (timestamp, events) = server.stream.pop_front()?;
            world.apply(&events);
            Some(world.heard_at(timestamp, now))
        };
        let (mut now, mut ended, mut agreed) = (0.0, 0, 0);
        for op in ops {
            // 200 steps: longer than the grace, shorter than a watch waits.
            now += 0.5;
            match op {
                Op::Place(prompt) => placed.push_back((world.open(&prompt), prompt)),
                Op::Run => if let Some((watch, prompt)) = placed.pop_front() {
                    server.run(now, &prompt);
                    running.push_back(watch);
                },
                Op::End => if let Some(Some(watch)) = running.pop_front() {
                    watch.ended(now);
                    ended += 1;
                },
                Op::Evict(nth) => server.evict(now, nth),
                Op::Reset => server.reset(now),
                Op::Hear => {
                    let judged = hear(&mut server, now).unwrap_or_default();
                    prop_assert!(judged.iter().all(|verdict| *verdict == Verdict::Agree), "{judged:?}");
                }
            }
        }
        now += 10.0;
        while let Some(judged) = hear(&mut server, now) {
            prop_assert!(judged.iter().all(|verdict| *verdict == Verdict::Agree), "{judged:?}");
        }
        drop((placed, running));
        prop_assert_eq!(world.heard(now), []);
        agreed += world.parity.records()["qwen"].agree;
        prop_assert!(agreed >= ended, "{agreed} of {ended}");
    }
}
