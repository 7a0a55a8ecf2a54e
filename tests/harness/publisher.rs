//! A real libzmq publisher, and vLLM's replay socket beside it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use super::PATIENCE;

/// `tests/peers/publisher.py`; gone when dropped.
pub struct Publisher {
    pub child: Child,
    stdin: ChildStdin,
    answers: mpsc::Receiver<String>,
    pub port: u16,
    pub replay_port: u16,
}

impl Publisher {
    /// Binds a free port.
    pub fn start() -> Self {
        Self::start_on("*")
    }

    pub fn start_on(port: &str) -> Self {
        let mut child = Command::new(python())
            .args([
                root().join("tests/peers/publisher.py").as_os_str(),
                port.as_ref(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python runs");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = stdout.lines().map_while(Result::ok);
            lines.all(|line| sender.send(line).is_ok())
        });
        let ready = answers.recv_timeout(PATIENCE).expect("the publisher binds");
        let ports: Vec<u16> = ready
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .collect();
        let [port, replay_port] = ports[..] else {
            panic!("not ready: {ready}");
        };
        Self {
            child,
            stdin,
            answers,
            port,
            replay_port,
        }
    }

    pub fn tell(&mut self, command: &str) -> String {
        writeln!(self.stdin, "{command}").expect("the publisher lives");
        self.answers.recv_timeout(PATIENCE).expect("an answer")
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.child.kill().expect("ours to kill");
        self.child.wait().expect("it was killed");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn python() -> PathBuf {
    let python = std::env::var_os("KVSCOUT_PYTHON")
        .map_or_else(|| root().join(".tools/venv/bin/python"), PathBuf::from);
    assert!(python.exists(), "no {}: run make setup", python.display());
    python
}
