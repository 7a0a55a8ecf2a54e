//! What is kept of decisions, and who may ask.

use std::path::{Path, PathBuf};

use super::yaml::Section;

/// What an operator decides of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decisions {
    /// Bytes of recent decisions that are kept in memory; 0 for none.
    pub kept_bytes_max: usize,
    /// Who may ask for them, and for explanations.
    pub pages: Pages,
    /// Where each is written, if anywhere.
    pub log: Option<DecisionLog>,
}

/// Who may ask what shows which prompts are cached: `/decisions`, `/explain`, `/prefixes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pages {
    /// Who is on this host, as `kubectl port-forward` is.
    #[default]
    Local,
    /// Who reaches the admin port.
    Any,
    /// Nobody.
    Off,
}

/// The decision log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecisionLog {
    /// The newest lines; the ones before are in this name with `.1`, `.2`, ….
    pub file: PathBuf,
    /// Bytes of one file; then the next one begins.
    pub bytes_max: u64,
    /// Files at once.
    pub files_max: u32,
}

pub(super) const PAGES: &[(&str, Pages)] = &[
    ("local", Pages::Local),
    ("any", Pages::Any),
    ("off", Pages::Off),
];

/// An hour of 20 requests/s, each of them a kilobyte with four endpoints.
pub(super) const LOG_BYTES_MAX: u64 = 64 << 20;
pub(super) const LOG_FILES_MAX: u32 = 4;

impl Default for Decisions {
    fn default() -> Self {
        Self {
            // Some 16,000 decisions among 4 endpoints, 250 among 512.
            kept_bytes_max: 16 << 20,
            pages: Pages::default(),
            log: None,
        }
    }
}

pub(super) fn read(decisions: &mut Section<'_>, folder: &Path) -> Decisions {
    let defaults = Decisions::default();
    Decisions {
        kept_bytes_max: decisions.within("kept_bytes_max", (0, 16 << 30), defaults.kept_bytes_max),
        pages: decisions.word("pages", PAGES, defaults.pages),
        log: decisions.section("log", |log| read_log(log, folder)),
    }
}

fn read_log(log: &mut Section<'_>, folder: &Path) -> Option<DecisionLog> {
    let file = log.optional::<PathBuf>("file");
    let (bytes_max, files_max) = (
        log.within("bytes_max", (1 << 20, 1 << 40), LOG_BYTES_MAX),
        log.within("files_max", (1, 1_000), LOG_FILES_MAX),
    );
    Some(DecisionLog {
        file: folder.join(file?),
        bytes_max,
        files_max,
    })
}
