//! ICMPv6 errors: conditions, destination and exact contents.

use super::*;
use crate::tables::{AddrLabel, AddrLabels};

/// An ICMPv6 error from `src` to `dst`, quoting `quote`; the flow label is taken from `reply`.
fn error(
    head: [u8; 2],
    info: u32,
    quote: &[u8],
    (src, dst): (&'static str, &'static str),
    reply: &[u8],
) -> Vec<u8> {
    let mut icmp = vec![head[0], head[1], 0, 0];
    icmp.extend(info.to_be_bytes());
    icmp.extend(quote);
    let len = icmp.len() as u32;
    let pseudo = checksum::pseudo_header_v6(addr6(src), addr6(dst), Protocol::ICMPV6, len);
    let sum = !checksum::fold(pseudo + checksum::ones_complement_sum(&icmp));
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet =
        V6 { src, dst, next_header: Protocol::ICMPV6, payload: icmp, hop_limit: 64 }.packet();
    packet[1..4].copy_from_slice(&[reply[1] & 0x0f, reply[2], reply[3]]);
    packet
}

const BACK: (&str, &str) = ("2001:db8:1::1", "2001:db8:1::2");

#[test]
fn each_reported_drop_sends_the_kernels_error() {
    let long = |dst, len| V6 { payload: udp(&vec![7; len]), ..V6::to(dst) };
    let table = [
        ("hop limit 1", V6 { hop_limit: 1, ..V6::default() }, [3, 0], 0, DropReason::TtlExceeded),
        ("hop limit 0", V6 { hop_limit: 0, ..V6::default() }, [3, 0], 0, DropReason::TtlExceeded),
        ("no route", V6::to("2001:db9::1"), [1, 0], 0, DropReason::IpNoRoute),
        ("unreachable", V6::to("2001:db8:a:10::1"), [1, 0], 0, DropReason::Unreachable),
        ("prohibit", V6::to("2001:db8:a:11::1"), [1, 1], 0, DropReason::Prohibit),
        ("too big", long("2001:db8:2::2", 1600), [2, 0], 1500, DropReason::PktTooBig),
        ("both mtus", long("2001:db8:a:12::2", 1600), [2, 0], 1500, DropReason::PktTooBig),
        ("route's mtu", long("2001:db8:a:12::2", 1300), [2, 0], 1300, DropReason::PktTooBig),
    ];
    for (what, packet, head, info, reason) in table {
        let mut lab = Net::default().lab();
        let sent = lab.one(packet.frame());
        let reply = answered(&sent, 0x86dd);
        let packet = packet.packet();
        let mut quote = packet[..packet.len().min(1280 - 48)].to_vec();
        if what == "route's mtu" {
            // Detected on output, after the hop limit was decremented.
            quote[7] -= 1;
        }
        let quote = &quote[..];
        assert_eq!(reply, error(head, info, quote, BACK, reply), "{what}");
        assert_eq!(lab.drops(reason), 1, "{what}");
        assert_eq!(lab.mib(Mib::Icmp6OutMsgs), 1, "{what}");
    }
}

#[test]
fn the_reported_mtu_is_never_below_1280() {
    let mut net = Net::default();
    (net.links[2].mtu, net.links[2].mtu6) = (1000, 1000);
    let mut lab = net.lab();
    let fits = V6 { payload: udp(&[0; 1280 - 48]), ..V6::default() };
    forwarded(&lab.one(fits.frame()), 0x86dd);
    let sent = lab.one(V6 { payload: udp(&[0; 1281 - 48]), ..V6::default() }.frame());
    assert_eq!(answered(&sent, 0x86dd)[44..48], 1280u32.to_be_bytes());
}

#[test]
fn counters_move_as_the_kernels() {
    let mut lab = Net::default().lab();
    lab.one(V6 { hop_limit: 1, ..V6::default() }.frame());
    assert_eq!((lab.mib(Mib::Ip6InHdrErrors), lab.mib(Mib::Icmp6OutTimeExcds)), (1, 1));
    lab.one(V6::to("2001:db9::1").frame());
    assert_eq!((lab.mib(Mib::Ip6InNoRoutes), lab.mib(Mib::Icmp6OutDestUnreachs)), (1, 1));
    lab.one(V6 { payload: udp(&[0; 1600]), ..V6::default() }.frame());
    assert_eq!((lab.mib(Mib::Ip6InTooBigErrors), lab.mib(Mib::Icmp6OutPktTooBigs)), (1, 1));
    assert_eq!((lab.mib(Mib::Ip6FragFails), lab.mib(Mib::Ip6OutRequests)), (1, 3));
}

#[test]
fn a_link_local_source_is_not_forwarded_and_gets_the_error_on_its_link() {
    let mut lab = Net::default().lab();
    let packet = V6 { src: "fe80::2", ..V6::default() };
    let sent = lab.one(packet.frame());
    let reply = answered(&sent, 0x86dd);
    let expected = error([1, 2], 0, &packet.packet(), ("fe80::1", "fe80::2"), reply);
    assert_eq!(reply, expected);
    assert_eq!(lab.drops(DropReason::IpBeyondScope), 1);
    assert_eq!(lab.mib(Mib::Ip6InAddrErrors), 1);
}

/// RFC 4443 §2.4(e).
#[test]
fn errors_are_not_sent_about() {
    let icmp = |icmp_type: u8| {
        let payload = vec![icmp_type, 0, 0, 0, 0, 0, 0, 0];
        V6 { hop_limit: 1, next_header: Protocol::ICMPV6, payload, ..V6::default() }
    };
    let behind = |header: &[u8], packet: V6, next_header| {
        let payload = [header, &packet.payload].concat();
        V6 { next_header, payload, ..packet }
    };
    let table = [
        ("an error", icmp(1), 0),
        ("an unknown error", icmp(100), 0),
        ("echo", icmp(128), 1),
        ("a redirect", icmp(137), 1),
        ("no type", V6 { payload: vec![], ..icmp(1) }, 0),
        (
            "an error behind options",
            behind(&[58, 0, 1, 4, 0, 0, 0, 0], icmp(3), Protocol::DEST_OPTS),
            0,
        ),
        (
            "an error's first fragment",
            behind(&[58, 0, 0, 1, 0, 0, 0, 1], icmp(3), Protocol::FRAGMENT),
            0,
        ),
        (
            "a later fragment, without the type",
            behind(&[58, 0, 0, 9, 0, 0, 0, 1], icmp(3), Protocol::FRAGMENT),
            1,
        ),
        (
            "an error, truncated before its type",
            behind(
                &[58, 3, 0, 0, 0, 0, 0, 0],
                V6 { payload: vec![], ..icmp(3) },
                Protocol::ROUTING,
            ),
            0,
        ),
        ("a source without a route", V6 { hop_limit: 1, src: "2001:db9::1", ..V6::default() }, 0),
    ];
    for (what, packet, replies) in table {
        let mut lab = Net::default().lab();
        assert_eq!(lab.one(packet.frame()).len(), replies, "{what}");
        assert_eq!(lab.drops(DropReason::TtlExceeded), 1, "{what}");
    }
    // A payload length of 0, as a jumbogram has, does not hide the error behind the options.
    let options = behind(&[58, 0, 0xde, 4, 0, 0, 0, 0], icmp(3), Protocol::HOP_BY_HOP);
    let mut frame = V6 { hop_limit: 64, ..options }.frame();
    frame[18..20].fill(0);
    let mut lab = Net::default().lab();
    assert_eq!(lab.one(frame), [], "payload length 0");
    assert_eq!(lab.drops(DropReason::Ipv6UnknownOption), 1);
    let mut lab = Net::default().lab();
    assert_eq!(lab.one(V6::to("2001:db8:a:9::1").frame()), [], "blackhole");
    assert_eq!(lab.drops(DropReason::Blackhole), 1);
    let mut frame = V6 { hop_limit: 1, ..V6::default() }.frame();
    frame[0] |= 1;
    assert_eq!(lab.one(frame), [], "link-layer multicast");
}

#[test]
fn the_source_is_selected_by_rfc_6724() {
    let source = |net: Net, src: &'static str| {
        let mut lab = net.lab();
        let sent = lab.one(V6 { hop_limit: 1, src, ..V6::default() }.frame());
        let [(_, frame)] = &sent[..] else { panic!("{sent:?}") };
        Ipv6Addr::from(<[u8; 16]>::try_from(&frame[22..38]).expect("sixteen octets"))
    };
    // From another link: the address of the input interface.
    assert_eq!(source(Net::default(), "2001:db8:a::1"), addr6("2001:db8:1::1"));
    // Longest common prefix on that interface.
    let mut net = Net::default();
    net.links[1].addrs6.insert(0, Inet6Ifaddr::new(addr6("2001:db8:a:ffff::1"), 64));
    assert_eq!(source(net, "2001:db8:a::1"), addr6("2001:db8:a:ffff::1"));
    // Same label first: unique local to unique local.
    let mut net = Net::default();
    net.links[1].addrs6.push(Inet6Ifaddr::new(addr6("fd00::1"), 64));
    net.routes6.push(("fd00:1::/32", via(3, "2001:db8:2::2")));
    assert_eq!(source(net, "fd00:1::9"), addr6("fd00::1"));
    // Another label of the destination (`ip addrlabel`): the longest common prefix.
    let mut net = Net::default();
    net.links[1].addrs6.push(Inet6Ifaddr::new(addr6("fd00::1"), 64));
    net.routes6.push(("fd00:1::/32", via(3, "2001:db8:2::2")));
    let of = |prefix, prefixlen, ifindex, label| AddrLabel { prefix, prefixlen, ifindex, label };
    let labels = vec![of(addr6("fd00:1::"), 32, 0, 9), of(addr6("2001:db8:1::"), 48, 2, 9)];
    net.sysctl.addr_labels = Arc::new(AddrLabels::new(labels));
    assert_eq!(source(net, "fd00:1::9"), addr6("2001:db8:1::1"));
    // Another interface's address is preferred to one of too narrow a scope.
    let mut net = Net::default();
    net.links[1].addrs6.remove(0);
    assert_eq!(source(net, "2001:db8:a::1"), addr6("2001:db8:2::1"));
    // The preferred source of the route.
    let mut net = Net::default();
    let prefsrc = Some(IpAddr::V6(addr6("2001:db8:2::1")));
    net.routes6.push(("2001:db8:a:1::/64", FibInfo { prefsrc, ..via(3, "2001:db8:2::2") }));
    assert_eq!(source(net, "2001:db8:a:1::1"), addr6("2001:db8:2::1"));
}

#[test]
fn errors_are_limited_but_not_packet_too_big() {
    let count = |packet: V6| {
        let mut net = Net::default();
        net.sysctl.icmp6_ratelimit_ms = 1000;
        let mut lab = net.lab();
        let sent = (0..40).filter(|_| !lab.one(packet.frame()).is_empty()).count();
        (sent, lab.mib(Mib::Icmp6OutRateLimitHost))
    };
    assert_eq!(count(V6 { hop_limit: 1, ..V6::default() }), (6, 34));
    assert_eq!(count(V6 { payload: udp(&[0; 1600]), ..V6::default() }), (40, 0));
    let mut net = Net::default();
    (net.sysctl.icmp6_ratemask, net.sysctl.icmp_msgs_per_sec) = (0, 0);
    let mut lab = net.lab();
    answered(&lab.one(V6 { hop_limit: 1, ..V6::default() }.frame()), 0x86dd);
}

#[test]
fn the_hop_limit_of_errors_is_the_routes_the_interfaces_or_the_default() {
    let hop_limit = |net: &Net| {
        let packet = V6 { hop_limit: 1, src: "2001:db8:77::1", ..V6::default() };
        let sent = net.clone().lab().one(packet.frame());
        let [(RIGHT, frame)] = &sent[..] else { panic!("{sent:?}") };
        frame[21]
    };
    let mut net = Net::default();
    net.routes6.push(("2001:db8:77::/48", via(3, "2001:db8:2::2")));
    net.sysctl.hop_limit = 99;
    assert_eq!(hop_limit(&net), 99);
    net.links[2].hop_limit = 88;
    assert_eq!(hop_limit(&net), 88);
    net.routes6.push(("2001:db8:77::/64", FibInfo { hop_limit: 7, ..via(3, "2001:db8:2::2") }));
    assert_eq!(hop_limit(&net), 7);
}

#[test]
fn errors_have_flow_labels_as_set() {
    let label = |auto_flowlabels, flowlabel_state_ranges| {
        let mut net = Net::default();
        net.sysctl.auto_flowlabels = auto_flowlabels;
        net.sysctl.flowlabel_state_ranges = flowlabel_state_ranges;
        let sent = net.lab().one(V6 { hop_limit: 1, ..V6::default() }.frame());
        let [(_, frame)] = &sent[..] else { panic!("{sent:?}") };
        u32::from_be_bytes([0, frame[15] & 0xf, frame[16], frame[17]])
    };
    assert_eq!((label(false, true), label(false, false)), (0, 0));
    assert_eq!(label(true, true), label(true, false) | 0x80000);
    assert_ne!(label(true, false), 0);
}

#[test]
fn errors_with_extensions_are_the_kernels() {
    let mut net = Net::default();
    net.sysctl.icmp6_errors_extended = true;
    let mut lab = net.lab();
    let frame = V6 { hop_limit: 1, ..V6::default() }.frame();
    assert_eq!(lab.one(frame.clone()), []);
    assert_eq!(lab.punted(), [frame]);
    // Packet Too Big has none.
    let long = V6 { payload: udp(&[7; 1600]), ..V6::default() };
    assert_eq!(lab.one(long.frame()).len(), 1);
}

#[test]
fn deprecated_temporary_and_optimistic_addresses_are_sources_of_their_rank() {
    let source = |change: &dyn Fn(&mut Link)| {
        let mut net = Net::default();
        let own = |addr: &str| Inet6Ifaddr::new(addr6(addr), 64);
        // The last one has the longest prefix in common.
        net.links[1].addrs6 = vec![own("2001:db8:1::1"), own("2001:db8:a:ffff::1")];
        change(&mut net.links[1]);
        let frame = V6 { hop_limit: 1, src: "2001:db8:a::1", ..V6::default() }.frame();
        let sent = net.lab().one(frame);
        let [(_, frame)] = &sent[..] else { panic!("{sent:?}") };
        Ipv6Addr::from(<[u8; 16]>::try_from(&frame[22..38]).expect("sixteen octets")).segments()[2]
    };
    assert_eq!(source(&|_| {}), 0xa);
    assert_eq!(source(&|link| link.addrs6[1].deprecated = true), 1);
    assert_eq!(source(&|link| link.addrs6[1].temporary = true), 1);
    assert_eq!(source(&|link| link.addrs6[1].optimistic = true), 1);
    let optimistic = |link: &mut Link| {
        (link.addrs6[1].optimistic, link.use_optimistic) = (true, true);
    };
    assert_eq!(source(&optimistic), 0xa);
    let temporary = |link: &mut Link| {
        (link.addrs6[0].temporary, link.prefers_temporary) = (true, true);
    };
    assert_eq!(source(&temporary), 1);
    // A deprecated one of this interface, or a preferred one of another: rule 3 precedes rule 5.
    let deprecated = |link: &mut Link| link.addrs6.iter_mut().for_each(|own| own.deprecated = true);
    assert_eq!(source(&deprecated), 2);
    let only_own = |link: &mut Link| {
        deprecated(link);
        link.use_oif_addrs_only = true;
    };
    assert_eq!(source(&only_own), 0xa);
}
