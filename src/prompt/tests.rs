use std::time::UNIX_EPOCH;

use template::{ContentFormat, RenderSettings};

use super::*;

mod ways;

/// Prints every message as `role:content;`, contents as JSON.
const PLAIN: &str = "{% for m in messages %}{{ m.role }}:{{ m.content | tojson }};{% endfor %}";

fn renderer(source: &str, settings: RenderSettings) -> Renderer {
    let sources = vec![("default".to_owned(), source.to_owned())];
    Renderer::new(sources, Object::default(), settings, || UNIX_EPOCH).unwrap()
}

fn prompt_of(
    path: &str,
    body: &str,
    settings: RenderSettings,
    source: &str,
) -> Result<Prompt, PromptError> {
    Request::parse(path, body.as_bytes())?.render(&renderer(source, settings))
}

fn chat_with(fields: &str, settings: RenderSettings, source: &str) -> Result<String, PromptError> {
    let body = format!(r#"{{"model": "m", {fields}}}"#);
    match prompt_of("/v1/chat/completions", &body, settings, source)?.first() {
        PromptText::Text { text, .. } => Ok(text.clone()),
        PromptText::Ids(ids) => Ok(format!("{ids:?}")),
    }
}

fn chat(fields: &str, source: &str) -> String {
    chat_with(fields, RenderSettings::default(), source).unwrap()
}

fn refusal(fields: &str) -> PromptError {
    chat_with(fields, RenderSettings::default(), PLAIN).unwrap_err()
}

fn completion(fields: &str) -> Result<Prompt, PromptError> {
    let body = format!(r#"{{"model": "m", {fields}}}"#);
    prompt_of("/v1/completions", &body, RenderSettings::default(), PLAIN)
}

const HI: &str = r#""messages": [{"role": "user", "content": "hi"}]"#;

#[test]
fn a_path_may_carry_a_query_and_a_prefix_that_the_gateway_takes_away() {
    assert_eq!(Api::of_path("/v1/completions?a=b"), Ok(Api::Completions));
    assert_eq!(Api::of_path("/v1/chat/completions"), Ok(Api::Chat));
    assert_eq!(Api::of_path("/qwen/v1/chat/completions"), Ok(Api::Chat));
    assert_eq!(Api::of_path("/a/b/classify?c"), Ok(Api::Classify));
    for path in [
        "/v1/audio/transcriptions",
        "/v1/completions/",
        "/xv1/completions",
        "/chat/completions",
        "",
    ] {
        assert_eq!(Api::of_path(path), Err(PromptError::UnknownPath), "{path}");
    }
}

#[test]
fn the_model_is_known_before_rendering() {
    let parse = |body: &str| Request::parse("/v1/completions", body.as_bytes());
    assert_eq!(
        parse(r#"{"model": "a", "model": "b"}"#).unwrap().model(),
        Ok("b")
    );
    assert_eq!(
        parse(r#"{"model": null}"#).unwrap().model(),
        Err(PromptError::NoModel)
    );
    assert_eq!(parse(r#"{"model": 5}"#).unwrap_err().label(), "bad_field");
    assert_eq!(parse("[]").unwrap_err().label(), "bad_field");
    assert_eq!(parse("{").unwrap_err().label(), "malformed_json");
}

#[test]
fn a_developer_message_merges_all_system_messages() {
    let messages = r#""messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
        {"role": "developer", "content": "d"}]"#;
    assert_eq!(chat(messages, PLAIN), r#"system:"s\n\nd";user:"u";"#);
    let knows = format!("{{# 'developer' #}}{PLAIN}");
    assert_eq!(
        chat(messages, &knows),
        r#"system:"s";user:"u";developer:"d";"#
    );
}

#[test]
fn late_system_messages_stay_without_a_developer() {
    let messages =
        r#""messages": [{"role": "user", "content": "u"}, {"role": "system", "content": "s"}]"#;
    assert_eq!(chat(messages, PLAIN), r#"user:"u";system:"s";"#);
}

#[test]
fn parts_become_lines_or_dicts_as_the_template_wants() {
    let messages = r#""messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1},
        {"type": "text", "text": ""}, "b", {"type": "text", "text": null}]}]"#;
    assert_eq!(chat(messages, PLAIN), r#"user:"a\nb";"#);
    let openai = RenderSettings {
        chat_template_content_format: ContentFormat::Openai,
        ..RenderSettings::default()
    };
    let expected = r#"user:[{"type": "text", "text": "a", "x": 1}, {"type": "text", "text": ""}, {"type": "text", "text": "b"}];"#;
    assert_eq!(chat_with(messages, openai, PLAIN).unwrap(), expected);
}

#[test]
fn the_billing_header_of_a_system_message_is_dropped() {
    let system = |content: &str| {
        chat(
            &format!(r#""messages": [{{"role": "system", "content": {content}}}]"#),
            PLAIN,
        )
    };
    assert_eq!(
        system(r#""x-anthropic-billing-header: 1\nkeep""#),
        r#"system:"keep";"#
    );
    assert_eq!(
        system(r#""x-anthropic-billing-header: 1""#),
        r#"system:"";"#
    );
    assert_eq!(
        system(r#"["x-anthropic-billing-header", {"type": "text", "text": "k"}]"#),
        r#"system:"k";"#
    );
    assert_eq!(
        system(r#"" x-anthropic-billing-header""#),
        r#"system:" x-anthropic-billing-header";"#
    );
}

#[test]
fn files_are_unsupported_and_oddities_are_bad() {
    let content = |content: &str| {
        refusal(&format!(
            r#""messages": [{{"role": "user", "content": {content}}}]"#
        ))
    };
    let file = content(
        r#"[{"type": "text", "text": "secret"}, {"type": "file", "file": {"file_id": "f"}}]"#,
    );
    assert_eq!(file.label(), "unsupported");
    assert_eq!(
        file.to_string(),
        "messages[0].content[1]: files are not scored"
    );
    let bad = [
        "null",
        "5",
        "{}",
        "[5]",
        r#"["only a string"]"#,
        r#"[{"type": "input_text", "text": "a"}]"#,
        r#"[{"type": "text", "text": "a"}, {"type": "weird", "text": "a"}]"#,
        r#"[{"type": "text", "text": "a"}, {"text": "a"}]"#,
        r#""\ud800""#,
    ];
    for one in bad {
        assert_eq!(content(one).label(), "bad_field", "{one}");
    }
}

/// What pydantic made of `ChatCompletionRequest` (vLLM 0.33) for the same messages.
#[test]
fn parts_that_openai_does_not_know_are_taken_from_messages_of_vllm_s_own_type() {
    let read = |role: &str, fields: &str| {
        let message = format!(r#"{{"role": "{role}", "content": ["a"]{fields}}}"#);
        let fields = format!(r#""messages": [{message}]"#);
        chat_with(&fields, RenderSettings::default(), PLAIN).is_ok()
    };
    let call = r#", "tool_calls": [{"type": "function", "id": "c", "function": {"name": "f", "arguments": ""}}]"#;
    let reasons = r#", "reasoning_content": "r""#;
    for (role, fields) in [
        ("assistant", call),
        ("assistant", r#", "tool_calls": null"#),
        ("assistant", r#", "tools": null"#),
        ("assistant", reasons),
        ("user", r#", "tool_calls": []"#),
        ("user", r#", "tool_call_id": null"#),
        ("tool", r#", "tool_call_id": "c", "name": "f""#),
        ("tool", r#", "tool_call_id": null"#),
        ("tool", ""),
        ("function", r#", "name": "f""#),
        ("critic", ""),
    ] {
        assert!(read(role, fields), "{role} {fields}");
    }
    for (role, fields) in [
        ("assistant", ""),
        (
            "assistant",
            r#", "tool_calls": [], "refusal": "x", "name": "n""#,
        ),
        ("user", r#", "name": "n", "weird": 1"#),
        ("user", r#", "reasoning_content": null"#),
        ("tool", r#", "tool_call_id": "c""#),
        ("developer", ""),
    ] {
        assert!(!read(role, fields), "{role} {fields}");
    }
}

#[test]
fn reasoning_has_two_names() {
    let source = "{% for m in messages %}{{ m.reasoning }}={{ m.reasoning_content }}={{ m.refusal is defined }};{% endfor %}";
    let of = |fields: &str| {
        chat(
            &format!(r#""messages": [{{"role": "assistant", "content": "x", {fields}}}]"#),
            source,
        )
    };
    assert_eq!(
        of(r#""reasoning_content": "r", "refusal": "x""#),
        "r=r=False;"
    );
    assert_eq!(
        of(r#""reasoning_content": "r", "reasoning": "q""#),
        "q=q=False;"
    );
    assert_eq!(
        of(r#""reasoning_content": "r", "reasoning": null"#),
        "r=r=False;"
    );
}

fn call(function: &str) -> String {
    format!(
        r#""messages": [{{"role": "assistant", "tool_calls": [{{"type": "function", "id": "c", "function": {function}}}]}}]"#
    )
}

#[test]
fn tool_arguments_are_objects_whatever_they_were() {
    let source = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}";
    let pairs = [
        (r#"{\"b\": 1.50, \"a\": 1e22}"#, r#"{"b": 1.5, "a": 1e+22}"#),
        ("", "{}"),
        ("[1]", "{}"),
        ("{bad", "{}"),
        ("null", "{}"),
    ];
    for (arguments, expected) in pairs {
        let call = call(&format!(r#"{{"name": "f", "arguments": "{arguments}"}}"#));
        assert_eq!(chat(&call, source), expected, "{arguments}");
    }
    for function in [r#"{"name": "f"}"#, r#"{"name": "f", "arguments": {}}"#, "5"] {
        assert_eq!(refusal(&call(function)).label(), "bad_field", "{function}");
    }
}

#[test]
fn tools_are_rebuilt_in_vllms_order() {
    let source = "{{ tools | tojson }}";
    let tools = r#""tools": [{"x": 1, "function": {"parameters": {"b": 1, "a": 2}, "strict": null, "name": "f", "y": 1}, "type": "function"}]"#;
    let expected = r#"[{"type": "function", "function": {"name": "f", "description": null, "parameters": {"b": 1, "a": 2}}}]"#;
    assert_eq!(chat(&format!("{HI}, {tools}"), source), expected);
    assert_eq!(
        chat(&format!(r#"{HI}, {tools}, "tool_choice": "none""#), source),
        expected
    );
    let hides = RenderSettings {
        exclude_tools_when_tool_choice_none: true,
        ..Default::default()
    };
    let none = chat_with(
        &format!(r#"{HI}, {tools}, "tool_choice": "none""#),
        hides,
        source,
    );
    assert_eq!(none.unwrap(), "null");
    let without = RenderSettings {
        enable_auto_tool_choice: false,
        ..Default::default()
    };
    assert!(chat_with(&format!("{HI}, {tools}"), without, source).is_err());
    for fields in [
        r#""tools": []"#,
        r#""tools": [5]"#,
        r#""tool_choice": "auto""#,
        r#""tools": [{"function": {}}]"#,
    ] {
        assert_eq!(
            refusal(&format!("{HI}, {fields}")).label(),
            "bad_field",
            "{fields}"
        );
    }
}

#[test]
fn arguments_of_the_template_override_from_server_to_top_level() {
    let source = "{{ enable_thinking }} {{ add_generation_prompt }} {{ other }}";
    let mut settings = RenderSettings::default();
    settings
        .default_chat_template_kwargs
        .insert("enable_thinking".into(), false.into());
    let of =
        |fields: &str| chat_with(&format!("{HI}, {fields}"), settings.clone(), source).unwrap();
    assert_eq!(of(r#""x": 1"#), "False True ");
    assert_eq!(
        of(r#""chat_template_kwargs": {"enable_thinking": true, "other": 1.0}"#),
        "True True 1.0"
    );
    assert_eq!(
        of(r#""chat_template_kwargs": {"enable_thinking": null, "other": "auto"}"#),
        "False True "
    );
    assert_eq!(
        of(r#""chat_template_kwargs": {"add_generation_prompt": false}"#),
        "False True "
    );
    assert_eq!(
        of(r#""add_generation_prompt": "off", "reasoning_effort": "low""#),
        "True False "
    );
    assert_eq!(
        of(r#""reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": false}"#),
        "False True "
    );
    assert_eq!(
        refusal(&format!(
            r#"{HI}, "chat_template_kwargs": {{"messages": []}}"#
        ))
        .label(),
        "bad_field"
    );
}

#[test]
fn a_requests_template_needs_trust() {
    let own = format!(r#"{HI}, "chat_template": "own {{{{ messages[0].content }}}}""#);
    assert_eq!(refusal(&own).label(), "bad_field");
    let trusts = RenderSettings {
        trust_request_chat_template: true,
        ..Default::default()
    };
    assert_eq!(chat_with(&own, trusts, PLAIN).unwrap(), "own hi");
}

#[test]
fn a_final_message_is_continued_where_it_ends() {
    let source = "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}";
    let of = |content: &str| {
        let messages = format!(
            r#""messages": [{{"role": "user", "content": "u"}}, {{"role": "assistant", "content": "{content}"}}]"#
        );
        chat_with(
            &format!(
                r#"{messages}, "continue_final_message": true, "add_generation_prompt": false"#
            ),
            RenderSettings::default(),
            source,
        )
    };
    assert_eq!(of("so").unwrap(), "<u><so");
    assert_eq!(of("so  ").unwrap(), "<u><so");
    assert_eq!(
        refusal(&format!(r#"{HI}, "continue_final_message": true"#)).label(),
        "bad_field"
    );
}

#[test]
fn forwarded_tokens_replace_the_rendering() {
    let ids = r#""kv_transfer_params": {"prompt_token_ids": [1, 2]}, "truncate_prompt_tokens": 1"#;
    assert_eq!(chat(&format!("{HI}, {ids}"), PLAIN), "[1, 2]");
    assert_eq!(
        chat(&format!(r#"{HI}, {ids}, "echo": true"#), PLAIN),
        r#"user:"hi";"#
    );
    let bad = r#""kv_transfer_params": {"prompt_token_ids": [true]}"#;
    assert_eq!(refusal(&format!("{HI}, {bad}")).label(), "bad_field");
}

#[test]
fn a_completion_is_text_or_tokens_or_many() {
    let texts = |fields: &str| completion(fields).map(|prompt| prompt.texts);
    let ids = |ids: &[u32]| PromptText::Ids(ids.to_vec());
    let text = |text: &str| PromptText::Text {
        text: text.into(),
        add_special_tokens: true,
        whole: true,
    };
    assert_eq!(texts(r#""prompt": "a""#), Ok(vec![text("a")]));
    assert_eq!(
        texts(r#""prompt": ["a", ""]"#),
        Ok(vec![text("a"), text("")])
    );
    assert_eq!(
        texts(r#""prompt": [1, true, 2.0]"#),
        Ok(vec![ids(&[1, 1, 2])])
    );
    assert_eq!(
        texts(r#""prompt": [[1], []]"#),
        Ok(vec![ids(&[1]), ids(&[])])
    );
    let bad = [
        "[]",
        "\"\"",
        "null",
        "5",
        "[-1]",
        "[1.5]",
        "[\"a\", [1]]",
        "[1, \"a\"]",
        "[[1], 2]",
        "[\"\\ud800\"]",
        "\"\\ud800\"",
        "[4294967296]",
        "{}",
    ];
    for prompt in bad {
        assert_eq!(
            texts(&format!("\"prompt\": {prompt}")).unwrap_err().label(),
            "bad_field",
            "{prompt}"
        );
    }
    assert_eq!(
        texts(r#""prompt_embeds": "x""#).unwrap_err().label(),
        "unsupported"
    );
}

#[test]
fn asking_for_prompt_logprobs_skips_the_cache() {
    let reads = |fields: &str| {
        completion(&format!(r#""prompt": "a", {fields}"#))
            .unwrap()
            .reads_cache
    };
    assert!(reads(r#""prompt_logprobs": null, "echo": true"#));
    assert!(!reads(r#""prompt_logprobs": 0"#));
    assert!(!reads(r#""echo": true, "logprobs": 1"#));
    let chat = |fields: &str| {
        let body = format!("{{{HI}, {fields}}}");
        prompt_of(
            "/v1/chat/completions",
            &body,
            RenderSettings::default(),
            PLAIN,
        )
        .unwrap()
        .reads_cache
    };
    assert!(chat(r#""echo": false"#));
    assert!(
        !chat(r#""echo": true"#),
        "a chat's top_logprobs is 0 by default"
    );
    assert!(chat(r#""echo": true, "top_logprobs": null"#));
}

#[test]
fn a_salt_is_kept_if_vllm_takes_it() {
    let salt = |salt: &str| {
        completion(&format!(r#""prompt": "a", "cache_salt": {salt}"#)).map(|p| p.cache_salt)
    };
    assert_eq!(salt("\"s4lt\""), Ok(Some("s4lt".to_owned())));
    assert_eq!(salt("null"), Ok(None));
    let long = format!("\"{}\"", "a".repeat(129));
    for bad in ["\"\"", "\"a/b\"", "5", &long] {
        assert_eq!(salt(bad).unwrap_err().label(), "bad_field", "{bad}");
    }
}

#[test]
fn truncation_is_from_the_left_unless_told_otherwise() {
    let of = |fields: &str, max_model_len| {
        let body = format!(r#"{{"prompt": "a", {fields}}}"#);
        let settings = RenderSettings {
            max_model_len,
            ..Default::default()
        };
        prompt_of("/v1/completions", &body, settings, PLAIN).map(|prompt| prompt.truncation)
    };
    let keep = |keep_tokens, side| Ok(Some(Truncation { keep_tokens, side }));
    assert_eq!(
        of(r#""truncate_prompt_tokens": 2"#, None),
        keep(2, Side::Left)
    );
    assert_eq!(
        of(
            r#""truncate_prompt_tokens": "2", "truncation_side": "right""#,
            None
        ),
        keep(2, Side::Right)
    );
    assert_eq!(of(r#""truncate_prompt_tokens": -1"#, None), Ok(None));
    assert_eq!(
        of(r#""truncate_prompt_tokens": -1"#, Some(100)),
        keep(99, Side::Left)
    );
    assert_eq!(
        of(
            r#""truncate_prompt_tokens": -1, "max_tokens": 0"#,
            Some(100)
        ),
        keep(100, Side::Left)
    );
    assert!(of(r#""truncate_prompt_tokens": 101"#, Some(100)).is_err());
    assert!(of(r#""truncate_prompt_tokens": -2"#, None).is_err());
    assert!(of(r#""truncation_side": "up""#, None).is_err());
}

#[test]
fn frontends_make_different_prompts_of_one_request() {
    let tail = "{{ tools is defined }} {{ add_generation_prompt }} {{ x | tojson }}";
    let fields = r#""messages": [{"role": "developer", "content": [{"type": "text", "text": "a"},
        {"type": "text", "text": "b"}]}, {"role": "user", "content": "hi", "name": "n"}],
        "chat_template_kwargs": {"add_generation_prompt": false, "x": 0.00001}"#;
    let chat = |dialect| {
        let settings = RenderSettings {
            dialect,
            ..RenderSettings::default()
        };
        chat_with(fields, settings, &format!("{PLAIN}{tail}")).unwrap()
    };
    assert_eq!(
        chat(Dialect::Python),
        r#"system:"a\nb";user:"hi";True True 1e-05"#
    );
    assert_eq!(
        chat(Dialect::Rust),
        r#"developer:"ab";user:"hi";False False 0.00001"#
    );
}

#[test]
fn a_request_is_read_again_only_for_the_rust_frontend() {
    let body = r#"{"model": "m", "messages": [{"role": "user", "content": "hi"}],
        "chat_template_kwargs": {"x": 12345678901234567890123}}"#;
    let read = |dialect, body: &str| {
        let settings = RenderSettings {
            dialect,
            ..RenderSettings::default()
        };
        let renderer = renderer("{{ x }}", settings);
        let request = Request::parse("/v1/chat/completions", body.as_bytes()).unwrap();
        let prompt = request.reread(&renderer, body.as_bytes()).render(&renderer);
        match prompt.unwrap().first() {
            PromptText::Text { text, .. } => text.clone(),
            PromptText::Ids(_) => panic!("a text"),
        }
    };
    assert_eq!(read(Dialect::Python, body), "12345678901234567890123");
    assert_eq!(read(Dialect::Rust, body), "12345678901234568000000.0");
    // What the field does not matter for, is no reason not to read the rest.
    let odd = body.replace("}}", r#"}, "junk": "\ud800"}"#);
    assert_eq!(read(Dialect::Rust, &odd), "12345678901234567890123");
}
