//! What vLLM 0.33 made of 417 requests to its chats and completions, of 304 more, most of them to
//! its other ways in, and of 313 texts: byte for byte and token for token.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod harness;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use harness::tokenizer;
use kvscout::config::TOKEN_CACHE_BYTES_MAX;
use kvscout::prompt::json::Json;
use kvscout::prompt::template::{RenderSettings, Renderer};
use kvscout::prompt::{Api, PromptText, Request};
use kvscout::tokens::{self, CacheBudget, Engine, Tokenizer};
use serde_json::{Value, json};

/// Lines that vLLM refuses and that we score, by id. A score too many costs nothing: the engine
/// refuses the request wherever it goes. One shows an image to a model that sees none, one part has
/// a uuid and no image, one choice of a tool has no parser, the others leave no token for an answer.
const HARMLESS: &[&str] = &[
    "p180-parts",
    "responses-1-parts-extra",
    "responses-2-tool-choice-required",
    "responses-2-truncation-auto-long-no-output",
    "responses-2-truncation-disabled-long",
    "chat-2-truncate-all-no-output",
    "chat-2-truncate-all-no-completion",
];

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/prompt")
        .join(name);
    std::fs::read_to_string(path).unwrap()
}

fn lines(name: &str) -> Vec<Value> {
    fixture(name)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The body of a line, its numbers untouched: serde_json's own reading rounds some.
fn body(line: &str) -> String {
    let Ok(Json::Object(line)) = Json::loads(line) else {
        panic!("an object")
    };
    match line.get("raw_body").and_then(Json::as_str) {
        Some(body) => body.to_owned(),
        None => line.get("request").and_then(Json::dumps).unwrap(),
    }
}

/// Renderers by their server's flags.
#[derive(Default)]
struct Renderers(BTreeMap<String, Renderer>);

impl Renderers {
    fn of(&mut self, server: &Value) -> &Renderer {
        self.0.entry(server.to_string()).or_insert_with(|| {
            let settings: RenderSettings = serde_json::from_value(server.clone()).unwrap();
            Renderer::load(&tokenizer(), settings, SystemTime::now).unwrap()
        })
    }
}

/// The rendered text (null for completions) and the ids, as the fixture has them.
fn ours(
    line: &Value,
    body: &str,
    renderer: &Renderer,
    tokenizer: &dyn Tokenizer,
) -> Result<(Value, Value), String> {
    let path = line["endpoint"].as_str().unwrap();
    let request = Request::parse(path, body.as_bytes()).map_err(|error| error.to_string())?;
    let prompt = request
        .render(renderer)
        .map_err(|error| error.to_string())?;
    let mut ids = tokens::tokens_of(&prompt, tokenizer).map_err(|error| error.to_string())?;
    Ok(match (request.api(), prompt.first()) {
        (api, PromptText::Text { text, .. }) if api.is_conversation() => {
            (json!(text), json!(ids.remove(0)))
        }
        (Api::Responses | Api::Messages, _) => (Value::Null, json!(ids.remove(0))),
        _ => (Value::Null, json!(ids)),
    })
}

/// How many lines of a file are the same, and how many are refused. All others are wrong.
fn compared(name: &str) -> (usize, usize) {
    let cache = CacheBudget::of_bytes(TOKEN_CACHE_BYTES_MAX);
    let tokenizer = tokens::load(&tokenizer(), Engine::Fast, &cache).unwrap();
    let mut renderers = Renderers::default();
    let (mut same, mut refused, mut wrong) = (0, 0, Vec::new());
    for text in fixture(name).lines() {
        let line: Value = serde_json::from_str(text).unwrap();
        let id = line["id"].as_str().unwrap().to_owned();
        let ours = ours(
            &line,
            &body(text),
            renderers.of(&line["server"]),
            &*tokenizer,
        );
        match (line["ok"].as_bool().unwrap(), ours) {
            // Where a request had the template's text tokenized early, that is what "rendered" is;
            // where it had it truncated, nothing is.
            (true, Ok((rendered, ids)))
                if ids == line["token_ids"]
                    && (rendered == line["rendered"]
                        || line["rendered"] == line["token_ids"]
                        || line["rendered"].is_null()) =>
            {
                same += 1;
            }
            (true, Ok((rendered, _))) => wrong.push(format!(
                "{id}: another prompt\n  ours   {rendered}\n  theirs {}",
                line["rendered"]
            )),
            (true, Err(error)) => wrong.push(format!("{id}: {error}")),
            (false, Err(_)) => refused += 1,
            (false, Ok(_)) if HARMLESS.contains(&id.as_str()) => refused += 1,
            (false, Ok(_)) => wrong.push(format!("{id}: vLLM refuses it: {}", line["error"])),
        }
    }
    assert!(
        wrong.is_empty(),
        "{same} same, {refused} refused, but:\n{}",
        wrong.join("\n")
    );
    (same, refused)
}

#[test]
fn prompts_are_those_of_vllm() {
    assert_eq!(compared("public.jsonl"), (377, 40));
}

#[test]
fn prompts_of_other_ways_in_are_those_of_vllm() {
    assert_eq!(compared("ways.jsonl"), (222, 82));
}

fn texts_are_those_of_vllm(engine: Engine) {
    let tokenizer = tokens::load(&tokenizer(), engine, &CacheBudget::none()).unwrap();
    // Texts of requests that asked for truncation stand beside the tokens that were left.
    let truncated: Vec<Value> = lines("public.jsonl")
        .into_iter()
        .filter(|line| !line["request"]["truncate_prompt_tokens"].is_null())
        .map(|line| line["id"].clone())
        .collect();
    let lines = lines("texts.jsonl");
    assert!(lines.len() > 300, "{} texts", lines.len());
    for line in lines.iter().filter(|line| !truncated.contains(&line["id"])) {
        let ids = tokenizer
            .encode(line["text"].as_str().unwrap(), false)
            .unwrap();
        assert_eq!(json!(ids), line["ids"], "{}", line["id"]);
    }
}

#[test]
fn the_fast_engine_encodes_every_text_as_vllm() {
    texts_are_those_of_vllm(Engine::Fast);
}

#[test]
fn the_reference_engine_encodes_every_text_as_vllm() {
    texts_are_those_of_vllm(Engine::Reference);
}

#[test]
fn a_special_token_that_a_user_types_becomes_its_id() {
    for engine in [Engine::Fast, Engine::Reference] {
        let tokenizer = tokens::load(&tokenizer(), engine, &CacheBudget::none()).unwrap();
        assert_eq!(
            tokenizer.encode("<|im_end|>", false).unwrap(),
            [151_645],
            "{engine:?}"
        );
        assert_eq!(tokenizer.encode("", true).unwrap(), [0u32; 0], "{engine:?}");
    }
}
