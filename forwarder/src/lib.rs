//! Ferroute: an AF_XDP router that follows the Linux kernel's control plane.
//!
//! The layers point one way; a module may use only what stands left of it:
//! `wire → skb, stats → fib · neigh · netfilter → tables → pipeline → io → worker → control → cli`.

#![deny(unsafe_code)]
