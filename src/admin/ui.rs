//! `GET /ui`: the fleet as a picture. One file, which asks the other pages; it is told by nobody else, and tells
//! nobody else.

use std::sync::LazyLock;

use axum::http::{HeaderName, header};
use axum::response::{Html, IntoResponse};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA256, digest};

const PAGE: &str = include_str!("ui.html");

/// Its own script and style, by their hashes, and no others; and it asks this port alone.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of("script"),
        hash_of("style")
    )
});

fn hash_of(tag: &str) -> String {
    let (start, end) = (format!("<{tag}>"), format!("</{tag}>"));
    let inside = PAGE
        .split_once(&start)
        .and_then(|(_, rest)| rest.split_once(&end));
    let (inside, _) = inside.expect("the page has one of each");
    let hash = digest(&SHA256, inside.as_bytes());
    format!("sha256-{}", BASE64_STANDARD.encode(hash))
}

/// The page.
pub async fn ui() -> impl IntoResponse {
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_SECURITY_POLICY, &POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(PAGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_brings_everything_itself() {
        for word in [
            "http://",
            "https://",
            "src=",
            "@import",
            "url(",
            "innerHTML",
            " style=",
            "onclick",
            "onload",
            "onerror",
            "javascript:",
            "eval(",
        ] {
            let found = PAGE.lines().find(|line| line.contains(word));
            assert_eq!(found, None, "{word}");
        }
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert_eq!(PAGE.matches("<style").count(), 1);
    }
}
