use std::sync::Arc;

use serde_json::{Value, json};

use super::super::resources::{GROUP, LLM_D_GROUP, X_GROUP};
use super::*;
use crate::config::{Criticality, Engine, Model, PodEvents, RenderSettings, Source, Strategy};
use crate::fleet::{Endpoint, EventAddress, Publisher};
use crate::routes::Class;

/// A cluster, and who is told of what happens in it.
struct World(Cluster);

fn kind(group: &str, kind: &str) -> usize {
    let is = |resource: &Resource| (resource.group, resource.kind) == (group, kind);
    WATCHED.iter().position(is).expect("it is watched")
}

fn settings() -> Kubernetes {
    Kubernetes {
        service: Some("kvscout".into()),
        ..Kubernetes::default()
    }
}

impl World {
    /// With a pool of this selector and these ports that refers to us.
    fn of_pool(settings: Kubernetes, ports: &[u16]) -> Self {
        let mut world = Self(Cluster::new(settings, &Config::default()));
        world.apply(GROUP, "InferencePool", pool("llama", "kvscout", ports));
        world
    }

    fn apply(&mut self, group: &str, of: &str, object: Value) {
        let object = serde_json::from_value(object).expect("an object");
        self.0
            .apply(Change::Applied(kind(group, of), Box::new(object)));
    }

    fn pod(&mut self, pod: Value) {
        self.apply("", "Pod", pod);
    }

    fn delete(&mut self, name: &str) {
        self.0.apply(Change::Deleted(kind("", "Pod"), name.into()));
    }

    fn serving(&mut self) -> Vec<Arc<Endpoint>> {
        self.0.fleet().endpoints
    }

    fn names(&mut self) -> Vec<String> {
        let names = self.serving().into_iter();
        names
            .map(|endpoint| format!("{} {}", endpoint.name, endpoint.address))
            .collect()
    }
}

fn pool(name: &str, service: &str, ports: &[u16]) -> Value {
    let ports: Vec<_> = ports.iter().map(|port| json!({"number": port})).collect();
    json!({
        "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "selector": {"matchLabels": {"app": "vllm"}},
            "targetPorts": ports,
            "endpointPickerRef": {"name": service, "port": {"number": 9002}, "failureMode": "FailOpen"},
        },
    })
}

/// A ready one.
fn pod(name: &str, uid: &str, ip: &str) -> Value {
    json!({
        "metadata": {"name": name, "uid": uid, "labels": {"app": "vllm", "more": "x"},
                     "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": []},
        "status": {"phase": "Running", "podIP": ip, "conditions": [
            {"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]},
    })
}

fn with(mut object: Value, pointer: &str, value: impl Into<Value>) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let parent = object.pointer_mut(parent).expect("a parent");
    parent[key] = value.into();
    object
}

fn unready(pod: Value) -> Value {
    with(pod, "/status/conditions/1/status", "False")
}

fn noted(pod: Value, annotations: Value) -> Value {
    with(pod, "/metadata/annotations", annotations)
}

#[test]
fn a_ready_pod_of_the_pool_is_an_endpoint_with_vllms_default_event_port() {
    let mut world = World::of_pool(settings(), &[8000]);
    world.pod(pod("a", "1", "10.0.0.1"));
    world.pod(with(
        pod("other", "2", "10.0.0.2"),
        "/metadata/labels",
        json!({"app": "web"}),
    ));
    world.pod(unready(pod("starting", "3", "10.0.0.3")));
    world.pod(with(
        pod("pending", "4", ""),
        "/status",
        json!({"phase": "Pending"}),
    ));
    let endpoint = world.serving().pop().expect("one");
    assert_eq!(world.names(), ["a 10.0.0.1:8000"]);
    let events = EventAddress {
        publisher: Publisher::At("tcp://10.0.0.1:5557".into()),
        replay: None,
    };
    assert_eq!(endpoint.events, Some(events));
}

#[test]
fn a_pod_that_is_not_ready_is_heard_and_not_chosen() {
    let mut world = World::of_pool(settings(), &[8000]);
    world.pod(unready(pod("a", "1", "10.0.0.1")));
    let resting = world.0.fleet().resting;
    world.pod(pod("a", "1", "10.0.0.1"));
    let fleet = world.0.fleet();
    assert!(Arc::ptr_eq(&fleet.endpoints[0], &resting[0]) && fleet.resting.is_empty());
}

#[test]
fn a_pod_that_ends_is_dropped_at_once() {
    let mut world = World::of_pool(settings(), &[8000]);
    let ends = [
        with(
            pod("a", "1", "10.0.0.1"),
            "/metadata/deletionTimestamp",
            "2026-01-02T00:00:00Z",
        ),
        with(pod("a", "1", "10.0.0.1"), "/status/phase", "Failed"),
        with(
            unready(pod("a", "1", "10.0.0.1")),
            "/status/phase",
            "Succeeded",
        ),
    ];
    for end in ends {
        world.pod(pod("a", "1", "10.0.0.1"));
        assert_eq!(world.serving().len(), 1);
        world.pod(end);
        assert_eq!(world.0.fleet().heard().count(), 0);
    }
    world.pod(pod("a", "1", "10.0.0.1"));
    world.delete("a");
    assert_eq!(world.0.fleet().heard().count(), 0);
}

#[test]
fn work_on_a_pod_that_is_gone_keeps_its_endpoint() {
    let mut world = World::of_pool(settings(), &[8000]);
    world.pod(pod("a", "1", "10.0.0.1"));
    let endpoint = world.serving().pop().expect("one");
    let booking = crate::fleet::Booking::new(endpoint.clone(), 100, 1, std::time::Instant::now());
    world.delete("a");
    assert!(world.serving().is_empty());
    assert_eq!(endpoint.load.requests(), 1);
    drop(booking);
    assert_eq!(endpoint.load.requests(), 0);
}

#[test]
fn a_reused_ip_or_name_inherits_nothing() {
    let mut world = World::of_pool(settings(), &[8000]);
    world.pod(pod("a", "1", "10.0.0.1"));
    let first = world.serving()[0].id;
    // The same name, as of a StatefulSet, and even the same ip: another pod.
    world.pod(pod("a", "2", "10.0.0.1"));
    let second = world.serving()[0].id;
    assert_ne!(first, second);
    // Another name at the ip, before the old one's end is heard: the younger one has it.
    let younger = with(
        pod("b", "3", "10.0.0.1"),
        "/metadata/creationTimestamp",
        "2026-01-01T00:00:09Z",
    );
    world.pod(younger);
    assert_eq!(world.names(), ["b 10.0.0.1:8000"]);
    world.delete("a");
    assert_eq!(world.names(), ["b 10.0.0.1:8000"]);
    assert!(world.serving()[0].id > second);
}

#[test]
fn a_pod_that_stays_is_the_same_whatever_else_happens_to_it() {
    let mut world = World::of_pool(settings(), &[8000]);
    world.pod(pod("a", "1", "10.0.0.1"));
    let before = world.serving();
    world.pod(noted(pod("a", "1", "10.0.0.1"), json!({"any": "thing"})));
    world.pod(pod("b", "2", "10.0.0.2"));
    world.0.apply(Change::Listed(
        kind("", "Pod"),
        [pod("a", "1", "10.0.0.1"), pod("c", "3", "10.0.0.3")]
            .map(|pod| serde_json::from_value(pod).expect("an object"))
            .into(),
    ));
    let after = world.serving();
    assert!(Arc::ptr_eq(&before[0], &after[0]));
    assert_eq!(world.names(), ["a 10.0.0.1:8000", "c 10.0.0.3:8000"]);
}

#[test]
fn every_target_port_is_an_endpoint_and_active_ports_say_which_serve() {
    let mut world = World::of_pool(settings(), &[8000, 8001, 8002]);
    world.pod(pod("a", "1", "10.0.0.1"));
    let all = [
        "a:8000 10.0.0.1:8000",
        "a:8001 10.0.0.1:8001",
        "a:8002 10.0.0.1:8002",
    ];
    assert_eq!(world.names(), all);
    let publisher = |endpoint: &Arc<Endpoint>| endpoint.events.clone().map(|e| e.publisher);
    let at = |port: u16| Some(Publisher::At(format!("tcp://10.0.0.1:{port}")));
    let publishers: Vec<_> = world.serving().iter().map(publisher).collect();
    assert_eq!(publishers, [at(5557), at(5558), at(5559)]);
    let last = world.serving()[2].clone();
    let active = |key: &str, ports: &str| noted(pod("a", "1", "10.0.0.1"), json!({key: ports}));
    world.pod(active("llm-d.ai/active-ports", "8002, x, 9000"));
    assert_eq!(world.names(), all[2..]);
    assert!(
        Arc::ptr_eq(&world.serving()[0], &last),
        "nothing of it changed"
    );
    world.pod(active("inference.networking.k8s.io/active-ports", "8000"));
    assert_eq!(world.names(), all[..1]);
    world.pod(active("llm-d.ai/active-ports", ""));
    assert_eq!(world.names(), [] as [&str; 0]);
}

#[test]
fn ipv6_addresses_are_written_as_such() {
    let mut world = World::of_pool(settings(), &[8000]);
    world.pod(pod("a", "1", "fd00::7"));
    assert_eq!(world.names(), ["a [fd00::7]:8000"]);
    let events = world.serving()[0].events.clone().expect("events");
    assert_eq!(
        events.publisher,
        Publisher::At("tcp://[fd00::7]:5557".into())
    );
}

#[test]
fn a_pods_annotations_win_over_the_configuration() {
    let settings = Kubernetes {
        replay_port: Some(5657),
        ..settings()
    };
    let mut world = World::of_pool(settings, &[8000]);
    let annotated = |annotations: Value| noted(pod("a", "1", "10.0.0.1"), annotations);
    let mut events = |annotations| {
        world.pod(annotated(annotations));
        let events = world.serving()[0].events.clone();
        events.map(|events| (events.publisher, events.replay))
    };
    let at = |port: u16| format!("tcp://10.0.0.1:{port}");
    let default = Some((Publisher::At(at(5557)), Some(at(5657))));
    let ports = json!({"kvscout.io/events": "6000", "kvscout.io/replay-port": "6100"});
    assert_eq!(events(json!({})), default);
    assert_eq!(
        events(ports),
        Some((Publisher::At(at(6000)), Some(at(6100))))
    );
    let discover = json!({"kvscout.io/events": "discover"});
    assert_eq!(events(discover), Some((Publisher::Discovered, None)));
    assert_eq!(events(json!({"kvscout.io/events": "off"})), None);
    let wrong = json!({"kvscout.io/events": "70000", "kvscout.io/replay-port": "0"});
    assert_eq!(events(wrong), default, "what is not understood is not used");
}

#[test]
fn a_pod_reads_as_the_entry_that_it_names_and_is_told_of_once_where_there_is_none() {
    let mut config = Config::default();
    for names in [&["llama", "meta/llama"][..], &["llama-2"]] {
        config.models.push(Model {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            adapters: vec![format!("sql-of-{}", names[0])],
            source: Source::Folder("unread".into()),
            engine: Engine::Fast,
            render: RenderSettings::default(),
        });
    }
    let mut world = World(Cluster::new(settings(), &config));
    world.apply(GROUP, "InferencePool", pool("a", "kvscout", &[8000, 8001]));
    let mut reads = |model: Option<&str>| {
        let mut annotations = json!({});
        if let Some(model) = model {
            annotations["kvscout.io/model"] = json!(model);
        }
        world.pod(noted(pod("a", "1", "10.0.0.1"), annotations));
        let first_new = world.0.roster.next_id();
        let fleet = world.0.fleet();
        let told = world.0.misnamed(&fleet, first_new);
        let told: Vec<String> = told.iter().map(|told| format!("{told:?}")).collect();
        let first = &fleet.endpoints[0];
        (first.id.0, first.reads_as, told.concat())
    };
    let quiet = String::new;
    assert_eq!(reads(None), (0, ReadsAs::Named, quiet()));
    let second = (2, ReadsAs::Entry(1), quiet());
    assert_eq!(reads(Some(" llama-2 ")), second);
    assert_eq!(reads(Some("llama-2")), second, "the same endpoints");
    assert_eq!(reads(Some("meta/llama")), (4, ReadsAs::Entry(0), quiet()));
    // Neither a folder nor an adapter is one.
    let told = |said: &str| format!("(\"a\", \"{said}\")");
    let wrong = |id, said| (id, ReadsAs::Unknown, said);
    assert_eq!(reads(Some("/etc")), wrong(6, told("/etc")));
    assert_eq!(reads(Some("/etc")), wrong(6, quiet()));
    assert_eq!(reads(None), (8, ReadsAs::Named, quiet()));
    assert_eq!(reads(Some("sql-of-llama")), wrong(10, told("sql-of-llama")));
}

#[test]
fn a_pod_of_several_ranks_is_as_many_endpoints() {
    let mut world = World::of_pool(settings(), &[8000, 8001]);
    let two = json!({"kvscout.io/data-parallel-size": "2"});
    world.pod(noted(pod("a", "1", "10.0.0.1"), two));
    let told = |endpoint: &Arc<Endpoint>| match endpoint.events.clone().map(|e| e.publisher) {
        Some(Publisher::At(at)) => format!("{} {at}", endpoint.name),
        other => panic!("{other:?}"),
    };
    let all: Vec<_> = world.serving().iter().map(told).collect();
    let wanted = [
        "a:8000/0 tcp://10.0.0.1:5557",
        "a:8000/1 tcp://10.0.0.1:5558",
        "a:8001/0 tcp://10.0.0.1:5559",
        "a:8001/1 tcp://10.0.0.1:5560",
    ];
    assert_eq!(all, wanted);
}

#[test]
fn where_publishers_connect_to_us_pods_need_no_port() {
    let mut config = Config::default();
    config.events.bind = Some("0.0.0.0:5557".parse().expect("an address"));
    let settings = Kubernetes {
        events: PodEvents::Off,
        ..settings()
    };
    let mut world = World(Cluster::new(settings, &config));
    world.apply(GROUP, "InferencePool", pool("llama", "kvscout", &[8000]));
    world.pod(pod("a", "1", "10.0.0.1"));
    let events = world.serving()[0].events.clone().expect("events");
    assert_eq!(events.publisher, Publisher::Connects);
}

/// As v1alpha2 has it.
fn old_pool(name: &str, service: &str, annotations: Value) -> Value {
    json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"selector": {"app": "vllm"}, "targetPortNumber": 8000,
                 "extensionRef": {"name": service, "group": "", "kind": "Service"}},
    })
}

#[test]
fn pools_are_served_that_refer_to_us_or_are_named_whatever_their_api() {
    let settings = Kubernetes {
        pools: vec!["named".into()],
        ..settings()
    };
    let mut world = World(Cluster::new(settings, &Config::default()));
    world.pod(pod("a", "1", "10.0.0.1"));
    world.apply(GROUP, "InferencePool", pool("theirs", "other", &[9000]));
    assert!(world.names().is_empty() && world.0.remark().is_some());
    world.apply(
        X_GROUP,
        "InferencePool",
        old_pool("mine", "kvscout", json!({})),
    );
    assert_eq!((world.names().len(), world.0.remark()), (1, None));
    assert_eq!(world.names(), ["a 10.0.0.1:8000"]);
    // The same pods by both APIs, as while a cluster moves from one to the other.
    let before = world.serving();
    world.apply(GROUP, "InferencePool", pool("mine", "kvscout", &[8000]));
    assert!(Arc::ptr_eq(&world.serving()[0], &before[0]));
    // Another port of them.
    world.apply(GROUP, "InferencePool", pool("named", "other", &[8080]));
    assert_eq!(
        world.names(),
        ["a:8000 10.0.0.1:8000", "a:8080 10.0.0.1:8080"]
    );
}

#[test]
fn what_cannot_be_read_stays_as_it_was() {
    let mut world = World::of_pool(settings(), &[8000]);
    world.pod(pod("a", "1", "10.0.0.1"));
    let broken = with(
        pool("llama", "kvscout", &[8000]),
        "/spec/targetPorts",
        "many",
    );
    world.apply(GROUP, "InferencePool", broken.clone());
    assert_eq!(world.names(), ["a 10.0.0.1:8000"]);
    let broken = serde_json::from_value(broken).expect("an object");
    world
        .0
        .apply(Change::Listed(kind(GROUP, "InferencePool"), vec![broken]));
    assert_eq!(world.names(), ["a 10.0.0.1:8000"]);
    world
        .0
        .apply(Change::Listed(kind(GROUP, "InferencePool"), vec![]));
    assert_eq!(world.names(), [] as [&str; 0]);
}

#[test]
fn an_empty_selector_selects_nothing() {
    let mut world = World(Cluster::new(settings(), &Config::default()));
    world.pod(pod("a", "1", "10.0.0.1"));
    let all = with(
        old_pool("mine", "kvscout", json!({})),
        "/spec/selector",
        json!({}),
    );
    world.apply(X_GROUP, "InferencePool", all);
    assert!(world.serving().is_empty());
}

#[test]
fn nothing_is_known_before_every_kind_was_heard_of() {
    let mut world = World(Cluster::new(settings(), &Config::default()));
    for kind in 0..WATCHED.len() {
        assert!(!world.0.is_listed());
        world.0.apply(match kind {
            0 => Change::Listed(kind, Vec::new()),
            _ => Change::Unanswered(kind),
        });
    }
    assert!(world.0.is_listed());
}

#[test]
fn a_pools_annotation_is_the_strategy_of_its_own_requests() {
    let mut world = World(Cluster::new(settings(), &Config::default()));
    let key = "inference.networking.x-k8s.io/routing-strategy";
    // Of pool a, of pool b, and of a request whose pool nobody knows.
    let mut says = |name: &str, strategy: Value| {
        world.apply(
            X_GROUP,
            "InferencePool",
            old_pool(name, "kvscout", strategy),
        );
        let routes = world.0.routes();
        let of = |pool: &str| routes.rules(Some(&pool.into())).strategy();
        (of("a"), of("b"), routes.rules(None).strategy())
    };
    let (cache, load) = (Some(Strategy::PrefixCache), Some(Strategy::Default));
    assert_eq!(says("a", json!({})), (None, None, None));
    assert_eq!(says("a", json!({key: "DEFAULT"})), (load, load, load));
    assert_eq!(says("b", json!({})), (load, None, load));
    let cached = json!({key: "PREFIX_CACHE"});
    assert_eq!(says("b", cached), (load, cache, None), "they disagree");
    assert_eq!(says("b", json!({key: "typo"})), (load, None, load));
}

#[test]
fn an_endpoint_is_of_the_pools_that_select_its_pod_and_have_its_port() {
    let mut world = World::of_pool(settings(), &[8000]);
    let chosen = |name, label: &str, ports: &[u16]| {
        let selector = json!({"matchLabels": {"app": label}});
        with(pool(name, "kvscout", ports), "/spec/selector", selector)
    };
    world.apply(GROUP, "InferencePool", chosen("qwen", "qwen", &[8000]));
    world.apply(
        GROUP,
        "InferencePool",
        chosen("more", "vllm", &[8000, 8001]),
    );
    world.apply(GROUP, "InferencePool", chosen("empty", "nobody", &[8000]));
    world.pod(pod("a", "1", "10.0.0.1"));
    let labelled = |pod, label: &str| with(pod, "/metadata/labels", json!({"app": label}));
    world.pod(labelled(pod("b", "2", "10.0.0.2"), "qwen"));
    world.pod(unready(labelled(pod("c", "3", "10.0.0.3"), "qwen")));
    let fleet = world.0.fleet();
    let of = |name: &str| {
        let pool = fleet.pool(name).expect("served");
        let names = pool.fleet.heard().map(|endpoint| endpoint.name.clone());
        names.collect::<Vec<_>>()
    };
    assert_eq!(of("llama"), ["a:8000"]);
    assert_eq!(of("more"), ["a:8000", "a:8001"]);
    assert_eq!(of("qwen"), ["b", "c"]);
    assert_eq!(of("empty"), [] as [&str; 0]);
    // Who loses an address to another pod takes it out of its own pool.
    world.pod(labelled(pod("late", "4", "10.0.0.1"), "qwen"));
    let late = with(
        labelled(pod("late", "4", "10.0.0.1"), "qwen"),
        "/metadata/creationTimestamp",
        "2026-01-02T00:00:00Z",
    );
    world.pod(late);
    let fleet = world.0.fleet();
    let llama = fleet.pool("llama").expect("served");
    assert!(llama.fleet.endpoints.is_empty());
}

#[test]
fn pools_that_are_asked_for_at_one_service_are_remarked() {
    let mut world = World::of_pool(settings(), &[8000]);
    world.apply(GROUP, "InferencePool", pool("qwen", "other", &[8000]));
    assert_eq!(world.0.remark(), None, "it is not served");
    world.apply(GROUP, "InferencePool", pool("qwen", "kvscout", &[8000]));
    let remark = world.0.remark().expect("they share it");
    assert!(remark.contains("a Service of its own"), "{remark}");
}

#[test]
fn what_is_said_of_a_pool_counts_for_it_alone() {
    let mut world = World::of_pool(settings(), &[8000]);
    world.apply(GROUP, "InferencePool", pool("qwen", "kvscout", &[8000]));
    let mine = model("mine", OLD, "Critical", json!([{"name": "chat-v1"}]));
    world.apply(X_GROUP, "InferenceModel", mine);
    let theirs = model("theirs", NEW, "Sheddable", json!([{"name": "chat-q"}]));
    let theirs = with(theirs, "/spec/poolRef", json!({"name": "qwen"}));
    world.apply(X_GROUP, "InferenceModel", theirs);
    let routes = world.0.routes();
    let said = |pool: Option<&str>| {
        let rules = routes.rules(pool.map(Arc::from).as_ref());
        let class = rules.class(Some("chat"), None).expect("known");
        let target = rules.target("chat", 1).map(ToString::to_string);
        (class.criticality, target)
    };
    assert_eq!(
        said(Some("llama")),
        (Criticality::Critical, Some("chat-v1".into()))
    );
    assert_eq!(
        said(Some("qwen")),
        (Criticality::Sheddable, Some("chat-q".into()))
    );
    assert_eq!(said(None).0, Criticality::Critical, "the older one");
}

fn model(name: &str, created: &str, criticality: &str, targets: Value) -> Value {
    json!({
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"modelName": "chat", "criticality": criticality, "targetModels": targets,
                 "poolRef": {"name": "llama", "group": X_GROUP}},
    })
}

fn rewrite(name: &str, created: &str, rules: Value) -> Value {
    json!({
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"poolRef": {"name": "llama"}, "rules": rules},
    })
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-01-02T00:00:00Z";

fn target(world: &World, name: &str) -> Option<String> {
    world
        .0
        .routes()
        .rules(None)
        .target(name, 1)
        .map(|target| target.to_string())
}

#[test]
fn the_older_of_two_models_wins_and_other_pools_models_do_not_count() {
    let mut world = World::of_pool(settings(), &[8000]);
    let class = |world: &World| world.0.routes().rules(None).class(Some("chat"), None);
    let of = |criticality| {
        Ok(Class {
            criticality,
            priority: 0,
        })
    };
    world.apply(
        X_GROUP,
        "InferenceModel",
        model("a", NEW, "Sheddable", json!([{"name": "v2"}])),
    );
    assert_eq!(class(&world), of(Criticality::Sheddable));
    world.apply(
        X_GROUP,
        "InferenceModel",
        model("b", OLD, "Critical", json!([{"name": "v1"}])),
    );
    assert_eq!(class(&world), of(Criticality::Critical));
    assert_eq!(target(&world, "chat"), Some("v1".into()));
    let elsewhere = model("c", "2025-01-01T00:00:00Z", "Sheddable", json!([]));
    let elsewhere = with(elsewhere, "/spec/poolRef", json!({"name": "other"}));
    world.apply(X_GROUP, "InferenceModel", elsewhere);
    assert_eq!(class(&world), of(Criticality::Critical));
}

#[test]
fn a_rewrite_by_name_wins_over_one_for_all_and_over_the_models_targets() {
    let mut world = World::of_pool(settings(), &[8000]);
    world.apply(
        X_GROUP,
        "InferenceModel",
        model("a", OLD, "Critical", json!([{"name": "v1"}])),
    );
    let all = json!([{"targets": [{"modelRewrite": "base"}]}]);
    world.apply(
        LLM_D_GROUP,
        "InferenceModelRewrite",
        rewrite("all", OLD, all),
    );
    assert_eq!(target(&world, "chat"), Some("v1".into()));
    assert_eq!(target(&world, "other"), Some("base".into()));
    let matches = |name| json!([{"model": {"type": "Exact", "value": name}}]);
    // As 1.2 of the extension spelled it.
    let named = json!([{"matches": matches("chat"), "split": [{"modelRewrite": "v3", "weight": 9}]},
                       {"matches": matches("plain")}]);
    world.apply(
        X_GROUP,
        "InferenceModelRewrite",
        rewrite("named", NEW, named),
    );
    assert_eq!(target(&world, "chat"), Some("v3".into()));
    assert_eq!(
        target(&world, "plain"),
        Some("plain".into()),
        "kept from the rule for all"
    );
    let older = json!([{"matches": matches("chat"), "targets": [{"modelRewrite": "v4"}]}]);
    world.apply(
        X_GROUP,
        "InferenceModelRewrite",
        rewrite("older", OLD, older),
    );
    assert_eq!(target(&world, "chat"), Some("v4".into()));
    let class = world
        .0
        .routes()
        .rules(None)
        .class(Some("chat"), None)
        .expect("no objective");
    assert_eq!(class.criticality, Criticality::Critical);
}

#[test]
fn the_configurations_rules_come_before_the_clusters() {
    let own = InferenceModel {
        name: "chat".into(),
        criticality: Criticality::Standard,
        priority: 0,
        targets: vec![],
    };
    let config = Config {
        inference_models: vec![own],
        ..Config::default()
    };
    let mut world = World(Cluster::new(settings(), &config));
    world.apply(GROUP, "InferencePool", pool("llama", "kvscout", &[8000]));
    world.apply(
        X_GROUP,
        "InferenceModel",
        model("a", OLD, "Critical", json!([{"name": "v1"}])),
    );
    assert_eq!(target(&world, "chat"), None);
}

#[test]
fn objectives_go_by_their_names_and_llm_ds_first() {
    let mut world = World::of_pool(settings(), &[8000]);
    let objective = |priority: Value| {
        let spec = json!({"poolRef": {"name": "llama"}, "priority": priority});
        json!({"metadata": {"name": "paid"}, "spec": spec})
    };
    let priority = |world: &World| {
        let class = world.0.routes().rules(None).class(None, Some("paid"));
        class.map(|class| class.priority)
    };
    assert_eq!(priority(&world), Err(Class::default()));
    world.apply(X_GROUP, "InferenceObjective", objective(json!(-3)));
    assert_eq!(priority(&world), Ok(-3));
    world.apply(LLM_D_GROUP, "InferenceObjective", objective(Value::Null));
    assert_eq!(priority(&world), Ok(0));
}
