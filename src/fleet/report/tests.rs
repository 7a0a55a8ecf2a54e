use super::*;

/// vLLM 0.32.0 with two data-parallel ranks and two API servers, ten requests of 610 tokens at the
/// first rank and three at the second, a second after they were sent.
const TWO_RANKS: &str = include_str!("../../../tests/fixtures/vllm/v0.32.0-dp2/metrics.txt");

fn of_all(text: &str) -> Result<Report, Unread> {
    Page::read(text).of(None)
}

#[test]
fn each_rank_finds_itself_on_the_page_of_a_real_server() {
    let page = Page::read(TWO_RANKS);
    let said = |waiting, running, requests, cache_blocks| Report {
        waiting,
        running,
        kv_usage: Some(0.789_473_684_210_526_3),
        cache_blocks: Some(cache_blocks),
        prefilled: Some(Prefilled {
            tokens: 610.0 * requests,
            requests,
        }),
        model: Some("/model/qwen".into()),
        lora: None,
    };
    assert_eq!(page.of(Some(0)), Ok(said(7, 3, 4.0, 191)));
    assert_eq!(page.of(Some(1)), Ok(said(0, 3, 3.0, 191)));
    assert_eq!(
        page.of(None),
        Ok(said(7, 6, 7.0, 382)),
        "where nobody says ranks"
    );
    let missing = page.of(Some(2)).expect_err("there are two");
    assert_eq!(missing, Unread::NoRank(2));
    assert!(missing.to_string().contains("data_parallel_size"));
}

#[test]
fn older_names_are_known() {
    let text = "\
vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 2.0
vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 1.0
vllm:gpu_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.25
vllm:gpu_prefix_cache_hits_total{engine=\"0\",model_name=\"m\"} 300.0
vllm:prompt_tokens_total{engine=\"0\",model_name=\"m\"} 1000.0
vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"m\"} 7.0
";
    let report = of_all(text).expect("vLLM's");
    let prefilled = report.prefilled.expect("counted");
    assert_eq!(report.kv_usage, Some(0.25));
    assert_eq!((prefilled.tokens, prefilled.requests), (700.0, 7.0));
    // The new names count where both are there, as they were in 0.9 to 0.11.
    let both = format!("{text}vllm:kv_cache_usage_perc{{engine=\"0\"}} 0.5\n");
    assert_eq!(of_all(&both).expect("vLLM's").kv_usage, Some(0.5));
}

#[test]
fn of_adapters_the_latest_labels_count() {
    let lora = |running: &str, waiting: &str, at: &str| {
        format!(
            "vllm:lora_requests_info{{max_lora=\"4\",running_lora_adapters=\"{running}\",\
             waiting_lora_adapters=\"{waiting}\"}} {at}\n"
        )
    };
    let text = [
        "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n".to_owned(),
        lora("old", "", "1.7953271e+09"),
        lora("sql,a \\\"b\\\" \\\\ {c}", "chat", "1.7953279e+09"),
        lora("", "", "1.7953275e+09"),
    ];
    let lora = of_all(&text.concat()).expect("vLLM's").lora;
    let wanted = Lora {
        running: vec!["sql".into(), "a \"b\" \\ {c}".into()],
        waiting: vec!["chat".into()],
        max: Some(4),
    };
    assert_eq!(lora, Some(wanted));
}

#[test]
fn what_is_no_page_of_vllm_is_none() {
    let waiting = "vllm:num_requests_waiting{engine=\"0\"} 0\n";
    for text in [
        "",
        "<html><body>404</body></html>",
        "sglang:num_running_reqs 3\n",
        waiting,
        "vllm:num_requests_running{engine=\"0\"} NaN\nvllm:num_requests_waiting{engine=\"0\"} 0\n",
        "vllm:num_requests_running{engine=\"0\"} -1\nvllm:num_requests_waiting{engine=\"0\"} 0\n",
        "vllm:num_requests_running{engine=\"0\nvllm:num_requests_waiting{engine=\"0\"} 0\n",
        "vllm:num_requests_running{engine=\"0\"}\nvllm:num_requests_waiting{engine=\"0\"} 0\n",
    ] {
        let unread = of_all(text).expect_err(text);
        assert_eq!(unread, Unread::NotVllm, "{text}");
        assert_eq!(Page::read(text).of(Some(0)), Err(Unread::NotVllm), "{text}");
    }
}

#[test]
fn a_usage_that_is_no_share_is_not_believed() {
    let text = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n\
        vllm:kv_cache_usage_perc 37.5\n";
    assert_eq!(of_all(text).expect("vLLM's").kv_usage, None);
}

proptest::proptest! {
    /// Whatever a port answers, it is read to its end.
    #[test]
    fn garbage_is_survived(text in "(vllm:num_requests_running|[{}\"\\\\=, \\n0-9a-z])*") {
        let _ = Page::read(&text).of(Some(0));
    }
}
