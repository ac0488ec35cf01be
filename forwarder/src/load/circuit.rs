//! Generators and sinks that share their counters.
//!
//! With a window, a generator sends only while fewer packets than that are in flight. Lost packets would
//! close the window permanently, so a thread counts the packets in flight as lost when no packet was sent or
//! received for [`LOSS_TIMEOUT`]. A packet that arrives after that is subtracted from the packets in flight
//! twice, as lost and as received: from then on one packet more may be in flight, until another is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::time::{ClockId, clock_gettime};
use xdp_prog::load::{
    GeneratorConfig, LATENCY_BUCKETS, Loop, MAP_CLOCK, MAP_FORGIVEN, MAP_LATENCY, MAP_LOOP,
    PROGRAM_SINK, latency_of_bucket,
};

use super::{Generator, LoadError, Pace, Place, Traffic, live_frames, object};
use crate::control::netdev::nic::Nic;
use crate::io::af_xdp::link::{LinkMode, XdpLink};

/// How long no packet may be sent or received before those in flight count as lost. Longer than a thread
/// may be without its CPU on a busy machine.
const LOSS_TIMEOUT: Duration = Duration::from_millis(100);
/// Interval between reads of the counters.
const READ_INTERVAL: Duration = Duration::from_millis(10);

/// Counters of all sinks of a circuit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Packets with pktgen's header.
    pub received: u64,
    /// Their octets, without the FCS.
    pub octets: u64,
    /// Other frames, which went to the kernel.
    pub other: u64,
    /// Packets sent by generators with a window.
    pub sent: u64,
    /// Packets counted as lost, because no packet was sent or received for 100 ms.
    pub forgiven: u64,
}

/// The counters that generators and sinks share.
#[derive(Debug)]
pub struct Circuit {
    pub(super) maps: Shared,
    forgiven: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

/// The maps.
#[derive(Debug)]
pub(super) struct Shared {
    counters: MapHandle,
    forgiven: MapHandle,
    clock: MapHandle,
}

impl Shared {
    fn new() -> Result<Shared, LoadError> {
        // The generator's program uses all of these maps.
        let object = object::load(xdp_prog::load::PROGRAM_PKTGEN, &[])?;
        let shared = Shared {
            counters: object::map(&object, MAP_LOOP)?,
            forgiven: object::map(&object, MAP_FORGIVEN)?,
            clock: object::map(&object, MAP_CLOCK)?,
        };
        let offset = realtime_offset_ns();
        object::write(&shared.clock, MAP_CLOCK, &offset.to_ne_bytes())?;
        Ok(shared)
    }

    /// The maps by name, for the objects that use them.
    pub(super) fn by_name(&self) -> [(&'static str, &MapHandle); 3] {
        [(MAP_LOOP, &self.counters), (MAP_FORGIVEN, &self.forgiven), (MAP_CLOCK, &self.clock)]
    }

    /// New handles, for another thread.
    pub(super) fn duplicate(&self) -> Result<Shared, LoadError> {
        let copy = |map: &MapHandle, name| {
            MapHandle::try_from(map).map_err(|source| LoadError::Map(name, source))
        };
        Ok(Shared {
            counters: copy(&self.counters, MAP_LOOP)?,
            forgiven: copy(&self.forgiven, MAP_FORGIVEN)?,
            clock: copy(&self.clock, MAP_CLOCK)?,
        })
    }

    fn counters(&self) -> Result<Loop, LoadError> {
        let value = object::read(&self.counters, MAP_LOOP)?;
        Loop::from_bytes(&value).ok_or(LoadError::Incomplete(MAP_LOOP))
    }
}

/// CLOCK_REALTIME − CLOCK_TAI in ns, wrapping: BPF reads TAI, packets carry REALTIME. The difference is in
/// whole seconds and constant except for leap seconds.
pub(super) fn realtime_offset_ns() -> u64 {
    const SECOND: i64 = 1_000_000_000;
    let now = |clock| clock_gettime(clock).map_or(0, |t| t.tv_sec() * SECOND + t.tv_nsec());
    let apart = now(ClockId::CLOCK_REALTIME) - now(ClockId::CLOCK_TAI);
    let seconds = (apart as f64 / SECOND as f64).round() as i64;
    (seconds * SECOND) as u64
}

impl Circuit {
    /// Creates the maps that generators and sinks will share.
    ///
    /// # Errors
    /// [`LoadError::NotPermitted`] without root; [`LoadError::Load`] on a kernel before 6.1.
    pub fn new() -> Result<Circuit, LoadError> {
        let maps = Shared::new()?;
        let (stop, forgiven) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let watched = maps.duplicate()?;
        let watcher = thread::Builder::new().name("load-watch".into()).spawn({
            let (stop, forgiven) = (stop.clone(), forgiven.clone());
            move || watch(&watched, &forgiven, &stop)
        });
        let watcher = watcher.map_err(|error| LoadError::Thread(error.to_string()))?;
        Ok(Circuit { maps, forgiven, stop, watcher: Some(watcher) })
    }

    /// Attaches a sink to an interface: native XDP, or generic XDP if the driver has none. Frames without
    /// pktgen's header go to the kernel as before.
    ///
    /// # Errors
    /// [`LoadError::Attach`] if a program is already attached; those of [`Place::usable`].
    pub fn sink(&self, place: &Place) -> Result<Sink, LoadError> {
        let ifindex = place.usable()?.ifindex;
        let object = object::load(PROGRAM_SINK, &self.maps.by_name())?;
        let program = object::program(&object, PROGRAM_SINK)?;
        let link = place.run(|| attach(&program, ifindex, place))?;
        Ok(Sink {
            _link: link,
            latency: object::map(&object, MAP_LATENCY)?,
            maps: self.maps.duplicate()?,
            forgiven: self.forgiven.clone(),
        })
    }

    /// Starts a generator on an interface: BPF_PROG_RUN with live frames, which are sent by the driver's
    /// ndo_xdp_xmit.
    ///
    /// # Errors
    /// [`LoadError::Traffic`] for traffic that cannot be sent; those of [`Place::usable`]; those of
    /// loading. Later errors are reported by [`Generator::stop`].
    pub fn generator(
        &self,
        place: &Place,
        traffic: &Traffic,
        pace: &Pace,
    ) -> Result<Generator, LoadError> {
        let nic = place.usable()?;
        let configs = configs(place, &nic, traffic, pace)?;
        live_frames::start(&self.maps, place, &nic, configs, pace)
    }
}

/// The configuration of each thread, if the interface can carry the traffic.
pub(super) fn configs(
    place: &Place,
    nic: &Nic,
    traffic: &Traffic,
    pace: &Pace,
) -> Result<Vec<GeneratorConfig>, LoadError> {
    let configs = traffic.configs(pace, nic.mac.unwrap_or_default())?;
    let (size, max) = (traffic.size_max(), traffic.size_limit(nic.mtu));
    if size > max {
        return Err(LoadError::TooLong { place: place.to_string(), size, mtu: nic.mtu, max });
    }
    Ok(configs)
}

impl Drop for Circuit {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

/// Native, or generic if there is no native XDP.
pub(super) fn attach(
    program: &std::os::fd::OwnedFd,
    ifindex: u32,
    place: &Place,
) -> Result<XdpLink, LoadError> {
    use std::os::fd::AsFd;
    let link = match XdpLink::attach(program.as_fd(), ifindex, LinkMode::Native) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            XdpLink::attach(program.as_fd(), ifindex, LinkMode::Generic)
        }
        attached => attached,
    };
    link.map_err(|source| LoadError::Attach { place: place.to_string(), source })
}

/// Counts the packets in flight as lost when no packet was sent or received for [`LOSS_TIMEOUT`].
fn watch(maps: &Shared, forgiven: &AtomicU64, stop: &AtomicBool) {
    let (mut last, mut since) = (Loop::default(), Instant::now());
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(READ_INTERVAL);
        let Ok(now) = maps.counters() else { return };
        if (now.sent, now.received) != (last.sent, last.received) {
            (last, since) = (now, Instant::now());
            continue;
        }
        let gone = now.received.wrapping_add(forgiven.load(Ordering::Relaxed));
        let in_flight = now.sent.wrapping_sub(gone).cast_signed();
        if in_flight > 0 && since.elapsed() >= LOSS_TIMEOUT {
            let total = forgiven.fetch_add(in_flight as u64, Ordering::Relaxed) + in_flight as u64;
            if object::write(&maps.forgiven, MAP_FORGIVEN, &total.to_ne_bytes()).is_err() {
                return;
            }
        }
    }
}

/// An XDP program that counts and drops packets with pktgen's header. Dropping it detaches the program.
#[derive(Debug)]
pub struct Sink {
    /// First, so that it is dropped first.
    _link: XdpLink,
    latency: MapHandle,
    maps: Shared,
    forgiven: Arc<AtomicU64>,
}

impl Sink {
    /// Counters of all sinks of the circuit since it was created. One system call.
    ///
    /// # Errors
    /// [`LoadError::Map`].
    pub fn counts(&self) -> Result<Counts, LoadError> {
        let counters = self.maps.counters()?;
        Ok(Counts {
            received: counters.received,
            octets: counters.received_octets,
            other: counters.other,
            sent: counters.sent,
            forgiven: self.forgiven.load(Ordering::Relaxed),
        })
    }

    /// One-way latency of this sink's packets in ns, with a resolution of 1 µs and within 1/128: from the
    /// timestamp in the packet to the run of the sink's program. Packets without a timestamp are not
    /// included.
    ///
    /// # Errors
    /// [`LoadError::Map`].
    pub fn latency(&self) -> Result<Histogram<u64>, LoadError> {
        let mut histogram = crate::histogram::histogram();
        for bucket in 0..LATENCY_BUCKETS as u32 {
            let cpus = self
                .latency
                .lookup_percpu(&bucket.to_ne_bytes(), MapFlags::ANY)
                .map_err(|source| LoadError::Map(MAP_LATENCY, source))?
                .unwrap_or_default();
            let words = cpus.iter().filter_map(|cpu| cpu.first_chunk::<8>());
            let count: u64 = words.map(|octets| u64::from_ne_bytes(*octets)).sum();
            if count > 0 {
                histogram.saturating_record_n(latency_of_bucket(bucket) * 1000, count);
            }
        }
        Ok(histogram)
    }

    /// Resets the latencies. Packets that arrive meanwhile may be counted or not.
    ///
    /// # Errors
    /// [`LoadError::Map`].
    pub fn reset_latency(&self) -> Result<(), LoadError> {
        let cpus =
            libbpf_rs::num_possible_cpus().map_err(|source| LoadError::Map(MAP_LATENCY, source))?;
        let zeros = vec![vec![0; 8]; cpus];
        for bucket in 0..LATENCY_BUCKETS as u32 {
            self.latency
                .update_percpu(&bucket.to_ne_bytes(), &zeros, MapFlags::ANY)
                .map_err(|source| LoadError::Map(MAP_LATENCY, source))?;
        }
        Ok(())
    }
}
