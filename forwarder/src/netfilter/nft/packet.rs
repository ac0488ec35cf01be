//! A packet at a hook, as expressions see it (`struct nft_pktinfo`).

use crate::netfilter::Hook;
use crate::netfilter::conntrack::Ct;
use crate::skb::SkBuff;
use crate::tables::{Link, Tables};
use crate::wire::EtherType;

use super::ruleset::{Family, PayloadBase};
use super::xfrm::SaInfo;

/// Length of an Ethernet header, octets.
const ETH_HLEN: usize = 14;
/// Length of an Ethernet header with a VLAN tag, octets.
const VLAN_ETH_HLEN: usize = 18;
/// Length of the fixed IPv6 header, octets.
const IPV6_HLEN: usize = 40;

const NEXTHDR_HOP: u8 = 0;
const NEXTHDR_ROUTING: u8 = 43;
const NEXTHDR_FRAGMENT: u8 = 44;
const NEXTHDR_AUTH: u8 = 51;
const NEXTHDR_DEST: u8 = 60;

/// A packet at a hook.
#[derive(Debug)]
pub struct Packet<'a> {
    /// The packet. A chain may change its mark.
    pub skb: &'a mut SkBuff,
    /// Its family: [`Family::Ip`] or [`Family::Ip6`].
    pub family: Family,
    /// The hook point.
    pub hook: Hook,
    /// Input interface.
    pub iif: Option<&'a Link>,
    /// Output interface.
    pub oif: Option<&'a Link>,
    /// Where its transport header is.
    pub transport: Transport,
    /// Its connection.
    pub ct: Ct,
    /// Routes and interfaces, for `fib`; `None`: `fib` is left to the kernel.
    pub tables: Option<&'a Tables>,
    /// It is at the ingress of a port, and its frame has one VLAN tag, which is not yet removed.
    pub is_tagged: bool,
    /// It is at the ingress of an interface.
    pub is_at_ingress: bool,
    /// The SA whose protection it was received with.
    pub received_by: Option<SaInfo>,
    /// The SA that it is to be protected with.
    pub sent_by: Option<SaInfo>,
    /// Time of the clock that the program was compiled with, nanoseconds: elements of sets expire.
    pub now_ns: u64,
}

/// Where the transport header of a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transport {
    /// Its protocol, after IPv6 extension headers, and its offset from the network header in octets.
    /// `None`: unknown.
    pub l4: Option<(u8, usize)>,
    /// Fragment offset as `nft_pktinfo` has it: only whether it is 0 matters.
    pub fragoff: u16,
}

impl Transport {
    /// `nft_set_pktinfo_ipv4`, `nft_set_pktinfo_ipv6`: finds the transport header. A family other than IPv4
    /// and IPv6 has none.
    #[inline]
    pub fn of(skb: &SkBuff, family: Family) -> Transport {
        match family {
            Family::Ip => match octets::<20>(skb, 0) {
                Some(header) => {
                    let offset = usize::from(header[0] & 0x0f) * 4;
                    let fragoff = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
                    Transport { l4: Some((header[9], offset)), fragoff }
                }
                None => Transport::default(),
            },
            Family::Ip6 => match find_last_header(skb) {
                Some(found) => {
                    Transport { l4: Some((found.protocol, found.offset)), fragoff: found.fragoff }
                }
                None => Transport::default(),
            },
            _ => Transport::default(),
        }
    }
}

/// `nft_set_pktinfo_ipv4_validate`, `nft_set_pktinfo_ipv6_validate`: whether the header is one of the family, with
/// lengths that the packet has, and the transport header is found.
pub(super) fn is_valid(skb: &SkBuff, family: Family) -> bool {
    let be16 = |high, low| usize::from(u16::from_be_bytes([high, low]));
    match family {
        Family::Ip => octets::<4>(skb, 0).is_some_and(|[first, _, high, low]| {
            let (header_len, len) = (usize::from(first & 15) * 4, be16(high, low));
            first >> 4 == 4 && header_len >= 20 && (header_len..=skb.network_len()).contains(&len)
        }),
        _ => {
            let has_version = octets::<6>(skb, 0).is_some_and(|header| {
                header[0] >> 4 == 6 && IPV6_HLEN + be16(header[4], header[5]) <= skb.network_len()
            });
            let transport = |(_, offset)| offset <= usize::from(u16::MAX);
            has_version && Transport::of(skb, family).l4.is_some_and(transport)
        }
    }
}

impl<'a> Packet<'a> {
    /// A packet whose transport header is not known yet, where connections are not tracked, without routes.
    #[inline]
    pub fn new(
        skb: &'a mut SkBuff,
        family: Family,
        hook: Hook,
        iif: Option<&'a Link>,
        oif: Option<&'a Link>,
        now_ns: u64,
    ) -> Packet<'a> {
        let transport = Transport::of(skb, family);
        Packet {
            skb,
            family,
            hook,
            iif,
            oif,
            transport,
            ct: Ct::Off,
            tables: None,
            is_tagged: false,
            is_at_ingress: false,
            received_by: None,
            sent_by: None,
            now_ns,
        }
    }

    /// Whether it is a fragment, the first one included.
    pub(super) fn is_fragment(&self) -> bool {
        match self.family {
            // The offset, and MF.
            Family::Ip => octets::<2>(self.skb, 6)
                .is_some_and(|field| u16::from_be_bytes(field) & 0x3fff != 0),
            _ => find_header(self.skb, Some(NEXTHDR_FRAGMENT)).is_some(),
        }
    }

    /// What expressions read of it.
    #[inline]
    pub(super) fn view(&self) -> View<'_> {
        let Transport { l4, fragoff } = self.transport;
        let transport = l4.filter(|_| fragoff == 0).map(|(_, offset)| offset);
        View { packet: self, net: self.skb.network_header(), transport }
    }
}

/// The octets of a packet for reading.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) packet: &'a Packet<'a>,
    /// The head from the network header.
    net: &'a [u8],
    /// Offset of the transport header, unless unknown or in another fragment.
    transport: Option<usize>,
}

impl View<'_> {
    /// The octets of the head from the network header.
    #[inline]
    pub(super) fn network(&self) -> &[u8] {
        self.net
    }

    /// `nft_payload_eval`: reads `to.len()` octets. `false`: the packet does not have them.
    #[inline]
    pub(super) fn payload(&self, base: PayloadBase, offset: usize, to: &mut [u8]) -> bool {
        match base {
            PayloadBase::Network => self.copy(offset, to),
            PayloadBase::Transport => {
                self.transport.is_some_and(|transport| self.copy(transport + offset, to))
            }
            PayloadBase::Link => self.link(offset, to),
        }
    }

    /// [`View::payload`] of 1, 2 or 4 octets, as a number in little-endian order.
    #[inline]
    pub(super) fn short(&self, base: PayloadBase, offset: usize, len: u8) -> Option<u64> {
        let at = match base {
            PayloadBase::Network => offset,
            PayloadBase::Transport => self.transport? + offset,
            PayloadBase::Link => {
                return self.value(base, offset, len.into()).map(|value| value as u64);
            }
        };
        // Four octets are read if the head has them, which is usual.
        if let Some(octets) = self.net.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
            let unused = (4 - u32::from(len.min(4))) * 8;
            return Some(u64::from(u32::from_le_bytes(*octets) << unused >> unused));
        }
        self.value(base, offset, len.into()).map(|value| value as u64)
    }

    /// [`View::payload`] of up to 16 octets, as a number in little-endian order.
    pub(super) fn value(&self, base: PayloadBase, offset: usize, len: usize) -> Option<u128> {
        let mut octets = [0; 16];
        self.payload(base, offset, octets.get_mut(..len)?).then_some(())?;
        Some(u128::from_le_bytes(octets))
    }

    /// `skb_copy_bits` from the network header.
    #[inline]
    pub(super) fn copy(&self, at: usize, to: &mut [u8]) -> bool {
        match self.net.get(at..at + to.len()) {
            Some(octets) => {
                to.copy_from_slice(octets);
                true
            }
            None => copy_nonlinear(self.packet.skb, at, to),
        }
    }

    /// The octets in the head at `at` from the network header.
    #[inline]
    pub(super) fn chunk<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        match self.net.get(at..).and_then(|rest| rest.first_chunk::<N>()) {
            Some(octets) => Some(*octets),
            None => {
                let mut octets = [0; N];
                copy_nonlinear(self.packet.skb, at, &mut octets).then_some(octets)
            }
        }
    }

    /// The link-layer header as the kernel has it at the hooks of IP, without VLAN tags and right before the
    /// network header; at the ingress of a port, what is behind the addresses is read with the tag. Packets of our own have none.
    fn link(&self, offset: usize, to: &mut [u8]) -> bool {
        let skb = &*self.packet.skb;
        let mac = match skb.mac_chunk::<12>() {
            Some(mac) if skb.iif != 0 && skb.mac_header().len() >= self.net.len() + ETH_HLEN => mac,
            _ => return false,
        };
        let mut header = [0; VLAN_ETH_HLEN];
        header[..12].copy_from_slice(mac);
        header[12..ETH_HLEN].copy_from_slice(&self.ethertype().0.to_be_bytes());
        let mut header_len = ETH_HLEN;
        if self.packet.is_tagged && offset >= mac.len() {
            // `nft_payload_copy_vlan`: with the tag, as it was received.
            let Some(received) = skb.mac_chunk::<VLAN_ETH_HLEN>() else { return false };
            (header, header_len) = (*received, VLAN_ETH_HLEN);
        }
        let Some(first) = header.get(offset..header_len) else {
            return self.copy(offset - header_len, to);
        };
        let in_header = first.len().min(to.len());
        let (now, rest) = to.split_at_mut(in_header);
        if !rest.is_empty() && !self.copy(0, rest) {
            return false;
        }
        now.copy_from_slice(&first[..in_header]);
        true
    }

    /// `skb->protocol`.
    #[inline]
    pub(super) fn ethertype(&self) -> EtherType {
        if self.packet.family == Family::Ip6 { EtherType::IPV6 } else { EtherType::IPV4 }
    }
}

/// `skb_copy_bits` for octets that are not all in the head. `at` counts from the network header.
#[cold]
fn copy_nonlinear(skb: &SkBuff, at: usize, to: &mut [u8]) -> bool {
    if !skb.is_nonlinear() || at.checked_add(to.len()).is_none_or(|end| end > skb.network_len()) {
        return false;
    }
    skb.copy_bits(skb.network_offset() + at, to).is_ok()
}

/// The result of `ipv6_find_hdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FoundHeader {
    pub(super) protocol: u8,
    /// From the network header, octets.
    pub(super) offset: usize,
    pub(super) fragoff: u16,
}

/// Octets at `at` from the network header, from all frames.
fn octets<const N: usize>(skb: &SkBuff, at: usize) -> Option<[u8; N]> {
    if let Some(octets) = skb.network_chunk_at(at) {
        return Some(*octets);
    }
    let mut octets = [0; N];
    copy_nonlinear(skb, at, &mut octets).then_some(octets)
}

/// `ipv6_find_hdr` with target -1 and IP6_FH_F_AUTH: the transport header. It is an Authentication Header if
/// there is one.
#[inline]
fn find_last_header(skb: &SkBuff) -> Option<FoundHeader> {
    let [protocol] = octets::<1>(skb, 6)?;
    if !is_ext_header(protocol) {
        return Some(FoundHeader { protocol, offset: IPV6_HLEN, fragoff: 0 });
    }
    find_header(skb, None)
}

/// `ipv6_find_hdr`: the header with number `target`, or the transport header.
pub(super) fn find_header(skb: &SkBuff, target: Option<u8>) -> Option<FoundHeader> {
    let [mut protocol] = octets::<1>(skb, 6)?;
    let mut offset = IPV6_HLEN;
    loop {
        let is_target = target == Some(protocol);
        if !is_ext_header(protocol) {
            let found = FoundHeader { protocol, offset, fragoff: 0 };
            return (target.is_none() || is_target).then_some(found);
        }
        let [next, len] = octets::<2>(skb, offset)?;
        let header_len = match protocol {
            NEXTHDR_FRAGMENT => {
                let fragoff = u16::from_be_bytes(octets::<2>(skb, offset + 2)?) & !7;
                if fragoff != 0 {
                    return match target {
                        None if !is_ext_header(next) => {
                            // The kernel leaves the offset at 0; it is not used.
                            Some(FoundHeader { protocol: next, offset: 0, fragoff })
                        }
                        _ => is_target.then_some(FoundHeader { protocol, offset, fragoff }),
                    };
                }
                8
            }
            NEXTHDR_AUTH if target.is_none() => {
                return Some(FoundHeader { protocol, offset, fragoff: 0 });
            }
            NEXTHDR_AUTH => (usize::from(len) + 2) * 4,
            NEXTHDR_ROUTING => {
                octets::<4>(skb, offset)?;
                (usize::from(len) + 1) * 8
            }
            _ => (usize::from(len) + 1) * 8,
        };
        if is_target {
            return Some(FoundHeader { protocol, offset, fragoff: 0 });
        }
        protocol = next;
        offset += header_len;
    }
}

/// `ipv6_ext_hdr`, without NEXTHDR_NONE, which ends the search.
#[inline]
fn is_ext_header(protocol: u8) -> bool {
    matches!(
        protocol,
        NEXTHDR_HOP | NEXTHDR_ROUTING | NEXTHDR_FRAGMENT | NEXTHDR_AUTH | NEXTHDR_DEST
    )
}
