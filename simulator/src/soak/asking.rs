//! Conversations of all lengths, each asked for a while and then replaced by another.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use super::audited::Restart;
use crate::decisions::ask::{Asker, Link};
use crate::decisions::bodies::Conversation;
use crate::dice::Dice;

/// Prompts of some length: of ten requests so many are of it, in so many conversations at a time.
struct Kind {
    tokens: usize,
    of_ten: usize,
    conversations: usize,
}

const KINDS: [Kind; 3] = [
    Kind {
        tokens: 1_000,
        of_ten: 6,
        conversations: 48,
    },
    Kind {
        tokens: 8_000,
        of_ten: 3,
        conversations: 16,
    },
    Kind {
        tokens: 32_000,
        of_ten: 1,
        conversations: 6,
    },
];
/// Questions of a conversation: then another takes its place, new to every cache.
const QUESTIONS: usize = 64;
/// Streams at once where as many are asked as go: four for each of two cores.
const STREAMS: usize = 8;
/// Requests under way at a given rate; past it the asker waits, and so falls behind.
const UNDER_WAY_MAX: usize = 4096;
/// A client asks so often where pods fail.
const TRIES_MAX: usize = 4;
/// Failures whose words are kept.
const WORDS_MAX: usize = 3;

/// How fast.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// As many as go.
    AllAtOnce,
    /// Requests a second, by chance.
    Rate(f64),
}

/// What was seen since it was last taken.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// From a stream's begin to the pick.
    pub picks: Vec<Duration>,
    /// Asked again, since the pod had died.
    pub retried: u64,
    /// Not answered at all.
    pub failed: u64,
    /// Why, of the first.
    pub words: Vec<String>,
}

/// What those who ask have in common.
#[derive(Debug)]
pub(super) struct Shared {
    /// A connection is another after every certificate.
    pub asker: watch::Sender<Asker>,
    /// The adapters that are loaded now.
    pub adapters: watch::Sender<Vec<String>>,
    /// Pods that serve.
    pub pods: watch::Sender<usize>,
    /// Servers that restarted.
    pub restarted: watch::Sender<Vec<Restart>>,
    tally: Mutex<Tally>,
}

impl Shared {
    pub fn new(asker: Asker, adapters: Vec<String>, pods: usize) -> Self {
        Self {
            pods: watch::Sender::new(pods),
            asker: watch::Sender::new(asker),
            adapters: watch::Sender::new(adapters),
            restarted: watch::Sender::new(Vec::new()),
            tally: Mutex::default(),
        }
    }

    /// What was seen, and nothing from here on.
    pub fn take(&self) -> Tally {
        std::mem::take(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn ask(&self, number: u64, conversation: &Conversation) {
        let body = conversation.body(number);
        let mut seen = Tally::default();
        let failure = loop {
            let asker = self.asker.borrow().clone();
            match asker.ask(number, body.clone(), Link::Instant).await {
                Ok(asked) => {
                    seen.picks.push(asked.took.pick);
                    match asked.status {
                        200 => break None,
                        status if seen.picks.len() == TRIES_MAX => {
                            break Some(format!("{} answers {status}", asked.took.endpoint));
                        }
                        _ => seen.retried += 1,
                    }
                }
                Err(error) => break Some(format!("{error:#}")),
            }
        };
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.picks.append(&mut seen.picks);
        tally.retried += seen.retried;
        if let Some(words) = failure {
            tally.failed += 1;
            if tally.words.len() < WORDS_MAX {
                tally.words.push(words);
            }
        }
    }
}

/// Who asks them.
pub(super) struct Crowd {
    shared: Arc<Shared>,
    dice: Dice,
    model: String,
    /// Of each kind.
    slots: Vec<Vec<(Arc<Conversation>, usize)>>,
    /// Conversations so far.
    begun: u64,
    asked: u64,
}

impl Crowd {
    pub fn new(shared: Arc<Shared>, model: &str) -> Self {
        let mut crowd = Self {
            shared,
            dice: Dice::new(1),
            model: model.to_owned(),
            slots: Vec::new(),
            begun: 0,
            asked: 0,
        };
        for kind in KINDS {
            let begin = |_| {
                // They end at different times from the first one on.
                let left = 1 + crowd.dice.below(QUESTIONS);
                (crowd.conversation(kind.tokens), left)
            };
            let slots = (0..kind.conversations).map(begin).collect();
            crowd.slots.push(slots);
        }
        crowd
    }

    /// Requests so far.
    pub fn asked(&self) -> u64 {
        self.asked
    }

    /// Asks for so long, and returns when all are answered.
    pub async fn ask(&mut self, pace: Pace, lasts: Duration) {
        let at_once = match pace {
            Pace::AllAtOnce => STREAMS,
            Pace::Rate(_) => UNDER_WAY_MAX,
        };
        let seats = Arc::new(Semaphore::new(at_once));
        let began = Instant::now();
        let mut at = Duration::ZERO;
        while at < lasts {
            let conversation = self.draw();
            if let Pace::Rate(rate) = pace {
                sleep_until(began + at).await;
                at += Duration::from_secs_f64(-(1.0 - self.dice.share()).ln() / rate);
            }
            let seat = Arc::clone(&seats).acquire_owned().await;
            if matches!(pace, Pace::AllAtOnce) {
                at = began.elapsed();
            }
            let (shared, number) = (Arc::clone(&self.shared), self.asked);
            self.asked += 1;
            // All of them are waited for, below: each gives its seat back.
            tokio::spawn(async move {
                shared.ask(number, &conversation).await;
                drop(seat);
            });
        }
        let all = u32::try_from(at_once).unwrap_or(u32::MAX);
        drop(seats.acquire_many(all).await);
    }

    /// A conversation with a question left.
    fn draw(&mut self) -> Arc<Conversation> {
        let mut ticket = self.dice.below(10);
        let kind = KINDS.iter().position(|kind| {
            let is_it = ticket < kind.of_ten;
            ticket = ticket.saturating_sub(kind.of_ten);
            is_it
        });
        let kind = kind.unwrap_or(0);
        let slot = self.dice.below(KINDS[kind].conversations);
        let (conversation, left) = &mut self.slots[kind][slot];
        *left -= 1;
        let drawn = Arc::clone(conversation);
        if *left == 0 {
            self.slots[kind][slot] = (self.conversation(KINDS[kind].tokens), QUESTIONS);
        }
        drawn
    }

    /// A new one: one in four with an adapter.
    fn conversation(&mut self, tokens: usize) -> Arc<Conversation> {
        self.begun += 1;
        let adapters = self.shared.adapters.borrow().clone();
        let model = match self.dice.below(4) {
            0 if !adapters.is_empty() => &adapters[self.dice.below(adapters.len())],
            _ => &self.model,
        };
        Arc::new(Conversation::new(self.begun, tokens, model))
    }
}
