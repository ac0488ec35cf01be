//! IP headers of protected packets: the outer one of tunnel mode, the changed one of transport mode, and what
//! the inner one takes from the outer one.
//!
//! Which fields are copied follows the kernel's `xfrm4_tunnel_encap_add`, `xfrm6_tunnel_encap_add` and
//! `xfrm_inner_mode_encap_remove`, and RFC 6040 for ECN.

use std::net::IpAddr;

use super::config::{EcnRules, Family, StateFlags};
use super::input::Located;
use super::output::OutputParams;
use super::state::State;
use crate::wire::{Ipv4Packet, Ipv6Packet, Protocol, checksum, ipv4, ipv6, ipv6_ext};

const ECN_MASK: u8 = 0x03;
const ECN_NOT_ECT: u8 = 0;
const ECN_ECT_1: u8 = 1;
const ECN_ECT_0: u8 = 2;
const ECN_CE: u8 = 3;

/// What an outer header takes from the packet inside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inner {
    pub family: Family,
    /// Length of the packet that its header states, in octets.
    pub len: usize,
    /// DSCP and ECN.
    tos: u8,
    dont_frag: bool,
    flow_label: u32,
}

impl Inner {
    /// Reads the fixed header. `None`: it is not a whole one, or states a length that is shorter than the
    /// header or longer than `packet`.
    #[inline]
    pub fn of_packet(packet: &[u8]) -> Option<Inner> {
        let inner = match packet.first()? >> 4 {
            4 => {
                let ip = Ipv4Packet::new_checked(packet).ok()?;
                let (len, tos, dont_frag) = (ip.total_len().into(), ip.tos(), ip.dont_frag());
                let inner = Inner { family: Family::Ipv4, len, tos, dont_frag, flow_label: 0 };
                (len >= ip.header_len()).then_some(inner)?
            }
            6 => {
                let ip = Ipv6Packet::new_checked(packet).ok()?;
                let (len, tos, flow_label) = (ip.total_len(), ip.traffic_class(), ip.flow_label());
                // Routers do not fragment IPv6.
                Inner { family: Family::Ipv6, len, tos, dont_frag: true, flow_label }
            }
            _ => return None,
        };
        (inner.len <= packet.len()).then_some(inner)
    }
}

/// The part of a packet that stays before the IPsec header in transport mode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    /// Length, in octets.
    pub len: usize,
    /// Offset of the octet that names the header after it.
    pub next_at: usize,
    /// That header.
    pub next: Protocol,
}

impl Kept {
    /// Finds it: the IPv4 header with its options; of IPv6 the part that each fragment would have, as the
    /// kernel's `ip6_find_1stfragopt`. `None`: the header cannot be read, or the packet is a fragment, which
    /// transport mode does not protect (RFC 4303 §3.3.4).
    pub fn of_packet(packet: &[u8]) -> Option<Kept> {
        if packet.first()? >> 4 == 4 {
            let ip = Ipv4Packet::new_checked(packet).ok().filter(|ip| !ip.is_fragment())?;
            return Some(Kept {
                len: ip.header_len(),
                next_at: ipv4::PROTOCOL_OFFSET,
                next: ip.protocol(),
            });
        }
        let ip = Ipv6Packet::new_checked(packet).ok()?;
        let mut kept = Kept {
            len: ipv6::HEADER_LEN,
            next_at: ipv6::NEXT_HEADER_OFFSET,
            next: ip.next_header(),
        };
        let mut has_routing = false;
        for _ in 0..ipv6_ext::MAX_EXT_HEADERS {
            match kept.next {
                Protocol::HOP_BY_HOP => {}
                Protocol::ROUTING => has_routing = true,
                // Those after a Routing header are for the last destination only (RFC 8200 §4.1).
                Protocol::DEST_OPTS if !has_routing => {}
                Protocol::FRAGMENT => return None,
                _ => return Some(kept),
            }
            kept = kept.after_options(packet)?;
        }
        None
    }

    /// The same with one more header, which has a length in 8-octet units.
    pub fn after_options(self, packet: &[u8]) -> Option<Kept> {
        let &[next, units, ..] = packet.get(self.len..)? else { return None };
        let len = self.len + (usize::from(units) + 1) * 8;
        (len <= packet.len()).then_some(Kept { len, next_at: self.len, next: Protocol(next) })
    }
}

/// Writes the outer header over the first octets of `packet`, which is the whole protected packet.
#[inline]
pub(super) fn write_outer(
    packet: &mut [u8],
    state: &State,
    inner: Inner,
    protocol: Protocol,
    params: &OutputParams,
) {
    let hot = &state.hot;
    let len = packet.len();
    let dscp = if state.has(StateFlags::DONT_ENCAP_DSCP) { 0 } else { inner.tos & !ECN_MASK };
    let ecn = if state.has(StateFlags::NOECN) { 0 } else { encapsulate_ecn(hot.ecn, inner.tos) };
    match (hot.src, hot.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut ip = Ipv4Packet::new_unchecked(packet);
            // RFC 8200 §5: a packet of IPv6 up to the minimum MTU must pass, so the outer one may be
            // fragmented (`small_ipv6` of the kernel).
            let is_small_ipv6 = inner.family == Family::Ipv6 && inner.len <= ipv6::MTU_MIN as usize;
            let is_free = state.has(StateFlags::NOPMTUDISC) || is_small_ipv6;
            let dont_frag = inner.dont_frag && !is_free;
            ip.set_version_and_header_len(ipv4::HEADER_LEN_MIN);
            ip.set_tos(dscp | ecn);
            ip.set_total_len(len as u16);
            // A packet that is not fragmented needs no identification (RFC 6864 §4.1).
            ip.set_ident(if dont_frag { 0 } else { params.ident });
            ip.set_frag(dont_frag, false, 0);
            ip.set_ttl(params.hop_limit);
            ip.set_protocol(protocol);
            ip.set_src_addr(src);
            ip.set_dst_addr(dst);
            ip.fill_checksum();
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut ip = Ipv6Packet::new_unchecked(packet);
            ip.set_version_class_flow(dscp | ecn, inner.flow_label);
            ip.set_payload_len(len.saturating_sub(ipv6::HEADER_LEN) as u16);
            ip.set_next_header(protocol);
            ip.set_hop_limit(params.hop_limit);
            ip.set_src_addr(src);
            ip.set_dst_addr(dst);
        }
        // Refused when the SA was made.
        _ => {}
    }
}

/// Changes the header of a packet in transport mode: the protocol at `next_at`, and the length to that of
/// `packet`.
#[inline]
pub(super) fn change_header(packet: &mut [u8], family: Family, next_at: usize, protocol: Protocol) {
    let len = packet.len();
    if let Some(octet) = packet.get_mut(next_at) {
        *octet = protocol.0;
    }
    match family {
        Family::Ipv4 => {
            let mut ip = Ipv4Packet::new_unchecked(packet);
            ip.set_total_len(len as u16);
            ip.fill_checksum();
        }
        Family::Ipv6 => {
            let mut ip = Ipv6Packet::new_unchecked(packet);
            ip.set_payload_len(len.saturating_sub(ipv6::HEADER_LEN) as u16);
        }
    }
}

/// DSCP and ECN of a received packet, before its header is overwritten.
#[inline]
pub(super) fn outer_tos(packet: &[u8], located: &Located) -> u8 {
    match located.family() {
        Family::Ipv4 => Ipv4Packet::new_unchecked(packet).tos(),
        Family::Ipv6 => Ipv6Packet::new_unchecked(packet).traffic_class(),
    }
}

/// Lets the inner packet of `family` take what it should from the outer header. `None`: the packet must be
/// dropped for its ECN (RFC 6040 §4.2).
#[inline]
pub(super) fn update_inner(
    packet: &mut [u8],
    state: &State,
    family: Family,
    outer_tos: u8,
) -> Option<()> {
    let old = match family {
        Family::Ipv4 => Ipv4Packet::new_unchecked(&*packet).tos(),
        Family::Ipv6 => Ipv6Packet::new_unchecked(&*packet).traffic_class(),
    };
    let dscp = if state.has(StateFlags::DECAP_DSCP) { outer_tos } else { old } & !ECN_MASK;
    let ecn = if state.has(StateFlags::NOECN) {
        old & ECN_MASK
    } else {
        decapsulate_ecn(state.hot.ecn, outer_tos & ECN_MASK, old & ECN_MASK)?
    };
    let new = dscp | ecn;
    if new == old {
        return Some(());
    }
    match family {
        Family::Ipv4 => {
            let version = packet.first().copied().unwrap_or(0);
            let mut ip = Ipv4Packet::new_unchecked(packet);
            let word = |tos: u8| u16::from_be_bytes([version, tos]);
            ip.set_checksum(checksum::update16(ip.checksum(), word(old), word(new)));
            ip.set_tos(new);
        }
        Family::Ipv6 => {
            let mut ip = Ipv6Packet::new_unchecked(packet);
            ip.set_version_class_flow(new, ip.flow_label());
        }
    }
    Some(())
}

/// The ECN of the outer header (RFC 6040 §4.1, normal mode).
#[inline]
fn encapsulate_ecn(rules: EcnRules, inner_tos: u8) -> u8 {
    match (rules, inner_tos & ECN_MASK) {
        (EcnRules::Xfrm, ECN_CE) => ECN_ECT_0,
        (_, ecn) => ecn,
    }
}

/// The ECN of the inner header after decapsulation: RFC 6040 §4.2, figure 4. `None`: drop.
#[inline]
fn decapsulate_ecn(rules: EcnRules, outer: u8, inner: u8) -> Option<u8> {
    match (rules, outer, inner) {
        (EcnRules::Rfc6040, ECN_CE, ECN_NOT_ECT) => None,
        (EcnRules::Xfrm, ECN_CE, ECN_NOT_ECT) => Some(ECN_NOT_ECT),
        (_, ECN_CE, _) => Some(ECN_CE),
        (EcnRules::Rfc6040, ECN_ECT_1, ECN_ECT_0) => Some(ECN_ECT_1),
        (_, _, inner) => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecn_of_the_outer_header() {
        assert_eq!(
            [0, 1, 2, 3].map(|ecn| encapsulate_ecn(EcnRules::Rfc6040, 0xb8 | ecn)),
            [0, 1, 2, 3]
        );
        assert_eq!(
            [0, 1, 2, 3].map(|ecn| encapsulate_ecn(EcnRules::Xfrm, 0xb8 | ecn)),
            [0, 1, 2, 2]
        );
    }

    #[test]
    fn ecn_of_the_inner_header_is_that_of_rfc_6040_figure_4() {
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE. Columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let columns = [ECN_NOT_ECT, ECN_ECT_0, ECN_ECT_1, ECN_CE];
        let table = [
            [Some(ECN_NOT_ECT), Some(ECN_NOT_ECT), Some(ECN_NOT_ECT), None],
            [Some(ECN_ECT_0), Some(ECN_ECT_0), Some(ECN_ECT_1), Some(ECN_CE)],
            [Some(ECN_ECT_1), Some(ECN_ECT_1), Some(ECN_ECT_1), Some(ECN_CE)],
            [Some(ECN_CE); 4],
        ];
        for (inner, row) in columns.into_iter().zip(table) {
            assert_eq!(columns.map(|outer| decapsulate_ecn(EcnRules::Rfc6040, outer, inner)), row);
        }
        assert_eq!(decapsulate_ecn(EcnRules::Xfrm, ECN_CE, ECN_NOT_ECT), Some(ECN_NOT_ECT));
        assert_eq!(decapsulate_ecn(EcnRules::Xfrm, ECN_ECT_1, ECN_ECT_0), Some(ECN_ECT_0));
        assert_eq!(decapsulate_ecn(EcnRules::Xfrm, ECN_CE, ECN_ECT_1), Some(ECN_CE));
    }
}
