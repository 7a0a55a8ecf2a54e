//! Any body at any path becomes a prompt or a named error, in bounded time and memory. The first
//! byte chooses the path and the server's flags.

#![no_main]

use std::sync::LazyLock;
use std::time::SystemTime;

use kvscout::prompt::Request;
use kvscout::prompt::json::Object;
use kvscout::prompt::template::{RenderSettings, Renderer};
use libfuzzer_sys::fuzz_target;

const PATHS: [&str; 12] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/pooling",
    "/score",
    "/rerank",
    "/tokenize",
    "/inference/v1/generate",
    "/v1/chat/completions/batch",
    "/classify",
];

/// One template that wants text, one that loops over parts and prints tools.
const TEMPLATES: [&str; 2] = [
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}\
     {% endif %}<|im_end|>\n{%- endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% for m in messages[::-1] %}{{ m.role }}:\
     {% for part in m.content %}{{ part.text | trim }}{% endfor %}{{ m.reasoning_content or '' }}{% endfor %}",
];

static RENDERERS: LazyLock<Vec<Renderer>> = LazyLock::new(|| {
    let of = |source: &str, dialect: &str| {
        let templates = vec![("default".to_owned(), source.to_owned())];
        let settings: RenderSettings =
            serde_json::from_value(serde_json::json!({"max_model_len": 4096, "dialect": dialect}))
                .expect("settings");
        Renderer::new(templates, Object::default(), settings, SystemTime::now).expect("it compiles")
    };
    let each = |dialect| TEMPLATES.map(|source| of(source, dialect));
    [each("python"), each("rust")].concat_renderers()
});

/// Arrays of renderers in one list; they cannot be cloned.
trait Concat {
    fn concat_renderers(self) -> Vec<Renderer>;
}

impl Concat for [[Renderer; 2]; 2] {
    fn concat_renderers(self) -> Vec<Renderer> {
        self.into_iter().flatten().collect()
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, body)) = bytes.split_first() else { return };
    let choice = usize::from(*choice);
    let Ok(request) = Request::parse(PATHS[choice % PATHS.len()], body) else { return };
    let renderer = &RENDERERS[choice / PATHS.len() % RENDERERS.len()];
    if let Ok(prompt) = request.render(renderer) {
        assert!(!prompt.texts.is_empty());
    }
});
