//! Publishers that connect to us, as vLLM's do whose endpoint names a host: real libzmq ones, and
//! peers that are none.

mod harness;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use harness::nats::NatsServer;
use harness::process::{ANY_PORT, Served, output, write};
use harness::publisher::Publisher;
use harness::{http, soon, until};
use kvscout::blocks::{BlockEvent, EngineHash, Stored};
use kvscout::events::bind::Acceptor;
use kvscout::events::listen::{Listeners, Way};
use kvscout::events::zmq::Limits;
use kvscout::fleet::{Endpoint, EndpointId, EventAddress, Fleet, Trust};
use kvscout::index::Index;
use kvscout::metrics::Metrics;
use kvscout_sim::events::{Layout, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A fleet whose publishers come here, and what is known of it.
struct Ears {
    at: SocketAddr,
    index: Arc<Index>,
    metrics: Arc<Metrics>,
    fleet: watch::Sender<Arc<Fleet>>,
    listening: JoinHandle<()>,
}

impl Ears {
    fn open(endpoints: Vec<Endpoint>) -> Self {
        Self::with(endpoints, Limits::default())
    }

    fn with(endpoints: Vec<Endpoint>, limits: Limits) -> Self {
        let (index, metrics) = (Arc::new(Index::default()), Arc::new(Metrics::default()));
        // The ports after a free one may be taken: then there is another.
        let ranks = endpoints.iter().filter_map(|endpoint| endpoint.rank);
        let ranks: Vec<_> = ranks
            .map(|rank| Arc::new(endpoint(rank, "probe", None).of_rank(rank)))
            .collect();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let free = (0..100).find_map(|_| {
            let acceptor = Acceptor::bind(any, "", limits.clone(), metrics.unclaimed());
            let acceptor = acceptor.expect("a free port");
            let mut ranks = ranks.iter();
            ranks
                .all(|rank| acceptor.source(rank).is_ok())
                .then_some(acceptor)
        });
        let acceptor = free.expect("free ports");
        let (at, topic) = (acceptor.address(), String::new());
        let (fleet, receiver) = watch::channel(fleet(endpoints));
        let way = Way::Zmq {
            topic,
            limits,
            acceptor: Some(acceptor),
        };
        let listeners = Listeners {
            metrics: metrics.clone(),
            ..Listeners::new(receiver, index.clone(), way)
        };
        Self {
            at,
            index,
            metrics,
            fleet,
            listening: tokio::spawn(listeners.run()),
        }
    }

    /// A publisher that has come to a rank's port.
    fn publisher(&self, rank: u16) -> Publisher {
        let port = self.at.port() + rank;
        Publisher::start_on(&format!("tcp://127.0.0.1:{port}"))
    }

    fn endpoint(&self, id: usize) -> Arc<Endpoint> {
        self.fleet.borrow().endpoints[id].clone()
    }

    async fn knows(&self, id: usize, trust: Trust, blocks: usize) {
        let endpoint = self.endpoint(id);
        let what = format!("{} {trust:?}, {blocks} blocks", endpoint.name);
        until(&what, || {
            endpoint.trust() == trust && self.index.blocks_of(endpoint.id) == blocks
        })
        .await;
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

fn fleet(endpoints: Vec<Endpoint>) -> Arc<Fleet> {
    let endpoints = endpoints.into_iter().map(Arc::new).collect();
    Arc::new(Fleet::of(endpoints))
}

/// An endpoint of this host, whose publisher connects.
fn endpoint(id: u32, name: &str, replay: Option<u16>) -> Endpoint {
    let address = SocketAddr::from(([127, 0, 0, 1], 1 + u16::try_from(id).expect("few")));
    let events = EventAddress {
        publisher: kvscout::fleet::Publisher::Connects,
        replay: replay.map(|port| format!("tcp://127.0.0.1:{port}")),
    };
    Endpoint::new(EndpointId(id), name.into(), address, Some(events))
}

/// What engines' clocks show: a later process is known by it.
static CLOCK: AtomicU32 = AtomicU32::new(1);

/// One block more, as vLLM's batch number `seq` would tell it.
fn store(publisher: &mut Publisher, topic: &str, seq: u64) {
    let tokens = vec![u32::try_from(seq).expect("few"); 4];
    let stored = Stored::plain(None, vec![EngineHash(1 + seq)], tokens);
    let payload = encode(
        Layout::Map,
        CLOCK.fetch_add(1, Ordering::Relaxed).into(),
        &[BlockEvent::Stored(stored)],
        0,
    );
    let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
    publisher.tell(&format!("batch {topic} {seq} {hex}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_say_whose_publisher_came_and_one_that_goes_is_silent_alone() {
    let ears = Ears::open(vec![endpoint(0, "pod-a", None), endpoint(1, "pod-b", None)]);
    let (mut a, mut b) = (ears.publisher(0), ears.publisher(0));
    a.tell("await_subscriber");
    b.tell("await_subscriber");
    for seq in 0..3 {
        store(&mut a, "kv@pod-a@model", seq);
    }
    store(&mut b, "kv@127.0.0.1:2@model", 0);
    ears.knows(0, Trust::Live, 3).await;
    ears.knows(1, Trust::Live, 1).await;
    drop(a);
    until("pod-a is silent", || {
        ears.endpoint(0).trust() == Trust::Silent
    })
    .await;
    store(&mut b, "kv@127.0.0.1:2@model", 1);
    ears.knows(1, Trust::Live, 2).await;
    let mut a = ears.publisher(0);
    a.tell("await_subscriber");
    store(&mut a, "kv@pod-a@model", 0);
    ears.knows(0, Trust::Live, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_comes_back_is_whole_again_by_replay() {
    let nobody = endpoint(0, "pod-a", None);
    let ears = Ears::open(vec![nobody]);
    let mut publisher = ears.publisher(0);
    publisher.tell("await_subscriber");
    let replay = Some(publisher.replay_port);
    ears.fleet.send_replace(fleet(vec![
        endpoint(1, "pod-a", replay),
        endpoint(2, "pod-b", None),
    ]));
    for seq in 0..2 {
        store(&mut publisher, "kv@pod-a@model", seq);
    }
    ears.knows(0, Trust::Live, 2).await;
    publisher.tell("disconnect");
    until("it is silent", || ears.endpoint(0).trust() == Trust::Silent).await;
    store(&mut publisher, "kv@pod-a@model", 2);
    publisher.tell("connect");
    publisher.tell("await_subscriber");
    store(&mut publisher, "kv@pod-a@model", 3);
    ears.knows(0, Trust::Live, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_server_is_known_by_its_address_and_its_past() {
    let ears = Ears::open(Vec::new());
    let mut publisher = ears.publisher(0);
    publisher.tell("await_subscriber");
    for seq in 0..3 {
        store(&mut publisher, "any", seq);
    }
    let replay = Some(publisher.replay_port);
    // A server that says nothing more: it has its endpoint when it comes again.
    publisher.tell("disconnect");
    ears.fleet
        .send_replace(fleet(vec![endpoint(0, "pod-a", replay)]));
    publisher.tell("connect");
    ears.knows(0, Trust::Live, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_batches_are_counted_until_the_fleet_knows_it() {
    let ears = Ears::open(vec![endpoint(0, "pod-a", None), endpoint(1, "pod-b", None)]);
    let mut publisher = ears.publisher(0);
    publisher.tell("await_subscriber");
    store(&mut publisher, "kv@pod-c@model", 0);
    store(&mut publisher, "kv@pod-c@model", 1);
    let counted = "kvscout_event_batches_unclaimed_total 2";
    until("two are counted", || {
        ears.metrics.handle().render().contains(counted)
    })
    .await;
    let known = vec![endpoint(2, "pod-c", None), endpoint(3, "pod-b", None)];
    ears.fleet.send_replace(fleet(known));
    store(&mut publisher, "kv@pod-c@model", 2);
    // Its first batches went by: what there is of it is true, and not all.
    let heard = soon("it is heard", async {
        while ears.endpoint(0).trust() == Trust::Silent {
            store(&mut publisher, "kv@pod-c@model", 3);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    heard.await;
    assert_eq!(ears.endpoint(0).trust(), Trust::Doubtful);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_moves_a_publisher_from_where_its_address_led_and_binds_it() {
    let away = Endpoint::new(
        EndpointId(1),
        "pod-b".into(),
        SocketAddr::from(([10, 0, 0, 9], 80)),
        endpoint(1, "pod-b", None).events,
    );
    let ears = Ears::open(vec![endpoint(0, "pod-a", None), away]);
    let says = |id: usize, part: &str| ears.endpoint(id).trust_since().reason.contains(part);
    let mut publisher = ears.publisher(0);
    publisher.tell("await_subscriber");
    until("its address led it", || says(0, "connected; no event")).await;
    store(&mut publisher, "kv@pod-b@model", 0);
    ears.knows(1, Trust::Live, 1).await;
    until("the first knows", || says(0, "its topic names another")).await;
    store(&mut publisher, "kv@pod-a@model", 1);
    until("nobody forwards for two", || {
        says(1, "topics of two endpoints")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_endpoint_comes_late_leaves_where_its_address_led() {
    let ears = Ears::open(vec![endpoint(0, "pod-b", None)]);
    let mut publisher = ears.publisher(0);
    publisher.tell("await_subscriber");
    store(&mut publisher, "kv@pod-a@model", 0);
    ears.knows(0, Trust::Live, 1).await;
    let (old, replay) = (ears.endpoint(0), Some(publisher.replay_port));
    ears.fleet.send_replace(fleet(vec![
        endpoint(1, "pod-a", replay),
        endpoint(0, "pod-b", None),
    ]));
    ears.knows(0, Trust::Live, 1).await;
    until("the other has none", || old.trust() == Trust::Silent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_rank_comes_to_a_port_of_its_own() {
    let ranks = (0..2).map(|rank| endpoint(rank, "pod-a", None).of_rank(rank));
    let ears = Ears::open(ranks.collect());
    let mut ranks = [ears.publisher(0), ears.publisher(1)];
    for (rank, publisher) in (0..).zip(&mut ranks) {
        publisher.tell("await_subscriber");
        for seq in 0..=rank {
            store(publisher, "kv@pod-a@model", seq);
        }
    }
    ears.knows(0, Trust::Live, 1).await;
    ears.knows(1, Trust::Live, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_strangers_shuts_nobody_out() {
    let limits = Limits {
        connect_max: Duration::from_secs(60),
        ..Limits::default()
    };
    let ears = Ears::with(vec![endpoint(0, "pod-a", None)], limits);
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(TcpStream::connect(ears.at).await.expect("let in"));
    }
    let mut publisher = ears.publisher(0);
    publisher.tell("await_subscriber");
    store(&mut publisher, "kv@pod-a@model", 0);
    ears.knows(0, Trust::Live, 1).await;
    // The first of them was hung up on: after our greeting, if it got one, comes the end.
    let mut rest = Vec::new();
    soon("the end", crowd[0].read_to_end(&mut rest)).await.ok();
    store(&mut publisher, "kv@pod-a@model", 1);
    ears.knows(0, Trust::Live, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_cannot_make_us_hold_its_message() {
    let ears = Ears::open(vec![endpoint(0, "pod-a", None), endpoint(1, "pod-b", None)]);
    let mut stranger = TcpStream::connect(ears.at).await.expect("let in");
    let mut bytes = vec![0; 64];
    (bytes[0], bytes[9], bytes[10], bytes[11]) = (0xff, 0x7f, 3, 1);
    bytes[12..16].copy_from_slice(b"NULL");
    bytes.extend(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB\x02");
    bytes.extend((2_u64 << 20).to_be_bytes());
    stranger.write_all(&bytes).await.expect("written");
    let mut rest = Vec::new();
    let ended = soon("the end", stranger.read_to_end(&mut rest)).await;
    // A reset is an end as well.
    drop(ended);
    assert_eq!(rest.first(), Some(&0xff), "it was greeted first");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_picker_lets_publishers_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let pods = "endpoints: [{name: pod-a, address: '127.0.0.1:1'}]";
    write(folder.path(), "fleet.yaml", pods);
    let config =
        format!("{ANY_PORT}fleet: {{file: fleet.yaml}}\nevents: {{bind: 'tcp://127.0.0.1:0'}}\n");
    let config = write(folder.path(), "kvscout.yaml", &config);
    let served = Served::start(&["--config", &config]);
    let line = served.line("publishers may connect");
    let at = line.split("address=").nth(1).expect("an address").trim();
    let admin = served.admin();
    let mut publisher = Publisher::start_on(&format!("tcp://{at}"));
    publisher.tell("await_subscriber");
    store(&mut publisher, "kv@pod-a@model", 0);
    live(admin).await;
}

/// Waits until the only endpoint is live, with one block.
async fn live(admin: SocketAddr) {
    soon("it is live", async {
        loop {
            let endpoints = http::get(admin, "/endpoints").await.json();
            if endpoints[0]["trust"] == "live" && endpoints[0]["blocks"] == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_lets_publishers_in_with_its_pickers_configuration() {
    let nats = NatsServer::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let pods = "endpoints: [{name: pod-a, address: '127.0.0.1:1'}]";
    write(folder.path(), "fleet.yaml", pods);
    let config = format!(
        "{ANY_PORT}fleet: {{file: fleet.yaml}}\nevents: {{source: nats, bind: 'tcp://127.0.0.1:0', \
         nats: {{servers: ['nats://{}']}}}}\n",
        nats.address()
    );
    let config = write(folder.path(), "kvscout.yaml", &config);
    let made = output(&["bridge", "--init", "--config", &config]);
    assert!(made.status.success(), "{made:?}");
    let bridge = Served::run(&["bridge", "--config", &config]);
    let line = bridge.line("publishers may connect");
    let at = line.split("address=").nth(1).expect("an address").trim();
    let served = Served::start(&["--config", &config]);
    let admin = served.admin();
    let mut publisher = Publisher::start_on(&format!("tcp://{at}"));
    publisher.tell("await_subscriber");
    store(&mut publisher, "kv@pod-a@model", 0);
    live(admin).await;
}
