//! What `deploy/` holds, without a cluster: the chart rendered by Helm's own library with several value sets,
//! every object against its schema (`tests/deploy/objects.py`), and what the objects promise each other.

mod harness;

#[path = "deploy/examples.rs"]
mod examples;
#[path = "deploy/rendered.rs"]
mod rendered;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::process::{output, text};
use rendered::*;
use serde_json::{Value, json};

#[test]
fn the_manifests_are_what_the_chart_renders() {
    let folder = tempfile::tempdir().expect("a folder");
    let rendered = python("deploy/chart/render.py", &[folder.path()]);
    assert!(rendered.status.success(), "{}", text(&rendered.stderr));
    let read = |folder: &Path| {
        let named = |path: &PathBuf| {
            let name = path.file_name().expect("a file").to_owned();
            (name, fs::read_to_string(path).expect("text"))
        };
        files(folder, ".yaml").iter().map(named).collect::<Vec<_>>()
    };
    let shipped = read(&root().join("deploy/manifests"));
    assert!(
        shipped == read(folder.path()),
        "run `make manifests` and commit what it wrote"
    );
}

/// Chart, sidecar and program are released together.
#[test]
fn every_container_of_ours_is_of_this_version() {
    let ours = concat!("kvscout:", env!("CARGO_PKG_VERSION"));
    let (_, defaults) = &RENDERINGS[0];
    let examples = EXAMPLES.iter().flat_map(|(_, all)| all).cloned();
    let all: Vec<Value> = defaults.iter().cloned().chain(examples).collect();
    let containers = pods(&all).into_iter().flat_map(|(_, pod)| containers(pod));
    let images: Vec<_> = containers
        .filter_map(|container| container["image"].as_str())
        .filter(|image| !image.starts_with("vllm/"))
        .collect();
    assert_eq!(images, [ours; 3]);
}

#[test]
fn the_chart_refuses_what_it_does_not_know_and_says_what_is_missing() {
    for (values, said) in [
        ("replicaz: 1", "'replicaz' not allowed"),
        ("config: {listen: {}}", "'listen' not allowed"),
        ("config: {polcy: {}}", "'polcy' not allowed"),
        ("tls: {mode: secret}", "tls.secret: name the Secret"),
        ("nats: {enabled: true}", "nats.servers: name the cluster's"),
        (
            "config: {events: {bind: 'tcp://0.0.0.0:5557'}}",
            "is for one picker or one bridge",
        ),
        (
            "networkPolicy: {enabled: true}",
            "networkPolicy.gateways: say where",
        ),
    ] {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), values).expect("written");
        let error = render(Some(file.path())).err();
        let error = error.unwrap_or_else(|| panic!("{values} renders"));
        assert!(error.contains(said), "{values}: {error}");
    }
}

/// Whatever an operator may configure, he may in the chart; ports and folders are the chart's own.
#[test]
fn the_chart_takes_every_section_of_the_configuration_but_its_own() {
    let sections = |text: &str| -> Vec<String> {
        let keys = text
            .lines()
            .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
        let mut keys: Vec<_> = keys
            .filter_map(|line| line.split_once(':'))
            .map(|(key, _)| key.to_owned())
            .collect();
        keys.sort();
        keys
    };
    let shipped = fs::read_to_string(root().join("deploy/kvscout.yaml")).expect("text");
    let schema = root().join("deploy/chart/kvscout/values.schema.json");
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(schema).expect("text")).expect("JSON");
    let taken = schema["properties"]["config"]["properties"].as_object();
    let mut taken: Vec<_> = taken.expect("an object").keys().cloned().collect();
    taken.extend(["listen", "tls", "models_cache"].map(str::to_owned));
    taken.sort();
    assert_eq!(taken, sections(&shipped));
}

#[test]
fn kvscout_accepts_every_configuration_that_the_chart_writes() {
    let folder = tempfile::tempdir().expect("a folder");
    each_rendering(|name, all| {
        let written = mounted(configuration(all), folder.path());
        let file = harness::process::write(folder.path(), "kvscout.yaml", &written);
        let checked = output(&["check", &file]);
        let said = text(&checked.stderr);
        assert!(checked.status.success(), "{name}: {said}");
    });
}

/// Pod Security's "restricted", and nothing to write on but what is mounted for it.
#[test]
fn every_pod_is_restricted_and_says_what_it_needs() {
    each_rendering(|name, all| {
        let pods = pods(all);
        assert!(!pods.is_empty(), "{name}");
        for (owner, pod) in pods {
            let security = &pod["spec"]["securityContext"];
            assert_eq!(security["runAsNonRoot"], true, "{name}: {owner}");
            assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
            for container in containers(pod) {
                let expected = json!({
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                });
                assert_eq!(container["securityContext"], expected, "{name}: {owner}");
                let resources = &container["resources"];
                assert!(resources["requests"]["cpu"].is_string(), "{name}: {owner}");
                assert!(resources["limits"]["memory"].is_string(), "{name}: {owner}");
            }
        }
    });
}

/// Kubernetes kills what has not ended by then.
#[test]
fn a_picker_is_given_the_time_that_its_configuration_takes_to_drain() {
    let defaults = fs::read_to_string(root().join("deploy/kvscout.yaml")).expect("text");
    each_rendering(|name, all| {
        let limit = |key| {
            number(configuration(all), key)
                .or_else(|| number(&defaults, key))
                .expect(key)
        };
        let drain_ms = limit("drain_notice_ms") + limit("drain_ms_max");
        let picker = of(all, "Deployment")
            .find(|one| one["metadata"]["labels"]["app.kubernetes.io/component"] == "picker");
        let grace =
            &picker.expect("a picker")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
        // Tasks get five seconds more to end (app.rs).
        assert!(
            grace.as_u64().expect("seconds") * 1000 >= drain_ms + 5000,
            "{name}: {grace}"
        );
    });
}

/// What the limits of the defaults add up to, with one model, 0.5 GiB for the program itself and 0.25 GiB for messages
/// that are not all there yet.
#[test]
fn the_memory_limit_covers_what_the_configuration_allows() {
    let text = fs::read_to_string(root().join("deploy/kvscout.yaml")).expect("text");
    let limit = |key| number(&text, key).expect(key);
    let sum = limit("index_bytes_max") + limit("held_bytes_max") + limit("token_cache_bytes_max");
    let all = render(None).expect("the defaults render");
    let (_, pod) = pods(&all)[0];
    let memory = &pod["spec"]["containers"][0]["resources"]["limits"]["memory"];
    let gib = memory.as_str().and_then(|memory| memory.strip_suffix("Gi"));
    let bytes = gib.expect("in Gi").parse::<u64>().expect("a whole number") << 30;
    assert!(sum + (768 << 20) <= bytes, "{sum} of {bytes}");
}

/// A Service that selects nobody, or a volume of a map that is not there, is found by nobody else before a
/// cluster does.
#[test]
fn what_one_object_refers_to_another_is() {
    each_rendering(|name, all| {
        let pods = pods(all);
        let selected = |selector: &Value| {
            let wanted = selector.as_object().expect("labels");
            let fits = |pod: &&Value| {
                let labels = &pod["metadata"]["labels"];
                wanted.iter().all(|(key, value)| labels[key] == *value)
            };
            pods.iter()
                .map(|(_, pod)| *pod)
                .filter(fits)
                .collect::<Vec<_>>()
        };
        let ports = |pod: &Value| -> Vec<Value> {
            let ports = containers(pod).flat_map(|container| list(&container["ports"]));
            ports.map(|port| port["name"].clone()).collect()
        };
        for service in of(all, "Service") {
            let pods = selected(&service["spec"]["selector"]);
            assert_eq!(pods.len(), 1, "{name}: {}", service["metadata"]["name"]);
            for port in list(&service["spec"]["ports"]) {
                // Ports of events.bind have no name in the pod.
                let bound = port["name"]
                    .as_str()
                    .is_some_and(|name| name.starts_with("kv-events-"));
                let there = bound || ports(pods[0]).contains(&port["targetPort"]);
                assert!(there, "{name}: {port}");
            }
        }
        for kind in [
            "PodDisruptionBudget",
            "NetworkPolicy",
            "PodMonitor",
            "Deployment",
            "StatefulSet",
        ] {
            for one in of(all, kind) {
                let spec = &one["spec"];
                let selector = match kind {
                    "NetworkPolicy" => &spec["podSelector"],
                    _ => &spec["selector"],
                };
                assert_eq!(
                    selected(&selector["matchLabels"]).len(),
                    1,
                    "{name}: {kind}"
                );
            }
        }
        let named =
            |kind: &str, name: &Value| of(all, kind).any(|one| one["metadata"]["name"] == *name);
        for (owner, pod) in &pods {
            let spec = &pod["spec"];
            for volume in list(&spec["volumes"]) {
                let map = &volume["configMap"]["name"];
                // The operator's own are beside ours.
                if volume["name"] == "config" {
                    assert!(named("ConfigMap", map), "{name}: {owner}: {map}");
                }
            }
            let account = &spec["serviceAccountName"];
            if !account.is_null() && *account != "existing" {
                assert!(
                    named("ServiceAccount", account),
                    "{name}: {owner}: {account}"
                );
            }
            let volumes: Vec<_> = list(&spec["volumes"])
                .map(|volume| &volume["name"])
                .collect();
            for mount in containers(pod).flat_map(|container| list(&container["volumeMounts"])) {
                let claimed = *owner == "kvscout-nats" && mount["name"] == "data";
                assert!(
                    volumes.contains(&&mount["name"]) || claimed,
                    "{name}: {mount}"
                );
            }
        }
    });
}

/// A Lease is written only where leaders are elected, and only that one.
#[test]
fn nothing_is_written_but_the_lease_of_an_election() {
    each_rendering(|name, all| {
        let written: Vec<_> = of(all, "Role")
            .flat_map(|role| list(&role["rules"]))
            .filter(|rule| rule["verbs"] != json!(["list", "watch"]))
            .collect();
        if !name.ends_with("leader-values.yaml") {
            assert!(written.is_empty(), "{name}: {written:?}");
            return;
        }
        for rule in &written {
            assert_eq!(rule["resources"], json!(["leases"]));
            let named = rule["resourceNames"] == json!(["kvscout"]);
            assert!(named || rule["verbs"] == json!(["create"]), "{rule}");
        }
        assert_eq!(written.len(), 2);
    });
}

#[test]
fn nats_starts_with_the_configuration_that_the_chart_writes() {
    let set = root().join("deploy/chart/kvscout/ci/nats-values.yaml");
    let all = render(Some(&set)).expect("renders");
    let mut found = of(&all, "ConfigMap").filter_map(|map| map["data"]["nats.conf"].as_str());
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("data").display().to_string();
    let written = found.next().expect("a configuration");
    assert!(written.contains("/data"));
    let written = written.replace("/data", &store);
    let file = harness::process::write(folder.path(), "nats.conf", &written);
    let server = root().join(".tools/venv/bin/nats-server");
    let checked = Command::new(server).args(["-t", "-c", &file]).output();
    let checked = checked.expect("make setup installs it");
    assert!(checked.status.success(), "{}", text(&checked.stderr));
}

/// By the Service that a gateway asks at, a picker of several pools tells them apart.
#[test]
fn every_pool_that_is_named_has_a_service_of_its_own_that_leads_to_the_pickers() {
    let values = root().join("deploy/chart/kvscout/ci/external-values.yaml");
    let all = render(Some(&values)).expect("it renders");
    let services: Vec<_> = of(&all, "Service").collect();
    let names: Vec<_> = services
        .iter()
        .map(|one| one["metadata"]["name"].as_str())
        .collect();
    assert_eq!(names, ["picker", "picker-llama", "picker-qwen"].map(Some));
    for one in &services {
        assert_eq!(one["spec"]["selector"], services[0]["spec"]["selector"]);
        assert_eq!(one["spec"]["ports"][0], services[0]["spec"]["ports"][0]);
    }
    let said = configuration(&all).replace(['\n', ' '], "");
    assert!(
        said.contains("pools:-llama-qwen-moreservice:picker"),
        "{said}"
    );
}

/// A Service has no ranges: each rank's port is one of its own, at the one process that listens.
#[test]
fn publishers_that_connect_find_a_port_for_each_rank() {
    for (set, service) in [("single", "kvscout"), ("nats", "kvscout-bridge")] {
        let ending = format!("{set}-values.yaml");
        let found = RENDERINGS.iter().find(|(name, _)| name.ends_with(&ending));
        let (_, all) = found.expect("the value set");
        let mut bound = Vec::new();
        for one in of(all, "Service") {
            let ports = list(&one["spec"]["ports"]).filter_map(|port| port["port"].as_u64());
            let ports = ports.filter(|port| (5557..9000).contains(port));
            bound.extend(ports.map(|port| (one["metadata"]["name"].clone(), port)));
        }
        assert_eq!(bound, [(json!(service), 5557), (json!(service), 5558)]);
        let allowed = of(all, "NetworkPolicy")
            .filter(|one| one["metadata"]["name"] == service)
            .flat_map(|one| list(&one["spec"]["ingress"]))
            .any(|rule| rule["ports"] == json!([{"port": 5557, "endPort": 5558}]));
        assert!(allowed, "{set}");
    }
}

/// For Grafana's sidecar and the Prometheus operator: the very files, under the labels that they look for.
#[test]
fn the_chart_brings_the_dashboards_and_the_alerts_as_they_are() {
    let read = |path: &Path| fs::read_to_string(path).expect("text");
    let ending = "nats-values.yaml";
    let found = RENDERINGS.iter().find(|(name, _)| name.ends_with(ending));
    let (_, all) = found.expect("the value set");
    let mut boards: Vec<(String, Value)> = of(all, "ConfigMap")
        .filter(|map| map["metadata"]["labels"]["grafana_dashboard"] == "1")
        .flat_map(|map| map["data"].as_object().expect("files"))
        .map(|(name, text)| {
            let board = serde_json::from_str(text.as_str().expect("text"));
            (name.clone(), board.expect("JSON"))
        })
        .collect();
    boards.sort_by(|one, other| one.0.cmp(&other.0));
    let shipped = files(&root().join("deploy/grafana"), ".json");
    let shipped = shipped.iter().map(|file| {
        let name = file.file_name().expect("a file").to_string_lossy();
        let board: Value = serde_json::from_str(&read(file)).expect("JSON");
        (format!("kvscout-{name}"), board)
    });
    assert_eq!(boards, shipped.collect::<Vec<_>>());
    let rules = read(&root().join("deploy/alerts/kvscout.yaml"));
    let runbooks = "runbook_url: https://git.example/kvscout/blob/main/docs/";
    let rules = rules.replace("runbook_url: docs/", runbooks);
    let rules: Value = serde_saphyr::from_str(&rules).expect("YAML");
    let shipped: Vec<_> = of(all, "PrometheusRule").map(|one| &one["spec"]).collect();
    assert_eq!(shipped, [&rules]);
    let (_, defaults) = &RENDERINGS[0];
    let labelled = |one: &Value| !one["metadata"]["labels"]["grafana_dashboard"].is_null();
    assert!(!defaults.iter().any(labelled), "only where they are wanted");
}
