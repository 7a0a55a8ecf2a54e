//! What one render may use. minijinja's fuel counts instructions, whatever they move; this counts
//! what they move.

use minijinja::{Error, ErrorKind, State};

/// Bytes that the values made or searched in one render may have together, 1 GB: sixteen times the
/// largest body. Qwen3's template moves a body five times. At a byte a nanosecond it takes a second, and
/// no render holds more.
const WORK_BYTES_MAX: usize = 1 << 30;
/// What an item of a list counts: 24 bytes, and the time that a filter takes for it.
pub const ITEM_BYTES: usize = 64;

struct Work {
    bytes_left: usize,
}

/// Takes `bytes` from what the render may still move.
pub fn spend(state: &mut State, bytes: usize) -> Result<(), Error> {
    let work = state.get_or_insert_extension(Work {
        bytes_left: WORK_BYTES_MAX,
    });
    work.bytes_left = work
        .bytes_left
        .checked_sub(bytes)
        .ok_or_else(|| Error::from(ErrorKind::OutOfFuel))?;
    Ok(())
}

/// Takes what `count` items use.
pub fn spend_items(state: &mut State, count: usize) -> Result<(), Error> {
    spend(state, count.saturating_mul(ITEM_BYTES))
}
