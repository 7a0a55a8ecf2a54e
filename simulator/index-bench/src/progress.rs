//! What the benchmark is at: one line on a terminal, a line each elsewhere.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::Instant;

/// A benchmark under way.
#[derive(Debug)]
pub struct Progress {
    begun: Instant,
    on_terminal: bool,
}

impl Progress {
    /// From now.
    pub fn start() -> Self {
        Self {
            begun: Instant::now(),
            on_terminal: stderr().is_terminal(),
        }
    }

    /// It is at this.
    pub fn at(&self, what: &str) {
        let seconds = self.begun.elapsed().as_secs();
        let line = format!("  {}:{:02}  {what}", seconds / 60, seconds % 60);
        // A progress line that cannot be written is no reason to stop.
        let _ = match self.on_terminal {
            true => write!(stderr(), "\r\x1b[K{line}"),
            false => writeln!(stderr(), "{line}"),
        };
    }

    /// Makes room for what is printed.
    pub fn clear(&self) {
        if self.on_terminal {
            // As above.
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
