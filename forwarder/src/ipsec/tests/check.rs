//! What XFRM flags change, what is refused, and the check of policies.

use std::sync::Arc;

use super::*;
use crate::wire::{Ipv4Packet, Ipv6Packet, Protocol};

fn gcm() -> Keys {
    Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new(octets(0x10, 20))))
}

/// The outer TOS of a packet with an inner one, and its DF.
fn outer(flags: StateFlags, ecn: EcnRules, inner: &[u8]) -> (u8, bool, u8) {
    let flags = flags | StateFlags::AF_UNSPEC;
    let config = StateConfig { ecn, ..config(Mode::Tunnel, Family::Ipv4, flags) };
    let sealed = seal(&outbound(&config, &gcm(), 1), inner).unwrap();
    let ip = Ipv4Packet::new_checked(&sealed).unwrap();
    (ip.tos(), ip.dont_frag(), ip.ttl())
}

#[test]
fn the_outer_header_is_as_the_flags_say() {
    let none = StateFlags::default();
    let rfc = EcnRules::Rfc6040;
    let v4 = udp_packet(Family::Ipv4, 0xbb, 20);
    assert_eq!(outer(none, rfc, &v4), (0xbb, false, 64), "the TTL is not the inner one");
    assert_eq!(outer(none, EcnRules::Xfrm, &v4).0, 0xba);
    assert_eq!(outer(StateFlags::NOECN, rfc, &v4).0, 0xb8);
    assert_eq!(outer(StateFlags::DONT_ENCAP_DSCP, rfc, &v4).0, 0x03);
    let mut with_df = v4.clone();
    Ipv4Packet::new_unchecked(&mut with_df[..]).set_frag(true, false, 0);
    assert!(outer(none, rfc, &with_df).1);
    assert!(!outer(StateFlags::NOPMTUDISC, rfc, &with_df).1);
    let v6 = |len| udp_packet(Family::Ipv6, 0xbb, len);
    assert!(outer(none, rfc, &v6(1280 - 47)).1);
    assert!(!outer(none, rfc, &v6(1280 - 48)).1, "a small packet of IPv6 must pass");
    // IPv6 outside: the flow label is that inside.
    let config = config(Mode::Tunnel, Family::Ipv6, none);
    let sealed = seal(&outbound(&config, &gcm(), 1), &v6(9)).unwrap();
    let ip = Ipv6Packet::new_checked(&sealed).unwrap();
    assert_eq!((ip.traffic_class(), ip.flow_label(), ip.hop_limit()), (0xbb, 0x12345, 64));
}

/// The inner TOS after a tunnel whose outer TOS became `outer_tos`.
fn inner_tos(flags: StateFlags, outer_tos: u8, inner_tos: u8) -> Result<u8, Error> {
    for family in [Family::Ipv6, Family::Ipv4] {
        let config = config(Mode::Tunnel, Family::Ipv4, flags | StateFlags::AF_UNSPEC);
        let packet = udp_packet(family, inner_tos, 20);
        let mut sealed = seal(&outbound(&config, &gcm(), 1), &packet)?;
        Ipv4Packet::new_unchecked(&mut sealed[..]).set_tos(outer_tos);
        let opened = open(&inbound(&config, &gcm(), 1), &sealed)?;
        if family == Family::Ipv4 {
            let ip = Ipv4Packet::new_checked(&opened).unwrap();
            assert!(ip.verify_checksum());
            return Ok(ip.tos());
        }
    }
    unreachable!("IPv4 is the last family")
}

#[test]
fn the_inner_header_takes_what_the_flags_say() {
    let none = StateFlags::default();
    assert_eq!(inner_tos(none, 0x03, 0xb9), Ok(0xbb), "CE is combined");
    assert_eq!(inner_tos(none, 0x20, 0xb9), Ok(0xb9));
    assert_eq!(inner_tos(none, 0x03, 0xb8), Err(Error::XfrmInStateModeError));
    assert_eq!(inner_tos(StateFlags::NOECN, 0x03, 0xb9), Ok(0xb9));
    assert_eq!(inner_tos(StateFlags::DECAP_DSCP, 0x20, 0xb9), Ok(0x21));
}

#[test]
fn a_tunnel_carries_one_family_unless_the_selector_has_none() {
    let mut config = config(Mode::Tunnel, Family::Ipv4, StateFlags::AF_UNSPEC);
    assert_eq!(config.selector_family, None);
    let v6 = udp_packet(Family::Ipv6, 0, 10);
    let sealed = seal(&outbound(&config, &gcm(), 1), &v6).unwrap();
    assert!(open(&inbound(&config, &gcm(), 1), &sealed).is_ok());
    // The flag does not change a selector that has a family.
    config.selector_family = Some(Family::Ipv4);
    assert_eq!(seal(&outbound(&config, &gcm(), 1), &v6), Err(Error::XfrmOutStateModeError));
    let opened = open(&inbound(&config, &gcm(), 1), &sealed);
    assert_eq!(opened, Err(Error::XfrmInStateModeError));
}

/// Opens an authentic packet with these data.
fn open_data(data: &[u8]) -> Result<Decapsulated, Error> {
    let config = config(Mode::Tunnel, Family::Ipv4, StateFlags::default());
    let mut packet = null_packet(Family::Ipv4, data);
    let located = locate(&packet, &[]).unwrap().unwrap();
    let state = inbound(&config, &null_keys().0, 1);
    let result = state.open(&mut packet, &located, 0);
    assert_eq!(state.state().integrity_failed(), 0, "the ICV is right");
    result
}

#[test]
fn padding_is_verified() {
    let inner = udp_packet(Family::Ipv4, 0, 0);
    let with = |padding: &[u8]| [&inner[..], padding].concat();
    assert!(open_data(&with(&[1, 2, 2, 4])).is_ok());
    assert!(open_data(&with(&[1, 2, 3, 4, 5, 6, 6, 4])).is_ok(), "more than needed");
    for wrong in [&[0, 0, 2, 4][..], &[1, 3, 2, 4], &[1, 2, 200, 4], &[2, 1, 2, 4]] {
        assert_eq!(open_data(&with(wrong)), Err(Error::XfrmInStateProtoError), "{wrong:?}");
    }
    assert_eq!(open_data(&[1, 2, 2, 4, 5]), Err(Error::XfrmInStateProtoError), "not aligned");
    assert_eq!(open_data(&[]), Err(Error::XfrmInStateProtoError), "no trailer");
}

#[test]
fn dummy_packets_are_no_error_and_padding_for_flow_confidentiality_is_removed() {
    assert_eq!(open_data(&[9, 9, 9, 9, 1, 2, 2, 59]), Ok(Decapsulated::Dummy));
    let inner = udp_packet(Family::Ipv4, 0, 0);
    let padded = [&inner[..], &[0xee; 100], &[1, 2, 2, 4]].concat();
    assert_eq!(open_data(&padded), Ok(Decapsulated::Tunnel(28..28 + inner.len())));
    // Neither IPv4 nor IPv6 inside, or not what the next header says.
    let of = |next| open_data(&[&inner[..], &[1, 2, 2, next]].concat());
    assert_eq!([of(17), of(41)], [const { Err(Error::XfrmInStateModeError) }; 2]);
}

#[test]
fn udp_encapsulation_must_be_as_configured() {
    let plain = config(Mode::Tunnel, Family::Ipv4, StateFlags::default());
    let ports = UdpPorts { src: 4500, dst: 4500 };
    let udp = StateConfig { encap: Some(ports), ..plain.clone() };
    let packet = udp_packet(Family::Ipv4, 0, 10);
    for (sent, expected) in [(&plain, &udp), (&udp, &plain)] {
        let sealed = seal(&outbound(sent, &gcm(), 1), &packet).unwrap();
        let opened = open(&inbound(expected, &gcm(), 1), &sealed);
        assert_eq!(opened, Err(Error::XfrmInStateMismatch));
    }
    let mut sealed = seal(&outbound(&udp, &gcm(), 1), &packet).unwrap();
    assert_eq!(locate(&sealed, &[]), Ok(None), "no port of ESP");
    assert_eq!(locate(&sealed, &[4500]).unwrap().unwrap().encap, Some(ports));
    sealed[28..32].fill(0);
    assert_eq!(locate(&sealed, &[4500]), Ok(None), "IKE");
}

#[test]
fn an_sa_ends_at_its_hard_limits() {
    let limits = [
        Lifetime { packets: [1, 2], ..Lifetime::INFINITE },
        Lifetime { bytes: [30, 60], ..Lifetime::INFINITE },
    ];
    for lifetime in limits {
        let config =
            StateConfig { lifetime, ..config(Mode::Tunnel, Family::Ipv4, StateFlags::default()) };
        let state = outbound(&config, &gcm(), 1);
        let packet = udp_packet(Family::Ipv4, 0, 2);
        assert!(seal(&state, &packet).is_ok() && !state.state().is_dying());
        assert!(seal(&state, &packet).is_ok() && state.state().is_dying(), "the soft limit");
        assert_eq!(seal(&state, &packet), Err(Error::XfrmOutStateExpired));
        assert_eq!(seal(&state, &packet), Err(Error::XfrmOutStateInvalid));
        assert_eq!(state.sequence().next(), 3, "no number is used for an error");
    }
    // Seconds: since it was added at 100, and since its use at 1000.
    let usage = Usage { add_time_s: 100, use_time_s: 1000, ..Usage::default() };
    let with = |lifetime| StateConfig {
        lifetime,
        usage,
        ..config(Mode::Tunnel, Family::Ipv4, StateFlags::default())
    };
    let at = |lifetime, now_s| inbound(&with(lifetime), &gcm(), 1).state().check_expire(now_s);
    let add = Lifetime { add_s: [0, 50], ..Lifetime::INFINITE };
    assert!(at(add, 149) && !at(add, 150));
    let used = Lifetime { use_s: [0, 50], ..Lifetime::INFINITE };
    assert!(at(used, 1049) && !at(used, 1050));
}

#[test]
fn several_workers_do_not_exceed_a_hard_limit() {
    const LIMIT: u64 = 50;
    let len = udp_packet(Family::Ipv4, 0, 2).len() as u64;
    let limits = [
        Lifetime { packets: [u64::MAX, LIMIT], ..Lifetime::INFINITE },
        // The packet that meets the limit passes, as in the kernel.
        Lifetime { bytes: [u64::MAX, LIMIT * len - 1], ..Lifetime::INFINITE },
    ];
    for lifetime in limits {
        let config =
            StateConfig { lifetime, ..config(Mode::Tunnel, Family::Ipv4, StateFlags::default()) };
        let (sender, receiver) = (outbound(&config, &gcm(), 1), inbound(&config, &gcm(), 1));
        let endless = StateConfig { lifetime: Lifetime::INFINITE, ..config };
        let peer = outbound(&endless, &gcm(), 1);
        let packet = udp_packet(Family::Ipv4, 0, 2);
        let run = |_: usize| {
            let sealed = (0..LIMIT).filter(|_| seal(&sender, &packet).is_ok()).count();
            let to_open = (0..LIMIT).map(|_| seal(&peer, &packet).unwrap());
            let opened = to_open.filter(|sealed| open(&receiver, sealed).is_ok()).count();
            (sealed, opened)
        };
        let passed = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|n| scope.spawn(move || run(n))).collect();
            let each = workers.into_iter().map(|worker| worker.join().unwrap());
            each.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
        });
        assert_eq!(passed.0, LIMIT as usize);
        // A receiver may lose packets that were overtaken.
        assert!(passed.1 <= LIMIT as usize);
        assert_eq!(
            sender.state().usage(),
            Usage { packets: LIMIT, bytes: LIMIT * len, ..sender.state().usage() }
        );
        assert_eq!(receiver.state().usage().packets, passed.1 as u64);
        assert_eq!(sender.state().km_state(), KmState::Expired);
    }
}

#[test]
fn what_is_counted_last_meets_the_limits() {
    // Both workers have passed the check before the first one counts.
    let lifetime = Lifetime { packets: [u64::MAX, 1], ..Lifetime::INFINITE };
    let config =
        StateConfig { lifetime, ..config(Mode::Tunnel, Family::Ipv4, StateFlags::default()) };
    let state = outbound(&config, &gcm(), 1);
    let state = state.state();
    assert!(state.check_expire(1) && state.check_expire(1));
    assert!(state.count(10, 1));
    assert!(!state.count(10, 1));
    assert_eq!((state.usage().packets, state.usage().bytes), (1, 10));
    state.set_km_state(KmState::Dead);
    assert!(!state.count(10, 1));
    assert_eq!(state.km_state(), KmState::Dead, "a deleted SA does not expire");
}

#[test]
fn an_sa_does_not_come_back() {
    let config = config(Mode::Tunnel, Family::Ipv4, StateFlags::default());
    let state = inbound(&config, &gcm(), 1);
    let after = |km_state| {
        state.state().set_km_state(km_state);
        state.state().km_state()
    };
    use KmState::{Acquiring, Dead, Expired, Valid};
    let (set, found) =
        ([Acquiring, Expired, Valid, Dead, Expired], [Valid, Expired, Expired, Dead, Dead]);
    assert_eq!(set.map(after), found);
    let acquiring = outbound(&StateConfig { km_state: Acquiring, ..config }, &gcm(), 1);
    acquiring.state().set_km_state(Valid);
    assert_eq!(acquiring.state().km_state(), Acquiring, "its keys are not those negotiated");
}

#[test]
fn an_sa_that_does_not_work_opens_nothing() {
    let mut config = config(Mode::Tunnel, Family::Ipv4, StateFlags::default());
    let sealed = seal(&outbound(&config, &gcm(), 1), &udp_packet(Family::Ipv4, 0, 1)).unwrap();
    for (km_state, error) in [
        (KmState::Acquiring, Error::XfrmAcquireError),
        (KmState::Error, Error::XfrmInStateInvalid),
        (KmState::Expired, Error::XfrmInStateInvalid),
        (KmState::Dead, Error::XfrmInStateInvalid),
    ] {
        config.km_state = km_state;
        assert_eq!(open(&inbound(&config, &gcm(), 1), &sealed), Err(error));
        let sealed = seal(&outbound(&config, &gcm(), 1), &udp_packet(Family::Ipv4, 0, 1));
        assert_eq!(sealed, Err(Error::XfrmOutStateInvalid));
    }
}

#[test]
fn octets_behind_the_packet_are_not_sealed() {
    for (mode, family) in [
        (Mode::Tunnel, Family::Ipv4),
        (Mode::Tunnel, Family::Ipv6),
        (Mode::Transport, Family::Ipv4),
        (Mode::Transport, Family::Ipv6),
    ] {
        let config = config(mode, family, StateFlags::default());
        let packet = udp_packet(family, 0, 3);
        let framed = [&packet[..], &[0xee; 15]].concat();
        for keys in all_keys() {
            let sealed = seal(&outbound(&config, &keys, 1), &framed).unwrap();
            assert_eq!(sealed, seal(&outbound(&config, &keys, 1), &packet).unwrap());
        }
        let state = outbound(&config, &gcm(), 1);
        let short = &packet[..packet.len() - 1];
        assert_eq!(seal(&state, short), Err(Error::XfrmOutStateModeError), "a part of it");
        assert_eq!(state.sequence().next(), 1);
    }
    let mut packet = udp_packet(Family::Ipv4, 0, 3);
    Ipv4Packet::new_unchecked(&mut packet[..]).set_total_len(19);
    let state = outbound(&config(Mode::Tunnel, Family::Ipv4, StateFlags::default()), &gcm(), 1);
    assert_eq!(seal(&state, &packet), Err(Error::XfrmOutStateModeError), "less than its header");
}

#[test]
fn ah_takes_no_number_for_headers_that_it_cannot_cover() {
    let ah = Keys::Ah(Auth::HmacSha256_128, Secret::new(octets(0x80, 32)));
    // IPv4: an option that is longer than the header, and a source route without an address.
    for options in [[0x44, 9, 5, 0], [0x83, 3, 4, 0]] {
        let state = outbound(&config(Mode::Transport, Family::Ipv4, StateFlags::default()), &ah, 1);
        let plain = udp_packet(Family::Ipv4, 0, 3);
        let mut packet = [&plain[..20], &options, &plain[20..]].concat();
        let len = packet.len() as u16;
        let mut ip = Ipv4Packet::new_unchecked(&mut packet[..]);
        ip.set_version_and_header_len(24);
        ip.set_total_len(len);
        assert_eq!(seal(&state, &packet), Err(Error::XfrmOutStateModeError), "{options:?}");
        assert_eq!((state.sequence().next(), state.state().usage().packets), (1, 0));
    }
    // IPv6: an option that is longer than the header, and a Routing header of an unknown type.
    for (next, header) in [(60, [17, 0, 0x1e, 9, 0, 0, 0, 0]), (43, [17, 0, 9, 1, 0, 0, 0, 0])] {
        let state = outbound(&config(Mode::Transport, Family::Ipv6, StateFlags::default()), &ah, 1);
        let plain = udp_packet(Family::Ipv6, 0, 3);
        let mut packet = [&plain[..40], &header, &plain[40..]].concat();
        let len = packet.len() as u16;
        let mut ip = Ipv6Packet::new_unchecked(&mut packet[..]);
        ip.set_payload_len(len - 40);
        ip.set_next_header(Protocol(next));
        assert_eq!(seal(&state, &packet), Err(Error::XfrmOutStateModeError), "{header:?}");
        assert_eq!((state.sequence().next(), state.state().usage().packets), (1, 0));
    }
}

#[test]
fn an_sa_that_replaces_another_continues_its_numbers() {
    let config = config(Mode::Tunnel, Family::Ipv4, StateFlags::default());
    let packet = udp_packet(Family::Ipv4, 0, 1);
    let old = outbound(&config, &gcm(), 41);
    let receiver = inbound(&config, &gcm(), 41);
    assert!(open(&receiver, &seal(&old, &packet).unwrap()).is_ok());
    let left = old.sequence().close();
    assert_eq!(seal(&old, &packet), Err(Error::SequenceRangeUsed));
    let seed = IvSeed::random([1; 16]);
    let new = OutboundState::new(config, &gcm(), seed, left.start).unwrap();
    assert!(new.sequence().extend(1..100).is_err(), "it cannot begin at 1 again");
    new.sequence().extend(left).unwrap();
    let sealed = seal(&new, &packet).unwrap();
    assert_eq!(locate(&sealed, &[]).unwrap().unwrap().seq, 42);
    assert!(open(&receiver, &sealed).is_ok());
}

#[test]
fn what_cannot_be_sealed_is_left_as_it_was() {
    let config = config(Mode::Transport, Family::Ipv4, StateFlags::default());
    let state = outbound(&config, &gcm(), 1);
    let packet = udp_packet(Family::Ipv4, 0, 20);
    let mut fragment = packet.clone();
    Ipv4Packet::new_unchecked(&mut fragment[..]).set_frag(false, true, 0);
    assert_eq!(seal(&state, &fragment), Err(Error::XfrmOutStateModeError));
    assert_eq!(seal(&state, &udp_packet(Family::Ipv6, 0, 1)), Err(Error::XfrmOutStateModeError));
    let overhead = state.state().overhead(packet.len() - 20);
    for (head, tail) in [(overhead.head - 1, overhead.tail), (overhead.head, overhead.tail - 1)] {
        let mut buffer = [&vec![0; head][..], &packet, &vec![0; tail]].concat();
        let before = buffer.clone();
        let sealed = state.seal(&mut buffer, head..head + packet.len(), &PARAMS);
        assert_eq!((sealed, buffer), (Err(Error::XfrmOutError), before));
    }
    assert_eq!(seal(&state, &udp_packet(Family::Ipv4, 0, 65_480)), Err(Error::XfrmOutError));
    assert_eq!(state.sequence().next(), 1);
    let unreserved = OutboundState::new(config, &gcm(), IvSeed::random([1; 16]), 1).unwrap();
    assert_eq!(seal(&unreserved, &packet), Err(Error::SequenceRangeUsed));
}

#[test]
fn states_that_cannot_be_are_refused() {
    let config = config(Mode::Tunnel, Family::Ipv4, StateFlags::default());
    let new = |config: StateConfig, keys: &Keys| InboundState::new(config, keys).map(|_| ());
    let ah = Keys::Ah(Auth::HmacSha1_96, Secret::new(vec![1; 20]));
    let encap = Some(UdpPorts { src: 1, dst: 1 });
    assert_eq!(new(StateConfig { spi: 0, ..config.clone() }, &gcm()), Err(BadState::Spi));
    let acquiring = StateConfig { spi: 0, km_state: KmState::Acquiring, ..config.clone() };
    assert_eq!(new(acquiring, &gcm()), Ok(()), "the peer has not chosen one yet");
    assert_eq!(new(StateConfig { encap, ..config.clone() }, &ah), Err(BadState::EncapOfAh));
    let src = "::1".parse().unwrap();
    assert_eq!(new(StateConfig { src, ..config.clone() }, &gcm()), Err(BadState::Families));
    let lifetime = Lifetime { add_s: [0, 50], ..Lifetime::INFINITE };
    let unknown = StateConfig { lifetime, ..config.clone() };
    assert_eq!(new(unknown.clone(), &gcm()), Err(BadState::AddTime));
    let usage = Usage { add_time_s: 1, ..Usage::default() };
    assert_eq!(new(StateConfig { usage, ..unknown }, &gcm()), Ok(()));
    for len in [0, 3, 4, 16, 19, 21, 35] {
        let keys = Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new(vec![1; len])));
        assert!(matches!(new(config.clone(), &keys), Err(BadState::Key(_))), "{len}");
    }
    // The kernel's salt would make IVs of CBC predictable.
    let cbc = || Secret::new(vec![1; 16]);
    let keys = EspKeys::EncryptThenMac(Cipher::AesCbc, cbc(), Auth::HmacSha1_96, cbc());
    let cbc = OutboundState::new(config.clone(), &Keys::Esp(keys), IvSeed::kernel_salt([1; 8]), 1);
    assert_eq!(cbc.map(|_| ()), Err(BadState::IvSeed));
    // An empty key would authenticate everyone; other lengths the kernel accepts, too.
    for (len, is_right) in [(0, false), (1, true), (20, true), (200, true)] {
        let key = || Secret::new(vec![1; len]);
        let none = Secret::new(Vec::new());
        let esp = EspKeys::EncryptThenMac(Cipher::Null, none, Auth::HmacSha1_96, key());
        for keys in [Keys::Esp(esp), Keys::Ah(Auth::HmacSha1_96, key())] {
            let expected = BadKey { algorithm: "hmac(sha1)", octets: len };
            let expected = if is_right { Ok(()) } else { Err(BadState::Key(expected)) };
            assert_eq!(new(config.clone(), &keys), expected);
        }
    }
}

#[test]
fn algorithms_name_the_lengths_of_keys_that_they_accept() {
    let config = config(Mode::Tunnel, Family::Ipv4, StateFlags::default());
    for len in 0..=64 {
        let secret = || Secret::new(vec![1; len]);
        let is_accepted = |keys| InboundState::new(config.clone(), &Keys::Esp(keys)).is_ok();
        for aead in Aead::ALL {
            let keys = EspKeys::Combined(aead, secret());
            assert_eq!(is_accepted(keys), aead.key_lens().contains(&len), "{aead:?} {len}");
        }
        for cipher in Cipher::ALL {
            let auth = Secret::new(vec![1; 32]);
            let keys = EspKeys::EncryptThenMac(cipher, secret(), Auth::HmacSha256_128, auth);
            assert_eq!(is_accepted(keys), cipher.key_lens().contains(&len), "{cipher:?} {len}");
        }
    }
}

#[test]
fn the_newest_sa_that_matches_is_found() {
    let at = |mark, reqid| {
        let base = config(Mode::Tunnel, Family::Ipv4, StateFlags::default());
        Arc::new(InboundState::new(StateConfig { mark, reqid, ..base }, &gcm()).unwrap())
    };
    let marked = Mark { value: 5, mask: 0xff };
    let sad = Sad::new(
        [at(Mark::default(), 1), at(marked, 2), at(Mark::default(), 3)],
        Order::OldestFirst,
    );
    let (_, dst) = addresses(Family::Ipv4);
    let find = |sad: &Sad, dst, spi, protocol, mark| {
        sad.lookup(dst, spi, protocol, mark).map(|state| state.state().config().reqid)
    };
    assert_eq!(find(&sad, dst, SPI, Protocol::ESP, 0x105), Some(3));
    let sad = Sad::new(
        [at(Mark::default(), 3), at(marked, 2), at(Mark::default(), 1)],
        Order::NewestFirst,
    );
    assert_eq!(find(&sad, dst, SPI, Protocol::ESP, 0x105), Some(3), "as a dump has them");
    let sad = Sad::new([at(Mark::default(), 1), at(marked, 2)], Order::OldestFirst);
    assert_eq!(find(&sad, dst, SPI, Protocol::ESP, 0x105), Some(2));
    assert_eq!(find(&sad, dst, SPI, Protocol::ESP, 0x106), Some(1));
    assert_eq!(find(&sad, dst, SPI + 1, Protocol::ESP, 0), None);
    assert_eq!(find(&sad, dst, SPI, Protocol::AH, 0), None);
    assert_eq!(find(&sad, "::cb00:7102".parse().unwrap(), SPI, Protocol::ESP, 0), None);
    let base = config(Mode::Tunnel, Family::Ipv4, StateFlags::default());
    let mut packet = seal(&outbound(&base, &gcm(), 1), &udp_packet(Family::Ipv4, 0, 1)).unwrap();
    let mut other = packet.clone();
    other[23] ^= 1;
    assert_eq!(sad.open(&mut other, 0, &[], 0).unwrap_err(), Error::XfrmInNoStates);
    assert!(matches!(
        sad.open(&mut packet, 0, &[], 0),
        Ok(Some(Opened { packet: Decapsulated::Tunnel(_), .. }))
    ));
    assert!(sad.open(&mut udp_packet(Family::Ipv4, 0, 1), 0, &[4500], 0).unwrap().is_none());
}
