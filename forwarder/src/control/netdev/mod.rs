//! What a device of the kernel is and is set to, by netlink; see [`crate::io::device`].
//!
//! - [`rtnl`]: rtnetlink: parameters and statistics;
//! - [`ethtool`]: the ethtool family: channels, rings, offloads, time stamps, coalescing;
//! - [`napi`]: the netdev family: NAPI instances, queues and their interrupts;
//! - [`nic`]: interfaces as rtnetlink lists them: kind, master, XDP programs, tc filters;
//! - [`poll`], [`sysfs`]: what busy polling sets of them, and how it is put back ([`keep`]);
//! - [`irq`]: which CPU has the interrupt of which queue, and moving it;
//! - [`KernelDevice`]: all of it behind the callbacks; [`details`]: printed.

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
