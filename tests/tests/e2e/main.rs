//! End-to-end tests of Ferroute in namespaces, with the tools that users have.
//!
//! Every test builds its own lab. The tests need root, are ignored otherwise, and are run by
//! `scripts/test`; `scripts/test --e2e NAME` runs those whose name contains NAME. Comparing packet by
//! packet with the kernel is left out; the oracle does that.

#![forbid(unsafe_code)]

mod accounting;
mod advice;
mod api;
mod bench;
mod capture;
mod conntrack;
mod control_clients;
mod decided;
mod devices;
mod ecmp;
mod faults;
mod files;
mod filters;
mod flow_list;
mod flows;
mod flowtable;
mod follow;
mod full_table;
mod hops;
mod jumbo;
mod latency;
mod left;
mod life;
mod load;
mod log;
mod metrics;
mod mtu;
mod names;
mod nat;
mod neighbours;
mod netdev;
mod new_hosts;
mod offload;
mod offload_soak;
mod patterns;
mod policy;
mod polling;
mod portless;
mod privilege;
mod queues;
mod ra_flood;
mod refuse;
mod reload;
mod rules;
mod service;
mod soak;
mod sockets;
mod stall;
mod start;
mod tcp;
mod tools;
mod top;
mod trace;
mod wrong;
mod xfrm;
mod xfrm_file;
mod xfrm_list;
mod xsk_rs;
