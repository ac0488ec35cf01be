//! IPsec tunnels that workers apply: octets in and out against an SA of the other end.

use super::*;
use crate::ipsec::{
    Action, Aead, Decapsulated, EcnRules, EspKeys, Family, InboundState, IvSeed, Keys, Mode, Order,
    OutboundState, OutputParams, Prefix, Sad, Secret, Selector, StateConfig, StateFlags, Template,
    UdpPorts, locate,
};
use crate::netfilter::{Hook, HookCtx, HookState, NfHook, Verdict, priority};

pub(super) const REQID: u32 = 7;

/// Ends of the tunnel: the router's and the other one's.
pub(super) fn ends(outer: Family) -> [IpAddr; 2] {
    let ends = match outer {
        Family::Ipv4 => ["198.18.2.1", "198.18.2.2"],
        Family::Ipv6 => ["2001:db8:2::1", "2001:db8:2::2"],
    };
    ends.map(|end| end.parse().expect("an address"))
}

pub(super) fn config(ends: [IpAddr; 2]) -> StateConfig {
    StateConfig {
        reqid: REQID,
        flags: StateFlags::AF_UNSPEC,
        ecn: EcnRules::Xfrm,
        selector_family: None,
        replay_window: 64,
        ..StateConfig::new(Mode::Tunnel, ends, 0x1234_5678)
    }
}

pub(super) fn keys() -> Keys {
    Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new((0..20).collect())))
}

pub(super) fn outbound(config: StateConfig) -> OutboundState {
    let state = OutboundState::new(config, &keys(), IvSeed::random([9; 16]), 1).expect("an SA");
    state.sequence().extend(1..1000).expect("numbers");
    state
}

pub(super) fn policy(
    direction: Direction,
    src: &str,
    dst: &str,
    ends: [IpAddr; 2],
) -> (Direction, Policy) {
    let prefix = |text: &str| {
        let (addr, len) = text.split_once('/').expect("a prefix");
        Prefix { addr: addr.parse().expect("an address"), len: len.parse().expect("a length") }
    };
    let selector = Selector { src: prefix(src), dst: prefix(dst), ..Selector::default() };
    let templates = vec![Template::tunnel(Protocol::ESP, ends, REQID)];
    let family = Family::of(selector.dst.addr);
    let policy =
        Policy { priority: 100, templates, ..Policy::new(family, selector, Action::Allow) };
    (direction, policy)
}

/// Of packets from one network behind the right to another one there.
pub(super) fn between_tunnels([own, other]: [IpAddr; 2]) -> [(Direction, Policy); 2] {
    [
        policy(Direction::Fwd, "10.1.0.0/16", "10.2.0.0/16", [other, own]),
        policy(Direction::Out, "10.1.0.0/16", "10.2.0.0/16", [own, other]),
    ]
}

/// Gives each policy an index of its own.
pub(super) fn number(policies: &mut [(Direction, Policy)]) {
    for (n, (_, policy)) in policies.iter_mut().enumerate() {
        policy.index = 8 * (n as u32 + 1);
    }
}

/// A gateway whose networks on the left and behind the right are joined by a tunnel.
pub(super) struct Gateway {
    pub lab: Lab,
    /// The other end's SAs.
    pub opener: InboundState,
    pub sealer: OutboundState,
    /// The router's SA for sending.
    pub state: Arc<OutboundState>,
}

pub(super) fn net(outer: Family) -> (Net, Arc<OutboundState>) {
    let [own, other] = ends(outer);
    let state = Arc::new(outbound(config([own, other])));
    let inbound = Arc::new(InboundState::new(config([other, own]), &keys()).expect("an SA"));
    let policies = vec![
        policy(Direction::Out, "198.18.1.0/24", "10.1.0.0/16", [own, other]),
        policy(Direction::Fwd, "10.1.0.0/16", "198.18.1.0/24", [other, own]),
        policy(Direction::Out, "2001:db8:1::/64", "2001:db8:a::/48", [own, other]),
        policy(Direction::Fwd, "2001:db8:a::/48", "2001:db8:1::/64", [other, own]),
    ];
    let mut net = Net { policies, ..Net::default() };
    number(&mut net.policies);
    net.states = Arc::new(XfrmStates {
        inbound: Sad::new([inbound], Order::OldestFirst),
        outbound: vec![Arc::clone(&state)],
        kernels: Vec::new(),
    });
    (net, state)
}

pub(super) fn gateway_of(net: Net, state: Arc<OutboundState>, outer: Family) -> Gateway {
    let [own, other] = ends(outer);
    Gateway {
        lab: net.lab(),
        opener: InboundState::new(config([own, other]), &keys()).expect("an SA"),
        sealer: outbound(config([other, own])),
        state,
    }
}

pub(super) fn gateway(outer: Family) -> Gateway {
    let (net, state) = net(outer);
    gateway_of(net, state, outer)
}

impl Gateway {
    /// The packet inside one that the router sent.
    pub fn open(&self, outer: &[u8]) -> Vec<u8> {
        let mut packet = outer.to_vec();
        let located = locate(&packet, &[4500]).expect("a header").expect("an IPsec packet");
        match self.opener.open(&mut packet, &located, 1) {
            Ok(Decapsulated::Tunnel(inner)) => packet[inner].to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// What the other end protects of both families is opened and forwarded.
    pub fn assert_opens(&mut self) {
        let frame = self.sealed(&back4().packet());
        let sent = self.right(&frame);
        assert_eq!(answered(&sent, 0x0800), after_hop(back4().packet()));
        let frame = self.sealed(&back6().packet());
        let sent = self.right(&frame);
        assert_eq!(answered(&sent, 0x86dd), after_hop6(back6().packet()));
        assert_eq!(self.lab.punted(), Vec::<Vec<u8>>::new());
    }

    /// A frame of the other end, with a packet inside.
    pub fn sealed(&self, inner: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; 8192];
        buffer[256..256 + inner.len()].copy_from_slice(inner);
        let params = OutputParams { now_s: 1, hop_limit: 64, ident: 1 };
        let sealed =
            self.sealer.seal(&mut buffer, 256..256 + inner.len(), &params).expect("sealed");
        let packet = &buffer[sealed];
        let mut frame = [RIGHT_MAC, RIGHT_HOST_MAC].concat();
        frame.extend(if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] });
        frame.extend(packet);
        frame
    }

    /// Receives a frame by `right`.
    pub fn right(&mut self, frame: &[u8]) -> Vec<(u16, Vec<u8>)> {
        self.lab.receive(RIGHT, &[frame.to_vec()]);
        self.lab.sent()
    }
}

pub(super) fn v4() -> V4 {
    V4::to("10.1.0.5")
}

pub(super) fn v6() -> V6 {
    V6::to("2001:db8:a::5")
}

pub(super) fn back4() -> V4 {
    V4 { src: "10.1.0.5", dst: "198.18.1.2", ..V4::default() }
}

pub(super) fn back6() -> V6 {
    V6 { src: "2001:db8:a::5", dst: "2001:db8:1::2", ..V6::default() }
}

pub(super) fn ethertype(outer: Family) -> u16 {
    if outer == Family::Ipv4 { 0x0800 } else { 0x86dd }
}

pub(super) fn after_hop6(mut packet: Vec<u8>) -> Vec<u8> {
    packet[7] -= 1;
    packet
}

pub(super) const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

#[test]
fn packets_of_a_policy_are_protected() {
    for outer in FAMILIES {
        let mut gateway = gateway(outer);
        let sent = gateway.lab.one(v4().frame());
        let packet = forwarded(&sent, ethertype(outer)).to_vec();
        match outer {
            Family::Ipv4 => {
                let ipv4 = Ipv4Packet::new_checked(&packet[..]).expect("an IPv4 packet");
                assert_eq!((ipv4.ttl(), ipv4.protocol()), (64, Protocol::ESP));
                assert!(checksum::verify(ipv4.header()));
            }
            Family::Ipv6 => assert_eq!((packet[6], packet[7]), (Protocol::ESP.0, 64)),
        }
        assert_eq!(gateway.open(&packet), after_hop(v4().packet()));
        let sent = gateway.lab.one(v6().frame());
        let packet = forwarded(&sent, ethertype(outer)).to_vec();
        assert_eq!(gateway.open(&packet), after_hop6(v6().packet()));
        // Others are not.
        let sent = gateway.lab.one(V4::default().frame());
        assert_eq!(forwarded(&sent, 0x0800), after_hop(V4::default().packet()));
        assert_eq!(gateway.state.sequence().next(), 3);
        assert_eq!(gateway.lab.punted(), Vec::<Vec<u8>>::new());
    }
}

#[test]
fn a_burst_of_packets_keeps_its_order() {
    let mut gateway = gateway(Family::Ipv4);
    let plain = V4::default();
    let long = V4 { payload: udp(&[7; 1200]), ..v4() };
    let frames = [v4().frame(), plain.frame(), long.frame(), v6().frame(), plain.frame()];
    gateway.lab.receive(LEFT, &frames);
    let sent = gateway.lab.sent();
    let packet = |n: usize| packet_to(&sent[n].1, RIGHT_HOST_MAC, RIGHT_MAC, 0x0800).to_vec();
    assert_eq!(sent.len(), 5);
    assert_eq!(gateway.open(&packet(0)), after_hop(v4().packet()));
    assert_eq!(packet(1), after_hop(plain.packet()));
    assert_eq!(gateway.open(&packet(2)), after_hop(long.packet()));
    assert_eq!(gateway.open(&packet(3)), after_hop6(v6().packet()));
    assert_eq!(packet(4), after_hop(plain.packet()));
}

#[test]
fn without_sequence_numbers_packets_are_the_kernels() {
    let mut gateway = gateway(Family::Ipv4);
    let _unused = gateway.state.sequence().close();
    assert_eq!(gateway.lab.one(v4().frame()), []);
    assert_eq!(gateway.lab.punted(), [v4().frame()]);
    assert_eq!(gateway.lab.punts(PuntReason::Xfrm), 1);
    assert!(gateway.state.sequence().take_want());
}

#[test]
fn packets_that_arrive_protected_are_forwarded() {
    for outer in FAMILIES {
        gateway(outer).assert_opens();
    }
}

/// The kernel opens it and tells key management (`km_new_mapping`).
#[test]
fn esp_in_udp_from_another_address_or_port_is_the_kernels() {
    let [own, other] = ends(Family::Ipv4);
    let moved: IpAddr = "198.18.2.9".parse().expect("an address");
    let in_udp =
        |ends, src| StateConfig { encap: Some(UdpPorts { src, dst: 4500 }), ..config(ends) };
    for (from, port, is_mapped) in [(other, 4500, true), (other, 4501, false), (moved, 4500, false)]
    {
        let (mut net, state) = net(Family::Ipv4);
        let inbound = InboundState::new(in_udp([other, own], 4500), &keys()).expect("an SA");
        net.states = Arc::new(XfrmStates {
            inbound: Sad::new([Arc::new(inbound)], Order::OldestFirst),
            outbound: vec![Arc::clone(&state)],
            kernels: Vec::new(),
        });
        let mut gateway = gateway_of(net, state, Family::Ipv4);
        gateway.sealer = outbound(in_udp([from, own], port));
        let frame = gateway.sealed(&back4().packet());
        assert_eq!(gateway.right(&frame).len(), usize::from(is_mapped));
        let left = if is_mapped { vec![] } else { vec![frame] };
        assert_eq!(gateway.lab.punted(), left, "as received");
    }
}

#[test]
fn what_the_sa_refuses_is_dropped_by_name() {
    let mut gateway = gateway(Family::Ipv4);
    let frame = gateway.sealed(&back4().packet());
    assert_eq!(gateway.right(&frame).len(), 1);
    assert_eq!(gateway.right(&frame), [], "a replay");
    assert_eq!(gateway.lab.drops(DropReason::XfrmInStateSeqError), 1);
    let mut frame = gateway.sealed(&back4().packet());
    *frame.last_mut().expect("an octet") ^= 1;
    assert_eq!(gateway.right(&frame), [], "a wrong ICV");
    assert_eq!(gateway.lab.drops(DropReason::XfrmInStateProtoError), 1);
    assert_eq!(gateway.lab.punted(), Vec::<Vec<u8>>::new());
}

#[test]
fn what_is_not_for_an_sa_here_is_left_as_received() {
    let unknown_spi = |frame: &mut Vec<u8>| frame[34] ^= 1;
    let bad_checksum = |frame: &mut Vec<u8>| frame[24] ^= 1;
    let cut_off = |frame: &mut Vec<u8>| frame.truncate(40);
    let kinds: [fn(&mut Vec<u8>); 3] = [unknown_spi, bad_checksum, cut_off];
    for (n, change) in kinds.iter().enumerate() {
        let mut gateway = gateway(Family::Ipv4);
        let mut frame = gateway.sealed(&back4().packet());
        change(&mut frame);
        assert_eq!(gateway.right(&frame), []);
        let punted = gateway.lab.punted();
        match n {
            0 => assert_eq!(punted, [frame]),
            // As any packet with such a header.
            _ => assert_eq!(punted, Vec::<Vec<u8>>::new()),
        }
    }
}

#[test]
fn the_kernel_gets_protected_packets_as_received() {
    let local = V4 { dst: "198.18.1.1", ..back4() };
    let not_of_the_policy = V4 { src: "10.2.0.5", ..back4() };
    let neighbour_unknown = V4 { dst: "198.18.1.77", ..back4() };
    for (packet, reason) in [
        (local, PuntReason::Local),
        (not_of_the_policy, PuntReason::Xfrm),
        (neighbour_unknown, PuntReason::NeighUnresolved),
    ] {
        let mut gateway = gateway(Family::Ipv4);
        let frame = gateway.sealed(&packet.packet());
        assert_eq!(gateway.right(&frame), []);
        assert_eq!(gateway.lab.punts(reason), 1, "{reason}");
        assert_eq!(gateway.lab.punted(), [&frame[..]]);
        let states = gateway.lab.tables.xfrm.states();
        let usage = states.inbound.states().next().expect("an SA").state().usage();
        assert_eq!((usage.packets, usage.bytes), (0, 0), "the kernel counts it");
        // The kernel has it: nobody accepts it again.
        assert_eq!(gateway.right(&frame), []);
        assert_eq!(gateway.lab.drops(DropReason::XfrmInStateSeqError), 1);
    }
}

#[test]
fn packets_in_clear_that_should_be_protected_are_the_kernels() {
    let mut gateway = gateway(Family::Ipv4);
    let mut frame = [RIGHT_MAC, RIGHT_HOST_MAC].concat();
    frame.extend([8, 0]);
    frame.extend(back4().packet());
    assert_eq!(gateway.right(&frame), []);
    assert_eq!(gateway.lab.punted(), [frame]);
}

#[test]
fn packets_longer_than_the_sa_leaves_room_for() {
    for outer in FAMILIES {
        let mut gateway = gateway(outer);
        let room = gateway.state.state().mtu(1500) as usize;
        let of = |len: usize, dont_frag: bool| {
            let payload = udp(&vec![3; len - 28]);
            V4 { dont_frag, payload, ..v4() }
        };
        let fits = of(room, true);
        let sent = gateway.lab.one(fits.frame());
        let packet = forwarded(&sent, ethertype(outer)).to_vec();
        assert_eq!(gateway.open(&packet), after_hop(fits.packet()));
        // The kernel sends the error.
        assert_eq!(gateway.lab.one(of(room + 1, true).frame()), []);
        assert_eq!(gateway.lab.punts(PuntReason::Xfrm), 1);
        assert_eq!(gateway.lab.punted(), [of(room + 1, true).frame()]);
        let sent = gateway.lab.one(of(1500, false).frame());
        match outer {
            Family::Ipv4 => {
                let [first, second] = &sent[..] else { panic!("two fragments: {}", sent.len()) };
                let mut packet = first.1[14..].to_vec();
                packet.extend(&second.1[34..]);
                let mut whole = Ipv4Packet::new_unchecked(&mut packet[..]);
                let len = whole.as_octets().len();
                whole.set_frag(false, false, 0);
                whole.set_total_len(len as u16);
                whole.fill_checksum();
                assert_eq!(gateway.open(&packet), after_hop(of(1500, false).packet()));
            }
            Family::Ipv6 => assert_eq!(gateway.lab.punted(), [of(1500, false).frame()]),
        }
    }
}

#[test]
fn between_two_tunnels_packets_are_opened_and_protected_again() {
    let (mut net, state) = net(Family::Ipv4);
    net.policies.extend(between_tunnels(ends(Family::Ipv4)));
    number(&mut net.policies);
    let mut gateway = gateway_of(net, state, Family::Ipv4);
    let packet = V4 { src: "10.1.0.5", dst: "10.2.0.5", ..V4::default() };
    let frame = gateway.sealed(&packet.packet());
    let sent = gateway.right(&frame);
    let outer = forwarded(&sent, 0x0800).to_vec();
    assert_eq!(gateway.open(&outer), after_hop(packet.packet()));
}

#[test]
fn outer_packets_wait_for_the_neighbour() {
    let (mut net, state) = net(Family::Ipv4);
    net.neigh.retain(|(_, address, _)| *address != "198.18.2.2");
    let mut gateway = gateway_of(net, state, Family::Ipv4);
    assert_eq!(gateway.lab.one(v4().frame()), []);
    assert_eq!(gateway.lab.state.held_packets(), 1);
    gateway.lab.net.neigh.push((3, "198.18.2.2", Some(RIGHT_HOST_MAC)));
    gateway.lab.publish();
    gateway.lab.poll();
    let sent = gateway.lab.sent();
    let packet = forwarded(&sent, 0x0800).to_vec();
    assert_eq!(gateway.open(&packet), after_hop(v4().packet()));
}

#[derive(Debug)]
pub(super) struct Accept;

impl NfHook for Accept {
    type State = ();

    fn state(&self, _: usize) {}

    fn hook(&self, _: &mut SkBuff, _: &HookState<'_>, _: &mut HookCtx<'_>, (): &mut ()) -> Verdict {
        Verdict::Accept
    }
}

#[test]
fn where_hook_functions_run_the_kernel_does_it() {
    let (mut net, state) = net(Family::Ipv4);
    net.hooks.push(NfHookOps::new(Hook::Forward, priority::FILTER, Accept));
    let mut gateway = gateway_of(net, state, Family::Ipv4);
    assert_eq!(gateway.lab.one(v4().frame()), []);
    assert_eq!(gateway.lab.punted(), [v4().frame()]);
    let frame = gateway.sealed(&back4().packet());
    assert_eq!(gateway.right(&frame), []);
    assert_eq!(gateway.lab.punted(), [frame]);
}

#[test]
fn sas_that_the_kernel_may_prefer_leave_the_packets_to_it() {
    let (mut net, state) = net(Family::Ipv4);
    let [_, dst] = ends(Family::Ipv4);
    let old = Arc::clone(&net.states);
    net.states = Arc::new(XfrmStates {
        inbound: Sad::new(old.inbound.states().cloned(), Order::NewestFirst),
        outbound: old.outbound.clone(),
        kernels: vec![crate::tables::Wanted { dst, proto: Protocol::ESP, reqid: REQID, if_id: 0 }],
    });
    let mut gateway = gateway_of(net, state, Family::Ipv4);
    assert_eq!(gateway.lab.one(v4().frame()), []);
    assert_eq!(gateway.lab.punted(), [v4().frame()]);
}
