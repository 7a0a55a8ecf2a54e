//! What vLLM will report of a request, by what the index knows before it.

use std::collections::HashSet;

use serde_json::Value;

use super::Replay;
use super::difference::{Difference, Verdict};
use super::line::Line;
use crate::blocks::{BlockKey, Chain, Identity, Shape, TokenId};
use crate::fleet::EndpointId;
use crate::prompt::Request;

/// A request as the picker reads it.
pub struct Reading {
    pub endpoint: EndpointId,
    pub prompts: Vec<Vec<TokenId>>,
    pub identity: Identity,
    pub shape: Shape,
    pub answers: u32,
    pub reads_cache: bool,
    pub wants_report: bool,
}

impl Reading {
    /// The blocks of a prompt that may be found in the cache.
    pub fn chain(&self, tokens: &[TokenId]) -> Chain {
        Chain::of_prompt(tokens, self.shape, &self.identity)
    }

    /// All full blocks of a prompt, the last one too.
    pub fn blocks_of(&self, tokens: &[TokenId], identity: &Identity) -> Vec<BlockKey> {
        Chain::of_full_blocks(tokens, self.shape, identity).keys
    }
}

impl Replay {
    /// What is to be said of a prediction; nothing if it is exact. Where nobody knows which rank
    /// served, it stands if it is the same for all.
    pub fn compare(&self, line: &Line, readings: &[Reading]) -> Option<Difference> {
        let (reading, others) = readings.split_first()?;
        let (predicted, reported) = (self.predict(reading), line.cached_tokens());
        let same = others.iter().all(|other| self.predict(other) == predicted);
        let (verdict, why) = match self.explanation(reading, reported) {
            _ if !same => (
                Verdict::NotPredicted,
                "neither the request nor the events tell which rank served it",
            ),
            _ if predicted == reported => return None,
            Some(why) => (Verdict::Explained, why),
            None => (Verdict::Wrong, "no reason known"),
        };
        Some(Difference {
            request: line.number(),
            phase: line.phase().to_owned(),
            verdict,
            predicted,
            reported,
            why,
        })
    }

    pub fn read(&self, line: &Line, rank: u32, prompts: &[Vec<TokenId>]) -> Reading {
        let model = line.body("model").and_then(Value::as_str);
        let adapter = model.filter(|model| self.adapters.contains(*model));
        let cache_salt = line.body("cache_salt").and_then(Value::as_str);
        let request = line.wants();
        Reading {
            endpoint: EndpointId(rank),
            prompts: prompts.to_vec(),
            identity: Identity {
                adapter: adapter.map(str::to_owned),
                cache_salt: cache_salt.map(str::to_owned),
            },
            // Before the first store nothing is held, whatever the size.
            shape: self.index.shape(EndpointId(rank)).unwrap_or(16.into()),
            answers: request.as_ref().map_or(1, Request::answers),
            reads_cache: request.as_ref().is_none_or(Request::reads_cache),
            wants_report: request.as_ref().is_some_and(Request::wants_cache_report),
        }
    }

    /// What vLLM will report: the cached tokens of the last of a batch's prompts, as the last of
    /// its answers finds them.
    fn predict(&self, reading: &Reading) -> u64 {
        if !reading.reads_cache {
            return 0;
        }
        let mut cached = 0;
        let mut before: HashSet<BlockKey> = HashSet::new();
        for tokens in &reading.prompts {
            let chain = reading.chain(tokens);
            let held = self.held(reading, tokens) as usize;
            // Prompts of one request are scheduled in order, each with all of its blocks, so
            // that it finds those before it; and so do the answers to one prompt (0.32).
            let rest = chain.keys.iter().skip(held);
            cached = match reading.answers {
                0 | 1 => held + rest.take_while(|key| before.contains(key)).count(),
                _ => chain.keys.len(),
            };
            before.extend(reading.blocks_of(tokens, &reading.identity));
        }
        cached as u64 * u64::from(reading.shape.block_size)
    }

    /// Leading blocks of a prompt that are held.
    fn held(&self, reading: &Reading, tokens: &[TokenId]) -> u32 {
        let Reading {
            endpoint, identity, ..
        } = reading;
        let cached = self.index.cached_at(*endpoint, tokens, identity).tokens();
        (cached / u64::from(reading.shape.block_size.max(1))) as u32
    }

    pub fn announce_reports(&self, reading: &Reading) {
        if reading.wants_report && reading.reads_cache {
            for tokens in &reading.prompts {
                let (endpoint, chain) = (reading.endpoint, reading.chain(tokens));
                let held = self.held(reading, tokens);
                self.index
                    .expect_reports(endpoint, &chain, held, reading.answers);
            }
        }
    }

    /// Only what a picker can know from the request and event streams.
    fn explanation(&self, reading: &Reading, reported: u64) -> Option<&'static str> {
        let stream = self.streams.get(&reading.endpoint.0);
        if reported == 0 && stream.is_some_and(|stream| stream.reset) {
            return Some("the cache was reset; its clearing event goes out with the next step");
        }
        let hides_salt = self.index.shows_salt(reading.endpoint) == Some(false);
        let hidden = |tokens: &Vec<_>| {
            let blocks = reading.blocks_of(tokens, &reading.identity);
            blocks.iter().any(|key| self.hidden.contains(key))
        };
        let salted = reading.identity.cache_salt.is_some();
        if hides_salt && (salted || reading.prompts.iter().any(hidden)) {
            return Some("this vLLM (before 0.17.1) does not show cache salts in its events");
        }
        None
    }

    /// Notes the plain names under which a salted request's blocks will appear.
    pub fn remember_hidden(&mut self, reading: &Reading) {
        let salted = reading.identity.cache_salt.is_some();
        if salted && self.index.shows_salt(reading.endpoint) == Some(false) {
            let plain = Identity {
                cache_salt: None,
                ..reading.identity.clone()
            };
            for tokens in &reading.prompts {
                self.hidden.extend(reading.blocks_of(tokens, &plain));
            }
        }
    }
}
