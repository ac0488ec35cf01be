//! Rules that write into packets, and what is read of them afterwards.

use super::ingress::{rule, table, with};
use super::*;
use crate::netfilter::nft::ruleset::*;
use crate::netfilter::nft::xt::{HopLimitMode, Mangle};

const REG: Reg = Reg(0);
const PRE_ROUTING: u32 = 0;
const FORWARD: u32 = 2;
const POST_ROUTING: u32 = 4;

fn destination(address: [u8; 4]) -> Rule {
    let value = address.to_vec();
    let set = SetPayload {
        sreg: REG,
        base: PayloadBase::Network,
        offset: 16,
        len: 4,
        checksum: Checksum::Inet(10),
        pseudo_header: true,
    };
    rule(vec![Expr::Immediate { dreg: REG, value }, Expr::SetPayload(set)])
}

fn hop_limit(to: u8) -> Rule {
    rule(vec![Expr::Mangle(Mangle::HopLimit(HopLimitMode::Set, to))])
}

fn named(name: &str, mut table: Table) -> Table {
    table.name = name.into();
    table
}

#[test]
fn a_packet_is_routed_by_the_destination_that_prerouting_wrote() {
    let rules = vec![destination([198, 18, 2, 2])];
    let (mut lab, _registry) =
        with(Net::default(), vec![table(Family::Ip, PRE_ROUTING, &[], rules)]);
    let sent = lab.one(V4::to("203.0.113.1").frame());
    assert_eq!(sent.len(), 1);
    let (port, frame) = &sent[0];
    assert_eq!((*port, &frame[30..34]), (RIGHT, &[198, 18, 2, 2][..]));
    let mut expected = V4::to("198.18.2.2").frame();
    expected[14 + 8] -= 1;
    assert_eq!(frame[14 + 20..], expected[14 + 20..], "with its checksum");
    assert!(checksum::verify(&frame[14..34]));
}

#[test]
fn a_neighbour_is_that_of_the_destination_that_forward_wrote() {
    let rules = vec![destination([198, 18, 2, 2])];
    let (mut lab, _registry) = with(Net::default(), vec![table(Family::Ip, FORWARD, &[], rules)]);
    let sent = lab.one(V4::to("198.18.2.99").frame());
    assert_eq!((sent[0].0, &sent[0].1[..6]), (RIGHT, &RIGHT_HOST_MAC[..]));
}

#[test]
fn a_hop_limit_is_checked_before_forward_and_not_after_it() {
    for (hook, ttl) in [(PRE_ROUTING, None), (FORWARD, Some(1)), (POST_ROUTING, Some(1))] {
        let tables = vec![table(Family::Inet, hook, &[], vec![hop_limit(1)])];
        let (mut lab, _registry) = with(Net::default(), tables);
        for (frame, at) in [(V4::default().frame(), 14 + 8), (V6::default().frame(), 14 + 7)] {
            let sent = lab.one(frame);
            match ttl {
                Some(ttl) => assert_eq!((sent[0].0, sent[0].1[at]), (RIGHT, ttl)),
                None => assert_eq!(sent[0].0, LEFT, "time exceeded"),
            }
        }
    }
}

#[test]
fn a_packet_that_a_later_rule_leaves_to_the_kernel_is_as_received() {
    let limit = || rule(vec![Expr::Other("limit".into())]);
    for hook in [PRE_ROUTING, FORWARD, POST_ROUTING] {
        let tables = vec![
            named("a", table(Family::Inet, PRE_ROUTING, &[], vec![hop_limit(9)])),
            named("b", table(Family::Ip, FORWARD, &[], vec![destination([198, 18, 2, 9])])),
            named("c", table(Family::Inet, hook, &[], vec![limit()])),
        ];
        let mut tables = tables;
        if let Some(base) = &mut tables[2].chains[0].base {
            base.priority = 5;
        }
        let (mut lab, _registry) = with(Net::default(), tables);
        for frame in [V4::default().frame(), V6::default().frame()] {
            assert_eq!(lab.one(frame.clone()), []);
            assert_eq!(lab.punted(), [frame]);
        }
        assert_eq!(lab.punts(PuntReason::Netfilter), 2);
    }
}
