//! NAT of carried packets (net/netfilter/nf_nat_core.c and nf_nat_proto.c). The kernel chose addresses and ports
//! when the connection was opened; packets are translated as its two tuples say.

use super::table::FlowTable;
use super::tuple::{FlowKey, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP};
use super::{CtInfo, Direction, IPS_DST_NAT, IPS_SRC_NAT, TupleKind};
use crate::netfilter::hook::{Hook, HookState};
use crate::skb::{IpSummed, SkBuff};
use crate::tables::{LOOPBACK_IFINDEX, Link, Tables};
use crate::wire::checksum::{fold_u64, replace, replace_partial};

/// Length of an IPv4 header without options, octets.
const IPV4_HLEN: usize = 20;
/// Offset of the addresses in an IPv4 header, and of its checksum, octets.
const IPV4_ADDRESSES: usize = 12;
const IPV4_CHECK: usize = 10;
/// Offset of the addresses in an IPv6 header, octets.
const IPV6_ADDRESSES: usize = 8;
/// Offset of the checksum in a TCP, UDP and ICMP header, octets.
const TCP_CHECK: usize = 16;
const UDP_CHECK: usize = 6;
const ICMP_CHECK: usize = 2;
/// Offset of the identifier of echo, octets.
const ICMP_ID: usize = 4;
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
    /// Whether a packet of a connection may leave by an interface (`nf_nat_oif_changed`: the kernel ends
    /// masqueraded connections whose route has changed).
    #[inline]
    pub(in crate::netfilter) fn may_leave_by(
        &self,
        direction: Direction,
        oif: Option<&Link>,
    ) -> bool {
        let is_concerned = self.is_masqueraded && direction == Direction::Original;
        !is_concerned || oif.is_some_and(|oif| has_source(oif, &self.key))
    }
}

/// Which ends of packets of a connection are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translated {
    /// The source address and port, at POST_ROUTING.
    pub source: bool,
    /// The destination address and port, at PRE_ROUTING.
    pub destination: bool,
}

impl Translated {
    /// By the status of the connection.
    #[inline]
    pub fn of(status: u32, direction: Direction) -> Translated {
        let (source, destination) = (status & IPS_SRC_NAT != 0, status & IPS_DST_NAT != 0);
        match direction {
            Direction::Original => Translated { source, destination },
            Direction::Reply => Translated { source: destination, destination: source },
        }
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
    let translated = Translated::of(info.status, info.direction);
    let transport = at.transport.l4?;
    match at.hook {
        Hook::PreRouting if translated.destination => {
            nf_nat_manip_pkt(skb, transport, &target.key, End::Destination)
        }
        Hook::PostRouting if translated.source => {
            if !target.may_leave_by(info.direction, at.oif) {
                return None;
            }
            nf_nat_manip_pkt(skb, transport, &target.key, End::Source)
        }
        _ => Some(()),
    }
}

/// Both translations of a packet. `None`: it is left to the kernel, and nothing was changed. `transport`: the
/// protocol, and the offset of its header from the network header, octets.
pub fn nf_nat_both(
    skb: &mut SkBuff,
    transport: (u8, usize),
    target: &FlowKey,
    translated: Translated,
) -> Option<()> {
    if translated.destination {
        nf_nat_manip_pkt(skb, transport, target, End::Destination)?;
    }
    if translated.source {
        nf_nat_manip_pkt(skb, transport, target, End::Source)?;
    }
    Some(())
}

/// What both translations write into each IPv4 packet of a flow, and by how much its checksums change.
///
/// Both checksums change by the same difference of the addresses; that of ICMP, which has no pseudo-header, does not. The
/// sums do not depend on the byte order (RFC
/// 1071 §2(B)); ends that are not translated add nothing, not even a negative zero.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rewrite4 {
    /// Source and destination address, as in the header.
    addresses: [u8; 8],
    /// Source and destination port, as in the header; of echo, the identifier first.
    ports: [u8; 4],
    /// Of the addresses, in the machine's byte order.
    difference: u16,
    /// Of what the transport checksum covers.
    l4_difference: u16,
}

impl Rewrite4 {
    /// Of packets with the key `own`, which is of IPv4.
    #[inline]
    pub fn new(own: &FlowKey, target: &FlowKey, translated: Translated) -> Rewrite4 {
        let Translated { source, destination } = translated;
        let (own_addresses, own_ports) = (own.addresses4(), own.port_octets());
        let (addresses, ports) = (target.addresses4(), target.port_octets());
        let mut rewrite = Rewrite4::default();
        let (mut difference, mut of_ports) = (0, 0);
        for (n, is_translated) in [source, destination].into_iter().enumerate() {
            let (address, port) = match is_translated {
                true => (addresses[n], ports[n]),
                false => (own_addresses[n], own_ports[n]),
            };
            if is_translated {
                let [old, new] = [own_addresses[n], address].map(u32::from_ne_bytes);
                difference += u64::from(!old) + u64::from(new);
                let [old, new] = [own_ports[n], port].map(u16::from_ne_bytes);
                of_ports += u64::from(!old) + u64::from(new);
            }
            rewrite.addresses[4 * n..4 * n + 4].copy_from_slice(&address);
            rewrite.ports[2 * n..2 * n + 2].copy_from_slice(&port);
        }
        rewrite.difference = fold_u64(difference);
        rewrite.l4_difference = fold_u64(difference + of_ports);
        if own.protocol() == IPPROTO_ICMP && (source || destination) {
            // Each translation writes the identifier (`icmp_manip_pkt`).
            let ([old, _], [id, _]) = (own_ports, ports);
            rewrite.ports[..2].copy_from_slice(&id);
            let [old, new] = [old, id].map(u16::from_ne_bytes);
            rewrite.l4_difference = fold_u64(u64::from(!old) + u64::from(new));
        }
        rewrite
    }

    /// Rewrites a packet without options, whose transport checksum is not a partial one. `None`: it is too short, and
    /// nothing was changed.
    #[inline(always)]
    pub fn apply(&self, packet: &mut [u8], protocol: u8) -> Option<()> {
        match protocol {
            IPPROTO_TCP => {
                self.write::<TCP_CHECK, { IPV4_HLEN + TCP_CHECK + 2 }>(packet.first_chunk_mut()?);
            }
            IPPROTO_UDP => {
                self.write::<UDP_CHECK, { IPV4_HLEN + UDP_CHECK + 2 }>(packet.first_chunk_mut()?);
            }
            _ => return self.apply_without_ports(packet, protocol),
        }
        Some(())
    }

    #[inline(never)]
    fn apply_without_ports(&self, packet: &mut [u8], protocol: u8) -> Option<()> {
        if protocol == IPPROTO_ICMP {
            let packet: &mut [u8; IPV4_HLEN + ICMP_ID + 2] = packet.first_chunk_mut()?;
            let (ip, icmp) = packet.split_first_chunk_mut()?;
            self.write_addresses(ip);
            let check = u16::from_ne_bytes([icmp[ICMP_CHECK], icmp[ICMP_CHECK + 1]]);
            let check = changed_by(check, self.l4_difference);
            icmp[ICMP_CHECK..ICMP_CHECK + 2].copy_from_slice(&check.to_ne_bytes());
            icmp[ICMP_ID..ICMP_ID + 2].copy_from_slice(&self.ports[..2]);
        } else {
            self.write_addresses(packet.first_chunk_mut()?);
        }
        Some(())
    }

    /// Rewrites the IP header.
    #[inline(always)]
    fn write_addresses(&self, packet: &mut [u8; IPV4_HLEN]) {
        let check = u16::from_ne_bytes([packet[IPV4_CHECK], packet[IPV4_CHECK + 1]]);
        let check = changed_by(check, self.difference);
        packet[IPV4_CHECK..IPV4_CHECK + 2].copy_from_slice(&check.to_ne_bytes());
        packet[IPV4_ADDRESSES..IPV4_ADDRESSES + 8].copy_from_slice(&self.addresses);
    }

    /// `CHECK`: the offset of the checksum in the transport header.
    #[inline(always)]
    fn write<const CHECK: usize, const LEN: usize>(&self, packet: &mut [u8; LEN]) {
        let half = |packet: &[u8; LEN], at: usize| u16::from_ne_bytes([packet[at], packet[at + 1]]);
        let check = changed_by(half(packet, IPV4_CHECK), self.difference);
        let at = IPV4_HLEN + CHECK;
        let old = half(packet, at);
        let mut l4_check = changed_by(old, self.l4_difference);
        if CHECK == UDP_CHECK {
            l4_check = match (old, l4_check) {
                (0, _) => 0,
                (_, 0) => CSUM_MANGLED_0,
                (_, new) => new,
            };
        }
        packet[IPV4_CHECK..IPV4_CHECK + 2].copy_from_slice(&check.to_ne_bytes());
        packet[IPV4_ADDRESSES..IPV4_ADDRESSES + 8].copy_from_slice(&self.addresses);
        packet[IPV4_HLEN..IPV4_HLEN + 4].copy_from_slice(&self.ports);
        packet[at..at + 2].copy_from_slice(&l4_check.to_ne_bytes());
    }
}

/// A checksum after the sum of what it covers has grown by a difference (RFC 1624, eqn 3).
#[inline(always)]
fn changed_by(check: u16, difference: u16) -> u16 {
    !fold_u64(u64::from(!check) + u64::from(difference))
}

/// Whether the source of packets is an address of the interface.
#[inline]
fn has_source(oif: &Link, key: &FlowKey) -> bool {
    match key.is_ipv4() {
        true => {
            let [source, _] = key.addresses4();
            oif.addrs4.iter().any(|own| own.local.octets() == source)
        }
        false => {
            let [source, _] = key.addresses6();
            oif.addrs6.iter().any(|own| own.addr.octets() == source)
        }
    }
}

/// Whether the kernel may end the connection of a packet of the router that leaves by an interface
/// (`nf_nat_oif_changed`): it may be masqueraded to its own source, which leaves no trace in its entry, by another
/// interface. A source of the loopback interface would have become another one.
pub(in crate::netfilter) fn may_be_masqueraded(
    flows: &FlowTable,
    info: CtInfo,
    oif: Option<&Link>,
    tables: &Tables,
) -> bool {
    let lo = tables.links.ifindex(LOOPBACK_IFINDEX);
    let is_of = |key: &FlowKey| [oif, lo].into_iter().flatten().any(|link| has_source(link, key));
    info.direction == Direction::Original && !flows.key(info).is_some_and(|key| is_of(&key))
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
    let Some(check_at) = check_offset(protocol) else {
        return manip_without_ports(packet, transport, target, end);
    };
    let (port, check_at) = (transport + 2 * end, transport + check_at);
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

/// Offset of the checksum in the transport header of a protocol with ports, octets.
fn check_offset(protocol: u8) -> Option<usize> {
    match protocol {
        IPPROTO_TCP => Some(TCP_CHECK),
        IPPROTO_UDP => Some(UDP_CHECK),
        _ => None,
    }
}

/// The same of protocols without ports (`l4proto_manip_pkt`): the translation of either end writes the identifier of echo.
#[inline(never)]
fn manip_without_ports(
    packet: &mut [u8],
    transport: usize,
    target: &FlowKey,
    end: usize,
) -> Option<()> {
    if target.kind()? == TupleKind::Addresses {
        return write_address(packet, target, end).map(|_| ());
    }
    let [new_id, _] = target.port_octets();
    // Everything is there before anything is written.
    let icmp = packet.get(transport..)?.first_chunk::<{ ICMP_ID + 2 }>()?;
    let old_id = [icmp[ICMP_ID], icmp[ICMP_ID + 1]];
    let check = u16::from_be_bytes([icmp[ICMP_CHECK], icmp[ICMP_CHECK + 1]]);
    let (old, new) = write_address(packet, target, end)?;
    // ICMP has no pseudo-header.
    let covered = if target.is_ipv4() { 0 } else { old.len() };
    let addresses = (old.get(..covered)?, new.get(..covered)?);
    let check = transport_check(check, false, addresses, (&old_id, &new_id));
    let icmp = packet.get_mut(transport..)?.first_chunk_mut::<{ ICMP_ID + 2 }>()?;
    icmp[ICMP_CHECK..ICMP_CHECK + 2].copy_from_slice(&check.new.to_be_bytes());
    icmp[ICMP_ID..].copy_from_slice(&new_id);
    Some(())
}

/// Writes the address of an end, and updates the checksum of an IPv4 header. Returns the old one and the new one, of IPv4
/// in the first four octets.
fn write_address(packet: &mut [u8], target: &FlowKey, end: usize) -> Option<([u8; 16], [u8; 16])> {
    let (mut old, mut new) = ([0; 16], [0; 16]);
    if target.is_ipv4() {
        let (old4, new4) = (old.first_chunk_mut::<4>()?, new.first_chunk_mut::<4>()?);
        let at = IPV4_ADDRESSES + 4 * end;
        *new4 = target.addresses4()[end];
        *old4 = std::mem::replace(packet.get_mut(at..)?.first_chunk_mut::<4>()?, *new4);
        let header_check = packet.get_mut(IPV4_CHECK..)?.first_chunk_mut::<2>()?;
        *header_check = replace(u16::from_be_bytes(*header_check), old4, new4).to_be_bytes();
    } else {
        let at = IPV6_ADDRESSES + 16 * end;
        new = target.addresses6()[end];
        old = std::mem::replace(packet.get_mut(at..)?.first_chunk_mut::<16>()?, new);
    }
    Some((old, new))
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
