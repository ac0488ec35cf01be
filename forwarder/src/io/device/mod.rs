//! A network device, modelled on the kernel's `struct net_device` (include/linux/netdevice.h): its
//! parameters, and two sets of callbacks.
//!
//! - [`NetDeviceOps`]: operations (`struct net_device_ops`);
//! - [`EthtoolOps`]: hardware and driver properties (`struct ethtool_ops`);
//! - [`RxMode`]: reception of frames for other addresses, with user counts as in the kernel.
//!
//! These traits manage a device. [`PacketIo`](super::PacketIo) moves frames in bursts. `software`
//! implements both traits for in-memory and capture-file ports; for the ports of a running router the control side
//! implements `EthtoolOps` and `NetDevice`.

mod software;

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use super::PacketIo;
use super::af_xdp::OpenError;
use crate::skb::{Burst, FramePool, SkBuff};
use crate::stats::{PortStats, WorkerStats};

pub use software::{SoftwareDevice, SoftwareDriver, SoftwarePort};

/// A hardware address.
pub type MacAddr = [u8; 6];

/// Minimum IP MTU (ETH_MIN_MTU).
pub const MTU_MIN: u32 = 68;

/// Why a callback failed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It is not open (ENETDOWN).
    #[error("{0} is down; open it first")]
    Down(String),
    /// Its queue is full (NETDEV_TX_BUSY); nothing was sent.
    #[error("{0} cannot send now, its queue is full; try again")]
    Busy(String),
    /// The device does not support this MTU.
    #[error("{name} cannot have an MTU of {mtu}; it supports {MTU_MIN} to {max}")]
    Mtu {
        /// Its name.
        name: String,
        /// The requested MTU, in octets.
        mtu: u32,
        /// The maximum.
        max: u32,
    },
    /// The frame is too long, or shorter than an Ethernet header.
    #[error("{name} cannot send a frame of {len} octets; it supports 14 to {max}")]
    Length {
        /// Its name.
        name: String,
        /// Octets of the frame.
        len: usize,
        /// The maximum.
        max: usize,
    },
    /// The device was removed, or never existed.
    #[error("there is no device {0} any more")]
    Gone(String),
    /// The system's error.
    #[error("{name}: cannot {what}: {source}")]
    System {
        /// Its name.
        name: String,
        /// The operation.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
    /// Why it cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Length of an Ethernet header in octets: the minimum frame length; not included in the IP MTU.
pub const ETH_HLEN: usize = 14;

/// Checks an MTU against the maximum `max` of a device.
///
/// # Errors
/// [`DeviceError::Mtu`].
pub fn check_mtu(name: &str, mtu: u32, max: u32) -> Result<(), DeviceError> {
    if (MTU_MIN..=max).contains(&mtu) {
        return Ok(());
    }
    Err(DeviceError::Mtu { name: name.to_owned(), mtu, max })
}

/// Checks a frame length `len` against the maximum `max` of a device, in octets.
///
/// # Errors
/// [`DeviceError::Length`].
pub fn check_length(name: &str, len: usize, max: usize) -> Result<(), DeviceError> {
    if (ETH_HLEN..=max).contains(&len) {
        return Ok(());
    }
    Err(DeviceError::Length { name: name.to_owned(), len, max })
}

/// Queues one frame on a port; `false`: its ring is full, or the pool is empty.
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
        // Cannot fail: there was room.
        pool.kfree_skb(skb);
    }
    io.tx_burst(port, pool, &mut burst, stats) == 1
}

/// Operations of a device: `struct net_device_ops`.
pub trait NetDeviceOps {
    /// Opens it (`ndo_open`); no effect if it is open.
    ///
    /// # Errors
    /// See [`DeviceError`]; its state is unchanged then.
    fn open(&mut self) -> Result<(), DeviceError>;

    /// Closes it (`ndo_stop`); no effect if it is closed.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn stop(&mut self) -> Result<(), DeviceError>;

    /// Sends one frame, link-layer header first (`ndo_start_xmit`).
    ///
    /// # Errors
    /// [`DeviceError::Down`], [`DeviceError::Busy`], [`DeviceError::Length`]; nothing was sent.
    fn start_xmit(&mut self, frame: &[u8]) -> Result<(), DeviceError>;

    /// Sets which frames it receives besides those for its own address (`ndo_set_rx_mode`).
    ///
    /// # Errors
    /// See [`DeviceError`]; the mode is unchanged then.
    fn set_rx_mode(&mut self, mode: RxMode) -> Result<(), DeviceError>;

    /// Sets its IP MTU in octets (`ndo_change_mtu`).
    ///
    /// # Errors
    /// [`DeviceError::Mtu`], or the system's error; the MTU is unchanged then.
    fn change_mtu(&mut self, mtu: u32) -> Result<(), DeviceError>;

    /// Its counters (`ndo_get_stats64`).
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn get_stats(&self) -> Result<Stats, DeviceError>;
}

/// Hardware and driver properties: `struct ethtool_ops`. `None`: the driver does not support it,
/// which is no error.
pub trait EthtoolOps {
    /// Its driver (`get_drvinfo`).
    ///
    /// # Errors
    /// The system's error.
    fn driver_info(&self) -> io::Result<Option<DriverInfo>>;

    /// Its queues (`get_channels`).
    ///
    /// # Errors
    /// The system's error.
    fn channels(&self) -> io::Result<Option<Channels>>;

    /// Sizes of its rings in descriptors (`get_ringparam`).
    ///
    /// # Errors
    /// The system's error.
    fn ring_sizes(&self) -> io::Result<Option<Rings>>;

    /// Its offloads (`netdev_features_t`).
    ///
    /// # Errors
    /// The system's error.
    fn features(&self) -> io::Result<Vec<Feature>>;

    /// Time stamping capabilities (`get_ts_info`).
    ///
    /// # Errors
    /// The system's error.
    fn timestamping(&self) -> io::Result<Option<Timestamping>>;

    /// Interrupt coalescing (`get_coalesce`).
    ///
    /// # Errors
    /// The system's error.
    fn coalescing(&self) -> io::Result<Option<Coalescing>>;
}

/// A device: its parameters and callbacks.
pub trait NetDevice: NetDeviceOps + EthtoolOps {
    /// Its current parameters.
    ///
    /// # Errors
    /// The system's error; [`DeviceError::Gone`].
    fn params(&self) -> Result<Params, DeviceError>;
}

/// Parameters of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Params {
    /// Its index in the kernel.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// IFF_*.
    pub flags: u32,
    /// IP MTU in octets.
    pub mtu: u32,
    /// Maximum IP MTU; 0: unknown.
    pub max_mtu: u32,
    /// Its hardware address, if it has one of six octets.
    pub mac: Option<MacAddr>,
    /// Number of users of promiscuous mode.
    pub promiscuity: u32,
    /// Number of users of all-multicast mode; `None`: not reported (kernels before 6.0).
    pub allmulti: Option<u32>,
    /// Multicast addresses it receives.
    pub multicast: Vec<Multicast>,
    /// RX queues that it was created with.
    pub rx_queues: u32,
    /// TX queues that it was created with.
    pub tx_queues: u32,
}

/// A multicast address of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Multicast {
    /// In the format `33:33:00:00:00:01`.
    pub address: String,
    /// Number of users.
    pub users: u32,
}

/// Counters of `struct rtnl_link_stats64`; packets unless octets are named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Received.
    pub rx_packets: u64,
    /// Received, in octets.
    pub rx_bytes: u64,
    /// Received with errors.
    pub rx_errors: u64,
    /// Received and dropped.
    pub rx_dropped: u64,
    /// Lost because the host had no buffers.
    pub rx_missed_errors: u64,
    /// Received multicast packets.
    pub multicast: u64,
    /// Sent.
    pub tx_packets: u64,
    /// Sent, in octets.
    pub tx_bytes: u64,
    /// Not sent because of link errors.
    pub tx_errors: u64,
    /// Dropped before sending.
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

/// Which frames a device receives besides those for its own address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RxMode {
    /// Every frame (IFF_PROMISC).
    pub promisc: bool,
    /// Every multicast frame (IFF_ALLMULTI).
    pub allmulti: bool,
}

/// Counts the users of each receive mode; the device is updated for the first and after the last
/// one (`__dev_set_promiscuity`, `__dev_set_allmulti` in net/core/dev.c).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RxUsers {
    /// Users of promiscuous mode.
    pub promiscuity: u32,
    /// Users of all-multicast mode.
    pub allmulti: u32,
}

impl RxUsers {
    /// The resulting mode of the device.
    #[must_use]
    pub fn mode(self) -> RxMode {
        RxMode { promisc: self.promiscuity > 0, allmulti: self.allmulti > 0 }
    }

    /// Adds or removes a user of promiscuous mode.
    ///
    /// # Errors
    /// The device's error; the count is unchanged then.
    pub fn set_promiscuity(
        &mut self,
        device: &mut impl NetDeviceOps,
        more: bool,
    ) -> Result<(), DeviceError> {
        self.change(device, RxUsers { promiscuity: step(self.promiscuity, more), ..*self })
    }

    /// Adds or removes a user of all-multicast mode.
    ///
    /// # Errors
    /// The device's error; the count is unchanged then.
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
    /// Firmware version of the NIC; empty: none.
    pub firmware: String,
    /// Bus address, as `0000:00:03.0`; empty: none.
    pub bus: String,
}

/// `ethtool -l`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channels {
    /// Current numbers.
    pub now: ChannelCounts,
    /// Maximum numbers.
    pub max: ChannelCounts,
}

/// Numbers of queues by type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelCounts {
    /// Receive only.
    pub rx: u32,
    /// Send only.
    pub tx: u32,
    /// Receive and send.
    pub combined: u32,
    /// Other: link interrupts and the like.
    pub other: u32,
}

/// `ethtool -g`, in descriptors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rings {
    /// Size of an RX ring.
    pub rx: u32,
    /// Maximum size; 0: not reported.
    pub rx_max: u32,
    /// Size of a TX ring.
    pub tx: u32,
    /// Maximum size; 0: not reported.
    pub tx_max: u32,
}

/// `ethtool -k`: one offload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// The kernel's name: `rx-gro-hw`.
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
    /// Number of its PTP clock, /dev/ptpN.
    pub clock: Option<u32>,
}

/// `ethtool -c`; `None`: the driver does not report it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coalescing {
    /// Maximum microseconds that an RX interrupt is delayed.
    pub rx_usecs: Option<u32>,
    /// Number of packets that trigger it earlier.
    pub rx_frames: Option<u32>,
    /// Maximum microseconds that a TX completion interrupt is delayed.
    pub tx_usecs: Option<u32>,
    /// Number of packets that trigger it earlier.
    pub tx_frames: Option<u32>,
    /// The driver adapts the RX values to the load.
    pub adaptive_rx: Option<bool>,
    /// The driver adapts the TX values to the load.
    pub adaptive_tx: Option<bool>,
}

impl fmt::Display for ChannelCounts {
    /// The numbers other than zero: `combined 2 other 1`.
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
