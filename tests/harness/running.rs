//! kvscout as its process runs it, within the test's own.

use kvscout::app::{self, Bound};
use kvscout::config::{Config, FleetSource};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{PATIENCE, http, soon};

/// A whole kvscout on free ports.
pub struct Running {
    pub bound: Bound,
    end: Option<oneshot::Sender<()>>,
    task: JoinHandle<anyhow::Result<()>>,
    _folder: Option<tempfile::TempDir>,
}

impl Running {
    /// Starts, and will end without notice.
    pub async fn start(mut config: Config) -> Self {
        let any = "127.0.0.1:0".parse().expect("an address");
        let listen = &mut config.listen;
        (listen.ext_proc, listen.health, listen.admin) = (any, any, any);
        config.limits.drain_notice_ms = 0;
        let app = app::build(config).await.expect("run make setup");
        let bound = app.bound();
        let (end, ended) = oneshot::channel::<()>();
        let task = tokio::spawn(app.run(async {
            // A dropped sender is an end as well.
            let _ = ended.await;
        }));
        Self {
            bound,
            end: Some(end),
            task,
            _folder: None,
        }
    }

    /// Starts over a fleet file of this text.
    pub async fn over(fleet: &str, config: Config) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("fleet.yaml");
        std::fs::write(&file, fleet).expect("written");
        let config = Config {
            fleet: FleetSource::File(file),
            ..config
        };
        Self {
            _folder: Some(folder),
            ..Self::start(config).await
        }
    }

    /// A page of the admin port.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let answer = http::get(self.bound.admin, path).await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        (answer.status, text)
    }

    /// Waits for a page to say something that nothing announces.
    pub async fn until(&self, path: &str, what: &str, seen: impl Fn(u16, &str) -> bool) {
        soon(what, async {
            loop {
                let (status, text) = self.get(path).await;
                if seen(status, &text) {
                    return;
                }
                tokio::time::sleep(PATIENCE / 1000).await;
            }
        })
        .await;
    }

    pub async fn ready(&self) {
        self.until("/readyz", "ready", |status, _| status == 200)
            .await;
    }

    /// Waits for a line of the metrics.
    pub async fn counts(&self, line: &str) {
        let found = |_, text: &str| text.lines().any(|one| one == line);
        self.until("/metrics", line, found).await;
    }

    /// Is gone from one moment to the next.
    pub fn die(&self) {
        self.task.abort();
    }

    pub async fn shut_down(mut self) {
        self.end.take();
        let ended = soon("kvscout ends", &mut self.task).await;
        ended.expect("no panic").expect("a clean end");
    }
}
