use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::*;

const INTERVAL: Duration = Duration::from_secs(1);
/// What a page takes, in virtual time.
const TAKES: Duration = Duration::from_millis(10);

const PAGE: &str = "\
vllm:num_requests_running{engine=\"0\"} 2
vllm:num_requests_running{engine=\"1\"} 5
vllm:num_requests_waiting{engine=\"0\"} 1
vllm:num_requests_waiting{engine=\"1\"} 0
";

type Answer = BoxFuture<'static, Result<Vec<u8>, AskError>>;

/// Who was read, when, and how many at once: in virtual time, without sockets.
#[derive(Clone, Default)]
struct Servers(Arc<Seen>);

#[derive(Default)]
struct Seen {
    /// Since the beginning, by url.
    asked: Mutex<Vec<(String, Duration)>>,
    at_once: AtomicUsize,
    at_once_max: AtomicUsize,
}

impl Servers {
    /// Answers as `of` says: a page, or nothing at all.
    fn get(
        &self,
        of: impl Fn(&str) -> bool + Clone + Send + Sync + 'static,
    ) -> impl Fn(String) -> Answer + Clone + Send + Sync + 'static {
        let (seen, began) = (self.0.clone(), Instant::now());
        move |url| {
            let (seen, answers) = (seen.clone(), of(&url));
            Box::pin(async move {
                seen.asked.lock().push((url, began.elapsed()));
                let at_once = seen.at_once.fetch_add(1, Ordering::Relaxed) + 1;
                seen.at_once_max.fetch_max(at_once, Ordering::Relaxed);
                let answer = async {
                    match answers {
                        true => sleep(TAKES).await,
                        false => std::future::pending().await,
                    }
                };
                let answer = timeout(ANSWER_MAX, answer).await;
                seen.at_once.fetch_sub(1, Ordering::Relaxed);
                match answer {
                    Ok(()) => Ok(PAGE.into()),
                    Err(_) => Err(AskError::Late(ANSWER_MAX)),
                }
            })
        }
    }

    /// Times at which an url that ends so was asked for.
    fn asked(&self, end: &str) -> Vec<Duration> {
        let asked = self.0.asked.lock();
        let of = asked.iter().filter(|(url, _)| url.ends_with(end));
        of.map(|(_, at)| *at).collect()
    }
}

fn endpoint(id: u32, port: u16) -> Endpoint {
    let address = SocketAddr::from(([10, 0, (id / 250) as u8, (id % 250) as u8], port));
    Endpoint::new(EndpointId(id), format!("pod-{id}"), address, None)
}

fn fleet(
    endpoints: impl IntoIterator<Item = Endpoint>,
) -> (watch::Sender<Arc<Fleet>>, Scraper, Vec<Arc<Endpoint>>) {
    let endpoints: Vec<_> = endpoints.into_iter().map(Arc::new).collect();
    let (sender, fleet) = watch::channel(Arc::new(Fleet::of(endpoints.clone())));
    let scraper = Scraper {
        fleet,
        settings: config::Load::default(),
        metrics: Arc::default(),
        told: Arc::new(|| ()),
    };
    (sender, scraper, endpoints)
}

#[tokio::test(start_paused = true)]
async fn five_hundred_pages_are_spread_over_the_interval_and_few_are_read_at_once() {
    let (servers, (_fleet, scraper, endpoints)) = (
        Servers::default(),
        fleet((0..500).map(|id| endpoint(id, 80))),
    );
    let scraping = scraper.run_with(servers.get(|_| true));
    // The first second is the second in which they take their places.
    let seconds = 5;
    let _ended = timeout(INTERVAL * seconds, scraping).await;
    let asked = servers.asked("");
    for tenth in 10..(seconds as u128 - 1) * 10 {
        let within = asked.iter().filter(|at| at.as_millis() / 100 == tenth);
        let within = within.count();
        assert!((45..=55).contains(&within), "{within} in tenth {tenth}");
    }
    let at_once = servers.0.at_once_max.load(Ordering::Relaxed);
    assert!(
        (5..=10).contains(&at_once),
        "500 a second, 10 ms each: {at_once}"
    );
    let now = Instant::now().into_std();
    for endpoint in &endpoints {
        let (report, age) = endpoint.load.report(now).expect("read");
        assert_eq!((report.waiting, report.running), (1, 7));
        assert!(age <= INTERVAL + STEP_MAX + TAKES * 2, "{age:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_lanes_bound_what_is_read_at_once_whatever_hangs() {
    let (servers, (_fleet, scraper, _)) = (
        Servers::default(),
        fleet((0..500).map(|id| endpoint(id, 80))),
    );
    let scraping = scraper.run_with(servers.get(|_| false));
    let _ended = timeout(INTERVAL * 60, scraping).await;
    let at_once = servers.0.at_once_max.load(Ordering::Relaxed);
    assert_eq!(at_once, AT_ONCE + AT_ONCE_FAILED);
}

#[tokio::test(start_paused = true)]
async fn servers_that_hang_are_read_less_often_and_keep_nobody_waiting() {
    // Forty hang, on port 81, and ten answer.
    let all = (0..50).map(|id| endpoint(id, if id < 40 { 81 } else { 80 }));
    let (servers, (_fleet, scraper, endpoints)) = (Servers::default(), fleet(all));
    let metrics = scraper.metrics.clone();
    let scraping = scraper.run_with(servers.get(|url| url.ends_with(":80/metrics")));
    let _ended = timeout(INTERVAL * 120, scraping).await;
    let of_one = servers.asked("10.0.0.0:81/metrics");
    let gaps: Vec<_> = of_one
        .windows(2)
        .map(|two| (two[1] - two[0]).as_secs())
        .collect();
    // Passed over: 1, 3, 7, 15, 30. Its turn in the lane of those who hang may take it further.
    assert!(
        gaps.len() <= 7 && gaps[0] >= 2 && gaps[4..].iter().all(|gap| *gap >= 31),
        "{gaps:?}"
    );
    // The first two seconds are the time in which hanging is found out.
    let well = servers.asked("10.0.0.45:80/metrics");
    let late = |two: &[Duration]| two[1] - two[0] > INTERVAL + TAKES;
    let settled: Vec<_> = well.into_iter().filter(|at| *at > INTERVAL * 4).collect();
    assert!(
        settled.len() >= 114 && !settled.windows(2).any(late),
        "{settled:?}"
    );
    assert_eq!(endpoints[0].load.report(Instant::now().into_std()), None);
    let text = metrics.handle().render();
    let count = format!(
        "kvscout_scrape_failures_total{{endpoint=\"pod-0\",reason=\"late\"}} {}",
        of_one.len()
    );
    assert!(text.contains(&count), "{count}\n{text}");
}

#[tokio::test(start_paused = true)]
async fn ranks_share_a_page_and_one_that_leaves_is_read_no_more() {
    let ranks = [endpoint(0, 80).of_rank(0), endpoint(0, 80).of_rank(1)];
    let others = [endpoint(1, 81)];
    let (servers, (sender, scraper, endpoints)) =
        (Servers::default(), fleet(ranks.into_iter().chain(others)));
    let scraping = tokio::spawn(scraper.run_with(servers.get(|_| true)));
    // Its place in the first interval decides whether the last one is in.
    let in_ten = |times: usize| (9..=10).contains(&times);
    sleep(INTERVAL * 10).await;
    let shared = servers.asked(":80/metrics").len();
    assert!(in_ten(shared), "once for both: {shared}");
    let gone = servers.asked(":81/metrics").len();
    assert!(in_ten(gone), "{gone}");
    let running = |endpoint: &Arc<Endpoint>| {
        let report = endpoint.load.report(Instant::now().into_std());
        report.map(|(report, _)| report.running)
    };
    let running: Vec<_> = endpoints.iter().map(running).collect();
    assert_eq!(running, [Some(2), Some(5), Some(7)], "each its own");
    sender.send_replace(Arc::new(Fleet::of(endpoints[..2].to_vec())));
    sleep(INTERVAL * 10).await;
    assert_eq!(servers.asked(":81/metrics").len(), gone);
    assert_eq!(servers.asked(":80/metrics").len(), shared + 10);
    drop(sender);
    scraping.await.expect("it ends with its fleet");
}

#[test]
fn pauses_grow_to_half_a_minute() {
    let of = |failures| pause(failures, INTERVAL);
    assert_eq!([of(0), of(1), of(2), of(3)], [0, 1, 3, 7]);
    assert_eq!([of(5), of(40), of(u32::MAX)], [30; 3]);
    assert_eq!(pause(9, Duration::from_secs(60)), 0, "it is slow as it is");
}

#[test]
fn where_metrics_are_can_be_told() {
    let (_fleet, mut scraper, endpoints) = fleet([endpoint(7, 8000)]);
    let address = endpoints[0].address;
    assert_eq!(scraper.url(address), "http://10.0.0.7:8000/metrics");
    scraper.settings.scrape_port = Some(9_100);
    scraper.settings.scrape_path = "/vllm".into();
    assert_eq!(scraper.url(address), "http://10.0.0.7:9100/vllm");
    let six = "[fd00::7]:8000".parse().expect("an address");
    assert_eq!(scraper.url(six), "http://[fd00::7]:9100/vllm");
}
