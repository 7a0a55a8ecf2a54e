//! One request's ext_proc stream, from Envoy's end.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use kvscout::proto::core::{HeaderMap, HeaderValue};
use kvscout::proto::ext_proc::body_mutation::Mutation;
use kvscout::proto::ext_proc::external_processor_client::ExternalProcessorClient;
use kvscout::proto::ext_proc::processing_request::Request as Say;
use kvscout::proto::ext_proc::processing_response::Response as Reply;
use kvscout::proto::ext_proc::{
    CommonResponse, HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse,
    ProtocolConfiguration,
};
use kvscout::proto::filter::processing_mode::BodySendMode;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep_until;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Response, Status, Streaming};

/// Bytes of a body in one message. Envoy sends what it has read: of a client nearby 16 to 64 KiB.
const CHUNK_BYTES: usize = 32 << 10;
/// Bytes a second.
const GIGABIT: f64 = 125e6;
/// What the header that names the pick is called.
const PICK: &str = "x-gateway-destination-endpoint";
/// Messages that wait to be sent: Envoy does not wait for answers between chunks.
const SAID_MAX: usize = 256;

/// A connection to kvscout, as one worker of Envoy's has.
///
/// # Errors
/// The certificate cannot be read, or nobody answers.
pub async fn connect(to: std::net::SocketAddr, certificate: &Path) -> anyhow::Result<Channel> {
    let certificate = Certificate::from_pem(std::fs::read(certificate)?);
    let tls = ClientTlsConfig::new()
        .ca_certificate(certificate)
        .domain_name("kvscout");
    let endpoint = Endpoint::from_shared(format!("https://{to}"))?.tls_config(tls)?;
    let endpoint = endpoint
        .tcp_nodelay(true)
        .initial_connection_window_size(16 << 20)
        .initial_stream_window_size(1 << 20);
    endpoint.connect().await.context("kvscout does not answer")
}

/// How fast a client's bytes come to Envoy, which passes them on as they come.
#[derive(Debug, Clone, Copy)]
pub enum Link {
    /// All of them are there.
    Instant,
    /// At 1 Gbit/s, a millisecond's at a time (tokio's timer).
    Gigabit,
}

/// How long kvscout took.
#[derive(Debug, Clone)]
pub struct Took {
    /// From the stream's begin to the pick.
    pub pick: Duration,
    /// From when all of the body was said to the pick.
    pub after: Duration,
    /// The pick.
    pub endpoint: String,
}

/// kvscout answered in the pod's place.
#[derive(Debug, thiserror::Error)]
#[error("refused with status {0}")]
pub struct Refused(pub i32);

/// A stream under way.
#[derive(Debug)]
pub struct Stream {
    say: mpsc::Sender<ProcessingRequest>,
    hear: Hear,
    began: Instant,
    /// All of the body was said.
    said: Instant,
}

#[derive(Debug)]
enum Hear {
    Asked(JoinHandle<Result<Streaming<ProcessingResponse>, Status>>),
    Answered(Box<Streaming<ProcessingResponse>>),
}

impl Hear {
    async fn message(&mut self) -> anyhow::Result<Option<ProcessingResponse>> {
        loop {
            match self {
                Self::Asked(opened) => *self = Self::Answered(Box::new(opened.await??)),
                Self::Answered(replies) => return Ok(replies.message().await?),
            }
        }
    }
}

impl Stream {
    /// Opens one, and sends the headers of a request with so many bytes.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn open(channel: &Channel, number: u64, bytes: usize) -> anyhow::Result<Self> {
        let began = Instant::now();
        let (say, said) = mpsc::channel(SAID_MAX);
        let headers = [
            (":method", "POST"),
            (":path", "/v1/chat/completions"),
            (":authority", "models.example.com"),
            ("content-type", "application/json"),
            ("content-length", &bytes.to_string()),
            ("user-agent", "OpenAI/Python 2.8.1"),
            ("x-request-id", &format!("bench-{number}")),
        ];
        let mut first = request(Say::RequestHeaders(http_headers(&headers)));
        let mode = BodySendMode::FullDuplexStreamed.into();
        first.protocol_config = Some(ProtocolConfiguration {
            request_body_mode: mode,
            response_body_mode: mode,
            ..Default::default()
        });
        say.send(first).await.context("kvscout hung up")?;
        let mut client = ExternalProcessorClient::new(channel.clone());
        // Nothing is heard before the first reply, not even that the stream was taken.
        let opened = tokio::spawn(async move {
            let said = tokio_stream::wrappers::ReceiverStream::new(said);
            client.process(said).await.map(Response::into_inner)
        });
        Ok(Self {
            say,
            hear: Hear::Asked(opened),
            began,
            said: began,
        })
    }

    /// Sends a body as its client's link brings it; `ends` where there is no more.
    ///
    /// # Errors
    /// The stream is lost.
    pub async fn send(&mut self, body: &Bytes, ends: bool, link: Link) -> anyhow::Result<()> {
        for from in (0..body.len()).step_by(CHUNK_BYTES) {
            let to = body.len().min(from + CHUNK_BYTES);
            if let Link::Gigabit = link {
                let takes = Duration::from_secs_f64(to as f64 / GIGABIT);
                sleep_until((self.began + takes).into()).await;
            }
            let chunk = HttpBody {
                body: body.slice(from..to),
                end_of_stream: ends && to == body.len(),
                ..Default::default()
            };
            let said = self.say.send(request(Say::RequestBody(chunk))).await;
            said.context("kvscout hung up")?;
        }
        self.said = Instant::now();
        Ok(())
    }

    /// Hears the pick and the whole body back.
    ///
    /// # Errors
    /// The stream is lost, or the answer is no pick.
    pub async fn placed(&mut self, bytes: usize) -> anyhow::Result<Took> {
        let mut picked = None;
        let mut back = 0;
        loop {
            match self.reply().await? {
                Reply::RequestHeaders(headers) => {
                    let endpoint = headers
                        .response
                        .and_then(pick)
                        .context("a reply without a pick")?;
                    picked = Some((self.began.elapsed(), self.said.elapsed(), endpoint));
                }
                Reply::RequestBody(body) => {
                    let mutation = body.response.and_then(|common| common.body_mutation);
                    let Some(Mutation::StreamedResponse(chunk)) =
                        mutation.and_then(|mutation| mutation.mutation)
                    else {
                        bail!("a body that is not streamed");
                    };
                    back += chunk.body.len();
                    if !chunk.end_of_stream {
                        continue;
                    }
                    let (pick, after, endpoint) = picked.context("a body before the pick")?;
                    anyhow::ensure!(back == bytes, "{back} of {bytes} bytes came back");
                    return Ok(Took {
                        pick,
                        after,
                        endpoint,
                    });
                }
                Reply::ImmediateResponse(answer) => {
                    let status = answer.status.map_or(0, |status| status.code);
                    return Err(Refused(status).into());
                }
                other => bail!("not placed: {other:?}"),
            }
        }
    }

    /// The pod answers, and all is over.
    ///
    /// # Errors
    /// The stream is lost.
    pub async fn answered(mut self, status: u16, body: &Bytes) -> anyhow::Result<()> {
        let status = status.to_string();
        let headers = [
            (":status", status.as_str()),
            ("content-type", "application/json"),
        ];
        let body = HttpBody {
            body: body.clone(),
            end_of_stream: true,
            ..Default::default()
        };
        for message in [
            Say::ResponseHeaders(http_headers(&headers)),
            Say::ResponseBody(body),
        ] {
            let said = self.say.send(request(message)).await;
            said.context("kvscout hung up")?;
        }
        drop(self.say);
        while self.hear.message().await?.is_some() {}
        Ok(())
    }

    async fn reply(&mut self) -> anyhow::Result<Reply> {
        let message = self.hear.message().await?.context("kvscout hung up")?;
        message.response.context("an empty reply")
    }
}

fn request(message: Say) -> ProcessingRequest {
    ProcessingRequest {
        request: Some(message),
        ..Default::default()
    }
}

fn http_headers(headers: &[(&str, &str)]) -> HttpHeaders {
    let value = |(key, value): &(&str, &str)| HeaderValue {
        key: (*key).to_owned(),
        raw_value: (*value).to_owned().into(),
        ..Default::default()
    };
    HttpHeaders {
        headers: Some(HeaderMap {
            headers: headers.iter().map(value).collect(),
        }),
        ..Default::default()
    }
}

fn pick(common: CommonResponse) -> Option<String> {
    let set = common.header_mutation?.set_headers.into_iter();
    let mut set = set.filter_map(|option| option.header);
    let picked = set.find(|header| header.key == PICK)?;
    String::from_utf8(picked.raw_value.to_vec()).ok()
}
