//! The way back: nothing is held, and no byte changes but a model's name, where the request's did.

use std::net::SocketAddr;

use super::{Step, pass, send};
use crate::ext_proc::read::{self, Mode};
use crate::ext_proc::reply::{self, Side};
use crate::ext_proc::restore::Restorer;
use crate::ext_proc::usage::{self, UsageScanner};
use crate::proto::core::Metadata;
use crate::proto::ext_proc::{HttpBody, HttpHeaders};
use crate::scheduler::Outcome;

/// How far the response is.
#[derive(Debug, Default)]
pub(super) struct Response {
    mode: Mode,
    status: Option<u16>,
    served: Option<SocketAddr>,
    scanner: Option<UsageScanner>,
    /// How its request was placed, where the client is told so.
    summary: Option<String>,
    /// The model that the client asked for, where another one serves it.
    asked: Option<String>,
    restorer: Option<Restorer>,
    streams: bool,
    output: bool,
    body_bytes: u64,
    finished: bool,
}

impl Response {
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    /// The client is told how its request was placed.
    pub fn tells(&mut self, summary: Option<String>) {
        self.summary = summary;
    }

    /// Another model than this one answers, which is what the client asked for.
    pub fn restores(&mut self, asked: Option<String>) {
        self.asked = asked;
    }

    /// Its headers came.
    pub fn has_begun(&self) -> bool {
        self.status.is_some()
    }

    /// What is known by now.
    pub fn outcome(&self) -> Outcome {
        Outcome {
            status: self.status,
            usage: self.scanner.as_ref().and_then(|scanner| scanner.usage()),
            served: self.served,
            whole: self.finished,
            body_bytes: self.body_bytes,
        }
    }

    /// Its headers came; those for the client say who served, too, where they are to.
    pub fn headers(
        &mut self,
        headers: &HttpHeaders,
        metadata: Option<&Metadata>,
        tells_served: bool,
    ) -> Vec<Step> {
        let text = |name| read::header(headers, name);
        self.status = text(":status").and_then(|status| status.parse().ok());
        let content_type = text("content-type");
        let is_stream = |kind: &str| kind.starts_with("text/event-stream");
        self.streams = content_type.as_deref().is_some_and(is_stream);
        let (kind, encoding) = (content_type.as_deref(), text("content-encoding"));
        let scanner = UsageScanner::new(kind, encoding.as_deref());
        self.scanner = Some(scanner);
        let asked = self.asked.take();
        let has_name = !headers.end_of_stream && usage::readable(kind, encoding.as_deref());
        let asked = asked.filter(|_| has_name);
        self.restorer = asked.map(|name| Restorer::new(&name, self.streams));
        self.hear_served(metadata);
        let mut set = Vec::new();
        if let Some(summary) = self.summary.take() {
            set.push((reply::DECISION, summary));
        }
        if let Some(served) = self.served.filter(|_| tells_served) {
            set.push((reply::CONFORMANCE_SERVED, served.to_string()));
        }
        let mut steps = vec![send(reply::headers(Side::Response, &set, self.untrue()))];
        if headers.end_of_stream {
            steps.extend(self.finish());
        }
        steps
    }

    pub fn body(&mut self, body: HttpBody, metadata: Option<&Metadata>) -> Vec<Step> {
        self.hear_served(metadata);
        let mut steps = Vec::new();
        if !body.body.is_empty() && !std::mem::replace(&mut self.output, true) {
            let streams = self.streams;
            steps.push(Step::FirstOutput { streams });
        }
        self.body_bytes += body.body.len() as u64;
        self.scanner.get_or_insert_default().feed(&body.body);
        let ended = body.end_of_stream;
        let restorer = self.restorer.as_mut();
        let new = restorer.and_then(|restorer| restorer.feed(&body.body));
        steps.extend(pass(self.mode, Side::Response, body, new));
        if ended {
            steps.extend(self.finish());
        }
        steps
    }

    pub fn trailers(&mut self, metadata: Option<&Metadata>) -> Vec<Step> {
        self.hear_served(metadata);
        let mut steps = vec![send(reply::trailers(Side::Response))];
        steps.extend(self.finish());
        steps
    }

    /// Headers that would not be true of a body with another name in it. Envoy takes a length away by
    /// itself in full duplex, and answers 500 to a wrong one where it keeps the body.
    fn untrue(&self) -> &'static [&'static str] {
        match self.restorer {
            Some(_) if self.mode != Mode::Unseen => &["content-length"],
            _ => &[],
        }
    }

    fn finish(&mut self) -> Option<Step> {
        let first = !std::mem::replace(&mut self.finished, true);
        first.then(|| Step::Finish(self.outcome()))
    }

    fn hear_served(&mut self, metadata: Option<&Metadata>) {
        self.served = read::served(metadata).or(self.served);
    }
}
