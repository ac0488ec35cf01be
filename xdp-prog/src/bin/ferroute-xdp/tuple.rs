//! What the tuple of a packet has besides addresses: see [`TupleKind`].

use aya_ebpf::programs::XdpContext;
use xdp_prog::TupleKind;

use crate::steer::{
    IPPROTO_GRE, IPPROTO_TCP, IPPROTO_UDP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, TcpHdr, UdpHdr,
    header,
};

/// The version in the second octet of a GRE header.
const GRE_VERSION: u8 = 0x07;
/// Length of a GRE header without options, octets.
const GRE_LEN: u16 = 4;

/// Source and destination, in network byte order, or what a [`TupleKind`] has instead.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Ports {
    pub source: u16,
    pub destination: u16,
}

/// ICMP or ICMPv6 echo.
#[repr(C)]
pub struct EchoHdr {
    /// Type and code.
    pub kind: u16,
    pub check: u16,
    pub id: u16,
    pub sequence: u16,
}

/// What the tuple of a packet has besides addresses, if its transport header is at `offset` and it has `octets` after its
/// IP header (the frame may have padding after them). `None`: another protocol, a truncated header, ICMP other than echo,
/// or a TCP segment that opens a connection or is invalid.
#[inline(always)]
pub fn ports<const FAMILY: u8>(
    ctx: &XdpContext,
    offset: usize,
    protocol: u8,
    octets: u16,
) -> Option<Ports> {
    if protocol == IPPROTO_TCP {
        let tcp = header::<TcpHdr>(ctx, offset)?;
        let flags = tcp.offset_flags[1] & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK);
        // FIN and RST, too: userspace stops to carry the flow, and knows which RST are invalid.
        let is_of_flow = flags != 0 && flags & TCP_SYN == 0;
        return (is_of_flow && usize::from(octets) >= size_of::<TcpHdr>()).then_some(tcp.ports);
    }
    if protocol == IPPROTO_UDP {
        let udp = header::<UdpHdr>(ctx, offset)?;
        return (usize::from(octets) >= size_of::<UdpHdr>()).then_some(udp.ports);
    }
    match TupleKind::of(protocol, FAMILY)? {
        TupleKind::Echo => {
            let echo = header::<EchoHdr>(ctx, offset)?;
            let kinds = TupleKind::echo_types(FAMILY).map(|kind| u16::from_ne_bytes([kind, 0]));
            let is_echo = kinds.contains(&echo.kind) && usize::from(octets) >= size_of::<EchoHdr>();
            is_echo.then_some(Ports { source: echo.id, destination: echo.kind })
        }
        TupleKind::Addresses => {
            // Other versions have keys.
            let is_plain = protocol != IPPROTO_GRE
                || octets >= GRE_LEN && header::<[u8; 2]>(ctx, offset)?[1] & GRE_VERSION == 0;
            is_plain.then_some(Ports { source: 0, destination: 0 })
        }
        TupleKind::Ports => None,
    }
}
