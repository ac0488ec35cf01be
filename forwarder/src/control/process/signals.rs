//! SIGTERM, SIGINT and SIGHUP as descriptors, for the daemon and for commands that run until
//! stopped, for those that draw on a terminal also SIGQUIT and SIGTSTP; and termination of a start that they interrupt.
//!
//! The control thread checks for them in its loop. During the start the loop does not run yet, and
//! the thread may block in the kernel (a table of a million routes, a queue that is still busy,
//! RTNL held by another process): a [`StartGuard`] watches for signals then.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tracing::info;

use super::privilege;

/// How long a start may take to stop cleanly after a signal. It checks for signals wherever it
/// deliberately waits for more than some milliseconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for the message to be written.
const FLUSH_TIME: Duration = Duration::from_millis(100);

/// A signal ended the start: not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ended by a signal before forwarding started")]
pub struct Interrupted;

/// The signals that end the process cleanly; SIGHUP may be none of them.
#[derive(Debug)]
pub struct Signals {
    end: SignalFd,
    /// SIGHUP, if it does not end the process.
    hangup: Option<SignalFd>,
}

impl Signals {
    /// Blocks the signals and receives them from now on. Call it before threads are started, which
    /// inherit the mask.
    ///
    /// # Errors
    /// When the kernel refuses a signalfd.
    pub fn take() -> Result<Signals> {
        // SIGHUP: the terminal is gone.
        let end = signalfd(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])?;
        Ok(Signals { end, hangup: None })
    }

    /// As [`Signals::take`], for a daemon that reloads its configuration after SIGHUP.
    ///
    /// # Errors
    /// As for [`Signals::take`].
    pub fn take_with_reload() -> Result<Signals> {
        let end = signalfd(&[Signal::SIGTERM, Signal::SIGINT])?;
        Ok(Signals { end, hangup: Some(signalfd(&[Signal::SIGHUP])?) })
    }

    /// Receives pending SIGHUPs, if they do not end the process. Returns whether there was one.
    pub fn hung_up(&self) -> bool {
        self.hangup.as_ref().is_some_and(|fd| matches!(fd.read_signal(), Ok(Some(_))))
    }

    /// Readable when there is one.
    pub fn hangup(&self) -> Option<BorrowedFd<'_>> {
        self.hangup.as_ref().map(AsFd::as_fd)
    }

    /// Whether a signal is pending; it stays pending.
    pub fn is_pending(&self) -> bool {
        let mut fds = [PollFd::new(self.end.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Receives a pending signal. Returns whether there was one.
    pub fn came(&self) -> bool {
        matches!(self.end.read_signal(), Ok(Some(_)))
    }

    /// Waits for a signal, at most `timeout`, and receives it. Returns whether there was one.
    pub fn wait(&self, timeout: Duration) -> bool {
        let milliseconds = timeout.as_micros().div_ceil(1000);
        let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
        // Nothing else interrupts: these signals are blocked, and others have no handler.
        let _ = poll(&mut [PollFd::new(self.end.as_fd(), PollFlags::POLLIN)], timeout);
        self.came()
    }

    /// Returns an error if a signal is pending.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.is_pending() { Err(Interrupted) } else { Ok(()) }
    }
}

/// The signals after which a program that draws on a terminal must restore it.
#[derive(Debug)]
pub struct TerminalSignals(SignalFd);

/// What such a signal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminalSignal {
    /// SIGTERM, SIGINT, SIGHUP or SIGQUIT: the program ends.
    End,
    /// SIGTSTP: the program stops until it is continued, see [`stop`].
    Stop,
}

impl TerminalSignals {
    /// Blocks the signals and receives them from now on. Call it before threads are started, which inherit the mask.
    ///
    /// # Errors
    /// When the kernel refuses a signalfd.
    pub fn take() -> Result<TerminalSignals> {
        let signals =
            [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP];
        Ok(TerminalSignals(signalfd(&signals)?))
    }

    /// Waits for a signal. If the descriptor cannot be read, the program is to end.
    pub fn wait(&self) -> TerminalSignal {
        loop {
            let _ = poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
            match self.0.read_signal() {
                Ok(Some(info)) if info.ssi_signo == Signal::SIGTSTP as u32 => {
                    return TerminalSignal::Stop;
                }
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return TerminalSignal::End,
            }
        }
    }
}

/// Stops the process as SIGTSTP does that is not blocked, and returns when it is continued.
///
/// # Errors
/// When the kernel refuses.
pub fn stop() -> Result<()> {
    let mask: SigSet = [Signal::SIGTSTP].into_iter().collect();
    mask.thread_unblock().context("cannot unblock SIGTSTP")?;
    // To this thread, so that the descriptor does not receive it.
    let stopped = raise(Signal::SIGTSTP).context("cannot stop");
    mask.thread_block().context("cannot block SIGTSTP")?;
    stopped
}

/// Blocks signals and makes a descriptor for them.
fn signalfd(signals: &[Signal]) -> Result<SignalFd> {
    let mask: SigSet = signals.iter().copied().collect();
    mask.thread_block().context("cannot block signals")?;
    let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
    fd.context("cannot create a signalfd")
}

/// Readable when a signal is pending that ends the process.
impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

/// Ends the process if a signal arrives during the start and the start does not end by itself soon
/// after. Dropped when the process has started.
#[derive(Debug)]
pub struct StartGuard {
    /// Closed to end the thread.
    done: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl StartGuard {
    /// Starts to watch. `clean_up` removes what the process would leave behind.
    ///
    /// # Errors
    /// If no descriptor or thread is available.
    pub fn new(
        signals: Arc<Signals>,
        clean_up: impl FnOnce() + Send + 'static,
    ) -> Result<StartGuard> {
        let (done, started) = UnixStream::pair().context("cannot create a pair of sockets")?;
        let watch = move || {
            privilege::drop_all();
            if watch(&signals, &started) == Ended::Stuck {
                clean_up();
                info!("{Interrupted}");
                thread::sleep(FLUSH_TIME);
                // Without destructors: the thread that would run them is blocked. The kernel
                // releases the resources of the process.
                std::process::exit(0);
            }
        };
        let thread = thread::Builder::new().name("fr-start".into()).spawn(watch);
        let thread = thread.context("cannot start a thread")?;
        Ok(StartGuard { done: Some(done), thread: Some(thread) })
    }
}

impl Drop for StartGuard {
    fn drop(&mut self) {
        self.done.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The start has ended, successfully or not.
    Started,
    /// A signal arrived, and the start did not end in time.
    Stuck,
}

/// Waits until the start has ended, or until [`STOP_TIMEOUT`] after a signal.
fn watch(signals: &Signals, started: &UnixStream) -> Ended {
    let grace = PollTimeout::try_from(STOP_TIMEOUT).unwrap_or(PollTimeout::MAX);
    let ended = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
    loop {
        let mut fds = [
            PollFd::new(started.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) if ended(&fds[0]) => return Ended::Started,
            Ok(_) if ended(&fds[1]) => break,
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return Ended::Started,
        }
    }
    match poll(&mut [PollFd::new(started.as_fd(), PollFlags::POLLIN)], grace) {
        Ok(0) => Ended::Stuck,
        _ => Ended::Started,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a signal to this thread only: other threads of the test do not block it.
    fn signals_with_one() -> Signals {
        let signals = Signals::take().expect("a signalfd");
        assert_eq!(signals.check(), Ok(()));
        raise(Signal::SIGHUP).expect("is sent");
        signals
    }

    #[test]
    fn a_pending_signal_is_seen_and_stays_pending() {
        let signals = signals_with_one();
        for _ in 0..2 {
            assert_eq!(signals.check(), Err(Interrupted));
        }
    }

    #[test]
    fn a_terminal_is_restored_before_the_program_ends_or_stops() {
        let signals = TerminalSignals::take().expect("a signalfd");
        for (signal, expected) in [
            (Signal::SIGQUIT, TerminalSignal::End),
            (Signal::SIGTSTP, TerminalSignal::Stop),
            (Signal::SIGHUP, TerminalSignal::End),
        ] {
            raise(signal).expect("is sent");
            assert_eq!(signals.wait(), expected);
        }
    }

    #[test]
    fn a_hangup_ends_nothing_if_it_reloads() {
        let signals = Signals::take_with_reload().expect("a signalfd");
        raise(Signal::SIGHUP).expect("is sent");
        assert_eq!(signals.check(), Ok(()));
        assert!(signals.hung_up() && !signals.hung_up());
        raise(Signal::SIGTERM).expect("is sent");
        assert_eq!((signals.check(), signals.hung_up()), (Err(Interrupted), false));
    }

    #[test]
    fn only_a_start_that_does_not_end_after_a_signal_is_stuck() {
        let signals = signals_with_one();
        let (done, started) = UnixStream::pair().expect("a pair");
        assert_eq!(watch(&signals, &started), Ended::Stuck);
        drop(done);
        assert_eq!(watch(&signals, &started), Ended::Started);
    }
}
