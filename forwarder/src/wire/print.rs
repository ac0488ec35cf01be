//! Packets in one line, in the format of tcpdump: `{}` as `tcpdump -n` prints them, `{:#}` with the IP
//! header's fields as `tcpdump -nv` does, but in one line.
//!
//! Intended differences from tcpdump without `-v`: an IPv4 fragment shows its offset, a later fragment
//! its protocol. Sequence numbers are absolute, as with `-S`; TCP options are omitted.
//!
//! For traces and tests; not used on the data path unless a packet is traced.

use std::fmt::{self, Display, Formatter};

use super::octets::{get_u8, get_u32, slice};
use super::{
    ArpPacket, EtherType, Icmpv4Packet, Icmpv6Packet, Ipv4Packet, Ipv6Packet, Protocol, TcpPacket,
    UdpPacket, VlanTag, checksum, ipv6, ipv6_ext, tcp, udp,
};

/// Maximum number of stacked VLAN tags that are printed.
const MAX_TAGS: usize = 4;

/// Prints the payload of an Ethernet frame.
pub(super) fn ethertype(
    f: &mut Formatter<'_>,
    mut ethertype: EtherType,
    mut payload: &[u8],
) -> fmt::Result {
    for _ in 0..MAX_TAGS {
        if !ethertype.is_vlan() {
            break;
        }
        let tag = VlanTag::new_unchecked(payload);
        write!(f, "{tag}, ")?;
        ethertype = tag.ethertype();
        payload = slice(payload, super::vlan::HEADER_LEN, usize::MAX);
    }
    match ethertype {
        EtherType::IPV4 => Ipv4Packet::new_unchecked(payload).fmt(f),
        EtherType::IPV6 => Ipv6Packet::new_unchecked(payload).fmt(f),
        EtherType::ARP => ArpPacket::new_unchecked(payload).fmt(f),
        _ => write!(f, "length {}", payload.len()),
    }
}

impl<T: AsRef<[u8]>> Display for Ipv4Packet<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Err(error) = self.check_len() {
            return write!(f, "IP [{error}]");
        }
        f.write_str("IP ")?;
        if f.alternate() {
            self.fmt_verbose(f)?;
        }
        let (src, dst) = (self.src_addr(), self.dst_addr());
        if self.is_first_fragment() {
            upper_layer(f, &src, &dst, self.protocol(), self.payload())?;
        } else {
            write!(f, "{src} > {dst}: {}", self.protocol())?;
        }
        if self.is_fragment() {
            let more = if self.more_frags() { "+" } else { "" };
            let (id, len, offset) = (self.ident(), self.payload().len(), self.frag_offset());
            write!(f, " (frag {id}:{len}@{offset}{more})")?;
        }
        Ok(())
    }
}

impl<T: AsRef<[u8]>> Ipv4Packet<T> {
    fn fmt_verbose(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let flags = match (self.dont_frag(), self.more_frags()) {
            (false, false) => "none",
            (true, false) => "DF",
            (false, true) => "+",
            (true, true) => "+, DF",
        };
        let (tos, ttl, id, offset) = (self.tos(), self.ttl(), self.ident(), self.frag_offset());
        write!(f, "(tos {tos:#x}, ttl {ttl}, id {id}, offset {offset}, flags [{flags}], ")?;
        let (protocol, len) = (self.protocol(), self.total_len());
        write!(f, "proto {protocol} ({}), length {len}", protocol.0)?;
        if !self.option_octets().is_empty() {
            f.write_str(", options (")?;
            for (index, option) in self.options().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                match option {
                    Ok(option) => write!(f, "{comma}{}", option.kind.0)?,
                    Err(error) => write!(f, "{comma}{error}")?,
                }
            }
            f.write_str(")")?;
        }
        if !self.verify_checksum() {
            let others = checksum::ones_complement_sum(self.header()) + u32::from(!self.checksum());
            let right = !checksum::fold(others);
            write!(f, ", bad cksum {:x} (->{right:x})!", self.checksum())?;
        }
        f.write_str(") ")
    }
}

impl<T: AsRef<[u8]>> Display for Ipv6Packet<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Err(error) = self.check_len() {
            return write!(f, "IP6 [{error}]");
        }
        f.write_str("IP6 ")?;
        if f.alternate() {
            let (class, label, hlim) = (self.traffic_class(), self.flow_label(), self.hop_limit());
            let (next, len) = (self.next_header(), self.payload_len());
            write!(f, "(class {class:#04x}, flowlabel {label:#07x}, hlim {hlim}, ")?;
            write!(f, "next-header {next} ({}), payload length: {len}) ", next.0)?;
        }
        let (src, dst) = (self.src_addr(), self.dst_addr());
        let upper = match self.upper_layer() {
            Ok(upper) => upper,
            Err(error) => {
                return write!(f, "{src} > {dst}: {} [{error}]", self.next_header());
            }
        };
        let payload = slice(self.as_octets(), upper.offset, self.total_len());
        if upper.offset == ipv6::HEADER_LEN {
            return upper_layer(f, &src, &dst, upper.protocol, payload);
        }
        write!(f, "{src} > {dst}: ")?;
        Extensions { packet: self.as_octets(), upper, len: payload.len() }.fmt(f)?;
        if upper.later_fragment() {
            return upper.protocol.fmt(f);
        }
        behind_addrs(f, upper.protocol, payload)
    }
}

/// The extension headers, each followed by a space.
struct Extensions<'a> {
    packet: &'a [u8],
    upper: ipv6_ext::UpperLayer,
    len: usize,
}

impl Display for Extensions<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut header = Protocol(get_u8(self.packet, ipv6::NEXT_HEADER_OFFSET));
        let mut offset = ipv6::HEADER_LEN;
        // The headers have been parsed before: each iteration is an extension header.
        while offset < self.upper.offset && ipv6_ext::is_ext_header(header) {
            let units = usize::from(get_u8(self.packet, offset + 1));
            let len = match (header, self.upper.fragment) {
                (Protocol::FRAGMENT, Some(fragment)) => {
                    write!(f, "frag ({}|{}) ", fragment.offset, self.len)?;
                    ipv6_ext::FRAGMENT_HEADER_LEN
                }
                (Protocol::AH, _) => {
                    write!(f, "AH(spi={:#010x}) ", get_u32(self.packet, offset + 4..offset + 8))?;
                    (units + 2) * 4
                }
                (Protocol::ROUTING, _) => {
                    let segments_left = get_u8(self.packet, offset + 3);
                    write!(f, "RT6 (type={}, ", get_u8(self.packet, offset + 2))?;
                    write!(f, "segleft={segments_left}) ")?;
                    (units + 1) * 8
                }
                _ => {
                    write!(f, "{header} ")?;
                    (units + 1) * 8
                }
            };
            header = Protocol(get_u8(self.packet, offset));
            offset += len;
        }
        Ok(())
    }
}

/// Addresses, with ports if there are any, then the upper layer.
fn upper_layer(
    f: &mut Formatter<'_>,
    src: &dyn Display,
    dst: &dyn Display,
    protocol: Protocol,
    payload: &[u8],
) -> fmt::Result {
    match protocol {
        Protocol::UDP if payload.len() >= udp::HEADER_LEN => {
            let udp = UdpPacket::new_unchecked(payload);
            write!(f, "{src}.{} > {dst}.{}: ", udp.src_port(), udp.dst_port())?;
            udp.fmt_behind_ports(f)
        }
        Protocol::TCP if payload.len() >= tcp::HEADER_LEN_MIN => {
            let tcp = TcpPacket::new_unchecked(payload);
            write!(f, "{src}.{} > {dst}.{}: ", tcp.src_port(), tcp.dst_port())?;
            tcp.fmt_behind_ports(f)
        }
        _ => {
            write!(f, "{src} > {dst}: ")?;
            behind_addrs(f, protocol, payload)
        }
    }
}

/// The upper layer after addresses and extension headers; ports, if there are any, are printed here.
fn behind_addrs(f: &mut Formatter<'_>, protocol: Protocol, payload: &[u8]) -> fmt::Result {
    match protocol {
        Protocol::ICMP => match Icmpv4Packet::new_checked(payload) {
            Ok(icmp) => icmp.fmt(f),
            Err(_) => f.write_str("[|icmp]"),
        },
        Protocol::ICMPV6 => match Icmpv6Packet::new_checked(payload) {
            Ok(icmp) => icmp.fmt(f),
            Err(_) => f.write_str("[|icmp6]"),
        },
        Protocol::TCP if payload.len() >= tcp::HEADER_LEN_MIN => {
            TcpPacket::new_unchecked(payload).fmt(f)
        }
        Protocol::TCP => f.write_str("[|tcp]"),
        Protocol::UDP if payload.len() >= udp::HEADER_LEN => {
            UdpPacket::new_unchecked(payload).fmt(f)
        }
        Protocol::UDP => f.write_str("[|udp]"),
        Protocol::ESP if payload.len() >= 8 => {
            let (spi, seq) = (get_u32(payload, 0..4), get_u32(payload, 4..8));
            write!(f, "ESP(spi={spi:#010x},seq={seq:#x}), length {}", payload.len())
        }
        Protocol::NO_NEXT_HEADER => f.write_str("no next header"),
        _ => write!(f, "{protocol}, length {}", payload.len()),
    }
}

/// The destination port of a quoted packet, for "port unreachable" lines.
pub(super) fn port(f: &mut Formatter<'_>, protocol: Protocol, payload: &[u8]) -> fmt::Result {
    let port = UdpPacket::new_unchecked(payload).dst_port();
    match protocol {
        Protocol::UDP => write!(f, "udp port {port}"),
        Protocol::TCP => write!(f, "tcp port {port}"),
        Protocol(number) => write!(f, "protocol {number} port {port}"),
    }
}
