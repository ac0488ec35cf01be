//! The worker's clock: nanoseconds since the process began to look, monotonic.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Read once a burst, passed down from there; the pipeline never reads a clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts at zero.
    pub fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    /// Nanoseconds since the start; wraps after 584 years.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// What has to be added to [`Self::now_ns`] for nanoseconds of UTC since 1970, as the system's
    /// clock has it now; for IPv4 timestamp options.
    pub fn utc_offset_ns(&self) -> u64 {
        let utc = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (utc.as_nanos() as u64).wrapping_sub(self.now_ns())
    }
}
