//! One endpoint's picture, to keep elsewhere and to take up again.

use parking_lot::RwLockWriteGuard;
use serde::{Deserialize, Serialize};

use crate::blocks::{BlockKey, EngineHash, Rule};
use crate::index::book::{Book, CACHES_MAX, COPIES_MAX};
use crate::index::cache::{Cache, CachePicture, Presence};
use crate::index::copies::Copies;
use crate::index::forest::{Forest, HELD_AT_ONCE};
use crate::index::keyed::KeyedMap;
use crate::index::seats::{Retired, Shared};
use crate::index::tree::{BlockId, Holder};

/// What one endpoint holds, apart from the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// Whether its events show cache salts.
    pub shows_salt: Option<bool>,
    /// The blocks of its prompts, each after the one before it: how many rows back that stands (0 at
    /// a prompt's start), and our name.
    pub blocks: Vec<(u32, BlockKey)>,
    /// Each medium and group.
    pub caches: Vec<CachePicture>,
}

/// Copies that a picture may say of a hash: more than any engine has blocks.
const COUNT_MAX: u32 = 1 << 30;

impl Book {
    /// All but what may be gone.
    pub(super) fn picture(&self, forest: &Forest) -> Picture {
        let mut rows = Rows::default();
        let caches = self.caches.iter().map(|cache| {
            let sure = cache.copies.iter().filter(|(_, copies)| !copies.unsure);
            let row = |(hash, copies): (EngineHash, Copies)| {
                let block = copies.block.map(|block| rows.of(block, forest));
                (hash.0, block, copies.count)
            };
            CachePicture {
                place: cache.place,
                rule: cache.rule,
                shape: cache.shape,
                copies: sure.map(row).collect(),
            }
        });
        Picture {
            shows_salt: self.shows_salt,
            caches: caches.collect(),
            blocks: rows.blocks,
        }
    }

    /// Takes a picture into an empty book. Nobody sees it before it is whole.
    pub(super) fn fill(&mut self, picture: &Picture, shared: &Shared) {
        self.shows_salt = picture.shows_salt;
        // What nobody holds goes again, so they are held until the caches hold them.
        let planter = shared.take_holder();
        let blocks = planter.map(|planter| planted(&picture.blocks, planter, shared));
        let blocks = blocks.unwrap_or_default();
        for picture in picture.caches.iter().take(CACHES_MAX) {
            if self.caches.iter().any(|cache| cache.place == picture.place) {
                continue;
            }
            let mut cache = Cache::new(picture.place, picture.rule, picture.shape);
            if cache.rule != Rule::Unknown {
                cache.any = shared.take_holder().map(Presence::new);
            }
            if cache.any.is_none() {
                // Nobody would hold what it names.
                self.caches.push(cache);
                continue;
            }
            let mut held = Vec::new();
            for (hash, block, count) in picture.copies.iter().copied() {
                if self.len == COPIES_MAX {
                    break;
                }
                let Err(slot) = cache.copies.find(EngineHash(hash)) else {
                    continue;
                };
                if count == 0 {
                    continue;
                }
                let count = count.min(COUNT_MAX);
                let block = block.and_then(|at| *blocks.get(at as usize)?);
                let copies = Copies {
                    block,
                    count,
                    unsure: false,
                };
                cache.copies.insert(slot, copies);
                cache.physical += u64::from(count);
                self.any_sure = true;
                self.len += 1;
                self.unnamed += u32::from(block.is_none());
                held.extend(block);
            }
            // As they stand in their runs, most of them.
            held.sort_unstable();
            for of_tree in held.chunk_by(|a, b| a.tree() == b.tree()) {
                for few in of_tree.chunks(HELD_AT_ONCE) {
                    let mut tree = shared.forest.write(few[0].tree());
                    cache.hold(&mut tree, few, false);
                    RwLockWriteGuard::unlock_fair(tree);
                }
            }
            self.caches.push(cache);
        }
        self.retired.extend(planter.map(|holder| Retired {
            holder,
            blocks: blocks.into_iter().flatten().collect(),
        }));
        self.changed = true;
    }
}

/// A picture's blocks in the trees. Those that say nonsense, or have no room, are none.
fn planted(rows: &[(u32, BlockKey)], planter: Holder, shared: &Shared) -> Vec<Option<BlockId>> {
    let mut blocks: Vec<Option<BlockId>> = Vec::with_capacity(rows.len());
    let now = shared.room.now();
    for row in rows.chunk_by(|_, (back, _)| *back == 1) {
        let before = match row[0].0 as usize {
            0 => Some(None),
            back => {
                let before = blocks.len().checked_sub(back);
                before.and_then(|at| *blocks.get(at)?).map(Some)
            }
        };
        let mut planted = Vec::with_capacity(row.len());
        if let Some(before) = before {
            let tree = before.map_or_else(|| shared.forest.tree_of(row[0].1), BlockId::tree);
            let keys: Vec<BlockKey> = row.iter().map(|(_, key)| *key).collect();
            let mut before = before;
            for few in keys.chunks(HELD_AT_ONCE) {
                let mut tree = shared.forest.write(tree);
                let from = planted.len();
                tree.grow(before, few, now, &mut planted);
                tree.hold(planter, &planted[from..], &mut Vec::new());
                before = planted.last().copied();
                if planted.len() < from + few.len() {
                    break;
                }
            }
        }
        let none = std::iter::repeat(None);
        blocks.extend(planted.into_iter().map(Some).chain(none).take(row.len()));
    }
    blocks
}

#[derive(Default)]
struct Rows {
    blocks: Vec<(u32, BlockKey)>,
    numbers: KeyedMap<BlockId, u32>,
}

impl Rows {
    /// The row of a block; those before it are made first.
    fn of(&mut self, block: BlockId, forest: &Forest) -> u32 {
        if let Some(number) = self.numbers.get(&block) {
            return *number;
        }
        let tree = forest.read(block.tree());
        let mut missing = vec![block];
        let mut before = None;
        while let Some(parent) = tree.parent(missing[missing.len() - 1]) {
            before = self.numbers.get(&parent).copied();
            if before.is_some() {
                break;
            }
            missing.push(parent);
        }
        for block in missing.into_iter().rev() {
            let number = self.blocks.len() as u32;
            let back = before.map_or(0, |before| number - before);
            self.blocks.push((back, tree.key(block)));
            self.numbers.insert(block, number);
            before = Some(number);
        }
        self.blocks.len() as u32 - 1
    }
}
