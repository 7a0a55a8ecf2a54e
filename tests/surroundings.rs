//! What the machine around kvscout takes away: file descriptors, names, the clock, certificates.

mod harness;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use harness::envoy::Bodies;
use harness::exchange::{Exchange, channel};
use harness::http;
use harness::process::{ANY_PORT, Served, text, write};
use harness::world::{Load, Setting, World};
use harness::{PATIENCE, soon};
use kvscout::config::Tls;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::net::TcpStream;

/// A process's time on a core so far.
fn cpu(process: &Served) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.child.id()));
    let stat = stat.expect("Linux");
    // utime and stime are the 14th and 15th of proc(5), after a name that may hold blanks.
    let after_name = stat.rsplit(')').next().expect("a name");
    let fields = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum();
    // A hundred ticks a second, on every Linux that we run on.
    Duration::from_millis(10 * ticks)
}

/// A configuration with one endpoint, 127.0.0.1:1, which nobody asks how it is; and with `more` besides.
fn of_one_endpoint(folder: &Path, more: &str) -> String {
    write(
        folder,
        "fleet.yaml",
        "endpoints: [{address: '127.0.0.1:1'}]",
    );
    let config = format!("{ANY_PORT}tls: {{mode: off}}\nload: {{scrape_interval_ms: 0}}\n{more}");
    write(folder, "kvscout.yaml", &config)
}

#[tokio::test]
async fn without_file_descriptors_it_waits_and_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = of_one_endpoint(folder.path(), "");
    let served = Served::start_with_descriptors(80, &["--config", &config]);
    let (ext_proc, admin) = served.addresses();
    let known = channel(ext_proc).await;
    let mut guests = Vec::new();
    for _ in 0..100 {
        let guest = soon("a connection", TcpStream::connect(ext_proc)).await;
        guests.push(guest.expect("the kernel takes it"));
    }
    served.line("cannot take a connection");
    let before = cpu(&served);
    let second = tokio::time::sleep(Duration::from_secs(1));
    tokio::pin!(second);
    // Who has come in is served as ever.
    while !second.is_elapsed() {
        let mut exchange = Exchange::open(known.clone()).await;
        assert_eq!(exchange.picked().await, "127.0.0.1:1");
        tokio::select! {
            () = &mut second => {}
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
    let spent = cpu(&served) - before;
    assert!(spent < Duration::from_millis(300), "{spent:?} of a second");
    drop(guests);
    let mut exchange = Exchange::open(channel(ext_proc).await).await;
    assert_eq!(exchange.picked().await, "127.0.0.1:1");
    let metrics = text(&http::get(admin, "/metrics").await.body);
    let counted = metrics.lines().find(|line| {
        line.contains("connections_refused_total{port=\"ext_proc\",reason=\"accept\"}")
    });
    assert!(
        !counted.expect("it is counted").ends_with(" 0"),
        "{counted:?}"
    );
}

#[tokio::test]
async fn names_that_do_not_resolve_stop_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = of_one_endpoint(
        folder.path(),
        "events: {source: nats, nats: {servers: ['nats://nowhere.invalid:4222']}}\n\
         models: [{names: [a], hub: {repo: a/b}}]\nmodels_cache: cache\n",
    );
    let hub = [("HF_ENDPOINT", "http://nowhere.invalid".to_owned())];
    let served = Served::start_with(&["--config", &config], &hub);
    let (ext_proc, admin) = served.addresses();
    let mut exchange = Exchange::open(channel(ext_proc).await).await;
    assert_eq!(exchange.picked().await, "127.0.0.1:1");
    soon("what is missing is said", async {
        loop {
            let said = text(&http::get(admin, "/readyz").await.body);
            if said.contains("model a: is not loaded") {
                return;
            }
            tokio::time::sleep(PATIENCE / 1000).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = of_one_endpoint(folder.path(), "");
    let talkative = [("RUST_LOG", "kvscout=debug".to_owned())];
    let mut served = Served::run_unheard(&["serve", "--config", &config], &talkative);
    let (ext_proc, admin) = served.addresses();
    let gateway = channel(ext_proc).await;
    let lost = async || {
        let metrics = text(&http::get(admin, "/metrics").await.body);
        let mut lines = metrics.lines();
        let lost = lines.find_map(|line| line.strip_prefix("kvscout_log_lines_lost_total "));
        lost.expect("it is counted")
            .parse::<u64>()
            .expect("a number")
    };
    assert_eq!(lost().await, 0);
    soon("lines are lost, and no request is", async {
        while lost().await == 0 {
            for _request in 0..100 {
                let mut exchange = Exchange::open(gateway.clone()).await;
                assert_eq!(exchange.picked().await, "127.0.0.1:1");
            }
        }
    })
    .await;
    // Nor does it wait for that reader at its end.
    served.terminate();
    assert!(served.ended().await.success());
}

#[test]
fn a_crash_leaves_no_prompt_on_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "fleet.yaml", "endpoints: []");
    let config = write(folder.path(), "kvscout.yaml", ANY_PORT);
    let served = Served::start(&["--config", &config]);
    served.line("listening");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", served.child.id()));
    let limits = limits.expect("Linux");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let words: Vec<&str> = core.expect("a line").split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{core:?}");
}

/// A library between kvscout and the C library. `make test-faults` brings them, out of Debian's packages.
fn between(library: &str) -> (&'static str, String) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/.tools/surroundings/usr/lib");
    let folders = std::fs::read_dir(folder).expect("run make test-faults");
    let mut paths = folders.map(|folder| folder.expect("a folder").path().join(library));
    let path = paths.find(|path| path.is_file());
    let path = path.unwrap_or_else(|| panic!("no {library} in {folder}"));
    ("LD_PRELOAD", path.display().to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs libnss-wrapper, and takes half a minute: make test-faults"]
async fn names_that_go_away_stop_nobody_and_are_asked_for_until_they_are_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let hosts = write(folder.path(), "hosts", "127.0.0.1 nats.test\n");
    let mut world = World::start(Setting {
        environment: vec![
            between("libnss_wrapper.so"),
            ("NSS_WRAPPER_HOSTS", hosts.clone()),
        ],
        nats_host: "nats.test",
        ..Setting::of(Bodies::Buffered)
    })
    .await;
    let load = Load::start(world.envoy.routed);
    load.knows().await;
    write(folder.path(), "hosts", "");
    world.nats.kill();
    world.nats.restart().await;
    // Longer than a bridge may be silent.
    for _ in 0..3 {
        for process in world.pickers.iter().chain([&world.bridge]) {
            process.line("DNS error");
        }
        load.goes_on().await;
    }
    assert_eq!(load.failures(), [""; 0]);
    write(folder.path(), "hosts", "127.0.0.1 nats.test\n");
    for process in world.pickers.iter().chain([&world.bridge]) {
        process.line("connected to NATS");
    }
    load.knows().await;
    assert_eq!(load.failures(), [""; 0]);
    load.end().await;
}

/// Back by decades, on by decades, and back to the right time: for the pickers and the bridge, and nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs libfaketime, and takes half a minute: make test-faults"]
async fn a_clock_that_jumps_stops_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = write(folder.path(), "clock", "+0\n");
    let on = || "1".to_owned();
    let mut world = World::start(Setting {
        environment: vec![
            between("faketime/libfaketimeMT.so.1"),
            ("FAKETIME_TIMESTAMP_FILE", clock.clone()),
            ("FAKETIME_NO_CACHE", on()),
            // No administrator can set this one.
            ("FAKETIME_DONT_FAKE_MONOTONIC", on()),
        ],
        ..Setting::of(Bodies::Buffered)
    })
    .await;
    let load = Load::start(world.envoy.routed);
    load.knows().await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let year = 1970 + now.expect("after 1970").as_secs() / 31_556_952;
    for (set, seen) in [
        ("@2002-02-02 02:02:02", "2002-02-02".to_owned()),
        ("@2062-02-02 02:02:02", "2062-02-02".to_owned()),
        ("+0", year.to_string()),
    ] {
        // In place of the old one at once: half a line is no time.
        let new = write(folder.path(), "clock.new", set);
        std::fs::rename(new, &clock).expect("renamed");
        load.goes_on().await;
        load.knows().await;
        world.kill_nats(&load).await;
        for picker in &world.pickers {
            while !picker.line("NATS is out of reach").starts_with(&seen) {}
        }
        load.knows().await;
        world.kill_bridge(&load).await;
        world.kill_picker(0, &load).await;
        load.knows().await;
        assert_eq!(load.failures(), [""; 0], "{set}");
    }
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "files are read again every ten seconds: make test-faults"]
async fn a_certificate_that_is_renewed_under_load_fails_no_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // With the name that certificates have by default, theirs would look signed by themselves.
    let name = &mut authority.distinguished_name;
    name.push(DnType::CommonName, "authority");
    let own = KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(authority, own).expect("signed");
    let trusted = write(folder.path(), "trusted.pem", &authority.pem());
    let keys = [(); 3].map(|()| KeyPair::generate().expect("a key"));
    let cert = |number: usize| {
        let params = CertificateParams::new(["kvscout".to_owned()]).expect("a name");
        let signed = params.signed_by(&keys[number], &authority).expect("signed");
        write(folder.path(), "tls.crt", &signed.pem())
    };
    let key = |number: usize| write(folder.path(), "tls.key", &keys[number].serialize_pem());
    // Every fifth request shakes hands anew.
    let often = "explicit_http_config: {http2_protocol_options: {}}";
    let context = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext\n";
    let world = World::start(Setting {
        tls: Tls::Files {
            cert: cert(0).into(),
            key: key(0).into(),
            client_ca: None,
        },
        swaps: vec![
            (
                often,
                format!("{often}\n          common_http_protocol_options: {{max_requests_per_connection: 5}}"),
            ),
            (
                context,
                format!(
                    "{context}          sni: kvscout\n          common_tls_context: {{validation_context: \
                     {{trusted_ca: {{filename: \"{trusted}\"}}}}}}\n"
                ),
            ),
        ],
        ..Setting::of(Bodies::Buffered)
    })
    .await;
    let load = Load::start(world.envoy.routed);
    load.knows().await;
    for number in 1..keys.len() {
        // The one without the other fits nothing, and the old one is shown on.
        cert(number);
        for picker in &world.pickers {
            picker.line("the old certificate is shown on");
        }
        load.goes_on().await;
        key(number);
        for picker in &world.pickers {
            picker.line("the certificate was renewed");
        }
        load.goes_on().await;
        load.knows().await;
        assert_eq!(load.failures(), [""; 0]);
    }
    load.end().await;
}
