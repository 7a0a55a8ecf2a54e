//! `GET /decisions` and `GET /decisions/ID`: what was decided lately.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{Admin, json, query};
use crate::decisions::json::Decision;

/// Decisions in one answer, at most: some 600 bytes each.
const LIMIT_MAX: usize = 1_000;
/// And where nobody says.
const LIMIT: usize = 50;

/// The newest first, without their candidates.
#[derive(Serialize)]
struct Newest {
    decisions: Vec<Decision>,
}

/// `?limit=N` so many at most; `?after=N` those with a greater `number` alone.
pub async fn newest(State(admin): State<Admin>, RawQuery(asked): RawQuery) -> Response {
    match (|| {
        let (mut limit, mut after) = (LIMIT, 0);
        for (key, value) in query::pairs(asked.as_deref()) {
            match &*key {
                "limit" => limit = query::number(&key, &value)?,
                "after" => after = query::number(&key, &value)?,
                _ => return Err(query::unknown(&key, &["limit", "after"])),
            }
        }
        Ok((limit.min(LIMIT_MAX), after))
    })() {
        Ok((limit, after)) => {
            let kept = admin.decisions.newest(limit, after);
            let decisions = kept.iter().map(Arc::as_ref).map(Decision::short);
            json(&Newest {
                decisions: decisions.collect(),
            })
        }
        Err(why) => (StatusCode::BAD_REQUEST, why).into_response(),
    }
}

/// The newest of a request, by its `x-request-id`, with all candidates.
pub async fn one(State(admin): State<Admin>, Path(id): Path<String>) -> Response {
    match admin.decisions.of_request(&id) {
        Some(kept) => json(&Decision::whole(&kept)),
        None => {
            let why = "no decision of this request is kept: it is too long ago \
                       (decisions.kept_bytes_max), or another replica's\n";
            (StatusCode::NOT_FOUND, why).into_response()
        }
    }
}
