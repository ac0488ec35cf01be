//! The driver of network interfaces that the user chose: a choice once a burst, none a packet.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::af_xdp::{AfXdp, OpenError, Options, PortConfig, PortInfo, PortState, XdpStatistics};
#[cfg(feature = "xsk-rs")]
use super::xsk_rs::XskRs;
use super::{FrameAccounting, PacketIo};
use crate::skb::{Burst, FramePool};
use crate::stats::WorkerStats;

/// The drivers there are, whether built or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum DriverKind {
    /// Our own.
    #[default]
    #[serde(rename = "af_xdp")]
    AfXdp,
    /// On the crate xsk-rs.
    #[serde(rename = "xsk-rs")]
    XskRs,
}

impl DriverKind {
    /// Whether it is in this program.
    pub fn is_built(self) -> bool {
        self == DriverKind::AfXdp || cfg!(feature = "xsk-rs")
    }
}

impl std::fmt::Display for DriverKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            DriverKind::AfXdp => "af_xdp",
            DriverKind::XskRs => "xsk-rs",
        })
    }
}

/// The ports of one worker on the driver chosen. Each method is that of [`AfXdp`], which describes it.
#[derive(Debug)]
#[cfg_attr(
    feature = "xsk-rs",
    expect(
        clippy::large_enum_variant,
        reason = "one a worker, and a pointer would be followed each turn"
    )
)]
pub enum Driver {
    /// Our own.
    AfXdp(AfXdp),
    /// On the crate xsk-rs.
    #[cfg(feature = "xsk-rs")]
    XskRs(XskRs),
}

/// The same call on whichever it is.
macro_rules! on {
    ($driver:expr, $io:ident => $call:expr) => {
        match $driver {
            Driver::AfXdp($io) => $call,
            #[cfg(feature = "xsk-rs")]
            Driver::XskRs($io) => $call,
        }
    };
}

impl Driver {
    /// [`AfXdp::with_slots`].
    ///
    /// # Errors
    /// As there, and [`OpenError::NoXskRs`].
    pub fn with_slots(
        kind: DriverKind,
        ports: usize,
        expected: usize,
        options: &Options,
    ) -> Result<(Driver, FramePool), OpenError> {
        match kind {
            DriverKind::AfXdp => {
                let (io, pool) = AfXdp::with_slots(ports, expected, options)?;
                Ok((Driver::AfXdp(io), pool))
            }
            #[cfg(feature = "xsk-rs")]
            DriverKind::XskRs => {
                let (io, pool) = XskRs::with_slots(ports, expected, options)?;
                Ok((Driver::XskRs(io), pool))
            }
            #[cfg(not(feature = "xsk-rs"))]
            DriverKind::XskRs => Err(OpenError::NoXskRs),
        }
    }

    /// [`AfXdp::add_port`].
    ///
    /// # Errors
    /// See [`OpenError`]; nothing has changed then.
    pub fn add_port(
        &mut self,
        port: u16,
        config: &PortConfig,
        pool: &mut FramePool,
    ) -> Result<(), OpenError> {
        on!(self, io => io.add_port(port, config, pool))
    }

    /// [`AfXdp::remove_port`].
    pub fn remove_port(&mut self, port: u16, pool: &mut FramePool, stats: &WorkerStats) {
        on!(self, io => io.remove_port(port, pool, stats));
    }

    /// [`AfXdp::socket_fd`].
    pub fn socket_fd(&self, port: u16) -> Option<BorrowedFd<'_>> {
        on!(self, io => io.socket_fd(port))
    }

    /// [`AfXdp::port_info`].
    pub fn port_info(&mut self, port: u16) -> Option<PortInfo> {
        on!(self, io => io.port_info(port))
    }

    /// [`AfXdp::tx_state`].
    pub fn tx_state(&self, port: u16) -> Option<PortState> {
        on!(self, io => io.tx_state(port))
    }

    /// [`AfXdp::statistics`].
    ///
    /// # Errors
    /// What getsockopt(2) says; ENOENT for a number that no port can have.
    pub fn statistics(&self, port: u16) -> io::Result<XdpStatistics> {
        on!(self, io => io.statistics(port))
    }

    /// [`AfXdp::forget_statistics`].
    pub fn forget_statistics(&mut self, port: u16) {
        on!(self, io => io.forget_statistics(port));
    }
}

impl PacketIo for Driver {
    #[inline]
    fn ports(&self) -> usize {
        on!(self, io => io.ports())
    }

    #[inline]
    fn rx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        on!(self, io => io.rx_burst(port, pool, burst, stats))
    }

    #[inline]
    fn tx_room(&self, port: u16) -> usize {
        on!(self, io => io.tx_room(port))
    }

    #[inline]
    fn tx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        on!(self, io => io.tx_burst(port, pool, burst, stats))
    }

    #[inline]
    fn kick(&mut self, pool: &mut FramePool, stats: &WorkerStats) {
        on!(self, io => io.kick(pool, stats));
    }

    #[inline]
    fn wait(&mut self, timeout: Duration, wakeup: Option<BorrowedFd<'_>>) -> bool {
        on!(self, io => io.wait(timeout, wakeup))
    }

    fn accounting(&self) -> FrameAccounting {
        on!(self, io => io.accounting())
    }

    fn close_all(&mut self, pool: &mut FramePool, stats: &WorkerStats) {
        on!(self, io => io.close_all(pool, stats));
    }
}
