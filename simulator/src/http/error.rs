//! Errors in the words and the JSON of vLLM's OpenAI server.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<&'static str>,
}

impl Refusal {
    pub(super) fn bad_request(message: impl Into<String>, param: Option<&'static str>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "BadRequestError",
            message: message.into(),
            param,
        }
    }

    /// A name that is neither the model's nor an adapter's.
    pub(super) fn unknown_model(name: &str, known: &[&str]) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "NotFoundError",
            message: format!(
                "The model `{name}` does not exist. Valid aliases: {}.",
                known.join(", ")
            ),
            param: Some("model"),
        }
    }

    /// The engine is gone.
    pub(super) fn shutting_down() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "ServiceUnavailableError",
            message: "The server is shutting down.".into(),
            param: None,
        }
    }

    pub(super) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.status.as_u16(),
        }})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, json_body(&self.body())).into_response()
    }
}

/// FastAPI's answer to a path that is not there.
pub(super) async fn unknown_path() -> Response {
    let body = json_body(&json!({"detail": "Not Found"}));
    (StatusCode::NOT_FOUND, body).into_response()
}

/// A JSON body with its content type.
pub(super) fn json_body(value: &Value) -> impl IntoResponse + use<> {
    (
        [(header::CONTENT_TYPE, "application/json")],
        value.to_string(),
    )
}
