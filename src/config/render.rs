//! What decides, besides the request, how a model's prompts look.

use serde::{Deserialize, Serialize};

/// The flags of a vLLM server that decide what its prompts look like, by their vLLM names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RenderSettings {
    /// Which of vLLM's frontends reads requests. No flag of a server: an environment variable.
    #[serde(skip_serializing)]
    pub dialect: Dialect,
    /// `--chat-template`: the text of a template, the path of its file, or the name of one of the
    /// model's.
    pub chat_template: Option<String>,
    /// `--chat-template-content-format`.
    pub chat_template_content_format: ContentFormat,
    /// `--default-chat-template-kwargs`.
    pub default_chat_template_kwargs: serde_json::Map<String, serde_json::Value>,
    /// `--trust-request-chat-template`.
    pub trust_request_chat_template: bool,
    /// `--exclude-tools-when-tool-choice-none`.
    pub exclude_tools_when_tool_choice_none: bool,
    /// `--enable-auto-tool-choice` with a `--tool-call-parser`. Without them vLLM refuses tools.
    pub enable_auto_tool_choice: bool,
    /// `--reasoning-effort-map`: an effort that clients ask for, and the template's word for it.
    pub reasoning_effort_map: std::collections::BTreeMap<String, String>,
    /// `--anthropic-disabled-thinking-effort`, vLLM's "auto" if none: the effort that
    /// `thinking: {"type": "disabled"}` of `/v1/messages` stands for.
    pub anthropic_disabled_thinking_effort: Option<String>,
    /// `--max-model-len`, tokens: what `truncate_prompt_tokens: -1` stands for.
    pub max_model_len: Option<usize>,
}

impl RenderSettings {
    /// What `chat_template` gives where it is no text: a path or a name. vLLM tells them apart by
    /// what every template has (`load_chat_template`).
    #[must_use]
    pub fn chat_template_path(&self) -> Option<&str> {
        let given = self.chat_template.as_deref();
        given.filter(|given| !given.contains(['{', '}', '\n']))
    }
}

impl Default for RenderSettings {
    fn default() -> Self {
        Self {
            dialect: Dialect::Python,
            chat_template: None,
            chat_template_content_format: ContentFormat::Auto,
            default_chat_template_kwargs: serde_json::Map::new(),
            trust_request_chat_template: false,
            exclude_tools_when_tool_choice_none: false,
            enable_auto_tool_choice: true,
            reasoning_effort_map: std::collections::BTreeMap::new(),
            anthropic_disabled_thinking_effort: None,
            max_model_len: None,
        }
    }
}

/// vLLM's frontends, which make different prompts of some requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// The default one.
    #[default]
    Python,
    /// The one of `VLLM_USE_RUST_FRONTEND=1`. Its tokenizer, fastokens 0.2.1 in vLLM 0.33, splits
    /// two rarities otherwise than ours: U+180E, and letters that Unicode 16 began to compose.
    Rust,
}

/// How a message's content reaches the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentFormat {
    /// As the template wants it: [`Self::Openai`] if it loops over a content.
    Auto,
    /// Text.
    String,
    /// A list of `{"type": "text", "text": …}`.
    Openai,
}
