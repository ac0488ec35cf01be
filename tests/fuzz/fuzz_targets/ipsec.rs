//! IPsec: any octets are opened without a panic, also those of a sender that has the key, and what was sealed
//! is opened again.
#![no_main]

use std::sync::Arc;

use ferroute::ipsec::{
    Aead, Auth, Cipher, Decapsulated, EspKeys, Family, Flow, InboundState, IvSeed, Keys, Mode,
    Order, OutboundState, OutputParams, Sad, Secret, StateConfig, StateFlags, UdpPorts, locate,
};
use ferroute::wire::{Ipv4Packet, Ipv6Packet, Protocol};
use libfuzzer_sys::fuzz_target;
use ring::hmac;

/// Room before and after a packet, in octets: more than any SA needs.
const ROOM: usize = 128;
/// UDP port of ESP.
const PORT: u16 = 4500;
const SPI: u32 = 0x0102_0304;
/// Octets of all keys.
const KEY_OCTET: u8 = 7;
/// The algorithm without encryption.
const NULL: u8 = 3;

/// The first three octets select the SA; the packet follows, which is opened as it is, opened as the data of an
/// ESP packet with the right ICV, and sealed.
#[derive(Debug)]
struct Input<'a> {
    algorithm: u8,
    is_tunnel: bool,
    is_ipv6: bool,
    is_udp: bool,
    flags: u8,
    packet: &'a [u8],
}

impl<'a> Input<'a> {
    fn of_octets(octets: &'a [u8]) -> Option<Input<'a>> {
        let [algorithm, kind, flags, packet @ ..] = octets else { return None };
        let is = |bit: u8| kind & bit != 0;
        Some(Input {
            algorithm: *algorithm,
            is_tunnel: is(1),
            is_ipv6: is(2),
            is_udp: is(4),
            flags: *flags,
            packet,
        })
    }
}

fn keys(algorithm: u8) -> Keys {
    let secret = |len| Secret::new(vec![KEY_OCTET; len]);
    let with = |cipher, len| {
        Keys::Esp(EspKeys::EncryptThenMac(cipher, secret(len), Auth::HmacSha256_128, secret(32)))
    };
    match algorithm % 7 {
        0 => Keys::Esp(EspKeys::Combined(Aead::AesGcm, secret(20))),
        1 => Keys::Esp(EspKeys::Combined(Aead::AesGmac, secret(20))),
        2 => Keys::Esp(EspKeys::Combined(Aead::ChaCha20Poly1305, secret(36))),
        NULL => with(Cipher::Null, 0),
        4 => with(Cipher::AesCbc, 16),
        5 => with(Cipher::AesCtr, 20),
        _ => Keys::Ah(Auth::HmacSha1_96, secret(20)),
    }
}

fn family(input: &Input<'_>) -> Family {
    if input.is_ipv6 { Family::Ipv6 } else { Family::Ipv4 }
}

fn flags(input: &Input<'_>) -> StateFlags {
    StateFlags::from_kernel(input.flags, 0).expect("eight flags")
}

fn config(input: &Input<'_>, is_ah: bool) -> StateConfig {
    let addr = if input.is_ipv6 { "2001:db8::1" } else { "192.0.2.1" };
    let addr = addr.parse().expect("an address");
    let mode = if input.is_tunnel { Mode::Tunnel } else { Mode::Transport };
    StateConfig {
        flags: flags(input),
        selector_family: flags(input).selector_family(None, family(input)),
        encap: (input.is_udp && !is_ah).then_some(UdpPorts { src: PORT, dst: PORT }),
        replay_window: 64,
        ..StateConfig::new(mode, [addr, addr], SPI)
    }
}

fuzz_target!(|octets: &[u8]| {
    let Some(input) = Input::of_octets(octets) else { return };
    let keys = keys(input.algorithm);
    let is_ah = matches!(keys, Keys::Ah(..));
    let config = config(&input, is_ah);
    let inbound = InboundState::new(config.clone(), &keys).expect("a state");
    let sad = Sad::new([Arc::new(inbound)], Order::OldestFirst);
    let _ = sad.open(&mut input.packet.to_vec(), 0, &[PORT], 1);
    open_authentic(&input);

    let seed = IvSeed::random([1; 16]);
    let outbound = OutboundState::new(config, &keys, seed, 1).expect("a state");
    outbound.sequence().extend(1..2).expect("a range");
    let mut buffer = [&[0; ROOM], input.packet, &[0; ROOM]].concat();
    let params = OutputParams { now_s: 1, hop_limit: 64, ident: 1 };
    let len = input.packet.len();
    let Ok(range) = outbound.seal(&mut buffer, ROOM..ROOM + len, &params) else { return };
    // In transport mode the destination stays that of the packet, for which there may be no SA; a Routing
    // header may have addresses left, which AH refuses.
    let opened = open_sealed(&sad, &mut buffer[range], input.is_tunnel);
    // With DECAP_DSCP the inner packet gets the outer DSCP.
    let is_same = input.is_tunnel && !flags(&input).contains(StateFlags::DECAP_DSCP);
    if let (true, Some(opened)) = (is_same, opened) {
        assert_eq!(opened, &input.packet[..opened.len()]);
    }
});

/// Opens a sealed packet; a tunnel's must be accepted.
fn open_sealed<'a>(sad: &Sad, packet: &'a mut [u8], is_tunnel: bool) -> Option<&'a [u8]> {
    let opened = sad.open(packet, 0, &[PORT], 1);
    let opened = match opened {
        Ok(Some(opened)) => opened.packet,
        other => {
            assert!(!is_tunnel, "{:?}", other.map(|_| ()));
            return None;
        }
    };
    match opened {
        Decapsulated::Tunnel(range) | Decapsulated::Transport(range) => Some(&packet[range]),
        Decapsulated::Dummy => None,
    }
}

/// Opens the octets as the data of an ESP packet, payload to trailer, in both modes.
fn open_authentic(input: &Input<'_>) {
    let Some(authentic) = authentic(input) else { return };
    for mode in [Mode::Tunnel, Mode::Transport] {
        let config = StateConfig { mode, encap: None, ..config(input, false) };
        let state = InboundState::new(config, &keys(NULL)).expect("a state");
        let mut packet = authentic.clone();
        let located = locate(&packet, &[]).expect("a header").expect("of ESP");
        let opened = state.open(&mut packet, &located, 1);
        assert_eq!(state.state().integrity_failed(), 0);
        let Ok(Decapsulated::Tunnel(range) | Decapsulated::Transport(range)) = opened else {
            continue;
        };
        let inner = &packet[range];
        match (mode, family(input)) {
            (Mode::Tunnel, _) => assert!(matches!(inner[0] >> 4, 4 | 6)),
            (Mode::Transport, Family::Ipv4) => {
                let ip = Ipv4Packet::new_checked(inner).expect("its header");
                assert_eq!(usize::from(ip.total_len()), inner.len());
            }
            (Mode::Transport, Family::Ipv6) => {
                let ip = Ipv6Packet::new_checked(inner).expect("its header");
                assert_eq!(ip.total_len(), inner.len());
            }
        }
        let _ = (locate(inner, &[PORT]), Flow::of_packet(inner, 0, 0));
    }
}

/// The ESP packet. `None`: it would be too long.
fn authentic(input: &Input<'_>) -> Option<Vec<u8>> {
    const ICV_LEN: usize = 16;
    let esp = [&SPI.to_be_bytes()[..], &[0, 0, 0, 1], input.packet].concat();
    // With ESN the high half of the number is covered.
    let high: &[u8] = if flags(input).contains(StateFlags::ESN) { &[0; 4] } else { &[] };
    let key = hmac::Key::new(hmac::HMAC_SHA256, &[KEY_OCTET; 32]);
    let icv = hmac::sign(&key, &[&esp, high].concat());
    let payload = [&esp, &icv.as_ref()[..ICV_LEN]].concat();
    let addr = config(input, false).dst;
    let mut packet = vec![0; if input.is_ipv6 { 40 } else { 20 }];
    packet.extend(payload);
    let len = u16::try_from(packet.len()).ok()?;
    match addr {
        std::net::IpAddr::V4(addr) => {
            let mut ip = Ipv4Packet::new_unchecked(&mut packet[..]);
            ip.set_version_and_header_len(20);
            ip.set_total_len(len);
            ip.set_protocol(Protocol::ESP);
            ip.set_dst_addr(addr);
            ip.fill_checksum();
        }
        std::net::IpAddr::V6(addr) => {
            let mut ip = Ipv6Packet::new_unchecked(&mut packet[..]);
            ip.set_version_class_flow(0, 0);
            ip.set_payload_len(len - 40);
            ip.set_next_header(Protocol::ESP);
            ip.set_dst_addr(addr);
        }
    }
    Some(packet)
}
