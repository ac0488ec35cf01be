//! Processes and single threads that are stopped for a while, as by a debugger, a frozen cgroup or a
//! machine without CPU time.

use anyhow::{Context, Result};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::threads;

/// A process stopped by SIGSTOP until this is dropped.
#[derive(Debug)]
pub struct StoppedProcess(Pid);

impl StoppedProcess {
    /// Stops a process.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn stop(pid: u32) -> Result<Self> {
        let pid = Pid::from_raw(pid as i32);
        kill(pid, Signal::SIGSTOP).context("SIGSTOP")?;
        Ok(Self(pid))
    }
}

impl Drop for StoppedProcess {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// A thread that is stopped while the others of its process run. It must be dropped on the thread that
/// stopped it.
#[derive(Debug)]
pub struct StoppedThread(Pid);

impl StoppedThread {
    /// Stops the thread with that name, by ptrace(2).
    ///
    /// # Errors
    /// When there is none, or it is already traced.
    pub fn stop(pid: u32, name: &str) -> Result<Self> {
        let tid = threads::find(pid, name)?;
        ptrace::seize(tid, ptrace::Options::empty()).context("PTRACE_SEIZE")?;
        ptrace::interrupt(tid).context("PTRACE_INTERRUPT")?;
        waitpid(tid, Some(WaitPidFlag::__WALL)).context("the thread does not stop")?;
        Ok(Self(tid))
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
}
