//! A configuration as a file with its documentation.

use std::fmt::Write;

use super::decisions::{LOG_BYTES_MAX, LOG_FILES_MAX, PAGES};
use super::nats::STORAGES;
use super::replicas::SHARES;
use super::{
    Config, Dialect, Engine, EventSourceKind, LogFormat, Model, Nats, Source, Strategy, Tls,
};
use super::{fleet, inference};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsMode {
    SelfSigned,
    Files,
    Off,
}

// Every word that a file may use, once, for reading and writing.
pub(super) const TLS_MODES: &[(&str, TlsMode)] = &[
    ("self_signed", TlsMode::SelfSigned),
    ("files", TlsMode::Files),
    ("off", TlsMode::Off),
];
pub(super) const ENGINES: &[(&str, Engine)] =
    &[("fast", Engine::Fast), ("reference", Engine::Reference)];
pub(super) const DIALECTS: &[(&str, Dialect)] =
    &[("python", Dialect::Python), ("rust", Dialect::Rust)];
pub(super) const EVENT_SOURCES: &[(&str, EventSourceKind)] = &[
    ("zmq", EventSourceKind::Zmq),
    ("nats", EventSourceKind::Nats),
    ("off", EventSourceKind::Off),
];
pub(super) const STRATEGIES: &[(&str, Strategy)] = &[
    ("PREFIX_CACHE", Strategy::PrefixCache),
    ("DEFAULT", Strategy::Default),
];
pub(super) const LOG_FORMATS: &[(&str, LogFormat)] =
    &[("text", LogFormat::Text), ("json", LogFormat::Json)];

pub(super) fn word<T: PartialEq>(words: &[(&'static str, T)], value: &T) -> &'static str {
    words
        .iter()
        .find(|(_, known)| known == value)
        .map_or("", |(word, _)| word)
}

/// JSON texts are YAML texts.
pub(super) fn quote(text: impl ToString) -> String {
    serde_json::Value::String(text.to_string()).to_string()
}

fn or_null(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "null".to_owned(), quote)
}

impl Config {
    /// The whole configuration as YAML, each key with what it means. Reading it gives this
    /// configuration back.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut models = String::new();
        for model in &self.models {
            write_model(&mut models, model).expect("writing to a String does not fail");
        }
        if models.is_empty() {
            models.push_str(" []\n");
        } else {
            models.insert(0, '\n');
        }
        let tls = match &self.tls {
            Tls::SelfSigned => "  mode: self_signed\n".to_owned(),
            Tls::Off => "  mode: off\n".to_owned(),
            Tls::Files {
                cert,
                key,
                client_ca,
            } => {
                let (cert, key) = (quote(cert.display()), quote(key.display()));
                let mut text = format!("  mode: files\n  cert: {cert}\n  key: {key}\n");
                if let Some(path) = client_ca {
                    text.push_str(&format!("  client_ca: {}\n", quote(path.display())));
                }
                text
            }
        };
        let log = self.decisions.log.as_ref();
        format!(
            include_str!("template.yaml.in"),
            ext_proc = quote(self.listen.ext_proc),
            health = quote(self.listen.health),
            admin = quote(self.listen.admin),
            admin_token = self
                .listen
                .admin_token
                .as_ref()
                .map_or_else(|| "null".to_owned(), |path| quote(path.display())),
            tls = tls,
            fleet = fleet::write(&self.fleet),
            models = models,
            models_cache = quote(self.models_cache.display()),
            inference_models = inference::write_models(&self.inference_models),
            inference_objectives = inference::write_objectives(&self.inference_objectives),
            source = word(EVENT_SOURCES, &self.events.source),
            bind = self
                .events
                .bind
                .map_or_else(|| "null".to_owned(), |at| quote(format!("tcp://{at}"))),
            nats = write_nats(&self.events.nats),
            keys_secret = self
                .events
                .keys_secret
                .as_ref()
                .map_or_else(|| "null".to_owned(), |path| quote(path.display())),
            topic = quote(&self.events.topic),
            queue_bytes_max = self.events.queue_bytes_max,
            share = word(SHARES, &self.share),
            scrape_interval_ms = self.load.scrape_interval_ms,
            scrape_path = quote(&self.load.scrape_path),
            scrape_port = self
                .load
                .scrape_port
                .map_or_else(|| "null".to_owned(), |port| port.to_string()),
            load_queue_max = self.load.saturation.queue_max,
            kv_usage_max = self.load.saturation.kv_usage_max,
            strategy = word(STRATEGIES, &self.policy.strategy),
            matching_ratio_min = self.policy.matching_ratio_min,
            media_gpu = self.policy.media.gpu,
            media_cpu = self.policy.media.cpu,
            media_storage = self.policy.media.storage,
            session_headers = serde_json::json!(self.policy.session_headers),
            session_affinity = self.policy.session_affinity,
            fallbacks = self.policy.fallbacks,
            queued_tokens_max = self.admission.queued_tokens_max,
            queue_max = self.admission.queue_max,
            wait_ms_max = self.admission.wait_ms_max,
            body_bytes_max = self.limits.body_bytes_max,
            held_bytes_max = self.limits.held_bytes_max,
            decision_ms_max = self.limits.decision_ms_max,
            exchanges_max = self.limits.exchanges_max,
            streams_max = self.limits.streams_max,
            connections_max = self.limits.connections_max,
            body_ms_max = self.limits.body_ms_max,
            silence_ms_max = self.limits.silence_ms_max,
            core_wait_ms_max = self.limits.core_wait_ms_max,
            tokenizer_queue_max = self.limits.tokenizer_queue_max,
            token_cache_bytes_max = self.limits.token_cache_bytes_max,
            tokenizer_wait_ms_max = self.limits.tokenizer_wait_ms_max,
            index_bytes_max = self.limits.index_bytes_max,
            drain_notice_ms = self.limits.drain_notice_ms,
            drain_ms_max = self.limits.drain_ms_max,
            decision_header = self.replies.decision_header,
            conformance_tests = self.replies.conformance_tests,
            kept_bytes_max = self.decisions.kept_bytes_max,
            pages = word(PAGES, &self.decisions.pages),
            log_file = or_null(log.map(|log| log.file.display())),
            log_bytes_max = log.map_or(LOG_BYTES_MAX, |log| log.bytes_max),
            log_files_max = log.map_or(LOG_FILES_MAX, |log| log.files_max),
            metrics_pool = quote(&self.metrics.pool),
            inference_extension_names = self.metrics.inference_extension_names,
            trace_endpoint = or_null(self.tracing.endpoint.as_ref()),
            trace_sampling = self.tracing.sampling,
            trace_service = quote(&self.tracing.service_name),
            trace_resource = serde_json::json!(self.tracing.resource),
            trace_headers = or_null(self.tracing.headers.as_ref().map(|file| file.display())),
            trace_ca = or_null(self.tracing.ca.as_ref().map(|file| file.display())),
            log = word(LOG_FORMATS, &self.log),
        )
    }
}

fn write_nats(nats: &Nats) -> String {
    let list = |texts: &[String]| serde_json::json!(texts).to_string();
    let mut secrets = String::new();
    for (key, path) in [
        ("credentials", &nats.credentials),
        ("nkey", &nats.nkey),
        ("ca", &nats.ca),
        ("cert", &nats.cert),
        ("key", &nats.key),
    ] {
        if let Some(path) = path {
            secrets.push_str(&format!("    {key}: {}\n", quote(path.display())));
        }
    }
    format!(
        include_str!("nats.yaml.in"),
        servers = list(&nats.servers),
        namespace = quote(&nats.namespace),
        pool = quote(&nats.pool),
        secrets = secrets,
        stream = quote(&nats.stream.name),
        max_age_s = nats.stream.max_age_s,
        max_bytes = nats.stream.max_bytes,
        replicas = nats.stream.replicas,
        storage = word(STORAGES, &nats.stream.in_memory),
        placement = list(&nats.stream.placement),
        snapshot_batches = nats.snapshot_batches,
        snapshot_s = nats.snapshot_s,
    )
}

fn write_model(to: &mut String, model: &Model) -> std::fmt::Result {
    writeln!(to, "  - names: {}", serde_json::json!(model.names))?;
    writeln!(to, "    adapters: {}", serde_json::json!(model.adapters))?;
    match &model.source {
        Source::Folder(folder) => writeln!(to, "    folder: {}", quote(folder.display()))?,
        Source::Hub(repo) => {
            let (id, revision) = (quote(&repo.id), quote(&repo.revision));
            writeln!(to, "    hub: {{repo: {id}, revision: {revision}}}")?;
        }
    }
    writeln!(to, "    engine: {}", word(ENGINES, &model.engine))?;
    let dialect = word(DIALECTS, &model.render.dialect);
    writeln!(to, "    dialect: {dialect}")?;
    writeln!(to, "    server: {}", serde_json::json!(model.render))
}
