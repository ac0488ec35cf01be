//! IPsec tunnels of ESP with AES-128-GCM between the router and 10.200.0.1, each for a network of 10.0.0.0/8.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ferroute::ipsec::{
    Action, Aead, Direction, EcnRules, EspKeys, Family, InboundState, IvSeed, Keys, Mode, Order,
    OutboundState, OutputParams, Policy, Prefix, Sad, Secret, Selector, StateConfig, Template,
};
use ferroute::tables::{Tables, XfrmPolicies, XfrmStates};
use ferroute::wire::{Ipv4Packet, Protocol};

use super::null;

/// The router's end, and the other one.
const ENDS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 18, 1, 1)), IpAddr::V4(Ipv4Addr::new(10, 200, 0, 1))];
/// Length of a link-layer header, and room in front of a packet, octets.
const LINK_LAYER: usize = 14;
const ROOM: usize = 128;

/// SPI and reqid of the first tunnel.
const SPI: u32 = 0x1000;
const REQID: u32 = 1;

/// A destination behind a tunnel.
fn destination(tunnel: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0001 | (tunnel as u32) << 8)
}

// Without a replay window: the same packets are received again and again.
fn config(ends: [IpAddr; 2], tunnel: usize) -> StateConfig {
    let (spi, reqid) = (SPI + tunnel as u32, REQID + tunnel as u32);
    StateConfig { reqid, ecn: EcnRules::Xfrm, ..StateConfig::new(Mode::Tunnel, ends, spi) }
}

fn keys(tunnel: usize) -> Keys {
    let mut octets: Vec<u8> = (0..20).collect();
    octets[..8].copy_from_slice(&tunnel.to_be_bytes());
    Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new(octets)))
}

fn outbound(ends: [IpAddr; 2], tunnel: usize) -> Arc<OutboundState> {
    let seed = IvSeed::random([7; 16]);
    let state = OutboundState::new(config(ends, tunnel), &keys(tunnel), seed, 1);
    let state = state.expect("an SA");
    state.sequence().extend(1..u64::from(u32::MAX)).expect("numbers");
    Arc::new(state)
}

fn policy(direction: Direction, ends: [IpAddr; 2], tunnel: usize) -> (Direction, Policy) {
    let network = Prefix { addr: destination(tunnel).into(), len: 24 };
    let selector = Selector { dst: network, ..Selector::default() };
    let templates = vec![Template::tunnel(Protocol::ESP, ends, REQID + tunnel as u32)];
    let index = 8 * (1 + tunnel as u32);
    (direction, Policy { index, templates, ..Policy::new(Family::Ipv4, selector, Action::Allow) })
}

fn with(policies: Vec<(Direction, Policy)>, states: XfrmStates) -> Tables {
    let xfrm = Arc::new(XfrmPolicies::with_states(policies, Arc::new(states)));
    Tables { xfrm, ..null::one_route_and_own() }
}

/// Tunnels protect what is forwarded.
pub fn protecting(tunnels: usize) -> Tables {
    let outbound = (0..tunnels).map(|tunnel| outbound(ENDS, tunnel)).collect();
    let states = XfrmStates { outbound, ..XfrmStates::default() };
    with((0..tunnels).map(|tunnel| policy(Direction::Out, ENDS, tunnel)).collect(), states)
}

/// Tunnels are opened, and what is inside is forwarded.
pub fn opening(tunnels: usize) -> Tables {
    let [own, other] = ENDS;
    let state = |tunnel| {
        let state = InboundState::new(config([other, own], tunnel), &keys(tunnel));
        Arc::new(state.expect("an SA"))
    };
    let inbound = Sad::new((0..tunnels).map(state), Order::OldestFirst);
    let states = XfrmStates { inbound, ..XfrmStates::default() };
    let policies = (0..tunnels).map(|tunnel| policy(Direction::Fwd, [other, own], tunnel));
    with(policies.collect(), states)
}

/// A frame with an IP packet of `len` octets for a tunnel.
pub fn frame(len: usize, tunnel: usize) -> Vec<u8> {
    let mut frame = null::frame4(destination(tunnel));
    frame.resize(LINK_LAYER + len, 0);
    let mut ipv4 = Ipv4Packet::new_unchecked(&mut frame[LINK_LAYER..]);
    ipv4.set_total_len(len as u16);
    ipv4.fill_checksum();
    frame
}

/// The same, protected by the other end.
pub fn protected(len: usize, tunnel: usize) -> Vec<u8> {
    let [own, other] = ENDS;
    let frame = frame(len, tunnel);
    let packet = &frame[LINK_LAYER..];
    let mut buffer = [&[0; ROOM][..], packet, &[0; ROOM]].concat();
    let params = OutputParams { now_s: 1, hop_limit: 64, ident: 1 };
    let sealed = outbound([other, own], tunnel).seal(&mut buffer, ROOM..ROOM + len, &params);
    [&frame[..LINK_LAYER], &buffer[sealed.expect("it is protected")]].concat()
}
