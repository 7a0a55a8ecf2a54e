//! Who may ask what shows which prompts are cached.
//!
//! Whoever can ask where a prompt is cached can find out whether somebody asked it: a prompt that he guesses in
//! full, with its `cache_salt` if it has one. So these pages are for who is on this host unless an operator
//! says otherwise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::config::Pages;

/// Answers those who may ask.
pub async fn guard(
    State(pages): State<Pages>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok());
    match allowed(pages, peer.ip(), host) {
        Ok(()) => next.run(request).await,
        Err(why) => (StatusCode::FORBIDDEN, format!("{why}\n")).into_response(),
    }
}

fn allowed(pages: Pages, peer: IpAddr, host: Option<&str>) -> Result<(), &'static str> {
    match pages {
        Pages::Any => Ok(()),
        Pages::Off => Err("this page is off: decisions.pages"),
        // Not all of 127/8: Istio's sidecar brings whoever comes from outside as 127.0.0.6.
        Pages::Local => match peer.to_canonical() {
            IpAddr::V4(Ipv4Addr::LOCALHOST) | IpAddr::V6(Ipv6Addr::LOCALHOST) => by_address(host),
            _ => Err(
                "this page is for who is on this host, e.g. through kubectl port-forward; \
                 decisions.pages: any opens it to who reaches this port",
            ),
        },
    }
}

/// A page of a browser that had its own name resolved to this host asks by that name.
fn by_address(host: Option<&str>) -> Result<(), &'static str> {
    let Some(host) = host else { return Ok(()) };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    match name == "localhost" || name.parse::<IpAddr>().is_ok() {
        true => Ok(()),
        false => Err("ask this page by an address or as localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(peer: &str, host: Option<&str>) -> bool {
        allowed(Pages::Local, peer.parse().expect("an ip"), host).is_ok()
    }

    #[test]
    fn only_this_host_may_ask_unless_it_is_opened() {
        for peer in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert!(local(peer, None), "{peer}");
        }
        for peer in ["10.0.0.1", "127.0.0.6", "::6", "::ffff:10.0.0.1"] {
            assert!(!local(peer, None), "{peer}");
            assert!(allowed(Pages::Any, peer.parse().expect("an ip"), None).is_ok());
        }
        assert!(allowed(Pages::Off, "127.0.0.1".parse().expect("an ip"), None).is_err());
    }

    #[test]
    fn a_foreign_name_for_this_host_is_turned_away() {
        for host in [
            "localhost",
            "localhost:9090",
            "127.0.0.1:9090",
            "[::1]:9090",
        ] {
            assert!(local("127.0.0.1", Some(host)), "{host}");
        }
        assert!(!local("127.0.0.1", Some("evil.example:9090")));
    }
}
