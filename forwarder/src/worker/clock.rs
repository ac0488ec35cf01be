//! The worker's clocks, in nanoseconds since their start.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Monotonic. Read once per burst and passed down; the pipeline never reads a clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// CLOCK_MONOTONIC.
    start_ns: u64,
}

/// CLOCK_MONOTONIC in nanoseconds, the clock that BPF programs read (`ktime_get`).
#[inline]
pub fn monotonic_ns() -> u64 {
    // Fails only for clocks that do not exist.
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

    /// CLOCK_MONOTONIC at a time of [`Self::now_ns`].
    #[inline]
    pub fn monotonic_ns(&self, now_ns: u64) -> u64 {
        self.start_ns.wrapping_add(now_ns)
    }

    /// The offset from [`Self::now_ns`] to nanoseconds of UTC since 1970, by the system's clock at
    /// present; for IPv4 timestamp options.
    pub fn utc_offset_ns(&self) -> u64 {
        let utc = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (utc.as_nanos() as u64).wrapping_sub(self.now_ns())
    }
}

/// For short intervals, at the lowest cost: the processor's counter where its rate is constant (x86:
/// invariant TSC; 10 ns per reading, where the system's clock takes 25), else the system's monotonic
/// clock. The rate is measured when the first stopwatch is created, in about a millisecond.
///
/// All stopwatches of a process have the same zero, so one worker may stamp a packet and another measure
/// it.
#[derive(Debug, Clone)]
pub struct Stopwatch {
    clock: quanta::Clock,
    start: u64,
}

impl Stopwatch {
    /// Creates a stopwatch; the first one of the process starts at zero.
    pub fn start() -> Stopwatch {
        static FIRST: OnceLock<Stopwatch> = OnceLock::new();
        let first = || {
            let clock = quanta::Clock::new();
            Stopwatch { start: clock.raw(), clock }
        };
        FIRST.get_or_init(first).clone()
    }

    /// Nanoseconds since the first stopwatch was created.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.clock.delta_as_nanos(self.start, self.clock.raw())
    }
}
