//! `POST /explain`: where a request would go now, and why.

use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::{Admin, json, query};
use crate::config::Strategy;
use crate::decisions::json::Decision;
use crate::decisions::what_if::Knobs;
use crate::scheduler::{self, Ask};

/// Explanations at once: each may take a core for as long as reading a prompt does.
pub const AT_ONCE_MAX: usize = 2;

/// What would become of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// `number` is 0: nothing was placed.
    #[serde(flatten)]
    pub decision: Decision,
    /// Bytes of the prompt's text as the model's template makes it; null where it is token ids, or was not read.
    pub rendered_bytes: Option<usize>,
    /// Tokens of the prompt that are known; of several prompts, the first one's.
    pub tokens: usize,
    /// Prompts in the request.
    pub prompts: usize,
    /// How the endpoints cut it; more than one way where they differ.
    pub blocks: Vec<Blocks>,
    /// `Critical`, `Standard` or `Sheddable`.
    pub criticality: String,
    /// Among those that wait, higher goes first.
    pub priority: i32,
    /// Whether it would be placed `at_once`; where every endpoint is saturated it `waits`, or is `refused`.
    pub admission: String,
}

/// One way to cut a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// Tokens of a block.
    pub block_size: u32,
    /// Blocks that can be cached: the last token is always computed.
    pub blocks: usize,
}

impl From<scheduler::Explanation> for Explanation {
    fn from(explained: scheduler::Explanation) -> Self {
        let blocks = explained.blocks.iter().map(|(shape, blocks)| Blocks {
            block_size: shape.block_size,
            blocks: *blocks,
        });
        Self {
            decision: Decision::whole(&explained.decision),
            rendered_bytes: explained.rendered_bytes,
            tokens: explained.tokens,
            prompts: explained.prompts,
            blocks: blocks.collect(),
            criticality: explained.class.criticality.as_str().to_owned(),
            priority: explained.class.priority,
            admission: explained.outlook.as_str().to_owned(),
        }
    }
}

/// The body is a request's, as a server would get it. The query says the rest: see [`KEYS`].
pub async fn explain(
    State(admin): State<Admin>,
    RawQuery(asked): RawQuery,
    body: Bytes,
) -> Response {
    let Ok(_turn) = admin.explaining.try_acquire() else {
        let busy = "other explanations are being made: try again\n";
        return (StatusCode::TOO_MANY_REQUESTS, busy).into_response();
    };
    let (ask, knobs) = match read(asked.as_deref(), body) {
        Ok(read) => read,
        Err(why) => return (StatusCode::BAD_REQUEST, why).into_response(),
    };
    match admin.scheduler.explain(&ask, &knobs).await {
        Ok(explained) => json(&Explanation::from(explained)),
        Err(why) => (StatusCode::CONFLICT, format!("{why}\n")).into_response(),
    }
}

/// `path`: where the request would be sent, `/v1/chat/completions` where nothing is said. `request_id`,
/// `session`, `objective`: what its headers would say. `pool`: the InferencePool that it is for. `subset`: an endpoint that the gateway allows; may be given
/// again. The others are what-ifs: `strategy`, `matching_ratio_min`, `media_gpu`, `media_cpu`, `media_storage` as the
/// configuration's `policy`, and `without`: an endpoint's name; may be given again.
pub const KEYS: &[&str] = &[
    "path",
    "request_id",
    "session",
    "objective",
    "pool",
    "subset",
    "strategy",
    "matching_ratio_min",
    "media_gpu",
    "media_cpu",
    "media_storage",
    "without",
];

fn read(asked: Option<&str>, body: Bytes) -> Result<(Ask, Knobs), String> {
    let mut ask = Ask {
        request_id: "explain".to_owned(),
        path: "/v1/chat/completions".to_owned(),
        body,
        ..Ask::default()
    };
    let mut knobs = Knobs::default();
    for (key, value) in query::pairs(asked) {
        let text = || value.clone().into_owned();
        match &*key {
            "path" => ask.path = text(),
            "request_id" => ask.request_id = text(),
            "session" => ask.session = Some(text()),
            "objective" => ask.objective = Some(text()),
            "pool" => ask.pool.pool = Some(text()),
            "subset" => ask.subset.get_or_insert_default().push(text()),
            "strategy" => knobs.strategy = Some(strategy(&value)?),
            "matching_ratio_min" => knobs.matching_ratio_min = Some(share(&key, &value)?),
            "media_gpu" => knobs.media_gpu = Some(share(&key, &value)?),
            "media_cpu" => knobs.media_cpu = Some(share(&key, &value)?),
            "media_storage" => knobs.media_storage = Some(share(&key, &value)?),
            "without" => knobs.without.push(text()),
            _ => return Err(query::unknown(&key, KEYS)),
        }
    }
    Ok((ask, knobs))
}

fn strategy(value: &str) -> Result<Strategy, String> {
    let known = value.parse::<Strategy>();
    known.map_err(|error| format!("strategy: {error}\n"))
}

fn share(key: &str, value: &str) -> Result<f64, String> {
    match query::number(key, value)? {
        share @ 0.0..=1.0 => Ok(share),
        other => Err(format!("{key}: {other} is not between 0 and 1\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_what_headers_would_and_what_is_otherwise() {
        let asked = "path=/v1/completions&subset=10.0.0.1&subset=10.0.0.2&without=pod%2D1&media_cpu=0.5&strategy=DEFAULT";
        let (ask, knobs) = read(Some(asked), Bytes::new()).expect("read");
        assert_eq!(ask.path, "/v1/completions");
        assert_eq!(ask.subset.map(|subset| subset.len()), Some(2));
        assert_eq!(knobs.without, ["pod-1"]);
        assert_eq!(
            (knobs.media_cpu, knobs.strategy),
            (Some(0.5), Some(Strategy::Default))
        );
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (asked, named) in [
            ("sesion=1", "sesion: is not one of path, "),
            ("media_gpu=2", "media_gpu: 2 is not between 0 and 1"),
            ("matching_ratio_min=x", "matching_ratio_min: \"x\""),
            (
                "strategy=BEST",
                "strategy: \"BEST\" is not one of PREFIX_CACHE, DEFAULT",
            ),
        ] {
            let why = read(Some(asked), Bytes::new()).expect_err(asked);
            assert!(why.starts_with(named), "{why}");
        }
    }
}
