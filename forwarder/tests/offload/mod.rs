//! Flow offload in the XDP program: octets in, octets out, by BPF_PROG_TEST_RUN.
//!
//! Needs root: scripts/test runs them. What the program writes is compared with packets whose checksums are computed
//! from scratch; what it does not forward has to be unchanged and counted as without offload.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use xdp_prog::offload::{EPOCHS, FlowEntry, Width, epochs4, epochs6};
use xdp_prog::{PortSettings, Reason, SharedSettings};

use crate::{frames, netns};
use packets::{
    Check, Ends, GRE, IPIP, IPV6, Rng, SCTP, TCP, UDP, edit, forwarded, frame_of, packet, tcp_seqs,
    with_protocol,
};
use program::{Flow, HOP_PORT, PORT, Program};

mod packets;
mod portless;
pub mod program;
mod vlan;

const OFF: u32 = PortSettings::STEER_IPV4 | PortSettings::STEER_IPV6 | (PORT as u32) << 16;
const ON: u32 = OFF | PortSettings::OFFLOAD;
const PARTIAL: u32 = ON | PortSettings::PARTIAL_CSUM;
const TRACK: u32 = SharedSettings::TRACK4 | SharedSettings::TRACK6;
const WIDE: u32 = SharedSettings::WIDE4 | SharedSettings::WIDE6;

/// The IP header's length, and the offset of the transport header in a frame, octets.
fn header_len(ends: &Ends) -> usize {
    if ends.is_ipv4() { 20 } else { 40 }
}

fn ends(source: &str, destination: &str) -> Ends {
    let address = |text: &str| -> IpAddr { text.parse().expect("literal") };
    Ends { addresses: [address(source), address(destination)], ports: [40_000, 443] }
}

fn families() -> [Ends; 2] {
    [ends("10.1.2.3", "198.51.100.7"), ends("2001:db8:1:2::3", "2001:db8:ffff:8::7")]
}

/// Translations: none, of the source, of the destination, of both; of a port only.
fn translations(own: &Ends) -> Vec<Option<Ends>> {
    let other = match own.is_ipv4() {
        true => ends("203.0.113.200", "172.16.31.254"),
        false => ends("2001:db8:aaaa::1", "fd00:1:2:3::9"),
    };
    let [source, destination] = own.addresses;
    vec![
        None,
        Some(Ends { addresses: [other.addresses[0], destination], ports: [1024, 443] }),
        Some(Ends { addresses: [source, other.addresses[1]], ports: [40_000, 8443] }),
        Some(Ends { addresses: other.addresses, ports: [65_535, 1] }),
        Some(Ends { addresses: own.addresses, ports: [40_001, 443] }),
        Some(Ends { addresses: [other.addresses[0], destination], ports: own.ports }),
    ]
}

fn reason_of(own: &Ends) -> Reason {
    if own.is_ipv4() { Reason::OffloadIpv4 } else { Reason::OffloadIpv6 }
}

/// Without offload the frame is treated in the same way, and is not changed.
fn assert_not_offloaded(program: &mut Program, frame: &[u8], flags: u32, what: &str) {
    let (_, shared) = program.flags();
    program.set_flags(flags & !PortSettings::OFFLOAD, shared);
    let without = program.run(frame);
    program.set_flags(flags, shared);
    let with = program.run(frame);
    assert_eq!(with.reason, without.reason, "{what}");
    assert!(!with.reason.is_offloaded() && with.action == without.action, "{what}");
    assert!(with.frame == frame && without.frame == frame, "{what}: changed");
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_offloaded_packets_are_those_that_a_router_writes() {
    netns::in_namespace(|| {
        let mut rng = Rng(1);
        for frags in [false, true] {
            let mut program = Program::load(frags);
            for own in families() {
                for protocol in [TCP, UDP] {
                    for to in translations(&own) {
                        program.install(&Flow { to, ..Flow::new(own, protocol) });
                        for flags in [ON, PARTIAL] {
                            for shared in [0, TRACK] {
                                program.set_flags(flags, shared);
                                generated(&mut program, &mut rng, own, protocol, to, flags);
                            }
                        }
                        program.remove();
                    }
                }
            }
        }
    });
}

fn generated(
    program: &mut Program,
    rng: &mut Rng,
    own: Ends,
    protocol: u8,
    to: Option<Ends>,
    flags: u32,
) {
    let headers = header_len(&own) + if protocol == TCP { 20 } else { 8 };
    let longest = 1500 - headers;
    let lengths = (0..20).chain([63, 64, 255, 256, 257, 511, 512, 513, longest - 1, longest]);
    let lengths: Vec<usize> = lengths.chain((0..20).map(|_| rng.below(longest))).collect();
    let mut checks =
        vec![Check::Complete, Check::Garbage(rng.next() as u16), Check::Garbage(0xffff)];
    if protocol == UDP {
        checks.push(Check::Zero);
    }
    if flags == PARTIAL {
        checks.push(Check::Partial);
    }
    for length in lengths {
        for check in &checks {
            let ttl = [2, 3, 64, 255][rng.below(4)];
            let before = packet(rng, &own, protocol, length, ttl, *check);
            let padding = [0, 0, 1, 6, 26, 40][rng.below(6)];
            let mut frame = frame_of(&before);
            frame.extend((0..padding).map(|_| rng.next() as u8));
            let (count, _) = program.counted();
            let out = program.run(&frame);
            let what = format!("{own:?} {protocol} → {to:?}, {length} octets, {check:?}, {flags}");
            assert_eq!((out.reason, out.action), (reason_of(&own), 4), "{what}");
            let after = forwarded(&before, &own, &to.unwrap_or(own), *check);
            assert_eq!(out.frame, program.sent(&after), "{what}");
            let (now, seqs) = program.counted();
            assert_eq!(FlowEntry::counted(count, now), (1, before.len() as u64), "{what}");
            assert_eq!(seqs, tcp_seqs(&before).unwrap_or(seqs), "{what}");
        }
    }
}

/// Packets that userspace or the kernel has to see, with what is wrong with them.
fn others(own: &Ends, protocol: u8) -> Vec<(Vec<u8>, String)> {
    let mut rng = Rng(7);
    let mut out = Vec::new();
    let at = 14 + header_len(own);
    let good = packet(&mut rng, own, protocol, 40, 64, Check::Complete);
    let mut add = |what: String, packet: Vec<u8>| out.push((frame_of(&packet), what));
    for ttl in [0, 1] {
        add(format!("TTL {ttl}"), packet(&mut rng, own, protocol, 40, ttl, Check::Complete));
    }
    add("over the MTU".into(), packet(&mut rng, own, protocol, 1500, 64, Check::Complete));
    if own.is_ipv4() {
        for (octet, value) in
            [(0, 0x46), (0, 0x44), (0, 0x65), (6, 0x20), (6, 1), (7, 1), (2, 0xff), (3, 19)]
        {
            add(format!("{octet} = {value:#x}"), edit(&good, &[(octet, value)]));
        }
        for octet in 0..20 {
            let mut bad = good.clone();
            bad[octet] ^= 1;
            add(format!("bit of octet {octet}"), bad);
        }
    } else {
        for (octet, value) in [(0, 0x40), (0, 0x50), (5, 0), (4, 1), (5, 255)] {
            add(format!("{octet} = {value:#x}"), edit(&good, &[(octet, value)]));
        }
        for next in [0, 43, 44, 50, 51, 58, 59, 60, 132, 135, 136, 139, 140] {
            add(format!("next header {next}"), edit(&good, &[(6, next)]));
        }
    }
    let l4 = at - 14;
    if protocol == TCP {
        for flags in [0, 1, 2, 4, 8, 0x11, 0x12, 0x14, 0x13, 0x3f, 0xff] {
            add(format!("TCP flags {flags:#x}"), edit(&good, &[(l4 + 13, flags)]));
        }
        for offset in [0, 4, 0xf] {
            let short = packet(&mut rng, own, protocol, 0, 64, Check::Complete);
            add(format!("data offset {offset}"), edit(&short, &[(l4 + 12, offset << 4)]));
        }
    } else {
        for (high, low) in [(0, 0), (0, 7), (0, 49), (1, 48)] {
            let bad = edit(&good, &[(l4 + 4, high), (l4 + 5, low)]);
            add(format!("UDP length {high} {low}"), bad);
        }
    }
    for octet in l4..l4 + 4 {
        let mut other = good.clone();
        other[octet] ^= 0x10;
        add(format!("another flow: octet {octet}"), other);
    }
    // Truncated frames, and packets that end in the transport header.
    let frame = frame_of(&good);
    for length in (14..frame.len()).step_by(3).chain([frame.len() - 1]) {
        out.push((frame[..length].to_vec(), format!("frame of {length} octets")));
    }
    let header = if protocol == TCP { 20 } else { 8 };
    for octets in 0..header {
        let octets = octets as u8;
        let short = match own.is_ipv4() {
            true => edit(&good, &[(2, 0), (3, 20 + octets)]),
            false => edit(&good, &[(4, 0), (5, octets)]),
        };
        out.push((frame_of(&short), format!("{octets} octets after the IP header")));
    }
    for tags in [&[(0x8100, 10)][..], &[(0x88a8, 20), (0x8100, 30)]] {
        out.push((frames::tagged(tags, &frame), "tagged".into()));
    }
    out.push((edit(&frame, &[(5, 0x77)]), "another MAC".into()));
    out
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_other_packets_are_treated_as_without_offload() {
    netns::in_namespace(|| {
        let mut program = Program::load(false);
        for own in families() {
            for protocol in [TCP, UDP] {
                program.install(&Flow::new(own, protocol));
                for shared in [0, TRACK] {
                    for flags in [ON, PARTIAL] {
                        program.set_flags(flags, shared);
                        let good = packet(&mut Rng(9), &own, protocol, 40, 64, Check::Complete);
                        assert_eq!(program.run(&frame_of(&good)).reason, reason_of(&own));
                        for (frame, what) in others(&own, protocol) {
                            let what = format!("{own:?} {protocol}: {what}, {shared}");
                            assert_not_offloaded(&mut program, &frame, flags, &what);
                        }
                    }
                }
                program.remove();
            }
        }
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_an_entry_holds_while_all_that_it_depends_on_is_the_same() {
    netns::in_namespace(|| {
        let mut program = Program::load(false);
        for own in families() {
            for to in translations(&own) {
                let flow = Flow { to, ..Flow::new(own, TCP) };
                program.install(&flow);
                program.set_flags(ON, 0);
                let frame = frame_of(&packet(&mut Rng(3), &own, TCP, 9, 64, Check::Complete));
                assert_eq!(program.run(&frame).reason, reason_of(&own));
                let routed = to.unwrap_or(own).addresses[1];
                let of_addresses = [own.addresses[0], routed].into_iter().flat_map(epochs_of);
                let depends: Vec<usize> = [0].into_iter().chain(of_addresses).collect();
                for word in &depends {
                    program.add_epoch(*word, 1);
                    assert_not_offloaded(&mut program, &frame, ON, &format!("epoch {word}"));
                    program.add_epoch(*word, u32::MAX);
                    assert_eq!(program.run(&frame).reason, reason_of(&own));
                }
                // Nothing is routed to the destination before it is translated.
                let before = epochs_of(own.addresses[1]);
                for word in before.into_iter().filter(|word| !depends.contains(word)) {
                    program.add_epoch(word, 1);
                    assert_eq!(program.run(&frame).reason, reason_of(&own));
                }
                program.set_hop(HOP_PORT, 1);
                assert_not_offloaded(&mut program, &frame, ON, "epoch of the next hop");
                program.set_hop(HOP_PORT + 1, 0);
                assert_not_offloaded(&mut program, &frame, ON, "no such port");
                program.set_hop(5000, 0);
                assert_not_offloaded(&mut program, &frame, ON, "no such port number");
                program.set_hop(HOP_PORT, 0);
                assert_eq!(program.run(&frame).reason, reason_of(&own));
                let other_port = ON ^ 1 << PortSettings::NUMBER_SHIFT;
                assert_not_offloaded(&mut program, &frame, other_port, "from another port");
                let generic = ON | PortSettings::GENERIC;
                assert_not_offloaded(&mut program, &frame, generic, "generic mode");
                for family in [PortSettings::STEER_IPV4, PortSettings::STEER_IPV6] {
                    if (family == PortSettings::STEER_IPV4) == own.is_ipv4() {
                        assert_not_offloaded(&mut program, &frame, ON & !family, "family off");
                    }
                }
                program.set_flags(ON, 0);
                // Only what is longer than the entry's MTU is too long.
                let length = (frame.len() - 14) as u16;
                program.install(&Flow { mtu: length, ..flow });
                assert_eq!(program.run(&frame).reason, reason_of(&own));
                program.install(&Flow { mtu: length - 1, ..flow });
                assert_not_offloaded(&mut program, &frame, ON, "MTU");
                for (bucket, slot) in [(0, 0), (0, 15), (1, 0), (1, 9)] {
                    program.install(&Flow { place: (bucket, slot), ..flow });
                    assert_eq!(program.run(&frame).reason, reason_of(&own), "{bucket} {slot}");
                }
                program.remove();
                assert_not_offloaded(&mut program, &frame, ON, "removed");
            }
        }
    });
}

/// The words of [`xdp_prog::offload::Epochs`] on which the route of an address depends.
fn epochs_of(address: IpAddr) -> [usize; 2] {
    let base = 16;
    match address {
        IpAddr::V4(v4) => {
            let bits = v4.to_bits();
            let [short, long] = epochs4([(bits >> 16) as u16, bits as u16]);
            [base + short, base + EPOCHS + long]
        }
        IpAddr::V6(v6) => {
            let [a, b, c, ..] = v6.segments();
            let [short, long] = epochs6([a, b, c]);
            [base + 2 * EPOCHS + short, base + 3 * EPOCHS + long]
        }
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_nothing_is_offloaded_while_a_thread_is_stalled() {
    netns::in_namespace(|| {
        let mut program = Program::load(false);
        for own in families() {
            program.install(&Flow::new(own, UDP));
            program.set_flags(ON, 0);
            let mut frame = frame_of(&packet(&mut Rng(3), &own, UDP, 9, 64, Check::Complete));
            frame.extend([0; 9]);
            let none = SharedSettings::NO_TIMEOUT_NS;
            for (timeouts, reason) in [
                ([1_000_000_000, none], Reason::PassWorkerStalled),
                ([none, 1_000_000_000], Reason::PassControlStalled),
                ([none, none], reason_of(&own)),
            ] {
                program.set_timeouts(timeouts);
                // Once per jiffy.
                std::thread::sleep(std::time::Duration::from_millis(20));
                let out = program.run(&frame);
                assert_eq!(out.reason, reason);
                if !reason.is_offloaded() {
                    assert!(out.frame == frame && out.action == 2);
                }
            }
            program.remove();
        }
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_wide_entries_are_of_any_protocol() {
    netns::in_namespace(|| {
        let mut program = Program::load(false);
        let mut rng = Rng(11);
        for own in families() {
            program.install(&Flow { is_wide: true, ..Flow::new(own, 0) });
            for flags in [ON, PARTIAL] {
                program.set_flags(flags, WIDE);
                for protocol in 0..=255u8 {
                    for length in [1, 7, 8, 17, 18, 19, 20, 300] {
                        let plain = packet(&mut rng, &own, UDP, length + 20, 9, Check::Complete);
                        let short = plain[..header_len(&own) + length].to_vec();
                        let before = with_protocol(&short, protocol);
                        let is_extension = [0, 43, 44, 51, 60, 135, 139, 140].contains(&protocol);
                        let frame = frame_of(&before);
                        if is_extension && !own.is_ipv4() {
                            let what = format!("next header {protocol}");
                            assert_not_offloaded(&mut program, &frame, flags, &what);
                            continue;
                        }
                        if flags == PARTIAL && [IPIP, IPV6, GRE, SCTP].contains(&protocol) {
                            // A packet inside may have a partial checksum, or it has none of TCP and UDP.
                            let what = format!("protocol {protocol}");
                            assert_not_offloaded(&mut program, &frame, flags, &what);
                            continue;
                        }
                        let out = program.run(&frame);
                        assert_eq!(out.reason, reason_of(&own), "protocol {protocol}");
                        let after = forwarded(&before, &own, &own, Check::Garbage(0));
                        assert_eq!(out.frame, program.sent(&after), "protocol {protocol}");
                    }
                }
                // Of TCP and UDP, any packets; their partial checksums are completed.
                for protocol in [TCP, UDP] {
                    for ports in [[1, 2], [0, 0], [3000, 1]] {
                        let ends = Ends { ports, ..own };
                        let check = if flags == PARTIAL { Check::Partial } else { Check::Complete };
                        for length in [0, 1, 2, 1400] {
                            let before = packet(&mut rng, &ends, protocol, length, 64, check);
                            let out = program.run(&frame_of(&before));
                            let after = forwarded(&before, &ends, &ends, check);
                            assert_eq!(out.frame, program.sent(&after));
                        }
                    }
                }
                // Nothing but the IP header is looked at.
                let is_fine = ["next header", "UDP length", "another flow", "octets after"];
                for (packet, what) in others(&own, UDP) {
                    if !is_fine.iter().any(|of| what.contains(of)) {
                        assert_not_offloaded(&mut program, &packet, flags, &what);
                    }
                }
                if !own.is_ipv4() {
                    let empty =
                        with_protocol(&packet(&mut rng, &own, UDP, 0, 9, Check::Zero)[..40], 59);
                    assert_not_offloaded(&mut program, &frame_of(&empty), flags, "empty");
                }
            }
            // There are no ports to rewrite.
            program.install(&Flow { is_wide: true, to: Some(own), ..Flow::new(own, 0) });
            let frame = frame_of(&packet(&mut rng, &own, UDP, 9, 64, Check::Complete));
            assert_not_offloaded(&mut program, &frame, ON, "a wide entry with a rewrite");
            program.remove();
        }
    });
}

/// Another address of the prefix that this one is in, or of the next prefix.
fn neighbour(address: IpAddr, host: u8, is_inside: bool) -> IpAddr {
    let next = u32::from(!is_inside);
    match address {
        IpAddr::V4(v4) => {
            Ipv4Addr::from(((v4.to_bits() ^ next << 8) & !0xff) | u32::from(host)).into()
        }
        IpAddr::V6(v6) => {
            let prefix = (v6.to_bits() >> 80) ^ u128::from(next);
            Ipv6Addr::from(prefix << 80 | u128::from(host) << 64 | u128::from(host)).into()
        }
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_entries_stand_for_prefixes() {
    netns::in_namespace(|| {
        let mut program = Program::load(false);
        for own in families() {
            for width in [Width::ToPrefix, Width::Prefixes] {
                program.set_widths(&[Width::Addresses, width]);
                let [from, to] = own.addresses;
                let is_wider = width == Width::Prefixes;
                let source = if is_wider { neighbour(from, 0, true) } else { from };
                let entry = Ends { addresses: [source, neighbour(to, 0, true)], ..own };
                program.install(&Flow { is_wide: true, ..Flow::new(entry, width.protocol()) });
                program.set_flags(ON, WIDE);
                for (addresses, is_its) in [
                    ([from, to], true),
                    ([from, neighbour(to, 0, true)], true),
                    ([from, neighbour(to, 255, true)], true),
                    ([neighbour(from, 99, true), to], is_wider),
                    ([from, neighbour(to, 3, false)], false),
                    ([neighbour(from, 3, false), to], false),
                    ([to, from], false),
                ] {
                    let ends = Ends { addresses, ..own };
                    let before = packet(&mut Rng(7), &ends, UDP, 30, 9, Check::Complete);
                    let frame = frame_of(&before);
                    let what = format!("{width:?} {addresses:?}");
                    if !is_its {
                        assert_not_offloaded(&mut program, &frame, ON, &what);
                        continue;
                    }
                    let out = program.run(&frame);
                    assert_eq!(out.reason, reason_of(&own), "{what}");
                    let after = forwarded(&before, &ends, &ends, Check::Complete);
                    assert_eq!(out.frame, program.sent(&after), "{what}");
                }
                let frame = frame_of(&packet(&mut Rng(7), &own, UDP, 30, 9, Check::Complete));
                program.set_widths(&[Width::Addresses]);
                assert_not_offloaded(&mut program, &frame, ON, "not looked up");
                program.set_widths(&[Width::ToPrefix, Width::Prefixes]);
                assert_eq!(program.run(&frame).reason, reason_of(&own), "both are looked up");
                program.remove();
            }
            program.set_widths(&[Width::Addresses]);
        }
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_partial_checksums_of_jumbo_frames_are_completed() {
    netns::in_namespace(|| {
        let mut rng = Rng(5);
        let mut program = Program::load(true);
        for own in families() {
            for protocol in [TCP, UDP] {
                let to = translations(&own)[3];
                program.install(&Flow { to, mtu: 9000, ..Flow::new(own, protocol) });
                program.set_flags(PARTIAL, 0);
                for length in [1501, 2047, 2048, 3000, 3333] {
                    let before = packet(&mut rng, &own, protocol, length, 64, Check::Partial);
                    let out = program.run(&frame_of(&before));
                    let after = forwarded(&before, &own, &to.expect("NAT"), Check::Partial);
                    assert_eq!(out.frame, program.sent(&after));
                }
                // Several buffers: not all of the packet is in the first one, or only padding is in the others.
                for (length, padding) in [(5000, 0), (1000, 4000)] {
                    let before = packet(&mut rng, &own, protocol, length, 64, Check::Complete);
                    let mut frame = frame_of(&before);
                    frame.resize(frame.len() + padding, 0);
                    let out = program.run(&frame);
                    assert_eq!((out.reason, out.action), (Reason::PassNoSocket, 2));
                    assert_eq!(out.frame[..14 + length], frame[..14 + length]);
                }
                program.remove();
            }
        }
    });
}
