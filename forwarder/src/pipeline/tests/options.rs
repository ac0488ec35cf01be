//! IPv4 options (RFC 1812 §5.2.4), as `ip_options_compile` and `ip_forward_options` process them.

use super::*;

/// 12:34:56.789 UTC.
const NOW_MS: u32 = 45_296_789;

fn lab() -> Lab {
    let mut lab = Net::default().lab();
    let day_ns = 86_400_000_000_000;
    lab.state.utc_offset_ns = 20_000 * day_ns + u64::from(NOW_MS) * 1_000_000 - lab.now_ns % day_ns;
    lab.state.utc_offset_ns -= lab.now_ns - lab.now_ns % day_ns;
    lab
}

fn with(options: &[u8]) -> V4 {
    V4 { options: options.to_vec(), ..V4::default() }
}

/// The options of the forwarded packet.
fn options_after(options: &[u8]) -> Vec<u8> {
    let mut lab = lab();
    let sent = lab.one(with(options).frame());
    let packet = forwarded(&sent, 0x0800);
    let ipv4 = Ipv4Packet::new_checked(packet).expect("a header");
    assert!(ipv4.verify_checksum());
    assert_eq!(ipv4.ttl(), 63);
    assert_eq!(ipv4.payload(), udp(b"payload of a packet"));
    ipv4.option_octets().to_vec()
}

#[test]
fn options_that_need_no_change_are_forwarded_unchanged() {
    for options in [
        &[1, 1, 1, 1][..],
        &[0, 0, 0, 0],
        &[136, 4, 0xab, 0xcd],
        &[130, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        &[0x42, 3, 9, 1],
        // Full: a record route without room, a prespecified timestamp without room.
        &[7, 7, 8, 1, 2, 3, 4, 0],
        &[68, 12, 13, 3, 1, 2, 3, 4, 5, 6, 7, 8],
        // Router alert with a reserved value.
        &[148, 4, 0, 1],
    ] {
        assert_eq!(options_after(options), options);
    }
}

#[test]
fn octets_after_end_of_options_list_are_cleared() {
    assert_eq!(options_after(&[1, 0, 7, 9]), [1, 0, 0, 0]);
}

#[test]
fn record_route_gets_the_outgoing_address() {
    let after = options_after(&[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(after, [7, 11, 8, 198, 18, 2, 1, 0, 0, 0, 0, 0]);
    let after = options_after(&[7, 11, 8, 9, 9, 9, 9, 0, 0, 0, 0, 0]);
    assert_eq!(after, [7, 11, 12, 9, 9, 9, 9, 198, 18, 2, 1, 0]);
}

#[test]
fn timestamps_are_recorded_as_their_flag_requires() {
    let [a, b, c, d] = NOW_MS.to_be_bytes();
    let table: [(&[u8], &[u8]); 6] = [
        (&[68, 8, 5, 0, 0, 0, 0, 0], &[68, 8, 9, 0, a, b, c, d]),
        // With the address by which the sender knows us.
        (&[68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0], &[68, 12, 13, 1, 198, 18, 1, 1, a, b, c, d]),
        // Prespecified: an address of ours.
        (&[68, 12, 5, 3, 198, 18, 2, 1, 0, 0, 0, 0], &[68, 12, 13, 3, 198, 18, 2, 1, a, b, c, d]),
        // Prespecified: an address of another host.
        (&[68, 12, 5, 3, 10, 1, 1, 1, 0, 0, 0, 0], &[68, 12, 5, 3, 10, 1, 1, 1, 0, 0, 0, 0]),
        // No room: the overflow count is incremented.
        (&[68, 8, 9, 0x20, 1, 2, 3, 4], &[68, 8, 9, 0x30, 1, 2, 3, 4]),
        // An unknown flag.
        (&[68, 8, 5, 7, 0, 0, 0, 0], &[68, 8, 5, 7, 0, 0, 0, 0]),
    ];
    for (before, after) in table {
        assert_eq!(options_after(before), after);
    }
}

#[test]
fn malformed_options_get_a_parameter_problem_that_points_at_them() {
    let table: [(&str, &[u8], u8); 17] = [
        ("an option without a length", &[1, 1, 1, 7], 23),
        ("length 0", &[7, 0, 0, 0], 20),
        ("length 1", &[1, 9, 1, 0], 21),
        ("length beyond the header", &[7, 5, 4, 0], 20),
        ("record route too short", &[7, 2, 0, 0], 21),
        ("record route pointer 3", &[7, 7, 3, 0, 0, 0, 0, 0], 22),
        ("record route pointer not aligned", &[7, 7, 5, 0, 0, 0, 0, 0], 22),
        ("two record routes", &[7, 3, 4, 7, 3, 4, 0, 0], 23),
        ("timestamp too short", &[68, 3, 5, 0], 21),
        ("timestamp pointer 4", &[68, 8, 4, 0, 0, 0, 0, 0], 22),
        ("timestamp without room for a time", &[68, 8, 6, 0, 0, 0, 0, 0], 22),
        ("timestamp without room for an address", &[68, 8, 5, 1, 0, 0, 0, 0], 22),
        ("timestamp overflow full", &[68, 8, 9, 0xf0, 0, 0, 0, 0], 23),
        ("two timestamps", &[68, 4, 5, 0, 68, 4, 5, 0], 24),
        ("source route too short", &[131, 2, 0, 0], 21),
        ("source route pointer 3", &[137, 7, 3, 0, 0, 0, 0, 0], 22),
        ("router alert too short", &[148, 3, 0, 0], 21),
    ];
    for (what, options, pointer) in table {
        let mut lab = lab();
        let packet = with(options);
        let sent = lab.one(packet.frame());
        let reply = answered(&sent, 0x0800);
        let header_len = usize::from(reply[0] & 15) * 4;
        let icmp = &reply[header_len..];
        assert_eq!(icmp[..2], [12, 0], "{what}");
        assert_eq!(icmp[4..8], [pointer, 0, 0, 0], "{what}");
        let recorded = icmp[28..icmp.len() - packet.payload.len()].to_vec();
        let unrecorded = |at: usize| recorded[at] == packet.packet()[20 + at];
        assert!(usize::from(pointer) < 20 || unrecorded(usize::from(pointer) - 20), "{what}");
        assert_eq!(icmp[8..28], packet.packet()[..20], "{what}: quoted as received");
        assert_eq!(icmp[28 + recorded.len()..], packet.payload, "{what}: quoted as received");
        assert_eq!(lab.drops(DropReason::IpOptions), 1, "{what}");
        assert_eq!(lab.mib(Mib::IpInHdrErrors), 1, "{what}");
        assert_eq!(lab.mib(Mib::IcmpOutParmProbs), 1, "{what}");
    }
}

#[test]
fn source_routes_are_dropped_or_punted_if_accepted() {
    for options in [&[131, 7, 4, 10, 0, 0, 1, 0][..], &[137, 7, 8, 10, 0, 0, 1, 0]] {
        let mut lab = lab();
        assert_eq!(lab.one(with(options).frame()), []);
        assert_eq!(lab.drops(DropReason::IpSourceRoute), 1);
        lab.net.links[1].accept_source_route = true;
        lab.publish();
        assert_eq!(lab.one(with(options).frame()), []);
        assert_eq!(lab.punted(), [with(options).frame()]);
        assert_eq!(lab.punts(PuntReason::IpOption), 1);
    }
}

#[test]
fn router_alert_and_security_labels_are_punted() {
    for options in [&[148, 4, 0, 0][..], &[134, 8, 0, 0, 0, 1, 1, 2]] {
        let mut lab = lab();
        assert_eq!(lab.one(with(options).frame()), []);
        assert_eq!(lab.punted(), [with(options).frame()]);
        assert_eq!(lab.punts(PuntReason::IpOption), 1);
    }
}

#[test]
fn checks_are_ordered_martians_options_routes() {
    let bad = [7, 2, 0, 0];
    let mut lab = lab();
    let sent = lab.one(V4 { dst: "192.0.2.1", ..with(&bad) }.frame());
    assert_eq!(answered(&sent, 0x0800)[20], 12, "not Net Unreachable");
    assert_eq!((lab.mib(Mib::IpInHdrErrors), lab.mib(Mib::IpInNoRoutes)), (1, 0));
    let sent = lab.one(V4 { dst: "10.9.0.1", ..with(&bad) }.frame());
    assert_eq!(answered(&sent, 0x0800)[20], 12, "an ICMP error, unlike for a blackhole");
    assert_eq!((lab.drops(DropReason::IpOptions), lab.drops(DropReason::Blackhole)), (2, 0));
    let sent = lab.one(V4 { ttl: 1, ..with(&bad) }.frame());
    assert_eq!(answered(&sent, 0x0800)[20], 12, "not Time Exceeded");
    assert_eq!(lab.one(V4 { src: "0.0.0.0", ..with(&bad) }.frame()), []);
    assert_eq!(lab.drops(DropReason::IpInvalidSource), 1);
    // The kernel checks packets that are for it.
    let local = V4 { dst: "198.18.1.1", ..with(&bad) }.frame();
    assert_eq!(lab.one(local.clone()), []);
    assert_eq!(lab.punted(), [local]);

    let mut net = Net::default();
    net.links.iter_mut().for_each(|link| link.forwarding4 = false);
    let mut lab = net.lab();
    let sent = lab.one(with(&bad).frame());
    assert_eq!(answered(&sent, 0x0800)[20], 12, "an ICMP error, unlike on a host");
    assert_eq!(lab.drops(DropReason::ForwardingOff), 0);
}

#[test]
fn errors_echo_the_options_that_record_and_quote_what_they_recorded() {
    let [a, b, c, d] = NOW_MS.to_be_bytes();
    // As received; in the error's header; in the quote.
    let table: [(&[u8], &[u8], &[u8]); 5] = [
        // Our address as the receiving router, then as the sender of the error.
        (
            &[7, 15, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[7, 15, 12, 198, 18, 1, 1, 198, 18, 1, 1, 0, 0, 0, 0, 0],
            &[7, 15, 8, 198, 18, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (&[7, 7, 4, 0, 0, 0, 0, 0], &[7, 7, 8, 198, 18, 1, 1, 0], &[7, 7, 8, 198, 18, 1, 1, 0]),
        (
            &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[68, 12, 13, 0, a, b, c, d, a, b, c, d],
            &[68, 12, 9, 0, a, b, c, d, 0, 0, 0, 0],
        ),
        // Only record route and timestamp are echoed, in this order; an overflow is counted.
        (
            &[1, 136, 4, 9, 9, 68, 4, 5, 0, 7, 3, 4],
            &[7, 3, 4, 68, 4, 5, 0x10, 0],
            &[1, 136, 4, 9, 9, 68, 4, 5, 0x10, 7, 3, 4],
        ),
        (&[136, 4, 9, 9], &[], &[136, 4, 9, 9]),
    ];
    for (received, echoed, quoted) in table {
        let mut lab = lab();
        let packet = V4 { ttl: 1, ..with(received) };
        let sent = lab.one(packet.frame());
        let reply = answered(&sent, 0x0800);
        let ipv4 = Ipv4Packet::new_checked(reply).expect("a header");
        assert!(ipv4.verify_checksum());
        assert!(checksum::is_valid(checksum::ones_complement_sum(ipv4.payload())));
        assert_eq!(ipv4.option_octets(), echoed, "{received:?}");
        let quote = &ipv4.payload()[8..];
        let original = packet.packet();
        assert_eq!(quote[..20], original[..20], "{received:?}: checksum as received");
        assert_eq!(quote[20..20 + quoted.len()], *quoted, "{received:?}");
        assert_eq!(quote[20 + quoted.len()..], original[20 + quoted.len()..], "{received:?}");
    }
}
