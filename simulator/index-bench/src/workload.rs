//! Conversations on a fleet: the block events of its endpoints, requests, and what each endpoint
//! truly holds of each request. The same seed gives the same.
//!
//! Groups of sessions share a prefix. A turn stores what its endpoint lacks of prefix, history and
//! prompt in one event and then each block that it generates in one of its own, interleaved with
//! the others of its wave. A full endpoint evicts the least recently used blocks, the last first,
//! one per event, as vLLM does.

use std::collections::BTreeSet;

use rustc_hash::{FxHashMap, FxHashSet};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::dice::Dice;

/// Blocks of a group's shared prefix.
pub const PREFIX_BLOCKS: usize = 64;
/// Turns that an engine serves at a time.
const WAVE_TURNS: usize = 64;
/// Sessions that requests mostly come from.
const RECENT_SESSIONS: usize = 4000;
/// The share of turns that another endpoint serves than the last one.
const MOVES: f64 = 0.05;

/// A block under its two names.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// Of its tokens alone.
    pub content: u64,
    /// Of everything up to its end, as an engine calls it.
    pub engine: u64,
}

impl Block {
    /// The block with this content after `parent`.
    pub fn after(parent: Option<Self>, content: u64) -> Self {
        let engine = parent.map_or(content, |parent| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&parent.engine.to_le_bytes());
            bytes[8..].copy_from_slice(&content.to_le_bytes());
            // The recurrence and seed of both peers.
            xxh3_64_with_seed(&bytes, 1337)
        });
        Self { content, engine }
    }
}

/// A chain of blocks with these contents.
pub fn chain(contents: &[u64]) -> Vec<Block> {
    let blocks = contents.iter().scan(None, |parent, content| {
        *parent = Some(Block::after(*parent, *content));
        *parent
    });
    blocks.collect()
}

/// What an endpoint did.
#[derive(Debug, Clone)]
pub struct Event {
    /// Who did it.
    pub endpoint: u32,
    /// What it was.
    pub change: Change,
}

/// What happened to blocks.
#[derive(Debug, Clone)]
pub enum Change {
    /// They came, in a row.
    Stored {
        /// The engine's name for the block before them.
        parent: Option<u64>,
        /// In prompt order.
        blocks: Vec<Block>,
    },
    /// The block of this engine hash went.
    Removed(u64),
}

impl Event {
    fn is_store(&self) -> bool {
        matches!(self.change, Change::Stored { .. })
    }

    /// Blocks that it names.
    pub fn blocks(&self) -> usize {
        match &self.change {
            Change::Stored { blocks, .. } => blocks.len(),
            Change::Removed(_) => 1,
        }
    }
}

/// Events as engines tell of them: what a step evicts, with the store that this makes room for.
pub fn steps(events: &[Event]) -> impl Iterator<Item = &[Event]> {
    events.chunk_by(|before, after| !before.is_store() && before.endpoint == after.endpoint)
}

/// Blocks that events name.
pub fn blocks(events: &[Event]) -> usize {
    events.iter().map(Event::blocks).sum()
}

/// Blocks that come.
pub fn stored(events: &[Event]) -> usize {
    let stores = events.iter().filter(|event| event.is_store());
    stores.map(Event::blocks).sum()
}

/// Two token ids that stand for a block's content, in each of our blocks.
pub fn tokens(contents: impl IntoIterator<Item = u64>) -> Vec<u32> {
    let halves = |content: u64| [content as u32, (content >> 32) as u32];
    contents.into_iter().flat_map(halves).collect()
}

/// A request, and what is true of it.
#[derive(Debug)]
pub struct Query {
    /// Its blocks.
    pub contents: Vec<u64>,
    /// The same as tokens, two in a block, and one more, which an engine always computes.
    pub tokens: Vec<u32>,
    /// What is held of it.
    pub truth: Truth,
}

impl Query {
    /// With these contents.
    pub fn new(contents: Vec<u64>, truth: Truth) -> Self {
        let mut tokens = tokens(contents.iter().copied());
        tokens.push(0);
        Self {
            contents,
            tokens,
            truth,
        }
    }
}

/// Who holds how many leading blocks, in a form that is small and that any order gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Truth {
    holders: u32,
    sum: u64,
}

impl Truth {
    /// An endpoint holds so many.
    pub fn tell(&mut self, endpoint: u32, blocks: u32) {
        if blocks > 0 {
            self.holders += 1;
            let mixed = Dice::new(u64::from(endpoint) << 32 | u64::from(blocks)).roll();
            self.sum = self.sum.wrapping_add(mixed);
        }
    }
}

/// What makes one fleet's traffic differ from another's.
#[derive(Debug, Clone, Copy)]
pub struct Fleet {
    /// Endpoints.
    pub endpoints: u32,
    /// Groups of sessions with a prefix of their own.
    pub groups: usize,
    /// The share of turns after which a block goes from the middle of some session.
    pub holes: f64,
    /// Keeps the blocks of every so many-th session that has ended, and forgets the others'; such
    /// a fleet never evicts.
    pub remembers: Option<usize>,
    /// Where the dice begin.
    pub seed: u64,
}

/// What blocks belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Part {
    /// A session's own, after the prefix. First, so that it is evicted before a prefix as old.
    Session(u32),
    /// A group's prefix.
    Prefix(u32),
}

#[derive(Debug)]
struct Session {
    group: u32,
    endpoint: usize,
    turns_left: usize,
    blocks: Vec<Block>,
}

/// What an endpoint holds of a part: its leading `blocks`, but for one of them where there is a hole.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    used: u64,
    blocks: usize,
    hole: Option<usize>,
}

impl Held {
    fn leading(self) -> usize {
        self.hole.unwrap_or(self.blocks)
    }

    fn pairs(self) -> usize {
        self.blocks - usize::from(self.hole.is_some())
    }
}

#[derive(Debug, Clone)]
struct Endpoint {
    held: FxHashMap<Part, Held>,
    oldest: BTreeSet<(u64, Part)>,
    pairs: usize,
    capacity: usize,
}

/// A fleet at work.
#[derive(Debug)]
pub struct Traffic {
    fleet: Fleet,
    dice: Dice,
    /// Turns so far.
    clock: u64,
    wave_began: u64,
    prefixes: Vec<Vec<Block>>,
    sessions: Vec<Session>,
    /// Those before this one are old, and were forgotten if they may be.
    forgotten: usize,
    /// Sessions with turns left.
    active: Vec<u32>,
    endpoints: Vec<Endpoint>,
}

impl Traffic {
    /// An empty fleet.
    pub fn new(fleet: Fleet) -> Self {
        let mut dice = Dice::new(fleet.seed);
        let mut prefix = || {
            let contents: Vec<u64> = (0..PREFIX_BLOCKS).map(|_| dice.roll()).collect();
            chain(&contents)
        };
        let endpoint = Endpoint {
            held: FxHashMap::default(),
            oldest: BTreeSet::new(),
            pairs: 0,
            capacity: usize::MAX,
        };
        Self {
            prefixes: (0..fleet.groups).map(|_| prefix()).collect(),
            endpoints: vec![endpoint; fleet.endpoints as usize],
            fleet,
            dice,
            clock: 0,
            wave_began: 0,
            sessions: Vec::new(),
            forgotten: 0,
            active: Vec::new(),
        }
    }

    /// (endpoint, block) pairs that are held.
    pub fn pairs(&self) -> usize {
        self.endpoints.iter().map(|endpoint| endpoint.pairs).sum()
    }

    /// Events until so many pairs are held.
    pub fn load(&mut self, pairs: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while self.pairs() < pairs {
            self.wave(&mut events);
        }
        events
    }

    /// Gives every endpoint the capacity that it uses now, or half of an even share: it evicts from
    /// here on.
    pub fn fill(&mut self) {
        let even = self.pairs() / self.endpoints.len();
        for endpoint in &mut self.endpoints {
            endpoint.capacity = endpoint.pairs.max(even / 2).max(400);
        }
    }

    /// Events until so many blocks more were stored.
    pub fn churn(&mut self, blocks: usize) -> Vec<Event> {
        let mut events = Vec::new();
        let mut count = 0;
        while count < blocks {
            let before = events.len();
            self.wave(&mut events);
            count += stored(&events[before..]);
        }
        events
    }

    /// Turns side by side: what they store of their prompts in order, then what they generate in
    /// turn.
    pub fn wave(&mut self, events: &mut Vec<Event>) {
        self.wave_began = self.clock + 1;
        let mut picked = FxHashSet::default();
        let mut generated = Vec::new();
        for _ in 0..WAVE_TURNS {
            let session = self.pick();
            if picked.insert(session) {
                generated.push(self.turn(session, events).into_iter());
                self.end_turn(session);
            }
        }
        while !generated.is_empty() {
            generated.retain_mut(|blocks| {
                let next = blocks.next();
                let any = next.is_some();
                events.extend(next);
                any
            });
        }
        for _ in 0..WAVE_TURNS {
            if self.fleet.holes > 0.0 && self.dice.share() < self.fleet.holes {
                events.extend(self.hole());
            }
        }
    }

    fn pick(&mut self) -> u32 {
        if self.active.len() >= WAVE_TURNS && self.dice.share() >= 0.25 {
            return self.active[self.dice.below(self.active.len())];
        }
        let session = self.sessions.len() as u32;
        self.sessions.push(Session {
            group: self.dice.below(self.fleet.groups) as u32,
            endpoint: self.dice.below(self.endpoints.len()),
            turns_left: 2 + self.dice.below(7),
            blocks: Vec::new(),
        });
        self.active.push(session);
        session
    }

    fn end_turn(&mut self, number: u32) {
        let session = &mut self.sessions[number as usize];
        session.turns_left -= 1;
        if session.turns_left > 0 {
            return;
        }
        self.active.retain(|active| *active != number);
        if let Some(every) = self.fleet.remembers {
            self.forget_old(every);
        }
    }

    fn forget_old(&mut self, every: usize) {
        let recent = self.sessions.len().saturating_sub(RECENT_SESSIONS);
        let old = self.forgotten..recent.max(self.forgotten);
        self.forgotten = old.end;
        for number in old.filter(|number| number % every != 0) {
            let session = &mut self.sessions[number];
            if session.turns_left == 0 {
                session.blocks = Vec::new();
            }
        }
    }

    /// One turn: what its endpoint evicts and stores for the prompt goes to `events`; returned is
    /// what it generates.
    fn turn(&mut self, number: u32, events: &mut Vec<Event>) -> Vec<Event> {
        self.clock += 1;
        let (prompt, answer) = (4 + self.dice.below(17), 4 + self.dice.below(9));
        let moves = self.dice.share() < MOVES;
        let elsewhere = self.dice.below(self.endpoints.len());
        let session = &mut self.sessions[number as usize];
        if moves && !session.blocks.is_empty() {
            session.endpoint = elsewhere;
        }
        let at = session.endpoint;
        let prefix = &self.prefixes[session.group as usize];
        let mut last = session.blocks.last().or(prefix.last()).copied();
        for _ in 0..prompt + answer {
            let block = Block::after(last, self.dice.roll());
            session.blocks.push(block);
            last = Some(block);
        }
        let (own, group) = (Part::Session(number), Part::Prefix(session.group));
        self.close_hole(at, own, events);
        let (held_own, held_prefix) = (self.held(at, own), self.held(at, group));
        for (part, held) in [(own, held_own), (group, held_prefix)] {
            if held.blocks > 0 {
                self.hold(at, part, held.blocks);
            }
        }
        let all = PREFIX_BLOCKS + self.sessions[number as usize].blocks.len();
        self.make_room(at, all - held_own.blocks - held_prefix.blocks, events);
        self.hold(at, own, all - PREFIX_BLOCKS);
        self.hold(at, group, PREFIX_BLOCKS);
        // A prefix is used whenever a session of its group is, so it goes after all of them.
        let first = held_prefix.blocks + held_own.blocks;
        debug_assert!(held_prefix.blocks == PREFIX_BLOCKS || held_own.blocks == 0);
        let session = &self.sessions[number as usize];
        let chain = [&self.prefixes[session.group as usize][..], &session.blocks];
        let block = |at: usize| match at.checked_sub(PREFIX_BLOCKS) {
            None => chain[0][at],
            Some(at) => chain[1][at],
        };
        let store = |from: usize, to: usize| Event {
            endpoint: at as u32,
            change: Change::Stored {
                parent: from.checked_sub(1).map(|parent| block(parent).engine),
                blocks: (from..to).map(block).collect(),
            },
        };
        events.push(store(first, all - answer));
        (all - answer..all)
            .map(|from| store(from, from + 1))
            .collect()
    }

    fn held(&self, at: usize, part: Part) -> Held {
        let held = self.endpoints[at].held.get(&part);
        held.copied().unwrap_or_default()
    }

    /// An endpoint uses a part, and holds so many leading blocks of it.
    fn hold(&mut self, at: usize, part: Part, blocks: usize) {
        let (used, hole) = (self.clock, None);
        self.put(at, part, Held { used, blocks, hole });
    }

    fn put(&mut self, at: usize, part: Part, held: Held) {
        let endpoint = &mut self.endpoints[at];
        let before = endpoint.held.remove(&part);
        if let Some(before) = before {
            endpoint.oldest.remove(&(before.used, part));
        }
        if held.blocks > 0 {
            endpoint.held.insert(part, held);
            endpoint.oldest.insert((held.used, part));
        }
        endpoint.pairs += held.pairs();
        endpoint.pairs -= before.map_or(0, Held::pairs);
    }

    /// Evicts until so many blocks fit, but nothing that this wave uses.
    fn make_room(&mut self, at: usize, blocks: usize, events: &mut Vec<Event>) {
        loop {
            let endpoint = &self.endpoints[at];
            let over = (endpoint.pairs + blocks).saturating_sub(endpoint.capacity);
            let oldest = endpoint.oldest.first().copied();
            let Some((_, part)) = oldest.filter(|(used, _)| over > 0 && *used < self.wave_began)
            else {
                return;
            };
            let held = self.held(at, part);
            self.evict(at, part, held.blocks.saturating_sub(over), events);
        }
    }

    /// Evicts the last blocks of a part, down to the first so many.
    fn evict(&mut self, at: usize, part: Part, keeps: usize, events: &mut Vec<Event>) {
        let held = self.held(at, part);
        let blocks = match part {
            Part::Session(number) => &self.sessions[number as usize].blocks,
            Part::Prefix(group) => &self.prefixes[group as usize],
        };
        let gone = (keeps..held.blocks).rev();
        for block in gone.filter(|block| held.hole != Some(*block)) {
            events.push(Event {
                endpoint: at as u32,
                change: Change::Removed(blocks[block].engine),
            });
        }
        let left = Held {
            blocks: keeps,
            hole: held.hole.filter(|hole| *hole < keeps),
            ..held
        };
        self.put(at, part, left);
    }

    /// A block goes from the middle of what an endpoint holds of a session.
    fn hole(&mut self) -> Option<Event> {
        let number = self.dice.below(self.sessions.len());
        let (part, at) = (Part::Session(number as u32), self.sessions[number].endpoint);
        let held = self.held(at, part);
        if held.blocks < 4 || held.hole.is_some() {
            return None;
        }
        let hole = self.dice.below(held.blocks - 1);
        let hole_there = Held {
            hole: Some(hole),
            ..held
        };
        self.put(at, part, hole_there);
        Some(Event {
            endpoint: at as u32,
            change: Change::Removed(self.sessions[number].blocks[hole].engine),
        })
    }

    /// What is stranded behind a hole goes before it is stored anew: a second copy of a block is
    /// one more to kvscout, as it is to vLLM, and none to its peers.
    fn close_hole(&mut self, at: usize, part: Part, events: &mut Vec<Event>) {
        if let Some(hole) = self.held(at, part).hole {
            self.evict(at, part, hole, events);
        }
    }

    /// Requests: of ten, seven are the next turns of sessions, two start one of a known group, and
    /// one is new altogether.
    pub fn queries(&mut self, count: usize) -> Vec<Query> {
        (0..count).map(|_| self.query()).collect()
    }

    fn query(&mut self) -> Query {
        let kind = self.dice.share();
        let session = (kind < 0.7).then(|| self.known_session());
        let group = match session {
            Some(number) => Some(self.sessions[number].group as usize),
            None => (kind < 0.9).then(|| self.dice.below(self.fleet.groups)),
        };
        let contents = |blocks: &[Block]| blocks.iter().map(|block| block.content).collect();
        let mut prompt: Vec<u64> = match group {
            Some(group) => contents(&self.prefixes[group]),
            None => (0..PREFIX_BLOCKS).map(|_| self.dice.roll()).collect(),
        };
        if let Some(number) = session {
            prompt.extend(contents(&self.sessions[number].blocks));
        }
        for _ in 0..4 + self.dice.below(17) {
            prompt.push(self.dice.roll());
        }
        let truth = group.map_or(Truth::default(), |group| self.truth(group, session));
        Query::new(prompt, truth)
    }

    /// One of those whose blocks are known: a recent one, unless old ones are remembered.
    fn known_session(&mut self) -> usize {
        let count = self.sessions.len();
        let recent = count.min(RECENT_SESSIONS);
        let old = self
            .fleet
            .remembers
            .map_or(0, |every| (count - recent) / every);
        let at = self.dice.below(recent + old);
        match at.checked_sub(recent) {
            None => count - 1 - at,
            Some(old) => old * self.fleet.remembers.unwrap_or(1),
        }
    }

    fn truth(&self, group: usize, session: Option<usize>) -> Truth {
        let mut truth = Truth::default();
        for at in 0..self.endpoints.len() {
            let mut blocks = self.held(at, Part::Prefix(group as u32)).leading();
            if let Some(number) = session
                && blocks == PREFIX_BLOCKS
            {
                blocks += self.held(at, Part::Session(number as u32)).leading();
            }
            truth.tell(at as u32, blocks as u32);
        }
        truth
    }
}
