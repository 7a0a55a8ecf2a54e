//! Sends spans to a collector, by OTLP over gRPC.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use tokio::sync::mpsc::Receiver;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap};
use tonic::transport::{Certificate, ClientTlsConfig};

use super::{Request, stages};
use crate::config::Tracing;
use crate::gather::Gather;
use crate::metrics::Metrics;

/// A request has seven spans, so that an export has the SDKs' usual 512.
const AT_ONCE: usize = 73;
/// Requests wait so long for others.
const GATHERED: Duration = Duration::from_secs(1);
/// For the collector's answer; at the end all of it must be sent within the app's limit for its tasks.
const EXPORT_MAX: Duration = Duration::from_secs(3);

/// To the collector that the settings name, which is not connected to yet; none where they name none.
///
/// # Errors
/// A file cannot be read, or has something else in it.
pub fn exporter(settings: &Tracing) -> anyhow::Result<Option<SpanExporter>> {
    let Some(endpoint) = &settings.endpoint else {
        return Ok(None);
    };
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_MAX);
    let exporter = match &settings.headers {
        Some(file) => exporter.with_metadata(headers(file)?),
        None => exporter,
    };
    let exporter = match endpoint.starts_with("https:") {
        true => exporter.with_tls_config(tls(settings.ca.as_deref())?),
        false => exporter,
    };
    let mut exporter = exporter.build().context("tracing.endpoint")?;
    let attributes = settings.resource.iter();
    let attributes = attributes.map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    let resource = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(attributes)
        .with_service_name(settings.service_name.clone());
    exporter.set_resource(&resource.build());
    Ok(Some(exporter))
}

/// `name: value` a line.
fn headers(file: &Path) -> anyhow::Result<MetadataMap> {
    let place = || format!("tracing.headers: {}", file.display());
    let text = std::fs::read_to_string(file).with_context(place)?;
    let mut headers = MetadataMap::new();
    let lines = text.lines().enumerate();
    for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        // The value may be a secret, and is not told.
        let place = || format!("{}: line {}: is not `name: value`", place(), number + 1);
        let (name, value) = line.split_once(':').with_context(place)?;
        let name: MetadataKey<Ascii> = name.trim().to_lowercase().parse().with_context(place)?;
        headers.insert(name, value.trim().parse().with_context(place)?);
    }
    Ok(headers)
}

fn tls(ca: Option<&Path>) -> anyhow::Result<ClientTlsConfig> {
    let tls = ClientTlsConfig::new().with_enabled_roots();
    let Some(file) = ca else { return Ok(tls) };
    let pem = std::fs::read(file).with_context(|| format!("tracing.ca: {}", file.display()))?;
    Ok(tls.ca_certificate(Certificate::from_pem(pem)))
}

/// Sends whatever comes, and at the end what is left.
///
/// # Errors
/// None: what the collector does not take is counted.
pub async fn run(
    exporter: SpanExporter,
    queue: Receiver<Box<Request>>,
    metrics: Arc<Metrics>,
    ending: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let mut ended = Gather::new(queue, (GATHERED, AT_ONCE), ending);
    let mut fails = false;
    while let Some(requests) = ended.next().await {
        let count = requests.len() as u64;
        let spans = requests.iter().flat_map(|request| stages::spans(request));
        let sent = exporter.export(spans.collect()).await;
        let outcome = if sent.is_ok() { "sent" } else { "failed" };
        metrics.traces(outcome, count);
        // Once for each time that it begins, since a collector may be away for a day.
        match &sent {
            Err(error) if !fails => {
                tracing::warn!(%error, "tracing.endpoint: the collector does not take spans, which are lost");
            }
            Ok(()) if fails => tracing::info!("tracing.endpoint: the collector takes spans again"),
            _ => {}
        }
        fails = sent.is_err();
    }
    Ok(())
}
