//! One policy's run over a plan, event by event.

use std::collections::HashMap;

use kvscout::blocks::BlockEvent;
use kvscout::fleet::Trust;

use super::churn::What;
use super::clock::{Queue, SECOND, Time, seconds};
use super::plan::Plan;
use super::pods::Pod;
use super::policies::{Knowledge, Policy};
use super::record::{Record, Sample};
use super::router::{Booking, Facts, Router};
use super::setting::Setting;
use crate::dice::Dice;
use crate::engine::{Emission, EngineConfig, Gauges, Request};
use crate::timing::Timing;

/// llm-d-router's `refresh-metrics-interval`, and ours (`load.scrape_interval_ms`).
const SCRAPED_EVERY: Time = SECOND / 20;
const SCRAPED_BY_US_EVERY: Time = SECOND;
/// From one router's choice to what another knows of it: two hops through a NATS server.
const SHARED_AFTER: Time = SECOND / 500;
/// What a replay takes: a connection, a question, an answer. The batch that showed the gap waits for it.
const REPLAYED_AFTER: Time = SECOND / 100;
/// Points in time at which load is looked at, of a whole run.
const SAMPLES: u64 = 240;
/// A request from outside: a prompt that nobody else has, and its answer.
const OUTSIDE_TOKENS: (u32, u32) = (2000, 200);

enum Due {
    Asked(usize),
    Outside,
    Step {
        pod: usize,
        life: u32,
    },
    Batch {
        pod: usize,
        life: u32,
        events: Vec<BlockEvent>,
        gap: bool,
    },
    /// A router hears what another one did.
    Heard(usize, Word),
    Change(What),
    Sample,
}

/// What routers tell each other of a request.
#[derive(Clone, Copy)]
enum Word {
    Placed(Booking),
    FirstToken(usize),
    Ended(usize),
}

/// A run under way.
pub struct World<'a> {
    plan: &'a Plan,
    followers: Vec<Vec<usize>>,
    setting: &'a Setting,
    knowledge: Knowledge,
    queue: Queue<Due>,
    pods: Vec<Pod>,
    /// Pods that may get requests.
    open: Vec<usize>,
    routers: Vec<Router>,
    /// Routers tell each other.
    shares: bool,
    /// What each router heard of others' requests.
    heard: Vec<HashMap<usize, Booking>>,
    scraped_every: Time,
    trust: Vec<Trust>,
    gauges: Vec<Gauges>,
    scraped: Option<Time>,
    /// When the last batch of each pod will arrive: they keep their order.
    arrives: Vec<Time>,
    /// Batches of it were lost since.
    gaps: Vec<bool>,
    /// What was in them, where it can be asked for.
    missed: Vec<Vec<BlockEvent>>,
    bookings: Vec<Option<Booking>>,
    asked_at: Vec<Option<Time>>,
    waits_for: Vec<usize>,
    dealt: usize,
    ended: usize,
    dice: Dice,
    sample_every: Time,
    record: Record,
}

/// Runs a policy over a plan; `progress` hears of each request that ended.
#[must_use]
pub fn run(plan: &Plan, setting: &Setting, policy: Policy, progress: &dyn Fn()) -> Record {
    let mut world = World::new(plan, setting, policy);
    while world.ended < plan.requests.len() {
        let Some(due) = world.queue.take() else { break };
        world.happen(due, progress);
    }
    world.record.ended_at = world.queue.now();
    world.record.computed = world.pods.iter().map(|pod| pod.computed).collect();
    world.record.preemptions = world.pods.iter().map(Pod::preemptions).sum();
    world.record
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan, setting: &'a Setting, policy: Policy) -> Self {
        let requests = plan.requests.len();
        let mut queue = Queue::new();
        for change in &setting.changes {
            queue.put(change.at, Due::Change(change.what));
        }
        for (number, asked) in plan.requests.iter().enumerate() {
            if asked.after.is_empty() {
                queue.put(asked.at, Due::Asked(number));
            }
        }
        let sample_every = (plan.last_arrival() / SAMPLES).max(SECOND / 10);
        queue.put(sample_every, Due::Sample);
        // The oracle is one router, whatever the others are: it shows what could be.
        let routers = match policy {
            Policy::Oracle => 1,
            _ => setting.routers.max(1),
        };
        let blocks = setting.engine.num_gpu_blocks;
        let router = |number| Router::new(policy, setting.seed ^ number << 40, blocks);
        let knowledge = policy.knowledge();
        let mut world = Self {
            plan,
            followers: plan.followers(),
            setting,
            knowledge,
            queue,
            pods: Vec::new(),
            open: Vec::new(),
            routers: (0..routers as u64).map(router).collect(),
            shares: setting.sharing && routers > 1 && policy.is_ours(),
            heard: vec![HashMap::new(); routers],
            scraped_every: match policy.is_ours() {
                true => SCRAPED_BY_US_EVERY,
                false => SCRAPED_EVERY,
            },
            trust: Vec::new(),
            gauges: Vec::new(),
            scraped: None,
            arrives: Vec::new(),
            gaps: Vec::new(),
            missed: Vec::new(),
            bookings: vec![None; requests],
            asked_at: vec![None; requests],
            waits_for: plan
                .requests
                .iter()
                .map(|asked| asked.after.len())
                .collect(),
            dealt: 0,
            ended: 0,
            dice: Dice::new(setting.seed ^ 0x5eed),
            sample_every,
            record: Record::new(requests),
        };
        (0..setting.pods).for_each(|_| world.add_pod());
        if setting.outside > 0.0 {
            world.queue.put(0, Due::Outside);
        }
        world
    }

    fn add_pod(&mut self) {
        let number = self.pods.len();
        let config = EngineConfig {
            hash_seed: self.setting.seed ^ number as u64,
            ..self.setting.engine.clone()
        };
        self.pods.push(Pod::new(config, self.setting.timing));
        self.open.push(number);
        self.trust.push(Trust::Live);
        self.gauges.push(Gauges::default());
        self.arrives.push(0);
        self.gaps.push(false);
        self.missed.push(Vec::new());
    }

    fn happen(&mut self, due: Due, progress: &dyn Fn()) {
        match due {
            Due::Asked(number) => self.ask(number),
            Due::Outside => self.ask_past_the_routers(),
            Due::Step { pod, life } if life == self.pods[pod].life => self.end_step(pod, progress),
            Due::Batch {
                pod,
                life,
                events,
                gap,
            } if life == self.pods[pod].life => {
                self.take(pod, &events, gap);
            }
            // Of a process that is gone.
            Due::Step { .. } | Due::Batch { .. } => {}
            Due::Heard(router, word) => self.hear(router, word),
            Due::Change(what) => self.change(what),
            Due::Sample => self.sample(),
        }
    }

    fn ask(&mut self, number: usize) {
        let (now, plan) = (self.queue.now(), self.plan);
        let asked = &plan.requests[number];
        // One that is placed again has waited since it was asked first.
        self.asked_at[number].get_or_insert(now);
        if self.scraped.is_none_or(|at| now >= at + self.scraped_every) {
            for (gauges, pod) in self.gauges.iter_mut().zip(&self.pods) {
                *gauges = pod.gauges();
            }
            self.scraped = Some(now);
        }
        let prompt = asked.spell_prompt();
        let router = self.dealt % self.routers.len();
        self.dealt += 1;
        let facts = Facts {
            open: &self.open,
            gauges: &self.gauges,
            trust: &self.trust,
            block_size: self.setting.engine.block_size as u32,
            now,
        };
        let booking = self.routers[router].place(router, (number, asked.session), &prompt, &facts);
        self.bookings[number] = Some(booking);
        self.share(router, Word::Placed(booking));
        self.record.placed(number, booking.pod, prompt.len());
        let request = Request {
            prompt,
            output: asked.spell_answer(),
            ..Request::default()
        };
        // The plan has been fitted to what a pod can hold.
        self.pods[booking.pod].submit(number, request);
        self.begin_step(booking.pod);
    }

    /// Tells the others what a router did.
    fn share(&mut self, by: usize, word: Word) {
        if !self.shares {
            return;
        }
        let at = self.queue.now() + SHARED_AFTER;
        for other in (0..self.routers.len()).filter(|other| *other != by) {
            self.queue.put(at, Due::Heard(other, word));
        }
    }

    fn hear(&mut self, router: usize, word: Word) {
        let heard = &mut self.heard[router];
        let router = &mut self.routers[router];
        match word {
            Word::Placed(booking) => {
                let prompt = self.plan.requests[booking.number].spell_prompt();
                let block_size = self.setting.engine.block_size as u32;
                router.heard_placed(booking, &prompt, block_size, self.queue.now());
                heard.insert(booking.number, booking);
            }
            Word::FirstToken(number) => {
                if let Some(booking) = heard.get_mut(&number) {
                    router.first_token(booking, self.queue.now());
                }
            }
            Word::Ended(number) => {
                if let Some(booking) = heard.remove(&number) {
                    router.ended(booking);
                }
            }
        }
    }

    fn ask_past_the_routers(&mut self) {
        let (prompt_tokens, answer_tokens) = OUTSIDE_TOKENS;
        let text = self.dice.roll();
        let pod = self.open[self.dice.below(self.open.len())];
        let mut tokens = Dice::new(text);
        let mut spell = |count: u32| (0..count).map(|_| tokens.roll() as u32 >> 15).collect();
        let request = Request {
            prompt: spell(prompt_tokens),
            output: spell(answer_tokens),
            ..Request::default()
        };
        self.pods[pod].submit(usize::MAX, request);
        self.begin_step(pod);
        let gap = seconds(-(1.0 - self.dice.share()).ln() / self.setting.outside);
        self.queue.put(self.queue.now() + gap, Due::Outside);
    }

    fn begin_step(&mut self, pod: usize) {
        let Some(took) = self.pods[pod].begin() else {
            return;
        };
        let life = self.pods[pod].life;
        if self.knowledge == Knowledge::Instant {
            let scheduled = self.pods[pod].scheduled();
            self.routers
                .iter()
                .for_each(|router| router.take(pod, scheduled));
        }
        self.queue
            .put(self.queue.now() + took, Due::Step { pod, life });
    }

    fn end_step(&mut self, pod: usize, progress: &dyn Fn()) {
        let ended = self.pods[pod].end();
        for (number, emission) in ended.emissions {
            // Nobody of ours waits for what came past the routers.
            if number != usize::MAX {
                self.speak(number, emission, progress);
            }
        }
        if self.knowledge == Knowledge::Events && !ended.events.is_empty() {
            self.publish(pod, ended.events);
        }
        self.begin_step(pod);
    }

    fn speak(&mut self, number: usize, emission: Emission, progress: &dyn Fn()) {
        let now = self.queue.now();
        let asked_at = self.asked_at[number].unwrap_or(now);
        self.record
            .first_token(number, asked_at, now, emission.cached_tokens);
        if let Some(booking) = &mut self.bookings[number]
            && booking.prefill_tokens.is_some()
        {
            let router = booking.router;
            self.routers[router].first_token(booking, now);
            self.share(router, Word::FirstToken(number));
        }
        if !emission.last {
            return;
        }
        self.end(number);
        self.record.ended(number, now);
        self.ended += 1;
        progress();
        for follower in std::mem::take(&mut self.followers[number]) {
            self.waits_for[follower] -= 1;
            if self.waits_for[follower] == 0 {
                self.queue.put(self.due_at(follower), Due::Asked(follower));
            }
        }
    }

    /// Nothing of it is left at its pod.
    fn end(&mut self, number: usize) {
        if let Some(booking) = self.bookings[number].take() {
            self.routers[booking.router].ended(booking);
            self.share(booking.router, Word::Ended(number));
        }
    }

    /// When a request whose predecessors have all been answered is asked.
    fn due_at(&self, number: usize) -> Time {
        let asked = &self.plan.requests[number];
        let waits = asked.after.iter().map(|after| {
            let started = self.asked_at[after.request].unwrap_or(0) + after.gap;
            started.max(self.record.requests[after.request].ended_at + after.think)
        });
        waits.fold(asked.at, Time::max)
    }

    fn publish(&mut self, pod: usize, mut events: Vec<BlockEvent>) {
        if self.setting.event_loss > 0.0 && self.dice.share() < self.setting.event_loss {
            match self.setting.event_replay {
                true => self.missed[pod].append(&mut events),
                false => self.gaps[pod] = true,
            }
            return;
        }
        let missed = std::mem::take(&mut self.missed[pod]);
        let replayed = !missed.is_empty();
        events.splice(0..0, missed);
        // Two dice make the usual bell curve (Box and Muller).
        let (one, two) = (1.0 - self.dice.share(), self.dice.share());
        let bell = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * two).cos();
        let delay = self.setting.event_delay * (self.setting.event_jitter * bell).exp();
        let mut at = (self.queue.now() + seconds(delay)).max(self.arrives[pod]);
        if replayed {
            at += REPLAYED_AFTER;
        }
        self.arrives[pod] = at;
        let (life, gap) = (self.pods[pod].life, std::mem::take(&mut self.gaps[pod]));
        self.queue.put(
            at,
            Due::Batch {
                pod,
                life,
                events,
                gap,
            },
        );
    }

    fn take(&mut self, pod: usize, events: &[BlockEvent], gap: bool) {
        if gap {
            self.trust[pod] = Trust::Doubtful;
        }
        for router in &self.routers {
            if gap {
                router.doubt(pod);
            }
            router.take(pod, events);
        }
    }

    fn change(&mut self, what: What) {
        match what {
            What::Scale(pods @ 0..) => (0..pods).for_each(|_| self.add_pod()),
            What::Scale(pods) => {
                let fewer = usize::try_from(pods.unsigned_abs()).unwrap_or(usize::MAX);
                let left = self.open.len().saturating_sub(fewer).max(1);
                for pod in self.open.split_off(left) {
                    self.forget(pod);
                }
            }
            What::Reset(pod) => {
                let Some(process) = self.pods.get_mut(pod) else {
                    return;
                };
                let lost = process.restart();
                self.missed[pod].clear();
                self.forget(pod);
                self.trust[pod] = Trust::Live;
                for number in lost.into_iter().filter(|number| *number != usize::MAX) {
                    self.end(number);
                    self.queue.put(self.queue.now(), Due::Asked(number));
                }
            }
            What::Slow(pod, factor) => {
                let Timing {
                    step_overhead,
                    prefill_rate,
                    decode_rate,
                } = self.setting.timing;
                if let Some(pod) = self.pods.get_mut(pod) {
                    pod.set_timing(Timing {
                        step_overhead: step_overhead.mul_f64(factor),
                        prefill_rate: prefill_rate / factor,
                        decode_rate: decode_rate / factor,
                    });
                }
            }
        }
    }

    fn forget(&mut self, pod: usize) {
        self.routers
            .iter_mut()
            .for_each(|router| router.forget(pod));
    }

    fn sample(&mut self) {
        let loads = self.open.iter().map(|pod| self.pods[*pod].requests());
        let (most, all) = loads.fold((0, 0), |(most, all), load| (load.max(most), all + load));
        let mean = all as f64 / self.open.len().max(1) as f64;
        let at = self.queue.now();
        self.record.samples.push(Sample {
            at,
            most: most as f64,
            mean,
        });
        self.queue.put(at + self.sample_every, Due::Sample);
    }
}
