//! A network device, as the kernel's `struct net_device` has it (include/linux/netdevice.h): its
//! parameters, and two sets of callbacks.
//!
//! - [`NetDeviceOps`]: what is done with it (`struct net_device_ops`);
//! - [`EthtoolOps`]: what can be asked of its hardware (`struct ethtool_ops`);
//! - [`RxMode`]: who wants more than the frames addressed to it, counted as the kernel counts.
//!
//! This is how a device is managed. How frames are moved in bursts is [`PacketIo`](super::PacketIo).
//! In-memory and capture-file ports implement both here; what the ports of a running router are to
//! the kernel is the control side's to know, and so is their implementation.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use super::PacketIo;
use super::af_xdp::OpenError;
use crate::skb::{Burst, FramePool, SkBuff};
use crate::stats::{PortStats, WorkerStats};

/// A hardware address.
pub type MacAddr = [u8; 6];

/// A shorter IP MTU is none (ETH_MIN_MTU).
pub const MTU_MIN: u32 = 68;

/// Why a callback could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It is not open (ENETDOWN).
    #[error("{0} is down; open it first")]
    Down(String),
    /// Its queue takes no more now (NETDEV_TX_BUSY); nothing was sent.
    #[error("{0} takes no frame to send now; try again")]
    Busy(String),
    /// An MTU that the device cannot have.
    #[error("{name} cannot have an MTU of {mtu}; it takes {MTU_MIN} to {max}")]
    Mtu {
        /// Its name.
        name: String,
        /// The MTU asked for, in octets.
        mtu: u32,
        /// The largest it takes.
        max: u32,
    },
    /// A frame that is longer than it sends, or no Ethernet frame.
    #[error("{name} does not send a frame of {len} octets; it takes 14 to {max}")]
    Length {
        /// Its name.
        name: String,
        /// Octets of the frame.
        len: usize,
        /// The most it takes.
        max: usize,
    },
    /// The device was removed, or never there.
    #[error("there is no device {0} any more")]
    Gone(String),
    /// What the system said.
    #[error("{name}: cannot {what}: {source}")]
    System {
        /// Its name.
        name: String,
        /// What was tried.
        what: &'static str,
        /// The answer.
        source: io::Error,
    },
    /// What stands in the way of opening it.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Octets of an Ethernet header: no frame is shorter, and the IP MTU does not count them.
pub const ETH_HLEN: usize = 14;

/// Whether a device that takes MTUs up to `max` can have this one.
///
/// # Errors
/// [`DeviceError::Mtu`].
pub fn check_mtu(name: &str, mtu: u32, max: u32) -> Result<(), DeviceError> {
    if (MTU_MIN..=max).contains(&mtu) {
        return Ok(());
    }
    Err(DeviceError::Mtu { name: name.to_owned(), mtu, max })
}

/// Whether a device whose longest frame has `max` octets can send one of `len`.
///
/// # Errors
/// [`DeviceError::Length`].
pub fn check_length(name: &str, len: usize, max: usize) -> Result<(), DeviceError> {
    if (ETH_HLEN..=max).contains(&len) {
        return Ok(());
    }
    Err(DeviceError::Length { name: name.to_owned(), len, max })
}

/// IFF_UP, or nothing.
pub(super) fn is_up_flag(up: bool) -> u32 {
    if up { libc::IFF_UP as u32 } else { 0 }
}

/// Queues one frame on a port; `false`: its ring, or the pool, has no room.
pub(super) fn xmit_one(
    io: &mut impl PacketIo,
    port: u16,
    pool: &mut FramePool,
    stats: &WorkerStats,
    frame: &[u8],
) -> bool {
    let Some(skb) = SkBuff::of_octets(pool, frame) else { return false };
    let mut burst = Burst::with_capacity(1);
    if let Err(skb) = burst.push(skb) {
        // There was room.
        pool.kfree_skb(skb);
    }
    io.tx_burst(port, pool, &mut burst, stats) == 1
}

/// What is done with a device: `struct net_device_ops`.
pub trait NetDeviceOps {
    /// Puts it into service (`ndo_open`); nothing if it is.
    ///
    /// # Errors
    /// See [`DeviceError`]; it is as before then.
    fn open(&mut self) -> Result<(), DeviceError>;

    /// Takes it out of service (`ndo_stop`); nothing if it is.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn stop(&mut self) -> Result<(), DeviceError>;

    /// Sends one frame, link-layer header first (`ndo_start_xmit`).
    ///
    /// # Errors
    /// [`DeviceError::Down`], [`DeviceError::Busy`], [`DeviceError::Length`]; nothing was sent.
    fn start_xmit(&mut self, frame: &[u8]) -> Result<(), DeviceError>;

    /// Sets which frames it receives beside those for its own address (`ndo_set_rx_mode`).
    ///
    /// # Errors
    /// See [`DeviceError`]; the mode is as before then.
    fn set_rx_mode(&mut self, mode: RxMode) -> Result<(), DeviceError>;

    /// Sets its IP MTU in octets (`ndo_change_mtu`).
    ///
    /// # Errors
    /// [`DeviceError::Mtu`] and what the system refuses; the MTU is as before then.
    fn change_mtu(&mut self, mtu: u32) -> Result<(), DeviceError>;

    /// What it counted (`ndo_get_stats64`).
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn get_stats(&self) -> Result<Stats, DeviceError>;
}

/// What can be asked of a device's hardware and driver: `struct ethtool_ops`. `None`: the driver has
/// no such thing, which is no error.
pub trait EthtoolOps {
    /// Which driver it is (`get_drvinfo`).
    ///
    /// # Errors
    /// What the system answers.
    fn driver_info(&self) -> io::Result<Option<DriverInfo>>;

    /// Its queues (`get_channels`).
    ///
    /// # Errors
    /// What the system answers.
    fn channels(&self) -> io::Result<Option<Channels>>;

    /// Descriptors of its rings (`get_ringparam`).
    ///
    /// # Errors
    /// What the system answers.
    fn ring_sizes(&self) -> io::Result<Option<Rings>>;

    /// Its offloads (`netdev_features_t`).
    ///
    /// # Errors
    /// What the system answers.
    fn features(&self) -> io::Result<Vec<Feature>>;

    /// Which packets it stamps (`get_ts_info`).
    ///
    /// # Errors
    /// What the system answers.
    fn timestamping(&self) -> io::Result<Option<Timestamping>>;

    /// How long it holds interrupts back (`get_coalesce`).
    ///
    /// # Errors
    /// What the system answers.
    fn coalescing(&self) -> io::Result<Option<Coalescing>>;
}

/// A device: its parameters beside its callbacks.
pub trait NetDevice: NetDeviceOps + EthtoolOps {
    /// As it is now.
    ///
    /// # Errors
    /// What the system answers; [`DeviceError::Gone`].
    fn params(&self) -> Result<Params, DeviceError>;
}

/// Parameters of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Params {
    /// The kernel's number of it.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// IFF_*.
    pub flags: u32,
    /// IP MTU in octets.
    pub mtu: u32,
    /// The largest it takes; 0: not known.
    pub max_mtu: u32,
    /// Its hardware address, if it has one of six octets.
    pub mac: Option<MacAddr>,
    /// Who wants every frame.
    pub promiscuity: u32,
    /// Who wants every multicast frame; `None`: not told (kernels before 6.0).
    pub allmulti: Option<u32>,
    /// Multicast addresses it receives.
    pub multicast: Vec<Multicast>,
    /// Queues it was made with.
    pub rx_queues: u32,
    /// Queues it was made with.
    pub tx_queues: u32,
}

/// A multicast address of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Multicast {
    /// As `33:33:00:00:00:01`.
    pub address: String,
    /// Who wants it.
    pub users: u32,
}

/// Of `struct rtnl_link_stats64`; packets unless octets are named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Received.
    pub rx_packets: u64,
    /// Received, in octets.
    pub rx_bytes: u64,
    /// Not understood.
    pub rx_errors: u64,
    /// Received and dropped.
    pub rx_dropped: u64,
    /// Lost because the host had no room for them.
    pub rx_missed_errors: u64,
    /// Received by multicast.
    pub multicast: u64,
    /// Sent.
    pub tx_packets: u64,
    /// Sent, in octets.
    pub tx_bytes: u64,
    /// Not sent for trouble on the wire.
    pub tx_errors: u64,
    /// Dropped on their way out.
    pub tx_dropped: u64,
    /// Collisions.
    pub collisions: u64,
}

impl From<&PortStats> for Stats {
    fn from(port: &PortStats) -> Stats {
        Stats {
            rx_packets: port.rx_packets.get(),
            rx_bytes: port.rx_bytes.get(),
            rx_dropped: port.rx_dropped.get(),
            tx_packets: port.tx_packets.get(),
            tx_bytes: port.tx_bytes.get(),
            tx_dropped: port.tx_dropped.get(),
            ..Stats::default()
        }
    }
}

/// Which frames a device receives beside those for its own address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RxMode {
    /// Every frame (IFF_PROMISC).
    pub promisc: bool,
    /// Every multicast frame (IFF_ALLMULTI).
    pub allmulti: bool,
}

/// Counts who wants more of a device; it is told when the first comes and the last goes
/// (`__dev_set_promiscuity`, `__dev_set_allmulti` in net/core/dev.c).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RxUsers {
    /// Who wants every frame.
    pub promiscuity: u32,
    /// Who wants every multicast frame.
    pub allmulti: u32,
}

impl RxUsers {
    /// What the device is to be set to.
    #[must_use]
    pub fn mode(self) -> RxMode {
        RxMode { promisc: self.promiscuity > 0, allmulti: self.allmulti > 0 }
    }

    /// One more, or one fewer, wants every frame.
    ///
    /// # Errors
    /// What the device says; the count is as before then.
    pub fn set_promiscuity(
        &mut self,
        device: &mut impl NetDeviceOps,
        more: bool,
    ) -> Result<(), DeviceError> {
        self.change(device, RxUsers { promiscuity: step(self.promiscuity, more), ..*self })
    }

    /// One more, or one fewer, wants every multicast frame.
    ///
    /// # Errors
    /// What the device says; the count is as before then.
    pub fn set_allmulti(
        &mut self,
        device: &mut impl NetDeviceOps,
        more: bool,
    ) -> Result<(), DeviceError> {
        self.change(device, RxUsers { allmulti: step(self.allmulti, more), ..*self })
    }

    fn change(
        &mut self,
        device: &mut impl NetDeviceOps,
        wanted: RxUsers,
    ) -> Result<(), DeviceError> {
        if wanted.mode() != self.mode() {
            device.set_rx_mode(wanted.mode())?;
        }
        *self = wanted;
        Ok(())
    }
}

fn step(count: u32, more: bool) -> u32 {
    if more { count.saturating_add(1) } else { count.saturating_sub(1) }
}

/// `ethtool -i`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverInfo {
    /// Its name.
    pub driver: String,
    /// Its version, or the kernel's.
    pub version: String,
    /// Of the NIC; empty: none.
    pub firmware: String,
    /// Where it is, as `0000:00:03.0`; empty: on no bus.
    pub bus: String,
}

/// `ethtool -l`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channels {
    /// As they are set.
    pub now: ChannelCounts,
    /// As many as there can be.
    pub max: ChannelCounts,
}

/// Queues by what they do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelCounts {
    /// Receive.
    pub rx: u32,
    /// Send.
    pub tx: u32,
    /// Both.
    pub combined: u32,
    /// Neither: link interrupts and the like.
    pub other: u32,
}

/// `ethtool -g`, in descriptors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rings {
    /// Of an RX ring.
    pub rx: u32,
    /// The most it can have; 0: not told.
    pub rx_max: u32,
    /// Of a TX ring.
    pub tx: u32,
    /// The most it can have; 0: not told.
    pub tx_max: u32,
}

/// `ethtool -k`: one offload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// As the kernel names it: `rx-gro-hw`.
    pub name: String,
    /// Whether it is on.
    pub on: bool,
    /// It cannot be changed.
    pub fixed: bool,
}

/// `ethtool -T`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamping {
    /// SOF_TIMESTAMPING_*, as ethtool names them.
    pub capabilities: Vec<String>,
    /// HWTSTAMP_TX_*.
    pub tx_types: Vec<String>,
    /// HWTSTAMP_FILTER_*.
    pub rx_filters: Vec<String>,
    /// Number of its clock, /dev/ptpN.
    pub clock: Option<u32>,
}

/// `ethtool -c`; what the driver does not tell is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coalescing {
    /// Microseconds a received packet may wait for others.
    pub rx_usecs: Option<u32>,
    /// Packets after which it waits no longer.
    pub rx_frames: Option<u32>,
    /// Microseconds a sent packet's completion may wait.
    pub tx_usecs: Option<u32>,
    /// Packets after which it waits no longer.
    pub tx_frames: Option<u32>,
    /// The driver chooses by the load.
    pub adaptive_rx: Option<bool>,
    /// Likewise.
    pub adaptive_tx: Option<bool>,
}

impl fmt::Display for ChannelCounts {
    /// Those there are: `combined 2 other 1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all =
            [("rx", self.rx), ("tx", self.tx), ("combined", self.combined), ("other", self.other)];
        let there: Vec<String> =
            all.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {n}")).collect();
        f.write_str(&there.join(" "))
    }
}

#[cfg(test)]
mod tests;
