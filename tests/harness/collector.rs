//! An OpenTelemetry collector, as far as traces go: it keeps what it is sent.

use std::net::SocketAddr;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::{PATIENCE, soon};

/// Listens until it is dropped.
pub struct Collector {
    pub address: SocketAddr,
    /// Of its certificate, where it has one.
    pub pem: String,
    kept: Arc<Kept>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct Kept {
    exports: Mutex<Vec<ExportTraceServiceRequest>>,
    authorization: Mutex<Option<String>>,
}

struct Service(Arc<Kept>);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let header = request.metadata().get("authorization");
        let header = header.map(|value| value.to_str().expect("text").to_owned());
        *self.0.authorization.lock() = header;
        self.0.exports.lock().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// In plain text.
    pub async fn start() -> Self {
        Self::serve(None).await
    }

    /// With a certificate for `localhost` that nobody but its holder trusts.
    pub async fn encrypted() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        let made = made.expect("a certificate");
        let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        Self::serve(Some((pem, key))).await
    }

    async fn serve(certificate: Option<(String, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let kept = Arc::<Kept>::default();
        let mut server = Server::builder();
        let service = TraceServiceServer::new(Service(kept.clone()));
        let mut of = String::new();
        if let Some((pem, key)) = certificate {
            let tls = ServerTlsConfig::new().identity(Identity::from_pem(&pem, key));
            (server, of) = (server.tls_config(tls).expect("it fits"), pem);
        }
        let served = server.serve_with_incoming(service, TcpIncoming::from(listener));
        Self {
            address,
            pem: of,
            kept,
            server: tokio::spawn(async { served.await.expect("it serves") }),
        }
    }

    /// Spans by now, each with its service's name.
    pub fn spans(&self) -> Vec<(String, Span)> {
        let exports = self.kept.exports.lock();
        let mut spans = Vec::new();
        for resource in exports.iter().flat_map(|one| &one.resource_spans) {
            let attributes = resource.resource.as_ref().map(|one| &one.attributes[..]);
            let service = text(attributes.unwrap_or_default(), "service.name");
            let all = resource.scope_spans.iter().flat_map(|scope| &scope.spans);
            spans.extend(all.map(|span| (service.clone(), span.clone())));
        }
        spans
    }

    /// Everything that was sent, for whoever looks for what must not be there.
    pub fn all_text(&self) -> String {
        format!("{:?}", self.kept.exports.lock())
    }

    /// What the last export carried to prove who it is.
    pub fn authorization(&self) -> Option<String> {
        self.kept.authorization.lock().clone()
    }

    /// Waits for the span of a service that has this name.
    pub async fn span(&self, service: &str, name: &str) -> Span {
        soon(&format!("a span {name:?} of {service}"), async {
            loop {
                let mut all = self.spans().into_iter();
                if let Some((_, span)) = all.find(|(of, span)| of == service && span.name == name) {
                    return span;
                }
                tokio::time::sleep(PATIENCE / 1000).await;
            }
        })
        .await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// An attribute as text; empty where it is not there.
pub fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|one| one.key == key);
    let value = found.and_then(|one| one.value.as_ref()?.value.clone());
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(yes)) => yes.to_string(),
        _ => String::new(),
    }
}
