//! What the index must equal, written to be obviously right: every copy in a list, and names that
//! are whole prefixes.

use std::collections::{BTreeMap, HashMap};

use kvscout::blocks::{
    BlockEvent, EngineHash, ExtraKey, Identity, Medium, Rule, Shape, Stored, TokenId,
};
use kvscout::fleet::EndpointId;
use kvscout::index::{Applied, Cached, Place, Size, digest_of};

/// A block and everything before it, by its number in [`Names`].
type Name = usize;

/// Two prefixes are the same if all that they consist of is.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Prefix {
    Empty(Option<String>),
    Block(Name, Vec<TokenId>, Vec<ExtraKey>),
}

/// Every prefix that was ever spoken of.
#[derive(Debug, Default)]
struct Names(HashMap<Prefix, Name>);

impl Names {
    fn of(&mut self, prefix: Prefix) -> Name {
        let next = self.0.len();
        *self.0.entry(prefix).or_insert(next)
    }

    /// How many blocks are held, or stand before one that is. A name is given after its parent's.
    fn known(&self, mut held: Vec<bool>) -> usize {
        let block = |(prefix, name): (&Prefix, &Name)| match prefix {
            Prefix::Empty(_) => None,
            Prefix::Block(parent, ..) => Some((*name, *parent)),
        };
        let mut blocks: Vec<(Name, Name)> = self.0.iter().filter_map(block).collect();
        blocks.sort_unstable();
        for (name, parent) in blocks.iter().rev() {
            held[*parent] |= held[*name];
        }
        blocks.iter().filter(|(name, _)| held[*name]).count()
    }

    /// Which of all names these copies have.
    fn among<'a>(&self, copies: impl Iterator<Item = &'a Copies>) -> Vec<bool> {
        let mut among = vec![false; self.0.len()];
        let names = copies.filter_map(|copies| copies.name);
        names.for_each(|name| among[name] = true);
        among
    }

    /// Of the blocks that an engine looks for when it is asked this.
    fn of_prompt(&mut self, prompt: &Prompt, shape: Shape) -> Vec<Name> {
        let Prompt { tokens, identity } = prompt;
        let (size, ahead) = (shape.block_size as usize, shape.lookahead as usize);
        let salt = identity.cache_salt.iter().cloned().map(ExtraKey::Text);
        let mut extras: Vec<ExtraKey> = salt.collect();
        let mut name = self.of(Prefix::Empty(identity.adapter.clone()));
        // The last token is always computed.
        let blocks = tokens.len().saturating_sub(ahead.max(1)) / size;
        let mut block = |at: usize| {
            let covered = tokens[at * size..(at + 1) * size + ahead].to_vec();
            name = self.of(Prefix::Block(name, covered, std::mem::take(&mut extras)));
            name
        };
        (0..blocks).map(&mut block).collect()
    }

    /// Of the blocks of an event; none where they depend on what nobody knows.
    fn of_stored(&mut self, parent: Option<Name>, stored: &Stored) -> Vec<Option<Name>> {
        let Some(mut name) = parent.filter(|_| is_complete(stored)) else {
            return vec![None; stored.hashes.len()];
        };
        let mut block = |(at, tokens): (usize, &[TokenId])| {
            let ahead = stored.lookahead.get(at).into_iter().flatten();
            let covered = tokens.iter().chain(ahead).copied().collect();
            let extras = stored.extra_keys.as_ref().map(|extras| extras[at].clone());
            name = self.of(Prefix::Block(name, covered, extras.unwrap_or_default()));
            Some(name)
        };
        let blocks = stored.tokens.chunks(stored.block_size as usize);
        blocks.enumerate().map(&mut block).collect()
    }
}

/// Whether it names all the blocks that its tokens make.
fn is_complete(stored: &Stored) -> bool {
    let tokens = stored.hashes.len() * stored.block_size as usize;
    tokens > 0 && stored.tokens.len() == tokens
}

fn shape_of(stored: &Stored) -> Option<Shape> {
    let lookahead = stored.lookahead.first().map_or(0, Vec::len) as u32;
    (stored.block_size > 0 && !stored.hashes.is_empty()).then_some(Shape {
        block_size: stored.block_size,
        lookahead,
    })
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    pub tokens: Vec<TokenId>,
    pub identity: Identity,
}

#[derive(Debug, Clone)]
struct Copies {
    name: Option<Name>,
    count: u32,
    unsure: bool,
}

/// Of one medium and group.
#[derive(Debug, Clone)]
struct Cache {
    place: Place,
    rule: Rule,
    shape: Option<Shape>,
    copies: BTreeMap<u64, Copies>,
    /// Beginnings of blocks.
    begun: BTreeMap<u64, u32>,
}

impl Cache {
    fn is_own(&self) -> bool {
        self.place.medium == Medium::Gpu
    }

    /// Whether a hash means the same there: of caches cut alike, or of one group where one of them
    /// does not say how.
    fn is_like(&self, other: &Self) -> bool {
        match (self.shape, other.shape) {
            (Some(own), Some(others)) => own == others,
            _ => self.place.group == other.place.group,
        }
    }

    fn add(&mut self, hash: u64, name: Option<Name>) {
        let copies = self.copies.entry(hash).or_insert(Copies {
            name,
            count: 0,
            unsure: false,
        });
        if std::mem::take(&mut copies.unsure) {
            // Of those before the gap nobody knows how many are left.
            copies.count = 0;
        }
        copies.count += 1;
    }

    fn remove(&mut self, hash: u64, applied: &mut Applied) {
        if let Some(copies) = self.copies.get_mut(&hash) {
            applied.removed += 1;
            copies.count -= 1;
            if copies.count == 0 {
                self.copies.remove(&hash);
            }
        } else if let Some(count) = self.begun.get_mut(&hash) {
            *count -= 1;
            if *count == 0 {
                self.begun.remove(&hash);
            }
        } else if self.rule == Rule::Unknown {
            applied.unmodelled += 1;
        } else {
            applied.unknown += 1;
        }
    }

    fn clear(&mut self) {
        self.copies.clear();
        self.begun.clear();
    }
}

/// Leading blocks of a prompt that will be told again, and are no new copies.
#[derive(Debug)]
struct Reports {
    prompt: Vec<Name>,
    /// How many from each cache of the engine's own.
    each: u32,
    came: BTreeMap<usize, u32>,
}

/// What a server holds, by its own account.
#[derive(Debug, Default)]
struct Server {
    caches: Vec<Cache>,
    /// Stores whose parent nobody knows.
    orphans: Vec<Stored>,
    stored_since_doubt: bool,
    /// Blocks to be stored before what is unsure is given up.
    patience: Option<u64>,
    reports: Vec<Reports>,
    adapters: Vec<String>,
    shows_salt: Option<bool>,
}

/// What is kept of a server.
#[derive(Debug)]
pub struct Kept {
    caches: Vec<Cache>,
    shows_salt: Option<bool>,
}

impl Server {
    fn own(&self) -> impl Iterator<Item = &Cache> {
        self.caches.iter().filter(|cache| cache.is_own())
    }

    fn copies(&self) -> impl Iterator<Item = &Copies> {
        self.caches.iter().flat_map(|cache| cache.copies.values())
    }

    fn shape(&self) -> Option<Shape> {
        let mut full = self.own().filter(|cache| cache.rule == Rule::All);
        let of_full = full.find_map(|cache| cache.shape);
        of_full.or_else(|| self.own().next()?.shape)
    }

    fn physical(&self) -> u64 {
        let copies = self.own().flat_map(|cache| cache.copies.values());
        copies.map(|copies| u64::from(copies.count)).sum()
    }

    fn unnamed(&self) -> u32 {
        self.copies().filter(|copies| copies.name.is_none()).count() as u32
    }

    fn apply(&mut self, event: &BlockEvent, names: &mut Names, applied: &mut Applied) {
        match event {
            BlockEvent::Stored(stored) => self.store(stored, names, applied),
            BlockEvent::Removed {
                hashes,
                medium,
                group,
            } => {
                let place = Place {
                    medium: *medium,
                    group: group.index,
                };
                let gone = hashes.len() as u32;
                match self.caches.iter_mut().find(|cache| cache.place == place) {
                    Some(cache) => hashes.iter().for_each(|hash| cache.remove(hash.0, applied)),
                    None if *medium == Medium::Other => applied.elsewhere += gone,
                    None => applied.unknown += gone,
                }
            }
            BlockEvent::Cleared => {
                applied.cleared += 1;
                let own = self.caches.iter_mut().filter(|cache| cache.is_own());
                own.for_each(Cache::clear);
                self.orphans.clear();
                self.reports.clear();
                self.drop_unsure();
            }
        }
    }

    fn store(&mut self, stored: &Stored, names: &mut Names, applied: &mut Applied) {
        let blocks = stored.hashes.len() as u32;
        if stored.medium == Medium::Other {
            applied.elsewhere += blocks;
            return;
        }
        let at = self.cache_of(stored);
        let cache = &mut self.caches[at];
        if cache.rule == Rule::Unknown {
            applied.unmodelled += blocks;
            return;
        }
        if cache.is_own() {
            self.shows_salt = Some(stored.extra_keys.is_some());
        }
        let size = cache.shape.map_or(0, |shape| shape.block_size);
        if (1..size).contains(&stored.block_size) {
            applied.stored += blocks;
            for hash in &stored.hashes {
                *cache.begun.entry(hash.0).or_default() += 1;
            }
            if self.caches.iter().any(|cache| cache.rule == Rule::Last) {
                applied.unmodelled += blocks;
            }
            return;
        }
        let parent = match stored.parent {
            Some(hash) => self.name_of(hash, at),
            None if stored.tokens.is_empty() => None,
            None => Some(names.of(Prefix::Empty(self.adapter_of(stored)))),
        };
        let of_blocks = names.of_stored(parent, stored);
        if self.is_report(at, stored, of_blocks.last().copied().flatten()) {
            applied.reported += blocks;
            return;
        }
        if parent.is_none() && stored.parent.is_some() && is_complete(stored) {
            self.orphans.push(stored.clone());
        }
        for (hash, name) in stored.hashes.iter().zip(of_blocks) {
            let name = name.or_else(|| self.name_of(*hash, at));
            applied.stored += 1;
            self.stored_since_doubt = true;
            self.caches[at].add(hash.0, name);
            if let Some(name) = name {
                self.tell(*hash, name, at, names);
            }
        }
        if let Some(patience) = self.patience {
            match patience.checked_sub(u64::from(blocks)) {
                Some(left) => self.patience = Some(left),
                None => self.drop_unsure(),
            }
        }
    }

    /// Whether it tells of what is held, from a prompt's start to a block of one that is awaited.
    fn is_report(&mut self, at: usize, stored: &Stored, last: Option<Name>) -> bool {
        let cache = &self.caches[at];
        // Of a window every block before it is reported, too.
        let held = |hash: &EngineHash| cache.copies.contains_key(&hash.0);
        let all_held = cache.rule != Rule::All || stored.hashes.iter().all(held);
        let Some(last) = last.filter(|_| cache.is_own() && stored.parent.is_none() && all_held)
        else {
            return false;
        };
        let awaited = |reports: &Reports| {
            let came = reports.came.get(&at).copied().unwrap_or(0);
            came < reports.each && reports.prompt.get(stored.hashes.len() - 1) == Some(&last)
        };
        let Some(which) = self.reports.iter().position(awaited) else {
            return false;
        };
        *self.reports[which].came.entry(at).or_default() += 1;
        let Reports { each, came, .. } = &self.reports[which];
        let mut own = (0..self.caches.len()).filter(|at| self.caches[*at].is_own());
        if own.all(|at| came.get(&at) == Some(each)) {
            self.reports.remove(which);
        }
        true
    }

    /// The cache of a store, as it is by then.
    fn cache_of(&mut self, stored: &Stored) -> usize {
        let place = Place {
            medium: stored.medium,
            group: stored.group.index,
        };
        let known = self.caches.iter().position(|cache| cache.place == place);
        let at = known.unwrap_or_else(|| {
            self.caches.push(Cache {
                place,
                rule: stored.group.rule,
                shape: None,
                copies: BTreeMap::new(),
                begun: BTreeMap::new(),
            });
            self.caches.len() - 1
        });
        let cache = &mut self.caches[at];
        match (cache.shape, shape_of(stored)) {
            (None, shape) => cache.shape = shape,
            // All that came before were beginnings.
            (Some(known), Some(shape)) if known.block_size < shape.block_size => {
                let copies = std::mem::take(&mut cache.copies).into_iter();
                cache.begun = copies.map(|(hash, copies)| (hash, copies.count)).collect();
                cache.shape = Some(shape);
            }
            (Some(known), Some(shape)) if known.lookahead != shape.lookahead => {
                cache.rule = Rule::Unknown;
                cache.clear();
            }
            _ => {}
        }
        at
    }

    fn adapter_of(&self, stored: &Stored) -> Option<String> {
        let of_id = |id: i64| {
            let name = self.adapters.get(id as usize - 1).cloned();
            name.unwrap_or(format!("lora_id:{id}"))
        };
        stored.adapter.clone().or(stored.adapter_id.map(of_id))
    }

    /// The cache itself comes first.
    fn like(&self, at: usize) -> Vec<usize> {
        let others = (0..self.caches.len()).filter(|other| *other != at);
        let like = others.filter(|other| self.caches[*other].is_like(&self.caches[at]));
        std::iter::once(at).chain(like).collect()
    }

    fn name_of(&self, hash: EngineHash, at: usize) -> Option<Name> {
        let mut like = self.like(at).into_iter();
        like.find_map(|at| self.caches[at].copies.get(&hash.0)?.name)
    }

    /// A block has a name: so have its other copies, and what was stored after it.
    fn tell(&mut self, hash: EngineHash, name: Name, at: usize, names: &mut Names) {
        let shape = self.caches[at].shape;
        let waits =
            |orphan: &Stored, hash| orphan.parent == Some(hash) && shape_of(orphan) == shape;
        // An orphan waits on while no copy has need of a name.
        let awaited = self.orphans.iter().any(|orphan| waits(orphan, hash)) && self.unnamed() > 0;
        let mut told = vec![(hash, name)];
        while let Some((hash, name)) = told.pop() {
            for at in self.like(at) {
                if let Some(copies) = self.caches[at].copies.get_mut(&hash.0) {
                    copies.name.get_or_insert(name);
                }
            }
            if awaited {
                let orphans = std::mem::take(&mut self.orphans).into_iter();
                let (found, others): (Vec<_>, Vec<_>) =
                    orphans.partition(|orphan| waits(orphan, hash));
                self.orphans = others;
                for orphan in found {
                    let of_blocks = names.of_stored(Some(name), &orphan);
                    let children = orphan.hashes.iter().zip(of_blocks);
                    told.extend(children.filter_map(|(hash, name)| Some((*hash, name?))));
                }
            }
        }
    }

    fn doubt(&mut self) {
        if std::mem::take(&mut self.stored_since_doubt) {
            let caches = self.caches.iter_mut();
            let copies = caches.flat_map(|cache| cache.copies.values_mut());
            copies.for_each(|copies| copies.unsure = true);
            let any = self.copies().next().is_some();
            self.patience = any.then(|| self.physical().max(1));
        }
    }

    fn drop_unsure(&mut self) {
        self.patience = None;
        for cache in &mut self.caches {
            cache.copies.retain(|_, copies| !copies.unsure);
        }
    }

    fn empty(&mut self) {
        self.caches.clear();
        self.orphans.clear();
        self.reports.clear();
        self.patience = None;
    }

    fn picture(&self) -> Option<Kept> {
        self.shape()?;
        let mut caches = self.caches.clone();
        for cache in &mut caches {
            cache.copies.retain(|_, copies| !copies.unsure);
            cache.begun.clear();
        }
        Some(Kept {
            caches,
            shows_salt: self.shows_salt,
        })
    }

    fn restore(&mut self, kept: &Kept) {
        self.empty();
        self.caches.clone_from(&kept.caches);
        self.shows_salt = kept.shows_salt;
        self.stored_since_doubt = true;
    }
}

/// Which names a cache holds, by any copy and by a sure one.
struct Held<'a> {
    cache: &'a Cache,
    any: Vec<bool>,
    sure: Vec<bool>,
}

impl<'a> Held<'a> {
    fn of(cache: &'a Cache, names: &Names) -> Self {
        let copies = cache.copies.values();
        let sure = copies.clone().filter(|copies| !copies.unsure);
        Self {
            cache,
            any: names.among(copies),
            sure: names.among(sure),
        }
    }
}

/// Whether a group agrees to a hit of so many blocks.
fn agrees(rule: Rule, size: usize, held: &[bool], blocks: usize) -> bool {
    let from = match rule {
        Rule::All => 0,
        // What the window of the next token reaches.
        Rule::Window(window) => {
            let reaches = (window as usize).saturating_sub(1).div_ceil(size);
            blocks.saturating_sub(reaches.max(1))
        }
        Rule::Last => blocks.saturating_sub(1),
        Rule::Unknown => return false,
    };
    blocks <= held.len() && held[from..blocks].iter().all(|held| *held)
}

/// All that can be asked of an endpoint.
#[derive(Debug, PartialEq)]
pub struct Told {
    /// Of each prompt, the hit and how many of its blocks are held, wherever.
    pub prompts: Vec<(Cached, usize)>,
    pub blocks: usize,
    pub physical: u64,
    pub digest: (u64, u64),
    pub shape: Option<Shape>,
    pub alignment: u64,
    pub shows_salt: Option<bool>,
    pub has_unmodelled: bool,
}

/// A fleet of servers, and what is asked of it.
#[derive(Debug)]
pub struct Model {
    pub prompts: Vec<Prompt>,
    names: Names,
    servers: BTreeMap<EndpointId, Server>,
    chains: HashMap<(usize, Shape), Vec<Name>>,
}

impl Model {
    pub fn new(prompts: Vec<Prompt>) -> Self {
        Self {
            prompts,
            names: Names::default(),
            servers: BTreeMap::new(),
            chains: HashMap::new(),
        }
    }

    pub fn apply(&mut self, endpoint: EndpointId, events: &[BlockEvent]) -> Applied {
        let server = self.servers.entry(endpoint).or_default();
        let unnamed = server.unnamed();
        let mut applied = Applied::default();
        for event in events {
            server.apply(event, &mut self.names, &mut applied);
        }
        applied.orphans = server.unnamed().saturating_sub(unnamed);
        applied
    }

    pub fn name_adapters(&mut self, endpoint: EndpointId, names: Vec<String>) {
        self.servers.entry(endpoint).or_default().adapters = names;
    }

    /// So many answers to a prompt, the first of which finds so many blocks.
    pub fn expect_reports(
        &mut self,
        endpoint: EndpointId,
        prompt: &Prompt,
        shape: Shape,
        (blocks, answers): (u32, u32),
    ) {
        let each = answers.saturating_sub(u32::from(blocks == 0));
        let server = self.servers.entry(endpoint).or_default();
        if each > 0 {
            server.reports.push(Reports {
                prompt: self.names.of_prompt(prompt, shape),
                each,
                came: BTreeMap::new(),
            });
        }
    }

    pub fn doubt(&mut self, endpoint: EndpointId) {
        self.servers.entry(endpoint).or_default().doubt();
    }

    pub fn drop_unsure(&mut self, endpoint: EndpointId) {
        self.servers.entry(endpoint).or_default().drop_unsure();
    }

    pub fn empty(&mut self, endpoint: EndpointId) {
        self.servers.entry(endpoint).or_default().empty();
    }

    pub fn forget(&mut self, endpoint: EndpointId) {
        self.servers.remove(&endpoint);
    }

    pub fn picture(&self, endpoint: EndpointId) -> Option<Kept> {
        self.servers.get(&endpoint)?.picture()
    }

    pub fn restore(&mut self, endpoint: EndpointId, kept: &Kept) {
        self.servers.entry(endpoint).or_default().restore(kept);
    }

    /// How many of these, from the first, an endpoint has in a cache.
    pub fn leading(&self, endpoint: EndpointId, place: Place, hashes: &[EngineHash]) -> usize {
        let caches = self.servers.get(&endpoint).into_iter();
        let mut caches = caches.flat_map(|server| &server.caches);
        let Some(cache) = caches.find(|cache| cache.place == place) else {
            return 0;
        };
        let held = |hash: &&EngineHash| cache.copies.contains_key(&hash.0);
        hashes.iter().take_while(held).count()
    }

    pub fn size(&self) -> Size {
        let copies = || self.servers.values().flat_map(Server::copies);
        Size {
            blocks: self.names.known(self.names.among(copies())),
            pairs: copies().count(),
        }
    }

    pub fn told(&mut self, endpoint: EndpointId) -> Told {
        let nothing = Server::default();
        let server = self.servers.get(&endpoint).unwrap_or(&nothing);
        let mut shapes: Vec<Shape> = Vec::new();
        shapes.extend(server.caches.iter().filter_map(|cache| cache.shape));
        for shape in shapes {
            for (at, prompt) in self.prompts.iter().enumerate() {
                let chain = self.chains.entry((at, shape));
                chain.or_insert_with(|| self.names.of_prompt(prompt, shape));
            }
        }
        let held = server.caches.iter();
        let held = held
            .map(|cache| Held::of(cache, &self.names))
            .collect::<Vec<_>>();
        let (mut copies, mut sum) = (0, 0u64);
        for cache in &server.caches {
            let sure = cache.copies.iter().filter(|(_, copies)| !copies.unsure);
            for (hash, of_hash) in sure {
                copies += u64::from(of_hash.count);
                sum = sum.wrapping_add(digest_of(cache.place, *hash, of_hash.count));
            }
        }
        let counting = server.own().filter(|cache| cache.rule != Rule::Unknown);
        let sizes = counting.filter_map(|cache| Some(u64::from(cache.shape?.block_size)));
        let sizes: Vec<u64> = sizes.collect();
        let is_aligned = |step: &u64| sizes.iter().all(|size| step.is_multiple_of(*size));
        Told {
            prompts: (0..self.prompts.len())
                .map(|at| match server.shape() {
                    Some(shape) => self.of_prompt(at, shape, &held),
                    None => Default::default(),
                })
                .collect(),
            blocks: server.copies().count(),
            physical: server.physical(),
            digest: (copies, sum),
            shape: server.shape(),
            alignment: (1..).find(is_aligned).expect("a multiple"),
            shows_salt: server.shows_salt,
            has_unmodelled: server
                .caches
                .iter()
                .any(|cache| cache.rule == Rule::Unknown),
        }
    }

    fn of_prompt(&self, at: usize, shape: Shape, held: &[Held<'_>]) -> (Cached, usize) {
        let chain = &self.chains[&(at, shape)];
        let sure = |held: &Held<'_>, name| held.sure[name];
        let any = |held: &Held<'_>, name| held.any[name];
        let own = self.agreed(at, held, any);
        let mut cached = Cached {
            own,
            unsure: own - self.agreed(at, held, sure).min(own),
            ..Cached::default()
        };
        // What may be gone in a lower medium is not waited for.
        let below = |medium: Medium, name: Name| {
            let mut of = held.iter().filter(|held| held.cache.place.medium == medium);
            of.any(|held| sure(held, name))
        };
        let size = u64::from(shape.block_size);
        for name in chain.iter().skip((own / size) as usize) {
            if below(Medium::Cpu, *name) {
                cached.cpu += size;
            } else if below(Medium::Storage, *name) {
                cached.storage += size;
            } else {
                break;
            }
        }
        let anywhere = |name: &&Name| held.iter().any(|held| any(held, **name));
        (cached, chain.iter().filter(anywhere).count())
    }

    /// The longest hit that every group of the engine's own cache agrees to.
    fn agreed(&self, at: usize, held: &[Held<'_>], has: fn(&Held<'_>, Name) -> bool) -> u64 {
        let own = held.iter().filter(|held| held.cache.is_own());
        let groups = own.filter(|held| held.cache.rule != Rule::Unknown);
        let of_group = |held: &Held<'_>| {
            let shape = held.cache.shape?;
            let rule = held.cache.rule;
            let has = self.chains[&(at, shape)]
                .iter()
                .map(|name| has(held, *name));
            // A hole ends all that full attention can use.
            let useful = has.take_while(|has| *has || rule != Rule::All);
            Some((rule, shape.block_size as usize, useful.collect()))
        };
        // A group that has stored nothing yet agrees to nothing.
        let groups: Option<Vec<(Rule, usize, Vec<bool>)>> = groups.map(of_group).collect();
        let Some(groups) = groups.filter(|groups| !groups.is_empty()) else {
            return 0;
        };
        let all_agree = |tokens: &usize| {
            groups.iter().all(|(rule, size, held)| {
                tokens.is_multiple_of(*size) && agrees(*rule, *size, held, tokens / size)
            })
        };
        let tokens = self.prompts[at].tokens.len().saturating_sub(1);
        (0..=tokens).rev().find(all_agree).unwrap_or(0) as u64
    }
}
