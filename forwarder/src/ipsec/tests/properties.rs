//! Properties of every algorithm, mode and family: what is sealed can be opened, nothing else can, lengths are
//! as announced, and no octets panic.

use proptest::prelude::*;

use super::*;
use crate::wire::{Ipv4Packet, Ipv6Packet, Protocol};

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// A mode with the families outside and inside; one of transport mode.
fn modes() -> impl Strategy<Value = (Mode, Family, Family)> {
    let family = || prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)];
    prop_oneof![
        (family(), family()).prop_map(|(outer, inner)| (Mode::Tunnel, outer, inner)),
        family().prop_map(|family| (Mode::Transport, family, family)),
    ]
}

/// Numbers at the edges.
fn sequence_numbers() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1u64), Just(u64::from(u32::MAX)), Just(1 << 32), 1..1u64 << 40]
}

fn check_round_trip(
    keys: &Keys,
    (mode, outer, inner): (Mode, Family, Family),
    (seq, is_extended): (u64, bool),
    (is_udp, has_family): (bool, bool),
    len: usize,
) {
    let mut flags = StateFlags::default();
    if is_extended {
        flags |= StateFlags::ESN;
    }
    let mut config = config(mode, outer, flags);
    let is_ah = matches!(keys, Keys::Ah(..));
    config.selector_family = has_family.then_some(inner);
    config.encap = (is_udp && !is_ah).then_some(UdpPorts { src: 4500, dst: 4500 });
    let seq = if is_extended { seq } else { seq & 0xffff_ffff | 1 };
    let packet = udp_packet(inner, 0xb9, len);
    let sender = outbound(&config, keys, seq);
    let receiver = inbound(&config, keys, seq);
    let sealed = seal(&sender, &packet).expect("sealed");
    let kept = if mode == Mode::Transport { packet.len() - len - 8 } else { 0 };
    let overhead = sender.state().overhead(packet.len() - kept);
    assert_eq!(sealed.len() - packet.len(), overhead.head + overhead.tail, "overhead");
    assert_eq!(open(&receiver, &sealed).as_deref(), Ok(&packet[..]));
    assert_eq!(open(&receiver, &sealed), Err(Error::XfrmInStateSeqError), "replay");
    for usage in [sender.state().usage(), receiver.state().usage()] {
        assert_eq!((usage.packets, usage.bytes), (1, (packet.len() - kept) as u64));
        assert_eq!(usage.use_time_s, PARAMS.now_s);
    }
    if outer == Family::Ipv4 {
        let ip = Ipv4Packet::new_checked(&sealed).unwrap();
        assert!(ip.verify_checksum() && usize::from(ip.total_len()) == sealed.len());
    } else {
        assert_eq!(Ipv6Packet::new_checked(&sealed).unwrap().total_len(), sealed.len());
    }
}

/// What a sender with the key may put into a packet: something that looks like a packet or not, and padding and
/// next header that are right or not.
fn hostile_data() -> impl Strategy<Value = (Vec<u8>, u8)> {
    let start = prop_oneof![
        Just(Vec::new()),
        Just(hex("4500001c00000000401100000102030405060708")),
        Just(hex("4f03ffff00000000403200000102030405060708")),
        Just(hex("45030000")),
        Just(hex(
            "60000000000811400000000000000000000000000000000100000000000000000000000000000002"
        )),
        Just(hex("6000")),
    ];
    let rest = proptest::collection::vec(any::<u8>(), 0..60);
    let next =
        prop_oneof![Just(4u8), Just(41), Just(59), Just(50), Just(51), Just(17), any::<u8>()];
    let padding = prop_oneof![
        3 => Just(None),
        1 => proptest::collection::vec(any::<u8>(), 0..6).prop_map(Some),
    ];
    (start, rest, padding, next).prop_map(|(start, rest, padding, next)| {
        let mut data = [start, rest].concat();
        match padding {
            Some(wrong) => data.extend(wrong),
            None => {
                let len = (data.len() + 2).wrapping_neg() % 4;
                data.extend((1..=len as u8).chain([len as u8, next]));
            }
        }
        (data, next)
    })
}

/// What was opened is a part of the packet and has the header that it should.
fn check_opened(packet: &[u8], opened: &Decapsulated, outer: Family) {
    match opened {
        Decapsulated::Dummy => {}
        Decapsulated::Tunnel(range) => {
            let inner = &packet[range.clone()];
            let header_len = if inner[0] >> 4 == 4 { 20 } else { 40 };
            assert!([4, 6].contains(&(inner[0] >> 4)) && inner.len() >= header_len);
        }
        Decapsulated::Transport(range) => {
            let packet = &packet[range.clone()];
            let stated = match outer {
                Family::Ipv4 => usize::from(Ipv4Packet::new_checked(packet).unwrap().total_len()),
                Family::Ipv6 => Ipv6Packet::new_checked(packet).unwrap().total_len(),
            };
            assert_eq!(stated, packet.len());
        }
    }
    // What reads the packet next.
    if let Decapsulated::Tunnel(range) | Decapsulated::Transport(range) = opened {
        let _ = locate(&packet[range.clone()], &[4500]);
        let _ = Flow::of_packet(&packet[range.clone()], 0, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn hostile_octets_with_the_right_icv_are_opened_or_refused(
        (data, next) in hostile_data(),
        flags in any::<u8>(),
    ) {
        let ah = || Keys::Ah(Auth::HmacSha256_128, Secret::new(octets(0x80, 32)));
        // Without ESN, which is covered by the ICV.
        let flags = StateFlags(u16::from(flags & 0x7f));
        for (mode, family) in [Mode::Tunnel, Mode::Transport]
            .into_iter()
            .flat_map(|mode| FAMILIES.map(|family| (mode, family)))
        {
            let config = config(mode, family, flags);
            let esp = null_packet(family, &data);
            // AH in transport mode protects what any next header says.
            let mut plain = udp_packet(family, 0, data.len());
            let header_len = plain.len() - 8 - data.len();
            plain.truncate(header_len);
            plain.extend(&data);
            match family {
                Family::Ipv4 => {
                    let mut ip = Ipv4Packet::new_unchecked(&mut plain[..]);
                    ip.set_total_len((header_len + data.len()) as u16);
                    ip.set_protocol(Protocol(next));
                }
                Family::Ipv6 => {
                    let mut ip = Ipv6Packet::new_unchecked(&mut plain[..]);
                    ip.set_payload_len(data.len() as u16);
                    ip.set_next_header(Protocol(next));
                }
            }
            let sender = StateConfig { mode: Mode::Transport, ..config.clone() };
            let sealed = seal(&outbound(&sender, &ah(), 1), &plain);
            // Extension headers that cannot be read are no packet for transport mode.
            let sealed = sealed.into_iter().map(|packet| (packet, ah()));
            for (mut packet, keys) in [(esp, null_keys().0)].into_iter().chain(sealed) {
                let state = inbound(&config, &keys, 1);
                let Ok(Some(located)) = locate(&packet, &[]) else { continue };
                let opened = state.open(&mut packet, &located, 0);
                prop_assert_eq!(state.state().integrity_failed(), 0, "the ICV is right");
                if let Ok(opened) = opened {
                    check_opened(&packet, &opened, family);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_sealed_is_opened(
        mode in modes(),
        seq in sequence_numbers(),
        is_extended: bool,
        is_udp: bool,
        has_family: bool,
        len in prop_oneof![0..100usize, 0..9000usize],
    ) {
        for keys in all_keys() {
            check_round_trip(&keys, mode, (seq, is_extended), (is_udp, has_family), len);
        }
    }

    #[test]
    fn no_octets_panic(
        start in prop_oneof![
            Just(hex("4500005400000000403200000102030405060708 01020304 00000005")),
            Just(hex("4600005400000000403300000102030405060708 94040000 04040000 01020304 00000005")),
            Just(hex("600000000040003240 00000000000000 0000000000000001 0000000000000000 0000000000000002")),
            Just(hex("450000540000000040110000010203040506070811941194 00000000 01020304 00000005")),
            Just(hex("6000000000400000")),
            Just(hex("6000000000402b00")),
        ],
        rest in proptest::collection::vec(any::<u8>(), 0..200),
        which in 0..40usize,
    ) {
        let mut packet = [start, rest].concat();
        let keys = all_keys().swap_remove(which % all_keys().len());
        for mode in [Mode::Tunnel, Mode::Transport] {
            for family in FAMILIES {
                let state = InboundState::new(config(mode, family, StateFlags::ESN), &keys).unwrap();
                if let Ok(Some(located)) = locate(&packet, &[4500]) {
                    let _ = state.open(&mut packet.clone(), &located, 0);
                    // A packet that is not the one located.
                    let _ = state.open(&mut packet.clone()[..20], &located, 0);
                }
                let len = packet.len();
                let sender = outbound(&config(mode, family, StateFlags::default()), &keys, 1);
                let mut buffer = [&[0; 100][..], &packet, &[0; 100]].concat();
                let _ = sender.seal(&mut buffer, 100..100 + len, &PARAMS);
                let backwards = std::ops::Range { start: 50, end: 20 };
                let _ = sender.seal(&mut buffer, backwards, &PARAMS);
                let _ = sender.seal(&mut buffer, 0..usize::MAX, &PARAMS);
                let _ = sender.seal(&mut packet, 0..len, &PARAMS);
            }
        }
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    for keys in all_keys() {
        for (mode, family) in [(Mode::Tunnel, Family::Ipv4), (Mode::Transport, Family::Ipv6)] {
            let config = config(mode, family, StateFlags::ESN);
            let packet = udp_packet(family, 0, 5);
            let sealed = seal(&outbound(&config, &keys, 1 << 32 | 77), &packet).unwrap();
            let header_len = if family == Family::Ipv4 { 20 } else { 40 };
            // All bits after the IP header, and for AH also those of immutable fields in it.
            let addresses = if family == Family::Ipv4 { 12..20 } else { 8..40 };
            let in_header = if matches!(keys, Keys::Ah(..)) { addresses } else { 0..0 };
            for bit in in_header.chain(header_len..sealed.len()).flat_map(|at| at * 8..at * 8 + 8) {
                let mut forged = sealed.clone();
                forged[bit / 8] ^= 0x80 >> (bit % 8);
                // A window that every number passes.
                let state = InboundState::new(config.clone(), &keys).unwrap();
                let mut state = state;
                state.replay_mut().restore(1 << 32 | 70, |_| false);
                let Ok(Some(located)) = locate(&forged, &[]) else { continue };
                let result = state.open(&mut forged, &located, 0);
                // The SPI is covered, too: the lookup is not what protects it.
                assert!(result.is_err(), "bit {bit}, {:?}", state.state().algorithm());
            }
        }
    }
}

#[test]
fn the_high_half_of_the_number_is_authenticated() {
    for keys in all_keys() {
        let config = config(Mode::Tunnel, Family::Ipv4, StateFlags::ESN);
        let sealed = seal(&outbound(&config, &keys, 5 << 32 | 9), &udp_packet(Family::Ipv4, 0, 40));
        let sealed = sealed.unwrap();
        // A receiver one cycle behind infers another high half.
        let other = inbound(&config, &keys, 4 << 32 | 9);
        assert_eq!(open(&other, &sealed), Err(Error::XfrmInStateProtoError));
        assert_eq!(other.state().integrity_failed(), 1);
        assert_eq!(other.replay().top(), 4 << 32 | 8, "a forged packet does not move the window");
        assert!(open(&inbound(&config, &keys, 5 << 32 | 9), &sealed).is_ok());
    }
}

#[test]
fn the_longest_packet_for_a_path_fits_and_one_octet_more_does_not() {
    for keys in all_keys() {
        for (mode, outer, is_udp) in [
            (Mode::Tunnel, Family::Ipv4, false),
            (Mode::Tunnel, Family::Ipv6, false),
            (Mode::Tunnel, Family::Ipv4, true),
            (Mode::Transport, Family::Ipv4, false),
            (Mode::Transport, Family::Ipv6, true),
        ] {
            let mut config = config(mode, outer, StateFlags::default());
            let is_udp = is_udp && matches!(keys, Keys::Esp(_));
            config.encap = is_udp.then_some(UdpPorts { src: 4500, dst: 4500 });
            let state = outbound(&config, &keys, 1);
            let header_len = if outer == Family::Ipv4 { 28 } else { 48 };
            for path_mtu in 1390..1410 {
                let max = state.state().packet_len_max(path_mtu) as usize;
                let sealed_len = |len: usize| {
                    seal(&state, &udp_packet(outer, 0, len - header_len)).unwrap().len()
                };
                assert!(sealed_len(max) <= path_mtu as usize);
                assert!(sealed_len(max + 1) > path_mtu as usize);
            }
            assert_eq!(state.state().packet_len_max(40), 0);
        }
    }
}

#[test]
fn ivs_of_counter_modes_differ_as_sequence_numbers_do() {
    for keys in all_keys() {
        let Keys::Esp(esp) = &keys else { continue };
        let iv_len = esp.algorithm().iv_len();
        let state = outbound(&config(Mode::Tunnel, Family::Ipv4, StateFlags::ESN), &keys, 1);
        let mut ivs = std::collections::HashSet::new();
        for _ in 0..500 {
            let sealed = seal(&state, &udp_packet(Family::Ipv4, 0, 0)).unwrap();
            ivs.insert(sealed[28..28 + iv_len].to_vec());
        }
        assert_eq!(ivs.len(), if iv_len == 0 { 1 } else { 500 });
    }
}
