//! With any input, nothing panics and no frame is lost.

use proptest::prelude::*;

use super::*;

/// Each packet is counted once.
fn run(lab: &mut Lab, frames: &[Vec<u8>]) {
    lab.receive(LEFT, frames);
    lab.poll();
    lab.now_ns += 700_000_000;
    lab.poll();
    lab.assert_conserved();
    let punted = lab.punted().len() as u64;
    let mut account = lab.stats.account(lab.state.held_packets() as u64, 0);
    assert_eq!(account.handed_to_kernel, punted);
    // Counted by the worker and its driver in production.
    account.received = frames.len() as u64;
    account.sent = lab.sent().len() as u64;
    assert!(account.is_balanced(), "{account:?}");
    let own = lab.mib(Mib::IcmpOutMsgs) + lab.mib(Mib::Icmp6OutMsgs);
    assert_eq!(account.made, own + lab.mib(Mib::IpFragCreates));
    assert_eq!(account.fragmented, lab.mib(Mib::IpFragOKs));
    let dropped: u64 = lab.stats.ports.iter().map(|port| port.rx_dropped.get()).sum();
    assert!(dropped <= account.dropped);
    assert_eq!(lab.pool.available() + lab.state.held(), FRAMES as usize);
}

fn lab() -> Lab {
    let mut net = vlan::net();
    net.links[1].partial_csum = true;
    net.links[2].mtu = 576;
    net.lab()
}

/// A packet that passes most checks: valid addresses, then some octets changed and the checksum updated.
pub fn nearly_right(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    let dst4 = prop::sample::select(vec![
        "198.18.2.2",
        "198.18.2.9",
        "10.1.1.1",
        "10.9.0.1",
        "10.10.0.1",
        "10.12.0.1",
        "10.13.0.1",
        "192.0.2.1",
        "198.18.1.1",
        "203.0.113.5",
        "198.18.1.9",
    ]);
    let dst6 = prop::sample::select(vec![
        "2001:db8:2::2",
        "2001:db8:2::9",
        "2001:db8:a::1",
        "2001:db8:a:9::1",
        "2001:db8:a:10::1",
        "2001:db8:a:12::1",
        "2001:db9::1",
        "ff02::1",
        "2001:db8:1::9",
    ]);
    let octets = |max: usize| prop::collection::vec(any::<u8>(), 0..max);
    let edits = || prop::collection::vec((0usize..90, any::<u8>()), 0..4);
    let v4 = (dst4, octets(40), octets(longest), any::<(u8, bool, bool, u16)>(), edits());
    let v4 = v4.prop_map(|(dst, options, payload, (ttl, dont_frag, more_frags, offset), edits)| {
        let protocol = Protocol([1, 6, 17, 99][usize::from(ttl & 3)]);
        let offset = if ttl & 16 == 0 { 0 } else { offset & 0xfff8 };
        let packet =
            V4 { ttl, protocol, dont_frag, more_frags, offset, options, payload, ..V4::to(dst) };
        let mut packet = packet.packet();
        for (at, octet) in edits {
            let at = at % packet.len();
            packet[at] = octet;
        }
        Ipv4Packet::new_unchecked(&mut packet[..]).fill_checksum();
        eth(0x0800, &packet)
    });
    let v6 = (dst6, octets(longest), any::<(u8, u8)>(), edits());
    let v6 = v6.prop_map(|(dst, payload, (hop_limit, kind), edits)| {
        let next_header = Protocol([0, 6, 17, 43, 44, 58, 60, 51][usize::from(kind & 7)]);
        let mut packet = V6 { hop_limit, next_header, payload, ..V6::to(dst) }.packet();
        for (at, octet) in edits {
            let at = at % packet.len();
            packet[at] = octet;
        }
        eth(0x86dd, &packet)
    });
    prop_oneof![v4, v6]
}

/// A packet that passes most checks, behind tags of known and unknown VLANs.
fn tagged() -> impl Strategy<Value = Vec<u8>> {
    let tpid = prop::sample::select(vec![0x8100u16, 0x88a8, 0x9100]);
    let vid = prop::sample::select(vec![0u16, 5, 10, 20, 40, 4095]);
    let tags = prop::collection::vec((tpid, vid, any::<u8>()), 0..6);
    (tags, nearly_right(1800), any::<u8>()).prop_map(|(tags, mut frame, cut)| {
        let octets = tags.iter().flat_map(|(tpid, vid, pcp)| {
            let tci = u16::from(pcp & 15) << 12 | vid;
            [tpid.to_be_bytes(), tci.to_be_bytes()].concat()
        });
        frame.splice(12..12, octets.collect::<Vec<_>>());
        if cut < 32 {
            frame.truncate(usize::from(cut));
        }
        frame
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn arbitrary_octets(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20)) {
        run(&mut lab(), &frames);
    }

    #[test]
    fn arbitrary_packets(
        frames in prop::collection::vec(
            (any::<bool>(), prop::collection::vec(any::<u8>(), 0..200)), 1..20)
    ) {
        let frame = |(v6, octets): &(bool, Vec<u8>)| eth(if *v6 { 0x86dd } else { 0x0800 }, octets);
        run(&mut lab(), &frames.iter().map(frame).collect::<Vec<_>>());
    }

    #[test]
    fn packets_that_get_far(frames in prop::collection::vec(nearly_right(1800), 1..30)) {
        run(&mut lab(), &frames);
    }

    #[test]
    fn packets_behind_tags(frames in prop::collection::vec(tagged(), 1..30)) {
        run(&mut lab(), &frames);
    }

    #[test]
    fn with_hardly_a_free_frame(frames in prop::collection::vec(nearly_right(1800), 1..8), free in 0usize..6) {
        let mut lab = lab();
        let mut burst = Burst::with_capacity(frames.len());
        for frame in &frames {
            let mut skb = SkBuff::alloc_skb(&mut lab.pool, 256).expect("a frame");
            skb.put(frame.len()).expect("room").copy_from_slice(frame);
            burst.push(skb).expect("room");
        }
        let mut taken: Vec<_> = std::iter::from_fn(|| lab.pool.alloc()).collect();
        for _ in 0..free {
            lab.pool.free(taken.pop().expect("many"));
        }
        lab.ctx(|ctx| forward_burst(&mut burst, ctx));
        taken.into_iter().for_each(|frame| lab.pool.free(frame));
        lab.assert_conserved();
    }
}
