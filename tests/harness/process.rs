//! The `kvscout` process, as an operator starts it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;

use super::{PATIENCE, until};

/// The command line tool.
pub fn kvscout(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvscout"));
    command.args(args);
    command
}

/// The same with an environment.
fn in_environment(args: &[&str], environment: &[(&str, String)]) -> Command {
    let mut command = kvscout(args);
    command.envs(environment.iter().map(|(name, value)| (*name, value)));
    command
}

/// What it says, once it has ended.
pub fn output(args: &[&str]) -> Output {
    kvscout(args).output().expect("kvscout runs")
}

/// Text for messages.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Writes a file, and gives its path.
pub fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

/// A configuration that listens where nobody else does.
pub const ANY_PORT: &str = "listen: {ext_proc: '127.0.0.1:0', health: '127.0.0.1:0', admin: '127.0.0.1:0'}\nlimits: {drain_notice_ms: 0}\n";

/// What a process may have said that no test has taken.
const LINES_MAX: usize = 100_000;

/// A running `kvscout serve`, killed when dropped.
pub struct Served {
    pub child: Child,
    lines: mpsc::Receiver<String>,
}

impl Served {
    /// Starts with these flags.
    pub fn start(args: &[&str]) -> Self {
        Self::start_with(args, &[])
    }

    /// The same with an environment.
    pub fn start_with(args: &[&str], environment: &[(&str, String)]) -> Self {
        let all: Vec<&str> = std::iter::once("serve")
            .chain(args.iter().copied())
            .collect();
        Self::run_with(&all, environment)
    }

    /// Runs any command that goes on until it is told to end.
    pub fn run(args: &[&str]) -> Self {
        Self::run_with(args, &[])
    }

    /// Serves with no more file descriptors than that.
    pub fn start_with_descriptors(max: u32, args: &[&str]) -> Self {
        let mut command = Command::new("sh");
        let limited = format!("ulimit -n {max} && exec \"$0\" \"$@\"");
        command.args(["-c", &limited, env!("CARGO_BIN_EXE_kvscout"), "serve"]);
        command.args(args);
        Self::of(command)
    }

    /// The same with an environment.
    pub fn run_with(args: &[&str], environment: &[(&str, String)]) -> Self {
        Self::of(in_environment(args, environment))
    }

    /// The same with a reader that takes no line before it is asked for one.
    pub fn run_unheard(args: &[&str], environment: &[(&str, String)]) -> Self {
        Self::of_heard(in_environment(args, environment), 0)
    }

    fn of(command: Command) -> Self {
        Self::of_heard(command, LINES_MAX)
    }

    fn of_heard(mut command: Command, lines_max: usize) -> Self {
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("kvscout runs");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, lines) = mpsc::sync_channel(lines_max);
        std::thread::spawn(move || {
            let mut all = stderr.lines().map_while(Result::ok);
            all.all(|line| sender.send(line).is_ok())
        });
        Self { child, lines }
    }

    /// The next line that contains `part`.
    pub fn line(&self, part: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("no {part:?}: {error}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    /// The last of what it said that nobody has taken.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let lines: Vec<String> = self.lines.try_iter().collect();
        lines[lines.len().saturating_sub(count)..].to_vec()
    }

    /// Tells it to end, as Kubernetes does.
    pub fn terminate(&self) {
        let pid = self.child.id().to_string();
        let told = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(told.expect("kill runs").success());
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let has_ended = || self.child.try_wait().expect("a child").is_some();
        until("it ends", has_ended).await;
        self.child.wait().expect("it has ended")
    }

    /// Where it listens: ext_proc and admin.
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        let line = self.line("listening");
        let after = |name: &str| {
            let address = line.split(name).nth(1).expect("an address");
            let address = address.split_whitespace().next().expect("an address");
            address.parse().expect("an address")
        };
        (after("ext_proc="), after("admin="))
    }

    /// Where its admin port listens.
    pub fn admin(&self) -> SocketAddr {
        self.addresses().1
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // One that has ended cannot be killed, and need not be.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
