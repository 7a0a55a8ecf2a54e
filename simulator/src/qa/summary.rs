//! The performance summary: multi-round-qa.py's own lines, byte for byte, and ours below them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::rows::{LeftOut, Row};
use crate::load::Spread;

/// A run in numbers, over a window of time.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// As configured; 0 of a file that does not tell.
    pub qps: f64,
    /// Requests that are under way.
    pub pending: usize,
    /// Where the window begins, and ends.
    pub range: [f64; 2],
    /// Requests that were answered within it.
    pub finished: usize,
    /// Sums of tokens.
    pub prompt_tokens: u64,
    /// Sums of tokens.
    pub generation_tokens: u64,
    /// Mean of tokens per second of each answer; NaN of no answer.
    pub generation_speed: f64,
    /// Mean time to first token, in seconds; NaN of no answer.
    pub ttft: f64,
    /// How it is spread.
    pub spread: Spread,
    /// Tokens from caches and prompt tokens, of the requests whose servers tell.
    pub cached: Option<[u64; 2]>,
    /// Streams that ended well without a word.
    pub empty: usize,
    /// Requests that failed, by what they said.
    pub errors: BTreeMap<String, usize>,
}

impl Summary {
    /// Of what ended from `start` to `now`, or to the last end of an answer, if that was before.
    #[must_use]
    pub fn of_window(
        rows: &[Row],
        left_out: &[LeftOut],
        [start, now]: [f64; 2],
        pending: usize,
        qps: f64,
    ) -> Self {
        let last = rows.iter().map(|row| row.finish_time).reduce(f64::max);
        // The original's window would end before it begins where no answer ended in it.
        let end = last
            .filter(|last| *last > start)
            .map_or(now, |last| last.min(now));
        let within = |time: f64| start <= time && time <= end;
        let rows: Vec<Row> = rows
            .iter()
            .filter(|row| within(row.finish_time))
            .copied()
            .collect();
        let mut summary = Self::of(&rows, [start, end]);
        (summary.pending, summary.qps) = (pending, qps);
        // What failed after the last answer has failed, too.
        let failed = |one: &&LeftOut| start <= one.finish_time && one.finish_time <= now;
        for one in left_out.iter().filter(failed) {
            match &one.error {
                Some(error) => *summary.errors.entry(error.clone()).or_default() += 1,
                None => summary.empty += 1,
            }
        }
        summary
    }

    /// Of a file's rows.
    #[must_use]
    pub fn of_file(rows: &[Row]) -> Self {
        let start = rows.iter().map(|row| row.launch_time).reduce(f64::min);
        let end = rows.iter().map(|row| row.finish_time).reduce(f64::max);
        Self::of(rows, [start, end].map(|time| time.unwrap_or(f64::NAN)))
    }

    fn of(rows: &[Row], range: [f64; 2]) -> Self {
        let mean = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / rows.len() as f64;
        let ttfts = rows.iter().map(|row| Duration::try_from_secs_f64(row.ttft));
        let told = rows
            .iter()
            .filter_map(|row| Some([row.cached_tokens?, row.prompt_tokens]));
        Self {
            qps: 0.0,
            pending: 0,
            range,
            finished: rows.len(),
            prompt_tokens: rows.iter().map(|row| row.prompt_tokens).sum(),
            generation_tokens: rows.iter().map(|row| row.generation_tokens).sum(),
            generation_speed: mean(|row| row.generation_tokens as f64 / row.generation_time),
            ttft: mean(|row| row.ttft),
            spread: Spread::of(ttfts.filter_map(Result::ok).collect()),
            cached: told.reduce(|[a, b], [c, d]| [a + c, b + d]),
            empty: 0,
            errors: BTreeMap::new(),
        }
    }

    /// Requests that failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.errors.values().sum()
    }

    /// Seconds of the window.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.range[1] - self.range[0]
    }

    /// Tokens from caches / prompt tokens, where servers tell.
    #[must_use]
    pub fn hit_rate(&self) -> Option<f64> {
        let [cached, prompt] = self.cached?;
        Some(cached as f64 / prompt.max(1) as f64)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.seconds();
        let rate = |count: u64| Number(count as f64 / total);
        f.write_str("\n\n==================== Performance summary ======================\n")?;
        line(f, "QPS", Number(self.qps), " reqs/s")?;
        line(f, "Processing speed", rate(self.finished as u64), " reqs/s")?;
        // The one value that is not green there.
        let pending = self.pending;
        write!(f, "  \x1b[33mRequests on-the-fly: {pending}\x1b[0m\n\n")?;
        line(
            f,
            "Input tokens per second",
            rate(self.prompt_tokens),
            " tokens/s",
        )?;
        line(
            f,
            "Output tokens per second",
            rate(self.generation_tokens),
            " tokens/s",
        )?;
        let speed = Number(self.generation_speed);
        line(
            f,
            "Average generation throughput (per request)",
            speed,
            " tokens/req/s",
        )?;
        line(f, "Average TTFT", Number(self.ttft), "s")?;
        let [start, end] = self.range.map(python);
        writeln!(f, "Time range: {start} - {end} ({}s)", fixed(total, 2))?;
        f.write_str("===============================================================\n")?;
        self.ours(f)?;
        f.write_str("\n\n")
    }
}

/// `label: value unit`, yellow and green, and a blank line.
fn line(f: &mut fmt::Formatter<'_>, label: &str, value: Number, unit: &str) -> fmt::Result {
    write!(f, "  \x1b[33m{label}: \x1b[32m{value}{unit}\x1b[0m\n\n")
}

impl Summary {
    /// What the original does not tell.
    fn ours(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { p50, p90, p99, .. } = self.spread;
        let percentile = |of: Duration| match self.finished {
            0 => "-".to_owned(),
            _ => format!("{:.4}s", of.as_secs_f64()),
        };
        let [p50, p90, p99] = [p50, p90, p99].map(percentile);
        writeln!(f, "  TTFT p50: {p50}, p90: {p90}, p99: {p99}")?;
        match self.hit_rate() {
            Some(rate) => writeln!(f, "  Prompt tokens from cache: {:.2} %", 100.0 * rate)?,
            None => writeln!(f, "  Prompt tokens from cache: the server does not say")?,
        }
        let (failed, empty) = (self.failed(), self.empty);
        writeln!(f, "  Left out: {failed} failed, {empty} empty")?;
        for (error, times) in &self.errors {
            writeln!(f, "    {times} x {error}")?;
        }
        Ok(())
    }
}

/// Python's `.4f`.
struct Number(f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&fixed(self.0, 4))
    }
}

fn fixed(number: f64, digits: usize) -> String {
    if number.is_nan() {
        // Rust says NaN.
        return "nan".into();
    }
    format!("{number:.digits$}")
}

/// Python's `str` of a float.
fn python(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    format!("{number:?}")
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::row;
    use super::*;

    /// These rows as ProcessSummary's print statements give them.
    const ORIGINAL: &str = "\n\n\
        ==================== Performance summary ======================\n\
        \x20 \x1b[33mQPS: \x1b[32m0.1000 reqs/s\x1b[0m\n\n\
        \x20 \x1b[33mProcessing speed: \x1b[32m0.1600 reqs/s\x1b[0m\n\n\
        \x20 \x1b[33mRequests on-the-fly: 1\x1b[0m\n\n\
        \x20 \x1b[33mInput tokens per second: \x1b[32m160.0000 tokens/s\x1b[0m\n\n\
        \x20 \x1b[33mOutput tokens per second: \x1b[32m8.0000 tokens/s\x1b[0m\n\n\
        \x20 \x1b[33mAverage generation throughput (per request): \x1b[32m25.0000 tokens/req/s\x1b[0m\n\n\
        \x20 \x1b[33mAverage TTFT: \x1b[32m0.3750s\x1b[0m\n\n\
        Time range: 100.0 - 112.5 (12.50s)\n\
        ===============================================================\n";

    fn failed(finish_time: f64, error: Option<&str>) -> LeftOut {
        let error = error.map(str::to_owned);
        LeftOut { finish_time, error }
    }

    #[test]
    fn the_lines_are_the_originals_and_ours_follow() {
        let rows = [row(1, 101.0, 0.25), row(2, 110.0, 0.5)];
        let left_out = [
            failed(104.0, Some("503 Service Unavailable")),
            failed(105.0, None),
            failed(99.0, Some("before the window")),
        ];
        let summary = Summary::of_window(&rows, &left_out, [100.0, 130.0], 1, 0.1);
        let text = summary.to_string();
        let ours = text.strip_prefix(ORIGINAL);
        assert_eq!(
            ours.unwrap_or(&text),
            "  TTFT p50: 0.2500s, p90: 0.5000s, p99: 0.5000s\n  Prompt tokens from cache: 80.00 %\n  \
             Left out: 1 failed, 1 empty\n    1 x 503 Service Unavailable\n\n\n"
        );
    }

    #[test]
    fn a_window_takes_what_ended_in_it() {
        let rows = [row(1, 0.0, 0.5), row(1, 10.0, 0.5), row(1, 20.0, 0.5)];
        let of = |window| Summary::of_window(&rows, &[], window, 0, 1.0);
        assert_eq!(of([0.0, 30.0]).finished, 3);
        assert_eq!(of([0.0, 30.0]).range, [0.0, 22.5]);
        assert_eq!(of([2.5, 12.4]).finished, 1);
        assert_eq!(of([2.6, 12.4]).finished, 0);
        assert_eq!(of([25.0, 30.0]).range, [25.0, 30.0]);
    }

    #[test]
    fn nothing_has_no_mean_and_python_says_so() {
        let text = Summary::of_window(&[], &[], [0.0, 30.0], 2, 1.0).to_string();
        assert!(text.contains("Average TTFT: \x1b[32mnans\x1b[0m"), "{text}");
        assert!(text.contains("p50: -"), "{text}");
    }

    #[test]
    fn a_file_is_summed_from_its_first_launch_to_its_last_end() {
        let rows = [row(1, 101.0, 0.25), row(2, 110.0, 0.5)];
        let summary = Summary::of_file(&rows);
        assert_eq!((summary.range, summary.qps), ([101.0, 112.5], 0.0));
    }
}
