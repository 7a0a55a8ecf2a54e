//! Where spans of requests go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::yaml::Section;

/// What an operator decides of tracing.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// An OpenTelemetry collector's OTLP/gRPC port, as `http://HOST:4317` or `https://…`; none: no span is made.
    pub endpoint: Option<String>,
    /// Share of the requests that bring no `traceparent`; what brings one is traced as that says.
    pub sampling: f64,
    /// `service.name`.
    pub service_name: String,
    /// Further attributes of the resource.
    pub resource: BTreeMap<String, String>,
    /// A file of headers, a line `name: value` each, that every export carries.
    pub headers: Option<PathBuf>,
    /// PEM of an authority to be trusted beside the system's.
    pub ca: Option<PathBuf>,
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            endpoint: None,
            sampling: 0.1,
            service_name: "kvscout".to_owned(),
            resource: BTreeMap::new(),
            headers: None,
            ca: None,
        }
    }
}

pub(super) fn read(tracing: &mut Section<'_>, folder: &Path) -> Tracing {
    let defaults = Tracing::default();
    let file = |path: Option<PathBuf>| path.map(|path| folder.join(path));
    Tracing {
        endpoint: read_endpoint(tracing),
        sampling: tracing.within("sampling", (0.0, 1.0), defaults.sampling),
        service_name: tracing.get("service_name", defaults.service_name),
        resource: read_resource(tracing),
        headers: file(tracing.optional("headers")),
        ca: file(tracing.optional("ca")),
    }
}

fn read_endpoint(tracing: &mut Section<'_>) -> Option<String> {
    let endpoint = tracing.optional::<String>("endpoint")?;
    let url = reqwest::Url::parse(&endpoint).ok();
    let usable = |url: &reqwest::Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    if url.as_ref().is_none_or(|url| !usable(url)) {
        let example =
            "is not a URL such as http://otel-collector:4317 (OTLP over gRPC) or https://…";
        tracing.complain("endpoint", format!("{endpoint:?} {example}"));
        return None;
    }
    Some(endpoint)
}

fn read_resource(tracing: &mut Section<'_>) -> BTreeMap<String, String> {
    let text = |(key, value): (String, Value)| match value {
        Value::String(text) => Some((key, text)),
        Value::Bool(_) | Value::Number(_) => Some((key, value.to_string())),
        _ => None,
    };
    let attributes = match tracing.json("resource") {
        None => return BTreeMap::new(),
        Some(Value::Object(attributes)) => attributes.into_iter().map(text).collect(),
        Some(_) => None,
    };
    attributes.unwrap_or_else(|| {
        let example =
            "must be a mapping of names to texts, such as {deployment.environment.name: test}";
        tracing.complain("resource", example);
        BTreeMap::new()
    })
}
