//! What is recorded of a packet: plain data, with interfaces, rules and reasons by number.

use std::net::IpAddr;

use crate::stats::{DropReason, PuntReason};

/// Octets that are kept of a value: two IPv6 addresses and two ports.
pub const VALUE_MAX: usize = 40;

/// A stage of the data path, with the name that ARCHITECTURE.md has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The sub-interface is found.
    EthInput,
    /// Checks of an IPv4 header.
    IpRcvCore,
    /// Checks of an IPv6 header.
    Ip6RcvCore,
    /// The IPv4 routing decision.
    IpRouteInput,
    /// The IPv6 routing decision.
    Ip6RouteInput,
    /// IPv4 options.
    IpRcvOptions,
    /// Fragments of an IPsec packet to this host are put together.
    IpDefrag,
    /// The protection of IPsec is removed.
    XfrmInput,
    /// The packet leaves by an xfrm interface.
    XfrmiXmit,
    /// The packet is protected by IPsec.
    XfrmOutput,
    /// TTL and MTU, IPv4.
    IpForwardChecks,
    /// Hop limit and MTU, IPv6.
    Ip6ForwardChecks,
    /// The TTL is decremented.
    IpForward,
    /// The hop limit is decremented.
    Ip6Forward,
    /// A hook, by its NF_INET_* number.
    Hook(u8),
    /// The neighbour is found.
    NeighOutput,
    /// An ICMP error is made.
    IcmpSend,
    /// An ICMPv6 error is made.
    Icmp6Send,
}

impl Stage {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Stage::EthInput => "eth_input",
            Stage::IpRcvCore => "ip_rcv_core",
            Stage::Ip6RcvCore => "ip6_rcv_core",
            Stage::IpRouteInput => "ip_route_input",
            Stage::Ip6RouteInput => "ip6_route_input",
            Stage::IpRcvOptions => "ip_rcv_options",
            Stage::IpDefrag => "ip_defrag",
            Stage::XfrmInput => "xfrm_input",
            Stage::XfrmiXmit => "xfrmi_xmit",
            Stage::XfrmOutput => "xfrm_output",
            Stage::IpForwardChecks => "ip_forward_checks",
            Stage::Ip6ForwardChecks => "ip6_forward_checks",
            Stage::IpForward => "ip_forward",
            Stage::Ip6Forward => "ip6_forward",
            Stage::Hook(0) => "PRE_ROUTING",
            Stage::Hook(1) => "LOCAL_IN",
            Stage::Hook(2) => "FORWARD",
            Stage::Hook(3) => "LOCAL_OUT",
            Stage::Hook(5) => "INGRESS",
            Stage::Hook(_) => "POST_ROUTING",
            Stage::NeighOutput => "neigh_output",
            Stage::IcmpSend => "icmp_send",
            Stage::Icmp6Send => "icmp6_send",
        }
    }
}

/// A step on the way of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A stage begins; the steps up to the next one are its.
    Stage(Stage),
    /// The input interface.
    Dev {
        /// Its ifindex.
        ifindex: u32,
    },
    /// The header passed the checks.
    Header {
        /// TTL or hop limit.
        ttl: u8,
        /// Length from the IP header on, octets.
        len: u32,
    },
    /// The route.
    Route {
        /// The destination that was looked up.
        daddr: IpAddr,
        /// The gateway; `None`: the destination is on the link.
        gateway: Option<IpAddr>,
        /// ifindex of the output interface.
        oif: u32,
        /// IP MTU of the route, octets.
        mtu: u32,
    },
    /// The TTL or hop limit after decrementing.
    Ttl(u8),
    /// The packet's connection.
    Conntrack(Conntrack),
    /// An address and port were translated.
    Nat {
        /// Whether it is the source.
        is_source: bool,
        /// Before.
        from: Endpoint,
        /// After.
        to: Endpoint,
    },
    /// Only the kernel can translate the packet.
    NatLeft,
    /// A base chain begins, by its number in the program.
    BaseChain(u32),
    /// A rule was evaluated.
    Rule {
        /// Its number in the program.
        step: u32,
        /// The number in the program of the operation that decided; without meaning for
        /// [`RuleResult::Passed`].
        op: u32,
        /// What it decided.
        result: RuleResult,
    },
    /// Rules that did not match and for which the record had no room.
    Omitted {
        /// Their number.
        rules: u32,
    },
    /// The end of a chain was reached.
    ChainEnd,
    /// The policy of the base chain decided.
    Policy {
        /// Whether it is drop.
        is_drop: bool,
    },
    /// The base chain left the packet to the kernel, for the reason with this number in the program.
    Left(u32),
    /// The verdict of a hook function that a program registered.
    Function(FunctionVerdict),
    /// The neighbour.
    Neigh {
        /// Its address.
        addr: IpAddr,
        /// Its link-layer address; `None`: not known.
        lladdr: Option<[u8; 6]>,
        /// ifindex of the output interface.
        oif: u32,
    },
    /// An ICMP or ICMPv6 error is due.
    Icmp {
        /// The type.
        icmp_type: u8,
        /// The code.
        code: u8,
        /// The second word of the ICMP header: MTU or pointer.
        info: u32,
    },
    /// The error was not sent: rate limits, or a packet about which no error may be sent.
    NoIcmp,
}

/// The connection of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conntrack {
    /// Of an established connection that is carried.
    Established {
        /// Number of the flow.
        flow: u32,
        /// Whether the packet is of the reply direction.
        is_reply: bool,
        /// `ct->mark`.
        mark: u32,
    },
    /// Invalid.
    Invalid,
    /// Not of a connection that is carried.
    NotCarried,
}

/// What a rule decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleResult {
    /// An expression did not match; with the value that it compared, empty if the packet has none.
    NoMatch(Value),
    /// All expressions matched, without a verdict.
    Passed,
    /// NF_ACCEPT.
    Accept,
    /// NF_DROP.
    Drop,
    /// NFT_RETURN.
    Return,
    /// NFT_JUMP to a chain, by its number in the program.
    Jump(u32),
    /// NFT_GOTO a chain, by its number in the program.
    Goto(u32),
    /// Left to the kernel.
    Kernel,
}

/// The verdict of a hook function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FunctionVerdict {
    /// NF_ACCEPT.
    Accept,
    /// NF_DROP, NF_QUEUE, or NF_REPEAT too often.
    Drop,
    /// NF_STOLEN.
    Stolen,
    /// Left to the kernel.
    Punt,
}

/// Octets of a packet, as a register has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value {
    octets: [u8; VALUE_MAX],
    len: u8,
}

impl Value {
    /// The first [`VALUE_MAX`] of some octets.
    pub fn new(from: &[u8]) -> Value {
        let mut octets = [0; VALUE_MAX];
        let len = from.len().min(VALUE_MAX);
        octets.iter_mut().zip(from).for_each(|(to, octet)| *to = *octet);
        Value { octets, len: len as u8 }
    }

    /// The octets.
    pub fn octets(&self) -> &[u8] {
        self.octets.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

/// How a packet ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalDisposition {
    /// Put on the TX ring of a port, or handed to the worker that sends there.
    Sent {
        /// The port.
        port: u16,
        /// ifindex of the port.
        ifindex: u32,
    },
    /// Dropped.
    Dropped(DropReason),
    /// Dropped, and its sender was sent an ICMP or ICMPv6 error.
    IcmpError {
        /// Whether it is ICMPv6.
        is_ipv6: bool,
        /// The type.
        icmp_type: u8,
        /// The code.
        code: u8,
        /// The drop reason.
        reason: DropReason,
    },
    /// Handed to the kernel.
    Kernel(PuntReason),
    /// Held until the neighbour is resolved.
    Held {
        /// The neighbour's address.
        addr: IpAddr,
        /// ifindex of its interface.
        oif: u32,
    },
    /// A fragment of an IPsec packet to this host, held until the others have arrived.
    HeldFragment,
    /// Cut into fragments, which were queued for sending.
    Fragmented {
        /// Their number.
        fragments: u32,
        /// ifindex of the output interface.
        oif: u32,
    },
}

/// An end of a packet, as NAT translates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// Address and port.
    Port(IpAddr, u16),
    /// Address and identifier of ICMP echo.
    Echo(IpAddr, u16),
    /// The address: there is nothing else.
    Address(IpAddr),
}
