//! Builds packets octet by octet, valid or invalid as required, and describes frames in one line.
//!
//! It deliberately shares nothing with the forwarder's header code: both must agree through the standards,
//! not by construction.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

pub const ETH_LEN: usize = 14;
pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

/// The Internet checksum (RFC 1071) of `octets`, as stored in a header.
pub fn checksum(octets: &[u8]) -> u16 {
    fold(sum(octets))
}

fn sum(octets: &[u8]) -> u32 {
    let words = octets.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    });
    words.sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// An Ethernet frame.
pub fn ethernet(dst: [u8; 6], src: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETH_LEN + payload.len());
    frame.extend(dst);
    frame.extend(src);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Fields of an IPv4 header; those that can be computed may be overridden.
#[derive(Debug, Clone)]
pub struct Ipv4 {
    pub version: u8,
    /// In words of 4 octets; `None`: the actual length.
    pub ihl: Option<u8>,
    pub tos: u8,
    /// In octets; `None`: the actual length.
    pub total_len: Option<u16>,
    pub id: u16,
    pub df: bool,
    pub mf: bool,
    /// The bit that must be zero.
    pub reserved: bool,
    /// In units of 8 octets.
    pub offset: u16,
    pub ttl: u8,
    pub protocol: u8,
    /// Added to the correct checksum.
    pub checksum_error: u16,
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    /// A multiple of 4 octets, at most 40.
    pub options: Vec<u8>,
}

impl Ipv4 {
    /// A plain header.
    pub fn new(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8) -> Self {
        Self {
            version: 4,
            ihl: None,
            tos: 0,
            total_len: None,
            id: 0,
            df: false,
            mf: false,
            reserved: false,
            offset: 0,
            ttl: 64,
            protocol,
            checksum_error: 0,
            src,
            dst,
            options: Vec::new(),
        }
    }

    /// The whole packet.
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let ihl = self.ihl.unwrap_or((header_len / 4) as u8);
        let total_len = self.total_len.unwrap_or((header_len + payload.len()) as u16);
        let flags = u16::from(self.reserved) << 15
            | u16::from(self.df) << 14
            | u16::from(self.mf) << 13
            | (self.offset & 0x1fff);
        let mut packet = vec![self.version << 4 | (ihl & 15), self.tos];
        packet.extend(total_len.to_be_bytes());
        packet.extend(self.id.to_be_bytes());
        packet.extend(flags.to_be_bytes());
        packet.extend([self.ttl, self.protocol, 0, 0]);
        packet.extend(self.src.octets());
        packet.extend(self.dst.octets());
        packet.extend(&self.options);
        let check = checksum(&packet).wrapping_add(self.checksum_error);
        packet[10..12].copy_from_slice(&check.to_be_bytes());
        packet.extend(payload);
        packet
    }
}

/// Fields of an IPv6 header; the length may be overridden.
#[derive(Debug, Clone)]
pub struct Ipv6 {
    pub version: u8,
    pub traffic_class: u8,
    pub flow_label: u32,
    /// In octets; `None`: the actual length.
    pub payload_len: Option<u16>,
    pub next_header: u8,
    pub hop_limit: u8,
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
}

impl Ipv6 {
    /// A plain header.
    pub fn new(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8) -> Self {
        Self {
            version: 6,
            traffic_class: 0,
            flow_label: 0,
            payload_len: None,
            next_header,
            hop_limit: 64,
            src,
            dst,
        }
    }

    /// The whole packet.
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let first = u32::from(self.version) << 28
            | u32::from(self.traffic_class) << 20
            | (self.flow_label & 0xf_ffff);
        let mut packet = first.to_be_bytes().to_vec();
        packet.extend(self.payload_len.unwrap_or(payload.len() as u16).to_be_bytes());
        packet.extend([self.next_header, self.hop_limit]);
        packet.extend(self.src.octets());
        packet.extend(self.dst.octets());
        packet.extend(payload);
        packet
    }
}

/// The pseudo-header's sum for either family.
fn pseudo(src: &[u8], dst: &[u8], protocol: u8, len: usize) -> u32 {
    sum(src) + sum(dst) + u32::from(protocol) + len as u32
}

/// A UDP datagram with its checksum over the given addresses (4 or 16 octets each).
pub fn udp(src: &[u8], dst: &[u8], ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    let len = 8 + data.len();
    let mut datagram = Vec::with_capacity(len);
    datagram.extend(ports.0.to_be_bytes());
    datagram.extend(ports.1.to_be_bytes());
    datagram.extend((len as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    let check = fold(sum(&datagram) + pseudo(src, dst, UDP, len));
    // Zero would mean "no checksum".
    let check = if check == 0 { 0xffff } else { check };
    datagram[6..8].copy_from_slice(&check.to_be_bytes());
    datagram
}

/// A TCP segment without options.
pub fn tcp(src: &[u8], dst: &[u8], ports: (u16, u16), flags: u8, data: &[u8]) -> Vec<u8> {
    let len = 20 + data.len();
    let mut segment = Vec::with_capacity(len);
    segment.extend(ports.0.to_be_bytes());
    segment.extend(ports.1.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, flags, 0x20, 0, 0, 0, 0, 0]);
    segment.extend(data);
    let check = fold(sum(&segment) + pseudo(src, dst, TCP, len));
    segment[16..18].copy_from_slice(&check.to_be_bytes());
    segment
}

/// A TCP segment with its checksum over the given addresses (4 or 16 octets each). `numbers`: sequence and
/// acknowledgement number; `options`: a multiple of 4 octets, at most 40. The window is 65,535.
pub fn tcp_segment(
    src: &[u8],
    dst: &[u8],
    ports: (u16, u16),
    numbers: (u32, u32),
    flags: u8,
    options: &[u8],
    data: &[u8],
) -> Vec<u8> {
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    segment.extend(numbers.0.to_be_bytes());
    segment.extend(numbers.1.to_be_bytes());
    let words = 5 + options.len() / 4;
    segment.extend([(words as u8) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(options);
    segment.extend(data);
    let check = fold(sum(&segment) + pseudo(src, dst, TCP, segment.len()));
    segment[16..18].copy_from_slice(&check.to_be_bytes());
    segment
}

/// An ICMP message; `rest` are the octets between the checksum and the data.
pub fn icmp(kind: u8, code: u8, rest: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest);
    message.extend(data);
    let check = checksum(&message);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    message
}

/// An ICMPv6 message, with the checksum over its pseudo-header.
pub fn icmpv6(src: Ipv6Addr, dst: Ipv6Addr, message: (u8, u8, [u8; 4]), data: &[u8]) -> Vec<u8> {
    let mut octets = vec![message.0, message.1, 0, 0];
    octets.extend(message.2);
    octets.extend(data);
    let pseudo = pseudo(&src.octets(), &dst.octets(), ICMPV6, octets.len());
    let check = fold(sum(&octets) + pseudo);
    octets[2..4].copy_from_slice(&check.to_be_bytes());
    octets
}

/// A 16-bit field of a frame, if the frame has it.
pub fn be16(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?))
}

/// A line about a frame, then its octets in hex, 32 per line.
pub fn describe(frame: &[u8]) -> String {
    let mut text = summary(frame);
    for (row, octets) in frame.chunks(32).take(5).enumerate() {
        let _ = write!(text, "\n    {:04x} ", row * 32);
        for (column, octet) in octets.iter().enumerate() {
            let blank = if column % 8 == 0 { " " } else { "" };
            let _ = write!(text, "{blank}{octet:02x}");
        }
    }
    text
}

/// One line about a frame.
pub fn summary(frame: &[u8]) -> String {
    let network = frame.get(ETH_LEN..).unwrap_or_default();
    match be16(frame, 12) {
        Some(ETHERTYPE_IPV4) => summary4(network),
        Some(ETHERTYPE_IPV6) => summary6(network),
        Some(other) => format!("ethertype {other:#06x}, {} octets", frame.len()),
        None => format!("{} octets", frame.len()),
    }
}

fn summary4(packet: &[u8]) -> String {
    let Some(header) = packet.first_chunk::<20>() else {
        return format!("IPv4, cut off after {} octets", packet.len());
    };
    let address =
        |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    let header_len = usize::from(header[0] & 15) * 4;
    let flags = u16::from_be_bytes([header[6], header[7]]);
    let (df, mf) = (if flags & 0x4000 != 0 { " DF" } else { "" }, flags & 0x2000 != 0);
    let mut text = format!(
        "IPv4 {} > {} proto {} ttl {} id {} len {} (has {}) ihl {}{df}{} off {}",
        address(12),
        address(16),
        header[9],
        header[8],
        u16::from_be_bytes([header[4], header[5]]),
        u16::from_be_bytes([header[2], header[3]]),
        packet.len(),
        header[0] & 15,
        if mf { " MF" } else { "" },
        flags & 0x1fff,
    );
    if header_len >= 20 && packet.get(..header_len).is_some_and(|h| checksum(h) != 0) {
        text.push_str(" bad checksum");
    }
    if header[9] == ICMP
        && let Some([kind, code, ..]) = packet.get(header_len..)
    {
        let _ = write!(text, " icmp {kind}/{code}");
    }
    text
}

fn summary6(packet: &[u8]) -> String {
    let Some(header) = packet.first_chunk::<40>() else {
        return format!("IPv6, cut off after {} octets", packet.len());
    };
    let address = |at: usize| {
        let octets: [u8; 16] = std::array::from_fn(|i| header[at + i]);
        Ipv6Addr::from(octets)
    };
    let mut text = format!(
        "IPv6 {} > {} next {} hops {} flow {:#x} payload {} (has {})",
        address(8),
        address(24),
        header[6],
        header[7],
        u32::from_be_bytes([0, header[1] & 15, header[2], header[3]]),
        u16::from_be_bytes([header[4], header[5]]),
        packet.len() - 40,
    );
    if header[6] == ICMPV6
        && let Some([kind, code, ..]) = packet.get(40..)
    {
        let _ = write!(text, " icmp6 {kind}/{code}");
    }
    text
}
