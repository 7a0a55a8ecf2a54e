//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::compare;
use crate::decisions;
use crate::demo;
use crate::engine::{EngineConfig, FreeOrder};
use crate::events::{EventConfig, Faults, Layout};
use crate::load;
use crate::qa;
use crate::server::Config;
use crate::soak;
use crate::timing::Timing;

/// vLLM made of numbers: servers, a load, and a demo, without a GPU
#[derive(Debug, Parser)]
#[command(name = "kvscout-sim", version)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What the simulator can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve vLLM's HTTP API and KV cache events from a simulated engine
    ///
    /// The block pool follows vLLM's rules copy by copy: which blocks a prompt finds, which are
    /// evicted, and the events that say so. Answers are deterministic words. When everything
    /// listens, one line of JSON tells where:
    ///
    ///   {"http": "http://127.0.0.1:8000", "events": "tcp://0.0.0.0:5557", "replay": null}
    ///
    /// What goes wrong (--fault-*, --replay-batches) can be changed while it runs:
    ///
    ///   POST /sim/faults {"drop": 0.1, "replay": "dead"}   what is not named goes well
    ///   POST /sim/restart {"change_ports": true}           another process: no blocks, batches
    ///                                                      from 0, other hashes, other ports
    ///   POST /reset_prefix_cache                           as vLLM's; told with the next step
    ///   GET /sim/blocks, /sim/blocks/RANK                  what is held
    ///   GET /kv_event_sources                              where events are now
    ///
    /// Example: a small, slow server with replay, on free ports
    ///
    ///   kvscout-sim serve --port 0 --num-gpu-blocks 512 --prefill-rate 4000
    ///     --kv-events-endpoint 'tcp://*:0' --kv-events-replay-endpoint 'tcp://*:0'
    #[command(verbatim_doc_comment)]
    Serve(Box<Serve>),
    /// Send conversations to any OpenAI endpoint and time their first tokens
    ///
    /// Users share a system prompt and keep a history into which the answers go. Requests start
    /// at a fixed gap, users taking turns. Exit status 1 if any request failed.
    Load(load::command::Args),
    /// Run production-stack's multi-round QA benchmark against any OpenAI endpoint
    ///
    /// The workload, flags, table and summary lines of its multi-round-qa.py, with percentiles,
    /// the share of cached prompt tokens and errors below. A request without a first token is in
    /// no mean, but counted. Ctrl-C waits for what is under way, prints the summary and writes
    /// the table; a second one does not wait. Exit status 1 if any request failed.
    ///
    /// Example: the first of production-stack's published settings
    ///
    ///   kvscout-sim multi-round-qa --num-users 320 --num-rounds 10 --qps 0.1
    ///     --shared-system-prompt 1000 --user-history-prompt 20000 --answer-len 100
    ///     --time 100 --model /model/qwen --base-url http://localhost:8081/v1
    #[command(verbatim_doc_comment)]
    MultiRoundQa(Box<qa::command::Args>),
    /// Run multi-round-qa through Envoy, plain and routed, beside production-stack's figures
    ///
    /// Four simulated servers, kvscout and Envoy, on the parameters that production-stack
    /// published: 8 users, 15 rounds, 0.1 requests/s for 600 s, ten times compressed. Ends by
    /// itself in two and a half minutes. Exit status 1 if a request failed, or if the routed mean
    /// TTFT is above the published one.
    BenchQa(qa::mission::Args),
    /// Time kvscout's decisions over ext_proc as Envoy asks for them, and through Envoy
    ///
    /// Conversations of 1,000 to 100,000 tokens, each asked one new question after the other, over TLS
    /// and full-duplex bodies, at four simulated servers that answer. CPU time is kvscout's alone, from
    /// /proc, with as many requests as go at once; latencies are of half as many, and beside them stand those
    /// of a picker that reads nothing.
    #[command(args_override_self = true)]
    BenchDecision(decisions::command::Args),
    /// Keep kvscout under load for an hour while pods, adapters, vocabularies and certificates come and go
    ///
    /// Asks as bench-decision does, conversations of 1,000 to 32,000 tokens, at a share of what went at once
    /// in the first half minute. Exit status 1, with the reason, where a request failed, a prediction that
    /// claimed certainty was wrong, a stream stayed open, or memory, descriptors, threads, latency or the
    /// events' lag grew: the median of the last quarter is held against that of the second.
    #[command(args_override_self = true)]
    Soak(soak::command::Args),
    /// Show kvscout at work: four servers, Envoy, a chat of two rounds, a load
    ///
    /// Ends by itself in about a minute and a half, and leaves nothing running. Exit status 1 if
    /// a prediction of the chat is not what its server reports, or if requests that kvscout
    /// routes do not get their first token sooner on average.
    Demo(demo::Args),
    /// Compare routing policies in virtual time, on simulated pods: no GPU, no sockets, no waiting
    ///
    /// Every policy gets the same requests and the same pods. kvscout's index and choice are the
    /// ones that serve; the oracle is the same choice with instant knowledge of every cache. The
    /// table says how long first tokens took, what the caches spared, and how evenly load lay.
    ///
    /// Example: where do policies part as load grows? (a few seconds)
    ///
    ///   kvscout-sim compare --workload groups --rate 10 20 --seconds 60
    ///
    /// Example: a published trace, twice as fast, four routers, one pod dying; a report to read
    ///
    ///   kvscout-sim compare --workload mooncake --trace conversation.jsonl.zst --rate 6.8
    ///     --routers 4 --change 60:reset:0 --html report.html
    #[command(verbatim_doc_comment, args_override_self = true)]
    Compare(Box<compare::command::Args>),
}

/// The flags of `serve`; those that vLLM has too are named as there.
#[derive(Debug, Args)]
pub struct Serve {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes any free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Name the model is served by
    #[arg(long, default_value = "sim")]
    model: String,
    /// Folder with tokenizer.json and the chat template; without it, a toy tokenizer whose ids
    /// nothing else knows
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// LoRA adapters, each a model name of its own
    #[arg(long, value_name = "NAME", num_args = 1..)]
    lora_modules: Vec<String>,
    /// Longest prompt with its answer, in tokens; by default what the blocks can hold
    #[arg(long, value_name = "TOKENS")]
    max_model_len: Option<usize>,
    /// Length of an answer whose request sets no limit, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    answer_tokens: usize,
    /// Whether usage tells prompt_tokens_details.cached_tokens
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true",
          action = clap::ArgAction::Set)]
    enable_prompt_tokens_details: bool,
    /// Engines behind the one port, each with a cache of its own. X-data-parallel-rank names one;
    /// ports of events and replay are one higher for each, but for port 0
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    data_parallel_size: u32,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    speed: SpeedArgs,
    #[command(flatten)]
    events: EventArgs,
    #[command(flatten, next_help_heading = "What goes wrong with events")]
    faults: Faults,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
struct EngineArgs {
    /// Tokens in each block
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    block_size: usize,
    /// Blocks in the KV cache; requests can have one less, as in vLLM
    #[arg(long, value_name = "N", default_value_t = 4096)]
    num_gpu_blocks: u32,
    /// Tokens computed per step at most; longer prompts are computed in chunks
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    max_num_batched_tokens: usize,
    /// Requests in a batch at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_num_seqs: usize,
    /// Seeds the block hashes; random by default, in every process, since no two engines name
    /// blocks alike
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

#[derive(Debug, Args)]
#[command(
    next_help_heading = "Speed: a step lasts overhead + prompt tokens / prefill rate + answer tokens / decode rate"
)]
struct SpeedArgs {
    /// Prompt tokens computed per second
    #[arg(long, value_name = "TOK/S", default_value_t = 20_000.0)]
    prefill_rate: f64,
    /// Answer tokens computed per second, over the whole batch
    #[arg(long, value_name = "TOK/S", default_value_t = 5_000.0)]
    decode_rate: f64,
    /// What each step costs besides
    #[arg(long, value_name = "MS", default_value_t = 8.0)]
    step_overhead_ms: f64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "KV cache events")]
struct EventArgs {
    /// Where to publish events, as 'tcp://*:5557'; without it, none are
    #[arg(long, value_name = "ENDPOINT")]
    kv_events_endpoint: Option<String>,
    /// Where missed events can be asked for, as 'tcp://*:5558'
    #[arg(long, value_name = "ENDPOINT", requires = "kv_events_endpoint")]
    kv_events_replay_endpoint: Option<String>,
    /// First frame of every message [default: kv@HOST:PORT@MODEL]
    #[arg(long, value_name = "TEXT")]
    kv_events_topic: Option<String>,
    /// Spelling of events: map since vLLM 0.24, array before (then the pool frees partly
    /// filled blocks in the order of those versions too)
    #[arg(long, value_enum, default_value_t = Layout::Map)]
    events_layout: Layout,
    /// Data-parallel rank in every batch; of several the first
    #[arg(long, value_name = "RANK", default_value_t = 0)]
    data_parallel_rank: u32,
}

impl Serve {
    /// The server that the flags describe. `random` seeds the hashes unless `--seed` does.
    #[must_use]
    pub fn config(self, random: u64) -> Config {
        let listen = std::net::SocketAddr::new(self.host, self.port).to_string();
        let layout = self.events.events_layout;
        let seed_drawn = self.engine.seed.is_none();
        Config {
            listen,
            model: self.model,
            tokenizer: self.tokenizer,
            adapters: self.lora_modules,
            max_model_len: self.max_model_len,
            answer_tokens: self.answer_tokens.max(1),
            prompt_tokens_details: self.enable_prompt_tokens_details,
            data_parallel_size: self.data_parallel_size,
            engine: self.engine.config(layout, random),
            seed_drawn,
            timing: self.speed.timing(),
            events: self.events.config(),
            faults: self.faults,
        }
    }
}

impl EventArgs {
    fn config(self) -> Option<EventConfig> {
        Some(EventConfig {
            endpoint: self.kv_events_endpoint?,
            replay_endpoint: self.kv_events_replay_endpoint,
            topic: self.kv_events_topic,
            layout: self.events_layout,
            rank: self.data_parallel_rank,
        })
    }
}

impl EngineArgs {
    fn config(self, layout: Layout, random: u64) -> EngineConfig {
        EngineConfig {
            block_size: self.block_size,
            num_gpu_blocks: self.num_gpu_blocks,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_num_seqs: self.max_num_seqs,
            hash_seed: self.seed.unwrap_or(random),
            free_order: match layout {
                Layout::Map => FreeOrder::UnhashedFirst,
                Layout::Array => FreeOrder::Lru,
            },
        }
    }
}

impl SpeedArgs {
    fn timing(self) -> Timing {
        let overhead = Duration::try_from_secs_f64(self.step_overhead_ms / 1000.0);
        Timing {
            step_overhead: overhead.unwrap_or(Duration::ZERO),
            prefill_rate: self.prefill_rate,
            decode_rate: self.decode_rate,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn serve(flags: &str) -> Config {
        let line = format!("kvscout-sim serve {flags}");
        match Cli::parse_from(line.split_whitespace()).command {
            Command::Serve(flags) => flags.config(7),
            _ => panic!("it serves"),
        }
    }

    #[test]
    fn every_flag_has_a_name_of_its_own() {
        Cli::command().debug_assert();
        let config = serve("--seed 3 --fault-seed 5");
        assert_eq!((config.engine.hash_seed, config.faults.seed), (3, 5));
        assert!(!config.seed_drawn);
    }

    /// `make heap-profile FLAGS="--seconds 60"` has a soak of its own length.
    #[test]
    fn what_make_is_told_may_repeat_its_own_flags() {
        for line in [
            "soak --seconds 600 --seconds 60",
            "bench-decision --seconds 4 --seconds 6",
            "compare --html docs/policies.html --html other.html",
        ] {
            let line = format!("kvscout-sim {line}");
            let parsed = Cli::try_parse_from(line.split_whitespace());
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
    }

    #[test]
    fn without_a_seed_every_process_draws_its_own() {
        let config = serve("--fault-restart-every 9 --fault-restart-ports --fault-reset-every 4");
        assert_eq!((config.engine.hash_seed, config.seed_drawn), (7, true));
        let expected = Faults {
            restart_every: 9,
            restart_ports: true,
            reset_every: 4,
            ..Faults::default()
        };
        assert_eq!(config.faults, expected);
    }
}
