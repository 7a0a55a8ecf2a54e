//! Envoy's end of an ext_proc stream.

use std::net::SocketAddr;

use bytes::Bytes;
use kvscout::proto::core::{HeaderMap, HeaderValue};
use kvscout::proto::ext_proc::body_mutation::Mutation;
use kvscout::proto::ext_proc::external_processor_client::ExternalProcessorClient;
use kvscout::proto::ext_proc::processing_request::Request as Message;
use kvscout::proto::ext_proc::processing_response::Response as Reply;
use kvscout::proto::ext_proc::{
    HeadersResponse, HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse,
    StreamedBodyResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status, Streaming};

use super::soon;

/// A connection to kvscout's port, without TLS.
pub async fn channel(to: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{to}")).expect("an address");
    soon("a connection", endpoint.connect())
        .await
        .expect("connected")
}

/// The same as a gateway opens it that asks at this name.
pub async fn channel_at(to: SocketAddr, authority: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{to}")).expect("an address");
    let origin = format!("http://{authority}").parse().expect("a name");
    soon("a connection", endpoint.origin(origin).connect())
        .await
        .expect("connected")
}

/// One exchange, from Envoy's end.
pub struct Exchange {
    pub say: mpsc::Sender<ProcessingRequest>,
    pub hear: Hear,
}

/// What it hears. Nothing before the first reply, not even that it was let in.
pub struct Hear(Call);

enum Call {
    Asked(AbortOnDropHandle<Result<Streaming<ProcessingResponse>, Status>>),
    Answered(Box<Streaming<ProcessingResponse>>),
}

impl Hear {
    pub async fn message(&mut self) -> Result<Option<ProcessingResponse>, Status> {
        loop {
            match &mut self.0 {
                Call::Asked(asked) => {
                    self.0 = Call::Answered(Box::new(asked.await.expect("it does not panic")?));
                }
                Call::Answered(replies) => return replies.message().await,
            }
        }
    }
}

impl Exchange {
    pub async fn open(channel: Channel) -> Self {
        let (say, said) = mpsc::channel(8);
        let mut client = ExternalProcessorClient::new(channel);
        let asked = async move {
            let answer = client.process(ReceiverStream::new(said)).await;
            answer.map(Response::into_inner)
        };
        let asked = AbortOnDropHandle::new(tokio::spawn(asked));
        Self {
            say,
            hear: Hear(Call::Asked(asked)),
        }
    }

    pub async fn say(&self, message: Message) {
        let request = ProcessingRequest {
            request: Some(message),
            ..Default::default()
        };
        self.say.send(request).await.expect("it listens");
    }

    pub async fn hear(&mut self) -> Reply {
        let message = soon("a reply", self.hear.message()).await;
        let message = message.expect("no error").expect("not the end");
        message.response.expect("a response")
    }

    /// Where a request without a body is sent.
    pub async fn picked(&mut self) -> String {
        self.say(headers("/v1/completions", true)).await;
        self.pick().await
    }

    /// Where a request with these headers and this body is sent.
    pub async fn placed(&mut self, said: &[(&str, &str)], content: String) -> String {
        self.say(Message::RequestHeaders(fields(said, false))).await;
        self.say(body(content, true)).await;
        let pick = self.pick().await;
        let reply = self.hear().await;
        assert!(matches!(reply, Reply::RequestBody(_)), "{reply:?}");
        pick
    }

    async fn pick(&mut self) -> String {
        let Reply::RequestHeaders(reply) = self.hear().await else {
            panic!("not a reply to headers");
        };
        let set = set_headers(reply);
        let mut set = set.into_iter();
        let picked = set.find(|(name, _)| name == "x-gateway-destination-endpoint");
        picked.expect("the pick's header").1
    }

    /// Its answer, as JSON in one piece; what is added to its headers.
    pub async fn answered(&mut self, content: String) -> Vec<(String, String)> {
        let said = [(":status", "200"), ("content-type", "application/json")];
        self.say(Message::ResponseHeaders(fields(&said, false)))
            .await;
        let Reply::ResponseHeaders(added) = self.hear().await else {
            panic!("not a reply to headers");
        };
        let content = HttpBody {
            body: content.into(),
            end_of_stream: true,
            ..Default::default()
        };
        self.say(Message::ResponseBody(content)).await;
        let reply = self.hear().await;
        assert!(matches!(reply, Reply::ResponseBody(_)), "{reply:?}");
        set_headers(added)
    }

    /// Envoy has no more to say, and hears the end.
    pub async fn ended(mut self) {
        drop(self.say);
        let end = soon("the stream's end", self.hear.message()).await;
        assert!(end.expect("no error").is_none());
    }
}

/// What a reply adds to headers.
pub fn set_headers(reply: HeadersResponse) -> Vec<(String, String)> {
    let mutation = reply.response.and_then(|common| common.header_mutation);
    let set = mutation.unwrap_or_default().set_headers.into_iter();
    let text = |value: HeaderValue| {
        let raw = String::from_utf8(value.raw_value.to_vec());
        (value.key, raw.expect("text"))
    };
    set.filter_map(|option| option.header.map(text)).collect()
}

/// The headers of a request to a path.
pub fn headers(path: &str, end_of_stream: bool) -> Message {
    Message::RequestHeaders(fields(&[(":path", path)], end_of_stream))
}

fn fields(all: &[(&str, &str)], end_of_stream: bool) -> HttpHeaders {
    let header = |(key, value): &(&str, &str)| HeaderValue {
        key: (*key).to_owned(),
        raw_value: (*value).to_owned().into(),
        ..Default::default()
    };
    HttpHeaders {
        headers: Some(HeaderMap {
            headers: all.iter().map(header).collect(),
        }),
        end_of_stream,
        ..Default::default()
    }
}

/// A chunk of a request's body.
pub fn body(text: impl Into<Bytes>, end_of_stream: bool) -> Message {
    Message::RequestBody(HttpBody {
        body: text.into(),
        end_of_stream,
        ..Default::default()
    })
}

/// A chunk of the body on its way on.
pub fn streamed(reply: Reply) -> StreamedBodyResponse {
    let Reply::RequestBody(body) = reply else {
        panic!("not a body: {reply:?}");
    };
    let mutation = body.response.and_then(|common| common.body_mutation);
    match mutation.and_then(|mutation| mutation.mutation) {
        Some(Mutation::StreamedResponse(chunk)) => chunk,
        other => panic!("not streamed: {other:?}"),
    }
}
