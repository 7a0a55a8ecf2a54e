//! Whether a server works and never says so: vLLM publishes nothing unless it is told to.
//! Pure: time is a parameter.

use std::time::{Duration, Instant};

use crate::fleet::{EventAddress, Publisher};

/// From an answer that must have stored blocks to the verdict that its event does not come. vLLM
/// publishes with the step itself, milliseconds before the answer; where a queue is full or
/// machines stall, seconds after. A lost connection is up again after 5 s at most, so a few of
/// them fit.
pub const SILENT_AFTER: Duration = Duration::from_secs(30);

/// Watches for the first event of one server.
#[derive(Debug, Default)]
pub struct Silence {
    /// Since when an event is overdue.
    since: Option<Instant>,
    told: bool,
}

impl Silence {
    /// What the server said until now was not heard, and accuses nobody: its publisher answered just
    /// now, or its bridge is away.
    pub fn on_unheard(&mut self) {
        self.since = None;
    }

    /// Looks again: whether anything was ever heard, and whether the server has computed a prompt
    /// since the last look. `true` once, when it has been silent for `after`.
    pub fn look(&mut self, heard: bool, computed: bool, now: Instant, after: Duration) -> bool {
        if heard {
            *self = Self::default();
            return false;
        }
        if computed {
            self.since.get_or_insert(now);
        }
        let silent = self.since.is_some_and(|since| now - since >= after);
        silent && !std::mem::replace(&mut self.told, true)
    }
}

/// For an operator: what to set, for the address that is listened to, where it is known.
#[must_use]
pub fn advice(events: Option<&EventAddress>) -> String {
    let at = |address: &str| {
        let port = address.rsplit(':').next().unwrap_or_default();
        format!("tcp://*:{port}")
    };
    let mut config = serde_json::json!({
        "enable_kv_cache_events": true,
        "publisher": "zmq",
        "endpoint": match events.map(|events| &events.publisher) {
            Some(Publisher::At(address)) => at(address),
            Some(Publisher::Connects) => "tcp://KVSCOUT:PORT_OF_EVENTS_BIND".to_owned(),
            Some(Publisher::Discovered) => at(":0"),
            None => at(":5557"),
        },
    });
    if let Some(replay) = events.and_then(|events| events.replay.as_ref()) {
        config["replay_endpoint"] = at(replay).into();
    }
    format!(
        "it answers requests and has never sent an event: start vLLM with --kv-events-config \
         '{config}' and --enable-prefix-caching (docs/runbook.md#silent-endpoints)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(30);

    /// The seconds at which it is told, of looks once a second at a server that computes at
    /// `computed`, is connected to at `connected` and heard from `heard` on.
    fn told(computed: &[u64], connected: &[u64], heard: u64) -> Vec<u64> {
        let (begun, mut silence) = (Instant::now(), Silence::default());
        let mut told = Vec::new();
        for second in 0..200 {
            if connected.contains(&second) {
                silence.on_unheard();
            }
            let now = begun + Duration::from_secs(second);
            let works = computed.contains(&second);
            if silence.look(second >= heard, works, now, AFTER) {
                told.push(second);
            }
        }
        told
    }

    const NEVER: u64 = 1_000;

    #[test]
    fn who_works_and_says_nothing_is_told_of_once() {
        assert_eq!(told(&[5, 6, 90], &[0], NEVER), [35]);
        assert_eq!(told(&[5], &[], NEVER), [35], "its publisher refuses us");
    }

    #[test]
    fn who_does_not_work_has_nothing_to_say() {
        assert_eq!(told(&[], &[0], NEVER), [0; 0]);
    }

    #[test]
    fn what_was_computed_before_we_were_connected_accuses_nobody() {
        assert_eq!(told(&[5], &[0, 20], NEVER), [0; 0]);
        assert_eq!(told(&[5, 21], &[0, 20], NEVER), [51]);
    }

    #[test]
    fn one_event_clears_a_server() {
        assert_eq!(told(&[5, 50], &[0], 34), [0; 0]);
        assert_eq!(told(&[5], &[0], 36), [35]);
    }

    #[test]
    fn the_advice_names_the_ports_that_we_listen_to() {
        let events = EventAddress {
            publisher: Publisher::At("tcp://10.0.0.1:5557".into()),
            replay: Some("tcp://10.0.0.1:5558".into()),
        };
        let advice = advice(Some(&events));
        assert!(advice.contains("--enable-prefix-caching"), "{advice}");
        let config = advice.split("--kv-events-config '").nth(1);
        let config = config.and_then(|rest| rest.split('\'').next());
        let config: serde_json::Value =
            serde_json::from_str(config.expect("quoted")).expect("JSON");
        let expected = serde_json::json!({
            "enable_kv_cache_events": true, "publisher": "zmq",
            "endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558",
        });
        assert_eq!(config, expected);
    }
}
