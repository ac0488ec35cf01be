//! Offers the flow of a packet that is sent to be offloaded, see [`super::offload`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use xdp_prog::offload::Width;
use xdp_prog::{VlanKey, vlan_key};

use super::Ctx;
use super::dst::Dst;
use super::encap::is_left_to_workers;
use super::eth_input::is_l2_multicast;
use super::offload::{FlowMeter, OFFERS, Offer, OffloadPorts, wide_hash};
use crate::fib::{FibInfo, Prefix4, Prefix6};
use crate::netfilter::conntrack::FlowKey;
use crate::skb::SkBuff;
use crate::tables::{EgressTag, Forwarding6, Link, Tables};
use crate::wire::vlan::HEADER_LEN as TAG_LEN;
use crate::wire::{EtherType, Ipv4Packet, Ipv6Packet, ethernet, ipv6};

/// Longest packets of an offloaded flow, octets.
const MTU_MAX: u32 = 0x7fff;

/// A packet, received on `dev`, was routed and has passed all hooks: its flow is offered if that is due.
#[inline(never)]
pub(super) fn offer(
    skb: &SkBuff,
    protocol: EtherType,
    dev: &Link,
    dst: &Dst<'_>,
    ctx: &mut Ctx<'_>,
) {
    let Some(on) = &mut ctx.state.offload.on else { return };
    let due = on.due.take();
    if due.is_none() && dev.partial_csum && is_left(skb, protocol) {
        return;
    }
    let is_open = on.ports.has(skb.port, OffloadPorts::RX)
        && on.ports.has(dst.port, OffloadPorts::TX)
        && ctx.out.offers.len() < OFFERS;
    // Without rules, what is done with a packet depends on its addresses only. The mark of packets of a connection is
    // part of what was decided.
    let is_wide = due.is_none();
    let has_policies = ctx.tables.xfrm.concern_any();
    let is_seen =
        || !ctx.hooks.is_empty() || has_policies && ctx.tables.xfrm.see_more_than_addresses();
    let is_marked = is_wide && skb.mark != 0;
    if !is_open || is_marked || !is_simple(skb, dev, dst) || (is_wide && is_seen()) {
        return;
    }
    let (Some(in_dev), Some(tags)) = (dev.flow_number(), tags_of(dst.dev)) else { return };
    let Some(lladdr) = dst.neigh.and_then(|neigh| neigh.lladdr) else { return };
    let [from, to] = match protocol {
        EtherType::IPV4 => {
            let packet = Ipv4Packet::new_unchecked(skb.network_header());
            [packet.src_addr().into(), packet.dst_addr().into()]
        }
        _ if is_wide && !may_be_wide6(dev) => return,
        _ => {
            let packet = Ipv6Packet::new_unchecked(skb.network_header());
            [packet.src_addr().into(), packet.dst_addr().into()]
        }
    };
    let key = match &due {
        Some(due) => due.key,
        None => {
            let may_be = |width| {
                // A policy may be for a part of a prefix.
                !has_policies
                    && dst.gateway().is_some()
                    && is_uniform(width, from, to, dst.info, ctx.tables)
            };
            match wide_key(from, to, &mut on.meter, ctx.now_ns, may_be) {
                Some(key) => key,
                None => return,
            }
        }
    };
    // As received, and as it was routed. Addresses of a prefix have the same epochs.
    let [from, _] = key.addresses();
    let Some(basis) = ctx.tables.epochs.sum_of(from, to, on.changes) else { return };
    ctx.out.offers.push(Offer {
        key: *key.words(),
        in_dev,
        links: ctx.tables.links.id,
        in_port: skb.port,
        out_port: dst.port,
        tags,
        header_lens: [dev, dst.dev].map(header_len),
        mtu: dst.mtu.min(longest(dst, ctx.tables)) as u16,
        macs: [lladdr, dst.dev.mac],
        nexthop: (dst.dev.ifindex, dst.gateway().copied().unwrap_or(to)),
        basis,
        neigh_changes: on.neigh_changes,
        carried: due.map(|due| due.carried),
    });
}

/// Whether the XDP program would leave a packet to workers. (IPv6 packets with extension headers are not offloaded anyway.)
fn is_left(skb: &SkBuff, protocol: EtherType) -> bool {
    let head = skb.network_header();
    let (next, transport) = match protocol {
        EtherType::IPV4 => {
            let packet = Ipv4Packet::new_unchecked(head);
            (packet.protocol(), packet.header_len())
        }
        _ => (Ipv6Packet::new_unchecked(head).next_header(), ipv6::HEADER_LEN),
    };
    is_left_to_workers(skb, next, transport)
}

/// Counts a packet with these addresses, and returns the key of the widest entry that can stand for it, if there have
/// been enough packets of it, or of a narrower one. `may_be`: whether all packets of an entry for prefixes are treated as
/// this one.
fn wide_key(
    from: IpAddr,
    to: IpAddr,
    meter: &mut FlowMeter,
    now_ns: u64,
    may_be: impl Fn(Width) -> bool,
) -> Option<FlowKey> {
    let mut is_due = false;
    let mut widest = None;
    for width in [Width::Addresses, Width::ToPrefix, Width::Prefixes] {
        let source = if width == Width::Prefixes { prefix(from) } else { from };
        let destination = if width == Width::Addresses { to } else { prefix(to) };
        let key = FlowKey::new(source, destination, width.protocol(), 0, 0);
        is_due = is_due || meter.count(wide_hash(&key, meter.seed), now_ns);
        if is_due && (width == Width::Addresses || may_be(width)) {
            widest = Some(key);
        }
    }
    widest
}

/// The first address of the prefix that an address is in.
fn prefix(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Prefix4::masked(address.to_bits(), Width::PREFIX4).addr().into(),
        IpAddr::V6(address) => Prefix6::masked(address.to_bits(), Width::PREFIX6).addr().into(),
    }
}

/// Whether all packets with addresses in the prefixes that an entry of this width stands for have the route `sent_by`,
/// by which this one was sent, and sources that are valid or not alike. To be asked for packets that are sent to a gateway.
fn is_uniform(
    width: Width,
    from: IpAddr,
    to: IpAddr,
    sent_by: Option<&FibInfo>,
    tables: &Tables,
) -> bool {
    // Not one that the table has got since.
    let is_its = |route: &FibInfo| sent_by.is_some_and(|info| std::ptr::eq(info, route));
    let has_prefixes = width == Width::Prefixes;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let route = |address: Ipv4Addr| {
                // Some addresses there are martians.
                let is_usual = !matches!(address.octets()[0], 0 | 127 | 224..);
                let route = || tables.fib4.uniform_route(address.to_bits(), Width::PREFIX4);
                is_usual.then(route).flatten()
            };
            // Our addresses are no sources, even if the local table does not have them.
            let has_local = || {
                let first = from.to_bits() & !0xff;
                (first..=first | 0xff).any(|address| tables.links.is_local4(address))
            };
            route(to).is_some_and(is_its)
                && (!has_prefixes || (route(from).is_some() && !has_local()))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let route = |address: Ipv6Addr| {
                // The first prefix has the unspecified and the loopback address.
                let is_usual = address.segments()[..3] != [0; 3];
                let route = || tables.fib6.uniform_route(address.to_bits(), Width::PREFIX6);
                is_usual.then(route).flatten()
            };
            route(to).is_some_and(is_its) && (!has_prefixes || route(from).is_some())
        }
        _ => false,
    }
}

/// Length of the link-layer header of an interface's frames, octets.
fn header_len(dev: &Link) -> u8 {
    (ethernet::HEADER_LEN + tags(dev).len() * TAG_LEN) as u8
}

fn tags(dev: &Link) -> &[EgressTag] {
    dev.vlan.as_ref().map_or(&[], |vlan| &vlan.tags)
}

/// The longest packet, octets, whose frame the kernel redirects: a port has to be able to send it with one tag
/// (`xdp_ok_fwd_dev`).
fn longest(dst: &Dst<'_>, tables: &Tables) -> u32 {
    let room = tables.links.port(dst.port).map_or(0, |port| port.mtu as usize) + TAG_LEN;
    (room.saturating_sub(tags(dst.dev).len() * TAG_LEN) as u32).min(MTU_MAX)
}

/// The tags of frames that leave by an interface. `None`: their priority depends on the packet (`egress-qos-map`), and
/// not only on the received tags.
fn tags_of(dev: &Link) -> Option<VlanKey> {
    let tags = tags(dev);
    let is_kept = tags.iter().all(|egress| egress.qos.is_empty());
    is_kept.then(|| vlan_key(tags.iter().map(|egress| (egress.tag.tpid().0, egress.tag.vid()))))
}

/// Whether nothing but the packet's addresses and ports, and the interface, has decided about it.
fn is_simple(skb: &SkBuff, dev: &Link, dst: &Dst<'_>) -> bool {
    dev.port == Some(skb.port)
        && obstacle_between(dev, dst.dev, dst.is_multipath()).is_none()
        && dst.dev.up
        && dst.fits(skb)
        && !dst.redirect
        && !is_l2_multicast(skb)
}

/// What keeps the flows between two interfaces in userspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// They leave by the interface that they came from.
    SameInterface,
    /// The route has several next hops.
    Multipath,
    /// The priority in the tags of frames depends on the packet (`egress-qos-map`).
    EgressQosMap,
}

/// What keeps flows from one interface to another in userspace, whatever else is known of their packets.
pub fn obstacle(iif: &Link, oif: &Link, is_multipath: bool) -> Option<Obstacle> {
    let by_tags = || tags_of(oif).is_none().then_some(Obstacle::EgressQosMap);
    obstacle_between(iif, oif, is_multipath).or_else(by_tags)
}

/// The same, apart from the tags of frames.
#[inline(always)]
fn obstacle_between(iif: &Link, oif: &Link, is_multipath: bool) -> Option<Obstacle> {
    if iif.ifindex == oif.ifindex {
        Some(Obstacle::SameInterface)
    } else if is_multipath {
        Some(Obstacle::Multipath)
    } else {
        None
    }
}

/// Whether an entry may stand for all IPv6 packets with its addresses that are received on an interface: with
/// proxy_ndp, the kernel answers neighbour solicitations for others.
#[inline]
pub fn may_be_wide6(iif: &Link) -> bool {
    iif.forwarding6 == Forwarding6::On
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fib::prefix::{Address, Prefix};
    use crate::fib::{Lpm, RouteType};
    use std::sync::Arc;

    /// A table of these routes, which all differ.
    fn table<A: Address>(prefixes: &[&str]) -> Arc<Lpm<A>> {
        let prefixes = prefixes.iter().map(|prefix| prefix.parse::<Prefix<A>>().expect("a prefix"));
        Lpm::from_routes(prefixes.zip(1..)).expect("it fits")
    }

    /// As many unicast routes, and one that is none.
    fn infos(routes: u32) -> Arc<[Arc<FibInfo>]> {
        let info = |kind| Arc::new(FibInfo::special(kind));
        let unicast = (0..=routes).map(|_| info(RouteType::Unicast));
        unicast.chain([info(RouteType::Throw)]).collect()
    }

    #[test]
    fn prefixes_are_those_in_which_no_route_is_longer() {
        use Width::{Addresses, Prefixes, ToPrefix};
        let mut tables = Tables::empty();
        // The last one is a throw: the next table would be looked up.
        let routes = ["0.0.0.0/1", "10.0.0.0/8", "10.1.2.0/24", "10.3.3.128/25", "10.4.0.0/16"];
        tables.fib4.tables = Arc::new([table(&routes)]);
        tables.fib4.infos = infos(4);
        let routes = ["2000::/3", "2001:db8:1::/48", "2001:db8:2:1::/64"];
        tables.fib6.tables = Arc::new([table(&routes)]);
        tables.fib6.infos = infos(3);
        let widest = |from: &str, to: &str, tables: &Tables| {
            let [from, to] = [from, to].map(|address| address.parse().expect("an address"));
            let sent_by = match to {
                IpAddr::V4(to) => {
                    &tables.fib4.infos[tables.fib4.tables[0].lookup(to.to_bits()) as usize]
                }
                IpAddr::V6(to) => {
                    &tables.fib6.infos[tables.fib6.tables[0].lookup(to.to_bits()) as usize]
                }
            };
            let mut meter = FlowMeter::new(Arc::new(1.into()), 1);
            let may_be = |width| is_uniform(width, from, to, Some(sent_by), tables);
            let key = wide_key(from, to, &mut meter, 0, may_be).expect("it is due");
            (key.addresses().map(|address| address.to_string()), Width::of(key.protocol()))
        };
        let expect = |from: &str, to: &str, width| ([from.into(), to.into()], Some(width));
        for (from, to, expected) in [
            ("10.9.0.7", "10.1.2.3", expect("10.9.0.0", "10.1.2.0", Prefixes)),
            ("10.3.3.7", "10.1.2.3", expect("10.3.3.7", "10.1.2.0", ToPrefix)),
            // No route.
            ("192.0.2.1", "10.1.2.3", expect("192.0.2.1", "10.1.2.0", ToPrefix)),
            ("10.9.0.7", "10.3.3.1", expect("10.9.0.7", "10.3.3.1", Addresses)),
            // Some sources there are martians.
            ("0.0.0.7", "10.1.2.3", expect("0.0.0.7", "10.1.2.0", ToPrefix)),
            // Another table has them.
            ("10.4.0.7", "10.1.2.3", expect("10.4.0.7", "10.1.2.0", ToPrefix)),
            ("10.9.0.7", "10.4.2.3", expect("10.9.0.7", "10.4.2.3", Addresses)),
            ("2001:db8:1::9", "2001:db8:3::9", expect("2001:db8:1::", "2001:db8:3::", Prefixes)),
            ("2001:db8:2::9", "2001:db8:3::9", expect("2001:db8:2::9", "2001:db8:3::", ToPrefix)),
            ("2001:db8:1::9", "2001:db8:2::9", expect("2001:db8:1::9", "2001:db8:2::9", Addresses)),
        ] {
            assert_eq!(widest(from, to, &tables), expected);
        }
        // Rules may look at other tables.
        tables.fib4.merged = false;
        let single = expect("10.9.0.7", "10.1.2.3", Addresses);
        assert_eq!(widest("10.9.0.7", "10.1.2.3", &tables), single);
        // The packet was sent by a route that is no longer there.
        tables.fib4.merged = true;
        let other = Some(&*tables.fib4.infos[0]);
        let [from, to] = ["10.9.0.7", "10.1.2.3"].map(|text| text.parse().expect("an address"));
        assert!(!is_uniform(ToPrefix, from, to, other, &tables));
    }

    #[test]
    fn an_entry_is_as_wide_as_what_had_enough_packets_or_wider() {
        let mut meter = FlowMeter::new(Arc::new(64.into()), 1);
        let mut width = |from: [u8; 4], to: [u8; 4], uniform: &[Width]| {
            let key =
                wide_key(from.into(), to.into(), &mut meter, 0, |width| uniform.contains(&width));
            key.and_then(|key| Width::of(key.protocol()))
        };
        use Width::{Addresses, Prefixes, ToPrefix};
        // One packet each of many sources: nothing narrower than what has had them.
        let mut of_sources = |uniform: &[Width]| -> Vec<Width> {
            (0..128).filter_map(|n| width([10, 0, 0, n], [10, 1, 2, n], uniform)).collect()
        };
        assert_eq!(of_sources(&[Addresses, ToPrefix]), []);
        assert_eq!(of_sources(&[Addresses, ToPrefix, Prefixes]), [Prefixes, Prefixes]);
        let mut of_one = |uniform: &[Width]| -> Vec<Width> {
            (0..64).filter_map(|_| width([10, 9, 0, 1], [10, 1, 3, 1], uniform)).collect()
        };
        assert_eq!(of_one(&[Addresses]), [Addresses]);
        let wider = of_one(&[Addresses, ToPrefix]);
        assert!(!wider.is_empty() && wider.iter().all(|width| *width == ToPrefix), "{wider:?}");
    }
}
