//! Recordings: what a publisher sent, a line of JSON per message.
//!
//! ```json
//! {"t": 1795327166.0, "src": "live", "frames": ["a3Y=", "AAAAAAAAAAA=", "k8t…"], "topic": "kv", "seq": 0}
//! ```
//!
//! `t` is the time of arrival in seconds since 1970, `frames` the message in base64. Only
//! `frames` is read; the rest is for people, and `decoded`, which other recorders add, is not
//! written here: the decoder may learn more than it knows on the day of the recording.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Batch, Delivery, EventSource};

/// The file of a recording's folder that holds the live messages.
pub const EVENTS_FILE: &str = "events.jsonl";

/// One line.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    #[serde(default)]
    t: Option<f64>,
    #[serde(default)]
    src: Option<String>,
    frames: Vec<String>,
    #[serde(default)]
    topic: Option<String>,
    #[serde(default)]
    seq: Option<u64>,
}

/// A message as it was recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// When it arrived, in seconds since 1970; 0 where the line does not say.
    pub t: f64,
    /// It came as part of a replay, beside the live stream.
    pub replayed: bool,
    /// Its frames as they came.
    pub frames: Vec<Bytes>,
}

impl Recorded {
    /// Reads a line.
    ///
    /// # Errors
    /// Not JSON, no `frames`, or not base64.
    pub fn from_line(line: &str) -> io::Result<Self> {
        let Line { t, src, frames, .. } = serde_json::from_str(line)?;
        let frames = frames.iter().map(|frame| BASE64.decode(frame));
        let frames: Result<_, _> = frames.map(|frame| frame.map(Bytes::from)).collect();
        let frames = frames.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let replayed = src.is_some_and(|src| src.starts_with("replay"));
        Ok(Self {
            t: t.unwrap_or_default(),
            replayed,
            frames,
        })
    }
}

/// Reads a recording's messages in order; as an [`EventSource`], its deliveries.
#[derive(Debug)]
pub struct Recording {
    lines: Lines<BufReader<File>>,
    line: u64,
}

impl Recording {
    /// Opens a file of recorded messages.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let lines = BufReader::new(File::open(path)?).lines();
        Ok(Self { lines, line: 0 })
    }

    /// The next message, or `None` at the end. Blank lines are passed over.
    pub fn read(&mut self) -> Option<io::Result<Recorded>> {
        let blank =
            |line: &io::Result<String>| line.as_ref().is_ok_and(|line| line.trim().is_empty());
        let line = loop {
            self.line += 1;
            match self.lines.next()? {
                line if blank(&line) => {}
                line => break line,
            }
        };
        let recorded = line.and_then(|line| Recorded::from_line(&line));
        Some(
            recorded.map_err(|error| {
                io::Error::new(error.kind(), format!("line {}: {error}", self.line))
            }),
        )
    }

    /// The rest as deliveries: an unreadable line is a malformed message.
    pub fn deliveries(mut self) -> impl Iterator<Item = Delivery> {
        std::iter::from_fn(move || self.read().map(deliver))
    }
}

/// Reads the file where it is polled: this is a source for tools and tests, not for the server.
impl EventSource for Recording {
    async fn next(&mut self) -> Option<Delivery> {
        self.read().map(deliver)
    }
}

fn deliver(recorded: io::Result<Recorded>) -> Delivery {
    match recorded {
        Ok(recorded) => Delivery::from_frames(&recorded.frames),
        Err(error) => Delivery::Malformed {
            reason: error.to_string(),
        },
    }
}

/// Writes a recording. A line is on its way to the disk when the call returns, so that an
/// interrupted recording is whole up to its last line.
#[derive(Debug)]
pub struct RecordingWriter<W> {
    out: W,
}

impl<W: Write> RecordingWriter<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Appends a live batch that arrived at `t`, in seconds since 1970.
    ///
    /// # Errors
    /// The output's.
    pub fn write(&mut self, t: f64, batch: &Batch) -> io::Result<()> {
        let seq = batch.seq.to_be_bytes();
        let frames: [&[u8]; 3] = [&batch.topic, &seq, &batch.payload];
        let line = Line {
            t: Some(t),
            src: Some("live".into()),
            frames: frames.map(|frame| BASE64.encode(frame)).into(),
            topic: Some(String::from_utf8_lossy(&batch.topic).into()),
            seq: Some(batch.seq),
        };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        self.out.write_all(&bytes)?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let batch = Batch {
            topic: Bytes::from_static(b"kv@pod"),
            seq: u64::MAX - 1,
            payload: Bytes::from_static(&[0, 255, 10]),
        };
        let mut bytes = Vec::new();
        let mut writer = RecordingWriter::new(&mut bytes);
        writer.write(1_795_327_166.5, &batch).expect("memory");
        let line = String::from_utf8(bytes).expect("JSON");
        let recorded = Recorded::from_line(line.trim_end()).expect("our own line");
        assert_eq!(recorded.t, 1_795_327_166.5);
        assert_eq!(Batch::from_frames(&recorded.frames), Ok(batch));
    }

    #[test]
    fn lines_of_other_recorders_are_read_by_their_frames_alone() {
        let line = r#"{"src":"x","frames":["a3Y=","AAAAAAAAAAc=","kA=="],"decoded":[1,[]]}"#;
        let recorded = Recorded::from_line(line).expect("a line");
        let batch = Batch::from_frames(&recorded.frames).expect("a batch");
        assert_eq!((batch.seq, &batch.payload[..]), (7, &[0x90][..]));
        assert!(Recorded::from_line(r#"{"frames":["?"]}"#).is_err());
    }
}
