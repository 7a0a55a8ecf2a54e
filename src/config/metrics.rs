//! How metrics are named.

use super::yaml::Section;

/// What an operator decides of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// The label `pool`, and the inference extension's `name`.
    pub pool: String,
    /// Also emit what Gateway API's Inference Extension calls the same.
    pub inference_extension_names: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            pool: "default".to_owned(),
            inference_extension_names: false,
        }
    }
}

/// `pool` is that of the events where nothing else is said.
pub(super) fn read(metrics: &mut Section<'_>, pool: &str) -> Metrics {
    let defaults = Metrics::default();
    Metrics {
        pool: metrics.get("pool", pool.to_owned()),
        inference_extension_names: metrics.get(
            "inference_extension_names",
            defaults.inference_extension_names,
        ),
    }
}
