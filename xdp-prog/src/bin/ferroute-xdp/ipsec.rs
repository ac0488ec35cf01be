//! IPsec packets to the router itself: those of SAs that userspace opens are steered.
//!
//! Only SPIs that can be read directly are looked up. Of fragments only the first has one: those of ESP and AH are steered
//! if there is a key without SPI for their destination and protocol. The kernel gets fragments of UDP, of which later ones
//! do not tell whether they carry ESP, and packets with IP options or IPv6 extension headers before the one of IPsec.
//! Whether a packet is valid is checked in userspace.

use aya_ebpf::{bindings::xdp_md, btf_maps::HashMap, macros::btf_map, programs::XdpContext};
use xdp_prog::{IPSEC_SAS_MAX, Reason, SA_GATE_WORDS, SharedSettings};

use crate::steer::{
    ETH_P_IP, EthHdr, IPPROTO_AH, IPPROTO_UDP, IPV4_FRAGMENT, IPV4_NO_OPTIONS, Ipv4Hdr, Ipv6Hdr,
    NO_PREALLOC, UdpHdr, VlanHdr, header, is_tag, quad,
};

/// A [`xdp_prog::SaGateKey`] in 64-bit words.
type SaWords = [u64; SA_GATE_WORDS];

#[btf_map]
static FR_IPSEC_SAS: HashMap<SaWords, u32, IPSEC_SAS_MAX, NO_PREALLOC> = HashMap::new();

const IPPROTO_ESP: u8 = 50;
/// The UDP port of IKE and ESP behind NAT (RFC 3948).
const UDP_PORT_NATT: u16 = 4500;

/// Tags of a frame that is steered.
const TAGS_MAX: usize = 2;

/// An SPI, in network byte order.
type Spi = [u16; 2];

/// The reserved SPI (RFC 4303 section 2.1), which in UDP marks IKE (RFC 3948 section 2.2). Here also: there is none.
const NO_SPI: Spi = [0, 0];

#[repr(C)]
struct EspHdr {
    spi: Spi,
    sequence: [u16; 2],
}

#[repr(C)]
struct AhHdr {
    next_header_length: [u8; 2],
    reserved: u16,
    spi: Spi,
    sequence: [u16; 2],
}

const IPPROTO_FRAGMENT: u8 = 44;
/// M flag and offset of a Fragment header: 0 if nothing is missing (RFC 6946).
const IPV6_FRAGMENT: u16 = 0xfff9;

/// The Fragment header of IPv6.
#[repr(C)]
struct FragmentHdr {
    next_header_reserved: [u8; 2],
    fragment: u16,
    identification: [u16; 2],
}

/// Decides for a packet to one of the router's own addresses.
#[inline(always)]
pub fn decide_local(ctx: &XdpContext, shared: &SharedSettings) -> Reason {
    if shared.flags & SharedSettings::IPSEC_SAS != 0 && is_of_sa(ctx.ctx) != 0 {
        return Reason::SteerIpsec;
    }
    Reason::PassLocal
}

/// 1 if the packet is of an SA in the map, otherwise 0. A global function, which the verifier follows once, instead of
/// once for each way to each call. It looks for the IP header again: if that were an argument, the verifier would have to
/// follow much of the program before the call once for each number of tags.
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_of_sa(ctx: *mut xdp_md) -> u32 {
    let ctx = &XdpContext::new(ctx);
    let Some(eth) = header::<EthHdr>(ctx, 0) else {
        return 0;
    };
    let (mut ethertype, mut l3) = (eth.ethertype, size_of::<EthHdr>());
    for _ in 0..TAGS_MAX {
        if is_tag(ethertype) {
            let Some(vlan) = header::<VlanHdr>(ctx, l3) else {
                return 0;
            };
            ethertype = vlan.ethertype;
            l3 += size_of::<VlanHdr>();
        }
    }
    let is_ipv4 = ethertype == ETH_P_IP.to_be();
    let is_found = if is_ipv4 { is_of_sa_ipv4(ctx, l3) } else { is_of_sa_ipv6(ctx, l3) };
    is_found.into()
}

#[inline(always)]
fn is_of_sa_ipv4(ctx: &XdpContext, l3: usize) -> bool {
    let Some(ip) = header::<Ipv4Hdr>(ctx, l3) else {
        return false;
    };
    if ip.version_ihl_tos[0] != IPV4_NO_OPTIONS {
        return false;
    }
    let octets = u16::from_be(ip.total_length).saturating_sub(size_of::<Ipv4Hdr>() as u16);
    let protocol = ip.ttl_protocol[1];
    let [high, low] = ip.destination;
    let destination = [quad([high, low, 0, 0]), 0];
    let mut spi_of = NO_SPI;
    if ip.fragment & IPV4_FRAGMENT.to_be() == 0 {
        spi_of = spi(ctx, l3 + size_of::<Ipv4Hdr>(), protocol, octets);
        if spi_of == NO_SPI {
            return false;
        }
    } else if !is_ipsec(protocol) {
        return false;
    }
    is_in_map(destination, spi_of, protocol, 4)
}

#[inline(always)]
fn is_of_sa_ipv6(ctx: &XdpContext, l3: usize) -> bool {
    let Some(ip) = header::<Ipv6Hdr>(ctx, l3) else {
        return false;
    };
    let octets = u16::from_be(ip.payload_length);
    let mut protocol = ip.next_header_hop_limit[0];
    let mut spi_of = NO_SPI;
    if protocol == IPPROTO_FRAGMENT {
        let Some(fragment) = header::<FragmentHdr>(ctx, l3 + size_of::<Ipv6Hdr>()) else {
            return false;
        };
        protocol = fragment.next_header_reserved[0];
        if fragment.fragment & IPV6_FRAGMENT.to_be() == 0 || !is_ipsec(protocol) {
            return false;
        }
    } else {
        spi_of = spi(ctx, l3 + size_of::<Ipv6Hdr>(), protocol, octets);
        if spi_of == NO_SPI {
            return false;
        }
    }
    let [a, b, c, d, e, f, g, h] = ip.destination;
    let destination = [quad([a, b, c, d]), quad([e, f, g, h])];
    is_in_map(destination, spi_of, protocol, 6)
}

/// Whether a fragment with this protocol may be of an IPsec packet.
#[inline(always)]
fn is_ipsec(protocol: u8) -> bool {
    protocol == IPPROTO_ESP || protocol == IPPROTO_AH
}

/// Whether packets with this SPI are steered; `protocol`: that of the packet. [`NO_SPI`]: it is a fragment.
#[inline(always)]
fn is_in_map(destination: [u64; 2], spi: Spi, protocol: u8, family: u8) -> bool {
    let protocol = if protocol == IPPROTO_AH { IPPROTO_AH } else { IPPROTO_ESP };
    let kind = u16::from_ne_bytes([protocol, family]);
    let key: SaWords = [destination[0], destination[1], quad([spi[0], spi[1], kind, 0])];
    // SAFETY: the value is not read, so a concurrent removal is harmless.
    unsafe { FR_IPSEC_SAS.get(&key) }.is_some()
}

/// The SPI of a packet of ESP, AH, or ESP in UDP, which has `octets` after its IP header, at `l4`. [`NO_SPI`]: it is none
/// of these, or truncated. Not an `Option`, whose fields may be undefined.
#[inline(always)]
fn spi(ctx: &XdpContext, l4: usize, protocol: u8, octets: u16) -> Spi {
    if protocol == IPPROTO_AH {
        return match header::<AhHdr>(ctx, l4) {
            Some(ah) if usize::from(octets) >= size_of::<AhHdr>() => ah.spi,
            _ => NO_SPI,
        };
    }
    if protocol == IPPROTO_ESP {
        return spi_of_esp(ctx, l4, octets);
    }
    if protocol != IPPROTO_UDP {
        return NO_SPI;
    }
    match header::<UdpHdr>(ctx, l4) {
        // The kernel trims a packet that is longer than its UDP length: it gets such a packet.
        Some(udp)
            if udp.ports.destination == UDP_PORT_NATT.to_be()
                && u16::from_be(udp.length) == octets =>
        {
            let of_header = size_of::<UdpHdr>();
            spi_of_esp(ctx, l4 + of_header, octets.saturating_sub(of_header as u16))
        }
        _ => NO_SPI,
    }
}

/// The SPI of `octets` octets of ESP. As in UDP (`__xfrm4_udp_encap_rcv`), they are more than a header: a keepalive is one
/// octet.
#[inline(always)]
fn spi_of_esp(ctx: &XdpContext, offset: usize, octets: u16) -> Spi {
    match header::<EspHdr>(ctx, offset) {
        Some(esp) if usize::from(octets) > size_of::<EspHdr>() => esp.spi,
        _ => NO_SPI,
    }
}
