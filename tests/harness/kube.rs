//! A Kubernetes API server as far as the tests need one: it lists, watches, creates, patches and deletes
//! whatever is installed, and goes wrong when it is told to.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::stream;
use http_body_util::BodyExt;
use kvscout::kubernetes::resources::WATCHED;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Objects of one kind in one namespace, and what happened to them.
#[derive(Default)]
struct Table {
    objects: BTreeMap<String, Value>,
    log: Vec<(u64, Value)>,
}

#[derive(Default)]
struct Shared {
    version: u64,
    /// By path.
    tables: HashMap<String, Table>,
    /// What is answered in place of everything.
    refusal: Option<StatusCode>,
    /// The same for one kind.
    forbidden: Option<&'static str>,
    /// Versions that are still remembered.
    oldest: u64,
    /// A watch from before them is refused as such, not told so.
    gone_at_once: bool,
    /// Streams come a few bytes at a time.
    trickle: bool,
    /// The next object that is written anew has been written since it was read.
    overtaken: bool,
    watches: u64,
    lists: u64,
}

impl Shared {
    fn object(&self, table: &str, name: &str) -> Option<Value> {
        self.tables.get(table)?.objects.get(name).cloned()
    }
}

/// What streams wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Pulse {
    changes: u64,
    cuts: u64,
}

#[derive(Clone)]
struct Api {
    shared: Arc<Mutex<Shared>>,
    pulse: watch::Sender<Pulse>,
}

/// A running one, ended when dropped.
pub struct FakeApi {
    pub address: SocketAddr,
    api: Api,
    server: JoinHandle<()>,
}

impl FakeApi {
    /// Starts, with pods installed and no custom resource.
    pub async fn start() -> Self {
        let api = Api {
            // 0 would mean any version.
            shared: Arc::new(Mutex::new(Shared {
                version: 1,
                ..Shared::default()
            })),
            pulse: watch::Sender::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let app = Router::new().fallback(answer).with_state(api.clone());
        let server = tokio::spawn(async move {
            axum::serve(listener, app).await.expect("it serves");
        });
        Self {
            address,
            api,
            server,
        }
    }

    /// How a client is told of it.
    pub fn kubeconfig(&self, namespace: &str) -> String {
        let cluster =
            json!({"name": "fake", "cluster": {"server": format!("http://{}", self.address)}});
        let context = json!({"cluster": "fake", "user": "fake", "namespace": namespace});
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [cluster], "users": [{"name": "fake", "user": {}}],
            "contexts": [{"name": "fake", "context": context}],
        })
        .to_string()
    }

    /// Everything is refused from here on, and every stream cut in the middle of a line.
    pub fn go_away(&self) {
        self.api.shared.lock().refusal = Some(StatusCode::SERVICE_UNAVAILABLE);
        self.cut();
    }

    pub fn come_back(&self) {
        self.api.shared.lock().refusal = None;
    }

    /// Whoever wants this kind is refused.
    pub fn forbid(&self, plural: Option<&'static str>) {
        self.api.shared.lock().forbidden = plural;
    }

    /// Ends every stream in the middle of a line.
    pub fn cut(&self) {
        self.api.pulse.send_modify(|pulse| pulse.cuts += 1);
    }

    /// Forgets what happened: whoever watches from before has to list again. He is told so, or refused.
    pub fn forget(&self, refuse: bool) {
        let mut shared = self.api.shared.lock();
        shared.version += 1;
        (shared.oldest, shared.gone_at_once) = (shared.version, refuse);
    }

    /// Something that was on its way comes before the next word about an object.
    pub fn overtake(&self) {
        self.api.shared.lock().overtaken = true;
    }

    /// Tells every watch how far it has come.
    pub fn bookmark(&self) {
        let mut shared = self.api.shared.lock();
        shared.version += 1;
        let version = shared.version;
        for table in shared.tables.values_mut() {
            let meta = json!({"resourceVersion": version.to_string()});
            let object = json!({"kind": "Any", "apiVersion": "v1", "metadata": meta});
            let event = json!({"type": "BOOKMARK", "object": object});
            table.log.push((version, event));
        }
        drop(shared);
        self.api.pulse.send_modify(|pulse| pulse.changes += 1);
    }

    pub fn trickle(&self) {
        self.api.shared.lock().trickle = true;
    }

    /// Watches that began, and lists that were asked for.
    pub fn asked(&self) -> (u64, u64) {
        let shared = self.api.shared.lock();
        (shared.watches, shared.lists)
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn status(code: StatusCode, reason: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
        "reason": reason, "message": reason,
    });
    (
        code,
        axum::response::Response::new(Body::from(status.to_string())),
    )
        .into_response()
}

async fn answer(State(api): State<Api>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    let path = parts.uri.path().to_owned();
    let query: HashMap<_, _> = parts
        .uri
        .query()
        .unwrap_or("")
        .split('&')
        .collect::<Vec<_>>()
        .into_iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    {
        let shared = api.shared.lock();
        if let Some(refusal) = shared.refusal {
            return status(refusal, "as the test says");
        }
        let plural = shared.forbidden;
        if parts.method == Method::GET && plural.is_some_and(|plural| path.ends_with(plural)) {
            return status(StatusCode::FORBIDDEN, "Forbidden");
        }
    }
    match parts.method {
        Method::GET if query.get("watch").is_some_and(|watch| watch == "true") => api.watch(
            &path,
            query.get("resourceVersion").map_or("0", String::as_str),
        ),
        Method::GET if path.contains("/leases/") => api.get(&path),
        Method::GET => api.list(&path, query.get("continue").map(String::as_str)),
        Method::PUT => api.replace(&path, &body),
        Method::POST if path.ends_with("/customresourcedefinitions") => api.install(&body),
        Method::POST => api.create(path, &body),
        Method::PATCH => api.patch(&path, &body),
        Method::DELETE => api.delete(&path),
        _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}

/// Not Kubernetes' 500, so that clients have to turn them.
const PAGE: usize = 2;

impl Api {
    /// Pods and leases are always there; all else once it is installed.
    fn is_installed(&self, path: &str) -> bool {
        let is_builtin = path.ends_with("/pods") || path.ends_with("/leases");
        is_builtin || self.shared.lock().tables.contains_key(&kind_of(path))
    }

    fn list(&self, path: &str, page: Option<&str>) -> Response {
        if !self.is_installed(path) {
            return status(StatusCode::NOT_FOUND, "404 page not found");
        }
        let mut shared = self.shared.lock();
        shared.lists += 1;
        let version = shared.version.to_string();
        let table = shared.tables.entry(path.to_owned()).or_default();
        let from: usize = page.map_or(0, |page| page.parse().expect("our own word"));
        let items: Vec<_> = table.objects.values().skip(from).take(PAGE).collect();
        let more = from + items.len() < table.objects.len();
        let next = if more {
            (from + PAGE).to_string()
        } else {
            String::new()
        };
        let list = json!({
            "kind": "List", "apiVersion": "v1", "items": items,
            "metadata": {"resourceVersion": version, "continue": next},
        });
        (StatusCode::OK, list.to_string()).into_response()
    }

    fn watch(&self, path: &str, from: &str) -> Response {
        if !self.is_installed(path) {
            return status(StatusCode::NOT_FOUND, "404 page not found");
        }
        let from: u64 = from.parse().expect("a version of ours");
        let mut shared = self.shared.lock();
        shared.watches += 1;
        if from < shared.oldest {
            if shared.gone_at_once {
                return status(StatusCode::GONE, "Expired");
            }
            let object = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired",
                                "message": "too old resource version"});
            return (
                StatusCode::OK,
                json!({"type": "ERROR", "object": object}).to_string() + "\n",
            )
                .into_response();
        }
        let trickle = shared.trickle;
        drop(shared);
        let reader = Reader {
            api: self.clone(),
            path: path.to_owned(),
            from,
            cuts: self.pulse.borrow().cuts,
            pulse: self.pulse.subscribe(),
            waiting: Vec::new(),
            trickle,
        };
        let body = stream::unfold(Some(reader), async |reader| reader?.next().await);
        Response::new(Body::from_stream(body))
    }

    /// A definition of a custom resource: there may be some of it from here on.
    fn install(&self, body: &[u8]) -> Response {
        let crd: Value = serde_json::from_slice(body).expect("JSON");
        let spec = &crd["spec"];
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
        let version = text(&spec["versions"][0]["name"]);
        let kind = format!("/apis/{group}/{version}/{plural}");
        self.shared.lock().tables.entry(kind).or_default();
        (StatusCode::CREATED, crd.to_string()).into_response()
    }

    fn create(&self, path: String, body: &[u8]) -> Response {
        if !self.is_installed(&path) && !path.ends_with("/namespaces") {
            return status(StatusCode::NOT_FOUND, "404 page not found");
        }
        let mut object: Value = serde_json::from_slice(body).expect("JSON");
        // A real one guesses the kind of its own objects alone.
        let is_custom = WATCHED
            .iter()
            .any(|one| !one.group.is_empty() && path.starts_with(&format!("/apis/{}/", one.group)));
        if is_custom && object["kind"].is_null() {
            return status(StatusCode::BAD_REQUEST, "Object 'Kind' is missing");
        }
        let name = object["metadata"]["name"]
            .as_str()
            .expect("a name")
            .to_owned();
        let mut shared = self.shared.lock();
        let second = shared.version % 60;
        if let Some((namespace, _)) = path
            .split_once("/namespaces/")
            .and_then(|p| p.1.split_once('/'))
        {
            object["metadata"]["namespace"] = json!(namespace);
        }
        object["metadata"]["uid"] = json!(format!("uid-{}", shared.version));
        object["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:00:{second:02}Z"));
        object.as_object_mut().expect("an object").remove("status");
        if shared
            .tables
            .entry(path.clone())
            .or_default()
            .objects
            .contains_key(&name)
        {
            return status(StatusCode::CONFLICT, "AlreadyExists");
        }
        self.put(&mut shared, &path, "ADDED", &name, object)
    }

    fn get(&self, path: &str) -> Response {
        let (table, name) = place(path);
        let shared = self.shared.lock();
        let held = shared
            .tables
            .get(table)
            .and_then(|table| table.objects.get(name));
        match held {
            Some(object) => (StatusCode::OK, object.to_string()).into_response(),
            None => status(StatusCode::NOT_FOUND, "NotFound"),
        }
    }

    /// Of the version that it was read at, and of no other.
    fn replace(&self, path: &str, body: &[u8]) -> Response {
        let object: Value = serde_json::from_slice(body).expect("JSON");
        let (table, name) = place(path);
        let mut shared = self.shared.lock();
        if std::mem::take(&mut shared.overtaken)
            && let Some(held) = shared.object(table, name)
        {
            self.put(&mut shared, table, "MODIFIED", name, held);
        }
        let held = shared
            .tables
            .get(table)
            .and_then(|table| table.objects.get(name));
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        match held.map(version) {
            None => status(StatusCode::NOT_FOUND, "NotFound"),
            Some(held) if held != version(&object) => status(StatusCode::CONFLICT, "Conflict"),
            Some(_) => self.put(&mut shared, table, "MODIFIED", name, object),
        }
    }

    fn patch(&self, path: &str, body: &[u8]) -> Response {
        let patch: Value = serde_json::from_slice(body).expect("JSON");
        let of_status = path.ends_with("/status");
        let (table, name) = place(path.trim_end_matches("/status"));
        let mut shared = self.shared.lock();
        let Some(mut object) = shared.object(table, name) else {
            return status(StatusCode::NOT_FOUND, "NotFound");
        };
        let of = |key: &str| (key == "status") == of_status;
        for (key, value) in patch.as_object().expect("an object") {
            if of(key) {
                merge(&mut object[key.as_str()], value);
            }
        }
        let is_gone = !object["metadata"]["deletionTimestamp"].is_null()
            && object["metadata"]["finalizers"]
                .as_array()
                .is_none_or(Vec::is_empty);
        let what = if is_gone { "DELETED" } else { "MODIFIED" };
        self.put(&mut shared, table, what, name, object)
    }

    /// At once, unless something holds it: then it is told that it ends.
    fn delete(&self, path: &str) -> Response {
        let (table, name) = place(path);
        let mut shared = self.shared.lock();
        let Some(mut object) = shared.object(table, name) else {
            return status(StatusCode::NOT_FOUND, "NotFound");
        };
        let is_held = object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|all| !all.is_empty());
        object["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
        let what = if is_held { "MODIFIED" } else { "DELETED" };
        self.put(&mut shared, table, what, name, object)
    }

    fn put(
        &self,
        shared: &mut Shared,
        path: &str,
        what: &str,
        name: &str,
        mut object: Value,
    ) -> Response {
        shared.version += 1;
        let version = shared.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let table = shared.tables.entry(path.to_owned()).or_default();
        match what {
            "DELETED" => drop(table.objects.remove(name)),
            _ => drop(table.objects.insert(name.to_owned(), object.clone())),
        }
        table
            .log
            .push((version, json!({"type": what, "object": object})));
        self.pulse.send_modify(|pulse| pulse.changes += 1);
        (StatusCode::OK, object.to_string()).into_response()
    }
}

/// `/apis/g/v/namespaces/n/things` without its namespace.
fn kind_of(path: &str) -> String {
    match path.split_once("/namespaces/") {
        Some((group, rest)) => format!("{group}/{}", rest.rsplit('/').next().unwrap_or("")),
        None => path.to_owned(),
    }
}

fn place(path: &str) -> (&str, &str) {
    path.rsplit_once('/').expect("a name")
}

/// As a JSON merge patch says.
fn merge(to: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *to = patch.clone();
        return;
    };
    if !to.is_object() {
        *to = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => drop(to.as_object_mut().expect("it is one").remove(key)),
            value => merge(&mut to[key.as_str()], value),
        }
    }
}

/// One watch's stream.
struct Reader {
    api: Api,
    path: String,
    from: u64,
    cuts: u64,
    pulse: watch::Receiver<Pulse>,
    /// Bytes of the lines that follow.
    waiting: Vec<u8>,
    trickle: bool,
}

type Chunk = Result<Bytes, std::io::Error>;

impl Reader {
    async fn next(mut self) -> Option<(Chunk, Option<Self>)> {
        loop {
            let pulse = *self.pulse.borrow_and_update();
            if pulse.cuts != self.cuts {
                let half = Bytes::from_static(b"{\"type\":\"MODIFIED\",\"obj");
                // The rest of the line never comes.
                return Some((Ok(half), None));
            }
            self.take();
            if !self.waiting.is_empty() {
                let count = if self.trickle { 7 } else { self.waiting.len() };
                let rest = self.waiting.split_off(count.min(self.waiting.len()));
                let chunk = Bytes::from(std::mem::replace(&mut self.waiting, rest));
                return Some((Ok(chunk), Some(self)));
            }
            // The server ends with its test.
            self.pulse.changed().await.ok()?;
        }
    }

    fn take(&mut self) {
        let shared = self.api.shared.lock();
        let log = shared
            .tables
            .get(&self.path)
            .map_or(&[][..], |table| &table.log);
        let from = self.from;
        for (version, event) in log.iter().filter(|(version, _)| *version > from) {
            self.waiting.extend(event.to_string().into_bytes());
            self.waiting.push(b'\n');
            self.from = *version;
        }
    }
}
