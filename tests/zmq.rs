//! vLLM's publisher as the event source meets it: a real libzmq at the other end, and peers
//! that are none. Nothing here sleeps to be in step: every wait is for an answer, with a
//! deadline.

mod harness;

use std::future::Future;
use std::process::Command;
use std::time::Duration;

use harness::publisher::Publisher;

use kvscout::events::recording::Recording;
use kvscout::events::replay::{Replay, ReplayEnd, ReplayError, replay};
use kvscout::events::zmq::{Limits, ZmqSource};
use kvscout::events::{Delivery, EventSource};
use kvscout::tools::record::{Args, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// A publisher, seen by what hears it.
trait Heard {
    async fn source(&mut self, topic: &str, limits: Limits) -> ZmqSource;
    async fn replay(&self, from_seq: u64, deadline: Duration) -> Result<Replay, ReplayError>;
}

impl Heard for Publisher {
    /// A source that the publisher has heard of.
    async fn source(&mut self, topic: &str, limits: Limits) -> ZmqSource {
        let mut source = listen("127.0.0.1", self.port, topic, limits);
        assert_eq!(next(&mut source).await, Delivery::Connected);
        assert_eq!(
            self.tell("await_subscriber").trim_end(),
            format!("subscribed {topic}").trim_end()
        );
        source
    }

    async fn replay(&self, from_seq: u64, deadline: Duration) -> Result<Replay, ReplayError> {
        let address = format!("tcp://localhost:{}", self.replay_port);
        within(replay(&address, from_seq, deadline, &Limits::default())).await
    }
}

fn listen(host: &str, port: u16, topic: &str, limits: Limits) -> ZmqSource {
    let publisher = format!("tcp://{host}:{port}");
    ZmqSource::connect(&publisher, topic, limits).expect("an address")
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(DEADLINE, future)
        .await
        .expect("within the deadline")
}

async fn next(source: &mut ZmqSource) -> Delivery {
    within(source.next()).await.expect("a source goes on")
}

/// The next batch's sequence number; what happens to the link meanwhile is passed over.
async fn next_seq(source: &mut ZmqSource) -> u64 {
    loop {
        match next(source).await {
            Delivery::Batch(batch) => return batch.seq,
            Delivery::Connected | Delivery::Disconnected { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn next_disconnect(source: &mut ZmqSource) -> String {
    loop {
        if let Delivery::Disconnected { reason } = next(source).await {
            return reason;
        }
    }
}

fn seqs(replay: &Replay) -> Vec<u64> {
    replay.batches.keys().copied().collect()
}

/// The signature, a version, NULL: what every libzmq sends first.
fn greeting() -> Vec<u8> {
    let mut greeting = vec![0; 64];
    (greeting[0], greeting[9]) = (0xff, 0x7f);
    (greeting[10], greeting[11]) = (3, 1);
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// A peer that says `bytes` to whoever connects, and then holds its tongue.
async fn peer_saying(bytes: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let mut held: Vec<TcpStream> = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if stream.write_all(&bytes).await.is_ok() {
                held.push(stream);
            }
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_arrive_as_they_were_published() {
    let mut publisher = Publisher::start();
    let mut source = publisher.source("kv@", Limits::default()).await;
    publisher.tell("publish other 0 1 10");
    publisher.tell("publish kv@pod 0 2 500");
    publisher.tell("publish kv@pod 2 1 3000000");
    for (seq, bytes) in [(0, 500), (1, 500), (2, 3_000_000)] {
        let Delivery::Batch(batch) = next(&mut source).await else {
            panic!("no batch");
        };
        assert_eq!((&batch.topic[..], batch.seq), (&b"kv@pod"[..], seq));
        let fill = u8::try_from(seq).expect("small");
        assert!(batch.payload.len() == bytes && batch.payload.iter().all(|b| *b == fill));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_and_names_are_addresses_too() {
    let mut publisher = Publisher::start();
    for host in ["[::1]", "localhost"] {
        let mut source = listen(host, publisher.port, "", Limits::default());
        assert_eq!(next(&mut source).await, Delivery::Connected, "{host}");
        publisher.tell("await_subscriber");
        publisher.tell("publish kv 7 1 1");
        assert_eq!(next_seq(&mut source).await, 7, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_no_batch_is_told_and_passed_over() {
    let mut publisher = Publisher::start();
    let mut source = publisher.source("", Limits::default()).await;
    publisher.tell("raw 6b76 00");
    publisher.tell("raw 6b76 0000 00");
    publisher.tell("raw - 0000000000000005 00");
    for _ in 0..2 {
        let delivery = next(&mut source).await;
        assert!(
            matches!(delivery, Delivery::Malformed { .. }),
            "{delivery:?}"
        );
    }
    assert_eq!(next_seq(&mut source).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_returns_is_heard_again() {
    let mut publisher = Publisher::start();
    let mut source = publisher.source("", Limits::default()).await;
    publisher.tell("publish kv 41 1 10");
    assert_eq!(next_seq(&mut source).await, 41);
    let port = publisher.port.to_string();
    drop(publisher);
    next_disconnect(&mut source).await;
    let mut publisher = Publisher::start_on(&port);
    publisher.tell("await_subscriber");
    publisher.tell("publish kv 0 1 10");
    assert_eq!(next_seq(&mut source).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_comes_late_is_heard() {
    let port = Publisher::start().port;
    let mut source = listen("127.0.0.1", port, "", Limits::default());
    let reason = next_disconnect(&mut source).await;
    assert!(reason.contains("refused"), "{reason}");
    let mut publisher = Publisher::start_on(&port.to_string());
    publisher.tell("await_subscriber");
    publisher.tell("publish kv 0 1 10");
    assert_eq!(next_seq(&mut source).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_loses_the_newest_and_says_so() {
    let mut publisher = Publisher::start();
    let limits = Limits {
        queue_messages_max: 10,
        ..Limits::default()
    };
    let mut source = publisher.source("", limits).await;
    publisher.tell("publish kv 0 1000 500");
    let gauge = source.gauge();
    let full = async {
        while gauge.read().messages < 10 {
            tokio::task::yield_now().await;
        }
    };
    within(full).await;
    let (mut expected, mut lost) = (0, 0);
    while expected < 1_000 {
        match next(&mut source).await {
            Delivery::Batch(batch) => {
                assert_eq!(batch.seq, expected);
                expected += 1;
            }
            Delivery::Overrun { messages } => {
                assert!(expected >= 10, "lost one of the oldest");
                lost += messages;
                expected += messages;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(lost > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_answers_no_heartbeat_is_disconnected() {
    let mut publisher = Publisher::start();
    let limits = Limits {
        ping_every: Duration::from_millis(50),
        silence_max: Duration::from_millis(500),
        ..Limits::default()
    };
    let mut source = publisher.source("", limits).await;
    let stopped = Command::new("kill")
        .args(["-STOP", &publisher.child.id().to_string()])
        .status();
    assert!(stopped.expect("kill runs").success());
    let reason = next_disconnect(&mut source).await;
    assert!(reason.contains("heartbeat"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_publisher_stays_connected() {
    let mut publisher = Publisher::start();
    let limits = Limits {
        ping_every: Duration::from_millis(50),
        silence_max: Duration::from_secs(1),
        ..Limits::default()
    };
    let mut source = publisher.source("", limits).await;
    // Three times the silence that would end the connection, were no heartbeat answered.
    let idle = timeout(Duration::from_secs(3), source.next()).await;
    assert!(idle.is_err(), "{idle:?}");
    publisher.tell("publish kv 0 1 10");
    assert!(matches!(next(&mut source).await, Delivery::Batch(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_instead_of_a_greeting_is_a_disconnect() {
    let port = peer_saying(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()).await;
    let mut source = listen("127.0.0.1", port, "", Limits::default());
    let reason = next_disconnect(&mut source).await;
    assert!(reason.contains("not a ZeroMQ socket"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_never_greets_is_given_up() {
    let port = peer_saying(Vec::new()).await;
    let limits = Limits {
        connect_max: Duration::from_millis(200),
        ..Limits::default()
    };
    let mut source = listen("127.0.0.1", port, "", limits);
    let reason = next_disconnect(&mut source).await;
    assert!(reason.contains("no answer within 200ms"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_terabyte_is_a_disconnect() {
    let ready = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB";
    let mut bytes = [&greeting()[..], ready, &[2]].concat();
    bytes.extend((1_u64 << 40).to_be_bytes());
    let port = peer_saying(bytes).await;
    let mut source = listen("127.0.0.1", port, "", Limits::default());
    assert_eq!(next(&mut source).await, Delivery::Connected);
    let reason = next_disconnect(&mut source).await;
    assert!(reason.contains("1099511627776 bytes"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_addresses_are_explained() {
    let publisher = Publisher::start();
    let mut source = listen("127.0.0.1", publisher.replay_port, "", Limits::default());
    let reason = next_disconnect(&mut source).await;
    assert!(
        reason.contains("a ROUTER socket instead of a PUB"),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_source_hangs_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let source = listen("127.0.0.1", port, "", Limits::default());
    let (mut stream, _) = within(listener.accept()).await.expect("it connects");
    drop(source);
    let mut rest = Vec::new();
    // The end of the stream, or a reset: either way nobody is there any more.
    drop(within(stream.read_to_end(&mut rest)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_replay_formats_are_read() {
    let mut publisher = Publisher::start();
    publisher.tell("publish kv 0 900 200");
    for (format, topic) in [("0.25", ""), ("0.26", "kv")] {
        publisher.tell(&format!("replay {format} whole"));
        let replay = publisher.replay(500, DEADLINE).await.expect("a replay");
        assert_eq!(replay.end, ReplayEnd::Complete);
        assert_eq!(seqs(&replay), (500..900).collect::<Vec<_>>());
        assert_eq!(replay.batches[&500].topic, topic);
        assert!(!replay.starts_late() && replay.gaps().next().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_nothing_is_complete() {
    let publisher = Publisher::start();
    let replay = publisher.replay(0, DEADLINE).await.expect("a replay");
    assert_eq!((seqs(&replay), replay.end), (vec![], ReplayEnd::Complete));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_says_what_it_lacks() {
    let mut publisher = Publisher::start();
    publisher.tell("publish kv 0 10 10");
    publisher.tell("publish kv 13 2 10");
    publisher.tell("keep_from 8");
    let replay = publisher.replay(5, DEADLINE).await.expect("a replay");
    assert_eq!(seqs(&replay), [8, 9, 13, 14]);
    assert!(replay.starts_late());
    assert_eq!(replay.gaps().collect::<Vec<_>>(), [(10, 13)]);
}

/// vLLM before 0.33.0 loses replies beyond its ROUTER's mark of 1,000, whoever reads.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_replay_lost_is_asked_for_again() {
    let mut publisher = Publisher::start();
    publisher.tell("publish kv 0 30 10");
    publisher.tell("replay 0.26 holes");
    let replay = publisher.replay(0, DEADLINE).await.expect("a replay");
    assert_eq!(seqs(&replay), (0..30).collect::<Vec<_>>());
    assert_eq!(replay.end, ReplayEnd::Complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_without_an_end_marker_is_truncated_not_hung() {
    let mut publisher = Publisher::start();
    publisher.tell("publish kv 0 3 10");
    publisher.tell("replay 0.26 endless");
    let replay = publisher
        .replay(0, Duration::from_secs(1))
        .await
        .expect("a part");
    assert_eq!(seqs(&replay), [0, 1, 2]);
    let reason = "no end marker came".into();
    assert_eq!(replay.end, ReplayEnd::Truncated { reason });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_cut_off_is_truncated() {
    let mut publisher = Publisher::start();
    publisher.tell("replay 0.26 hangup");
    let replay = publisher.replay(0, DEADLINE).await.expect("a part");
    assert!(matches!(replay.end, ReplayEnd::Truncated { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_beyond_the_limit_is_truncated() {
    let mut publisher = Publisher::start();
    publisher.tell("publish kv 0 100 1000");
    let address = format!("tcp://127.0.0.1:{}", publisher.replay_port);
    let limits = Limits {
        replay_bytes_max: 11_500,
        ..Limits::default()
    };
    let replay = within(replay(&address, 0, DEADLINE, &limits))
        .await
        .expect("a part");
    assert_eq!(seqs(&replay), (0..10).collect::<Vec<_>>());
    let reason = "more than 11500 bytes".into();
    assert_eq!(replay.end, ReplayEnd::Truncated { reason });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_no_replay_is_an_error() {
    let mut publisher = Publisher::start();
    publisher.tell("replay 0.26 garbage");
    let replay = publisher.replay(0, DEADLINE).await;
    assert!(
        matches!(replay, Err(ReplayError::Malformed(_))),
        "{replay:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_is_read_back_and_never_overwritten() {
    let mut publisher = Publisher::start();
    let folder = tempfile::tempdir().expect("a folder");
    let args = Args {
        zmq: format!("tcp://127.0.0.1:{}", publisher.port),
        topic: "kv".into(),
        out: folder.path().join("new"),
        seconds: None,
        batches: Some(3),
    };
    let recording = tokio::spawn(run(args.clone()));
    publisher.tell("await_subscriber");
    publisher.tell("publish kv 4 3 100");
    within(recording)
        .await
        .expect("no panic")
        .expect("recorded");
    let recording = Recording::open(&args.out.join("events.jsonl")).expect("written");
    let seqs: Vec<_> = recording
        .deliveries()
        .map(|delivery| match delivery {
            Delivery::Batch(batch) => (batch.seq, batch.payload.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(seqs, [(4, 100), (5, 100), (6, 100)]);
    let meta = std::fs::read(args.out.join("meta.json")).expect("written");
    let meta: serde_json::Value = serde_json::from_slice(&meta).expect("JSON");
    assert_eq!((&meta["events"], &meta["gaps"]), (&3.into(), &0.into()));
    let again = run(args).await.expect_err("it exists");
    assert!(again.to_string().contains("never overwritten"), "{again}");
}
