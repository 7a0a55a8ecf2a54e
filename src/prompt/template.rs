//! A model's chat template: found as Hugging Face finds it, run as vLLM runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use minijinja::Environment;

use super::PromptError;
use super::json::{Json, Object};
pub use crate::config::{ContentFormat, Dialect, RenderSettings};

mod args;
mod budget;
mod checks;
mod compare;
mod dates;
mod filters;
mod format;
mod functions;
mod inspect;
mod jinja;
mod lists;
mod lower;
mod methods;
mod numbers;
mod objects;
mod operators;
mod plain;
mod probe;
mod python;
mod resume;
mod source;
mod text;

/// Instructions that one render may run: about two seconds. Qwen3's template runs 60 a message.
const FUEL_MAX: u64 = 50_000_000;
/// Bytes that one render may print. A body of 10 MB prints about as much.
const OUTPUT_BYTES_MAX: usize = 64 << 20;
/// What ends an answer of gpt-oss, and no other model's. Its template ends instructions with two
/// lines that vLLM's `render_for_completion` does not write, among others.
const END_OF_HARMONY: &str = "<|return|>";
/// Reads the time for `strftime_now`; UTC, as in vLLM's images.
pub type Clock = fn() -> SystemTime;

/// Why a model's folder gives no renderer.
#[derive(Debug, thiserror::Error)]
pub enum RendererError {
    /// A file is missing or unreadable.
    #[error("{path}: {source}; a model's folder holds tokenizer_config.json")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A file says something else than Hugging Face's do.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// `--chat-template` names a file that is not here.
    #[error(
        "server.chat_template: {path}: {source}; no text of a template, so it is taken for the path of a file: \
         mount the servers' file here, or give its text"
    )]
    Given {
        /// What was given.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A template does not compile.
    #[error("the chat template {name:?} does not compile: {reason}")]
    Compile {
        /// Its name; "default" for a model's only one.
        name: String,
        /// Jinja's word, with the line.
        reason: String,
    },
}

/// Renders the chats of one model as its servers do. Templates are compiled once.
pub struct Renderer {
    settings: RenderSettings,
    default_kwargs: Object,
    special_tokens: Object,
    environment: Environment<'static>,
    templates: Vec<Template>,
    /// The one that `--chat-template` gives.
    given: Option<Template>,
    /// The one of `chat_template.json`.
    of_processor: Option<Template>,
    /// vLLM renders its chats by Harmony's own library, whatever template stands beside.
    speaks_harmony: bool,
    probed: probe::Probed,
}

/// A compiled template's name in the environment, and what its text tells.
#[derive(Debug, Clone)]
struct Template {
    name: String,
    /// None for a request's own template, compiled on use.
    source: Arc<str>,
    format: ContentFormat,
}

impl Template {
    fn new(name: &str, source: &str) -> Self {
        let format = inspect::content_format(&source::normalize(source));
        Self {
            name: name.to_owned(),
            source: source.into(),
            format,
        }
    }
}

/// A chat, ready for a template.
pub(super) struct Chat {
    /// The normalized messages.
    pub messages: Vec<Object>,
    /// Everything else by name: tools, documents, add_generation_prompt and the rest.
    pub context: Object,
    /// Stop in the middle of the last message.
    pub continue_final_message: bool,
}

/// A template chosen for one request.
pub(super) struct Chosen {
    template: Template,
    from_request: bool,
    /// How contents must be given to it.
    pub format: ContentFormat,
}

impl Chosen {
    /// Whether the template knows developers (`_detect_developer_role_support`).
    pub fn knows_developers(&self) -> bool {
        let source = &self.template.source;
        source.contains("\"developer\"") || source.contains("'developer'")
    }
}

impl Renderer {
    /// Reads `tokenizer_config.json` and, where it is there, `chat_template.jinja`, which wins;
    /// `chat_template.json` is an older form of multimodal models' processors, and wins where
    /// there are no tools (`resolve_chat_template` of vLLM 0.33, renderers/hf.py). A folder
    /// without a template renders completions only.
    ///
    /// # Errors
    /// A [`RendererError`] that names the file or the template.
    pub fn load(
        folder: &Path,
        settings: RenderSettings,
        clock: Clock,
    ) -> Result<Self, RendererError> {
        let path = folder.join("tokenizer_config.json");
        let config = fs::read(&path).map_err(|source| RendererError::Read {
            path: path.clone(),
            source,
        })?;
        let format = |reason: String| RendererError::Format {
            path: path.clone(),
            reason,
        };
        let config = Json::loads_bytes(&config).map_err(|error| format(error.to_string()))?;
        let config = config
            .as_object()
            .ok_or_else(|| format("is not an object".to_owned()))?;
        let beside = folder.join("chat_template.jinja");
        let sources = match fs::read_to_string(&beside) {
            Ok(source) => vec![("default".to_owned(), of_file(source, settings.dialect))],
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                templates(config).map_err(|reason| format(reason.to_owned()))?
            }
            Err(source) => {
                return Err(RendererError::Read {
                    path: beside,
                    source,
                });
            }
        };
        let dialect = settings.dialect;
        let tokens = special_tokens(config, dialect);
        let settings = with_given_file(settings, &sources)?;
        let mut renderer = Self::new(sources, tokens, settings, clock)?;
        if let Some(source) = processor_template(folder)? {
            let compiled = compile(&mut renderer.environment, dialect, PROCESSOR_FILE, &source)?;
            renderer.of_processor = Some(compiled);
        }
        Ok(renderer)
    }

    /// From templates by name, and the special tokens that templates may print by name.
    ///
    /// # Errors
    /// [`RendererError::Compile`].
    pub fn new(
        sources: Vec<(String, String)>,
        special_tokens: Object,
        settings: RenderSettings,
        clock: Clock,
    ) -> Result<Self, RendererError> {
        let dialect = settings.dialect;
        let mut environment = match dialect {
            Dialect::Python => jinja::environment(clock, FUEL_MAX),
            Dialect::Rust => plain::environment(clock, FUEL_MAX),
        };
        let mut compile =
            |name: &str, source: &str| compile(&mut environment, dialect, name, source);
        let templates: Vec<Template> = sources
            .iter()
            .map(|(name, source)| compile(name, source))
            .collect::<Result<_, _>>()?;
        let named =
            |given: &String| templates.len() > 1 && templates.iter().any(|t| t.name == *given);
        let given = match &settings.chat_template {
            None => None,
            Some(given) if named(given) => templates.iter().find(|t| t.name == *given).cloned(),
            Some(given) => {
                let source = of_file(given.clone(), dialect);
                Some(compile("--chat-template", &source)?)
            }
        };
        let kwargs = serde_json::Value::Object(settings.default_chat_template_kwargs.clone());
        let default_kwargs = match Json::loads(&kwargs.to_string()) {
            Ok(Json::Object(kwargs)) => kwargs,
            _ => Object::default(),
        };
        let end = special_tokens.get("eos_token").and_then(Json::as_str);
        Ok(Self {
            settings,
            default_kwargs,
            speaks_harmony: end == Some(END_OF_HARMONY),
            special_tokens,
            environment,
            templates,
            given,
            of_processor: None,
            probed: probe::Probed::default(),
        })
    }

    /// The server's flags.
    #[must_use]
    pub fn settings(&self) -> &RenderSettings {
        &self.settings
    }

    pub(super) fn default_kwargs(&self) -> &Object {
        &self.default_kwargs
    }

    /// The template for a request: its own, else the server's, else the model's; of several,
    /// `tool_use` where there are tools (transformers, `get_chat_template`).
    pub(super) fn choose(&self, own: Option<&str>, has_tools: bool) -> Result<Chosen, PromptError> {
        if self.speaks_harmony {
            return Err(PromptError::Unsupported {
                field: "messages".to_owned(),
                what: "conversations of a model that speaks Harmony",
            });
        }
        let by_name = |name: &str| self.templates.iter().find(|t| t.name == name);
        let several = self.templates.len() > 1;
        let mut from_request = false;
        let template = match own {
            Some(name) if several && by_name(name).is_some() => by_name(name).cloned(),
            Some(source) => {
                inspect::check_foreign(&source::normalize(source))?;
                from_request = true;
                Some(Template::new("the request's", source))
            }
            None => {
                let given = self.given.as_ref();
                let given = given.or(self.of_processor.as_ref().filter(|_| !has_tools));
                let of_tools = || by_name("tool_use").filter(|_| has_tools && several);
                let of_model = || of_tools().or_else(|| by_name("default"));
                given.or_else(of_model).cloned()
            }
        };
        let template = template
            .ok_or_else(|| PromptError::Template("the model's folder has none".to_owned()))?;
        let format = match self.settings.chat_template_content_format {
            ContentFormat::Auto => template.format,
            given => given,
        };
        Ok(Chosen {
            template,
            from_request,
            format,
        })
    }

    /// Runs a template on a chat (transformers, `render_jinja_template`).
    pub(super) fn run(&self, chosen: &Chosen, mut chat: Chat) -> Result<String, PromptError> {
        let last = match chat.continue_final_message {
            true => Some(resume::mark(&mut chat.messages, &chosen.template.source)?),
            false => None,
        };
        let text_bytes = |message: &Object| match message.get("content") {
            Some(Json::Str(text)) => text.len(),
            _ => 0,
        };
        // What the messages say, and about as much between them as a role and its marks.
        let bytes = chat.messages.iter().map(|m| 64 + text_bytes(m)).sum();
        let messages = chat.messages.into_iter().map(Json::Object).collect();
        let mut context = self.special_tokens.clone().merged(chat.context);
        // The Rust frontend lets a request's own arguments win even here.
        if context.get("messages").is_none() {
            context.set("messages", Json::List(messages));
        }
        let text = match chosen.from_request {
            true => {
                let source = prepare(self.settings.dialect, &chosen.template.source);
                let template = self.environment.template_from_str(&source);
                jinja::render(
                    &template.map_err(jinja::explain)?,
                    &context,
                    bytes,
                    OUTPUT_BYTES_MAX,
                )
            }
            false => {
                let template = self.environment.get_template(&chosen.template.name);
                jinja::render(
                    &template.map_err(jinja::explain)?,
                    &context,
                    bytes,
                    OUTPUT_BYTES_MAX,
                )
            }
        }?;
        match last {
            None => Ok(text),
            Some(last) => resume::cut(&text, &last),
        }
    }
}

/// A template's text as an environment is to compile it.
fn prepare(dialect: Dialect, source: &str) -> String {
    match dialect {
        Dialect::Python => jinja::prepare(source),
        Dialect::Rust => source::with_known_blocks(source),
    }
}

fn compile(
    environment: &mut Environment<'static>,
    dialect: Dialect,
    name: &str,
    source: &str,
) -> Result<Template, RendererError> {
    if source::is_deep(source) {
        return Err(RendererError::Compile {
            name: name.to_owned(),
            reason: "an expression of more than 2000 tokens, or 500 elifs".to_owned(),
        });
    }
    environment
        .add_template_owned(name.to_owned(), prepare(dialect, source))
        .map_err(|error| RendererError::Compile {
            name: name.to_owned(),
            reason: error.to_string(),
        })?;
    Ok(Template::new(name, source))
}

/// The file that `--chat-template` names, where it gives no text and no name of the model's own.
fn with_given_file(
    mut settings: RenderSettings,
    sources: &[(String, String)],
) -> Result<RenderSettings, RendererError> {
    let own = |given: &str| sources.len() > 1 && sources.iter().any(|(name, _)| name == given);
    if let Some(path) = settings.chat_template_path().filter(|given| !own(given)) {
        let text = fs::read_to_string(path).map_err(|source| RendererError::Given {
            path: path.into(),
            source,
        })?;
        settings.chat_template = Some(text);
    }
    Ok(settings)
}

const PROCESSOR_FILE: &str = "chat_template.json";

/// What `chat_template.json` gives, where it is there.
fn processor_template(folder: &Path) -> Result<Option<String>, RendererError> {
    let path = folder.join(PROCESSOR_FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RendererError::Read { path, source }),
    };
    let format = |reason: String| RendererError::Format {
        path: path.clone(),
        reason,
    };
    let json = Json::loads_bytes(&text).map_err(|error| format(error.to_string()))?;
    let template = json.as_object().and_then(|json| json.get("chat_template"));
    match template.and_then(Json::as_str) {
        Some(template) => Ok(Some(template.to_owned())),
        None => Err(format("chat_template is not a text".to_owned())),
    }
}

/// `chat_template`: a string, or a list of `{name, template}`.
fn templates(config: &Object) -> Result<Vec<(String, String)>, &'static str> {
    let wrong = "chat_template is neither a text nor a list of named templates";
    match config.get_some("chat_template") {
        None => Ok(Vec::new()),
        Some(Json::Str(source)) => Ok(vec![("default".to_owned(), source.to_string())]),
        Some(Json::List(items)) => items
            .iter()
            .map(|item| {
                let field = |name| Some(item.as_object()?.get(name)?.as_str()?.to_owned());
                Ok((field("name").ok_or(wrong)?, field("template").ok_or(wrong)?))
            })
            .collect(),
        Some(_) => Err(wrong),
    }
}

/// A template that stands in a file of its own: the Rust frontend trims it, and takes a backslash
/// before an n for a new line (`load_chat_template`).
fn of_file(source: String, dialect: Dialect) -> String {
    match dialect {
        Dialect::Python => source,
        Dialect::Rust => source.trim().replace("\\n", "\n"),
    }
}

/// transformers' `special_tokens_map`: the ones that are set, each a string or an `AddedToken`.
/// The Rust frontend knows four of them.
fn special_tokens(config: &Object, dialect: Dialect) -> Object {
    let names = [
        "bos_token",
        "eos_token",
        "unk_token",
        "pad_token",
        "sep_token",
        "cls_token",
        "mask_token",
    ];
    let text = |value: &Json| match value {
        Json::Str(text) => Some(Arc::clone(text)),
        Json::Object(token) => token.get("content")?.as_str().map(Arc::from),
        _ => None,
    };
    let known = match dialect {
        Dialect::Python => &names[..],
        Dialect::Rust => &names[..4],
    };
    known
        .iter()
        .filter_map(|name| Some((Arc::from(*name), Json::Str(text(config.get(name)?)?))))
        .collect()
}

#[cfg(test)]
mod tests;
