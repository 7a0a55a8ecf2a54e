//! The work that an endpoint has: what we placed, and what its server says of the rest.
//!
//! We are this process and the replicas that tell it of their own (`crate::replicas`): what we place is
//! known at once, or some milliseconds later, and to the token. What others send there (a picker that
//! does not tell, a client that goes past the gateway) only the server knows: its own counts, read now and then,
//! less ours. Time is a parameter; `scrape.rs` does the reading.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Endpoint;
use super::report::{Prefilled, Report};
use crate::config::Saturation;

/// What we placed at an endpoint, and what its server said last.
#[derive(Debug, Default)]
pub struct Load {
    placed: AtomicU64,
    prefilled: AtomicU64,
    ended: AtomicU64,
    prefill_tokens: AtomicU64,
    recent: Recent,
    pace: Pace,
    told: Mutex<Option<Told>>,
}

/// Requests of ours so far, as engines count them. Three counts that only grow, so that two readings tell what was there
/// at any moment between them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ours {
    placed: u64,
    /// Those whose first output came, or that ended without one.
    prefilled: u64,
    ended: u64,
}

/// A report, and what of it is ours.
#[derive(Debug, Clone)]
struct Told {
    report: Report,
    at: Instant,
    interval: Duration,
    /// At most so many of its requests are ours.
    ours: u32,
    /// And at most so many of those that wait.
    ours_waiting: u32,
    mean: MeanPrefill,
}

/// Work that an endpoint has and we did not place, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outside {
    /// Requests.
    pub requests: u32,
    /// Prompt tokens that those of them that wait will have to compute.
    pub prefill_tokens: u64,
}

impl Load {
    /// Requests of ours between choice and end of response, as the engine counts them.
    pub fn requests(&self) -> u32 {
        let Ours { placed, ended, .. } = self.ours();
        few(placed - ended)
    }

    /// Uncached prompt tokens of our requests whose first output has not come.
    pub fn prefill_tokens(&self) -> u64 {
        self.prefill_tokens.load(Ordering::Relaxed)
    }

    /// Those of them that are still to be computed, as far as the pace tells.
    pub fn queued_tokens(&self, now: Instant) -> u64 {
        let tokens = self.prefill_tokens();
        tokens - self.pace.underway(tokens, now)
    }

    /// See [`Recent::tokens`].
    pub fn recent_tokens(&self, now: Instant) -> u64 {
        self.recent.tokens(now)
    }

    /// Prompt tokens that it computes in a second, as measured.
    pub fn pace(&self) -> Option<f64> {
        self.pace.get()
    }

    /// Requests of ours by now: to be asked for before a server's metrics are read, and given to
    /// [`Load::told`] after.
    #[must_use]
    pub fn ours(&self) -> Ours {
        // Ends before beginnings: whoever has ended is seen to have begun.
        let ended = self.ended.load(Ordering::Acquire);
        let prefilled = self.prefilled.load(Ordering::Acquire);
        let placed = self.placed.load(Ordering::Acquire);
        Ours {
            placed,
            prefilled,
            ended,
        }
    }

    /// The server's metrics have just been read, as they are every `interval`; `before` are ours
    /// as of the question.
    ///
    /// The report is of some moment between question and answer, and nobody knows which. So what
    /// counts as ours is whoever was there at *any* moment between: all that had been placed by
    /// the answer, but for those that had ended by the question. A request that we placed and that
    /// the server had not seen yet, or had seen end, makes ours too many and the outside too few,
    /// for one report. The other way round would be worse: a picker that takes its own requests
    /// for strangers counts them twice, and flees from where it has just been.
    pub fn told(&self, report: Report, before: Ours, now: Instant, interval: Duration) {
        let after = self.ours();
        let mut told = self.told.lock();
        let mut mean = told.as_ref().map(|told| told.mean).unwrap_or_default();
        if let Some(prefilled) = report.prefilled {
            mean.update(prefilled);
        }
        *told = Some(Told {
            report,
            at: now,
            interval,
            ours: few(after.placed - before.ended),
            ours_waiting: few(after.placed - before.prefilled),
            mean,
        });
    }

    /// What the server has to do for others. Nothing is known without a report.
    #[must_use]
    pub fn outside(&self, now: Instant) -> Outside {
        let told = self.told.lock();
        told.as_ref().map_or(Outside::default(), |told| {
            told.outside(weight(told.age(now), told.interval))
        })
    }

    /// The server says that it has more than enough to do, and said so a moment ago. Without a
    /// report it is not.
    #[must_use]
    pub fn saturated(&self, now: Instant, saturation: &Saturation) -> bool {
        self.says(now, |report| {
            waits(report, saturation) || cache_is_used(report, saturation)
        })
    }

    fn says(&self, now: Instant, is: impl Fn(&Report) -> bool) -> bool {
        let told = self.told.lock();
        told.as_ref().is_some_and(|told| {
            let fresh = weight(told.age(now), told.interval) == 1.0;
            fresh && is(&told.report)
        })
    }

    /// The server says that requests wait, and that it is its cache that they wait for: not for
    /// tokens to be computed, which is a wait that we can count, but for somebody to end.
    #[must_use]
    pub fn full(&self, now: Instant, saturation: &Saturation) -> bool {
        self.says(now, |report| {
            waits(report, saturation) && cache_is_used(report, saturation)
        })
    }

    /// Whether the server said that this is its model's name. It has one, and may have others that it does not say.
    #[must_use]
    pub fn serves(&self, model: &str) -> bool {
        let told = self.told.lock();
        let said = told.as_ref().and_then(|told| told.report.model.as_deref());
        said == Some(model)
    }

    /// What the server said last, and how long ago.
    #[must_use]
    pub fn report(&self, now: Instant) -> Option<(Report, Duration)> {
        let told = self.told.lock();
        let told = told.as_ref()?;
        Some((told.report.clone(), told.age(now)))
    }
}

fn waits(report: &Report, saturation: &Saturation) -> bool {
    report.waiting > saturation.queue_max
}

fn cache_is_used(report: &Report, saturation: &Saturation) -> bool {
    report.kv_usage.unwrap_or(0.0) > saturation.kv_usage_max
}

/// Uncached prompt tokens placed lately: what a cache was made to take in.
#[derive(Debug, Default)]
pub struct Recent(Mutex<Option<(f64, Instant)>>);

/// After so long a token counts half. In simulation 15 s do as well as 60, but it must be seamless:
/// the order of endpoints is what counts, and halving all now and then forgets who was last.
const HALF_LIFE_S: f64 = 60.0;

impl Recent {
    /// So many were placed.
    pub fn placed(&self, tokens: u64, now: Instant) {
        let mut recent = self.0.lock();
        *recent = Some((faded(*recent, now) + tokens as f64, now));
    }

    /// What is left of all, each token fading by half in a minute.
    #[must_use]
    pub fn tokens(&self, now: Instant) -> u64 {
        faded(*self.0.lock(), now) as u64
    }
}

fn faded(recent: Option<(f64, Instant)>, now: Instant) -> f64 {
    recent.map_or(0.0, |(tokens, at)| {
        let age = now.saturating_duration_since(at).as_secs_f64();
        tokens * (-age / HALF_LIFE_S).exp2()
    })
}

/// How fast prompts are computed, measured while there are any: from the first that was placed at an
/// idle endpoint, or the last measurement, until enough of them have had their first tokens. So it tells of a
/// slow machine, of a batch full of decodes, and of work that nobody told us of.
#[derive(Debug, Default)]
pub struct Pace {
    /// Tokens per second, as bits; 0 before enough was measured.
    mean: AtomicU64,
    busy: Mutex<Busy>,
}

/// Times in which there were prompts to compute.
#[derive(Debug, Default)]
struct Busy {
    since: Option<Instant>,
    /// Not computed yet.
    prompts: u32,
    computed_tokens: u64,
    /// What was measured before, fading.
    measured: Measured,
}

#[derive(Debug, Default)]
struct Measured {
    tokens: f64,
    seconds: f64,
}

/// Less than this is over in a step or two, and then the step's own time is what is measured.
const PACE_TOKENS_MIN: u64 = 4_000;
/// What earlier measurements count beside a new one: five of them are two thirds of the whole.
const PACE_KEPT: f64 = 0.8;
/// A server is called slow or fast by so many tokens, not by its first prompt: who is called slow gets
/// few prompts to be seen faster by.
const PACE_TOKENS_KNOWN: f64 = 16_000.0;

impl Measured {
    /// Tokens and seconds fade apart: prompts that end in one step are measured as a slow one and a fast
    /// one, and the mean of two paces would be above the true one.
    fn add(&mut self, tokens: u64, took: Duration) -> Option<f64> {
        self.tokens = self.tokens * PACE_KEPT + tokens as f64;
        self.seconds = self.seconds * PACE_KEPT + took.as_secs_f64();
        (self.tokens >= PACE_TOKENS_KNOWN).then(|| self.tokens / self.seconds)
    }
}

impl Pace {
    /// In tokens per second; none before enough was measured.
    #[must_use]
    pub fn get(&self) -> Option<f64> {
        Some(f64::from_bits(self.mean.load(Ordering::Relaxed))).filter(|pace| *pace > 0.0)
    }

    /// How many of the `queued` tokens of prompts without a first token are computed by now, at this
    /// pace: of a mean prompt at most, since they are computed one after the other and whoever is done is
    /// not among them. So of endpoints with a long prompt each, the one that is nearly through is seen.
    #[must_use]
    pub fn underway(&self, queued: u64, now: Instant) -> u64 {
        let Some(pace) = self.get() else { return 0 };
        let busy = self.busy.lock();
        let Some(since) = busy.since.filter(|_| busy.prompts > 0) else {
            return 0;
        };
        let computed = pace * now.saturating_duration_since(since).as_secs_f64();
        // A token at least is left, of whoever has no first token.
        let of_one = (queued / u64::from(busy.prompts)).saturating_sub(1);
        (computed as u64)
            .saturating_sub(busy.computed_tokens)
            .min(of_one)
    }

    /// A prompt was placed.
    pub fn placed(&self, now: Instant) {
        let mut busy = self.busy.lock();
        busy.prompts += 1;
        busy.since.get_or_insert(now);
    }

    /// The first token of a prompt came, of which so many tokens were to be computed; or none is known
    /// to have come, and nothing is measured.
    pub fn computed(&self, tokens: u64, came: Option<Instant>) {
        let mut busy = self.busy.lock();
        busy.prompts = busy.prompts.saturating_sub(1);
        busy.computed_tokens += tokens;
        let idle = busy.prompts == 0;
        let Some((now, since)) = came.zip(busy.since) else {
            // An answer that does not stream ends long after its prompt was computed.
            busy.computed_tokens = 0;
            busy.since = busy.since.filter(|_| !idle);
            return;
        };
        let took = now.saturating_duration_since(since);
        if busy.computed_tokens >= PACE_TOKENS_MIN && !took.is_zero() {
            let computed = std::mem::take(&mut busy.computed_tokens);
            if let Some(pace) = busy.measured.add(computed, took) {
                self.mean.store(pace.to_bits(), Ordering::Relaxed);
            }
            busy.since = Some(now);
        }
        if idle {
            busy.computed_tokens = 0;
            busy.since = None;
        }
    }
}

impl Told {
    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at)
    }

    /// Of those that wait, too, ours are taken off first: a request that is being prefilled may
    /// wait or run. What strangers that already run have left to compute, no server says.
    fn outside(&self, weight: f64) -> Outside {
        let Report {
            waiting, running, ..
        } = self.report;
        let requests = waiting.saturating_add(running).saturating_sub(self.ours);
        let waiting = waiting.saturating_sub(self.ours_waiting).min(requests);
        let tokens = f64::from(waiting) * self.mean.tokens;
        Outside {
            requests: (f64::from(requests) * weight).round() as u32,
            prefill_tokens: (tokens * weight).round() as u64,
        }
    }
}

/// What a report is worth by its age, 1 to 0: all of it for two intervals, so that one reading may
/// fail, and then less and less until ten. A decode of some seconds may well still be there then,
/// a queue will not.
fn weight(age: Duration, interval: Duration) -> f64 {
    let intervals = age.as_secs_f64() / interval.as_secs_f64().max(1e-3);
    ((10.0 - intervals) / 8.0).clamp(0.0, 1.0)
}

/// Tokens that a prompt at this server costs, by its own counts. Ours would tell of our requests,
/// which come here because their prefix does; whom it stands for are the others.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct MeanPrefill {
    /// Computed tokens of a request.
    tokens: f64,
    /// What it was last told of.
    so_far: Prefilled,
}

/// Prompts after which the mean has forgotten half of what it was.
const HALF_LIFE_REQUESTS: f64 = 32.0;

impl MeanPrefill {
    /// Begins with the mean of the server's life, and again where its counts have: a new process.
    fn update(&mut self, now: Prefilled) {
        let before = std::mem::replace(&mut self.so_far, now);
        let goes_on = before.requests > 0.0 && now.requests >= before.requests;
        let (requests, tokens) = match goes_on {
            true => (now.requests - before.requests, now.tokens - before.tokens),
            false => (now.requests, now.tokens),
        };
        // Engines before 0.20 count what is found before they count what was asked for.
        let tokens = tokens.max(0.0);
        if requests <= 0.0 {
            return;
        }
        let share = match goes_on {
            true => 1.0 - 0.5_f64.powf(requests / HALF_LIFE_REQUESTS),
            false => 1.0,
        };
        self.tokens += share * (tokens / requests - self.tokens);
    }
}

fn few(requests: u64) -> u32 {
    requests.try_into().unwrap_or(u32::MAX)
}

/// As many as the largest engines run at once. Who asks for more is most likely refused there, and
/// must not make a server look busy for a thousand.
pub const ENGINE_REQUESTS_MAX: u32 = 1_024;

/// Books one request's work at an endpoint; dropping it releases whatever is still booked, so
/// that no path out of an exchange can leak load.
#[derive(Debug)]
pub struct Booking {
    endpoint: Arc<Endpoint>,
    /// What the engine makes of it.
    requests: u64,
    /// None once they are done.
    prefill_tokens: Option<u64>,
}

impl Booking {
    /// Books `prefill_tokens` of work, of which the engine makes so many requests: `n` answers to
    /// each of several prompts are as many as both together.
    #[must_use]
    pub fn new(endpoint: Arc<Endpoint>, prefill_tokens: u64, requests: u32, now: Instant) -> Self {
        let (load, requests) = (&endpoint.load, u64::from(requests));
        load.placed.fetch_add(requests, Ordering::Release);
        load.prefill_tokens
            .fetch_add(prefill_tokens, Ordering::Relaxed);
        load.pace.placed(now);
        load.recent.placed(prefill_tokens, now);
        Self {
            endpoint,
            requests,
            prefill_tokens: Some(prefill_tokens),
        }
    }

    /// Who does the work.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The first token arrived, of an answer that streams: the prefill is done, and took until now.
    pub fn first_token(&mut self, now: Instant) {
        self.done(Some(now));
    }

    /// The first output arrived: the prefill is done, decoding goes on.
    pub fn prefilled(&mut self) {
        self.done(None);
    }

    fn done(&mut self, first_token: Option<Instant>) {
        if let Some(tokens) = self.prefill_tokens.take() {
            let load = &self.endpoint.load;
            load.prefill_tokens.fetch_sub(tokens, Ordering::Relaxed);
            load.prefilled.fetch_add(self.requests, Ordering::Release);
            load.pace.computed(tokens, first_token);
        }
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        self.prefilled();
        let ended = &self.endpoint.load.ended;
        ended.fetch_add(self.requests, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
