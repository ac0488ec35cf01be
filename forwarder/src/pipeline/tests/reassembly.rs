//! Fragmented IPsec packets to the router: octets in and out, and what the kernel gets.

use proptest::prelude::*;

use super::ipsec::{Accept, FAMILIES, Gateway, after_hop6, back4, back6, gateway, gateway_of, net};
use super::*;
use crate::ipsec::Family as IpFamily;
use crate::netfilter::priority;
use crate::wire::Ipv6Packet;
use crate::wire::ipv6_ext::FragmentHeader;

/// Octets of an Ethernet header.
const ETH: usize = 14;

/// A part of a frame's packet: `len` octets of its payload from `offset` on, as a frame.
fn part(frame: &[u8], ident: u16, offset: usize, len: usize, more: bool) -> Vec<u8> {
    let packet = &frame[ETH..];
    let mut out = frame[..ETH].to_vec();
    if packet[0] >> 4 == 4 {
        out.extend(&packet[..20]);
        out.extend(&packet[20..][offset..offset + len]);
        let mut ip = Ipv4Packet::new_unchecked(&mut out[ETH..]);
        ip.set_total_len(20 + len as u16);
        ip.set_ident(ident);
        ip.set_frag(false, more, offset as u16);
        ip.set_checksum(0);
        ip.fill_checksum();
        return out;
    }
    let protocol = Protocol(packet[6]);
    out.extend(&packet[..40]);
    out.extend([0; 8]);
    out.extend(&packet[40..][offset..offset + len]);
    let mut ip = Ipv6Packet::new_unchecked(&mut out[ETH..]);
    ip.set_payload_len(8 + len as u16);
    ip.set_next_header(Protocol::FRAGMENT);
    let mut header = FragmentHeader::new_unchecked(&mut out[ETH + 40..]);
    header.set(protocol, offset as u16, more, ident.into());
    out
}

/// Length of the payload of a frame's packet.
fn payload_len(frame: &[u8]) -> usize {
    frame.len() - ETH - if frame[ETH] >> 4 == 4 { 20 } else { 40 }
}

/// Fragments of a frame's packet with `size` octets each.
pub(super) fn cut(frame: &[u8], ident: u16, size: usize) -> Vec<Vec<u8>> {
    let len = payload_len(frame);
    let starts = (0..len).step_by(size);
    starts.map(|at| part(frame, ident, at, size.min(len - at), at + size < len)).collect()
}

fn long(len: usize) -> V4 {
    V4 { payload: udp(&vec![7; len]), ..back4() }
}

/// Waits until fragments have waited too long.
fn expire(gateway: &mut Gateway) {
    gateway.lab.now_ns += 60_000_000;
    gateway.lab.poll();
}

#[track_caller]
fn assert_balanced(gateway: &Gateway, received: u64, sent: u64) {
    let mut account = gateway.lab.stats.account(gateway.lab.state.held_packets() as u64, 0);
    (account.received, account.sent) = (received, sent);
    assert!(account.is_balanced(), "{account:?}");
}

#[test]
fn fragments_in_any_order_are_forwarded_as_the_packet() {
    for outer in FAMILIES {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            for together in [true, false] {
                let mut gateway = gateway(outer);
                let inner = long(1200);
                let frame = gateway.sealed(&inner.packet());
                let parts = cut(&frame, 5, 512);
                let frames: Vec<Vec<u8>> = order.iter().map(|&n| parts[n].clone()).collect();
                if together {
                    gateway.lab.receive(RIGHT, &frames);
                } else {
                    frames.iter().for_each(|frame| {
                        gateway.lab.receive(RIGHT, std::slice::from_ref(frame));
                    });
                }
                let sent = gateway.lab.sent();
                assert_eq!(answered(&sent, 0x0800), after_hop(inner.packet()));
                assert_eq!(gateway.lab.state.held_packets(), 0);
                assert_eq!(gateway.lab.punted(), Vec::<Vec<u8>>::new());
                assert_balanced(&gateway, 3, 1);
                let [requests, oks, received, delivered] = match outer {
                    IpFamily::Ipv4 => {
                        [Mib::IpReasmReqds, Mib::IpReasmOKs, Mib::IpInReceives, Mib::IpInDelivers]
                    }
                    IpFamily::Ipv6 => [
                        Mib::Ip6ReasmReqds,
                        Mib::Ip6ReasmOKs,
                        Mib::Ip6InReceives,
                        Mib::Ip6InDelivers,
                    ],
                };
                // The packet inside counts as received, too.
                let inside = u64::from(outer == IpFamily::Ipv4);
                let counts = [requests, oks, received, delivered].map(|name| gateway.lab.mib(name));
                assert_eq!(counts, [3, 1, 3 + inside, 1]);
            }
        }
    }
}

#[test]
fn an_ipv6_packet_inside_is_forwarded_and_padding_of_fragments_is_not_part_of_it() {
    for outer in FAMILIES {
        let mut gateway = gateway(outer);
        let frame = gateway.sealed(&back6().packet());
        let mut parts = cut(&frame, 5, 40);
        for part in &mut parts {
            part.extend([0xee; 46]);
        }
        gateway.lab.receive(RIGHT, &parts);
        assert_eq!(answered(&gateway.lab.sent(), 0x86dd), after_hop6(back6().packet()));
    }
}

#[test]
fn sets_of_fragments_do_not_mix() {
    for outer in FAMILIES {
        let mut gateway = gateway(outer);
        let inner: Vec<V4> = (0..20).map(|n| long(600 + n)).collect();
        let sets: Vec<Vec<Vec<u8>>> = inner
            .iter()
            .enumerate()
            .map(|(n, inner)| cut(&gateway.sealed(&inner.packet()), n as u16, 240))
            .collect();
        let frames: Vec<Vec<u8>> =
            (0..3).flat_map(|n| sets.iter().map(move |set| set[n].clone())).collect();
        gateway.lab.receive(RIGHT, &frames);
        let sent = gateway.lab.sent();
        assert_eq!(sent.len(), inner.len());
        for ((_, frame), inner) in sent.iter().zip(&inner) {
            assert_eq!(frame[ETH..], after_hop(inner.packet()));
        }
    }
}

#[test]
fn duplicates_are_dropped_and_the_packet_is_forwarded() {
    for outer in FAMILIES {
        let mut gateway = gateway(outer);
        let frame = gateway.sealed(&long(1000).packet());
        let parts = cut(&frame, 5, 512);
        let frames = [&parts[0], &parts[0], &parts[2], &parts[2], &parts[1]].map(Clone::clone);
        gateway.lab.receive(RIGHT, &frames);
        assert_eq!(answered(&gateway.lab.sent(), 0x0800), after_hop(long(1000).packet()));
        assert_eq!(gateway.lab.drops(DropReason::DupFrag), 2);
        assert_balanced(&gateway, 5, 1);
    }
}

#[test]
fn fragments_that_overlap_are_dropped_with_all_of_their_packet() {
    for outer in FAMILIES {
        let mut gateway = gateway(outer);
        let frame = gateway.sealed(&long(1000).packet());
        let parts = cut(&frame, 5, 512);
        let overlapping = part(&frame, 5, 256, 512, true);
        let frames = [parts[0].clone(), parts[2].clone(), overlapping, parts[1].clone()];
        gateway.lab.receive(RIGHT, &frames);
        assert_eq!(gateway.lab.sent(), []);
        assert_eq!(gateway.lab.drops(DropReason::FragOverlap), 4);
        let fails = if outer == IpFamily::Ipv4 { Mib::IpReasmFails } else { Mib::Ip6ReasmFails };
        assert_eq!(gateway.lab.mib(fails), 1);
        assert_eq!(gateway.lab.state.held(), 0);
        assert_balanced(&gateway, 4, 0);
        // Later, another packet may have the same identification.
        expire(&mut gateway);
        gateway.lab.receive(RIGHT, &parts);
        assert_eq!(gateway.lab.sent().len(), 1);
        assert_eq!(gateway.lab.punted(), Vec::<Vec<u8>>::new());
    }
}

#[test]
fn the_kernel_gets_what_has_waited_too_long_and_what_follows() {
    for outer in FAMILIES {
        let mut gateway = gateway(outer);
        let frame = gateway.sealed(&long(1000).packet());
        let parts = cut(&frame, 5, 512);
        gateway.lab.receive(RIGHT, &[parts[2].clone(), parts[0].clone()]);
        assert_eq!(gateway.lab.state.held_packets(), 2);
        assert_balanced(&gateway, 2, 0);
        gateway.lab.now_ns += 40_000_000;
        gateway.lab.poll();
        assert_eq!(gateway.lab.state.held_packets(), 2);
        gateway.lab.now_ns += 20_000_000;
        gateway.lab.poll();
        assert_eq!(gateway.lab.punts(PuntReason::Fragment), 2);
        assert_eq!(gateway.lab.punted(), [parts[2].clone(), parts[0].clone()]);
        gateway.lab.receive(RIGHT, &[parts[1].clone()]);
        assert_eq!(gateway.lab.punted(), [parts[1].clone()]);
        assert_eq!(gateway.lab.sent(), []);
        assert_balanced(&gateway, 3, 0);
        let requests = [Mib::IpReasmReqds, Mib::Ip6ReasmReqds].map(|name| gateway.lab.mib(name));
        assert_eq!(requests, [0, 0], "the kernel counts them");
        // The next packet with the same identification.
        expire(&mut gateway);
        gateway.lab.receive(RIGHT, &parts);
        assert_eq!(gateway.lab.sent().len(), 1);
    }
}

#[test]
fn the_kernel_gets_fragments_when_the_worker_stops() {
    let mut gateway = gateway(IpFamily::Ipv4);
    let frame = gateway.sealed(&long(1000).packet());
    let parts = cut(&frame, 5, 512);
    gateway.lab.receive(RIGHT, &parts[..2]);
    gateway.lab.ctx(|ctx| drop_held(ctx, DropReason::Shutdown));
    gateway.lab.assert_conserved();
    assert_eq!(gateway.lab.punted(), parts[..2]);
    assert_eq!(gateway.lab.state.held(), 0);
}

#[test]
fn the_kernel_gets_the_fragments_of_packets_that_it_has_to_decide_about() {
    let local = V4 { dst: "198.18.1.1", ..long(1000) };
    let not_of_the_policy = V4 { src: "10.2.0.5", ..long(1000) };
    let neighbour_unknown = V4 { dst: "198.18.1.77", ..long(1000) };
    for (packet, reason) in [
        (local, PuntReason::Local),
        (not_of_the_policy, PuntReason::Xfrm),
        (neighbour_unknown, PuntReason::NeighUnresolved),
    ] {
        for outer in FAMILIES {
            let mut gateway = gateway(outer);
            let frame = gateway.sealed(&packet.packet());
            let mut parts = cut(&frame, 5, 512);
            parts.swap(0, 2);
            // Between others of a burst.
            let other = gateway.sealed(&back4().packet());
            let frames = [&parts[..], &[other]].concat();
            gateway.lab.receive(RIGHT, &frames);
            assert_eq!(gateway.lab.sent().len(), 1);
            assert_eq!(gateway.lab.punts(reason), 3, "{reason}");
            assert_eq!(gateway.lab.punted(), parts);
            assert_balanced(&gateway, 4, 1);
            let states = gateway.lab.tables.xfrm.states();
            let usage = states.inbound.states().next().expect("an SA").state().usage();
            assert_eq!(usage.packets, 1, "the kernel counts it");
        }
    }
}

#[test]
fn what_the_sa_refuses_counts_as_one_packet() {
    let mut gateway = gateway(IpFamily::Ipv4);
    let mut frame = gateway.sealed(&long(1000).packet());
    *frame.last_mut().expect("an octet") ^= 1;
    gateway.lab.receive(RIGHT, &cut(&frame, 5, 512));
    assert_eq!(gateway.lab.sent(), []);
    assert_eq!(gateway.lab.drops(DropReason::XfrmInStateProtoError), 1);
    assert_balanced(&gateway, 3, 0);
}

#[test]
fn fragments_that_are_not_of_an_sa_here_are_the_kernels_at_once() {
    for outer in FAMILIES {
        // Where the SPI, the last octet of the source and the protocol are.
        let [spi, source, protocol] = match outer {
            IpFamily::Ipv4 => [20, 15, 9],
            IpFamily::Ipv6 => [40, 23, 6],
        };
        for (n, at) in [spi, source, protocol].into_iter().enumerate() {
            let mut gateway = gateway(outer);
            let mut frame = gateway.sealed(&long(1000).packet());
            match n {
                2 => frame[ETH + at] = Protocol::AH.0,
                _ => frame[ETH + at] ^= 0x10,
            }
            let parts = cut(&frame, 5, 512);
            // Only the first one has the SPI.
            let frames = if n == 0 { vec![parts[1].clone(), parts[0].clone()] } else { parts };
            gateway.lab.receive(RIGHT, &frames);
            assert_eq!(gateway.lab.punted(), frames);
            assert_eq!(gateway.lab.state.held(), 0);
        }
    }
}

#[test]
fn packets_longer_than_a_frame_are_the_kernels() {
    for outer in FAMILIES {
        let mut gateway = gateway(outer);
        let frame = gateway.sealed(&long(1000).packet());
        let mut long = frame.clone();
        long.resize(5000, 7);
        let parts = cut(&long, 5, 1440);
        gateway.lab.receive(RIGHT, &parts);
        assert_eq!(gateway.lab.punted(), parts);
        assert_eq!(gateway.lab.state.held(), 0);
        // Beyond 65,535 octets.
        let mut parts = cut(&frame, 6, 512);
        let mut last = part(&frame, 6, 0, 400, false);
        match outer {
            IpFamily::Ipv4 => {
                let mut ip = Ipv4Packet::new_unchecked(&mut last[ETH..]);
                ip.set_frag(false, false, 65_528);
                ip.set_checksum(0);
                ip.fill_checksum();
            }
            IpFamily::Ipv6 => FragmentHeader::new_unchecked(&mut last[ETH + 40..]).set(
                Protocol::ESP,
                65_528,
                false,
                6,
            ),
        }
        parts.insert(1, last);
        gateway.lab.receive(RIGHT, &parts);
        assert_eq!(gateway.lab.punted(), parts);
        assert_eq!(gateway.lab.sent(), []);
    }
}

#[test]
fn the_longest_packet_that_fits_into_a_frame_is_opened() {
    // 4080 octets with the outer header and what ESP adds; the next longer one has 4084.
    for (inside, is_opened) in [(4026, true), (4027, false)] {
        let mut gateway = gateway(IpFamily::Ipv4);
        let inner = long(inside - 28).packet();
        let frame = gateway.sealed(&inner);
        assert_eq!(frame.len() - ETH, if is_opened { 4080 } else { 4084 });
        let parts = cut(&frame, 5, 1480);
        gateway.lab.receive(RIGHT, &parts);
        let sent = gateway.lab.sent();
        let octets: Vec<u8> =
            sent.iter().flat_map(|(_, frame)| &frame[ETH + 20..]).copied().collect();
        assert_eq!(octets, if is_opened { &inner[20..] } else { &[] });
        assert_eq!(gateway.lab.punted(), if is_opened { &[] } else { &parts[..] });
    }
}

#[test]
fn tiny_fragments_and_too_many_are_the_kernels() {
    let mut gateway = gateway(IpFamily::Ipv4);
    let frame = gateway.sealed(&long(100).packet());
    let parts = cut(&frame, 5, 8);
    gateway.lab.receive(RIGHT, &parts);
    assert_eq!(gateway.lab.punted(), parts);
    // Eight octets are enough for a fragment.
    let len = payload_len(&frame);
    let parts = [part(&frame, 6, 0, 8, true), part(&frame, 6, 8, len - 8, false)];
    gateway.lab.receive(RIGHT, &parts);
    assert_eq!(gateway.lab.sent().len(), 1);
}

#[test]
fn with_as_many_packets_waiting_as_can_the_kernel_gets_further_ones() {
    let mut gateway = gateway(IpFamily::Ipv4);
    let frame = gateway.sealed(&long(1000).packet());
    // 512 frames: an eighth may be held.
    let firsts: Vec<Vec<u8>> = (0..70).map(|n| cut(&frame, n, 512)[0].clone()).collect();
    gateway.lab.receive(RIGHT, &firsts);
    assert_eq!(gateway.lab.state.held(), 64);
    assert_eq!(gateway.lab.punted(), firsts[64..]);
    // The packet that waits goes on nevertheless if it needs no frame more.
    expire(&mut gateway);
    assert_eq!(gateway.lab.punted(), firsts[..64]);
    assert_eq!(gateway.lab.state.held(), 0);
    gateway.lab.receive(RIGHT, &cut(&frame, 100, 512));
    assert_eq!(gateway.lab.sent().len(), 1);
}

#[test]
fn without_a_free_frame_the_kernel_gets_the_fragments() {
    for free in 0..3 {
        let mut gateway = gateway(IpFamily::Ipv4);
        let frame = gateway.sealed(&long(500).packet());
        let parts = cut(&frame, 5, 512);
        assert_eq!(parts.len(), 2);
        let skbs: Vec<SkBuff> = parts
            .iter()
            .map(|part| SkBuff::of_octets(&mut gateway.lab.pool, part).expect("a frame"))
            .collect();
        let mut taken: Vec<_> = std::iter::from_fn(|| gateway.lab.pool.alloc()).collect();
        taken.drain(..free).for_each(|frame| gateway.lab.pool.free(frame));
        let mut burst = Burst::with_capacity(2);
        for mut skb in skbs {
            (skb.port, skb.iif) = (RIGHT, 3);
            burst.push(skb).expect("room");
        }
        gateway.lab.ctx(|ctx| forward_burst(&mut burst, ctx));
        taken.into_iter().for_each(|frame| gateway.lab.pool.free(frame));
        gateway.lab.assert_conserved();
        let sent = gateway.lab.sent().len();
        assert_eq!(sent, usize::from(free == 2));
        let punted = if free == 2 { &[] } else { &parts[..] };
        assert_eq!(gateway.lab.punted(), punted);
    }
}

#[test]
fn where_hook_functions_see_fragments_the_kernel_reassembles() {
    let (mut net, state) = net(IpFamily::Ipv4);
    net.hooks.push(NfHookOps::new(Hook::PreRouting, priority::RAW, Accept));
    let mut gateway = gateway_of(net, state, IpFamily::Ipv4);
    let frame = gateway.sealed(&long(1000).packet());
    let parts = cut(&frame, 5, 512);
    gateway.lab.receive(RIGHT, &parts);
    assert_eq!(gateway.lab.punted(), parts);
}

#[test]
fn the_sa_may_be_gone_before_the_last_fragment() {
    let mut gateway = gateway(IpFamily::Ipv4);
    let frame = gateway.sealed(&long(1000).packet());
    let parts = cut(&frame, 5, 512);
    gateway.lab.receive(RIGHT, &parts[..2]);
    gateway.lab.net.states = Arc::default();
    gateway.lab.publish();
    gateway.lab.receive(RIGHT, &parts[2..]);
    assert_eq!(gateway.lab.punted(), parts[2..]);
    expire(&mut gateway);
    assert_eq!(gateway.lab.punted(), parts[..2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Each fragment is sent with its packet, dropped or handed over, and no frame is lost.
    #[test]
    fn any_fragments(
        parts in prop::collection::vec(
            (0usize..3, 0usize..8, 1usize..20, any::<bool>(), 0u64..40, any::<bool>()), 1..60),
        is_ipv6 in any::<bool>(),
    ) {
        let outer = if is_ipv6 { IpFamily::Ipv6 } else { IpFamily::Ipv4 };
        let mut gateway = gateway(outer);
        let frames: Vec<Vec<u8>> = (0..3).map(|_| gateway.sealed(&long(80).packet())).collect();
        let received = parts.len() as u64;
        let (mut sent, mut burst) = (0, Vec::new());
        for (n, offset, words, more, wait_ms, ends) in parts {
            let (frame, offset) = (&frames[n], 8 * offset);
            let left = payload_len(frame) - offset;
            let (len, more) = match 8 * words >= left {
                true => (left, false),
                false => (8 * words, more || offset == 0),
            };
            burst.push(part(frame, n as u16, offset, len, more));
            if ends {
                gateway.lab.receive(RIGHT, &std::mem::take(&mut burst));
                sent += gateway.lab.sent().len() as u64;
                let _ = gateway.lab.punted();
                gateway.lab.now_ns += wait_ms * 1_000_000;
                gateway.lab.poll();
            }
        }
        gateway.lab.receive(RIGHT, &burst);
        sent += gateway.lab.sent().len() as u64;
        let _ = gateway.lab.punted();
        assert_balanced(&gateway, received, sent);
        expire(&mut gateway);
        let _ = gateway.lab.punted();
        prop_assert_eq!(gateway.lab.state.held_packets(), 0);
        assert_balanced(&gateway, received, sent);
    }
}
