//! `/metrics`, read: the Prometheus text format as far as kvscout writes it.

/// A scraped page.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: String,
    value: f64,
}

impl Scrape {
    /// Reads a page; lines that are no samples are passed over.
    #[must_use]
    pub fn parse(page: &str) -> Self {
        Self {
            samples: page.lines().filter_map(Sample::parse).collect(),
        }
    }

    /// The sum of a family's samples that carry `label` (`endpoint="pod-1"`; empty: all); none
    /// where there is no such sample.
    #[must_use]
    pub fn sum(&self, name: &str, label: &str) -> Option<f64> {
        let matching = |sample: &&Sample| sample.name == name && sample.labels.contains(label);
        self.samples
            .iter()
            .filter(matching)
            .map(|sample| sample.value)
            .reduce(|a, b| a + b)
    }

    /// By how much the samples that [`Self::sum`] adds up have grown since `before`. Those that are gone
    /// take nothing away, as a counter never falls.
    #[must_use]
    pub fn grown(&self, before: &Self, name: &str, label: &str) -> f64 {
        let matching = |sample: &&Sample| sample.name == name && sample.labels.contains(label);
        let growth = self.samples.iter().filter(matching).map(|sample| {
            let is_it = |was: &&Sample| was.name == name && was.labels == sample.labels;
            let was = before.samples.iter().find(is_it);
            (sample.value - was.map_or(0.0, |was| was.value)).max(0.0)
        });
        growth.sum()
    }

    /// A histogram's bucket that holds the `quantile` (0 to 1) of what was added since
    /// `before`, by its upper bound.
    #[must_use]
    pub fn quantile(&self, before: &Self, name: &str, quantile: f64) -> Option<f64> {
        let bucket = format!("{name}_bucket");
        let grown = self
            .samples
            .iter()
            .filter(|sample| sample.name == bucket)
            .map(|sample| {
                let was = before.sum(&bucket, &sample.labels).unwrap_or(0.0);
                (sample.bound(), sample.value - was)
            });
        let grown: Vec<(f64, f64)> = grown.collect();
        let all = grown.iter().map(|(_, count)| *count).fold(0.0, f64::max);
        let enough = |(_, count): &&(f64, f64)| *count >= all * quantile;
        grown
            .iter()
            .filter(|_| all > 0.0)
            .find(enough)
            .map(|(bound, _)| *bound)
    }
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        Some(Self {
            name: name.into(),
            labels: labels.trim_end_matches('}').into(),
            value: value.parse().ok()?,
        })
    }

    /// `le`, where infinity parses as such.
    fn bound(&self) -> f64 {
        let bound = self
            .labels
            .split("le=\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        bound
            .and_then(|bound| bound.parse().ok())
            .unwrap_or(f64::INFINITY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE blocks gauge\nblocks{endpoint=\"pod-1\"} 3\nblocks{endpoint=\"pod-2\"} 4\nup 1\n\
        took_bucket{le=\"0.001\"} 5\ntook_bucket{le=\"0.01\"} 9\ntook_bucket{le=\"+Inf\"} 10\ntook_count 10\n";

    #[test]
    fn samples_are_found_by_name_and_label() {
        let scrape = Scrape::parse(PAGE);
        assert_eq!(scrape.sum("blocks", ""), Some(7.0));
        assert_eq!(scrape.sum("blocks", "endpoint=\"pod-2\""), Some(4.0));
        assert_eq!(scrape.sum("up", ""), Some(1.0));
        assert_eq!(scrape.sum("down", ""), None);
    }

    #[test]
    fn what_is_gone_takes_nothing_from_what_has_grown() {
        let before = Scrape::parse("asked{of=\"a\"} 5\nasked{of=\"b\"} 7\n");
        let now = Scrape::parse("asked{of=\"b\"} 9\nasked{of=\"c\"} 1\n");
        assert_eq!(now.grown(&before, "asked", ""), 3.0);
        assert_eq!(now.grown(&before, "asked", "of=\"b\""), 2.0);
    }

    #[test]
    fn a_quantile_is_of_what_came_since() {
        let (before, now) = (Scrape::default(), Scrape::parse(PAGE));
        assert_eq!(now.quantile(&before, "took", 0.5), Some(0.001));
        assert_eq!(now.quantile(&before, "took", 0.9), Some(0.01));
        assert_eq!(now.quantile(&before, "took", 0.99), Some(f64::INFINITY));
        let earlier = Scrape::parse(
            "took_bucket{le=\"0.001\"} 5\ntook_bucket{le=\"0.01\"} 5\ntook_bucket{le=\"+Inf\"} 5\n",
        );
        assert_eq!(now.quantile(&earlier, "took", 0.5), Some(0.01));
        assert_eq!(now.quantile(&now, "took", 0.5), None);
    }
}
