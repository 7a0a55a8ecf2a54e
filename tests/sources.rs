//! One suite for every way that events come: straight from a publisher, through a bridge and a real
//! nats-server, and out of a recording. The same batches, and what each way must make of them.
//!
//! | case | straight | bridge, NATS | recording |
//! |---|---|---|---|
//! | in order | all | all | all |
//! | late | replayed | the stream has it | no replay: the rest |
//! | late, replay forgotten | the rest | the bridge was there | no replay: the rest |
//! | one lost on the way | replayed | the bridge replays it | no replay: the rest |
//! | one lost for good | the rest | the rest | the rest |
//! | one twice | counts once | counts once | counts once |
//! | another process | its own alone | its own alone | its own alone |
//! | the cache cleared | nothing, for sure | nothing, for sure | nothing, for sure |
//! | undecodable | the rest | the rest | the rest |
//!
//! "The rest" is `doubtful` and never called `live`; everything else is `live`.

mod harness;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use harness::ears::{self, Ears};
use harness::http::{self, full, post};
use harness::nats::NatsServer;
use harness::publisher::Publisher;
use harness::{PATIENCE, sim, soon};
use kvscout::blocks::{BlockEvent, EngineHash, Stored};
use kvscout::config::Nats;
use kvscout::events::follow::Follower;
use kvscout::events::listen::{self, Listeners};
use kvscout::events::nats::Cluster;
use kvscout::events::recording::{Recording, RecordingWriter};
use kvscout::events::wire;
use kvscout::events::{Batch, Delivery, EventSource};
use kvscout::fleet::{self, EndpointId, EventAddress, Trust};
use kvscout::index::{Index, Place, digest_of};
use kvscout_sim::events::{Layout, encode};
use serde_json::json;

/// What becomes of a server's batches, one after the other.
#[derive(Debug, Clone)]
enum Act {
    /// Sent, and kept for a replay.
    Send(u64, Vec<u8>),
    /// Kept for a replay alone: lost on the way.
    Lose(u64, Vec<u8>),
    /// Lost for good: a sequence number was taken, and nothing keeps the batch.
    Vanish(u64, Vec<u8>),
    /// The batch before, once more.
    SendAgain,
    /// The server's ring holds nothing any more.
    Forget,
    /// Whoever shall know begins to listen here.
    Join,
}

/// What must be known at the end, as copies by hash.
#[derive(Debug, Clone, PartialEq)]
enum Known {
    /// All that the server holds, and it is called so.
    All(&'static [u64]),
    /// No more than this, and it is not called all.
    Rest(&'static [u64]),
}
use Known::{All, Rest};

/// One row of the table.
struct Case {
    claim: &'static str,
    acts: Vec<Act>,
    straight: Known,
    nats: Known,
    recording: Known,
}

/// A batch that stores one block; its hash is also its time.
fn stores(hash: u64) -> Vec<u8> {
    let first = u32::try_from(hash * 100).expect("small");
    let tokens = (first..first + 16).collect();
    let stored = Stored::plain(None, vec![EngineHash(hash)], tokens);
    encode(Layout::Map, hash as f64, &[BlockEvent::Stored(stored)], 0)
}

fn clears(time: u64) -> Vec<u8> {
    encode(Layout::Map, time as f64, &[BlockEvent::Cleared], 0)
}

fn send(seq: u64, hash: u64) -> Act {
    Act::Send(seq, stores(hash))
}

fn case(claim: &'static str, acts: Vec<Act>, known: [Known; 3]) -> Case {
    let [straight, nats, recording] = known;
    Case {
        claim,
        acts,
        straight,
        nats,
        recording,
    }
}

fn everywhere(claim: &'static str, acts: Vec<Act>, known: Known) -> Case {
    case(claim, acts, [known.clone(), known.clone(), known])
}

fn cases() -> Vec<Case> {
    use Act::{Forget, Join, Lose, Send, SendAgain, Vanish};
    let undecodable = vec![0xc1, 0, 1];
    vec![
        everywhere(
            "in-order",
            vec![Join, send(0, 1), send(1, 2), send(2, 3)],
            All(&[1, 2, 3]),
        ),
        case(
            "late",
            vec![send(0, 1), send(1, 2), Join, send(2, 3)],
            [All(&[1, 2, 3]), All(&[1, 2, 3]), Rest(&[3])],
        ),
        case(
            "late-and-forgotten",
            vec![send(0, 1), send(1, 2), Forget, Join, send(2, 3)],
            [Rest(&[3]), All(&[1, 2, 3]), Rest(&[3])],
        ),
        case(
            "lost-on-the-way",
            vec![Join, send(0, 1), Lose(1, stores(2)), send(2, 3)],
            [All(&[1, 2, 3]), All(&[1, 2, 3]), Rest(&[3])],
        ),
        everywhere(
            "lost-for-good",
            vec![
                Join,
                send(0, 1),
                Vanish(1, stores(2)),
                send(2, 3),
                send(3, 4),
            ],
            Rest(&[3, 4]),
        ),
        everywhere(
            "twice",
            vec![Join, send(0, 1), send(1, 2), SendAgain, send(2, 3)],
            All(&[1, 2, 3]),
        ),
        everywhere(
            "another-process",
            vec![Join, send(0, 1), send(1, 2), Forget, send(0, 3), send(1, 4)],
            All(&[3, 4]),
        ),
        everywhere(
            "cleared",
            vec![Join, send(0, 1), send(1, 2), Send(2, clears(3))],
            All(&[]),
        ),
        everywhere(
            "undecodable",
            vec![Join, send(0, 1), Send(1, undecodable), send(2, 3)],
            Rest(&[3]),
        ),
    ]
}

/// What nobody can read stores a block too.
const UNREADABLE: u64 = 999;

/// What the server holds after each of its batches, as copies by hash, and before the first.
fn truths(acts: &[Act]) -> Vec<BTreeMap<u64, usize>> {
    let mut truths = vec![BTreeMap::new()];
    for act in acts {
        let (Act::Send(seq, payload) | Act::Lose(seq, payload) | Act::Vanish(seq, payload)) = act
        else {
            continue;
        };
        let before = truths.last().filter(|_| *seq > 0);
        let mut held = before.cloned().unwrap_or_default();
        let Ok(batch) = wire::decode(payload) else {
            held.insert(UNREADABLE, 1);
            truths.push(held);
            continue;
        };
        for event in batch.events {
            match event {
                BlockEvent::Stored(stored) => {
                    held.extend(stored.hashes.iter().map(|hash| (hash.0, 1)));
                }
                BlockEvent::Cleared => held.clear(),
                BlockEvent::Removed { .. } => panic!("no case removes"),
            }
        }
        truths.push(held);
    }
    truths
}

/// A way for batches to come, and what is known of them by it.
trait Way {
    async fn act(&mut self, act: &Act);
    /// How complete it is called, and copies by hash with their digest.
    async fn known(&self) -> (Trust, BTreeMap<u64, usize>, u64);
}

/// Runs a case by one way. What is called complete must be so at every look, not just the last:
/// what the server holds, or held before the events that are on their way.
async fn run(case: &Case, way: &mut impl Way, known: &Known) -> Result<(), String> {
    for act in &case.acts {
        way.act(act).await;
    }
    let (hashes, all) = match known {
        All(hashes) => (hashes, true),
        Rest(hashes) => (hashes, false),
    };
    let copies: BTreeMap<u64, usize> = hashes.iter().map(|hash| (*hash, 1)).collect();
    let digest = hashes.iter().fold(0u64, |sum, hash| {
        sum.wrapping_add(digest_of(Place::OWN, *hash, 1))
    });
    let expected = (
        if all { Trust::Live } else { Trust::Doubtful },
        copies,
        digest,
    );
    let (truths, last) = (truths(&case.acts), Mutex::new(None));
    if all {
        assert_eq!(truths.last(), Some(&expected.1), "{}", case.claim);
    }
    let looked = async {
        loop {
            let now = way.known().await;
            let done = now == expected;
            let wrong = now.0 == Trust::Live && !truths.contains(&now.1);
            // At two looks in a row: the index changes a moment before the trust does.
            let before = last.lock().expect("no panic").replace(now.clone());
            let wrong = wrong && before == Some(now);
            if wrong || done {
                return !wrong;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, looked).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("{}: called live: {last:?}", case.claim)),
        Err(_late) => Err(format!("{}: {last:?}, not {expected:?}", case.claim)),
    }
}

/// All rows, at once; whatever is wrong is told together.
fn told(results: Vec<Result<(), String>>) {
    let wrong: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A libzmq publisher that does as it is told.
struct Stage {
    publisher: Publisher,
    last: String,
}

impl Stage {
    fn new() -> Self {
        Self {
            publisher: Publisher::start(),
            last: String::new(),
        }
    }

    fn server(&self, name: &str) -> ears::Server {
        let at = |port| format!("tcp://127.0.0.1:{port}");
        let Publisher {
            port, replay_port, ..
        } = self.publisher;
        ears::Server {
            name: name.to_owned(),
            address: ([127, 0, 0, 1], 8000).into(),
            events: Some(EventAddress {
                publisher: fleet::Publisher::At(at(port)),
                replay: Some(at(replay_port)),
            }),
            rank: 0,
        }
    }

    fn act(&mut self, act: &Act) {
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        let command = match act {
            Act::Send(seq, payload) => {
                let seq_frame = hex(&seq.to_be_bytes());
                self.last = format!("raw 6b76 {seq_frame} {}", hex(payload));
                format!("batch kv {seq} {}", hex(payload))
            }
            Act::Lose(seq, payload) => format!("keep kv {seq} {}", hex(payload)),
            Act::SendAgain => self.last.clone(),
            Act::Forget => format!("keep_from {}", u64::MAX),
            Act::Join | Act::Vanish(..) => return,
        };
        self.publisher.tell(&command);
    }
}

fn state(ears: Option<&Ears>) -> (Trust, BTreeMap<u64, usize>, u64) {
    let ears = ears.expect("every case joins");
    let id = ears.endpoint.id;
    (
        ears.endpoint.trust(),
        ears.copies(),
        ears.index.digest(id).1,
    )
}

/// Straight from the publisher.
struct Straight {
    stage: Stage,
    ears: Option<Ears>,
}

impl Way for Straight {
    async fn act(&mut self, act: &Act) {
        self.stage.act(act);
        if let Act::Join = act {
            let server = self.stage.server("pod");
            self.ears = Some(Ears::open(&server, ears::direct(), None));
            self.stage.publisher.tell("await_subscriber");
        }
    }

    async fn known(&self) -> (Trust, BTreeMap<u64, usize>, u64) {
        state(self.ears.as_ref())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn straight_from_the_publisher_everything_is_known_or_doubted() {
    let cases = cases();
    let results = cases.iter().map(|case| async {
        let mut way = Straight {
            stage: Stage::new(),
            ears: None,
        };
        run(case, &mut way, &case.straight).await
    });
    told(join_all(results).await);
}

/// Through a bridge, which is there from the start, and a cluster.
struct Bridged<'a> {
    stage: Stage,
    server: ears::Server,
    settings: &'a Nats,
    bridge: Ears,
    /// Batches since the ring was empty.
    sent: usize,
    picker: Option<Ears>,
}

impl<'a> Bridged<'a> {
    async fn new(name: &str, settings: &'a Nats) -> Self {
        let mut stage = Stage::new();
        let server = stage.server(name);
        let bridge = Ears::bridge(&server, settings).await;
        stage.publisher.tell("await_subscriber");
        Self {
            stage,
            server,
            settings,
            bridge,
            sent: 0,
            picker: None,
        }
    }
}

impl Way for Bridged<'_> {
    async fn act(&mut self, act: &Act) {
        match act {
            Act::Join => self.picker = Some(Ears::picker(&self.server, self.settings).await),
            Act::Send(..) => self.sent += 1,
            // What the bridge has not heard yet it could not ask for any more.
            Act::Forget => {
                let sent = std::mem::take(&mut self.sent);
                let heard = || self.bridge.copies().len() == sent;
                harness::until("the bridge has it", heard).await;
            }
            _ => {}
        }
        self.stage.act(act);
    }

    async fn known(&self) -> (Trust, BTreeMap<u64, usize>, u64) {
        state(self.picker.as_ref())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_bridge_everything_is_known_or_doubted() {
    let nats = NatsServer::start().await;
    let settings = nats.settings();
    let cluster = Cluster::connect(&settings).await.expect("an address");
    let made = soon("the stream is made", cluster.init()).await;
    made.expect("made");
    let cases = cases();
    let results = cases.iter().map(|case| async {
        let mut way = Bridged::new(case.claim, &settings).await;
        run(case, &mut way, &case.nats).await
    });
    told(join_all(results).await);
}

/// Out of a file. It has no replay: what was not heard is not in it.
struct Recorded {
    path: PathBuf,
    last: Option<Batch>,
    _folder: tempfile::TempDir,
}

impl Recorded {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self {
            path: folder.path().join("events.jsonl"),
            last: None,
            _folder: folder,
        }
    }

    fn write(&self, batch: &Batch) {
        let mut file = std::fs::OpenOptions::new();
        let file = file.append(true).create(true).open(&self.path);
        let mut writer = RecordingWriter::new(file.expect("a file"));
        writer.write(0.0, batch).expect("written");
    }
}

impl Way for Recorded {
    async fn act(&mut self, act: &Act) {
        match act {
            Act::Send(seq, payload) => {
                let batch = Batch {
                    topic: Bytes::from_static(b"kv"),
                    seq: *seq,
                    payload: payload.clone().into(),
                };
                self.write(&batch);
                self.last = Some(batch);
            }
            Act::SendAgain => self.write(self.last.as_ref().expect("one was sent")),
            // Whoever records begins here.
            Act::Join => std::fs::write(&self.path, "").expect("written"),
            Act::Lose(..) | Act::Vanish(..) | Act::Forget => {}
        }
    }

    /// As `kvscout replay` follows it.
    async fn known(&self) -> (Trust, BTreeMap<u64, usize>, u64) {
        let id = EndpointId(0);
        let (index, mut follower) = (Index::default(), Follower::new(id));
        let mut recording = Recording::open(&self.path).expect("recorded");
        while let Some(delivery) = recording.next().await {
            let Delivery::Batch(batch) = delivery else {
                panic!("{delivery:?}");
            };
            follower.on_batch(&index, batch.seq, &batch.payload);
        }
        let trust = follower.verdict().trust;
        (trust, ears::copies(&index, id), index.digest(id).1)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_a_recording_everything_is_known_or_doubted() {
    let cases = cases();
    let results = cases.iter().map(|case| async {
        let mut way = Recorded::new();
        run(case, &mut way, &case.recording).await
    });
    told(join_all(results).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_is_not_believed_to_hold_more_than_it_says_it_can() {
    let pod = sim::pod(4, 0, None).await.expect("it starts");
    let mut stage = Stage::new();
    let server = ears::Server {
        address: pod.addresses.http,
        ..stage.server("pod")
    };
    let ears = Ears::open(&server, ears::direct(), None);
    stage.publisher.tell("await_subscriber");
    for seq in 0..4 {
        stage.act(&send(seq, seq + 1));
    }
    let doubts = |blocks| {
        let (trust, reason) = (
            ears.endpoint.trust_since(),
            "blocks were counted in a cache of 3",
        );
        trust.trust == Trust::Doubtful && trust.reason == format!("{blocks} {reason}")
    };
    harness::until("one block too many", || doubts(4)).await;
    // A doubtful picture is learnt again: then this one is heard of too, and no event comes after it.
    stage.act(&Act::Lose(4, stores(5)));
    harness::until("what it tells again is no more believed", || doubts(5)).await;
}

/// A server that publishes, and replays if it is asked to.
async fn server() -> (kvscout_sim::Bound, ears::Server) {
    let pod = sim::pod(64, 0, None).await.expect("it starts");
    let events = pod.addresses.events.as_ref().expect("events are on");
    let server = ears::Server {
        name: "pod".into(),
        address: pod.addresses.http,
        events: Some(EventAddress {
            publisher: fleet::Publisher::At(events.endpoint.clone()),
            replay: events.replay_endpoint.clone(),
        }),
        rank: 0,
    };
    (pod, server)
}

/// A server whose events are on and do not come.
async fn silent() -> (kvscout_sim::Bound, ears::Server) {
    let (pod, mut server) = server().await;
    if let Some(events) = &mut server.events {
        events.replay = None;
    }
    ask(&server, "/sim/faults", json!({"silent": true})).await;
    (pod, server)
}

async fn ask(server: &ears::Server, path: &str, body: serde_json::Value) {
    let request = post(path).body(full(body.to_string()));
    let answer = http::send(server.address, request.expect("a request")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Listens, and loses patience at once.
fn impatient(server: &ears::Server, way: listen::Way) -> Ears {
    Ears::open_as(server, way, |listeners| Listeners {
        silent_after: Duration::ZERO,
        ..listeners
    })
}

/// Waits until the reason begins so; then the server works, and its operator is told.
async fn is_told(ears: &Ears, begins: &str) {
    let reason = || ears.endpoint.trust_since().reason;
    harness::until(begins, || reason().starts_with(begins)).await;
    assert!(!reason().contains("--kv-events-config"), "{}", reason());
    // As its placement does when a prompt of 1,200 tokens was answered.
    ears.endpoint.computed(1200);
    harness::until("it is told", || reason().contains("--kv-events-config")).await;
    assert!(reason().starts_with(begins), "{}", reason());
    assert_eq!(ears.endpoint.trust(), Trust::Silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_works_and_says_nothing_is_told_what_to_set() {
    let (_pod, server) = silent().await;
    let ears = impatient(&server, ears::direct());
    let prompt: Vec<u32> = (0..300).collect();
    let body = json!({"model": "sim", "prompt": prompt, "max_tokens": 1});
    ask(&server, "/v1/completions", body).await;
    is_told(&ears, "connected; no event seen yet").await;

    ask(&server, "/sim/faults", json!({})).await;
    let body = json!({"model": "sim", "prompt": [1, 2, 3], "max_tokens": 40});
    ask(&server, "/v1/completions", body).await;
    let cleared = || {
        let trust = ears.endpoint.trust_since();
        trust.trust != Trust::Silent && !trust.reason.contains("--kv-events-config")
    };
    harness::until("one event clears it", cleared).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_publisher_refuses_us_is_told_the_same() {
    let (pod, server) = silent().await;
    drop(pod);
    let ears = impatient(&server, ears::direct());
    is_told(&ears, "not connected: ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_bridge_the_server_is_told_and_a_missing_bridge_is_not() {
    let nats = NatsServer::start().await;
    let settings = nats.settings();
    let cluster = Cluster::connect(&settings).await.expect("an address");
    let made = soon("the stream is made", cluster.init()).await;
    made.expect("made");
    let (_pod, server) = silent().await;
    let picker = impatient(&server, listen::Way::Nats(Box::new(cluster)));
    picker.endpoint.computed(1200);
    let reason = || picker.endpoint.trust_since().reason;
    let away = || reason().starts_with("its bridge is not heard");
    harness::until("no bridge is heard", away).await;
    assert!(!reason().contains("--kv-events-config"), "{}", reason());
    let _bridge = Ears::bridge(&server, &settings).await;
    is_told(&picker, "its bridge: connected; no event seen yet").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_keeps_missing_is_doubted_and_learnt_again() {
    let (_pod, server) = server().await;
    let ears = Ears::open(&server, ears::direct(), None);
    let prompt: Vec<u32> = (0..100).collect();
    let body = json!({"model": "sim", "prompt": prompt, "max_tokens": 1});
    ask(&server, "/v1/completions", body).await;
    let live = || ears.endpoint.trust() == Trust::Live;
    harness::until("its blocks are known", || {
        live() && !ears.copies().is_empty()
    })
    .await;
    let held = ears.copies();

    // As if a removal had never been told of, and no gap showed.
    let tokens = (0..16).collect();
    let phantom = Stored::plain(None, vec![EngineHash(7)], tokens);
    let phantom = BlockEvent::Stored(phantom);
    ears.index.apply(ears.endpoint.id, &[phantom]);
    assert_ne!(ears.copies(), held);
    ears.endpoint.mistrust();
    harness::until("what it holds is known again", || {
        live() && ears.copies() == held
    })
    .await;
}
