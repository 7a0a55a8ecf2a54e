//! Two kinds of pods of one name: pod-0 reads as the entry "chat", pod-1 as it says.

use std::path::Path;

use tokio::sync::watch;

use super::*;
use crate::audit::{Usage, Verdict};
use crate::blocks::{BlockEvent, EngineHash, Stored, TokenId};
use crate::config::{Config, Engine, Model, RenderSettings, Source};
use crate::decisions::json::Decision as Told;
use crate::decisions::what_if::{Knobs, Report};
use crate::index::Index;
use crate::metrics::Metrics;
use crate::parity::Parity;
use crate::scheduler::{Outcome, Placement, tests};

const OLD: &str = "{% for m in messages %}{{ m.content }} {% endfor %}";
const NEW: &str = "system {% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %} end";
const FAILS: &str = "{{ raise_exception('not for you') }}";

/// Entries "chat" (with the adapter "sql"), "new", "fails".
struct World {
    scheduler: Scheduler,
    index: Arc<Index>,
    parity: Arc<Parity>,
    metrics: Arc<Metrics>,
    fleet: watch::Sender<Arc<Fleet>>,
    _folder: tempfile::TempDir,
}

/// Every word is one token, so that no vocabulary has to be fetched.
fn model(name: &str, template: &str, folder: &Path) -> Model {
    let words = ["?", "system", "user", "end", "a", "b", "c", "d"];
    let vocabulary: serde_json::Map<_, _> = (0..)
        .zip(words)
        .map(|(id, word)| (word.to_owned(), id.into()))
        .collect();
    let words = serde_json::json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
    });
    let folder = folder.join(name);
    std::fs::create_dir(&folder).expect("a folder");
    let write =
        |file: &str, text: String| std::fs::write(folder.join(file), text).expect("written");
    write("tokenizer.json", words.to_string());
    let template = serde_json::json!({ "chat_template": template });
    write("tokenizer_config.json", template.to_string());
    Model {
        names: vec![name.to_owned()],
        adapters: Vec::new(),
        source: Source::Folder(folder),
        engine: Engine::Reference,
        render: RenderSettings::default(),
    }
}

fn fleet(all: &[ReadsAs]) -> Fleet {
    let endpoints = (0..).zip(all);
    let endpoints = endpoints.map(|(id, reads_as)| tests::endpoint_reading(id, *reads_as));
    Fleet::of(endpoints.collect())
}

/// Pods that read so.
async fn world(all: &[ReadsAs]) -> World {
    let (folder, mut config) = (tempfile::tempdir().expect("a folder"), Config::default());
    for (name, template) in [("chat", OLD), ("new", NEW), ("fails", FAILS)] {
        config.models.push(model(name, template, folder.path()));
    }
    config.models[0].adapters.push("sql".into());
    let tests::World {
        scheduler,
        index,
        parity,
        metrics,
        fleet,
        ..
    } = tests::over(config, fleet(all)).await;
    World {
        scheduler,
        index,
        parity,
        metrics,
        fleet,
        _folder: folder,
    }
}

/// A chat of so many words.
fn chat(model: &str, words: usize) -> Ask {
    let words = ["a", "b", "c", "d"].iter().cycle().take(words);
    let content = words.copied().collect::<Vec<_>>().join(" ");
    let messages = [serde_json::json!({"role": "user", "content": content})];
    let body = serde_json::json!({"model": model, "messages": messages});
    Ask {
        request_id: "r".into(),
        path: "/v1/chat/completions".into(),
        body: body.to_string().into(),
        ..Ask::default()
    }
}

impl World {
    /// As the pods of now read it.
    async fn read(&self, ask: &Ask) -> Readings {
        let allowed = self.fleet.borrow().clone();
        let intent = self.scheduler.intent(ask);
        self.scheduler.read(ask, &intent, &allowed).await
    }

    async fn place(&self, ask: Ask) -> Placement {
        self.scheduler.place(ask).await.expect("placed")
    }

    /// All full blocks of these tokens, four to a block.
    fn hold(&self, endpoint: u32, tokens: &[TokenId], adapter: Option<&str>) {
        let tokens = &tokens[..tokens.len() / 4 * 4];
        let hashes =
            (0..tokens.len() as u64 / 4).map(|n| EngineHash(1000 * u64::from(endpoint) + n));
        let stored = Stored {
            adapter: adapter.map(str::to_owned),
            ..Stored::plain(None, hashes.collect(), tokens.to_vec())
        };
        let stored = [BlockEvent::Stored(stored)];
        self.index.apply(EndpointId(endpoint), &stored);
    }

    /// Texts that were tokenized by now.
    fn read_by_now(&self) -> u64 {
        let text = self.metrics.handle().render();
        let count = "kvscout_tokenizer_work_seconds_count ";
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(count));
        lines
            .next()
            .map_or(0, |count| count.parse().expect("a number"))
    }
}

/// 40 words, read by the two templates: 40 tokens, and 43 that begin otherwise.
const BOTH: [ReadsAs; 2] = [ReadsAs::Named, ReadsAs::Entry(1)];

#[tokio::test]
async fn pods_of_two_templates_are_each_predicted_and_audited_by_their_own() {
    let world = world(&BOTH).await;
    let ask = chat("chat", 40);
    let readings = world.read(&ask).await;
    let lengths: Vec<usize> = readings
        .iter()
        .map(|reading| reading.tokens.len())
        .collect();
    assert_eq!(lengths, [40, 43]);
    // Each holds what it would hold had it served the prompt.
    for (endpoint, reading) in (0..).zip(readings.iter()) {
        world.hold(endpoint, &reading.tokens, None);
    }
    for (mine, other, tokens, cached) in
        [("127.0.0.1:8000", 1, 40, 36), ("127.0.0.1:8001", 0, 43, 40)]
    {
        let ask = Ask {
            subset: Some(vec![mine.into()]),
            ..ask.clone()
        };
        let placed = world.place(ask).await;
        let choice = placed.choice();
        let told = (choice.prompt_tokens, choice.predicted_cached_tokens);
        assert_eq!((choice.basis, told), (Basis::Overlap, (tokens, cached)));
        assert_eq!(placed.endpoint().load.prefill_tokens(), tokens - cached);
        assert_ne!(placed.endpoint().id, EndpointId(other));
    }
    let placed = world.place(ask.clone()).await;
    let held: Vec<u64> = placed
        .decision
        .case
        .candidates
        .iter()
        .map(|one| one.cached.tokens())
        .collect();
    assert_eq!(held, [36, 40], "both at the same time");
    // A retry went to the other one: the audit is of what that one reads.
    let picked = placed.endpoint().id;
    let (served, tokens, cached) = match picked {
        EndpointId(0) => (8001, 43, 40),
        _ => (8000, 40, 36),
    };
    let decision = placed.decision();
    placed.finish(Outcome {
        status: Some(200),
        usage: Some(Usage {
            prompt_tokens: tokens,
            completion_tokens: 1,
            cached_tokens: Some(cached),
            unasked: false,
        }),
        served: Some(([127, 0, 0, 1], served).into()),
        whole: true,
        ..Outcome::default()
    });
    let audited = decision.ended().and_then(|ended| ended.audited);
    assert_eq!(audited.map(|audited| audited.verdict), Some(Verdict::Exact));
}

#[tokio::test]
async fn what_was_placed_is_expected_and_watched_by_its_own_reading() {
    let world = world(&BOTH).await;
    let ask = Ask {
        subset: Some(vec!["127.0.0.1:8001".into()]),
        ..chat("chat", 40)
    };
    let tokens = world.read(&ask).await.at(1).tokens.clone();
    world.hold(1, &tokens[..4], None);
    let placed = world.place(ask.clone()).await;
    assert_eq!(placed.choice().predicted_cached_tokens, 4);
    assert_eq!(placed.decision.model.as_deref(), Some("new"));
    let next = world.place(ask).await;
    assert_eq!(next.choice().predicted_cached_tokens, 40, "expected there");
    world.hold(1, &tokens, None);
    let heard = crate::parity::Heard {
        timestamp: Some(1.0),
        now_s: 1.0,
        unbroken: true,
    };
    world.parity.heard(EndpointId(1), heard);
    drop((placed, next));
    let records = world.parity.records();
    assert_eq!((records["new"].agree, records["new"].differ), (1, 0));
    assert_eq!((records["chat"].agree, records["chat"].differ), (0, 0));
}

#[tokio::test]
async fn a_prompt_is_read_once_for_each_entry_and_no_more() {
    for (all, times) in [
        (&[ReadsAs::Named; 3][..], 1),
        // It is the request's own entry.
        (&[ReadsAs::Entry(0), ReadsAs::Named, ReadsAs::Entry(0)], 1),
        (&[ReadsAs::Entry(1), ReadsAs::Entry(1)], 1),
        (&[ReadsAs::Entry(1), ReadsAs::Named, ReadsAs::Entry(1)], 2),
    ] {
        let world = world(all).await;
        let before = world.read_by_now();
        world.place(chat("chat", 40)).await;
        assert_eq!(world.read_by_now() - before, times, "{all:?}");
    }
}

#[tokio::test]
async fn where_nobody_says_how_he_reads_nothing_more_is_allocated() {
    let world = world(&[ReadsAs::Named; 3]).await;
    let readings = world.read(&chat("chat", 40)).await;
    let mut chains = readings.chains();
    let allowed = world.fleet.borrow().clone();
    let held = world.scheduler.overlaps(&readings, &mut chains, &allowed);
    let prompts = world.scheduler.prompts(&readings);
    let spilled = [
        readings.all.spilled(),
        readings.places.spilled(),
        chains.spilled(),
        held.0.spilled(),
        prompts.spilled(),
    ];
    assert_eq!(spilled, [false; 5]);
}

#[tokio::test]
async fn whoever_cannot_be_read_is_chosen_by_load_and_the_others_are_exact() {
    for (other, reason) in [
        (ReadsAs::Unknown, "unknown_entry"),
        (ReadsAs::Entry(2), "template"),
    ] {
        let world = world(&[ReadsAs::Named, other]).await;
        let ask = chat("chat", 400);
        let readings = world.read(&ask).await;
        let tokens = readings.at(0).tokens.clone();
        world.hold(0, &tokens, None);
        world.hold(1, &tokens, None);
        let placed = world.place(ask.clone()).await;
        let choice = placed.choice();
        let told = (
            placed.endpoint().id.0,
            choice.basis,
            choice.predicted_cached_tokens,
        );
        assert_eq!(told, (0, Basis::Overlap, 396));
        // The first has more to do by now than the whole prompt is.
        let endpoint = world.fleet.borrow().endpoints[0].clone();
        let _work = crate::fleet::Booking::new(endpoint, 5_000, 1, Instant::now());
        let by_load = world.place(ask).await;
        let choice = by_load.choice();
        let told = (
            by_load.endpoint().id.0,
            choice.basis,
            choice.predicted_cached_tokens,
        );
        assert_eq!(told, (1, Basis::LoadOnly(reason), 0));
        assert_eq!(
            choice.prompt_tokens, 400,
            "as many as who could read it counts"
        );
        let told = Told::whole(&by_load.decision);
        let own = told.candidates.iter().find(|one| one.endpoint == "pod-0");
        let own = own.and_then(|one| one.reading.clone()).expect("its own");
        assert_eq!((&*own.basis, own.prompt_tokens), ("overlap", 400));
        // And what is logged of it is made again as it was.
        let mut report = Report::default();
        report.replay(&told, &Knobs::default()).expect("whole");
        assert_eq!(report.reproduced, 1);
    }
}

#[tokio::test]
async fn a_conversation_stays_where_nobody_can_read_it() {
    let world = world(&[ReadsAs::Unknown, ReadsAs::Entry(2), ReadsAs::Unknown]).await;
    let first = world.place(chat("chat", 40)).await;
    assert_eq!(first.decision.decided_by(), "home");
    let again = world.place(Ask {
        request_id: "other".into(),
        ..chat("chat", 40)
    });
    assert_eq!(again.await.endpoint().id, first.endpoint().id);
}

#[tokio::test]
async fn a_name_or_adapter_is_known_whichever_entry_reads_it() {
    let world = world(&[ReadsAs::Entry(1)]).await;
    let tokens = world.read(&chat("chat", 40)).await.at(0).tokens.clone();
    world.hold(0, &tokens, Some("sql"));
    for (name, cached, asked_for) in [("sql", 40, "sql"), ("chat", 0, "chat"), ("other", 0, "new")]
    {
        let placed = world.place(chat(name, 40)).await;
        let choice = placed.choice();
        let told = (choice.basis, choice.predicted_cached_tokens);
        assert_eq!(told, (Basis::Overlap, cached), "{name}");
        assert_eq!(placed.decision.model.as_deref(), Some("new"));
        let reading = world.read(&chat(name, 40)).await;
        assert_eq!(reading.at(0).asked_for.as_deref(), Some(asked_for));
    }
}

#[tokio::test]
async fn whoever_came_while_a_request_waited_gets_it_by_load_where_nobody_read_as_he_does() {
    let world = world(&[ReadsAs::Named]).await;
    let mut readings = world.read(&chat("chat", 40)).await;
    let later = fleet(&[ReadsAs::Named, ReadsAs::Entry(0), ReadsAs::Entry(1)]);
    readings.joined_by(&later);
    let place = |at: usize| readings.place(&later.endpoints[at]);
    assert_eq!([place(0), place(1), place(2)], [0, 0, 1]);
    let unread = readings.at(1);
    assert_eq!(
        (unread.basis, unread.prompt_tokens),
        (Basis::LoadOnly("not_read"), 40)
    );
    let mut alike = Readings::alike(Reading::load_only("strategy", 160));
    alike.joined_by(&later);
    assert_eq!(alike.iter().count(), 1, "nobody wants to know");
}
