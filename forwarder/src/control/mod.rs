//! The control side: what it asks of the kernel, what it tells the workers, and what it answers to
//! the command line.
//!
//! Each room uses only those that stand left of it (`tests/tests/layers.rs`):
//! `netlink, process → netdev → mirror, firewall → steering → config → api → daemon, doctor, offline`.

pub mod api;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod firewall;
pub mod mirror;
pub mod netdev;
pub mod netlink;
pub mod offline;
pub mod process;
pub mod steering;
