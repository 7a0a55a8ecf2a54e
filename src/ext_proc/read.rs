//! What Envoy's messages say, in our words.

use std::net::SocketAddr;

use prost_types::{Value, value::Kind};

use super::reply::METADATA;
use crate::proto::core::Metadata;
use crate::proto::ext_proc::{HttpHeaders, ProtocolConfiguration};
use crate::proto::filter::processing_mode::BodySendMode;

const SUBSET_METADATA: &str = "envoy.lb.subset_hint";
const SUBSET: &str = "x-gateway-destination-endpoint-subset";
const SERVED: &str = "x-gateway-destination-endpoint-served";

/// The request header by which upstream's conformance suite names endpoints.
pub const CONFORMANCE_SELECTION: &str = "test-epp-endpoint-selection";

// Request headers of two names: llm-d's comes first, as there.

/// Those that name an InferenceObjective.
pub const OBJECTIVE: [&str; 2] = [
    "x-llm-d-inference-objective",
    "x-gateway-inference-objective",
];
/// Those that name whom a request is for, so that nobody's wait behind all of somebody else's.
pub const FAIRNESS: [&str; 2] = [
    "x-llm-d-inference-fairness-id",
    "x-gateway-inference-fairness-id",
];
/// Those by which a gateway says which model serves a request, in place of the one in its body.
pub const TARGET: [&str; 2] = ["x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"];

/// How Envoy shows us a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// In chunks, of which it keeps none: they must come back. Also what is assumed of a gateway
    /// that does not say: agentgateway before 1.3 is one, and has no other mode.
    #[default]
    FullDuplex,
    /// In one message, of which it keeps a copy.
    Buffered,
    /// In chunks, of which it keeps each until it is answered: a request's come too late to matter.
    Streamed,
    /// Not at all.
    Unseen,
}

/// The modes of the request's and of the response's body.
#[must_use]
pub fn modes(config: Option<ProtocolConfiguration>) -> (Mode, Mode) {
    let Some(config) = config else {
        return (Mode::default(), Mode::default());
    };
    (
        mode(config.request_body_mode()),
        mode(config.response_body_mode()),
    )
}

fn mode(mode: BodySendMode) -> Mode {
    match mode {
        BodySendMode::FullDuplexStreamed | BodySendMode::Grpc => Mode::FullDuplex,
        BodySendMode::Buffered | BodySendMode::BufferedPartial => Mode::Buffered,
        BodySendMode::Streamed => Mode::Streamed,
        BodySendMode::None => Mode::Unseen,
    }
}

/// A header's value, where it is text. Envoy writes names in lower case, and values as raw bytes
/// or, in old versions, as a string.
#[must_use]
pub fn header(headers: &HttpHeaders, name: &str) -> Option<String> {
    let map = headers.headers.as_ref()?;
    let found = map.headers.iter().find(|header| header.key == name)?;
    if found.raw_value.is_empty() {
        return Some(found.value.clone());
    }
    std::str::from_utf8(&found.raw_value)
        .ok()
        .map(str::to_owned)
}

/// Whether the client wants another protocol from here on, so that its body has no end: HTTP/1's
/// `upgrade`, which Envoy has of HTTP/2's extended CONNECT, too, or a tunnel. Some clients offer h2c with
/// every request, which changes nothing; Envoy takes that away.
#[must_use]
pub fn upgrades(headers: &HttpHeaders) -> bool {
    let to = header(headers, "upgrade").filter(|to| !to.eq_ignore_ascii_case("h2c"));
    to.is_some() || header(headers, ":method").as_deref() == Some("CONNECT")
}

/// The first of these headers that says something.
#[must_use]
pub fn first(headers: &HttpHeaders, names: &[impl AsRef<str>]) -> Option<String> {
    let values = names
        .iter()
        .filter_map(|name| header(headers, name.as_ref()));
    values
        .map(|value| value.trim().to_owned())
        .find(|value| !value.is_empty())
}

/// The endpoints that the gateway allows; `None` where it allows all.
#[must_use]
pub fn subset(metadata: Option<&Metadata>) -> Option<Vec<String>> {
    match &field(metadata?, SUBSET_METADATA, SUBSET)?.kind {
        Some(Kind::StringValue(list)) => Some(addresses(list)),
        Some(Kind::ListValue(list)) => Some(
            list.values
                .iter()
                .filter_map(text)
                .flat_map(addresses)
                .collect(),
        ),
        // A hint that cannot be read allows nothing: it was meant to exclude.
        _ => Some(Vec::new()),
    }
}

/// Who served, where the gateway says.
#[must_use]
pub fn served(metadata: Option<&Metadata>) -> Option<SocketAddr> {
    field(metadata?, METADATA, SERVED)
        .and_then(text)?
        .trim()
        .parse()
        .ok()
}

/// A comma-separated list.
#[must_use]
pub fn addresses(list: &str) -> Vec<String> {
    let trimmed = list.split(',').map(str::trim);
    trimmed
        .filter(|a| !a.is_empty())
        .map(str::to_owned)
        .collect()
}

fn field<'a>(metadata: &'a Metadata, space: &str, key: &str) -> Option<&'a Value> {
    metadata.filter_metadata.get(space)?.fields.get(key)
}

fn text(value: &Value) -> Option<&str> {
    match &value.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}
