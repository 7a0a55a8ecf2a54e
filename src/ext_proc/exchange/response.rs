//! The way back: nothing is held.

use std::net::SocketAddr;

use super::{Step, pass, send};
use crate::ext_proc::read::{self, Mode};
use crate::ext_proc::reply::{self, Side};
use crate::ext_proc::usage::UsageScanner;
use crate::proto::core::Metadata;
use crate::proto::ext_proc::{HttpBody, HttpHeaders};
use crate::scheduler::Outcome;

/// How far the response is.
#[derive(Debug, Default)]
pub(super) struct Response {
    mode: Mode,
    status: Option<u16>,
    served: Option<SocketAddr>,
    scanner: UsageScanner,
    streams: bool,
    output: bool,
    finished: bool,
}

/// What a response's headers should tell the client.
pub(super) struct Tell {
    /// How its request was placed.
    pub summary: Option<String>,
    /// Who served, where the gateway says so.
    pub served: bool,
}

impl Response {
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    /// Its headers came.
    pub fn has_begun(&self) -> bool {
        self.status.is_some()
    }

    /// What is known by now.
    pub fn outcome(&self) -> Outcome {
        Outcome {
            status: self.status,
            usage: self.scanner.usage(),
            served: self.served,
            whole: self.finished,
        }
    }

    pub fn headers(
        &mut self,
        headers: &HttpHeaders,
        metadata: Option<&Metadata>,
        tell: Tell,
    ) -> Vec<Step> {
        let text = |name| read::header(headers, name);
        self.status = text(":status").and_then(|status| status.parse().ok());
        let content_type = text("content-type");
        let is_stream = |kind: &str| kind.starts_with("text/event-stream");
        self.streams = content_type.as_deref().is_some_and(is_stream);
        self.scanner =
            UsageScanner::new(content_type.as_deref(), text("content-encoding").as_deref());
        self.hear_served(metadata);
        let mut set = Vec::new();
        if let Some(summary) = tell.summary {
            set.push((reply::DECISION, summary));
        }
        if let Some(served) = self.served.filter(|_| tell.served) {
            set.push((reply::CONFORMANCE_SERVED, served.to_string()));
        }
        let mut steps = vec![send(reply::headers(Side::Response, &set))];
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
        self.scanner.feed(&body.body);
        let ended = body.end_of_stream;
        steps.extend(pass(self.mode, Side::Response, body));
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

    fn finish(&mut self) -> Option<Step> {
        let first = !std::mem::replace(&mut self.finished, true);
        first.then(|| Step::Finish(self.outcome()))
    }

    fn hear_served(&mut self, metadata: Option<&Metadata>) {
        self.served = read::served(metadata).or(self.served);
    }
}
