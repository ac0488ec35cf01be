//! Ports that are queues of network interfaces, through the crate xsk-rs: libxdp's AF_XDP sockets and
//! rings. Built with the cargo feature `xsk-rs`; the driver to use is [`af_xdp`](super::af_xdp), whose
//! types of ports, errors and statistics are used here.
//!
//! - [`XskRs`]: the ports of one worker over one UMEM, so that a frame goes from any port's RX ring to
//!   any port's TX ring without a copy;
//! - `memory`: that UMEM, and the crate's descriptors of its frames;
//! - `port`: one socket, its rings, and what becomes of its packets.
//!
//! What the driver cannot do, because of the crate (0.11) and libxdp:
//! - **Zero-copy.** A socket is bound before its fill ring can be filled, and NIC drivers may then
//!   receive nothing (igb). All sockets of a UMEM are bound in the mode of the first. So all sockets
//!   are bound in copy mode; [`BindMode::ZeroCopy`] is refused.
//! - **Closing the first socket of a UMEM.** libxdp keeps it open for as long as there is the UMEM and
//!   binds all others through it (XDP_SHARED_UMEM). The first port that is removed keeps its socket and
//!   the frames of its rings, and is used again when the same queue is added. When its interface was
//!   removed, the other ports go on, but no port can be added: [`OpenError::FirstSocketLost`].
//! - **Packets of several frames** (XDP_USE_SG): the address of a descriptor cannot be chosen, so a
//!   packet is sent from a fixed place of its frame. One that starts elsewhere (a VLAN tag was added or
//!   removed, the router made it) is moved within its frame first.
//! - **Busy polling**: the socket options must be set before the socket is bound.
//!
//! Frames and packets are accounted for as by `af_xdp`. `TxQueue::wakeup` hides the errors by which the
//! kernel tells of packets that it did not send, so that system call is made here.

#![expect(unsafe_code, reason = "every ring call of xsk-rs is unsafe")]

mod memory;
mod port;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use self::memory::Memory;
use self::port::Port;
use super::af_xdp::port_table::{PortTable, SocketPort};
use super::af_xdp::{
    BindMode, BoundMode, OpenError, Options, PortConfig, PortInfo, PortState, XdpStatistics,
    is_bound,
};
use super::{FrameAccounting, PacketIo, drop_all};
use crate::skb::{Burst, FramePool};
use crate::stats::{DropReason, WorkerStats};

/// The ports of one worker on xsk-rs. Dropping it loses the frames that its sockets have.
#[derive(Debug)]
pub struct XskRs {
    // First, so that sockets close before what they use goes.
    table: PortTable<Port>,
    /// The port of the first socket after it was removed, until it is added again.
    parked: Option<Port>,
    memory: Memory,
    /// Number of the next binding; see [`Owner`](super::af_xdp::slots::Owner).
    next_binding: u32,
    /// Name of the first socket's interface; `None`: no socket was opened.
    first: Option<String>,
}

impl XskRs {
    /// No port open, but numbers for `ports` of them, and memory for `expected`, which is taken at once
    /// (MAP_POPULATE). When more are open, they share it: each has fewer packets waiting at most. Beyond
    /// 1024 more, one may find no memory.
    ///
    /// # Errors
    /// [`OpenError::BadOptions`]: ring sizes, too many frames, or busy polling. [`OpenError::NoPermission`],
    /// [`OpenError::NoMemory`] and what else the kernel says of sockets and their memory.
    pub fn with_slots(
        ports: usize,
        expected: usize,
        options: &Options,
    ) -> Result<(XskRs, FramePool), OpenError> {
        if options.busy_poll_budget.is_some() {
            let what = "the driver xsk-rs has no busy polling: use --poll adaptive";
            return Err(OpenError::BadOptions(what.into()));
        }
        let (table, frames) = PortTable::new(ports, expected, options)?;
        let (memory, pool) = Memory::new(frames, &options.rings)?;
        let io = XskRs { table, parked: None, memory, next_binding: 0, first: None };
        Ok((io, pool))
    }

    /// Opens port number `port`, which is not open now. May sleep, see [`Options::busy_tries`].
    ///
    /// # Errors
    /// See [`OpenError`]; nothing has changed then.
    pub fn add_port(
        &mut self,
        port: u16,
        config: &PortConfig,
        pool: &mut FramePool,
    ) -> Result<(), OpenError> {
        self.table.check_free(port)?;
        if config.mode == BindMode::ZeroCopy {
            let what = "the driver xsk-rs binds in copy mode: use mode auto or copy";
            return Err(OpenError::BadOptions(what.into()));
        }
        let is_it = |parked: &mut Port| parked.is_on(config);
        let opened = match self.parked.take_if(is_it) {
            Some(mut parked) => {
                parked.return_to_service(port, config);
                parked
            }
            None => self.open(port, config, pool)?,
        };
        self.table.insert(port, opened);
        Ok(())
    }

    fn open(
        &mut self,
        port: u16,
        config: &PortConfig,
        pool: &mut FramePool,
    ) -> Result<Port, OpenError> {
        if self.parked.as_ref().is_some_and(|parked| !is_bound(parked.fd(), BoundMode::Copy)) {
            return Err(self.first_socket_lost(config));
        }
        let fill = self.table.fill_of_next(&config.ifname, pool.available())?;
        let is_first = self.first.is_none();
        let options = self.table.options();
        let mut tries = options.busy_tries.max(1);
        let opened = loop {
            let binding = (self.next_binding, is_first);
            match Port::open(port, config, &options.rings, binding, fill, &mut self.memory) {
                Err(OpenError::Busy { .. }) if tries > 1 => {
                    tries -= 1;
                    std::thread::sleep(options.busy_pause);
                }
                // EBADF: the first socket is not bound any more.
                Err(OpenError::Bind { source, .. })
                    if source.raw_os_error() == Some(libc::EBADF) =>
                {
                    return Err(self.first_socket_lost(config));
                }
                opened => break opened,
            }
        };
        let mut opened = opened?;
        opened.refill(&mut self.memory, pool);
        self.next_binding += 1;
        self.first.get_or_insert_with(|| config.ifname.clone());
        Ok(opened)
    }

    fn first_socket_lost(&self, config: &PortConfig) -> OpenError {
        OpenError::FirstSocketLost {
            ifname: config.ifname.clone(),
            queue: config.queue,
            first: self.first.clone().unwrap_or_default(),
        }
    }

    /// Closes a port and takes its frames back into `pool`; its number stays reserved. Packets that
    /// waited to be sent or to be taken are dropped and counted (DEV_READY); those that the kernel has
    /// taken from the TX ring count as sent. The first socket's frames and packets to be sent stay with
    /// it: its packets count as sending until the kernel has sent them.
    pub fn remove_port(&mut self, port: u16, pool: &mut FramePool, stats: &WorkerStats) {
        let Some(mut removed) = self.table.take(port) else { return };
        removed.drop_received(&mut self.memory, pool, stats);
        removed.complete(&mut self.memory, pool, stats);
        if removed.is_first() {
            removed.kick(&mut self.memory, pool, stats);
            self.parked = Some(removed);
        } else {
            self.close(removed, pool, stats);
        }
    }

    /// Closes the socket of a port that is not the first one's.
    fn close(&mut self, mut port: Port, pool: &mut FramePool, stats: &WorkerStats) {
        port.settle(&mut self.memory, pool, stats);
        self.table.keep_statistics(port.number(), &port);
        let owners = port.owners();
        // close(2) returns when no CPU is in the receive path any more (xsk_unbind_dev:
        // synchronize_net), and in copy mode that is all that writes to a frame.
        drop(port);
        for owner in owners {
            self.memory.slots.reclaim(owner, pool);
        }
    }

    /// See [`AfXdp::socket_fd`](super::af_xdp::AfXdp::socket_fd).
    pub fn socket_fd(&self, port: u16) -> Option<BorrowedFd<'_>> {
        self.table.get(port).map(Port::fd)
    }

    /// See [`AfXdp::port_info`](super::af_xdp::AfXdp::port_info).
    pub fn port_info(&mut self, port: u16) -> Option<PortInfo> {
        self.table.get_mut(port).map(Port::info)
    }

    /// See [`AfXdp::tx_state`](super::af_xdp::AfXdp::tx_state).
    pub fn tx_state(&self, port: u16) -> Option<PortState> {
        self.table.get(port).map(Port::tx_state)
    }

    /// See [`AfXdp::statistics`](super::af_xdp::AfXdp::statistics).
    ///
    /// # Errors
    /// As there.
    pub fn statistics(&self, port: u16) -> io::Result<XdpStatistics> {
        let mut counted = self.table.statistics(port)?;
        if let Some(parked) = self.parked.as_ref().filter(|parked| parked.number() == port) {
            counted.add(&parked.statistics()?);
        }
        Ok(counted)
    }

    /// See [`AfXdp::forget_statistics`](super::af_xdp::AfXdp::forget_statistics).
    pub fn forget_statistics(&mut self, port: u16) {
        self.table.forget_statistics(port);
    }
}

impl PacketIo for XskRs {
    fn ports(&self) -> usize {
        self.table.used()
    }

    fn rx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        match self.table.get_mut(port) {
            Some(this) => this.rx_burst(&mut self.memory, pool, burst, stats),
            None => 0,
        }
    }

    fn tx_room(&self, port: u16) -> usize {
        self.table.get(port).map_or(0, Port::tx_room)
    }

    fn tx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        if let Some(this) = self.table.get_mut(port) {
            return this.tx_burst(&mut self.memory, pool, burst, stats);
        }
        drop_all(DropReason::DevNotReady, port, pool, burst, stats);
        0
    }

    fn kick(&mut self, pool: &mut FramePool, stats: &WorkerStats) {
        let ports = self.table.iter_mut().map(|(_, port)| port);
        for port in ports.chain(&mut self.parked) {
            port.kick(&mut self.memory, pool, stats);
        }
    }

    fn wait(&mut self, timeout: Duration, wakeup: Option<BorrowedFd<'_>>) -> bool {
        self.table.wait(timeout, wakeup)
    }

    /// The first socket's packets that the kernel has not taken are dropped, too; its frames stay with
    /// it ([`FrameAccounting::draining`]).
    fn close_all(&mut self, pool: &mut FramePool, stats: &WorkerStats) {
        for port in 0..self.table.used() {
            self.remove_port(port as u16, pool, stats);
        }
        if let Some(parked) = &mut self.parked {
            // While its socket is still in the XSKMAP, it keeps receiving.
            parked.drop_received(&mut self.memory, pool, stats);
            parked.settle(&mut self.memory, pool, stats);
        }
    }

    fn accounting(&self) -> FrameAccounting {
        let mut accounting = self.table.accounting();
        if let Some(parked) = &self.parked {
            let (rx, tx) = parked.frames();
            accounting.draining = rx + tx;
            accounting.sending += parked.sending();
        }
        accounting
    }
}
