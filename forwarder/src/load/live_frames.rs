//! The XDP engine: each thread runs its own instance of the program over live frames.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use libbpf_rs::{ErrorKind, MapHandle, Object, ProgramInput};
use xdp_prog::load::{GeneratorConfig, INTERVAL_SHIFT, MAP_CONFIG, MAP_STATE, PROGRAM_PKTGEN};

use super::circuit::Shared;
use super::generator::{Counters, Generator, Starting, state};
use super::{LoadError, Pace, Place, object};
use crate::control::netdev::nic::Nic;
use crate::worker::affinity;

/// Target duration of a system call: setting one up takes about 20 ms, during which nothing is sent, and a
/// thread sees its stop flag only when the call has ended.
const CALL_TIME: Duration = Duration::from_millis(500);
/// Minimum runs of the program per system call. The kernel works in batches of 64.
const REPEAT_MIN: u32 = 64;
const REPEAT_MAX: u32 = 1 << 28;
/// Target duration of a system call when the program waits for packets to be due.
const PACED_CALL_TIME: Duration = Duration::from_secs(1);
/// BPF_F_TEST_XDP_LIVE_FRAMES of linux/bpf.h.
const LIVE_FRAMES: u32 = libbpf_rs::libbpf_sys::BPF_F_TEST_XDP_LIVE_FRAMES;

/// Starts one thread for each of `configs`.
pub(super) fn start(
    shared: &Shared,
    place: &Place,
    nic: &Nic,
    configs: Vec<GeneratorConfig>,
    pace: &Pace,
) -> Result<Generator, LoadError> {
    let mut starting = Starting::new(place, nic);
    for (n, config) in configs.into_iter().enumerate() {
        let worker = Worker {
            place: place.clone(),
            ifindex: nic.ifindex,
            shared: shared.duplicate()?,
            config,
            cpu: pace.cpu(n),
            stop: starting.stop(),
        };
        starting.thread(move |ready, begin| worker.run(&ready, &begin))?;
    }
    Ok(starting.begin())
}

/// One thread.
struct Worker {
    place: Place,
    ifindex: u32,
    shared: Shared,
    config: GeneratorConfig,
    cpu: Option<usize>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    fn run(
        self,
        ready: &mpsc::Sender<Result<Counters, LoadError>>,
        begin: &mpsc::Receiver<()>,
    ) -> Result<(), LoadError> {
        let (mut object, config_map, state_map) = match self.prepare() {
            Ok(prepared) => prepared,
            Err(error) => {
                // The starter stops waiting if the channel is closed.
                let _ = ready.send(Err(error));
                return Ok(());
            }
        };
        let config = Box::new(self.config);
        let shown =
            Counters::Program { config, config_map, state_map: object::map(&object, MAP_STATE)? };
        if ready.send(Ok(shown)).is_err() || begin.recv().is_err() {
            return Ok(());
        }
        self.send(&mut object, &state_map)
    }

    fn prepare(&self) -> Result<(Object, MapHandle, MapHandle), LoadError> {
        if let Some(cpu) = self.cpu {
            affinity::pin_to(cpu).map_err(|error| LoadError::Thread(error.to_string()))?;
        }
        self.place.enter()?;
        let object = object::load(PROGRAM_PKTGEN, &self.shared.by_name())?;
        let config = object::map(&object, MAP_CONFIG)?;
        object::write(&config, MAP_CONFIG, &self.config.to_bytes())?;
        let state = object::map(&object, MAP_STATE)?;
        Ok((object, config, state))
    }

    fn send(&self, object: &mut Object, state_map: &MapHandle) -> Result<(), LoadError> {
        let program = object
            .progs_mut()
            .find(|program| program.name() == PROGRAM_PKTGEN)
            .ok_or(LoadError::Incomplete(PROGRAM_PKTGEN))?;
        let frame = vec![0; self.config.frame_max as usize];
        // Estimated duration of a run in ns, until it is measured: a run that waits for a packet to be due
        // is short, one that sends may process the packet up to its sink.
        let mut run_ns = if self.config.interval == 0 { 1000.0 } else { 100.0 };
        loop {
            let sent = state(state_map)?.sent;
            let Some(repeat) = self.repeat(sent, run_ns) else { return Ok(()) };
            let mut context = self.context(frame.len());
            let started = Instant::now();
            let result = program.test_run(ProgramInput {
                context_in: Some(&mut context),
                data_in: Some(&frame),
                flags: LIVE_FRAMES,
                repeat,
                ..ProgramInput::default()
            });
            match result {
                // A signal ends the system call early.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    let place = self.place.to_string();
                    return Err(LoadError::Run { place, source });
                }
                Ok(_) => run_ns = started.elapsed().as_nanos() as f64 / f64::from(repeat),
            }
        }
    }

    /// Number of runs of the next system call; `None`: the thread is finished.
    fn repeat(&self, sent: u64, run_ns: f64) -> Option<u32> {
        let (count, interval) = (self.config.count, self.config.interval);
        let done = count != 0 && sent >= count;
        if done || self.config.stop != 0 || self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let left = if count == 0 { u64::MAX } else { count - sent };
        let runs = |call_ns: f64| (call_ns / run_ns.max(1.0)) as u32;
        let repeat = if interval == 0 {
            u32::try_from(left).unwrap_or(REPEAT_MAX).min(runs(CALL_TIME.as_nanos() as f64))
        } else {
            let left_ns = left as f64 * (interval >> INTERVAL_SHIFT).max(1) as f64;
            runs(left_ns.min(PACED_CALL_TIME.as_nanos() as f64))
        };
        Some(repeat.clamp(REPEAT_MIN, REPEAT_MAX))
    }

    /// `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex. XDP_TX
    /// sends on the interface given as ingress.
    fn context(&self, octets: usize) -> [u8; 24] {
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&(octets as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&self.ifindex.to_ne_bytes());
        context
    }
}
