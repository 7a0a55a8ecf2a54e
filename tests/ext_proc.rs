//! kvscout's gRPC ports, with the test as Envoy.

mod harness;

use std::net::SocketAddr;
use std::time::Duration;

use harness::exchange::{Exchange, body, channel, headers, streamed};
use harness::{Kvscout, PATIENCE, soon, until};
use kvscout::config::Tls;
use kvscout::ext_proc::{ExtProcSettings, Health};
use kvscout::proto::ext_proc::processing_response::Response as Reply;
use tokio::net::TcpListener;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

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
        reading_max: 1,
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
    let kvscout = Kvscout::start(&[POD], Tls::Files { cert, key }, settings).await;
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
    let health: Health = kvscout.health.clone();
    let server = tokio::spawn(async move {
        health
            .serve(listener, tokio::time::sleep(2 * PATIENCE))
            .await
    });
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
