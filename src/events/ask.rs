//! One question to a server's HTTP port: an answer that is not too long, in time.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, StatusCode, redirect};
use tokio::time::timeout;

use crate::models::words;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Before anything was asked.
    #[error("cannot ask: {0}")]
    Client(String),
    /// No answer, or one that broke off.
    #[error("{0}")]
    Transport(String),
    /// Another answer than the one wanted.
    #[error("{0}")]
    Status(StatusCode),
    /// Longer than it should be.
    #[error("more than {0} bytes: is that vLLM?")]
    Long(usize),
}

/// The body of a 200.
///
/// # Errors
/// See [`AskError`].
pub async fn get(url: &str, within: Duration, bytes_max: usize) -> Result<Vec<u8>, AskError> {
    match timeout(within, fetch(url, bytes_max)).await {
        Ok(body) => body,
        Err(_late) => Err(AskError::Transport(format!("no answer within {within:?}"))),
    }
}

async fn fetch(url: &str, bytes_max: usize) -> Result<Vec<u8>, AskError> {
    let client = client().map_err(|error| AskError::Client(words(error.as_ref())))?;
    let failed = |error: reqwest::Error| AskError::Transport(words(&error.without_url()));
    let mut answer = client.get(url).send().await.map_err(failed)?;
    if answer.status() != StatusCode::OK {
        return Err(AskError::Status(answer.status()));
    }
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        if body.len() + piece.len() > bytes_max {
            return Err(AskError::Long(bytes_max));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// For one question to a pod: no proxy stands between, and nobody sends us elsewhere.
fn client() -> Result<Client, Box<dyn Error>> {
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let builder = Client::builder()
        .user_agent(concat!("kvscout/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .redirect(redirect::Policy::none())
        .tls_backend_preconfigured(tls);
    Ok(builder.build()?)
}
