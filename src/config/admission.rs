//! What happens where all endpoints are saturated, as far as an operator decides it.

use super::yaml::Section;

/// Who waits and who is refused where all endpoints are saturated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// Prefill tokens that this process placed at an endpoint and that are not done; with more it is
    /// saturated. 0: never by this.
    pub queued_tokens_max: u64,
    /// Requests that wait at once; 0: none, they go on instead.
    pub queue_max: usize,
    /// Milliseconds that one waits; then it goes on.
    pub wait_ms_max: u64,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            // llm-d's concurrency detector has the same; a minute or more of any server's work. Less
            // would be wrong of answers that do not stream: their prompts count to the end.
            queued_tokens_max: 1_000_000,
            queue_max: 1_000,
            // With the decision, half of the time that the example gives Envoy.
            wait_ms_max: 10_000,
        }
    }
}

pub(super) fn read(admission: &mut Section<'_>) -> Admission {
    let defaults = Admission::default();
    Admission {
        queued_tokens_max: admission.within(
            "queued_tokens_max",
            (0, 1 << 40),
            defaults.queued_tokens_max,
        ),
        queue_max: admission.within("queue_max", (0, 1_000_000), defaults.queue_max),
        wait_ms_max: admission.within("wait_ms_max", (0, 600_000), defaults.wait_ms_max),
    }
}
