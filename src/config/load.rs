//! What servers say of their own load, and what we make of it.

use super::yaml::Section;

/// How it is read, and when a server has too much of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Milliseconds between two readings of a server's metrics; 0 turns them off.
    pub scrape_interval_ms: u64,
    /// Where they are, on the port that serves.
    pub scrape_path: String,
    /// Or on this one.
    pub scrape_port: Option<u16>,
    /// When a server is saturated.
    pub saturation: Saturation,
}

/// A server that says more than one of these is saturated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Saturation {
    /// Requests that wait there.
    pub queue_max: u32,
    /// The share of its KV cache that requests use, 0 to 1.
    pub kv_usage_max: f64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            scrape_interval_ms: 1_000,
            scrape_path: "/metrics".to_owned(),
            scrape_port: None,
            // As the Gateway API inference extension has them, whose users know them
            // (DefaultQueueDepthThreshold and DefaultKVCacheUtilThreshold of its
            // pkg/epp/saturationdetector/config.go).
            saturation: Saturation {
                queue_max: 5,
                kv_usage_max: 0.8,
            },
        }
    }
}

/// A page of 60 KB, fifty times a second, is what a server's frontend may well be spared.
const INTERVAL_MS: (u64, u64) = (20, 60_000);

pub(super) fn read(load: &mut Section<'_>) -> Load {
    let defaults = Load::default();
    let scrape_path = load.get("scrape_path", defaults.scrape_path);
    if !scrape_path.starts_with('/') || scrape_path.contains(char::is_whitespace) {
        let problem = format!("{scrape_path:?} is not a path, as /metrics");
        load.complain("scrape_path", problem);
    }
    let (min, max) = INTERVAL_MS;
    let scrape_interval_ms = load.get("scrape_interval_ms", defaults.scrape_interval_ms);
    if scrape_interval_ms != 0 && !(min..=max).contains(&scrape_interval_ms) {
        let problem = format!("{scrape_interval_ms} is not within {min} and {max}, nor 0 for off");
        load.complain("scrape_interval_ms", problem);
    }
    let scrape_port = load.optional("scrape_port");
    if scrape_port == Some(0) {
        load.complain(
            "scrape_port",
            "0 is no port: leave it out for the serving one",
        );
    }
    let Saturation {
        queue_max,
        kv_usage_max,
    } = defaults.saturation;
    Load {
        scrape_interval_ms,
        scrape_path,
        scrape_port,
        saturation: Saturation {
            queue_max: load.within("queue_max", (0, 1_000_000), queue_max),
            kv_usage_max: load.within("kv_usage_max", (0.0, 1.0), kv_usage_max),
        },
    }
}
