//! The worker's clocks: nanoseconds since it began to look.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Monotonic. Read once a burst, passed down from there; the pipeline never reads a clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// CLOCK_MONOTONIC.
    start_ns: u64,
}

/// CLOCK_MONOTONIC in nanoseconds: what BPF programs see too (`ktime_get`).
#[inline]
pub fn monotonic_ns() -> u64 {
    // It fails for clocks that do not exist only.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

impl Clock {
    /// Starts at zero.
    pub fn start() -> Clock {
        Clock { start_ns: monotonic_ns() }
    }

    /// Nanoseconds since the start; wraps after 584 years.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        monotonic_ns().wrapping_sub(self.start_ns)
    }

    /// What CLOCK_MONOTONIC was at a time of [`Self::now_ns`].
    #[inline]
    pub fn monotonic_ns(&self, now_ns: u64) -> u64 {
        self.start_ns.wrapping_add(now_ns)
    }

    /// What has to be added to [`Self::now_ns`] for nanoseconds of UTC since 1970, as the system's
    /// clock has it now; for IPv4 timestamp options.
    pub fn utc_offset_ns(&self) -> u64 {
        let utc = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (utc.as_nanos() as u64).wrapping_sub(self.now_ns())
    }
}

/// For distances on one CPU, at the lowest cost: the processor's counter where it runs at one rate
/// (x86: invariant TSC; 10 ns a reading, where the system's clock takes 25), else the system's
/// monotonic clock. The rate is measured when the first is made, in about a millisecond.
///
/// All of a process have the same zero: a packet may be stamped by one worker and measured by another.
#[derive(Debug, Clone)]
pub struct Stopwatch {
    clock: quanta::Clock,
    start: u64,
}

impl Stopwatch {
    /// Starts at zero, if it is the process's first.
    pub fn start() -> Stopwatch {
        static FIRST: OnceLock<Stopwatch> = OnceLock::new();
        let first = || {
            let clock = quanta::Clock::new();
            Stopwatch { start: clock.raw(), clock }
        };
        FIRST.get_or_init(first).clone()
    }

    /// Nanoseconds since the first was started.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.clock.delta_as_nanos(self.start, self.clock.raw())
    }
}
