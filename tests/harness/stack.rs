//! Simulated servers, the kvscout process and Envoy, and conversations through them.

use std::path::{Path, PathBuf};

use kvscout_sim::engine::EngineConfig;
use kvscout_sim::load::{Load, Schedule};
use kvscout_sim::stack::{Parts, Plan, Stack};

use super::tokenizer;

/// Small ones. The binary of the test's own build is named by `env!("CARGO_BIN_EXE_kvscout")`.
pub fn plan(kvscout: &str, pods: usize) -> Plan {
    Plan {
        engine: EngineConfig {
            num_gpu_blocks: 1024,
            ..EngineConfig::default()
        },
        ..Plan::new(parts(kvscout), "/model/qwen", pods)
    }
}

/// The binary, and what `make setup` brings.
pub fn parts(kvscout: &str) -> Parts {
    Parts {
        kvscout: kvscout.into(),
        envoy: std::env::var_os("KVSCOUT_ENVOY").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/venv/bin/envoy"),
            PathBuf::from,
        ),
        tokenizer: tokenizer(),
    }
}

pub async fn start(kvscout: &str, pods: usize) -> Stack {
    let stack = Stack::start(plan(kvscout, pods)).await;
    stack.expect("run make setup")
}

/// Users in two groups, each with its own instructions, ask three times: first past kvscout, so that servers
/// share what each of them asks, and then routed.
pub async fn converse(stack: &Stack) {
    for (to, seed) in [stack.plain, stack.routed]
        .into_iter()
        .flat_map(|to| [(to, 0), (to, 1_000)])
    {
        let load = Load {
            schedule: Schedule {
                users: 8,
                rounds: 3,
                rate: 20.0,
            },
            system_words: 200,
            user_words: 300,
            answer_tokens: 20,
            seed,
        };
        let client = stack.client(to).expect("a client");
        let samples = load.run(&client, |_| ()).await;
        let failed = samples.iter().filter(|sample| sample.result.is_err());
        let failed: Vec<_> = failed.collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }
}
