use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn clock() -> SystemTime {
    // 2024-02-29 13:05:09, a Thursday.
    UNIX_EPOCH + Duration::from_secs(1_709_211_909)
}

fn renderer(source: &str) -> Renderer {
    let sources = vec![("default".to_owned(), source.to_owned())];
    Renderer::new(sources, Object::default(), RenderSettings::default(), clock).unwrap()
}

fn render_with(source: &str, context: &str) -> Result<String, PromptError> {
    render_by(&renderer(source), context)
}

fn render_by(renderer: &Renderer, context: &str) -> Result<String, PromptError> {
    let chosen = renderer.choose(None, false)?;
    let Ok(Json::Object(context)) = Json::loads(context) else {
        panic!("an object")
    };
    let messages = vec![Object::from([
        ("role", "user".into()),
        ("content", "hi".into()),
    ])];
    renderer.run(
        &chosen,
        Chat {
            messages,
            context,
            continue_final_message: false,
        },
    )
}

fn render(source: &str) -> String {
    render_with(source, r#"{"x": {"b": [1, 2.0, null, true], "a": "é<'\""}, "big": 123456789012345678901234567890}"#)
        .unwrap()
}

#[test]
fn tojson_prints_as_python_prints() {
    assert_eq!(
        render("{{ x | tojson }}"),
        r#"{"b": [1, 2.0, null, true], "a": "é<'\""}"#
    );
    assert_eq!(
        render("{{ x.b | tojson(indent=1) }}"),
        "[\n 1,\n 2.0,\n null,\n true\n]"
    );
    assert_eq!(
        render("{{ x | tojson(sort_keys=true, ensure_ascii=true) }}"),
        r#"{"a": "\u00e9<'\"", "b": [1, 2.0, null, true]}"#
    );
    assert_eq!(
        render("{{ x.b | tojson(separators=(',', ':')) }}"),
        "[1,2.0,null,true]"
    );
    assert_eq!(
        render("{{ big | tojson }} {{ big }}"),
        "123456789012345678901234567890 123456789012345678901234567890"
    );
    assert!(render_with("{{ nothing | tojson }}", "{}").is_err());
}

#[test]
fn values_print_as_python_prints_them() {
    assert_eq!(
        render("{{ x.b }} {{ none }} {{ true }} {{ 1e22 }} {{ nothing }}"),
        "[1, 2.0, None, True] None True 1e+22 "
    );
    assert_eq!(render("{{ {'k': \"it's\"} }}"), "{'k': \"it's\"}");
}

#[test]
fn stripping_takes_pythons_white_space() {
    let context = r#"{"s": "\u001c a\u2028\n"}"#;
    for source in [
        "{{ s | trim }}",
        "{{ s.strip() }}",
        "{{ s.lstrip().rstrip() }}",
    ] {
        assert_eq!(render_with(source, context).unwrap(), "a", "{source}");
    }
    assert_eq!(
        render("{{ 'xxaxx'.strip('x') }}{{ 'xxa' | trim('x') }}"),
        "aa"
    );
}

#[test]
fn generation_blocks_print_what_they_hold() {
    assert_eq!(
        render("a {%- generation -%} b {%- endgeneration %} c"),
        "ab c"
    );
    assert_eq!(
        render("{% generation %}\nb\n{% endgeneration %}\nc"),
        "b\nc"
    );
    assert_eq!(render("{% set generation = 1 %}{{ generation }}"), "1");
}

#[test]
fn loop_controls_and_block_trimming_work() {
    assert_eq!(
        render(
            "{% for i in range(9) %}\n  {% if i == 2 %}{% break %}{% endif %}\n{{ i }}\n{% endfor %}\n"
        ),
        "0\n1\n"
    );
}

#[test]
fn the_clock_is_the_callers() {
    let source = "{{ strftime_now('%d %b %Y|%A %B|%I:%M:%S %p|%-d/%-m/%y|%j|%%') }}";
    assert_eq!(
        render(source),
        "29 Feb 2024|Thursday February|01:05:09 PM|29/2/24|060|%"
    );
}

#[test]
fn an_exception_of_the_template_is_an_error_that_quotes_nothing() {
    let error = render_with(
        "\n{{ raise_exception('secret ' + messages[0].content) }}",
        "{}",
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "chat template: the template raised an exception in line 2"
    );
    let error = render_with("{{ messages[0].content.nope() }}", "{}").unwrap_err();
    assert!(!error.to_string().contains("hi"), "{error}");
    assert_eq!(error.label(), "template");
}

#[test]
fn a_lone_surrogate_fails_only_where_it_is_used() {
    let context = r#"{"s": ["\ud800"]}"#;
    assert_eq!(render_with("{{ s | length }}", context).unwrap(), "1");
    for source in [
        "{{ s[0] }}",
        "{{ s | tojson }}",
        "{{ 'a' + s[0] }}",
        "{{ s[0] ~ 'a' }}",
    ] {
        assert!(render_with(source, context).is_err(), "{source}");
    }
}

#[test]
fn steps_and_output_are_bounded() {
    let forever = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let error = render_with(forever, "{}").unwrap_err().to_string();
    assert!(
        error.starts_with("chat template: ran out of its budget"),
        "{error}"
    );
    let long = "{% for a in range(9999) %}{{ x }}{% endfor %}";
    let context = format!(r#"{{"x": "{}"}}"#, "x".repeat(10_000));
    let error = render_with(long, &context).unwrap_err().to_string();
    assert!(error.contains("budget"), "{error}");
}

#[test]
fn a_requests_own_template_may_compute_but_not_keep() {
    let fine = [
        "{{ messages[0].content }}|{{ messages|length }}",
        "{% for m in messages %}{% for c in m.content %}[{{ c.text }}]{% endfor %}{% endfor %}",
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content | trim }}{% endfor %}{% generation %}x{% endgeneration %}",
        "{% with x = 'a' %}{{ x * 3 }}{% endwith %}",
    ];
    let kept = [
        "{% set x = 'a' %}",
        "{% for m in messages %}{% set ns.x = [ns.x] %}{% endfor %}",
        "{% set x %}a{% endset %}",
        "{% macro m() %}{{ m() }}{% endmacro %}",
        "{% for x in messages recursive %}{{ loop([x]) }}{% endfor %}",
        "{% filter upper %}{% endfilter %}",
    ];
    let check = |source: &str| inspect::check_foreign(&source::normalize(source));
    for source in fine {
        assert_eq!(check(source), Ok(()), "{source}");
    }
    for source in kept {
        assert_eq!(
            check(source).unwrap_err().label(),
            "unsupported",
            "{source}"
        );
    }
    assert_eq!(check("{% if %}").unwrap_err().label(), "template");
}

#[test]
fn a_template_that_loops_over_contents_wants_lists() {
    let lists = [
        "{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}",
        "{% for m in messages[1:] %}{% for c in m['content'] | list %}{% endfor %}{% endfor %}",
        "{% set loop_messages = messages %}{% for m in loop_messages %}{% for c in m.content %}{% endfor %}{% endfor %}",
        "{% for content in content %}{% endfor %}",
        "{% macro show(body) %}{% for c in body %}{{ c.text }}{% endfor %}{% endmacro %}{% for m in messages %}{{ show(m.content) }}{% endfor %}",
    ];
    let texts = [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% for c in m.tool_calls %}{% endfor %}{% endfor %}",
        "{% for t in tools %}{% for c in t.content %}{% endfor %}{% endfor %}",
        "{% macro show(content) %}{% for c in content %}{% endfor %}{% endmacro %}{{ show(1) }}",
        "{% broken",
    ];
    for source in lists {
        assert_eq!(
            inspect::content_format(source),
            ContentFormat::Openai,
            "{source}"
        );
    }
    for source in texts {
        assert_eq!(
            inspect::content_format(source),
            ContentFormat::String,
            "{source}"
        );
    }
}

fn loaded(
    config: &str,
    jinja: Option<&str>,
    settings: RenderSettings,
) -> Result<Renderer, RendererError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    if let Some(source) = jinja {
        fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    }
    Renderer::load(folder.path(), settings, clock)
}

fn rendered_by(renderer: &Renderer, has_tools: bool) -> String {
    let chosen = renderer.choose(None, has_tools).unwrap();
    let chat = Chat {
        messages: Vec::new(),
        context: Object::default(),
        continue_final_message: false,
    };
    renderer.run(&chosen, chat).unwrap()
}

#[test]
fn a_template_file_wins_over_the_config() {
    let config =
        r#"{"chat_template": "config", "eos_token": {"content": "</s>"}, "pad_token": null}"#;
    let settings = RenderSettings::default;
    assert_eq!(
        rendered_by(&loaded(config, None, settings()).unwrap(), false),
        "config"
    );
    let file = Some("file {{ eos_token }}{{ pad_token is defined }}");
    assert_eq!(
        rendered_by(&loaded(config, file, settings()).unwrap(), false),
        "file </s>False"
    );
}

#[test]
fn named_templates_are_chosen_by_tools_and_by_the_server() {
    let config = r#"{"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}"#;
    let plain = loaded(config, None, RenderSettings::default()).unwrap();
    assert_eq!(
        (rendered_by(&plain, false), rendered_by(&plain, true)),
        ("d".into(), "t".into())
    );
    let given = |template: &str| {
        let settings = RenderSettings {
            chat_template: Some(template.to_owned()),
            ..Default::default()
        };
        rendered_by(&loaded(config, None, settings).unwrap(), false)
    };
    assert_eq!(
        (given("tool_use"), given("{{ 'own' }}")),
        ("t".into(), "own".into())
    );
}

/// Of 47 chats that vLLM 0.33 renders for gpt-oss, its template renders 6 the same.
#[test]
fn conversations_in_harmony_are_not_read_by_the_template_that_stands_beside() {
    let config = r#"{"chat_template": "x", "eos_token": "<|return|>"}"#;
    let renderer = loaded(config, None, RenderSettings::default()).unwrap();
    let read = |path: &str, body: &str| {
        let request = crate::prompt::Request::parse(path, body.as_bytes()).unwrap();
        request.render(&renderer).map_err(|error| error.label())
    };
    let chat = r#"{"model": "m", "messages": [{"role": "user", "content": "hi"}]}"#;
    assert_eq!(
        read("/v1/chat/completions", chat).err(),
        Some("unsupported")
    );
    let response = r#"{"model": "m", "input": "hi"}"#;
    assert_eq!(read("/v1/responses", response).err(), Some("unsupported"));
    assert!(read("/v1/completions", r#"{"model": "m", "prompt": "hi"}"#).is_ok());
}

#[test]
fn a_given_template_is_a_text_or_the_path_of_its_file_as_for_vllm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.jinja");
    let load = || {
        let settings = RenderSettings {
            chat_template: Some(path.to_str().unwrap().to_owned()),
            ..Default::default()
        };
        loaded(r#"{"chat_template": "config"}"#, None, settings)
    };
    let error = load().err().map(|error| error.to_string()).unwrap();
    assert!(error.starts_with("server.chat_template: "), "{error}");
    assert!(error.contains("own.jinja") && error.contains("No such file"));
    fs::write(&path, "own {{ messages | length }}").unwrap();
    assert_eq!(rendered_by(&load().unwrap(), false), "own 0");
}

#[test]
fn a_processors_template_wins_where_there_are_no_tools() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("tokenizer_config.json", r#"{"chat_template": "config"}"#);
    write("chat_template.json", r#"{"chat_template": "processor"}"#);
    let both = |settings: RenderSettings| {
        let renderer = Renderer::load(folder.path(), settings, clock).unwrap();
        (rendered_by(&renderer, false), rendered_by(&renderer, true))
    };
    let plain = RenderSettings::default;
    assert_eq!(both(plain()), ("processor".into(), "config".into()));
    write("chat_template.jinja", "jinja");
    assert_eq!(both(plain()), ("processor".into(), "jinja".into()));
    let given = RenderSettings {
        chat_template: Some("given{# #}".into()),
        ..plain()
    };
    assert_eq!(both(given), ("given".into(), "given".into()));
    write("chat_template.json", r#"{"chat_template": 5}"#);
    let error = Renderer::load(folder.path(), plain(), clock).err().unwrap();
    assert!(
        error
            .to_string()
            .contains("chat_template.json: chat_template is not a text")
    );
}

#[test]
fn a_bad_folder_names_the_file_and_the_reason() {
    let error = |config| {
        let result = loaded(config, None, RenderSettings::default());
        result.err().map(|error| error.to_string()).unwrap()
    };
    assert!(error("{").contains("tokenizer_config.json: a syntax error"));
    assert!(error(r#"{"chat_template": 5}"#).contains("neither a text nor a list"));
    assert!(error(r#"{"chat_template": "{% if %}"}"#).contains("\"default\" does not compile"));
}

#[test]
fn a_model_without_a_template_has_no_chats() {
    let renderer = loaded("{}", None, RenderSettings::default()).unwrap();
    assert_eq!(
        renderer
            .choose(None, false)
            .err()
            .map(|error| error.label()),
        Some("template")
    );
}

#[test]
fn the_rust_frontend_prints_as_minijinja_2_prints() {
    let settings = RenderSettings {
        dialect: Dialect::Rust,
        ..RenderSettings::default()
    };
    let render = |source: &str| {
        let sources = vec![("default".to_owned(), source.to_owned())];
        let renderer = Renderer::new(sources, Object::default(), settings.clone(), clock).unwrap();
        render_by(
            &renderer,
            r#"{"x": {"b": [1, 1e-7, null, "'\"\u001c"]}, "f": 1e-7}"#,
        )
        .unwrap()
    };
    assert_eq!(render("{{ x }}"), r#"{"b": [1, 1e-7, None, "'\"\u{1c}"]}"#);
    assert_eq!(
        render("{{ f }} {{ x.b | tojson }}"),
        r#"0.0000001 [1, 1e-7, null, "'\"\u001c"]"#
    );
    assert_eq!(render("{{ nope | tojson }}{{ nope }}"), "null");
    assert_eq!(
        render("{{ '\u{1c}a ' | trim }}{{ ' \u{1c}a '.strip() }}"),
        "\u{1c}a\u{1c}a"
    );
    assert_eq!(
        render("{{ '\u{7f}é' | tojson(ensure_ascii=true) }}"),
        "\"\u{7f}\\u00e9\""
    );
}

#[test]
fn the_rust_frontend_trims_a_template_file_and_unescapes_its_lines() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"sep_token": "S", "pad_token": "P"}"#;
    std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let source = " {{ 'a\\\\nb' }}{{ sep_token }}{{ pad_token }} \n\n";
    std::fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    for (dialect, text) in [(Dialect::Python, " a\\nbSP \n"), (Dialect::Rust, "a\\\nbP")] {
        let settings = RenderSettings {
            dialect,
            ..RenderSettings::default()
        };
        let renderer = Renderer::load(folder.path(), settings, clock).unwrap();
        assert_eq!(render_by(&renderer, "{}").unwrap(), text, "{dialect:?}");
    }
}
