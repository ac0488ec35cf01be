//! DPDK's programs: starts them as Debian installs them, without hugepages, and parses their output.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferroute_tests::threads;

/// How long a program may take to start, or to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// EAL options without which it requires hugepages, PCI devices and files in /run.
const EAL: [&str; 4] = ["--no-huge", "--no-pci", "--no-shconf", "--no-telemetry"];

/// The CPU that single-threaded entrants run on: the last one, because the first is the busiest.
pub fn cpu() -> String {
    let cpus = thread::available_parallelism().map_or(1, Into::into);
    (cpus - 1usize).to_string()
}

/// A command on that CPU.
pub fn pinned(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &cpu()]).arg(program.as_ref());
    command
}

/// Runs a command to its end and returns its standard output.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|error| not_started(command, error))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().chain(text.lines()).last().unwrap_or_default();
    ensure!(output.status.success(), "{}: {last}", output.status);
    Ok(text)
}

/// Fails unless the program is found in PATH.
fn installed(program: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    ensure!(found, "{program} is not installed; scripts/setup installs it");
    Ok(())
}

fn not_started(command: &Command, error: std::io::Error) -> anyhow::Error {
    let program = Path::new(command.get_program()).display().to_string();
    if error.kind() == std::io::ErrorKind::NotFound {
        return anyhow::anyhow!("{program} is not installed; scripts/setup installs it");
    }
    anyhow::Error::new(error).context(format!("starting {program}"))
}

/// A run of dpdk-test-fib.
#[derive(Debug)]
pub struct FibRun<'a> {
    pub family: &'a str,
    pub algorithm: &'a str,
    /// Octets of an entry.
    pub entry: &'a str,
    /// Number of second-level groups to allocate.
    pub groups: usize,
    pub routes: &'a Path,
    pub addresses: &'a Path,
}

/// Mean TSC cycles.
#[derive(Debug, PartialEq)]
pub struct FibFound {
    pub lookup: f64,
    pub add: f64,
    pub delete: f64,
}

impl FibRun<'_> {
    /// Runs it once.
    pub fn measure(&self) -> Result<FibFound> {
        let mut command = Command::new("dpdk-test-fib");
        command.args(EAL).args(["-m", "3072", "-l", &cpu(), "--", "-f"]).arg(self.routes);
        command.arg("-t").arg(self.addresses).args(["-b", self.algorithm, "-e", self.entry]);
        command.args(["-g", &(self.groups + 1024).to_string()]);
        if self.family == "6" {
            command.arg("-6");
        }
        fib_found(&run(&mut command)?)
    }
}

/// Parses the output: ten means for adding and deleting, each of a tenth of the routes, and one for
/// lookups.
fn fib_found(text: &str) -> Result<FibFound> {
    let mean = |what: &str| -> Result<f64> {
        let values =
            text.lines().filter_map(|line| line.trim().strip_prefix(what)?.trim().parse().ok());
        let values: Vec<f64> = values.collect();
        let last = || text.lines().last().unwrap_or_default().to_owned();
        ensure!(!values.is_empty(), "dpdk-test-fib ended with: {}", last());
        Ok(values.iter().sum::<f64>() / values.len() as f64)
    };
    Ok(FibFound {
        lookup: mean("AVG FIB lookup")?,
        add: mean("AVG FIB add")?,
        delete: mean("AVG FIB delete")?,
    })
}

/// A testpmd that forwards on one core when told to start.
#[derive(Debug)]
pub struct Testpmd {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    log: Vec<String>,
}

impl Testpmd {
    /// Starts it with two ports, the main thread on the first CPU and forwarding on [`cpu`]. `command` is
    /// the prefix of the command line, such as one that enters a namespace.
    pub fn start(mut command: Command, vdevs: [&str; 2]) -> Result<Self> {
        installed("dpdk-testpmd")?;
        // Its output to a pipe would be block-buffered.
        command.args(["stdbuf", "-oL", "dpdk-testpmd"]).args(EAL);
        command.args(["-m", "1024", "-l", &format!("0,{}", cpu())]);
        command.args(["--vdev", vdevs[0], "--vdev", vdevs[1], "--", "-i"]);
        command.args(["--forward-mode=mac", "--nb-cores=1", "--total-num-mbufs=16384"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| not_started(&command, error))?;
        let (sender, lines) = channel();
        let outputs: [Option<Box<dyn std::io::Read + Send>>; 2] = [
            child.stdout.take().map(|out| Box::new(out) as Box<_>),
            child.stderr.take().map(|err| Box::new(err) as Box<_>),
        ];
        for output in outputs.into_iter().flatten() {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                    if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        break;
                    }
                }
            });
        }
        let stdin = child.stdin.take();
        let mut this = Self { child, stdin, lines, log: Vec::new() };
        this.wait_for("Done")?;
        Ok(this)
    }

    /// Sends a command to its prompt.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("testpmd is being stopped")?;
        writeln!(stdin, "{line}").with_context(|| format!("telling testpmd to {line}"))
    }

    /// Forwards for `length`. Returns packets, and the CPU time of its forwarding thread in nanoseconds.
    pub fn forward(&mut self, length: Duration) -> Result<(u64, u64)> {
        let before = self.cpu_time_ns()?;
        self.say("start")?;
        thread::sleep(length);
        self.say("stop")?;
        let at = self.log.len();
        self.wait_for("Accumulated forward statistics")?;
        self.wait_for("TX-packets")?;
        let after = self.cpu_time_ns()?;
        let packets = accumulated_tx(&self.log[at..]).context("testpmd reported no packets")?;
        Ok((packets, after - before))
    }

    fn wait_for(&mut self, what: &str) -> Result<()> {
        let end = Instant::now() + ANSWER_TIMEOUT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                let last = self
                    .log
                    .iter()
                    .rev()
                    .find(|line| line.contains("Cause") || line.contains("rror"));
                let last = last.or(self.log.last()).map_or("", |line| line.trim());
                bail!("testpmd ended or hangs; its last line: {last}");
            };
            self.log.push(line);
            if self.log.last().is_some_and(|line| line.contains(what)) {
                return Ok(());
            }
        }
    }

    /// CPU time of the forwarding thread.
    fn cpu_time_ns(&self) -> Result<u64> {
        // rte-worker-1 in 22.11, lcore-worker-1 and dpdk-worker1 in others.
        let mut threads = threads::read_each(self.child.id(), "schedstat")?.into_iter();
        let worker = threads.find(|thread| thread.name.contains("-worker"));
        let text = worker.context("testpmd has no forwarding thread")?.text;
        let first = text.split_whitespace().next().and_then(|word| word.parse().ok());
        first.context("schedstat has no time")
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.say("quit");
        self.stdin = None;
        let end = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// TX-packets of the block with the totals of all ports.
fn accumulated_tx(log: &[String]) -> Option<u64> {
    let mut block = log.iter().skip_while(|line| !line.contains("Accumulated"));
    let line = block.find_map(|line| line.trim().strip_prefix("TX-packets:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_means_of_test_fib_are_averaged() {
        let text = "EAL: x\nAVG FIB add 700\nAVG FIB add 900\nAVG FIB lookup 36.4\n\
                    AVG FIB delete 1000\nAVG FIB delete 3000\n";
        let found = fib_found(text).expect("is complete");
        assert_eq!(found, FibFound { lookup: 36.4, add: 800.0, delete: 2000.0 });
        let error = fib_found("AVG FIB add 1\nCan not add a route to FIB, err -28\n");
        let error = error.expect_err("has no lookup").to_string();
        assert_eq!(error, "dpdk-test-fib ended with: Can not add a route to FIB, err -28");
    }

    #[test]
    fn packets_are_the_total_of_all_ports() {
        let text = "Forward statistics for port 0\n  TX-packets: 1   TX-dropped: 0\n\
                    +++ Accumulated forward statistics for all ports+++\n\
                    \x20 RX-packets: 12   RX-dropped: 0\n  TX-packets: 11   TX-dropped: 1\n";
        let log: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(accumulated_tx(&log), Some(11));
        assert_eq!(accumulated_tx(&log[..2]), None);
    }

    #[test]
    fn a_missing_program_is_reported() {
        let error = run(&mut Command::new("dpdk-not-there")).expect_err("is not there");
        let said = error.to_string();
        assert_eq!(said, "dpdk-not-there is not installed; scripts/setup installs it");
    }
}
