//! A running kvscout's admin port, as the commands that ask it know it.

use std::env::VarError;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::ask::{self, Question};

/// Reading a long prompt may wait for a core.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// 1,024 candidates of 500 bytes, twenty times.
const ANSWER_BYTES_MAX: usize = 10 << 20;
/// Holds the token where no file does.
const TOKEN: &str = "KVSCOUT_ADMIN_TOKEN";

/// Where a running kvscout is asked.
#[derive(Debug, clap::Args)]
pub struct AdminPort {
    /// The admin port of a running kvscout.
    #[arg(
        long = "admin",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:9090"
    )]
    pub address: String,
    /// A file with the token of listen.admin_token, for a kvscout on another host; or the environment's
    /// KVSCOUT_ADMIN_TOKEN is the token.
    #[arg(long = "admin-token", value_name = "FILE")]
    pub token: Option<PathBuf>,
}

impl AdminPort {
    /// What a page says.
    ///
    /// # Errors
    /// Nobody answers, or not with the page.
    pub async fn get(&self, page: &str) -> anyhow::Result<Vec<u8>> {
        self.ask(page, None).await
    }

    /// What a page says to that.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post(&self, page: &str, body: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        self.ask(page, Some(body)).await
    }

    async fn ask(&self, page: &str, body: Option<Vec<u8>>) -> anyhow::Result<Vec<u8>> {
        let token = self.token()?;
        let question = Question {
            url: &format!("http://{}{page}", self.address),
            body,
            token: token.as_deref(),
        };
        let answer = ask::question(question, ANSWER_MAX, ANSWER_BYTES_MAX).await;
        let (status, answer) = answer.with_context(|| {
            let address = &self.address;
            format!("no answer of kvscout's admin port at {address} (flag --admin)")
        })?;
        if !status.is_success() {
            let said = String::from_utf8_lossy(&answer);
            let next = match (status.as_u16(), &token) {
                (401, None) => {
                    format!(" (--admin-token FILE, or {TOKEN} in the environment, shows it)")
                }
                (401, Some(_)) => " (another token was shown)".to_owned(),
                _ => String::new(),
            };
            bail!("{status}: {}{next}", said.trim());
        }
        Ok(answer)
    }

    fn token(&self) -> anyhow::Result<Option<String>> {
        let (token, from) = match &self.token {
            Some(path) => {
                let from = format!("--admin-token {}", path.display());
                (std::fs::read_to_string(path).context(from.clone())?, from)
            }
            None => match std::env::var(TOKEN) {
                Ok(token) => (token, TOKEN.to_owned()),
                Err(VarError::NotPresent) => return Ok(None),
                Err(VarError::NotUnicode(_)) => bail!("{TOKEN} is not text"),
            },
        };
        let token = token.trim();
        let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(is_token, "{from} holds no token: visible ASCII in one line");
        Ok(Some(token.to_owned()))
    }
}
