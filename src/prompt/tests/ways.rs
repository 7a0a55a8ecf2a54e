//! The ways in beside chats and completions, and what is no text.

use super::*;

/// Prints every message as `role:content;`, and what else a template may be told.
const TOLD: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{{ tools | tojson }} {{ add_generation_prompt }} {{ enable_thinking }} {{ reasoning_effort }}";

/// Prints parts in order, and says first whether there are images.
const PARTS: &str = "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{% if p.type == 'image' %}[img{{ p.zz }}]{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}!";

fn at(path: &str, fields: &str, source: &str) -> Result<Prompt, PromptError> {
    let body = format!(r#"{{"model": "m", {fields}}}"#);
    prompt_of(path, &body, RenderSettings::default(), source)
}

fn text(prompt: Result<Prompt, PromptError>) -> (String, bool) {
    match prompt.unwrap().texts.remove(0) {
        PromptText::Text { text, whole, .. } => (text, whole),
        PromptText::Ids(ids) => panic!("{} tokens", ids.len()),
    }
}

fn request(path: &str, fields: &str) -> Request {
    let body = format!(r#"{{"model": "m", {fields}}}"#);
    Request::parse(path, body.as_bytes()).unwrap()
}

fn user(content: &str) -> String {
    format!(
        r#""messages": [{{"role": "system", "content": "s"}}, {{"role": "user", "content": {content}}}]"#
    )
}

const IMAGE: &str = r#"{"type": "image_url", "image_url": {"url": "u"}, "zz": 1}"#;

#[test]
fn what_is_not_scored_has_a_name() {
    let label = |path| Api::of_path(path).unwrap_err().label();
    for path in [
        "/tokenize",
        "/v1/messages/count_tokens",
        "/v1/chat/completions/render?x=1",
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/cancel",
        "/v1/models",
    ] {
        assert_eq!(label(path), "no_prefill", "{path}");
    }
    assert_eq!(label("/v2/rerank"), "score_template");
    assert_eq!(label("/v1/audio/transcriptions"), "unknown_path");
    let goes_on = at(
        "/v1/responses",
        r#""input": "x", "previous_response_id": "r""#,
        TOLD,
    );
    assert_eq!(goes_on.unwrap_err().label(), "server_state");
}

#[test]
fn a_prompt_is_known_up_to_its_first_image() {
    let of = |content: &str, source| text(at("/v1/chat/completions", &user(content), source));
    let parts =
        format!(r#"[{{"type": "text", "text": "a"}}, {IMAGE}, {{"type": "text", "text": "b"}}]"#);
    // Strings: vLLM may put placeholders in front of a message's text, or between its texts.
    assert_eq!(of(&parts, TOLD), ("system:s;user:".to_owned(), false));
    assert_eq!(of(&parts, PARTS), ("<system>s<user>a".to_owned(), false));
    assert_eq!(
        of(&format!("[{IMAGE}, {IMAGE}]"), PARTS).0,
        "<system>s<user>"
    );
    assert!(of(r#"[{"type": "text", "text": "a"}]"#, PARTS).1);
}

#[test]
fn a_template_that_foretells_images_is_known_up_to_there() {
    let source = "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}one {% endif %}{% endfor %}{% endfor %}"
        .to_owned()
        + PARTS;
    let content = format!(r#"[{{"type": "text", "text": "o text"}}, {IMAGE}]"#);
    let prompt = at("/v1/chat/completions", &user(&content), &source);
    // With the image it begins "one <system>", without "<system>".
    assert_eq!(text(prompt), (String::new(), false));
}

#[test]
fn media_that_a_template_drops_are_unsupported() {
    let source =
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}";
    let prompt = at("/v1/chat/completions", &user(&format!("[{IMAGE}]")), source);
    assert_eq!(prompt.unwrap_err().label(), "unsupported");
}

#[test]
fn embeddings_within_a_chat_stand_where_they_are() {
    let content = r#"[{"type": "text", "text": "a"}, {"type": "prompt_embeds", "data": "x"}]"#;
    let of = |source| text(at("/v1/chat/completions", &user(content), source));
    assert_eq!(of(TOLD), ("system:s;user:a\n".to_owned(), false));
    assert_eq!(of(PARTS), ("<system>s<user>a".to_owned(), false));
}

#[test]
fn forwarded_tokens_do_not_replace_media() {
    let fields = format!(
        r#"{}, "kv_transfer_params": {{"prompt_token_ids": [1]}}, "truncate_prompt_tokens": 3"#,
        user(&format!("[{IMAGE}]"))
    );
    let prompt = at("/v1/chat/completions", &fields, TOLD).unwrap();
    assert!(prompt.first().ends_at_medium());
    assert_eq!(prompt.truncation, None, "of how many tokens is not known");
}

#[test]
fn images_of_other_ways_in_end_the_prompt_too() {
    let responses = at(
        "/v1/responses",
        r#""input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "u"}]}]"#,
        PARTS,
    );
    assert_eq!(text(responses), ("<user>a".to_owned(), false));
    let messages = at(
        "/v1/messages",
        r#""max_tokens": 5, "system": "s", "messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "r"}, {"type": "image", "source": {"type": "url", "url": "u"}}]},
            {"type": "text", "text": "b"}]}]"#,
        PARTS,
    );
    assert_eq!(text(messages), ("<system>s<tool>r<user>".to_owned(), false));
}

#[test]
fn responses_add_the_tokenizers_own_tokens_and_chats_do_not() {
    let adds = |path: &str, fields: &str| match at(path, fields, TOLD).unwrap().first() {
        PromptText::Text {
            add_special_tokens, ..
        } => *add_special_tokens,
        PromptText::Ids(_) => unreachable!("it is text"),
    };
    assert!(adds("/v1/responses", r#""input": "x""#));
    assert!(!adds("/v1/chat/completions", HI));
    assert!(!adds("/v1/messages", &format!(r#"{HI}, "max_tokens": 1"#)));
    assert!(!adds("/v1/embeddings", HI));
    assert!(adds("/v1/embeddings", r#""input": "x""#));
}

#[test]
fn the_system_speaks_first_where_the_template_wants_it() {
    let late = r#""max_tokens": 1, "system": "a", "messages": [{"role": "user", "content": "u"}, {"role": "system", "content": "b"}]"#;
    let of = |source: &str| text(at("/v1/messages", late, source)).0;
    let plain = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";
    assert_eq!(of(plain), "system:a;user:u;system:b;");
    let strict = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}{{ m.role }}:{{ m.content }};{% endfor %}";
    assert_eq!(of(strict), "system:ab;user:u;");
    // vLLM tries with less than transformers gives to templates.
    let dated = format!("{{{{ strftime_now('%Y') }}}}{plain}");
    assert_eq!(of(&dated), "1970system:ab;user:u;");
    let careful = format!("{{% if strftime_now is defined %}}d{{% endif %}}{plain}");
    assert_eq!(of(&careful), "dsystem:a;user:u;system:b;");
    let marked = plain.replace(
        "{{ m.content }}",
        "{% generation %}{{ m.content }}{% endgeneration %}",
    );
    assert_eq!(of(&marked), "system:ab;user:u;");
}

#[test]
fn no_thinking_is_an_effort_that_the_template_heeds() {
    let off = format!(r#"{HI}, "max_tokens": 1, "thinking": {{"type": "disabled"}}"#);
    let of = |source: &str| text(at("/v1/messages", &off, source)).0;
    assert_eq!(
        of("{{ enable_thinking }} {{ reasoning_effort }}"),
        "False none"
    );
    assert_eq!(of("e{{ messages[0].role }}"), "euser");
    let ignores = "{% if reasoning_effort == 'low' %}low{% else %}max{% endif %}";
    assert_eq!(of(ignores), "low");
    let refuses = "{% if reasoning_effort == 'none' %}{{ raise_exception('no') }}{% endif %}{{ reasoning_effort }}";
    assert_eq!(of(refuses), "low");
}

#[test]
fn vectors_are_made_of_chats_without_an_answer() {
    let settings = RenderSettings {
        default_chat_template_kwargs: serde_json::from_str(r#"{"enable_thinking": false}"#)
            .unwrap(),
        ..RenderSettings::default()
    };
    let of = |path: &str, fields: &str| {
        let body = format!("{{{fields}}}");
        prompt_of(path, &body, settings.clone(), TOLD).unwrap()
    };
    let only = |prompt: Prompt| text(Ok(prompt)).0;
    let chat = r#"[{"role": "user", "content": "hi"}]"#;
    let expected = "user:hi;null False  ";
    for path in ["/v1/embeddings", "/classify", "/pooling"] {
        assert_eq!(only(of(path, &format!(r#""messages": {chat}"#))), expected);
    }
    assert_eq!(
        only(of("/v1/embeddings", &format!(r#""input": {chat}"#))),
        expected
    );
    let told =
        format!(r#""messages": {chat}, "add_generation_prompt": true, "reasoning_effort": "low""#);
    assert_eq!(only(of("/pooling", &told)), "user:hi;null True  ");
    for field in ["messages", "input"] {
        let two = of("/v1/embeddings", &format!(r#""{field}": [{chat}, {chat}]"#));
        assert_eq!(two.texts.len(), 2, "{field}");
    }
    assert_eq!(of("/classify", r#""input": ["a", "b"]"#).texts.len(), 2);
    let ids = of(
        "/v1/embeddings",
        r#""input": [1, 2], "truncate_prompt_tokens": 1"#,
    );
    assert_eq!(ids.texts, [PromptText::Ids(vec![1, 2])]);
    assert_eq!(ids.truncation.unwrap().side, Side::Right);
}

#[test]
fn vectors_that_cannot_be_followed_say_so() {
    let label = |fields| at("/pooling", fields, TOLD).unwrap_err().label();
    assert_eq!(label(r#""data": {}"#), "unsupported");
    assert_eq!(
        label(r#""input": "a", "padding": "max_length""#),
        "unsupported"
    );
    assert_eq!(label(r#""input": "a", "normalize": true"#), "bad_field");
    assert_eq!(label(r#""input": []"#), "bad_field");
}

#[test]
fn a_vector_a_token_skips_the_cache_and_one_a_prompt_does_not() {
    let reads = |path, fields| {
        let of_request = request(path, fields).reads_cache();
        let of_prompt = at(path, fields, TOLD).unwrap().reads_cache;
        assert_eq!(of_request, of_prompt, "{fields}");
        of_prompt
    };
    assert!(reads("/v1/embeddings", r#""input": "a""#));
    assert!(reads("/classify", r#""input": "a""#));
    assert!(!reads("/pooling", r#""input": "a", "task": "token_embed""#));
    assert!(reads("/pooling", r#""input": "a", "task": "embed""#));
    let late = r#""input": "a", "late_chunking_params": {"chunk_size": 8}"#;
    assert!(!reads("/v1/embeddings", late));
}

#[test]
fn generate_takes_tokens_and_ends_at_the_first_medium() {
    let path = "/inference/v1/generate";
    let ids = |fields: &str| at(path, fields, TOLD).map(|prompt| prompt.texts);
    let given = r#""token_ids": [5, 6, 7, 8], "sampling_params": {}"#;
    assert_eq!(ids(given), Ok(vec![PromptText::Ids(vec![5, 6, 7, 8])]));
    let features = r#""features": {"mm_hashes": {}, "mm_placeholders": {"audio": [{"offset": 3, "length": 1}], "image": [{"offset": 2, "length": 1}]}}"#;
    assert_eq!(
        ids(&format!("{given}, {features}")),
        Ok(vec![PromptText::Ids(vec![5, 6])])
    );
    let media = request(path, &format!("{given}, {features}"));
    assert_eq!(media.caveat(), Some("media"));
    let parts = format!(r#"{given}, "content_parts": [{{"type": "image_url"}}]"#);
    assert_eq!(ids(&parts).unwrap_err().label(), "unsupported");
    for bad in [
        r#""token_ids": []"#,
        r#""token_ids": [-1]"#,
        r#""prompt": "x""#,
    ] {
        assert_eq!(ids(bad).unwrap_err().label(), "bad_field", "{bad}");
    }
}

#[test]
fn generates_sampling_says_what_a_chat_says_at_the_top() {
    let of = |params: &str| {
        let fields = format!(r#""token_ids": [1], "sampling_params": {{{params}}}"#);
        request("/inference/v1/generate", &fields)
    };
    assert!(of("").reads_cache());
    assert!(!of(r#""prompt_logprobs": 0"#).reads_cache());
    assert!(!of(r#""prompt_logprob_token_ids": [1]"#).reads_cache());
    assert!(!of(r#""skip_reading_prefix_cache": true"#).reads_cache());
    assert!(of(r#""prompt_logprobs": 1, "skip_reading_prefix_cache": false"#).reads_cache());
    assert_eq!(of(r#""n": 3"#).answers(), 3);
    assert_eq!(of(r#""n": 3"#).caveat(), Some("answers"));
    assert_eq!(of("").caveat(), None);
    assert!(of(r#""extra_args": {"kv_cache_report_mode": "full"}"#).wants_cache_report());
}

#[test]
fn a_beam_search_reads_the_cache_and_reports_nothing() {
    let fields =
        r#""prompt": "a", "use_beam_search": true, "n": 2, "echo": true, "prompt_logprobs": 1"#;
    let beams = request("/v1/completions", fields);
    assert!(beams.reads_cache());
    assert_eq!(beams.caveat(), Some("beam_search"));
}

#[test]
fn a_batch_of_chats_is_one_prompt_each_without_tools() {
    let tools = r#""chat_template_kwargs": {"enable_thinking": false}"#;
    let one = r#"[{"role": "user", "content": "hi"}]"#;
    let path = "/v1/chat/completions/batch";
    let batch = at(
        path,
        &format!(r#""messages": [{one}, {one}], {tools}"#),
        TOLD,
    )
    .unwrap();
    assert_eq!(batch.texts.len(), 2);
    assert_eq!(text(Ok(batch)).0, "user:hi;null True False ");
    for bad in [
        r#""messages": []"#.to_owned(),
        format!(r#""messages": {one}"#),
        format!(r#""messages": [{one}], "kv_transfer_params": {{"prompt_token_ids": [1]}}"#),
    ] {
        assert_eq!(
            at(path, &bad, TOLD).unwrap_err().label(),
            "bad_field",
            "{bad}"
        );
    }
    assert_eq!(request(path, r#""messages": []"#).caveat(), Some("batch"));
}

#[test]
fn a_response_may_leave_truncation_to_the_server() {
    let of = |fields: &str| {
        let body = format!(r#"{{"input": "a", {fields}}}"#);
        let settings = RenderSettings {
            max_model_len: Some(100),
            ..RenderSettings::default()
        };
        prompt_of("/v1/responses", &body, settings, TOLD).map(|prompt| prompt.truncation)
    };
    let keep = |keep_tokens| {
        Ok(Some(Truncation {
            keep_tokens,
            side: Side::Left,
        }))
    };
    assert_eq!(of(r#""truncation": "disabled""#), Ok(None));
    assert_eq!(of(r#""truncation": "auto""#), keep(99));
    assert_eq!(
        of(r#""truncation": null, "max_output_tokens": 0"#),
        keep(100)
    );
    assert!(of(r#""truncation": "left""#).is_err());
}

#[test]
fn a_server_may_have_other_words_for_efforts() {
    let settings = RenderSettings {
        reasoning_effort_map: [("high".to_owned(), "max".to_owned())].into(),
        ..RenderSettings::default()
    };
    let source = "{{ reasoning_effort }} {{ enable_thinking }}";
    let of = |fields: &str| chat_with(&format!("{HI}, {fields}"), settings.clone(), source);
    assert_eq!(of(r#""reasoning_effort": "high""#).unwrap(), "max True");
    assert_eq!(of(r#""reasoning_effort": "none""#).unwrap(), "none False");
}
