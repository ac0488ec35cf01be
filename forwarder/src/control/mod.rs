//! The control side: what it asks of the kernel, what it tells the workers, and what it answers to
//! the command line.

pub mod api;
pub mod capture;
pub mod client;
pub mod config;
pub mod daemon;
pub mod device;
pub mod doctor;
pub mod firewall;
pub mod interfaces;
pub mod ipnet;
pub mod mirror;
pub mod nic;
pub mod nlsock;
pub mod privilege;
pub mod punt;
pub mod replay;
pub mod server;
pub mod static_network;
pub mod xdp;
