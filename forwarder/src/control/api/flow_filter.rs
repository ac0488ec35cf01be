//! Which flows are listed: the filters of `conntrack -L`, as far as they have a meaning for flows.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xdp_prog::offload::Width;

use super::Family;
use crate::control::config::ipnet::IpNet;
use crate::control::conntrack::{IPS_DST_NAT, IPS_SRC_NAT, Tuple, has_ports};

/// Bits and the value that they must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Masked {
    /// The value.
    pub value: u32,
    /// The bits that are compared.
    pub mask: u32,
}

impl Masked {
    /// Whether a number has the value.
    pub fn passes(self, number: u32) -> bool {
        number & self.mask == self.value
    }
}

/// Which flows are listed. A field that is not given matches everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct FlowFilter {
    /// Of one family.
    pub family: Option<Family>,
    /// Of a protocol. Entries for all packets with their addresses are of none.
    pub protocol: Option<u8>,
    /// Source and destination of the original direction.
    pub original: [Option<IpNet>; 2],
    /// Source and destination of the reply direction: connections only.
    pub reply: [Option<IpNet>; 2],
    /// Source and destination port of the original direction.
    pub ports: [Option<u16>; 2],
    /// The mark.
    pub mark: Option<Masked>,
    /// `ct->status`: connections only.
    pub status: Option<Masked>,
    /// The state of the protocol, as `conntrack` names it: connections only.
    pub state: Option<String>,
    /// The zone of the connection.
    pub zone: Option<u16>,
    /// The source is translated, to this address if one is given.
    pub src_nat: Option<Option<IpAddr>>,
    /// The destination is translated, to this address if one is given.
    pub dst_nat: Option<Option<IpAddr>>,
    /// Packets of a direction arrive on this interface.
    pub iif: Option<String>,
    /// Packets of a direction leave by this interface.
    pub oif: Option<String>,
    /// The XDP program forwards packets of a direction by itself: yes, no.
    pub offloaded: Option<bool>,
}

/// The state that TCP connections have while they are carried: those that are opened or closed are the kernel's.
const CARRIED_STATE: &str = "ESTABLISHED";
/// The zone that connections have which are carried.
const CARRIED_ZONE: u16 = 0;

/// What a filter looks at of a connection.
#[derive(Debug, Clone, Copy)]
pub struct FilteredConnection {
    /// Original and reply.
    pub tuples: [Tuple; 2],
    /// `ct->status`.
    pub status: u32,
    /// `ct->mark`.
    pub mark: u32,
}

impl FlowFilter {
    /// Whether a carried connection matches, apart from what [`FlowFilter::passes_way`] looks at.
    pub fn passes_connection(&self, of: &FilteredConnection) -> bool {
        let [original, reply] = of.tuples;
        let translated = reply.inverted();
        let is_translated =
            |wanted: Option<Option<IpAddr>>, bit, before: (IpAddr, u16), after: (IpAddr, u16)| {
                wanted.is_none_or(|to| {
                    let is_to = |to| before.0 != after.0 && to == after.0;
                    of.status & bit != 0 && before != after && to.is_none_or(is_to)
                })
            };
        let source = |it: &Tuple| (it.source, it.source_port);
        let destination = |it: &Tuple| (it.destination, it.destination_port);
        self.passes_tuple(&original)
            && is_in(self.reply[0], IpNet::host(reply.source))
            && is_in(self.reply[1], IpNet::host(reply.destination))
            && self.mark.is_none_or(|mark| mark.passes(of.mark))
            && self.status.is_none_or(|status| status.passes(of.status))
            && self.zone.is_none_or(|zone| zone == CARRIED_ZONE)
            && self.state.as_ref().is_none_or(|state| {
                original.protocol == libc::IPPROTO_TCP as u8
                    && state.eq_ignore_ascii_case(CARRIED_STATE)
            })
            && is_translated(self.src_nat, IPS_SRC_NAT, source(&original), source(&translated))
            && is_translated(
                self.dst_nat,
                IPS_DST_NAT,
                destination(&original),
                destination(&translated),
            )
    }

    /// The same of an entry that is of no connection.
    pub fn passes_entry(&self, tuple: &Tuple) -> bool {
        self.passes_tuple(tuple)
            && self.reply == [None; 2]
            // Packets with a mark are not offloaded.
            && self.mark.is_none_or(|mark| mark.passes(0))
            && (self.status.is_none() && self.state.is_none() && self.zone.is_none())
            && (self.src_nat.is_none() && self.dst_nat.is_none())
    }

    fn passes_tuple(&self, tuple: &Tuple) -> bool {
        let is_port = |wanted: Option<u16>, port: u16| {
            wanted.is_none_or(|wanted| has_ports(tuple.protocol) && wanted == port)
        };
        let is_wide = Width::of(tuple.protocol).is_some();
        let [from, to] = prefixes(tuple);
        self.family.is_none_or(|family| family == Family::of(tuple.source))
            && self.protocol.is_none_or(|protocol| !is_wide && protocol == tuple.protocol)
            && is_in(self.original[0], from)
            && is_in(self.original[1], to)
            && is_port(self.ports[0], tuple.source_port)
            && is_port(self.ports[1], tuple.destination_port)
    }

    /// Whether it matters how packets are forwarded.
    pub fn has_way(&self) -> bool {
        self.iif.is_some() || self.oif.is_some() || self.offloaded.is_some()
    }

    /// Whether the interfaces of one of the directions match, and whether one of them is offloaded.
    pub fn passes_way<'a>(
        &self,
        directions: impl IntoIterator<Item = (Option<&'a str>, Option<&'a str>)>,
        is_offloaded: bool,
    ) -> bool {
        let is_it =
            |wanted: &Option<String>, name| wanted.as_deref().is_none_or(|it| name == Some(it));
        self.offloaded.is_none_or(|offloaded| offloaded == is_offloaded)
            && directions
                .into_iter()
                .any(|(iif, oif)| is_it(&self.iif, iif) && is_it(&self.oif, oif))
    }

    /// The two addresses, if single ones are given.
    pub fn pair(&self) -> Option<[IpAddr; 2]> {
        let host = |net: Option<IpNet>| {
            net.filter(|net| *net == IpNet::host(net.addr)).map(|net| net.addr)
        };
        let [from, to] = self.original.map(host);
        let (from, to) = (from?, to?);
        (from.is_ipv4() == to.is_ipv4()).then_some([from, to])
    }
}

/// Whether packets of a prefix may be in another one, which is given.
fn is_in(wanted: Option<IpNet>, of: IpNet) -> bool {
    wanted.is_none_or(|wanted| wanted.covers(of) || of.covers(wanted))
}

/// The prefixes that the addresses of an entry stand for: single addresses, unless it is wide.
pub fn prefixes(tuple: &Tuple) -> [IpNet; 2] {
    let hosts = [tuple.source, tuple.destination].map(IpNet::host);
    let len = if tuple.source.is_ipv4() { Width::PREFIX4 } else { Width::PREFIX6 };
    let wide = |host: IpNet| IpNet { len, ..host };
    match Width::of(tuple.protocol) {
        Some(Width::Prefixes) => hosts.map(wide),
        Some(Width::ToPrefix) => [hosts[0], wide(hosts[1])],
        Some(Width::Addresses) | None => hosts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Option<IpNet> {
        Some(text.parse().expect("a prefix"))
    }

    fn tuple(source: &str, destination: &str, protocol: u8, ports: [u16; 2]) -> Tuple {
        Tuple {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            protocol,
            source_port: ports[0],
            destination_port: ports[1],
        }
    }

    /// A connection whose source is translated to 203.0.113.1.
    fn connection() -> FilteredConnection {
        let original = tuple("10.0.0.1", "192.0.2.1", 6, [1024, 443]);
        let reply = tuple("192.0.2.1", "203.0.113.1", 6, [443, 1024]);
        FilteredConnection { tuples: [original, reply], status: IPS_SRC_NAT | 6, mark: 0x12 }
    }

    #[test]
    fn each_filter_decides_about_connections() {
        let all = FlowFilter::default;
        let to = |text: &str| Some(Some(text.parse().expect("an address")));
        for (filter, passes) in [
            (all(), true),
            (FlowFilter { family: Some(Family::Inet), ..all() }, true),
            (FlowFilter { family: Some(Family::Inet6), ..all() }, false),
            (FlowFilter { protocol: Some(6), ..all() }, true),
            (FlowFilter { protocol: Some(17), ..all() }, false),
            (FlowFilter { original: [net("10.0.0.0/8"), net("192.0.2.1")], ..all() }, true),
            (FlowFilter { original: [net("192.0.2.1"), None], ..all() }, false),
            (FlowFilter { reply: [net("192.0.2.1"), net("203.0.113.0/24")], ..all() }, true),
            (FlowFilter { reply: [None, net("10.0.0.1")], ..all() }, false),
            (FlowFilter { ports: [Some(1024), Some(443)], ..all() }, true),
            (FlowFilter { ports: [Some(443), None], ..all() }, false),
            (FlowFilter { mark: Some(Masked { value: 2, mask: 0xf }), ..all() }, true),
            (FlowFilter { mark: Some(Masked { value: 2, mask: 0xff }), ..all() }, false),
            (FlowFilter { status: Some(Masked { value: 4, mask: 4 }), ..all() }, true),
            (FlowFilter { status: Some(Masked { value: 0, mask: 2 }), ..all() }, false),
            (FlowFilter { state: Some("established".into()), ..all() }, true),
            (FlowFilter { state: Some("TIME_WAIT".into()), ..all() }, false),
            (FlowFilter { zone: Some(0), ..all() }, true),
            (FlowFilter { zone: Some(1), ..all() }, false),
            (FlowFilter { src_nat: Some(None), ..all() }, true),
            (FlowFilter { src_nat: to("203.0.113.1"), ..all() }, true),
            (FlowFilter { src_nat: to("203.0.113.2"), ..all() }, false),
            (FlowFilter { dst_nat: Some(None), ..all() }, false),
        ] {
            assert_eq!(filter.passes_connection(&connection()), passes, "{filter:?}");
        }
    }

    #[test]
    fn entries_for_prefixes_match_addresses_in_them() {
        let all = FlowFilter::default;
        let wide = tuple("10.0.0.1", "10.7.1.0", Width::ToPrefix.protocol(), [0, 0]);
        for (filter, passes) in [
            (all(), true),
            (FlowFilter { original: [None, net("10.7.1.9")], ..all() }, true),
            (FlowFilter { original: [None, net("10.7.0.0/16")], ..all() }, true),
            (FlowFilter { original: [None, net("10.7.2.9")], ..all() }, false),
            (FlowFilter { original: [net("10.0.0.2"), None], ..all() }, false),
            // It stands for all protocols, and is of no connection.
            (FlowFilter { protocol: Some(254), ..all() }, false),
            (FlowFilter { ports: [None, Some(0)], ..all() }, false),
            (FlowFilter { mark: Some(Masked { value: 0, mask: u32::MAX }), ..all() }, true),
            (FlowFilter { mark: Some(Masked { value: 1, mask: 1 }), ..all() }, false),
            (FlowFilter { zone: Some(0), ..all() }, false),
            (FlowFilter { src_nat: Some(None), ..all() }, false),
        ] {
            assert_eq!(filter.passes_entry(&wide), passes, "{filter:?}");
        }
    }

    #[test]
    fn interfaces_are_those_of_one_direction() {
        let of = |iif: Option<&str>, oif: Option<&str>, offloaded| FlowFilter {
            iif: iif.map(str::to_owned),
            oif: oif.map(str::to_owned),
            offloaded,
            ..FlowFilter::default()
        };
        let ways = [(Some("lan"), Some("wan")), (Some("wan"), Some("lan"))];
        assert!(of(Some("lan"), Some("wan"), None).passes_way(ways, false));
        assert!(!of(Some("lan"), Some("lan"), None).passes_way(ways, false));
        assert!(of(None, Some("lan"), Some(true)).passes_way(ways, true));
        assert!(!of(None, None, Some(true)).passes_way(ways, false));
        assert!(of(None, None, Some(false)).passes_way(ways, false));
        assert!(!of(Some("lan"), None, None).passes_way([(None, None)], false));
    }

    #[test]
    fn a_pair_is_two_addresses() {
        let of = |from, to| FlowFilter { original: [net(from), net(to)], ..FlowFilter::default() };
        assert!(of("10.0.0.1", "10.0.0.2").pair().is_some());
        assert!(of("10.0.0.0/31", "10.0.0.2").pair().is_none());
        assert!(of("10.0.0.1", "2001:db8::1").pair().is_none());
        assert!(FlowFilter::default().pair().is_none());
    }
}
