//! The `kvscout` command: parse, build, wait.
use clap::Parser;
#[derive(Parser)]
enum C {
    Replay(kvscout::tools::replay::Args),
}
fn main() -> anyhow::Result<std::process::ExitCode> {
    let C::Replay(a) = C::parse();
    Ok(if kvscout::tools::replay::run(&a)? {
        0.into()
    } else {
        1.into()
    })
}
