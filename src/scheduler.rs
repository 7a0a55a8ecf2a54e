//! The request sentence.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::watch;

use crate::audit::Usage;
use crate::fleet::{Booking, Fleet};

/// A request that wants an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// `x-request-id`.
    pub request_id: String,
    /// `:path` with its query.
    pub path: String,
    /// The content type.
    pub content_type: Option<String>,
    /// The whole original body.
    pub body: Bytes,
    /// The endpoints that the gateway allows, `ip:port` or bare ip; `None` allows all.
    pub subset: Option<Vec<String>>,
}

/// Why a request gets no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The fleet is empty.
    #[error("no endpoint is ready")]
    NoEndpoint,
    /// The gateway's subset holds none of the fleet.
    #[error("no endpoint of the gateway's subset is ready")]
    NoneInSubset,
}

/// How a placed request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The response's status.
    pub status: Option<u16>,
    /// What the server reported.
    pub usage: Option<Usage>,
    /// Who served, where the gateway says.
    pub served: Option<SocketAddr>,
}

/// A request's place at an endpoint; dropping it releases its load.
#[derive(Debug)]
pub struct Placement {
    booking: Booking,
}

impl Placement {
    /// What Envoy connects to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.booking.endpoint().address
    }

    /// Who, why and what was predicted, in one line fit for a header.
    #[must_use]
    pub fn summary(&self) -> String {
        format!("{} load-only", self.booking.endpoint().name)
    }

    /// The prefill is done.
    pub fn first_output(&mut self) {
        self.booking.prefilled();
    }

    /// The response ended.
    pub fn finish(self, _outcome: Outcome) {}
}

/// Places requests.
#[derive(Debug)]
pub struct Scheduler {
    fleet: watch::Receiver<Arc<Fleet>>,
}

impl Scheduler {
    /// A scheduler over a fleet.
    #[must_use]
    pub fn new(fleet: watch::Receiver<Arc<Fleet>>) -> Self {
        Self { fleet }
    }

    /// Places a request.
    ///
    /// # Errors
    /// Where no endpoint can take it.
    pub async fn place(&self, ask: Ask) -> Result<Placement, Refusal> {
        self.place_headers_only(ask.subset.as_deref())
    }

    /// Places a request of which only the headers are known.
    ///
    /// # Errors
    /// Where no endpoint can take it.
    pub fn place_headers_only(&self, subset: Option<&[String]>) -> Result<Placement, Refusal> {
        let fleet = self.fleet.borrow().clone();
        if fleet.endpoints.is_empty() {
            return Err(Refusal::NoEndpoint);
        }
        let allowed = |address: SocketAddr| {
            subset.is_none_or(|subset| {
                subset
                    .iter()
                    .any(|s| *s == address.to_string() || *s == address.ip().to_string())
            })
        };
        let endpoint = fleet
            .endpoints
            .iter()
            .filter(|endpoint| allowed(endpoint.address))
            .min_by_key(|endpoint| endpoint.load.requests())
            .ok_or(Refusal::NoneInSubset)?;
        Ok(Placement {
            booking: Booking::new(endpoint.clone(), 0),
        })
    }
}
