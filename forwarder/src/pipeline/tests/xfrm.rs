//! IPsec policies: what they concern is left to the kernel, as received.

use super::*;
use crate::ipsec::{Action, Family, Prefix, Selector};
use crate::netfilter::{Hook, HookCtx, HookState, NfHook, Verdict, priority};
use crate::stats::PuntReason;

/// A policy that drops.
fn block(direction: Direction, selector: Selector, family: Family) -> (Direction, Policy) {
    (direction, Policy::new(family, selector, Action::Block))
}

fn host(address: &str) -> Prefix {
    let addr: IpAddr = address.parse().expect("an address");
    Prefix { addr, len: if addr.is_ipv4() { 32 } else { 128 } }
}

fn to(address: &str) -> Selector {
    Selector { dst: host(address), ..Selector::default() }
}

fn from(address: &str) -> Selector {
    Selector { src: host(address), ..Selector::default() }
}

/// A lab with one policy.
fn lab(direction: Direction, selector: Selector) -> Lab {
    let family = Family::of(match selector.dst.len {
        0 => selector.src.addr,
        _ => selector.dst.addr,
    });
    let mut net = Net::default();
    net.policies.push(block(direction, selector, family));
    net.lab()
}

fn is_left(lab: &mut Lab, frame: Vec<u8>) {
    lab.receive(LEFT, std::slice::from_ref(&frame));
    assert_eq!(lab.sent(), []);
    assert_eq!(lab.punted(), [frame], "as received");
    assert_eq!(lab.punts(PuntReason::Xfrm), 1);
    lab.assert_conserved();
}

#[test]
fn packets_of_a_policy_are_left_and_others_forwarded() {
    for direction in [Direction::Fwd, Direction::Out] {
        let mut four = lab(direction, to("198.18.2.2"));
        is_left(&mut four, V4::to("198.18.2.2").frame());
        let mut other = lab(direction, to("198.18.2.9"));
        assert_eq!(other.one(V4::to("198.18.2.2").frame()).len(), 1);
        assert_eq!(other.one(V6::to("2001:db8:2::2").frame()).len(), 1);

        let mut six = lab(direction, to("2001:db8:2::2"));
        is_left(&mut six, V6::to("2001:db8:2::2").frame());
        assert_eq!(six.one(V4::to("198.18.2.2").frame()).len(), 1);
    }
    let mut local = lab(Direction::In, to("198.18.2.2"));
    assert_eq!(local.one(V4::to("198.18.2.2").frame()).len(), 1);
}

#[test]
fn ports_and_the_output_interface_count() {
    let sport = |packet: V4| u16::from_be_bytes(packet.packet()[20..22].try_into().expect("2"));
    let port = sport(V4::to("198.18.2.2"));
    for (of, ifindex, is_concerned) in [(port, 3, true), (port ^ 1, 3, false), (port, 2, false)] {
        let selector = Selector { sport: (of, 0xffff), ifindex, ..to("198.18.2.2") };
        let mut lab = lab(Direction::Out, selector);
        assert_eq!(lab.one(V4::to("198.18.2.2").frame()).len(), usize::from(!is_concerned));
    }
}

#[test]
fn what_the_kernel_may_read_otherwise_is_left() {
    let udp = Selector { proto: 17, dport: (9, 0xffff), ..to("203.0.113.9") };
    for packet in [
        V4 { more_frags: true, payload: vec![0; 64], ..V4::to("198.18.2.2") },
        V4 { offset: 8, ..V4::to("198.18.2.2") },
        V4 { protocol: Protocol::GRE, ..V4::to("198.18.2.2") },
    ] {
        is_left(&mut lab(Direction::Out, udp), packet.frame());
        let mut of_addresses = lab(Direction::Out, to("203.0.113.9"));
        assert_eq!(of_addresses.one(packet.frame()).len(), 1);
    }
    // An error may quote a packet of the policy.
    let error = V4 { protocol: Protocol::ICMP, payload: vec![3; 40], ..V4::to("198.18.2.2") };
    is_left(&mut lab(Direction::Fwd, to("203.0.113.9")), error.frame());
    assert_eq!(lab(Direction::Out, to("203.0.113.9")).one(error.frame()).len(), 1);
}

/// Ports behind the octets that are kept of a packet.
#[test]
fn headers_that_are_not_kept_are_the_kernels() {
    for units in [1u8, 10] {
        // Destination Options of `8 + 8 * units` octets, padded by PadN.
        let mut payload = vec![0; 8 + 8 * usize::from(units)];
        (payload[0], payload[1], payload[2], payload[3]) = (17, units, 1, 8 * units + 4);
        payload.extend(udp(b"data"));
        let packet = V6 { next_header: Protocol(60), payload, ..V6::to("2001:db8:2::2") };
        let mut lab = lab(Direction::Out, to("2001:db8:9::9"));
        match units {
            1 => assert_eq!(lab.one(packet.frame()).len(), 1),
            _ => is_left(&mut lab, packet.frame()),
        }
    }
}

#[test]
fn a_packet_whose_error_is_concerned_is_left() {
    let expired = V4 { ttl: 1, ..V4::to("198.18.2.2") }.frame();
    let mut lab = lab(Direction::Out, to("198.18.1.2"));
    is_left(&mut lab, expired.clone());
    assert_eq!(lab.mib(Mib::IcmpOutTimeExcds), 0);
    let mut net = Net::default();
    net.policies.push(block(Direction::Out, to("198.18.9.9"), Family::Ipv4));
    let mut other = net.lab();
    other.receive(LEFT, &[expired]);
    assert_eq!(other.sent().len(), 1);
}

#[test]
fn a_packet_whose_error_may_be_concerned_does_not_wait() {
    let mut lab = lab(Direction::Out, to("198.18.1.2"));
    let frame = V4::to("198.18.2.77").frame();
    lab.receive(LEFT, std::slice::from_ref(&frame));
    assert_eq!(lab.punted(), [frame]);
    assert_eq!(lab.punts(PuntReason::NeighUnresolved), 1);
}

/// Translates an address, as NAT does.
struct Translate(usize, [u8; 4]);

impl NfHook for Translate {
    type State = ();

    fn state(&self, _worker: usize) {}

    fn hook(
        &self,
        skb: &mut SkBuff,
        _at: &HookState<'_>,
        _ctx: &mut HookCtx<'_>,
        (): &mut (),
    ) -> Verdict {
        let packet = skb.network_header_mut();
        packet[self.0..self.0 + 4].copy_from_slice(&self.1);
        Ipv4Packet::new_unchecked(packet).fill_checksum();
        Verdict::Accept
    }
}

const SOURCE: usize = 12;
const DESTINATION: usize = 16;

#[test]
fn the_addresses_before_and_after_nat_count() {
    let translated = |hook, at, to: &str, policy| {
        let mut net = Net::default();
        let octets = addr4(to).octets();
        net.hooks.push(NfHookOps::new(hook, priority::FILTER, Translate(at, octets)));
        net.policies.push(policy);
        net.lab()
    };
    let (fwd, out, four) = (Direction::Fwd, Direction::Out, Family::Ipv4);
    let frame = || V4::to("203.0.113.200").frame();
    // Destination NAT: fwd policies see the packet as received or as it is routed, out policies as it is routed.
    let dnat = |direction, selector| {
        let policy = block(direction, selector, four);
        translated(Hook::PreRouting, DESTINATION, "198.18.2.2", policy)
    };
    is_left(&mut dnat(fwd, to("203.0.113.200")), frame());
    is_left(&mut dnat(out, to("198.18.2.2")), frame());
    // The function may be a rule that writes, which is no NAT to the kernel.
    is_left(&mut dnat(fwd, to("198.18.2.2")), frame());
    assert_eq!(dnat(out, to("203.0.113.200")).one(frame()).len(), 1);
    // Source NAT: both sources count for out policies.
    let snat = |direction, selector| {
        let policy = block(direction, selector, four);
        translated(Hook::PostRouting, SOURCE, "198.18.2.1", policy)
    };
    let frame = || V4::to("198.18.2.2").frame();
    is_left(&mut snat(out, from("198.18.2.1")), frame());
    is_left(&mut snat(out, from("198.18.1.2")), frame());
    assert_eq!(snat(fwd, from("198.18.2.1")).one(frame()).len(), 1);
}
