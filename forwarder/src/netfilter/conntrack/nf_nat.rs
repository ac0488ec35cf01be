//! NAT of carried packets (net/netfilter/nf_nat_core.c and nf_nat_proto.c). The kernel chose addresses and ports
//! when the connection was opened; packets are translated as its two tuples say.

use super::tuple::{FlowKey, IPPROTO_TCP, IPPROTO_UDP};
use super::{CtInfo, Direction, IPS_DST_NAT, IPS_NAT_MASK, IPS_SRC_NAT};
use crate::netfilter::hook::{Hook, HookState};
use crate::skb::{IpSummed, SkBuff};
use crate::tables::Link;
use crate::wire::checksum::{replace, replace_partial};

/// Offset of the addresses in an IPv4 header, and of its checksum, octets.
const IPV4_ADDRESSES: usize = 12;
const IPV4_CHECK: usize = 10;
/// Offset of the addresses in an IPv6 header, octets.
const IPV6_ADDRESSES: usize = 8;
/// Offset of the checksum in a TCP and in a UDP header, octets.
const TCP_CHECK: usize = 16;
const UDP_CHECK: usize = 6;
/// CSUM_MANGLED_0: of a UDP checksum, 0 means that there is none.
const CSUM_MANGLED_0: u16 = 0xffff;

/// What a packet of a flow with NAT becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatTarget {
    /// Its addresses and ports after both translations.
    pub key: FlowKey,
    /// The new source of packets of the original direction is an address of the router.
    pub is_masqueraded: bool,
}

impl NatTarget {
    /// Whether an end of a packet of this connection is translated.
    #[inline]
    fn translates(info: &CtInfo, end: End) -> bool {
        let bit = if end == End::Destination { IPS_DST_NAT } else { IPS_SRC_NAT };
        let bit = if info.direction == Direction::Reply { bit ^ IPS_NAT_MASK } else { bit };
        info.status & bit != 0
    }

    /// Whether a packet of this connection may leave by an interface (`nf_nat_oif_changed`: the kernel ends
    /// masqueraded connections whose route has changed).
    #[inline]
    pub(in crate::netfilter) fn may_leave_by(&self, info: &CtInfo, oif: Option<&Link>) -> bool {
        let is_concerned = self.is_masqueraded && info.direction == Direction::Original;
        !is_concerned || oif.is_some_and(|oif| has_source(oif, self))
    }

    /// The destination of a packet of this connection after PRE_ROUTING, if it is translated.
    #[inline]
    pub fn destination(&self, info: &CtInfo) -> Option<&FlowKey> {
        NatTarget::translates(info, End::Destination).then_some(&self.key)
    }
}

/// `nf_nat_packet`: translates the destination at PRE_ROUTING, and the source at POST_ROUTING, where the
/// connection's status says so. `None`: the packet is left to the kernel.
#[inline]
pub fn nf_nat_packet(
    skb: &mut SkBuff,
    at: &HookState<'_>,
    info: &CtInfo,
    target: &NatTarget,
) -> Option<()> {
    let end = match at.hook {
        Hook::PreRouting => End::Destination,
        _ => End::Source,
    };
    if !NatTarget::translates(info, end) {
        return Some(());
    }
    if end == End::Source && !target.may_leave_by(info, at.oif) {
        return None;
    }
    nf_nat_manip_pkt(skb, at.transport.l4?, &target.key, end)
}

/// Both translations of a packet that leaves by `oif`. `None`: it is left to the kernel, and nothing was changed.
/// `transport`: the protocol, and the offset of its header from the network header, octets.
#[inline]
pub fn nf_nat_both(
    skb: &mut SkBuff,
    transport: (u8, usize),
    oif: &Link,
    info: &CtInfo,
    target: &NatTarget,
) -> Option<()> {
    let is_source = NatTarget::translates(info, End::Source);
    if is_source && !target.may_leave_by(info, Some(oif)) {
        return None;
    }
    if NatTarget::translates(info, End::Destination) {
        nf_nat_manip_pkt(skb, transport, &target.key, End::Destination)?;
    }
    if is_source {
        nf_nat_manip_pkt(skb, transport, &target.key, End::Source)?;
    }
    Some(())
}

/// Whether the new source is an address of the interface.
#[inline]
fn has_source(oif: &Link, target: &NatTarget) -> bool {
    match target.key.is_ipv4() {
        true => {
            let [source, _] = target.key.addresses4();
            oif.addrs4.iter().any(|(address, _)| address.octets() == source)
        }
        false => {
            let [source, _] = target.key.addresses6();
            oif.addrs6.iter().any(|(address, _)| address.octets() == source)
        }
    }
}

/// `enum nf_nat_manip_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Source = 0,
    Destination = 1,
}

/// `nf_nat_manip_pkt`: writes address and port of one end, and updates the checksums.
#[inline]
fn nf_nat_manip_pkt(
    skb: &mut SkBuff,
    (protocol, transport): (u8, usize),
    target: &FlowKey,
    end: End,
) -> Option<()> {
    let is_partial = skb.ip_summed == IpSummed::Partial;
    let (packet, end) = (skb.network_header_mut(), end as usize);
    let (port, check_at) = (transport + 2 * end, transport + check_offset(protocol)?);
    let new_port = target.port_octets()[end];
    // Everything is there before anything is written.
    let old_port = *packet.get(port..)?.first_chunk::<2>()?;
    let check = u16::from_be_bytes(*packet.get(check_at..)?.first_chunk::<2>()?);
    let check = match target.is_ipv4() {
        true => {
            let at = IPV4_ADDRESSES + 4 * end;
            let new = target.addresses4()[end];
            let old = std::mem::replace(packet.get_mut(at..)?.first_chunk_mut::<4>()?, new);
            let header_check = packet.get_mut(IPV4_CHECK..)?.first_chunk_mut::<2>()?;
            let replaced = replace(u16::from_be_bytes(*header_check), &old, &new);
            *header_check = replaced.to_be_bytes();
            transport_check(check, is_partial, (&old, &new), (&old_port, &new_port))
        }
        false => {
            let at = IPV6_ADDRESSES + 16 * end;
            let new = target.addresses6()[end];
            let old = std::mem::replace(packet.get_mut(at..)?.first_chunk_mut::<16>()?, new);
            transport_check(check, is_partial, (&old, &new), (&old_port, &new_port))
        }
    };
    let is_without = protocol == IPPROTO_UDP && check.old == 0 && !is_partial;
    if !is_without {
        let is_mangled = protocol == IPPROTO_UDP && check.new == 0;
        let new = if is_mangled { CSUM_MANGLED_0 } else { check.new };
        *packet.get_mut(check_at..)?.first_chunk_mut()? = new.to_be_bytes();
    }
    *packet.get_mut(port..)?.first_chunk_mut()? = new_port;
    Some(())
}

fn check_offset(protocol: u8) -> Option<usize> {
    match protocol {
        IPPROTO_TCP => Some(TCP_CHECK),
        IPPROTO_UDP => Some(UDP_CHECK),
        _ => None,
    }
}

/// A transport checksum before and after.
struct Check {
    old: u16,
    new: u16,
}

/// `inet_proto_csum_replace4` or `16`, and `inet_proto_csum_replace2`. A partial checksum is the sum of the
/// pseudo-header, in which the ports are not.
#[inline]
fn transport_check(
    old: u16,
    is_partial: bool,
    (old_address, new_address): (&[u8], &[u8]),
    (old_port, new_port): (&[u8; 2], &[u8; 2]),
) -> Check {
    let new = if is_partial {
        replace_partial(old, old_address, new_address)
    } else {
        replace(replace(old, old_address, new_address), old_port, new_port)
    };
    Check { old, new }
}
