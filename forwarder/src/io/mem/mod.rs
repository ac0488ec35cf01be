//! Ports in memory: [`MemIo::inject`] adds received frames, [`MemIo::take_sent`] returns sent ones.
//!
//! For tests of everything above a driver, and for benchmarks without a kernel: a port can be an
//! endless [source](MemIo::set_source) and a [sink](MemIo::set_sink). Rings are bounded as those of
//! a NIC. Packets that do not fit in a ring are counted.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::device::{ChannelCounts, Channels, MacAddr, Rings, SoftwareDriver, SoftwarePort};
use super::{FrameAccounting, PacketIo, drop_all, drop_unsent};
use crate::skb::{Burst, FRAME_SIZE, FramePool, HEADROOM, IpSummed, MAX_JUMBO, MAX_PACKET, SkBuff};
use crate::stats::{DropReason, WorkerStats};

/// IP MTU of a new port, in octets: the default of Ethernet interfaces.
const MTU_DEFAULT: u32 = 1500;

/// Octets of a source's packet that are written each time it is received: Ethernet, IPv6 and TCP
/// with options, and what an ICMP error quotes of a small packet. The rest is the previous content
/// of the frame.
const SOURCE_HEADER: usize = 128;

/// Why a frame could not be injected into a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// No such port.
    #[error("port {port} does not exist, there are {ports}")]
    NoPort {
        /// The requested port.
        port: u16,
        /// Number of ports.
        ports: usize,
    },
    /// The RX ring is full.
    #[error("the RX ring of {0} packets is full")]
    RingFull(usize),
    /// The pool has too few free frames.
    #[error("no free frame")]
    NoFrame,
    /// The port is down.
    #[error("port {0} is down")]
    Down(u16),
    /// The packet is for another station, and the port does not accept those.
    #[error("the packet is for another station")]
    OtherHost,
    /// The packet is longer than the maximum.
    #[error("{0} octets exceed the maximum of a port, {MAX_JUMBO}")]
    TooLong(usize),
}

/// Ports in memory.
#[derive(Debug)]
pub struct MemIo {
    ports: Vec<MemPort>,
    /// Size of a ring in packets.
    ring: usize,
}

#[derive(Debug)]
struct MemPort {
    device: SoftwarePort,
    ip_summed: IpSummed,
    rx: VecDeque<SkBuff>,
    tx: VecDeque<SkBuff>,
    source: Option<Source>,
    sink: bool,
}

/// Packets that are received repeatedly.
#[derive(Debug)]
struct Source {
    packets: Box<[Box<[u8]>]>,
    next: usize,
}

impl MemIo {
    /// Creates `ports` ports with rings of `ring` packets each. Port n is the interface with index
    /// n + 1.
    pub fn new(ports: usize, ring: usize) -> MemIo {
        let port = |n: usize| MemPort {
            device: SoftwarePort::new(format!("mem{n}"), n as u32 + 1, MTU_DEFAULT),
            ip_summed: IpSummed::None,
            rx: VecDeque::with_capacity(ring),
            tx: VecDeque::with_capacity(ring),
            source: None,
            sink: false,
        };
        MemIo { ports: (0..ports).map(port).collect(), ring }
    }

    /// Sets the iif of packets received on a port.
    ///
    /// # Errors
    /// [`InjectError::NoPort`].
    pub fn set_ifindex(&mut self, port: u16, ifindex: u32) -> Result<(), InjectError> {
        self.port_mut(port)?.device.ifindex = ifindex;
        Ok(())
    }

    /// Sets the address of a port: packets for other stations are rejected from now on, unless its
    /// receive mode accepts them.
    ///
    /// # Errors
    /// [`InjectError::NoPort`].
    pub fn set_mac(&mut self, port: u16, mac: MacAddr) -> Result<(), InjectError> {
        self.port_mut(port)?.device.mac = Some(mac);
        Ok(())
    }

    /// Sets the `ip_summed` of packets received on a port.
    ///
    /// # Errors
    /// [`InjectError::NoPort`].
    pub fn set_ip_summed(&mut self, port: u16, ip_summed: IpSummed) -> Result<(), InjectError> {
        self.port_mut(port)?.ip_summed = ip_summed;
        Ok(())
    }

    /// Makes a port receive `packets` in turn, endlessly. Only the first 128 octets are written
    /// into a frame each time, so that a benchmark measures the data path and not the copy.
    ///
    /// # Errors
    /// [`InjectError::NoPort`], and [`InjectError::TooLong`] for a packet that exceeds the maximum.
    pub fn set_source(&mut self, port: u16, packets: &[&[u8]]) -> Result<(), InjectError> {
        if let Some(long) = packets.iter().find(|p| p.len() > MAX_JUMBO) {
            return Err(InjectError::TooLong(long.len()));
        }
        let packets: Box<[Box<[u8]>]> = packets.iter().map(|&p| Box::from(p)).collect();
        self.port_mut(port)?.source = (!packets.is_empty()).then_some(Source { packets, next: 0 });
        Ok(())
    }

    /// Makes a port complete packets at once (`true`), or keep them until they are taken (`false`,
    /// the default).
    ///
    /// # Errors
    /// [`InjectError::NoPort`].
    pub fn set_sink(&mut self, port: u16, sink: bool) -> Result<(), InjectError> {
        self.port_mut(port)?.sink = sink;
        Ok(())
    }

    /// Adds a packet, link-layer header first, to the RX ring of a port.
    ///
    /// # Errors
    /// See [`InjectError`]; nothing has changed then.
    pub fn inject(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        packet: &[u8],
    ) -> Result<(), InjectError> {
        let ring = self.ring;
        let this = self.port_mut(port)?;
        if packet.len() > MAX_JUMBO {
            return Err(InjectError::TooLong(packet.len()));
        }
        if !this.device.up {
            return Err(InjectError::Down(port));
        }
        if !this.takes(packet) {
            return Err(InjectError::OtherHost);
        }
        if this.rx.len() == ring {
            return Err(InjectError::RingFull(ring));
        }
        let skb = this.receive(port, pool, packet.len(), packet).ok_or(InjectError::NoFrame)?;
        this.rx.push_back(skb);
        Ok(())
    }

    /// Takes the oldest packet that was sent on a port, and frees its frame.
    pub fn take_sent(&mut self, port: u16, pool: &mut FramePool) -> Option<Vec<u8>> {
        let skb = self.ports.get_mut(port as usize)?.tx.pop_front()?;
        let octets = skb.whole(&mut Vec::new()).to_vec();
        pool.kfree_skb(skb);
        Some(octets)
    }

    /// Takes all packets that were sent on a port, oldest first.
    pub fn take_all_sent(&mut self, port: u16, pool: &mut FramePool) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.take_sent(port, pool)).collect()
    }

    fn port_mut(&mut self, port: u16) -> Result<&mut MemPort, InjectError> {
        let ports = self.ports.len();
        self.ports.get_mut(port as usize).ok_or(InjectError::NoPort { port, ports })
    }
}

impl MemPort {
    /// Whether the address filter accepts a packet.
    fn takes(&self, packet: &[u8]) -> bool {
        let SoftwarePort { mac, rx_mode, .. } = &self.device;
        let (Some(mac), Some(dst)) = (mac, packet.first_chunk::<6>()) else { return true };
        let multicast = dst[0] & 1 != 0;
        rx_mode.promisc || dst == mac || *dst == [0xff; 6] || (multicast && rx_mode.allmulti)
    }

    /// A received packet of `len` octets that begins with `header`.
    #[inline]
    fn receive(
        &self,
        port: u16,
        pool: &mut FramePool,
        len: usize,
        header: &[u8],
    ) -> Option<SkBuff> {
        let mut skb = SkBuff::alloc_skb(pool, HEADROOM)?;
        let whole = match header.get(..MAX_PACKET) {
            Some(_) => skb.append(header, pool).is_ok(),
            None => write_header(&mut skb, len, header),
        };
        if !whole || (skb.len() < len && !lengthen(&mut skb, len, pool)) {
            pool.kfree_skb(skb);
            return None;
        }
        skb.port = port;
        skb.iif = self.device.ifindex;
        skb.ip_summed = self.ip_summed;
        Some(skb)
    }

    /// The next packet of the source. `None`: no source, or no free frame.
    #[inline]
    fn receive_again(&mut self, port: u16, pool: &mut FramePool) -> Option<SkBuff> {
        let source = self.source.as_mut()?;
        let now = source.next;
        source.next = if now + 1 == source.packets.len() { 0 } else { now + 1 };
        let packet = &self.source.as_ref()?.packets[now];
        self.receive(port, pool, packet.len(), &packet[..packet.len().min(SOURCE_HEADER)])
    }
}

/// Sets the length of an empty packet to `len` octets, limited by the frame, and its first octets
/// to `header`.
#[inline]
fn write_header(skb: &mut SkBuff, len: usize, header: &[u8]) -> bool {
    let Ok(octets) = skb.put(len.min(MAX_PACKET)) else { return false };
    let Some(start) = octets.get_mut(..header.len()) else { return false };
    start.copy_from_slice(header);
    true
}

/// Extends a packet to `len` octets with frags, whose previous content remains.
#[cold]
fn lengthen(skb: &mut SkBuff, len: usize, pool: &mut FramePool) -> bool {
    while skb.len() < len {
        let Some(frame) = pool.alloc() else { return false };
        let more = (len - skb.len()).min(FRAME_SIZE);
        if let Err(frame) = skb.add_frag(frame, 0, more, pool) {
            pool.free(frame);
            return false;
        }
    }
    true
}

/// Ports are initially open. Packets in the RX ring of a closed port can still be taken.
impl SoftwareDriver for MemIo {
    const NAME: &'static str = "mem";

    fn software_port(&self, port: u16) -> Option<&SoftwarePort> {
        Some(&self.ports.get(usize::from(port))?.device)
    }

    fn software_port_mut(&mut self, port: u16) -> Option<&mut SoftwarePort> {
        Some(&mut self.ports.get_mut(usize::from(port))?.device)
    }

    fn channels(&self) -> Option<Channels> {
        let one = ChannelCounts { combined: 1, ..ChannelCounts::default() };
        Some(Channels { now: one, max: one })
    }

    fn ring_sizes(&self) -> Option<Rings> {
        let ring = self.ring as u32;
        Some(Rings { rx: ring, rx_max: ring, tx: ring, tx_max: ring })
    }
}

impl PacketIo for MemIo {
    fn ports(&self) -> usize {
        self.ports.len()
    }

    fn rx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        let Some(this) = self.ports.get_mut(port as usize) else { return 0 };
        let (mut packets, mut octets) = (0, 0);
        while burst.room() > 0 {
            let next = this.rx.pop_front();
            let Some(skb) = next.or_else(|| this.receive_again(port, pool)) else { break };
            packets += 1;
            octets += skb.len() as u64;
            if let Err(skb) = burst.push(skb) {
                // Cannot fail: there was room.
                pool.kfree_skb(skb);
            }
        }
        if let Some(counters) = stats.ports.get(port as usize) {
            counters.rx_packets.add(packets);
            counters.rx_bytes.add(octets);
        }
        packets as usize
    }

    fn tx_room(&self, port: u16) -> usize {
        let up = self.ports.get(port as usize).filter(|this| this.device.up);
        up.map_or(0, |this| self.ring - this.tx.len())
    }

    fn tx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        if self.ports.get(port as usize).is_none_or(|this| !this.device.up) {
            drop_all(DropReason::DevNotReady, port, pool, burst, stats);
            return 0;
        }
        let room = self.tx_room(port);
        let (mut packets, mut octets) = (0, 0);
        if let Some(this) = self.ports.get_mut(port as usize) {
            for skb in burst.drain(room) {
                packets += 1;
                octets += skb.len() as u64;
                this.tx.push_back(skb);
            }
        }
        if let Some(counters) = stats.ports.get(port as usize) {
            counters.tx_packets.add(packets);
            counters.tx_bytes.add(octets);
        }
        drop_unsent(port, pool, burst, stats);
        packets as usize
    }

    fn kick(&mut self, pool: &mut FramePool, _stats: &WorkerStats) {
        for port in self.ports.iter_mut().filter(|port| port.sink) {
            for skb in port.tx.drain(..) {
                pool.kfree_skb(skb);
            }
        }
    }

    /// Waits for `wakeup` only, because only the caller can add frames. Without one, returns at
    /// once.
    fn wait(&mut self, timeout: Duration, wakeup: Option<BorrowedFd<'_>>) -> bool {
        let Some(wakeup) = wakeup else { return false };
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(wakeup, PollFlags::POLLIN)], timeout).is_ok_and(|ready| ready > 0)
    }

    fn accounting(&self) -> FrameAccounting {
        FrameAccounting {
            fill_and_rx: self.ports.iter().flat_map(|port| &port.rx).map(SkBuff::frames).sum(),
            tx_and_completion: self
                .ports
                .iter()
                .flat_map(|port| &port.tx)
                .map(SkBuff::frames)
                .sum(),
            ..FrameAccounting::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::skb::Umem;

    fn setup(ports: usize, ring: usize, frames: u32) -> (MemIo, FramePool, WorkerStats, Burst) {
        let pool = Umem::anonymous(frames).into_pool();
        (MemIo::new(ports, ring), pool, WorkerStats::new(ports), Burst::default())
    }

    #[test]
    fn packets_go_from_one_port_to_the_other_unchanged_and_in_order() {
        let (mut io, mut pool, stats, mut burst) = setup(2, 8, 8);
        io.set_ifindex(0, 77).expect("port 0");
        for n in 1..=3u8 {
            io.inject(0, &mut pool, &vec![n; 60 * n as usize]).expect("room");
        }
        assert_eq!(io.rx_burst(0, &mut pool, &mut burst, &stats), 3);
        assert!(burst.as_slice().iter().all(|skb| skb.iif == 77 && skb.port == 0));
        assert_eq!(io.tx_burst(1, &mut pool, &mut burst, &stats), 3);
        assert!(burst.is_empty());
        let sent = io.take_all_sent(1, &mut pool);
        assert_eq!(sent, [vec![1; 60], vec![2; 120], vec![3; 180]]);
        assert_eq!((stats.ports[0].rx_packets.get(), stats.ports[0].rx_bytes.get()), (3, 360));
        assert_eq!((stats.ports[1].tx_packets.get(), stats.ports[1].tx_bytes.get()), (3, 360));
        assert_eq!(pool.available(), 8);
    }

    #[test]
    fn packets_that_do_not_fit_in_the_tx_ring_are_dropped_and_counted() {
        let (mut io, mut pool, stats, mut burst) = setup(1, 2, 8);
        for _ in 0..2 {
            io.inject(0, &mut pool, &[0; 60]).expect("room");
        }
        assert_eq!(io.inject(0, &mut pool, &[0; 60]), Err(InjectError::RingFull(2)));
        io.rx_burst(0, &mut pool, &mut burst, &stats);
        io.inject(0, &mut pool, &[0; 60]).expect("room again");
        io.rx_burst(0, &mut pool, &mut burst, &stats);
        assert_eq!(io.tx_burst(0, &mut pool, &mut burst, &stats), 2);
        assert!(burst.is_empty());
        assert_eq!(stats.drops[DropReason::FullRing as usize].get(), 1);
        assert_eq!(stats.ports[0].tx_dropped.get(), 1);
        assert_eq!(pool.available() + io.accounting().total(), 8);
    }

    #[test]
    fn a_source_is_endless_and_its_packets_are_unaffected_by_earlier_changes() {
        let (mut io, mut pool, stats, mut burst) = setup(2, 64, 128);
        let (small, large) = ([1u8; 60], [2u8; 1500]);
        io.set_source(0, &[&small, &large]).expect("fits");
        io.set_sink(1, true).expect("port 1");
        for _ in 0..10 {
            assert_eq!(io.rx_burst(0, &mut pool, &mut burst, &stats), burst.len());
            for (n, skb) in burst.as_mut_slice().iter_mut().enumerate() {
                let (len, octet) = if n % 2 == 0 { (60, 1) } else { (1500, 2) };
                assert_eq!(skb.len(), len);
                assert!(skb.data()[..len.min(128)].iter().all(|&o| o == octet));
                skb.data_mut().fill(9);
            }
            io.tx_burst(1, &mut pool, &mut burst, &stats);
            io.kick(&mut pool, &stats);
            assert_eq!(pool.available(), 128);
        }
        assert_eq!(stats.ports[1].tx_packets.get(), 640);
    }

    #[test]
    fn a_packet_beyond_the_largest_mtu_is_refused() {
        let (mut io, mut pool, ..) = setup(1, 2, 3);
        let long = vec![0; MAX_JUMBO + 1];
        assert_eq!(io.inject(0, &mut pool, &long), Err(InjectError::TooLong(MAX_JUMBO + 1)));
        assert_eq!(io.inject(0, &mut pool, &long[1..]), Ok(()));
        assert_eq!(io.inject(1, &mut pool, &[]), Err(InjectError::NoPort { port: 1, ports: 1 }));
        assert_eq!(io.set_source(0, &[&long]), Err(InjectError::TooLong(MAX_JUMBO + 1)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Inject(u16, usize),
        Receive(u16),
        Send(u16),
        Drop(usize),
        Kick,
        Take(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u16..3, 0usize..9100).prop_map(|(port, len)| Step::Inject(port, len)),
            (0u16..3).prop_map(Step::Receive),
            (0u16..3).prop_map(Step::Send),
            (0usize..70).prop_map(Step::Drop),
            Just(Step::Kick),
            (0u16..3).prop_map(Step::Take),
        ]
    }

    proptest! {
        #[test]
        fn frames_are_conserved_whatever_is_done(steps in prop::collection::vec(step(), 0..200)) {
            let (mut io, mut pool, stats, mut burst) = setup(3, 5, 12);
            io.set_sink(2, true).expect("port 2");
            let mut injected = 0;
            for step in steps {
                match step {
                    Step::Inject(port, len) => {
                        injected += u64::from(io.inject(port, &mut pool, &vec![0; len]).is_ok());
                    }
                    Step::Receive(port) => {
                        io.rx_burst(port, &mut pool, &mut burst, &stats);
                    }
                    Step::Send(port) => {
                        io.tx_burst(port, &mut pool, &mut burst, &stats);
                    }
                    Step::Drop(count) => {
                        burst.drain(count).for_each(|skb| pool.kfree_skb(skb));
                    }
                    Step::Kick => io.kick(&mut pool, &stats),
                    Step::Take(port) => {
                        io.take_sent(port, &mut pool);
                    }
                }
                prop_assert_eq!(pool.available() + burst.frames() + io.accounting().total(), 12);
            }
            let received: u64 = stats.ports.iter().map(|port| port.rx_packets.get()).sum();
            let waiting: usize = io.ports.iter().map(|port| port.rx.len()).sum();
            prop_assert_eq!(injected, received + waiting as u64);
        }
    }
}
