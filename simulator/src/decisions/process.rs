//! What a process takes, by /proc.

use std::time::Duration;

use anyhow::Context as _;
use rustix::param::clock_ticks_per_second;

/// CPU time so far, all threads together, in ticks of 10 ms.
///
/// # Errors
/// There is no such process.
pub fn cpu(process: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after = stat.rsplit(')').next().unwrap_or_default();
    // utime and stime, the 14th and 15th of proc(5).
    let ticks = after.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|word| word.parse::<u64>().ok()).sum();
    Ok(Duration::from_secs_f64(
        ticks as f64 / clock_ticks_per_second() as f64,
    ))
}

/// Resident memory, in bytes.
///
/// # Errors
/// There is no such process.
pub fn resident(process: u32) -> anyhow::Result<u64> {
    Ok(status(process, "VmRSS:")? << 10)
}

/// Threads.
///
/// # Errors
/// There is no such process.
pub fn threads(process: u32) -> anyhow::Result<u64> {
    status(process, "Threads:")
}

/// File descriptors that are open.
///
/// # Errors
/// There is no such process.
pub fn descriptors(process: u32) -> anyhow::Result<u64> {
    Ok(std::fs::read_dir(format!("/proc/{process}/fd"))?.count() as u64)
}

/// The number of a line of proc(5)'s status.
fn status(process: u32, name: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("not in its status")?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_something_and_one_that_is_gone_nothing() {
        let own = std::process::id();
        assert!(resident(own).expect("it runs") > 1 << 20);
        assert!(threads(own).expect("it runs") >= 1);
        assert!(descriptors(own).expect("it runs") >= 3);
        cpu(own).expect("it runs");
        assert!(cpu(u32::MAX).is_err());
    }
}
