//! A line of requests.jsonl, read leniently: recorders agree on the common fields, and tell in
//! several ways which data-parallel rank served a request and how far its events had come.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::blocks::TokenId;
use crate::prompt::Request;

/// How far a rank's events had come at some moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Moment {
    /// Up to this sequence number; -1 before the first.
    Seq(i64),
    /// Up to this time of arrival.
    Time(f64),
}

/// The prompts of a request, as far as their tokens are recorded.
#[derive(Debug, PartialEq)]
pub(super) enum Prompts {
    One(Vec<TokenId>),
    /// A batch: one engine request each, in this order.
    Batch(Vec<Vec<TokenId>>),
    Unknown,
}

/// One line.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct Line(Map<String, Value>);

/// Names for the rank that served a request.
const RANK: [&str; 3] = ["rank", "dp_rank", "data_parallel_rank"];

impl Line {
    /// A field that is given and not null.
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, name: &str) -> &str {
        self.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn number(&self) -> i64 {
        self.get("i").and_then(integer).unwrap_or(0)
    }

    pub(super) fn phase(&self) -> &str {
        self.text("phase")
    }

    pub(super) fn path(&self) -> &str {
        self.text("path")
    }

    pub(super) fn is_reset(&self) -> bool {
        self.path() == "/reset_prefix_cache"
    }

    /// The state at sending time decided, and there was an answer.
    pub(super) fn is_predicted(&self) -> bool {
        let sequential = self.get("sequential").and_then(Value::as_bool);
        let status = self.get("status").and_then(Value::as_i64);
        sequential == Some(true) && status.is_none_or(|status| status == 200)
    }

    /// It was answered, and not refused or given up.
    pub(super) fn is_answered(&self) -> bool {
        self.get("status").and_then(Value::as_i64) == Some(200)
    }

    /// When it was answered, seconds since the epoch.
    pub(super) fn done_s(&self) -> Option<f64> {
        self.get("t_done").and_then(Value::as_f64)
    }

    /// A field of the request's body.
    pub(super) fn body(&self, field: &str) -> Option<&Value> {
        let value = self.get("request")?.get(field)?;
        (!value.is_null()).then_some(value)
    }

    /// The request as the picker reads it; none where there was no HTTP request.
    pub(super) fn request(&self) -> Option<Request> {
        self.request_to(self.path())
    }

    /// What it wants besides tokens; recordings of vLLM's own cache manager spell that as a
    /// completion does.
    pub(super) fn wants(&self) -> Option<Request> {
        self.request()
            .or_else(|| self.request_to("/v1/completions"))
    }

    fn request_to(&self, path: &str) -> Option<Request> {
        let body = self.get("request")?.to_string();
        Request::parse(path, body.as_bytes()).ok()
    }

    /// `cached_tokens`; vLLM 0.20.2 says null for none.
    pub(super) fn cached_tokens(&self) -> u64 {
        self.get("cached_tokens")
            .and_then(Value::as_u64)
            .unwrap_or(0)
    }

    pub(super) fn prompts(&self) -> Prompts {
        let recorded = self
            .get("prompt_token_ids")
            .map_or(Prompts::Unknown, prompts);
        match self.body("prompt").map(prompts) {
            // A recorder may keep the first prompt's tokens only.
            Some(Prompts::Batch(batch)) if matches!(recorded, Prompts::One(_)) => {
                Prompts::Batch(batch)
            }
            _ if self.is_batch() && matches!(recorded, Prompts::One(_)) => Prompts::Unknown,
            _ => recorded,
        }
    }

    fn is_batch(&self) -> bool {
        let prompts = self.body("prompt").and_then(Value::as_array);
        prompts.is_some_and(|list| list.len() > 1 && !list[0].is_number())
    }

    /// Prompt and answer, as far as they are recorded: what the request's blocks hold.
    pub(super) fn all_tokens(&self) -> Vec<TokenId> {
        let Prompts::One(mut tokens) = self.prompts() else {
            return Vec::new();
        };
        tokens.extend(
            self.get("output_token_ids")
                .and_then(token_ids)
                .unwrap_or_default(),
        );
        tokens
    }

    /// The data-parallel rank that served it: recorded, or pinned by a header.
    pub(super) fn rank(&self) -> Option<u32> {
        let recorded = RANK
            .iter()
            .find_map(|name| self.get(name).and_then(integer));
        let pinned = || {
            self.0
                .iter()
                .filter(|(name, _)| name.ends_with("headers"))
                .filter_map(|(_, headers)| headers.as_object())
                .flatten()
                .find(|(name, _)| name.eq_ignore_ascii_case("x-data-parallel-rank"))
                .and_then(|(_, value)| integer(value))
        };
        recorded
            .or_else(pinned)
            .and_then(|rank| u32::try_from(rank).ok())
    }

    /// How far the events of `rank` had come when the request was sent. `ranks` is how many
    /// ranks publish.
    pub(super) fn before(&self, rank: u32, ranks: usize) -> Option<Moment> {
        self.moment("seq_before", "t_send", rank, ranks)
    }

    /// How far they had come when it was answered.
    pub(super) fn after(&self, rank: u32, ranks: usize) -> Option<Moment> {
        self.moment("seq_after", "t_done", rank, ranks)
    }

    fn moment(&self, seq: &str, time: &str, rank: u32, ranks: usize) -> Option<Moment> {
        let at = || self.get(time).and_then(Value::as_f64).map(Moment::Time);
        match self.get(seq) {
            // Each rank counts for itself: one number for several may be any one's.
            Some(Value::Number(number)) if ranks > 1 => {
                at().or_else(|| number.as_i64().map(Moment::Seq))
            }
            Some(value) => sequence_of(value, rank).map(Moment::Seq).or_else(at),
            None => at(),
        }
    }
}

/// A sequence number: one, or one per rank as a list or a map ("0", "rank0", "dp-0"). A rank
/// that has none there was not heard yet.
fn sequence_of(value: &Value, rank: u32) -> Option<i64> {
    let or_none_yet = |seq: Option<&Value>| Some(seq.and_then(integer).unwrap_or(-1));
    match value {
        Value::Array(list) => or_none_yet(list.get(rank as usize)),
        Value::Object(map) => {
            let named = |(name, _): &(&String, &Value)| {
                let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
                name[prefix.len()..].parse() == Ok(rank)
            };
            or_none_yet(map.iter().find(named).map(|(_, seq)| seq))
        }
        value => integer(value),
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.parse().ok(),
        value => value.as_i64(),
    }
}

fn token_ids(value: &Value) -> Option<Vec<TokenId>> {
    let id = |value: &Value| value.as_u64().and_then(|id| TokenId::try_from(id).ok());
    value.as_array()?.iter().map(id).collect()
}

/// Token ids, or a list of such lists; texts are not tokens.
fn prompts(value: &Value) -> Prompts {
    if let Some(tokens) = token_ids(value) {
        return Prompts::One(tokens);
    }
    let lists = value.as_array().into_iter().flatten().map(token_ids);
    match lists.collect::<Option<Vec<_>>>() {
        Some(mut batch) if batch.len() == 1 => Prompts::One(batch.remove(0)),
        Some(batch) if !batch.is_empty() => Prompts::Batch(batch),
        _ => Prompts::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(json: &str) -> Line {
        serde_json::from_str(json).expect("a line")
    }

    #[test]
    fn a_rank_is_found_wherever_recorders_put_it() {
        for json in [
            r#"{"rank": 1}"#,
            r#"{"dp_rank": 1, "rank": null, "data_parallel_rank": 1}"#,
            r#"{"data_parallel_rank": "1", "headers": null}"#,
            r#"{"headers": {"X-data-parallel-rank": "1"}}"#,
            r#"{"request_headers": {"accept": "*/*", "x-data-parallel-rank": 1}}"#,
        ] {
            assert_eq!(line(json).rank(), Some(1), "{json}");
        }
        assert_eq!(line(r#"{"headers": {}}"#).rank(), None);
    }

    #[test]
    fn a_sequence_number_is_read_per_rank() {
        for json in [
            r#"{"seq_before": [4, 7]}"#,
            r#"{"seq_before": {"0": 4, "1": 7}}"#,
            r#"{"seq_before": {"live0": 4, "live1": 7}, "t_send": 1.0}"#,
        ] {
            assert_eq!(line(json).before(1, 2), Some(Moment::Seq(7)), "{json}");
        }
        let silent = line(r#"{"seq_before": {"0": 4}, "t_send": 1.0}"#);
        assert_eq!(silent.before(1, 2), Some(Moment::Seq(-1)));
    }

    #[test]
    fn one_number_for_several_ranks_is_worth_less_than_the_time() {
        let both = line(r#"{"seq_before": 4, "t_send": 1.5}"#);
        assert_eq!(both.before(0, 1), Some(Moment::Seq(4)));
        assert_eq!(both.before(0, 2), Some(Moment::Time(1.5)));
        assert_eq!(
            line(r#"{"seq_before": 4}"#).before(0, 2),
            Some(Moment::Seq(4))
        );
        let unknown = line(r#"{"seq_before": null, "t_send": 1.5}"#);
        assert_eq!(unknown.before(0, 1), Some(Moment::Time(1.5)));
        assert_eq!(line("{}").before(0, 1), None);
    }

    #[test]
    fn a_batch_of_which_one_prompt_is_recorded_is_unknown_unless_it_came_as_tokens() {
        let texts = r#"{"request": {"prompt": ["a", "b"]}, "prompt_token_ids": [1, 2]}"#;
        assert_eq!(line(texts).prompts(), Prompts::Unknown);
        let tokens = r#"{"request": {"prompt": [[1, 2], [3]]}, "prompt_token_ids": [1, 2]}"#;
        let both = Prompts::Batch(vec![vec![1, 2], vec![3]]);
        assert_eq!(line(tokens).prompts(), both);
        let one = r#"{"request": {"prompt": [1, 2]}, "prompt_token_ids": [[1, 2]]}"#;
        assert_eq!(line(one).prompts(), Prompts::One(vec![1, 2]));
    }
}
