//! Ferroute: an AF_XDP router that follows the Linux kernel's control plane.
//!
//! The layers point one way; a module may use only what stands left of it:
//! `wire → skb, stats → fib · neigh · netfilter · ipsec · capture → tables → pipeline → io → worker → hdr → control → load → cli`.

#![deny(unsafe_code)]

pub mod capture;
pub mod cli;
pub mod control;
pub mod fib;
pub mod histogram;
pub mod io;
pub mod load;
pub mod neigh;
pub mod netfilter;
pub mod pipeline;
pub mod skb;
pub mod stats;
pub mod tables;
pub mod wire;
pub mod worker;
