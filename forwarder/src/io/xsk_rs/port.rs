//! One port: one socket of xsk-rs on one queue, and what it holds of the worker's frames.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use xsk_rs::config::{BindFlags, LibxdpFlags, QueueSize, SocketConfig};
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue};

use super::memory::{Memory, os_error};
use crate::io::af_xdp::error::Step;
use crate::io::af_xdp::port_table::SocketPort;
use crate::io::af_xdp::slots::{Owner, Packets};
use crate::io::af_xdp::socket::send_many;
use crate::io::af_xdp::{
    BoundMode, OpenError, PortConfig, PortInfo, PortState, RingSizes, XdpStatistics, is_bound,
    netdev,
};
use crate::io::{drop_all, drop_unsent};
use crate::skb::{Burst, FramePool, HEADROOM, Piece, SkBuff};
use crate::stats::{DropReason, WorkerStats};

/// Shortest frame given to the kernel, in octets: an Ethernet header. A descriptor that the kernel
/// refuses (`xp_validate_desc`) never comes back.
const SHORTEST: usize = 14;
/// sendto(2) calls in a row that may move nothing before the next turn is waited for.
const IDLE_KICKS: u32 = 2;
/// Turns between two attempts to send on an interface that is down.
const DOWN_TURNS: u32 = 64;

/// An open port.
#[derive(Debug)]
pub(super) struct Port {
    number: u16,
    config: PortConfig,
    rx: RxQueue,
    tx: TxQueue,
    fill_ring: FillQueue,
    completion: CompQueue,
    /// It has the first socket of the UMEM.
    is_first: bool,
    /// Frames it is to have to receive into; no more than its fill ring holds.
    fill: usize,
    /// What it was opened with: more is never taken, for others have the rest.
    opened: usize,
    tx_size: usize,
    rx_owner: Owner,
    tx_owner: Owner,
    /// Frames in the fill ring, with the kernel, or in the RX ring.
    fill_and_rx: usize,
    /// Frames in the TX ring, with the kernel, or in the completion ring. One is one packet.
    tx_and_completion: usize,
    /// Those of them that the kernel has refused to send, which were counted, and completes, too.
    refused: usize,
    /// Entries of the TX ring that were free when it was last looked at, less those used since.
    tx_free: usize,
    /// Addresses by entry of the TX ring, which the crate does not let be read.
    queued: Box<[u64]>,
    /// Descriptors that were ever put on the TX ring.
    produced: usize,
    state: PortState,
    /// Turns until an interface that is down is tried again.
    retry_in: u32,
}

impl Port {
    /// Opens a port with binding number `binding`, which has the UMEM's first socket or not. Its fill
    /// ring is empty: see [`Self::refill`].
    pub(super) fn open(
        number: u16,
        config: &PortConfig,
        sizes: &RingSizes,
        (binding, is_first): (u32, bool),
        fill: usize,
        memory: &mut Memory,
    ) -> Result<Port, OpenError> {
        let refused = |source| OpenError::from_os(Step::Bind, source, config, memory.octets());
        let invalid = |_| refused(io::ErrorKind::InvalidInput.into());
        // libxdp takes the name only.
        if nix::net::if_::if_nametoindex(config.ifname.as_str()) != Ok(config.ifindex) {
            return Err(refused(io::Error::from_raw_os_error(libc::ENODEV)));
        }
        let ring =
            |size| QueueSize::new(size).map_err(|_| refused(io::ErrorKind::InvalidInput.into()));
        let sockets = SocketConfig::builder()
            .rx_queue_size(ring(sizes.fill)?)
            .tx_queue_size(ring(sizes.tx)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        let ifname = config.ifname.parse().map_err(invalid)?;
        // SAFETY: libxdp loads no program.
        let opened = unsafe { Socket::new(sockets, &memory.umem, &ifname, config.queue) };
        let (tx, rx, rings) = opened.map_err(|error| match os_error(&error) {
            // A UMEM's first socket is made with it.
            source if source.raw_os_error() == Some(libc::EPERM) => {
                OpenError::from_os(Step::Socket, source, config, memory.octets())
            }
            source => refused(source),
        })?;
        // `None`: the UMEM has a socket on this queue.
        let (fill_ring, completion) = rings.ok_or_else(|| OpenError::Busy {
            ifname: config.ifname.clone(),
            queue: config.queue,
        })?;
        let tx_size = sizes.tx as usize;
        let port = Port {
            number,
            config: config.clone(),
            rx,
            tx,
            fill_ring,
            completion,
            is_first,
            fill,
            opened: fill,
            tx_size,
            rx_owner: Owner::rx(binding),
            tx_owner: Owner::tx(binding),
            fill_and_rx: 0,
            tx_and_completion: 0,
            refused: 0,
            tx_free: tx_size,
            queued: vec![0; tx_size].into(),
            produced: 0,
            state: PortState::Up,
            retry_in: 0,
        };
        send_many(port.fd(), sizes.tx);
        Ok(port)
    }

    /// See [`PacketIo::rx_burst`](crate::io::PacketIo::rx_burst).
    pub(super) fn rx_burst(
        &mut self,
        memory: &mut Memory,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        let (before, mut octets) = (burst.len(), 0);
        while burst.room() > 0 {
            let room = burst.room().min(memory.batch.len());
            // SAFETY: the ring is of this UMEM; addresses are believed only if `Slots` knows them.
            let count = unsafe { self.rx.consume(&mut memory.batch[..room]) };
            if count == 0 {
                break;
            }
            let mut slots = memory.slots.of(self.rx_owner);
            for desc in &memory.batch[..count] {
                let (frame, offset) = slots.take_at(desc.addr() as u64);
                self.fill_and_rx -= usize::from(frame.is_some());
                let received =
                    frame.map(|frame| SkBuff::receive(frame, offset, desc.lengths().data()));
                let mut skb = match received {
                    Some(Ok(skb)) => skb,
                    unsound => {
                        if let Some(Err(frame)) = unsound {
                            pool.free(frame);
                        }
                        stats.rx_drop(DropReason::RxBadDescriptor, self.number);
                        continue;
                    }
                };
                (skb.port, skb.iif) = (self.number, self.config.ifindex);
                octets += skb.len() as u64;
                if let Err(skb) = burst.push(skb) {
                    // There was room.
                    pool.kfree_skb(skb);
                }
            }
        }
        let packets = burst.len() - before;
        if packets > 0
            && let Some(counters) = stats.ports.get(usize::from(self.number))
        {
            counters.rx_packets.add(packets as u64);
            counters.rx_bytes.add(octets);
        }
        self.refill(memory, pool);
        packets
    }

    /// Gives the kernel free frames up to the port's share. In copy mode it is not to be woken for them.
    pub(super) fn refill(&mut self, memory: &mut Memory, pool: &mut FramePool) {
        if self.fill_and_rx >= self.fill || self.state == PortState::Gone {
            return;
        }
        // The ring takes all or nothing.
        let room = self.fill_ring.nb_free_exact() as usize;
        let count = memory.give_free(self.rx_owner, room.min(self.fill - self.fill_and_rx), pool);
        // SAFETY: frames of this UMEM whose tokens lie in `Slots`.
        self.fill_and_rx += unsafe { self.fill_ring.produce(&memory.batch[..count]) };
    }

    /// See [`PacketIo::tx_burst`](crate::io::PacketIo::tx_burst).
    pub(super) fn tx_burst(
        &mut self,
        memory: &mut Memory,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        if self.state != PortState::Up {
            drop_all(DropReason::DevNotReady, self.number, pool, burst, stats);
            return 0;
        }
        if self.tx_room() < burst.len() {
            self.complete(memory, pool, stats);
        }
        let mut count = 0;
        for skb in burst.drain(self.tx_room().min(burst.len())) {
            match self.prepare(skb, memory, pool) {
                Ok(desc) => {
                    memory.batch[count] = desc;
                    self.queued[(self.produced + count) % self.tx_size] = desc.addr() as u64;
                    count += 1;
                }
                Err(reason) => stats.tx_drop(reason, self.number),
            }
        }
        // SAFETY: frames of this UMEM whose tokens lie in `Slots`. There is room for all of them.
        let sent = unsafe { self.tx.produce(&memory.batch[..count]) };
        debug_assert_eq!(sent, count, "the TX ring had room");
        self.produced += count;
        self.tx_and_completion += count;
        self.tx_free -= count;
        drop_unsent(self.number, pool, burst, stats);
        count
    }

    /// Brings a packet into one frame, to the place that its descriptor has, and lays down the frame's
    /// token.
    fn prepare(
        &self,
        mut skb: SkBuff,
        memory: &mut Memory,
        pool: &mut FramePool,
    ) -> Result<xsk_rs::FrameDesc, DropReason> {
        let len = skb.len();
        let reason = if len < SHORTEST {
            Some(DropReason::EthTruncated)
        } else if !skb.linearize() || skb.move_to(HEADROOM).is_err() {
            Some(DropReason::TxMultiBuffer)
        } else {
            None
        };
        if let Some(reason) = reason {
            pool.kfree_skb(skb);
            return Err(reason);
        }
        let (Piece { mut frame, .. }, frags) = skb.into_frames();
        if !frags.is_empty() {
            pool.free_frags(frags);
        }
        let desc = memory.tx_desc(&mut frame, len);
        let mut slots = memory.slots.of(self.tx_owner);
        match (desc, slots.give_to_send(frame, len as u32)) {
            (Some(desc), Ok(_)) => Ok(desc),
            (_, given) => {
                if let Err(frame) = given {
                    pool.free(frame);
                }
                Err(DropReason::TxError)
            }
        }
    }

    /// Packets that [`Self::tx_burst`] would certainly queue. As many as the completion ring holds may
    /// be under way, so that the kernel never finds it full; the TX ring may have less room.
    pub(super) fn tx_room(&self) -> usize {
        match self.state {
            PortState::Up => self.tx_free.min(self.tx_size - self.tx_and_completion),
            PortState::Down | PortState::Gone => 0,
        }
    }

    /// See [`PacketIo::kick`](crate::io::PacketIo::kick).
    pub(super) fn kick(&mut self, memory: &mut Memory, pool: &mut FramePool, stats: &WorkerStats) {
        // A TX ring that seems full of completed frames has the kernel look at it, which moves its index.
        let is_due = self.tx_and_completion > 0 || self.tx_free == 0;
        match self.state {
            PortState::Up if is_due => self.wake_tx(memory, pool, stats),
            PortState::Down => self.wait_for_up(),
            PortState::Up | PortState::Gone => {}
        }
        if is_due {
            self.complete(memory, pool, stats);
        }
    }

    /// Has the kernel empty the TX ring. One sendto(2) sends a bounded number of packets, so it is
    /// repeated while it gets anywhere.
    fn wake_tx(&mut self, memory: &mut Memory, pool: &mut FramePool, stats: &WorkerStats) {
        let mut untaken = self.untaken();
        let mut idle = 0;
        while untaken > 0 && idle < IDLE_KICKS {
            match send(self.tx.fd().as_raw_fd(), &[], MsgFlags::MSG_DONTWAIT) {
                // Try again: a limit per call, the socket's buffer, the completion ring.
                Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR | Errno::ENOMEM) => {}
                // One packet was completed and not sent (__xsk_generic_xmit: NET_XMIT_DROP).
                Err(Errno::EBUSY) => {
                    stats.tx_drop(DropReason::TxError, self.number);
                    self.refused += 1;
                    // At once: it is the last that was completed.
                    self.complete(memory, pool, stats);
                }
                // The interface is down, gone, or between two programs.
                Err(_) => return self.stop_sending(),
            }
            let left = self.untaken();
            idle = if left == untaken { idle + 1 } else { 0 };
            untaken = left;
        }
    }

    /// sendto(2) failed for good: is the interface down, or gone?
    #[cold]
    fn stop_sending(&mut self) {
        let exists = netdev::exists(self.config.ifindex);
        self.state = if exists { PortState::Down } else { PortState::Gone };
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

    /// Descriptors on the TX ring that the kernel has not taken.
    fn untaken(&mut self) -> usize {
        self.tx_free = self.tx.nb_free_exact() as usize;
        self.tx_size.saturating_sub(self.tx_free)
    }

    /// Takes sent frames back, and counts the packets as sent.
    pub(super) fn complete(
        &mut self,
        memory: &mut Memory,
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) {
        let (mut sent, mut last_len) = (Packets::default(), 0);
        loop {
            // SAFETY: the ring is of this UMEM; addresses are believed only if `Slots` knows them.
            let count = unsafe { self.completion.consume(&mut memory.batch) };
            let mut slots = memory.slots.of(self.tx_owner);
            for desc in &memory.batch[..count] {
                if let Some((frame, len)) = slots.take_sent(desc.addr() as u64) {
                    pool.free(frame);
                    self.tx_and_completion -= 1;
                    sent.add(len);
                    last_len = len;
                }
            }
            if count < memory.batch.len() {
                break;
            }
        }
        self.untaken();
        if self.refused > 0 {
            // The kernel tells how many it refused, not which: the octets are those of the last one.
            let refused = self.refused.min(sent.count as usize);
            self.refused -= refused;
            sent.count -= refused as u32;
            sent.octets = sent.octets.saturating_sub(refused as u64 * u64::from(last_len));
        }
        self.count_sent(sent, stats);
    }

    fn count_sent(&self, sent: Packets, stats: &WorkerStats) {
        if let Some(counters) = stats.ports.get(usize::from(self.number)).filter(|_| sent.count > 0)
        {
            counters.tx_packets.add(u64::from(sent.count));
            counters.tx_bytes.add(sent.octets);
        }
    }

    /// Drops and counts what was received and not taken.
    pub(super) fn drop_received(
        &mut self,
        memory: &mut Memory,
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) {
        loop {
            // SAFETY: as in `rx_burst`.
            let count = unsafe { self.rx.consume(&mut memory.batch) };
            if count == 0 {
                break;
            }
            let mut slots = memory.slots.of(self.rx_owner);
            for desc in &memory.batch[..count] {
                if let (Some(frame), _) = slots.take_at(desc.addr() as u64) {
                    pool.free(frame);
                    self.fill_and_rx -= 1;
                    stats.rx_drop(DropReason::DevNotReady, self.number);
                } else {
                    stats.rx_drop(DropReason::RxBadDescriptor, self.number);
                }
            }
        }
    }

    /// Ends the port: counts the packets that are not completed. The kernel sends in our system calls
    /// alone: what it has taken from the TX ring it has sent, or refused; what it has not taken it never
    /// will, and is dropped. Up to Linux 6.16 the ring's index may show late what it has taken: see
    /// `af_xdp/close.rs`. The frames stay where they are.
    pub(super) fn settle(
        &mut self,
        memory: &mut Memory,
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) {
        let untaken = self.untaken();
        let mut slots = memory.slots.of(self.tx_owner);
        for back in 1..=untaken {
            let addr = self.queued[(self.produced + self.tx_size - back) % self.tx_size];
            // One that is completed has left its slot: it and all before it were taken.
            let Some((frame, _)) = slots.take_sent(addr) else { break };
            // Of no packet that is still to be counted.
            if let Err(frame) = slots.give_to_send(frame, 0) {
                pool.free(frame);
            }
            stats.tx_drop(DropReason::DevNotReady, self.number);
        }
        let mut taken = slots.packets();
        taken.count = taken.count.saturating_sub(self.refused as u32);
        self.count_sent(taken, stats);
        self.refused = self.tx_and_completion;
        self.state = PortState::Gone;
    }

    /// The first socket's port is used again, as port `number`.
    pub(super) fn return_to_service(&mut self, number: u16, config: &PortConfig) {
        (self.number, self.config, self.state) = (number, config.clone(), PortState::Up);
    }

    /// Whether it is bound to the queue of `config`.
    pub(super) fn is_on(&self, config: &PortConfig) -> bool {
        (self.config.ifindex, self.config.queue) == (config.ifindex, config.queue)
            && is_bound(self.fd(), BoundMode::Copy)
    }

    pub(super) fn is_first(&self) -> bool {
        self.is_first
    }

    pub(super) fn number(&self) -> u16 {
        self.number
    }

    /// Both names under which the port's frames lie in the slots.
    pub(super) fn owners(&self) -> [Owner; 2] {
        [self.rx_owner, self.tx_owner]
    }
}

impl SocketPort for Port {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: libxdp closes the descriptor when the last of the socket's queues is dropped, which
        // are borrowed for as long as the result.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }

    fn set_fill(&mut self, frames: u32) {
        self.fill = self.opened.min(frames as usize);
    }

    fn statistics(&self) -> io::Result<XdpStatistics> {
        let counted = self.rx.fd().xdp_statistics()?;
        Ok(XdpStatistics {
            rx_dropped: counted.rx_dropped(),
            rx_invalid_descs: counted.rx_invalid_descs(),
            tx_invalid_descs: counted.tx_invalid_descs(),
            rx_ring_full: counted.rx_ring_full(),
            rx_fill_ring_empty_descs: counted.rx_fill_ring_empty_descs(),
            tx_ring_empty_descs: counted.tx_ring_empty_descs(),
        })
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
            mode: BoundMode::Copy,
            no_zerocopy: None,
            multi_buffer: false,
            state: self.state,
        }
    }

    fn sends_in_poll(&mut self) -> bool {
        self.tx_and_completion > 0 && self.untaken() > 0
    }

    fn frames(&self) -> (usize, usize) {
        (self.fill_and_rx, self.tx_and_completion)
    }

    fn sending(&self) -> usize {
        self.tx_and_completion.saturating_sub(self.refused)
    }
}
