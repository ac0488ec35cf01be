//! Messages of SAs as the kernel writes them, whole and cut off.

use netlink_sys::protocols::NETLINK_XFRM;

use super::ae::{self, AeState, EXPIRE_LEN, KernelReplay, aevent};
use super::changes::{Changed, End, XFRMNLGRP_EXPIRE, XFRMNLGRP_SA, changed, ended};
use super::info::StateInfo;
use super::listing::{AlgorithmKind, Extras};
use super::state::{self, KernelState, SaId, parse};
use super::xfrma;
use crate::control::netlink::events::{Events, Group, Received};
use crate::control::netlink::message::{Message, Messages, Request};
use crate::control::netlink::query::NlSock;
use crate::control::netlink::test_netns::{in_netns, run};
use crate::ipsec::{
    Aead, Auth, Cipher, Direction, EcnRules, EspKeys, Family, Keys, KmState, Lifetime, Mark, Mode,
    Prefix, ReplayWindow, StateFlags, UdpPorts, Usage,
};
use crate::wire::Protocol;

/// Offsets in `struct xfrm_usersa_info`, octets.
const SPI: usize = 72;
const PROTO: usize = 76;
const LIMITS: usize = 96;
const USED: usize = 160;
const STATS: usize = 192;
const REQID: usize = 208;
const FAMILY: usize = 212;
const MODE: usize = 214;
const WINDOW: usize = 215;
const FLAGS: usize = 216;

const NEWSA: u16 = 0x10;
const NEWAE: u16 = 0x1e;

type Attrs<'a> = &'a [(u16, &'a [u8])];

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// An ESP tunnel from 192.0.2.1 to 192.0.2.2 for packets to 198.51.100.0/24.
fn info() -> Vec<u8> {
    let mut info = vec![0; StateInfo::LEN];
    info[..4].copy_from_slice(&[198, 51, 100, 0]);
    info[40..42].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    info[42] = 24;
    info[56..60].copy_from_slice(&[192, 0, 2, 2]);
    info[SPI..PROTO].copy_from_slice(&[0, 0, 0x12, 0x34]);
    info[PROTO] = 50;
    info[80..84].copy_from_slice(&[192, 0, 2, 1]);
    info[LIMITS..LIMITS + 32].fill(0xff);
    info[USED..USED + 8].copy_from_slice(&1500u64.to_ne_bytes());
    info[USED + 8..USED + 16].copy_from_slice(&3u64.to_ne_bytes());
    info[USED + 16..USED + 24].copy_from_slice(&1_700_000_000u64.to_ne_bytes());
    info[STATS..STATS + 12].copy_from_slice(&words(&[1, 2, 3]));
    info[REQID..REQID + 4].copy_from_slice(&7u32.to_ne_bytes());
    info[FAMILY..FAMILY + 2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    (info[MODE], info[WINDOW]) = (1, 32);
    info
}

/// A `struct xfrm_algo`, or with an ICV another one.
fn algorithm(name: &str, icv_bits: Option<u32>, key: &[u8]) -> Vec<u8> {
    let mut octets = [0; 64].to_vec();
    octets[..name.len()].copy_from_slice(name.as_bytes());
    octets.extend((key.len() as u32 * 8).to_ne_bytes());
    octets.extend(icv_bits.map(u32::to_ne_bytes).into_iter().flatten());
    octets.extend(key);
    octets
}

fn gcm() -> Vec<u8> {
    algorithm("rfc4106(gcm(aes))", Some(128), &(1..=20).collect::<Vec<_>>())
}

fn octets(header: &[u8], attrs: Attrs<'_>) -> Vec<u8> {
    let request = Request::new(0, 0, header);
    attrs.iter().fold(request, |it, (kind, value)| it.attr(*kind, value)).finish(0)
}

fn message(kind: u16, octets: &[u8]) -> Message<'_> {
    Message { kind, flags: 0, seq: 0, payload: octets.get(16..).unwrap_or_default() }
}

fn parsed(info: &[u8], attrs: Attrs<'_>) -> KernelState {
    parse(&message(NEWSA, &octets(info, attrs))).expect("well-formed")
}

fn reason(info: &[u8], attrs: Attrs<'_>) -> String {
    match parsed(info, attrs).keys {
        Ok(_) => String::new(),
        Err(reason) => reason.to_string(),
    }
}

fn id() -> SaId {
    let dst = "192.0.2.2".parse().unwrap();
    SaId { dst, spi: 0x1234, proto: Protocol::ESP, mark: Mark::default() }
}

#[test]
fn all_fields_are_read() {
    let encap =
        [&words(&[])[..], &2u16.to_ne_bytes(), &[0x11, 0x94, 0x11, 0x95], &[0; 18]].concat();
    let (mark, if_id) = (words(&[3, 0xf]), words(&[12]));
    let mut info = info();
    info[FLAGS] = 2;
    let state = parsed(
        &info,
        &[
            (xfrma::SA_EXTRA_FLAGS, &words(&[1])),
            (xfrma::LASTUSED, &[0; 8]),
            (xfrma::ALG_AEAD, &gcm()),
            (xfrma::ENCAP, &encap),
            (xfrma::MARK, &mark),
            (xfrma::REPLAY_VAL, &words(&[10, 20, 5])),
            (xfrma::IF_ID, &if_id),
            (xfrma::SA_DIR, &[1]),
        ],
    );
    let mark = Mark { value: 3, mask: 0xf };
    assert_eq!(state.id, SaId { mark, ..id() });
    let config = &state.config;
    assert_eq!((config.src, config.dst), ("192.0.2.1".parse().unwrap(), state.id.dst));
    assert_eq!((config.spi, config.reqid, config.mode), (0x1234, 7, Mode::Tunnel));
    assert_eq!(config.flags, StateFlags::DECAP_DSCP | StateFlags::DONT_ENCAP_DSCP);
    assert_eq!((config.ecn, config.km_state), (EcnRules::Xfrm, KmState::Valid));
    let dst = Prefix { addr: "198.51.100.0".parse().unwrap(), len: 24 };
    assert_eq!((config.selector.dst, config.selector_family), (dst, Some(Family::Ipv4)));
    assert_eq!((config.mark, config.if_id, config.replay_window), (mark, 12, 32));
    assert_eq!(config.lifetime, Lifetime::INFINITE);
    let usage = Usage { bytes: 1500, packets: 3, add_time_s: 1_700_000_000, use_time_s: 0 };
    assert_eq!((config.usage, config.encap), (usage, Some(UdpPorts { src: 4500, dst: 4501 })));
    assert_eq!((state.direction, state.is_offloaded), (Some(Direction::In), false));
    let replay = KernelReplay { oseq: 10, seq: 20, bitmap: vec![5], window: None };
    assert_eq!(state.replay, replay);
    assert_eq!((state.stats.replay_window, state.stats.replay), (1, 2));
    assert_eq!(state.stats.integrity_failed, 3);
    let Ok(Keys::Esp(EspKeys::Combined(Aead::AesGcm, key))) = state.keys else { panic!() };
    assert_eq!(key.len(), 20);
}

#[test]
fn keys_are_those_of_the_algorithms() {
    let crypt = |name, key: &[u8]| algorithm(name, None, key);
    let sha256 = algorithm("hmac(sha256)", Some(128), &[7; 32]);
    let auth = algorithm("hmac(sha256)", None, &[7; 32]);
    let pair: Attrs<'_> = &[
        (xfrma::ALG_AUTH, &auth),
        (xfrma::ALG_AUTH_TRUNC, &sha256),
        (xfrma::ALG_CRYPT, &crypt("cbc(aes)", &[9; 32])),
    ];
    let Ok(Keys::Esp(EspKeys::EncryptThenMac(Cipher::AesCbc, key, Auth::HmacSha256_128, mac))) =
        parsed(&info(), pair).keys
    else {
        panic!("{}", reason(&info(), pair))
    };
    assert_eq!((key.len(), mac.len()), (32, 32));
    let null: Attrs<'_> =
        &[(xfrma::ALG_AUTH_TRUNC, &sha256), (xfrma::ALG_CRYPT, &crypt("ecb(cipher_null)", &[]))];
    assert_eq!(reason(&info(), null), "");
    let mut ah = info();
    ah[PROTO] = 51;
    let Ok(Keys::Ah(Auth::HmacSha256_128, _)) = parsed(&ah, &pair[..2]).keys else { panic!() };
    assert_eq!(reason(&ah, pair), "this combination of algorithms");
    assert_eq!(reason(&info(), &pair[2..]), "encryption without authentication");
}

#[test]
fn what_is_not_supported_is_named() {
    let of_info = |change: fn(&mut Vec<u8>)| {
        let mut info = info();
        change(&mut info);
        reason(&info, &[(xfrma::ALG_AEAD, &gcm())])
    };
    assert_eq!(of_info(|_| ()), "");
    assert_eq!(of_info(|info| info[PROTO] = 108), "IPComp");
    assert_eq!(of_info(|info| info[PROTO] = 99), "protocol 99");
    assert_eq!(of_info(|info| info[MODE] = 4), "mode beet");
    assert_eq!(of_info(|info| info[MODE] = 5), "mode iptfs");
    assert_eq!(of_info(|info| info[MODE] = 9), "mode 9");
    assert_eq!(of_info(|info| info[SPI..PROTO].fill(0)), "SPI 0");
    assert_eq!(of_info(|info| info[42] = 33), "a selector with a prefix of more than 32 bits");
    let both = |info: &mut Vec<u8>| (info[40], info[FLAGS]) = (0, 32);
    assert_eq!(of_info(both), "a selector of both families with prefixes");

    let of_attr = |kind, value: &[u8]| reason(&info(), &[(xfrma::ALG_AEAD, &gcm()), (kind, value)]);
    let encap = |kind: u16| [&kind.to_ne_bytes()[..], &[0; 22]].concat();
    for (kind, value, expected) in [
        (xfrma::SET_MARK, words(&[1]), "an output mark (XFRMA_SET_MARK)"),
        (xfrma::SA_PCPU, words(&[0]), "an SA of one CPU (XFRMA_SA_PCPU)"),
        (xfrma::OFFLOAD_DEV, words(&[2, 0]), "offload to a device (XFRMA_OFFLOAD_DEV)"),
        (xfrma::SEC_CTX, vec![0; 8], "a security context (XFRMA_SEC_CTX)"),
        (xfrma::COADDR, vec![0; 16], "a care-of address (XFRMA_COADDR)"),
        (xfrma::TFCPAD, words(&[4]), "padding for traffic flow confidentiality (XFRMA_TFCPAD)"),
        (xfrma::ENCAP, encap(7), "encapsulation of type 7 (XFRMA_ENCAP)"),
        (xfrma::ENCAP, vec![2], "a malformed XFRMA_ENCAP"),
        (
            xfrma::SA_EXTRA_FLAGS,
            words(&[3]),
            "sequence numbers that wrap (XFRM_SA_XFLAG_OSEQ_MAY_WRAP)",
        ),
        (xfrma::SA_EXTRA_FLAGS, words(&[5]), "flags 0x4 (XFRMA_SA_EXTRA_FLAGS)"),
        (xfrma::SA_DIR, vec![3], "a direction other than in and out"),
        (36, words(&[1]), "attribute 36"),
        (200, words(&[1]), "attribute 200"),
        (xfrma::LASTUSED, vec![0; 8], ""),
        (xfrma::NAT_KEEPALIVE_INTERVAL, words(&[20]), ""),
    ] {
        assert_eq!(of_attr(kind, &value), expected, "{kind} {value:?}");
    }
    assert!(parsed(&info(), &[(xfrma::OFFLOAD_DEV, &[0; 8])]).is_offloaded);

    let of_aead = |name, icv, key: &[u8]| {
        reason(&info(), &[(xfrma::ALG_AEAD, &algorithm(name, Some(icv), key))])
    };
    assert_eq!(
        of_aead("rfc4309(ccm(aes))", 128, &[1; 19]),
        "algorithm rfc4309(ccm(aes)) with an ICV of 128 bits"
    );
    assert_eq!(
        of_aead("rfc4106(gcm(aes))", 96, &[1; 20]),
        "algorithm rfc4106(gcm(aes)) with an ICV of 96 bits"
    );
    assert_eq!(
        of_aead("rfc4106(gcm(aes))", 128, &[1; 28]),
        "a key of 28 octets for rfc4106(gcm(aes))"
    );
    assert_eq!(
        of_aead("rfc4106(gcm(aes))", 128, &[0; 20]),
        "a key of zeros, as those that kernel lockdown hides"
    );
    assert_eq!(reason(&info(), &[(xfrma::ALG_AEAD, &gcm()[..80])]), "a malformed XFRMA_ALG_AEAD");
}

#[test]
fn an_sa_without_algorithms_is_being_negotiated() {
    let mut info = info();
    info[SPI..PROTO].fill(0);
    let state = parsed(&info, &[(xfrma::REPLAY_VAL, &[0; 12])]);
    assert_eq!(state.config.km_state, KmState::Acquiring);
    assert_eq!(reason(&info, &[]), "being negotiated: no keys yet");
}

#[test]
fn esn_has_numbers_of_64_bits_and_its_own_window() {
    let mut info = info();
    (info[FLAGS], info[WINDOW]) = (128, 0);
    let esn = words(&[2, 10, 20, 1, 2, 64, 3, 4]);
    let aead = gcm();
    let attrs = |esn| [(xfrma::ALG_AEAD, &aead[..]), (xfrma::REPLAY_ESN_VAL, esn)];
    let state = parsed(&info, &attrs(&esn));
    assert_eq!((state.replay.oseq, state.replay.seq), (1 << 32 | 10, 2 << 32 | 20));
    assert_eq!((&state.replay.bitmap[..], state.replay.window), (&[3, 4][..], Some(64)));
    assert!(state.keys.is_ok() && state.config.replay_window == 64);

    let none = words(&[0, 10, 0, 0, 0, 0]);
    let needs_one = "extended sequence numbers need a replay window";
    assert_eq!(reason(&info, &attrs(&none)), needs_one);
    // Not for sending.
    let out = [&attrs(&none)[..], &[(xfrma::SA_DIR, &[2][..])]].concat();
    assert_eq!(reason(&info, &out), "");

    for malformed in
        [words(&[3, 0, 0, 0, 0, 64, 3, 4]), words(&[129, 0]), words(&[1, 0, 0, 0, 0, 33, 0])]
    {
        let octets = octets(&info, &[(xfrma::REPLAY_ESN_VAL, &malformed)]);
        assert!(parse(&message(NEWSA, &octets)).is_none(), "{malformed:?}");
    }
}

#[test]
fn a_replay_window_is_read_and_written_in_the_kernels_layout() {
    let legacy = |seq, bitmap| KernelReplay { oseq: 0, seq, bitmap: vec![bitmap], window: None };
    let ring = |seq, window, bitmap: &[u32]| KernelReplay {
        oseq: 0,
        seq,
        bitmap: bitmap.to_vec(),
        window: Some(window),
    };
    // Received: 100, 99, 97. The ring of 40 has 100 at (100 - 1) % 40 = 19; that of 100 has it at 99.
    let same = [
        legacy(100, 0b1011),
        ring(100, 40, &[1 << 19 | 1 << 18 | 1 << 16, 0]),
        ring(100, 100, &[0, 0, 0, 0b1101]),
    ];
    for replay in same {
        let received: Vec<u32> = (0..40).filter(|back| replay.is_received(*back)).collect();
        assert_eq!(received, [0, 1, 3], "{replay:?}");
        let mut window = ReplayWindow::new(replay.window.unwrap_or(32), false).unwrap();
        window.restore(replay.seq, |back| replay.is_received(back));
        assert_eq!(replay.with_received_by(&window.snapshot()), replay);
        for number in [98, 103, 165] {
            window.accept(number).unwrap();
            let now = replay.with_received_by(&window.snapshot());
            let mut again = ReplayWindow::new(window.window(), false).unwrap();
            again.restore(now.seq, |back| now.is_received(back));
            for old in 60..170 {
                assert_eq!(again.is_received(old), window.is_received(old), "{old} of {now:?}");
            }
        }
    }
    // A window over the border of the low half.
    let replay = ring(1 << 32 | 3, 64, &[0b111, 1 << 31]);
    assert!([0, 1, 2, 3].iter().all(|back| replay.is_received(*back)) && !replay.is_received(4));
    assert!(!legacy(1, u32::MAX).is_received(32) && !ring(1, 0, &[]).is_received(0));
}

/// A `struct xfrm_usersa_id`.
fn usersa_id() -> Vec<u8> {
    let mut id = vec![0; 24];
    id[..4].copy_from_slice(&[192, 0, 2, 2]);
    id[16..20].copy_from_slice(&[0, 0, 0x12, 0x34]);
    id[20..22].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    id[22] = 50;
    id
}

#[test]
fn what_changes_in_an_sa_is_read() {
    let header = [usersa_id(), vec![0; 24]].concat();
    let usage = [5u64, 6, 7, 8].iter().flat_map(|it| it.to_ne_bytes()).collect::<Vec<_>>();
    let mark = words(&[1, 2]);
    let (replay, ltime) = (words(&[3, 4, 5]), usage);
    let attrs: Attrs<'_> =
        &[(xfrma::REPLAY_VAL, &replay), (xfrma::LTIME_VAL, &ltime), (xfrma::MARK, &mark)];
    let whole = octets(&header, attrs);
    let (found, state) = aevent(&message(NEWAE, &whole)).expect("well-formed");
    assert_eq!(found, SaId { mark: Mark { value: 1, mask: 2 }, ..id() });
    assert_eq!(state.usage, Usage { bytes: 5, packets: 6, add_time_s: 7, use_time_s: 8 });
    assert_eq!((state.replay.oseq, state.replay.seq), (3, 4));
    assert!(aevent(&message(NEWSA, &whole)).is_none());
    for len in 0..16 + header.len() + 16 + 36 {
        assert!(aevent(&message(NEWAE, &whole[..len])).is_none(), "{len} octets");
    }
}

#[test]
fn notifications_concern_one_sa_or_all() {
    let with_mark = SaId { mark: Mark { value: 1, mask: 3 }, ..id() };
    let mark = words(&[1, 3]);
    let attrs: Attrs<'_> = &[(xfrma::IF_ID, &[0; 4]), (xfrma::MARK, &mark)];
    let expire = [info(), vec![1, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(expire.len(), EXPIRE_LEN);
    for (kind, header) in [(0x10, info()), (0x1a, info()), (0x18, expire), (0x11, usersa_id())] {
        let of = |attrs| changed(&message(kind, &octets(&header, attrs)));
        assert_eq!(of(attrs), Some(Changed::One(with_mark)), "{kind:#x}");
        assert_eq!(of(&[]), Some(Changed::One(id())), "{kind:#x}");
        assert_eq!(of(&[(xfrma::MARK, &mark[..7])]), Some(Changed::All), "{kind:#x}");
        let whole = octets(&header, attrs);
        for len in 0..whole.len() {
            let cut = changed(&message(kind, &whole[..len]));
            // At the end of the struct and of XFRMA_IF_ID it is a whole one without a mark.
            let is_whole = [0, 8].contains(&len.wrapping_sub(16 + header.len()));
            let expected = if is_whole { Changed::One(id()) } else { Changed::All };
            assert_eq!(cut, Some(expected), "{kind:#x}, {len} octets");
        }
    }
    for (kind, expected) in [(0x1c, Some(Changed::All)), (0x21, Some(Changed::All)), (0x13, None)] {
        assert_eq!(changed(&message(kind, &octets(&[0; 8], &[]))), expected);
    }
}

#[test]
fn an_end_is_a_deletion_or_a_hard_limit() {
    let expire = |is_hard: u8| [info(), vec![is_hard, 0, 0, 0, 0, 0, 0, 0]].concat();
    let cases = [
        (0x10, info(), None),
        (0x1a, info(), None),
        (0x11, usersa_id(), Some(End::Deleted(id()))),
        (0x18, expire(0), None),
        (0x18, expire(1), Some(End::Expired(id()))),
        (0x1c, vec![0; 8], Some(End::All)),
        (0x21, vec![0; 8], None),
    ];
    for (kind, header, expected) in cases {
        assert_eq!(ended(&message(kind, &octets(&header, &[]))), expected, "{kind:#x}");
    }
}

#[test]
fn messages_that_are_cut_off_are_not_read() {
    let whole = octets(&info(), &[(xfrma::ALG_AEAD, &gcm()), (xfrma::REPLAY_VAL, &[0; 12])]);
    for len in 0..whole.len() {
        // At the end of the struct and of each attribute it is a whole one.
        let ends = [StateInfo::LEN, StateInfo::LEN + 4 + gcm().len()];
        let is_whole = ends.contains(&len.saturating_sub(16));
        let parsed = parse(&message(NEWSA, &whole[..len]));
        assert_eq!(parsed.is_some(), is_whole, "{len} octets");
    }
    let mut family = info();
    family[FAMILY] = 99;
    assert!(parse(&message(NEWSA, &octets(&family, &[]))).is_none());
    for kind in [xfrma::MARK, xfrma::IF_ID, xfrma::SA_EXTRA_FLAGS, xfrma::REPLAY_VAL] {
        assert!(parse(&message(NEWSA, &octets(&info(), &[(kind, &[1])]))).is_none(), "{kind}");
    }
}

#[test]
fn a_listing_has_keys_only_if_asked_for_and_is_not_read_from_malformed_messages() {
    let (encap, esn) = ([0; 24], words(&[1, 2, 3, 0, 0, 32, 4]));
    let context = [&[12, 0, 8, 0, 1, 1, 4, 0][..], b"abcd"].concat();
    let sha1 = algorithm("hmac(sha1)", Some(96), &[3; 20]);
    let attrs: Attrs<'_> = &[
        (xfrma::ALG_AUTH, &algorithm("hmac(sha1)", None, &[3; 20])),
        (xfrma::ALG_AUTH_TRUNC, &sha1),
        (xfrma::ENCAP, &encap),
        (xfrma::TMPL, &[0; 128]),
        (xfrma::SEC_CTX, &context),
        (xfrma::OFFLOAD_DEV, &words(&[3, 2])),
        (xfrma::REPLAY_ESN_VAL, &esn),
    ];
    let whole = octets(&info(), attrs);
    let read =
        |octets: &[u8], has_keys| Extras::parse(&message(NEWSA, octets), StateInfo::LEN, has_keys);
    for has_keys in [false, true] {
        let extras = read(&whole, has_keys).expect("well-formed");
        let [auth] = &extras.algorithms[..] else { panic!("{}", extras.algorithms.len()) };
        assert_eq!((auth.kind, &auth.name[..]), (AlgorithmKind::AuthTrunc, "hmac(sha1)"));
        assert_eq!((auth.key_bits, auth.icv_bits), (160, Some(96)));
        assert_eq!(auth.key.as_ref().map(|key| key.to_vec()), has_keys.then(|| vec![3; 20]));
        assert_eq!((extras.templates.len(), extras.offload), (2, Some((3, 2))));
        assert_eq!(extras.security_context.as_deref(), Some("abcd"));
    }
    for (kind, value) in attrs {
        for len in 0..value.len() {
            let is_read = read(&octets(&info(), &[(*kind, &value[..len])]), true).is_some();
            // Of templates and of the interface, what is there is whole.
            let is_whole =
                *kind == xfrma::TMPL && len % 64 == 0 || *kind == xfrma::OFFLOAD_DEV && len >= 5;
            assert_eq!(is_read, is_whole, "{len} octets of attribute {kind}");
        }
    }
}

/// Has the kernel reserve an SPI for an SA that is being negotiated, which needs no ESP.
fn negotiated(dst: &str) {
    run(&format!(
        "ip xfrm state allocspi src 192.0.2.1 dst {dst} proto esp reqid 5 mode tunnel min 256 max 511"
    ));
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_kernels_sas_are_read_and_written() {
    in_netns(|| {
        let mut socket = NlSock::open(NETLINK_XFRM).expect("opens");
        assert!(state::read(&mut socket).expect("reads").is_empty());
        negotiated("192.0.2.2");
        let states = state::read(&mut socket).expect("reads");
        let [acquiring] = &states[..] else { panic!("{} SAs", states.len()) };
        assert_eq!((acquiring.config.km_state, acquiring.config.reqid), (KmState::Acquiring, 5));
        let replay = &acquiring.replay;
        let now = ae::get_ae(&mut socket, &acquiring.id).expect("reads").expect("exists");
        assert_eq!(&now.replay, replay);
        // The kernel changes and ends only those that work.
        let refused = ae::new_ae(&mut socket, &acquiring.id, Some(replay), None).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        let refused = ae::expire(&mut socket, &acquiring.id, true).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        let none = SaId { spi: 1, ..acquiring.id };
        assert!(ae::get_ae(&mut socket, &none).expect("answers").is_none());
        assert!(!ae::new_ae(&mut socket, &none, Some(replay), None).expect("answers"));
        assert!(!ae::expire(&mut socket, &none, true).expect("answers"));
        run("ip xfrm state flush");
        with_esp(&mut socket);
    });
}

/// SAs with keys, where the kernel has ESP: in the virtual machine of `scripts/vm`.
fn with_esp(socket: &mut NlSock) {
    const ADD: &str = "ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 mode tunnel \
                       aead 'rfc4106(gcm(aes))' 0x000102030405060708090a0b0c0d0e0f10111213 128";
    match run(&format!("{ADD} 2>&1 || true")).trim() {
        "" => run("ip xfrm state flush"),
        // Without ESP, or without the algorithm.
        refused if refused.starts_with("Error: Requested ") => return,
        other => panic!("{other}"),
    };
    for options in
        ["replay-window 32", "replay-window 100", "replay-window 64 flag esn mark 1 mask 3"]
    {
        let groups = [Group::Required(XFRMNLGRP_SA), Group::Required(XFRMNLGRP_EXPIRE)];
        let mut events = Events::open(NETLINK_XFRM, &groups, 1 << 20).expect("opens");
        run(&format!("{ADD} {options}"));
        let states = state::read(socket).expect("reads");
        let [state] = &states[..] else { panic!("{} SAs", states.len()) };
        assert!(state.keys.is_ok(), "{}", state.keys.as_ref().err().unwrap());

        let window = ReplayWindow::new(state.config.replay_window, false).unwrap();
        [1, 2, 5].into_iter().for_each(|number| window.accept(number).unwrap());
        let replay =
            KernelReplay { oseq: 1000, ..state.replay.with_received_by(&window.snapshot()) };
        let usage = Usage { bytes: 5, packets: 6, add_time_s: 7, use_time_s: 8 };
        assert!(ae::new_ae(socket, &state.id, Some(&replay), Some(usage)).expect("writes"));
        let now = ae::get_ae(socket, &state.id).expect("reads").expect("exists");
        assert_eq!(now, AeState { replay: replay.clone(), usage }, "{options}");
        let mut short = replay.clone();
        if short.window.is_some() {
            short.bitmap.pop();
            assert!(ae::new_ae(socket, &state.id, Some(&short), None).is_err(), "another length");
        }
        assert!(ae::expire(socket, &state.id, false).expect("is told"));
        assert_eq!(state::read(socket).expect("reads").len(), 1, "a soft limit");
        assert!(ae::expire(socket, &state.id, true).expect("is told"));
        assert!(state::read(socket).expect("reads").is_empty(), "a hard limit");

        let mut seen = 0;
        while let Received::Datagram(datagram) = events.receive().expect("receives") {
            for message in Messages::new(datagram) {
                assert_eq!(changed(&message), Some(Changed::One(state.id)), "{:#x}", message.kind);
                seen += 1;
            }
        }
        events.wipe();
        assert!(seen >= 3, "added, and expired twice: {seen}");
    }
}
