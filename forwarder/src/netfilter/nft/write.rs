//! Expressions that write into the packet: `nft_payload_set_eval` (net/netfilter/nft_payload.c), and the targets
//! `DSCP`, `TOS`, `TTL` and `HL` of iptables (net/netfilter/xt_DSCP.c, xt_HL.c).
//!
//! Left to the kernel is what cannot be undone if a later rule leaves the packet to it, and what decides how the
//! packet is parsed, fragmented or tracked: fields of the IP header other than those of [`is_writable`], and
//! addresses and ports where connections are tracked.

use crate::netfilter::conntrack::Ct;
use crate::skb::{IpSummed, SkBuff};
use crate::wire::checksum::{replace, replace_partial, update16};

use super::op::{Flow, Op, Regs, Write};
use super::packet::Packet;
use super::program::{
    DIFFERS, Program, WRITES_FAR, WRITES_FIELD, WRITES_OWN, WRITES_PRIORITY, WRITES_TUPLE,
};
use super::ruleset::{Checksum, Family, PayloadBase, SetPayload};
use super::xt::Mangle;

/// Octets from the network header on that rules may change: the data path can restore as many.
pub const WRITABLE_LEN: usize = 128;
/// Length of an IPv4 header without options, octets, and offsets in it.
const IPV4_HLEN: usize = 20;
const IPV4_TOS: usize = 1;
const IPV4_TTL: usize = 8;
const IPV4_CHECK: usize = 10;
const IPV4_ADDRESSES: usize = 12;
/// Length of the fixed IPv6 header, octets, and offsets in it.
const IPV6_HLEN: usize = 40;
const IPV6_HOP_LIMIT: usize = 7;
const IPV6_ADDRESSES: usize = 8;
/// Length of a UDP header, octets.
const UDP_HLEN: usize = 8;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_SCTP: u8 = 132;
const IPPROTO_UDPLITE: u8 = 136;
/// CSUM_MANGLED_0.
const CSUM_MANGLED_0: u16 = 0xffff;

impl Program {
    /// Evaluates the operation before the one with number `next`, which writes.
    #[cold]
    pub(super) fn write(&self, next: u32, packet: &mut Packet<'_>, regs: &Regs) -> Flow {
        let op = next.checked_sub(1).and_then(|at| self.ops.get(at as usize));
        let Some(Op::Write(write)) = op else { return Flow::Continue };
        // The kernel routes such packets again where their addresses, DSCP or mark change.
        if packet.iif.is_none() {
            return WRITES_OWN;
        }
        // What is written there could not be undone for packets that are then left to the kernel.
        if packet.is_at_ingress {
            return Flow::Kernel(DIFFERS);
        }
        let done = match **write {
            Write::Payload(set) => set_payload(&set, packet, regs),
            Write::Mangle(mangle) => self::mangle(mangle, packet),
        };
        done.map_or_else(|flow| flow, |()| Flow::Continue)
    }
}

/// Whether an expression of a table of this family may write addresses or ports: where connections are tracked, it is
/// left to the kernel.
pub(super) fn may_write_tuple(op: &Op, family: Family) -> bool {
    let Op::Write(write) = op else { return false };
    let Write::Payload(set) = **write else { return false };
    if set.base == PayloadBase::Transport {
        return true;
    }
    let addresses = match family {
        Family::Ip => IPV4_ADDRESSES..IPV4_HLEN,
        Family::Ip6 => IPV6_ADDRESSES..IPV6_HLEN,
        // As nft writes them.
        _ => return set.pseudo_header,
    };
    octets(&set).any(|at| addresses.contains(&at))
}

/// The octets that an expression writes, from its header on.
fn octets(set: &SetPayload) -> std::ops::Range<usize> {
    let offset = set.offset as usize;
    offset..offset.saturating_add(set.len.into())
}

/// Why what an expression of a table of this family writes is always left to the kernel. `None`: it is not.
pub(super) fn never_written(set: &SetPayload, family: Family) -> Option<&'static str> {
    let is_ever = |is_ipv4: bool| {
        family != if is_ipv4 { Family::Ip6 } else { Family::Ip }
            && octets(set).any(|at| is_writable(is_ipv4, at, 0x0f))
    };
    match (set.base, set.checksum) {
        (PayloadBase::Link, _) => Some("ether set"),
        (PayloadBase::Network, Checksum::Inet(offset)) if usize::from(offset) != IPV4_CHECK => {
            Some("set in an IP header, with a checksum elsewhere")
        }
        (PayloadBase::Network, _) if !is_ever(true) && !is_ever(false) => {
            Some("set of a field of an IP header that only the kernel changes")
        }
        (PayloadBase::Transport, Checksum::Sctp) => Some("sctp set"),
        (PayloadBase::Transport, _) if set.pseudo_header => {
            Some("set in a transport header, with the checksum of addresses")
        }
        _ => None,
    }
}

/// `nft_payload_set_eval`.
///
/// # Errors
/// [`Flow::Break`] if the packet is too short, or a reason for leaving it to the kernel.
fn set_payload(set: &SetPayload, packet: &mut Packet<'_>, regs: &Regs) -> Result<(), Flow> {
    let base = match set.base {
        PayloadBase::Network => 0,
        PayloadBase::Transport => match packet.transport.l4 {
            Some((_, offset)) if packet.transport.fragoff == 0 => offset,
            _ => return Err(Flow::Break),
        },
        PayloadBase::Link => return Err(WRITES_FIELD),
    };
    let is_partial = packet.skb.ip_summed == IpSummed::Partial;
    let is_transport = set.base == PayloadBase::Transport;
    let at = base.saturating_add(set.offset as usize);
    let new = regs.get(set.sreg.0, set.len.into());
    let octets = place(packet.skb, at, new.len())?;
    let head = packet.skb.network_header();
    let mut old = [0; super::ruleset::REGISTERS];
    let (Some(old), Some(current)) = (old.get_mut(..new.len()), head.get(octets)) else {
        return Err(WRITES_FAR);
    };
    old.copy_from_slice(current);
    check(set.base, at, packet, old, new)?;
    // With a partial checksum only the pseudo-header counts, of which nothing changes.
    let is_summed = !is_transport || !is_partial;
    let own = match set.checksum {
        Checksum::Inet(offset) if is_summed => {
            // Of the IP header only IPv4 has one.
            let is_its = packet.family == Family::Ip && usize::from(offset) == IPV4_CHECK;
            if !is_transport && !is_its {
                return Err(WRITES_FIELD);
            }
            Some(place(packet.skb, base + usize::from(offset), 2)?.start)
        }
        Checksum::Sctp if has_protocol(packet, IPPROTO_SCTP) && !is_partial => {
            return Err(WRITES_FIELD);
        }
        _ => None,
    };
    let of_transport = match set.pseudo_header && is_summed {
        true => transport_checksum(packet)?,
        false => None,
    };
    let packet = packet.skb.network_header_mut();
    if let Some(field) = own {
        change(packet, field, |check| mangled(replace(check, old, new)));
    }
    if let Some(field) = of_transport {
        change(packet, field, |check| match is_partial {
            true => replace_partial(check, old, new),
            false => mangled(replace(check, old, new)),
        });
    }
    if let Some(to) = packet.get_mut(at..).and_then(|rest| rest.get_mut(..new.len())) {
        to.copy_from_slice(new);
    }
    Ok(())
}

/// Whether the kernel has made the priority of a VLAN tag of the type of service already (`ip_forward`), which is made
/// here when the tag is written.
fn makes_priority(packet: &Packet<'_>) -> bool {
    let vlan = packet.oif.and_then(|oif| oif.vlan.as_ref());
    packet.family == Family::Ip
        && vlan.is_some_and(|vlan| vlan.tags.iter().any(|egress| !egress.qos.is_empty()))
}

/// The place of octets in the head of a packet, from the network header.
///
/// # Errors
/// [`Flow::Break`] if the packet ends before, or the reason why they are not written here.
fn place(skb: &SkBuff, at: usize, len: usize) -> Result<std::ops::Range<usize>, Flow> {
    let end = at.saturating_add(len);
    match end {
        _ if end > skb.network_len() => Err(Flow::Break),
        _ if end > skb.network_header().len().min(WRITABLE_LEN) => Err(WRITES_FAR),
        _ => Ok(at..end),
    }
}

/// Whether these octets, at `at` from the network header, may become others.
///
/// # Errors
/// The reason why the kernel must write them.
fn check(
    base: PayloadBase,
    at: usize,
    packet: &Packet<'_>,
    old: &[u8],
    new: &[u8],
) -> Result<(), Flow> {
    let is_tracked = packet.ct != Ct::Off;
    if base == PayloadBase::Transport {
        return if is_tracked { Err(Flow::Kernel(WRITES_TUPLE)) } else { Ok(()) };
    }
    let is_ipv4 = packet.family == Family::Ip;
    let addresses = if is_ipv4 { IPV4_ADDRESSES..IPV4_HLEN } else { IPV6_ADDRESSES..IPV6_HLEN };
    for ((at, old), new) in (at..).zip(old).zip(new) {
        if old != new && !is_writable(is_ipv4, at, old ^ new) {
            return Err(WRITES_FIELD);
        }
        if addresses.contains(&at) && is_tracked {
            return Err(Flow::Kernel(WRITES_TUPLE));
        }
        if at == IPV4_TOS && old != new && makes_priority(packet) {
            return Err(WRITES_PRIORITY);
        }
    }
    Ok(())
}

/// Whether these bits of the octet at `at` of an IP header may change: DSCP, ECN, identification, flow label, TTL,
/// hop limit, addresses.
fn is_writable(is_ipv4: bool, at: usize, bits: u8) -> bool {
    match (is_ipv4, at) {
        (true, IPV4_TOS | 4 | 5 | IPV4_TTL) => true,
        (true, _) => (IPV4_ADDRESSES..IPV4_HLEN).contains(&at),
        (false, 0) => bits & 0xf0 == 0,
        (false, 1..=3 | IPV6_HOP_LIMIT) => true,
        (false, _) => (IPV6_ADDRESSES..IPV6_HLEN).contains(&at),
    }
}

fn has_protocol(packet: &Packet<'_>, protocol: u8) -> bool {
    packet.transport.l4.is_some_and(|(of_packet, _)| of_packet == protocol)
}

/// `nft_payload_l4csum_offset`: where the transport checksum is, from the network header. `None`: there is none.
///
/// # Errors
/// The packet ends before it, or it is too far behind: the kernel decides.
fn transport_checksum(packet: &Packet<'_>) -> Result<Option<usize>, Flow> {
    let Some((protocol, transport)) = packet.transport.l4.filter(|_| packet.transport.fragoff == 0)
    else {
        return Ok(None);
    };
    let offset = match protocol {
        IPPROTO_TCP => 16,
        IPPROTO_UDP => {
            // A header that is not whole, or without a checksum.
            if transport.saturating_add(UDP_HLEN) > packet.skb.network_len() {
                return Ok(None);
            }
            match packet.skb.network_chunk_at::<2>(transport.saturating_add(6)) {
                Some([0, 0]) => return Ok(None),
                _ => 6,
            }
        }
        IPPROTO_UDPLITE => 6,
        IPPROTO_ICMPV6 => 2,
        _ => return Ok(None),
    };
    match place(packet.skb, transport.saturating_add(offset), 2) {
        Ok(field) => Ok(Some(field.start)),
        // The kernel has then changed the checksum of the IP header already.
        Err(_) => Err(WRITES_FAR),
    }
}

/// `nft_csum_replace`: 0 becomes the other zero, in checksums of all protocols.
fn mangled(check: u16) -> u16 {
    if check == 0 { CSUM_MANGLED_0 } else { check }
}

/// Changes a checksum field, in network byte order.
fn change(packet: &mut [u8], field: usize, to: impl FnOnce(u16) -> u16) {
    if let Some(octets) = packet.get_mut(field..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        *octets = to(u16::from_be_bytes(*octets)).to_be_bytes();
    }
}

/// The targets of iptables.
///
/// # Errors
/// The header is not in the head: the kernel decides.
fn mangle(mangle: Mangle, packet: &mut Packet<'_>) -> Result<(), Flow> {
    if matches!(mangle, Mangle::Dsfield { .. }) && makes_priority(packet) {
        return Err(WRITES_PRIORITY);
    }
    if packet.family == Family::Ip {
        let header = packet.skb.network_chunk_mut::<IPV4_HLEN>().ok_or(WRITES_FAR)?;
        mangle4(mangle, header);
    } else {
        let header = packet.skb.network_chunk_mut::<IPV6_HLEN>().ok_or(WRITES_FAR)?;
        mangle6(mangle, header);
    }
    Ok(())
}

/// `dscp_tg`, `tos_tg`, `ttl_tg`.
fn mangle4(mangle: Mangle, header: &mut [u8; IPV4_HLEN]) {
    let check = u16::from_be_bytes([header[IPV4_CHECK], header[IPV4_CHECK + 1]]);
    let check = match mangle {
        Mangle::Dsfield { keep, value } => {
            let (old, new) = (header[IPV4_TOS], header[IPV4_TOS] & keep ^ value);
            header[IPV4_TOS] = new;
            if old == new { check } else { change_dsfield(check, old, new) }
        }
        Mangle::Ttl(mode, by) | Mangle::HopLimit(mode, by) => {
            let (old, new) = (header[IPV4_TTL], mode.apply(header[IPV4_TTL], by));
            header[IPV4_TTL] = new;
            let word = |ttl: u8| u16::from(ttl) << 8;
            if old == new { check } else { update16(check, word(old), word(new)) }
        }
    };
    header[IPV4_CHECK..IPV4_CHECK + 2].copy_from_slice(&check.to_be_bytes());
}

/// `dscp_tg6`, `tos_tg6`, `hl_tg6`.
fn mangle6(mangle: Mangle, header: &mut [u8; IPV6_HLEN]) {
    match mangle {
        Mangle::Dsfield { keep, value } => {
            let word = u16::from_be_bytes([header[0], header[1]]);
            let new = (word >> 4) as u8 & keep ^ value;
            let word = word & 0xf00f | u16::from(new) << 4;
            header[..2].copy_from_slice(&word.to_be_bytes());
        }
        Mangle::Ttl(mode, by) | Mangle::HopLimit(mode, by) => {
            header[IPV6_HOP_LIMIT] = mode.apply(header[IPV6_HOP_LIMIT], by);
        }
    }
}

/// `ipv4_change_dsfield`: the checksum of an IPv4 header whose second octet changes. Unlike [`update16`] it adds the
/// old octet to the checksum and subtracts the new one, which gives the other zero for some headers.
fn change_dsfield(check: u16, old: u8, new: u8) -> u16 {
    let mut check = u32::from(check) + u32::from(old);
    if check >= 0xffff {
        check = (check + 1) & 0xffff;
    }
    let check = check.wrapping_sub(new.into());
    // A borrow is taken from the lowest bit.
    check.wrapping_add(check >> 16) as u16
}
