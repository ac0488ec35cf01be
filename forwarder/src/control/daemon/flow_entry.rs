//! Which entries of the kernel's connection tracking table are carried, and their keys.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::control::conntrack::{
    Entry, IPS_ASSURED, IPS_CONFIRMED, IPS_DST_NAT, IPS_DYING, IPS_FIXED_TIMEOUT, IPS_HELPER,
    IPS_HW_OFFLOAD, IPS_OFFLOAD, IPS_SEEN_REPLY, IPS_SEQ_ADJUST, IPS_SRC_NAT, IPS_TEMPLATE,
    IPS_UNTRACKED, TCP_CONNTRACK_ESTABLISHED, Tuple,
};
use crate::netfilter::conntrack::{FlowKey, TupleKind};
use crate::netfilter::nft::Tracking;
use crate::wire::esp::UDP_PORT;

/// States in which an entry's packets are the kernel's.
const NOT_CARRIED: u32 = IPS_SEQ_ADJUST
    | IPS_DYING
    | IPS_FIXED_TIMEOUT
    | IPS_TEMPLATE
    | IPS_UNTRACKED
    | IPS_HELPER
    | IPS_OFFLOAD
    | IPS_HW_OFFLOAD;
/// What an entry must have; those of TCP, UDP and GRE also IPS_ASSURED, which the others never get.
const REQUIRED: u32 = IPS_SEEN_REPLY | IPS_CONFIRMED;

pub(super) const IPPROTO_TCP: u8 = 6;
pub(super) const IPPROTO_UDP: u8 = 17;
pub(super) const IPPROTO_GRE: u8 = 47;
const IPPROTO_ESP: u8 = 50;
const IPPROTO_AH: u8 = 51;

/// The router's own addresses: sessions that begin or, after NAT, end at the router are not carried, unless they are of
/// IPsec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Locals {
    pub(super) ipv4: BTreeSet<(Ipv4Addr, u8)>,
    pub(super) ipv6: BTreeSet<(Ipv6Addr, u8)>,
}

impl Locals {
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let shift = |bits: u32, len: u8| bits - u32::from(len).min(bits);
        match address {
            IpAddr::V4(address) => {
                let within = |(net, len): &(Ipv4Addr, u8)| {
                    let differ = u64::from(net.to_bits() ^ address.to_bits());
                    differ >> shift(32, *len) == 0
                };
                self.ipv4.contains(&(address, 32))
                    || self.ipv4.iter().filter(|(_, len)| *len < 32).any(within)
            }
            IpAddr::V6(address) => {
                let within = |(net, len): &(Ipv6Addr, u8)| {
                    let differ = net.to_bits() ^ address.to_bits();
                    differ.checked_shr(shift(128, *len)).unwrap_or(0) == 0
                };
                self.ipv6.contains(&(address, 128))
                    || self.ipv6.iter().filter(|(_, len)| *len < 128).any(within)
            }
        }
    }
}

/// Which connections can be carried.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    pub(super) locals: Arc<Locals>,
    /// Of IPv4 and IPv6, which connections the ruleset needs.
    pub(super) tracking: [Tracking; 2],
}

/// Whether packets of an entry can be carried, as far as an event tells.
pub(super) fn may_be_carried(entry: &Entry, scope: &Scope) -> bool {
    let Scope { locals, tracking: [ipv4, ipv6] } = scope;
    let Entry { original, reply, status, .. } = entry;
    // What NAT makes of packets of the original direction. Another translation is not known here.
    let translated = reply.inverted();
    let has = |bits: u32| status & bits != 0;
    let destination = |it: &Tuple| (it.destination, it.destination_port);
    // The translation of either end may change the identifier of echo.
    let is_echo = kind(original) == Some(TupleKind::Echo);
    let of_source_port = if is_echo { IPS_SRC_NAT | IPS_DST_NAT } else { IPS_SRC_NAT };
    let is_understood = (original.source == translated.source || has(IPS_SRC_NAT))
        && (original.source_port == translated.source_port || has(of_source_port))
        && (destination(original) == destination(&translated) || has(IPS_DST_NAT))
        && have_keys(original, reply);
    let (is_local, is_ipsec) = (is_local(original, reply, locals), is_ipsec(entry, locals));
    let is_needed = match if original.source.is_ipv4() { ipv4 } else { ipv6 } {
        Tracking::Off => false,
        Tracking::Local => is_ipsec,
        Tracking::All => !is_local || is_ipsec,
    };
    let is_assured = status & IPS_ASSURED != 0;
    let is_established = match original.protocol {
        IPPROTO_TCP => {
            is_assured && entry.tcp.is_none_or(|tcp| tcp.state == TCP_CONNTRACK_ESTABLISHED)
        }
        IPPROTO_UDP => is_assured,
        // Without CONFIG_NF_CT_PROTO_GRE it never is.
        IPPROTO_GRE => is_assured,
        _ => true,
    };
    is_established
        && status & REQUIRED == REQUIRED
        && status & NOT_CARRIED == 0
        && entry.zone == 0
        && is_understood
        && !(entry.has_helper || entry.is_seq_adjusted || entry.has_synproxy)
        && is_needed
}

/// What a tuple has besides addresses. `None`: connections of its protocol are not carried.
fn kind(tuple: &Tuple) -> Option<TupleKind> {
    TupleKind::of(tuple.protocol, if tuple.source.is_ipv4() { 4 } else { 6 })
}

/// Whether packets have the keys of an entry's tuples: of ICMP, echo requests and replies, and of GRE, what has no keys.
fn have_keys(original: &Tuple, reply: &Tuple) -> bool {
    match kind(original) {
        Some(TupleKind::Ports) => true,
        Some(TupleKind::Echo) => {
            let types = TupleKind::echo_types(if original.source.is_ipv4() { 4 } else { 6 });
            let of_tuples = [original.destination_port, reply.destination_port];
            of_tuples == types.map(|kind| u16::from(kind) << 8)
        }
        Some(TupleKind::Addresses) => {
            let ports = |it: &Tuple| it.source_port | it.destination_port;
            ports(original) | ports(reply) == 0
        }
        None => false,
    }
}

/// Whether entries of a protocol never get IPS_ASSURED, if they are carried.
pub(super) fn is_never_assured(protocol: u8) -> bool {
    !matches!(protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_GRE)
}

/// Whether a session begins or ends at the router: its packets are not forwarded.
pub(super) fn is_local(original: &Tuple, reply: &Tuple, locals: &Locals) -> bool {
    [original.source, reply.source].iter().any(|addr| locals.contains(*addr))
}

/// Whether it is one of ESP, AH, or ESP in UDP with the router at one end, without NAT. (The kernel takes an
/// Authentication Header of IPv6 for an extension header: it has no such entry.)
fn is_ipsec(entry: &Entry, locals: &Locals) -> bool {
    let Entry { original, reply, status, .. } = entry;
    let own_port = match locals.contains(original.source) {
        true => original.source_port,
        false => original.destination_port,
    };
    let is_protocol = match original.protocol {
        IPPROTO_UDP => own_port == UDP_PORT,
        IPPROTO_AH => original.source.is_ipv4(),
        protocol => protocol == IPPROTO_ESP,
    };
    let ends = [original.source, reply.source].map(|addr| locals.contains(addr));
    is_protocol && ends[0] != ends[1] && status & (IPS_SRC_NAT | IPS_DST_NAT) == 0
}

/// Whether the source of an entry is translated to an address of the router.
pub(super) fn is_masqueraded(entry: &Entry, locals: &Locals) -> bool {
    entry.status & IPS_SRC_NAT != 0 && locals.contains(entry.reply.destination)
}

/// The same of an entry with all its attributes.
pub(super) fn is_carriable(entry: &Entry, scope: &Scope) -> bool {
    let has_state = entry.tcp.is_some() || entry.original.protocol != IPPROTO_TCP;
    has_state && may_be_carried(entry, scope)
}

pub(super) fn flow_key(tuple: &Tuple) -> FlowKey {
    let Tuple { source, destination, protocol, source_port, destination_port } = *tuple;
    FlowKey::new(source, destination, protocol, source_port, destination_port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::conntrack::tests::bare;

    const REPLIED: u32 = IPS_SEEN_REPLY | IPS_CONFIRMED;

    fn tuple(from: &str, to: &str, protocol: u8, ports: [u16; 2]) -> Tuple {
        let [source, destination] = [from, to].map(|address| address.parse().expect("an address"));
        let [source_port, destination_port] = ports;
        Tuple { source, destination, protocol, source_port, destination_port }
    }

    fn entry(original: Tuple, reply: Tuple, status: u32) -> Entry {
        Entry { status, timeout_s: Some(30), id: Some(1), ..bare(original, reply) }
    }

    fn is_carried(entry: &Entry, tracking: Tracking) -> bool {
        let mut locals = Locals::default();
        locals.ipv4.insert(([203, 0, 113, 1].into(), 32));
        is_carriable(entry, &Scope { locals: Arc::new(locals), tracking: [tracking; 2] })
    }

    #[test]
    fn echo_is_carried_with_the_identifiers_that_nat_gives_it() {
        let (client, server, public) = ("10.0.0.1", "192.0.2.1", "203.0.113.1");
        let of = |to: &str, ids: [u16; 2], types: [u16; 2], status| {
            let original = tuple(client, server, 1, [ids[0], types[0]]);
            entry(original, tuple(server, to, 1, [ids[1], types[1]]), status)
        };
        let echo = [0x0800, 0];
        for (it, expected) in [
            (of(client, [7, 7], echo, REPLIED), true),
            (of(client, [7, 7], echo, IPS_CONFIRMED), false),
            (of(public, [7, 7], echo, REPLIED | IPS_SRC_NAT), true),
            (of(public, [7, 9], echo, REPLIED | IPS_SRC_NAT), true),
            (of(client, [7, 9], echo, REPLIED | IPS_DST_NAT), true),
            // Translated by something else.
            (of(client, [7, 9], echo, REPLIED), false),
            (of(public, [7, 7], echo, REPLIED), false),
            // Time stamps, and a code.
            (of(client, [7, 7], [0x0d00, 0x0e00], REPLIED), false),
            (of(client, [7, 7], [0x0801, 0x0001], REPLIED), false),
        ] {
            assert_eq!(is_carried(&it, Tracking::All), expected, "{it:?}");
        }
        let six = ["2001:db8::1", "2001:db8::2"];
        let original = tuple(six[0], six[1], 58, [7, 0x8000]);
        let answer = |kind| tuple(six[1], six[0], 58, [7, kind]);
        assert!(is_carried(&entry(original, answer(0x8100), REPLIED), Tracking::All));
        assert!(!is_carried(&entry(original, answer(0x8000), REPLIED), Tracking::All));
        // To the router itself.
        let to_it =
            entry(tuple(client, public, 1, [7, 0x0800]), tuple(public, client, 1, [7, 0]), REPLIED);
        assert!(!is_carried(&to_it, Tracking::All));
    }

    #[test]
    fn tunnels_that_pass_are_carried_and_those_of_ipsec_to_the_router() {
        let of = |to: &str, protocol, ports, status| {
            let original = tuple("10.0.0.1", to, protocol, ports);
            entry(original, tuple(to, "10.0.0.1", protocol, ports), status)
        };
        let (server, router) = ("192.0.2.1", "203.0.113.1");
        for protocol in [4, 41, 50, 51] {
            assert!(is_carried(&of(server, protocol, [0; 2], REPLIED), Tracking::All));
            assert!(!is_carried(&of(server, protocol, [0; 2], IPS_CONFIRMED), Tracking::All));
            assert!(!is_carried(&of(server, protocol, [0; 2], REPLIED), Tracking::Local));
            let is_ipsec = [50, 51].contains(&protocol);
            let to_router = of(router, protocol, [0; 2], REPLIED);
            assert_eq!(is_carried(&to_router, Tracking::All), is_ipsec, "{protocol}");
        }
        let assured = REPLIED | IPS_ASSURED;
        assert!(is_carried(&of(server, IPPROTO_GRE, [0; 2], assured), Tracking::All));
        assert!(!is_carried(&of(server, IPPROTO_GRE, [0; 2], REPLIED), Tracking::All));
        assert!(!is_carried(&of(server, IPPROTO_GRE, [5, 5], assured), Tracking::All));
        for protocol in [0, 59, 89, 132, 136] {
            assert!(!is_carried(&of(server, protocol, [0; 2], assured), Tracking::All));
        }
    }
}
