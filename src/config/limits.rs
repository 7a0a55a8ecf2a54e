//! What bounds a request.

use super::yaml::Section;

/// Thirty million tokens of text and their ids: the working set of some thousand conversations.
pub const TOKEN_CACHE_BYTES_MAX: u64 = 256 << 20;

/// What bounds a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request body that are held and scored; longer ones go by load.
    pub body_bytes_max: usize,
    /// Bytes of bodies that all requests together hold; past it they are not read.
    pub held_bytes_max: usize,
    /// Milliseconds from whole body to choice; then it goes by load.
    pub decision_ms_max: u64,
    /// Requests whose bodies are read at once; more go by load.
    pub exchanges_max: usize,
    /// Requests that are open at once, their answers included; more are refused.
    pub streams_max: usize,
    /// Connections of each port at once; more are refused.
    pub connections_max: usize,
    /// Milliseconds from headers to whole body; then it goes by load.
    pub body_ms_max: u64,
    /// Milliseconds in which nothing is said, either way; then the conversation is ended.
    pub silence_ms_max: u64,
    /// Milliseconds that everything has waited for a core lately; then new requests are refused.
    pub core_wait_ms_max: u64,
    /// Long texts that wait for the tokenizer; more go by load.
    pub tokenizer_queue_max: usize,
    /// Bytes that each model's segment cache may take; 0 turns it off.
    pub token_cache_bytes_max: u64,
    /// Milliseconds that one waits; then it goes by load.
    pub tokenizer_wait_ms_max: u64,
    /// Bytes that the index may take; past it the prompts that nobody extended for the longest are
    /// given up, and the endpoints that held them are `doubtful`.
    pub index_bytes_max: usize,
    /// Milliseconds from "not ready" to the first refusal after SIGTERM.
    pub drain_notice_ms: u64,
    /// Milliseconds that running exchanges then get to end.
    pub drain_ms_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 64 << 20,
            held_bytes_max: 1 << 30,
            decision_ms_max: 5_000,
            exchanges_max: 10_000,
            // Eight kilobytes each without their bodies: 240 MB.
            streams_max: 30_000,
            // Envoy has one a worker thread: a hundred machines of ten.
            connections_max: 1_024,
            body_ms_max: 10_000,
            silence_ms_max: 3_600_000,
            core_wait_ms_max: 500,
            tokenizer_queue_max: 256,
            token_cache_bytes_max: TOKEN_CACHE_BYTES_MAX,
            // A miss costs the prefill of a few thousand tokens, some 100 ms: a longer
            // wait would cost more than it can save.
            tokenizer_wait_ms_max: 50,
            // 512 endpoints of 150,000 blocks.
            index_bytes_max: 4 << 30,
            drain_notice_ms: 5_000,
            drain_ms_max: 30_000,
        }
    }
}

pub(super) fn read(limits: &mut Section<'_>) -> Limits {
    let defaults = Limits::default();
    Limits {
        body_bytes_max: limits.within(
            "body_bytes_max",
            (1 << 10, 1 << 30),
            defaults.body_bytes_max,
        ),
        held_bytes_max: limits.within(
            "held_bytes_max",
            (1 << 20, 1 << 40),
            defaults.held_bytes_max,
        ),
        decision_ms_max: limits.within("decision_ms_max", (1, 600_000), defaults.decision_ms_max),
        exchanges_max: limits.within("exchanges_max", (1, 1_000_000), defaults.exchanges_max),
        streams_max: limits.within("streams_max", (1, 1_000_000), defaults.streams_max),
        connections_max: limits.within("connections_max", (1, 100_000), defaults.connections_max),
        body_ms_max: limits.within("body_ms_max", (1, 3_600_000), defaults.body_ms_max),
        silence_ms_max: limits.within(
            "silence_ms_max",
            (1_000, 86_400_000),
            defaults.silence_ms_max,
        ),
        core_wait_ms_max: limits.within(
            "core_wait_ms_max",
            (20, 600_000),
            defaults.core_wait_ms_max,
        ),
        tokenizer_queue_max: limits.within(
            "tokenizer_queue_max",
            (0, 100_000),
            defaults.tokenizer_queue_max,
        ),
        index_bytes_max: limits.within(
            "index_bytes_max",
            (16 << 20, 1 << 40),
            defaults.index_bytes_max,
        ),
        token_cache_bytes_max: limits.within(
            "token_cache_bytes_max",
            (0, 1 << 40),
            defaults.token_cache_bytes_max,
        ),
        tokenizer_wait_ms_max: limits.within(
            "tokenizer_wait_ms_max",
            (0, 600_000),
            defaults.tokenizer_wait_ms_max,
        ),
        drain_notice_ms: limits.within("drain_notice_ms", (0, 600_000), defaults.drain_notice_ms),
        drain_ms_max: limits.within("drain_ms_max", (0, 3_600_000), defaults.drain_ms_max),
    }
}
