//! kvscout's gRPC ports, with the test as Envoy.

mod harness;

use std::convert::Infallible;
use std::future::ready;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use harness::exchange::{Exchange, body, channel, headers, streamed};
use harness::frames::{Frames, Heard};
use harness::{Kvscout, PATIENCE, door_rules, soon, until};
use http_body_util::StreamBody;
use hyper::Request;
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kvscout::config::Tls;
use kvscout::door::Door;
use kvscout::ext_proc::{ExtProcSettings, Health, Patience, capacity};
use kvscout::metrics::Metrics;
use kvscout::proto::ext_proc::ProcessingRequest;
use kvscout::proto::ext_proc::external_processor_client::ExternalProcessorClient;
use kvscout::proto::ext_proc::processing_response::Response as Reply;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;

const POD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8000);

async fn kvscout(settings: ExtProcSettings) -> Kvscout {
    Kvscout::start(&[POD], Tls::Off, settings).await
}

#[tokio::test]
async fn a_lost_connection_frees_every_place_on_it() {
    let kvscout = kvscout(ExtProcSettings::default()).await;
    let channel = channel(kvscout.address).await;
    let mut exchanges = Vec::new();
    for _ in 0..20 {
        let mut exchange = Exchange::open(channel.clone()).await;
        exchange.say(headers("/v1/completions", true)).await;
        assert!(matches!(exchange.hear().await, Reply::RequestHeaders(_)));
        exchanges.push(exchange);
    }
    assert_eq!(kvscout.requests(), 20);
    drop(exchanges.pop());
    until("one is free", || kvscout.requests() == 19).await;
    drop(exchanges);
    drop(channel);
    until("all are free", || kvscout.requests() == 0).await;
}

/// More streams of one connection than go wrong in any second, but not in its life.
const MANY: u32 = 1_500;

/// Streams are ended early where kvscout refuses them, and Envoy has sent more of their bodies by then. h2 can count
/// them, and end the connection with all other exchanges on it at 1,024.
#[tokio::test]
async fn bodies_that_go_on_when_their_streams_are_over_end_no_connection() {
    let kvscout = kvscout(ExtProcSettings::default()).await;
    let mut gateway = Frames::connect(kvscout.address).await;
    for stream in 0..MANY {
        gateway.call(2 * stream + 1).await;
        // A message of one byte that is none.
        gateway.data(2 * stream + 1, &[0, 0, 0, 0, 1, 0xff]).await;
    }
    for _ in 0..MANY {
        assert_eq!(soon("its end", gateway.hear()).await, Heard::Reset);
    }
    for stream in 0..MANY {
        gateway.data(2 * stream + 1, &[0]).await;
    }
    // A pong may overtake what is said of streams.
    let mut late = 0;
    for _ in 0..2 {
        gateway.ping().await;
        loop {
            match soon("an answer", gateway.hear()).await {
                Heard::Reset => late += 1,
                heard => break assert_eq!(heard, Heard::Pong),
            }
        }
    }
    assert!(late > 1_024, "{late} came too late");
}

/// Clients of a slow model give up all at once, before their calls were even looked at. h2 alone ends a connection at
/// twenty of them.
#[tokio::test]
async fn thousands_of_calls_that_are_given_up_at_once_end_no_connection() {
    let kvscout = kvscout(ExtProcSettings::default()).await;
    let mut gateway = Frames::connect(kvscout.address).await;
    for stream in 0..MANY {
        gateway.call(2 * stream + 1).await;
        gateway.reset(2 * stream + 1).await;
    }
    gateway.ping().await;
    assert_eq!(soon("an answer", gateway.hear()).await, Heard::Pong);
    until("all are forgotten", || kvscout.capacity.open() == 0).await;
}

#[tokio::test]
async fn a_message_out_of_order_ends_its_stream_alone() {
    let kvscout = kvscout(ExtProcSettings::default()).await;
    let channel = channel(kvscout.address).await;
    let mut wrong = Exchange::open(channel.clone()).await;
    let mut right = Exchange::open(channel).await;
    wrong.say(body("{}", true)).await;
    let error = soon("an error", wrong.hear.message())
        .await
        .expect_err("out of order");
    assert_eq!(error.code(), Code::InvalidArgument);
    right.say(headers("/v1/completions", true)).await;
    assert!(matches!(right.hear().await, Reply::RequestHeaders(_)));
}

#[tokio::test]
async fn beyond_the_reading_limit_requests_are_placed_unread() {
    let settings = ExtProcSettings {
        limits: capacity::Limits {
            reading_max: 1,
            ..Default::default()
        },
        ..ExtProcSettings::default()
    };
    let kvscout = kvscout(settings).await;
    let channel = channel(kvscout.address).await;
    let mut first = Exchange::open(channel.clone()).await;
    let mut second = Exchange::open(channel).await;
    first.say(headers("/v1/completions", false)).await;
    second.say(headers("/v1/completions", false)).await;
    second.say(body("{\"pro", false)).await;
    assert!(
        matches!(second.hear().await, Reply::RequestHeaders(_)),
        "before the body's end"
    );
    let chunk = streamed(second.hear().await);
    assert_eq!(
        (&chunk.body[..], chunk.end_of_stream),
        (&b"{\"pro"[..], false)
    );
    first.say(body("{\"prompt\":1}", true)).await;
    assert!(matches!(first.hear().await, Reply::RequestHeaders(_)));
    assert!(streamed(first.hear().await).end_of_stream);
}

#[tokio::test]
async fn an_endless_exchange_does_not_outlive_the_grace() {
    let settings = ExtProcSettings {
        grace: Duration::from_millis(50),
        ..ExtProcSettings::default()
    };
    let mut kvscout = kvscout(settings).await;
    let mut exchange = Exchange::open(channel(kvscout.address).await).await;
    exchange.say(headers("/v1/completions", true)).await;
    exchange.hear().await;
    let server = kvscout.shut_down();
    soon("the server ends", server).await.expect("ended well");
}

#[tokio::test]
async fn a_certificate_from_files_is_shown() {
    let made = rcgen::generate_simple_self_signed(["kvscout".to_owned()]).expect("made");
    let folder = tempfile::tempdir().expect("a folder");
    let (cert, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&cert, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let settings = ExtProcSettings::default();
    let tls = Tls::Files {
        cert,
        key,
        client_ca: None,
    };
    let kvscout = Kvscout::start(&[POD], tls, settings).await;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(made.cert.pem()))
        .domain_name("kvscout");
    let endpoint = Endpoint::from_shared(format!("https://{}", kvscout.address)).expect("a URI");
    let endpoint = endpoint.tls_config(tls).expect("a certificate");
    let channel = soon("a connection", endpoint.connect())
        .await
        .expect("verified");
    let mut exchange = Exchange::open(channel).await;
    exchange.say(headers("/v1/completions", true)).await;
    assert!(matches!(exchange.hear().await, Reply::RequestHeaders(_)));
}

async fn status(channel: &Channel, service: &str) -> Result<ServingStatus, Code> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let mut client = HealthClient::new(channel.clone());
    let answer = soon("a check", client.check(request)).await;
    answer
        .map(|answer| answer.into_inner().status())
        .map_err(|status| status.code())
}

#[tokio::test]
async fn health_follows_readiness_on_both_ports() {
    use ServingStatus::{NotServing, Serving};
    let kvscout = kvscout(ExtProcSettings::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let own_port = listener.local_addr().expect("bound");
    let metrics = Metrics::default().door("health");
    let door = Door::new(listener, door_rules(), None, metrics);
    let health: Health = kvscout.health.clone();
    let server =
        tokio::spawn(async move { health.serve(door, tokio::time::sleep(2 * PATIENCE)).await });
    let ports = [channel(kvscout.address).await, channel(own_port).await];
    for (ready, expected) in [(false, NotServing), (true, Serving), (false, NotServing)] {
        kvscout.health.set_ready(ready).await;
        for port in &ports {
            for service in [
                "",
                "readiness",
                "inference-extension",
                "envoy.service.ext_proc.v3.ExternalProcessor",
            ] {
                assert_eq!(status(port, service).await, Ok(expected), "{service}");
            }
            assert_eq!(status(port, "liveness").await, Ok(Serving));
            assert_eq!(status(port, "nobody").await, Err(Code::NotFound));
        }
    }
    server.abort();
}

/// What is counted of exchanges that were ended for this reason.
async fn given_up(kvscout: &Kvscout, reason: &str) {
    let line = format!("kvscout_exchanges_given_up_total{{reason=\"{reason}\"}} 1");
    let counted = || kvscout.metrics.handle().render().contains(&line);
    until("it is counted", counted).await;
}

/// Little patience of this kind.
fn impatient(set: impl FnOnce(&mut Patience)) -> ExtProcSettings {
    let mut settings = ExtProcSettings::default();
    set(&mut settings.patience);
    settings
}

const SHORT: Duration = Duration::from_millis(50);

/// Envoy's `retry_policy` asks another picker only where it has seen no response headers.
#[tokio::test]
async fn until_its_first_reply_a_call_is_not_answered() {
    let kvscout = kvscout(ExtProcSettings::default()).await;
    let (say, said) = mpsc::channel(8);
    let mut client = ExternalProcessorClient::new(channel(kvscout.address).await);
    let mut call = pin!(client.process(ReceiverStream::new(said)));
    let message = |message| ProcessingRequest {
        request: Some(message),
        ..Default::default()
    };
    say.send(message(headers("/v1/completions", false)))
        .await
        .expect("it listens");
    loop {
        let early = tokio::time::timeout(SHORT, &mut call).await;
        assert!(early.is_err(), "answered early");
        if kvscout.capacity.open() == 1 {
            break;
        }
    }
    say.send(message(body("{}", true)))
        .await
        .expect("it listens");
    let answered = soon("an answer", call).await.expect("no error");
    let first = soon("a reply", answered.into_inner().message()).await;
    let first = first.expect("no error").expect("not the end").response;
    assert!(matches!(first, Some(Reply::RequestHeaders(_))), "{first:?}");
}

#[tokio::test]
async fn compressed_messages_are_refused_before_any_is_read() {
    let kvscout = kvscout(ExtProcSettings::default()).await;
    let mut client = ExternalProcessorClient::new(channel(kvscout.address).await);
    for (encoding, code) in [("gzip", Some(Code::Unimplemented)), ("identity", None)] {
        let mut call = tonic::Request::new(stream::empty());
        let encoding = encoding.parse().expect("plain text");
        call.metadata_mut().insert("grpc-encoding", encoding);
        let answer = soon("an answer", client.process(call)).await;
        assert_eq!(answer.err().map(|status| status.code()), code);
    }
}

#[tokio::test]
async fn a_method_that_nobody_knows_is_unimplemented() {
    let kvscout = kvscout(ExtProcSettings::default()).await;
    let mut client = tonic::client::Grpc::new(channel(kvscout.address).await);
    client.ready().await.expect("it is connected");
    let path = PathAndQuery::from_static("/envoy.service.ext_proc.v3.ExternalProcessor/Other");
    let codec = ProstCodec::<ProcessingRequest, ProcessingRequest>::default();
    let call = tonic::Request::new(ProcessingRequest::default());
    let answer = soon("an answer", client.unary(call, path, codec)).await;
    let code = answer.err().map(|status| status.code());
    assert_eq!(code, Some(Code::Unimplemented));
}

/// A buffered body is one gRPC message, which the decoder keeps until its last byte is there.
#[tokio::test]
async fn what_has_come_of_a_message_is_counted_and_bounded() {
    const PART: usize = 32 << 20;
    let mut settings = ExtProcSettings::default();
    settings.limits.held_bytes_max = PART;
    let kvscout = kvscout(settings).await;
    // HTTP/2 by hand: a gRPC client sends whole messages.
    let stream = TcpStream::connect(kvscout.address).await;
    let io = TokioIo::new(stream.expect("it listens"));
    let shaken = http2::handshake(TokioExecutor::new(), io).await;
    let (sender, connection) = shaken.expect("HTTP/2");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { connection.await.is_ok() });
    let mut part = vec![0];
    part.extend_from_slice(&(64_u32 << 20).to_be_bytes());
    part.resize(PART, 7);
    let part = Bytes::from(part);
    let mut begin = || {
        let begun = stream::once(ready(Ok::<_, Infallible>(Frame::data(part.clone()))));
        let request = Request::post("/envoy.service.ext_proc.v3.ExternalProcessor/Process")
            .header("content-type", "application/grpc")
            .body(StreamBody::new(begun.chain(stream::pending())));
        let mut sender = sender.clone();
        tasks.spawn(async move {
            let answer = sender.send_request(request.expect("a request")).await;
            assert_eq!(answer.expect("an answer").status(), 200);
            true
        });
    };
    begin();
    until("it is counted", || kvscout.capacity.held_bytes() == PART).await;
    // All that is allowed, and one more.
    for _ in 0..(256 << 20) / PART + 1 {
        begin();
    }
    assert!(
        soon("one is given up", tasks.join_next())
            .await
            .is_some_and(|one| one.expect("as it should"))
    );
    given_up(&kvscout, "memory").await;
    assert!(kvscout.capacity.held_bytes() <= PART + (256 << 20));
    tasks.shutdown().await;
    until("all is given back", || kvscout.capacity.held_bytes() == 0).await;
}

#[tokio::test]
async fn a_stream_that_never_begins_is_ended() {
    let kvscout = kvscout(impatient(|patience| patience.first = SHORT)).await;
    let mut exchange = Exchange::open(channel(kvscout.address).await).await;
    let ended = soon("an end", exchange.hear.message()).await;
    assert_eq!(ended.expect_err("late").code(), Code::DeadlineExceeded);
    given_up(&kvscout, "never_began").await;
    assert_eq!(kvscout.capacity.open(), 0);
}

#[tokio::test]
async fn a_body_that_never_ends_passes_unread() {
    let kvscout = kvscout(impatient(|patience| patience.body = SHORT)).await;
    let mut exchange = Exchange::open(channel(kvscout.address).await).await;
    exchange.say(headers("/v1/completions", false)).await;
    exchange.say(body("{\"pro", false)).await;
    assert!(matches!(exchange.hear().await, Reply::RequestHeaders(_)));
    assert_eq!(&streamed(exchange.hear().await).body[..], b"{\"pro");
    exchange.say(body("mpt\":", false)).await;
    assert_eq!(&streamed(exchange.hear().await).body[..], b"mpt\":");
}

#[tokio::test]
async fn an_answer_that_never_comes_gives_its_load_back() {
    let kvscout = kvscout(impatient(|patience| patience.silence = 4 * SHORT)).await;
    let mut exchange = Exchange::open(channel(kvscout.address).await).await;
    exchange.say(headers("/v1/completions", true)).await;
    assert!(matches!(exchange.hear().await, Reply::RequestHeaders(_)));
    let ended = soon("an end", exchange.hear.message()).await;
    assert_eq!(ended.expect_err("late").code(), Code::DeadlineExceeded);
    given_up(&kvscout, "silent").await;
    assert_eq!(kvscout.requests(), 0);
}

#[tokio::test]
async fn a_gateway_that_takes_no_answer_is_given_up() {
    let kvscout = kvscout(impatient(|patience| patience.silence = 4 * SHORT)).await;
    let exchange = Exchange::open(channel(kvscout.address).await).await;
    exchange.say(headers("/v1/completions", false)).await;
    // More than HTTP/2's windows and every queue on the way take.
    let long = "x".repeat(1 << 20);
    for last in [false, false, false, true] {
        exchange.say(body(long.clone(), last)).await;
    }
    given_up(&kvscout, "silent").await;
    assert_eq!((kvscout.requests(), kvscout.capacity.held_bytes()), (0, 0));
}

#[tokio::test]
async fn a_gateway_that_answers_no_ping_frees_every_place_on_it() {
    let settings = impatient(|patience| patience.keepalive = (SHORT, SHORT));
    let kvscout = kvscout(settings).await;
    // A wire that can be cut without a word.
    let wire = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let here = wire.local_addr().expect("bound");
    let (cut, is_cut) = oneshot::channel::<()>();
    let there = kvscout.address;
    let carry = tokio::spawn(async move {
        let (mut gateway, _) = wire.accept().await.expect("a gateway");
        let mut to = TcpStream::connect(there).await.expect("kvscout");
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut gateway, &mut to) => panic!("it is not cut"),
            _ = is_cut => {}
        }
        // Open for as long as anybody may look, and silent.
        tokio::time::sleep(2 * PATIENCE).await;
    });
    let mut exchange = Exchange::open(channel(here).await).await;
    exchange.say(headers("/v1/completions", true)).await;
    assert!(matches!(exchange.hear().await, Reply::RequestHeaders(_)));
    assert_eq!(kvscout.requests(), 1);
    cut.send(()).expect("it is carried");
    until("it is free", || kvscout.requests() == 0).await;
    carry.abort();
}

#[tokio::test]
async fn one_request_too_many_is_refused_with_a_reason() {
    let limits = capacity::Limits {
        streams_max: 1,
        ..Default::default()
    };
    let kvscout = kvscout(ExtProcSettings {
        limits,
        ..Default::default()
    })
    .await;
    let channel = channel(kvscout.address).await;
    let mut first = Exchange::open(channel.clone()).await;
    first.say(headers("/v1/completions", true)).await;
    assert!(matches!(first.hear().await, Reply::RequestHeaders(_)));
    let mut second = Exchange::open(channel.clone()).await;
    let Reply::ImmediateResponse(refused) = second.hear().await else {
        panic!("not refused");
    };
    assert_eq!(refused.status.map(|status| status.code), Some(503));
    let set = refused.headers.expect("headers").set_headers.into_iter();
    let set: Vec<_> = set.filter_map(|one| one.header).collect();
    for (name, value) in [
        ("x-llm-d-request-dropped-reason", "rejected-overloaded"),
        ("retry-after", "1"),
    ] {
        let found = set.iter().find(|header| header.key == name);
        assert_eq!(found.expect(name).raw_value, value);
    }
    let counted = kvscout.metrics.handle().render();
    assert!(counted.contains("outcome=\"overloaded\"} 1"), "{counted}");
    drop(first);
    until("a place is free", || kvscout.capacity.open() == 0).await;
    let mut third = Exchange::open(channel).await;
    assert!(!third.picked().await.is_empty());
}

/// A picker that gives way at the least wait for a core, which there always is, once every lane has looked.
async fn short_of_cores(limits: capacity::Limits) -> Kvscout {
    let kvscout = kvscout(ExtProcSettings {
        limits,
        ..ExtProcSettings::default()
    })
    .await;
    let looks = || {
        kvscout
            .capacity
            .delays()
            .iter()
            .all(|d| !d.standing().is_zero())
    };
    until("every lane has looked", looks).await;
    kvscout
}

#[tokio::test]
async fn where_cores_are_short_reading_gives_way_first_and_requests_last() {
    let unread = short_of_cores(capacity::Limits {
        unread_after: Duration::ZERO,
        refused_after: PATIENCE,
        ..Default::default()
    })
    .await;
    let mut exchange = Exchange::open(channel(unread.address).await).await;
    exchange.say(headers("/v1/completions", false)).await;
    assert!(
        matches!(exchange.hear().await, Reply::RequestHeaders(_)),
        "before its body has begun"
    );
    let refused = short_of_cores(capacity::Limits {
        refused_after: Duration::ZERO,
        ..Default::default()
    })
    .await;
    let mut exchange = Exchange::open(channel(refused.address).await).await;
    assert!(matches!(exchange.hear().await, Reply::ImmediateResponse(_)));
}

#[tokio::test]
async fn a_bodys_memory_is_given_back_when_the_gateway_has_it() {
    let kvscout = kvscout(ExtProcSettings::default()).await;
    let mut exchange = Exchange::open(channel(kvscout.address).await).await;
    exchange.say(headers("/v1/completions", false)).await;
    exchange.say(body("x".repeat(100_000), false)).await;
    until("it is held", || kvscout.capacity.held_bytes() == 100_000).await;
    exchange.say(body("y", true)).await;
    assert!(matches!(exchange.hear().await, Reply::RequestHeaders(_)));
    while !streamed(exchange.hear().await).end_of_stream {}
    // The model is at work, and the request is open for as long as that takes.
    assert_eq!((kvscout.requests(), kvscout.capacity.held_bytes()), (1, 0));
}

#[tokio::test]
async fn shutting_down_waits_for_every_exchange_to_be_accounted_for() {
    let mut kvscout = kvscout(ExtProcSettings {
        grace: SHORT,
        ..Default::default()
    })
    .await;
    let mut exchange = Exchange::open(channel(kvscout.address).await).await;
    exchange.say(headers("/v1/completions", true)).await;
    exchange.hear().await;
    let server = kvscout.shut_down();
    soon("the server ends", server).await.expect("ended well");
    assert_eq!((kvscout.requests(), kvscout.capacity.open()), (0, 0));
    given_up(&kvscout, "grace_over").await;
}
