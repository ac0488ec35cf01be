//! Multi-buffer packets are processed like flat ones, and every frame is returned.

use proptest::prelude::*;

use super::*;
use crate::skb::{FRAME_SIZE, HEAD_MIN, HEADROOM, JUMBO_MTU, MAX_PACKET};
use crate::wire::icmpv4::Icmpv4Packet;
use crate::wire::icmpv6::Icmpv6Packet;

/// A router whose ports take jumbo frames; `right` has the MTU `right`.
fn lab(right: u32) -> Lab {
    let mut net = Net::default();
    (net.links[1].mtu, net.links[1].mtu6) = (JUMBO_MTU, JUMBO_MTU);
    (net.links[2].mtu, net.links[2].mtu6) = (right, right);
    net.lab()
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

/// A packet as a driver delivers it: the head has at least `head` octets unless the packet is shorter,
/// and the rest is in frags of `most` octets.
fn scattered(pool: &mut FramePool, frame: &[u8], head: usize, most: usize) -> SkBuff {
    let mut skb = SkBuff::alloc_skb(pool, HEADROOM).expect("a frame");
    let (first, rest) = frame.split_at(head.clamp(HEAD_MIN, MAX_PACKET).min(frame.len()));
    skb.put(first.len()).expect("room").copy_from_slice(first);
    for part in rest.chunks(most.clamp(rest.len() / 16 + 1, FRAME_SIZE)) {
        let mut memory = pool.alloc().expect("a frame");
        memory.bytes_mut()[..part.len()].copy_from_slice(part);
        skb.add_frag(memory, 0, part.len(), pool).expect("room");
    }
    skb
}

/// IP packet lengths around every frame boundary, on input and output.
fn lengths() -> Vec<usize> {
    let border = |frame: usize| (frame - 2..=frame + 2).map(|frame| frame - 14);
    [MAX_PACKET, FRAME_SIZE, 2 * MAX_PACKET, MAX_PACKET + FRAME_SIZE]
        .into_iter()
        .flat_map(border)
        .chain([8999, 9000])
        .collect()
}

#[test]
fn packets_of_every_length_are_forwarded_whole() {
    for len in lengths() {
        let mut lab = lab(JUMBO_MTU);
        let packet = V4 { payload: udp(&payload(len - 28)), ..V4::default() };
        let sent = lab.one(packet.frame());
        assert_eq!(forwarded(&sent, 0x0800), after_hop(packet.packet()), "{len} octets");
        let packet = V6 { payload: udp(&payload(len - 48)), ..V6::default() };
        let sent = lab.one(packet.frame());
        let mut after = packet.packet();
        after[7] -= 1;
        assert_eq!(forwarded(&sent, 0x86dd), after, "{len} octets");
        assert_eq!(lab.pool.available(), FRAMES as usize);
    }
}

#[test]
fn fragments_are_those_of_a_flat_packet() {
    // MTUs at which a fragment takes one frame, slightly more than one, and three.
    for mtu in [576, 1500, 3378, 3379, 3826, 3827, 5000, 8999] {
        for len in lengths().into_iter().filter(|&len| len > mtu as usize) {
            let mut lab = lab(mtu);
            let packet = V4 { payload: udp(&payload(len - 28)), ..V4::default() };
            let sent = lab.one(packet.frame());
            let room = (mtu as usize - 20) & !7;
            let mut joined = Vec::new();
            for (port, frame) in &sent {
                assert_eq!(*port, RIGHT);
                let ipv4 = packet_to(frame, RIGHT_HOST_MAC, RIGHT_MAC, 0x0800);
                let ipv4 = Ipv4Packet::new_checked(ipv4).expect("a header");
                assert!(ipv4.verify_checksum());
                assert_eq!(usize::from(ipv4.total_len()), frame.len() - 14);
                assert_eq!(usize::from(ipv4.frag_offset()), joined.len());
                joined.extend_from_slice(ipv4.payload());
                let last = joined.len() == len - 20;
                assert_eq!(ipv4.more_frags(), !last);
                assert!(last || ipv4.payload().len() == room);
            }
            assert!(joined == packet.payload, "mtu {mtu}, {len} octets");
            assert_eq!(lab.pool.available(), FRAMES as usize);
        }
    }
}

#[test]
fn packets_that_must_not_be_fragmented_are_rejected_with_the_mtu() {
    let mut lab = lab(1500);
    let packet = V4 { dont_frag: true, payload: udp(&payload(8972)), ..V4::default() };
    let sent = lab.one(packet.frame());
    let answer = Ipv4Packet::new_checked(answered(&sent, 0x0800)).expect("a header");
    let icmp = Icmpv4Packet::new_checked(answer.payload()).expect("a message");
    assert_eq!((icmp.icmp_type().0, icmp.code()), (3, 4));
    assert_eq!(icmp.rest_of_header(), 1500u32.to_be_bytes());
    assert_eq!(icmp.payload(), &packet.packet()[..576 - 28]);
    let packet = V6 { payload: udp(&payload(8952)), ..V6::default() };
    let sent = lab.one(packet.frame());
    let icmp = Icmpv6Packet::new_checked(&answered(&sent, 0x86dd)[40..]).expect("a message");
    assert_eq!((icmp.icmp_type().0, icmp.code()), (2, 0));
    assert_eq!(icmp.rest_of_header(), 1500u32.to_be_bytes());
    assert_eq!(icmp.payload(), &packet.packet()[..1280 - 48]);
    assert_eq!(lab.drops(DropReason::PktTooBig), 2);
    assert_eq!(lab.pool.available(), FRAMES as usize);
}

#[test]
fn held_and_punted_packets_keep_their_octets() {
    let mut lab = lab(JUMBO_MTU);
    let held = V4 { payload: udp(&payload(8000)), ..V4::to("198.18.2.9") };
    lab.receive(LEFT, &[held.frame(), held.frame()]);
    assert_eq!(lab.state.held(), 6, "frames");
    lab.net.neigh.push((3, "198.18.2.9", Some(RIGHT_HOST_MAC)));
    lab.publish();
    lab.poll();
    let sent = lab.sent();
    assert_eq!(sent.len(), 2);
    assert_eq!(forwarded(&sent[1..], 0x0800), after_hop(held.packet()));
    let foreign = V4 { payload: udp(&payload(8000)), ..V4::to("203.0.113.5") };
    lab.receive(LEFT, &[foreign.frame()]);
    assert_eq!(lab.punted(), [foreign.frame()]);
    assert_eq!((lab.state.held(), lab.pool.available()), (0, FRAMES as usize));
}

#[test]
fn padding_is_trimmed_in_head_and_frags() {
    for len in [100, HEAD_MIN, 3000, 7000] {
        let mut lab = lab(JUMBO_MTU);
        let packet = V4 { payload: udp(&payload(len)), ..V4::default() };
        let mut frame = packet.frame();
        frame.resize(9000, 0xee);
        let skb = scattered(&mut lab.pool, &frame, HEAD_MIN, 1000);
        lab.receive_skbs(LEFT, vec![skb]);
        let sent = lab.sent();
        assert_eq!(forwarded(&sent, 0x0800), after_hop(packet.packet()), "{len} octets");
        assert_eq!(lab.pool.available(), FRAMES as usize);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Checksums, lengths, fragments, ICMP errors, punts: nothing depends on the position of the octets.
    #[test]
    fn a_packet_in_frags_is_processed_like_a_flat_one(
        frames in prop::collection::vec(conservation::nearly_right(3700), 1..8),
        head in HEAD_MIN..MAX_PACKET,
        most in 1usize..2000,
        mtu in prop::sample::select(vec![1280, 1500, 9000]),
    ) {
        let mut labs = [lab(mtu), lab(mtu)];
        let results = labs.each_mut().map(|lab| {
            lab.net.links[1].partial_csum = true;
            lab.publish();
            lab
        });
        let [flat, apart] = results;
        flat.receive(LEFT, &frames);
        let skbs = frames.iter().map(|frame| scattered(&mut apart.pool, frame, head, most));
        let skbs = skbs.collect();
        apart.receive_skbs(LEFT, skbs);
        prop_assert!(flat.sent() == apart.sent());
        prop_assert!(flat.punted() == apart.punted());
        let drops = |lab: &Lab| -> Vec<u64> { lab.stats.drops.iter().map(|n| n.get()).collect() };
        prop_assert_eq!(drops(flat), drops(apart));
        flat.ctx(|ctx| drop_held(ctx, DropReason::Shutdown));
        apart.ctx(|ctx| drop_held(ctx, DropReason::Shutdown));
        prop_assert_eq!(apart.pool.available(), FRAMES as usize);
    }

    /// A partial checksum, over frags of any length.
    #[test]
    fn partial_checksums_are_completed_over_frags(
        len in 2100usize..8900, head in HEAD_MIN..MAX_PACKET, most in 1usize..3000,
    ) {
        let mut lab = lab(JUMBO_MTU);
        lab.net.links[1].partial_csum = true;
        lab.publish();
        let mut packet = V4 { payload: udp(&payload(len)), ..V4::default() };
        let pseudo = checksum::pseudo_header_v4(
            addr4(packet.src), addr4(packet.dst), Protocol::UDP, packet.payload.len() as u16);
        let partial = checksum::fold(pseudo).to_be_bytes();
        packet.payload[6..8].copy_from_slice(&partial);
        let skb = scattered(&mut lab.pool, &packet.frame(), head, most);
        lab.receive_skbs(LEFT, vec![skb]);
        let sent = lab.sent();
        let ipv4 = Ipv4Packet::new_unchecked(forwarded(&sent, 0x0800));
        let sum = pseudo + checksum::ones_complement_sum(ipv4.payload());
        prop_assert!(checksum::is_valid(sum));
        prop_assert_eq!(&ipv4.payload()[8..], &payload(len)[..]);
    }
}
