//! Where fetched files are kept: `OWNER--NAME/COMMIT/`, complete or not there at all, and
//! `OWNER--NAME/refs/REVISION`, which says what commit a branch or tag was.

use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::fs;

use crate::config::Repo;

/// A file that a model is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub name: &'static str,
    pub required: bool,
    pub bytes_max: u64,
}

/// What transformers reads of a tokenizer and its templates. `tokenizer.json` of the largest
/// vocabularies (262,144 words) has 33 MB, their configuration 1.2 MB, a template some 20 kB.
pub(super) const FILES: [Wanted; 4] = [
    wanted("tokenizer.json", true, 256 << 20),
    wanted("tokenizer_config.json", true, 16 << 20),
    wanted("chat_template.jinja", false, 4 << 20),
    wanted("chat_template.json", false, 4 << 20),
];

const fn wanted(name: &'static str, required: bool, bytes_max: u64) -> Wanted {
    Wanted {
        name,
        required,
        bytes_max,
    }
}

/// What is younger may be another process's work; no fetch lasts longer than ten minutes.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A folder that several processes may share.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn of(&self, repo: &Repo) -> PathBuf {
        self.root.join(repo.id.replace('/', "--"))
    }

    fn reference(&self, repo: &Repo) -> PathBuf {
        // No revision has a percent sign, so that two never share a file.
        let name = repo.revision.replace('/', "%2F");
        self.of(repo).join("refs").join(name)
    }

    /// The files of a commit, if they are here.
    pub async fn commit(&self, repo: &Repo, commit: &str) -> Option<PathBuf> {
        let folder = self.of(repo).join(commit);
        let found = is_commit(commit) && fs::metadata(&folder).await.is_ok();
        found.then_some(folder)
    }

    /// The files of the revision, as it was when it was last fetched.
    pub async fn find(&self, repo: &Repo) -> Option<PathBuf> {
        if is_commit(&repo.revision) {
            return self.commit(repo, &repo.revision).await;
        }
        let commit = fs::read_to_string(self.reference(repo)).await.ok()?;
        self.commit(repo, commit.trim()).await
    }

    /// Notes what the revision is, and removes what no revision is any more.
    pub async fn point(&self, repo: &Repo, commit: &str) -> std::io::Result<()> {
        let file = self.reference(repo);
        if fs::read_to_string(&file).await.ok().as_deref() == Some(commit) {
            return Ok(());
        }
        let refs = self.of(repo).join("refs");
        fs::create_dir_all(&refs).await?;
        let draft = refs.join(unique());
        fs::write(&draft, commit).await?;
        fs::rename(&draft, &file).await?;
        self.tidy(repo).await
    }

    async fn tidy(&self, repo: &Repo) -> std::io::Result<()> {
        let refs = self.of(repo).join("refs");
        let mut named = HashSet::new();
        for name in entries(&refs).await? {
            named.insert(fs::read_to_string(refs.join(name)).await?);
        }
        for name in entries(&self.of(repo)).await? {
            let left = name.starts_with(PARTIAL) || is_commit(&name) && !named.contains(&name);
            let folder = self.of(repo).join(&name);
            let age = fs::metadata(&folder).await?.modified()?.elapsed();
            if left && age.is_ok_and(|age| age > ABANDONED) {
                fs::remove_dir_all(&folder).await?;
            }
        }
        Ok(())
    }

    /// Removes a commit's files, so that they are fetched anew.
    pub async fn forget(&self, folder: &Path) {
        if let Err(error) = fs::remove_dir_all(folder).await {
            tracing::warn!(%error, folder = %folder.display(), "cannot be removed from the cache");
        }
    }

    /// A folder to fetch into, removed unless it is finished.
    pub async fn begin(&self, repo: &Repo) -> std::io::Result<Partial> {
        let of = self.of(repo);
        fs::create_dir_all(&of).await?;
        let path = of.join(unique());
        fs::create_dir(&path).await?;
        Ok(Partial { of, path })
    }
}

const PARTIAL: &str = ".partial-";

/// A name that no other process takes, in containers either, where all have the same number.
fn unique() -> String {
    format!("{PARTIAL}{:016x}", RandomState::new().hash_one(()))
}

/// A whole commit's name. It becomes a path.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

async fn entries(folder: &Path) -> std::io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut entries = fs::read_dir(folder).await?;
    while let Some(entry) = entries.next_entry().await? {
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// Files on their way into the cache.
#[derive(Debug)]
pub(super) struct Partial {
    of: PathBuf,
    path: PathBuf,
}

impl Partial {
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// They are whole: from here on they are a commit's.
    pub async fn finish(self, commit: &str) -> std::io::Result<PathBuf> {
        let folder = self.of.join(commit);
        match fs::rename(&self.path, &folder).await {
            Err(error) if fs::metadata(&folder).await.is_err() => Err(error),
            // Done, or another process was quicker, with the same files.
            _ => Ok(folder),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Not there where it was finished. What cannot be removed is tidied up later.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "1111111111111111111111111111111111111111";
    const TWO: &str = "2222222222222222222222222222222222222222";

    fn repo(revision: &str) -> Repo {
        Repo {
            id: "owner/name".into(),
            revision: revision.into(),
        }
    }

    async fn store(cache: &Cache, revision: &str, commit: &str) -> PathBuf {
        let partial = cache.begin(&repo(revision)).await.unwrap();
        std::fs::write(partial.file("tokenizer.json"), commit).unwrap();
        let folder = partial.finish(commit).await.unwrap();
        cache.point(&repo(revision), commit).await.unwrap();
        folder
    }

    fn age(folder: &Path) {
        let long_ago = std::time::SystemTime::now() - 2 * ABANDONED;
        let opened = std::fs::File::open(folder).unwrap();
        opened.set_modified(long_ago).unwrap();
    }

    #[tokio::test]
    async fn what_is_not_finished_is_never_found() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::new(root.path());
        let partial = cache.begin(&repo("main")).await.unwrap();
        std::fs::write(partial.file("tokenizer.json"), "half").unwrap();
        assert_eq!(cache.find(&repo("main")).await, None);
        drop(partial);
        assert!(entries(&cache.of(&repo("main"))).await.unwrap().is_empty());

        let folder = store(&cache, "main", ONE).await;
        assert_eq!(cache.find(&repo("main")).await, Some(folder.clone()));
        assert_eq!(
            cache.find(&repo(ONE)).await,
            Some(folder),
            "by its commit as well"
        );
        assert_eq!(cache.find(&repo("refs/pr/1")).await, None);
    }

    #[tokio::test]
    async fn a_commit_is_kept_while_a_revision_is_it() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::new(root.path());
        let one = store(&cache, "main", ONE).await;
        store(&cache, "refs/pr/1", ONE).await;
        age(&one);
        store(&cache, "main", TWO).await;
        assert_eq!(cache.find(&repo("refs/pr/1")).await, Some(one.clone()));
        store(&cache, "refs/pr/1", TWO).await;
        assert!(!one.exists());
        assert!(cache.find(&repo("main")).await.is_some());
    }

    #[tokio::test]
    async fn what_another_process_stored_first_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::new(root.path());
        let (mine, other) = (
            cache.begin(&repo("main")).await,
            cache.begin(&repo("main")).await,
        );
        let other = other.unwrap();
        std::fs::write(other.file("tokenizer.json"), "whole").unwrap();
        let folder = other.finish(ONE).await.unwrap();
        let mine = mine.unwrap();
        std::fs::write(mine.file("tokenizer.json"), "whole").unwrap();
        assert_eq!(mine.finish(ONE).await.unwrap(), folder);
    }
}
