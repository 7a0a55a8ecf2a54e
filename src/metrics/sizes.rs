//! Sizes, which are read when somebody looks.

use std::time::Duration;

use super::Metrics;

impl Metrics {
    /// Sizes, read when somebody looks.
    pub fn observe(&self, sizes: &Sizes<'_>) {
        let (version, pool) = (env!("CARGO_PKG_VERSION"), &*self.pool);
        self.gauge(
            "kvscout_build_info",
            &[("version", version), ("pool", pool)],
        )
        .set(1.0);
        self.gauge("kvscout_index_blocks", &[])
            .set(sizes.index_blocks as f64);
        self.gauge("kvscout_index_pairs", &[])
            .set(sizes.index_pairs as f64);
        self.gauge("kvscout_index_bytes", &[])
            .set(sizes.index_bytes as f64);
        self.counter("kvscout_index_given_up_total", &[])
            .absolute(sizes.index_given_up);
        self.gauge("kvscout_tokenizer_waiting", &[])
            .set(sizes.tokenizer_waiting as f64);
        self.gauge("kvscout_tokenizer_working", &[])
            .set(sizes.tokenizer_working as f64);
        for one in &sizes.models {
            self.observe_model(one);
        }
        for one in &sizes.parity {
            let by = [("model", one.name)];
            for (verdict, count) in [
                ("agree", one.agree),
                ("differ", one.differ),
                ("unjudged", one.unjudged),
            ] {
                let by = [by[0], ("verdict", verdict)];
                self.counter("kvscout_token_parity_total", &by)
                    .absolute(count);
            }
            let doubtful = if one.prompts_doubtful { 1.0 } else { 0.0 };
            self.gauge("kvscout_model_prompts_doubtful", &by)
                .set(doubtful);
        }
        for one in &sizes.endpoints {
            self.observe_endpoint(one);
        }
        if let Some(names) = &self.inference {
            names.observe(self, sizes);
        }
    }

    fn observe_endpoint(&self, one: &EndpointSizes<'_>) {
        let by = [("endpoint", one.name)];
        self.gauge("kvscout_endpoint_requests", &by)
            .set(f64::from(one.requests));
        self.gauge("kvscout_endpoint_queued_tokens", &by)
            .set(one.queued_tokens as f64);
        self.gauge("kvscout_endpoint_blocks", &by)
            .set(one.blocks as f64);
        for trust in ["live", "learning", "doubtful", "silent"] {
            let held = if trust == one.trust { 1.0 } else { 0.0 };
            self.gauge("kvscout_endpoint_trust", &[by[0], ("trust", trust)])
                .set(held);
        }
        self.gauge("kvscout_endpoint_avoided", &by)
            .set(if one.avoided { 1.0 } else { 0.0 });
        if let Some(unknown) = one.model_unknown {
            self.gauge("kvscout_endpoint_model_unknown", &by)
                .set(if unknown { 1.0 } else { 0.0 });
        }
        if let Some(pace) = one.pace {
            self.gauge("kvscout_endpoint_pace", &by).set(pace);
        }
        let Some(said) = &one.said else { return };
        self.gauge("kvscout_endpoint_report_age_seconds", &by)
            .set(said.age.as_secs_f64());
        for (state, requests) in [("waiting", said.waiting), ("running", said.running)] {
            let by = [by[0], ("state", state)];
            self.gauge("kvscout_endpoint_reported_requests", &by)
                .set(f64::from(requests));
        }
        if let Some(usage) = said.kv_usage {
            self.gauge("kvscout_endpoint_reported_kv_usage", &by)
                .set(usage);
        }
        self.gauge("kvscout_endpoint_outside_requests", &by)
            .set(f64::from(said.outside_requests));
        self.gauge("kvscout_endpoint_outside_tokens", &by)
            .set(said.outside_tokens as f64);
        self.gauge("kvscout_endpoint_saturated", &by)
            .set(if said.saturated { 1.0 } else { 0.0 });
    }

    fn observe_model(&self, one: &ModelSizes<'_>) {
        let (by, cache) = ([("model", one.name)], &one.cache);
        self.gauge("kvscout_model_loaded", &by)
            .set(if one.loaded { 1.0 } else { 0.0 });
        self.gauge("kvscout_token_cache_bytes", &by)
            .set(cache.bytes as f64);
        self.gauge("kvscout_token_cache_segments", &by)
            .set(cache.entries as f64);
        for (result, segments, bytes) in [
            ("hit", cache.hits, cache.hit_bytes),
            ("miss", cache.misses, cache.missed_bytes),
        ] {
            let by = [by[0], ("result", result)];
            self.counter("kvscout_token_cache_segments_total", &by)
                .absolute(segments);
            self.counter("kvscout_token_cache_text_bytes_total", &by)
                .absolute(bytes);
        }
        self.counter("kvscout_token_cache_evictions_total", &by)
            .absolute(cache.evictions);
    }
}

/// Sizes as of a scrape.
#[derive(Debug, Default)]
pub struct Sizes<'a> {
    /// Different block keys.
    pub index_blocks: usize,
    /// (endpoint, engine hash) pairs.
    pub index_pairs: usize,
    /// Memory of the index.
    pub index_bytes: usize,
    /// Pairs that were dropped to stay within it.
    pub index_given_up: u64,
    /// Long prompts that wait to be read.
    pub tokenizer_waiting: usize,
    /// Long prompts that are being read.
    pub tokenizer_working: usize,
    /// One per configured model.
    pub models: Vec<ModelSizes<'a>>,
    /// The fleet's pools; none where a file says who serves.
    pub pools: Vec<&'a str>,
    /// One per endpoint of the fleet.
    pub endpoints: Vec<EndpointSizes<'a>>,
    /// One per configured model or adapter name.
    pub parity: Vec<ParitySizes<'a>>,
}

/// One model as of a scrape.
#[derive(Debug)]
pub struct ModelSizes<'a> {
    /// Its first name.
    pub name: &'a str,
    /// Whether its prompts can be read.
    pub loaded: bool,
    /// Its segment cache.
    pub cache: CacheSizes,
}

/// A segment cache as of now. Counts outlive a reload of the tokenizer; what it holds does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheSizes {
    /// Segments held.
    pub entries: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Segments found.
    pub hits: u64,
    /// Bytes of text in them.
    pub hit_bytes: u64,
    /// Segments tokenized.
    pub misses: u64,
    /// Bytes of text in them.
    pub missed_bytes: u64,
    /// Segments that had to go for others.
    pub evictions: u64,
}

/// What came of one model's token parity by the time of a scrape.
#[derive(Debug)]
pub struct ParitySizes<'a> {
    /// The configured name.
    pub name: &'a str,
    /// Requests whose tokens were the server's.
    pub agree: u64,
    /// Requests whose tokens were not.
    pub differ: u64,
    /// Requests of which nobody knows.
    pub unjudged: u64,
    /// Too many of the last ones differed.
    pub prompts_doubtful: bool,
}

/// One endpoint as of a scrape.
#[derive(Debug)]
pub struct EndpointSizes<'a> {
    /// The endpoint's name.
    pub name: &'a str,
    /// The pools that it is of.
    pub pools: Vec<&'a str>,
    /// The word for its trust.
    pub trust: &'static str,
    /// Requests placed and not ended.
    pub requests: u32,
    /// Prefill tokens placed and not done.
    pub queued_tokens: u64,
    /// Different blocks that its picture holds.
    pub blocks: usize,
    /// Prompt tokens that it computes in a second, if that is known.
    pub pace: Option<f64>,
    /// It failed a moment ago.
    pub avoided: bool,
    /// The model that it says it reads prompts as is none of ours; none where it says none.
    pub model_unknown: Option<bool>,
    /// What it said of its load itself, if it did.
    pub said: Option<SaidSizes>,
}

/// What an endpoint last said of its load.
#[derive(Debug, Clone, Copy)]
pub struct SaidSizes {
    /// How long ago.
    pub age: Duration,
    /// Requests waiting there.
    pub waiting: u32,
    /// Requests running there.
    pub running: u32,
    /// The share of its KV cache in use, 0 to 1.
    pub kv_usage: Option<f64>,
    /// Requests that were not placed here.
    pub outside_requests: u32,
    /// What they have to prefill.
    pub outside_tokens: u64,
    /// It is past a threshold.
    pub saturated: bool,
    /// How far it is to the threshold that it is nearest to: 1 where it is there.
    pub fullness: f64,
}
