//! A real Prometheus that scrapes pickers and knows alert rules.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;

use serde_json::{Value, json};

use super::harness::{PATIENCE, http, soon};
use super::root;

/// Killed when dropped.
pub struct Prometheus {
    address: SocketAddr,
    _child: tokio::process::Child,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Scrapes each of these every second, under its namespace, and has these rules.
    pub async fn start(pickers: &[(&str, SocketAddr)], rules: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("bound");
        drop(free);
        let target = |(namespace, admin): &(&str, SocketAddr)| json!({"targets": [admin.to_string()], "labels": {"namespace": namespace}});
        let targets: Vec<Value> = pickers.iter().map(target).collect();
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "kvscout", "static_configs": targets}],
        });
        fs::write(folder.path().join("rules.yaml"), rules).expect("written");
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config.to_string()).expect("written");
        let child =
            tokio::process::Command::new(root().join(".tools/prometheus/usr/bin/prometheus"))
                .arg(format!("--config.file={}", file.display()))
                .arg(format!("--storage.tsdb.path={}", folder.path().display()))
                .arg(format!("--web.listen-address={address}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("run make test-dashboards");
        let started = Self {
            address,
            _child: child,
            _folder: folder,
        };
        // Rates need one from before the load.
        soon("Prometheus has scraped", async {
            let all = format!("count(kvscout_build_info) == {}", pickers.len());
            while !started.has_data(&all).await {
                tokio::time::sleep(PATIENCE / 100).await;
            }
        })
        .await;
        started
    }

    /// Whether an expression gives a number; it is a failure that Prometheus does not understand it.
    pub async fn has_data(&self, expr: &str) -> bool {
        let asked = form_urlencoded::Serializer::new(String::new());
        let asked = { asked }.append_pair("query", expr).finish();
        let Ok(answer) = http::try_get(self.address, &format!("/api/v1/query?{asked}")).await
        else {
            return false;
        };
        assert_eq!(answer.status, 200, "{expr}: {answer:?}");
        let answer = answer.json();
        let found = answer["data"]["result"].as_array().expect("a list");
        found.iter().any(|one| one["value"][1] != "NaN")
    }

    /// The alert rules, and how each fares.
    pub async fn rules(&self) -> Vec<Value> {
        let answer = http::get(self.address, "/api/v1/rules").await.json();
        let groups = answer["data"]["groups"].as_array().expect("groups");
        let rules = groups.iter().flat_map(|group| group["rules"].as_array());
        rules.flatten().cloned().collect()
    }
}
