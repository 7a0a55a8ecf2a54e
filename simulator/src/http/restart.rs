//! `POST /sim/restart`, which vLLM does not have: its process dies and another starts.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::{App, info};
use crate::process::Restart;

/// Blocks, sequence numbers and running requests are gone, connections to the event sockets are
/// closed. Answers, once the new process serves, what `GET /kv_event_sources` would. The body is
/// `{"change_ports": true, "seed": 7}`, or empty.
pub(super) async fn restart(app: State<Arc<App>>, body: Bytes) -> Response {
    let how = match body.is_empty() {
        true => Ok(Restart::default()),
        false => serde_json::from_slice(&body),
    };
    let how = match how {
        Ok(how) => how,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    match app.processes.restart(how).await {
        Ok(()) => info::kv_event_sources(app).await,
        Err(error) => {
            let why = format!("{error:#}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, why).into_response()
        }
    }
}
