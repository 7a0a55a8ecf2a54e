//! Whatever a cluster's objects say, the fleet and the rules that they add up to are made of those that
//! can be understood. The input is lines: a kind's number, and an object in JSON; one that is none deletes
//! what it names.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use kube::api::DynamicObject;
use kvscout::config::{Config, FleetSource};
use kvscout::kubernetes::cluster::{Change, Cluster};
use kvscout::kubernetes::resources::WATCHED;
use libfuzzer_sys::fuzz_target;

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let text = "fleet:\n  kubernetes:\n    service: picker\n    pools: [pool]\n    events: 5557\n";
    Config::parse(Path::new("kvscout.yaml"), text).unwrap_or_else(|complaints| panic!("{complaints}"))
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let FleetSource::Kubernetes(settings) = &CONFIG.fleet else { unreachable!("it says so") };
    let mut cluster = Cluster::new(settings.clone(), &CONFIG);
    for line in text.lines() {
        let Some((kind, object)) = line.split_once(' ') else { continue };
        let kind = kind.parse::<usize>().unwrap_or(0) % WATCHED.len();
        let change = match serde_json::from_str::<DynamicObject>(object) {
            Ok(object) => Change::Applied(kind, Box::new(object)),
            Err(_) => Change::Deleted(kind, object.to_owned()),
        };
        cluster.apply(change);
    }
    let (fleet, _routes) = (cluster.fleet(), cluster.routes());
    assert_eq!(cluster.fleet().endpoints.len(), fleet.endpoints.len(), "the same cluster, another fleet");
});
