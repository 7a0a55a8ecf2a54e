//! What happens to a fleet, told to the index and to the model alike.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use kvscout::blocks::{
    BlockEvent, Chain, EngineHash, ExtraKey, Group, Identity, Medium, Rule, Shape, Stored, TokenId,
};
use kvscout::fleet::EndpointId;
use kvscout::index::{Index, Place};
use proptest::prelude::*;

use crate::model::{Model, Prompt};

const ADAPTER: &str = "sql";
const SALT: &str = "tenant";

/// Tokens that stand for one step of a text: the smallest block.
const STEP: usize = 2;

/// Tokens, and for whom. Two texts are alike up to where one of them turns.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    pub len: usize,
    pub turns: Vec<(usize, TokenId)>,
    pub adapter: bool,
    pub salt: bool,
}

impl Text {
    fn tokens(&self) -> Vec<TokenId> {
        let step = |at: usize| {
            let turns = self.turns.iter().rev();
            let mut passed = turns.filter(|(turn, _)| *turn <= at);
            [passed.next().map_or(0, |(_, token)| *token); STEP]
        };
        (0..self.len).flat_map(step).collect()
    }

    /// That asks for all of it, and for one token that the engine computes itself.
    pub fn prompt(&self) -> Prompt {
        Prompt {
            tokens: [&self.tokens()[..], &[9]].concat(),
            identity: Identity {
                adapter: self.adapter.then(|| ADAPTER.into()),
                cache_salt: self.salt.then(|| SALT.into()),
            },
        }
    }
}

/// A server of some version and model.
#[derive(Debug, Clone, Copy, PartialEq, Hash)]
enum Kind {
    Plain,
    /// Before 0.14.1: its events hide salts and the names of adapters.
    Old,
    Large,
    /// With a window and a recurrent state beside full attention.
    Hybrid,
    /// With a recurrent state in larger blocks.
    Uneven,
    /// Its hashes cover a token after each block.
    Ahead,
}

/// Three of the first kind, and one of each other.
pub const PODS: u32 = 8;

fn kind(pod: u32) -> Kind {
    match pod {
        2 => Kind::Hybrid,
        3 => Kind::Old,
        4 => Kind::Large,
        5 => Kind::Ahead,
        6 => Kind::Uneven,
        _ => Kind::Plain,
    }
}

/// Ways to tell of blocks that a kind has, some of them twice.
const WAYS: usize = 15;

/// What a store tells.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Tells {
    Everything,
    /// All tokens, and the hashes of so many blocks at the end.
    Tail(usize),
    /// Hashes alone.
    Hashes,
}

/// A way in which blocks are told of.
#[derive(Debug, Clone, Copy)]
struct Way {
    place: Place,
    rule: Rule,
    size: usize,
    tells: Tells,
}

impl Kind {
    fn size(self) -> usize {
        match self {
            Self::Large => 2 * STEP,
            _ => STEP,
        }
    }

    fn ahead(self) -> usize {
        usize::from(self == Self::Ahead)
    }

    fn shape(self) -> Shape {
        Shape {
            block_size: self.size() as u32,
            lookahead: self.ahead() as u32,
        }
    }

    /// The ways of one event of the engine, of which there are several.
    fn ways(self, which: usize) -> Vec<Way> {
        use Medium::{Cpu, Gpu, Other, Storage};
        use Tells::{Everything, Hashes, Tail};
        let size = self.size();
        let way = |medium, group, rule, size, tells| Way {
            place: Place { medium, group },
            rule,
            size,
            tells,
        };
        let own = way(Gpu, 0, Rule::All, size, Everything);
        let lower = |medium| way(medium, 0, Rule::All, size, Hashes);
        let window = |tells| way(Gpu, 1, Rule::Window(5), size, tells);
        let state = |size, tells| way(Gpu, 2, Rule::Last, size, tells);
        match (self, which) {
            (Self::Hybrid, 0..=5) => vec![own, window(Tail(3)), state(size, Tail(1))],
            (Self::Hybrid, 6) => vec![window(Everything)],
            (Self::Hybrid, 7) => vec![state(size, Everything)],
            (Self::Hybrid, 9) => vec![way(Gpu, 3, Rule::Unknown, size, Everything)],
            (Self::Uneven, 0..=5) => vec![own, state(2 * size, Everything)],
            // Beginnings of this group's blocks.
            (Self::Uneven, 7) => vec![state(size, Everything)],
            (_, 9) => vec![way(Other, 0, Rule::All, size, Everything)],
            (_, 8) => vec![way(Cpu, 0, Rule::All, size, Everything)],
            (_, 10 | 11) => vec![lower(Cpu)],
            (_, 12 | 13) => vec![lower(Storage)],
            (_, 14) => vec![own, lower(Cpu), lower(Storage)],
            _ => vec![own],
        }
    }

    /// The engine's names of a text's blocks of this size: of one prefix however it is cut, and of
    /// another one for each salt, whether events show it or not.
    fn hashes(self, text: &Text, size: usize) -> Vec<EngineHash> {
        let mut hash = hash_of((self, text.adapter, text.salt));
        let of_tokens = text.tokens().into_iter().map(|token| {
            hash = hash_of((hash, token));
            EngineHash(hash)
        });
        of_tokens
            .skip(size - 1 + self.ahead())
            .step_by(size)
            .collect()
    }

    fn store(self, way: Way, text: &Text, from: usize, to: usize) -> Stored {
        let Way {
            place, size, tells, ..
        } = way;
        let (tokens, hashes) = (text.tokens(), self.hashes(text, size));
        let to = to.min(hashes.len());
        let from = from.min(to);
        let ahead = |at: usize| tokens[(at + 1) * size..][..self.ahead()].to_vec();
        let salt = |at: usize| (at == 0 && text.salt).then(|| ExtraKey::Text(SALT.into()));
        let first = match tells {
            Tells::Tail(blocks) => to.saturating_sub(blocks).max(from),
            Tells::Everything | Tells::Hashes => from,
        };
        let whole = Stored {
            hashes: hashes[first..to].to_vec(),
            parent: from.checked_sub(1).map(|before| hashes[before]),
            tokens: tokens[from * size..to * size].to_vec(),
            block_size: size as u32,
            adapter: (text.adapter && self != Self::Old).then(|| ADAPTER.into()),
            adapter_id: text.adapter.then_some(1),
            medium: place.medium,
            group: Group {
                index: place.group,
                rule: way.rule,
            },
            extra_keys: (self != Self::Old).then(|| {
                (first..to)
                    .map(|at| salt(at).into_iter().collect())
                    .collect()
            }),
            lookahead: match self.ahead() {
                0 => Vec::new(),
                _ => (first..to).map(ahead).collect(),
            },
        };
        match tells {
            Tells::Hashes => Stored {
                parent: None,
                tokens: Vec::new(),
                block_size: 0,
                lookahead: Vec::new(),
                ..whole
            },
            Tells::Everything | Tells::Tail(_) => whole,
        }
    }
}

fn hash_of(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// In which order blocks go.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    /// The first one alone.
    One,
    TailFirst,
    /// The same, each told of by itself: what vLLM evicts for a step.
    OneByOne,
    HeadFirst,
    /// Every other one, and then those between.
    Mixed,
}

impl Order {
    fn of(self, mut hashes: Vec<EngineHash>) -> Vec<EngineHash> {
        match self {
            Self::One => hashes.truncate(1),
            Self::TailFirst | Self::OneByOne => hashes.reverse(),
            Self::HeadFirst => {}
            Self::Mixed => {
                let others = hashes.iter().skip(1).step_by(2);
                hashes = others.chain(hashes.iter().step_by(2)).copied().collect();
            }
        }
        hashes
    }
}

/// Some blocks of one of the texts, which are numbered.
#[derive(Debug, Clone)]
pub struct Span {
    text: usize,
    /// Where what is held ends, if none is given.
    from: Option<usize>,
    to: usize,
}

#[derive(Debug, Clone)]
pub enum Event {
    Store(usize, Span),
    Remove(usize, Span, Order),
    Clear,
}

#[derive(Debug, Clone)]
pub enum Act {
    Apply(u32, Vec<Event>),
    /// A gap, and what came after it.
    Doubt(u32, Vec<Event>),
    /// A text will be reported: blocks that the first answer finds, and answers.
    Expect(u32, usize, (u32, u32)),
    DropUnsure(u32),
    Empty(u32),
    Forget(u32),
    /// The first one's picture takes the place of the second's.
    Restore(u32, u32),
    /// Every picture moves to a new index.
    Move,
}

impl Event {
    fn told(&self, pod: u32, texts: &[Text], model: &Model) -> Vec<BlockEvent> {
        let kind = kind(pod);
        let (which, span) = match self {
            Self::Store(which, span) | Self::Remove(which, span, _) => (*which, span),
            Self::Clear => return vec![BlockEvent::Cleared],
        };
        let text = &texts[span.text % texts.len()];
        let told = |way: Way| {
            let hashes = kind.hashes(text, way.size);
            // Blocks of any size are counted in those of the kind's own.
            let blocks = |blocks: usize| blocks * kind.size() / way.size;
            let held = || model.leading(EndpointId(pod), way.place, &hashes);
            let (from, to) = (span.from.map_or_else(held, blocks), blocks(span.to));
            match self {
                Self::Remove(_, _, order) => {
                    let gone = hashes.into_iter().take(to).skip(from);
                    let gone = order.of(gone.collect());
                    match order {
                        Order::OneByOne => gone
                            .into_iter()
                            .map(|hash| removed(way.place, vec![hash]))
                            .collect(),
                        _ => vec![removed(way.place, gone)],
                    }
                }
                _ => vec![BlockEvent::Stored(kind.store(way, text, from, to))],
            }
        };
        kind.ways(which).into_iter().flat_map(told).collect()
    }
}

fn removed(place: Place, hashes: Vec<EngineHash>) -> BlockEvent {
    let Place { medium, group } = place;
    BlockEvent::Removed {
        hashes,
        medium,
        group: Group {
            index: group,
            rule: Rule::default(),
        },
    }
}

impl Act {
    /// Does it to both.
    pub fn act(
        &self,
        index: &mut Index,
        model: &mut Model,
        texts: &[Text],
    ) -> Result<(), TestCaseError> {
        match self {
            Self::Apply(pod, events) => {
                let id = EndpointId(*pod);
                index.name_adapters(id, vec![ADAPTER.into()]);
                model.name_adapters(id, vec![ADAPTER.into()]);
                let told = events
                    .iter()
                    .flat_map(|event| event.told(*pod, texts, model));
                let told: Vec<BlockEvent> = told.collect();
                prop_assert_eq!(index.apply(id, &told), model.apply(id, &told));
            }
            Self::Doubt(pod, events) => {
                index.doubt(EndpointId(*pod));
                model.doubt(EndpointId(*pod));
                Self::Apply(*pod, events.clone()).act(index, model, texts)?;
            }
            Self::Expect(pod, text, answers) => {
                let (id, prompt) = (EndpointId(*pod), texts[text % texts.len()].prompt());
                let shape = kind(*pod).shape();
                let chain = Chain::of_prompt(&prompt.tokens, shape, &prompt.identity);
                index.expect_reports(id, &chain, answers.0, answers.1);
                model.expect_reports(id, &prompt, shape, *answers);
            }
            Self::DropUnsure(pod) => {
                index.drop_unsure(EndpointId(*pod));
                model.drop_unsure(EndpointId(*pod));
            }
            Self::Empty(pod) => {
                index.empty(EndpointId(*pod));
                model.empty(EndpointId(*pod));
            }
            Self::Forget(pod) => {
                index.forget(EndpointId(*pod));
                model.forget(EndpointId(*pod));
            }
            Self::Restore(from, to) => {
                let (from, to) = (EndpointId(*from), EndpointId(*to));
                let (picture, kept) = (index.picture(from), model.picture(from));
                prop_assert_eq!(picture.is_some(), kept.is_some());
                if let (Some(picture), Some(kept)) = (picture, kept) {
                    index.restore(to, &picture);
                    model.restore(to, &kept);
                }
            }
            Self::Move => {
                let new = Index::default();
                for id in (0..PODS).map(EndpointId) {
                    let (picture, kept) = (index.picture(id), model.picture(id));
                    prop_assert_eq!(picture.is_some(), kept.is_some());
                    model.forget(id);
                    if let (Some(picture), Some(kept)) = (picture, kept) {
                        new.restore(id, &picture);
                        model.restore(id, &kept);
                    }
                }
                *index = new;
            }
        }
        Ok(())
    }
}

/// Texts and what is done with them, where each place is drawn from `places`.
pub fn acts(
    texts: usize,
    acts: usize,
    places: impl Strategy<Value = usize> + Clone,
) -> impl Strategy<Value = (Vec<Text>, Vec<Act>)> {
    (
        prop::collection::vec(text(places.clone()), 1..=texts),
        prop::collection::vec(act(span(places)), 1..=acts),
    )
}

fn text(place: impl Strategy<Value = usize> + Clone) -> impl Strategy<Value = Text> {
    let turns = prop::collection::vec((place.clone(), 0..3u32), 0..=2);
    let (adapter, salt) = (prop::bool::weighted(0.1), prop::bool::weighted(0.2));
    (place, turns, adapter, salt).prop_map(|(last, turns, adapter, salt)| Text {
        len: last + 1,
        turns,
        adapter,
        salt,
    })
}

/// After the last block of any text.
const END: usize = 1 << 20;

/// Which of the texts, however many there are.
const TEXTS: Range<usize> = 0..8;

fn span(place: impl Strategy<Value = usize> + Clone) -> impl Strategy<Value = Span> + Clone {
    let from = prop_oneof![
        3 => Just(Some(0)),
        3 => Just(None),
        3 => place.clone().prop_map(Some)
    ];
    let to = prop_oneof![place, Just(END)];
    (TEXTS, from, to).prop_map(|(text, from, to)| Span { text, from, to })
}

fn event(span: impl Strategy<Value = Span> + Clone) -> impl Strategy<Value = Event> {
    let order = prop_oneof![
        Just(Order::One),
        Just(Order::TailFirst),
        Just(Order::OneByOne),
        Just(Order::HeadFirst),
        Just(Order::Mixed)
    ];
    prop_oneof![
        30 => (0..WAYS, span.clone()).prop_map(|(way, span)| Event::Store(way, span)),
        20 => (0..WAYS, span, order).prop_map(|(way, span, order)| Event::Remove(way, span, order)),
        2 => Just(Event::Clear),
    ]
}

fn act(span: impl Strategy<Value = Span> + Clone) -> impl Strategy<Value = Act> {
    let pod = || 0..PODS;
    let events = || prop::collection::vec(event(span.clone()), 0..=3);
    prop_oneof![
        40 => (pod(), events()).prop_map(|(pod, events)| Act::Apply(pod, events)),
        6 => (pod(), events()).prop_map(|(pod, events)| Act::Doubt(pod, events)),
        3 => (pod(), TEXTS, (0..3u32, 1..3u32))
            .prop_map(|(pod, text, answers)| Act::Expect(pod, text, answers)),
        1 => pod().prop_map(Act::DropUnsure),
        1 => pod().prop_map(Act::Empty),
        1 => pod().prop_map(Act::Forget),
        2 => (pod(), pod()).prop_map(|(from, to)| Act::Restore(from, to)),
        1 => Just(Act::Move),
    ]
}
