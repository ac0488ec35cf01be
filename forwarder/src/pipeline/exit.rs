//! How a stage of the data path ends the processing of a packet.
//!
//! Every stage returns `Result<_, Exit>`. An exit is handled in one place, `handle_exit` in the parent
//! module.

use crate::stats::{DropReason, PuntReason};

/// Why a packet is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It is dropped without an ICMP error.
    Drop(DropReason),
    /// It is dropped and an ICMP error is sent, as far as the rules for ICMP errors allow.
    Icmp(IcmpError),
    /// It is handed back to the kernel, as it was received.
    Punt(PuntReason),
    /// It is a fragment, which waits for the others in a queue. In its place is an empty packet.
    Held,
}

/// An ICMP or ICMPv6 error; the family is that of the packet it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpError {
    /// The ICMP type.
    pub icmp_type: u8,
    /// The ICMP code.
    pub code: u8,
    /// The second word of the ICMP header, in host byte order: MTU or pointer, depending on the type.
    pub info: u32,
    /// The drop reason to count.
    pub reason: DropReason,
}

impl IcmpError {
    /// An error whose second word is unused.
    pub const fn new(icmp_type: u8, code: u8, reason: DropReason) -> IcmpError {
        IcmpError { icmp_type, code, info: 0, reason }
    }

    /// An error with a second word.
    pub const fn with_info(icmp_type: u8, code: u8, info: u32, reason: DropReason) -> IcmpError {
        IcmpError { icmp_type, code, info, reason }
    }
}
