//! Parses kernel messages, whole, truncated and with changed octets: no panic, and correct results.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::follow::Follower;
use super::super::parse;
use super::super::rib::RTNH_F_DEAD;
use super::super::state::{Family, Netconf};
use crate::control::netlink::message::{Message, Messages, Request};

/// RTM_NEWROUTE of `ip route add 192.0.2.0/24 proto static metric 5 mtu 1400 nexthop via 10.0.0.2
/// dev 3 weight 2 nexthop via inet6 fe80::1 dev 4`.
fn route_message() -> Vec<u8> {
    route_message_with(0)
}

/// The same; `flags`: of the first next hop.
fn route_message_with(flags: u8) -> Vec<u8> {
    let mut hops = Vec::new();
    // struct rtnexthop: length, flags, hops (weight - 1), ifindex; RTA_GATEWAY.
    hops.extend([16, 0, flags, 1]);
    hops.extend(3u32.to_ne_bytes());
    hops.extend([8, 0, 5, 0, 10, 0, 0, 2]);
    // RTA_VIA with AF_INET6; RTNH_F_ONLINK.
    hops.extend([32, 0, 4, 0]);
    hops.extend(4u32.to_ne_bytes());
    hops.extend([22, 0, 18, 0, 10, 0, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    let metrics = [8, 0, 2, 0, 0x78, 0x05, 0, 0];
    Request::new(24, 0, &[2, 24, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0])
        .attr(15, &254u32.to_ne_bytes())
        .attr(1, &[192, 0, 2, 0])
        .attr(6, &5u32.to_ne_bytes())
        .attr(8, &metrics)
        .attr(9, &hops)
        .finish(1)
}

fn rule_message() -> Vec<u8> {
    Request::new(32, 0, &[2, 0, 16, 0, 0, 0, 0, 1, 2, 0, 0, 0])
        .attr(2, &[10, 9, 0, 0])
        .attr(6, &50u32.to_ne_bytes())
        .attr(10, &1u32.to_ne_bytes())
        .attr(16, &255u32.to_ne_bytes())
        .attr(14, &u32::MAX.to_ne_bytes())
        .attr(15, &100u32.to_ne_bytes())
        .attr(23, &[1, 0, 2, 0])
        .finish(1)
}

fn nexthop_message() -> Vec<u8> {
    let group = [1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 4, 1, 0, 0];
    Request::new(104, 0, &[0, 0, 0, 0, 0, 0, 0, 0])
        .attr(1, &10u32.to_ne_bytes())
        .attr(2, &group)
        .attr(3, &[0, 0])
        .finish(1)
}

fn neigh_message() -> Vec<u8> {
    Request::new(28, 0, &[2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 1])
        .attr(1, &[10, 0, 0, 7])
        .attr(2, &[2, 0, 0, 0, 0, 1])
        .finish(1)
}

fn link_message() -> Vec<u8> {
    let info = [9, 0, 1, 0, b'v', b'e', b't', b'h', 0, 0, 0, 0];
    Request::new(16, 0, &[0, 0, 1, 0, 3, 0, 0, 0, 0x43, 0, 1, 0, 0, 0, 0, 0])
        .attr(3, b"va\0")
        .attr(4, &1500u32.to_ne_bytes())
        .attr(1, &[2, 0, 0, 0, 0, 9])
        .attr(18, &info)
        .finish(1)
}

fn addr_message() -> Vec<u8> {
    Request::new(20, 0, &[2, 24, 0x80, 0, 3, 0, 0, 0])
        .attr(1, &[10, 0, 0, 1])
        .attr(2, &[10, 0, 0, 1])
        .attr(3, b"va\0")
        .attr(8, &0x80u32.to_ne_bytes())
        .finish(1)
}

fn netconf_message() -> Vec<u8> {
    Request::new(80, 0, &[2])
        .attr(1, &(-1i32).to_ne_bytes())
        .attr(2, &1u32.to_ne_bytes())
        .attr(3, &2u32.to_ne_bytes())
        .finish(1)
}

fn all() -> Vec<Vec<u8>> {
    vec![
        route_message(),
        rule_message(),
        nexthop_message(),
        neigh_message(),
        link_message(),
        addr_message(),
        netconf_message(),
    ]
}

fn only(octets: &[u8]) -> Message<'_> {
    Messages::new(octets).next().expect("one message")
}

#[test]
fn a_multipath_route_is_parsed() {
    let octets = route_message();
    let route = parse::route::<u32>(&only(&octets)).expect("a route");
    assert_eq!((route.table, route.net), (254, (0xc000_0200, 24)));
    assert_eq!((route.body.priority, route.body.protocol, route.body.metric(2)), (5, 4, 1400));
    let hops = &route.body.nexthops;
    assert_eq!((hops[0].oif, hops[0].weight), (3, 2));
    assert_eq!(hops[0].gateway, Some(Ipv4Addr::new(10, 0, 0, 2).into()));
    assert_eq!((hops[1].oif, hops[1].weight, hops[1].flags), (4, 1, 4));
    assert_eq!(hops[1].gateway, Some("fe80::1".parse::<IpAddr>().expect("an address")));
    assert!(parse::route::<u128>(&only(&octets)).is_none(), "of the other family");
}

#[test]
fn a_rule_keeps_unknown_attributes() {
    let octets = rule_message();
    let rule = parse::rule(&only(&octets)).expect("a rule");
    assert_eq!(rule.from, Some((Ipv4Addr::new(10, 9, 0, 0).into(), 16)));
    assert_eq!((rule.priority, rule.fwmark, rule.table), (50, Some((1, 255)), 100));
    assert_eq!((rule.invert, rule.suppress_prefixlen), (true, None));
    assert_eq!(rule.other, [(23, vec![1, 0, 2, 0])]);
}

#[test]
fn groups_neighbours_and_settings_are_parsed() {
    let nexthop = nexthop_message();
    let nexthop = parse::nexthop(&only(&nexthop)).expect("a nexthop");
    assert_eq!(nexthop.group, [(1, 2), (2, 0x105)]);
    let neigh = neigh_message();
    let neigh = parse::neigh(&only(&neigh)).expect("a neighbour");
    assert_eq!((neigh.ifindex, neigh.state), (3, 4));
    let netconf = netconf_message();
    let (family, of, conf) = parse::netconf(&only(&netconf)).expect("settings");
    assert_eq!((family, of), (Family::V4, Netconf::ALL));
    assert_eq!((conf.get(Netconf::FORWARDING), conf.get(Netconf::RP_FILTER)), (1, 2));
}

#[test]
fn a_dead_next_hop_of_an_interface_that_is_up_is_dumped_again() {
    let mut follower = Follower::default();
    let mut now = Instant::now();
    let ask_again = |follower: &mut Follower, now: &mut Instant| {
        let mut waits = Vec::new();
        // Takes the doubts that the link event caused.
        follower.take_due(*now + Duration::from_secs(1));
        loop {
            follower.doubt_dead(*now);
            let Some(due) = follower.due() else { return waits };
            assert!(follower.take_due(due).routes4);
            waits.push((due - *now).as_millis());
            *now = due;
        }
    };
    let (link, dead) = (link_message(), route_message_with(RTNH_F_DEAD));
    follower.event(&only(&link), now);
    assert_eq!(ask_again(&mut follower, &mut now), []);
    follower.event(&only(&dead), now);
    assert_eq!(ask_again(&mut follower, &mut now), [40, 80, 160, 320]);
    assert_eq!(ask_again(&mut follower, &mut now), []);
    follower.event(&only(&link), now);
    assert_eq!(ask_again(&mut follower, &mut now), [40, 80, 160, 320]);
}

#[test]
fn truncated_messages_are_only_counted() {
    let mut follower = Follower::default();
    let message = Message { kind: 24, flags: 0, seq: 0, payload: &[2, 24] };
    follower.event(&message, Instant::now());
    let prefix_too_long = [2, 99, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
    let message = Message { kind: 24, flags: 0, seq: 0, payload: &prefix_too_long };
    follower.event(&message, Instant::now());
    assert_eq!(follower.counters.unparsable, 2);
    assert_eq!(follower.state.route_count(), 0);
}

proptest! {
    #[test]
    fn arbitrary_octets_do_not_panic(
        which in 0usize..7,
        changes in prop::collection::vec((0usize..200, any::<u8>()), 0..8),
        cut in 0usize..250,
    ) {
        let mut octets = all().swap_remove(which);
        for (at, value) in changes {
            let len = octets.len();
            octets[at % len] = value;
        }
        octets.truncate(cut);
        let mut follower = Follower::default();
        for message in Messages::new(&octets) {
            let _ = message.error();
            follower.event(&message, Instant::now());
        }
        // Everything that was accepted can be shown.
        let state = &follower.state;
        let _ = super::super::show::routes(state).iter().map(ToString::to_string).count();
        let _ = super::super::show::links(state).iter().map(ToString::to_string).count();
        let _ = super::super::show::rules(state, Family::V4).iter().map(ToString::to_string).count();
        let _ = super::super::show::nexthops(state).iter().map(ToString::to_string).count();
        let _ = super::super::show::neighs(state).iter().map(ToString::to_string).count();
        let _ = super::super::show::addrs(state).iter().map(ToString::to_string).count();
    }
}
