//! IPv4 fragmentation: sizes, flags, options and drops as in the kernel.

use super::*;
use crate::wire::ipv4_option::OptionKind;

/// (offset, more fragments, payload length) of each sent frame.
fn layout(sent: &[(u16, Vec<u8>)]) -> Vec<(u16, bool, usize)> {
    let fragment = |(port, frame): &(u16, Vec<u8>)| {
        assert_eq!(*port, RIGHT);
        let packet = packet_to(frame, RIGHT_HOST_MAC, RIGHT_MAC, 0x0800);
        let ipv4 = Ipv4Packet::new_checked(packet).expect("a header");
        assert!(ipv4.verify_checksum());
        assert_eq!(usize::from(ipv4.total_len()), packet.len());
        assert_eq!((ipv4.ttl(), ipv4.ident(), ipv4.dont_frag()), (63, 0x1234, false));
        (ipv4.frag_offset(), ipv4.more_frags(), ipv4.payload().len())
    };
    sent.iter().map(fragment).collect()
}

fn lab(mtu: u32) -> Lab {
    let mut net = Net::default();
    net.links[2].mtu = mtu;
    net.lab()
}

#[test]
fn sizes_are_those_of_the_kernels_slow_path() {
    type Layout = Vec<(u16, bool, usize)>;
    let table: [(u32, usize, u16, bool, Layout); 8] = [
        (1280, 1280, 0, false, vec![(0, false, 1260)]),
        (1280, 1281, 0, false, vec![(0, true, 1256), (1256, false, 5)]),
        // The last fragment may use the four octets that others cannot.
        (1280, 20 + 1256 + 1260, 0, false, vec![(0, true, 1256), (1256, false, 1260)]),
        (
            1280,
            20 + 1256 + 1261,
            0,
            false,
            vec![(0, true, 1256), (1256, true, 1256), (2512, false, 5)],
        ),
        (1500, 3000, 0, false, vec![(0, true, 1480), (1480, true, 1480), (2960, false, 20)]),
        // A fragment of a fragment keeps its offset, and MF on all if it had MF.
        (1280, 1500, 1480, true, vec![(1480, true, 1256), (2736, true, 224)]),
        (1280, 1500, 1480, false, vec![(1480, true, 1256), (2736, false, 224)]),
        (68, 20 + 100, 0, false, vec![(0, true, 48), (48, true, 48), (96, false, 4)]),
    ];
    for (mtu, len, offset, more_frags, expected) in table {
        let payload: Vec<u8> = (0..len - 20).map(|n| n as u8).collect();
        let packet = V4 { offset, more_frags, payload, ..V4::default() };
        let mut lab = lab(mtu);
        let sent = lab.one(packet.frame());
        assert_eq!(layout(&sent), expected, "mtu {mtu}, {len} octets");
        let joined: Vec<u8> = sent.iter().flat_map(|(_, frame)| frame[34..].to_vec()).collect();
        assert_eq!(joined, packet.payload, "mtu {mtu}, {len} octets");
        let made = if expected.len() > 1 { expected.len() as u64 } else { 0 };
        assert_eq!(lab.mib(Mib::IpFragCreates), made);
        assert_eq!(lab.mib(Mib::IpFragOKs), u64::from(made > 0));
    }
}

#[test]
fn options_without_the_copied_flag_stay_with_the_first_fragment() {
    // Record route, full; stream identifier, copied; one no-operation.
    let options = vec![7, 7, 8, 1, 2, 3, 4, 136, 4, 0xab, 0xcd, 1];
    let packet = V4 { options: options.clone(), payload: udp(&[3; 1400]), ..V4::default() };
    let mut lab = lab(1280);
    let sent = lab.one(packet.frame());
    let area = |n: usize| sent[n].1[34..46].to_vec();
    assert_eq!(sent.len(), 2);
    assert_eq!(area(0), options);
    let nop = OptionKind::NOP.0;
    assert_eq!(area(1), [nop, nop, nop, nop, nop, nop, nop, 136, 4, 0xab, 0xcd, 1]);
    // In a later fragment the options have already been reduced.
    let packet = V4 { offset: 8, ..packet };
    let sent = lab.one(packet.frame());
    assert_eq!(sent[0].1[34..46], options);
    assert_eq!(sent[1].1[34..46], options);
}

#[test]
fn the_routes_mtu_takes_precedence() {
    let mut lab = Net::default().lab();
    let sent = lab.one(V4 { payload: udp(&[0; 1400]), ..V4::to("10.12.0.1") }.frame());
    assert_eq!(layout(&sent), [(0, true, 976), (976, false, 432)]);
}

#[test]
fn an_mtu_without_room_for_eight_octets_drops_silently() {
    let mut net = Net::default();
    net.routes4.push(("10.15.0.0/16", FibInfo { mtu: 27, ..via(3, "198.18.2.2") }));
    let mut lab = net.lab();
    assert_eq!(lab.one(V4::to("10.15.0.1").frame()), []);
    assert_eq!(lab.drops(DropReason::FragFailed), 1);
    assert_eq!(lab.mib(Mib::IpFragFails), 1);
}

#[test]
fn a_fragment_beyond_the_longest_packet_is_punted() {
    let mut lab = lab(1280);
    let packet = V4 { offset: 65_528, payload: vec![0; 1400], ..V4::default() };
    assert_eq!(lab.one(packet.frame()), []);
    assert_eq!(lab.punted(), [packet.frame()]);
    assert_eq!(lab.punts(PuntReason::OversizeFragment), 1);
}

#[test]
fn without_frames_for_all_fragments_none_is_sent() {
    let mut lab = lab(68);
    let mut taken: Vec<_> = std::iter::from_fn(|| lab.pool.alloc()).collect();
    (0..10).for_each(|_| lab.pool.free(taken.pop().expect("many")));
    let mut burst = Burst::with_capacity(1);
    let frame = V4 { payload: udp(&[0; 1000]), ..V4::default() }.frame();
    let mut skb = SkBuff::alloc_skb(&mut lab.pool, 256).expect("a frame");
    skb.put(frame.len()).expect("room").copy_from_slice(&frame);
    burst.push(skb).expect("room");
    lab.ctx(|ctx| forward_burst(&mut burst, ctx));
    assert_eq!(lab.sent(), []);
    assert_eq!(lab.drops(DropReason::FragFailed), 1);
    assert_eq!(lab.pool.available(), 10);
    taken.into_iter().for_each(|frame| lab.pool.free(frame));
}
