//! Programs and files that are not this program's own, and where they are found.

use std::path::{Path, PathBuf};

use anyhow::ensure;

/// Programs and files that are not our own.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The `kvscout` program.
    pub kvscout: PathBuf,
    /// The `envoy` program.
    pub envoy: PathBuf,
    /// A folder with tokenizer.json and the chat template.
    pub tokenizer: PathBuf,
}

/// Flags that say where they are.
#[derive(Debug, Clone, clap::Args)]
pub struct PartsArgs {
    /// The kvscout program [default: beside this one]
    #[arg(long, value_name = "FILE")]
    kvscout: Option<PathBuf>,
    /// The Envoy program [default: .tools/venv/bin/envoy]
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// A folder with tokenizer.json and the chat template [default: .tools/tokenizer-qwen3]
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
}

impl PartsArgs {
    /// Where the flags or the defaults lead.
    ///
    /// # Errors
    /// This program does not know where it is.
    pub fn parts(&self) -> anyhow::Result<Parts> {
        let beside = std::env::current_exe()?.with_file_name("kvscout");
        let tool = |given: &Option<PathBuf>, path| given.clone().unwrap_or_else(|| tool(path));
        Ok(Parts {
            kvscout: self.kvscout.clone().unwrap_or(beside),
            envoy: tool(&self.envoy, "venv/bin/envoy"),
            tokenizer: tool(&self.tokenizer, "tokenizer-qwen3"),
        })
    }
}

impl Parts {
    /// # Errors
    /// Something is not there; says how to get it.
    pub fn check(&self) -> anyhow::Result<()> {
        let tokenizer = self.tokenizer.join("tokenizer.json");
        for (file, remedy) in [
            (&self.kvscout, "run `cargo build --release --workspace`"),
            (&self.envoy, "run `make setup`"),
            (&tokenizer, "run `make setup`"),
        ] {
            ensure!(file.is_file(), "{} is missing: {remedy}", file.display());
        }
        Ok(())
    }
}

/// Where `make setup` put something: `.tools/` here or above, or above this program.
fn tool(path: &str) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    let mut folders = here.ancestors().chain(program.ancestors());
    let found = folders.find(|folder| folder.join(".tools").is_dir());
    found.unwrap_or(Path::new("")).join(".tools").join(path)
}
