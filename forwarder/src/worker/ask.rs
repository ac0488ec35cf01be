//! A command to a worker, and the caller's timeouts.
//!
//! A worker runs commands between two loop iterations; a worker that is stopped, or does not get its CPU,
//! does not reach them. After a timeout the result is defined: the command will not run, or the worker
//! undoes it when it continues.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};

/// How long a worker that has begun a brief command may be kept from its CPU.
const FINISH_BRIEF_TIMEOUT: Duration = Duration::from_millis(200);

/// The caller's timeouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallTimeouts {
    /// For the worker to begin the command.
    pub begin: Duration,
    /// From then until it is done; some commands take long, such as binding a socket to a queue of a NIC.
    pub finish: Duration,
}

impl CallTimeouts {
    /// For a command that itself takes no time; the worker has 200 ms to finish it.
    pub fn brief(begin: Duration) -> CallTimeouts {
        CallTimeouts { begin, finish: FINISH_BRIEF_TIMEOUT }
    }
}

/// Why there is no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    /// The worker did not begin in time. The command is cancelled and will not run.
    NotBegun,
    /// The worker began and did not finish in time. When it finishes, it undoes the command, if there is
    /// anything to undo.
    NotFinished,
    /// The worker has ended.
    Ended,
}

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
/// The result has been sent, and the caller has it or will receive it.
const DONE: u8 = 2;
const CANCELLED: u8 = 3;

/// Progress of a command; both sides advance it.
#[derive(Debug, Default)]
struct Progress(AtomicU8);

impl Progress {
    fn advance(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// The worker's side of a command.
#[derive(Debug)]
pub(super) struct Reply<T> {
    progress: Arc<Progress>,
    answer: Sender<T>,
    /// The caller's end, to take back a result that is no longer waited for.
    unclaimed: Receiver<T>,
}

impl<T> Reply<T> {
    /// Runs the command and sends its result, unless it was cancelled before. Returns the result when the
    /// caller no longer waits for it; the command must then be undone.
    pub(super) fn run(self, run: impl FnOnce() -> T) -> Option<T> {
        if !self.progress.advance(WAITING, BEGUN) {
            return None;
        }
        // The channel has room for the one result. It is sent before DONE is set: after DONE the caller
        // does not wait.
        if let Err(unsent) = self.answer.try_send(run()) {
            return Some(unsent.into_inner());
        }
        if self.progress.advance(BEGUN, DONE) { None } else { self.unclaimed.try_recv().ok() }
    }
}

/// Sends a command and waits for its result.
pub(super) fn ask<C, T>(
    commands: &Sender<C>,
    timeouts: CallTimeouts,
    command: impl FnOnce(Reply<T>) -> C,
) -> Result<T, NoAnswer> {
    let progress = Arc::new(Progress::default());
    let (answer, result) = bounded(1);
    let deadline = Instant::now() + timeouts.begin;
    let reply = Reply { progress: Arc::clone(&progress), answer, unclaimed: result.clone() };
    commands.send_deadline(command(reply), deadline).map_err(|error| match error {
        SendTimeoutError::Timeout(_) => NoAnswer::NotBegun,
        SendTimeoutError::Disconnected(_) => NoAnswer::Ended,
    })?;
    match result.recv_deadline(deadline) {
        Ok(result) => return Ok(result),
        Err(RecvTimeoutError::Disconnected) => return Err(NoAnswer::Ended),
        Err(RecvTimeoutError::Timeout) if progress.advance(WAITING, CANCELLED) => {
            return Err(NoAnswer::NotBegun);
        }
        Err(RecvTimeoutError::Timeout) => {}
    }
    match result.recv_timeout(timeouts.finish) {
        Ok(result) => Ok(result),
        Err(RecvTimeoutError::Disconnected) => Err(NoAnswer::Ended),
        Err(RecvTimeoutError::Timeout) if progress.advance(BEGUN, CANCELLED) => {
            Err(NoAnswer::NotFinished)
        }
        // It was done at the last moment; the result is there.
        Err(RecvTimeoutError::Timeout) => result.try_recv().map_err(|_| NoAnswer::NotFinished),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Longer than any test takes.
    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(10);

    type Command = Box<dyn FnOnce() -> Option<u32> + Send>;

    fn command(reply: Reply<u32>, run: impl FnOnce() -> u32 + Send + 'static) -> Command {
        Box::new(move || reply.run(run))
    }

    #[test]
    fn a_result_is_returned() {
        let (commands, worker) = bounded::<Command>(1);
        let worker = thread::spawn(move || worker.recv().expect("a command")());
        let answer = ask(&commands, CallTimeouts::brief(LONG), |reply| command(reply, || 7));
        assert_eq!(answer, Ok(7));
        assert_eq!(worker.join().expect("no panic"), None, "there is nothing to undo");
    }

    #[test]
    fn a_command_that_nobody_began_never_runs() {
        let (commands, worker) = bounded::<Command>(1);
        let answer = ask(&commands, CallTimeouts::brief(SHORT), |reply| {
            command(reply, || panic!("it was cancelled"))
        });
        assert_eq!(answer, Err(NoAnswer::NotBegun));
        assert_eq!(worker.recv().expect("a command")(), None);
    }

    #[test]
    fn a_command_that_no_room_is_left_for_is_not_sent() {
        let (commands, worker) = bounded::<Command>(0);
        let answer = ask(&commands, CallTimeouts::brief(SHORT), |reply| command(reply, || 7));
        assert_eq!(answer, Err(NoAnswer::NotBegun));
        assert!(worker.try_recv().is_err());
    }

    #[test]
    fn a_command_that_takes_too_long_is_undone() {
        let (commands, worker) = bounded::<Command>(1);
        let (go_on, wait) = bounded::<()>(0);
        let worker = thread::spawn(move || worker.recv().expect("a command")());
        let (begun, has_begun) = bounded(1);
        // The worker has this long to begin.
        let timeouts = CallTimeouts { begin: Duration::from_secs(2), finish: SHORT };
        let answer = ask(&commands, timeouts, |reply| {
            command(reply, move || {
                let _ = begun.send(());
                let _ = wait.recv();
                7
            })
        });
        assert_eq!(answer, Err(NoAnswer::NotFinished));
        has_begun.recv().expect("it was begun");
        drop(go_on);
        assert_eq!(worker.join().expect("no panic"), Some(7), "the worker must undo it");
    }

    #[test]
    fn a_brief_command_that_has_begun_at_the_deadline_is_waited_for() {
        let (commands, worker) = bounded::<Command>(1);
        let worker = thread::spawn(move || worker.recv().expect("a command")());
        let begin = Duration::from_secs(1);
        let deadline = Instant::now() + begin;
        let answer = ask(&commands, CallTimeouts::brief(begin), |reply| {
            command(reply, move || {
                thread::sleep(SHORT + deadline.saturating_duration_since(Instant::now()));
                7
            })
        });
        assert_eq!(answer, Ok(7));
        assert_eq!(worker.join().expect("no panic"), None);
    }

    #[test]
    fn a_worker_that_stops_once_it_has_sent_the_result_is_not_waited_for() {
        let (commands, worker) = bounded::<Reply<u32>>(1);
        let (go_on, wait) = bounded::<()>(0);
        let worker = thread::spawn(move || {
            let reply = worker.recv().expect("a command");
            assert!(reply.progress.advance(WAITING, BEGUN));
            reply.answer.send(7).expect("it is waited for");
            let _ = wait.recv();
            reply.progress.advance(BEGUN, DONE)
        });
        let answer = ask(&commands, CallTimeouts { begin: LONG, finish: LONG }, |reply| reply);
        assert_eq!(answer, Ok(7));
        drop(go_on);
        assert!(worker.join().expect("no panic"));
    }

    #[test]
    fn a_result_is_either_returned_or_undone() {
        let (commands, worker) = bounded::<Command>(1);
        let (undone, results) = bounded(1);
        let worker = thread::spawn(move || {
            for command in worker {
                undone.send(command()).expect("it is read");
            }
        });
        let mut heard = 0;
        for n in 0..4000 {
            // From much too short to sufficient.
            let timeouts = CallTimeouts {
                begin: Duration::from_micros(n % 500),
                finish: Duration::from_micros(n % 7),
            };
            let answer = ask(&commands, timeouts, |reply| {
                command(reply, move || {
                    (0..n % 64).for_each(|_| std::hint::spin_loop());
                    7
                })
            });
            match (answer, results.recv().expect("every command is taken")) {
                (Ok(7), None) => heard += 1,
                (Err(NoAnswer::NotBegun), None) | (Err(NoAnswer::NotFinished), Some(7)) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(heard > 0);
        drop(commands);
        worker.join().expect("no panic");
    }

    #[test]
    fn a_worker_that_has_ended_is_not_waited_for() {
        let (commands, worker) = bounded::<Command>(1);
        drop(worker);
        let answer = ask(&commands, CallTimeouts::brief(LONG), |reply| command(reply, || 7));
        assert_eq!(answer, Err(NoAnswer::Ended));
    }
}
