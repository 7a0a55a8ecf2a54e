//! When which session asks, as production-stack's multi-round-qa.py decides it: sessions of a
//! fixed gap between requests, some of them begun before the run, and one more user every now
//! and then. Its clock is whoever calls [`Schedule::step`], every 0.1 s.

/// Who asks how much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// Sessions at once.
    pub users: usize,
    /// Rounds of each session.
    pub rounds: u64,
    /// Requests per second, over all sessions.
    pub qps: f64,
}

impl Workload {
    /// Seconds between two requests of a session.
    #[must_use]
    pub fn gap(&self) -> f64 {
        self.users as f64 / self.qps
    }

    /// Seconds from a session's first request to its last.
    #[must_use]
    pub fn alive(&self) -> f64 {
        self.gap() * (self.rounds as f64 - 1.0)
    }

    /// Seconds from one user's coming to the next one's. Divided as there: `(rounds - 1) / qps`
    /// differs in the last bit, and comparisons are strict.
    #[must_use]
    pub fn gap_users(&self) -> f64 {
        self.alive() / self.users as f64
    }
}

/// What a step brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A user came while the run was on, and asks at once.
    Joined {
        /// Who.
        user: u64,
    },
    /// A request is to be sent.
    Ask {
        /// Whose.
        user: u64,
        /// Its number, as the question tells it.
        question: u64,
    },
    /// It is time for a request, and the one before it is unfinished.
    Behind {
        /// Whose.
        user: u64,
    },
    /// A session has had all its rounds.
    Ended {
        /// Whose.
        user: u64,
    },
}

/// Warnings of a session that is behind are this far apart, in seconds.
const WARNING_GAP: f64 = 10.0;

/// All sessions.
#[derive(Debug)]
pub struct Schedule {
    workload: Workload,
    sessions: Vec<Session>,
    /// Who came last; the first is one above `--init-user-id`.
    last_user: u64,
    begun: bool,
    last_join: Option<f64>,
}

#[derive(Debug)]
struct Session {
    user: u64,
    question: u64,
    last_request: Option<f64>,
    unfinished: bool,
    last_warning: Option<f64>,
}

impl Schedule {
    /// Nothing has happened yet; users are numbered from `init_user_id` + 1.
    #[must_use]
    pub fn new(workload: Workload, init_user_id: u64) -> Self {
        Self {
            workload,
            sessions: Vec::new(),
            last_user: init_user_id,
            begun: false,
            last_join: None,
        }
    }

    /// What is to be done at `now`, in seconds of any clock that does not go backwards.
    pub fn step(&mut self, now: f64) -> Vec<Event> {
        if !std::mem::replace(&mut self.begun, true) {
            self.ramp_up(now);
        }
        let mut events = Vec::new();
        let gap_users = self.workload.gap_users();
        if self.last_join.is_none_or(|last| now - last > gap_users) {
            let user = self.come();
            self.last_join = Some(now);
            events.push(Event::Joined { user });
        }
        let (gap, rounds) = (self.workload.gap(), self.workload.rounds);
        self.sessions.retain_mut(|session| {
            let event = session.step(now, gap, rounds);
            events.extend(event);
            !matches!(event, Some(Event::Ended { .. }))
        });
        events
    }

    /// A user's request has ended, however it did.
    pub fn finished(&mut self, user: u64) {
        if let Some(session) = self.sessions.iter_mut().find(|one| one.user == user) {
            session.unfinished = false;
        }
    }

    /// Sessions that have not ended.
    #[must_use]
    pub fn active(&self) -> usize {
        self.sessions.len()
    }

    /// Sessions as if they had begun one after the other before the run, the first so long ago
    /// that it is over.
    fn ramp_up(&mut self, now: f64) {
        let (gap, gap_users) = (self.workload.gap(), self.workload.gap_users());
        let ramp_up = self.workload.users as f64 * gap_users;
        for place in 0..self.workload.users {
            self.come();
            let offset = ramp_up - place as f64 * gap_users;
            if offset < 0.0 {
                // Rounding alone leads here; the session begins now, as it does there.
                break;
            }
            if let Some(session) = self.sessions.last_mut() {
                session.resume(offset, gap, now);
            }
        }
    }

    fn come(&mut self) -> u64 {
        self.last_user += 1;
        self.sessions.push(Session {
            user: self.last_user,
            question: 0,
            last_request: None,
            unfinished: false,
            last_warning: None,
        });
        self.last_user
    }
}

impl Session {
    /// It began `offset` seconds ago.
    fn resume(&mut self, offset: f64, gap: f64, now: f64) {
        self.question = (offset / gap) as u64 + 1;
        self.last_request = Some(now - offset + (self.question - 1) as f64 * gap);
    }

    fn step(&mut self, now: f64, gap: f64, rounds: u64) -> Option<Event> {
        let user = self.user;
        if self.question >= rounds && !self.unfinished {
            return Some(Event::Ended { user });
        }
        if self.last_request.is_some_and(|last| now - last <= gap) {
            return None;
        }
        if self.unfinished {
            let quiet = |last: f64| now - last <= WARNING_GAP;
            if self.last_warning.is_some_and(quiet) {
                return None;
            }
            self.last_warning = Some(now);
            return Some(Event::Behind { user });
        }
        self.question += 1;
        self.last_request = Some(now);
        self.unfinished = true;
        let question = self.question;
        Some(Event::Ask { user, question })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10 s between a session's requests, 5 s between users, 20 s of life.
    const SMALL: Workload = Workload {
        users: 4,
        rounds: 3,
        qps: 0.4,
    };

    /// Steps of 1/8 s, which floats hold exactly, as (eighths, event); requests take `answer` seconds, at least one step.
    fn run(workload: Workload, eighths: u64, answer: f64) -> Vec<(u64, Event)> {
        let mut schedule = Schedule::new(workload, 0);
        let mut flying: Vec<(f64, u64)> = Vec::new();
        let mut seen = Vec::new();
        for eighth in 0..eighths {
            let now = 1e9 + eighth as f64 / 8.0;
            flying.retain(|(end, user)| {
                let lasts = *end > now;
                if !lasts {
                    schedule.finished(*user);
                }
                lasts
            });
            for event in schedule.step(now) {
                if let Event::Ask { user, .. } = event {
                    flying.push((now + answer, user));
                }
                seen.push((eighth, event));
            }
        }
        seen
    }

    fn asks(seen: &[(u64, Event)], of: u64) -> Vec<(u64, u64)> {
        let ask = |(at, event): &(u64, Event)| match event {
            Event::Ask { user, question } if *user == of => Some((*at, *question)),
            _ => None,
        };
        seen.iter().filter_map(ask).collect()
    }

    fn when(seen: &[(u64, Event)], what: Event) -> Option<u64> {
        let found = seen.iter().find(|(_, event)| *event == what);
        found.map(|(at, _)| *at)
    }

    #[test]
    fn the_missions_gaps_are_as_written_down() {
        let mission = Workload {
            users: 8,
            rounds: 15,
            qps: 0.1,
        };
        assert_eq!(
            (mission.gap(), mission.gap_users(), mission.alive()),
            (80.0, 140.0, 1120.0)
        );
    }

    #[test]
    fn the_first_session_starts_finished_and_later_ones_resume_in_the_middle() {
        let seen = run(SMALL, 320, 0.125);
        assert_eq!(when(&seen, Event::Ended { user: 1 }), Some(0));
        assert_eq!(asks(&seen, 1), []);
        // Offset 15 s: question 2 was asked 5 s ago, so the third comes more than 5 s from now.
        assert_eq!(asks(&seen, 2), [(41, 3)]);
        // Offset 10 s: question 2 was asked just now. Offset 5 s: question 1, 5 s ago.
        assert_eq!(asks(&seen, 3), [(81, 3)]);
        assert_eq!(asks(&seen, 4), [(41, 2), (122, 3)]);
    }

    #[test]
    fn one_more_user_joins_in_the_first_step_and_then_one_after_more_than_the_gap() {
        let seen = run(SMALL, 128, 0.125);
        let joins = seen.iter().filter_map(|(at, event)| match event {
            Event::Joined { user } => Some((*at, *user)),
            _ => None,
        });
        // Exactly 5 s are not more than 5 s.
        assert_eq!(
            joins.collect::<Vec<_>>(),
            [(0, 5), (41, 6), (82, 7), (123, 8)]
        );
        assert_eq!(asks(&seen, 5), [(0, 1), (81, 2)]);
        assert_eq!(asks(&seen, 6), [(41, 1), (122, 2)]);
    }

    #[test]
    fn a_session_ends_when_its_last_request_has() {
        let seen = run(SMALL, 320, 3.0);
        assert_eq!(asks(&seen, 5), [(0, 1), (81, 2), (162, 3)]);
        assert_eq!(when(&seen, Event::Ended { user: 5 }), Some(186));
    }

    #[test]
    fn a_session_whose_request_is_unfinished_waits_and_says_so_every_ten_seconds() {
        let seen = run(SMALL, 400, 34.0);
        assert_eq!(asks(&seen, 5), [(0, 1), (272, 2)]);
        let behind = seen
            .iter()
            .filter(|(_, event)| *event == Event::Behind { user: 5 });
        let behind: Vec<u64> = behind.map(|(at, _)| *at).collect();
        assert_eq!(behind, [81, 162, 243, 353]);
    }

    #[test]
    fn users_are_numbered_above_the_initial_id() {
        let mut schedule = Schedule::new(SMALL, 10);
        let events = schedule.step(1e9);
        assert_eq!(events[0], Event::Joined { user: 15 });
        assert_eq!(schedule.active(), 4, "the first of five had ended");
    }

    #[test]
    fn ten_minutes_of_the_mission_are_63_requests_of_12_users() {
        let mission = Workload {
            users: 8,
            rounds: 15,
            qps: 0.1,
        };
        let seen = run(mission, 4_800, 4.0);
        // The published 0.1080 reqs/s are 63 requests, the last of which ended after 583.3 s.
        let asked = |user| asks(&seen, user).len();
        let users: Vec<u64> = (1..=13).filter(|&user| asked(user) > 0).collect();
        assert_eq!(users, (2..=13).collect::<Vec<_>>());
        assert_eq!((1..=13).map(asked).sum::<usize>(), 63);
    }

    #[test]
    fn one_round_is_a_new_user_in_every_step() {
        let one = Workload { rounds: 1, ..SMALL };
        let seen = run(one, 3, 0.125);
        assert_eq!(
            [5, 6, 7].map(|user| asks(&seen, user)),
            [[(0, 1)], [(1, 1)], [(2, 1)]]
        );
    }

    /// Lines of "eighth user question": what the original's UserSessionManager asked when it was
    /// stepped like this, with the same time for every answer.
    #[test]
    fn the_original_asks_the_same_in_the_same_steps() {
        let workload = |users, rounds, qps| Workload { users, rounds, qps };
        for (workload, seconds, answer, trace) in [
            (
                workload(8, 15, 0.1),
                600,
                4.0,
                include_str!("traces/users-8-rounds-15-qps-0.1.txt"),
            ),
            (
                workload(4, 3, 0.4),
                60,
                12.0,
                include_str!("traces/users-4-rounds-3-qps-0.4-slow.txt"),
            ),
            (
                workload(15, 20, 1.1),
                60,
                1.5,
                include_str!("traces/users-15-rounds-20-qps-1.1.txt"),
            ),
        ] {
            let seen = run(workload, seconds * 8, answer);
            let asked = seen.iter().filter_map(|(at, event)| match event {
                Event::Ask { user, question } => Some(format!("{at} {user} {question}\n")),
                _ => None,
            });
            assert_eq!(asked.collect::<String>(), trace, "{workload:?}");
        }
    }
}
