//! The control side: follows the kernel, controls the workers, and answers the command line.
//!
//! Each module uses only those to its left (`tests/tests/layers.rs`):
//! `netlink, process → netdev, nftables, conntrack, xfrm → mirror, firewall → steering → config → api → metrics → daemon, doctor, offline`.

pub mod api;
pub mod config;
pub mod conntrack;
pub mod daemon;
pub mod doctor;
pub mod firewall;
pub mod metrics;
pub mod mirror;
pub mod netdev;
pub mod netlink;
pub mod nftables;
pub mod offline;
pub mod process;
pub mod steering;
pub mod xfrm;
