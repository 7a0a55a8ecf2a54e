//! A fleet from a YAML file, reread when it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::yaml::{self, Complaints, Section};
use crate::config::{ReadsAs, unreadable};
use crate::fleet::roster::{Entry, Roster, Settings};
use crate::fleet::{EventAddress, Fleet, Publisher, RANKS_MAX};

/// How often the file is read again: a `ConfigMap` takes a minute to arrive, and reading a few
/// kilobytes costs microseconds. Contents are compared, since mounted files change by symlink.
const REREAD: Duration = Duration::from_secs(1);

/// In place of a publisher's address: the server is asked for it.
const DISCOVER: &str = "discover";

/// Publishes the file's endpoints.
#[derive(Debug)]
pub struct FleetFile {
    path: PathBuf,
    settings: Settings,
    /// As last read, or why it could not be: a complaint is made once.
    text: Result<String, Complaints>,
    roster: Roster,
    fleet: watch::Sender<Arc<Fleet>>,
}

impl FleetFile {
    /// Reads the file a first time; from here on, a bad file leaves the last good fleet.
    /// Publishers that have no address come to `events.bind` if there is one.
    pub fn open(
        path: &Path,
        settings: Settings,
    ) -> Result<(Self, watch::Receiver<Arc<Fleet>>), Complaints> {
        let (fleet, receiver) = watch::channel(Arc::new(Fleet::default()));
        let mut file = Self {
            path: path.to_owned(),
            settings,
            text: Ok(String::new()),
            roster: Roster::default(),
            fleet,
        };
        file.reread()?;
        Ok((file, receiver))
    }

    /// Follows the file until nobody listens.
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(REREAD);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.fleet.closed() => return,
            }
            if let Err(complaints) = self.reread() {
                tracing::error!("the fleet stays as it was:\n{complaints}");
            }
        }
    }

    /// Publishes the file's endpoints if its text changed. Complains once per text.
    fn reread(&mut self) -> Result<(), Complaints> {
        let text =
            std::fs::read_to_string(&self.path).map_err(|error| unreadable(&self.path, &error));
        if text == self.text {
            return Ok(());
        }
        self.text.clone_from(&text);
        let entries = read_entries(&self.path, &text?, &self.settings)?;
        let fleet = self.roster.fleet(entries, Vec::new());
        tracing::info!(endpoints = fleet.endpoints.len(), file = %self.path.display(), "fleet read");
        self.fleet.send_replace(Arc::new(fleet));
        Ok(())
    }
}

/// Everything wrong with a fleet file, without using it.
pub fn check(path: &Path, settings: &Settings) -> Result<usize, Complaints> {
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    read_entries(path, &text, settings).map(|entries| entries.len())
}

fn read_entries(path: &Path, text: &str, settings: &Settings) -> Result<Vec<Entry>, Complaints> {
    yaml::read(path, text, |root| {
        let mut addresses = BTreeSet::new();
        let mut names = BTreeSet::new();
        let mut sockets = Sockets::default();
        // A file that was cut short while it was written must not empty the fleet.
        if !root.has("endpoints") {
            root.complain(
                "endpoints",
                "is missing; for an empty fleet say endpoints: []",
            );
        }
        let pods = root.sections("endpoints", |endpoint| {
            let entries = read_pod(endpoint, settings)?;
            let first = entries.first()?;
            if !addresses.insert(first.address) {
                endpoint.complain("address", format!("{} is given twice", first.address));
            }
            let mut all = entries.iter().map(Entry::name);
            if let Some(name) = all.find(|name| !names.insert(name.clone())) {
                endpoint.complain("name", format!("{name:?} is given twice"));
            }
            sockets.take(endpoint, &entries);
            Some(entries)
        });
        pods.into_iter().flatten().collect()
    })
}

/// A pod's ranks, each an endpoint; the pod itself where it has one.
fn read_pod(endpoint: &mut Section<'_>, settings: &Settings) -> Option<Vec<Entry>> {
    let binds = settings.binds;
    let address: Option<SocketAddr> = endpoint.required(
        "address",
        "ip:port of the server, as Envoy should connect to it",
    );
    let name = endpoint.optional::<String>("name");
    let ranks = endpoint.within("data_parallel_size", (1, RANKS_MAX), 1);
    let discovered = endpoint.text("events") == Some(DISCOVER);
    let publisher = match discovered {
        true => None,
        false => socket(endpoint, "events", ranks),
    };
    let replay = socket(endpoint, "replay", ranks);
    if discovered && replay.is_some() {
        endpoint.complain("replay", "is discovered with its events: leave it out");
    } else if publisher.is_none() && replay.is_some() && !binds {
        endpoint.complain(
            "replay",
            "is of no use without events: the address of the publisher, or events.bind in the \
             configuration, where it connects to us",
        );
    }
    let reads_as = reads_as(endpoint, settings);
    let address = address?;
    let pod = name.unwrap_or_else(|| address.to_string());
    let publisher_of = |rank| match &publisher {
        Some(publisher) => Some(Publisher::At(publisher.of_rank(rank))),
        None if discovered => Some(Publisher::Discovered),
        None => binds.then_some(Publisher::Connects),
    };
    let entry = |rank: u16| Entry {
        pod: pod.clone(),
        uid: String::new(),
        rank: (ranks > 1).then_some(rank.into()),
        address,
        reads_as,
        events: publisher_of(rank).map(|publisher| EventAddress {
            publisher,
            replay: replay.as_ref().map(|replay| replay.of_rank(rank)),
        }),
    };
    Some((0..ranks).map(entry).collect())
}

/// Which of the models it reads prompts as. Where none is configured, as for a bridge, nobody asks.
fn reads_as(endpoint: &mut Section<'_>, settings: &Settings) -> ReadsAs {
    let model = endpoint.optional::<String>("model");
    let reads_as = settings.reads_as(model.as_deref());
    if let (Some(model), ReadsAs::Unknown, false) = (model, reads_as, settings.models.is_empty()) {
        let names = settings.names();
        let problem = format!("{model:?} is no name of an entry of models; there are {names}");
        endpoint.complain("model", problem);
    }
    reads_as
}

/// Where rank 0 has a socket. vLLM gives rank r the port + r.
struct Base<'a> {
    host: &'a str,
    port: u16,
}

impl Base<'_> {
    fn of_rank(&self, rank: u16) -> String {
        format!("tcp://{}:{}", self.host, self.port + rank)
    }
}

fn socket<'a>(endpoint: &mut Section<'a>, key: &'static str, ranks: u16) -> Option<Base<'a>> {
    let address = endpoint.text(key)?;
    let parts = address
        .strip_prefix("tcp://")
        .and_then(|rest| rest.rsplit_once(':'));
    let Some((host, Ok(port))) = parts.map(|(host, port)| (host, port.parse::<u16>())) else {
        let or = if key == "events" { ", or discover" } else { "" };
        endpoint.complain(key, format!("{address:?} is not tcp://host:port{or}"));
        return None;
    };
    if port.checked_add(ranks - 1).is_none() {
        let problem = format!(
            "rank {} would have no port: rank r has {port} + r",
            ranks - 1
        );
        endpoint.complain(key, problem);
        return None;
    }
    Some(Base { host, port })
}

/// Who has which socket of the fleet.
#[derive(Default)]
struct Sockets(BTreeMap<String, String>);

impl Sockets {
    /// Notes a pod's, and complains of the first that somebody has already.
    fn take(&mut self, endpoint: &Section<'_>, entries: &[Entry]) {
        let mut told = false;
        for entry in entries {
            let events = entry.events.iter();
            let both = events.flat_map(|events| {
                let replay = events.replay.as_ref().map(|at| ("replay", at));
                let publisher = match &events.publisher {
                    Publisher::At(at) => Some(("events", at)),
                    Publisher::Connects | Publisher::Discovered => None,
                };
                publisher.into_iter().chain(replay)
            });
            for (key, at) in both {
                let whose = format!("{key} of {}", entry.name());
                let before = self.0.insert(at.clone(), whose.clone());
                let Some(before) = before.filter(|_| !told) else {
                    continue;
                };
                told = true;
                let fix = match entries.len() {
                    1 => "give each a port of its own".to_owned(),
                    ranks => format!(
                        "rank r has port + r, here and in vLLM: keep the ports of events and replay \
                         at least {ranks} apart, in --kv-events-config too"
                    ),
                };
                endpoint.complain(key, format!("{at} would be {before} and {whose}: {fix}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Endpoint, EndpointId};

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("fleet.yaml");
        std::fs::write(&path, text).expect("written");
        (folder, path)
    }

    fn binding() -> Settings {
        Settings {
            binds: true,
            ..Settings::default()
        }
    }

    const TWO: &str = "
endpoints:
  - {name: pod-1, address: 127.0.0.1:8001, events: 'tcp://127.0.0.1:5557'}
  - {name: pod-2, address: '[::1]:8002'}
";

    #[test]
    fn endpoints_that_stay_keep_their_number() {
        let (_folder, path) = file(TWO);
        let (mut fixed, fleet) = FleetFile::open(&path, Settings::default()).expect("a fleet");
        let first = fleet.borrow().endpoints[1].clone();
        assert_eq!((first.name.as_str(), first.id), ("pod-2", EndpointId(1)));
        std::fs::write(&path, "endpoints: [{name: pod-2, address: '[::1]:8002'}]")
            .expect("written");
        fixed.reread().expect("a fleet");
        assert!(Arc::ptr_eq(&fleet.borrow().endpoints[0], &first));
    }

    #[test]
    fn a_moved_event_source_is_another_endpoint() {
        let (_folder, path) = file(TWO);
        let (mut fixed, fleet) = FleetFile::open(&path, Settings::default()).expect("a fleet");
        std::fs::write(&path, TWO.replace("5557", "5559")).expect("written");
        fixed.reread().expect("a fleet");
        let ids: Vec<_> = fleet
            .borrow()
            .endpoints
            .iter()
            .map(|endpoint| endpoint.id.0)
            .collect();
        assert_eq!(ids, [1, 2]);
    }

    #[test]
    fn a_pod_of_several_ranks_is_as_many_endpoints() {
        let text = "
endpoints:
  - {name: a, address: 10.0.0.1:80, data_parallel_size: 2, events: 'tcp://10.0.0.1:5557', replay: 'tcp://10.0.0.1:5657'}
  - {name: b, address: 10.0.0.2:80, data_parallel_size: 1, events: 'tcp://10.0.0.1:6000'}
";
        let (_folder, path) = file(text);
        let (mut fixed, fleet) = FleetFile::open(&path, Settings::default()).expect("a fleet");
        let told = |endpoint: &Arc<Endpoint>| {
            let events = endpoint.events.clone().expect("events");
            let sockets = (events.publisher, events.replay);
            (endpoint.name.clone(), endpoint.rank, sockets)
        };
        let all: Vec<_> = fleet.borrow().endpoints.iter().map(told).collect();
        let wanted = |name: &str, rank, publisher: u16, replay: Option<u16>| {
            let at = |port| format!("tcp://10.0.0.1:{port}");
            let sockets = (Publisher::At(at(publisher)), replay.map(at));
            (name.to_owned(), rank, sockets)
        };
        let wanted = [
            wanted("a/0", Some(0), 5557, Some(5657)),
            wanted("a/1", Some(1), 5558, Some(5658)),
            wanted("b", None, 6000, None),
        ];
        assert_eq!(all, wanted);
        // One rank more leaves the others as they are.
        let before = fleet.borrow().endpoints.clone();
        std::fs::write(&path, text.replace("size: 2", "size: 3")).expect("written");
        fixed.reread().expect("a fleet");
        let after = fleet.borrow().endpoints.clone();
        assert!(before.iter().zip(&after).all(|(a, b)| Arc::ptr_eq(a, b)));
        assert_eq!((after.len(), after[3].name.as_str()), (4, "a/2"));
    }

    #[test]
    fn where_publishers_connect_to_us_endpoints_need_no_address_of_theirs() {
        let text = "
endpoints:
  - {name: a, address: 10.0.0.1:80, replay: 'tcp://10.0.0.1:5558'}
  - {name: b, address: 10.0.0.2:80, events: 'tcp://10.0.0.2:5557'}
";
        let (_folder, path) = file(text);
        let (_fixed, fleet) = FleetFile::open(&path, binding()).expect("a fleet");
        let publishers = fleet.borrow().endpoints.clone().into_iter();
        let publishers = publishers.map(|endpoint| endpoint.events.clone().expect("events"));
        let publishers: Vec<_> = publishers.map(|events| events.publisher).collect();
        let there = Publisher::At("tcp://10.0.0.2:5557".into());
        assert_eq!(publishers, [Publisher::Connects, there]);
        let said = check(&path, &Settings::default())
            .expect_err("nobody hears it")
            .to_string();
        assert!(said.contains("or events.bind"), "{said}");
    }

    #[test]
    fn a_host_s_name_is_no_address_and_what_one_is_is_said() {
        let (_folder, path) = file("endpoints: [{name: a, address: 'vllm:8000'}]");
        let said = check(&path, &Settings::default()).expect_err("a name");
        let said = said.to_string();
        assert!(said.contains("address: \"vllm:8000\""), "{said}");
        assert!(said.contains("; it is ip:port of the server"), "{said}");
    }

    #[test]
    fn each_rank_is_asked_for_where_its_publisher_is_discovered() {
        let pod = |more: &str| {
            let keys = "name: a, address: '10.0.0.1:80', events: discover";
            format!("endpoints: [{{{keys}{more}}}]")
        };
        let (_folder, path) = file(&pod(", data_parallel_size: 2"));
        let (_fixed, fleet) = FleetFile::open(&path, Settings::default()).expect("a fleet");
        let events = EventAddress {
            publisher: Publisher::Discovered,
            replay: None,
        };
        for endpoint in &fleet.borrow().endpoints {
            assert_eq!(endpoint.events.as_ref(), Some(&events));
        }
        let (_folder, path) = file(&pod(", replay: 'tcp://10.0.0.1:5558'"));
        let said = check(&path, &Settings::default())
            .expect_err("too much")
            .to_string();
        assert!(said.contains("[0].replay: is discovered"), "{said}");
    }

    #[test]
    fn an_endpoint_reads_as_the_entry_that_it_names_and_a_wrong_name_is_refused_with_the_right_ones()
     {
        let pod = |model: &str| {
            format!(
                "endpoints: [{{address: '10.0.0.1:80', model: {model}, data_parallel_size: 2}}]"
            )
        };
        let (_folder, path) = file(&pod("old"));
        let models = [("new", 1), ("old", 0), ("older", 0)];
        let settings = Settings {
            models: models.map(|(name, at)| (name.to_owned(), at)).into(),
            ..Settings::default()
        };
        let (mut fixed, fleet) = FleetFile::open(&path, settings).expect("a fleet");
        let told = || {
            let all = fleet.borrow().endpoints.clone();
            let told = |one: &Arc<Endpoint>| (one.id.0, one.reads_as);
            all.iter().map(told).collect::<Vec<_>>()
        };
        assert_eq!(told(), [(0, ReadsAs::Entry(0)), (1, ReadsAs::Entry(0))]);
        std::fs::write(&path, pod("new")).expect("written");
        fixed.reread().expect("a fleet");
        assert_eq!(told(), [(2, ReadsAs::Entry(1)), (3, ReadsAs::Entry(1))]);
        std::fs::write(&path, pod("newer")).expect("written");
        let said = fixed.reread().expect_err("a name of nothing").to_string();
        let wanted =
            "[0].model: \"newer\" is no name of an entry of models; there are new, old, older";
        assert!(said.contains(wanted), "{said}");
        // A bridge reads no prompts, and so may have no models.
        assert_eq!(check(&path, &Settings::default()).ok(), Some(2));
    }

    #[test]
    fn ports_that_ranks_would_share_are_explained() {
        let pod = |more: &str| format!("  - {{address: '10.0.0.1:80', name: a, {more}}}\n");
        let complaint = |pods: &[String]| {
            let (_folder, path) = file(&format!("endpoints:\n{}", pods.concat()));
            check(&path, &Settings::default())
                .expect_err("a collision")
                .to_string()
        };
        let style = "events: 'tcp://10.0.0.1:5557', replay: 'tcp://10.0.0.1:5558'";
        let said = complaint(&[pod(&format!("data_parallel_size: 2, {style}"))]);
        for part in [
            "endpoints[0].events: tcp://10.0.0.1:5558 would be replay of a/0 and events of a/1",
            "at least 2 apart",
        ] {
            assert!(said.contains(part), "{part}\n{said}");
        }
        assert_eq!(said.lines().count(), 1, "{said}");
        let other = "  - {address: '10.0.0.1:81', name: b, events: 'tcp://10.0.0.1:5558'}\n";
        let said = complaint(&[pod(style), other.to_owned()]);
        assert!(
            said.contains("would be replay of a and events of b"),
            "{said}"
        );
        let said = complaint(&[pod("data_parallel_size: 9, events: 'tcp://a:65530'")]);
        assert!(said.contains("rank 8 would have no port"), "{said}");
        let said = complaint(&[pod("data_parallel_size: 0")]);
        assert!(said.contains("[0].data_parallel_size"), "{said}");
    }

    #[test]
    fn a_bad_file_leaves_the_last_good_fleet_and_complains_once() {
        let (_folder, path) = file(TWO);
        let (mut fixed, fleet) = FleetFile::open(&path, Settings::default()).expect("a fleet");
        std::fs::write(&path, "endpoints: [{name: x}]").expect("written");
        assert!(fixed.reread().is_err());
        assert!(
            fixed.reread().is_ok(),
            "the same text is not complained of again"
        );
        assert_eq!(fleet.borrow().endpoints.len(), 2);
        std::fs::remove_file(&path).expect("removed");
        assert!(fixed.reread().is_err());
        assert!(fixed.reread().is_ok(), "nor is the same absence");
        std::fs::write(&path, "").expect("cut short");
        assert!(fixed.reread().is_err(), "an empty file is no empty fleet");
        assert_eq!(fleet.borrow().endpoints.len(), 2);
        std::fs::write(&path, "endpoints: [{address: '10.0.0.1:80'}]").expect("written");
        fixed.reread().expect("a fleet");
        assert_eq!(fleet.borrow().endpoints[0].name, "10.0.0.1:80");
    }

    #[test]
    fn everything_wrong_with_an_endpoint_is_said() {
        let text = "
endpoints:
  - address: localhost
  - {address: '10.0.0.1:80', replay: 'tcp://10.0.0.1:5558'}
  - {address: '10.0.0.1:80', events: 5557, weight: 3}
";
        let (_folder, path) = file(text);
        let complaints = check(&path, &Settings::default())
            .expect_err("nothing is right")
            .to_string();
        for part in [
            "[0].address",
            "[1].replay",
            "[2].address",
            "[2].events",
            "[2].weight",
        ] {
            assert!(complaints.contains(part), "{part}\n{complaints}");
        }
    }
}
