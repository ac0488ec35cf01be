//! Ferroute as its users see it: in namespaces, with the tools they use.
//!
//! Every test builds a lab of its own. They need root, are ignored otherwise, and are run by
//! `scripts/test`; `scripts/test --e2e NAME` runs those whose name contains NAME. Left out:
//! comparing packet by packet with the kernel, which the oracle does.

#![forbid(unsafe_code)]

mod accounting;
mod bench;
mod capture;
mod control_clients;
mod devices;
mod faults;
mod files;
mod filters;
mod follow;
mod full_table;
mod hops;
mod jumbo;
mod latency;
mod left;
mod life;
mod load;
mod mtu;
mod names;
mod neighbours;
mod patterns;
mod policy;
mod polling;
mod privilege;
mod queues;
mod refuse;
mod soak;
mod sockets;
mod stall;
mod start;
mod tcp;
mod wrong;
mod xsk_rs;
