//! A stranger's template on a stranger's conversation ends in bounded time and memory. The input
//! is a template, a zero byte, and a list of messages.

#![no_main]

use std::sync::LazyLock;
use std::time::SystemTime;

use kvscout::prompt::Request;
use kvscout::prompt::json::Object;
use kvscout::prompt::template::{RenderSettings, Renderer};
use libfuzzer_sys::fuzz_target;

static TRUSTING: LazyLock<Renderer> = LazyLock::new(|| {
    let settings = RenderSettings { trust_request_chat_template: true, ..RenderSettings::default() };
    Renderer::new(Vec::new(), Object::default(), settings, SystemTime::now).expect("no template")
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (template, messages) = text.split_once('\0').unwrap_or((text, r#"[{"role": "user", "content": "hello"}]"#));
    let template = serde_json::Value::from(template);
    let body = format!(r#"{{"chat_template": {template}, "messages": {messages}}}"#);
    if let Ok(request) = Request::parse("/v1/chat/completions", body.as_bytes()) {
        let _prompt = request.render(&TRUSTING);
    }
});
