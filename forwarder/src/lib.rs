//! Ferroute: an AF_XDP router that follows the Linux kernel's control plane.
//!
//! A module may use only modules to the left of it in this order of layers:
//! `wire, hash_table → skb, stats → fib · neigh · ipsec · capture → trace → tables → netfilter → pipeline → io → worker → histogram → control → load → cli`.

#![deny(missing_docs, unsafe_code)]

pub mod capture;
pub mod cli;
pub mod control;
pub mod fib;
pub mod hash_table;
pub mod histogram;
pub mod io;
pub mod ipsec;
pub mod load;
pub mod neigh;
pub mod netfilter;
pub mod pipeline;
pub mod skb;
pub mod stats;
pub mod tables;
pub mod trace;
pub mod wire;
pub mod worker;
