//! Every message that Envoy gets from us is made here.

use std::net::SocketAddr;

use bytes::Bytes;
use prost_types::{Struct, Value, value::Kind};

use crate::proto::core::header_value_option::HeaderAppendAction;
use crate::proto::core::{HeaderValue, HeaderValueOption};
use crate::proto::ext_proc::processing_response::Response;
use crate::proto::ext_proc::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, ImmediateResponse,
    ProcessingResponse, StreamedBodyResponse, TrailersResponse, body_mutation::Mutation,
};
use crate::proto::http::{HttpStatus, StatusCode};
use crate::scheduler::Refusal;

/// The header, and the metadata key, that names the endpoint (Endpoint Picker Protocol 1.0).
pub const DESTINATION: &str = "x-gateway-destination-endpoint";
/// The metadata name space of the pick and of the served feedback.
pub const METADATA: &str = "envoy.lb";
/// The response header that tells clients how their request was placed.
pub const DECISION: &str = "x-kvscout-decision";
/// The response header by which upstream's conformance suite learns who served.
pub const CONFORMANCE_SERVED: &str = "x-conformance-test-served-endpoint";
/// Why a request was refused; the name that llm-d's clients know.
pub const DROPPED_REASON: &str = "x-llm-d-request-dropped-reason";

/// The request header by which vLLM runs a request on one of its data-parallel ranks.
pub const RANK: &str = "x-data-parallel-rank";

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick {
    /// What Envoy connects to.
    pub address: SocketAddr,
    /// What it may try next, in this order, where it reads a list.
    pub fallbacks: Vec<SocketAddr>,
    /// Which of the engines behind it; none where there is only one.
    pub rank: Option<u32>,
}

impl Pick {
    /// As the protocol writes it: `ip:port,ip:port`.
    fn list(&self) -> String {
        let all = std::iter::once(&self.address).chain(&self.fallbacks);
        let all: Vec<String> = all.map(ToString::to_string).collect();
        all.join(",")
    }
}

/// The most body bytes in one message. Envoy's gRPC buffers start at 64 KiB; the protocol's
/// reference keeps its chunks below that, with room for the frame around them.
pub const CHUNK_BYTES_MAX: usize = 62_000;

/// Which half of the exchange a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Client to server.
    Request,
    /// Server to client.
    Response,
}

/// What headers must say of another body than the client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Other {
    /// Its length, where they say one. Envoy answers 500 to a wrong one.
    pub length: Option<usize>,
}

/// The answer to request headers: go there, with another body where it changed.
#[must_use]
pub fn headers_with_pick(pick: &Pick, other: Option<Other>) -> ProcessingResponse {
    let headers = HeadersResponse {
        response: Some(to_pick(pick, other)),
    };
    with_metadata(Response::RequestHeaders(headers), pick)
}

/// The answer to a buffered request body: go there, with this body in its place, or as it is.
#[must_use]
pub fn body_with_pick(pick: &Pick, new: Option<Bytes>, other: Option<Other>) -> ProcessingResponse {
    let body = BodyResponse {
        response: Some(CommonResponse {
            body_mutation: new.map(whole),
            ..to_pick(pick, other)
        }),
    };
    with_metadata(Response::RequestBody(body), pick)
}

/// Headers pass, with these set and those removed.
#[must_use]
pub fn headers(side: Side, set: &[(&str, String)], remove: &[&str]) -> ProcessingResponse {
    let change = !(set.is_empty() && remove.is_empty());
    let mutation = change.then(|| HeaderMutation {
        set_headers: set.iter().map(|(k, v)| header(k, v)).collect(),
        remove_headers: remove.iter().map(ToString::to_string).collect(),
    });
    let common = CommonResponse {
        header_mutation: mutation,
        ..Default::default()
    };
    let headers = HeadersResponse {
        response: Some(common),
    };
    message(match side {
        Side::Request => Response::RequestHeaders(headers),
        Side::Response => Response::ResponseHeaders(headers),
    })
}

/// In the modes where Envoy kept a body, or a piece of one: it passes untouched, or these bytes do in its
/// place.
#[must_use]
pub fn body_kept(side: Side, new: Option<Bytes>) -> ProcessingResponse {
    let common = CommonResponse {
        body_mutation: new.map(whole),
        ..Default::default()
    };
    body(side, common)
}

/// A body's bytes back to Envoy, in the mode where it kept none, in as many messages as they
/// need. The end of the stream is on the last, so an empty body that ends is one message.
pub fn body_chunks(
    side: Side,
    bytes: Bytes,
    end: bool,
) -> impl Iterator<Item = ProcessingResponse> {
    let mut rest = Some(bytes).filter(|bytes| end || !bytes.is_empty());
    std::iter::from_fn(move || {
        let mut bytes = rest.take()?;
        let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES_MAX));
        let last = bytes.is_empty();
        rest = (!last).then_some(bytes);
        let mutation = Mutation::StreamedResponse(StreamedBodyResponse {
            body: chunk,
            end_of_stream: end && last,
            ..Default::default()
        });
        let common = CommonResponse {
            body_mutation: Some(BodyMutation {
                mutation: Some(mutation),
            }),
            ..Default::default()
        };
        Some(body(side, common))
    })
}

/// Trailers pass.
#[must_use]
pub fn trailers(side: Side) -> ProcessingResponse {
    let trailers = TrailersResponse::default();
    message(match side {
        Side::Request => Response::RequestTrailers(trailers),
        Side::Response => Response::ResponseTrailers(trailers),
    })
}

/// No endpoint can take the request, or we cannot: 503; or it is shed: 429; with a time for the next try,
/// where one may help.
#[must_use]
pub fn refused(refusal: Refusal) -> ProcessingResponse {
    let (status, reason, after) = match refusal {
        Refusal::NoEndpoint | Refusal::NoneInSubset => (
            StatusCode::ServiceUnavailable,
            "rejected-no-endpoints",
            None,
        ),
        Refusal::Shed { retry_after_s, .. } => (
            StatusCode::TooManyRequests,
            "rejected-saturated",
            Some(retry_after_s),
        ),
        Refusal::Overloaded => (
            StatusCode::ServiceUnavailable,
            "rejected-overloaded",
            Some(1),
        ),
    };
    immediate(
        status,
        reason,
        refusal.as_str(),
        &refusal.to_string(),
        after,
    )
}

/// Bytes of a body in a message.
#[must_use]
pub fn body_len(message: &ProcessingResponse) -> usize {
    let body = match &message.response {
        Some(Response::RequestBody(body) | Response::ResponseBody(body)) => body,
        _ => return 0,
    };
    let mutation = body
        .response
        .as_ref()
        .and_then(|common| common.body_mutation.as_ref());
    match mutation.and_then(|mutation| mutation.mutation.as_ref()) {
        Some(Mutation::Body(body)) => body.len(),
        Some(Mutation::StreamedResponse(chunk)) => chunk.body.len(),
        _ => 0,
    }
}

/// The request cannot be placed since it has no body where one must be: 400.
#[must_use]
pub fn body_missing() -> ProcessingResponse {
    let message = "the request ended in trailers without a body";
    immediate(
        StatusCode::BadRequest,
        "rejected-bad-request",
        "body_missing",
        message,
        None,
    )
}

/// An error in the shape that clients of the OpenAI API expect. `code` also becomes Envoy's
/// response code details, so it holds no blanks.
fn immediate(
    status: StatusCode,
    reason: &str,
    code: &str,
    text: &str,
    retry_after_s: Option<u64>,
) -> ProcessingResponse {
    let kind = match status {
        StatusCode::BadRequest => "invalid_request_error",
        StatusCode::TooManyRequests => "rate_limit_error",
        _ => "server_error",
    };
    let error = serde_json::json!({
        "error": {"message": text, "type": kind, "param": null, "code": code}
    });
    let mut set_headers = vec![
        header("content-type", "application/json"),
        header(DROPPED_REASON, reason),
    ];
    set_headers.extend(retry_after_s.map(|seconds| header("retry-after", &seconds.to_string())));
    let headers = HeaderMutation {
        set_headers,
        remove_headers: Vec::new(),
    };
    message(Response::ImmediateResponse(ImmediateResponse {
        status: Some(HttpStatus {
            code: status.into(),
        }),
        headers: Some(headers),
        body: error.to_string().into(),
        details: format!("kvscout_{code}"),
        ..Default::default()
    }))
}

fn whole(bytes: Bytes) -> BodyMutation {
    BodyMutation {
        mutation: Some(Mutation::Body(bytes)),
    }
}

/// Where the body names another model, its answer must come as it is: in a compressed one the client's name cannot
/// be put back.
fn to_pick(pick: &Pick, other: Option<Other>) -> CommonResponse {
    let rank = pick.rank.map(|rank| header(RANK, &rank.to_string()));
    let address = header(DESTINATION, &pick.list());
    let length = other.and_then(|other| other.length);
    let length = length.map(|length| header("content-length", &length.to_string()));
    let mutation = HeaderMutation {
        set_headers: [address].into_iter().chain(rank).chain(length).collect(),
        remove_headers: other
            .map(|_| "accept-encoding".to_owned())
            .into_iter()
            .collect(),
    };
    CommonResponse {
        header_mutation: Some(mutation),
        clear_route_cache: true,
        ..Default::default()
    }
}

/// Overwrites, so that a client cannot name an endpoint beside ours.
fn header(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.to_owned(),
            raw_value: value.to_owned().into(),
            ..Default::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..Default::default()
    }
}

fn with_metadata(response: Response, pick: &Pick) -> ProcessingResponse {
    let pick = Kind::StringValue(pick.list());
    let inner = Kind::StructValue(one_field(DESTINATION, pick));
    ProcessingResponse {
        dynamic_metadata: Some(one_field(METADATA, inner)),
        ..message(response)
    }
}

fn one_field(key: &str, kind: Kind) -> Struct {
    let value = Value { kind: Some(kind) };
    Struct {
        fields: [(key.to_owned(), value)].into(),
    }
}

fn body(side: Side, common: CommonResponse) -> ProcessingResponse {
    let body = BodyResponse {
        response: Some(common),
    };
    message(match side {
        Side::Request => Response::RequestBody(body),
        Side::Response => Response::ResponseBody(body),
    })
}

fn message(response: Response) -> ProcessingResponse {
    ProcessingResponse {
        response: Some(response),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Shed;

    fn streamed(message: &ProcessingResponse) -> &StreamedBodyResponse {
        let Some(Response::RequestBody(body)) = &message.response else {
            panic!("not a request body: {message:?}");
        };
        let common = body.response.as_ref().expect("common");
        match &common.body_mutation.as_ref().expect("mutation").mutation {
            Some(Mutation::StreamedResponse(streamed)) => streamed,
            other => panic!("not streamed: {other:?}"),
        }
    }

    fn lengths_and_ends(bytes: usize, end: bool) -> Vec<(usize, bool)> {
        body_chunks(Side::Request, vec![7; bytes].into(), end)
            .map(|message| {
                let streamed = streamed(&message);
                (streamed.body.len(), streamed.end_of_stream)
            })
            .collect()
    }

    #[test]
    fn a_body_is_cut_at_the_limit_and_ends_once() {
        assert_eq!(lengths_and_ends(0, true), [(0, true)]);
        assert_eq!(lengths_and_ends(0, false), []);
        assert_eq!(lengths_and_ends(62_000, true), [(62_000, true)]);
        assert_eq!(lengths_and_ends(62_001, true), [(62_000, false), (1, true)]);
        assert_eq!(
            lengths_and_ends(62_001, false),
            [(62_000, false), (1, false)]
        );
    }

    #[test]
    fn the_pick_stands_in_header_and_metadata_as_the_same_string() {
        let pick = Pick {
            address: "[fd00::7]:8000".parse().expect("an address"),
            fallbacks: vec!["10.0.0.8:8001".parse().expect("an address")],
            rank: None,
        };
        let message = headers_with_pick(&pick, None);
        let Some(Response::RequestHeaders(headers)) = &message.response else {
            panic!("not headers: {message:?}");
        };
        let common = headers.response.as_ref().expect("common");
        assert!(common.clear_route_cache);
        let set = &common
            .header_mutation
            .as_ref()
            .expect("mutation")
            .set_headers;
        let header = set[0].header.as_ref().expect("header");
        assert_eq!(header.raw_value, "[fd00::7]:8000,10.0.0.8:8001");
        let metadata = message.dynamic_metadata.expect("metadata");
        let Some(Kind::StructValue(lb)) = &metadata.fields["envoy.lb"].kind else {
            panic!("not a struct");
        };
        assert_eq!(
            lb.fields[DESTINATION].kind,
            Some(Kind::StringValue("[fd00::7]:8000,10.0.0.8:8001".into()))
        );
    }

    #[test]
    fn a_rank_is_named_in_a_header_of_its_own() {
        let set = |rank| {
            let pick = Pick {
                address: "10.0.0.7:8000".parse().expect("an address"),
                fallbacks: Vec::new(),
                rank,
            };
            let message = headers_with_pick(&pick, None);
            let Some(Response::RequestHeaders(headers)) = message.response else {
                panic!("not headers");
            };
            let mutation = headers.response.and_then(|common| common.header_mutation);
            let set = mutation.expect("a mutation").set_headers.into_iter();
            let header = set.map(|one| one.header.expect("a header"));
            header
                .map(|one| (one.key, one.raw_value))
                .collect::<Vec<_>>()
        };
        let pick = || (DESTINATION.to_owned(), "10.0.0.7:8000".into());
        assert_eq!(set(None), [pick()]);
        assert_eq!(set(Some(3)), [pick(), (RANK.to_owned(), "3".into())]);
    }

    #[test]
    fn a_refusal_has_the_shape_of_an_openai_error() {
        let Some(Response::ImmediateResponse(answer)) = refused(Refusal::NoEndpoint).response
        else {
            panic!("not immediate");
        };
        assert_eq!(answer.status.map(|s| s.code), Some(503));
        let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(body["error"]["code"], "no_endpoint");
        assert!(!answer.details.contains(' '));
    }

    #[test]
    fn who_is_shed_is_told_when_to_come_back() {
        let shed = Refusal::Shed {
            why: Shed::Saturated,
            retry_after_s: 10,
        };
        let Some(Response::ImmediateResponse(answer)) = refused(shed).response else {
            panic!("not immediate");
        };
        assert_eq!(answer.status.map(|s| s.code), Some(429));
        let set = answer.headers.expect("headers").set_headers.into_iter();
        let set: Vec<_> = set.filter_map(|one| one.header).collect();
        let value = |name: &str| {
            let found = set.iter().find(|header| header.key == name);
            found.map(|header| header.raw_value.clone())
        };
        assert_eq!(value("retry-after"), Some("10".into()));
        assert_eq!(value(DROPPED_REASON), Some("rejected-saturated".into()));
        let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(body["error"]["type"], "rate_limit_error");
    }
}
