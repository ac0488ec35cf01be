//! The real device: whatever connects two interfaces of this machine.

use std::time::{Duration, Instant};

use super::{Device, FrameSize, Load, Trial, TrialError};
use crate::load::{Circuit, Generator, LoadError, Pace, Place, Sink, Traffic};
use crate::wire::MacAddr;

/// Interval between checks of clock and counters.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// Time until a generator sends, which is not counted: setting up live frames takes about 20 ms.
const WARM_UP_TIME: Duration = Duration::from_millis(100);
/// How long packets may be in flight after a trial (RFC 2544 23), unless all have come, or none came for
/// this long.
const IN_FLIGHT_TIMEOUT: Duration = Duration::from_secs(2);
const IDLE_TIMEOUT: Duration = Duration::from_millis(500);
/// Packets per attempt to find out whether any come back, and their rate; a device may first have to
/// resolve its neighbour.
const PROBE: u64 = 100;
const PROBE_PPS: f64 = 1000.0;
const PROBE_TRIES: usize = 10;

/// Two ports.
pub struct Ports<'a> {
    /// The sending port.
    tx: Place,
    rx: Place,
    /// The traffic, apart from its frame size.
    traffic: Traffic,
    /// Threads and CPUs of the generator.
    pace: Pace,
    circuit: Circuit,
    sink: Sink,
    interrupted: &'a dyn Fn() -> bool,
    progress: &'a mut dyn FnMut(&str),
}

impl std::fmt::Debug for Ports<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").field("tx", &self.tx).field("rx", &self.rx).finish_non_exhaustive()
    }
}

impl<'a> Ports<'a> {
    /// Attaches a sink to the receiving port. Of `pace` only threads and CPUs are used.
    ///
    /// # Errors
    /// Those of [`Circuit::sink`].
    pub fn open(
        tx: Place,
        rx: Place,
        traffic: Traffic,
        pace: Pace,
        interrupted: &'a dyn Fn() -> bool,
        progress: &'a mut dyn FnMut(&str),
    ) -> Result<Ports<'a>, LoadError> {
        let circuit = Circuit::new()?;
        let sink = circuit.sink(&rx)?;
        tx.usable()?;
        Ok(Ports { tx, rx, traffic, pace, circuit, sink, interrupted, progress })
    }

    /// Sends some packets, repeatedly until one comes back.
    ///
    /// # Errors
    /// [`TrialError::Silent`] when none do.
    pub fn probe(&mut self, size: FrameSize) -> Result<(), TrialError> {
        let before = self.sink.counts()?.received;
        let mut sent = 0;
        for _ in 0..PROBE_TRIES {
            let generator = self.start(size, Some(PROBE), Some(PROBE_PPS), None)?;
            self.wait_while(|| !generator.is_finished())?;
            sent += generator.stop()?.packets;
            self.settle(before + sent)?;
            if self.sink.counts()?.received > before {
                return Ok(());
            }
        }
        Err(TrialError::Silent {
            from: self.tx.to_string(),
            to: self.rx.to_string(),
            destination: self.traffic.destination.min.to_string(),
            mac: MacAddr(self.traffic.destination_mac).to_string(),
            sent,
        })
    }

    fn start(
        &self,
        size: FrameSize,
        count: Option<u64>,
        rate: Option<f64>,
        window: Option<u64>,
    ) -> Result<Generator, LoadError> {
        let mut traffic = self.traffic.clone();
        traffic.sizes = size.sizes(traffic.size_min());
        let pace = Pace { count, rate, window, ..self.pace.clone() };
        self.circuit.generator(&self.tx, &traffic, &pace)
    }

    /// Waits while `busy` is true; an interrupt is an error.
    fn wait_while(&self, mut busy: impl FnMut() -> bool) -> Result<(), TrialError> {
        while busy() {
            if (self.interrupted)() {
                return Err(TrialError::Interrupted);
            }
            std::thread::sleep(CHECK_INTERVAL);
        }
        Ok(())
    }

    /// Waits until `expected` packets have come, or no more do.
    fn settle(&self, expected: u64) -> Result<(), TrialError> {
        let mut last = (self.sink.counts()?.received, Instant::now());
        let end = Instant::now() + IN_FLIGHT_TIMEOUT;
        self.wait_while(|| {
            let Ok(counts) = self.sink.counts() else { return false };
            if counts.received != last.0 {
                last = (counts.received, Instant::now());
            }
            let waiting = counts.received < expected && last.1.elapsed() < IDLE_TIMEOUT;
            waiting && Instant::now() < end
        })
    }
}

impl Device for Ports<'_> {
    fn trial(
        &mut self,
        size: FrameSize,
        load: Load,
        length: Duration,
    ) -> Result<Trial, TrialError> {
        let (count, rate, window) = match load {
            Load::Rate(pps) => (None, Some(pps), None),
            Load::Full => (None, None, None),
            Load::Burst(packets) => (Some(packets), None, None),
            Load::Window(packets) => (None, None, Some(packets)),
        };
        self.sink.reset_latency()?;
        let before = self.sink.counts()?.received;
        let generator = self.start(size, count, rate, window)?;
        let begun = Instant::now();
        if count.is_none() {
            self.wait_while(|| begun.elapsed() < WARM_UP_TIME)?;
        }
        let (start, from) =
            (Instant::now(), (generator.sent()?.packets, self.sink.counts()?.received));
        self.wait_while(|| start.elapsed() < length && !generator.is_finished())?;
        let (elapsed, to) =
            (start.elapsed(), (generator.sent()?.packets, self.sink.counts()?.received));
        let sent = generator.stop()?.packets;
        self.settle(before + sent)?;
        let received = self.sink.counts()?.received - before;
        let per_second = |packets: u64| packets as f64 / elapsed.as_secs_f64();
        Ok(Trial {
            sent,
            received,
            offered_pps: per_second(to.0.saturating_sub(from.0)),
            received_pps: per_second(to.1.saturating_sub(from.1)),
            latency: self.sink.latency()?,
        })
    }

    fn progress(&mut self, text: &str) {
        (self.progress)(text);
    }
}
