//! ICMP errors of the router about packets that it has opened, which leave by the tunnel that these came from.

use super::ipsec::{FAMILIES, Gateway, back4, back6, ends, gateway_of, net, number, policy};
use super::ipsec_rules::{Filtering, counter, of_protocol, ruleset};
use super::*;
use crate::ipsec::Family;
use crate::netfilter::Hook;
use crate::netfilter::nft::ruleset::{Expr, RuleVerdict};
use crate::wire::Ipv6Packet;

/// The addresses from which errors to the networks behind the tunnel are sent.
const SOURCES: [&str; 2] = ["198.18.2.1", "2001:db8:2::1"];

/// A gateway whose own packets to the networks behind the tunnel are to be protected, too.
fn gateway(outer: Family) -> Gateway {
    let (mut net, state) = net(outer);
    let [v4, v6] = SOURCES;
    net.policies.extend([
        policy(Direction::Out, &format!("{v4}/32"), "10.1.0.0/16", ends(outer)),
        policy(Direction::Out, &format!("{v6}/128"), "2001:db8:a::/48", ends(outer)),
    ]);
    number(&mut net.policies);
    gateway_of(net, state, outer)
}

fn expired4() -> V4 {
    V4 { ttl: 1, ..back4() }
}

fn expired6() -> V6 {
    V6 { hop_limit: 1, ..back6() }
}

fn drop() -> Vec<Expr> {
    vec![Expr::Verdict(RuleVerdict::Drop)]
}

#[test]
fn errors_to_a_network_behind_the_tunnel_leave_by_it() {
    for outer in FAMILIES {
        let mut gateway = gateway(outer);
        let frame = gateway.sealed(&expired4().packet());
        let sent = gateway.right(&frame);
        let [(RIGHT, reply)] = &sent[..] else { panic!("{} frames", sent.len()) };
        let error = gateway.open(&reply[14..]);
        let ipv4 = Ipv4Packet::new_checked(&error[..]).expect("an IPv4 packet");
        assert_eq!(ipv4.src_addr().to_string(), SOURCES[0]);
        assert_eq!(ipv4.dst_addr().to_string(), "10.1.0.5");
        assert!(checksum::verify(ipv4.header()) && checksum::verify(ipv4.payload()));
        assert_eq!(ipv4.payload()[..2], [11, 0]);
        assert_eq!(ipv4.payload()[8..], expired4().packet());

        let frame = gateway.sealed(&expired6().packet());
        let sent = gateway.right(&frame);
        let [(RIGHT, reply)] = &sent[..] else { panic!("{} frames", sent.len()) };
        let error = gateway.open(&reply[14..]);
        let ipv6 = Ipv6Packet::new_checked(&error[..]).expect("an IPv6 packet");
        assert_eq!(ipv6.src_addr().to_string(), SOURCES[1]);
        assert_eq!(ipv6.dst_addr().to_string(), "2001:db8:a::5");
        assert_eq!(error[40..42], [3, 0]);
        assert_eq!(error[48..], expired6().packet());

        assert_eq!(gateway.lab.punted(), Vec::<Vec<u8>>::new());
        assert_eq!(gateway.lab.drops(DropReason::TtlExceeded), 2);
        assert_eq!(gateway.state.sequence().next(), 3);
        assert_eq!(gateway.state.state().usage().packets, 2);
    }
}

#[test]
fn errors_that_no_policy_concerns_leave_in_clear() {
    let (net, state) = net(Family::Ipv4);
    let mut gateway = gateway_of(net, state, Family::Ipv4);
    let frame = gateway.sealed(&expired4().packet());
    let sent = gateway.right(&frame);
    let [(RIGHT, reply)] = &sent[..] else { panic!("{} frames", sent.len()) };
    assert_eq!(reply[14 + 9], Protocol::ICMP.0);
    assert_eq!(gateway.lab.punted(), Vec::<Vec<u8>>::new());
}

#[test]
fn errors_that_cannot_be_protected_are_the_kernels() {
    let mut gateway = gateway(Family::Ipv4);
    let _unused = gateway.state.sequence().close();
    let frame = gateway.sealed(&expired4().packet());
    assert_eq!(gateway.right(&frame), []);
    assert_eq!(gateway.lab.punted(), [frame]);
    assert_eq!(gateway.lab.punts(PuntReason::Xfrm), 1);
}

#[test]
fn rules_see_errors_with_and_without_protection() {
    for outer in FAMILIES {
        let of = |hook| {
            let protected = [of_protocol(Protocol::ESP), vec![counter()]].concat();
            let error = [of_protocol(Protocol::ICMP), vec![counter()]].concat();
            (hook, vec![protected, error])
        };
        let chains = [Hook::PreRouting, Hook::LocalOut, Hook::PostRouting].map(of);
        let mut filtering = Filtering::of(gateway(outer), ruleset(chains.into(), false));
        let frame = filtering.gateway.sealed(&expired4().packet());
        assert_eq!(filtering.gateway.right(&frame).len(), 1);
        // ESP, ICMP: received; at output; at postrouting.
        assert_eq!(filtering.counted(), [1, 0, 1, 1, 1, 1]);
        assert_eq!(filtering.punted(), Vec::<Vec<u8>>::new());
    }
}

#[test]
fn rules_drop_errors_with_or_without_protection() {
    for protocol in [Protocol::ICMP, Protocol::ESP] {
        for hook in [Hook::LocalOut, Hook::PostRouting] {
            let rules = vec![(hook, vec![[of_protocol(protocol), drop()].concat()])];
            let mut filtering = Filtering::of(gateway(Family::Ipv4), ruleset(rules, false));
            let frame = filtering.gateway.sealed(&expired4().packet());
            assert_eq!(filtering.gateway.right(&frame), []);
            let drops = |reason| filtering.gateway.lab.drops(reason);
            assert_eq!(drops(DropReason::NetfilterDrop), 1);
            assert_eq!(drops(DropReason::TtlExceeded), 1);
            assert_eq!(filtering.punted(), Vec::<Vec<u8>>::new());
        }
    }
}

#[test]
fn where_the_kernel_filters_the_protected_error_it_sends_it() {
    // A counter is passed, and only then what the kernel must decide.
    let left = || Expr::Other("quota".into());
    let rule = [of_protocol(Protocol::ESP), vec![counter(), left()]].concat();
    let rules = vec![(Hook::LocalOut, vec![rule])];
    let mut filtering = Filtering::of(gateway(Family::Ipv4), ruleset(rules, false));
    let frame = filtering.gateway.sealed(&expired4().packet());
    assert_eq!(filtering.gateway.right(&frame), []);
    assert_eq!(filtering.punted(), [frame]);
    assert_eq!(filtering.counted(), [0]);
    assert!(filtering.gateway.state.sequence().is_left(), "the kernel sends on the SA");
}
