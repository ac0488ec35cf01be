//! Simple independent parsing of headers, so that the invariants do not depend on the code that they check.
//! Offsets and lengths are in octets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Maximum number of tags that are skipped.
const TAGS_MAX: usize = 8;
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// An Ethernet frame.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    /// Destination and source address.
    pub macs: [[u8; 6]; 2],
    /// TPID and tag control information, the outermost first.
    pub tags: Vec<(u16, u16)>,
    /// After the tags.
    pub ethertype: u16,
    /// Offset of the packet.
    pub header_len: usize,
    /// After the EtherType.
    pub payload: &'a [u8],
}

/// 16 bits in network byte order; 0 beyond the end.
pub fn be16(octets: &[u8], at: usize) -> u16 {
    octets.get(at..at + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]))
}

impl<'a> Frame<'a> {
    /// `None`: shorter than its header.
    pub fn parse(octets: &'a [u8]) -> Option<Frame<'a>> {
        let macs = [octets.get(..6)?.try_into().ok()?, octets.get(6..12)?.try_into().ok()?];
        let mut at = 12;
        let mut tags = Vec::new();
        octets.get(at..at + 2)?;
        while matches!(be16(octets, at), 0x8100 | 0x88a8) && tags.len() < TAGS_MAX {
            octets.get(at + 4..at + 6)?;
            tags.push((be16(octets, at), be16(octets, at + 2)));
            at += 4;
        }
        let (ethertype, header_len) = (be16(octets, at), at + 2);
        Some(Frame { macs, tags, ethertype, header_len, payload: &octets[header_len..] })
    }

    /// The IP packet, without padding. `None`: there is none, or it is truncated.
    pub fn ip(&self) -> Option<Ip<'a>> {
        match (self.ethertype, self.payload.first()? >> 4) {
            (0x0800, 4) => V4::parse(self.payload).map(Ip::V4),
            (0x86dd, 6) => V6::parse(self.payload).map(Ip::V6),
            _ => None,
        }
    }
}

/// An IP packet.
#[derive(Debug, Clone, Copy)]
pub enum Ip<'a> {
    /// IPv4.
    V4(V4<'a>),
    /// IPv6.
    V6(V6<'a>),
}

/// An IPv4 packet.
#[derive(Debug, Clone, Copy)]
pub struct V4<'a> {
    /// Options included.
    pub header: &'a [u8],
    /// Up to the total length.
    pub payload: &'a [u8],
}

impl<'a> V4<'a> {
    fn parse(octets: &'a [u8]) -> Option<V4<'a>> {
        let header_len = usize::from(octets.first()? & 0xf) * 4;
        let packet = octets.get(..usize::from(be16(octets, 2)))?;
        (header_len >= 20 && header_len <= packet.len()).then(|| {
            let (header, payload) = packet.split_at(header_len);
            V4 { header, payload }
        })
    }

    /// Source address.
    pub fn saddr(&self) -> Ipv4Addr {
        std::array::from_fn::<u8, 4, _>(|n| self.header[12 + n]).into()
    }

    /// Destination address.
    pub fn daddr(&self) -> Ipv4Addr {
        std::array::from_fn::<u8, 4, _>(|n| self.header[16 + n]).into()
    }

    /// Offset in the original packet of a fragment.
    pub fn offset(&self) -> usize {
        usize::from(be16(self.header, 6) & 0x1fff) * 8
    }

    /// More fragments follow.
    pub fn more(&self) -> bool {
        self.header[6] & 0x20 != 0
    }

    /// The DF flag.
    pub fn dont_frag(&self) -> bool {
        self.header[6] & 0x40 != 0
    }

    /// Header and payload.
    pub fn len(&self) -> usize {
        self.header.len() + self.payload.len()
    }

    /// Always false: there is a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Offset of the TCP or UDP checksum in the payload of a packet that is no fragment or the first one.
    pub fn checksum_at(&self) -> Option<usize> {
        if self.offset() == 0 { checksum_field(self.header[9]) } else { None }
    }

    /// Whether the transport checksum is correct.
    pub fn transport_is_right(&self) -> bool {
        let len = (self.payload.len() as u16).to_be_bytes();
        let pseudo = [&self.header[12..20], &[0, self.header[9]], &len];
        sum(pseudo.into_iter().chain([self.payload])) == 0xffff
    }
}

/// An IPv6 packet.
#[derive(Debug, Clone, Copy)]
pub struct V6<'a> {
    /// Up to the payload length, or all if that is 0 and hop-by-hop options follow.
    pub octets: &'a [u8],
}

impl<'a> V6<'a> {
    /// Hop-by-hop options may contain the length of a jumbogram, whose payload length is 0 (RFC 2675).
    /// Without that option too, `ip6_rcv_core` does not trim such a packet: what follows is forwarded.
    fn parse(octets: &'a [u8]) -> Option<V6<'a>> {
        let protocol = octets.get(..40)?[6];
        let end = match usize::from(be16(octets, 4)) {
            0 if protocol == HOP_BY_HOP => octets.len(),
            len => 40 + len,
        };
        Some(V6 { octets: octets.get(..end)? })
    }

    fn addr(&self, at: usize) -> Ipv6Addr {
        std::array::from_fn::<u8, 16, _>(|n| self.octets[at + n]).into()
    }

    /// Source address.
    pub fn saddr(&self) -> Ipv6Addr {
        self.addr(8)
    }

    /// Destination address.
    pub fn daddr(&self) -> Ipv6Addr {
        self.addr(24)
    }

    /// The protocol after the extension headers and its offset; `None`: a fragment, or truncated.
    pub fn upper(&self) -> Option<(u8, usize)> {
        let (mut protocol, mut at) = (self.octets[6], 40);
        loop {
            let units = usize::from(*self.octets.get(at + 1).unwrap_or(&0));
            let len = match protocol {
                0 | 43 | 60 | 135 | 139 | 140 => (units + 1) * 8,
                51 => (units + 2) * 4,
                44 => return None,
                _ => return (at <= self.octets.len()).then_some((protocol, at)),
            };
            protocol = *self.octets.get(at)?;
            at += len;
        }
    }

    /// Offset of the TCP or UDP checksum.
    pub fn checksum_at(&self) -> Option<usize> {
        let (protocol, at) = self.upper()?;
        checksum_field(protocol).map(|field| at + field)
    }

    /// Whether the checksum of the data after the extension headers is correct.
    pub fn transport_is_right(&self) -> bool {
        let Some((protocol, at)) = self.upper() else { return false };
        let len = ((self.octets.len() - at) as u32).to_be_bytes();
        let pseudo = [&self.octets[8..40], &len, &[0, 0, 0, protocol]];
        sum(pseudo.into_iter().chain([&self.octets[at..]])) == 0xffff
    }
}

fn checksum_field(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        _ => None,
    }
}

/// The ones' complement sum (RFC 1071) of parts, of which all but the last have an even length.
pub fn sum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        let mut words = part.chunks_exact(4);
        for word in &mut words {
            sum += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
        }
        let mut last = [0; 4];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        sum += u64::from(u32::from_be_bytes(last));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The addresses of an IP packet that may be truncated: source, destination.
pub fn addresses(packet: &[u8]) -> Option<[IpAddr; 2]> {
    let v4 = |at: usize| Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into());
    let v6 = |at: usize| Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into());
    match packet.first()? >> 4 {
        4 => Some([v4(12)?, v4(16)?]),
        _ => Some([v6(8)?, v6(24)?]),
    }
}
