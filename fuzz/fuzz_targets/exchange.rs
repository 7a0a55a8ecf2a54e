//! Envoy may say anything in any order: the exchange answers or refuses, holds no more than it was
//! given, and of a body that it takes from Envoy it gives back every byte, in order and once.

#![no_main]

use bytes::Bytes;
use kvscout::ext_proc::exchange::{Exchange, Placed, Rules, Step};
use kvscout::ext_proc::reply::Pick;
use kvscout::proto::core::{HeaderMap, HeaderValue};
use kvscout::proto::ext_proc::body_mutation::Mutation;
use kvscout::proto::ext_proc::processing_request::Request;
use kvscout::proto::ext_proc::processing_response::Response;
use kvscout::proto::ext_proc::{
    HttpBody, HttpHeaders, HttpTrailers, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
};
use kvscout::scheduler::Refusal;
use libfuzzer_sys::fuzz_target;

/// `BodySendMode::FullDuplexStreamed`, of 0 to 5 and a number that nobody knows.
const FULL_DUPLEX: i32 = 4;
const PATHS: [&str; 4] = ["/v1/chat/completions", "/v1/models", "", "/v1/completions?x=1"];

/// Bytes of the input, zeros behind its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    fn bytes(&mut self) -> Bytes {
        let (bytes, rest) = self.0.split_at(usize::from(self.byte()).min(self.0.len()));
        let bytes = Bytes::copy_from_slice(bytes);
        self.0 = rest;
        bytes
    }

    fn headers(&mut self, response: bool) -> HttpHeaders {
        let choice = self.byte();
        let header = |key: &str, value: &str| HeaderValue {
            key: key.into(),
            raw_value: Bytes::copy_from_slice(value.as_bytes()),
            ..HeaderValue::default()
        };
        let mut headers = match response {
            true => vec![header(":status", if choice & 1 == 0 { "200" } else { "5x" })],
            false => vec![
                header(":method", if choice & 1 == 0 { "POST" } else { "GET" }),
                header(":path", PATHS[usize::from(choice >> 1) % PATHS.len()]),
            ],
        };
        let types = ["application/json", "text/event-stream", "", "multipart/form-data; boundary=x"];
        headers.push(header("content-type", types[usize::from(choice >> 3) % types.len()]));
        if choice & 32 != 0 {
            headers.push(header("content-length", "10"));
        }
        if choice & 64 != 0 {
            headers.push(header("upgrade", "websocket"));
        }
        let key = String::from_utf8_lossy(&self.bytes()).into_owned();
        let raw_value = self.bytes();
        headers.push(HeaderValue { key, raw_value, ..HeaderValue::default() });
        HttpHeaders {
            headers: Some(HeaderMap { headers }),
            end_of_stream: choice & 128 != 0,
            ..HttpHeaders::default()
        }
    }
}

/// What has been taken from Envoy and given back.
#[derive(Default)]
struct Books {
    taken: Vec<u8>,
    given: Vec<u8>,
    /// Envoy said that the body is over; what follows is not heard.
    over: bool,
    refused: bool,
    /// Held for the scheduler, or on its way back.
    placing: bool,
}

impl Books {
    fn note(&mut self, reply: &ProcessingResponse) {
        match reply.response.as_ref().expect("every reply says something") {
            Response::ImmediateResponse(_) => self.refused = true,
            Response::RequestBody(body) => {
                let common = body.response.as_ref();
                let mutation = common.and_then(|common| common.body_mutation.as_ref());
                if let Some(Mutation::StreamedResponse(piece)) = mutation.and_then(|body| body.mutation.as_ref()) {
                    assert!(piece.body.len() <= 65_536, "a chunk that Envoy may not take");
                    self.given.extend_from_slice(&piece.body);
                }
            }
            _ => {}
        }
    }
}

fn run(exchange: &mut Exchange, steps: Vec<Step>, books: &mut Books, choice: u8) {
    let mut steps = std::collections::VecDeque::from(steps);
    while let Some(step) = steps.pop_front() {
        match step {
            Step::Send(reply) => books.note(&reply),
            Step::Place(_) | Step::PlaceByLoad(_) => {
                assert!(!books.placing, "placed twice");
                books.placing = true;
                let pick = Pick { address: ([10, 0, 0, 1], 8000).into(), fallbacks: Vec::new(), rank: None };
                let place = match choice & 64 {
                    0 => Ok(Placed { pick, summary: Some("why".into()), rewrite: None }),
                    _ => Err(Refusal::NoEndpoint),
                };
                steps.extend(exchange.placed(place));
            }
            Step::FirstOutput { .. } | Step::Finish(_) => {}
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mode = i32::from(input.byte() % 7);
    let rules = Rules { body_bytes_max: 200, decision_header: mode == 3, conformance: mode == 2, ..Rules::default() };
    let mut exchange = Exchange::new(rules, 1);
    let config = ProtocolConfiguration {
        request_body_mode: mode,
        response_body_mode: i32::from(input.byte() % 7),
        ..ProtocolConfiguration::default()
    };
    let mut config = Some(config);
    let (mut books, mut begun) = (Books::default(), false);
    while !input.0.is_empty() && !books.refused {
        let choice = input.byte();
        let end_of_stream = choice & 8 != 0;
        let body = |body: Bytes| HttpBody { body, end_of_stream, ..HttpBody::default() };
        let request = match choice % 8 {
            0 => Request::RequestHeaders(input.headers(false)),
            1 | 2 => Request::RequestBody(body(input.bytes())),
            3 => Request::RequestTrailers(HttpTrailers::default()),
            4 => Request::ResponseHeaders(input.headers(true)),
            5 => Request::ResponseBody(body(input.bytes())),
            6 => Request::ResponseTrailers(HttpTrailers::default()),
            _ => {
                let steps = exchange.stop_holding("too_slow");
                run(&mut exchange, steps, &mut books, choice);
                continue;
            }
        };
        let part = match &request {
            Request::RequestBody(part) if begun && !books.over => Some((part.body.clone(), part.end_of_stream)),
            Request::RequestHeaders(headers) => {
                begun = true;
                books.over |= headers.end_of_stream;
                None
            }
            _ => None,
        };
        books.over |= matches!(request, Request::RequestTrailers(_));
        let message = ProcessingRequest {
            request: Some(request),
            protocol_config: config.take(),
            ..ProcessingRequest::default()
        };
        // Envoy ends a conversation that it broke.
        let Ok(steps) = exchange.on(message) else { return };
        if let Some((part, last)) = part {
            books.taken.extend_from_slice(&part);
            books.over |= last;
        }
        run(&mut exchange, steps, &mut books, choice);
        assert!(exchange.held_bytes() <= books.taken.len());
        if mode == FULL_DUPLEX && !books.refused {
            assert!(books.taken.starts_with(&books.given), "the body came back as another one");
            let back = books.given.len() + exchange.held_bytes();
            assert_eq!(back, books.taken.len(), "bytes of the body are lost");
            assert!(!books.over || exchange.held_bytes() == 0, "a body that ended is held");
        }
    }
});
