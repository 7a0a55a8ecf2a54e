use std::net::SocketAddr;

use super::*;

fn parse(text: &str) -> Result<Config, Vec<String>> {
    Config::parse(Path::new("test.yaml"), text)
        .map_err(|all| all.complaints.iter().map(ToString::to_string).collect())
}

#[test]
fn an_empty_file_means_the_defaults() {
    assert_eq!(parse(""), Ok(Config::default()));
    assert_eq!(parse("# nothing\n"), Ok(Config::default()));
}

#[test]
fn the_previous_versions_file_is_read_and_means_what_it_meant() {
    let kept = include_str!("../../tests/fixtures/previous/kvscout.yaml");
    let mut expected = Config::default();
    // Its default, which it says.
    expected.listen.admin = "0.0.0.0:9090".parse().expect("an address");
    let read = parse(kept).expect("keys are added, never renamed");
    expected.fleet.clone_from(&read.fleet);
    assert_eq!(read, expected);
}

#[test]
fn what_is_printed_reads_back() {
    let mut kwargs = serde_json::Map::new();
    kwargs.insert("enable_thinking".into(), false.into());
    let config = Config {
        tls: Tls::Files {
            cert: "/etc/tls.crt".into(),
            key: "/etc/tls.key".into(),
            client_ca: Some("/etc/gateways.crt".into()),
        },
        models: vec![
            Model {
                names: vec!["/model/qwen".into(), "no".into()],
                adapters: vec!["sql: lora".into()],
                source: Source::Folder("/model/qwen".into()),
                engine: Engine::Reference,
                render: RenderSettings {
                    default_chat_template_kwargs: kwargs,
                    exclude_tools_when_tool_choice_none: true,
                    max_model_len: Some(32768),
                    dialect: Dialect::Rust,
                    ..RenderSettings::default()
                },
            },
            Model {
                names: vec!["qwen3".into()],
                adapters: Vec::new(),
                source: Source::Hub(Repo {
                    id: "Qwen/Qwen3-8B".into(),
                    revision: "refs/pr/3".into(),
                }),
                engine: Engine::Fast,
                render: RenderSettings::default(),
            },
        ],
        models_cache: "/cache".into(),
        inference_models: vec![
            InferenceModel {
                name: "chat: best".into(),
                criticality: Criticality::Sheddable,
                priority: -7,
                targets: vec![
                    Target {
                        model: "/model/qwen".into(),
                        weight: 75,
                    },
                    Target {
                        model: "sql: lora".into(),
                        weight: 0,
                    },
                ],
            },
            InferenceModel {
                name: "no".into(),
                criticality: Criticality::Standard,
                priority: 0,
                targets: Vec::new(),
            },
        ],
        inference_objectives: vec![InferenceObjective {
            name: "batch".into(),
            priority: -1,
        }],
        policy: Policy {
            strategy: Strategy::Default,
            matching_ratio_min: 0.25,
            media: Media {
                gpu: 0.99,
                cpu: 0.5,
                storage: 0.0,
            },
            session_headers: vec!["x-chat".into(), "x-user".into()],
            session_affinity: false,
            fallbacks: 2,
        },
        events: Events {
            source: EventSourceKind::Nats,
            bind: Some(SocketAddr::from(([10, 0, 0, 9], 5557))),
            nats: Nats {
                servers: vec!["tls://a:4222".into(), "tls://b:4222".into()],
                namespace: "team".into(),
                credentials: Some("/etc/nats.creds".into()),
                ca: Some("/etc/ca.pem".into()),
                cert: Some("/etc/tls.crt".into()),
                key: Some("/etc/tls.key".into()),
                stream: Stream {
                    replicas: 3,
                    in_memory: true,
                    placement: vec!["fast".into()],
                    ..Nats::default().stream
                },
                snapshot_s: 5,
                ..Nats::default()
            },
            ..Config::default().events
        },
        share: Share::On,
        load: Load {
            scrape_interval_ms: 0,
            scrape_path: "/vllm/metrics".into(),
            scrape_port: Some(9_100),
            saturation: Saturation {
                queue_max: 0,
                kv_usage_max: 0.95,
            },
        },
        admission: Admission {
            queued_tokens_max: 0,
            queue_max: 7,
            wait_ms_max: 0,
        },
        log: LogFormat::Json,
        ..Config::default()
    };
    let in_cluster = Config {
        fleet: FleetSource::Kubernetes(Kubernetes {
            service: Some("picker".into()),
            pools: vec!["llama".into(), "qwen".into()],
            namespace: Some("llm".into()),
            kubeconfig: Some("/etc/kubeconfig".into()),
            events: PodEvents::Discover,
            replay_port: None,
            absent_retry_ms: 5_000,
            leader_election: Some(LeaderElection {
                retry_period_ms: 100,
                ..LeaderElection::by("picker".into())
            }),
        }),
        ..Config::default()
    };
    for config in [config, in_cluster, Config::default()] {
        assert_eq!(parse(&config.to_yaml()), Ok(config));
    }
}

#[test]
fn the_shipped_file_is_the_documented_default() {
    let shipped = include_str!("../../deploy/kvscout.yaml");
    assert_eq!(shipped, Config::default().to_yaml(), "run `make config`");
}

#[test]
fn every_complaint_comes_at_once_with_its_line_and_field() {
    let text = "\
listen:
  ext_proc: nowhere
  helth: 0.0.0.0:1
policy:
  strategy: FASTEST
  matching_ratio_min: 2
models:
  - names: [a]
  - folder: /nonexistent
    names: [b, b]
    server: {temperature: 1}
    dialect: go
  - names: [c]
    hub: {repo: 'https://hub/a/b', revision: ../x}
  - names: [d]
    hub: {repo: a/b}
    folder: here
load: {scrape_interval_ms: 5, scrape_path: metrics, scrape_port: 0, kv_usage_max: 80}
limits: 7
tls:
  mode: files
";
    let complaints = parse(text).expect_err("nothing here is right");
    let starts = [
        "line 2: listen.ext_proc: \"nowhere\": invalid socket address",
        "line 3: listen.helth: is not a known key; here belong admin, admin_token, ext_proc, health",
        "line 5: policy.strategy: \"FASTEST\" is not one of PREFIX_CACHE, DEFAULT",
        "line 6: policy.matching_ratio_min: 2 is not within 0 and 1",
        "line 8: models[0].folder: is missing",
        "line 10: models[1].names: \"b\" is given twice",
        "line 11: models[1].server: unknown field `temperature`",
        "line 12: models[1].dialect: \"go\" is not one of python, rust",
        "line 14: models[2].hub.repo: \"https://hub/a/b\" is not owner/name",
        "line 14: models[2].hub.revision: \"../x\" is not a branch",
        "line 16: models[3].hub: is given beside folder",
        "line 18: load.scrape_interval_ms: 5 is not within 20 and 60000, nor 0 for off",
        "line 18: load.scrape_path: \"metrics\" is not a path",
        "line 18: load.scrape_port: 0 is no port",
        "line 18: load.kv_usage_max: 80 is not within 0 and 1",
        "line 19: limits: must be a mapping",
        "line 21: tls.mode: files needs both cert and key",
    ];
    for start in starts {
        assert!(
            complaints.iter().any(|one| one.starts_with(start)),
            "{start}\n{complaints:#?}"
        );
    }
    assert_eq!(complaints.len(), starts.len(), "{complaints:#?}");
}

#[test]
fn what_is_wrong_with_a_models_rule_is_named_with_its_fix() {
    let text = "
inference_models:
  - name: a
    criticality: High
    targets: [{model: x, weight: 1}, {model: y}]
  - name: a
    targets: [{model: x, weight: 0}]
  - targets: [{weight: 2000000}]
    priority: high
  - {name: LONG, targets: [{model: x}, {model: x}, {model: x}, {model: x}, {model: x}, {model: x}, {model: x}, {model: x}, {model: x}, {model: x}, {model: x}]}
inference_objectives:
  - {name: b, priority: 1.5}
  - {name: b}
policy:
  session_headers: ['x chat']
";
    let text = text.replace("LONG", &"x".repeat(257));
    let complaints = parse(&text).expect_err("nothing is right").join("\n");
    for part in [
        "line 4: inference_models[0].criticality: \"High\" is not one of Critical, Standard, Sheddable",
        "inference_models[0].targets: need a weight each, or none of them",
        "inference_models[1].name: \"a\" is given twice",
        "inference_models[1].targets: have no weight above 0",
        "inference_models[2].name: is missing: the model that requests ask for",
        "inference_models[2].targets[0].weight: 2000000 is not within 0 and 1000000",
        "inference_models[2].targets[0].model: is missing",
        "inference_models[2].priority: \"high\"",
        "inference_models[3].name: has more than 256 bytes",
        "inference_models[3].targets: are more than 10",
        "inference_objectives[0].priority: \"1.5\"",
        "inference_objectives[1].name: \"b\" is given twice",
        "policy.session_headers: \"x chat\" is not a header's name",
    ] {
        assert!(complaints.contains(part), "{part}\n{complaints}");
    }
}

#[test]
fn headers_are_named_in_any_case_and_may_be_none() {
    let headers = |text: &str| parse(text).expect("right").policy.session_headers;
    assert_eq!(headers("policy: {session_headers: [X-Chat]}"), ["x-chat"]);
    assert_eq!(headers("policy: {session_headers: []}"), [""; 0]);
    assert_eq!(headers("policy: {}"), ["x-session-id"]);
}

#[test]
fn text_that_is_not_yaml_is_one_complaint() {
    assert_eq!(parse("a: [").expect_err("unclosed").len(), 1);
    assert_eq!(parse("- a list").expect_err("not a mapping").len(), 1);
    assert_eq!(
        parse("log: text\nlog: json")
            .expect_err("a key given twice")
            .len(),
        1
    );
}

#[test]
fn a_model_comes_from_a_folder_or_from_the_hub() {
    let config = parse("models: [{names: [a], folder: x}, {names: [b], hub: {repo: gpt2}}]");
    let sources: Vec<_> = config
        .expect("both are right")
        .models
        .into_iter()
        .map(|m| m.source)
        .collect();
    let repo = Repo {
        id: "gpt2".into(),
        revision: "main".into(),
    };
    assert_eq!(sources, [Source::Folder("x".into()), Source::Hub(repo)]);
}

#[test]
fn a_dialect_is_no_flag_of_the_server() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("tokenizer.json"), "{}").expect("written");
    let model = |keys: &str| {
        let folder = folder.path().display();
        parse(&format!(
            "models: [{{names: [m], folder: '{folder}', {keys}}}]"
        ))
    };
    let config = model("dialect: rust").expect("a word that is known");
    assert_eq!(config.models[0].render.dialect, Dialect::Rust);
    let complaints = model("server: {dialect: rust}").expect_err("said in the wrong place");
    assert!(
        complaints[0].contains("stands beside server"),
        "{complaints:?}"
    );
}

#[test]
fn where_publishers_connect_is_written_as_vllm_writes_it() {
    let bind = |text: &str| parse(&format!("events: {{bind: '{text}'}}"));
    let found = bind("tcp://*:5557").expect("any address").events.bind;
    assert_eq!(found, Some(SocketAddr::from(([0, 0, 0, 0], 5557))));
    let found = bind("tcp://[::]:5557").expect("any address").events.bind;
    assert_eq!(found.map(|at| at.port()), Some(5557));
    for wrong in ["0.0.0.0:5557", "tcp://kvscout:5557", "tcp://0.0.0.0"] {
        let complaints = bind(wrong).expect_err(wrong).join("\n");
        assert!(complaints.contains("events.bind"), "{complaints}");
    }
}

#[test]
fn what_is_wrong_with_nats_is_named_with_its_fix() {
    let text = "
events:
  source: nats
  nats:
    servers: []
    pool: 'a.b'
    credentials: a.creds
    nkey: b.nk
    cert: tls.crt
    stream: {replicas: 9, max_age_s: 40}
";
    let complaints = parse(text).expect_err("nothing is right").join("\n");
    for part in [
        "events.nats.servers: is empty",
        "events.nats.pool: \"a.b\" is not a word",
        "events.nats.nkey: credentials hold a key already",
        "events.nats.cert: cert and key belong together",
        "events.nats.stream.replicas: 9 is not within 1 and 5",
        "events.nats.snapshot_s: is more than half of stream.max_age_s",
    ] {
        assert!(complaints.contains(part), "{part}\n{complaints}");
    }
}

#[test]
fn replicas_share_where_a_cluster_is_at_hand_or_asked_for() {
    let shares = |source: &str, share: &str| {
        let text = format!("events: {{source: {source}}}\nreplicas: {{share: {share}}}");
        parse(&text).expect("well-formed").shares()
    };
    assert!(!Config::default().shares());
    assert!(shares("nats", "auto") && shares("zmq", "on") && shares("off", "on"));
    assert!(!shares("zmq", "auto") && !shares("nats", "off"));
    let problems = parse("replicas: {share: maybe}").expect_err("no such word");
    assert!(problems[0].contains("auto, on, off"), "{problems:?}");
}

#[test]
fn a_fleet_from_kubernetes_needs_a_service_or_pools() {
    let text = |more: &str| format!("fleet: {{kubernetes: {{{more}}}}}");
    let read = |more: &str| match parse(&text(more)).expect("a configuration").fleet {
        FleetSource::Kubernetes(kubernetes) => kubernetes,
        FleetSource::File(file) => panic!("{}", file.display()),
    };
    let named = Kubernetes {
        service: Some("kvscout".into()),
        ..Kubernetes::default()
    };
    assert_eq!(read("service: kvscout"), named);
    let all = read("pools: [a], namespace: llm, events: discover, absent_retry_ms: 100");
    assert_eq!(
        (all.pools, all.events),
        (vec!["a".into()], PodEvents::Discover)
    );
    let complaint = |text: &str| parse(text).expect_err("wrong").join("\n");
    for (more, part) in [
        ("pools: []", "fleet.kubernetes.service: is missing"),
        (
            "service: a, events: 0",
            "fleet.kubernetes.events: \"0\": is not a port, discover, or off",
        ),
        (
            "service: a, events: off, replay_port: 1",
            "replay_port: is of no use without events",
        ),
        (
            "service: a, events: discover, replay_port: 1",
            "replay_port: is discovered",
        ),
        (
            "service: a, replay_port: 5557",
            "replay_port: is the port of events, too",
        ),
        (
            "service: a, absent_retry_ms: 1",
            "absent_retry_ms: 1 is not within 100 and",
        ),
        (
            "service: a, leader_election: {}",
            "leader_election.lease: is missing",
        ),
        (
            "service: a, leader_election: {lease: b, lease_duration_ms: 5000}",
            "renew_deadline_ms: must be less than lease_duration_ms",
        ),
        (
            "service: a, leader_election: {lease: b, retry_period_ms: 10000}",
            "retry_period_ms: must be less than renew_deadline_ms",
        ),
    ] {
        let said = complaint(&text(more));
        assert!(said.contains(part), "{part}\n{said}");
    }
    let said = complaint("fleet: {file: a, kubernetes: {service: a}}");
    assert!(
        said.contains("fleet.file: is of no use beside kubernetes"),
        "{said}"
    );
}

#[test]
fn where_publishers_connect_to_us_pods_have_no_port_unless_it_is_said() {
    let events = |more: &str| {
        let text = format!(
            "events: {{bind: 'tcp://0.0.0.0:5557'}}\nfleet: {{kubernetes: {{service: a{more}}}}}"
        );
        let config = parse(&text).expect("a configuration");
        assert_eq!(parse(&config.to_yaml()).as_ref(), Ok(&config));
        match config.fleet {
            FleetSource::Kubernetes(kubernetes) => kubernetes.events,
            FleetSource::File(file) => panic!("{}", file.display()),
        }
    };
    assert_eq!(events(""), PodEvents::Off);
    assert_eq!(events(", events: 5558"), PodEvents::Port(5558));
}

#[test]
fn a_template_s_path_is_one_from_the_configuration_s_folder() {
    let given = |template: &str| {
        let text = format!(
            "models: [{{names: [a], folder: here, server: {{chat_template: {template}}}}}]"
        );
        let file = std::path::Path::new("/etc/kvscout/kvscout.yaml");
        let config = Config::parse(file, &text).expect("a configuration");
        config.models[0].render.chat_template.clone()
    };
    assert_eq!(
        given("t/own.jinja").as_deref(),
        Some("/etc/kvscout/t/own.jinja")
    );
    assert_eq!(given("/t").as_deref(), Some("/t"));
    assert_eq!(given("tool_use").as_deref(), Some("tool_use"));
    assert_eq!(given("'{{ a/b }}'").as_deref(), Some("{{ a/b }}"));
}

#[test]
fn two_listeners_do_not_share_a_port() {
    for (listen, part) in [
        (
            "{health: '0.0.0.0:9002'}",
            "health: 0.0.0.0:9002 is the port of ext_proc, too",
        ),
        (
            "{admin: '127.0.0.1:9003'}",
            "admin: 127.0.0.1:9003 is the port of health, too",
        ),
    ] {
        let said = parse(&format!("listen: {listen}")).expect_err("one port");
        let said = said.join("\n");
        assert!(said.contains(part), "{part}\n{said}");
    }
    let apart = "{ext_proc: '10.0.0.1:9', health: '10.0.0.2:9', admin: '127.0.0.1:0'}";
    assert!(parse(&format!("listen: {apart}")).is_ok());
}

#[test]
fn a_mark_of_byte_order_is_no_key() {
    assert!(parse("\u{feff}log: json\n").is_ok());
}

#[test]
fn what_is_quoted_is_text() {
    let text = "\
models:
  - names: [a]
    folder: here
    server: {default_chat_template_kwargs: {quoted: \"7\", plain: 7, empty: \"\", none: }}
";
    let config = parse(text).expect("a configuration");
    let given = serde_json::to_value(&config.models[0].render).expect("JSON");
    let wanted = serde_json::json!({"quoted": "7", "plain": 7, "empty": "", "none": null});
    assert_eq!(given["default_chat_template_kwargs"], wanted);
}
