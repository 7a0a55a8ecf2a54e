//! The fleet and its surroundings.

use super::churn::Change;
use crate::engine::EngineConfig;
use crate::timing::Timing;

/// The fleet and its surroundings.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Pods at the start.
    pub pods: usize,
    /// Router replicas; requests are dealt to them in turn.
    pub routers: usize,
    /// kvscout's routers tell each other what they placed, as over NATS.
    pub sharing: bool,
    /// Each pod's engine.
    pub engine: EngineConfig,
    /// Each pod's speed.
    pub timing: Timing,
    /// How long half of the events take at most, in seconds.
    pub event_delay: f64,
    /// How much delays differ: the standard deviation of their logarithm.
    pub event_jitter: f64,
    /// The share of batches that do not arrive.
    pub event_loss: f64,
    /// Lost batches are asked for when the next one shows the gap, as vLLM's replay socket lets us.
    pub event_replay: bool,
    /// What changes meanwhile.
    pub changes: Vec<Change>,
    /// Requests per second that come past the routers, to any pod.
    pub outside: f64,
    /// Of everything that is drawn.
    pub seed: u64,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            pods: 8,
            routers: 1,
            sharing: true,
            engine: EngineConfig {
                // 307,328 tokens, as in llm-d's published set-up of two H100 a pod.
                num_gpu_blocks: 19_209,
                max_num_batched_tokens: 8192,
                ..EngineConfig::default()
            },
            timing: Timing::default(),
            event_delay: 0.005,
            event_jitter: 0.5,
            event_loss: 0.0,
            event_replay: true,
            changes: Vec::new(),
            outside: 0.0,
            seed: 0,
        }
    }
}
