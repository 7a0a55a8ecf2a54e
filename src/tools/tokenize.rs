//! `kvscout tokenize`: what kvscout makes of requests, line by line, to compare with a server.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::config::TOKEN_CACHE_BYTES_MAX;
use crate::prompt::json::{Json, Object};
use crate::prompt::template::{Dialect, RenderSettings, Renderer};
use crate::prompt::{Api, PromptText, Request};
use crate::tokens::{self, CacheBudget, Engine, Tokenizer};

/// Renders and tokenizes requests as vLLM does: one JSON object a line in, one a line out.
///
/// A request, as a server would get it:
///
///   {"id": "a", "endpoint": "/v1/chat/completions", "request": {"model": "m", "messages": [...]}}
///
/// "raw_body" in place of "request" gives the body as a string, where its spelling matters.
/// "server" holds the server's flags by their names in vLLM, such as
/// {"default_chat_template_kwargs": {"enable_thinking": false}}, and {"dialect": "rust"} for one
/// that runs with VLLM_USE_RUST_FRONTEND=1. The answer:
///
///   {"id": "a", "rendered": "<|im_start|>user...", "token_ids": [151644, 872]}
///
/// Other endpoints are /v1/completions, /v1/responses, /v1/messages, /v1/chat/completions/batch,
/// /v1/embeddings, /classify, /pooling and /inference/v1/generate. Where a request may hold
/// several prompts "rendered" is null and "token_ids" a list of lists, one a prompt. Where a
/// conversation holds an image or the like, the answer ends before it and says
/// "ends_at": "media".
///
/// A text: {"id": "b", "text": "hello"} is answered by {"id": "b", "ids": [14990]}.
///
/// A line that cannot be answered so, because vLLM would refuse it or because it is no JSON,
/// is answered by {"id": ..., "error": "..."}. Every line has one answer, in order.
#[derive(Debug, Clone, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The model's folder: tokenizer.json, tokenizer_config.json and, if it has one,
    /// chat_template.jinja.
    #[arg(long, value_name = "MODEL_DIR")]
    pub tokenizer: PathBuf,
    /// What encodes: fast, or the reference that vLLM itself uses.
    #[arg(long, value_enum, default_value_t = Engine::Fast)]
    pub engine: Engine,
    /// Which of vLLM's frontends to read as, where a line's "server" gives no "dialect".
    #[arg(long, value_enum, default_value_t)]
    pub dialect: Dialect,
}

/// Answers standard input on standard output.
///
/// # Errors
/// A tokenizer that does not load, or a pipe that breaks. Bad lines are answered, not errors.
pub fn run(args: &Args) -> anyhow::Result<()> {
    // As `kvscout serve` by default: what is shown here is what is decided by there.
    let cache = CacheBudget::of_bytes(TOKEN_CACHE_BYTES_MAX);
    let tokenizer = tokens::load(&args.tokenizer, args.engine, &cache)?;
    let mut lines = Lines {
        folder: args.tokenizer.clone(),
        dialect: args.dialect,
        tokenizer,
        renderers: HashMap::new(),
    };
    lines.answer_all(std::io::stdin().lock(), std::io::stdout().lock())
}

/// Renderers by the text of their settings; the files of a test name a handful.
const RENDERERS_MAX: usize = 64;

struct Lines {
    folder: PathBuf,
    dialect: Dialect,
    tokenizer: Arc<dyn Tokenizer>,
    renderers: HashMap<String, Arc<Renderer>>,
}

impl Lines {
    fn answer_all(
        &mut self,
        mut input: impl BufRead,
        mut output: impl Write,
    ) -> anyhow::Result<()> {
        let mut line = Vec::new();
        while input.read_until(b'\n', &mut line)? > 0 {
            if !line.trim_ascii().is_empty() {
                serde_json::to_writer(&mut output, &self.answer(&line))?;
                output.write_all(b"\n")?;
                output.flush()?;
            }
            line.clear();
        }
        Ok(())
    }

    fn answer(&mut self, line: &[u8]) -> Value {
        let line = match Json::loads_bytes(line) {
            Ok(Json::Object(line)) => line,
            Ok(_) => return json!({"id": null, "error": "the line is not an object"}),
            Err(error) => {
                return json!({"id": null, "error": format!("the line is not JSON: {error}")});
            }
        };
        let id = line.get("id").and_then(to_serde).unwrap_or(Value::Null);
        let answer = match line.get("text") {
            Some(text) => self.text(text),
            None => self.request(&line),
        };
        let mut answer = answer.unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
        answer["id"] = id;
        answer
    }

    fn text(&self, text: &Json) -> anyhow::Result<Value> {
        let text = text
            .as_str()
            .ok_or_else(|| anyhow::anyhow!("text: is not a string"))?;
        Ok(json!({"ids": self.tokenizer.encode(text, false)?}))
    }

    fn request(&mut self, line: &Object) -> anyhow::Result<Value> {
        let path = line.get("endpoint").and_then(Json::as_str);
        let path = path.ok_or_else(|| anyhow::anyhow!("endpoint: is not a string"))?;
        let body = match (line.get_some("raw_body"), line.get_some("request")) {
            (Some(body), _) => body.as_str().map(str::to_owned),
            (None, Some(body)) => body.dumps(),
            (None, None) => anyhow::bail!("request: is missing"),
        };
        let body = body.ok_or_else(|| anyhow::anyhow!("request: has a lone surrogate"))?;
        let request = Request::parse(path, body.as_bytes())?;
        let renderer = self.renderer(line.get_some("server"))?;
        let request = request.reread(&renderer, body.as_bytes());
        let prompt = request.render(&renderer)?;
        let mut ids = tokens::tokens_of(&prompt, &*self.tokenizer)?;
        let one = request.api().is_conversation() || request.api() == Api::Generate;
        let token_ids = match one {
            true => json!(ids.swap_remove(0)),
            false => json!(ids),
        };
        let rendered = match prompt.first() {
            PromptText::Text { text, .. } if request.api().is_conversation() => json!(text),
            _ => Value::Null,
        };
        let mut answer = json!({"rendered": rendered, "token_ids": token_ids});
        if prompt.first().ends_at_medium() {
            answer["ends_at"] = json!("media");
        }
        Ok(answer)
    }

    fn renderer(&mut self, server: Option<&Json>) -> anyhow::Result<Arc<Renderer>> {
        let flags = server
            .and_then(Json::dumps)
            .unwrap_or_else(|| "{}".to_owned());
        if let Some(renderer) = self.renderers.get(&flags) {
            return Ok(Arc::clone(renderer));
        }
        let mut settings: RenderSettings =
            serde_json::from_str(&flags).map_err(|error| anyhow::anyhow!("server: {error}"))?;
        if server.is_none_or(|flags| flags.as_object().is_none_or(|f| f.get("dialect").is_none())) {
            settings.dialect = self.dialect;
        }
        let renderer = Arc::new(Renderer::load(&self.folder, settings, SystemTime::now)?);
        if self.renderers.len() >= RENDERERS_MAX {
            self.renderers.clear();
        }
        self.renderers.insert(flags, Arc::clone(&renderer));
        Ok(renderer)
    }
}

fn to_serde(value: &Json) -> Option<Value> {
    serde_json::from_str(&value.dumps()?).ok()
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::tokens::{TokenId, TokenizeError};

    struct Bytes;

    impl Tokenizer for Bytes {
        fn encode(&self, text: &str, _: bool) -> Result<Vec<TokenId>, TokenizeError> {
            Ok(text.bytes().map(TokenId::from).collect())
        }
    }

    fn answers(input: &[u8]) -> Vec<Value> {
        answers_as(Dialect::Python, input)
    }

    fn answers_as(dialect: Dialect, input: &[u8]) -> Vec<Value> {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}"#;
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let mut lines = Lines {
            folder: folder.path().to_owned(),
            dialect,
            tokenizer: Arc::new(Bytes),
            renderers: HashMap::new(),
        };
        let mut output = Vec::new();
        lines.answer_all(input, &mut output).unwrap();
        let output = String::from_utf8(output).unwrap();
        output
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn every_line_is_answered_in_order() {
        let input = concat!(
            r#"{"id": 1, "text": "ab"}"#,
            "\n\n",
            "not json\n",
            "[]\n",
            r#"{"id": "c", "endpoint": "/v1/chat/completions", "request": {"messages": [{"role": "user", "content": "x"}]}}"#,
            "\n",
            r#"{"id": "d", "endpoint": "/v1/completions", "raw_body": "{\"prompt\": [\"a\", \"b\"]}"}"#,
            "\n",
            r#"{"id": "e", "endpoint": "/v1/embeddings", "request": {}}"#,
            "\n",
            r#"{"id": "f", "endpoint": "/v1/completions", "request": {"prompt": "x"}, "server": {"nope": 1}}"#,
            "\n",
            r#"{"id": "g"}"#,
        );
        let out = answers(input.as_bytes());
        assert_eq!(out.len(), 8);
        assert_eq!(out[0], json!({"id": 1, "ids": [97, 98]}));
        assert_eq!(out[1]["id"], Value::Null);
        assert!(out[1]["error"].is_string() && out[2]["error"].is_string());
        assert_eq!(
            out[3],
            json!({"id": "c", "rendered": "x", "token_ids": [120]})
        );
        assert_eq!(
            out[4],
            json!({"id": "d", "rendered": null, "token_ids": [[97], [98]]})
        );
        assert_eq!(out[5]["id"], "e");
        assert!(
            out[6]["error"]
                .as_str()
                .unwrap()
                .starts_with("server: unknown field")
        );
        assert_eq!(
            out[7],
            json!({"id": "g", "error": "endpoint: is not a string"})
        );
    }

    #[test]
    fn a_line_may_name_its_servers_frontend() {
        let line = |server| {
            let request = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}"#;
            format!(
                r#"{{"endpoint": "/v1/chat/completions", "request": {request}, "server": {server}}}"#
            )
        };
        for (dialect, server, rendered) in [
            (Dialect::Python, "{}", "a\nb"),
            (Dialect::Python, r#"{"dialect": "rust"}"#, "ab"),
            (Dialect::Rust, "{}", "ab"),
            (Dialect::Rust, r#"{"dialect": "python"}"#, "a\nb"),
        ] {
            let out = answers_as(dialect, line(server).as_bytes());
            assert_eq!(out[0]["rendered"], rendered, "{dialect:?} {server}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_answered() {
        assert_eq!(answers(b"\xff\xfe\n{\"text\": 5}").len(), 2);
    }

    #[test]
    fn help_teaches_the_formats() {
        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            _args: Args,
        }
        let help = Cli::command().render_long_help().to_string();
        assert!(
            help.contains("MODEL_DIR") && help.contains("reference that vLLM"),
            "{help}"
        );
    }
}
