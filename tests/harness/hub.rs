//! A Hugging Face hub that does what the test says: its list of files, its redirects, its
//! content network on another port.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What the hub does to whoever asks for a file, or for the list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Fine,
    /// 500.
    Broken,
    /// Half of each file, then the connection ends.
    CutShort,
    /// All bytes of each file, one of them another.
    Spoilt,
    /// The head of each file's answer, and nothing more.
    Silent,
}

#[derive(Default)]
struct Repository {
    commit: String,
    files: HashMap<String, Bytes>,
}

#[derive(Default)]
struct Shared {
    mood: Mutex<Mood>,
    token: Mutex<Option<String>>,
    repository: Mutex<Repository>,
    /// Paths asked for, in order.
    asked: Mutex<Vec<String>>,
    content: Mutex<Option<SocketAddr>>,
}

/// A running hub with one repository, ended when dropped.
pub struct FakeHub {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    servers: Vec<JoinHandle<()>>,
}

impl FakeHub {
    /// Starts, with an empty `owner/name`.
    pub async fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let hub = Router::new()
            .route("/api/models/{owner}/{name}/revision/{revision}", get(list))
            .route("/{owner}/{name}/resolve/{revision}/{file}", get(resolve))
            .route("/moved/{file}", get(moved));
        let content = Router::new().route("/content/{file}", get(content));
        let (address, one) = serve(hub.with_state(shared.clone())).await;
        let (elsewhere, two) = serve(content.with_state(shared.clone())).await;
        *shared.content.lock() = Some(elsewhere);
        Self {
            address,
            shared,
            servers: vec![one, two],
        }
    }

    /// What `HF_ENDPOINT` should say.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A new commit of 40 times this digit, of these files and a big one that nobody wants.
    pub fn commit(&self, digit: char, files: &[(&str, &str)]) -> String {
        let commit = digit.to_string().repeat(40);
        let owned =
            |(name, text): &(&str, &str)| ((*name).to_owned(), Bytes::from((*text).to_owned()));
        let mut files: HashMap<_, _> = files.iter().map(owned).collect();
        files.insert("model.safetensors".into(), Bytes::from_static(b"weights"));
        *self.shared.repository.lock() = Repository {
            commit: commit.clone(),
            files,
        };
        commit
    }

    pub fn set_mood(&self, mood: Mood) {
        *self.shared.mood.lock() = mood;
    }

    /// From here on only who has this token is answered.
    pub fn require(&self, token: &str) {
        *self.shared.token.lock() = Some(token.to_owned());
    }

    /// The paths asked for since the last look.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.asked.lock())
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
    }
}

async fn serve(app: Router) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let server = tokio::spawn(async move {
        axum::serve(listener, app).await.expect("it serves");
    });
    (address, server)
}

impl Shared {
    /// The refusal, if there is one.
    fn refuse(&self, headers: &HeaderMap) -> Option<Response> {
        if let Some(token) = &*self.token.lock() {
            let wanted = format!("Bearer {token}");
            let given = headers.get("authorization").map(|value| value.as_bytes());
            if given != Some(wanted.as_bytes()) {
                let headers = [("x-error-code", "GatedRepo")];
                return Some(
                    (
                        StatusCode::UNAUTHORIZED,
                        headers,
                        "Invalid username or password.",
                    )
                        .into_response(),
                );
            }
        }
        (*self.mood.lock() == Mood::Broken)
            .then(|| StatusCode::INTERNAL_SERVER_ERROR.into_response())
    }

    fn note(&self, path: String) {
        self.asked.lock().push(path);
    }
}

type Hub = State<Arc<Shared>>;

async fn list(
    State(hub): Hub,
    Path((owner, name, revision)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    hub.note(format!("list {owner}/{name}@{revision}"));
    if let Some(refusal) = hub.refuse(&headers) {
        return refusal;
    }
    if (owner.as_str(), name.as_str()) != ("owner", "name") {
        return StatusCode::NOT_FOUND.into_response();
    }
    let repository = hub.repository.lock();
    let siblings: Vec<Value> = repository
        .files
        .iter()
        .map(|(name, bytes)| match name.as_str() {
            "tokenizer.json" => json!({
                "rfilename": name, "size": bytes.len(), "blobId": "b10b",
                "lfs": {"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134},
            }),
            _ => json!({"rfilename": name, "size": bytes.len(), "blobId": "b10b"}),
        })
        .collect();
    let list = json!({"id": "owner/name", "sha": repository.commit, "siblings": siblings});
    ([("content-type", "application/json")], list.to_string()).into_response()
}

/// Large files lead to the content network, small ones to another path here, as on the hub.
async fn resolve(
    State(hub): Hub,
    Path((owner, name, revision, file)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    hub.note(format!("file {owner}/{name}@{revision}: {file}"));
    if let Some(refusal) = hub.refuse(&headers) {
        return refusal;
    }
    let repository = hub.repository.lock();
    let Some(bytes) = repository
        .files
        .get(&file)
        .filter(|_| revision == repository.commit)
    else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let (status, location) = match file.as_str() {
        "tokenizer.json" => {
            let content = hub.content.lock().expect("it runs");
            (
                StatusCode::FOUND,
                format!("http://{content}/content/{file}?signature=secret"),
            )
        }
        _ => (StatusCode::TEMPORARY_REDIRECT, format!("/moved/{file}")),
    };
    let headers = [
        ("location", location),
        ("x-repo-commit", revision),
        ("x-linked-etag", format!("\"{}\"", sha256(bytes))),
        ("x-linked-size", bytes.len().to_string()),
    ];
    (status, headers).into_response()
}

async fn moved(State(hub): Hub, Path(file): Path<String>, headers: HeaderMap) -> Response {
    match hub.refuse(&headers) {
        Some(refusal) => refusal,
        None => hub.bytes(&file),
    }
}

/// The content network knows signatures; a token is none of its business.
async fn content(State(hub): Hub, Path(file): Path<String>, headers: HeaderMap) -> Response {
    if headers.contains_key("authorization") {
        hub.note("a token leaked to the content network".to_owned());
        return StatusCode::BAD_REQUEST.into_response();
    }
    hub.bytes(&file)
}

impl Shared {
    fn bytes(&self, file: &str) -> Response {
        let bytes = self.repository.lock().files[file].clone();
        let etag = format!("\"{}\"", sha256(&bytes));
        let length = bytes.len().to_string();
        let half = bytes.slice(..bytes.len() / 2);
        let body = match *self.mood.lock() {
            Mood::Fine | Mood::Broken => Body::from(bytes),
            Mood::CutShort => Body::from_stream(futures::stream::iter([
                Ok(half),
                Err(std::io::Error::other("as the test says")),
            ])),
            Mood::Spoilt => {
                let mut bytes = bytes.to_vec();
                *bytes.last_mut().expect("not empty") ^= 1;
                Body::from(bytes)
            }
            Mood::Silent => Body::from_stream(futures::stream::pending::<std::io::Result<Bytes>>()),
        };
        ([("etag", etag), ("content-length", length)], body).into_response()
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
