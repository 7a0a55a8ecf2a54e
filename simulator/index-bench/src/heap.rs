//! Heap bytes, as the allocator really hands them out.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

/// The system's allocator; counts between [`start`] and [`stop`] alone, since counting would slow
/// what is timed.
pub struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicI64 = AtomicI64::new(0);

/// Counts from here on. What was allocated before must not be freed while it counts.
pub fn start() {
    LIVE.store(0, Relaxed);
    COUNTS.store(true, Relaxed);
}

/// Counts no more.
pub fn stop() {
    COUNTS.store(false, Relaxed);
}

/// Bytes allocated and not freed since the start.
pub fn live() -> i64 {
    LIVE.load(Relaxed)
}

/// Resident memory of the process, with pages given back that hold nothing.
pub fn resident() -> u64 {
    // SAFETY: malloc_trim takes any pad and touches free pages only.
    unsafe { libc::malloc_trim(0) };
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1);
    pages.and_then(|pages| pages.parse().ok()).unwrap_or(0) * 4096
}

/// What a live allocation takes: its size class, and the word before it in which malloc keeps that.
fn taken(block: *mut u8) -> i64 {
    // SAFETY: called with live blocks of malloc alone, which is what System's are on Linux.
    unsafe { libc::malloc_usable_size(block.cast()) as i64 + 8 }
}

// SAFETY: every call goes to System with the caller's own arguments; counting changes nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let block = unsafe { System.alloc(layout) };
        if COUNTS.load(Relaxed) && !block.is_null() {
            LIVE.fetch_add(taken(block), Relaxed);
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let block = unsafe { System.alloc_zeroed(layout) };
        if COUNTS.load(Relaxed) && !block.is_null() {
            LIVE.fetch_add(taken(block), Relaxed);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if COUNTS.load(Relaxed) {
            LIVE.fetch_sub(taken(block), Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !COUNTS.load(Relaxed) {
            // SAFETY: the caller's promise.
            return unsafe { System.realloc(block, layout, size) };
        }
        let before = taken(block);
        // SAFETY: the caller's promise.
        let moved = unsafe { System.realloc(block, layout, size) };
        if !moved.is_null() {
            LIVE.fetch_add(taken(moved) - before, Relaxed);
        }
        moved
    }
}
