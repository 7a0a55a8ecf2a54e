//! NATS JetStream between bridges and pickers: names, messages, and the source that reads them.
//!
//! ```text
//! kv.<namespace>.<pool>.<pod>.<rank>                 every batch, as vLLM published it   (stream)
//! kv-beat.<namespace>.<pool>.<pod>.<rank>            every two seconds: what a bridge knows
//! kv-ask.<namespace>.<pool>.<pod>.<rank>             asks for that at once
//! kv-work.<namespace>.<pool>.<replica>               what a picker has in flight (`crate::replicas`)
//! <stream>_SNAPSHOTS / <namespace>.<pool>.<pod>.<rank>    what the server held         (bucket)
//! ```
//!
//! A batch's headers say which process of the engine it came from, its number there, and the
//! number of the batch that the bridge published before it; its message id makes the stream drop
//! what a bridge sends twice.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::stream::{self, DiscardPolicy, StorageType};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, Event, HeaderMap};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::backoff::Backoff;
use super::order::Stamp;
use crate::config::Nats;
use crate::fleet::{Endpoint, Trust};

mod bucket;
mod source;

pub use source::NatsSource;

/// Between two words of a bridge about one server.
pub const BEAT_EVERY: Duration = Duration::from_secs(2);

/// From request to answer; past it a call is made again.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long to wait for a cluster that is away.
#[must_use]
pub fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(5))
}

const EPOCH: &str = "Kv-Epoch";
const SEQ: &str = "Kv-Seq";
const PREV: &str = "Kv-Prev";
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// What cannot be done with NATS, and what to look at.
#[derive(Debug)]
pub struct NatsError(String);

impl fmt::Display for NatsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NatsError {}

impl NatsError {
    /// What failed, and why.
    #[must_use]
    pub fn new(what: &str, error: &dyn fmt::Display) -> Self {
        Self(format!("{what}: {error}"))
    }
}

/// A connection to a cluster, kept up by itself, and the names there.
#[derive(Debug, Clone)]
pub struct Cluster {
    client: Client,
    jetstream: Context,
    settings: Nats,
    /// How often it was made, again or for the first time.
    connections: watch::Receiver<u64>,
}

/// What a bridge knows of one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The process and the number of the last batch published; none before the first.
    pub last: Option<(u64, u64)>,
    /// The word for [`Trust`] in the bridge's own picture.
    pub trust: String,
    /// Why.
    pub reason: String,
}

impl Beat {
    /// Whether the bridge hears the server and has all that it held.
    fn is_live(&self) -> bool {
        self.trust == Trust::Live.as_str()
    }

    fn is_silent(&self) -> bool {
        self.trust == Trust::Silent.as_str()
    }
}

impl Cluster {
    /// Begins to connect; servers that are not up yet are tried again and again.
    ///
    /// # Errors
    /// A file that cannot be read, or an address that is none.
    pub async fn connect(settings: &Nats) -> Result<Self, NatsError> {
        Self::connect_by(ConnectOptions::new(), settings).await
    }

    /// The same where of each subscription at most so many messages wait to be read; more are lost.
    ///
    /// # Errors
    /// As there.
    pub async fn connect_with(settings: &Nats, waiting_max: usize) -> Result<Self, NatsError> {
        let options = ConnectOptions::new().subscription_capacity(waiting_max);
        Self::connect_by(options, settings).await
    }

    async fn connect_by(options: ConnectOptions, settings: &Nats) -> Result<Self, NatsError> {
        let (connected, connections) = watch::channel(0);
        let mut options = options
            .name("kvscout")
            .retry_on_initial_connect()
            .max_reconnects(None)
            .ping_interval(Duration::from_secs(10))
            .request_timeout(Some(ANSWER_MAX))
            .event_callback(move |event| {
                report(&event);
                if event == Event::Connected {
                    connected.send_modify(|connections| *connections += 1);
                }
                std::future::ready(())
            });
        if let Some(file) = &settings.credentials {
            let what = format!("events.nats.credentials: {}", file.display());
            let read = options.credentials_file(file).await;
            options = read.map_err(|error| NatsError::new(&what, &error))?;
        }
        if let Some(file) = &settings.nkey {
            let what = format!("events.nats.nkey: {}", file.display());
            let seed = std::fs::read_to_string(file);
            let seed = seed.map_err(|error| NatsError::new(&what, &error))?;
            options = options.nkey(seed.trim().to_owned());
        }
        if let Some(ca) = &settings.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&settings.cert, &settings.key) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        let servers = settings.servers.join(",");
        let what = format!("events.nats.servers: {servers}");
        let client = options.connect(&settings.servers).await;
        let client = client.map_err(|error| NatsError::new(&what, &error))?;
        let jetstream = jetstream::ContextBuilder::new()
            .timeout(ANSWER_MAX)
            .ack_timeout(ANSWER_MAX)
            .build(client.clone());
        Ok(Self {
            client,
            jetstream,
            settings: settings.clone(),
            connections,
        })
    }

    /// What the operator said.
    #[must_use]
    pub fn settings(&self) -> &Nats {
        &self.settings
    }

    /// Where calls go.
    #[must_use]
    pub fn jetstream(&self) -> &Context {
        &self.jetstream
    }

    /// The subject of an endpoint's batches.
    #[must_use]
    pub fn subject(&self, endpoint: &Endpoint) -> String {
        format!("kv.{}", self.object(endpoint))
    }

    fn beat_subject(&self, endpoint: &Endpoint) -> String {
        format!("kv-beat.{}", self.object(endpoint))
    }

    /// Where a bridge is asked for its word at once.
    #[must_use]
    pub fn ask_subject(&self, endpoint: &Endpoint) -> String {
        format!("kv-ask.{}", self.object(endpoint))
    }

    async fn ask(&self, endpoint: &Endpoint) -> Result<(), NatsError> {
        let asked = self.client.publish(self.ask_subject(endpoint), "".into());
        asked
            .await
            .map_err(|error| NatsError::new("a question", &error))
    }

    /// The connection itself.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The name of an endpoint's snapshot.
    fn object(&self, endpoint: &Endpoint) -> String {
        object(&self.settings, endpoint)
    }

    /// Says what is known of an endpoint, to whoever listens.
    ///
    /// # Errors
    /// The connection's.
    pub async fn beat(&self, endpoint: &Endpoint, beat: &Beat) -> Result<(), NatsError> {
        let payload = serde_json::to_vec(beat).expect("plain data is written");
        let sent = self
            .client
            .publish(self.beat_subject(endpoint), payload.into())
            .await;
        sent.map_err(|error| NatsError::new("a beat", &error))
    }

    /// The stream as it is now.
    ///
    /// # Errors
    /// It is not there, or nobody answers.
    pub async fn stream(&self) -> Result<stream::Stream, NatsError> {
        let name = &self.settings.stream.name;
        let what = format!("the stream {name} (`kvscout bridge --init` makes it)");
        let found = self.jetstream.get_stream(name).await;
        found.map_err(|error| NatsError::new(&what, &error))
    }

    /// Makes the stream and the bucket, or gives them the settings; says what it did.
    ///
    /// # Errors
    /// The cluster refuses, or nobody answers.
    pub async fn init(&self) -> Result<Vec<String>, NatsError> {
        let wanted = self.stream_config();
        let name = wanted.name.clone();
        let mut done = Vec::new();
        let made = match self.jetstream.get_stream(&name).await {
            Ok(_) => "updated",
            Err(_) => "made",
        };
        let summary = format!(
            "stream {name} for {}: {} s, {} bytes, {} on {} servers",
            wanted.subjects.join(", "),
            wanted.max_age.as_secs(),
            wanted.max_bytes,
            if self.settings.stream.in_memory {
                "in memory"
            } else {
                "in files"
            },
            wanted.num_replicas
        );
        let what = format!("the stream {name}");
        let result = self.jetstream.create_or_update_stream(wanted).await;
        result.map_err(|error| NatsError::new(&what, &error))?;
        done.push(format!("{made}: {summary}"));
        let bucket = self.bucket();
        if self
            .jetstream
            .get_object_store(bucket.as_str())
            .await
            .is_ok()
        {
            done.push(format!("there already: bucket {bucket}"));
            return Ok(done);
        }
        let what = format!("the bucket {bucket}");
        let result = self
            .jetstream
            .create_object_store(self.bucket_config())
            .await;
        result.map_err(|error| NatsError::new(&what, &error))?;
        done.push(format!("made: bucket {bucket}"));
        Ok(done)
    }

    fn stream_config(&self) -> stream::Config {
        let wanted = &self.settings.stream;
        stream::Config {
            name: wanted.name.clone(),
            description: Some("vLLM's KV cache events, as kvscout's bridges hear them".to_owned()),
            subjects: vec!["kv.>".to_owned()],
            max_age: Duration::from_secs(wanted.max_age_s),
            max_bytes: i64::try_from(wanted.max_bytes).unwrap_or(i64::MAX),
            discard: DiscardPolicy::Old,
            storage: self.storage(),
            num_replicas: wanted.replicas,
            // A bridge that starts again sends what it does not know to have arrived.
            duplicate_window: Duration::from_secs(120.min(wanted.max_age_s)),
            allow_direct: true,
            placement: self.placement(),
            ..stream::Config::default()
        }
    }

    fn storage(&self) -> StorageType {
        match self.settings.stream.in_memory {
            true => StorageType::Memory,
            false => StorageType::File,
        }
    }

    fn placement(&self) -> Option<stream::Placement> {
        let tags = self.settings.stream.placement.clone();
        (!tags.is_empty()).then_some(stream::Placement {
            cluster: None,
            tags,
        })
    }
}

/// When a stream was made, in nanoseconds since 1970: one made again is another one.
#[must_use]
pub fn born(stream: &stream::Stream) -> i64 {
    let created = stream.cached_info().created;
    i64::try_from(created.unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

/// What a connection tells of itself, for the log.
fn report(event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Disconnected => tracing::warn!("NATS is out of reach; trying again"),
        Event::SlowConsumer(_) => {
            tracing::warn!("NATS: words of bridges or replicas were dropped here")
        }
        other => tracing::warn!(event = %other, "NATS"),
    }
}

/// The pod's name is one word and the rank another, so that a pod's ranks stand together.
fn object(settings: &Nats, endpoint: &Endpoint) -> String {
    let Nats {
        namespace, pool, ..
    } = settings;
    let (pod, rank) = (as_word(&endpoint.pod), endpoint.rank.unwrap_or(0));
    format!("{namespace}.{pool}.{pod}.{rank}")
}

/// A name as a word of a subject: what is no letter, digit, - or _ is spelled as %XX.
fn as_word(name: &str) -> String {
    let mut word = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => word.push(char::from(byte)),
            other => word.push_str(&format!("%{other:02X}")),
        }
    }
    word
}

/// A batch's headers. The stream drops a message whose id it has seen in the last minutes; `life`
/// tells a process from itself where a bridge has to publish it from its start again.
#[must_use]
pub fn to_headers(subject: &str, stamp: Stamp, life: u64) -> HeaderMap {
    let Stamp { epoch, seq, prev } = stamp;
    let mut headers = HeaderMap::new();
    headers.insert(EPOCH, format!("{epoch:016x}"));
    headers.insert(SEQ, seq.to_string());
    if let Some(prev) = prev {
        headers.insert(PREV, prev.to_string());
    }
    headers.insert(MESSAGE_ID, format!("{subject}/{epoch:016x}/{life:x}/{seq}"));
    headers
}

/// What a batch's headers say; none where nobody's bridge wrote them.
#[must_use]
pub fn of_headers(headers: &HeaderMap) -> Option<Stamp> {
    let text = |name: &str| headers.get(name).map(|value| value.as_str());
    let prev = match text(PREV) {
        None => None,
        Some(number) => Some(number.parse().ok()?),
    };
    Some(Stamp {
        epoch: u64::from_str_radix(text(EPOCH)?, 16).ok()?,
        seq: text(SEQ)?.parse().ok()?,
        prev,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_one_word_of_a_subject_and_no_two_are_the_same() {
        assert_eq!(as_word("pod-1_a"), "pod-1_a");
        assert_eq!(as_word("10.0.0.1:80"), "10%2E0%2E0%2E1%3A80");
        assert_ne!(as_word("a.b"), as_word("a%2Eb"));
        assert!(!as_word("a b*>é").contains(['.', ' ', '*', '>']));
    }

    #[test]
    fn ranks_of_a_pod_differ_by_the_last_word() {
        let address = "10.0.0.1:80".parse().expect("an address");
        let pod = || Endpoint::new(crate::fleet::EndpointId(0), "pod-a".into(), address, None);
        let name = |endpoint| object(&Nats::default(), &endpoint);
        assert_eq!(name(pod()), "default.default.pod-a.0");
        assert_eq!(name(pod().of_rank(0)), name(pod()));
        assert_eq!(name(pod().of_rank(7)), "default.default.pod-a.7");
    }

    #[test]
    fn the_previous_versions_bridge_is_understood() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("Kv-Epoch", "00000000000000ff"),
            ("Kv-Seq", "7"),
            ("Kv-Prev", "6"),
            (
                "Nats-Msg-Id",
                "kv.default.default.pod-1.0/00000000000000ff/0/7",
            ),
        ] {
            headers.insert(name, value);
        }
        let stamp = Stamp {
            epoch: 255,
            seq: 7,
            prev: Some(6),
        };
        assert_eq!(of_headers(&headers), Some(stamp));
        assert_eq!(to_headers("kv.default.default.pod-1.0", stamp, 0), headers);
        let kept = r#"{"last":[255,7],"trust":"live","reason":"complete from sequence 0"}"#;
        let beat: Beat = serde_json::from_str(kept).expect("a beat");
        assert_eq!(serde_json::to_string(&beat).expect("plain data"), kept);
        // What a later one says besides.
        let later = kept.replace("}", r#","pods":3}"#);
        assert_eq!(serde_json::from_str::<Beat>(&later).ok(), Some(beat));
    }

    #[test]
    fn headers_say_what_was_written_into_them() {
        for prev in [None, Some(0), Some(u64::MAX)] {
            let stamp = Stamp {
                epoch: u64::MAX,
                seq: 7,
                prev,
            };
            assert_eq!(of_headers(&to_headers("kv.a", stamp, 0)), Some(stamp));
        }
        assert_eq!(of_headers(&HeaderMap::new()), None);
    }
}
