//! What is asked of a scheduler, and why it may say no.

use bytes::Bytes;
use opentelemetry::TraceId;

use crate::admission::Shed;

/// What a gateway says of the pool that a request is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolHint {
    /// Its name, or `namespace/name`.
    pub pool: Option<String>,
    /// The name at which it asks for an endpoint: where several pools are served, that of the pool's Service.
    pub authority: Option<String>,
}

/// A request that wants an endpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ask {
    /// `x-request-id`.
    pub request_id: String,
    /// `:path`, its query included.
    pub path: String,
    /// `content-type`.
    pub content_type: Option<String>,
    /// The whole body as the client sent it.
    pub body: Bytes,
    /// The only endpoints allowed, as `ip:port` or `ip`, every rank behind it; none where the
    /// gateway gave no hint.
    pub subset: Option<Vec<String>>,
    /// Which pool's endpoints they are to be.
    pub pool: PoolHint,
    /// The objective that its header names.
    pub objective: Option<String>,
    /// Whom it is for, as its header says: those who wait take turns by it.
    pub fairness: Option<String>,
    /// The model that is to serve it, as its header says, where no rule says another.
    pub target: Option<String>,
    /// The session that a header of `policy.session_headers` names.
    pub session: Option<String>,
    /// The trace that it belongs to.
    pub trace: Option<TraceId>,
}

/// A request whose body is not read, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByLoad {
    /// `x-request-id`.
    pub request_id: String,
    /// As in [`Ask`].
    pub subset: Option<Vec<String>>,
    /// As in [`Ask`].
    pub pool: PoolHint,
    /// As in [`Ask`].
    pub objective: Option<String>,
    /// As in [`Ask`].
    pub session: Option<String>,
    /// As in [`Ask`].
    pub trace: Option<TraceId>,
    /// What is known of the body's size.
    pub body_bytes: usize,
    /// A short word for labels.
    pub reason: &'static str,
}

/// Why a request gets no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The fleet is empty.
    #[error("no endpoint is ready: is the fleet empty?")]
    NoEndpoint,
    /// No endpoint is in the subset that the gateway allows.
    #[error("none of the endpoints that the gateway allows is in the fleet")]
    NoneInSubset,
    /// All are saturated, and it may be shed.
    #[error("every endpoint is saturated: try again in {retry_after_s} s")]
    Shed {
        /// What it ran into.
        why: Shed,
        /// When it is worth another try.
        retry_after_s: u64,
    },
    /// This picker has too much to do.
    #[error("the endpoint picker has too much to do: try again in a second")]
    Overloaded,
}

impl Refusal {
    /// The word for labels and for the drop-reason header.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_endpoint",
            Self::NoneInSubset => "none_in_subset",
            Self::Shed { why, .. } => why.as_str(),
            Self::Overloaded => "overloaded",
        }
    }
}
