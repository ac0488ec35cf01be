//! Joins threads with a timeout: a blocked thread does not delay the end of the process.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Interval between checks whether a thread has ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// Waits until a thread has ended, at most until `end`. `None`: it is still running, and ends with
/// the process.
pub fn join_until<T>(thread: JoinHandle<T>, end: Instant) -> Option<thread::Result<T>> {
    while !thread.is_finished() {
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(CHECK_INTERVAL);
    }
    Some(thread.join())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_thread_is_not_joined() {
        let (done, wait) = crossbeam_channel::bounded::<()>(0);
        let hangs = thread::spawn(move || wait.recv().is_err());
        assert!(join_until(hangs, Instant::now() + Duration::from_millis(20)).is_none());
        drop(done);
        let ends = thread::spawn(|| 7);
        let joined = join_until(ends, Instant::now() + Duration::from_secs(60));
        assert_eq!(joined.expect("it ends").expect("without a panic"), 7);
    }
}
