//! Values with numbers that stay, in pages: growing copies nothing and takes no more than a page too
//! much.

use std::ops::{Index, IndexMut};

/// Values in a page.
const PAGE: usize = 256;

/// Values by number. Numbers of removed ones are given out again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    pages: Vec<Box<[T]>>,
    free: Vec<u32>,
    /// Numbers ever given out.
    given: u32,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            free: Vec::new(),
            given: 0,
        }
    }
}

impl<T: Default> Slab<T> {
    pub fn insert(&mut self, value: T) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            if self.given as usize == self.pages.len() * PAGE {
                let page = std::iter::repeat_with(T::default).take(PAGE);
                self.pages.push(page.collect());
            }
            self.given += 1;
            self.given - 1
        });
        self[number] = value;
        number
    }

    pub fn remove(&mut self, number: u32) -> T {
        let value = std::mem::take(&mut self[number]);
        self.free.push(number);
        if self.free.len() == self.given as usize {
            *self = Self::default();
        }
        value
    }

    pub fn get(&self, number: u32) -> Option<&T> {
        let page = self.pages.get(number as usize / PAGE)?;
        page.get(number as usize % PAGE)
    }

    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        let page = self.pages.get_mut(number as usize / PAGE)?;
        page.get_mut(number as usize % PAGE)
    }

    pub fn len(&self) -> usize {
        self.given as usize - self.free.len()
    }

    /// All numbers ever given out; those removed hold defaults.
    pub fn numbers(&self) -> std::ops::Range<u32> {
        0..self.given
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, number: u32) -> &T {
        &self.pages[number as usize / PAGE][number as usize % PAGE]
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, number: u32) -> &mut T {
        &mut self.pages[number as usize / PAGE][number as usize % PAGE]
    }
}
