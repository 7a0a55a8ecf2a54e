//! kvscout in a cluster: the fleet of its pools' pods, and their rules, whatever its API server does.
//!
//! What a cluster can be made to do is done through its API, so the same tests run in a real one:
//! `make test-kube`, with KUBECONFIG naming one where namespaces and resource definitions may be made.
//! Where the API server itself goes wrong it is a fake one (`harness/kube.rs`).

mod harness;

use std::path::Path;

use harness::exchange::{Exchange, body, channel, channel_at, headers};
use harness::kube::FakeApi;
use harness::running::Running;
use harness::{http, soon};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::Kubeconfig;
use kube::{Client, ResourceExt};
use kvscout::app;
use kvscout::config::{
    Config, Engine, FleetSource, Kubernetes, LeaderElection, Model, Pages, PodEvents,
    RenderSettings, Source, Tls, yaml,
};
use kvscout::kubernetes::resources::{CRDS, GROUP, LLM_D_GROUP, Resource, WATCHED, X_GROUP};
use serde_json::{Value, json};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Names the kubeconfig of a real cluster to run in.
const REAL: &str = "KVSCOUT_TEST_KUBECONFIG";

/// A cluster with a namespace of the test's own.
struct Cluster {
    client: Client,
    namespace: String,
    kubeconfig: std::path::PathBuf,
    folder: tempfile::TempDir,
    /// Where it is one.
    fake: Option<FakeApi>,
}

impl Cluster {
    /// A real one, where there is one.
    async fn any() -> Self {
        let Some(real) = std::env::var_os(REAL) else {
            return Self::fake().await;
        };
        let folder = tempfile::tempdir().expect("a folder");
        let namespace = format!("kvscout-test-{}", uuid(folder.path()));
        // As a pod's account, it says in which namespace it is: leases are there.
        let mut file = Kubeconfig::read_from(real).expect("a kubeconfig");
        let contexts = file
            .contexts
            .iter_mut()
            .filter_map(|one| one.context.as_mut());
        contexts.for_each(|context| context.namespace = Some(namespace.clone()));
        let kubeconfig = folder.path().join("kubeconfig");
        let text = serde_json::to_string(&file).expect("JSON");
        std::fs::write(&kubeconfig, text).expect("written");
        let cluster = Self {
            client: client(&kubeconfig).await,
            namespace,
            kubeconfig,
            folder,
            fake: None,
        };
        let name = json!({"metadata": {"name": cluster.namespace}});
        let namespaces = cluster.all("", "v1", "Namespace", "namespaces");
        created(&namespaces, name).await;
        cluster
    }

    async fn fake() -> Self {
        let fake = FakeApi::start().await;
        let folder = tempfile::tempdir().expect("a folder");
        let kubeconfig = folder.path().join("kubeconfig");
        let namespace = "llm".to_owned();
        std::fs::write(&kubeconfig, fake.kubeconfig(&namespace)).expect("written");
        Self {
            client: client(&kubeconfig).await,
            namespace,
            kubeconfig,
            folder,
            fake: Some(fake),
        }
    }

    fn faked(&self) -> &FakeApi {
        self.fake.as_ref().expect("it is one")
    }

    fn all(&self, group: &str, version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &api_of(group, version, kind, plural))
    }

    fn of(&self, group: &str, kind: &str) -> Api<DynamicObject> {
        let resource = watched(group, kind);
        let api = api_of(
            resource.group,
            resource.version,
            resource.kind,
            resource.plural,
        );
        Api::namespaced_with(self.client.clone(), &self.namespace, &api)
    }

    /// What `kvscout crds` prints.
    async fn install(&self) {
        let group = "apiextensions.k8s.io";
        let crds = self.all(
            group,
            "v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
        );
        for crd in CRDS {
            created(&crds, parse(crd)).await;
        }
        // A real cluster takes a moment to serve a kind that it was just told of.
        for resource in &WATCHED {
            let api = self.of(resource.group, resource.kind);
            soon("it is served", async {
                while api.list(&Default::default()).await.is_err() {
                    tokio::time::sleep(harness::PATIENCE / 1000).await;
                }
            })
            .await;
        }
    }

    async fn create(&self, group: &str, kind: &str, mut object: Value) {
        let resource = watched(group, kind);
        object["apiVersion"] = json!(resource.api().api_version);
        object["kind"] = json!(kind);
        created(&self.of(group, kind), object).await;
    }

    async fn patch(&self, group: &str, kind: &str, name: &str, patch: Value) {
        let (plain, patch) = (PatchParams::default(), Patch::Merge(patch));
        let patched = self.of(group, kind).patch(name, &plain, &patch).await;
        patched.expect("patched");
    }

    /// A pod that no node takes, so that its status is what we say.
    async fn pod(&self, name: &str, ip: &str) {
        self.pod_of(name, ip, json!({"labels": {"app": "vllm"}}))
            .await;
    }

    /// With these labels and annotations.
    async fn pod_of(&self, name: &str, ip: &str, mut metadata: Value) {
        metadata["name"] = json!(name);
        let pod = json!({
            "metadata": metadata,
            "spec": {"schedulerName": "nobody", "containers": [{"name": "vllm", "image": "none"}]},
        });
        self.create("", "Pod", pod).await;
        self.status(name, ip, true).await;
    }

    async fn status(&self, name: &str, ip: &str, ready: bool) {
        let ready = if ready { "True" } else { "False" };
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": ready}],
        }});
        let (plain, status) = (PatchParams::default(), Patch::Merge(status));
        let pods = self.of("", "Pod");
        let patched = pods.patch_status(name, &plain, &status).await;
        patched.expect("patched");
    }

    async fn delete(&self, group: &str, kind: &str, name: &str) {
        let now = DeleteParams::default().grace_period(0);
        self.of(group, kind)
            .delete(name, &now)
            .await
            .expect("deleted");
    }

    async fn pool(&self, ports: &[u16]) {
        self.pool_of("llama", ("vllm", "kvscout"), ports).await;
    }

    /// Of pods with this label, asked for at this Service.
    async fn pool_of(&self, name: &str, (app, service): (&str, &str), ports: &[u16]) {
        let ports: Vec<_> = ports.iter().map(|port| json!({"number": port})).collect();
        let pool = json!({
            "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": {"app": app}}, "targetPorts": ports,
                     "endpointPickerRef": {"name": service, "port": {"number": 9002}}},
        });
        self.create(GROUP, "InferencePool", pool).await;
    }

    /// Leaves a real cluster as it was, but for the definitions.
    async fn clean_up(self) {
        if self.fake.is_none() {
            let namespaces = self.all("", "v1", "Namespace", "namespaces");
            let plain = DeleteParams::default();
            let deleted = namespaces.delete(&self.namespace, &plain).await;
            deleted.expect("deleted");
        }
        drop(self.folder);
    }

    fn settings(&self) -> Kubernetes {
        Kubernetes {
            service: Some("kvscout".into()),
            namespace: Some(self.namespace.clone()),
            kubeconfig: Some(self.kubeconfig.clone()),
            events: PodEvents::Off,
            absent_retry_ms: 100,
            ..Kubernetes::default()
        }
    }
}

fn watched(group: &str, kind: &str) -> &'static Resource {
    let is = |one: &&Resource| (one.group, one.kind) == (group, kind);
    WATCHED.iter().find(is).expect("it is watched")
}

fn uuid(folder: &Path) -> String {
    let name = folder.file_name().expect("a name").to_string_lossy();
    let plain = name.chars().filter(char::is_ascii_alphanumeric);
    plain.collect::<String>().to_lowercase()
}

async fn client(kubeconfig: &Path) -> Client {
    let file = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let access = kube::Config::from_custom_kubeconfig(file, &Default::default()).await;
    Client::try_from(access.expect("a cluster")).expect("a client")
}

fn api_of(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    let api_version = match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    };
    ApiResource {
        group: group.into(),
        version: version.into(),
        api_version,
        kind: kind.into(),
        plural: plural.into(),
    }
}

/// Makes it, or finds it there: definitions are everybody's.
async fn created(api: &Api<DynamicObject>, object: Value) {
    let object: DynamicObject = serde_json::from_value(object).expect("an object");
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
        Err(error) => panic!("{}: {error}", object.name_any()),
    }
}

/// A YAML document as JSON.
fn parse(text: &str) -> Value {
    let read = |root: &mut yaml::Section<'_>| {
        let keys = [
            "apiVersion",
            "kind",
            "metadata",
            "rules",
            "spec",
            "roleRef",
            "subjects",
        ];
        let given = keys.map(|key| (key, root.json(key)));
        let given = given
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?)));
        Value::Object(given.collect())
    };
    yaml::read(Path::new("document"), text, read).expect("YAML")
}

/// A picker of the cluster.
struct World(Running);

impl std::ops::Deref for World {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.0
    }
}

impl World {
    async fn start(settings: Kubernetes) -> Self {
        Self::reading(Vec::new(), settings).await
    }

    /// That reads prompts of these models.
    async fn reading(models: Vec<Model>, settings: Kubernetes) -> Self {
        let mut config = Config {
            fleet: FleetSource::Kubernetes(settings),
            tls: Tls::Off,
            models,
            ..Config::default()
        };
        config.load.scrape_interval_ms = 0;
        config.decisions.pages = Pages::Any;
        Self(Running::start(config).await)
    }

    /// The endpoints are these: `name address`.
    async fn serves(&self, wanted: &[&str]) {
        let what = format!("{wanted:?}");
        self.until("/endpoints", &what, |_, text| names(text) == wanted)
            .await;
    }

    /// Asks for an endpoint for a request to this model; it gets one.
    async fn ask(&self, model: &str) {
        let request = json!({"model": model, "prompt": "hello"});
        self.ask_at("kvscout", &request).await;
    }

    /// The same at a Service's name; says what was decided.
    async fn ask_at(&self, service: &str, request: &Value) -> Value {
        let mut exchange = Exchange::open(channel_at(self.bound.ext_proc, service).await).await;
        exchange.say(headers("/v1/completions", false)).await;
        exchange.say(body(request.to_string(), true)).await;
        exchange.hear().await;
        let decisions = self.get("/decisions?limit=1").await.1;
        let decisions: Value = serde_json::from_str(&decisions).expect("JSON");
        decisions["decisions"][0].clone()
    }

    async fn shut_down(self) {
        self.0.shut_down().await;
    }
}

fn names(endpoints: &str) -> Vec<String> {
    let endpoints: Value = serde_json::from_str(endpoints).expect("JSON");
    let name = |one: &Value| format!("{} {}", text(&one["name"]), text(&one["address"]));
    let mut names: Vec<_> = endpoints
        .as_array()
        .expect("a list")
        .iter()
        .map(name)
        .collect();
    names.sort();
    names
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

#[tokio::test]
async fn pods_are_endpoints_while_they_are_ready() {
    let cluster = Cluster::any().await;
    cluster.install().await;
    cluster.pool(&[8000]).await;
    cluster.pod("a", "10.1.0.1").await;
    cluster.pod("b", "10.1.0.2").await;
    let world = World::start(cluster.settings()).await;
    world.ready().await;
    world.serves(&["a 10.1.0.1:8000", "b 10.1.0.2:8000"]).await;
    cluster.status("a", "10.1.0.1", false).await;
    world.serves(&["b 10.1.0.2:8000"]).await;
    cluster.status("a", "10.1.0.1", true).await;
    cluster.pod("c", "fd00::3").await;
    world
        .serves(&["a 10.1.0.1:8000", "b 10.1.0.2:8000", "c [fd00::3]:8000"])
        .await;
    // One that ends, and is held for a while as by its running requests.
    let held = json!({"metadata": {"finalizers": ["kvscout.io/test"]}});
    cluster.patch("", "Pod", "b", held).await;
    cluster.delete("", "Pod", "b").await;
    world.serves(&["a 10.1.0.1:8000", "c [fd00::3]:8000"]).await;
    cluster
        .patch("", "Pod", "b", json!({"metadata": {"finalizers": null}}))
        .await;
    // Another port of all.
    let ports = json!({"spec": {"targetPorts": [{"number": 8000}, {"number": 8001}]}});
    cluster.patch(GROUP, "InferencePool", "llama", ports).await;
    let both = [
        "a:8000 10.1.0.1:8000",
        "a:8001 10.1.0.1:8001",
        "c:8000 [fd00::3]:8000",
        "c:8001 [fd00::3]:8001",
    ];
    world.serves(&both).await;
    let active = json!({"metadata": {"annotations": {"llm-d.ai/active-ports": "8001"}}});
    cluster.patch("", "Pod", "a", active).await;
    world.serves(&both[1..]).await;
    world.shut_down().await;
    cluster.clean_up().await;
}

#[tokio::test]
async fn a_fleet_scales_to_zero_and_back() {
    let cluster = Cluster::any().await;
    cluster.install().await;
    let world = World::start(cluster.settings()).await;
    world.ready().await;
    let unserved = |_, text: &str| text.contains("pools: no InferencePool");
    world.until("/readyz", "no pool", unserved).await;
    cluster.pool(&[8000]).await;
    world
        .until("/readyz", "a pool", |_, text| text == "ready\n")
        .await;
    for ip in ["10.1.0.1", "10.1.0.2"] {
        cluster.pod("a", ip).await;
        world.serves(&[&format!("a {ip}:8000")]).await;
        cluster.delete("", "Pod", "a").await;
        world.serves(&[]).await;
    }
    world.shut_down().await;
    cluster.clean_up().await;
}

/// What is held of the only endpoint.
async fn blocks(world: &World) -> (Value, Value) {
    let endpoints: Value = serde_json::from_str(&world.get("/endpoints").await.1).expect("JSON");
    (
        endpoints[0]["blocks"].clone(),
        endpoints[0]["trust"].clone(),
    )
}

#[tokio::test]
async fn another_pod_with_a_reused_ip_inherits_no_picture() {
    let cluster = Cluster::any().await;
    cluster.install().await;
    let server = harness::sim::pod(1_000, 0, None).await.expect("a server");
    let (serves, events) = (server.addresses.http, server.addresses.events.as_ref());
    let publisher = &events.expect("events are on").endpoint;
    let port = publisher.rsplit(':').next().expect("a port");
    let settings = Kubernetes {
        events: port.parse().expect("a port"),
        ..cluster.settings()
    };
    cluster.pool(&[serves.port()]).await;
    cluster.pod("a", "127.0.0.1").await;
    let world = World::start(settings).await;
    world.serves(&[&format!("a {serves}")]).await;
    soon("a block is heard of", async {
        // Whatever is published before we are heard is lost, without a replay socket.
        for first in 1.. {
            let prompt: Vec<u32> = (first..first + 32).collect();
            let request = json!({"model": "sim", "prompt": prompt, "max_tokens": 1}).to_string();
            let request = http::post("/v1/completions").body(http::full(request));
            http::send(serves, request.expect("a request")).await;
            if blocks(&world).await.0 != json!(0) {
                return;
            }
        }
    })
    .await;
    // Not ready for a moment: it is the same process, and its picture stays.
    let before = blocks(&world).await;
    cluster.status("a", "127.0.0.1", false).await;
    world.serves(&[]).await;
    cluster.status("a", "127.0.0.1", true).await;
    world.serves(&[&format!("a {serves}")]).await;
    let after = blocks(&world).await;
    assert!(
        after.0.as_u64() >= before.0.as_u64() && after.1 == before.1,
        "{before:?} {after:?}"
    );
    cluster.delete("", "Pod", "a").await;
    cluster.pod("b", "127.0.0.1").await;
    world.serves(&[&format!("b {serves}")]).await;
    assert_eq!(blocks(&world).await, (json!(0), json!("silent")));
    world.shut_down().await;
    cluster.clean_up().await;
}

#[tokio::test]
async fn rules_and_the_strategy_change_while_it_runs() {
    let cluster = Cluster::any().await;
    cluster.install().await;
    cluster.pool(&[8000]).await;
    cluster.pod("a", "10.1.0.1").await;
    let world = World::start(cluster.settings()).await;
    world.ready().await;
    world.ask("chat").await;
    let placed = |reason: &str, count: u32| {
        format!(
            "kvscout_requests_total{{pool=\"llama\",basis=\"load_only\",reason=\"{reason}\",outcome=\"placed\"}} {count}"
        )
    };
    world.counts(&placed("unknown_model", 1)).await;
    let key = "inference.networking.x-k8s.io/routing-strategy";
    let strategy = |strategy: Value| json!({"metadata": {"annotations": {key: strategy}}});
    cluster
        .patch(GROUP, "InferencePool", "llama", strategy(json!("DEFAULT")))
        .await;
    repeat(&world, "chat", "reason=\"strategy\"").await;
    cluster
        .patch(GROUP, "InferencePool", "llama", strategy(Value::Null))
        .await;
    let targets = |name| {
        json!({"poolRef": {"name": "llama"}, "modelName": "chat",
                                "criticality": "Critical", "targetModels": [{"name": name}]})
    };
    let model = json!({"metadata": {"name": "chat"}, "spec": targets("chat-v1")});
    cluster.create(X_GROUP, "InferenceModel", model).await;
    let served =
        |target: &str| format!("kvscout_model_targets_total{{model=\"chat\",target=\"{target}\"}}");
    repeat(&world, "chat", &served("chat-v1")).await;
    let rule = json!({"matches": [{"model": {"value": "chat"}}], "targets": [{"modelRewrite": "chat-v2"}]});
    let rewrite = json!({"metadata": {"name": "new"}, "spec": {"poolRef": {"name": "llama"}, "rules": [rule]}});
    cluster
        .create(LLM_D_GROUP, "InferenceModelRewrite", rewrite)
        .await;
    repeat(&world, "chat", &served("chat-v2")).await;
    world.shut_down().await;
    cluster.clean_up().await;
}

/// Asks until the metrics have a line that they did not have.
async fn repeat(world: &World, model: &str, part: &str) {
    soon(part, async {
        loop {
            world.ask(model).await;
            if world.get("/metrics").await.1.contains(part) {
                return;
            }
        }
    })
    .await;
}

/// A model whose words are one token each, and one that reads as Qwen3 does.
fn two_models(folder: &Path) -> Vec<Model> {
    let words = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"prefixes": 1, "?": 2}, "unk_token": "?"},
    });
    let small = folder.join("small");
    std::fs::create_dir(&small).expect("a folder");
    std::fs::write(small.join("tokenizer.json"), words.to_string()).expect("written");
    std::fs::write(small.join("tokenizer_config.json"), "{}").expect("written");
    let model = |name: &str, folder| Model {
        names: vec![name.to_owned()],
        adapters: Vec::new(),
        source: Source::Folder(folder),
        engine: Engine::Reference,
        render: RenderSettings::default(),
    };
    vec![model("small", small), model("qwen", harness::tokenizer())]
}

#[tokio::test]
async fn two_pools_of_different_models_are_one_pickers_and_never_mixed() {
    let cluster = Cluster::any().await;
    cluster.install().await;
    let mut servers = Vec::new();
    for name in ["small", "qwen"] {
        let server = harness::sim::pod(1_000, 0, None).await.expect("a server");
        let (serves, events) = (server.addresses.http, server.addresses.events.clone());
        let events = events.expect("events are on").endpoint;
        let port = events.rsplit(':').next().expect("a port");
        let service = format!("kvscout-{name}");
        cluster
            .pool_of(name, (name, &service), &[serves.port()])
            .await;
        let metadata = json!({"labels": {"app": name}, "annotations": {"kvscout.io/events": port}});
        cluster.pod_of(name, "127.0.0.1", metadata).await;
        servers.push((server, serves));
    }
    let settings = Kubernetes {
        pools: vec!["small".into(), "qwen".into()],
        ..cluster.settings()
    };
    let world = World::reading(two_models(cluster.folder.path()), settings).await;
    world.ready().await;
    let at = |n: usize| servers[n].1;
    world
        .serves(&[&format!("qwen {}", at(1)), &format!("small {}", at(0))])
        .await;
    // The same tokens for both, cached by the first alone.
    let prompt = |model: &str| json!({"model": model, "prompt": (0..64).collect::<Vec<u32>>(), "max_tokens": 1});
    soon("a cached prompt is known", async {
        loop {
            let request = http::post("/v1/completions").body(http::full(prompt("sim").to_string()));
            http::send(at(0), request.expect("a request")).await;
            let decided = world.ask_at("kvscout-small", &prompt("small")).await;
            if decided["predicted_cached_tokens"] != json!(0) {
                return;
            }
        }
    })
    .await;
    let other = world.ask_at("kvscout-qwen", &prompt("qwen")).await;
    assert_eq!(other["endpoint"], "qwen", "whoever else has it cached");
    assert_eq!(other["predicted_cached_tokens"], 0);
    // Each model's own words: three, and Qwen3's.
    let text = |model: &str| json!({"model": model, "prompt": "prefixes uncached immediately"});
    let namespace = &cluster.namespace;
    for (name, tokens) in [("small", 3), ("qwen", 5)] {
        let service = format!("kvscout-{name}.{namespace}.svc.cluster.local:9002");
        let decided = world.ask_at(&service, &text(name)).await;
        let said = [&decided["pool"], &decided["model"], &decided["endpoint"]];
        assert_eq!(said, [name; 3], "{decided}");
        assert_eq!(decided["prompt_tokens"], tokens, "{decided}");
    }
    let metrics = world.get("/metrics").await.1;
    for name in ["small", "qwen"] {
        let line = format!("kvscout_requests_total{{pool=\"{name}\",basis=\"overlap\"");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    assert!(!metrics.contains("pool=\"unknown\""), "{metrics}");
    world.shut_down().await;
    cluster.clean_up().await;
}

/// The entries "sim" and "sim-new": one vocabulary, and templates that part at the first word.
fn two_kinds(folder: &Path) -> Vec<Model> {
    let kind = |name: &str, template: &str| {
        let of = folder.join(name);
        std::fs::create_dir(&of).expect("a folder");
        let vocabulary = harness::tokenizer().join("tokenizer.json");
        std::os::unix::fs::symlink(vocabulary, of.join("tokenizer.json")).expect("a link");
        std::fs::write(of.join("tokenizer_config.json"), "{}").expect("written");
        std::fs::write(of.join("chat_template.jinja"), template).expect("written");
        Model {
            names: vec![name.to_owned()],
            adapters: Vec::new(),
            source: Source::Folder(of),
            engine: Engine::Fast,
            render: RenderSettings::default(),
        }
    };
    let (old, new) = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "New: {% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}",
    );
    vec![kind("sim", old), kind("sim-new", new)]
}

/// A pod of the pool, and its server.
struct Kind {
    name: &'static str,
    ip: &'static str,
    server: kvscout_sim::server::Bound,
}

/// A chat that fills many blocks.
fn long_chat() -> String {
    let content = "Prefixes that many share are computed once. ".repeat(20);
    json!({
        "model": "sim", "max_tokens": 1,
        "messages": [{"role": "user", "content": content}],
    })
    .to_string()
}

impl Kind {
    async fn start(name: &'static str, ip: &'static str, folder: &Path, port: u16) -> Self {
        let at = (ip.parse::<std::net::IpAddr>().expect("an ip"), port).into();
        let server = harness::sim::reading(folder, at).await.expect("a server");
        Self { name, ip, server }
    }

    /// That its server's events and replays are where they are.
    fn annotations(&self) -> Value {
        let events = self.server.addresses.events.as_ref().expect("events");
        let port = |at: &str| at.rsplit(':').next().expect("a port").to_owned();
        let replay = events.replay_endpoint.as_ref().expect("replay is on");
        json!({"kvscout.io/events": port(&events.endpoint), "kvscout.io/replay-port": port(replay)})
    }

    /// What it says of a chat that it served: its tokens, and how many of them were cached.
    async fn serve(&self) -> (u64, u64) {
        let request = http::post("/v1/chat/completions").body(http::full(long_chat()));
        let request = request.expect("a request");
        let usage = http::send(self.server.addresses.http, request).await.json()["usage"].clone();
        let cached = &usage["prompt_tokens_details"]["cached_tokens"];
        let number = |value: &Value| value.as_u64().expect("a number");
        (number(&usage["prompt_tokens"]), number(cached))
    }

    /// What is predicted of it, and what its choice would rest on.
    async fn predicted(&self, world: &World) -> ((u64, u64), String) {
        let page = format!("/explain?subset={}", self.ip);
        let request = http::post(&page).body(http::full(long_chat()));
        let request = request.expect("a request");
        let told = http::send(world.bound.admin, request).await.json();
        assert_eq!(told["endpoint"], self.name, "never excluded: {told}");
        let number = |field: &str| told[field].as_u64().expect("a number");
        let numbers = (number("prompt_tokens"), number("predicted_cached_tokens"));
        (
            numbers,
            format!("{} {}", text(&told["basis"]), text(&told["reason"])),
        )
    }

    /// Waits until this is predicted of it.
    async fn until(&self, world: &World, wanted: ((u64, u64), &str)) {
        let what = format!("{}: {wanted:?}", self.name);
        soon(&what, async {
            while self.predicted(world).await != (wanted.0, wanted.1.to_owned()) {
                tokio::time::sleep(harness::PATIENCE / 1000).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn two_kinds_of_pods_of_one_pool_are_each_predicted_exactly_as_their_annotations_say() {
    let cluster = Cluster::any().await;
    cluster.install().await;
    let models = two_kinds(cluster.folder.path());
    let folder = |name: &str| cluster.folder.path().join(name);
    // One port, as a pool has, and an ip each.
    let old = Kind::start("old", "127.0.0.1", &folder("sim"), 0).await;
    let port = old.server.addresses.http.port();
    let new = Kind::start("new", "127.0.0.2", &folder("sim-new"), port).await;
    cluster.pool(&[port]).await;
    let key = "kvscout.io/model";
    for (kind, model) in [(&old, Value::Null), (&new, json!("sim-new"))] {
        let mut annotations = kind.annotations();
        if !model.is_null() {
            annotations[key] = model;
        }
        let metadata = json!({"labels": {"app": "vllm"}, "annotations": annotations});
        cluster.pod_of(kind.name, kind.ip, metadata).await;
    }
    let world = World::reading(models, cluster.settings()).await;
    world.ready().await;
    let both = [
        format!("new 127.0.0.2:{port}"),
        format!("old 127.0.0.1:{port}"),
    ];
    world.serves(&both.each_ref().map(String::as_str)).await;
    let mut exact = Vec::new();
    for kind in [&old, &new] {
        kind.serve().await;
        let (tokens, cached) = kind.serve().await;
        assert!(cached > 100, "most of {tokens} is cached: {cached}");
        exact.push((tokens, cached));
    }
    assert_ne!(exact[0].0, exact[1].0, "they read it in two ways");
    old.until(&world, (exact[0], "overlap ")).await;
    new.until(&world, (exact[1], "overlap ")).await;
    // One choice knows both.
    let request = http::post("/explain").body(http::full(long_chat()));
    let told = http::send(world.bound.admin, request.expect("a request"))
        .await
        .json();
    for (kind, (_, cached)) in [&old, &new].into_iter().zip(&exact) {
        let mut all = told["candidates"].as_array().expect("both").iter();
        let own = all
            .find(|one| one["endpoint"] == kind.name)
            .expect("it could get it");
        assert_eq!(own["cached"]["own"], json!(cached), "{told}");
    }
    let annotate = async |model: &str| {
        let annotated = json!({"metadata": {"annotations": {key: model}}});
        cluster.patch("", "Pod", "new", annotated).await;
    };
    // A wrong one: what it holds is heard anew, and is nobody's prompt under that reading.
    annotate("sim").await;
    new.until(&world, ((exact[0].0, 0), "overlap ")).await;
    let is_heard = |text: &str| {
        let endpoints: Value = serde_json::from_str(text).expect("JSON");
        let mut all = endpoints.as_array().expect("a list").iter();
        let new = all.find(|one| one["name"] == "new").expect("it is there");
        new["model"] == "sim" && new["blocks"].as_u64() > Some(0)
    };
    world
        .until("/endpoints", "its blocks", |_, text| is_heard(text))
        .await;
    assert_eq!(new.predicted(&world).await.0, (exact[0].0, 0));
    // One that there is not: it is told of and chosen by load, and the other is exact.
    annotate("sim-newer").await;
    let guess = long_chat().len() as u64 / 4;
    new.until(&world, ((guess, 0), "load_only unknown_entry"))
        .await;
    world
        .counts("kvscout_endpoint_model_unknown{endpoint=\"new\"} 1")
        .await;
    assert_eq!(old.predicted(&world).await.0, exact[0]);
    annotate("sim-new").await;
    new.until(&world, (exact[1], "overlap ")).await;
    world
        .counts("kvscout_endpoint_model_unknown{endpoint=\"new\"} 0")
        .await;
    world.shut_down().await;
    cluster.clean_up().await;
}

#[tokio::test]
async fn a_kind_that_is_installed_later_is_followed_then() {
    let cluster = Cluster::fake().await;
    cluster.pod("a", "10.1.0.1").await;
    let world = World::start(cluster.settings()).await;
    // Nothing but pods is there, and that is no error.
    world.ready().await;
    let metrics = world.get("/metrics").await.1;
    assert!(
        !metrics.contains("kvscout_kubernetes_errors_total{"),
        "{metrics}"
    );
    cluster.install().await;
    cluster.pool(&[8000]).await;
    world.serves(&["a 10.1.0.1:8000"]).await;
    world.shut_down().await;
}

#[tokio::test]
async fn streams_that_break_lose_no_change() {
    let cluster = Cluster::fake().await;
    cluster.install().await;
    cluster.pool(&[8000]).await;
    cluster.pod("a", "10.1.0.1").await;
    cluster.pod("b", "10.1.0.2").await;
    cluster.pod("c", "10.1.0.3").await;
    let world = World::start(cluster.settings()).await;
    // Three are more than a page.
    world
        .serves(&["a 10.1.0.1:8000", "b 10.1.0.2:8000", "c 10.1.0.3:8000"])
        .await;
    let fake = cluster.faked();
    let lists = fake.asked().1;
    fake.bookmark();
    fake.cut();
    cluster.delete("", "Pod", "a").await;
    world.serves(&["b 10.1.0.2:8000", "c 10.1.0.3:8000"]).await;
    assert_eq!(fake.asked().1, lists, "it goes on from where it was");
    // What it missed is forgotten: it is told so in the stream, or refused.
    for (refuse, pod, left) in [(false, "b", &["c 10.1.0.3:8000"][..]), (true, "c", &[])] {
        let watches = fake.asked().0;
        fake.go_away();
        cluster_settles(&world).await;
        fake.come_back();
        cluster.delete("", "Pod", pod).await;
        fake.forget(refuse);
        world.serves(left).await;
        assert!(fake.asked().0 > watches);
    }
    assert!(fake.asked().1 > lists, "it lists anew");
    world.shut_down().await;
}

/// Every watch has met an error by now.
async fn cluster_settles(world: &World) {
    let before = errors(&world.get("/metrics").await.1);
    let more = |_, text: &str| errors(text) > before;
    world.until("/metrics", "an error", more).await;
}

fn errors(metrics: &str) -> u64 {
    let pods = "kvscout_kubernetes_errors_total{kind=\"pods\"} ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(pods));
    line.map_or(0, |count| count.parse().expect("a number"))
}

#[tokio::test]
async fn an_api_server_that_is_away_stops_nothing() {
    let cluster = Cluster::fake().await;
    cluster.install().await;
    cluster.pool(&[8000]).await;
    cluster.pod("a", "10.1.0.1").await;
    let fake = cluster.faked();
    fake.go_away();
    let world = World::start(cluster.settings()).await;
    let told = |status, text: &str| {
        status == 503 && text.contains("waiting for") && text.contains("pods: cannot be listed")
    };
    world.until("/readyz", "not ready, and why", told).await;
    fake.come_back();
    world.ready().await;
    world.serves(&["a 10.1.0.1:8000"]).await;
    fake.go_away();
    cluster_settles(&world).await;
    assert_eq!(world.get("/readyz").await, (200, "ready\n".to_owned()));
    world.ask("chat").await;
    world.serves(&["a 10.1.0.1:8000"]).await;
    fake.come_back();
    cluster.pod("b", "10.1.0.2").await;
    world.serves(&["a 10.1.0.1:8000", "b 10.1.0.2:8000"]).await;
    world.shut_down().await;
}

#[tokio::test]
async fn a_slow_stream_is_read_as_it_comes() {
    let cluster = Cluster::fake().await;
    cluster.faked().trickle();
    cluster.install().await;
    cluster.pool(&[8000]).await;
    let world = World::start(cluster.settings()).await;
    world.ready().await;
    for number in 1..=20 {
        cluster
            .pod(&format!("pod-{number:02}"), &format!("10.1.0.{number}"))
            .await;
    }
    let all: Vec<_> = (1..=20)
        .map(|n| format!("pod-{n:02} 10.1.0.{n}:8000"))
        .collect();
    world
        .serves(&all.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    world.shut_down().await;
}

#[tokio::test]
async fn rules_that_may_not_be_read_keep_no_pod_away() {
    let cluster = Cluster::fake().await;
    cluster.install().await;
    cluster.pool(&[8000]).await;
    cluster.pod("a", "10.1.0.1").await;
    cluster.faked().forbid(Some("inferencemodels"));
    let world = World::start(cluster.settings()).await;
    world.serves(&["a 10.1.0.1:8000"]).await;
    let told = |status, text: &str| status == 200 && text.contains("deploy/manifests/rbac.yaml");
    world
        .until("/readyz", "ready, and what is missing", told)
        .await;
    cluster.faked().forbid(None);
    world
        .until("/readyz", "all is well", |_, text| text == "ready\n")
        .await;
    world.shut_down().await;
}

/// As every cluster is but in tests: the client's TLS is put together, and says what is wrong.
#[tokio::test]
async fn a_server_that_is_no_tls_one_is_told_of() {
    let cluster = Cluster::fake().await;
    let plain = std::fs::read_to_string(&cluster.kubeconfig).expect("a kubeconfig");
    std::fs::write(&cluster.kubeconfig, plain.replace("http://", "https://")).expect("written");
    let world = World::start(cluster.settings()).await;
    let told = |status, text: &str| status == 503 && text.contains("pods: cannot be listed: ");
    world.until("/readyz", "not ready, and why", told).await;
    let said = world.get("/readyz").await.1;
    assert!(said.contains("InvalidContentType"), "{said}");
    world.shut_down().await;
}

#[tokio::test]
async fn a_cluster_that_cannot_be_reached_at_all_is_said_before_anything_listens() {
    let config = |kubeconfig: &Path| Config {
        fleet: FleetSource::Kubernetes(Kubernetes {
            service: Some("kvscout".into()),
            kubeconfig: Some(kubeconfig.to_owned()),
            ..Kubernetes::default()
        }),
        ..Config::default()
    };
    let missing = app::build(config(Path::new("/nonexistent"))).await;
    let Err(error) = missing else {
        panic!("nothing is there");
    };
    let said = error.to_string();
    assert!(
        said.starts_with("fleet.kubernetes.kubeconfig: /nonexistent: "),
        "{said}"
    );
}

impl Cluster {
    /// Settings of one of several replicas, of which one leads.
    fn led(&self, lease_duration_ms: u64) -> Kubernetes {
        let election = LeaderElection {
            lease_duration_ms,
            renew_deadline_ms: lease_duration_ms * 6 / 10,
            retry_period_ms: 100,
            ..LeaderElection::by("kvscout".into())
        };
        Kubernetes {
            leader_election: Some(election),
            ..self.settings()
        }
    }

    async fn lease(&self) -> Lease {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        leases.get("kvscout").await.expect("it is held")
    }
}

/// One of two is ready, and it is said of the other why it is not.
async fn leader_and_follower(one: World, other: World) -> (World, World) {
    let leads = async |world: &World| world.get("/readyz").await.0 == 200;
    let (first, second) = soon("one leads", async {
        loop {
            match (leads(&one).await, leads(&other).await) {
                (true, true) => panic!("both lead"),
                (true, false) => return (one, other),
                (false, true) => return (other, one),
                (false, false) => tokio::time::sleep(harness::PATIENCE / 1000).await,
            }
        }
    })
    .await;
    let follows = |status, text: &str| status == 503 && text.contains("leadership");
    second.until("/readyz", "the other follows", follows).await;
    (first, second)
}

#[tokio::test]
async fn one_of_two_replicas_leads_and_the_other_is_as_warm() {
    let cluster = Cluster::any().await;
    cluster.install().await;
    cluster.pool(&[8000]).await;
    cluster.pod("a", "10.1.0.1").await;
    let replicas = (
        World::start(cluster.led(60_000)).await,
        World::start(cluster.led(60_000)).await,
    );
    let (leader, follower) = leader_and_follower(replicas.0, replicas.1).await;
    follower.serves(&["a 10.1.0.1:8000"]).await;
    let health = HealthClient::new(channel(follower.bound.health).await);
    let status = async |service: &str| {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = soon("a check", health.clone().check(request)).await;
        answer.expect("a known name").into_inner().status()
    };
    let ext_proc = "envoy.service.ext_proc.v3.ExternalProcessor";
    assert_eq!(status(ext_proc).await, ServingStatus::NotServing);
    assert_eq!(status("liveness").await, ServingStatus::Serving);
    // Asked all the same, it answers.
    let mut exchange = Exchange::open(channel(follower.bound.ext_proc).await).await;
    assert_eq!(exchange.picked().await, "10.1.0.1:8000");
    drop(exchange);
    // A leader that ends gives the lease back: nobody waits for its minute.
    leader.shut_down().await;
    follower.ready().await;
    assert_eq!(status(ext_proc).await, ServingStatus::Serving);
    let spec = cluster.lease().await.spec.expect("a spec");
    assert_eq!(spec.lease_transitions, Some(1), "{spec:?}");
    follower.shut_down().await;
    let spec = cluster.lease().await.spec.expect("a spec");
    assert_eq!(spec.holder_identity.as_deref(), Some(""));
    cluster.clean_up().await;
}

#[tokio::test]
async fn a_leader_that_dies_is_followed_when_its_time_is_over() {
    let cluster = Cluster::any().await;
    cluster.install().await;
    cluster.pool(&[8000]).await;
    let replicas = (
        World::start(cluster.led(1_000)).await,
        World::start(cluster.led(1_000)).await,
    );
    let (leader, follower) = leader_and_follower(replicas.0, replicas.1).await;
    let held = cluster.lease().await.spec.expect("a spec").holder_identity;
    leader.die();
    follower.ready().await;
    let taken = cluster.lease().await.spec.expect("a spec").holder_identity;
    assert!(taken != held && taken.is_some_and(|holder| !holder.is_empty()));
    follower.shut_down().await;
    cluster.clean_up().await;
}

#[tokio::test]
async fn a_lease_is_given_back_though_a_renewal_was_still_on_its_way() {
    let cluster = Cluster::fake().await;
    cluster.install().await;
    // Long enough that it is renewed once, and not while this runs.
    let election = LeaderElection {
        lease_duration_ms: 180_000,
        renew_deadline_ms: 120_000,
        retry_period_ms: 60_000,
        ..LeaderElection::by("kvscout".into())
    };
    let world = World::start(Kubernetes {
        leader_election: Some(election),
        ..cluster.settings()
    })
    .await;
    world.ready().await;
    cluster.faked().overtake();
    world.shut_down().await;
    let spec = cluster.lease().await.spec.expect("a spec");
    assert_eq!(spec.holder_identity.as_deref(), Some(""));
}

#[tokio::test]
async fn a_lease_is_given_back_by_one_that_renewed_too_late_to_lead() {
    let cluster = Cluster::fake().await;
    cluster.install().await;
    let world = World::start(cluster.led(1_000)).await;
    world.ready().await;
    cluster.faked().go_away();
    let follows = |status, _: &str| status == 503;
    world.until("/readyz", "it leads no more", follows).await;
    cluster.faked().come_back();
    world.shut_down().await;
    let spec = cluster.lease().await.spec.expect("a spec");
    assert_eq!(spec.holder_identity.as_deref(), Some(""));
}

#[tokio::test]
async fn a_leader_that_cannot_renew_is_not_ready_until_it_can() {
    let cluster = Cluster::fake().await;
    cluster.install().await;
    cluster.pool(&[8000]).await;
    cluster.pod("a", "10.1.0.1").await;
    let world = World::start(cluster.led(1_000)).await;
    world.serves(&["a 10.1.0.1:8000"]).await;
    world.ready().await;
    cluster.faked().go_away();
    let follows = |status, text: &str| {
        status == 503 && text.contains("leadership") && text.contains("lease kvscout: cannot be")
    };
    world.until("/readyz", "it leads no more", follows).await;
    world.serves(&["a 10.1.0.1:8000"]).await;
    cluster.faked().come_back();
    world
        .until("/readyz", "all is well", |_, text| text == "ready\n")
        .await;
    world.shut_down().await;
}

/// What the code watches is what the role allows, in both directions.
#[test]
fn the_role_allows_what_is_watched_and_nothing_else() {
    let all = include_str!("../deploy/manifests/rbac.yaml");
    let documents = all.split("\n---\n").map(parse);
    let role = documents
        .filter(|one| one["kind"] == "Role")
        .collect::<Vec<_>>()
        .remove(0);
    let mut allowed = Vec::new();
    for rule in role["rules"].as_array().expect("rules") {
        assert_eq!(rule["verbs"], json!(["list", "watch"]));
        let list = |key: &str| rule[key].as_array().expect("a list").iter().map(text);
        for group in list("apiGroups") {
            allowed.extend(list("resources").map(|plural| (group, plural)));
        }
    }
    let mut watched: Vec<_> = WATCHED.iter().map(|one| (one.group, one.plural)).collect();
    allowed.sort_unstable();
    watched.sort_unstable();
    assert_eq!(allowed, watched);
}

/// Each definition is of a kind that we watch, by the version that we read.
#[test]
fn a_definition_is_printed_for_every_custom_kind() {
    let defined = CRDS.map(|crd| {
        let crd = parse(crd);
        let (spec, version) = (&crd["spec"], &crd["spec"]["versions"][0]);
        let names = &spec["names"];
        let all = [
            &spec["group"],
            &version["name"],
            &names["kind"],
            &names["plural"],
        ];
        assert_eq!(
            crd["metadata"]["name"],
            format!("{}.{}", text(all[3]), text(all[0]))
        );
        all.map(|word| text(word).to_owned())
    });
    let custom = WATCHED.iter().filter(|one| !one.group.is_empty());
    let custom =
        custom.map(|one| [one.group, one.version, one.kind, one.plural].map(str::to_owned));
    assert_eq!(defined.to_vec(), custom.collect::<Vec<_>>());
    let printed = harness::process::output(&["crds"]);
    let printed = harness::process::text(&printed.stdout);
    let printed: Vec<_> = printed.split("---\n").skip(1).map(parse).collect();
    assert_eq!(printed, CRDS.map(parse).to_vec());
}
