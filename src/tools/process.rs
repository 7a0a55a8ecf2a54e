//! What a process that goes on asks of the kernel before anything else.

use std::path::Path;

use anyhow::{Context, ensure};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

use crate::blocks;
use crate::config::{Config, EventSourceKind};

/// What can be guessed is no secret.
const SECRET_BYTES_MIN: usize = 16;

/// No memory with prompts in it gets to disk or to a debugger, and as many file descriptors as we may have.
///
/// A core dump is a copy of every prompt that is held. The limit keeps the kernel from writing one, and not being
/// dumpable keeps it from giving one to a program (`kernel.core_pattern` with a pipe), or our memory to others of
/// the same user.
pub fn prepare() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let files = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    for (what, asked) in [
        ("no core dumps", setrlimit(Resource::Core, none)),
        (
            "not dumpable",
            set_dumpable_behavior(DumpableBehavior::NotDumpable),
        ),
        ("more file descriptors", setrlimit(Resource::Nofile, all)),
    ] {
        if let Err(error) = asked {
            tracing::warn!(what, %error, "the kernel does not grant it");
        }
    }
}

/// Mixes the names of blocks with the operator's secret, or with one of our own where nobody else needs to
/// know it.
///
/// # Errors
/// The file cannot be read, or holds no secret.
pub fn mix_block_keys(config: &Config) -> anyhow::Result<()> {
    let secret = match &config.events.keys_secret {
        Some(path) => secret(path).context("events.keys_secret")?,
        None if config.shares() || config.events.source == EventSourceKind::Nats => return Ok(()),
        None => {
            let mut secret = vec![0; 2 * SECRET_BYTES_MIN];
            let drawn = SystemRandom::new().fill(&mut secret);
            drawn.ok().context("the kernel gives no random bytes")?;
            secret
        }
    };
    blocks::mix_with(&secret);
    Ok(())
}

/// What a file of `events.keys_secret` holds.
///
/// # Errors
/// It cannot be read, or is short enough to be guessed.
pub fn secret(path: &Path) -> anyhow::Result<Vec<u8>> {
    let secret = std::fs::read(path).with_context(|| path.display().to_string())?;
    let secret = secret.trim_ascii().to_vec();
    ensure!(
        secret.len() >= SECRET_BYTES_MIN,
        "{} holds {} bytes; write at least {SECRET_BYTES_MIN}, e.g. by openssl rand -hex 32",
        path.display(),
        secret.len()
    );
    Ok(secret)
}
