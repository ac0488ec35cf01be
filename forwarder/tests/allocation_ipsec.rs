//! IPsec allocates nothing for a packet: protection, lookup and removal with every algorithm and mode, and the
//! lookup and check of policies, under a counting allocator.
//!
//! The allocator counts what Rust allocates; the C and assembly of `ring` do not allocate.

use std::sync::Arc;

use ferroute::ipsec::{
    Action, Aead, Auth, Cipher, Decapsulated, Direction, EspKeys, Family, Flow, InboundState,
    IvSeed, Keys, Mode, Order, OutboundState, OutputParams, Policy, Received, Sad, Secret,
    Selector, Spd, StateConfig, StateFlags, Template, UdpPorts,
};
use ferroute::wire::Protocol;

mod allocation;

/// Allocations of a piece of code.
fn allocations_of(run: impl FnOnce()) -> u64 {
    let before = allocation::count();
    run();
    allocation::count() - before
}

const ROOM: usize = 128;
/// ICMP from 192.0.2.1 to 192.0.2.2, of 64 octets with zeros.
const HEADER: [u8; 20] =
    [0x45, 0, 0, 64, 0, 0, 0, 0, 64, 1, 0xf6, 0xb2, 192, 0, 2, 1, 192, 0, 2, 2];

fn config(mode: Mode, flags: StateFlags) -> StateConfig {
    let ends = [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
    StateConfig { reqid: 1, flags, replay_window: 4096, ..StateConfig::new(mode, ends, 0x1000) }
}

fn all_keys() -> Vec<Keys> {
    let secret = |len| Secret::new(vec![7; len]);
    let mut all = vec![
        Keys::Esp(EspKeys::Combined(Aead::AesGcm, secret(20))),
        Keys::Esp(EspKeys::Combined(Aead::AesGcm, secret(36))),
        Keys::Esp(EspKeys::Combined(Aead::AesGmac, secret(20))),
        Keys::Esp(EspKeys::Combined(Aead::ChaCha20Poly1305, secret(36))),
    ];
    for auth in Auth::ALL {
        for (cipher, len) in [(Cipher::Null, 0), (Cipher::AesCbc, 16), (Cipher::AesCtr, 36)] {
            all.push(Keys::Esp(EspKeys::EncryptThenMac(cipher, secret(len), auth, secret(32))));
        }
        all.push(Keys::Ah(auth, secret(32)));
    }
    all
}

#[test]
fn a_packet_is_protected_and_opened_without_allocating() {
    for keys in all_keys() {
        for (mode, is_udp) in
            [(Mode::Tunnel, false), (Mode::Tunnel, true), (Mode::Transport, false)]
        {
            let mut config = config(mode, StateFlags::ESN);
            let is_udp = is_udp && matches!(keys, Keys::Esp(_));
            config.encap = is_udp.then_some(UdpPorts { src: 4500, dst: 4500 });
            let seed = IvSeed::random([5; 16]);
            let outbound = OutboundState::new(config.clone(), &keys, seed, 1).expect("a state");
            outbound.sequence().extend(1..1000).expect("a range");
            let inbound = InboundState::new(config, &keys).expect("a state");
            let sad = Sad::new([Arc::new(inbound)], Order::OldestFirst);
            let mut buffer = [0; ROOM + 64 + ROOM];
            buffer[ROOM..ROOM + 20].copy_from_slice(&HEADER);
            let params = OutputParams { now_s: 1, hop_limit: 64, ident: 1 };
            let allocations = allocations_of(|| {
                let range = outbound.seal(&mut buffer, ROOM..ROOM + 64, &params).expect("sealed");
                let opened = sad.open(&mut buffer[range], 0, &[4500], 1).expect("opened");
                let packet = opened.expect("an IPsec packet").packet;
                let (Decapsulated::Tunnel(range) | Decapsulated::Transport(range)) = packet else {
                    panic!("a dummy packet");
                };
                assert_eq!(range.len(), 64);
            });
            assert_eq!(allocations, 0, "{mode:?}, {:?}", outbound.state().algorithm());
        }
    }
}

#[test]
fn policies_are_looked_up_and_checked_without_allocating() {
    let keys = Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new(vec![7; 20])));
    let tunnel =
        InboundState::new(config(Mode::Tunnel, StateFlags::default()), &keys).expect("a state");
    let any = "0.0.0.0".parse().expect("an address");
    let templates = vec![Template::tunnel(Protocol::ESP, [any, any], 1)];
    let allow = Policy::new(Family::Ipv4, Selector::default(), Action::Allow);
    let policy = Policy { templates, ..allow };
    let spd = Spd::new([(Direction::Fwd, policy)], Order::OldestFirst, [Action::Allow; 3]);
    let allocations = allocations_of(|| {
        let flow = Flow::of_packet(&HEADER, 1, 0).expect("a flow");
        let secpath = [tunnel.state()];
        let received = Received { flow, secpath: &secpath, verified: 0, if_id: 0, quoted: None };
        assert_eq!(spd.policy_check(Direction::Fwd, &received), Ok(1));
    });
    assert_eq!(allocations, 0);
}

#[test]
fn the_allocator_counts() {
    assert_eq!(allocations_of(|| drop(std::hint::black_box(Box::new(1)))), 2);
}
