//! The event plane over a real nats-server: simulated servers, bridges, and pickers whose pictures
//! are held against what the servers hold.

mod harness;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64_URL;
use harness::ears;
use harness::http::{self, full, post};
use harness::nats::NatsServer;
use harness::sim;
use harness::{PATIENCE, soon};
use kvscout::config::Nats;
use kvscout::events::nats::Cluster;
use kvscout::events::snapshot::Snapshot;
use kvscout::fleet::{EventAddress, Publisher, Trust};
use kvscout_sim::server;
use serde_json::json;

const POD: &str = "pod-0";

/// A pod as those know it who listen to it.
fn server(pod: &server::Bound) -> ears::Server {
    let events = pod.addresses.events.as_ref().map(|events| EventAddress {
        publisher: Publisher::At(events.endpoint.clone()),
        replay: events.replay_endpoint.clone(),
    });
    ears::Server {
        name: POD.into(),
        address: pod.addresses.http,
        events,
        // A server of rank 0 is the only one here, but for the test of ranks.
        rank: pod
            .addresses
            .events
            .as_ref()
            .map_or(0, |events| events.rank),
    }
}

/// Listens to a pod.
struct Ears(ears::Ears);

impl std::ops::Deref for Ears {
    type Target = ears::Ears;

    fn deref(&self) -> &ears::Ears {
        &self.0
    }
}

impl Ears {
    async fn bridge(pod: &server::Bound, settings: &Nats) -> Self {
        Self(ears::Ears::bridge(&server(pod), settings).await)
    }

    async fn picker(pod: &server::Bound, settings: &Nats) -> Self {
        Self(ears::Ears::picker(&server(pod), settings).await)
    }

    /// Waits until what is believed is called complete; then it must be so.
    async fn knows(&self, what: &str, pod: &server::Bound) {
        let truth = held(pod.addresses.http).await;
        assert!(!truth.is_empty(), "{what}: the server holds something");
        let known = async {
            while !(self.endpoint.trust() == Trust::Live && self.copies() == truth) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, known).await.is_err() {
            let (ours, trust) = (self.copies(), self.endpoint.trust_since());
            panic!(
                "{what}: {} of {} copies, {trust:?}",
                ours.len(),
                truth.len()
            );
        }
    }
}

/// What a server's cache holds.
async fn held(pod: SocketAddr) -> BTreeMap<u64, usize> {
    let answer = http::get(pod, "/sim/blocks").await;
    serde_json::from_slice(&answer.body).expect("copies by hash")
}

/// So many prompts, each a batch or more: some new, some that go on from one before.
async fn ask(pod: &server::Bound, prompts: std::ops::Range<u32>) {
    for number in prompts {
        let (conversation, turn) = (number % 11, number / 11);
        let tokens: Vec<u32> = (0..40 + 16 * turn)
            .map(|at| 1 + conversation * 1000 + at)
            .collect();
        let body = json!({"model": "sim", "prompt": tokens, "max_tokens": 4}).to_string();
        let request = post("/v1/completions").body(full(body)).expect("a request");
        let answer = http::send(pod.addresses.http, request).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// A cluster with the stream, a server, and its bridge.
struct Plane {
    nats: NatsServer,
    settings: Nats,
    cluster: Cluster,
    pod: server::Bound,
    bridge: Ears,
}

impl Plane {
    async fn start() -> Self {
        let nats = NatsServer::start().await;
        let settings = nats.settings();
        let cluster = Cluster::connect(&settings).await.expect("an address");
        soon("the stream is made", cluster.init())
            .await
            .expect("made");
        let pod = sim::pod(64, 0, None).await.expect("it starts");
        let bridge = Ears::bridge(&pod, &settings).await;
        Self {
            nats,
            settings,
            cluster,
            pod,
            bridge,
        }
    }
}

/// How many batches the stream holds, and how many there have been.
async fn stored(cluster: &Cluster) -> (u64, u64) {
    let stream = cluster.stream().await.expect("a stream");
    let state = &stream.cached_info().state;
    (state.messages, state.last_sequence)
}

/// Where snapshots are.
fn bucket(settings: &Nats) -> String {
    format!("{}_SNAPSHOTS", settings.stream.name)
}

/// The first snapshot of a bridge's server that will do.
async fn kept(cluster: &Cluster, bridge: &Ears, will_do: impl Fn(&Snapshot) -> bool) -> Snapshot {
    soon("a snapshot is kept", async {
        loop {
            let newest = cluster.read_snapshot(&bridge.endpoint).await;
            match newest.expect("a bucket") {
                Some(kept) if will_do(&kept) => break kept,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await
}

async fn until_async(what: &str, condition: impl AsyncFn() -> bool) {
    let polled = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(what, polled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picker_behind_nats_knows_what_the_server_holds() {
    let Plane {
        nats: _nats,
        settings,
        cluster,
        pod,
        bridge,
    } = Plane::start().await;
    let early = Ears::picker(&pod, &settings).await;
    ask(&pod, 0..60).await;
    early.knows("it heard all", &pod).await;
    let late = Ears::picker(&pod, &settings).await;
    late.knows("it came late", &pod).await;
    ask(&pod, 60..80).await;
    early.knows("it goes on", &pod).await;
    late.knows("it goes on, too", &pod).await;

    // A snapshot stands for batches that are gone.
    let kept = kept(&cluster, &bridge, |kept| kept.whole && kept.stream_seq > 20).await;
    let stream = cluster.stream().await.expect("a stream");
    stream
        .purge()
        .sequence(kept.stream_seq)
        .await
        .expect("purged");
    let latest = Ears::picker(&pod, &settings).await;
    latest.knows("it came when most was gone", &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_of_a_pod_go_by_subjects_of_their_own() {
    let Plane {
        nats: _nats,
        settings,
        cluster,
        pod,
        bridge,
    } = Plane::start().await;
    let second = sim::rank(1).await.expect("it starts");
    let seconds_bridge = Ears::bridge(&second, &settings).await;
    let subject = |ears: &Ears| cluster.subject(&ears.endpoint);
    assert_eq!(subject(&bridge), "kv.default.default.pod-0.0");
    assert_eq!(subject(&seconds_bridge), "kv.default.default.pod-0.1");
    ask(&pod, 0..20).await;
    ask(&second, 20..50).await;
    let first = Ears::picker(&pod, &settings).await;
    let other = Ears::picker(&second, &settings).await;
    first.knows("rank 0", &pod).await;
    other.knows("rank 1", &second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_was_away_goes_on_where_it_was() {
    let Plane {
        nats: _nats,
        settings,
        cluster,
        pod,
        bridge,
    } = Plane::start().await;
    let picker = Ears::picker(&pod, &settings).await;
    ask(&pod, 0..60).await;
    picker.knows("before", &pod).await;
    drop(bridge);
    ask(&pod, 60..75).await;
    let _bridge = Ears::bridge(&pod, &settings).await;
    picker.knows("after the bridge came back", &pod).await;
    ask(&pod, 75..80).await;
    picker.knows("after more", &pod).await;
    let (messages, last) = stored(&cluster).await;
    assert_eq!(messages, last);
    let stream = cluster.stream().await.expect("a stream");
    let newest = stream
        .get_last_raw_message_by_subject(&cluster.subject(&picker.endpoint))
        .await
        .expect("a batch");
    let stamp = kvscout::events::nats::of_headers(&newest.headers).expect("a stamp");
    assert_eq!(stamp.seq + 1, last, "every batch is there once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_starts_again_is_another_one() {
    let Plane {
        nats: _nats,
        settings,
        cluster: _cluster,
        pod: first,
        bridge: _bridge,
    } = Plane::start().await;
    let picker = Ears::picker(&first, &settings).await;
    ask(&first, 0..30).await;
    picker.knows("the first", &first).await;
    let addresses = first.addresses.clone();
    first.shutdown().await;
    let gone = || async { picker.endpoint.trust() != Trust::Live };
    until_async("nobody trusts what is gone", gone).await;
    let again = soon("the ports are free again", async {
        loop {
            if let Ok(pod) = sim::pod(64, 1, Some(&addresses)).await {
                return pod;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    ask(&again, 100..110).await;
    picker.knows("the second", &again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_cluster_comes_back_with_or_without_what_it_kept() {
    let Plane {
        mut nats,
        settings,
        cluster,
        pod,
        bridge: _bridge,
    } = Plane::start().await;
    let picker = Ears::picker(&pod, &settings).await;
    ask(&pod, 0..30).await;
    picker.knows("before", &pod).await;
    nats.kill();
    ask(&pod, 30..45).await;
    let gone = || async { picker.endpoint.trust() != Trust::Live };
    until_async("nobody trusts what is not heard", gone).await;
    nats.restart().await;
    picker.knows("with what it kept", &pod).await;

    nats.kill();
    nats.forget();
    ask(&pod, 45..50).await;
    nats.restart().await;
    soon("the stream is made again", async {
        while cluster.init().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    ask(&pod, 50..60).await;
    picker.knows("without what it kept", &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_replaced_while_it_is_read_is_not_waited_for() {
    let Plane {
        nats: _nats,
        settings,
        cluster,
        pod,
        bridge,
    } = Plane::start().await;
    ask(&pod, 0..30).await;
    let endpoint = bridge.endpoint.clone();
    let kept = kept(&cluster, &bridge, |_any| true).await;
    drop(bridge);
    // Between a reader's look at what there is and its first part, another takes its place.
    let bucket = bucket(&settings);
    let stream = async || {
        cluster
            .jetstream()
            .get_stream(format!("OBJ_{bucket}"))
            .await
    };
    let parts = stream().await.expect("a bucket");
    let purged = parts.purge().filter(format!("$O.{bucket}.C.>")).await;
    assert!(purged.expect("purged").success);
    let reading = tokio::spawn({
        let (cluster, endpoint) = (cluster.clone(), endpoint.clone());
        async move { cluster.read_snapshot(&endpoint).await }
    });
    until_async("it waits for parts", async || {
        let now = stream().await.expect("a bucket");
        now.cached_info().state.consumer_count > 0
    })
    .await;
    let written = cluster.write_snapshot(&endpoint, &kept.to_bytes()).await;
    written.expect("kept again");
    let read = soon("the other is read", reading).await.expect("it ends");
    assert_eq!(read.expect("a bucket"), Some(kept));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_snapshots_the_stream_alone_is_enough() {
    let Plane {
        nats: _nats,
        settings,
        cluster,
        pod,
        bridge: _bridge,
    } = Plane::start().await;
    let bucket = bucket(&settings);
    let gone = cluster.jetstream().delete_object_store(&bucket).await;
    gone.expect("it was there");
    ask(&pod, 0..30).await;
    let picker = Ears::picker(&pod, &settings).await;
    picker.knows("from the stream's start", &pod).await;
    ask(&pod, 30..60).await;
    picker.knows("on from there", &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_tls_and_an_nkey_lets_in_who_has_the_seed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str, text: &str| {
        std::fs::write(path(name), text).expect("written");
        path(name)
    };
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    let cert = write("server.crt", &made.cert.pem());
    let key = write("server.key", &made.signing_key.serialize_pem());
    let (ours, strangers) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let config = format!(
        "tls {{ cert_file: {cert:?}, key_file: {key:?} }}\nauthorization {{ users: [ {{ nkey: {} }} ] }}\n",
        ours.public_key()
    );
    let nats = NatsServer::configured(&config).await;
    let settings = |pair: &nkeys::KeyPair, name: &str| Nats {
        servers: vec![format!("tls://localhost:{}", nats.address().port())],
        ca: Some(cert.clone()),
        nkey: Some(write(name, &(pair.seed().expect("a seed") + "\n"))),
        ..nats.settings()
    };
    let known = Cluster::connect(&settings(&ours, "ours.nk")).await;
    let done = soon("the stream is made", known.expect("a seed").init()).await;
    assert_eq!(done.expect("made").len(), 2);
    let unknown = Cluster::connect(&settings(&strangers, "strangers.nk")).await;
    let refused = unknown.expect("a seed").init().await;
    assert!(refused.is_err(), "{refused:?}");
    let missing = Nats {
        nkey: Some(path("nowhere.nk")),
        ..nats.settings()
    };
    let error = Cluster::connect(&missing).await.expect_err("no such file");
    assert!(error.to_string().contains("events.nats.nkey"), "{error}");
}

/// A JWT as `nsc` makes them: claims about `subject`, signed by `issuer`.
fn jwt(issuer: &nkeys::KeyPair, subject: &nkeys::KeyPair, claims: serde_json::Value) -> String {
    let part = |value: serde_json::Value| BASE64_URL.encode(value.to_string());
    let header = part(json!({"typ": "JWT", "alg": "ed25519-nkey"}));
    let claims = part(json!({
        "jti": subject.public_key(), "iat": 1_700_000_000, "name": "kvscout",
        "iss": issuer.public_key(), "sub": subject.public_key(), "nats": claims,
    }));
    let signed = format!("{header}.{claims}");
    let signature = issuer.sign(signed.as_bytes()).expect("a seed");
    format!("{signed}.{}", BASE64_URL.encode(signature))
}

/// An account that may do anything; the system's own may not have streams.
fn account(streams: bool) -> serde_json::Value {
    let mut limits = json!({"subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1,
        "data": -1, "payload": -1, "wildcards": true});
    if streams {
        for limit in ["mem_storage", "disk_storage", "streams", "consumer"] {
            limits[limit] = json!(-1);
        }
    }
    json!({"type": "account", "version": 2, "limits": limits})
}

/// A `.creds` file of a user that this account signed.
fn credentials(account: &nkeys::KeyPair) -> String {
    let user = nkeys::KeyPair::new_user();
    let may = json!({"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1,
        "payload": -1});
    let (jwt, seed) = (jwt(account, &user, may), user.seed().expect("a seed"));
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credentials_file_lets_in_whom_an_account_signed() {
    let operator = nkeys::KeyPair::new_operator();
    let [ours, system, strange] = [0; 3].map(|_| nkeys::KeyPair::new_account());
    let config = format!(
        "operator: {}\nsystem_account: {system}\nresolver: MEMORY\n\
         resolver_preload: {{ {ours}: {}, {system}: {} }}\n",
        jwt(
            &operator,
            &operator,
            json!({"type": "operator", "version": 2})
        ),
        jwt(&operator, &ours, account(true)),
        jwt(&operator, &system, account(false)),
        ours = ours.public_key(),
        system = system.public_key(),
    );
    let nats = NatsServer::configured(&config).await;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        Nats {
            credentials: Some(path),
            ..nats.settings()
        }
    };
    let known = settings("ours.creds", credentials(&ours));
    let cluster = Cluster::connect(&known).await.expect("a file");
    let done = soon("the stream is made", cluster.init()).await;
    assert_eq!(done.expect("made").len(), 2);
    let pod = sim::pod(64, 0, None).await.expect("it starts");
    let _bridge = Ears::bridge(&pod, &known).await;
    ask(&pod, 0..5).await;
    let picker = Ears::picker(&pod, &known).await;
    picker.knows("by its credentials", &pod).await;

    let unknown = settings("strange.creds", credentials(&strange));
    let unknown = Cluster::connect(&unknown).await.expect("a file");
    let nobody = Cluster::connect(&nats.settings()).await;
    let nobody = nobody.expect("an address");
    let (unknown, nobody) = tokio::join!(unknown.init(), nobody.init());
    assert!(
        unknown.is_err() && nobody.is_err(),
        "{unknown:?} {nobody:?}"
    );
    let broken = settings("broken.creds", "no credentials".into());
    let error = Cluster::connect(&broken).await.expect_err("no JWT in it");
    let error = error.to_string();
    assert!(error.contains("events.nats.credentials"), "{error}");
}
