//! The Hugging Face hub, as far as a tokenizer needs it: plain HTTP, no client library.
//!
//! `hf-hub` 1.0 brings hf-xet, 95 crates more and aws-lc beside our ring; what is needed here
//! is two addresses: `api/models/ID/revision/REVISION` says which commit that is and what it
//! holds, and `ID/resolve/COMMIT/FILE` leads, by redirects, to a file.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode, redirect};
use ring::digest::{Context, SHA256};
use rustls_platform_verifier::BuilderVerifierExt;
use serde::Deserialize;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::cache::{Cache, FILES, Partial, Wanted, is_commit};
use crate::config::Repo;

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Between two pieces of an answer.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// All of a model's files: 11 MB at 20 kB/s.
const FETCH_MAX: Duration = Duration::from_secs(600);
/// The hub itself needs one or two, to its content network.
const REDIRECTS_MAX: usize = 5;
/// A list of 20,000 files, at some 300 bytes each.
const LIST_BYTES_MAX: u64 = 6 << 20;

/// Why a model's files could not be fetched. No address is shown but the one we asked: those
/// that a redirect leads to carry signatures.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Before anything was asked.
    #[error(
        "cannot ask {endpoint}: {reason}; is HF_ENDPOINT right, and are ca-certificates installed?"
    )]
    Client {
        /// The hub.
        endpoint: String,
        /// The library's word.
        reason: String,
    },
    /// No answer, or one that broke off.
    #[error("{url}: {reason}")]
    Transport {
        /// What was asked for.
        url: String,
        /// The library's words.
        reason: String,
    },
    /// Another answer than the one wanted.
    #[error("{url}: {status}{hint}")]
    Status {
        /// What was asked for.
        url: String,
        /// The answer.
        status: StatusCode,
        /// What to do.
        hint: &'static str,
    },
    /// An answer that makes no sense.
    #[error("{url}: {reason}; is HF_ENDPOINT a hub?")]
    Format {
        /// What was asked for.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A repository without a fast tokenizer.
    #[error("{repo} has no {file} at {revision}; give a folder that has one")]
    Missing {
        /// The repository.
        repo: String,
        /// What it should have.
        file: &'static str,
        /// Where.
        revision: String,
    },
    /// More bytes than the file can sensibly have.
    #[error("{url}: more than {bytes_max} bytes")]
    TooLong {
        /// What was asked for.
        url: String,
        /// The limit.
        bytes_max: u64,
    },
    /// Other bytes than the hub's list promises.
    #[error("{url}: is not what the hub's list of files says: {what}")]
    Corrupt {
        /// What was asked for.
        url: String,
        /// The difference.
        what: &'static str,
    },
    /// Too long for a few megabytes.
    #[error("fetching took more than {FETCH_MAX:?}")]
    Slow,
    /// Nowhere to put them.
    #[error("models_cache: {path}: {source}; mount a writable folder there, or name another")]
    Cache {
        /// The folder.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
}

/// A hub, and who we are there. Not for printing: it has a secret.
#[derive(Clone)]
pub struct Hub {
    endpoint: String,
    token: Option<String>,
    silence_max: Duration,
}

/// A model's files, here.
#[derive(Debug)]
pub(super) struct Fetched {
    pub folder: PathBuf,
    /// They came over the network just now.
    pub new: bool,
}

/// `api/models/ID/revision/REVISION?blobs=true`.
#[derive(Debug, Deserialize)]
struct List {
    sha: String,
    siblings: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

impl Hub {
    /// The hub at an address, perhaps with a token that may read there.
    #[must_use]
    pub fn new(endpoint: &str, token: Option<&str>) -> Self {
        let token = token.map(str::trim).filter(|token| !token.is_empty());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.map(str::to_owned),
            silence_max: SILENCE_MAX,
        }
    }

    /// As every Hugging Face tool finds it: `HF_ENDPOINT`, `HF_TOKEN`.
    #[must_use]
    pub fn from_env() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Self::new(&endpoint, set("HF_TOKEN").as_deref())
    }

    /// The same with another patience between two pieces of an answer.
    #[must_use]
    pub fn with_silence_max(self, silence_max: Duration) -> Self {
        Self {
            silence_max,
            ..self
        }
    }

    /// Brings a revision's files into the cache, unless they are there. A whole commit's name
    /// that is there needs no hub: it cannot change.
    pub(super) async fn fetch(&self, cache: &Cache, repo: &Repo) -> Result<Fetched, HubError> {
        let fetching = tokio::time::timeout(FETCH_MAX, self.fetch_slowly(cache, repo));
        fetching.await.unwrap_or(Err(HubError::Slow))
    }

    async fn fetch_slowly(&self, cache: &Cache, repo: &Repo) -> Result<Fetched, HubError> {
        if is_commit(&repo.revision)
            && let Some(folder) = cache.find(repo).await
        {
            return Ok(Fetched { folder, new: false });
        }
        let client = self.client()?;
        let list = self.list(&client, repo).await?;
        let (folder, new) = match cache.commit(repo, &list.sha).await {
            Some(folder) => (folder, false),
            None => (self.download(&client, cache, repo, &list).await?, true),
        };
        // A cache that can only be read is good for what it has.
        if let Err(error) = cache.point(repo, &list.sha).await {
            tracing::debug!(%error, cache = %cache.root().display(), "the cache is not tidy");
        }
        Ok(Fetched { folder, new })
    }

    /// Made for each fetch: they are rare, and certificates may have come meanwhile.
    fn client(&self) -> Result<Client, HubError> {
        let client = || -> Result<Client, Box<dyn Error>> {
            let ring = Arc::new(rustls::crypto::ring::default_provider());
            let tls = rustls::ClientConfig::builder_with_provider(ring)
                .with_safe_default_protocol_versions()?;
            let mut headers = HeaderMap::new();
            if let Some(token) = &self.token {
                let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                    .map_err(|_| "HF_TOKEN has characters that no token has")?;
                value.set_sensitive(true);
                headers.insert(AUTHORIZATION, value);
            }
            let builder = Client::builder()
                .user_agent(concat!("kvscout/", env!("CARGO_PKG_VERSION")))
                .default_headers(headers)
                .redirect(redirect::Policy::limited(REDIRECTS_MAX))
                .connect_timeout(CONNECT_MAX)
                .read_timeout(self.silence_max);
            // A hub of one's own may be plain HTTP, on a machine without certificates.
            let tls = match self.endpoint.starts_with("http://") {
                true => tls.with_root_certificates(rustls::RootCertStore::empty()),
                false => tls.with_platform_verifier()?,
            };
            let tls = tls.with_no_client_auth();
            Ok(builder.tls_backend_preconfigured(tls).build()?)
        };
        client().map_err(|error| HubError::Client {
            endpoint: self.endpoint.clone(),
            reason: words(error.as_ref()),
        })
    }

    async fn list(&self, client: &Client, repo: &Repo) -> Result<List, HubError> {
        let revision = repo.revision.replace('/', "%2F");
        let url = format!(
            "{}/api/models/{}/revision/{revision}?blobs=true",
            self.endpoint, repo.id
        );
        let mut body = Body::open(client, url.clone(), LIST_BYTES_MAX).await?;
        let mut text = Vec::new();
        while let Some(piece) = body.next().await? {
            text.extend_from_slice(&piece);
        }
        let format = |reason: String| HubError::Format {
            url: url.clone(),
            reason,
        };
        let list: List =
            serde_json::from_slice(&text).map_err(|error| format(error.to_string()))?;
        match is_commit(&list.sha) {
            true => Ok(list),
            false => Err(format("its sha is not a commit's".to_owned())),
        }
    }

    async fn download(
        &self,
        client: &Client,
        cache: &Cache,
        repo: &Repo,
        list: &List,
    ) -> Result<PathBuf, HubError> {
        let unwritable = |source| HubError::Cache {
            path: cache.root().to_owned(),
            source,
        };
        let partial = cache.begin(repo).await.map_err(unwritable)?;
        for wanted in FILES {
            let entry = list
                .siblings
                .iter()
                .find(|entry| entry.rfilename == wanted.name);
            match entry {
                Some(entry) => {
                    self.save(client, repo, list, (wanted, entry), &partial)
                        .await?
                }
                None if !wanted.required => {}
                None => {
                    return Err(HubError::Missing {
                        repo: repo.id.clone(),
                        file: wanted.name,
                        revision: repo.revision.clone(),
                    });
                }
            }
        }
        partial.finish(&list.sha).await.map_err(unwritable)
    }

    /// One file into the partial folder, and onto the disk before anyone may find it.
    async fn save(
        &self,
        client: &Client,
        repo: &Repo,
        list: &List,
        (wanted, entry): (Wanted, &Entry),
        partial: &Partial,
    ) -> Result<(), HubError> {
        let (id, commit) = (&repo.id, &list.sha);
        let url = format!("{}/{id}/resolve/{commit}/{}", self.endpoint, wanted.name);
        let path = partial.file(wanted.name);
        let unwritable = |source| HubError::Cache {
            path: path.clone(),
            source,
        };
        let mut body = Body::open(client, url.clone(), wanted.bytes_max).await?;
        let mut file = File::create(&path).await.map_err(unwritable)?;
        let mut digest = Context::new(&SHA256);
        while let Some(piece) = body.next().await? {
            digest.update(&piece);
            file.write_all(&piece).await.map_err(unwritable)?;
        }
        file.sync_all().await.map_err(unwritable)?;
        let corrupt = |what| Err(HubError::Corrupt { url, what });
        if entry.size.is_some_and(|size| size != body.bytes) {
            return corrupt("its length");
        }
        let sha256 = entry.lfs.as_ref().and_then(|lfs| lfs.sha256.as_deref());
        if sha256.is_some_and(|sha256| sha256 != hex(digest.finish().as_ref())) {
            return corrupt("its SHA-256");
        }
        Ok(())
    }
}

/// An answer's body, of so many bytes at most.
struct Body {
    url: String,
    response: Response,
    bytes: u64,
    bytes_max: u64,
}

impl Body {
    async fn open(client: &Client, url: String, bytes_max: u64) -> Result<Self, HubError> {
        let response = match client.get(&url).send().await {
            Ok(response) => response,
            Err(error) => return Err(transport(url, error)),
        };
        let status = response.status();
        if status != StatusCode::OK {
            let hint = hint(status);
            return Err(HubError::Status { url, status, hint });
        }
        if response
            .content_length()
            .is_some_and(|length| length > bytes_max)
        {
            return Err(HubError::TooLong { url, bytes_max });
        }
        Ok(Self {
            url,
            response,
            bytes: 0,
            bytes_max,
        })
    }

    async fn next(&mut self) -> Result<Option<bytes::Bytes>, HubError> {
        let piece = self.response.chunk().await;
        let piece = piece.map_err(|error| transport(self.url.clone(), error))?;
        self.bytes += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        if self.bytes > self.bytes_max {
            return Err(HubError::TooLong {
                url: self.url.clone(),
                bytes_max: self.bytes_max,
            });
        }
        Ok(piece)
    }
}

fn transport(url: String, error: reqwest::Error) -> HubError {
    let reason = words(&error.without_url());
    HubError::Transport { url, reason }
}

fn hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        // The hub says 401 for repositories that do not exist, too.
        401 | 403 => ": is the repository's name right? If it is private or gated, set HF_TOKEN",
        404 => ": are the repository's name and the revision right?",
        _ => "",
    }
}

/// An error and its causes, which a library's own words leave out.
pub(crate) fn words(mut error: &dyn Error) -> String {
    let mut words = error.to_string();
    while let Some(cause) = error.source() {
        words = format!("{words}: {cause}");
        error = cause;
    }
    words
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
