//! A door whose connections are spread over several runtimes, and stay where they are.

use std::io;
use std::sync::Arc;

use futures::stream::{self, Stream};
use tokio::sync::mpsc;

use super::{Connection, Door, Front, Guest, Hall};

/// Who may stand between the front and an entrance, where handshakes begin at once.
const GUESTS_MAX: usize = 16;

/// Takes connections in, and leads each to the entrance that has the fewest.
pub struct Usher {
    front: Front,
    ways: Vec<Way>,
}

/// To one entrance.
struct Way {
    guests: mpsc::Sender<Guest>,
    /// Cloned into each of its connections.
    counted: Arc<()>,
}

/// Where one runtime's connections shake hands.
pub struct Entrance {
    guests: mpsc::Receiver<Guest>,
    hall: Hall,
}

impl Door {
    /// This door for so many runtimes, at least one.
    #[must_use]
    pub fn split(self, entrances: usize) -> (Usher, Vec<Entrance>) {
        let Self { front, hall } = self;
        let pairs = (0..entrances.max(1)).map(|_| {
            let (sender, guests) = mpsc::channel(GUESTS_MAX);
            let way = Way {
                guests: sender,
                counted: Arc::default(),
            };
            let hall = hall.another();
            (way, Entrance { guests, hall })
        });
        let (ways, entrances) = pairs.unzip();
        (Usher { front, ways }, entrances)
    }
}

impl Usher {
    /// Leads everybody to an entrance, until one has closed.
    pub async fn run(mut self) {
        loop {
            let mut guest = self.front.next().await;
            let fewest = |way: &&Way| Arc::strong_count(&way.counted);
            let Some(way) = self.ways.iter().min_by_key(fewest) else {
                return;
            };
            guest.seat.entrance = Some(way.counted.clone());
            if way.guests.send(guest).await.is_err() {
                return;
            }
        }
    }
}

impl Entrance {
    /// Those who came in here, one after another, until no usher brings more.
    pub fn connections(self) -> impl Stream<Item = io::Result<Connection>> {
        stream::unfold(self, |mut entrance| async move {
            loop {
                tokio::select! {
                    guest = entrance.guests.recv() => entrance.hall.receive(guest?),
                    (connection, _) = entrance.hall.entered() => return Some((Ok(connection), entrance)),
                }
            }
        })
    }
}
