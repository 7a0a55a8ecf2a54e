//! A fleet from a YAML file, reread when it changes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::unreadable;
use crate::config::yaml::{self, Complaints, Section};
use crate::fleet::{Endpoint, EndpointId, EventAddress, Fleet};

/// How often the file is read again: a `ConfigMap` takes a minute to arrive, and reading a few
/// kilobytes costs microseconds. Contents are compared, since mounted files change by symlink.
const REREAD: Duration = Duration::from_secs(1);

/// An endpoint as the file gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    name: String,
    address: SocketAddr,
    events: Option<EventAddress>,
}

/// Publishes the file's endpoints.
#[derive(Debug)]
pub struct FleetFile {
    path: PathBuf,
    /// As last read, or why it could not be: a complaint is made once.
    text: Result<String, Complaints>,
    next_id: u32,
    fleet: watch::Sender<Arc<Fleet>>,
}

impl FleetFile {
    /// Reads the file a first time; from here on, a bad file leaves the last good fleet.
    pub fn open(path: &Path) -> Result<(Self, watch::Receiver<Arc<Fleet>>), Complaints> {
        let (fleet, receiver) = watch::channel(Arc::new(Fleet::default()));
        let mut file = Self {
            path: path.to_owned(),
            text: Ok(String::new()),
            next_id: 0,
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
        let entries = read_entries(&self.path, &text?)?;
        self.publish(&entries);
        Ok(())
    }

    /// Endpoints that stay keep their number, load and trust. One whose name, address or event
    /// source changed is another one: it must not inherit a picture.
    fn publish(&mut self, entries: &[Entry]) {
        let before = self.fleet.borrow().clone();
        let mut endpoints = Vec::with_capacity(entries.len());
        for entry in entries {
            let same = |endpoint: &&Arc<Endpoint>| {
                let Endpoint {
                    name,
                    address,
                    events,
                    ..
                } = endpoint.as_ref();
                (name, address, events) == (&entry.name, &entry.address, &entry.events)
            };
            let endpoint = before
                .endpoints
                .iter()
                .find(same)
                .cloned()
                .unwrap_or_else(|| {
                    let id = EndpointId(self.next_id);
                    self.next_id += 1;
                    let Entry {
                        name,
                        address,
                        events,
                    } = entry.clone();
                    Arc::new(Endpoint::new(id, name, address, events))
                });
            endpoints.push(endpoint);
        }
        endpoints.sort_by_key(|endpoint| endpoint.id);
        tracing::info!(endpoints = endpoints.len(), file = %self.path.display(), "fleet read");
        self.fleet.send_replace(Arc::new(Fleet { endpoints }));
    }
}

/// Everything wrong with a fleet file, without using it.
pub fn check(path: &Path) -> Result<usize, Complaints> {
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    read_entries(path, &text).map(|entries| entries.len())
}

fn read_entries(path: &Path, text: &str) -> Result<Vec<Entry>, Complaints> {
    yaml::read(path, text, |root| {
        let mut addresses = BTreeSet::new();
        let mut names = BTreeSet::new();
        // A file that was cut short while it was written must not empty the fleet.
        if !root.has("endpoints") {
            root.complain(
                "endpoints",
                "is missing; for an empty fleet say endpoints: []",
            );
        }
        root.sections("endpoints", |endpoint| {
            let entry = read_entry(endpoint)?;
            if !addresses.insert(entry.address) {
                endpoint.complain("address", format!("{} is given twice", entry.address));
            }
            if !names.insert(entry.name.clone()) {
                endpoint.complain("name", format!("{:?} is given twice", entry.name));
            }
            Some(entry)
        })
    })
}

fn read_entry(endpoint: &mut Section<'_>) -> Option<Entry> {
    let address: Option<SocketAddr> = endpoint.required(
        "address",
        "ip:port of the server, as Envoy should connect to it",
    );
    let name = endpoint.optional::<String>("name");
    let publisher = socket(endpoint, "events");
    let replay = socket(endpoint, "replay");
    if publisher.is_none() && replay.is_some() {
        endpoint.complain(
            "replay",
            "is of no use without events: the address of the publisher",
        );
    }
    let address = address?;
    Some(Entry {
        name: name.unwrap_or_else(|| address.to_string()),
        address,
        events: publisher.map(|publisher| EventAddress { publisher, replay }),
    })
}

fn socket(endpoint: &mut Section<'_>, key: &'static str) -> Option<String> {
    let address: String = endpoint.optional(key)?;
    let port = address
        .strip_prefix("tcp://")
        .and_then(|rest| rest.rsplit_once(':'))
        .map(|(_, port)| port);
    if port.is_none_or(|port| port.parse::<u16>().is_err()) {
        endpoint.complain(key, format!("{address:?} is not tcp://host:port"));
        return None;
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("fleet.yaml");
        std::fs::write(&path, text).expect("written");
        (folder, path)
    }

    const TWO: &str = "
endpoints:
  - {name: pod-1, address: 127.0.0.1:8001, events: 'tcp://127.0.0.1:5557'}
  - {name: pod-2, address: '[::1]:8002'}
";

    #[test]
    fn endpoints_that_stay_keep_their_number() {
        let (_folder, path) = file(TWO);
        let (mut fixed, fleet) = FleetFile::open(&path).expect("a fleet");
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
        let (mut fixed, fleet) = FleetFile::open(&path).expect("a fleet");
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
    fn a_bad_file_leaves_the_last_good_fleet_and_complains_once() {
        let (_folder, path) = file(TWO);
        let (mut fixed, fleet) = FleetFile::open(&path).expect("a fleet");
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
        let complaints = check(&path).expect_err("nothing is right").to_string();
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
