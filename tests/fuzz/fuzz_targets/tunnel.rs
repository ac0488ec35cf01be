//! Frames through the whole pipeline of a router with an IPsec tunnel at its right port.
//!
//! Packets that arrive at the right are protected by the other end first, unless that cannot protect them. What is
//! handed to the kernel must be as it was received, and nothing that came protected may go into the tunnel's
//! network in clear.
#![no_main]

use std::net::IpAddr;
use std::sync::Arc;

use ferroute::ipsec::{
    Action, Aead, Decapsulated, Direction, EcnRules, EspKeys, Family, InboundState, IvSeed, Keys,
    Mode, Order, OutboundState, OutputParams, Policy, Prefix, Sad, Secret, Selector, StateConfig,
    StateFlags, Template, locate,
};
use ferroute::tables::{Tables, XfrmPolicies, XfrmStates};
use ferroute::wire::Protocol;
use ferroute_fuzz::bench::{Bench, Layout};
use ferroute_fuzz::input::{Step, parse};
use ferroute_fuzz::lab::{Lab, Settings};
use libfuzzer_sys::fuzz_target;

const LONGEST: usize = 4200;
const PACKETS: usize = 24;
const LINK_LAYER: usize = 14;
/// Room around a packet for what an SA adds.
const ROOM: usize = 128;
/// The bit of the settings for partial checksums, which the router completes for the kernel.
const PARTIAL_CSUM: u16 = 1 << 3;

/// Ends of the tunnel: the router's and the other one's.
fn ends(is_ipv6: bool) -> [IpAddr; 2] {
    let ends = match is_ipv6 {
        false => ["198.18.2.1", "198.18.2.2"],
        true => ["2001:db8:2::1", "2001:db8:2::2"],
    };
    ends.map(|end| end.parse().expect("an address"))
}

fn config(ends: [IpAddr; 2]) -> StateConfig {
    StateConfig {
        reqid: 1,
        flags: StateFlags::AF_UNSPEC,
        ecn: EcnRules::Xfrm,
        selector_family: None,
        replay_window: 64,
        ..StateConfig::new(Mode::Tunnel, ends, 0x1000)
    }
}

fn keys() -> Keys {
    Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new((0..20).collect())))
}

fn inbound(ends: [IpAddr; 2]) -> InboundState {
    InboundState::new(config(ends), &keys()).expect("an SA")
}

fn outbound(ends: [IpAddr; 2]) -> OutboundState {
    let state = OutboundState::new(config(ends), &keys(), IvSeed::random([7; 16]), 1);
    let state = state.expect("an SA");
    state.sequence().extend(1..1000).expect("numbers");
    state
}

/// A policy for all packets of a family.
fn policy(direction: Direction, family: Family, ends: [IpAddr; 2]) -> (Direction, Policy) {
    let network = match family {
        Family::Ipv4 => Prefix { addr: "10.0.0.0".parse().expect("an address"), len: 8 },
        Family::Ipv6 => Prefix { addr: "2001:db8:a::".parse().expect("an address"), len: 48 },
    };
    let selector = match direction {
        Direction::Out => Selector { dst: network, ..Selector::default() },
        _ => Selector::default(),
    };
    let policy = Policy {
        index: 8 * (1 + 2 * family as u32 + direction as u32 * 4),
        templates: vec![Template::tunnel(Protocol::ESP, ends, 1)],
        ..Policy::new(family, selector, Action::Allow)
    };
    (direction, policy)
}

fn with_tunnel(tables: &Tables, ends: [IpAddr; 2]) -> Tables {
    let [own, other] = ends;
    let policies = [Family::Ipv4, Family::Ipv6].into_iter().flat_map(|family| {
        let out = policy(Direction::Out, family, [own, other]);
        [out, policy(Direction::Fwd, family, [other, own])]
    });
    let states = XfrmStates {
        inbound: Sad::new([Arc::new(inbound([other, own]))], Order::OldestFirst),
        outbound: vec![Arc::new(outbound(ends))],
        kernels: Vec::new(),
    };
    let xfrm = XfrmPolicies::with_states(policies.collect(), Arc::new(states));
    Tables { xfrm: Arc::new(xfrm), ..tables.clone() }
}

/// The frame of the other end with the packet of this one inside. `None`: it cannot be protected.
fn protected(frame: &[u8], by: &OutboundState) -> Option<Vec<u8>> {
    let (link_layer, packet) = frame.split_at_checked(LINK_LAYER)?;
    let mut buffer = [&[0; ROOM][..], packet, &[0; ROOM]].concat();
    let params = OutputParams { now_s: 1, hop_limit: 64, ident: 1 };
    let sealed = by.seal(&mut buffer, ROOM..ROOM + packet.len(), &params).ok()?;
    let ethertype: &[u8] = if buffer[sealed.start] >> 4 == 4 { &[8, 0] } else { &[0x86, 0xdd] };
    Some([&link_layer[..12], ethertype, &buffer[sealed]].concat())
}

fuzz_target!(|octets: &[u8]| {
    let (settings, steps) = parse(octets, PACKETS, LONGEST);
    let ends = ends(settings >> 13 & 1 != 0);
    let settings = Settings(settings & !PARTIAL_CSUM);
    let [own, other] = ends;
    let tables = Lab::of(settings).tables(settings).map(|tables| with_tunnel(&tables, ends));
    let (sealer, opener) = (outbound([other, own]), inbound([own, other]));
    let mut bench = Bench::new(tables[0].clone(), settings.frames(), Layout::Driver);
    let mut known = 0;
    for step in steps {
        match step {
            Step::Frame(1, frame) => {
                let frame = protected(&frame, &sealer).unwrap_or(frame);
                bench.receive(1, frame);
            }
            Step::Frame(port, frame) => bench.receive(port, frame),
            Step::Wait(ms) => bench.wait(ms),
            Step::Neighbours => {
                known ^= 1;
                let xfrm = Arc::clone(&tables[0].xfrm);
                bench.publish(&Tables { xfrm, ..tables[known].clone() });
            }
            Step::Forward => bench.forward(),
        }
    }
    bench.finish();
    for frame in &bench.punted {
        // Padding of short frames may be gone.
        let is_as_received = bench.received.iter().any(|(_, came)| came.starts_with(frame));
        assert!(is_as_received, "the kernel gets what was not received: {frame:02x?}");
    }
    for (port, frame) in &bench.sent {
        let Some(packet) = frame.get(LINK_LAYER..).filter(|_| *port == 1) else { continue };
        let Ok(Some(located)) = locate(packet, &[]) else { continue };
        if (located.dst, located.spi) != (other, 0x1000) {
            continue;
        }
        // A packet that was forwarded may be one of the other end's, sent back to it.
        if bench.received.iter().any(|(_, came)| came.ends_with(&packet[packet.len().min(40)..])) {
            continue;
        }
        match opener.open(&mut packet.to_vec(), &located, 1) {
            Ok(Decapsulated::Tunnel(_)) => {}
            other => panic!("the other end cannot open it: {other:?}, {packet:02x?}"),
        }
    }
});
