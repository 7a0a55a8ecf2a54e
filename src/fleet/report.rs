//! A vLLM server's own metrics, read: a page of Prometheus' text → a [`Report`] for each engine.
//!
//! Names are those of vLLM 0.9 to 0.33; a family that has been renamed is found by all of them.

use std::collections::BTreeMap;

const WAITING: &str = "vllm:num_requests_waiting";
const RUNNING: &str = "vllm:num_requests_running";
/// Both from 0.9 to 0.11, the second one alone before.
const KV_USAGE: [&str; 2] = ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"];
/// Counted, cached ones included, when a request's first output comes.
const PROMPT_TOKENS: &str = "vllm:prompt_tokens_total";
/// The first one, by 0.20, counts when `PROMPT_TOKENS` does; the others when a request is scheduled.
const CACHED_TOKENS: [&str; 3] = [
    "vllm:prompt_tokens_cached_total",
    "vllm:prefix_cache_hits_total",
    "vllm:gpu_prefix_cache_hits_total",
];
/// Requests whose first output came.
const FIRST_OUTPUTS: &str = "vllm:time_to_first_token_seconds_count";
/// Adapters as labels, the time as value. Old sets of labels stay.
const LORA: &str = "vllm:lora_requests_info";

/// The cache's configuration as labels.
pub const CACHE_CONFIG: &str = "vllm:cache_config_info";

const OF_AN_ENGINE: [&str; 10] = [
    WAITING,
    RUNNING,
    KV_USAGE[0],
    KV_USAGE[1],
    PROMPT_TOKENS,
    CACHED_TOKENS[0],
    CACHED_TOKENS[1],
    CACHED_TOKENS[2],
    FIRST_OUTPUTS,
    CACHE_CONFIG,
];

/// What an engine says of its load. It is as of the engine's last step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Requests that no step has begun with, or that were pushed back.
    pub waiting: u32,
    /// Requests in the running batch.
    pub running: u32,
    /// The share of KV blocks that requests use, 0 to 1: what is cached and unused counts as free.
    pub kv_usage: Option<f64>,
    /// Blocks that its cache has room for.
    pub cache_blocks: Option<u64>,
    /// What it has prefilled since it started.
    pub prefilled: Option<Prefilled>,
    /// The first of the names that it serves its model by.
    pub model: Option<String>,
    /// Its adapters, if it has any. The page does not say which engine's.
    pub lora: Option<Lora>,
}

/// Counts since an engine started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Prefilled {
    /// Prompt tokens that were computed, not found.
    pub tokens: f64,
    /// Of how many requests.
    pub requests: f64,
}

/// Adapters of the requests that an engine has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lora {
    /// Those of running requests.
    pub running: Vec<String>,
    /// Those of waiting requests.
    pub waiting: Vec<String>,
    /// How many can run at once, where it says (`max_loras`).
    pub max: Option<u32>,
}

/// Why a page tells nothing of an engine, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// The two families that everything rests on.
    #[error(
        "no {WAITING} and {RUNNING} there: is that vLLM's page, and does vLLM run without \
         --disable-log-stats?"
    )]
    NotVllm,
    /// Other engines only.
    #[error("no engine=\"{0}\" on the page: is data_parallel_size right?")]
    NoRank(u32),
}

/// A page, as far as it tells of load.
#[derive(Debug, Default)]
pub struct Page {
    /// By the label `engine`; engines that have none are one.
    engines: BTreeMap<String, BTreeMap<&'static str, f64>>,
    model: Option<String>,
    /// And when that was so.
    lora: Option<(f64, Lora)>,
}

impl Page {
    /// Reads a page. Lines that are no samples are passed over.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut page = Self::default();
        let wanted = |family: &str| family == LORA || OF_AN_ENGINE.contains(&family);
        for sample in samples(text, wanted) {
            page.take(&sample);
        }
        page
    }

    fn take(&mut self, sample: &Sample<'_>) {
        let known = OF_AN_ENGINE.iter().find(|family| **family == sample.family);
        if let Some(family) = known {
            if *family == WAITING {
                self.model = sample.label("model_name").map(str::to_owned);
            }
            let engine = sample.label("engine").unwrap_or_default();
            let engine = self.engines.entry(engine.to_owned()).or_default();
            let value = match *family {
                CACHE_CONFIG => sample.cache_blocks(),
                _ => Some(sample.value),
            };
            if let Some(value) = value {
                engine.insert(family, value);
            }
        } else if self.lora.as_ref().is_none_or(|(at, _)| *at <= sample.value) {
            self.lora = Some((sample.value, adapters(sample)));
        }
    }

    /// What it says of a data-parallel rank; without one, of all its engines together: then
    /// requests add up, and the emptiest cache counts, since vLLM's own balancer sends them there.
    ///
    /// # Errors
    /// See [`Unread`].
    pub fn of(&self, rank: Option<u32>) -> Result<Report, Unread> {
        let engines: Vec<_> = match rank {
            Some(rank) => self.engines.get(&rank.to_string()).into_iter().collect(),
            None => self.engines.values().collect(),
        };
        let reports: Option<Vec<Report>> = engines.into_iter().map(report).collect();
        let together = reports.unwrap_or_default().into_iter().reduce(add);
        let report = together.ok_or_else(|| match rank {
            Some(rank) if self.engines.values().any(|any| report(any).is_some()) => {
                Unread::NoRank(rank)
            }
            _ => Unread::NotVllm,
        })?;
        let lora = self.lora.as_ref().map(|(_, lora)| lora.clone());
        Ok(Report {
            model: self.model.clone(),
            lora,
            ..report
        })
    }
}

/// Of one engine, without what the page says of all; none where the page does not say what it must.
fn report(engine: &BTreeMap<&'static str, f64>) -> Option<Report> {
    let value = |family: &str| engine.get(family).copied();
    let first = |families: &[&str]| families.iter().find_map(|family| value(family));
    let prefilled = |requests| {
        let cached = first(&CACHED_TOKENS).unwrap_or(0.0);
        let tokens = (value(PROMPT_TOKENS)? - cached).max(0.0);
        Some(Prefilled { tokens, requests })
    };
    Some(Report {
        waiting: count(value(WAITING)?)?,
        running: count(value(RUNNING)?)?,
        kv_usage: first(&KV_USAGE).filter(|usage| (0.0..=1.0).contains(usage)),
        cache_blocks: value(CACHE_CONFIG).map(|blocks| blocks as u64),
        prefilled: value(FIRST_OUTPUTS).and_then(prefilled),
        model: None,
        lora: None,
    })
}

fn add(a: Report, b: Report) -> Report {
    Report {
        waiting: a.waiting.saturating_add(b.waiting),
        running: a.running.saturating_add(b.running),
        kv_usage: a.kv_usage.zip(b.kv_usage).map(|(a, b)| a.min(b)),
        cache_blocks: a.cache_blocks.zip(b.cache_blocks).map(|(a, b)| a + b),
        prefilled: a.prefilled.zip(b.prefilled).map(|(a, b)| Prefilled {
            tokens: a.tokens + b.tokens,
            requests: a.requests + b.requests,
        }),
        model: None,
        lora: None,
    }
}

/// Requests, of which no engine has a million.
fn count(value: f64) -> Option<u32> {
    (0.0..1e6).contains(&value).then_some(value as u32)
}

fn adapters(sample: &Sample<'_>) -> Lora {
    let names = |label| {
        let names = sample.label(label).unwrap_or_default().split(',');
        let names = names.filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    };
    Lora {
        running: names("running_lora_adapters"),
        waiting: names("waiting_lora_adapters"),
        max: sample.label("max_lora").and_then(|max| max.parse().ok()),
    }
}

/// One line of a page.
#[derive(Debug, PartialEq)]
pub struct Sample<'a> {
    /// The family's name, or what a histogram makes of it.
    pub family: &'a str,
    labels: Vec<(&'a str, String)>,
    /// A number: neither infinite nor none.
    pub value: f64,
}

impl<'a> Sample<'a> {
    /// A label's value.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        let mut labels = self.labels.iter();
        let found = labels.find(|(label, _)| *label == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Of [`CACHE_CONFIG`]: the blocks of an engine's cache; none where it does not say.
    #[must_use]
    pub fn cache_blocks(&self) -> Option<f64> {
        let blocks = self.label("num_gpu_blocks")?.parse::<u32>().ok()?;
        // One is vLLM's null block, which holds nothing.
        blocks.checked_sub(1).map(f64::from)
    }

    fn read(family: &'a str, rest: &'a str) -> Option<Self> {
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Vec::new(), rest),
        };
        let value: f64 = value.split_ascii_whitespace().next()?.parse().ok()?;
        value.is_finite().then_some(Self {
            family,
            labels,
            value,
        })
    }
}

/// The samples of the families that somebody wants: a page has a thousand lines, and a few count.
pub fn samples<'a>(
    text: &'a str,
    wanted: impl Fn(&str) -> bool + 'a,
) -> impl Iterator<Item = Sample<'a>> + 'a {
    text.lines().filter_map(move |line| {
        let end = line.find(['{', ' '])?;
        let (family, rest) = line.split_at(end);
        wanted(family).then(|| Sample::read(family, rest)).flatten()
    })
}

/// `name="value",…}`, and what follows.
fn labels(text: &str) -> Option<(Vec<(&str, String)>, &str)> {
    let (mut found, mut rest) = (Vec::new(), text);
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((found, after));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let (value, after) = unquote(quoted)?;
        found.push((name, value));
        rest = after;
    }
}

/// Up to the closing quote, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                c => value.push(c),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests;
