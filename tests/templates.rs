//! What transformers and Jinja2 made of templates in the style of many models, byte for byte.
//!
//! `expected.jsonl` is theirs, made by `make check-templates`; a minijinja that renders anything
//! in another way fails here.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvscout::prompt::json::{Json, Object};
use kvscout::prompt::template::{RenderSettings, Renderer};
use kvscout::prompt::{PromptText, Request};

/// 2024-02-29 13:05:09, a Thursday.
fn clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_709_211_909)
}

fn fixture(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/templates");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

fn object(line: &str) -> Object {
    match Json::loads(line) {
        Ok(Json::Object(object)) => object,
        _ => panic!("not an object: {line}"),
    }
}

/// What was expected, by case; none where the template raises.
fn expected() -> HashMap<String, Option<String>> {
    let text = |line: &Object, name| line.get(name).and_then(Json::as_str).map(str::to_owned);
    let lines = fixture("expected.jsonl");
    let lines = lines.lines_of_json().map(object);
    lines
        .map(|line| (text(&line, "id").unwrap(), text(&line, "rendered")))
        .collect()
}

/// Lines end with a line feed only: texts hold other line ends.
trait LinesOfJson {
    fn lines_of_json(&self) -> impl Iterator<Item = &str>;
}

impl LinesOfJson for String {
    fn lines_of_json(&self) -> impl Iterator<Item = &str> {
        self.split('\n').filter(|line| !line.is_empty())
    }
}

fn rendered(
    templates: Vec<(String, String)>,
    special_tokens: Object,
    request: &Json,
) -> Result<String, String> {
    let settings = RenderSettings::default();
    let renderer = Renderer::new(templates, special_tokens, settings, clock)
        .map_err(|error| error.to_string())?;
    let body = request.dumps().unwrap();
    let prompt = Request::parse("/v1/chat/completions", body.as_bytes())
        .and_then(|request| request.render(&renderer))
        .map_err(|error| error.to_string())?;
    match prompt.first() {
        PromptText::Text { text, .. } => Ok(text.clone()),
        PromptText::Ids(_) => panic!("a chat is a text"),
    }
}

/// What kvscout makes of every line of a file of one-line templates.
fn expressions(name: &str) -> Vec<(String, String, Result<String, String>)> {
    let request = Json::Object(object(&fixture("request.json")));
    let render = |source: &str| {
        let templates = vec![("default".to_owned(), source.to_owned())];
        rendered(templates, Object::default(), &request)
    };
    let text = fixture(name);
    let lines = text.split('\n').enumerate();
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(at, line)| (format!("{name}:{}", at + 1), line.to_owned(), render(line)))
        .collect()
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let expected = expected();
    let mut wrong = Vec::new();
    let lines = fixture("cases.jsonl");
    let mut count = 0;
    for line in lines.lines_of_json() {
        let case = object(line);
        let id = case.get("id").and_then(Json::as_str).unwrap();
        let templates = case.get("templates").and_then(Json::as_object).unwrap();
        let templates = templates
            .iter()
            .map(|(name, file)| (name.to_string(), fixture(file.as_str().unwrap())));
        let special_tokens = case.get("special_tokens").and_then(Json::as_object);
        let ours = rendered(
            templates.collect(),
            special_tokens.cloned().unwrap_or_default(),
            case.get("request").unwrap(),
        );
        count += 1;
        match (expected.get(id).unwrap(), ours) {
            (Some(theirs), Ok(ours)) if *theirs == ours => {}
            (None, Err(_)) => {}
            (theirs, ours) => wrong.push(format!("{id}\n  theirs {theirs:?}\n  ours   {ours:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 100, "{count} cases");
}

#[test]
fn expressions_compute_as_python_computes_them() {
    let expected = expected();
    let mut wrong = Vec::new();
    for (id, source, ours) in expressions("expressions.txt") {
        match (expected.get(&id).unwrap(), ours) {
            (Some(theirs), Ok(ours)) if *theirs == ours => {}
            (None, Err(_)) => {}
            (theirs, ours) => {
                wrong.push(format!(
                    "{id} {source}\n  theirs {theirs:?}\n  ours   {ours:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_not_computed_as_python_does_is_refused() {
    let expected = expected();
    for (id, source, ours) in expressions("refused.txt") {
        assert!(
            expected.get(&id).unwrap().is_some(),
            "{id}: Python refuses {source}, too"
        );
        assert!(
            ours.is_err(),
            "{id} {source}: move it to expressions.txt if {ours:?} is right"
        );
    }
}
