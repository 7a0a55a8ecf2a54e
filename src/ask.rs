//! Questions to a server's HTTP port: an answer that is not too long, in time.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{StatusCode, redirect};
use tokio::time::timeout;

use crate::models::words;

/// vLLM's HTTP server closes a connection that was idle for 5 s; a question sent at that moment
/// fails, so we close first.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Before anything was asked.
    #[error("cannot ask: {0}")]
    Client(String),
    /// No answer, or one that broke off.
    #[error("{0}")]
    Transport(String),
    /// Not the whole answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// Another answer than the one wanted.
    #[error("{0}")]
    Status(StatusCode),
    /// Longer than it should be.
    #[error("more than {0} bytes: is that vLLM?")]
    Long(usize),
}

/// Asks pods, and keeps one connection to each for the next time.
#[derive(Debug, Clone)]
pub struct Client(reqwest::Client);

impl Client {
    /// No proxy stands between a pod and us, and nobody sends us elsewhere.
    ///
    /// # Errors
    /// [`AskError::Client`], the library's words.
    pub fn new() -> Result<Self, AskError> {
        let build = || -> Result<reqwest::Client, Box<dyn Error>> {
            let ring = Arc::new(rustls::crypto::ring::default_provider());
            let tls = rustls::ClientConfig::builder_with_provider(ring)
                .with_safe_default_protocol_versions()?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            let builder = reqwest::Client::builder()
                .user_agent(concat!("kvscout/", env!("CARGO_PKG_VERSION")))
                .no_proxy()
                .redirect(redirect::Policy::none())
                .pool_max_idle_per_host(1)
                .pool_idle_timeout(IDLE_MAX)
                .tls_backend_preconfigured(tls);
            Ok(builder.build()?)
        };
        let client = build().map_err(|error| AskError::Client(words(error.as_ref())))?;
        Ok(Self(client))
    }

    /// The body of a 200.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn get(
        &self,
        url: &str,
        within: Duration,
        bytes_max: usize,
    ) -> Result<Vec<u8>, AskError> {
        let fetched = timeout(within, self.fetch(url, bytes_max)).await;
        fetched.unwrap_or(Err(AskError::Late(within)))
    }

    async fn fetch(&self, url: &str, bytes_max: usize) -> Result<Vec<u8>, AskError> {
        match answer(self.0.get(url), bytes_max).await? {
            (StatusCode::OK, body) => Ok(body),
            (status, _) => Err(AskError::Status(status)),
        }
    }
}

/// What is asked of a server.
#[derive(Debug)]
pub struct Question<'a> {
    /// Where.
    pub url: &'a str,
    /// A body makes it a POST.
    pub body: Option<Vec<u8>>,
    /// Shown as `Authorization: Bearer`.
    pub token: Option<&'a str>,
}

/// One question by a client of its own: whatever the answer is.
///
/// # Errors
/// See [`AskError`].
pub async fn question(
    question: Question<'_>,
    within: Duration,
    bytes_max: usize,
) -> Result<(StatusCode, Vec<u8>), AskError> {
    let client = Client::new()?.0;
    let mut request = match question.body {
        Some(body) => client.post(question.url).body(body),
        None => client.get(question.url),
    };
    if let Some(token) = question.token {
        request = request.bearer_auth(token);
    }
    let answered = timeout(within, answer(request, bytes_max)).await;
    answered.unwrap_or(Err(AskError::Late(within)))
}

async fn answer(
    request: reqwest::RequestBuilder,
    bytes_max: usize,
) -> Result<(StatusCode, Vec<u8>), AskError> {
    let failed = |error: reqwest::Error| AskError::Transport(words(&error.without_url()));
    let mut answer = request.send().await.map_err(failed)?;
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        if body.len() + piece.len() > bytes_max {
            return Err(AskError::Long(bytes_max));
        }
        body.extend_from_slice(&piece);
    }
    Ok((answer.status(), body))
}

/// One question, by a client of its own.
///
/// # Errors
/// See [`AskError`].
pub async fn get(url: &str, within: Duration, bytes_max: usize) -> Result<Vec<u8>, AskError> {
    Client::new()?.get(url, within, bytes_max).await
}
