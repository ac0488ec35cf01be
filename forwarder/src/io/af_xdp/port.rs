//! One port: one socket on one queue, and what it holds of the worker's frames.

use std::io;
use std::os::fd::BorrowedFd;

use prefetch_index::prefetch_index;

use super::area::Area;
use super::bind::{Bound, bind, segments};
use super::error::OpenError;
use super::rx_chain::RxChain;
use super::slots::{Owner, Slots};
use super::socket::{Layout, Socket, packet_addr};
use super::{BoundMode, Options, PortConfig, PortState, RingSizes, netdev};
use crate::io::{drop_all, drop_unsent};
use crate::skb::{Burst, FramePool, MAX_SKB_FRAGS, Piece, SkBuff};
use crate::stats::{DropReason, PortStats, WorkerStats};

/// Shortest frame given to the kernel, in octets: an Ethernet header. Fewer it may refuse
/// (`xp_validate_desc` an empty one, drivers the others), and a refused descriptor's frame never
/// comes back.
const SHORTEST: usize = 14;

/// sendto(2) calls in a row that may move nothing before the next turn is waited for.
const IDLE_KICKS: u32 = 2;

/// Turns between two attempts to send on an interface that is down.
const DOWN_TURNS: u32 = 64;

/// An open port.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) config: PortConfig,
    pub(super) mode: BoundMode,
    /// See [`PortInfo`](super::PortInfo).
    pub(super) no_zerocopy: Option<i32>,
    socket: Socket,
    sizes: RingSizes,
    /// Frames it is to have to receive into; no more than its fill ring holds.
    fill: u32,
    /// What it was opened with: more is never taken, for others have the rest.
    opened: u32,
    rx_owner: Owner,
    tx_owner: Owner,
    /// Frames in the fill ring, with the kernel, or in the RX ring.
    fill_and_rx: u32,
    /// Frames in the TX ring, with the kernel, or in the completion ring.
    tx_and_completion: u32,
    /// Packets may take several descriptors, at most as many as this; 1: they do not.
    segments: usize,
    rx_chain: RxChain,
    state: PortState,
    /// Turns until an interface that is down is tried again.
    retry_in: u32,
    /// The queue is polled by our system calls, not by interrupts.
    busy_poll: bool,
}

impl Port {
    /// Opens a port as binding number `binding`, with `wanted` frames in its fill ring before it is
    /// bound.
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
        if pool.available() < wanted || wanted == 0 {
            let (ifname, free) = (config.ifname.clone(), pool.available());
            return Err(OpenError::NoFrames { ifname, free, wanted });
        }
        let mut fill = Vec::with_capacity(wanted);
        while fill.len() < wanted
            && let Some(frame) = pool.alloc()
        {
            match slots.of(rx_owner).give(frame) {
                Ok(addr) => fill.push(addr),
                // A frame of another pool: an error of the caller, and nothing is lost by it.
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
                    state: PortState::Up,
                    retry_in: 0,
                    busy_poll: options.busy_poll_budget.is_some(),
                })
            }
            Err(error) => {
                // No socket was bound, so the kernel has nothing.
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
        let counters = stats.ports.get(port as usize);
        let (before, mut octets) = (burst.len(), 0);
        let iif = self.config.ifindex;
        let mut push = |burst: &mut Burst, pool: &mut FramePool, mut skb: SkBuff| {
            (skb.port, skb.iif) = (port, iif);
            octets += skb.len() as u64;
            if let Err(skb) = burst.push(skb) {
                // There was room.
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
                        // Written by another core, or a device: on its way while the rest is read.
                        prefetch_index(frame.bytes(), offset);
                        match SkBuff::receive(frame, offset, desc.len as usize) {
                            Ok(skb) => push(burst, pool, skb),
                            Err(frame) => {
                                pool.free(frame);
                                count_rx_drop(DropReason::RxBadDescriptor, stats, counters);
                            }
                        }
                    }
                    frame => {
                        frames += u32::from(frame.is_some());
                        match self.rx_chain.receive(desc, frame, offset, pool) {
                            Ok(None) => {}
                            Ok(Some(skb)) => push(burst, pool, skb),
                            Err(reason) => count_rx_drop(reason, stats, counters),
                        }
                    }
                }
            }
            self.fill_and_rx -= frames;
        }
        let packets = burst.len() - before;
        if packets > 0
            && let Some(counters) = counters
        {
            counters.rx_packets.add(packets as u64);
            counters.rx_bytes.add(octets);
        }
        self.refill(slots, pool);
        packets
    }

    /// Sets how many frames it is to have to receive into. Those beyond go as packets come.
    pub(super) fn set_fill(&mut self, frames: u32) {
        self.fill = frames.min(self.opened);
    }

    /// Gives the kernel free frames up to its share. A function by itself, for the sake of registers.
    #[inline(never)]
    fn refill(&mut self, slots: &mut Slots, pool: &mut FramePool) {
        if self.fill_and_rx >= self.fill || self.state == PortState::Gone {
            return;
        }
        let layout = Layout::of(self.mode);
        let mut slots = slots.of(self.rx_owner);
        // The kernel shows what it received before it shows what it took for it (xsk_flush): what
        // finds no room now does next turn.
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
            self.complete(slots, pool, stats);
        }
        let (mut sent, mut octets) = (0, 0);
        let mut packets = burst.drain(self.fitting(burst.as_slice()));
        loop {
            // Those of one frame, up to the first of several.
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
                    // As with the fill ring: completed is shown before taken.
                    Err((DropReason::FullRing, frame))
                } else {
                    own.give(frame).map_err(|frame| (DropReason::TxError, frame))
                };
                match given {
                    Ok(addr) => {
                        let addr = addr + offset as u64;
                        descs.push(libc::xdp_desc { addr, len: len as u32, options: 0 });
                        octets += len as u64;
                    }
                    Err((reason, frame)) => {
                        stats.tx_drop(reason, port);
                        pool.free(frame);
                    }
                }
            };
            self.tx_and_completion += descs.len();
            sent += descs.len() as usize;
            drop(descs);
            let Some(skb) = several else { break };
            let len = skb.len() as u64;
            match self.send_chain(skb, slots, pool) {
                Ok(()) => (sent, octets) = (sent + 1, octets + len),
                Err(reason) => stats.tx_drop(reason, port),
            }
        }
        drop(packets);
        if let Some(counters) = stats.ports.get(port as usize) {
            counters.tx_packets.add(sent as u64);
            counters.tx_bytes.add(octets);
        }
        drop_unsent(port, pool, burst, stats);
        sent
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
        // Of frames that it no longer reaches into (`trim`, `may_pull`) it may be rid, and be shorter
        // than they suggest.
        if (skb.frames() > self.segments && !skb.linearize()) || !skb.may_pull(SHORTEST) {
            pool.kfree_skb(skb);
            return Err(DropReason::TxMultiBuffer);
        }
        let mut descs = [libc::xdp_desc { addr: 0, len: 0, options: 0 }; MAX_SKB_FRAGS + 1];
        let (mut count, mut refused) = (0, None);
        let mut slots = slots.of(self.tx_owner);
        let (head, mut frags) = skb.into_frames();
        let mut piece = Some(head);
        while let Some(Piece { frame, offset, len }) = piece {
            match (descs.get_mut(count), len) {
                (Some(desc), 1..) => match slots.give(frame) {
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
            // As with the fill ring: completed is shown before taken.
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

    /// How many of the packets, oldest first, the sending side can take; each whole.
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

    /// Frames the sending side can take. As many as the completion ring holds may be under way, so
    /// that the kernel never finds it full.
    #[inline]
    fn tx_room(&self) -> u32 {
        self.sizes.tx - self.tx_and_completion
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
        if self.tx_and_completion > 0 {
            match self.state {
                PortState::Up => self.wake_tx(port, stats),
                PortState::Down => self.wait_for_up(),
                PortState::Gone => {}
            }
            self.complete(slots, pool, stats);
        } else if self.state == PortState::Down {
            self.wait_for_up();
        }
        let wake = self.socket.fill.needs_wakeup() || (self.busy_poll && self.socket.rx.is_empty());
        if wake && self.state == PortState::Up {
            self.socket.wake_rx();
        }
    }

    /// Has the kernel empty the TX ring. In copy mode one sendto(2) sends a bounded number of
    /// packets, so it is repeated while it gets anywhere; zero-copy drivers are only to be woken.
    fn wake_tx(&mut self, port: u16, stats: &WorkerStats) {
        if !self.socket.tx.needs_wakeup() && !self.busy_poll {
            return;
        }
        let copy = self.mode == BoundMode::Copy;
        let mut pending = self.socket.tx.pending();
        if copy && pending == 0 {
            // All were taken: copies are under way, and complete without us.
            return;
        }
        let mut idle = 0;
        while idle < IDLE_KICKS {
            if let Err(error) = self.socket.wake_tx() {
                match error.raw_os_error().unwrap_or(0) {
                    // Try again: a limit per call, the socket's buffer, the completion ring.
                    libc::EAGAIN | libc::ENOBUFS | libc::EINTR | libc::ENOMEM => {}
                    // One frame was completed and not sent (__dev_direct_xmit: NET_XMIT_DROP).
                    libc::EBUSY => stats.tx_drop(DropReason::TxError, port),
                    // The interface is down, gone, or between two programs.
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

    /// sendto(2) failed for good: is the interface down, or gone?
    #[cold]
    fn stop_sending(&mut self) {
        self.state =
            if netdev::exists(self.config.ifindex) { PortState::Down } else { PortState::Gone };
        self.retry_in = DOWN_TURNS;
    }

    /// Counts the turns until an interface that was down is tried again.
    #[cold]
    fn wait_for_up(&mut self) {
        match self.retry_in.checked_sub(1) {
            Some(left) => self.retry_in = left,
            None => self.state = PortState::Up,
        }
    }

    /// Takes sent frames back. As [`Self::refill`], by itself.
    #[inline(never)]
    fn complete(&mut self, slots: &mut Slots, pool: &mut FramePool, stats: &WorkerStats) {
        let (mut slots, mut frames) = (slots.of(self.tx_owner), 0);
        for addr in self.socket.completion.take(u32::MAX) {
            match slots.take(addr) {
                Some(frame) => {
                    pool.free(frame);
                    frames += 1;
                }
                None => stats.drop(DropReason::TxError),
            }
        }
        self.tx_and_completion -= frames;
    }

    /// Settles what can be settled before the socket closes: sent frames come back, and packets that
    /// now go no further are counted.
    pub(super) fn finish(
        &mut self,
        port: u16,
        slots: &mut Slots,
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) {
        self.complete(slots, pool, stats);
        for _ in 0..self.tx_and_completion {
            stats.tx_drop(DropReason::DevNotReady, port);
        }
        let counters = stats.ports.get(port as usize);
        let mut slots = slots.of(self.rx_owner);
        for desc in self.socket.rx.take(u32::MAX) {
            let (frame, offset) = slots.take_at(packet_addr(desc.addr));
            self.fill_and_rx -= u32::from(frame.is_some());
            match self.rx_chain.receive(desc, frame, offset, pool) {
                Ok(None) => {}
                Ok(Some(skb)) => {
                    count_rx_drop(DropReason::DevNotReady, stats, counters);
                    pool.kfree_skb(skb);
                }
                Err(reason) => count_rx_drop(reason, stats, counters),
            }
        }
        if let Some(partial) = self.rx_chain.take_partial() {
            count_rx_drop(DropReason::DevNotReady, stats, counters);
            pool.kfree_skb(partial);
        }
    }

    /// Frames on the receiving and on the sending side.
    pub(super) fn frames(&self) -> (usize, usize) {
        let partial = self.rx_chain.partial().map_or(0, SkBuff::frames);
        (self.fill_and_rx as usize + partial, self.tx_and_completion as usize)
    }

    /// Both names under which the port's frames lie in the slots.
    pub(super) fn owners(&self) -> [Owner; 2] {
        [self.rx_owner, self.tx_owner]
    }

    /// Whether packets may take several frames.
    pub(super) fn multi_buffer(&self) -> bool {
        self.segments > 1
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    pub(super) fn statistics(&self) -> io::Result<super::XdpStatistics> {
        self.socket.statistics()
    }

    /// What was noticed while sending.
    pub(super) fn tx_state(&self) -> PortState {
        self.state
    }

    /// Looks whether the interface is still there, which a port that only receives does not notice.
    pub(super) fn state(&mut self) -> PortState {
        if !netdev::exists(self.config.ifindex) {
            self.state = PortState::Gone;
        }
        self.state
    }
}

#[cold]
fn count_rx_drop(reason: DropReason, stats: &WorkerStats, counters: Option<&PortStats>) {
    stats.drop(reason);
    if let Some(counters) = counters {
        counters.rx_dropped.inc();
    }
}
