//! The blocks that nobody uses, in the order in which they will be taken: a doubly linked
//! list over block numbers, so that a cache hit can leave from the middle at no cost.

/// A physical block's number. Block 0 is never handed out: vLLM keeps it as the null block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockId(pub(super) u32);

impl BlockId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The list's two ends meet in the null block, so that no link is ever missing.
const ENDS: BlockId = BlockId(0);

#[derive(Debug, Clone, Copy)]
struct Links {
    before: BlockId,
    after: BlockId,
}

/// The free blocks of a pool, the next victim in front.
#[derive(Debug)]
pub(super) struct FreeList {
    links: Vec<Links>,
    len: usize,
}

impl FreeList {
    /// All blocks but the null block, in order of their numbers.
    pub(super) fn new(num_gpu_blocks: u32) -> Self {
        let alone = Links {
            before: ENDS,
            after: ENDS,
        };
        let mut list = Self {
            links: vec![alone; num_gpu_blocks.max(1) as usize],
            len: 0,
        };
        for id in 1..num_gpu_blocks {
            list.push_back(BlockId(id));
        }
        list
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push_back(&mut self, id: BlockId) {
        let last = self.links[ENDS.index()].before;
        self.link(last, id, ENDS);
    }

    /// Puts `ids` before all others, the first of them in front.
    pub(super) fn push_front(&mut self, ids: &[BlockId]) {
        for &id in ids.iter().rev() {
            let first = self.links[ENDS.index()].after;
            self.link(ENDS, id, first);
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<BlockId> {
        let first = self.links[ENDS.index()].after;
        (first != ENDS).then(|| {
            self.remove(first);
            first
        })
    }

    /// Takes a block out of the middle; it must be in the list.
    pub(super) fn remove(&mut self, id: BlockId) {
        let Links { before, after } = self.links[id.index()];
        self.links[before.index()].after = after;
        self.links[after.index()].before = before;
        self.len -= 1;
    }

    fn link(&mut self, before: BlockId, id: BlockId, after: BlockId) {
        self.links[id.index()] = Links { before, after };
        self.links[before.index()].after = id;
        self.links[after.index()].before = id;
        self.len += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(mut list: FreeList) -> Vec<u32> {
        std::iter::from_fn(|| list.pop_front())
            .map(|id| id.0)
            .collect()
    }

    #[test]
    fn the_null_block_is_never_free() {
        assert_eq!(drain(FreeList::new(4)), [1, 2, 3]);
        assert_eq!(drain(FreeList::new(1)), [0; 0]);
    }

    #[test]
    fn blocks_leave_from_the_middle_and_return_at_either_end() {
        let mut list = FreeList::new(6);
        list.remove(BlockId(3));
        list.remove(BlockId(1));
        list.remove(BlockId(5));
        list.push_back(BlockId(3));
        list.push_front(&[BlockId(5), BlockId(1)]);
        assert_eq!(list.len(), 5);
        assert_eq!(drain(list), [5, 1, 2, 4, 3]);
    }
}
