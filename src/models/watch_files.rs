//! When a model's files are to be loaded: pure but for [`look`].

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::cache::FILES;

/// What a file's metadata say of its contents. Mounted files change by symlink, to another
/// inode; those written in place change their times. Reading 11 MB a second would tell no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Contents, then contents or metadata; seconds and nanoseconds each.
    times: [(i64, i64); 2],
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            times: [
                (metadata.mtime(), metadata.mtime_nsec()),
                (metadata.ctime(), metadata.ctime_nsec()),
            ],
        }
    }
}

/// A folder's files, and a template's elsewhere, at one moment; none for those that are not there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Look([Option<Stamp>; FILES.len()], Option<Stamp>);

/// Looks at a folder, and at the template that is given beside it; on a thread that may block, since either may be a
/// network's.
pub(super) async fn look(folder: &Path, template: Option<&Path>) -> Look {
    let paths = FILES.map(|file| folder.join(file.name));
    let template = template.map(Path::to_owned);
    let stamp = |path: PathBuf| std::fs::metadata(path).ok().map(|found| Stamp::of(&found));
    let look = move || Look(paths.map(stamp), template.and_then(stamp));
    let looked = tokio::task::spawn_blocking(look);
    // It fails only where the runtime ends.
    looked.await.unwrap_or_default()
}

impl Look {
    /// Whether the vocabulary is the same as in another look.
    pub fn has_vocabulary_of(&self, other: &Self) -> bool {
        let of = |look: &Self| {
            let mut files = FILES.iter().zip(look.0);
            files.find_map(|(file, stamp)| stamp.filter(|_| file.name == "tokenizer.json"))
        };
        of(self).is_some() && of(self) == of(other)
    }
}

/// Decides when a folder is due: at once, then whenever it has changed and settled, and after a
/// failure once it is time again.
#[derive(Debug, Default)]
pub(super) struct Watch {
    last: Option<Look>,
    tried: Option<Look>,
    again: Option<Instant>,
}

impl Watch {
    /// Whether the folder should be loaded, now that it looks so. Two equal looks in a row are
    /// wanted, so that files half written are not.
    pub fn is_due(&mut self, look: &Look, now: Instant) -> bool {
        let settled = self.last.replace(look.clone()).as_ref() == Some(look);
        match &self.tried {
            None => true,
            Some(tried) if tried != look => settled,
            Some(_) => settled && self.again.is_some_and(|again| now >= again),
        }
    }

    /// It was loaded as it looked then; or it failed, and is tried again at a given time.
    pub fn tried(&mut self, look: Look, again: Option<Instant>) {
        self.tried = Some(look);
        self.again = again;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn looking(bytes: u64) -> Look {
        let stamp = Stamp {
            device: 1,
            inode: 1,
            bytes,
            times: [(1, 0), (1, 0)],
        };
        Look([Some(stamp); FILES.len()], None)
    }

    #[test]
    fn a_folder_is_loaded_at_once_and_then_only_when_it_has_settled() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        assert!(watch.is_due(&looking(1), now));
        watch.tried(looking(1), None);
        assert!(!watch.is_due(&looking(1), now));
        assert!(!watch.is_due(&looking(2), now), "half written, perhaps");
        assert!(!watch.is_due(&looking(3), now), "still growing");
        assert!(watch.is_due(&looking(3), now));
        watch.tried(looking(3), None);
        assert!(!watch.is_due(&looking(3), now));
    }

    #[test]
    fn what_failed_is_tried_again_in_time_or_when_it_has_changed() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        assert!(watch.is_due(&looking(1), now));
        watch.tried(looking(1), Some(later));
        assert!(!watch.is_due(&looking(1), now));
        assert!(watch.is_due(&looking(1), later));
        watch.tried(looking(1), Some(later));
        assert!(!watch.is_due(&looking(2), now));
        assert!(watch.is_due(&looking(2), now), "no need to wait");
    }

    #[tokio::test]
    async fn a_look_tells_rewritten_swapped_and_missing_files_apart() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let look = async || look(folder.path(), Some(&at("elsewhere.jinja"))).await;
        std::fs::write(at("tokenizer.json"), "one").unwrap();
        let before = look().await;
        assert_eq!(before, look().await);
        std::fs::write(at("other"), "one").unwrap();
        std::fs::rename(at("other"), at("tokenizer.json")).unwrap();
        let swapped = look().await;
        assert_ne!(before, swapped);
        std::fs::write(at("chat_template.jinja"), "").unwrap();
        let added = look().await;
        assert_ne!(swapped, added);
        std::fs::write(at("elsewhere.jinja"), "").unwrap();
        let given = look().await;
        assert_ne!(added, given);
        assert!(given.has_vocabulary_of(&swapped) && !swapped.has_vocabulary_of(&before));
        assert_eq!(super::look(&at("nowhere"), None).await, Look::default());
    }
}
