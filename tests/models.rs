//! Models as they come, change and fail: folders on a disk, a hub over HTTP, requests meanwhile.

mod harness;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use harness::hub::{FakeHub, Mood};
use harness::{PATIENCE, over, soon};
use kvscout::choice::Basis;
use kvscout::config::{Config, Engine, Model, RenderSettings, Repo, Source};
use kvscout::fleet::{Endpoint, EndpointId, Fleet};
use kvscout::metrics::Metrics;
use kvscout::models::{Hub, Loader, Missing, Models};
use kvscout::readiness::Readiness;
use kvscout::scheduler::{Ask, Scheduler};
use kvscout::tokens::{Size, TokenPool};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A vocabulary in which "hello" is this id and each "!" 7.
fn vocabulary(hello: u32) -> String {
    format!(
        r#"{{"version": "1.0", "added_tokens": [], "pre_tokenizer": {{"type": "Whitespace"}},
        "model": {{"type": "WordLevel", "vocab": {{"hello": {hello}, "!": 7}}, "unk_token": "!"}}}}"#
    )
}

/// A chat is its contents, and so many marks.
fn config_json(marks: usize) -> String {
    let marks = "! ".repeat(marks);
    format!(
        r#"{{"chat_template": "{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}} {marks}"}}"#
    )
}

fn model(name: &str, source: Source) -> Model {
    Model {
        names: vec![name.into()],
        adapters: vec![format!("{name}-lora")],
        source,
        engine: Engine::Reference,
        render: RenderSettings::default(),
    }
}

/// A loader at work.
struct World {
    metrics: Arc<Metrics>,
    readiness: Readiness,
    models: watch::Receiver<Arc<Models>>,
    cache: PathBuf,
    loading: JoinHandle<anyhow::Result<()>>,
    _folder: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.loading.abort();
    }
}

/// Nobody is there.
fn no_hub() -> Hub {
    Hub::new("http://127.0.0.1:1", None)
}

impl World {
    fn start(models: Vec<Model>, hub: Hub) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = folder.path().join("cache");
        Self::with_cache(models, hub, cache, folder)
    }

    fn with_cache(models: Vec<Model>, hub: Hub, cache: PathBuf, folder: tempfile::TempDir) -> Self {
        let config = Config {
            models,
            models_cache: cache.clone(),
            ..Config::default()
        };
        let (metrics, readiness) = (Arc::new(Metrics::default()), Readiness::default());
        let (loader, models) = Loader::new(&config, hub, &metrics, &readiness);
        Self {
            metrics,
            readiness,
            models,
            cache,
            loading: tokio::spawn(loader.run()),
            _folder: folder,
        }
    }

    /// Until the first attempt at every model has ended.
    async fn ready(&self) {
        let mut pending = self.readiness.watch();
        let ready = pending.wait_for(|pending| pending.is_empty());
        drop(soon("every first attempt", ready).await.expect("it lives"));
    }

    fn id_of_hello(&self, name: &str) -> Result<u32, Missing> {
        let named = self.models.borrow().get(name)?;
        let ids = named.model.tokenizer.encode("hello", false);
        Ok(ids.expect("a known word")[0])
    }

    async fn until_hello_is(&mut self, id: u32) {
        let mut models = self.models.clone();
        let known = |models: &Arc<Models>| {
            models.get("m").is_ok_and(|named| {
                named.model.tokenizer.encode("hello", false).expect("known")[0] == id
            })
        };
        drop(
            soon("the other vocabulary", models.wait_for(known))
                .await
                .expect("it lives"),
        );
    }

    async fn until_remarked(&self, part: &str) -> String {
        let remarked = async {
            loop {
                if let Some(remark) = self
                    .readiness
                    .remarks()
                    .into_iter()
                    .find(|one| one.contains(part))
                {
                    return remark;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(part, remarked).await
    }

    fn counts(&self, line: &str) -> bool {
        self.metrics.handle().render().contains(line)
    }
}

fn write_folder(folder: &Path, hello: u32, marks: usize) {
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join("tokenizer_config.json"), config_json(marks)).expect("written");
    std::fs::write(folder.join("tokenizer.json"), vocabulary(hello)).expect("written");
}

fn repo(revision: &str) -> Source {
    Source::Hub(Repo {
        id: "owner/name".into(),
        revision: revision.into(),
    })
}

/// A commit whose "hello" is its digit.
fn commit(hub: &FakeHub, digit: char) -> String {
    let hello = digit.to_digit(10).expect("a digit");
    let files = [
        ("tokenizer.json", &*vocabulary(hello)),
        ("tokenizer_config.json", "{}"),
        ("chat_template.jinja", "{{ messages[0].content }}"),
    ];
    hub.commit(digit, &files)
}

#[tokio::test]
async fn a_model_comes_from_the_hub_before_requests_are_welcome() {
    let hub = FakeHub::start().await;
    let sha = commit(&hub, '1');
    hub.require("hf_secret");
    let known = Hub::new(&hub.endpoint(), Some("hf_secret\n"));
    let world = World::start(vec![model("m", repo("main"))], known);
    assert_eq!(world.readiness.pending(), ["models"]);
    assert_eq!(world.id_of_hello("m").err(), Some(Missing::NotLoaded));
    assert_eq!(world.id_of_hello("other").err(), Some(Missing::Unknown));
    world.ready().await;
    assert_eq!(world.id_of_hello("m"), Ok(1));
    let lora = world.models.borrow().get("m-lora").expect("loaded with it");
    assert_eq!(lora.adapter.as_deref(), Some("m-lora"));
    assert!(world.readiness.remarks().is_empty());
    // The weights are not fetched, and the token stays with the hub.
    let file = |name| format!("file owner/name@{sha}: {name}");
    let asked = [
        "list owner/name@main".to_owned(),
        file("tokenizer.json"),
        file("tokenizer_config.json"),
        file("chat_template.jinja"),
    ];
    assert_eq!(hub.asked(), asked);
    let stored = world.cache.join("owner--name").join(&sha);
    let template = std::fs::read_to_string(stored.join("chat_template.jinja")).expect("stored");
    assert_eq!(template, "{{ messages[0].content }}");
    assert!(world.counts("kvscout_model_loads_total{model=\"m\"} 1"));
}

#[tokio::test]
async fn a_cache_starts_without_the_hub_and_asks_it_again() {
    let hub = FakeHub::start().await;
    commit(&hub, '1');
    let first = World::start(
        vec![model("m", repo("refs/pr/1"))],
        Hub::new(&hub.endpoint(), None),
    );
    first.ready().await;
    let (cache, folder) = (first.cache.clone(), tempfile::tempdir().expect("a folder"));
    hub.set_mood(Mood::Broken);
    let mut again = World::with_cache(
        vec![model("m", repo("refs/pr/1")), model("x", repo("other"))],
        Hub::new(&hub.endpoint(), None),
        cache,
        folder,
    );
    again.ready().await;
    assert_eq!(again.id_of_hello("m"), Ok(1));
    assert_eq!(again.id_of_hello("x").err(), Some(Missing::NotLoaded));
    let remark = again
        .until_remarked("what was loaded before serves on")
        .await;
    assert!(
        remark.contains("500") && remark.contains("model m"),
        "{remark}"
    );
    commit(&hub, '2');
    hub.set_mood(Mood::Fine);
    again.until_hello_is(2).await;
    soon("nothing to remark", async {
        while !again.readiness.remarks().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(first);
}

#[tokio::test]
async fn a_commit_that_is_here_needs_no_hub() {
    let hub = FakeHub::start().await;
    let sha = commit(&hub, '3');
    let first = World::start(
        vec![model("m", repo("main"))],
        Hub::new(&hub.endpoint(), None),
    );
    first.ready().await;
    let folder = tempfile::tempdir().expect("a folder");
    let again = World::with_cache(
        vec![model("m", repo(&sha))],
        no_hub(),
        first.cache.clone(),
        folder,
    );
    again.ready().await;
    assert_eq!(again.id_of_hello("m"), Ok(3));
    assert!(again.readiness.remarks().is_empty());
}

#[tokio::test]
async fn what_the_hub_does_wrong_is_named_and_mends_without_a_restart() {
    for (mood, told) in [
        (Mood::Broken, "500 Internal Server Error"),
        (Mood::CutShort, "tokenizer.json: "),
        (Mood::Spoilt, "its SHA-256"),
        (Mood::Silent, "timed out"),
    ] {
        let hub = FakeHub::start().await;
        commit(&hub, '1');
        hub.set_mood(mood);
        let asked = Hub::new(&hub.endpoint(), None).with_silence_max(Duration::from_millis(200));
        let mut world = World::start(vec![model("m", repo("main"))], asked);
        world.ready().await;
        let remark = world
            .until_remarked("model m: is not loaded, so that load decides")
            .await;
        assert!(remark.contains(told), "{mood:?}: {remark}");
        assert!(!remark.contains("signature"), "{remark}");
        let stored = world.cache.join("owner--name");
        let left = std::fs::read_dir(&stored).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{mood:?} left something in {}", stored.display());
        hub.set_mood(Mood::Fine);
        world.until_hello_is(1).await;
        assert!(
            world.counts("kvscout_model_load_failures_total{model=\"m\"} "),
            "{mood:?}"
        );
    }
}

#[tokio::test]
async fn a_refusal_says_what_to_do() {
    let hub = FakeHub::start().await;
    commit(&hub, '1');
    let nowhere = Source::Hub(Repo {
        id: "owner/nothing".into(),
        revision: "main".into(),
    });
    let open = World::start(vec![model("m", nowhere)], Hub::new(&hub.endpoint(), None));
    assert!(
        open.until_remarked("404")
            .await
            .contains("the revision right?")
    );
    hub.require("hf_secret");
    let strange = World::start(
        vec![model("m", repo("main"))],
        Hub::new(&hub.endpoint(), None),
    );
    let remark = strange.until_remarked("401").await;
    assert!(remark.contains("set HF_TOKEN"), "{remark}");
    hub.commit('2', &[("tokenizer_config.json", "{}")]);
    let bare = World::start(
        vec![model("m", repo("main"))],
        Hub::new(&hub.endpoint(), Some("hf_secret")),
    );
    let remark = bare.until_remarked("has no tokenizer.json").await;
    assert!(remark.contains("owner/name"), "{remark}");
}

#[tokio::test]
async fn a_cache_that_nobody_can_write_is_named() {
    let hub = FakeHub::start().await;
    commit(&hub, '1');
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a-file");
    std::fs::write(&file, "").expect("written");
    let world = World::with_cache(
        vec![model("m", repo("main"))],
        Hub::new(&hub.endpoint(), None),
        file,
        folder,
    );
    let remark = world.until_remarked("models_cache").await;
    assert!(
        remark.contains("a-file") && remark.contains("mount a writable folder"),
        "{remark}"
    );
}

#[tokio::test]
async fn a_spoilt_copy_in_the_cache_is_fetched_anew() {
    let hub = FakeHub::start().await;
    let sha = commit(&hub, '1');
    let first = World::start(
        vec![model("m", repo("main"))],
        Hub::new(&hub.endpoint(), None),
    );
    first.ready().await;
    let stored = first
        .cache
        .join("owner--name")
        .join(sha)
        .join("tokenizer.json");
    std::fs::write(stored, "{").expect("written");
    let folder = tempfile::tempdir().expect("a folder");
    let hub = Hub::new(&hub.endpoint(), None);
    let mut again = World::with_cache(
        vec![model("m", repo("main"))],
        hub,
        first.cache.clone(),
        folder,
    );
    again.until_hello_is(1).await;
}

#[tokio::test]
async fn a_folder_that_comes_late_is_loaded_and_one_that_breaks_serves_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let late = folder.path().join("late");
    let mut world = World::start(vec![model("m", Source::Folder(late.clone()))], no_hub());
    world.ready().await;
    let remark = world
        .until_remarked("is not loaded, so that load decides")
        .await;
    assert!(remark.contains("tokenizer_config.json"), "{remark}");
    write_folder(&late, 1, 0);
    world.until_hello_is(1).await;
    assert!(world.readiness.remarks().is_empty());

    std::fs::write(late.join("tokenizer.json"), "{\"version\"").expect("written");
    let remark = world
        .until_remarked("what was loaded before serves on")
        .await;
    assert!(remark.contains("tokenizer.json"), "{remark}");
    assert_eq!(world.id_of_hello("m"), Ok(1));
    std::fs::write(late.join("tokenizer.json"), vocabulary(2)).expect("written");
    world.until_hello_is(2).await;
    assert!(world.counts("kvscout_model_loads_total{model=\"m\"} 2"));
}

#[tokio::test]
async fn a_template_that_lies_elsewhere_is_read_again_when_it_changes_and_the_vocabulary_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let template = folder.path().join("template.jinja");
    let write = |text: &str| std::fs::write(&template, text).expect("written");
    write_folder(&folder.path().join("m"), 1, 0);
    write("{{ messages[0].content }}");
    let mut of = model("m", Source::Folder(folder.path().join("m")));
    of.render.chat_template = Some(template.display().to_string());
    let world = World::start(vec![of], no_hub());
    world.ready().await;
    let vocabulary = || {
        let named = world.models.borrow().get("m").expect("loaded");
        named.model.tokenizer.clone()
    };
    let before = vocabulary();
    write("{% if %}");
    let remark = world
        .until_remarked("what was loaded before serves on")
        .await;
    assert!(remark.contains("does not compile"), "{remark}");
    write("{{ messages[0].content }}!");
    let mended = async {
        while !world.readiness.remarks().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("the mended template", mended).await;
    assert!(world.counts("kvscout_model_loads_total{model=\"m\"} 2"));
    assert!(Arc::ptr_eq(&before, &vocabulary()));
}

/// A mounted `ConfigMap`: files are links into `..data`, which is a link to a folder.
struct Mounted {
    root: PathBuf,
}

impl Mounted {
    fn new(root: &Path, hello: u32, marks: usize) -> Self {
        let mounted = Self { root: root.into() };
        mounted.swap("..1", hello, marks);
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::os::unix::fs::symlink(Path::new("..data").join(file), root.join(file))
                .expect("a link");
        }
        mounted
    }

    fn swap(&self, version: &str, hello: u32, marks: usize) {
        write_folder(&self.root.join(version), hello, marks);
        let draft = self.root.join("..data_tmp");
        std::os::unix::fs::symlink(version, &draft).expect("a link");
        std::fs::rename(draft, self.root.join("..data")).expect("swapped");
    }
}

/// A scheduler, and its pool: it reads one long prompt at a time and lets others wait so long.
fn scheduler(world: &World, wait_max: Duration) -> (Scheduler, Arc<TokenPool>) {
    let pool = TokenPool::new(1, 64, wait_max, world.metrics.tokenizer());
    let pool = Arc::new(pool.expect("a thread"));
    let address = SocketAddr::from(([127, 0, 0, 1], 8000));
    let endpoint = Endpoint::new(EndpointId(0), "pod-0".into(), address, None);
    let fleet = Fleet::of(vec![Arc::new(endpoint)]);
    let (_, fleet) = watch::channel(Arc::new(fleet));
    let (models, metrics) = (world.models.clone(), world.metrics.clone());
    (over(fleet, models, pool.clone(), metrics), pool)
}

/// A chat for "m", of which so many bytes are blank.
fn chat(blank: usize) -> Ask {
    let content = format!("hello{}", " ".repeat(blank));
    let body =
        serde_json::json!({"model": "m", "messages": [{"role": "user", "content": content}]});
    Ask {
        request_id: "r".into(),
        path: "/v1/chat/completions".into(),
        body: body.to_string().into(),
        ..Ask::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swapped_folder_is_taken_up_whole_while_requests_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let mounted = Mounted::new(folder.path(), 1, 1);
    let world = World::start(
        vec![model("m", Source::Folder(folder.path().into()))],
        no_hub(),
    );
    world.ready().await;
    let old = {
        let named = world.models.borrow().get("m");
        Arc::downgrade(&named.expect("loaded").model)
    };
    let scheduler = Arc::new(scheduler(&world, PATIENCE).0);
    mounted.swap("..2", 2, 3);
    // Short ones in place and long ones on the pool, until the new template shows: "hello" and
    // its marks are 2 tokens before and 4 after, and nothing else ever.
    let ask = |blank: usize| {
        let scheduler = scheduler.clone();
        tokio::spawn(async move {
            let mut before = 0;
            loop {
                let placed = scheduler.place(chat(blank)).await.expect("placed");
                assert_eq!(placed.choice().basis, Basis::Overlap);
                match placed.choice().prompt_tokens {
                    2 => before += 1,
                    4 => return before,
                    other => panic!("a mixture: {other} tokens"),
                }
                tokio::task::yield_now().await;
            }
        })
    };
    let (short, long) = (ask(0), ask(20_000));
    let before = soon("the new template", async { (short.await, long.await) }).await;
    assert!(before.0.expect("all placed") > 0 && before.1.expect("all placed") > 0);
    assert_eq!(world.id_of_hello("m"), Ok(2));
    soon(
        "the old vocabulary is dropped, and all that it caches",
        async {
            while old.upgrade().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        },
    )
    .await;
}

#[tokio::test]
async fn requests_for_a_model_that_is_not_loaded_go_by_load_and_say_so() {
    let world = World::start(
        vec![model("m", Source::Folder("/nonexistent".into()))],
        no_hub(),
    );
    world.ready().await;
    let placed = scheduler(&world, PATIENCE)
        .0
        .place(chat(0))
        .await
        .expect("placed");
    assert_eq!(placed.choice().basis, Basis::LoadOnly("model_not_loaded"));
}

#[tokio::test]
async fn what_no_core_begins_in_time_goes_by_load_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    write_folder(folder.path(), 1, 0);
    let world = World::start(
        vec![model("m", Source::Folder(folder.path().into()))],
        no_hub(),
    );
    world.ready().await;
    let (scheduler, pool) = scheduler(&world, Duration::from_millis(20));
    let (go, held) = std::sync::mpsc::sync_channel::<()>(1);
    let holding = tokio::spawn({
        let pool = pool.clone();
        async move {
            pool.run(Size::new(TokenPool::LONG), move || held.recv().is_ok())
                .await
        }
    });
    soon("the only core is taken", async {
        while pool.working() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let long = scheduler.place(chat(20_000)).await.expect("placed");
    assert_eq!(long.choice().basis, Basis::LoadOnly("tokenizer_wait"));
    let short = scheduler.place(chat(0)).await.expect("placed");
    assert_eq!(
        short.choice().basis,
        Basis::Overlap,
        "short ones need no turn"
    );
    go.send(()).expect("it waits");
    assert_eq!(holding.await.expect("it ends"), Ok(true));
    let long = scheduler.place(chat(20_000)).await.expect("placed");
    assert_eq!(long.choice().basis, Basis::Overlap);
}

#[tokio::test]
async fn a_template_that_a_request_brings_never_runs_on_the_runtime() {
    let folder = tempfile::tempdir().expect("a folder");
    write_folder(folder.path(), 1, 0);
    for (trusts, waits) in [(false, 0), (true, 1)] {
        let mut model = model("m", Source::Folder(folder.path().into()));
        model.render.trust_request_chat_template = trusts;
        let world = World::start(vec![model], no_hub());
        world.ready().await;
        let placed = scheduler(&world, PATIENCE)
            .0
            .place(chat(0))
            .await
            .expect("placed");
        assert_eq!(placed.choice().basis, Basis::Overlap);
        assert!(world.counts(&format!("kvscout_tokenizer_wait_seconds_count {waits}")));
    }
}
