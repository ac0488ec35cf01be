//! How long heartbeats are valid: the time-outs after which the kernel forwards instead.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Allowed time-outs of a worker in milliseconds. An idle worker sleeps for 20 ms at a time, and on a busy
/// machine it may not get its CPU for some 50 ms.
pub(super) const WORKER_MS: RangeInclusive<u32> = 100..=60_000;
/// Allowed time-outs of the control thread in milliseconds. It gives a heartbeat at least every 100 ms.
pub(super) const CONTROL_MS: RangeInclusive<u32> = 300..=60_000;

/// The time-outs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// A worker's: its queues are left to the kernel when its heartbeat is older.
    pub worker: Duration,
    /// The control thread's: everything is left to the kernel when its heartbeat is older.
    pub control: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts { worker: Duration::from_millis(250), control: Duration::from_secs(1) }
    }
}

impl Timeouts {
    /// Time-outs in milliseconds; `None`: the default.
    ///
    /// # Errors
    /// As for [`check_worker`] and [`check_control`].
    pub fn from_ms(worker: Option<u32>, control: Option<u32>) -> Result<Timeouts, String> {
        worker.map_or(Ok(()), check_worker)?;
        control.map_or(Ok(()), check_control)?;
        let default = Timeouts::default();
        let ms = |ms: u32| Duration::from_millis(ms.into());
        Ok(Timeouts {
            worker: worker.map_or(default.worker, ms),
            control: control.map_or(default.control, ms),
        })
    }
}

/// Checks a worker's time-out in milliseconds.
///
/// # Errors
/// When it is out of range.
pub fn check_worker(ms: u32) -> Result<(), String> {
    check("worker timeout", ms, WORKER_MS)
}

/// Checks the control thread's time-out in milliseconds.
///
/// # Errors
/// When it is out of range.
pub fn check_control(ms: u32) -> Result<(), String> {
    check("control timeout", ms, CONTROL_MS)
}

fn check(what: &str, ms: u32, range: RangeInclusive<u32>) -> Result<(), String> {
    match range.contains(&ms) {
        true => Ok(()),
        false => {
            Err(format!("{what} is {ms} ms, expected {} to {} ms", range.start(), range.end()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_that_a_thread_cannot_keep_are_refused() {
        assert_eq!(Timeouts::from_ms(None, None), Ok(Timeouts::default()));
        let timeouts = Timeouts::from_ms(Some(100), Some(60_000)).expect("in range");
        assert_eq!((timeouts.worker.as_millis(), timeouts.control.as_millis()), (100, 60_000));
        let error = Timeouts::from_ms(Some(99), None).expect_err("too short");
        assert_eq!(error, "worker timeout is 99 ms, expected 100 to 60000 ms");
        let error = Timeouts::from_ms(None, Some(60_001)).expect_err("too long");
        assert_eq!(error, "control timeout is 60001 ms, expected 300 to 60000 ms");
    }
}
