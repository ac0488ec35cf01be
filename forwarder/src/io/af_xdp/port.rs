//! One port: one socket on one queue, and the accounting of its frames.

use std::io;
use std::os::fd::BorrowedFd;

use prefetch_index::prefetch_index;

use super::area::Area;
use super::bind::{Bound, bind, segments};
use super::error::OpenError;
use super::port_table::SocketPort;
use super::rx_chain::RxChain;
use super::slots::{Owner, Packets, Slots};
use super::socket::{Layout, Socket, packet_addr};
use super::{
    BoundMode, Options, PortConfig, PortInfo, PortState, RingSizes, XdpStatistics, netdev,
};
use crate::io::{drop_all, drop_unsent};
use crate::skb::{Burst, FramePool, MAX_SKB_FRAGS, Piece, SkBuff};
use crate::stats::{DropReason, WorkerStats};

/// Minimum frame length that is given to the kernel, in octets: an Ethernet header. The kernel may
/// refuse shorter frames (`xp_validate_desc` empty ones, drivers others), and the frame of a
/// refused descriptor is never completed.
const SHORTEST: usize = 14;

/// Maximum consecutive sendto(2) calls without progress in one kick.
const IDLE_KICKS: u32 = 2;

/// Kicks between two attempts to send on an interface that is down.
const DOWN_TURNS: u32 = 64;

/// An open port.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) config: PortConfig,
    pub(super) mode: BoundMode,
    /// See [`PortInfo`].
    no_zerocopy: Option<i32>,
    pub(super) socket: Socket,
    sizes: RingSizes,
    /// Number of frames it should have to receive into; at most the size of its fill ring.
    fill: u32,
    /// The value of `fill` when it was opened, which is never exceeded, because other ports have
    /// the remaining frames.
    opened: u32,
    pub(super) rx_owner: Owner,
    pub(super) tx_owner: Owner,
    /// Frames in the fill ring, with the kernel, or in the RX ring.
    pub(super) fill_and_rx: u32,
    /// Frames in the TX ring, with the kernel, or in the completion ring.
    pub(super) tx_and_completion: u32,
    /// Number of packets in these frames.
    pub(super) sending: u32,
    /// Of these, packets that the kernel has refused to send (already counted); they are completed
    /// too.
    pub(super) refused: u32,
    /// Maximum descriptors per packet; 1: no multi-buffer packets.
    segments: usize,
    pub(super) rx_chain: RxChain,
    pub(super) state: PortState,
    /// Kicks until sending on an interface that is down is tried again.
    retry_in: u32,
    /// Our system calls poll the queue, instead of interrupts.
    pub(super) busy_poll: bool,
}

impl Port {
    /// Opens a port as binding number `binding`, and puts `wanted` frames in its fill ring before
    /// it binds.
    pub(super) fn open(
        config: &PortConfig,
        options: &Options,
        binding: u32,
        wanted: usize,
        area: &Area,
        slots: &mut Slots,
        pool: &mut FramePool,
    ) -> Result<Port, OpenError> {
        let (rx_owner, tx_owner) = (Owner::rx(binding), Owner::tx(binding));
        let mut fill = Vec::with_capacity(wanted);
        while fill.len() < wanted
            && let Some(frame) = pool.alloc()
        {
            match slots.of(rx_owner).give(frame) {
                Ok(addr) => fill.push(addr),
                // A frame of another pool: an error of the caller; the frame is not lost.
                Err(frame) => {
                    pool.free(frame);
                    break;
                }
            }
        }
        match bind(config, options, area, &fill) {
            Ok(Bound { socket, mode, no_zerocopy, multi_buffer }) => {
                let segments = segments(mode, multi_buffer, config);
                Ok(Port {
                    config: config.clone(),
                    mode,
                    no_zerocopy,
                    socket,
                    segments,
                    rx_chain: RxChain::new(segments > 1),
                    sizes: options.rings,
                    fill: fill.len() as u32,
                    opened: fill.len() as u32,
                    rx_owner,
                    tx_owner,
                    fill_and_rx: fill.len() as u32,
                    tx_and_completion: 0,
                    sending: 0,
                    refused: 0,
                    state: PortState::Up,
                    retry_in: 0,
                    busy_poll: options.busy_poll_budget.is_some(),
                })
            }
            Err(error) => {
                // No socket was bound, so the kernel has no frames.
                slots.reclaim(rx_owner, pool);
                Err(error)
            }
        }
    }

    /// See [`PacketIo::rx_burst`](crate::io::PacketIo::rx_burst).
    pub(super) fn rx_burst(
        &mut self,
        port: u16,
        slots: &mut Slots,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        let (before, mut octets) = (burst.len(), 0);
        let iif = self.config.ifindex;
        let mut push = |burst: &mut Burst, pool: &mut FramePool, mut skb: SkBuff| {
            (skb.port, skb.iif) = (port, iif);
            octets += skb.len() as u64;
            if let Err(skb) = burst.push(skb) {
                // Cannot fail: there was room.
                pool.kfree_skb(skb);
            }
        };
        while burst.room() > 0 {
            let descs = self.socket.rx.take(burst.room() as u32);
            if descs.len() == 0 {
                break;
            }
            let (mut slots, mut frames) = (slots.of(self.rx_owner), 0);
            for desc in descs {
                let (frame, offset) = slots.take_at(packet_addr(desc.addr));
                match frame {
                    Some(frame) if self.rx_chain.is_whole(desc) => {
                        frames += 1;
                        // Written by another core or by a device: prefetch it while the other
                        // descriptors are read.
                        prefetch_index(frame.bytes(), offset);
                        match SkBuff::receive(frame, offset, desc.len as usize) {
                            Ok(skb) => push(burst, pool, skb),
                            Err(frame) => {
                                pool.free(frame);
                                stats.rx_drop(DropReason::RxBadDescriptor, port);
                            }
                        }
                    }
                    frame => {
                        frames += u32::from(frame.is_some());
                        match self.rx_chain.receive(desc, frame, offset, pool) {
                            Ok(None) => {}
                            Ok(Some(skb)) => push(burst, pool, skb),
                            Err(reason) => stats.rx_drop(reason, port),
                        }
                    }
                }
            }
            self.fill_and_rx -= frames;
        }
        let packets = burst.len() - before;
        if packets > 0
            && let Some(counters) = stats.ports.get(port as usize)
        {
            counters.rx_packets.add(packets as u64);
            counters.rx_bytes.add(octets);
        }
        self.refill(slots, pool);
        packets
    }

    /// Gives free frames to the kernel, up to the port's share. Not inlined, to save registers in
    /// the caller.
    #[inline(never)]
    fn refill(&mut self, slots: &mut Slots, pool: &mut FramePool) {
        if self.fill_and_rx >= self.fill || self.state == PortState::Gone {
            return;
        }
        let layout = Layout::of(self.mode);
        let mut slots = slots.of(self.rx_owner);
        // The kernel updates the RX ring before the fill ring (xsk_flush): entries without room are
        // given at the next burst.
        let mut entries = self.socket.fill.batch(self.fill - self.fill_and_rx);
        while entries.room() > 0
            && let Some(frame) = pool.alloc()
        {
            match slots.give(frame) {
                Ok(addr) => {
                    entries.push(layout.fill_addr(addr));
                }
                Err(frame) => {
                    pool.free(frame);
                    break;
                }
            }
        }
        self.fill_and_rx += entries.len();
    }

    /// See [`PacketIo::tx_burst`](crate::io::PacketIo::tx_burst).
    pub(super) fn tx_burst(
        &mut self,
        port: u16,
        slots: &mut Slots,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        if self.state != PortState::Up {
            drop_all(DropReason::DevNotReady, port, pool, burst, stats);
            return 0;
        }
        if self.fitting(burst.as_slice()) < burst.len() {
            self.complete(port, slots, pool, stats);
        }
        let mut queued = 0;
        let mut packets = burst.drain(self.fitting(burst.as_slice()));
        loop {
            // The single-frame packets up to the first multi-frame one.
            let mut descs = self.socket.tx.batch(packets.len() as u32);
            let mut own = slots.of(self.tx_owner);
            let several = loop {
                let Some(skb) = packets.next() else { break None };
                if skb.frames() > 1 {
                    break Some(skb);
                }
                let (Piece { frame, offset, len }, _) = skb.into_frames();
                let given = if len < SHORTEST {
                    Err((DropReason::EthTruncated, frame))
                } else if descs.room() == 0 {
                    // Not reached: the caller checked for room.
                    Err((DropReason::FullRing, frame))
                } else {
                    own.give_to_send(frame, len as u32)
                        .map_err(|frame| (DropReason::TxError, frame))
                };
                match given {
                    Ok(addr) => {
                        let addr = addr + offset as u64;
                        descs.push(libc::xdp_desc { addr, len: len as u32, options: 0 });
                    }
                    Err((reason, frame)) => {
                        stats.tx_drop(reason, port);
                        pool.free(frame);
                    }
                }
            };
            self.tx_and_completion += descs.len();
            queued += descs.len();
            drop(descs);
            let Some(skb) = several else { break };
            match self.send_chain(skb, slots, pool) {
                Ok(()) => queued += 1,
                Err(reason) => stats.tx_drop(reason, port),
            }
        }
        drop(packets);
        self.sending += queued;
        drop_unsent(port, pool, burst, stats);
        queued as usize
    }

    /// Sends a packet of several frames: all its descriptors or none.
    #[cold]
    fn send_chain(
        &mut self,
        mut skb: SkBuff,
        slots: &mut Slots,
        pool: &mut FramePool,
    ) -> Result<(), DropReason> {
        if skb.len() < SHORTEST {
            pool.kfree_skb(skb);
            return Err(DropReason::EthTruncated);
        }
        // `linearize` frees frames that the packet no longer uses (after `trim`, `may_pull`): it may
        // be shorter than its number of frames suggests.
        if (skb.frames() > self.segments && !skb.linearize()) || !skb.may_pull(SHORTEST) {
            pool.kfree_skb(skb);
            return Err(DropReason::TxMultiBuffer);
        }
        let mut descs = [libc::xdp_desc { addr: 0, len: 0, options: 0 }; MAX_SKB_FRAGS + 1];
        let (mut count, mut refused) = (0, None);
        let mut slots = slots.of(self.tx_owner);
        let (packet_len, mut left) = (skb.len() as u32, skb.len());
        let (head, mut frags) = skb.into_frames();
        let mut piece = Some(head);
        while let Some(Piece { frame, offset, len }) = piece {
            left = left.saturating_sub(len);
            let ends = if left == 0 { packet_len } else { 0 };
            match (descs.get_mut(count), len) {
                (Some(desc), 1..) => match slots.give_to_send(frame, ends) {
                    Ok(addr) => {
                        (desc.addr, desc.len) = (addr + offset as u64, len as u32);
                        count += 1;
                    }
                    Err(frame) => {
                        refused = Some(DropReason::TxError);
                        pool.free(frame);
                    }
                },
                _ => pool.free(frame),
            }
            piece = frags.pop(pool);
        }
        let descs = &mut descs[..count];
        let mut entries = self.socket.tx.batch(count as u32);
        if entries.room() < count as u32 {
            // Not reached: the caller checked for room.
            refused = refused.or(Some(DropReason::FullRing));
        }
        if let Some(reason) = refused {
            let taken = descs.iter().filter_map(|desc| slots.take(desc.addr));
            taken.for_each(|frame| pool.free(frame));
            return Err(reason);
        }
        if let Some((_, before)) = descs.split_last_mut() {
            before.iter_mut().for_each(|desc| desc.options = libc::XDP_PKT_CONTD);
        }
        for &mut desc in descs {
            entries.push(desc);
        }
        self.tx_and_completion += count as u32;
        Ok(())
    }

    /// How many of the packets, oldest first, fit on the sending side, each completely.
    #[inline]
    fn fitting(&self, packets: &[SkBuff]) -> usize {
        let mut left = self.tx_room() as usize;
        if self.segments == 1 {
            return left.min(packets.len());
        }
        let fits = |skb: &&SkBuff| {
            let room = left.checked_sub(skb.frames());
            left = room.unwrap_or(0);
            room.is_some()
        };
        packets.iter().take_while(fits).count()
    }

    /// Number of frames that fit on the sending side. In-flight frames are limited to the size of
    /// the completion ring, so that the kernel never finds it full. The TX ring may have less room:
    /// the kernel may complete frames before it shows them as taken, in copy mode up to Linux 6.16
    /// long before.
    #[inline]
    fn tx_room(&self) -> u32 {
        self.socket.tx.room(self.sizes.tx - self.tx_and_completion)
    }

    /// See [`PacketIo::tx_room`](crate::io::PacketIo::tx_room).
    pub(super) fn tx_room_up(&self) -> usize {
        if self.state != PortState::Up {
            return 0;
        }
        let frames = if self.segments == 1 { 1 } else { MAX_SKB_FRAGS + 1 };
        self.tx_room() as usize / frames
    }

    /// See [`PacketIo::kick`](crate::io::PacketIo::kick).
    #[inline]
    pub(super) fn kick(
        &mut self,
        port: u16,
        slots: &mut Slots,
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) {
        // If the TX ring seems full of completed frames, a wakeup makes the kernel update its
        // index.
        if self.tx_and_completion > 0 || self.tx_room() == 0 {
            match self.state {
                PortState::Up => self.wake_tx(port, slots, pool, stats),
                PortState::Down => self.wait_for_up(),
                PortState::Gone => {}
            }
            self.complete(port, slots, pool, stats);
        } else if self.state == PortState::Down {
            self.wait_for_up();
        }
        let wake = self.socket.fill.needs_wakeup() || (self.busy_poll && self.socket.rx.is_empty());
        if wake && self.state == PortState::Up {
            self.socket.wake_rx();
        }
    }

    /// Makes the kernel empty the TX ring. In copy mode one sendto(2) sends a bounded number of
    /// packets, so it is repeated while it makes progress; zero-copy drivers only need a wakeup.
    pub(super) fn wake_tx(
        &mut self,
        port: u16,
        slots: &mut Slots,
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) {
        if !self.socket.tx.needs_wakeup() && !self.busy_poll {
            return;
        }
        let copy = self.mode == BoundMode::Copy;
        let mut pending = self.socket.tx.pending();
        if copy && pending == 0 {
            // All descriptors were taken: the copies are being sent, and complete by themselves.
            return;
        }
        let mut idle = 0;
        while idle < IDLE_KICKS {
            if let Err(error) = self.socket.wake_tx() {
                match error.raw_os_error().unwrap_or(0) {
                    // Try again: a limit per call, the socket buffer, or the completion ring.
                    libc::EAGAIN | libc::ENOBUFS | libc::EINTR | libc::ENOMEM => {}
                    // One packet was completed and not sent (__xsk_generic_xmit: NET_XMIT_DROP). In
                    // zero-copy mode EBUSY may come from the driver's wakeup, with another meaning.
                    libc::EBUSY if copy => {
                        stats.tx_drop(DropReason::TxError, port);
                        self.refused += 1;
                        // Immediately: it is the last completed packet.
                        self.complete(port, slots, pool, stats);
                    }
                    libc::EBUSY => {}
                    // The interface is down, gone, or its program is being replaced.
                    _ => return self.stop_sending(),
                }
            }
            let left = self.socket.tx.pending();
            if !copy {
                if self.busy_poll && left > 0 && self.socket.tx.needs_wakeup() {
                    self.socket.wake_by_poll();
                }
                return;
            }
            if left == 0 {
                return;
            }
            idle = if left == pending { idle + 1 } else { 0 };
            pending = left;
        }
    }

    /// sendto(2) failed permanently: determines whether the interface is down or gone.
    #[cold]
    fn stop_sending(&mut self) {
        self.state =
            if netdev::exists(self.config.ifindex) { PortState::Down } else { PortState::Gone };
        self.retry_in = DOWN_TURNS;
    }

    /// Counts the kicks until an interface that was down is tried again.
    #[cold]
    fn wait_for_up(&mut self) {
        match self.retry_in.checked_sub(1) {
            Some(left) => self.retry_in = left,
            None => self.state = PortState::Up,
        }
    }

    /// Reclaims completed frames and counts their packets as sent. Not inlined, as
    /// [`Self::refill`].
    #[inline(never)]
    pub(super) fn complete(
        &mut self,
        port: u16,
        slots: &mut Slots,
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) {
        let (mut slots, mut frames) = (slots.of(self.tx_owner), 0);
        let (mut sent, mut last_len) = (Packets::default(), 0);
        for addr in self.socket.completion.take(u32::MAX) {
            // An address that was not given belongs to no packet.
            if let Some((frame, packet_len)) = slots.take_sent(addr) {
                pool.free(frame);
                frames += 1;
                sent.add(packet_len);
                last_len = packet_len;
            }
        }
        if frames == 0 {
            return;
        }
        self.tx_and_completion -= frames;
        self.sending -= sent.count;
        if self.refused > 0 {
            self.leave_out_refused(&mut sent, last_len);
        }
        if let Some(counters) = stats.ports.get(port as usize) {
            counters.tx_packets.add(u64::from(sent.count));
            counters.tx_bytes.add(sent.octets);
        }
    }

    /// Excludes refused packets from the completed ones that count as sent. The kernel reports how
    /// many were refused, not which: the octets are those of the last one, `last_len`, which is
    /// correct if packets are completed in the order in which they were taken.
    #[cold]
    fn leave_out_refused(&mut self, completed: &mut Packets, last_len: u32) {
        let refused = self.refused.min(completed.count);
        self.refused -= refused;
        completed.count -= refused;
        let octets = u64::from(refused) * u64::from(last_len);
        completed.octets = completed.octets.saturating_sub(octets);
    }

    /// The two owners of the port's frames in the slots.
    pub(super) fn owners(&self) -> [Owner; 2] {
        [self.rx_owner, self.tx_owner]
    }
}

impl SocketPort for Port {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    fn set_fill(&mut self, frames: u32) {
        self.fill = frames.min(self.opened);
    }

    fn statistics(&self) -> io::Result<XdpStatistics> {
        self.socket.statistics()
    }

    fn tx_state(&self) -> PortState {
        self.state
    }

    fn info(&mut self) -> PortInfo {
        if !netdev::exists(self.config.ifindex) {
            self.state = PortState::Gone;
        }
        PortInfo {
            config: self.config.clone(),
            mode: self.mode,
            no_zerocopy: self.no_zerocopy,
            multi_buffer: self.segments > 1,
            state: self.state,
        }
    }

    fn sends_in_poll(&mut self) -> bool {
        self.mode == BoundMode::Copy && self.tx_and_completion > 0 && self.socket.tx.pending() > 0
    }

    fn frames(&self) -> (usize, usize) {
        let partial = self.rx_chain.partial().map_or(0, SkBuff::frames);
        (self.fill_and_rx as usize + partial, self.tx_and_completion as usize)
    }

    fn sending(&self) -> usize {
        self.sending.saturating_sub(self.refused) as usize
    }
}

#[cfg(test)]
impl Port {
    /// A port with rings in memory; the test plays the kernel.
    pub(super) fn in_memory(mode: BoundMode, segments: usize) -> Port {
        let sizes = RingSizes { fill: 16, tx: 16 };
        Port {
            config: PortConfig::default(),
            mode,
            no_zerocopy: None,
            socket: Socket::in_memory(16),
            sizes,
            fill: 0,
            opened: 0,
            rx_owner: Owner::rx(1),
            tx_owner: Owner::tx(1),
            fill_and_rx: 0,
            tx_and_completion: 0,
            sending: 0,
            refused: 0,
            segments,
            rx_chain: RxChain::new(segments > 1),
            state: PortState::Up,
            retry_in: 0,
            busy_poll: false,
        }
    }
}
