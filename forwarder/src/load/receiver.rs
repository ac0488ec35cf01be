//! Receives a load through AF_XDP: an XDP program redirects frames with pktgen's header to this sink's
//! sockets, on every queue of the interface, and passes the rest to the kernel.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags};
use nix::time::{ClockId, clock_gettime};
use xdp_prog::load::{Loop, MAP_CATCH, MAP_LOOP, PROGRAM_CATCH};

use super::circuit::attach;
use super::tracker::Tracker;
use super::{LoadError, Place, object};
use crate::control::netdev::nic;
use crate::io::PacketIo;
use crate::io::af_xdp::link::XdpLink;
use crate::io::af_xdp::{AfXdp, BindMode, Options, PortConfig, RingSizes};
use crate::skb::{Burst, FramePool};
use crate::stats::WorkerStats;

/// Frames that may wait: on a busy machine a thread may be without its CPU for 50 ms and more, at 160,000
/// packets per second.
const RINGS: RingSizes = RingSizes { fill: 8192, tx: 64 };

/// An open receiver.
#[derive(Debug)]
pub struct Receiver {
    /// First, so that the program is detached before the sockets are closed.
    _link: XdpLink,
    io: AfXdp,
    pool: FramePool,
    burst: Burst,
    stats: Arc<WorkerStats>,
    counters: libbpf_rs::MapHandle,
    queues: u16,
}

impl Receiver {
    /// Opens a receiver on an interface. The calling thread enters the interface's network namespace and
    /// stays there.
    ///
    /// # Errors
    /// Those of [`Place::usable`]; [`LoadError::Open`] if a queue is in use; [`LoadError::Attach`] if
    /// another XDP program is attached.
    pub fn open(place: &Place, mode: BindMode) -> Result<Receiver, LoadError> {
        place.enter()?;
        let here = Place::here(&place.ifname);
        let ifindex = here.usable()?.ifindex;
        let queues = nic::rx_queues(ifindex).map_err(LoadError::Netlink)?;
        let port = |queue| PortConfig {
            ifname: place.ifname.clone(),
            ifindex,
            queue,
            mode,
            ..PortConfig::default()
        };
        let ports: Vec<PortConfig> = (0..queues).map(port).collect();
        let options = Options { rings: RINGS, ..Options::default() };
        let (io, pool) = AfXdp::open(&ports, &options)?;
        let object = object::load(PROGRAM_CATCH, &[])?;
        let sockets = object::map(&object, MAP_CATCH)?;
        for queue in 0..queues {
            let Some(socket) = io.socket_fd(queue as u16) else { continue };
            sockets
                .update(&queue.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes(), MapFlags::ANY)
                .map_err(|source| LoadError::Map(MAP_CATCH, source))?;
        }
        let program = object::program(&object, PROGRAM_CATCH)?;
        Ok(Receiver {
            _link: attach(&program, ifindex, place)?,
            io,
            pool,
            burst: Burst::default(),
            stats: Arc::new(WorkerStats::new(queues as usize)),
            counters: object::map(&object, MAP_LOOP)?,
            queues: queues as u16,
        })
    }

    /// Gives received frames to the tracker, and waits up to `wait` if there are none. Returns their
    /// number.
    pub fn turn(&mut self, tracker: &mut Tracker, wait: Duration) -> usize {
        let mut count = 0;
        for queue in 0..self.queues {
            count += self.io.rx_burst(queue, &mut self.pool, &mut self.burst, &self.stats);
            let now = clock_gettime(ClockId::CLOCK_REALTIME)
                .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64);
            for skb in self.burst.drain(usize::MAX) {
                tracker.take(skb.data(), now);
                self.pool.kfree_skb(skb);
            }
        }
        self.io.kick(&mut self.pool, &self.stats);
        if count == 0 {
            self.io.wait(wait, None);
        }
        count
    }

    /// Frames without pktgen's header, which went to the kernel.
    ///
    /// # Errors
    /// [`LoadError::Map`].
    pub fn other(&self) -> Result<u64, LoadError> {
        let value = object::read(&self.counters, MAP_LOOP)?;
        Ok(Loop::from_bytes(&value).map_or(0, |counters| counters.other))
    }

    /// Packets dropped because the rings were full: lost in the sink, not on the path.
    pub fn overrun(&self) -> u64 {
        let of = |queue| {
            let counted = self.io.statistics(queue);
            counted.map_or(0, |s| s.rx_dropped + s.rx_ring_full)
        };
        (0..self.queues).map(of).sum()
    }
}
