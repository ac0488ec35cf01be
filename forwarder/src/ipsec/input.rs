//! Removal of the protection of one packet in place: the kernel's `xfrm_input`, `esp_input` and `ah_input`.
//!
//! Not included: [reassembly](super::Parts), which comes before (a fragment is no IPsec packet here), and policy, which comes
//! after the last transformation ([`policy_check`](super::Spd::policy_check)).

use std::net::IpAddr;
use std::ops::Range;

use super::config::{Family, KmState, Mode, UdpPorts};
use super::crypto::{Number, ROOM_BEFORE};
use super::state::{InboundState, Transform};
use super::tunnel::{Kept, change_header, outer_tos, update_inner};
use super::{Error, ah};
use crate::wire::esp::{TRAILER_LEN, UdpEncap};
use crate::wire::ipv6_ext::{ExtOptions, Ipv6OptionKind, MAX_EXT_HEADERS, UnknownAction};
use crate::wire::{AhPacket, EspPacket, Ipv4Packet, Ipv6Packet, Protocol, UdpPacket};
use crate::wire::{checksum, ipv4, ipv6, udp};

/// The IPsec header of a packet: what finds the SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// ESP or AH.
    pub protocol: Protocol,
    /// Destination address.
    pub dst: IpAddr,
    /// Source address.
    pub src: IpAddr,
    /// Security parameters index.
    pub spi: u32,
    /// Sequence number in the header.
    pub seq: u32,
    /// The ports, if UDP carries it. A source port other than the SA's means that a NAT has a new mapping.
    pub encap: Option<UdpPorts>,
    /// Offset of the ESP header or AH.
    at: usize,
    /// End of what is protected: of the packet, or of the UDP datagram.
    end: usize,
    /// Length of the IP header, and where it names the next one.
    header_len: usize,
    next_at: usize,
}

impl Located {
    /// Family of the packet.
    #[inline]
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.dst)
    }
}

/// A packet without its protection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decapsulated {
    /// The packet that was inside a tunnel; its header has not been checked any further.
    Tunnel(Range<usize>),
    /// The packet whose payload was protected. It may have another IPsec header. After UDP encapsulation its
    /// transport checksum does not count: a NAT may have changed the addresses (RFC 3948 §3.1.2).
    Transport(Range<usize>),
    /// A dummy packet (RFC 4303 §2.6): drop it and count no error.
    Dummy,
}

/// Finds the IPsec header of a packet, which starts with its IP header. `udp_ports`: destination ports where
/// UDP carries ESP. Octets behind the length that the IP header states, or the UDP header, are not part of the
/// packet.
///
/// The caller has received the packet for an address of the host and has checked the IP header as `ip_rcv_core`
/// and `ip6_rcv_core` do: version, length, the checksum of IPv4, and options of IPv4; one with a source route
/// that is not at its end has not arrived.
///
/// `Ok(None)`: it is another packet, such as a fragment, IKE or a keepalive, or one that is left to the kernel,
/// which drops it or knows what to do:
///
/// - behind a Hop-by-Hop Options header that is not the first extension header (RFC 8200 §4.1), a Routing
///   header that has segments left or that is for hosts with a sysctl (types 2 to 4), options that must not
///   be skipped if unknown, CALIPSO, or more options or padding than `ip6_parse_tlv` permits by default;
/// - in UDP with a length field or checksum that is wrong, or over IPv6 without a checksum (RFC 8200 §8.1).
///
/// # Errors
/// [`Error::XfrmInHdrError`]: the packet ends before its header does, or before the length that it states.
#[inline]
pub fn locate(packet: &[u8], udp_ports: &[u16]) -> Result<Option<Located>, Error> {
    locate_header(packet, udp_ports).transpose()
}

fn locate_header(packet: &[u8], udp_ports: &[u16]) -> Option<Result<Located, Error>> {
    let (src, dst, kept, mut end): (IpAddr, IpAddr, _, _) = match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4Packet::new_checked(packet).ok().filter(|ip| !ip.is_fragment())?;
            let next_at = ipv4::PROTOCOL_OFFSET;
            let kept = Kept { len: ip.header_len(), next_at, next: ip.protocol() };
            (ip.src_addr().into(), ip.dst_addr().into(), kept, usize::from(ip.total_len()))
        }
        6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            let stated = packet.get(..ip.total_len()).unwrap_or(packet);
            let kept = skip_ext_headers(stated, ip.next_header())?;
            (ip.src_addr().into(), ip.dst_addr().into(), kept, ip.total_len())
        }
        _ => return None,
    };
    let mut at = kept.len;
    let mut protocol = kept.next;
    let mut encap = None;
    if protocol == Protocol::UDP {
        let (ports, len) = udp_of_esp(packet.get(at..end)?, (src, dst), udp_ports)?;
        encap = Some(ports);
        end = at + len;
        at += udp::HEADER_LEN;
        protocol = Protocol::ESP;
    }
    let octets = packet.get(at..end).unwrap_or(&[]);
    let (spi, seq) = match protocol {
        Protocol::ESP => match EspPacket::new_checked(octets) {
            Ok(esp) => (esp.spi(), esp.seq()),
            Err(_) => return Some(Err(Error::XfrmInHdrError)),
        },
        Protocol::AH => match AhPacket::new_checked(octets) {
            Ok(ah) => (ah.spi(), ah.seq()),
            Err(_) => return Some(Err(Error::XfrmInHdrError)),
        },
        _ => return None,
    };
    let (header_len, next_at) = (kept.len, kept.next_at);
    Some(Ok(Located { protocol, dst, src, spi, seq, encap, at, end, header_len, next_at }))
}

/// Ports and length in octets, header included, of a UDP datagram that carries ESP. `None`: it is another one,
/// or one that the kernel drops before `xfrm4_udp_encap_rcv` sees it.
fn udp_of_esp(
    octets: &[u8],
    addresses: (IpAddr, IpAddr),
    udp_ports: &[u16],
) -> Option<(UdpPorts, usize)> {
    let datagram = UdpPacket::new_checked(octets).ok()?;
    let ports = UdpPorts { src: datagram.src_port(), dst: datagram.dst_port() };
    let len = usize::from(datagram.length());
    if !udp_ports.contains(&ports.dst) || !(udp::HEADER_LEN..=octets.len()).contains(&len) {
        return None;
    }
    if UdpEncap::of_payload(datagram.payload()) != Some(UdpEncap::Esp) {
        return None;
    }
    let pseudo_header = match addresses {
        _ if !datagram.has_checksum() => return addresses.0.is_ipv4().then_some((ports, len)),
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            checksum::pseudo_header_v4(src, dst, Protocol::UDP, datagram.length())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            checksum::pseudo_header_v6(src, dst, Protocol::UDP, u32::from(datagram.length()))
        }
        _ => return None,
    };
    // A partial checksum is of a sender on this machine; the ICV is what protects the packet.
    let is_right =
        datagram.verify_checksum(pseudo_header) || datagram.is_checksum_partial(pseudo_header);
    is_right.then_some((ports, len))
}

/// The extension headers before an IPsec or upper-layer header; `packet` ends where its header says. `None`:
/// there is a Fragment header, one that cannot be read, or one that is not for this library ([`locate`]).
fn skip_ext_headers(packet: &[u8], next: Protocol) -> Option<Kept> {
    /// Routing headers that the kernel accepts only with a sysctl or a mobility daemon, even at the last
    /// destination: mobile IPv6 (RFC 6275 §6.4), RPL (RFC 6554), segment routing (RFC 8754).
    const CONDITIONAL: [u8; 3] = [2, 3, 4];
    let mut kept = Kept { len: ipv6::HEADER_LEN, next_at: ipv6::NEXT_HEADER_OFFSET, next };
    for _ in 0..MAX_EXT_HEADERS {
        let after = match kept.next {
            Protocol::HOP_BY_HOP | Protocol::ROUTING | Protocol::DEST_OPTS => {
                kept.after_options(packet)?
            }
            Protocol::FRAGMENT => return None,
            _ => return Some(kept),
        };
        let header = packet.get(kept.len..after.len)?;
        let is_right = match kept.next {
            Protocol::ROUTING => {
                matches!(header, [_, _, kind, 0, ..] if !CONDITIONAL.contains(kind))
            }
            Protocol::HOP_BY_HOP if kept.len != ipv6::HEADER_LEN => false,
            _ => may_skip_options(header),
        };
        if !is_right {
            return None;
        }
        kept = after;
    }
    None
}

/// Whether a host accepts a header with these options without understanding them: the kernel's `ip6_parse_tlv`
/// with its default limits.
fn may_skip_options(header: &[u8]) -> bool {
    /// RFC 5570: a label that the host must compare.
    const CALIPSO: Ipv6OptionKind = Ipv6OptionKind(0x07);
    /// IP6_DEFAULT_MAX_HBH_OPTS_CNT and IP6_DEFAULT_MAX_DST_OPTS_CNT.
    const OPTIONS_MAX: usize = 8;
    /// Consecutive octets of padding.
    const PADDING_MAX: usize = 7;
    let Ok(options) = ExtOptions::new_checked(header, 0) else { return false };
    let (mut count, mut padding) = (0, 0);
    for option in options.options() {
        let Ok(option) = option else { return false };
        match option.kind {
            Ipv6OptionKind::PAD1 => padding += 1,
            Ipv6OptionKind::PADN if option.data.iter().any(|&octet| octet != 0) => return false,
            Ipv6OptionKind::PADN => padding += 2 + option.data.len(),
            CALIPSO => return false,
            kind if kind.action_if_unknown() != UnknownAction::Skip => return false,
            _ => (count, padding) = (count + 1, 0),
        }
        if count > OPTIONS_MAX || padding > PADDING_MAX {
            return false;
        }
    }
    true
}

impl InboundState {
    /// Verifies and decrypts a packet, for which [`locate`] has found `located` and the lookup this SA.
    /// Ranges are those of `packet`. Octets outside the returned range, and all octets after an error, have
    /// no meaning.
    ///
    /// # Errors
    /// `XfrmAcquireError`: the SA is being negotiated. `XfrmInStateInvalid`, `XfrmInStateExpired`: it is at its
    /// end. `XfrmInStateMismatch`: UDP
    /// encapsulation is not as configured. `XfrmInStateSeqError`: replay. `XfrmInStateProtoError`: a wrong
    /// length, ICV or padding. `XfrmInStateModeError`: not what the mode carries, or dropped for its ECN
    /// (RFC 6040 §4.2).
    #[inline]
    pub fn open(
        &self,
        packet: &mut [u8],
        located: &Located,
        now_s: u64,
    ) -> Result<Decapsulated, Error> {
        let state = &self.state;
        match state.km_state() {
            KmState::Valid => {}
            KmState::Acquiring => return Err(Error::XfrmAcquireError),
            _ => return Err(Error::XfrmInStateInvalid),
        }
        if state.hot.encap.is_some() != located.encap.is_some() {
            return Err(Error::XfrmInStateMismatch);
        }
        let seq = self.replay.check(located.seq)?;
        state.check_usable(now_s, Error::XfrmInStateInvalid, Error::XfrmInStateExpired)?;
        let is_extended = self.replay.is_extended();
        let number = Number { spi: located.spi, seq, is_extended };
        let packet = packet.get_mut(..located.end).ok_or(Error::XfrmInHdrError)?;
        let (payload, next) =
            self.verify(packet, located, number).ok_or(Error::XfrmInStateProtoError)?;
        self.replay.accept(seq)?;
        if !state.count(payload.len(), now_s) {
            return Err(Error::XfrmInStateExpired);
        }
        if next == Protocol::NO_NEXT_HEADER && located.protocol == Protocol::ESP {
            return Ok(Decapsulated::Dummy);
        }
        let range = match state.hot.mode {
            Mode::Tunnel => self.remove_tunnel(packet, located, payload, next),
            Mode::Transport => remove_header(packet, located, payload, next),
        };
        let range = range.ok_or(Error::XfrmInStateModeError)?;
        Ok(match state.hot.mode {
            Mode::Tunnel => Decapsulated::Tunnel(range),
            Mode::Transport => Decapsulated::Transport(range),
        })
    }

    /// Verifies the ICV and decrypts: where the payload is, and what it is.
    #[inline]
    fn verify(
        &self,
        packet: &mut [u8],
        located: &Located,
        number: Number,
    ) -> Option<(Range<usize>, Protocol)> {
        let layout = &self.state.hot.layout;
        let at = located.at;
        match (&self.transform.0, located.protocol) {
            (Transform::Esp(transform), Protocol::ESP) => {
                let data = at + layout.header()..packet.len().checked_sub(layout.icv())?;
                let data_len = data.end.checked_sub(data.start)?;
                if data_len < TRAILER_LEN || data_len % layout.block() != 0 {
                    return None;
                }
                let framed = packet.get_mut(at.checked_sub(ROOM_BEFORE)?..)?;
                if transform.open(framed, number).is_err() {
                    self.state.count_integrity_failed();
                    return None;
                }
                let (payload_len, next) = remove_trailer(packet.get(data.clone())?)?;
                Some((data.start..data.start + payload_len, next))
            }
            (Transform::Ah(mac), Protocol::AH) => {
                let header = AhPacket::new_checked(packet.get(at..)?).ok()?;
                let next = header.next_header();
                if header.header_len() != layout.header() {
                    return None;
                }
                let covered = ah::Covered { at, icv_len: mac.icv_len() };
                let icv = packet.get(covered.icv_range())?;
                let mut context = mac.start();
                covered.feed(packet, ah::Role::Receiver, &mut |piece| context.update(piece))?;
                if context.verify(number, icv).is_err() {
                    self.state.count_integrity_failed();
                    return None;
                }
                Some((at + layout.header()..packet.len(), next))
            }
            _ => None,
        }
    }

    /// The inner packet, with what it takes from the outer header.
    #[inline]
    fn remove_tunnel(
        &self,
        packet: &mut [u8],
        located: &Located,
        payload: Range<usize>,
        next: Protocol,
    ) -> Option<Range<usize>> {
        let family = match next {
            Protocol::IPIP => Family::Ipv4,
            Protocol::IPV6 => Family::Ipv6,
            _ => return None,
        };
        let tos = outer_tos(packet, located);
        let inner = packet.get_mut(payload.clone())?;
        if !self.state.carries(family) {
            return None;
        }
        let len = match family {
            Family::Ipv4 => {
                let ip = Ipv4Packet::new_checked(&*inner).ok()?;
                (ip.version() == 4).then_some(usize::from(ip.total_len()))?
            }
            Family::Ipv6 => {
                let ip = Ipv6Packet::new_checked(&*inner).ok()?;
                (ip.version() == 6).then_some(ip.total_len())?
            }
        };
        update_inner(inner, &self.state, family, tos)?;
        // Behind the packet is padding for traffic flow confidentiality (RFC 4303 §2.7). A packet that claims
        // to be longer is dropped where received packets are checked.
        let end = payload.end.min(payload.start + len.max(ipv4::HEADER_LEN_MIN));
        Some(payload.start..end)
    }
}

/// Pad length and next header: the length of the payload, and its protocol. `None`: the padding exceeds the
/// data, or is not 1, 2, 3, … as RFC 4303 §2.4 demands of all algorithms here.
#[inline]
fn remove_trailer(data: &[u8]) -> Option<(usize, Protocol)> {
    let (payload, &[padding_len, next]) = data.split_last_chunk::<TRAILER_LEN>()?;
    let payload_len = payload.len().checked_sub(usize::from(padding_len))?;
    let padding = payload.get(payload_len..)?;
    let is_right = padding.iter().zip(1..=u8::MAX).all(|(&octet, number)| octet == number);
    is_right.then_some((payload_len, Protocol(next)))
}

/// Moves the IP header to the payload.
#[inline]
fn remove_header(
    packet: &mut [u8],
    located: &Located,
    payload: Range<usize>,
    next: Protocol,
) -> Option<Range<usize>> {
    let start = payload.start.checked_sub(located.header_len)?;
    packet.get(..located.header_len)?;
    packet.copy_within(..located.header_len, start);
    let range = start..payload.end;
    let (family, next_at) = (located.family(), located.next_at);
    change_header(packet.get_mut(range.clone())?, family, next_at, next);
    Some(range)
}
