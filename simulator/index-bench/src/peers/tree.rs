//! Dynamo's `ConcurrentRadixTreeCompressed`, the index that its router uses by default.
//!
//! Its writes go through its own worker loop alone, so a lane is a thread in that loop, before which
//! we put everything that it is to do. The loop ends a flush by waking whoever waits for it, on its
//! own thread: a waker of ours reads that thread's clocks there, and keeps the thread until it is
//! to go on.

use std::pin::Pin;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use dynamo_kv_router::ConcurrentRadixTreeCompressed;
use dynamo_kv_router::indexer::{SyncIndexer, WorkerTask};
use dynamo_kv_router::protocols::{
    ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData,
    KvCacheStoredBlockData, LocalBlockHash, OverlapScores, RouterEvent,
};
use tokio::sync::oneshot;

use crate::index::{Index, Lane};
use crate::measure::{Moment, Took, between, thread_cpu};
use crate::workload::{Change, Event, Query};

/// The index.
pub struct Tree(ConcurrentRadixTreeCompressed);

/// Stops the lane's thread and tells when it came and went.
struct Gate {
    passes: SyncSender<Moment>,
    opens: Mutex<Receiver<()>>,
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        // A lane that is dropped asks for no times and waits for nothing.
        let _ = self.passes.send(Moment::now());
        let opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = opens.recv();
        let _ = self.passes.send(Moment::now());
    }
}

/// Notes the CPU time at each event's end.
#[derive(Default)]
struct Ticks(Mutex<Vec<Duration>>);

impl Wake for Ticks {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut ticks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ticks.push(thread_cpu());
    }
}

/// A thread in the worker loop.
pub struct TreeLane {
    tasks: flume::Sender<WorkerTask>,
    /// The other end, to take back what was queued.
    queued: flume::Receiver<WorkerTask>,
    gate: Arc<Gate>,
    open: SyncSender<()>,
    passes: Receiver<Moment>,
    /// Whoever sends a flush's answer looks whether anybody waits for it.
    waiting: Vec<oneshot::Receiver<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TreeLane {
    fn new(index: &Arc<Tree>) -> Self {
        let (tasks, receiver) = flume::unbounded();
        let (passed, passes) = sync_channel(4);
        let (open, opens) = sync_channel(1);
        let (index, queued) = (index.clone(), receiver.clone());
        let thread = std::thread::spawn(move || {
            index.0.worker(receiver, None).expect("the loop runs");
        });
        let mut lane = Self {
            tasks,
            queued,
            gate: Arc::new(Gate {
                passes: passed,
                opens: Mutex::new(opens),
            }),
            open,
            passes,
            waiting: Vec::new(),
            thread: Some(thread),
        };
        lane.stop();
        lane.pass();
        lane
    }

    fn task(&self, task: WorkerTask) {
        self.tasks.send(task).expect("the loop runs");
    }

    fn flush(&mut self, waker: &Waker) {
        let (answer, mut answered) = oneshot::channel();
        let waits = Pin::new(&mut answered).poll(&mut Context::from_waker(waker));
        assert!(waits.is_pending(), "nobody has answered yet");
        self.waiting.push(answered);
        self.task(WorkerTask::Flush(answer));
    }

    /// A gate after what is queued.
    fn stop(&mut self) {
        let gate = Waker::from(self.gate.clone());
        self.flush(&gate);
    }

    fn pass(&self) -> Moment {
        self.passes.recv().expect("the loop runs")
    }

    /// From one gate to the next.
    fn go(&mut self) -> Took {
        self.stop();
        self.open.send(()).expect("the loop runs");
        let begun = self.pass();
        let took = begun.until(self.pass());
        self.waiting.clear();
        took
    }
}

impl Drop for TreeLane {
    fn drop(&mut self) {
        // Whichever of these fails, the loop has ended already.
        let _ = self.tasks.send(WorkerTask::Terminate);
        let _ = self.open.send(());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn router_event(event: &Event) -> RouterEvent {
    let data = match &event.change {
        Change::Stored { parent, blocks } => {
            let blocks = blocks.iter().map(|block| KvCacheStoredBlockData {
                block_hash: ExternalSequenceBlockHash(block.engine),
                tokens_hash: LocalBlockHash(block.content),
                mm_extra_info: None,
            });
            KvCacheEventData::Stored(KvCacheStoreData {
                parent_hash: parent.map(ExternalSequenceBlockHash),
                start_position: None,
                blocks: blocks.collect(),
            })
        }
        Change::Removed(engine) => KvCacheEventData::Removed(KvCacheRemoveData {
            block_hashes: vec![ExternalSequenceBlockHash(*engine)],
        }),
    };
    let (event_id, dp_rank) = (0, 0);
    let event_of_cache = KvCacheEvent {
        event_id,
        data,
        dp_rank,
    };
    RouterEvent::new(event.endpoint.into(), event_of_cache)
}

impl Lane for TreeLane {
    fn queue(&mut self, events: &mut dyn Iterator<Item = &Event>) {
        for event in events {
            self.task(WorkerTask::Event(router_event(event)));
        }
    }

    fn run(&mut self) -> Took {
        self.go()
    }

    fn run_each(&mut self) -> Vec<u32> {
        let ticks = Arc::new(Ticks::default());
        let waker = Waker::from(ticks.clone());
        let events: Vec<WorkerTask> = self.queued.drain().collect();
        self.flush(&waker);
        for event in events {
            self.task(event);
            self.flush(&waker);
        }
        self.go();
        let ticks = ticks.0.lock().unwrap_or_else(PoisonError::into_inner);
        between(&ticks)
    }

    fn sweep(&mut self) {
        self.task(WorkerTask::CleanupStaleChildren);
        self.go();
    }
}

impl Index for Tree {
    const NAME: &'static str = "Dynamo CRTC";
    type Lane = TreeLane;
    type Ask<'q> = Vec<LocalBlockHash>;
    /// Its answer is a map of its own, new each time.
    type Room = OverlapScores;

    fn new(_: u32) -> Self {
        Self(ConcurrentRadixTreeCompressed::new())
    }

    fn lane(this: &Arc<Self>) -> TreeLane {
        TreeLane::new(this)
    }

    fn ask(&self, query: &Query) -> Vec<LocalBlockHash> {
        query.contents.iter().copied().map(LocalBlockHash).collect()
    }

    fn room(&self) -> OverlapScores {
        OverlapScores::default()
    }

    fn find(&self, ask: &mut Vec<LocalBlockHash>, room: &mut OverlapScores) {
        *room = self.0.find_matches(ask, false);
    }

    fn found(&self, room: &OverlapScores, tell: &mut dyn FnMut(u32, u32)) {
        for (worker, score) in &room.scores {
            tell(worker.worker_id as u32, *score);
        }
    }
}
