//! Where a server publishes, as it says itself: `GET /kv_event_sources`, vLLM 0.31 and later.
//!
//! It binds any free port then (`tcp://*:0`), and another one after a restart, so it is asked
//! before every connection.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::StatusCode;
use serde::Deserialize;

use crate::ask::{self, AskError};
use crate::fleet::Endpoint;

/// From question to the whole answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Some hundred ranks of some 250 bytes each.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Why it is not known where a server publishes, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// Before anything was asked.
    #[error("GET {url}: cannot ask: {reason}")]
    Client {
        /// What was to be asked.
        url: String,
        /// The library's words.
        reason: String,
    },
    /// No answer, or one that broke off.
    #[error("GET {url}: {reason}; does vLLM serve plain HTTP there, and is it up?")]
    Transport {
        /// What was asked.
        url: String,
        /// The library's words.
        reason: String,
    },
    /// Another answer than the one wanted.
    #[error(
        "GET {url}: {status}; vLLM answers from 0.31 on: for an older one give its publisher's \
         address as events, in place of discover"
    )]
    Status {
        /// What was asked.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// An answer that makes no sense, or does not help.
    #[error("GET {url}: {reason}")]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// Asks one server for one rank's sockets.
#[derive(Debug)]
pub struct Discovery {
    url: String,
    address: SocketAddr,
    rank: u32,
}

/// Where a rank's sockets are, as we reach them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The PUB socket, `tcp://host:port`.
    pub publisher: String,
    /// The ROUTER socket, where there is one.
    pub replay: Option<String>,
}

/// Where a server replays, as far as that is known by now.
#[derive(Debug, Clone, Default)]
pub struct ReplayAt(Arc<Mutex<Option<String>>>);

impl ReplayAt {
    /// As an operator says, if he does.
    #[must_use]
    pub fn new(address: Option<String>) -> Self {
        Self(Arc::new(Mutex::new(address)))
    }

    /// As of now.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.0.lock().clone()
    }

    pub(super) fn set(&self, address: Option<String>) {
        *self.0.lock() = address;
    }
}

/// What is said of one rank. There is more in it.
#[derive(Debug, Deserialize)]
struct Entry {
    endpoint: Option<String>,
    replay_endpoint: Option<String>,
}

impl Discovery {
    /// Asks where the endpoint serves.
    #[must_use]
    pub fn of(endpoint: &Endpoint) -> Self {
        Self {
            url: format!("http://{}/kv_event_sources", endpoint.address),
            address: endpoint.address,
            rank: endpoint.rank.unwrap_or(0),
        }
    }

    /// What is asked.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Asks once.
    ///
    /// # Errors
    /// See [`DiscoverError`].
    pub async fn ask(&self) -> Result<Found, DiscoverError> {
        let body = ask::get(&self.url, ANSWER_MAX, ANSWER_BYTES_MAX).await;
        let body = body.map_err(|error| self.unasked(error))?;
        let found = read(&body, self.rank, self.address.ip());
        found.map_err(|reason| self.answer(reason))
    }

    fn unasked(&self, error: AskError) -> DiscoverError {
        let url = self.url.clone();
        match error {
            AskError::Client(reason) => DiscoverError::Client { url, reason },
            AskError::Transport(reason) => DiscoverError::Transport { url, reason },
            AskError::Status(status) => DiscoverError::Status { url, status },
            AskError::Late(_) => DiscoverError::Transport {
                url,
                reason: error.to_string(),
            },
            AskError::Long(_) => self.answer(error.to_string()),
        }
    }

    fn answer(&self, reason: String) -> DiscoverError {
        let url = self.url.clone();
        DiscoverError::Answer { url, reason }
    }
}

/// What an answer says of a rank of the server at `ip`.
fn read(body: &[u8], rank: u32, ip: IpAddr) -> Result<Found, String> {
    let all: BTreeMap<String, Entry> = serde_json::from_slice(body)
        .map_err(|error| format!("not a list of event sources: {error}; is that vLLM?"))?;
    let Some(entry) = all.get(&rank.to_string()) else {
        let ranks: Vec<_> = all.keys().take(8).map(String::as_str).collect();
        return Err(match ranks.is_empty() {
            true => "it publishes no events: start vLLM with --kv-events-config".to_owned(),
            false => format!(
                "no rank {rank} among {}: is data_parallel_size right?",
                ranks.join(", ")
            ),
        });
    };
    let Some(publisher) = &entry.endpoint else {
        let reason =
            "it publishes no events by ZeroMQ: is the publisher of --kv-events-config zmq?";
        return Err(reason.to_owned());
    };
    let replay = entry.replay_endpoint.as_deref();
    Ok(Found {
        publisher: reached(publisher, ip)?,
        replay: replay.map(|replay| reached(replay, ip)).transpose()?,
    })
}

/// A bound socket as it is reached. vLLM 0.32 binds `tcp://*:0` to one ip, its node's, and says that;
/// any other wildcard it repeats as it was configured. A name is what it connects to.
fn reached(socket: &str, ip: IpAddr) -> Result<String, String> {
    let parts = socket
        .strip_prefix("tcp://")
        .and_then(|rest| rest.rsplit_once(':'));
    let Some((host, Ok(port))) = parts.map(|(host, port)| (host, port.parse::<u16>())) else {
        return Err(format!("{socket:?} is not tcp://host:port: bind tcp://*:0"));
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = match host {
        "*" => Some(ip),
        host => host.parse().ok(),
    };
    match host {
        Some(host) if host.is_unspecified() => Ok(format!("tcp://{}", SocketAddr::new(ip, port))),
        // Its own loopback is not ours.
        Some(host) if !host.is_loopback() || ip.is_loopback() => {
            Ok(format!("tcp://{}", SocketAddr::new(host, port)))
        }
        _ => Err(format!(
            "{socket:?} is no ip that we reach it at: bind tcp://*:0 there, or where vLLM is to \
             connect to us, set events.bind"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_for(rank: u32, body: &str) -> Result<Found, String> {
        read(body.as_bytes(), rank, "10.0.0.7".parse().expect("an ip"))
    }

    #[test]
    fn a_rank_finds_its_sockets_where_its_server_is() {
        let body = r#"{
            "0": {"endpoint": "tcp://*:40123", "replay_endpoint": "tcp://0.0.0.0:40124", "topic": ""},
            "1": {"endpoint": "tcp://[::]:40125", "replay_endpoint": null, "hwm": 100000},
            "10": {"endpoint": "tcp://192.0.2.2:40126", "replay_endpoint": "tcp://192.0.2.2:40127"}
        }"#;
        let found_at = |host: &str, publisher: u16, replay: Option<u16>| {
            let at = |port| format!("tcp://{host}:{port}");
            let (publisher, replay) = (at(publisher), replay.map(at));
            Ok(Found { publisher, replay })
        };
        let found = |publisher, replay| found_at("10.0.0.7", publisher, replay);
        assert_eq!(read_for(0, body), found(40123, Some(40124)));
        assert_eq!(read_for(1, body), found(40125, None));
        // Bound to another ip of its node, as vLLM binds tcp://*:0.
        let elsewhere = found_at("192.0.2.2", 40126, Some(40127));
        assert_eq!(read_for(10, body), elsewhere);
        let six = read(
            br#"{"0": {"endpoint": "tcp://*:1"}}"#,
            0,
            "fd00::7".parse().expect("an ip"),
        );
        assert_eq!(six.expect("found").publisher, "tcp://[fd00::7]:1");
    }

    #[test]
    fn an_answer_that_does_not_help_says_what_would() {
        for (body, part) in [
            ("<html>", "is that vLLM?"),
            ("{}", "--kv-events-config"),
            (r#"{"1": {"endpoint": "tcp://*:1"}}"#, "no rank 0 among 1"),
            (r#"{"0": {"endpoint": null}}"#, "by ZeroMQ"),
            (r#"{"0": {"endpoint": "ipc:///run/kv"}}"#, "is not tcp://"),
            (
                r#"{"0": {"endpoint": "tcp://kvscout:5557"}}"#,
                "events.bind",
            ),
            (
                r#"{"0": {"endpoint": "tcp://127.0.0.1:5557"}}"#,
                "no ip that we reach",
            ),
        ] {
            let said = read_for(0, body).expect_err(body);
            assert!(said.contains(part), "{body}: {said}");
        }
    }
}
