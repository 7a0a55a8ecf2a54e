use std::net::SocketAddr;

use bytes::Bytes;

use super::*;
use crate::admission::Outlook;
use crate::audit::Usage;
use crate::blocks::{BlockEvent, EngineHash, Shape, Stored, TokenId};
use crate::choice::Basis;
use crate::config::{
    Config, Criticality, InferenceModel, Model, ReadsAs, RenderSettings, Source, Target,
};
use crate::decisions::what_if::Knobs;
use crate::fleet::report::{Prefilled, Report};
use crate::fleet::{EndpointId, EventAddress, Pool, Publisher, Trust};
use crate::models::{Hub, Loader};
use crate::parity;
use crate::readiness::Readiness;
use crate::routes::Rules;
use crate::tokens::TokenPool;

const MODEL: &str = "/model/qwen";

/// Endpoints at ports 8000 and up, all `Live`.
pub(super) struct World {
    pub(super) scheduler: Scheduler,
    pub(super) index: Arc<Index>,
    pub(super) parity: Arc<Parity>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) fleet: watch::Sender<Arc<Fleet>>,
    routes: watch::Sender<Arc<Routes>>,
}

fn endpoint(id: u32) -> Arc<Endpoint> {
    endpoint_reading(id, ReadsAs::Named)
}

pub(super) fn endpoint_reading(id: u32, reads_as: ReadsAs) -> Arc<Endpoint> {
    let address = SocketAddr::from(([127, 0, 0, 1], 8000 + id as u16));
    let events = EventAddress {
        publisher: Publisher::At("tcp://127.0.0.1:1".into()),
        replay: None,
    };
    let endpoint = Endpoint::new(EndpointId(id), format!("pod-{id}"), address, Some(events));
    let endpoint = endpoint.reading_as(reads_as);
    endpoint.set_trust(Trust::Live, "for the test", Instant::now());
    Arc::new(endpoint)
}

async fn world(endpoints: u32) -> World {
    over(config(), Fleet::of((0..endpoints).map(endpoint).collect())).await
}

/// One model, with an adapter.
fn config() -> Config {
    let mut config = Config::default();
    config.models.push(Model {
        names: vec![MODEL.into()],
        adapters: vec!["sql".into()],
        source: Source::Folder(tokenizer_folder()),
        engine: crate::config::Engine::Fast,
        render: RenderSettings::default(),
    });
    config
}

/// These endpoints, with the models of this configuration.
pub(super) async fn over(config: Config, fleet: Fleet) -> World {
    let parity = Parity::of(config.models.iter().flat_map(Model::counted_names));
    let (index, metrics) = (Arc::new(parity.index()), Arc::new(Metrics::default()));
    let reader = reader(&config, &metrics).await;
    let (fleet, receiver) = watch::channel(Arc::new(fleet));
    let (routes, rules) = watch::channel(Arc::default());
    let scheduler = Scheduler::new(Parts {
        fleet: receiver,
        index: index.clone(),
        replicas: None,
        audit: Arc::new(Audit::new(metrics.clone())),
        decisions: Arc::new(Decisions::new(1 << 20, None, metrics.clone())),
        parity: parity.clone(),
        routes: rules,
        reader,
        policy: config.policy,
        saturation: config.load.saturation,
        admission: config.admission,
        decision_max: Duration::from_secs(60),
        metrics: metrics.clone(),
    });
    World {
        scheduler,
        index,
        parity,
        metrics,
        fleet,
        routes,
    }
}

/// Of models that are loaded, with a pool that waits for any core.
async fn reader(config: &Config, metrics: &Metrics) -> Reader {
    let (hub, readiness) = (Hub::new("http://127.0.0.1:1", None), Readiness::default());
    let (loader, mut models) = Loader::new(config, hub, metrics, &readiness);
    tokio::spawn(loader.run());
    let loaded = models.wait_for(|models| models.states().all(|(_, cache)| cache.is_some()));
    let loaded = tokio::time::timeout(Duration::from_secs(60), loaded).await;
    drop(loaded.expect("run make setup").expect("the loader runs"));
    let pool = TokenPool::new(2, 64, Duration::from_secs(60), metrics.tokenizer());
    Reader::new(models, Arc::new(pool.expect("threads")))
}

fn tokenizer_folder() -> std::path::PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/.tools/tokenizer-qwen3");
    std::env::var_os("KVSCOUT_TOKENIZER_DIR")
        .unwrap_or_else(|| default.into())
        .into()
}

/// A completion of token ids: no tokenizer between the test and its blocks.
fn ids(request_id: &str, tokens: &[TokenId], more: &str) -> Ask {
    let body = format!("{{\"model\": \"{MODEL}\", \"prompt\": {tokens:?}{more}}}");
    ask(request_id, "/v1/completions", body)
}

fn ask(request_id: &str, path: &str, body: impl Into<Bytes>) -> Ask {
    Ask {
        request_id: request_id.into(),
        path: path.into(),
        content_type: Some("application/json".into()),
        body: body.into(),
        ..Ask::default()
    }
}

/// Rules for one model, "chat", that these serve.
fn chat_served_by(world: &World, targets: &[(&str, u32)]) {
    let targets = targets.iter().map(|(model, weight)| Target {
        model: (*model).into(),
        weight: *weight,
    });
    let chat = InferenceModel {
        name: "chat".into(),
        criticality: Criticality::Standard,
        priority: 0,
        targets: targets.collect(),
    };
    world
        .routes
        .send_replace(Arc::new(Routes::of(&[chat], &[])));
}

/// Stores the blocks of `tokens` at an endpoint, four to a block.
fn hold(world: &World, endpoint: u32, tokens: &[TokenId], adapter: Option<&str>) {
    let hashes = (0..tokens.len() as u64 / 4).map(|n| EngineHash(1000 * u64::from(endpoint) + n));
    let stored = Stored {
        adapter: adapter.map(str::to_owned),
        ..Stored::plain(None, hashes.collect(), tokens.to_vec())
    };
    world
        .index
        .apply(EndpointId(endpoint), &[BlockEvent::Stored(stored)]);
}

const PROMPT: [TokenId; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 9];

#[tokio::test]
async fn the_endpoint_that_holds_the_prefix_gets_the_request() {
    let world = world(3).await;
    hold(&world, 1, &PROMPT[..8], None);
    for n in 0..8 {
        let placed = world
            .scheduler
            .place(ids(&format!("r{n}"), &PROMPT, ""))
            .await
            .expect("placed");
        assert_eq!(placed.address().port(), 8001);
        assert_eq!(placed.choice().predicted_cached_tokens, 8);
        assert!(
            placed
                .summary()
                .contains("by=prefix; basis=overlap; trust=live"),
            "{}",
            placed.summary()
        );
    }
}

#[tokio::test]
async fn a_list_goes_on_with_the_next_best_where_it_is_asked_for() {
    let mut world = world(4).await;
    hold(&world, 1, &PROMPT[..8], None);
    hold(&world, 3, &PROMPT[..8], None);
    let mut placed = world.scheduler.place(ids("a", &PROMPT, "")).await;
    let one = placed.as_mut().expect("placed");
    assert!(one.take_fallbacks().is_empty(), "one alone by default");
    drop(placed);
    for (fallbacks, length) in [(1, 1), (2, 2), (8, 3)] {
        world.scheduler.parts.policy.fallbacks = fallbacks;
        let placed = world.scheduler.place(ids("a", &PROMPT, "")).await;
        let mut placed = placed.expect("placed");
        let next = placed.take_fallbacks();
        let mut all = vec![placed.address()];
        all.extend(&next);
        let mut ports: Vec<u16> = all.iter().map(|address| address.port()).collect();
        ports[..2].sort_unstable();
        assert_eq!(ports[..2], [8001, 8003], "who holds it comes first");
        ports.sort_unstable();
        ports.dedup();
        assert_eq!((next.len(), ports.len()), (length, length + 1));
    }
}

#[tokio::test]
async fn a_header_names_the_target_where_no_rule_does() {
    let world = world(1).await;
    chat_served_by(&world, &[("sql", 1)]);
    let target = async |model: &str| {
        let request = Ask {
            target: Some("other".into()),
            ..ask(
                "a",
                "/v1/completions",
                format!("{{\"model\": \"{model}\"}}"),
            )
        };
        let placed = world.scheduler.place(request).await.expect("placed");
        placed.target().map(str::to_owned)
    };
    assert_eq!(target("chat").await.as_deref(), Some("sql"));
    assert_eq!(target("else").await.as_deref(), Some("other"));
    assert_eq!(target("other").await, None, "it is that already");
}

#[tokio::test]
async fn a_prompt_is_read_as_its_target_reads_it_and_the_body_names_that() {
    let world = world(2).await;
    hold(&world, 1, &PROMPT[..8], Some("sql"));
    chat_served_by(&world, &[("sql", 1)]);
    let body = format!("{{\"prompt\": {PROMPT:?}, \"model\":\"chat\" }}");
    let request = ask("a", "/v1/completions", body.clone());
    let mut placed = world.scheduler.place(request).await.expect("placed");
    assert_eq!(
        placed.address().port(),
        8001,
        "the adapter's cache is there"
    );
    assert_eq!(placed.choice().predicted_cached_tokens, 8);
    assert!(
        placed.summary().ends_with("; model=sql"),
        "{}",
        placed.summary()
    );
    let rewrite = placed.take_rewrite().expect("another model");
    assert_eq!(
        rewrite.apply(body.as_bytes()),
        body.replace("\"chat\"", "\"sql\"")
    );
    let metrics = world.metrics.handle().render();
    let counted = "kvscout_model_targets_total{model=\"chat\",target=\"sql\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn a_split_holds_for_each_conversation_whatever_becomes_of_its_reading() {
    let world = world(2).await;
    chat_served_by(&world, &[("sql", 1), ("nobody", 1)]);
    let target = async |request: &str, session: Option<String>, body: &str| {
        let request = Ask {
            session,
            ..ask(request, "/v1/completions", body.to_owned())
        };
        let placed = world.scheduler.place(request).await.expect("placed");
        placed.target().expect("one of the two").to_owned()
    };
    let mut counts = [0, 0];
    for session in 0..40 {
        let session = Some(format!("session-{session}"));
        // Neither the prompt nor its being readable matters.
        let one = target(
            "a",
            session.clone(),
            "{\"model\": \"chat\", \"prompt\": [1]}",
        )
        .await;
        let two = target("b", session, "{\"prompt\": 7, \"model\": \"chat\"}").await;
        assert_eq!(one, two);
        counts[usize::from(one == "nobody")] += 1;
    }
    assert!(counts.iter().all(|count| *count > 10), "{counts:?}");
}

/// Where the rounds of conversations go that cannot be read, and nothing else is asked meanwhile.
async fn rounds_of_strangers(world: &World) -> Vec<Vec<u16>> {
    let mut all = Vec::new();
    for conversation in 0..12 {
        let mut ports = Vec::new();
        let first = format!("{{\"role\":\"user\",\"content\":\"{conversation}\"}}");
        let mut turns = vec![first];
        for round in 0..4 {
            let body = format!("{{\"model\":\"other\",\"messages\":[{}]}}", turns.join(","));
            let request = ask(
                &format!("r{conversation}-{round}"),
                "/v1/chat/completions",
                body,
            );
            let placed = world.scheduler.place(request).await.expect("placed");
            assert_eq!(placed.choice().basis, Basis::LoadOnly("unknown_model"));
            ports.push(placed.address().port());
            turns.push("{\"role\":\"assistant\",\"content\":\"Yes.\"}".into());
        }
        all.push(ports);
    }
    all
}

fn stay(rounds: &[Vec<u16>]) -> bool {
    rounds
        .iter()
        .all(|ports| ports.iter().all(|port| *port == ports[0]))
}

#[tokio::test]
async fn a_conversation_that_cannot_be_read_stays_unless_told_otherwise() {
    let mut world = world(4).await;
    let rounds = rounds_of_strangers(&world).await;
    assert!(stay(&rounds), "{rounds:?}");
    let homes: std::collections::BTreeSet<u16> = rounds.iter().map(|ports| ports[0]).collect();
    assert!(homes.len() > 2, "and not all in one place: {rounds:?}");
    world.scheduler.parts.policy.session_affinity = false;
    assert!(!stay(&rounds_of_strangers(&world).await));
}

#[tokio::test]
async fn a_session_stays_even_without_a_body_but_not_at_an_endpoint_that_fails() {
    let world = world(4).await;
    let place = |request: usize| {
        let placed = world.scheduler.place_by_load(&ByLoad {
            request_id: format!("r{request}"),
            subset: None,
            pool: PoolHint::default(),
            objective: None,
            session: Some("s".into()),
            trace: None,
            body_bytes: 4_000,
            reason: "body_too_long",
        });
        placed.expect("placed").endpoint().id
    };
    let home = place(0);
    assert!((1..20).all(|request| place(request) == home));
    let endpoints = world.fleet.borrow().endpoints.clone();
    let endpoint = endpoints.iter().find(|endpoint| endpoint.id == home);
    endpoint.expect("one of them").failed(Instant::now());
    let next = place(20);
    assert_ne!(next, home);
    assert!(
        (21..40).all(|request| place(request) == next),
        "the second in weight"
    );
}

#[tokio::test]
async fn a_model_that_is_its_own_target_stays_as_it_is() {
    let world = world(1).await;
    let chat = InferenceModel {
        name: MODEL.into(),
        criticality: Criticality::Standard,
        priority: 0,
        targets: vec![Target {
            model: MODEL.into(),
            weight: 1,
        }],
    };
    world
        .routes
        .send_replace(Arc::new(Routes::of(&[chat], &[])));
    let mut placed = world
        .scheduler
        .place(ids("a", &PROMPT, ""))
        .await
        .expect("placed");
    assert_eq!(
        (placed.take_rewrite(), placed.choice().basis),
        (None, Basis::Overlap)
    );
}

#[tokio::test]
async fn another_tenant_or_adapter_gets_no_hit() {
    let world = world(2).await;
    hold(&world, 1, &PROMPT[..8], None);
    let salted = ids("a", &PROMPT, ", \"cache_salt\": \"other\"");
    let adapter = Ask {
        body: format!("{{\"model\": \"sql\", \"prompt\": {PROMPT:?}}}").into(),
        ..ids("b", &PROMPT, "")
    };
    let no_read = ids("c", &PROMPT, ", \"prompt_logprobs\": 1");
    for ask in [salted, adapter, no_read] {
        let placed = world.scheduler.place(ask).await.expect("placed");
        assert_eq!(placed.choice().predicted_cached_tokens, 0);
        assert_eq!(placed.choice().basis, Basis::Overlap);
    }
    hold(&world, 0, &PROMPT[..8], Some("sql"));
    let adapter = Ask {
        body: format!("{{\"model\": \"sql\", \"prompt\": {PROMPT:?}}}").into(),
        ..ids("d", &PROMPT, "")
    };
    assert_eq!(
        world
            .scheduler
            .place(adapter)
            .await
            .expect("placed")
            .address()
            .port(),
        8000
    );
}

#[tokio::test]
async fn whatever_cannot_be_read_is_placed_by_load_and_says_why() {
    let world = world(2).await;
    let chat = "/v1/chat/completions";
    let cases: [(&str, &str, &str); 7] = [
        (chat, "{\"model\": ", "malformed_json"),
        (chat, "", "malformed_json"),
        (chat, "[1]", "bad_field"),
        (
            chat,
            "{\"model\": \"gpt\", \"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}",
            "unknown_model",
        ),
        (
            chat,
            "{\"model\": \"/model/qwen\", \"messages\": 5}",
            "bad_field",
        ),
        (chat, "{\"messages\": []}", "bad_field"),
        ("/v1/audio/speech", "\u{1}\u{2}", "unknown_path"),
    ];
    for (path, body, reason) in cases {
        let placed = world
            .scheduler
            .place(ask("r", path, body.to_owned()))
            .await
            .expect("placed");
        assert_eq!(placed.choice().basis, Basis::LoadOnly(reason), "{body}");
    }
    let text = world.metrics.handle().render();
    assert!(
        text.contains("basis=\"load_only\",reason=\"malformed_json\",outcome=\"placed\"} 2"),
        "{text}"
    );
}

#[tokio::test]
async fn a_request_that_names_no_model_is_read_as_the_only_one() {
    let unnamed = |model: &str| {
        let body = format!("{{{model}\"prompt\": {PROMPT:?}}}");
        ask("r", "/v1/completions", body)
    };
    let one = world(2).await;
    hold(&one, 1, &PROMPT[..8], None);
    for model in ["", "\"model\": null, ", "\"model\": \"\", "] {
        let placed = one.scheduler.place(unnamed(model)).await.expect("placed");
        assert_eq!(placed.choice().basis, Basis::Overlap, "{model}");
        assert_eq!(placed.address().port(), 8001, "{model}");
    }
    let mut two = config();
    two.models.push(Model {
        names: vec!["other".into()],
        adapters: Vec::new(),
        ..two.models[0].clone()
    });
    let two = over(two, Fleet::of((0..2).map(endpoint).collect())).await;
    let placed = two.scheduler.place(unnamed("")).await.expect("placed");
    assert_eq!(placed.choice().basis, Basis::LoadOnly("no_model"));
}

#[tokio::test]
async fn load_spreads_what_no_cache_attracts_and_is_given_back() {
    let world = world(2).await;
    let mut placed = Vec::new();
    for n in 0..10 {
        placed.push(
            world
                .scheduler
                .place(ids(&n.to_string(), &PROMPT, ""))
                .await
                .expect("placed"),
        );
    }
    let at = |port| {
        placed
            .iter()
            .filter(|one| one.address().port() == port)
            .count()
    };
    assert_eq!((at(8000), at(8001)), (5, 5));
    drop(placed);
    for endpoint in &world.fleet.borrow().endpoints {
        assert_eq!(
            (endpoint.load.requests(), endpoint.load.prefill_tokens()),
            (0, 0)
        );
    }
}

#[tokio::test]
async fn prompts_and_answers_are_booked_as_the_engine_counts_them() {
    let world = world(1).await;
    for (prompt, more, requests) in [
        ("[1, 2, 3]", "", 1),
        ("[[1, 2, 3], [4, 5, 6]]", ", \"n\": 3", 6),
        ("[1, 2, 3]", ", \"n\": 5000", 1_024),
    ] {
        let body = format!("{{\"model\": \"{MODEL}\", \"prompt\": {prompt}{more}}}");
        let placed = world.scheduler.place(ask("r", "/v1/completions", body));
        let _placed = placed.await.expect("placed");
        let booked = world.fleet.borrow().endpoints[0].load.requests();
        assert_eq!(booked, requests, "{prompt}{more}");
    }
}

#[tokio::test]
async fn a_warm_cache_is_left_where_others_wait_for_the_server() {
    let world = world(2).await;
    hold(&world, 0, &PROMPT[..8], None);
    let chosen = async || {
        let placed = world.scheduler.place(ids("r", &PROMPT, "")).await;
        placed.expect("placed").endpoint().id.0
    };
    assert_eq!(chosen().await, 0);
    let busy = world.fleet.borrow().endpoints[0].clone();
    let prefilled = Prefilled {
        tokens: 9_000.0,
        requests: 9.0,
    };
    let report = Report {
        waiting: 1,
        prefilled: Some(prefilled),
        ..Report::default()
    };
    let interval = Duration::from_secs(60);
    let (load, now) = (&busy.load, Instant::now());
    load.told(report, load.ours(), now, interval);
    assert_eq!(chosen().await, 1, "a thousand tokens stand before it");
}

#[tokio::test]
async fn a_subset_is_obeyed_and_an_empty_one_refused() {
    let world = world(3).await;
    hold(&world, 1, &PROMPT[..8], None);
    let within = |subset: &[&str]| {
        let subset = Some(subset.iter().map(|name| (*name).to_owned()).collect());
        world.scheduler.place(Ask {
            subset,
            ..ids("r", &PROMPT, "")
        })
    };
    assert_eq!(
        within(&["127.0.0.1:8002"])
            .await
            .expect("placed")
            .address()
            .port(),
        8002
    );
    assert_eq!(
        within(&["127.0.0.1"])
            .await
            .expect("placed")
            .address()
            .port(),
        8001
    );
    assert_eq!(within(&[]).await.err(), Some(Refusal::NoneInSubset));
    assert_eq!(
        within(&["10.0.0.1:8000"]).await.err(),
        Some(Refusal::NoneInSubset)
    );
    world.fleet.send_replace(Arc::default());
    assert_eq!(
        within(&["127.0.0.1"]).await.err(),
        Some(Refusal::NoEndpoint)
    );
}

fn usage(cached_tokens: Option<u64>) -> Usage {
    Usage {
        prompt_tokens: 9,
        completion_tokens: 1,
        cached_tokens,
        unasked: false,
    }
}

#[tokio::test]
async fn a_retried_request_is_audited_where_it_was_served() {
    let world = world(2).await;
    hold(&world, 1, &PROMPT[..8], None);
    let placed = world
        .scheduler
        .place(ids("r", &PROMPT, ""))
        .await
        .expect("placed");
    let served = Some("127.0.0.1:8000".parse().expect("an address"));
    placed.finish(Outcome {
        status: Some(200),
        usage: Some(usage(Some(0))),
        served,
        whole: true,
        ..Outcome::default()
    });
    let text = world.metrics.handle().render();
    assert!(
        text.contains("kvscout_predictions_total{endpoint=\"pod-0\",verdict=\"exact\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("kvscout_predictions_total{endpoint=\"pod-1\",verdict=\"over\"} 0"),
        "{text}"
    );
}

#[tokio::test]
async fn only_an_answer_that_fills_any_block_must_have_stored_one() {
    let world = world(1).await;
    let pod = world.fleet.borrow().endpoints[0].clone();
    for (prompt_tokens, cached_tokens, status, must) in [
        (1200, Some(0), 200, true),
        (1200, None, 200, true),
        (1200, Some(128), 200, false),
        (1000, Some(0), 200, false),
        (1200, Some(0), 400, false),
    ] {
        let placed = world.scheduler.place(ids("r", &PROMPT, "")).await;
        let usage = Usage {
            prompt_tokens,
            cached_tokens,
            completion_tokens: 1,
            unasked: false,
        };
        placed.expect("placed").finish(Outcome {
            status: Some(status),
            usage: Some(usage),
            served: None,
            whole: true,
            ..Outcome::default()
        });
        assert_eq!(pod.take_computed(), must, "{usage:?}");
    }
    assert!(!pod.take_computed());
}

#[tokio::test]
async fn a_server_that_says_nothing_on_a_miss_is_still_audited() {
    let world = world(1).await;
    hold(&world, 0, &PROMPT[..8], None);
    for (said, exact, over) in [(None, 0, 0), (Some(8), 1, 0), (None, 1, 1)] {
        let placed = world
            .scheduler
            .place(ids("r", &PROMPT, ""))
            .await
            .expect("placed");
        placed.finish(Outcome {
            status: Some(200),
            usage: Some(usage(said)),
            served: None,
            whole: true,
            ..Outcome::default()
        });
        let text = world.metrics.handle().render();
        let count = |verdict: &str, n: u32| {
            text.contains(&format!(
                "kvscout_predictions_total{{endpoint=\"pod-0\",verdict=\"{verdict}\"}} {n}"
            ))
        };
        assert!(
            count("exact", exact) && count("over", over),
            "{said:?}\n{text}"
        );
    }
}

/// Responses tell cached tokens whatever the server's flags; chats of the same server may not.
#[tokio::test]
async fn what_a_response_tells_does_not_make_a_chats_silence_a_miss() {
    let world = world(1).await;
    hold(&world, 0, &PROMPT[..8], None);
    let unasked = Usage {
        unasked: true,
        ..usage(Some(8))
    };
    for told in [unasked, usage(None)] {
        let placed = world.scheduler.place(ids("r", &PROMPT, "")).await;
        placed.expect("placed").finish(Outcome {
            status: Some(200),
            usage: Some(told),
            served: None,
            whole: true,
            ..Outcome::default()
        });
    }
    let text = world.metrics.handle().render();
    for (verdict, n) in [("exact", 1), ("over", 0)] {
        let line = format!("{{endpoint=\"pod-0\",verdict=\"{verdict}\"}} {n}");
        assert!(text.contains(&line), "{line} in\n{text}");
    }
}

#[tokio::test]
async fn every_way_in_says_what_its_choice_rests_on() {
    let world = world(1).await;
    let hi = r#""messages": [{"role": "user", "content": "hi"}]"#;
    let image = r#""messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]"#;
    let ways = [
        ("/v1/responses", r#""input": "hi""#, Basis::Overlap),
        ("/v1/messages", hi, Basis::Overlap),
        (
            "/inference/v1/generate",
            r#""token_ids": [1]"#,
            Basis::Overlap,
        ),
        ("/v1/chat/completions", image, Basis::Partial("media")),
        (
            "/v1/embeddings",
            r#""input": "hi""#,
            Basis::Partial("pooling"),
        ),
        (
            "/v1/score",
            r#""text_1": "a""#,
            Basis::LoadOnly("score_template"),
        ),
        (
            "/tokenize",
            r#""prompt": "hi""#,
            Basis::LoadOnly("no_prefill"),
        ),
        (
            "/v1/responses",
            r#""input": "hi", "previous_response_id": "r""#,
            Basis::LoadOnly("server_state"),
        ),
    ];
    for (path, fields, basis) in ways {
        let body = format!("{{\"model\": \"{MODEL}\", {fields}}}");
        let placed = world.scheduler.place(ask("r", path, body)).await;
        let placed = placed.expect("placed");
        let choice = placed.choice();
        assert_eq!(choice.basis, basis, "{path}");
        let works = basis != Basis::LoadOnly("no_prefill");
        assert_eq!(choice.prompt_tokens > 0, works, "{path}");
    }
}

#[tokio::test]
async fn a_pod_that_fails_fast_does_not_draw_the_crowd() {
    let world = world(2).await;
    let mut failed = 0;
    for n in 0..100 {
        let placed = world
            .scheduler
            .place(ids(&n.to_string(), &PROMPT, ""))
            .await
            .expect("placed");
        let bad = placed.address().port() == 8000;
        failed += u32::from(bad);
        let status = Some(if bad { 503 } else { 200 });
        placed.finish(Outcome {
            status,
            usage: None,
            served: None,
            whole: true,
            ..Outcome::default()
        });
    }
    assert!(failed <= 3, "{failed} of 100 went to a pod that fails");
}

/// A world whose fleet is one pod of so many ranks, behind one address.
async fn ranks(count: u32) -> World {
    let world = world(count).await;
    let rank = |id: u32| {
        let address = SocketAddr::from(([127, 0, 0, 1], 8000));
        let endpoint = Endpoint::new(EndpointId(id), "pod".into(), address, None).of_rank(id);
        endpoint.set_trust(Trust::Live, "for the test", Instant::now());
        Arc::new(endpoint)
    };
    let endpoints = (0..count).map(rank).collect();
    world.fleet.send_replace(Arc::new(Fleet::of(endpoints)));
    world
}

#[tokio::test]
async fn the_rank_that_holds_the_prefix_is_picked_and_audited() {
    let world = ranks(3).await;
    hold(&world, 2, &PROMPT[..8], None);
    let mut asked = ids("r", &PROMPT, "");
    asked.subset = Some(vec!["127.0.0.1:8000".into()]);
    let placed = world.scheduler.place(asked).await.expect("placed");
    assert_eq!(placed.endpoint().rank, Some(2));
    let served = Some(placed.address());
    placed.finish(Outcome {
        status: Some(200),
        usage: Some(usage(Some(8))),
        served,
        whole: true,
        ..Outcome::default()
    });
    let text = world.metrics.handle().render();
    let exact = "kvscout_predictions_total{endpoint=\"pod/2\",verdict=\"exact\"} 1";
    assert!(text.contains(exact), "{text}");
}

#[tokio::test]
async fn a_pod_that_is_not_reached_is_avoided_with_all_its_ranks() {
    let world = ranks(2).await;
    let placed = world.scheduler.place(ids("r", &PROMPT, "")).await;
    placed.expect("placed").finish(Outcome {
        status: Some(200),
        served: Some("127.0.0.1:9999".parse().expect("an address")),
        ..Outcome::default()
    });
    let fleet = world.fleet.borrow().clone();
    let now = Instant::now();
    assert!(fleet.endpoints.iter().all(|rank| rank.avoided(now)));
}

#[tokio::test]
async fn what_several_engine_requests_will_report_is_not_promised() {
    let world = world(1).await;
    for (more, basis) in [
        ("", Basis::Overlap),
        (", \"n\": 1", Basis::Overlap),
        (", \"n\": 2", Basis::Partial("answers")),
        (", \"use_beam_search\": true", Basis::Partial("beam_search")),
    ] {
        let placed = world.scheduler.place(ids("r", &[1, 2, 3], more)).await;
        assert_eq!(placed.expect("a placement").choice().basis, basis, "{more}");
    }
}

/// A prompt that nobody has asked before, three blocks long.
fn fresh(n: u32) -> Vec<TokenId> {
    (0..13).map(|id| 1000 * (n + 1) + id).collect()
}

/// Judges every answered request at pod 0 by now.
fn hear(world: &World) {
    let far = parity::epoch_s(std::time::SystemTime::now()) + 60.0;
    let heard = parity::Heard {
        timestamp: Some(far),
        now_s: far,
        unbroken: true,
    };
    world.parity.heard(EndpointId(0), heard);
}

fn answered(completion_tokens: u64) -> Outcome {
    let usage = Usage {
        completion_tokens,
        ..usage(None)
    };
    Outcome {
        status: Some(200),
        usage: Some(usage),
        ..Outcome::default()
    }
}

#[tokio::test]
async fn a_model_whose_servers_store_other_tokens_is_placed_by_what_is_left() {
    let world = world(1).await;
    // The first store tells the block size.
    hold(&world, 0, &PROMPT[..8], None);
    for n in 0..5 {
        let doubtful = n == 4;
        let placed = world.scheduler.place(ids("r", &fresh(n), "")).await;
        let placed = placed.expect("placed");
        let basis = match doubtful {
            true => Basis::Partial("token_parity"),
            false => Basis::Overlap,
        };
        assert_eq!(placed.choice().basis, basis, "request {n}");
        placed.finish(answered(3));
        hear(&world);
    }
    let record = world.parity.records()[MODEL];
    assert_eq!((record.differ, record.is_doubtful()), (5, true));
    // An adapter's prompts are counted for themselves.
    let body = format!("{{\"model\": \"sql\", \"prompt\": {PROMPT:?}}}");
    let placed = world.scheduler.place(ask("r", "/v1/completions", body));
    assert_eq!(placed.await.expect("placed").choice().basis, Basis::Overlap);
}

#[tokio::test]
async fn only_answers_of_the_picked_pod_are_held_against_its_events() {
    let world = world(1).await;
    hold(&world, 0, &PROMPT[..8], None);
    let elsewhere = Outcome {
        served: Some("127.0.0.1:9999".parse().expect("an address")),
        ..answered(3)
    };
    let failed = Outcome {
        status: Some(400),
        ..answered(3)
    };
    let hung_up = Outcome {
        usage: None,
        ..answered(3)
    };
    let outcomes = [elsewhere, failed, hung_up, answered(0)];
    for (n, outcome) in (0..).zip(outcomes) {
        let placed = world.scheduler.place(ids("r", &fresh(n), "")).await;
        placed.expect("placed").finish(outcome);
        hear(&world);
    }
    drop(world.scheduler.place(ids("r", &fresh(9), "")).await);
    hear(&world);
    let record = world.parity.records()[MODEL];
    assert_eq!((record.agree, record.differ, record.unjudged), (0, 0, 5));
}

#[tokio::test]
async fn a_prompt_that_is_stored_as_it_was_read_agrees() {
    let world = world(1).await;
    hold(&world, 0, &PROMPT[..8], None);
    for (n, more) in [(0, ""), (1, ", \"n\": 2")] {
        let placed = world.scheduler.place(ids("r", &fresh(n), more)).await;
        hold(&world, 0, &fresh(n)[..12], None);
        hear(&world);
        drop(placed);
        assert_eq!(world.parity.records()[MODEL].agree, u64::from(n) + 1);
    }
}

#[tokio::test]
async fn an_explanation_is_what_a_placement_would_be_and_places_nothing() {
    let world = world(3).await;
    hold(&world, 1, &PROMPT[..8], None);
    let ask = ids("a", &PROMPT, "");
    // Whatever is read is measured where that is done.
    let counts = || {
        let text = world.metrics.handle().render();
        let ours = |line: &&str| !line.contains("kvscout_tokenizer_");
        let mut lines: Vec<String> = text.lines().filter(ours).map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let before = counts();
    let explained = world.scheduler.explain(&ask, &Knobs::default()).await;
    let explained = explained.expect("it would be placed");
    assert_eq!(counts(), before, "nothing is counted");
    let endpoints = world.fleet.borrow().endpoints.clone();
    assert!(
        endpoints
            .iter()
            .all(|endpoint| endpoint.load.requests() == 0)
    );
    assert!(world.scheduler.parts.decisions.of_request("a").is_none());
    assert_eq!((explained.tokens, explained.prompts), (9, 1));
    assert_eq!(explained.blocks, [(Shape::from(4), 2)]);
    assert_eq!(explained.outlook, Outlook::AtOnce);

    let placed = world.scheduler.place(ask).await.expect("placed");
    assert_eq!(placed.choice(), &explained.decision.choice);
    assert_eq!(placed.decision.case, explained.decision.case);
    let kept = world.scheduler.parts.decisions.of_request("a");
    assert_eq!(kept.expect("kept").choice.predicted_cached_tokens, 8);
}

#[tokio::test]
async fn an_explanation_says_what_would_be_otherwise() {
    let world = world(3).await;
    hold(&world, 1, &PROMPT[..8], None);
    hold(&world, 2, &PROMPT[..4], None);
    let ask = ids("a", &PROMPT, "");
    let explain = async |knobs: Knobs| world.scheduler.explain(&ask, &knobs).await;
    let gone = |name: &str| Knobs {
        without: vec![name.into()],
        ..Knobs::default()
    };
    let explained = explain(gone("pod-1")).await.expect("two are left");
    assert_eq!(explained.decision.fleet.endpoints.len(), 2);
    assert_eq!(
        explained.decision.choice.predicted_cached_tokens, 4,
        "pod-2's 4 of 9 are too few"
    );
    assert!(!explained.decision.choice.prefix_aware);
    let lower = Knobs {
        matching_ratio_min: Some(0.3),
        ..gone("pod-1")
    };
    let explained = explain(lower).await.expect("two are left");
    assert_eq!(explained.decision.choice.endpoint, EndpointId(2));
    assert!(explained.decision.choice.prefix_aware);
    let stranger = explain(gone("pod-7"))
        .await
        .expect_err("nobody has that name");
    assert!(
        stranger
            .to_string()
            .contains("no endpoint is called \"pod-7\""),
        "{stranger}"
    );
}

#[tokio::test]
async fn a_prediction_that_missed_is_told_with_its_cause() {
    let world = world(1).await;
    hold(&world, 0, &PROMPT[..8], None);
    let endpoint = world.fleet.borrow().endpoints[0].clone();
    let told = async |request: &str, between: fn(&Endpoint)| {
        let placed = world.scheduler.place(ids(request, &PROMPT, "")).await;
        let placed = placed.expect("placed");
        between(&endpoint);
        placed.finish(Outcome {
            status: Some(200),
            usage: Some(usage(Some(0))),
            served: None,
            whole: true,
            ..Outcome::default()
        });
        let kept = world
            .scheduler
            .parts
            .decisions
            .of_request(request)
            .expect("kept");
        let ended = kept.ended().expect("it ended");
        ended
            .audited
            .and_then(|audited| audited.cause)
            .map(|cause| cause.as_str())
    };
    assert_eq!(told("a", |_| ()).await, Some("unknown"));
    let removed = told("b", |endpoint| endpoint.heard.add(0, 2, false, None));
    assert_eq!(removed.await, Some("eviction_race"));
    let lost = told("c", |endpoint| endpoint.heard.add(0, 2, true, None));
    assert_eq!(lost.await, Some("gap"));
    let text = world.metrics.handle().render();
    for line in [
        "kvscout_prediction_errors_total{endpoint=\"pod-0\",cause=\"gap\"} 1",
        "kvscout_blind_cached_tokens_total{endpoint=\"pod-0\"} 24",
        "kvscout_prefill_tokens_saved_total{endpoint=\"pod-0\"} 0",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

/// Speculative decoding before vLLM 0.33.
#[tokio::test]
async fn a_server_that_computes_the_last_block_again_is_predicted_so_once_its_reports_tell() {
    let world = world(1).await;
    hold(&world, 0, &PROMPT[..8], None);
    let predicted = async |reported: u64| {
        let placed = world.scheduler.place(ids("r", &PROMPT, "")).await;
        let placed = placed.expect("placed");
        let predicted = placed.choice().predicted_cached_tokens;
        placed.finish(Outcome {
            status: Some(200),
            usage: Some(usage(Some(reported))),
            whole: true,
            ..Outcome::default()
        });
        predicted
    };
    for _ in 0..8 {
        assert_eq!(predicted(4).await, 8);
    }
    assert_eq!(predicted(4).await, 4);
    let text = world.metrics.handle().render();
    let exact = "kvscout_predictions_total{endpoint=\"pod-0\",verdict=\"exact\"} 1";
    assert!(text.contains(exact), "{text}");
}

#[tokio::test]
async fn a_model_that_no_rule_names_is_no_label() {
    let world = world(1).await;
    let all = Target {
        model: "sql".into(),
        weight: 1,
    };
    let rules = Rules::default().with_others(&[all]);
    world.routes.send_replace(Arc::new(rules.into()));
    for model in ["one", "two"] {
        let body = format!("{{\"prompt\": [1], \"model\": \"{model}\"}}");
        let placed = world
            .scheduler
            .place(ask("a", "/v1/completions", body))
            .await;
        drop(placed.expect("placed"));
    }
    let text = world.metrics.handle().render();
    let counted = "kvscout_model_targets_total{model=\"*\",target=\"sql\"} 2";
    assert!(text.contains(counted), "{text}");
}

/// Pools of some of the endpoints each, asked for at a Service of its name.
fn pools_of(world: &World, pools: &[(&str, &[usize])]) {
    let endpoints = world.fleet.borrow().endpoints.clone();
    let pool = |(name, of): &(&str, &[usize])| Pool {
        name: (*name).into(),
        namespace: "llm".into(),
        services: vec![(*name).to_owned()],
        fleet: Arc::new(Fleet::of(
            of.iter().map(|n| endpoints[*n].clone()).collect(),
        )),
    };
    let pools = pools.iter().map(pool).collect();
    let fleet = Fleet::of(endpoints.clone()).with_pools(pools);
    world.fleet.send_replace(Arc::new(fleet));
}

fn hinted(pool: Option<&str>, authority: Option<&str>) -> PoolHint {
    PoolHint {
        pool: pool.map(str::to_owned),
        authority: authority.map(str::to_owned),
    }
}

#[tokio::test]
async fn a_request_goes_to_its_own_pool_whoever_else_holds_its_prefix() {
    let world = world(3).await;
    pools_of(&world, &[("a", &[0]), ("b", &[1, 2])]);
    hold(&world, 0, &PROMPT[..8], None);
    let goes = async |pool: PoolHint| {
        let request = Ask {
            pool,
            ..ids("r", &PROMPT, "")
        };
        let placed = world.scheduler.place(request).await.expect("placed");
        (placed.address().port(), placed.decision.pool.clone())
    };
    let (a, b) = (Some("a".into()), Some("b".into()));
    assert_eq!(goes(hinted(Some("a"), None)).await, (8000, a.clone()));
    assert_ne!(goes(hinted(Some("llm/b"), None)).await.0, 8000);
    assert_eq!(goes(hinted(None, Some("a.llm.svc:9002"))).await, (8000, a));
    let asked = hinted(None, Some("outbound+9002++b.llm.svc.cluster.local"));
    assert_eq!(goes(asked).await.1, b);
    // What is said first counts; what fits nobody says nothing, and everybody may get it.
    assert_eq!(goes(hinted(Some("b"), Some("a"))).await.1, b);
    let nobody = hinted(Some("typo"), Some("kvscout"));
    assert_eq!(goes(nobody).await, (8000, None));
    let allowed = Ask {
        subset: Some(vec!["127.0.0.1:8000".to_owned()]),
        pool: hinted(Some("b"), None),
        ..ids("r", &PROMPT, "")
    };
    let placed = world.scheduler.place(allowed).await.expect("placed");
    assert_eq!(placed.address().port(), 8000, "what is allowed comes first");
    let counted = |pool: &str, count: u32| {
        let line = format!(
            "kvscout_requests_total{{pool=\"{pool}\",basis=\"overlap\",reason=\"\",outcome=\"placed\"}} {count}"
        );
        let text = world.metrics.handle().render();
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    };
    counted("a", 3);
    counted("b", 3);
    counted("unknown", 1);
}

#[tokio::test]
async fn a_pool_without_endpoints_has_none_of_anothers() {
    let world = world(1).await;
    pools_of(&world, &[("a", &[0]), ("empty", &[])]);
    let ask = ByLoad {
        request_id: "r".into(),
        subset: None,
        pool: hinted(Some("empty"), None),
        objective: None,
        session: None,
        body_bytes: 0,
        trace: None,
        reason: "no_body",
    };
    let refused = world.scheduler.place_by_load(&ask);
    assert_eq!(refused.err(), Some(Refusal::NoEndpoint));
    let other = ByLoad {
        pool: hinted(Some("a"), None),
        ..ask
    };
    assert!(world.scheduler.place_by_load(&other).is_ok());
}

#[tokio::test]
async fn where_the_gateway_does_not_say_it_the_request_tells_its_pool() {
    let world = world(3).await;
    pools_of(&world, &[("a", &[0]), ("b", &[1]), ("c", &[2])]);
    let rules = |name: &str, objective: &str| {
        let model = InferenceModel {
            name: name.into(),
            criticality: Criticality::Standard,
            priority: 0,
            targets: Vec::new(),
        };
        let objective = config::InferenceObjective {
            name: objective.into(),
            priority: 1,
        };
        Rules::of(&[model], &[objective])
    };
    let pools = [("a", rules("chat", "paid")), ("b", rules("other", "batch"))];
    let pools = pools.map(|(name, rules)| (name.into(), rules));
    let routes = Routes::default().with_pools(pools.into());
    world.routes.send_replace(Arc::new(routes));
    let report = Report {
        model: Some("served".into()),
        ..Report::default()
    };
    let third = world.fleet.borrow().endpoints[2].clone();
    let told = (third.load.ours(), Instant::now(), Duration::from_secs(1));
    third.load.told(report, told.0, told.1, told.2);
    let goes = async |model: &str, subset: Option<&str>, objective: Option<&str>| {
        let request = Ask {
            subset: subset.map(|one| vec![one.to_owned()]),
            objective: objective.map(str::to_owned),
            ..ask(
                "r",
                "/v1/completions",
                format!("{{\"model\": \"{model}\", \"prompt\": [1]}}"),
            )
        };
        let placed = world.scheduler.place(request).await.expect("placed");
        placed.decision.pool.as_deref().map(str::to_owned)
    };
    let is = |pool: &str| Some(pool.to_owned());
    assert_eq!(goes("chat", None, None).await, is("a"), "a rule has it");
    assert_eq!(goes("other", None, None).await, is("b"));
    assert_eq!(
        goes("served", None, None).await,
        is("c"),
        "its server says so"
    );
    assert_eq!(goes("nobody's", None, None).await, None);
    assert_eq!(
        goes("nobody's", None, Some("batch")).await,
        is("b"),
        "its objective is the pool's"
    );
    assert_eq!(
        goes("chat", Some("127.0.0.1:8002"), None).await,
        is("c"),
        "the gateway allows it alone"
    );
}

#[tokio::test]
async fn a_pools_strategy_is_for_its_own_requests() {
    let world = world(2).await;
    pools_of(&world, &[("a", &[0]), ("b", &[1])]);
    let by_load = Rules::default().with_strategy(Some(Strategy::Default));
    let pools = [("a".into(), by_load), ("b".into(), Rules::default())];
    let routes = Routes::default().with_pools(pools.into());
    world.routes.send_replace(Arc::new(routes));
    let reason = async |pool: &str| {
        let request = Ask {
            pool: hinted(Some(pool), None),
            ..ids("r", &PROMPT, "")
        };
        let placed = world.scheduler.place(request).await.expect("placed");
        placed.choice().basis.reason()
    };
    assert_eq!(reason("a").await, "strategy");
    assert_eq!(reason("b").await, "");
}
