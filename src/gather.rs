//! What is sent one by one is taken in batches: for whoever writes or sends what others leave him.
//!
//! The queue has a limit, and whoever sends never waits: what does not fit is his to count.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::time::sleep;

/// Takes from a queue until it is told to end, and then what is left in it.
pub struct Gather<T> {
    queue: Receiver<T>,
    /// How long others are waited for once one is there.
    wait: Duration,
    batch_max: usize,
    ending: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
}

impl<T> Gather<T> {
    /// Batches of so many, each at most that long after its first.
    pub fn new(
        queue: Receiver<T>,
        (wait, batch_max): (Duration, usize),
        ending: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self {
            queue,
            wait,
            batch_max,
            ending: Box::pin(ending),
            ended: false,
        }
    }

    /// The next batch; none where no more will come.
    pub async fn next(&mut self) -> Option<Vec<T>> {
        let mut batch = Vec::new();
        if !self.ended {
            tokio::select! {
                taken = self.queue.recv_many(&mut batch, self.batch_max) => if taken == 0 {
                    return None;
                },
                () = &mut self.ending => self.end(),
            }
        }
        if !batch.is_empty() && batch.len() < self.batch_max {
            self.pause(self.wait).await;
        }
        while batch.len() < self.batch_max
            && let Ok(next) = self.queue.try_recv()
        {
            batch.push(next);
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// Waits so long, or until it is told to end.
    pub async fn pause(&mut self, time: Duration) {
        if self.ended {
            return;
        }
        tokio::select! {
            () = sleep(time) => {}
            () = &mut self.ending => self.end(),
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.queue.close();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    const WAIT: Duration = Duration::from_millis(50);

    #[tokio::test(start_paused = true)]
    async fn what_comes_within_the_wait_is_one_batch() {
        let (sender, queue) = mpsc::channel(8);
        let mut gather = Gather::new(queue, (WAIT, 8), std::future::pending());
        sender.try_send(1).expect("room");
        let sending = async {
            sleep(WAIT / 2).await;
            sender.try_send(2).expect("room");
            sleep(WAIT).await;
            sender.try_send(3).expect("room");
            drop(sender);
        };
        let taking = async {
            let mut batches = Vec::new();
            while let Some(batch) = gather.next().await {
                batches.push(batch);
            }
            batches
        };
        let (batches, ()) = tokio::join!(taking, sending);
        assert_eq!(batches, [vec![1, 2], vec![3]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_batch_waits_for_nobody() {
        let (sender, queue) = mpsc::channel(8);
        let mut gather = Gather::new(queue, (WAIT, 2), std::future::pending());
        for number in 0..5 {
            sender.try_send(number).expect("room");
        }
        let began = tokio::time::Instant::now();
        assert_eq!(gather.next().await, Some(vec![0, 1]));
        assert_eq!(gather.next().await, Some(vec![2, 3]));
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(gather.next().await, Some(vec![4]));
        assert_eq!(began.elapsed(), WAIT);
    }

    #[tokio::test(start_paused = true)]
    async fn told_to_end_it_gives_what_is_left_and_takes_no_more() {
        let (sender, queue) = mpsc::channel(8);
        let (end, told) = oneshot::channel();
        let ending = async { told.await.expect("told") };
        let mut gather = Gather::new(queue, (WAIT, 2), ending);
        for number in 0..3 {
            sender.try_send(number).expect("room");
        }
        end.send(()).expect("it listens");
        gather.pause(Duration::from_secs(3_600)).await;
        assert!(sender.try_send(3).is_err(), "closed");
        assert_eq!(gather.next().await, Some(vec![0, 1]));
        assert_eq!(gather.next().await, Some(vec![2]));
        assert_eq!(gather.next().await, None);
    }
}
