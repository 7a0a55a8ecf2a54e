//! How far a run is: a bar on standard error, where that is a terminal.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// The bar, or nothing.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Of a run of so many seconds, or of one without an end.
    #[must_use]
    pub fn start(title: &str, seconds: Option<f64>) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let (bar, template) = match seconds {
            Some(seconds) => (
                ProgressBar::new(seconds as u64),
                "  {prefix} {bar:20} {pos}/{len} s  {wide_msg}",
            ),
            None => (ProgressBar::no_length(), "  {prefix} {pos} s  {wide_msg}"),
        };
        let style = ProgressStyle::with_template(template).expect("the template is well-formed");
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(title.to_owned());
        Self(bar)
    }

    /// So many seconds have gone.
    pub fn at(&self, seconds: f64) {
        self.0.set_position(seconds as u64);
    }

    /// What there is to tell.
    pub fn tell(&self, message: String) {
        self.0.set_message(message);
    }

    /// Does something that writes to the terminal, with the bar out of the way.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.0.suspend(write)
    }

    /// It is over.
    pub fn end(&self) {
        self.0.finish_and_clear();
    }
}
