//! The AF_XDP engine: the forwarder's driver sends, one thread per queue.
//!
//! Packets are built in userspace, with the same contents as those of the XDP engine, and carry the time
//! when they were built. It needs nothing at the other end, and can also send captures. Without zero-copy,
//! the live frames of the XDP engine are faster by the copy and the system call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use xdp_prog::load::{GeneratorConfig, INTERVAL_SHIFT};

use super::capture::Capture;
use super::circuit::configs;
use super::generator::{Counters, Ready, Starting};
use super::{Generator, LoadError, Pace, Place, Traffic, TrafficError, frame};
use crate::control::netdev::nic::{self, Nic};
use crate::io::PacketIo;
use crate::io::af_xdp::{AfXdp, BindMode, Options, PortConfig, RingSizes};
use crate::skb::burst::BURST;
use crate::skb::{Burst, FramePool, HEADROOM, SkBuff};
use crate::stats::WorkerStats;
use crate::worker::affinity;

/// Frames in flight; nothing is received, but a fill ring is required.
const RINGS: RingSizes = RingSizes { fill: 64, tx: 2048 };
/// A thread that has nothing to send for longer than this sleeps; it spins for the last part.
const SPIN_MAX: Duration = Duration::from_micros(200);
/// Longest sleep, and thus the delay until the thread notices that it is to stop.
const SLEEP_MAX: Duration = Duration::from_millis(10);
/// How long the kernel may take to send what is left at the end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// What is sent.
#[derive(Debug, Clone)]
pub enum Source {
    /// Generated packets.
    Traffic(Traffic),
    /// A capture's frames, in its order, repeatedly.
    Capture(Capture),
}

/// Starts a generator on an interface: thread `n` sends on queue `n`.
///
/// # Errors
/// [`LoadError::Traffic`] for traffic that cannot be sent; those of [`Place::usable`];
/// [`LoadError::Queues`] for more threads than queues; [`LoadError::Open`].
pub fn start(
    place: &Place,
    source: &Source,
    pace: &Pace,
    mode: BindMode,
) -> Result<Generator, LoadError> {
    let nic = place.usable()?;
    let threads = pace.threads.max(1);
    let streams = streams(place, &nic, source, pace)?;
    let queues = place.run(|| nic::rx_queues(nic.ifindex).map_err(LoadError::Netlink))?;
    if threads > queues as usize {
        return Err(LoadError::Queues { place: place.to_string(), threads, queues });
    }
    let mut starting = Starting::new(place, &nic);
    for (n, stream) in streams.into_iter().enumerate() {
        let sender = Sender {
            place: place.clone(),
            port: PortConfig {
                ifname: place.ifname.clone(),
                ifindex: nic.ifindex,
                queue: n as u32,
                mode,
                ..PortConfig::default()
            },
            cpu: pace.cpu(n),
            interval: pace.interval(threads as u64),
            count: pace.count.map(|_| pace.share(n as u64, threads as u64)),
            stream,
            stop: starting.stop(),
        };
        starting.thread(move |ready, begin| sender.run(&ready, &begin))?;
    }
    Ok(starting.begin())
}

/// What each thread sends.
fn streams(
    place: &Place,
    nic: &Nic,
    source: &Source,
    pace: &Pace,
) -> Result<Vec<Stream>, LoadError> {
    if pace.window.is_some() {
        return Err(TrafficError::WindowNeedsXdp.into());
    }
    match source {
        Source::Traffic(traffic) => {
            let configs = configs(place, nic, traffic, pace)?;
            Ok(configs.into_iter().map(|config| Stream::Made(Box::new(config))).collect())
        }
        Source::Capture(capture) => {
            pace.check()?;
            capture.check(&place.to_string(), nic)?;
            let threads = pace.threads.max(1) as u64;
            let one = |n| Stream::Captured { capture: capture.clone(), first: n, step: threads };
            Ok((0..threads).map(one).collect())
        }
    }
}

/// The packets of one thread.
#[derive(Debug)]
enum Stream {
    Made(Box<GeneratorConfig>),
    Captured { capture: Capture, first: u64, step: u64 },
}

impl Stream {
    /// Writes packet number `n` into an empty packet. Returns false if it does not fit.
    fn write(&self, n: u64, skb: &mut SkBuff) -> bool {
        match self {
            Stream::Made(config) => {
                let stamp = if config.is_stamped() { now() } else { (0, 0) };
                let put = skb.put(usize::from(config.size(n)));
                put.map(|octets| frame::write(config, n, stamp, octets)).is_ok()
            }
            Stream::Captured { capture, first, step } => {
                let frames = &capture.frames;
                let frame = &frames[((first + n * step) % frames.len() as u64) as usize];
                skb.put(frame.len()).map(|octets| octets.copy_from_slice(frame)).is_ok()
            }
        }
    }
}

/// Seconds and microseconds of CLOCK_REALTIME.
fn now() -> (u32, u32) {
    clock_gettime(ClockId::CLOCK_REALTIME)
        .map_or((0, 0), |now| (now.tv_sec() as u32, (now.tv_nsec() / 1000) as u32))
}

/// One thread.
struct Sender {
    place: Place,
    port: PortConfig,
    cpu: Option<usize>,
    /// In 1/1024 ns; 0: no pause.
    interval: u64,
    count: Option<u64>,
    stream: Stream,
    stop: Arc<AtomicBool>,
}

impl Sender {
    fn run(self, ready: &Ready, begin: &Receiver<()>) -> Result<(), LoadError> {
        let (mut io, mut pool) = match self.open() {
            Ok(opened) => opened,
            Err(error) => {
                // The starter stops waiting if the channel is closed.
                let _ = ready.send(Err(error));
                return Ok(());
            }
        };
        let stats = Arc::new(WorkerStats::new(1));
        if ready.send(Ok(Counters::Worker(stats.clone()))).is_err() || begin.recv().is_err() {
            return Ok(());
        }
        self.send(&mut io, &mut pool, &stats);
        let end = Instant::now() + DRAIN_TIMEOUT;
        while io.accounting().tx_and_completion > 0 && Instant::now() < end {
            io.kick(&mut pool, &stats);
        }
        io.close(&mut pool, &stats);
        Ok(())
    }

    fn open(&self) -> Result<(AfXdp, FramePool), LoadError> {
        if let Some(cpu) = self.cpu {
            affinity::pin_to(cpu).map_err(|error| LoadError::Thread(error.to_string()))?;
        }
        self.place.enter()?;
        let options = Options { rings: RINGS, reserve: BURST as u32, ..Options::default() };
        Ok(AfXdp::open(std::slice::from_ref(&self.port), &options)?)
    }

    fn send(&self, io: &mut AfXdp, pool: &mut FramePool, stats: &WorkerStats) {
        let mut burst = Burst::default();
        let (started, mut sent) = (Instant::now(), 0);
        while !self.stop.load(Ordering::Relaxed) && self.count.is_none_or(|count| sent < count) {
            let room = RINGS.tx as usize - io.accounting().tx_and_completion;
            let due = self.due(started.elapsed()).saturating_sub(sent);
            let left = self.count.map_or(u64::MAX, |count| count - sent);
            let wanted = due.min(left).min(room.min(BURST) as u64);
            for _ in 0..wanted {
                let Some(mut skb) = SkBuff::alloc_skb(pool, HEADROOM) else { break };
                if !self.stream.write(sent, &mut skb) || burst.push(skb).is_err() {
                    // Unreachable: sizes were checked, and the burst has room.
                    return;
                }
                sent += 1;
            }
            if !burst.is_empty() {
                io.tx_burst(0, pool, &mut burst, stats);
            }
            io.kick(pool, stats);
            if due == 0 && io.accounting().tx_and_completion == 0 {
                self.rest(started, sent);
            }
        }
    }

    /// Number of packets that should have been sent after `elapsed`.
    fn due(&self, elapsed: Duration) -> u64 {
        if self.interval == 0 {
            return u64::MAX;
        }
        let units = elapsed.as_nanos() << INTERVAL_SHIFT;
        (units / u128::from(self.interval)) as u64 + 1
    }

    /// Waits until packet number `sent` is due, or for most of the time until then.
    fn rest(&self, started: Instant, sent: u64) {
        let due_ns = (u128::from(sent) * u128::from(self.interval)) >> INTERVAL_SHIFT;
        let due = Duration::from_nanos(u64::try_from(due_ns).unwrap_or(u64::MAX));
        match due.checked_sub(started.elapsed()) {
            Some(left) if left > SPIN_MAX => std::thread::sleep((left - SPIN_MAX).min(SLEEP_MAX)),
            _ => std::hint::spin_loop(),
        }
    }
}
