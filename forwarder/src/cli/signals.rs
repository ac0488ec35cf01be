//! SIGINT, SIGTERM and SIGHUP for verbs that run until told to stop, and then say what they did.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that end the verb instead of the process.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// From here on; to be called before threads are started, which inherit it.
    ///
    /// # Errors
    /// When the kernel refuses a signalfd.
    pub fn take() -> Result<Signals> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block().context("cannot block signals")?;
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
        Ok(Signals(fd.context("cannot create a signalfd")?))
    }

    /// Sleeps until one comes, at most `timeout`. Whether one has come.
    pub fn wait(&self, timeout: Duration) -> bool {
        let milliseconds = timeout.as_micros().div_ceil(1000);
        let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
        // Nothing else interrupts: these signals are blocked, and others have no handler.
        let _ = poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout);
        self.came()
    }

    /// Whether one has come.
    pub fn came(&self) -> bool {
        matches!(self.0.read_signal(), Ok(Some(_)))
    }
}

/// Readable when one has come.
impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
