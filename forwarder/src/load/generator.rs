//! A running generator of either engine: its threads, counters and end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use libbpf_rs::MapHandle;
use xdp_prog::load::{GeneratorConfig, GeneratorState, MAP_CONFIG, MAP_STATE};

use super::{LoadError, Place, object};
use crate::control::netdev::nic::{Nic, TxCounters};
use crate::stats::{DropReason, WorkerStats};

/// Counters of a generator.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct Sent {
    /// Packets handed to the port.
    pub packets: u64,
    /// Their octets, without the FCS.
    pub octets: u64,
    /// Packets that the port did not send: its drop and error counters, which include other senders'
    /// packets.
    pub port_dropped: u64,
    /// Seconds from the start until now, or until the end.
    #[serde(rename = "seconds")]
    pub elapsed_s: f64,
}

/// A running generator. Dropping it stops it.
#[derive(Debug)]
pub struct Generator {
    place: Place,
    before: TxCounters,
    started: Instant,
    ended: Option<Duration>,
    stop: Arc<AtomicBool>,
    threads: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    counters: Counters,
    /// Returns when the thread ended, and its result.
    thread: Option<JoinHandle<(Instant, Result<(), LoadError>)>>,
}

/// Where a thread's counters are stored.
#[derive(Debug)]
pub(super) enum Counters {
    /// In the maps of its program, which also hold its stop flag.
    Program { config: Box<GeneratorConfig>, config_map: MapHandle, state_map: MapHandle },
    /// In memory.
    Worker(Arc<WorkerStats>),
}

/// Sent by a thread when it is ready, or if it failed.
pub(super) type Ready = Sender<Result<Counters, LoadError>>;

/// Threads that are prepared one by one, and start sending together.
#[derive(Debug)]
pub(super) struct Starting {
    generator: Generator,
    begin: Vec<Sender<()>>,
}

impl Starting {
    pub(super) fn new(place: &Place, nic: &Nic) -> Starting {
        let generator = Generator {
            place: place.clone(),
            before: nic.tx,
            started: Instant::now(),
            ended: None,
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        Starting { generator, begin: Vec::new() }
    }

    /// The threads' stop flag.
    pub(super) fn stop(&self) -> Arc<AtomicBool> {
        self.generator.stop.clone()
    }

    /// Starts a thread and waits until it is ready.
    pub(super) fn thread(
        &mut self,
        run: impl FnOnce(Ready, Receiver<()>) -> Result<(), LoadError> + Send + 'static,
    ) -> Result<(), LoadError> {
        let (ready, counters) = mpsc::channel();
        let (go, begun) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("pktgen-{}", self.begin.len()))
            .spawn(move || {
                let result = run(ready, begun);
                (Instant::now(), result)
            })
            .map_err(|error| LoadError::Thread(error.to_string()))?;
        let counters =
            counters.recv().map_err(|_| LoadError::Thread("it ended at once".into()))??;
        self.generator.threads.push(Running { counters, thread: Some(thread) });
        self.begin.push(go);
        Ok(())
    }

    /// Has all threads start sending.
    pub(super) fn begin(mut self) -> Generator {
        self.generator.started = Instant::now();
        for go in self.begin {
            // If a thread has ended, joining it returns the reason.
            let _ = go.send(());
        }
        self.generator
    }
}

impl Counters {
    /// Packets, octets, and lost packets that the port has not counted.
    fn sent(&self) -> Result<(u64, u64, u64), LoadError> {
        match self {
            Counters::Program { state_map, .. } => {
                let state = state(state_map)?;
                Ok((state.sent, state.octets, 0))
            }
            Counters::Worker(stats) => {
                let refused = stats.drops[DropReason::TxError as usize].get();
                let lost = stats.drops_total() - refused;
                let (packets, octets) = stats
                    .ports
                    .first()
                    .map_or((0, 0), |port| (port.tx_packets.get(), port.tx_bytes.get()));
                // The port has counted the packets that it refused.
                Ok((packets + refused, octets, lost))
            }
        }
    }
}

impl Generator {
    /// What has been sent so far.
    ///
    /// # Errors
    /// [`LoadError::Map`], [`LoadError::Netlink`].
    pub fn sent(&self) -> Result<Sent, LoadError> {
        let elapsed = self.ended.unwrap_or_else(|| self.started.elapsed());
        let tx = self.place.nic()?.tx;
        let mut sent = Sent {
            elapsed_s: elapsed.as_secs_f64(),
            port_dropped: tx.failed.saturating_sub(self.before.failed),
            ..Sent::default()
        };
        for thread in &self.threads {
            let (packets, octets, lost) = thread.counters.sent()?;
            sent.packets += packets;
            sent.octets += octets;
            sent.port_dropped += lost;
        }
        Ok(sent)
    }

    /// Whether every thread has sent its share, or failed.
    pub fn is_finished(&self) -> bool {
        let done = |running: &Running| running.thread.as_ref().is_none_or(JoinHandle::is_finished);
        self.threads.iter().all(done)
    }

    /// Stops it and returns what was sent.
    ///
    /// # Errors
    /// The first error of a thread; [`LoadError::NothingSent`] if the port sent hardly a frame: the few
    /// that it counts may come from other senders.
    pub fn stop(mut self) -> Result<Sent, LoadError> {
        let ended = self.end();
        let sent = self.sent()?;
        ended?;
        let tx = self.place.nic()?.tx;
        let taken = tx.packets.saturating_sub(self.before.packets);
        if sent.packets > 0 && (tx == self.before || taken < sent.packets / 10) {
            return Err(LoadError::NothingSent(self.place.to_string()));
        }
        Ok(sent)
    }

    /// Time from the first to the last packet, measured by the programs: setting up live frames takes tens
    /// of milliseconds before the first.
    fn sending(&self) -> Option<Duration> {
        let mut whole: Option<(u64, u64)> = None;
        for running in &self.threads {
            let Counters::Program { state_map, .. } = &running.counters else { return None };
            let GeneratorState { first_ns, last_ns, .. } = state(state_map).ok()?;
            if first_ns != 0 {
                let (first, last) = whole.unwrap_or((first_ns, last_ns));
                whole = Some((first.min(first_ns), last.max(last_ns)));
            }
        }
        let (first, last) = whole?;
        // A single packet has no duration.
        (last > first).then(|| Duration::from_nanos(last - first))
    }

    fn end(&mut self) -> Result<(), LoadError> {
        self.stop.store(true, Ordering::Relaxed);
        let mut result = Ok(());
        for running in &mut self.threads {
            if let Counters::Program { config, config_map, .. } = &mut running.counters {
                config.stop = 1;
                let told = object::write(config_map, MAP_CONFIG, &config.to_bytes());
                result = result.and(told);
            }
        }
        let told = self.started.elapsed();
        for running in &mut self.threads {
            if let Some(thread) = running.thread.take() {
                let (at, how) =
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                let ended = at.saturating_duration_since(self.started);
                // A program that sees the stop flag sends nothing more, but its thread sees it only when
                // the system call has ended.
                let ended = match running.counters {
                    Counters::Program { .. } => ended.min(told),
                    Counters::Worker(_) => ended,
                };
                self.ended = self.ended.max(Some(ended));
                result = result.and(how);
            }
        }
        if let Some(sending) = self.sending() {
            self.ended = Some(sending);
        }
        result
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        // `stop` reports errors; dropping ignores them.
        let _ = self.end();
    }
}

/// State of a program.
pub(super) fn state(map: &MapHandle) -> Result<GeneratorState, LoadError> {
    let value = object::read(map, MAP_STATE)?;
    GeneratorState::from_bytes(&value).ok_or(LoadError::Incomplete(MAP_STATE))
}
