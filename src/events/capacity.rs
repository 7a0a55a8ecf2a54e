//! How many blocks an engine has, as its own metrics say: what it cannot hold is not held.

use std::net::SocketAddr;
use std::time::Duration;

use crate::ask;
use crate::fleet::report;

/// From question to the whole answer; an engine's loop is not in its way.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Some hundred kilobytes, and more with many adapters.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Asks a server; none where it does not say.
pub async fn of(address: SocketAddr) -> Option<u64> {
    let url = format!("http://{address}/metrics");
    match ask::get(&url, ANSWER_MAX, ANSWER_BYTES_MAX).await {
        Ok(body) => read(&String::from_utf8_lossy(&body)),
        Err(error) => {
            tracing::debug!(url, error = ?error.to_string(), "num_gpu_blocks is not known");
            None
        }
    }
}

/// Copies that an engine's own cache holds at most, of its `/metrics` text; none where it does not
/// say. Of several ranks behind one port the largest counts: they are configured alike.
fn read(metrics: &str) -> Option<u64> {
    let samples = report::samples(metrics, |family| family == report::CACHE_CONFIG);
    let blocks = samples.filter_map(|sample| sample.cache_blocks());
    blocks.reduce(f64::max).map(|blocks| blocks as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_null_block_is_none() {
        let text = "# TYPE vllm:cache_config_info gauge\n\
            vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"96\"} 1.0\n\
            vllm:cache_config_info{engine=\"1\",num_gpu_blocks=\"97\",x=\"y\"} 1.0\n\
            vllm:kv_cache_usage_perc{engine=\"0\"} 0.0\n";
        assert_eq!(read(text), Some(96));
    }

    #[test]
    fn what_is_not_said_is_not_guessed() {
        for text in [
            "",
            "vllm:cache_config_info{block_size=\"16\"} 1.0",
            "vllm:cache_config_info{num_gpu_blocks=\"None\"} 1.0",
            "vllm:cache_config_info{num_gpu_blocks=\"0\"} 1.0",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
