//! Server-sent events out of bytes, wherever the network cut them.

use anyhow::ensure;

/// The longest event: far above any chunk of a chat, far below what would hurt.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// What has arrived of events that are not complete yet.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    data: String,
}

impl Events {
    /// Takes the next bytes; returns the data of every event that they completed.
    ///
    /// # Errors
    /// An event is longer than 4 MiB, or is not UTF-8.
    pub fn push(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<String>> {
        let mut complete = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            let held = self.line.len() + self.data.len();
            ensure!(
                held <= EVENT_BYTES_MAX,
                "an event of more than {EVENT_BYTES_MAX} bytes"
            );
            if self.line.ends_with(b"\n") {
                complete.extend(self.end_line()?);
            }
        }
        Ok(complete)
    }

    /// An empty line ends an event; a comment or another field is nothing to us.
    fn end_line(&mut self) -> anyhow::Result<Option<String>> {
        let line = std::mem::take(&mut self.line);
        let line = std::str::from_utf8(&line)?.trim_end_matches(['\n', '\r']);
        if let Some(data) = line.strip_prefix("data:") {
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
        }
        let ends = line.is_empty() && !self.data.is_empty();
        Ok(ends.then(|| std::mem::take(&mut self.data)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "data: {\"a\":\"é\"}\n\n: a comment\r\n\r\ndata: x\r\ndata:y\r\nid: 7\r\n\r\ndata: [DONE]\n\n";

    #[test]
    fn every_cut_gives_the_same_events() {
        let whole = Events::default().push(STREAM.as_bytes()).expect("UTF-8");
        assert_eq!(whole, ["{\"a\":\"é\"}", "x\ny", "[DONE]"]);
        for cut in 0..=STREAM.len() {
            let (head, tail) = STREAM.as_bytes().split_at(cut);
            let mut events = Events::default();
            let mut got = events.push(head).expect("UTF-8");
            got.extend(events.push(tail).expect("UTF-8"));
            assert_eq!(got, whole, "cut at {cut}");
        }
        let mut events = Events::default();
        let bytewise = STREAM
            .bytes()
            .flat_map(|byte| events.push(&[byte]).expect("UTF-8"));
        assert_eq!(bytewise.collect::<Vec<_>>(), whole);
    }

    #[test]
    fn an_endless_event_is_an_error_and_not_a_leak() {
        let mut events = Events::default();
        let megabyte = vec![b'x'; 1 << 20];
        assert!((0..5).any(|_| events.push(&megabyte).is_err()));
    }
}
