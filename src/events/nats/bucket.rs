//! Snapshots in a bucket of the cluster: what a server held at a place in the stream.

use std::time::Duration;

use async_nats::jetstream::object_store::{self, ObjectStore};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::{Cluster, NatsError};
use crate::events::snapshot::{self, Snapshot};
use crate::fleet::Endpoint;

/// To write or read a snapshot: 20 MB over a slow link.
const SNAPSHOT_MAX: Duration = Duration::from_secs(20);
/// To read a part of a snapshot, 128 kB, before it is looked whether it is still there.
const PART_MAX: Duration = Duration::from_secs(1);

impl Cluster {
    pub(super) fn bucket(&self) -> String {
        format!("{}_SNAPSHOTS", self.settings.stream.name)
    }

    pub(super) fn bucket_config(&self) -> object_store::Config {
        object_store::Config {
            bucket: self.bucket(),
            description: Some("what vLLM's KV caches held, for kvscout".to_owned()),
            storage: self.storage(),
            num_replicas: self.settings.stream.replicas,
            placement: self.placement(),
            // A server that is gone for a day does not come back as it was.
            max_age: Duration::from_secs(86_400),
            max_bytes: -1,
            ..object_store::Config::default()
        }
    }

    async fn snapshots(&self) -> Result<ObjectStore, NatsError> {
        let what = format!(
            "the bucket {} (`kvscout bridge --init` makes it)",
            self.bucket()
        );
        let found = self.jetstream.get_object_store(self.bucket()).await;
        found.map_err(|error| NatsError::new(&what, &error))
    }

    /// An endpoint's newest snapshot, if there is one to use.
    ///
    /// # Errors
    /// There is no bucket, or nobody answers.
    pub async fn read_snapshot(&self, endpoint: &Endpoint) -> Result<Option<Snapshot>, NatsError> {
        let bucket = self.snapshots().await?;
        let read = async {
            let bytes = read_object(&bucket, &self.object(endpoint)).await?;
            let snapshot = bytes.map(|bytes| Snapshot::from_bytes(&bytes));
            snapshot.transpose().map_err(|error| error.to_string())
        };
        match timeout(SNAPSHOT_MAX, read).await {
            Ok(Ok(snapshot)) => Ok(snapshot),
            Ok(Err(error)) => {
                tracing::warn!(endpoint = endpoint.name, error, "a snapshot is of no use");
                Ok(None)
            }
            Err(_late) => Ok(None),
        }
    }

    /// Keeps an endpoint's snapshot in place of the one before.
    ///
    /// # Errors
    /// There is no bucket, nobody answers, or not in time.
    pub async fn write_snapshot(
        &self,
        endpoint: &Endpoint,
        snapshot: &[u8],
    ) -> Result<(), NatsError> {
        let write = async {
            let (bucket, mut bytes) = (self.snapshots().await?, snapshot);
            let put = bucket.put(self.object(endpoint).as_str(), &mut bytes).await;
            put.map_err(|error| NatsError::new("a snapshot", &error))
        };
        match timeout(SNAPSHOT_MAX, write).await {
            Ok(done) => done.map(|_info| ()),
            Err(late) => Err(NatsError::new("a snapshot", &late)),
        }
    }
}

/// An object as it is now; none where there is none. Another may take its place at any time: what
/// is not read yet of the former is gone then, and async-nats 0.51 waits for it for good.
async fn read_object(bucket: &ObjectStore, name: &str) -> Result<Option<Vec<u8>>, String> {
    loop {
        let Ok(object) = bucket.get(name).await else {
            return Ok(None);
        };
        let (size, nuid) = (object.info().size, object.info().nuid.clone());
        if size > snapshot::BYTES_MAX {
            return Err(format!("{size} bytes are more than any picture takes"));
        }
        let mut bytes = Vec::with_capacity(size);
        let mut object = object.take(size as u64);
        loop {
            let failed = match timeout(PART_MAX, object.read_buf(&mut bytes)).await {
                Ok(Ok(0)) => return Ok(Some(bytes)),
                Ok(Ok(_more)) => continue,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_late) => None,
            };
            let now = bucket.info(name).await.map_err(|error| error.to_string())?;
            match failed {
                _ if now.nuid != nuid => break,
                Some(error) => return Err(error),
                None => {}
            }
        }
    }
}
