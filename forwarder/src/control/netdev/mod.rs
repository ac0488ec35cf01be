//! Properties and settings of kernel devices, by netlink; see [`crate::io::device`].
//!
//! - [`rtnl`]: rtnetlink: parameters and statistics;
//! - [`ethtool`]: the ethtool family: channels, rings, offloads, time stamps, coalescing;
//! - [`napi`]: the netdev family: NAPI instances, queues and their interrupts;
//! - [`nic`]: interfaces as rtnetlink lists them: kind, master, XDP programs, tc filters;
//! - [`poll`], [`sysfs`]: settings for busy polling, and restoring them ([`keep`]);
//! - [`irq`]: CPU affinity of queue interrupts;
//! - [`KernelDevice`]: all of these behind the device callbacks; [`details`]: output.

pub mod details;
pub mod ethtool;
pub mod irq;
pub mod keep;
mod kernel;
pub mod napi;
pub mod nic;
pub mod poll;
pub mod rtnl;
pub mod sysfs;

pub use kernel::KernelDevice;
