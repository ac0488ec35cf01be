//! The IP header of a packet, read once for all stages that use it.

use std::net::Ipv6Addr;

use crate::skb::SkBuff;
use crate::wire::Protocol;
use crate::wire::ipv4::{HEADER_LEN_MIN, Ipv4Packet};
use crate::wire::ipv6::{HEADER_LEN, Ipv6Packet};

/// The fixed part of an IPv4 header (`struct iphdr`), in host byte order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Iphdr {
    pub saddr: u32,
    pub daddr: u32,
    /// Length of header and payload, octets.
    pub tot_len: u16,
    /// Length of the header, octets.
    pub header_len: u8,
    pub tos: u8,
    pub ttl: u8,
    pub protocol: Protocol,
}

impl Iphdr {
    /// The header of a packet that passed `ip_rcv_core`.
    #[inline]
    pub fn of(skb: &SkBuff) -> Iphdr {
        let packet = skb.network_header();
        match packet.first_chunk::<HEADER_LEN_MIN>() {
            Some(fixed) => Iphdr::read(fixed),
            None => Iphdr::read(&[0; HEADER_LEN_MIN]),
        }
    }

    #[inline]
    pub fn read(fixed: &[u8; HEADER_LEN_MIN]) -> Iphdr {
        let ipv4 = Ipv4Packet::new_unchecked(fixed);
        Iphdr {
            saddr: ipv4.src_addr().to_bits(),
            daddr: ipv4.dst_addr().to_bits(),
            tot_len: ipv4.total_len(),
            header_len: ipv4.header_len() as u8,
            tos: ipv4.tos(),
            ttl: ipv4.ttl(),
            protocol: ipv4.protocol(),
        }
    }

    /// Whether the header has options.
    #[inline]
    pub fn has_options(&self) -> bool {
        usize::from(self.header_len) > HEADER_LEN_MIN
    }
}

/// The fixed IPv6 header (`struct ipv6hdr`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Ipv6hdr {
    pub saddr: Ipv6Addr,
    pub daddr: Ipv6Addr,
    pub next_header: Protocol,
    pub hop_limit: u8,
    /// Length of the whole packet, octets.
    pub len: usize,
}

impl Ipv6hdr {
    /// The header of a packet that passed `ip6_rcv_core`.
    #[inline]
    pub fn of(skb: &SkBuff) -> Ipv6hdr {
        let fixed = skb.network_chunk::<HEADER_LEN>().unwrap_or(&[0; HEADER_LEN]);
        let ipv6 = Ipv6Packet::new_unchecked(fixed);
        Ipv6hdr {
            saddr: ipv6.src_addr(),
            daddr: ipv6.dst_addr(),
            next_header: ipv6.next_header(),
            hop_limit: ipv6.hop_limit(),
            len: skb.network_len(),
        }
    }
}
