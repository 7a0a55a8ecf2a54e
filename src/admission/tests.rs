use std::net::SocketAddr;

use super::*;
use crate::fleet::{Booking, EndpointId, Pool};

const PATIENCE: Duration = Duration::from_secs(20);
static ANYBODY: Scope = Scope {
    pools: Pools::Any,
    subset: None,
};
const STANDARD: Class = Class {
    criticality: Criticality::Standard,
    priority: 0,
};

struct World {
    admission: Arc<Admission>,
    endpoints: Vec<Arc<Endpoint>>,
    metrics: Arc<Metrics>,
    fleet: watch::Sender<Arc<Fleet>>,
}

/// Endpoints at 127.0.0.1:8000 and up that are saturated by more than 100 tokens.
fn world(endpoints: u16, queue_max: usize, wait: Duration) -> World {
    let settings = config::Admission {
        queued_tokens_max: 100,
        queue_max,
        wait_ms_max: wait.as_millis() as u64,
    };
    let endpoint = |n: u16| {
        let address = SocketAddr::from(([127, 0, 0, 1], 8000 + n));
        let id = EndpointId(n.into());
        Arc::new(Endpoint::new(id, format!("pod-{n}"), address, None))
    };
    let endpoints: Vec<_> = (0..endpoints).map(endpoint).collect();
    let (sender, fleet) = watch::channel(Arc::new(Fleet::of(endpoints.clone())));
    let metrics = Arc::<Metrics>::default();
    World {
        admission: Arc::new(Admission::new(
            settings,
            config::Config::default().load.saturation,
            fleet,
            metrics.clone(),
        )),
        endpoints,
        metrics,
        fleet: sender,
    }
}

impl World {
    fn book(&self, endpoint: usize, tokens: u64) -> Booking {
        Booking::new(self.endpoints[endpoint].clone(), tokens, 1, Instant::now())
    }

    /// Lets somebody wait, who books `tokens` at the first endpoint when it is let through.
    async fn waits(&self, class: Class, tokens: u64) -> tokio::task::JoinHandle<Option<Booking>> {
        let (admission, endpoint) = (self.admission.clone(), self.endpoints[0].clone());
        let before = self.admission.waiting();
        let waits = tokio::spawn(async move {
            let turn = admission.admit(class, None, &ANYBODY).await.ok()?;
            let booking = Booking::new(endpoint, tokens, 1, Instant::now());
            drop(turn);
            Some(booking)
        });
        self.until(|| self.admission.waiting() > before).await;
        waits
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        let polled = async {
            while !condition() {
                tokio::task::yield_now().await;
            }
        };
        soon(polled).await;
    }

    fn count(&self, line: &str) -> bool {
        let text = self.metrics.handle().render();
        text.lines().any(|found| found == line)
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("in time")
}

fn class(criticality: Criticality, priority: i32) -> Class {
    Class {
        criticality,
        priority,
    }
}

#[tokio::test]
async fn with_room_everybody_goes_at_once() {
    let world = world(2, 10, PATIENCE);
    let _one_is_full = world.book(0, 101);
    for criticality in [
        Criticality::Critical,
        Criticality::Standard,
        Criticality::Sheddable,
    ] {
        let admitted = world
            .admission
            .admit(class(criticality, 0), None, &ANYBODY)
            .await;
        assert!(admitted.is_ok(), "{criticality:?}");
    }
    assert_eq!(world.admission.waiting(), 0);
}

#[tokio::test]
async fn without_room_the_critical_goes_and_the_sheddable_is_refused() {
    let world = world(1, 10, PATIENCE);
    let _full = world.book(0, 101);
    let admit = async |criticality| {
        let turn = world
            .admission
            .admit(class(criticality, 0), None, &ANYBODY)
            .await;
        turn.map(|_| ())
    };
    assert_eq!(admit(Criticality::Critical).await, Ok(()));
    assert_eq!(admit(Criticality::Sheddable).await, Err(Shed::Saturated));
    let counted = "kvscout_requests_shed_total{reason=\"saturated\",criticality=\"Sheddable\"} 1";
    assert!(world.count(counted));
    assert_eq!(world.admission.at_once(STANDARD, &ANYBODY), Ok(()));
}

#[tokio::test]
async fn room_is_what_the_subset_has() {
    let world = world(2, 10, PATIENCE);
    let _full = world.book(0, 101);
    let sheddable = class(Criticality::Sheddable, 0);
    let within = |name: &str| {
        let scope = Scope {
            subset: Some(vec![name.to_owned()]),
            ..Scope::default()
        };
        world.admission.at_once(sheddable, &scope)
    };
    assert_eq!(within("127.0.0.1:8000"), Err(Shed::Saturated));
    assert_eq!(within("127.0.0.1:8001"), Ok(()));
    assert_eq!(
        within("10.0.0.1"),
        Ok(()),
        "nobody at all is another refusal"
    );
}

#[tokio::test]
async fn what_one_frees_lets_one_through_and_the_more_important_first() {
    let world = world(1, 10, PATIENCE);
    let full = world.book(0, 101);
    let first = world.waits(STANDARD, 101).await;
    let second = world.waits(STANDARD, 101).await;
    let important = world.waits(class(Criticality::Standard, 3), 101).await;
    drop(full);
    world.admission.freed();
    let important = soon(important).await.expect("no panic").expect("served");
    assert_eq!(world.admission.waiting(), 2, "it fills the endpoint");
    // The turn that ends calls nobody; only room does.
    assert!(!first.is_finished() && !second.is_finished());
    drop(important);
    world.admission.freed();
    let first = soon(first).await.expect("no panic").expect("served");
    assert_eq!(world.admission.waiting(), 1);
    drop(first);
    world.admission.freed();
    assert!(soon(second).await.expect("no panic").is_some());
}

#[tokio::test]
async fn room_for_many_is_passed_on_by_each() {
    let world = world(1, 100, PATIENCE);
    let full = world.book(0, 101);
    let mut waiting = Vec::new();
    for _ in 0..50 {
        waiting.push(world.waits(STANDARD, 1).await);
    }
    drop(full);
    world.admission.freed();
    for one in waiting {
        assert!(soon(one).await.expect("no panic").is_some());
    }
}

#[tokio::test]
async fn an_endpoint_that_joins_takes_those_who_wait() {
    let world = world(1, 10, PATIENCE);
    let _full = world.book(0, 101);
    let waits = world.waits(STANDARD, 1).await;
    let address = SocketAddr::from(([127, 0, 0, 1], 9000));
    let joins = Endpoint::new(EndpointId(9), "pod-9".into(), address, None);
    world.fleet.send_modify(|fleet| {
        let mut endpoints = fleet.endpoints.clone();
        endpoints.push(Arc::new(joins));
        *fleet = Arc::new(Fleet::of(endpoints));
    });
    assert!(soon(waits).await.expect("no panic").is_some());
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_at_once_even_if_it_was_just_called() {
    let world = world(1, 10, PATIENCE);
    let full = world.book(0, 101);
    let gone = world.waits(STANDARD, 101).await;
    gone.abort();
    world.until(|| world.admission.waiting() == 0).await;
    // One that is called and dropped before it hears of it: the call goes to the next.
    let mut called = Box::pin(world.admission.admit(STANDARD, None, &ANYBODY));
    assert!(futures::poll!(&mut called).is_pending());
    let next = world.waits(STANDARD, 101).await;
    drop(full);
    world.admission.freed();
    assert_eq!(world.admission.waiting(), 1, "the first was called");
    drop(called);
    assert!(soon(next).await.expect("no panic").is_some());
}

#[tokio::test]
async fn who_waited_long_enough_goes_all_the_same() {
    let world = world(1, 10, Duration::from_millis(20));
    let _full = world.book(0, 101);
    let late = world.waits(STANDARD, 7).await;
    assert!(soon(late).await.expect("no panic").is_some());
    let counted = "kvscout_admission_wait_seconds_count{outcome=\"deadline\"} 1";
    assert!(world.count(counted));
}

#[tokio::test]
async fn a_full_line_refuses_the_last_and_a_line_of_nobody_nobody() {
    let full_line = world(1, 1, PATIENCE);
    let _full = full_line.book(0, 101);
    let last = full_line.waits(STANDARD, 1).await;
    let refused = full_line
        .admission
        .admit(STANDARD, None, &ANYBODY)
        .await
        .map(|_| ());
    assert_eq!(refused, Err(Shed::QueueFull));
    let mut important = Box::pin(full_line.admission.admit(
        class(Criticality::Standard, 1),
        None,
        &ANYBODY,
    ));
    assert!(futures::poll!(&mut important).is_pending());
    assert!(soon(last).await.expect("no panic").is_none(), "put out");
    assert_eq!(full_line.admission.waiting(), 1);

    let no_line = world(1, 0, PATIENCE);
    let _full = no_line.book(0, 101);
    assert!(
        no_line
            .admission
            .admit(STANDARD, None, &ANYBODY)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_pool_whose_line_is_full_stands_in_no_other_ones_way() {
    let world = world(2, 1, PATIENCE);
    let pool = |name: &str, endpoint: usize| Pool {
        name: name.into(),
        namespace: "llm".into(),
        services: Vec::new(),
        fleet: Arc::new(Fleet::of(vec![world.endpoints[endpoint].clone()])),
    };
    let pools = vec![pool("full", 0), pool("free", 1)];
    let fleet = Fleet::of(world.endpoints.clone()).with_pools(pools);
    world.fleet.send_replace(Arc::new(fleet));
    let of = |name: &str| Scope {
        pools: Pools::One(name.into()),
        subset: None,
    };
    let (full, free) = (of("full"), of("free"));
    let booked = world.book(0, 101);
    let mut waits = Box::pin(world.admission.admit(STANDARD, None, &full));
    assert!(futures::poll!(&mut waits).is_pending());
    let refused = world
        .admission
        .admit(STANDARD, None, &full)
        .await
        .map(|_| ());
    assert_eq!(refused, Err(Shed::QueueFull));
    let mut other = Box::pin(world.admission.admit(STANDARD, None, &free));
    assert!(matches!(
        futures::poll!(&mut other),
        std::task::Poll::Ready(Ok(_))
    ));
    let _booked = world.book(1, 101);
    let mut second = Box::pin(world.admission.admit(STANDARD, None, &free));
    assert!(
        futures::poll!(&mut second).is_pending(),
        "it has a line of its own"
    );
    assert_eq!(world.admission.waiting(), 2);
    drop(booked);
    world.admission.freed();
    assert!(soon(waits).await.is_ok(), "and is called past others");
}

#[tokio::test]
async fn a_newcomer_does_not_pass_those_who_wait() {
    let world = world(1, 10, PATIENCE);
    let full = world.book(0, 101);
    let first = world.waits(STANDARD, 101).await;
    // There is room, and nobody has said so yet.
    drop(full);
    let mut second = Box::pin(world.admission.admit(STANDARD, None, &ANYBODY));
    assert!(futures::poll!(&mut second).is_pending());
    assert!(soon(first).await.expect("no panic").is_some());
}

#[test]
fn a_refusal_names_a_time_after_which_those_who_wait_have_gone() {
    let after = |ms| {
        world(1, 1, Duration::from_millis(ms))
            .admission
            .retry_after_s()
    };
    assert_eq!((after(0), after(1_000), after(2_001)), (1, 1, 3));
}
