//! Chats and completions, in one piece or word by word.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use kvscout::blocks::TokenId;
use kvscout::config;
use kvscout::metrics::TokenizerMetrics;
use kvscout::tokens::{Size, TokenPool};
use serde_json::Value;

use super::App;
use super::ask::{Api, Ask};
use super::error::{Refusal, json_body};
use super::shape::{Shape, Tally};
use crate::runner::Answers;
use crate::stack::elsewhere::as_here;

const REQUEST_ID: &str = "x-request-id";
/// Pins a request to a data-parallel rank.
const RANK: &str = "x-data-parallel-rank";
/// Prompts that wait for a core: as many as a pod has connections for, and as long as their clients wait.
const WAITING_MAX: usize = 1 << 16;
const WAIT_MAX: Duration = Duration::from_secs(600);

/// Where all pods of this process read long prompts: they share its cores.
static READERS: LazyLock<TokenPool> = LazyLock::new(|| {
    let pool = TokenPool::new(
        config::threads(),
        WAITING_MAX,
        WAIT_MAX,
        TokenizerMetrics::none(),
    );
    pool.expect("a process that serves has a few threads more")
});

/// `POST /v1/chat/completions`
pub(super) async fn chat(app: State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Response {
    generate(app.0, Api::Chat, &headers, body).await
}

/// `POST /v1/completions`
pub(super) async fn completion(app: State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Response {
    generate(app.0, Api::Completion, &headers, body).await
}

async fn generate(app: Arc<App>, api: Api, headers: &HeaderMap, body: Bytes) -> Response {
    let id = request_id(headers);
    let mut response = match parse(Arc::clone(&app), api, body).await {
        Ok(ask) => answer(app, ask, &id, headers).await,
        Err(refusal) => refusal.into_response(),
    };
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Long prompts take milliseconds to tokenize: not on a thread that serves others.
async fn parse(app: Arc<App>, api: Api, body: Bytes) -> Result<Ask, Refusal> {
    let bytes = body.len();
    let parsed = READERS.run(
        Size::new(bytes),
        as_here(move || Ask::parse(&app, api, &body)),
    );
    parsed
        .await
        .unwrap_or_else(|_| Err(Refusal::shutting_down()))
}

/// The client's name for its request, or one of our own.
fn request_id(headers: &HeaderMap) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    given.map_or_else(
        || format!("{:032x}", NEXT.fetch_add(1, Ordering::Relaxed)),
        str::to_owned,
    )
}

async fn answer(app: Arc<App>, mut ask: Ask, id: &str, headers: &HeaderMap) -> Response {
    let name = headers.get(RANK).and_then(|rank| rank.to_str().ok());
    let process = app.processes.now();
    let Some(rank) = process.rank(name) else {
        let (name, ranks) = (name.unwrap_or_default(), process.ranks.len());
        let message = format!("data_parallel_rank {name:?} is none of {ranks}");
        return Refusal::bad_request(message, None).into_response();
    };
    let shape = Shape::new(&app, &ask, id);
    let choices = ask.requests.len();
    let requests = std::mem::take(&mut ask.requests);
    let answers = rank.engine.submit(requests).await;
    if ask.stream {
        let telling = Telling::new(app, shape, answers, choices, ask.include_usage);
        return telling.into_response();
    }
    match collect(&app, answers, choices).await {
        Some((answers, tally)) => json_body(&shape.whole(&answers, &tally)).into_response(),
        None => Refusal::shutting_down().into_response(),
    }
}

/// Waits for all choices. Dropping the wait hangs up on the engine.
async fn collect(
    app: &App,
    mut answers: Answers,
    choices: usize,
) -> Option<(Vec<(Vec<TokenId>, String)>, Tally)> {
    let mut told = vec![(Vec::new(), String::new()); choices];
    let mut tally = Tally::default();
    let mut unfinished = choices;
    while unfinished > 0 {
        let spoken = answers.recv().await?;
        let (tokens, text) = &mut told[spoken.choice];
        text.push_str(app.text.word(spoken.emission.token));
        tokens.push(spoken.emission.token);
        tally.count(&spoken.emission);
        unfinished -= usize::from(spoken.emission.last);
    }
    Some((told, tally))
}

/// A stream in the middle of being told: server-sent events, one per token.
struct Telling {
    app: Arc<App>,
    shape: Shape,
    answers: Answers,
    /// Choices that have begun.
    begun: Vec<bool>,
    unfinished: usize,
    include_usage: bool,
    tally: Tally,
    /// Written, not yet sent.
    ready: VecDeque<Bytes>,
    over: bool,
    /// The engine's process is gone while its server goes on: the connection breaks, as the
    /// process's own would.
    broken: bool,
}

impl Telling {
    fn new(
        app: Arc<App>,
        shape: Shape,
        answers: Answers,
        choices: usize,
        include_usage: bool,
    ) -> Self {
        Self {
            app,
            shape,
            answers,
            begun: vec![false; choices],
            unfinished: choices,
            include_usage,
            tally: Tally::default(),
            ready: VecDeque::new(),
            over: false,
            broken: false,
        }
    }

    fn into_response(self) -> Response {
        let events = stream::unfold(self, |mut telling| async {
            let event = telling.next().await?;
            Some((event, telling))
        });
        let kind = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")];
        (kind, Body::from_stream(events)).into_response()
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        while self.ready.is_empty() && !self.over {
            self.advance().await;
        }
        let broken = || Err(io::Error::other("the engine's process died"));
        match self.ready.pop_front() {
            Some(event) => Some(Ok(event)),
            None => std::mem::take(&mut self.broken).then(broken),
        }
    }

    /// Writes what the next token brings; vLLM's role chunks wait for the first one.
    async fn advance(&mut self) {
        let Some(spoken) = self.answers.recv().await else {
            if self.app.processes.go_on() {
                (self.over, self.broken) = (true, true);
                return;
            }
            self.write(&Refusal::shutting_down().body());
            return self.end();
        };
        if self.begun.iter().all(|begun| !begun) {
            for chunk in self.shape.opening() {
                self.write(&chunk);
            }
        }
        let first = !std::mem::replace(&mut self.begun[spoken.choice], true);
        self.tally.count(&spoken.emission);
        let text = self.app.text.word(spoken.emission.token);
        let chunk = self
            .shape
            .token(spoken.choice, &spoken.emission, text, first);
        self.write(&chunk);
        self.unfinished -= usize::from(spoken.emission.last);
        if self.unfinished == 0 {
            if self.include_usage {
                let usage = self.shape.usage_chunk(&self.tally);
                self.write(&usage);
            }
            self.end();
        }
    }

    fn write(&mut self, chunk: &Value) {
        self.ready.push_back(format!("data: {chunk}\n\n").into());
    }

    fn end(&mut self) {
        self.ready
            .push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.over = true;
    }
}
