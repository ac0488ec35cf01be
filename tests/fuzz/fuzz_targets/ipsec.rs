//! IPsec: any octets are opened without a panic, and what was sealed is opened again.
#![no_main]

use std::sync::Arc;

use ferroute::ipsec::{
    Aead, Auth, Cipher, Decapsulated, EcnRules, EspKeys, Family, InboundState, IvSeed, Keys,
    Lifetime, Mark, Mode, OutboundState, OutputParams, Sad, Secret, Selector, StateConfig,
    StateFlags, UdpPorts, Usage,
};
use libfuzzer_sys::fuzz_target;

/// Room before and after a packet, in octets: more than any SA needs.
const ROOM: usize = 128;
/// UDP port of ESP.
const PORT: u16 = 4500;

/// The first three octets select the SA; the packet follows, which is opened as it is, and sealed.
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
    let secret = |len| Secret::new(vec![7; len]);
    let with = |cipher, len| {
        Keys::Esp(EspKeys::EncryptThenMac(cipher, secret(len), Auth::HmacSha256_128, secret(32)))
    };
    match algorithm % 7 {
        0 => Keys::Esp(EspKeys::Combined(Aead::AesGcm, secret(20))),
        1 => Keys::Esp(EspKeys::Combined(Aead::AesGmac, secret(20))),
        2 => Keys::Esp(EspKeys::Combined(Aead::ChaCha20Poly1305, secret(36))),
        3 => with(Cipher::Null, 0),
        4 => with(Cipher::AesCbc, 16),
        5 => with(Cipher::AesCtr, 20),
        _ => Keys::Ah(Auth::HmacSha1_96, secret(20)),
    }
}

fn config(input: &Input<'_>, is_ah: bool) -> StateConfig {
    let addr = if input.is_ipv6 { "2001:db8::1" } else { "192.0.2.1" };
    let addr = addr.parse().expect("an address");
    StateConfig {
        src: addr,
        dst: addr,
        spi: 0x0102_0304,
        reqid: 0,
        mode: if input.is_tunnel { Mode::Tunnel } else { Mode::Transport },
        flags: StateFlags::from_kernel(input.flags, 0),
        ecn: EcnRules::Rfc6040,
        selector: Selector::default(),
        selector_family: if input.is_ipv6 { Family::Ipv6 } else { Family::Ipv4 },
        mark: Mark::default(),
        if_id: 0,
        lifetime: Lifetime::INFINITE,
        usage: Usage::default(),
        encap: (input.is_udp && !is_ah).then_some(UdpPorts { src: PORT, dst: PORT }),
        replay_window: 64,
    }
}

fuzz_target!(|octets: &[u8]| {
    let Some(input) = Input::of_octets(octets) else { return };
    let keys = keys(input.algorithm);
    let is_ah = matches!(keys, Keys::Ah(..));
    let config = config(&input, is_ah);
    let inbound = InboundState::new(config.clone(), &keys).expect("a state");
    let sad = Sad::new([Arc::new(inbound)]);
    let _ = sad.open(&mut input.packet.to_vec(), 0, &[PORT], 1);

    let outbound = OutboundState::new(config, &keys, &IvSeed::random([1; 16])).expect("a state");
    outbound.sequence().extend(1..2).expect("a range");
    let mut buffer = [&[0; ROOM], input.packet, &[0; ROOM]].concat();
    let params = OutputParams { now_s: 1, hop_limit: 64, ident: 1 };
    let len = input.packet.len();
    let Ok(range) = outbound.seal(&mut buffer, ROOM..ROOM + len, &params) else { return };
    // In transport mode the destination stays that of the packet, for which there may be no SA; a Routing
    // header may have addresses left, which AH refuses.
    let opened = open_sealed(&sad, &mut buffer[range], input.is_tunnel);
    let flags = StateFlags::from_kernel(input.flags, 0);
    // With DECAP_DSCP the inner packet gets the outer DSCP.
    let is_same = input.is_tunnel && !flags.contains(StateFlags::DECAP_DSCP);
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
