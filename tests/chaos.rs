//! Faults at random, from a seed: real nats-server, bridges and pickers as processes, simulated
//! servers. After each fault has settled, every picker's picture of every server must be called
//! complete and be what that server holds.
//!
//! `CHAOS_FAULTS` (8) says how many, `CHAOS_SEED` (1) which; `make test-chaos` runs 200.

mod harness;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use harness::http::{self, full, post};
use harness::nats::NatsServer;
use harness::process::{Served, output};
use harness::sim;
use kvscout::config::{Config, EventSourceKind, FleetSource, Tls};
use kvscout::index::{Place, digest_of};
use kvscout_sim::dice::Dice;
use kvscout_sim::events::{Faults, ReplayFault};
use kvscout_sim::server;
use serde_json::json;
use tokio::time::{Instant, sleep};

const PODS: usize = 3;
const PICKERS: usize = 2;
/// For a picture to become right and to be called so: a bridge is missed after 10 s, and what is
/// unsure is looked at again every 5.
const SETTLED_MAX: Duration = Duration::from_secs(60);

/// For so long a picture may be called complete and not be what the server holds by now: the
/// events are on their way, or a bridge that was killed is not missed yet.
const LAG_MAX: Duration = Duration::from_secs(15);

/// Everything that runs.
struct World {
    nats: NatsServer,
    pods: Vec<server::Bound>,
    bridge: Option<Served>,
    pickers: Vec<Option<Served>>,
    admins: Vec<SocketAddr>,
    folder: tempfile::TempDir,
    dice: Dice,
}

impl World {
    async fn start(seed: u64) -> Self {
        let nats = NatsServer::start().await;
        let mut pods = Vec::new();
        for number in 0..PODS {
            pods.push(sim::pod(128, number as u64, None).await.expect("it starts"));
        }
        let mut world = Self {
            nats,
            pods,
            bridge: None,
            pickers: Vec::new(),
            admins: Vec::new(),
            folder: tempfile::tempdir().expect("a folder"),
            dice: Dice::new(seed),
        };
        world.write_fleet();
        let config = world.write_config();
        let made = output(&["bridge", "--init", "--config", &config]);
        assert!(made.status.success(), "{made:?}");
        world.start_bridge();
        for number in 0..PICKERS {
            world.pickers.push(None);
            world.admins.push(([127, 0, 0, 1], 0).into());
            world.start_picker(number);
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// In one move, since it is read while it is written.
    fn write_fleet(&self) {
        let yaml = sim::fleet_yaml(&self.pods, "");
        std::fs::write(self.path("fleet.new"), yaml).expect("written");
        std::fs::rename(self.path("fleet.new"), self.path("fleet.yaml")).expect("moved");
    }

    fn write_config(&self) -> String {
        let any = "127.0.0.1:0".parse().expect("an address");
        let mut config = Config {
            fleet: FleetSource::File(self.path("fleet.yaml")),
            tls: Tls::Off,
            ..Config::default()
        };
        config.listen.ext_proc = any;
        config.listen.health = any;
        config.listen.admin = any;
        config.limits.drain_notice_ms = 0;
        config.events.source = EventSourceKind::Nats;
        config.events.nats = self.nats.settings();
        let path = self.path("kvscout.yaml");
        std::fs::write(&path, config.to_yaml()).expect("written");
        path.display().to_string()
    }

    fn start_bridge(&mut self) {
        let config = self.path("kvscout.yaml").display().to_string();
        self.bridge = Some(Served::run(&["bridge", "--config", &config]));
    }

    fn start_picker(&mut self, number: usize) {
        let config = self.path("kvscout.yaml").display().to_string();
        let picker = Served::start(&["--config", &config]);
        self.admins[number] = picker.admin();
        self.pickers[number] = Some(picker);
    }

    /// Asks every server, so that each publishes.
    async fn load(&mut self, prompts: usize) {
        for prompt in self.prompts(prompts) {
            for pod in &self.pods {
                let answer = http::send(pod.addresses.http, completion(&prompt)).await;
                assert_eq!(answer.status, 200, "{answer:?}");
            }
        }
    }

    /// Drawn before they are sent, so that who answers first decides nothing.
    fn prompts(&mut self, count: usize) -> Vec<Vec<u32>> {
        let dice = &mut self.dice;
        let mut prompt = || {
            let (group, turn) = (dice.below(20) as u32, dice.below(12) as u32);
            let tail = (dice.roll() % 100_000) as u32;
            let old = (0..16 * turn).map(|at| 1 + group * 500 + at);
            old.chain((0..20).map(|at| tail + at)).collect()
        };
        (0..count).map(|_| prompt()).collect()
    }

    /// Another process in place of a server's, while it is asked: what was running is refused.
    async fn restart_in_place(&mut self, number: usize, change_ports: bool) {
        let how = json!({"change_ports": change_ports, "seed": self.dice.roll()});
        let prompts = self.prompts(8);
        let address = self.pods[number].addresses.http;
        let asked = async {
            for prompt in &prompts {
                let status = http::send(address, completion(prompt)).await.status;
                assert!([200, 503].contains(&status), "{status}");
            }
        };
        let restart = post("/sim/restart").body(full(how.to_string()));
        let restart = http::send(address, restart.expect("a request"));
        let ((), answer) = tokio::join!(asked, restart);
        assert_eq!(answer.status, 200, "{answer:?}");
        let told = http::get(address, "/kv_event_sources").await.json();
        let told = |key: &str| told["0"][key].as_str().expect("an address").to_owned();
        let events = self.pods[number].addresses.events.as_mut();
        let events = events.expect("events are on");
        events.endpoint = told("endpoint");
        events.replay_endpoint = Some(told("replay_endpoint"));
        self.write_fleet();
    }

    async fn set_faults(&self, number: usize, faults: &Faults) {
        let body = full(serde_json::to_vec(faults).expect("JSON"));
        let request = post("/sim/faults").body(body).expect("a request");
        let answer = http::send(self.pods[number].addresses.http, request).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// Makes something go wrong, and right again. What it was, and whether only an empty cache
    /// makes it known again.
    async fn fault(&mut self) -> (String, bool) {
        let number = self.dice.below(PODS);
        let mut faults = Faults {
            seed: self.dice.roll(),
            ..Faults::default()
        };
        let kind = self.dice.below(20);
        let mut lost = false;
        let what = match kind {
            0 => "drop",
            1 => "duplicate",
            2 => "reorder",
            3 => "all three",
            4 => "delay",
            5 => "silence",
            6 => "hole",
            7 => "corrupt",
            8 => "drop, slow replay",
            9 => "drop, dead replay",
            10 => "drop, replay cut short",
            11 => "restart on the same ports",
            12 => "restart on other ports",
            13 => "bridge killed",
            14 => "picker killed",
            15 => "nats-server killed",
            16 => "drop, replay ring of 3",
            17 => "reset",
            18 => "restart in place",
            _ => "restart in place on other ports",
        };
        match kind {
            0 => faults.drop = 0.3,
            1 => faults.duplicate = 0.5,
            2 => faults.reorder = 0.5,
            3 => (faults.drop, faults.duplicate, faults.reorder) = (0.2, 0.2, 0.2),
            4 => faults.delay_ms = 20,
            5 => faults.silent = true,
            6 => (faults.hole, lost) = (0.2, true),
            7 => faults.corrupt = 0.2,
            8 => (faults.drop, faults.replay) = (0.3, ReplayFault::Slow),
            9 => (faults.drop, faults.replay) = (0.3, ReplayFault::Dead),
            10 => (faults.drop, faults.replay) = (0.3, ReplayFault::Truncated),
            16 => (faults.drop, faults.replay_batches, lost) = (0.3, 3, true),
            17 => faults.reset_every = 2,
            _ => {}
        }
        self.set_faults(number, &faults).await;
        match kind {
            11 => {
                let at = self.pods[number].addresses.clone();
                self.renew(number, Some(at)).await;
            }
            12 => {
                self.renew(number, None).await;
                self.write_fleet();
            }
            13 => self.bridge = None,
            14 => {
                let picker = number % PICKERS;
                self.pickers[picker] = None;
                self.start_picker(picker);
            }
            15 => self.nats.kill(),
            17 => self.reset(number).await,
            18 | 19 => self.restart_in_place(number, kind == 19).await,
            _ => {}
        }
        self.load(8).await;
        match kind {
            13 => self.start_bridge(),
            15 => self.nats.restart().await,
            _ => {}
        }
        self.set_faults(number, &Faults::default()).await;
        (format!("{what} (pod-{number})"), lost)
    }

    /// Ends a server and starts another, on these ports or any.
    async fn renew(&mut self, number: usize, at: Option<server::Addresses>) {
        let seed = self.dice.roll();
        let old = self.pods.remove(number);
        old.shutdown().await;
        let begun = Instant::now();
        let new = loop {
            match sim::pod(128, seed, at.as_ref()).await {
                Ok(pod) => break pod,
                Err(error) => assert!(begun.elapsed() < SETTLED_MAX, "{error:#}"),
            }
            sleep(Duration::from_millis(20)).await;
        };
        self.pods.insert(number, new);
    }

    /// Empties a cache: what was lost for good does not matter from then on.
    async fn reset(&self, number: usize) {
        let request = post("/reset_prefix_cache").body(full(""));
        let request = request.expect("a request");
        let answer = http::send(self.pods[number].addresses.http, request).await;
        assert_eq!(answer.json(), json!({"success": true}));
    }

    /// Waits until every picker knows every server; what differs otherwise.
    async fn settle(&self) -> Result<Duration, String> {
        let begun = Instant::now();
        let mut truthful = begun;
        loop {
            let wrong = self.wrong().await;
            if wrong.is_empty() {
                return Ok(begun.elapsed());
            }
            if !wrong
                .iter()
                .any(|wrong| wrong.contains(r#""trust":"live""#))
            {
                truthful = Instant::now();
            }
            if truthful.elapsed() > LAG_MAX {
                return Err(format!("called live for long:\n{}", wrong.join("\n")));
            }
            if begun.elapsed() > SETTLED_MAX {
                return Err(wrong.join("\n"));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (number, pod) in self.pods.iter().enumerate() {
            let held = http::get(pod.addresses.http, "/sim/blocks").await;
            let held: BTreeMap<u64, u32> = serde_json::from_slice(&held.body).expect("JSON");
            let truth = held.iter().fold(0u64, |digest, (hash, copies)| {
                digest.wrapping_add(digest_of(Place::OWN, *hash, *copies))
            });
            for (picker, admin) in self.admins.iter().enumerate() {
                let Ok(answer) = http::try_get(*admin, "/endpoints").await else {
                    wrong.push(format!("picker {picker} does not answer"));
                    continue;
                };
                let states = answer.json();
                let mut states = states.as_array().expect("a list").iter();
                let name = format!("pod-{number}");
                let Some(state) = states.find(|state| state["name"] == name.as_str()) else {
                    wrong.push(format!("picker {picker} does not know {name}"));
                    continue;
                };
                let same = state["digest"] == format!("{truth:016x}");
                if !(same && state["trust"] == "live") {
                    wrong.push(format!(
                        "picker {picker}: {state}, of {} hashes",
                        held.len()
                    ));
                }
            }
        }
        wrong
    }
}

fn completion(prompt: &[u32]) -> hyper::Request<http::Body> {
    let body = json!({"model": "sim", "prompt": prompt, "max_tokens": 2});
    let request = post("/v1/completions").body(full(body.to_string()));
    request.expect("a request")
}

fn setting(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn after_every_fault_the_pictures_are_right_again_and_called_so() {
    let (count, seed) = (setting("CHAOS_FAULTS", 8), setting("CHAOS_SEED", 1));
    let mut world = World::start(seed).await;
    world.load(10).await;
    world.settle().await.expect("before any fault");
    for number in 1..=count {
        let (what, lost) = world.fault().await;
        if lost {
            for number in 0..PODS {
                world.reset(number).await;
            }
        }
        world.load(2).await;
        match world.settle().await {
            Ok(took) => println!("{number}: {what}: right after {} ms", took.as_millis()),
            Err(wrong) => {
                let processes = world.bridge.iter().chain(world.pickers.iter().flatten());
                for process in processes {
                    println!("{}\n", process.last_lines(40).join("\n"));
                }
                panic!("seed {seed}, fault {number}, {what}:\n{wrong}");
            }
        }
    }
}

/// Memory that a process has in use now, in kB.
fn memory_kb(process: &Served) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id()));
    let status = status.expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
    kilobytes
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "twenty minutes: make soak-events"]
async fn under_load_for_long_memory_and_lag_stay_flat_and_nothing_drifts() {
    let seconds = setting("SOAK_SECONDS", 1_200);
    let mut world = World::start(setting("CHAOS_SEED", 1)).await;
    let begun = Instant::now();
    // By process, over time.
    let mut memory = vec![Vec::new(); 1 + PICKERS];
    let mut lags = Vec::new();
    while begun.elapsed() < Duration::from_secs(seconds) {
        world.load(100).await;
        let lag = world.settle().await.expect("nothing drifts");
        lags.push(u64::try_from(lag.as_millis()).expect("a minute"));
        let processes = world.bridge.iter().chain(world.pickers.iter().flatten());
        for (kilobytes, process) in memory.iter_mut().zip(processes) {
            kilobytes.push(memory_kb(process));
        }
    }
    let (quarter, rounds) = (lags.len() / 4, lags.len());
    assert!(quarter > 0, "too short to tell");
    let halves = |values: &[u64]| {
        (
            median(&values[quarter..2 * quarter]),
            median(&values[rounds - quarter..]),
        )
    };
    for (number, kilobytes) in memory.iter().enumerate() {
        let (early, late) = halves(kilobytes);
        println!("process {number}: {early} kB early, {late} kB late");
        assert!(
            late * 10 <= early * 11,
            "process {number}: {early} → {late} kB"
        );
    }
    let (early, late) = halves(&lags);
    println!("{rounds} rounds; right after {early} ms early, {late} ms late");
    assert!(late <= early.max(50) * 2, "{early} → {late} ms");
}
