//! Ports that are queues of network interfaces.

pub mod link;
