//! Templates and conversations that mean harm: every render ends, in an answer or in an error, with
//! a stack of 2 MB (what tokio's threads have) and without filling memory.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::SystemTime;

use kvscout::prompt::json::Object;
use kvscout::prompt::template::{RenderSettings, Renderer};
use kvscout::prompt::{PromptText, Request};
use serde_json::{Value, json};

const STACK_BYTES: usize = 2 << 20;

/// What a server whose template this is makes of a request.
fn rendered(template: String, request: Value) -> Result<String, String> {
    let render = move || {
        let settings = RenderSettings {
            trust_request_chat_template: true,
            ..Default::default()
        };
        let templates = vec![("default".to_owned(), template)];
        let renderer = Renderer::new(templates, Object::default(), settings, SystemTime::now)
            .map_err(|error| error.to_string())?;
        let body = request.to_string();
        let prompt = Request::parse("/v1/chat/completions", body.as_bytes())
            .and_then(|request| request.render(&renderer))
            .map_err(|error| error.to_string())?;
        match prompt.first() {
            PromptText::Text { text, .. } => Ok(text.clone()),
            PromptText::Ids(_) => panic!("a chat is a text"),
        }
    };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    thread.spawn(render).unwrap().join().unwrap()
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

/// A request that brings a template of its own.
fn of_request(template: &str) -> Result<String, String> {
    let messages = vec![user(&"x".repeat(1000)); 1000];
    let request = json!({"messages": messages, "chat_template": template});
    rendered("{{ messages[0].content }}".to_owned(), request)
}

#[test]
fn a_requests_template_gets_no_more_than_its_budget() {
    let templates = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ range(10**9) }}",
        "{{ 'x' * 10**12 }}",
        "{% for a in range(99999) %}{{ ('x' * 10**7)|length }}{% endfor %}",
        "{{ 'a'.center(10**12) }}",
        "{{ 'a'.ljust(10**12) }}",
        "{{ 'a\\tb'.expandtabs(10**12) }}",
        "{{ 'a\\nb'|indent(10**12) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ messages|tojson(indent=10**9) }}",
        "{{ messages|join(messages|join(messages|join)) }}",
        "{{ (messages|tojson).replace('x', messages|tojson) }}",
        "{{ [1]|batch(10**12, 0)|list }}",
        "{{ [1]|slice(10**12)|list }}",
        "{{ (messages * 10**6)|length }}",
        "{{ 7 ** 10 ** 9 }}",
        "{% for a in range(99999) %}{{ messages == messages }}{% endfor %}",
        "{% for m in messages %}{% for n in messages %}{{ m.content }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{{ 'y' in messages[0].content * 1000 }}{% endfor %}",
    ];
    for template in templates {
        assert!(of_request(template).is_err(), "{template}");
    }
    // Every level is twice as long: 2^40 bytes.
    let mut doubled = String::from("{% with x = 'a' %}");
    doubled.push_str(&"{% with x = x ~ x %}".repeat(40));
    doubled.push_str("{{ x }}");
    doubled.push_str(&"{% endwith %}".repeat(41));
    assert!(of_request(&doubled).is_err());
}

#[test]
fn a_template_that_is_nested_deep_does_not_use_up_the_stack() {
    let deep = 100_000;
    let nested = |open: &str, inner: &str, close: &str| {
        format!("{}{inner}{}", open.repeat(deep), close.repeat(deep))
    };
    let templates = [
        format!("{{{{ {} }}}}", nested("(", "1", ")")),
        format!("{{{{ {} }}}}", nested("[", "1", "]")),
        format!("{{{{ {} }}}}", nested("not ", "1", "")),
        format!("{{{{ {} }}}}", nested("-", "1", "")),
        format!("{{{{ {} }}}}", nested("1 if ", "1", " else 1")),
        format!("{{{{ {} }}}}", nested("", "x", ".x")),
        format!("{{{{ {} }}}}", nested("", "x", "|trim")),
        format!("{{{{ {} }}}}", nested("", "x", "[0]")),
        format!("{{{{ {} }}}}", nested("", "1", "+1")),
        format!("{{{{ {} }}}}", nested("", "1", "-1")),
        format!("{{{{ {} }}}}", nested("", "1", " and 1")),
        format!("{{{{ {} }}}}", nested("", "1", " if 1")),
        format!(
            "{{% if a %}}{}{{% endif %}}",
            nested("{% elif b %}", "", "")
        ),
        nested("{% if a %}", "", "{% endif %}"),
        nested("{% for a in b %}", "", "{% endfor %}"),
    ];
    for template in templates {
        let start = &template[..40];
        assert!(of_request(&template).is_err(), "{start}");
        let ours = rendered(template.clone(), json!({"messages": [user("hi")]}));
        assert!(ours.is_err(), "{start}");
    }
}

#[test]
fn expressions_up_to_the_limit_fit_on_the_stack() {
    let templates = [
        format!("{{{{ 1{} }}}}", "-1".repeat(900)),
        format!("{{{{ 1{} }}}}", " and 1".repeat(300)),
        format!("{{{{ 'x'{} }}}}", "|trim".repeat(900)),
        format!("{{{{ {}1 }}}}", "not ".repeat(60)),
        format!("{{{{ {}1 }}}}", "1 if 0 else ".repeat(200)),
        format!("{{% if a %}}{}{{% endif %}}", "{% elif b %}".repeat(400)),
    ];
    for template in templates {
        let ours = of_request(&template);
        assert!(ours.is_ok(), "{}: {ours:?}", &template[..30]);
    }
}

#[test]
fn macros_that_call_themselves_end() {
    let template = "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}";
    let error = rendered(template.to_owned(), json!({"messages": [user("hi")]})).unwrap_err();
    assert!(error.starts_with("chat template:"), "{error}");
}

/// A chat of so many short messages.
fn long(count: usize) -> Value {
    json!({"messages": vec![user("hi"); count]})
}

#[test]
fn a_servers_quadratic_template_gets_no_more_than_its_budget() {
    let templates = [
        "{% set ns = namespace(l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m] %}{% endfor %}",
        "{% set ns = namespace(s='') %}{% for m in messages %}{% set ns.s = ns.s + m.content * 9 %}{% endfor %}",
        "{% for m in messages %}{% for n in messages[::-1] %}{% break %}{% endfor %}{% endfor %}",
        "{% set x %}{% for m in messages %}{% for n in messages %}TEXT{% endfor %}{% endfor %}{% endset %}",
        "{% set ns = namespace(s='xx') %}{% for m in messages %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    ];
    for template in templates {
        let template = template.replace("TEXT", &"text".repeat(1000));
        let error = rendered(template.clone(), long(20_000)).unwrap_err();
        assert!(error.contains("budget"), "{template}: {error}");
    }
}

#[test]
fn a_value_that_grows_by_a_level_a_message_is_refused() {
    for deeper in [
        "[ns.x]",
        "{'a': ns.x}",
        "(ns.x, 1)",
        "[ns.x]|reverse",
        "{'a': ns.x}.values()",
        "{'a': ns.x}.get",
    ] {
        let template = format!(
            "{{% set ns = namespace(x=[]) %}}{{% for m in messages %}}{{% set ns.x = {deeper} %}}{{% endfor %}}"
        );
        let error = rendered(template, long(20_000)).unwrap_err();
        assert!(error.contains("invalid operation"), "{deeper}: {error}");
    }
}

#[test]
fn values_as_deep_as_json_may_be_are_printed() {
    let mut value = json!("x");
    for _ in 0..240 {
        value = json!([value]);
    }
    let request = json!({"messages": [user("hi")], "chat_template_kwargs": {"deep": value}});
    let template =
        "{{ deep }}{{ deep|tojson }}{{ deep|tojson(indent=4)|length }}{{ deep == deep }}";
    let text = rendered(template.to_owned(), request).unwrap();
    assert!(text.starts_with(&format!("{}'x'{}", "[".repeat(240), "]".repeat(240))));
}
