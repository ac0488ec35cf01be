//! An IPsec tunnel of ESP with AES-128-GCM between the router and 10.200.0.1, for all of 10.0.0.0/8.

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

// Without a replay window: the same packets are received again and again.
fn config(ends: [IpAddr; 2]) -> StateConfig {
    StateConfig { reqid: 1, ecn: EcnRules::Xfrm, ..StateConfig::new(Mode::Tunnel, ends, 0x1000) }
}

fn keys() -> Keys {
    Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new((0..20).collect())))
}

fn outbound(ends: [IpAddr; 2]) -> OutboundState {
    let state = OutboundState::new(config(ends), &keys(), IvSeed::random([7; 16]), 1);
    let state = state.expect("an SA");
    state.sequence().extend(1..u64::from(u32::MAX)).expect("numbers");
    state
}

fn policy(direction: Direction, ends: [IpAddr; 2]) -> (Direction, Policy) {
    let ten = Prefix { addr: Ipv4Addr::new(10, 0, 0, 0).into(), len: 8 };
    let selector = Selector { dst: ten, ..Selector::default() };
    let templates = vec![Template::tunnel(Protocol::ESP, ends, 1)];
    (direction, Policy { templates, ..Policy::new(Family::Ipv4, selector, Action::Allow) })
}

fn with(policies: Vec<(Direction, Policy)>, states: XfrmStates) -> Tables {
    let xfrm = Arc::new(XfrmPolicies::with_states(policies, Arc::new(states)));
    Tables { xfrm, ..null::one_route_and_own() }
}

/// The tunnel protects what is forwarded.
pub fn protecting() -> Tables {
    let outbound = vec![Arc::new(outbound(ENDS))];
    let states = XfrmStates { outbound, ..XfrmStates::default() };
    with(vec![policy(Direction::Out, ENDS)], states)
}

/// The tunnel is opened, and what is inside is forwarded.
pub fn opening() -> Tables {
    let [own, other] = ENDS;
    let state = InboundState::new(config([other, own]), &keys()).expect("an SA");
    let inbound = Sad::new([Arc::new(state)], Order::OldestFirst);
    let states = XfrmStates { inbound, ..XfrmStates::default() };
    with(vec![policy(Direction::Fwd, [other, own])], states)
}

/// A frame with an IP packet of `len` octets.
pub fn frame(len: usize) -> Vec<u8> {
    let mut frame = null::frame4([10, 0, 0, 1].into());
    frame.resize(LINK_LAYER + len, 0);
    let mut ipv4 = Ipv4Packet::new_unchecked(&mut frame[LINK_LAYER..]);
    ipv4.set_total_len(len as u16);
    ipv4.fill_checksum();
    frame
}

/// The same, protected by the other end.
pub fn protected(len: usize) -> Vec<u8> {
    let [own, other] = ENDS;
    let frame = frame(len);
    let packet = &frame[LINK_LAYER..];
    let mut buffer = [&[0; ROOM][..], packet, &[0; ROOM]].concat();
    let params = OutputParams { now_s: 1, hop_limit: 64, ident: 1 };
    let sealed = outbound([other, own]).seal(&mut buffer, ROOM..ROOM + len, &params);
    [&frame[..LINK_LAYER], &buffer[sealed.expect("it is protected")]].concat()
}
