//! What `deploy/examples` promises: what its objects refer to, and what kvscout is told in them.

use std::fs;
use std::path::Path;

use kvscout::config::{Config, FleetSource};
use kvscout::fleet::{EventAddress, Publisher};
use kvscout::kubernetes::cluster::{Change, Cluster};
use kvscout::kubernetes::resources::{Resource, WATCHED};
use serde_json::{Value, json};

use super::harness;
use super::harness::process::{output, text};
use super::rendered::*;

/// A pool, a policy or a route that leads nowhere is no error to Kubernetes.
#[test]
fn examples_lead_to_services_that_there_are() {
    let names = |kind: &str| -> Vec<&Value> {
        let all = EXAMPLES.iter().flat_map(|(_, all)| of(all, kind));
        all.map(|one| &one["metadata"]["name"]).collect()
    };
    let kvscout = json!("kvscout");
    let (services, pools) = (
        [names("Service"), vec![&kvscout]].concat(),
        names("InferencePool"),
    );
    let mut found = 0;
    for (name, all) in EXAMPLES.iter() {
        let named: Vec<_> = all.iter().map(|one| &one["metadata"]["name"]).collect();
        for one in all {
            let spec = &one["spec"];
            for key in ["endpointPickerRef", "extensionRef"] {
                let picker = &spec[key]["name"];
                assert!(picker.is_null() || *picker == kvscout, "{name}: {picker}");
            }
            for target in list(&spec["targetRefs"]) {
                let there = named.contains(&&target["name"]) || target["name"] == kvscout;
                assert!(there, "{name}: {target}");
            }
            let rules = list(&spec["rules"]).chain(list(&spec["extProc"]));
            for backend in rules.flat_map(|rule| list(&rule["backendRefs"])) {
                let there = match backend["kind"] == "InferencePool" {
                    true => &pools,
                    false => &services,
                };
                assert!(there.contains(&&backend["name"]), "{name}: {backend}");
                found += 1;
            }
        }
    }
    assert!(found >= 7, "{found}");
}

/// Where vLLM publishes is where kvscout is told to listen.
#[test]
fn the_servers_of_the_examples_tell_what_they_hold_where_kvscout_listens() {
    let mut servers = 0;
    for (name, all) in EXAMPLES.iter() {
        for (_, pod) in pods(all) {
            for container in list(&pod["spec"]["containers"]) {
                let args: Vec<_> = list(&container["args"]).filter_map(Value::as_str).collect();
                let events = args.iter().position(|arg| *arg == "--kv-events-config");
                let events: Value = serde_json::from_str(args[events.expect("KV events") + 1])
                    .unwrap_or_else(|error| panic!("{name}: {error}"));
                let expected = json!({
                    "enable_kv_cache_events": true,
                    "publisher": "zmq",
                    "endpoint": "tcp://*:5557",
                    "replay_endpoint": "tcp://*:5558",
                });
                assert_eq!(events, expected, "{name}");
                for flag in ["--enable-prefix-caching", "--enable-prompt-tokens-details"] {
                    assert!(args.contains(&flag), "{name}: {flag}");
                }
                servers += 1;
            }
        }
    }
    assert_eq!(servers, 2);
    for (name, all) in RENDERINGS.iter() {
        if name.contains("examples") && !name.contains("bridge-sidecar") {
            let written = configuration(all);
            assert!(written.contains("replay_port: 5558"), "{name}");
        }
    }
}

fn example(name: &str) -> &'static [Value] {
    let found = EXAMPLES.iter().find(|(path, _)| path.ends_with(name));
    &found.unwrap_or_else(|| panic!("no {name}")).1
}

/// What kvscout makes of a pool, of what is said of its models, and of a pod of the sample.
fn cluster(values: &str, said: &[Value]) -> Cluster {
    let set = root().join("deploy/examples").join(values);
    let found = RENDERINGS.iter().find(|(path, _)| Path::new(path) == set);
    let written = configuration(&found.expect("the value set").1);
    let config = Config::parse(&set, written).expect("kvscout accepts it");
    let FleetSource::Kubernetes(settings) = &config.fleet else {
        panic!("{values}: another source");
    };
    let mut cluster = Cluster::new(settings.clone(), &config);
    let deployment = of(example("ack-prefix-cache/vllm-service.yaml"), "Deployment").next();
    let labels = &deployment.expect("the sample")["spec"]["template"]["metadata"]["labels"];
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "vllm-1", "uid": "1", "labels": labels},
        "spec": {"containers": []},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    for one in said.iter().chain([&pod]) {
        let is = |resource: &Resource| {
            let version = [resource.group, resource.version].join("/");
            one["kind"] == resource.kind && one["apiVersion"] == *version.trim_start_matches('/')
        };
        let kind = WATCHED.iter().position(is).expect("it is watched");
        let object = serde_json::from_value(one.clone()).expect("an object");
        cluster.apply(Change::Applied(kind, Box::new(object)));
    }
    cluster
}

/// The value sets, the pools and the sample meet: kvscout would route to its pods, and hear them.
#[test]
fn a_pod_of_the_sample_is_served_and_heard_with_each_value_set() {
    let (old, new) = (
        example("ack-prefix-cache/inference-pool.yaml"),
        example("examples/inference-pool.yaml"),
    );
    let buffered = example("envoy-ai-gateway/buffered-pool.yaml");
    for (values, said) in [
        ("ack-prefix-cache/values.yaml", old),
        ("envoy-gateway/values.yaml", new),
        ("values.yaml", new),
        ("values.yaml", buffered),
    ] {
        let fleet = cluster(values, said).fleet();
        let [endpoint] = fleet.endpoints.as_slice() else {
            panic!("{values}: {:?}", fleet.endpoints);
        };
        assert_eq!(endpoint.address.to_string(), "10.0.0.1:8000", "{values}");
        let events = EventAddress {
            publisher: Publisher::At("tcp://10.0.0.1:5557".to_owned()),
            replay: Some("tcp://10.0.0.1:5558".to_owned()),
        };
        assert_eq!(endpoint.events, Some(events), "{values}");
    }
}

/// Envoy gives up a request when kvscout has not answered by then, so it must be the one that waits longer.
#[test]
fn envoy_waits_longer_than_kvscout_does() {
    let defaults = fs::read_to_string(root().join("deploy/kvscout.yaml")).expect("text");
    let limit = |key| number(&defaults, key).expect(key);
    let kvscout_ms = limit("wait_ms_max") + limit("decision_ms_max");
    let all = EXAMPLES.iter().flat_map(|(_, all)| all);
    let waits: Vec<_> = all
        .flat_map(|one| list(&one["spec"]["extProc"]))
        .map(|one| one["messageTimeout"].as_str().expect("a time"))
        .collect();
    assert_eq!(waits.len(), 2);
    for wait in waits {
        let seconds = wait.strip_suffix('s').map(str::parse::<u64>);
        let seconds = seconds.expect("in seconds").expect("a number");
        assert!(seconds * 1000 > kvscout_ms, "{wait}");
    }
}

/// Without one Istio asks by its cluster's name, in which `|` is: no TLS library of ours takes that for a host's.
#[test]
fn istio_asks_by_a_hosts_name() {
    let all = example("istio/gateway.yaml");
    let rule = of(all, "DestinationRule").next().expect("a rule");
    let (host, tls) = (&rule["spec"]["host"], &rule["spec"]["trafficPolicy"]["tls"]);
    assert_eq!((&tls["mode"], &tls["sni"]), (&json!("SIMPLE"), host));
}

/// The AIGatewayRoute's own filter holds each body whole, and Envoy Gateway's defaults are 32 KiB for a connection
/// and 64 KiB for a stream of HTTP/2: a longer prompt is 413 before kvscout is asked.
#[test]
fn envoy_ai_gateway_takes_every_body_that_kvscout_scores() {
    let defaults = fs::read_to_string(root().join("deploy/kvscout.yaml")).expect("text");
    let scored = number(&defaults, "body_bytes_max").expect("a limit");
    let all = example("envoy-ai-gateway/gateway.yaml");
    let policy = of(all, "ClientTrafficPolicy").next().expect("a policy");
    let (spec, gateway) = (&policy["spec"], of(all, "Gateway").next());
    assert_eq!(
        spec["targetRefs"][0]["name"],
        gateway.expect("a gateway")["metadata"]["name"]
    );
    for limit in ["/connection/bufferLimit", "/http2/initialStreamWindowSize"] {
        let text = spec.pointer(limit).and_then(Value::as_str).expect(limit);
        let mebibytes = text.strip_suffix("Mi").map(str::parse::<u64>);
        let mebibytes = mebibytes.expect("in Mi").expect("a number");
        assert!(mebibytes << 20 >= scored, "{limit}: {text}");
    }
}

#[test]
fn kvscout_accepts_the_configuration_of_the_sidecar() {
    let folder = tempfile::tempdir().expect("a folder");
    let all = EXAMPLES
        .iter()
        .find(|(name, _)| name.contains("bridge-sidecar"));
    let written = mounted(configuration(&all.expect("the example").1), folder.path());
    let file = harness::process::write(folder.path(), "kvscout.yaml", &written);
    let checked = output(&["check", &file]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
}
