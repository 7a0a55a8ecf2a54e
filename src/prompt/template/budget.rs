//! What one render may use. minijinja's fuel counts instructions, whatever they move; this counts
//! what they move.

use minijinja::{Error, ErrorKind, State};

/// Bytes that one render may make or search, 512 MB: eight times the largest body, and no render
/// holds more. Qwen3's template moves what an assistant said eight times, all else four times.
const WORK_BYTES_MAX: usize = 512 << 20;
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
