//! Servers that come, go and die while the others serve.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{FOLLOW_MAX, Stack, start};

impl Stack {
    /// Another server, with an empty cache, on ports of its own; kvscout reads of it within a second.
    ///
    /// # Errors
    /// It does not start.
    pub async fn add_pod(&mut self) -> anyhow::Result<()> {
        self.numbered += 1;
        let pod = start::pod(&self.plan, self.numbered, &self.elsewhere).await?;
        self.pods.push(pod);
        start::write_fleet(&self.pods, self.folder.path())
    }

    /// The oldest server leaves, as a pod that is drained does: when kvscout knows of it, it ends.
    ///
    /// # Errors
    /// There is none, or kvscout does not forget it in time.
    pub async fn drop_pod(&mut self) -> anyhow::Result<()> {
        ensure!(self.pods.len() > 1, "the last server stays");
        let pod = self.pods.remove(0);
        start::write_fleet(&self.pods, self.folder.path())?;
        let (http, url) = (
            self.http.clone(),
            format!("http://{}/endpoints", self.admin),
        );
        let look = async || {
            let page = http.get(&url).send().await.ok()?.bytes().await.ok()?;
            let all: Vec<Value> = serde_json::from_slice(&page).ok()?;
            let is_there = all.iter().any(|one| one["name"] == pod.name.as_str());
            (!is_there).then_some(())
        };
        let what = format!("{} to be forgotten", pod.name);
        self.kvscout.until(&what, FOLLOW_MAX, look).await?;
        pod.server.shutdown().await;
        Ok(())
    }

    /// A server's process dies, and another takes its ports: no blocks, batches from 0, other hashes.
    ///
    /// # Errors
    /// It does not come back.
    pub async fn restart_pod(&self, at: usize) -> anyhow::Result<()> {
        let pod = self.pods.get(at).context("there is such a server")?;
        let url = format!("http://{}/sim/restart", pod.address());
        let seed = u64::from_le_bytes(*b"restart\0") ^ pod.address().port() as u64;
        let body = json!({"seed": seed}).to_string();
        let asked = self.http.post(url).body(body).timeout(FOLLOW_MAX);
        let answer = asked.send().await?;
        ensure!(
            answer.status().is_success(),
            "{} does not restart: {}",
            pod.name,
            answer.text().await?
        );
        Ok(())
    }
}
