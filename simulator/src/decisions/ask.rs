//! A request, as Envoy has it: asked, sent on where kvscout says, and answered.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use kvscout::config;
use tonic::transport::Channel;

pub use super::stream::Link;
use super::stream::{self, Stream, Took};
use crate::outgoing;

/// A stream that takes longer is an error.
const TAKES_MAX: Duration = Duration::from_secs(30);
/// What Envoy answers for a pod that it does not reach.
const UNREACHED: u16 = 503;

/// Who asks.
#[derive(Debug, Clone)]
pub struct Asker {
    /// To kvscout.
    channels: Vec<Channel>,
    http: reqwest::Client,
}

/// What became of a request that kvscout placed.
#[derive(Debug)]
pub struct Asked {
    /// How long kvscout took.
    pub took: Took,
    /// What the pod answered, or Envoy in its place.
    pub status: u16,
}

impl Asked {
    /// Where pods do not fail.
    ///
    /// # Errors
    /// This one did.
    pub fn answered(self) -> anyhow::Result<Took> {
        let Self { took, status } = self;
        ensure!(status == 200, "{} answers {status}", took.endpoint);
        Ok(took)
    }
}

impl Asker {
    /// Over a connection for each core, as each of Envoy's workers has one.
    ///
    /// # Errors
    /// The certificate cannot be read, or nobody answers.
    pub async fn connect(to: SocketAddr, certificate: &Path) -> anyhow::Result<Self> {
        let mut channels = Vec::new();
        for _core in 0..config::threads() {
            channels.push(stream::connect(to, certificate).await?);
        }
        Ok(Self {
            channels,
            http: outgoing::client().timeout(TAKES_MAX).build()?,
        })
    }

    /// The same, over one connection alone: one of kvscout's threads serves it.
    #[must_use]
    pub fn over_one(&self) -> Self {
        Self {
            channels: self.channels[..1].to_vec(),
            http: self.http.clone(),
        }
    }

    /// The connection of a request of this number.
    #[must_use]
    pub fn channel(&self, number: u64) -> &Channel {
        let channels = self.channels.len() as u64;
        let at = usize::try_from(number % channels).unwrap_or_default();
        &self.channels[at]
    }

    /// A request of this number, whose body comes so fast.
    ///
    /// # Errors
    /// The stream is lost, takes too long, or is answered with no pick.
    pub async fn ask(&self, number: u64, body: Bytes, link: Link) -> anyhow::Result<Asked> {
        let ask = async {
            let mut stream = Stream::open(self.channel(number), number, body.len()).await?;
            stream.send(&body, true, link).await?;
            let took = stream.placed(body.len()).await?;
            let to: SocketAddr = took.endpoint.parse()?;
            let (status, answer) = match self.post(to, body).await {
                Ok(answered) => answered,
                Err(_) => (UNREACHED, Bytes::new()),
            };
            stream.answered(status, &answer).await?;
            Ok(Asked { took, status })
        };
        let asked = tokio::time::timeout(TAKES_MAX, ask).await;
        asked.context("a stream takes too long")?
    }

    async fn post(&self, to: SocketAddr, body: Bytes) -> reqwest::Result<(u16, Bytes)> {
        let url = format!("http://{to}/v1/chat/completions");
        let request = self
            .http
            .post(url)
            .header("content-type", "application/json");
        let answer = request.body(body).send().await?;
        Ok((answer.status().as_u16(), answer.bytes().await?))
    }
}
