//! Conversations, told as Envoy has them.

use bytes::Bytes;
use proptest::prelude::*;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::*;
use crate::prompt::json::outline::Outline;
use crate::proto::core::{HeaderMap, HeaderValue, Metadata};
use crate::proto::ext_proc::body_mutation::Mutation;
use crate::proto::ext_proc::processing_response::Response as Reply;
use crate::proto::ext_proc::{CommonResponse, HttpHeaders, HttpTrailers, ProtocolConfiguration};
use crate::proto::filter::processing_mode::BodySendMode;

const POD: &str = "10.0.0.7:8000";

fn exchange() -> Exchange {
    Exchange::new(Rules::default(), 1)
}

fn message(request: Message) -> ProcessingRequest {
    ProcessingRequest {
        request: Some(request),
        ..Default::default()
    }
}

fn headers(pairs: &[(&str, &str)], end: bool) -> HttpHeaders {
    let headers = pairs.iter().map(|(key, value)| HeaderValue {
        key: (*key).into(),
        raw_value: Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    });
    HttpHeaders {
        headers: Some(HeaderMap {
            headers: headers.collect(),
        }),
        end_of_stream: end,
        ..Default::default()
    }
}

fn post(mode: BodySendMode, end: bool) -> ProcessingRequest {
    let pairs = [
        (":path", "/v1/completions?x=1"),
        ("content-type", "application/json"),
        ("x-request-id", "r-1"),
        ("test-epp-endpoint-selection", "10.0.0.8"),
    ];
    ProcessingRequest {
        protocol_config: Some(ProtocolConfiguration {
            request_body_mode: mode.into(),
            response_body_mode: mode.into(),
            ..Default::default()
        }),
        ..message(Message::RequestHeaders(headers(&pairs, end)))
    }
}

fn body(bytes: &[u8], end: bool) -> HttpBody {
    HttpBody {
        body: Bytes::copy_from_slice(bytes),
        end_of_stream: end,
        ..Default::default()
    }
}

fn request_body(bytes: &[u8], end: bool) -> ProcessingRequest {
    message(Message::RequestBody(body(bytes, end)))
}

fn with_metadata(
    mut to: ProcessingRequest,
    space: &str,
    key: &str,
    kind: Kind,
) -> ProcessingRequest {
    let value = Value { kind: Some(kind) };
    let fields = Struct {
        fields: [(key.to_owned(), value)].into(),
    };
    to.metadata_context = Some(Metadata {
        filter_metadata: [(space.to_owned(), fields)].into(),
        ..Default::default()
    });
    to
}

fn on(exchange: &mut Exchange, message: ProcessingRequest) -> Vec<Step> {
    exchange.on(message).expect("in order")
}

fn placed(exchange: &mut Exchange) -> Vec<Step> {
    placed_with(exchange, None)
}

fn placed_with(exchange: &mut Exchange, rewrite: Option<Replacement>) -> Vec<Step> {
    let pick = Pick {
        address: POD.parse().expect("an address"),
        fallbacks: Vec::new(),
        rank: None,
    };
    let summary = exchange.tells_why().then(|| "pod-7 overlap 64/70".into());
    exchange.placed(Ok(Placed {
        pick,
        summary,
        rewrite,
    }))
}

fn common(common: &Option<CommonResponse>) -> &CommonResponse {
    common.as_ref().expect("a common response")
}

/// A step in one line: enough to see what Envoy would.
fn told(step: &Step) -> String {
    let reply = match step {
        Step::Send(reply) => reply.response.as_ref().expect("a response"),
        Step::Place(ask) => return format!("place {} bytes", ask.body.len()),
        Step::PlaceByLoad(_) => return "place by load".into(),
        Step::FirstOutput { .. } => return "first output".into(),
        Step::Finish(outcome) => return format!("finish {:?}", outcome.status),
    };
    let picked = |common: &CommonResponse| {
        let set = common.header_mutation.iter().flat_map(|m| &m.set_headers);
        let header = set.filter_map(|option| option.header.as_ref()).next();
        header.map_or(String::new(), |h| {
            format!(" {}={}", h.key, String::from_utf8_lossy(&h.raw_value))
        })
    };
    let bytes = |common: &CommonResponse| match common
        .body_mutation
        .as_ref()
        .and_then(|m| m.mutation.as_ref())
    {
        None => " untouched".to_owned(),
        Some(Mutation::StreamedResponse(chunk)) if chunk.end_of_stream => {
            format!(" {} bytes, end", chunk.body.len())
        }
        Some(Mutation::StreamedResponse(chunk)) => format!(" {} bytes", chunk.body.len()),
        Some(other) => format!(" {other:?}"),
    };
    match reply {
        Reply::RequestHeaders(h) => format!("request headers{}", picked(common(&h.response))),
        Reply::ResponseHeaders(h) => format!("response headers{}", picked(common(&h.response))),
        Reply::RequestBody(b) => {
            let common = common(&b.response);
            format!("request body{}{}", bytes(common), picked(common))
        }
        Reply::ResponseBody(b) => format!("response body{}", bytes(common(&b.response))),
        Reply::RequestTrailers(_) => "request trailers".into(),
        Reply::ResponseTrailers(_) => "response trailers".into(),
        Reply::ImmediateResponse(i) => {
            format!("immediate {}", i.status.expect("a status").code)
        }
        other => format!("{other:?}"),
    }
}

fn all_told(steps: &[Step]) -> Vec<String> {
    steps.iter().map(told).collect()
}

fn pick(of: &str) -> String {
    format!("{of} x-gateway-destination-endpoint={POD}")
}

/// The subset of the one step that places by load.
fn by_load(steps: &[Step]) -> Option<&Option<Vec<String>>> {
    match steps {
        [Step::PlaceByLoad(ask)] => Some(&ask.subset),
        _ => None,
    }
}

#[test]
fn a_buffered_body_that_may_not_be_read_is_placed_by_load() {
    let mut exchange = exchange();
    on(&mut exchange, post(BodySendMode::Buffered, false));
    assert_eq!(exchange.stop_holding("exchanges"), []);
    let steps = on(&mut exchange, request_body(b"{}", true));
    let [Step::PlaceByLoad(ask)] = steps.as_slice() else {
        panic!("{steps:?}");
    };
    assert_eq!(ask.reason, "exchanges");
}

#[test]
fn full_duplex_holds_the_header_reply_until_the_body_has_ended() {
    let mut exchange = exchange();
    assert_eq!(
        on(&mut exchange, post(BodySendMode::FullDuplexStreamed, false)),
        []
    );
    assert_eq!(on(&mut exchange, request_body(b"{\"prompt\":", false)), []);
    let steps = on(&mut exchange, request_body(b"\"hi\"}", true));
    let [Step::Place(ask)] = steps.as_slice() else {
        panic!("{steps:?}");
    };
    let expected = Ask {
        request_id: "r-1".into(),
        path: "/v1/completions?x=1".into(),
        content_type: Some("application/json".into()),
        body: Bytes::from_static(b"{\"prompt\":\"hi\"}"),
        ..Ask::default()
    };
    assert_eq!(**ask, expected);
    assert_eq!(
        all_told(&placed(&mut exchange)),
        [pick("request headers"), "request body 15 bytes, end".into()]
    );
}

#[test]
fn headers_say_what_a_request_is_by_either_of_their_names() {
    let rules = Rules {
        session_headers: ["x-session-id".to_owned(), "x-chat".to_owned()].into(),
        ..Rules::default()
    };
    let said = |pairs: &[(&str, &str)]| {
        let mut exchange = Exchange::new(rules.clone(), 1);
        on(
            &mut exchange,
            message(Message::RequestHeaders(headers(pairs, false))),
        );
        match on(&mut exchange, request_body(b"{}", true)).as_slice() {
            [Step::Place(ask)] => [&ask.objective, &ask.fairness, &ask.target, &ask.session]
                .map(|said| said.clone().unwrap_or_default()),
            other => panic!("{other:?}"),
        }
    };
    let both = [
        ("x-gateway-inference-objective", "theirs"),
        ("x-gateway-inference-fairness-id", "tenant"),
        ("x-gateway-model-name-rewrite", "chat-v2"),
        ("x-llm-d-inference-objective", " ours "),
        ("x-llm-d-inference-fairness-id", "team"),
        ("x-llm-d-model-name-rewrite", "chat-v3"),
        ("x-chat", "7"),
        ("x-session-id", " "),
    ];
    assert_eq!(said(&both), ["ours", "team", "chat-v3", "7"]);
    assert_eq!(said(&both[..3]), ["theirs", "tenant", "chat-v2", ""]);
    assert_eq!(said(&[]), [""; 4]);
}

#[test]
fn an_upgrade_has_no_end_to_wait_for() {
    let connect = [(":method", "CONNECT")];
    let socket = [(":method", "GET"), ("upgrade", "websocket")];
    for pairs in [&connect[..], &socket] {
        let mut exchange = exchange();
        let first = message(Message::RequestHeaders(headers(pairs, false)));
        let steps = on(&mut exchange, first);
        assert!(matches!(&steps[..], [Step::PlaceByLoad(ask)] if ask.reason == "upgrade"));
        assert_eq!(all_told(&placed(&mut exchange)), [pick("request headers")]);
        let steps = on(&mut exchange, request_body(b"frame", false));
        assert_eq!(all_told(&steps), ["request body 5 bytes"]);
    }
    let offer = message(Message::RequestHeaders(headers(
        &[("upgrade", "h2c")],
        false,
    )));
    assert_eq!(on(&mut exchange(), offer), [], "a plain request");
}

/// Of a request for "chat" that "chat-v2" serves: what its client reads of an answer to it in these
/// chunks, and the steps to its headers.
fn answered(mode: BodySendMode, head: &[(&str, &str)], chunks: &[&str]) -> (String, Vec<Step>) {
    let body = br#"{"model":"chat"}"#;
    let mut exchange = exchange();
    on(&mut exchange, post(BodySendMode::FullDuplexStreamed, false));
    (_, exchange.response_mode) = read::modes(Some(ProtocolConfiguration {
        response_body_mode: mode.into(),
        ..Default::default()
    }));
    on(&mut exchange, request_body(body, true));
    let outline = Outline::of(body).expect("an object");
    placed_with(&mut exchange, Some(outline.replaced("model", "chat-v2")));
    let head = message(Message::ResponseHeaders(headers(head, false)));
    let steps = on(&mut exchange, head);
    let mut read = Vec::new();
    for (i, chunk) in chunks.iter().enumerate() {
        let last = i + 1 == chunks.len();
        let said = message(Message::ResponseBody(self::body(chunk.as_bytes(), last)));
        for step in on(&mut exchange, said) {
            let Step::Send(reply) = step else { continue };
            let Some(Reply::ResponseBody(reply)) = reply.response else {
                panic!("no body");
            };
            let mutation = reply.response.and_then(|common| common.body_mutation);
            match mutation.and_then(|mutation| mutation.mutation) {
                None => read.extend_from_slice(chunk.as_bytes()),
                Some(Mutation::Body(bytes)) => read.extend_from_slice(&bytes),
                Some(Mutation::StreamedResponse(chunk)) => read.extend_from_slice(&chunk.body),
                Some(other) => panic!("{other:?}"),
            }
        }
    }
    (String::from_utf8(read).expect("text"), steps)
}

/// The headers that a step takes away.
fn removed(steps: &[Step]) -> Vec<String> {
    let [Step::Send(reply)] = steps else {
        panic!("{steps:?}");
    };
    let Some(Reply::ResponseHeaders(headers)) = &reply.response else {
        panic!("{reply:?}");
    };
    let mutation = common(&headers.response).header_mutation.clone();
    mutation.map_or_else(Vec::new, |mutation| mutation.remove_headers)
}

#[test]
fn an_answer_bears_the_name_that_its_client_asked_for_in_every_mode() {
    let json = [(":status", "200"), ("content-type", "application/json")];
    let chunks = ["{\"id\":1,\"model\":\"cha", "t-v2\",\"x\":\"chat-v2\"}", ""];
    for mode in [
        BodySendMode::FullDuplexStreamed,
        BodySendMode::Streamed,
        BodySendMode::Buffered,
    ] {
        let (read, steps) = answered(mode, &json, &chunks);
        assert_eq!(read, r#"{"id":1,"model":"chat","x":"chat-v2"}"#, "{mode:?}");
        assert_eq!(removed(&steps), ["content-length"], "{mode:?}");
    }
    let (_, steps) = answered(BodySendMode::None, &json, &[]);
    assert!(removed(&steps).is_empty(), "what nobody shows us stays");
}

#[test]
fn what_cannot_be_read_keeps_its_name_and_its_length() {
    for head in [
        &[
            ("content-type", "application/json"),
            ("content-encoding", "gzip"),
        ][..],
        &[("content-type", "application/octet-stream")],
    ] {
        let text = "{\"model\":\"chat-v2\"}";
        let (read, steps) = answered(BodySendMode::FullDuplexStreamed, head, &[text]);
        assert_eq!((&read[..], removed(&steps)), (text, Vec::new()));
    }
}

/// What a step sets of a header, and the body that it sends in place of the client's.
fn sent(step: &Step, name: &str) -> (Option<String>, Option<Bytes>) {
    let Step::Send(reply) = step else {
        panic!("{step:?}");
    };
    let common = match reply.response.as_ref().expect("a response") {
        Reply::RequestHeaders(headers) => common(&headers.response),
        Reply::RequestBody(body) => common(&body.response),
        other => panic!("{other:?}"),
    };
    let set = common.header_mutation.iter().flat_map(|m| &m.set_headers);
    let mut set = set.filter_map(|option| option.header.as_ref());
    let value = set.find(|header| header.key == name);
    let body = common
        .body_mutation
        .as_ref()
        .and_then(|m| m.mutation.clone());
    let body = body.map(|mutation| match mutation {
        Mutation::Body(bytes) => bytes,
        Mutation::StreamedResponse(chunk) => chunk.body,
        other => panic!("{other:?}"),
    });
    (
        value.map(|value| String::from_utf8_lossy(&value.raw_value).into()),
        body,
    )
}

#[test]
fn another_model_goes_into_the_body_and_its_length_into_the_headers() {
    let body = br#"{"model":"chat","x":1}"#;
    let rewrite = || {
        let outline = Outline::of(body).expect("an object");
        Some(outline.replaced("model", "chat-v2"))
    };
    let expected = Some(Bytes::from_static(br#"{"model":"chat-v2","x":1}"#));
    for sized in [true, false] {
        let mut exchange = exchange();
        let length: &[_] = &[("content-length", "22")];
        let pairs = if sized { length } else { &[] };
        on(
            &mut exchange,
            message(Message::RequestHeaders(headers(pairs, false))),
        );
        on(&mut exchange, request_body(body, true));
        let steps = placed_with(&mut exchange, rewrite());
        let (length, _) = sent(&steps[0], "content-length");
        assert_eq!(length, sized.then(|| "25".into()));
        assert_eq!(sent(&steps[1], "content-length"), (None, expected.clone()));
    }
    let mut exchange = exchange();
    let mut buffered = post(BodySendMode::Buffered, false);
    buffered.request = Some(Message::RequestHeaders(headers(
        &[("content-length", "22")],
        false,
    )));
    on(&mut exchange, buffered);
    on(&mut exchange, request_body(body, true));
    assert_eq!(exchange.held_bytes(), body.len());
    let steps = placed_with(&mut exchange, rewrite());
    let length = Some("25".into());
    assert_eq!(sent(&steps[0], "content-length"), (length, expected));
    assert_eq!(exchange.held_bytes(), 0);
}

#[test]
fn an_empty_last_chunk_and_an_empty_body_both_end_once() {
    for chunks in [vec![&b"abc"[..], b""], vec![b""]] {
        let mut exchange = exchange();
        on(&mut exchange, post(BodySendMode::FullDuplexStreamed, false));
        let last = chunks.len() - 1;
        for (i, chunk) in chunks.iter().enumerate() {
            on(&mut exchange, request_body(chunk, i == last));
        }
        let bytes: usize = chunks.iter().map(|chunk| chunk.len()).sum();
        let body = format!("request body {bytes} bytes, end");
        assert_eq!(
            all_told(&placed(&mut exchange)),
            [pick("request headers"), body]
        );
    }
}

#[test]
fn trailers_end_a_body_and_are_answered_last() {
    let mut exchange = exchange();
    on(&mut exchange, post(BodySendMode::FullDuplexStreamed, false));
    on(&mut exchange, request_body(b"abc", false));
    let trailers = message(Message::RequestTrailers(HttpTrailers::default()));
    assert_eq!(all_told(&on(&mut exchange, trailers)), ["place 3 bytes"]);
    assert_eq!(
        all_told(&placed(&mut exchange)),
        [
            pick("request headers"),
            "request body 3 bytes".into(),
            "request trailers".into()
        ]
    );
}

#[test]
fn a_chunk_that_ends_a_body_after_its_trailers_comes_back_once() {
    let trailers = || message(Message::RequestTrailers(HttpTrailers::default()));
    let first = [pick("request headers"), "request body 3 bytes".into()];
    for before_it_is_placed in [true, false] {
        let mut exchange = exchange();
        on(&mut exchange, post(BodySendMode::FullDuplexStreamed, false));
        on(&mut exchange, request_body(b"abc", false));
        on(&mut exchange, trailers());
        let mut said = Vec::new();
        if !before_it_is_placed {
            said.extend(all_told(&placed(&mut exchange)));
        }
        said.extend(all_told(&on(&mut exchange, request_body(b"", true))));
        if before_it_is_placed {
            said.extend(all_told(&placed(&mut exchange)));
        }
        assert_eq!(said[..2], first);
        assert_eq!(said[2..], ["request trailers", "request body 0 bytes, end"]);
        assert!(on(&mut exchange, request_body(b"", true)).is_empty());
    }
}

#[test]
fn buffered_passes_the_headers_and_picks_in_the_reply_to_the_body() {
    let mut exchange = exchange();
    let steps = on(&mut exchange, post(BodySendMode::Buffered, false));
    assert_eq!(all_told(&steps), ["request headers"]);
    let steps = on(&mut exchange, request_body(b"abc", true));
    assert_eq!(all_told(&steps), ["place 3 bytes"]);
    assert_eq!(
        all_told(&placed(&mut exchange)),
        [pick("request body untouched")]
    );
    let trailers = message(Message::RequestTrailers(HttpTrailers::default()));
    assert_eq!(all_told(&on(&mut exchange, trailers)), ["request trailers"]);
}

#[test]
fn buffered_trailers_without_a_body_are_refused_since_headers_have_passed() {
    let mut exchange = exchange();
    on(&mut exchange, post(BodySendMode::Buffered, false));
    let trailers = message(Message::RequestTrailers(HttpTrailers::default()));
    assert_eq!(all_told(&on(&mut exchange, trailers)), ["immediate 400"]);
}

#[test]
fn headers_alone_are_answered_at_once_in_every_mode() {
    for mode in [
        BodySendMode::FullDuplexStreamed,
        BodySendMode::Buffered,
        BodySendMode::Streamed,
        BodySendMode::None,
    ] {
        let mut exchange = exchange();
        let steps = on(&mut exchange, post(mode, true));
        assert_eq!(by_load(&steps), Some(&None));
        assert_eq!(all_told(&placed(&mut exchange)), [pick("request headers")]);
    }
}

#[test]
fn streamed_bodies_come_too_late_and_pass_untouched() {
    let mut exchange = exchange();
    let steps = on(&mut exchange, post(BodySendMode::Streamed, false));
    assert_eq!(by_load(&steps), Some(&None));
    placed(&mut exchange);
    let steps = on(&mut exchange, request_body(b"abc", true));
    assert_eq!(all_told(&steps), ["request body untouched"]);
}

#[test]
fn a_gateway_that_names_no_mode_is_taken_for_full_duplex() {
    let mut exchange = exchange();
    let mut first = post(BodySendMode::None, false);
    first.protocol_config = None;
    assert_eq!(on(&mut exchange, first), []);
}

#[test]
fn a_body_beyond_the_limit_is_placed_by_load_and_streams_through() {
    let rules = Rules {
        body_bytes_max: 4,
        ..Rules::default()
    };
    let mut exchange = Exchange::new(rules.clone(), 0);
    on(&mut exchange, post(BodySendMode::FullDuplexStreamed, false));
    assert_eq!(on(&mut exchange, request_body(b"abc", false)), []);
    let steps = on(&mut exchange, request_body(b"def", false));
    assert_eq!(all_told(&steps), ["place by load"]);
    assert_eq!(
        all_told(&placed(&mut exchange)),
        [pick("request headers"), "request body 6 bytes".into()]
    );
    let steps = on(&mut exchange, request_body(b"gh", true));
    assert_eq!(all_told(&steps), ["request body 2 bytes, end"]);

    let mut exchange = Exchange::new(rules, 0);
    on(&mut exchange, post(BodySendMode::Buffered, false));
    let steps = on(&mut exchange, request_body(b"abcdef", true));
    assert_eq!(all_told(&steps), ["place by load"]);
    assert_eq!(
        all_told(&placed(&mut exchange)),
        [pick("request body untouched")]
    );
}

#[test]
fn a_refusal_ends_the_conversation() {
    let mut exchange = exchange();
    on(&mut exchange, post(BodySendMode::FullDuplexStreamed, true));
    let steps = exchange.placed(Err(Refusal::NoEndpoint));
    assert_eq!(all_told(&steps), ["immediate 503"]);
    assert_eq!(on(&mut exchange, request_body(b"late", true)), []);
}

#[test]
fn the_gateways_subset_is_a_list_or_a_comma_string() {
    let subset = |kind| {
        let first = post(BodySendMode::FullDuplexStreamed, true);
        let key = "x-gateway-destination-endpoint-subset";
        let steps = on(
            &mut exchange(),
            with_metadata(first, "envoy.lb.subset_hint", key, kind),
        );
        match steps.as_slice() {
            [Step::PlaceByLoad(ask)] => ask.subset.clone(),
            other => panic!("{other:?}"),
        }
    };
    let text = |text: &str| Kind::StringValue(text.into());
    let two = Some(vec!["10.0.0.1:8000".to_owned(), "10.0.0.2".to_owned()]);
    assert_eq!(subset(text("10.0.0.1:8000, 10.0.0.2,")), two);
    let values = ["10.0.0.1:8000", "10.0.0.2"].map(|t| Value {
        kind: Some(text(t)),
    });
    let list = ListValue {
        values: values.into(),
    };
    assert_eq!(subset(Kind::ListValue(list)), two);
    assert_eq!(subset(text("")), Some(vec![]));
    assert_eq!(subset(Kind::BoolValue(true)), Some(vec![]));
}

#[test]
fn a_response_is_echoed_as_it_comes_and_its_usage_read() {
    let mut exchange = exchange();
    on(&mut exchange, post(BodySendMode::FullDuplexStreamed, true));
    placed(&mut exchange);
    let head = headers(
        &[(":status", "200"), ("content-type", "text/event-stream")],
        false,
    );
    let steps = on(&mut exchange, message(Message::ResponseHeaders(head)));
    assert_eq!(all_told(&steps), ["response headers"]);
    let say = |exchange: &mut Exchange, text: &str, end| {
        let chunk = message(Message::ResponseBody(body(text.as_bytes(), end)));
        on(exchange, chunk)
    };
    let steps = say(&mut exchange, "data: {\"usage\":{\"prompt_to", false);
    assert_eq!(all_told(&steps), ["first output", "response body 26 bytes"]);
    let rest = "kens\":70,\"completion_tokens\":5}}\n\n";
    assert_eq!(
        all_told(&say(&mut exchange, rest, false)),
        [format!("response body {} bytes", rest.len())]
    );
    let steps = say(&mut exchange, "", true);
    assert_eq!(
        all_told(&steps),
        ["response body 0 bytes, end", "finish Some(200)"]
    );
    let Some(Step::Finish(outcome)) = steps.last() else {
        panic!("no finish");
    };
    assert_eq!(outcome.usage.map(|usage| usage.prompt_tokens), Some(70));
}

#[test]
fn response_trailers_finish_an_exchange_once() {
    let mut exchange = exchange();
    on(&mut exchange, post(BodySendMode::FullDuplexStreamed, true));
    placed(&mut exchange);
    assert_eq!(exchange.outcome(), None);
    let head = headers(&[(":status", "500")], false);
    on(&mut exchange, message(Message::ResponseHeaders(head)));
    let trailers = message(Message::ResponseTrailers(HttpTrailers::default()));
    let steps = on(&mut exchange, trailers.clone());
    assert_eq!(all_told(&steps), ["response trailers", "finish Some(500)"]);
    assert_eq!(
        all_told(&on(&mut exchange, trailers)),
        ["response trailers"]
    );
}

#[test]
fn the_served_feedback_reaches_the_outcome() {
    let mut exchange = exchange();
    on(&mut exchange, post(BodySendMode::FullDuplexStreamed, true));
    placed(&mut exchange);
    let head = message(Message::ResponseHeaders(headers(
        &[(":status", "200")],
        true,
    )));
    let key = "x-gateway-destination-endpoint-served";
    let head = with_metadata(
        head,
        "envoy.lb",
        key,
        Kind::StringValue("10.0.0.9:8000".into()),
    );
    let steps = on(&mut exchange, head);
    let Some(Step::Finish(outcome)) = steps.last() else {
        panic!("{steps:?}");
    };
    assert_eq!(outcome.served, "10.0.0.9:8000".parse().ok());
}

#[test]
fn the_decision_is_told_only_where_asked_for() {
    for (decision_header, expected) in [
        (false, "response headers"),
        (
            true,
            "response headers x-kvscout-decision=pod-7 overlap 64/70",
        ),
    ] {
        let rules = Rules {
            decision_header,
            ..Rules::default()
        };
        let mut exchange = Exchange::new(rules, 0);
        on(&mut exchange, post(BodySendMode::FullDuplexStreamed, true));
        placed(&mut exchange);
        let head = headers(&[(":status", "200")], false);
        let steps = on(&mut exchange, message(Message::ResponseHeaders(head)));
        assert_eq!(all_told(&steps), [expected]);
    }
}

#[test]
fn a_client_names_its_endpoint_only_under_conformance() {
    for (conformance, subset) in [(false, None), (true, Some(vec!["10.0.0.8".to_owned()]))] {
        let rules = Rules {
            conformance,
            ..Rules::default()
        };
        let mut exchange = Exchange::new(rules, 0);
        let steps = on(&mut exchange, post(BodySendMode::FullDuplexStreamed, true));
        assert_eq!(by_load(&steps), Some(&subset));
    }
}

#[test]
fn a_response_before_the_choice_ends_the_exchange_all_the_same() {
    let mut exchange = exchange();
    on(&mut exchange, post(BodySendMode::FullDuplexStreamed, false));
    on(&mut exchange, request_body(b"abc", true));
    let head = headers(&[(":status", "504")], true);
    let steps = on(&mut exchange, message(Message::ResponseHeaders(head)));
    assert_eq!(all_told(&steps), ["response headers", "finish Some(504)"]);
}

#[test]
fn what_comes_out_of_order_is_an_error() {
    let mut exchange = exchange();
    assert!(exchange.on(request_body(b"abc", true)).is_err());
    let mut exchange = self::exchange();
    on(&mut exchange, post(BodySendMode::FullDuplexStreamed, true));
    assert!(
        exchange
            .on(post(BodySendMode::FullDuplexStreamed, true))
            .is_err()
    );
}

/// The chunks of a body in what Envoy is sent, and how many say that it ended.
fn streamed(steps: &[Step]) -> (Vec<Bytes>, usize) {
    let (mut chunks, mut ends) = (Vec::new(), 0);
    for step in steps {
        let Step::Send(reply) = step else { continue };
        let (Some(Reply::RequestBody(body)) | Some(Reply::ResponseBody(body))) = &reply.response
        else {
            continue;
        };
        let mutation = common(&body.response).body_mutation.as_ref();
        if let Some(Mutation::StreamedResponse(chunk)) = mutation.and_then(|m| m.mutation.as_ref())
        {
            ends += usize::from(chunk.end_of_stream);
            chunks.push(chunk.body.clone());
        }
    }
    (chunks, ends)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However Envoy cuts a body, the same bytes come back in chunks that fit, with one end, in
    /// both directions and on either side of the limit.
    #[test]
    fn any_cutting_of_a_body_comes_back_whole(
        sizes in proptest::collection::vec(0usize..200_000, 1..6),
        body_bytes_max in 0usize..600_000,
        respond in any::<bool>(),
    ) {
        let total: usize = sizes.iter().sum();
        let whole: Vec<u8> = (0..total).map(|i| (i % 251) as u8).collect();
        let rules = Rules { body_bytes_max, ..Rules::default() };
        let mut exchange = Exchange::new(rules, 0);
        let mut steps = on(&mut exchange, post(BodySendMode::FullDuplexStreamed, respond));
        let (mut at, mut sent) = (0, Vec::new());
        for (i, size) in sizes.iter().enumerate() {
            let chunk = body(&whole[at..at + size], i + 1 == sizes.len());
            at += size;
            let side = if respond { Message::ResponseBody(chunk) } else { Message::RequestBody(chunk) };
            steps.extend(on(&mut exchange, message(side)));
            if matches!(steps.last(), Some(Step::Place(_) | Step::PlaceByLoad(_))) {
                steps.extend(placed(&mut exchange));
            }
            sent.append(&mut steps);
        }
        let (chunks, ends) = streamed(&sent);
        prop_assert_eq!(ends, 1);
        prop_assert!(chunks.iter().all(|chunk| chunk.len() <= 62_000));
        prop_assert_eq!(chunks.concat(), whole);
    }
}

#[test]
fn a_body_that_memory_has_no_room_for_passes_and_load_decides() {
    let mut exchange = exchange();
    on(&mut exchange, post(BodySendMode::FullDuplexStreamed, false));
    assert_eq!(
        exchange.stop_holding("memory").len(),
        1,
        "even before its first byte"
    );
    let mut exchange = self::exchange();
    on(&mut exchange, post(BodySendMode::FullDuplexStreamed, false));
    let chunk = HttpBody {
        body: Bytes::from_static(b"half"),
        ..HttpBody::default()
    };
    on(&mut exchange, message(Message::RequestBody(chunk)));
    assert_eq!(exchange.held_bytes(), 4);
    let steps = exchange.stop_holding("memory");
    assert!(matches!(&steps[..], [Step::PlaceByLoad(ask)] if ask.reason == "memory"));
    let told = all_told(&placed(&mut exchange));
    assert_eq!(told[0], pick("request headers"));
    assert_eq!(told.len(), 2, "the half that was held goes on: {told:?}");
    assert_eq!(exchange.held_bytes(), 0);
    assert!(exchange.stop_holding("memory").is_empty());
}

#[test]
fn a_last_chunk_that_envoy_says_again_is_not_heard_again() {
    let last = || {
        let body = HttpBody {
            body: Bytes::from_static(b"{}"),
            end_of_stream: true,
            ..HttpBody::default()
        };
        message(Message::RequestBody(body))
    };
    let mut exchange = exchange();
    on(&mut exchange, post(BodySendMode::FullDuplexStreamed, false));
    assert_eq!(on(&mut exchange, last()).len(), 1, "places it");
    assert!(
        on(&mut exchange, last()).is_empty(),
        "while it is being placed"
    );
    assert_eq!(
        placed(&mut exchange).len(),
        2,
        "the headers, and the body once"
    );
    assert!(on(&mut exchange, last()).is_empty(), "and when it was");
}

#[test]
fn nothing_of_a_body_is_heard_after_trailers_or_headers_that_ended_it() {
    let mut exchange = exchange();
    on(&mut exchange, post(BodySendMode::FullDuplexStreamed, false));
    let trailers = message(Message::RequestTrailers(HttpTrailers::default()));
    on(&mut exchange, trailers);
    placed(&mut exchange);
    assert!(on(&mut exchange, request_body(b"more", false)).is_empty());
    let mut exchange = self::exchange();
    on(&mut exchange, post(BodySendMode::FullDuplexStreamed, true));
    placed(&mut exchange);
    assert!(on(&mut exchange, request_body(b"more", false)).is_empty());
}
