//! Whoever reads while others write sees every endpoint between two of its steps.

use std::ops::Range;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::{self, ScopedJoinHandle};

use kvscout::blocks::{BlockEvent, Chains, EngineHash, Group, Identity, Medium, Stored, TokenId};
use kvscout::fleet::EndpointId;
use kvscout::index::{Cached, Index, Picture, Size};

const WRITERS: usize = 3;
const READERS: usize = 2;

/// Two texts that differ from their first block on.
#[derive(Debug, Clone, Copy)]
enum Text {
    A = 1,
    B = 2,
}
use Text::{A, B};

/// Blocks that a prompt asks for, of either text.
const ASKED: usize = 1_600;

impl Text {
    fn tokens(self, blocks: Range<usize>) -> Vec<TokenId> {
        blocks
            .flat_map(|at| [self as TokenId, at as TokenId])
            .collect()
    }

    fn hash(self, at: usize) -> EngineHash {
        EngineHash((self as u64) << 32 | at as u64)
    }
}

fn stored(text: Text, blocks: Range<usize>) -> Stored {
    let hashes = blocks.clone().map(|at| text.hash(at)).collect();
    let parent = blocks.start.checked_sub(1).map(|at| text.hash(at));
    Stored::plain(parent, hashes, text.tokens(blocks))
}

fn store(text: Text, blocks: Range<usize>) -> BlockEvent {
    BlockEvent::Stored(stored(text, blocks))
}

fn remove(blocks: impl Iterator<Item = (Text, usize)>) -> BlockEvent {
    BlockEvent::Removed {
        hashes: blocks.map(|(text, at)| text.hash(at)).collect(),
        medium: Medium::Gpu,
        group: Group::default(),
    }
}

/// What happens to an endpoint at once.
enum Step {
    Apply(Vec<BlockEvent>),
    Doubt,
    DropUnsure,
    Restore(Picture),
    Empty,
    Forget,
}
use Step::{Apply, Doubt, DropUnsure, Empty, Forget, Restore};

impl Step {
    fn take(&self, index: &Index, id: EndpointId) {
        match self {
            Apply(events) => drop(index.apply(id, events)),
            Doubt => index.doubt(id),
            DropUnsure => index.drop_unsure(id),
            Restore(picture) => index.restore(id, picture),
            Empty => index.empty(id),
            Forget => index.forget(id),
        }
    }
}

/// A reader may look between any two events.
fn one_by_one(steps: impl IntoIterator<Item = Step>) -> Vec<Step> {
    let single = |step| match step {
        Apply(events) => events.into_iter().map(|event| Apply(vec![event])).collect(),
        step => vec![step],
    };
    steps.into_iter().flat_map(single).collect()
}

/// Prompts that ask for either text.
fn with_prompts<R>(ask: impl FnOnce(&mut [Chains<'_>; 2]) -> R) -> R {
    let tokens = [A, B].map(|text| text.tokens(0..ASKED));
    let identity = Identity::default();
    let chains = |tokens| Chains::new(tokens, &identity);
    let [a, b] = &tokens;
    ask(&mut [chains(a), chains(b)])
}

/// What is known of either at one endpoint.
fn state(index: &Index, id: EndpointId, prompts: &mut [Chains<'_>; 2]) -> [Cached; 2] {
    prompts
        .each_mut()
        .map(|prompt| index.cached(&[id], prompt)[0])
}

/// An endpoint that goes through its steps again and again, and then is no more.
struct Life<'s> {
    id: EndpointId,
    steps: &'s [Step],
    rounds: usize,
    /// Before each step, what is answered of both texts.
    states: &'s [[Cached; 2]],
    begun: AtomicUsize,
    done: AtomicUsize,
}

impl Life<'_> {
    fn is_over(&self) -> bool {
        self.done.load(SeqCst) == self.rounds * self.steps.len()
    }

    fn live(&self, index: &Index, prompts: &mut [Chains<'_>; 2]) {
        for at in 0..self.rounds * self.steps.len() {
            let now = at % self.steps.len();
            assert_eq!(
                state(index, self.id, prompts),
                self.states[now],
                "step {now}"
            );
            self.begun.store(at + 1, SeqCst);
            self.steps[now].take(index, self.id);
            self.done.store(at + 1, SeqCst);
        }
    }
}

/// What an endpoint alone in an index answers before each of these steps. They begin and end with
/// nothing.
fn states(steps: &[Step]) -> Vec<[Cached; 2]> {
    let (index, id) = (Index::default(), EndpointId(0));
    let states = with_prompts(|prompts| {
        let before = |step: &Step| {
            let before = state(&index, id, prompts);
            step.take(&index, id);
            before
        };
        steps.iter().map(before).collect()
    });
    assert_eq!(index.size(), Size::default());
    states
}

/// Asks for both texts wherever something happens, until all writers have ended, and then everywhere.
/// What is answered is what is known after a step that had begun, not before one that was done, and
/// not before what was answered last.
fn read(
    index: &Index,
    lives: &[Life<'_>],
    writers: &[ScopedJoinHandle<'_, ()>],
    prompts: &mut [Chains<'_>; 2],
) {
    let mut seen = vec![0; lives.len()];
    loop {
        let ended = writers.iter().all(ScopedJoinHandle::is_finished);
        let first = lives.iter().position(|life| !life.is_over());
        let asked = match first.filter(|_| !ended) {
            Some(first) => first.saturating_sub(BESIDE)..lives.len().min(first + BESIDE),
            None => 0..lives.len(),
        };
        let (seen, lives) = (&mut seen[asked.clone()], &lives[asked]);
        let ids: Vec<EndpointId> = lives.iter().map(|life| life.id).collect();
        for (which, prompt) in prompts.iter_mut().enumerate() {
            for (seen, life) in seen.iter_mut().zip(lives) {
                *seen = life.done.load(SeqCst).max(*seen);
            }
            let cached = index.cached(&ids, prompt);
            for ((seen, life), cached) in seen.iter_mut().zip(lives).zip(cached) {
                let state = |at: &usize| life.states[at % life.steps.len()][which] == cached;
                let (from, to) = (*seen, life.begun.load(SeqCst));
                *seen = (from..=to).find(state).unwrap_or_else(|| {
                    let id = life.id;
                    panic!("{cached:?} of text {which} at {id:?} is none of states {from} to {to}")
                });
            }
        }
        if ended {
            break;
        }
    }
}

/// Lives that are asked about before and after the first that is not over.
const BESIDE: usize = 12;

/// Every writer leads its share of these lives one after another, while readers look on.
fn lead(lives: &[Life<'_>]) {
    let index = Index::default();
    let start = Barrier::new(WRITERS + READERS);
    let write = |which: usize| {
        let own = lives.iter().skip(which).step_by(WRITERS);
        with_prompts(|prompts| {
            start.wait();
            own.for_each(|life| life.live(&index, prompts));
        });
    };
    thread::scope(|scope| {
        let write = &write;
        let writers: Vec<_> = (0..WRITERS)
            .map(|which| scope.spawn(move || write(which)))
            .collect();
        let look = || {
            with_prompts(|prompts| {
                start.wait();
                read(&index, lives, &writers, prompts);
            });
        };
        thread::scope(|scope| (0..READERS).for_each(|_| drop(scope.spawn(look))));
    });
    assert_eq!(index.size(), Size::default(), "all is forgotten");
}

fn life<'s>(id: u32, steps: &'s [Step], states: &'s [[Cached; 2]], rounds: usize) -> Life<'s> {
    Life {
        id: EndpointId(id),
        steps,
        rounds,
        states,
        begun: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
    }
}

#[test]
fn a_reader_sees_each_step_whole_or_not_at_all_and_never_goes_back() {
    let kept = Index::default();
    kept.apply(EndpointId(0), &[store(A, 0..25), store(B, 0..35)]);
    let kept = kept.picture(EndpointId(0)).expect("a picture");
    let of = |text: Text| move |at: usize| (text, at);
    let steps = [
        // A chain in several events, and another one.
        Apply(vec![store(A, 0..40)]),
        Apply(vec![store(A, 40..80)]),
        Apply(vec![store(B, 0..40)]),
        // Both end earlier at once.
        Apply(vec![remove(
            (70..80).rev().map(of(A)).chain((30..40).rev().map(of(B))),
        )]),
        Apply(vec![remove((40..70).rev().map(of(A)))]),
        Apply(vec![store(A, 40..1_500)]),
        // A hole, where the long chain starts and where it is in full swing, and their refill.
        Apply(vec![remove((20..30).map(of(A)))]),
        Apply(vec![store(A, 20..30)]),
        Apply(vec![remove([1_100, 1_024, 1_023].into_iter().map(of(A)))]),
        Apply(vec![store(A, 1_023..1_025), store(A, 1_100..1_101)]),
        Doubt,
        Apply(vec![store(A, 0..60)]),
        DropUnsure,
        Apply(vec![store(B, 0..50), store(A, 60..90)]),
        Restore(kept),
        Apply(vec![BlockEvent::Cleared]),
        Apply(vec![store(B, 0..30), store(A, 0..30)]),
        Apply(vec![BlockEvent::Cleared, store(A, 0..45)]),
        // Nobody knows where this belongs, until what lies between is stored.
        Apply(vec![store(A, 50..60)]),
        Apply(vec![store(A, 45..50)]),
        Empty,
        Apply(vec![store(A, 0..33), store(B, 0..33)]),
        Forget,
    ];
    let steps = one_by_one(steps);
    let states = states(&steps);
    let lives: Vec<_> = (0..WRITERS as u32)
        .map(|id| life(id, &steps, &states, 200))
        .collect();
    lead(&lives);
}

#[test]
fn a_new_endpoint_inherits_nothing_from_one_that_is_forgotten() {
    let scripts: Vec<Vec<Step>> = (0..7)
        .map(|which| {
            let (text, other) = if which % 2 == 0 { (A, B) } else { (B, A) };
            let blocks = 10 + 3 * which;
            one_by_one([
                Apply(vec![store(text, 0..blocks)]),
                Apply(vec![store(text, blocks..2 * blocks), store(other, 0..1)]),
                Forget,
            ])
        })
        .collect();
    let states: Vec<_> = scripts.iter().map(|steps| states(steps)).collect();
    let lives: Vec<_> = (0..3_000)
        .map(|id| (id, id as usize % scripts.len()))
        .map(|(id, which)| life(id, &scripts[which], &states[which], 1))
        .collect();
    lead(&lives);
}

#[test]
fn an_endpoint_that_comes_back_is_a_new_one() {
    let (index, id) = (Index::default(), EndpointId(0));
    let identity = Identity {
        adapter: Some("sql".into()),
        cache_salt: None,
    };
    let adapted = || {
        BlockEvent::Stored(Stored {
            adapter_id: Some(1),
            ..stored(A, 0..4)
        })
    };
    let tokens = A.tokens(0..9);
    let of_adapter = || index.cached_at(id, &tokens, &identity).own;
    index.name_adapters(id, vec!["sql".into()]);
    index.apply(id, &[adapted(), store(B, 7..9)]);
    assert_eq!(of_adapter(), 8);
    index.empty(id);
    index.apply(id, &[adapted()]);
    assert_eq!(
        of_adapter(),
        8,
        "what an operator said of it outlives its blocks"
    );
    index.forget(id);
    assert_eq!((index.shape(id), index.shows_salt(id)), (None, None));
    assert_eq!(index.picture(id), None);
    index.apply(id, &[adapted()]);
    assert_eq!(of_adapter(), 0, "the name of its adapter is forgotten");
    index.apply(id, &[store(B, 0..7)]);
    let own = index
        .cached_at(id, &B.tokens(0..9), &Identity::default())
        .own;
    assert_eq!(own, 14, "so are its orphans");
}
