//! A `ferroute` that runs in a lab's router, and its command line.
//!
//! The binary is `FERROUTE_BIN`, else the one that cargo built beside the tests. With `FERROUTE_BIN=kernel`
//! nothing is started.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::counters::{Forwarded, forwarded_by_kernel};
use crate::{EVENT_TIMEOUT, Lab, Netns, lab};

/// The ports of the lab's router.
const PORTS: [&str; 4] = ["-i", "rt-left", "-i", "rt-right"];

/// A running `ferroute run`; killed when dropped. A failing test prints its standard error.
#[derive(Debug)]
pub struct Ferroute {
    child: Option<Child>,
    place: Place,
    before: Forwarded,
}

/// Where it runs: its namespace, and the directory of its control socket and standard error.
#[derive(Debug)]
struct Place {
    namespace: Netns,
    dir: TempDir,
}

impl Ferroute {
    /// Starts it on both ports of the lab's router and waits until it forwards.
    ///
    /// # Errors
    /// When it does not; the error contains its standard error.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::start_with(lab, &[])
    }

    /// As [`Ferroute::start`], with more arguments for `run`.
    ///
    /// # Errors
    /// As for [`Ferroute::start`].
    pub fn start_with(lab: &Lab, more: &[&str]) -> Result<Self> {
        let args: Vec<&str> = PORTS.iter().chain(more).copied().collect();
        Self::start_in(&lab.router, &args)
    }

    /// As [`Ferroute::start`], with another standard error.
    ///
    /// # Errors
    /// As for [`Ferroute::start`].
    pub fn start_saying_to(lab: &Lab, stderr: Stdio) -> Result<Self> {
        let mut this = Self::launch_saying_to(&lab.router, &PORTS, &[], Some(stderr))?;
        this.wait_until_forwarding()?;
        Ok(this)
    }

    /// Starts `ferroute run` with exactly these arguments.
    ///
    /// # Errors
    /// As for [`Ferroute::start`].
    pub fn start_in(namespace: &Netns, args: &[&str]) -> Result<Self> {
        let mut this = Self::launch(namespace, args)?;
        this.wait_until_forwarding()?;
        Ok(this)
    }

    /// Starts `ferroute run` with exactly these arguments and does not wait until it forwards.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(namespace: &Netns, args: &[&str]) -> Result<Self> {
        Self::launch_with(namespace, args, &[])
    }

    /// As [`Ferroute::launch`], with more variables in its environment.
    ///
    /// # Errors
    /// As for [`Ferroute::launch`].
    pub fn launch_with(
        namespace: &Netns,
        args: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        Self::launch_saying_to(namespace, args, variables, None)
    }

    fn launch_saying_to(
        namespace: &Netns,
        args: &[&str],
        variables: &[(&str, &str)],
        stderr: Option<Stdio>,
    ) -> Result<Self> {
        let place = Place { namespace: namespace.clone(), dir: tempfile::tempdir()? };
        let before = forwarded_by_kernel(namespace)?;
        // Not the default: where a test attaches a program to a host's port, flows would be offloaded by and by.
        let offload = match offloads() {
            true => &["--offload", "on", "--offload-threshold", "1"][..],
            false => &["--offload", "off"],
        };
        // A file says what it is to be.
        let is_set = args.contains(&"--offload") || args.contains(&"-c");
        let more = if is_set { &[] } else { offload };
        let args = &[args, more].concat();
        let child = if by_kernel() { None } else { Some(place.spawn(args, variables, stderr)?) };
        Ok(Self { child, place, before })
    }

    /// Waits until it answers on its control socket, whether it forwards or not, or has refused to run: the
    /// inner error is its standard error then.
    ///
    /// # Errors
    /// When it does neither, or was ended by a signal or a panic.
    pub fn settled(mut self) -> Result<Result<Self, String>> {
        let end = Instant::now() + EVENT_TIMEOUT;
        while let Some(child) = &mut self.child {
            if let Some(status) = child.try_wait()? {
                let said = self.place.said();
                ensure!(status.signal().is_none(), "ended by {status}\n{said}");
                ensure!(!status.success() && !said.contains("panicked at"), "{status}\n{said}");
                return Ok(Err(said));
            }
            // Its exit status shows whether it forwards; any state but "starting" is sufficient here.
            let answer = self.place.command(&["-j", "status"]).output()?.stdout;
            let report: Option<Value> = serde_json::from_slice(&answer).ok();
            if report.is_some_and(|report| report["state"] != "starting") {
                break;
            }
            ensure!(Instant::now() < end, "neither runs nor refuses\n{}", self.place.said());
            thread::sleep(Duration::from_millis(50));
        }
        Ok(Ok(self))
    }

    /// Runs `ferroute run` with arguments that it must refuse, and returns its standard error.
    ///
    /// # Errors
    /// When it runs, ends successfully, or is ended by a signal or a panic.
    pub fn refusal(namespace: &Netns, args: &[&str]) -> Result<String> {
        let place = Place { namespace: namespace.clone(), dir: tempfile::tempdir()? };
        let mut child = place.spawn(args, &[], None)?;
        let status = wait(&mut child, EVENT_TIMEOUT);
        if status.is_none() {
            end(&mut child);
        }
        let said = place.said();
        let status = status.with_context(|| format!("{args:?} was not refused\n{said}"))?;
        ensure!(!status.success(), "{args:?} ended with success\n{said}");
        ensure!(status.signal().is_none(), "{args:?} ended by {status}\n{said}");
        ensure!(!said.contains("panicked at"), "{args:?} panicked\n{said}");
        ensure!(!said.trim().is_empty(), "{args:?} was refused without a message");
        Ok(said)
    }

    /// Waits until `ferroute status` reports that packets are forwarded.
    ///
    /// # Errors
    /// When the process has ended, or does not forward in time.
    pub fn wait_until_forwarding(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        let end = Instant::now() + EVENT_TIMEOUT;
        loop {
            if let Some(status) = child.try_wait()? {
                bail!("ferroute ended: {status}\n{}", self.place.said());
            }
            let answer = self.place.command(&["status", "--wait", "10"]).output()?;
            if answer.status.success() {
                return Ok(());
            }
            if Instant::now() > end {
                let text = String::from_utf8_lossy(&answer.stderr).into_owned();
                bail!("ferroute does not forward: {text}\n{}", self.place.said());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs a command against it and returns the output.
    ///
    /// # Errors
    /// When the command fails.
    pub fn ask(&self, args: &[&str]) -> Result<String> {
        let output = self.place.command(args).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("ferroute {args:?}: {}\n{text}{stderr}", output.status);
        }
        Ok(text)
    }

    /// Runs a command with `-j` and parses its output.
    ///
    /// # Errors
    /// When the command fails or its output is not JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let args: Vec<&str> = std::iter::once("-j").chain(args.iter().copied()).collect();
        let text = self.ask(&args)?;
        serde_json::from_str(&text).with_context(|| format!("ferroute {args:?} printed {text:?}"))
    }

    /// A command against it, for a test that writes its standard input.
    pub fn command(&self, args: &[&str]) -> Command {
        self.place.command(args)
    }

    /// Its control socket, for a test with its own client.
    pub fn control(&self) -> PathBuf {
        self.place.control()
    }

    /// Its standard error so far.
    pub fn said(&self) -> String {
        self.place.said()
    }

    /// Its counters and standard error so far, for the error of a failed test.
    pub fn account(&self) -> String {
        let answers = ["stat", "drops", "neigh"]
            .map(|verb| self.ask(&[verb]).unwrap_or_else(|error| format!("{verb}: {error:#}\n")));
        format!("--- ferroute counted:\n{}--- and said:\n{}---", answers.concat(), self.said())
    }

    /// Its process id; `None` when the kernel forwards.
    pub fn pid(&self) -> Option<u32> {
        if by_kernel() { None } else { self.child.as_ref().map(Child::id) }
    }

    /// True while the process runs, or if none was started.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// When it does not end, or not with success.
    pub fn terminate(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM)?;
        let status = wait(child, EVENT_TIMEOUT).context("it ignores SIGTERM")?;
        ensure!(status.success(), "after SIGTERM: {status}\n{}", self.place.said());
        Ok(())
    }

    /// Sends SIGKILL and waits for the end.
    ///
    /// # Errors
    /// When the system calls fail.
    pub fn kill(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Packets that the kernel's stack has forwarded in the router since the start.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn forwarded_by_kernel(&self) -> Result<Forwarded> {
        let now = forwarded_by_kernel(&self.place.namespace)?;
        Ok(Forwarded { v4: now.v4 - self.before.v4, v6: now.v6 - self.before.v6 })
    }

    /// Waits until the kernel's stack has forwarded nothing for `quiet`. Returns how long that took.
    ///
    /// # Errors
    /// When it still forwards after `timeout`.
    pub fn until_in_userspace(&self, quiet: Duration, timeout: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let before = self.forwarded_by_kernel()?;
            thread::sleep(quiet);
            if self.forwarded_by_kernel()? == before {
                return Ok(begun.elapsed());
            }
            let account = || self.account();
            ensure!(begun.elapsed() < timeout, "the kernel still forwards\n{}", account());
        }
    }

    /// Fails unless every packet bypassed the kernel's stack.
    ///
    /// # Errors
    /// When the kernel forwarded a packet since the start.
    pub fn forwarded_all_itself(&self) -> Result<()> {
        let by_kernel = self.forwarded_by_kernel()?;
        if self.child.is_some() {
            ensure!(by_kernel == Forwarded { v4: 0, v6: 0 }, "the kernel forwarded {by_kernel:?}");
        }
        Ok(())
    }
}

impl Drop for Ferroute {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            end(child);
        }
        if thread::panicking() {
            eprintln!("--- ferroute said:\n{}---", self.place.said());
        }
    }
}

impl Place {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.namespace.command(binary());
        command.args(args).env("FERROUTE_CONTROL", self.control());
        command
    }

    /// `stderr`: instead of the file for its standard error.
    fn spawn(
        &self,
        args: &[&str],
        variables: &[(&str, &str)],
        stderr: Option<Stdio>,
    ) -> Result<Child> {
        let messages = File::options().create(true).append(true).open(self.messages())?;
        let mut args: Vec<&str> = std::iter::once("run").chain(args.iter().copied()).collect();
        if !args.contains(&"--worker-timeout") && !args.contains(&"-c") {
            args.extend(LONG_TIMEOUTS);
        }
        let mut command = self.command(&args);
        command.envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(messages.try_clone()?);
        command.stderr(stderr.unwrap_or_else(|| messages.into()));
        command.spawn().with_context(|| format!("starting {}", binary().display()))
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn messages(&self) -> PathBuf {
        self.dir.path().join("messages")
    }

    fn said(&self) -> String {
        fs::read_to_string(self.messages()).unwrap_or_default()
    }
}

/// While other tests run, a worker may be without its CPU for longer than the default time-outs, and the
/// kernel would get its packets meanwhile. Tests of the time-outs set their own.
const LONG_TIMEOUTS: [&str; 4] = ["--worker-timeout", "5000", "--control-timeout", "10000"];

/// The binary under test.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("FERROUTE_BIN") {
        return PathBuf::from(path);
    }
    // The tests are in target/PROFILE/deps, the binary is in target/PROFILE.
    let test = std::env::current_exe().unwrap_or_default();
    let profile = test.parent().and_then(Path::parent).map(Path::to_owned);
    profile.unwrap_or_else(|| lab::repository().join("target/debug")).join("ferroute")
}

/// True when each flow is offloaded from its first packet on, with `FERROUTE_OFFLOAD=on`.
pub fn offloads() -> bool {
    std::env::var_os("FERROUTE_OFFLOAD").is_some_and(|value| value == "on")
}

/// True when the tests are run against the kernel's own forwarding, see the crate's head. Then what follows
/// in the test needs Ferroute and is skipped, which is printed once for each test.
pub fn by_kernel() -> bool {
    thread_local!(static IS_PRINTED: Cell<bool> = const { Cell::new(false) });
    let by_kernel = std::env::var_os("FERROUTE_BIN").is_some_and(|path| path == "kernel");
    if by_kernel && !IS_PRINTED.replace(true) {
        eprintln!("skipped with FERROUTE_BIN=kernel: what only ferroute does");
    }
    by_kernel
}

/// Waits for the end of a process started by the test, and kills one that does not end.
///
/// # Errors
/// When it does not end; the error contains its standard error.
pub fn ended(mut child: Child) -> Result<Output> {
    if wait(&mut child, EVENT_TIMEOUT).is_none() {
        child.kill()?;
        let output = child.wait_with_output()?;
        bail!("does not end: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(child.wait_with_output()?)
}

fn wait(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => thread::sleep(Duration::from_millis(20)),
            _ => return None,
        }
    }
}

/// Sends SIGTERM, and SIGKILL if the process does not end soon.
fn end(child: &mut Child) {
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    if wait(child, Duration::from_secs(5)).is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
}
