//! Every family: its name, its labels, what it says.
//!
//! Names are an interface: `docs/metrics.md` lists them, and a test holds the two in step, so that none
//! changes unseen.

use metrics::Unit;

/// What a family is to Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// As of a scrape.
    Gauge,
    /// Counts by size, their sum and their number.
    Histogram,
}

/// A family of series.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name, `_total` included.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// Labels, in the order that they are written in.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

impl Family {
    /// As its name has it.
    #[must_use]
    pub fn unit(&self) -> Unit {
        if self.name.contains("_seconds") {
            Unit::Seconds
        } else if self.name.contains("_bytes") {
            Unit::Bytes
        } else {
            Unit::Count
        }
    }
}

/// Families of one subject.
pub struct Subject {
    /// A heading.
    pub name: &'static str,
    /// What an operator asks.
    pub families: &'static [Family],
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    family(Kind::Counter, name, labels, help)
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    family(Kind::Gauge, name, labels, help)
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    family(Kind::Histogram, name, labels, help)
}

const fn family(
    kind: Kind,
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family {
        name,
        kind,
        labels,
        help,
    }
}

const ENDPOINT: &[&str] = &["endpoint"];
const MODEL: &[&str] = &["model"];
/// Of Gateway API's Inference Extension.
const MODELS: &[&str] = &["model_name", "target_model_name"];

/// All of them.
pub const SUBJECTS: &[Subject] = &[
    Subject {
        name: "Requests and choices",
        families: &[
            counter(
                "kvscout_requests_total",
                &["pool", "basis", "reason", "outcome"],
                "Requests by their pool, what their choice rested on, why that is not all, and what became of them: placed, or a refusal's word",
            ),
            counter(
                "kvscout_model_targets_total",
                &["model", "target"],
                "Requests for a model with targets, by that model (* where no rule names it) and the target that served it",
            ),
            counter(
                "kvscout_objectives_unknown_total",
                &[],
                "Requests that named an objective which nobody declared",
            ),
            histogram(
                "kvscout_matching_ratio",
                &[],
                "Predicted cached tokens / prompt tokens of requests that were placed and whose prompts were read",
            ),
            counter(
                "kvscout_prompt_tokens_total",
                ENDPOINT,
                "Tokens of the prompts placed, by endpoint",
            ),
            counter(
                "kvscout_predicted_cached_tokens_total",
                ENDPOINT,
                "Tokens predicted to be cached, by endpoint",
            ),
            counter(
                "kvscout_blind_cached_tokens_total",
                ENDPOINT,
                "Tokens that a blind choice would have found cached, by the endpoint chosen instead: the mean of all candidates",
            ),
            counter(
                "kvscout_prefill_tokens_saved_total",
                ENDPOINT,
                "Prefill that answers were spared, by endpoint: cached tokens as reported, or as predicted where nothing is reported",
            ),
            histogram(
                "kvscout_first_output_seconds",
                &["decided_by"],
                "From the choice to an answer's first bytes, streamed answers alone, by what decided: prefix, load or home",
            ),
        ],
    },
    Subject {
        name: "Decision time",
        families: &[
            histogram(
                "kvscout_decision_seconds",
                &[],
                "From whole body to choice, without a wait for room",
            ),
            histogram(
                "kvscout_decision_stage_seconds",
                &["stage"],
                "The same by stage: read (render and tokenize, the wait for a core included), overlap (block keys, index), choose (load, costs, booking)",
            ),
            histogram(
                "kvscout_tokenizer_wait_seconds",
                &[],
                "That long prompts waited for a core, those that gave up included",
            ),
            histogram(
                "kvscout_tokenizer_work_seconds",
                &[],
                "That reading a prompt took, without the wait",
            ),
            gauge(
                "kvscout_tokenizer_waiting",
                &[],
                "Long prompts that wait for a core to read them",
            ),
            gauge(
                "kvscout_tokenizer_working",
                &[],
                "Long prompts that are being read; the cores are the most",
            ),
        ],
    },
    Subject {
        name: "Queue and shedding",
        families: &[
            gauge(
                "kvscout_admission_waiting",
                &[],
                "Requests that wait for an endpoint with room",
            ),
            histogram(
                "kvscout_admission_wait_seconds",
                &["outcome"],
                "That requests waited for an endpoint with room, by what ended it",
            ),
            counter(
                "kvscout_requests_shed_total",
                &["reason", "criticality"],
                "Requests refused since every endpoint was saturated, by reason and criticality",
            ),
        ],
    },
    Subject {
        name: "Connections and exchanges",
        families: &[
            gauge(
                "kvscout_connections",
                &["port"],
                "Connections by port (ext_proc, health, admin)",
            ),
            counter(
                "kvscout_connections_refused_total",
                &["port", "reason"],
                "Connections hung up on, by port and reason: accept (no file descriptor), full (limits.connections_max), handshake_failed, handshake_late, silent",
            ),
            gauge(
                "kvscout_exchanges",
                &[],
                "Conversations with a gateway that are open, one a request; limits.streams_max bounds them",
            ),
            gauge(
                "kvscout_exchange_held_bytes",
                &[],
                "Bytes of bodies that they hold; limits.held_bytes_max bounds it",
            ),
            counter(
                "kvscout_exchanges_given_up_total",
                &["reason"],
                "Exchanges that we ended, by reason: never_began, silent (limits.silence_ms_max), out_of_order, memory (messages that are not all there yet), grace_over",
            ),
            gauge(
                "kvscout_core_wait_seconds",
                &[],
                "What work waits for a core, without bursts, on the thread where it waits longest; past limits.core_wait_ms_max requests are refused",
            ),
            counter(
                "kvscout_certificate_reads_total",
                &["outcome"],
                "Times that a changed certificate was read, by outcome: renewed, failed (the old one is shown on)",
            ),
        ],
    },
    Subject {
        name: "Audit",
        families: &[
            counter(
                "kvscout_reported_cached_tokens_total",
                ENDPOINT,
                "Tokens that endpoints reported as cached, by endpoint",
            ),
            counter(
                "kvscout_predictions_total",
                &["endpoint", "verdict"],
                "Predictions compared with a report, by endpoint and verdict: exact, over, under",
            ),
            histogram(
                "kvscout_prediction_error_tokens",
                ENDPOINT,
                "How many tokens predictions were off, either way, by endpoint; le=0 is exact",
            ),
            counter(
                "kvscout_prediction_errors_total",
                &["endpoint", "cause"],
                "Predictions that missed, by endpoint and cause: tokens_differ, salt, gap, expected, last_block, eviction_race, event_lag, unknown",
            ),
            counter(
                "kvscout_endpoint_mistrusted_total",
                ENDPOINT,
                "Times that an endpoint's predictions missed too often without an excuse, so that its picture was doubted and learnt again",
            ),
            counter(
                "kvscout_token_parity_total",
                &["model", "verdict"],
                "Requests whose token ids were compared with the events that followed, by model and verdict",
            ),
            gauge(
                "kvscout_model_prompts_doubtful",
                MODEL,
                "1 where a model's servers have often computed other tokens than we did, else 0",
            ),
        ],
    },
    Subject {
        name: "Endpoints",
        families: &[
            gauge(
                "kvscout_endpoint_trust",
                &["endpoint", "trust"],
                "1 for the trust that an endpoint's picture has, else 0",
            ),
            gauge(
                "kvscout_endpoint_blocks",
                ENDPOINT,
                "Different blocks that an endpoint's picture holds",
            ),
            gauge(
                "kvscout_endpoint_requests",
                ENDPOINT,
                "Requests placed and not ended, replicas' included, by endpoint; of several prompts or answers each counts",
            ),
            gauge(
                "kvscout_endpoint_queued_tokens",
                ENDPOINT,
                "Prefill tokens placed and not done, replicas' included, by endpoint",
            ),
            gauge(
                "kvscout_endpoint_pace",
                ENDPOINT,
                "Prompt tokens that an endpoint computes in a second, as measured; absent before that",
            ),
            gauge(
                "kvscout_endpoint_avoided",
                ENDPOINT,
                "1 for an endpoint that failed a moment ago and so comes last, else 0",
            ),
            gauge(
                "kvscout_endpoint_model_unknown",
                ENDPOINT,
                "Of an endpoint that says which model it reads prompts as (kvscout.io/model): 1 where that is none of models, so that its cache counts for nothing, else 0",
            ),
            gauge(
                "kvscout_endpoint_report_age_seconds",
                ENDPOINT,
                "Since an endpoint's own metrics were last read",
            ),
            gauge(
                "kvscout_endpoint_reported_requests",
                &["endpoint", "state"],
                "Requests that an endpoint itself counts, by endpoint and state (waiting, running)",
            ),
            gauge(
                "kvscout_endpoint_reported_kv_usage",
                ENDPOINT,
                "The share of an endpoint's KV cache that requests use, as it says, 0 to 1",
            ),
            gauge(
                "kvscout_endpoint_outside_requests",
                ENDPOINT,
                "Of the requests that an endpoint counts, those that neither we nor replicas placed; older reports count less",
            ),
            gauge(
                "kvscout_endpoint_outside_tokens",
                ENDPOINT,
                "Prefill tokens that the waiting ones of them stand for",
            ),
            gauge(
                "kvscout_endpoint_saturated",
                ENDPOINT,
                "1 for an endpoint that says more than load.queue_max or load.kv_usage_max, else 0",
            ),
            counter(
                "kvscout_scrape_failures_total",
                &["endpoint", "reason"],
                "Times that a server's load could not be read from its metrics, by endpoint and reason",
            ),
        ],
    },
    Subject {
        name: "Events",
        families: &[
            counter(
                "kvscout_event_batches_total",
                ENDPOINT,
                "Batches of KV events heard, by endpoint",
            ),
            counter(
                "kvscout_event_blocks_total",
                &["endpoint", "what"],
                "Blocks in KV events, by endpoint and what became of them: stored, removed, orphan, removed_unknown, elsewhere, unmodelled",
            ),
            histogram(
                "kvscout_event_lag_seconds",
                ENDPOINT,
                "From the engine's clock to our index, by endpoint",
            ),
            counter(
                "kvscout_event_gaps_total",
                ENDPOINT,
                "Times that batches of KV events were missing, by endpoint",
            ),
            counter(
                "kvscout_event_batches_missed_total",
                ENDPOINT,
                "Batches of KV events lost, by endpoint",
            ),
            counter(
                "kvscout_event_repairs_total",
                &["endpoint", "result"],
                "Replays that an endpoint was asked for, by result: whole (nothing is missing any more), partial, stranger (another process answered), relearnt (all was learnt again)",
            ),
            counter(
                "kvscout_event_errors_total",
                &["endpoint", "kind"],
                "Messages or events not understood, by endpoint and kind",
            ),
            gauge(
                "kvscout_event_queue_bytes",
                ENDPOINT,
                "Undecoded events that wait here, by endpoint",
            ),
            counter(
                "kvscout_event_batches_unclaimed_total",
                &[],
                "Messages of publishers that came to events.bind and belong to no endpoint",
            ),
            counter(
                "kvscout_pictures_forgotten_total",
                ENDPOINT,
                "Times that an endpoint's picture was thrown away",
            ),
            counter(
                "kvscout_pictures_doubted_total",
                ENDPOINT,
                "Times that all of an endpoint's picture became unsure, by endpoint",
            ),
        ],
    },
    Subject {
        name: "Index and caches",
        families: &[
            gauge(
                "kvscout_index_blocks",
                &[],
                "Different block keys in the index",
            ),
            gauge(
                "kvscout_index_pairs",
                &[],
                "(endpoint, engine hash) pairs in the index",
            ),
            gauge(
                "kvscout_index_bytes",
                &[],
                "Memory that the index takes; limits.index_bytes_max bounds it",
            ),
            counter(
                "kvscout_index_given_up_total",
                &[],
                "(endpoint, engine hash) pairs dropped to stay within limits.index_bytes_max",
            ),
            counter(
                "kvscout_token_cache_segments_total",
                &["model", "result"],
                "Segments of prompts looked up, by model and result; a miss is tokenized",
            ),
            counter(
                "kvscout_token_cache_text_bytes_total",
                &["model", "result"],
                "Bytes of prompts in them, by model and result",
            ),
            counter(
                "kvscout_token_cache_evictions_total",
                MODEL,
                "Segments that had to go for others, by model",
            ),
            gauge(
                "kvscout_token_cache_bytes",
                MODEL,
                "What a model's segment cache takes; limits.token_cache_bytes_max at most",
            ),
            gauge(
                "kvscout_token_cache_segments",
                MODEL,
                "Segments that a model's cache holds",
            ),
        ],
    },
    Subject {
        name: "Replicas",
        families: &[
            gauge(
                "kvscout_replica_peers",
                &[],
                "Other replicas that are heard",
            ),
            gauge(
                "kvscout_replica_requests",
                &[],
                "Requests that other replicas placed and that have not ended, as they tell",
            ),
            gauge(
                "kvscout_replica_oldest_word_seconds",
                &[],
                "Since the replica that has been silent for the longest was heard; past 5 it is forgotten",
            ),
            counter(
                "kvscout_replica_messages_total",
                &["direction", "kind"],
                "Messages between replicas, by direction (sent, received) and kind (deltas, full, ask, bye)",
            ),
            counter(
                "kvscout_replica_skipped_total",
                &["reason"],
                "Messages of replicas, or requests in them, that do not count, by reason",
            ),
            counter(
                "kvscout_replica_gaps_total",
                &[],
                "Times that words of a replica were lost on the way, or it was met amid its work",
            ),
        ],
    },
    Subject {
        name: "The process",
        families: &[
            gauge(
                "kvscout_build_info",
                &["version", "pool"],
                "1, by version and metrics.pool",
            ),
            gauge(
                "kvscout_model_loaded",
                MODEL,
                "1 for a model whose prompts can be read, else 0",
            ),
            counter(
                "kvscout_model_loads_total",
                MODEL,
                "Times that a model's files were loaded, by model; more than one is a reload",
            ),
            counter(
                "kvscout_model_load_failures_total",
                MODEL,
                "Times that a model's files could not be had or loaded, by model",
            ),
            counter(
                "kvscout_kubernetes_errors_total",
                &["kind"],
                "Times that a kind of resource could not be listed or watched, by kind; the last fleet serves on",
            ),
            gauge(
                "kvscout_decisions_kept_bytes",
                &[],
                "What recent decisions take; decisions.kept_bytes_max bounds it",
            ),
            counter(
                "kvscout_decision_log_lines_total",
                &["outcome"],
                "Lines of the decision log (decisions.log), by outcome: written, lost",
            ),
            counter(
                "kvscout_log_lines_lost_total",
                &[],
                "Lines of the log on standard error that were lost because its reader takes them too slowly, or not at all",
            ),
            counter(
                "kvscout_traces_total",
                &["outcome"],
                "Requests whose spans (tracing) were sent, failed (the collector did not take them) or dropped (the queue was full)",
            ),
        ],
    },
    Subject {
        name: "Inference extension's names",
        families: INFERENCE,
    },
];

/// What Gateway API's Inference Extension calls the same, for dashboards that exist; with
/// `metrics.inference_extension_names` alone. Names and labels are those of its `pkg/epp/metrics` of 2025.
const INFERENCE: &[Family] = &[
    counter(
        "inference_objective_request_total",
        MODELS,
        "Requests by model and target; * is a model that is not configured",
    ),
    counter(
        "inference_objective_request_error_total",
        &["model_name", "target_model_name", "error_code"],
        "Requests that failed, by model, target and status",
    ),
    histogram(
        "inference_objective_request_duration_seconds",
        MODELS,
        "From the choice to the end of the answer",
    ),
    histogram(
        "inference_objective_request_ttft_seconds",
        MODELS,
        "From the choice to the first bytes of a streamed answer",
    ),
    histogram(
        "inference_objective_normalized_time_per_output_token_seconds",
        MODELS,
        "From the choice to the end of the answer, for each of its tokens",
    ),
    histogram(
        "inference_objective_request_sizes",
        MODELS,
        "Bytes of requests' bodies, as far as they were seen before the choice",
    ),
    histogram(
        "inference_objective_response_sizes",
        MODELS,
        "Bytes of answers' bodies that were seen to their end",
    ),
    histogram(
        "inference_objective_input_tokens",
        MODELS,
        "Tokens of prompts, as servers report them",
    ),
    histogram(
        "inference_objective_output_tokens",
        MODELS,
        "Tokens of answers, as servers report them",
    ),
    histogram(
        "inference_objective_prompt_cached_tokens",
        MODELS,
        "Tokens of prompts found cached, as servers report them",
    ),
    gauge(
        "inference_objective_running_requests",
        &["model_name"],
        "Requests placed and not ended",
    ),
    counter(
        "inference_model_request_total",
        MODELS,
        "inference_objective_request_total's name before 1.0",
    ),
    counter(
        "inference_model_request_error_total",
        &["model_name", "target_model_name", "error_code"],
        "inference_objective_request_error_total's name before 1.0",
    ),
    histogram(
        "inference_model_request_duration_seconds",
        MODELS,
        "inference_objective_request_duration_seconds' name before 1.0",
    ),
    gauge(
        "inference_pool_average_kv_cache_utilization",
        &["name"],
        "The mean share of KV caches that requests use, 0 to 1",
    ),
    gauge(
        "inference_pool_average_queue_size",
        &["name"],
        "The mean of requests that wait at servers",
    ),
    gauge(
        "inference_pool_per_pod_queue_size",
        &["name", "model_server_pod"],
        "Requests that wait at each server",
    ),
    gauge(
        "inference_pool_ready_pods",
        &["name"],
        "Endpoints that may be chosen",
    ),
    histogram(
        "inference_extension_scheduler_e2e_duration_seconds",
        &[],
        "kvscout_decision_seconds",
    ),
    counter(
        "inference_extension_scheduler_attempts_total",
        &["status", "pod_name"],
        "Requests placed, by endpoint; status is success",
    ),
    gauge(
        "inference_extension_flow_control_queue_size",
        &["inference_pool"],
        "kvscout_admission_waiting",
    ),
    histogram(
        "inference_extension_flow_control_request_queue_duration_seconds",
        &["inference_pool", "outcome"],
        "kvscout_admission_wait_seconds",
    ),
    gauge(
        "inference_extension_flow_control_pool_saturation",
        &["inference_pool"],
        "The mean over endpoints of the larger of waiting requests / load.queue_max and cache in use / load.kv_usage_max; from 1 on the pool is full",
    ),
    gauge(
        "inference_extension_prefix_indexer_size",
        &[],
        "kvscout_index_pairs",
    ),
    histogram(
        "inference_extension_prefix_indexer_hit_ratio",
        &[],
        "kvscout_matching_ratio",
    ),
    gauge(
        "inference_extension_info",
        &["commit", "build_ref"],
        "1, by version",
    ),
];

/// Every family of every subject.
pub fn all() -> impl Iterator<Item = &'static Family> {
    SUBJECTS.iter().flat_map(|subject| subject.families)
}

/// The family of a series, by the series' name: of a histogram there are three, with endings.
#[must_use]
pub fn of_series(name: &str) -> Option<&'static Family> {
    all().find(|family| {
        let ending = name.strip_prefix(family.name);
        match family.kind {
            Kind::Histogram => matches!(ending, Some("_bucket" | "_sum" | "_count")),
            Kind::Counter | Kind::Gauge => ending == Some(""),
        }
    })
}

/// The page that documents them: `docs/metrics.md`.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         What `/metrics` on the admin port tells, in Prometheus' text format. Made by `make metrics-page` from\n\
         `src/metrics/families.rs`; a test holds the two in step.\n\n\
         Labels are bounded: `endpoint` is a name of the fleet's, `model` one of the configuration's or of the\n\
         model rules', and all others are words of kvscout's own. `pool` of `kvscout_requests_total` is the\n\
         request's InferencePool: one of those served (64 in a process's life, then `other`), `unknown` where\n\
         several could be meant, and `metrics.pool` where a file says who serves; so is the inference extension's\n\
         `name`. Gauges are as of the scrape; those of an endpoint that left are gone a minute later.\n",
    );
    for subject in SUBJECTS {
        page.push_str(&format!("\n## {}\n\n", subject.name));
        if subject.name.starts_with("Inference") {
            page.push_str("With `metrics.inference_extension_names: true` alone.\n\n");
        }
        page.push_str("| name | kind | labels | what it says |\n|---|---|---|---|\n");
        for family in subject.families {
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let labels: Vec<String> = family.labels.iter().map(|l| format!("`{l}`")).collect();
            let (name, labels, help) = (family.name, labels.join(", "), family.help);
            page.push_str(&format!("| `{name}` | {kind} | {labels} | {help} |\n"));
        }
    }
    page
}
