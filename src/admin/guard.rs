//! Who may ask which page.
//!
//! | page | who is on this host | others |
//! |---|---|---|
//! | `/healthz`, `/readyz` | yes | yes: probes |
//! | `/metrics` | yes | yes, unless there is a token: with it |
//! | `/ui`, `/endpoints`, `/audit` | yes | with the token |
//! | `/decisions`, `/explain`, `/prefixes` | unless `decisions.pages` is `off` | with the token; where there is none, with `any` |
//!
//! Whoever can ask where a prompt is cached can find out whether somebody asked it: a prompt that he guesses in
//! full, with its `cache_salt` if it has one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::config::Pages;

/// What an operator says of it.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Who may ask about decisions.
    pub pages: Pages,
    /// The file with the token that others must show; it is read when somebody does, so that a new one counts
    /// at once.
    pub token: Option<Arc<PathBuf>>,
}

/// A kind of page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    Metrics,
    State,
    Decisions,
}

/// Who asks, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    /// On this host.
    Local,
    /// On this host, by a name that may be anybody's.
    Renamed,
    /// From elsewhere, and has shown the token.
    Known,
    Stranger,
}

/// Answers those who may ask.
pub(super) async fn guard(
    State((guard, page)): State<(Guard, Page)>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let peer = match is_local(address.ip()) {
        true if by_address(headers) => Peer::Local,
        true => Peer::Renamed,
        false if knows(&guard, headers).await => Peer::Known,
        false => Peer::Stranger,
    };
    match allowed(&guard, page, peer) {
        Ok(()) => next.run(request).await,
        Err(why) if guard.token.is_some() && peer == Peer::Stranger => {
            let ask = [(header::WWW_AUTHENTICATE, "Bearer")];
            (StatusCode::UNAUTHORIZED, ask, format!("{why}\n")).into_response()
        }
        Err(why) => (StatusCode::FORBIDDEN, format!("{why}\n")).into_response(),
    }
}

fn allowed(guard: &Guard, page: Page, peer: Peer) -> Result<(), &'static str> {
    const LOCAL: &str = "this page is for who is on this host, e.g. through kubectl port-forward, or shows the token of \
                         listen.admin_token";
    match (page, guard.pages, peer) {
        (Page::Decisions, Pages::Off, _) => Err("this page is off: decisions.pages"),
        (Page::Metrics, _, Peer::Renamed) | (_, _, Peer::Local | Peer::Known) => Ok(()),
        (Page::Decisions, Pages::Any, _) | (Page::Metrics, _, _) if guard.token.is_none() => Ok(()),
        (_, _, Peer::Renamed) => Err("ask this page by an address or as localhost"),
        (_, _, Peer::Stranger) => Err(LOCAL),
    }
}

/// Not all of 127/8: Istio's sidecar brings whoever comes from outside as 127.0.0.6.
fn is_local(peer: IpAddr) -> bool {
    matches!(
        peer.to_canonical(),
        IpAddr::V4(Ipv4Addr::LOCALHOST) | IpAddr::V6(Ipv6Addr::LOCALHOST)
    )
}

/// A page of a browser that had its own name resolved to this host asks by that name.
fn by_address(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).map(|host| host.to_str());
    let Some(host) = host else { return true };
    let Ok(host) = host else { return false };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

/// Whether the token is shown. The time that it takes tells nothing of it but its length.
async fn knows(guard: &Guard, headers: &HeaderMap) -> bool {
    let Some(path) = &guard.token else {
        return false;
    };
    let shown = headers.get(header::AUTHORIZATION);
    let shown = shown.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let Some(shown) = shown else { return false };
    match tokio::fs::read(&**path).await {
        Ok(token) => is_token(token.trim_ascii(), shown),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "listen.admin_token cannot be read: nobody is let in by it");
            false
        }
    }
}

fn is_token(token: &[u8], shown: &[u8]) -> bool {
    !token.is_empty() && bool::from(token.ct_eq(shown))
}

#[cfg(test)]
mod tests {
    use super::Page::{Decisions, Metrics, State};
    use super::*;

    fn may(guard: &Guard, page: Page, peer: Peer) -> bool {
        allowed(guard, page, peer).is_ok()
    }

    fn with(pages: Pages, token: bool) -> Guard {
        Guard {
            pages,
            token: token.then(|| Arc::new("token".into())),
        }
    }

    #[test]
    fn this_host_is_this_host_alone() {
        for peer in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert!(is_local(peer.parse().expect("an ip")), "{peer}");
        }
        for peer in ["10.0.0.1", "127.0.0.6", "::6", "::ffff:10.0.0.1"] {
            assert!(!is_local(peer.parse().expect("an ip")), "{peer}");
        }
    }

    #[test]
    fn without_a_token_others_get_metrics_and_what_is_opened() {
        let guard = with(Pages::Local, false);
        for page in [Metrics, State, Decisions] {
            assert!(may(&guard, page, Peer::Local), "{page:?}");
        }
        assert!(may(&guard, Metrics, Peer::Stranger));
        assert!(!may(&guard, State, Peer::Stranger));
        assert!(!may(&guard, Decisions, Peer::Stranger));
        let open = with(Pages::Any, false);
        assert!(may(&open, Decisions, Peer::Stranger));
        assert!(!may(&open, State, Peer::Stranger));
        let off = with(Pages::Off, false);
        assert!(!may(&off, Decisions, Peer::Local));
    }

    #[test]
    fn with_a_token_others_get_what_they_show_it_for() {
        for pages in [Pages::Local, Pages::Any] {
            let guard = with(pages, true);
            for page in [Metrics, State, Decisions] {
                assert!(may(&guard, page, Peer::Local), "{page:?}");
                assert!(may(&guard, page, Peer::Known), "{page:?}");
                assert!(!may(&guard, page, Peer::Stranger), "{page:?}");
            }
        }
        assert!(!may(&with(Pages::Off, true), Decisions, Peer::Known));
    }

    #[tokio::test]
    async fn only_the_whole_token_is_the_token() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let guard = Guard {
            pages: Pages::Local,
            token: Some(Arc::new(file.path().to_owned())),
        };
        let shows = async |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().expect("a value"));
            knows(&guard, &headers).await
        };
        assert!(!shows("Bearer ").await, "an empty file is no token");
        std::fs::write(file.path(), "secret-1\n").expect("written");
        assert!(shows("Bearer secret-1").await);
        for wrong in [
            "Bearer secret-",
            "Bearer secret-12",
            "Basic secret-1",
            "secret-1",
        ] {
            assert!(!shows(wrong).await, "{wrong}");
        }
        assert!(!knows(&guard, &HeaderMap::new()).await);
        std::fs::write(file.path(), "secret-2").expect("written");
        assert!(!shows("Bearer secret-1").await);
        assert!(shows("Bearer secret-2").await, "a new one counts at once");
    }

    #[test]
    fn a_foreign_name_for_this_host_is_turned_away() {
        let named = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().expect("a value"));
            by_address(&headers)
        };
        for host in [
            "localhost",
            "localhost:9090",
            "127.0.0.1:9090",
            "[::1]:9090",
        ] {
            assert!(named(host), "{host}");
        }
        assert!(!named("evil.example:9090"));
        let guard = with(Pages::Local, false);
        assert!(!may(&guard, Decisions, Peer::Renamed));
        assert!(!may(&guard, State, Peer::Renamed));
        assert!(may(&guard, Metrics, Peer::Renamed));
    }
}
