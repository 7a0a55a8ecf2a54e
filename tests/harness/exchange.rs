//! Envoy's end of an ext_proc stream.

use std::net::SocketAddr;

use bytes::Bytes;
use kvscout::proto::core::{HeaderMap, HeaderValue};
use kvscout::proto::ext_proc::body_mutation::Mutation;
use kvscout::proto::ext_proc::external_processor_client::ExternalProcessorClient;
use kvscout::proto::ext_proc::processing_request::Request as Message;
use kvscout::proto::ext_proc::processing_response::Response as Reply;
use kvscout::proto::ext_proc::{
    HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse, StreamedBodyResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

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
    pub hear: Streaming<ProcessingResponse>,
}

impl Exchange {
    pub async fn open(channel: Channel) -> Self {
        let (say, said) = mpsc::channel(8);
        let mut client = ExternalProcessorClient::new(channel);
        let opened = soon("a stream", client.process(ReceiverStream::new(said))).await;
        let hear = opened.expect("a stream").into_inner();
        Self { say, hear }
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
        let Reply::RequestHeaders(reply) = self.hear().await else {
            panic!("not a reply to headers");
        };
        let mutation = reply.response.and_then(|common| common.header_mutation);
        let set = mutation.expect("a pick").set_headers.into_iter();
        let mut set = set.filter_map(|option| option.header);
        let picked = set.find(|header| header.key == "x-gateway-destination-endpoint");
        let picked = picked.expect("the pick's header").raw_value;
        String::from_utf8(picked.to_vec()).expect("text")
    }
}

/// The headers of a request to a path.
pub fn headers(path: &str, end_of_stream: bool) -> Message {
    let path = HeaderValue {
        key: ":path".into(),
        raw_value: path.to_owned().into(),
        ..Default::default()
    };
    Message::RequestHeaders(HttpHeaders {
        headers: Some(HeaderMap {
            headers: vec![path],
        }),
        end_of_stream,
        ..Default::default()
    })
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
