//! Golden conversations: `tests/fixtures/ext_proc/*.yaml`, whose README has the format.

use std::collections::BTreeMap;
use std::path::Path;

use kvscout::proto::ext_proc::{ProcessingRequest, ProcessingResponse};
use prost_reflect::prost::Message;
use prost_reflect::text_format::FormatOptions;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde::Deserialize;

/// One request, as its client, its pod, Envoy and kvscout have it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    #[serde(skip)]
    pub name: String,
    pub bodies: Bodies,
    #[serde(default)]
    pub fleet: Fleet,
    #[serde(default)]
    pub conformance_tests: bool,
    /// `envoy.lb.subset_hint`, as the gateway gives it.
    pub subset: Option<Vec<String>>,
    pub client: Client,
    /// None where no pod may be asked.
    pub pod: Option<Pod>,
    pub answer: Answer,
    pub conversation: Vec<Said>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bodies {
    FullDuplex,
    Buffered,
    /// The request's; the response comes in chunks that Envoy keeps until they are answered.
    BufferedRequest,
    Streamed,
    Unseen,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fleet {
    /// The pod.
    #[default]
    Ready,
    Empty,
    /// The pod, with more to do than is allowed.
    Saturated,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    pub method: String,
    pub path: String,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// In chunks; none at all ends with the headers.
    #[serde(default)]
    pub body: Vec<String>,
    #[serde(default)]
    pub trailers: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// Headers that it sees; empty for one that is not there.
    #[serde(default)]
    pub sees: BTreeMap<String, String>,
    #[serde(default)]
    pub body: String,
    /// Its answer as HTTP/1.1 says it: the head, then chunks, then trailers.
    pub status: String,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    #[serde(default)]
    pub chunks: Vec<String>,
    #[serde(default)]
    pub trailers: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    pub status: u16,
    /// Headers that the client gets; empty for one that is not there.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    pub body: String,
    #[serde(default)]
    pub trailers: BTreeMap<String, String>,
}

/// A message in protobuf's text format.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    #[serde(alias = "agentgateway")]
    Envoy(String),
    Kvscout(String),
}

/// All of them, by name.
pub fn all() -> Vec<Golden> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ext_proc");
    let files = std::fs::read_dir(folder).expect("a folder");
    let paths = files.map(|file| file.expect("an entry").path());
    let mut all: Vec<Golden> = paths
        .filter(|path| path.extension().is_some_and(|kind| kind == "yaml"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("a file");
            let name = path.file_stem().expect("a name").display().to_string();
            let golden: Golden =
                serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            Golden { name, ..golden }
        })
        .collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all
}

/// Reads and writes messages of Envoy's protocol as text.
pub struct Texts {
    request: MessageDescriptor,
    response: MessageDescriptor,
}

impl Texts {
    pub fn new() -> Self {
        let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
        let root = ["envoy/service/ext_proc/v3/external_processor.proto"];
        let files = protox::compile(root, [proto]).expect("it compiles");
        let pool = DescriptorPool::from_file_descriptor_set(files).expect("complete");
        let named = |name: &str| {
            let full = format!("envoy.service.ext_proc.v3.{name}");
            pool.get_message_by_name(&full).expect("it is declared")
        };
        Self {
            request: named("ProcessingRequest"),
            response: named("ProcessingResponse"),
        }
    }

    pub fn request(&self, text: &str) -> ProcessingRequest {
        let message = parse(&self.request, text).encode_to_vec();
        ProcessingRequest::decode(&message[..]).expect("the same message")
    }

    /// A response as text, however it was written.
    pub fn canonical(&self, text: &str) -> String {
        written(&parse(&self.response, text))
    }

    pub fn response(&self, message: &ProcessingResponse) -> String {
        let bytes = message.encode_to_vec();
        let message = DynamicMessage::decode(self.response.clone(), &bytes[..]);
        written(&message.expect("the same message"))
    }
}

fn parse(kind: &MessageDescriptor, text: &str) -> DynamicMessage {
    DynamicMessage::parse_text_format(kind.clone(), text)
        .unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn written(message: &DynamicMessage) -> String {
    message.to_text_format_with_options(&FormatOptions::new().pretty(true))
}
