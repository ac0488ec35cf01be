//! Policies: which one is found, and what passes.

use proptest::prelude::*;

use super::*;
use crate::wire::Protocol;

fn prefix(addr: &str, len: u8) -> Prefix {
    Prefix { addr: addr.parse().unwrap(), len }
}

fn policy(index: u32, priority: u32, selector: Selector) -> Policy {
    Policy { index, priority, ..Policy::new(Family::Ipv4, selector, Action::Allow) }
}

fn flow(src: u32, dst: u32, dport: u16) -> Flow {
    Flow {
        src: std::net::Ipv4Addr::from_bits(src).into(),
        dst: std::net::Ipv4Addr::from_bits(dst).into(),
        proto: Protocol::UDP,
        sport: 7,
        dport,
        oif: 0,
        mark: 0,
    }
}

/// Prefixes that often overlap.
fn prefixes() -> impl Strategy<Value = Prefix> {
    let len = prop_oneof![Just(0u8), Just(8), Just(24), Just(30), Just(31), Just(32)];
    (0..8u32, len).prop_map(|(low, len)| Prefix {
        addr: std::net::Ipv4Addr::from_bits(0x0a00_0000 | low).into(),
        len,
    })
}

proptest! {
    #[test]
    fn the_policy_found_is_the_first_by_priority_and_age(
        list in proptest::collection::vec((prefixes(), prefixes(), 0..3u32, 0..3u16), 0..60),
        flows in proptest::collection::vec((0..8u32, 0..8u32, 1..3u16), 1..40),
    ) {
        let policies: Vec<Policy> = list
            .iter()
            .zip(0..)
            .map(|(&(dst, src, priority, port), index)| {
                let dport = (port, if port == 0 { 0 } else { 0xffff });
                policy(index, priority, Selector { dst, src, dport, ..Selector::default() })
            })
            .collect();
        let outbound = policies.iter().map(|it| (Direction::Out, it.clone()));
        let spd = Spd::new(outbound, Order::OldestFirst, Default::default());
        for (src, dst, dport) in flows {
            let flow = flow(0x0a00_0000 | src, 0x0a00_0000 | dst, dport);
            let matching = policies.iter().filter(|policy| policy.selector.matches(&flow));
            let expected = matching.min_by_key(|policy| (policy.priority, policy.index));
            let found = spd.lookup(Direction::Out, &flow, 0);
            prop_assert_eq!(found.map(|it| it.index), expected.map(|it| it.index));
            prop_assert!(spd.lookup(Direction::In, &flow, 0).is_none());
        }
    }
}

#[test]
fn mark_and_interface_of_a_policy_count() {
    let mark = Mark { value: 2, mask: 3 };
    let only = Policy { mark, if_id: 9, ..policy(1, 0, Selector::default()) };
    let spd = Spd::new([(Direction::Fwd, only)], Order::OldestFirst, Default::default());
    let with = |mark| Flow { mark, ..flow(1, 2, 3) };
    assert!(spd.lookup(Direction::Fwd, &with(6), 9).is_some());
    assert!(spd.lookup(Direction::Fwd, &with(5), 9).is_none());
    assert!(spd.lookup(Direction::Fwd, &with(6), 0).is_none());
    assert!(!spd.is_empty(Direction::Fwd, Family::Ipv4));
    assert!(spd.is_empty(Direction::Fwd, Family::Ipv6));
}

/// ICMP destination unreachable.
fn icmp_error(src: u32, dst: u32) -> Flow {
    Flow { proto: Protocol::ICMP, sport: 3, ..flow(src, dst, 1) }
}

fn template(mode: Mode, proto: Protocol) -> Template {
    let (src, dst) = addresses(Family::Ipv4);
    Template { src, dst, spi: 0, proto, mode, reqid: 0, is_optional: false, aalgos: None }
}

fn spd(action: Action, templates: Vec<Template>) -> Spd {
    let policy = Policy { action, templates, ..policy(1, 0, Selector::default()) };
    Spd::new([(Direction::Fwd, policy)], Order::OldestFirst, Default::default())
}

fn check(spd: &Spd, secpath: &[&State]) -> Result<usize, Error> {
    let flow = flow(0x0a00_0001, 0x0a00_0002, 5);
    let received = Received { flow, secpath, verified: 0, if_id: 0, quoted: None };
    spd.policy_check(Direction::Fwd, &received)
}

/// A tunnel of ESP, and AH in transport mode.
fn states() -> (InboundState, InboundState) {
    let keys = Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new(octets(0x10, 20))));
    let ah = Keys::Ah(Auth::HmacSha256_128, Secret::new(octets(0x10, 32)));
    let state = |mode, keys| {
        InboundState::new(config(mode, Family::Ipv4, StateFlags::default()), keys).unwrap()
    };
    (state(Mode::Tunnel, &keys), state(Mode::Transport, &ah))
}

#[test]
fn what_should_have_been_protected_does_not_pass_in_clear() {
    let (tunnel, ah) = states();
    let (tunnel, ah) = (tunnel.state(), ah.state());
    let esp = template(Mode::Tunnel, Protocol::ESP);
    let required = spd(Action::Allow, vec![esp]);
    assert_eq!(check(&required, &[]), Err(Error::XfrmInTmplMismatch));
    assert_eq!(check(&required, &[tunnel]), Ok(1));
    assert_eq!(check(&required, &[ah]), Err(Error::XfrmInTmplMismatch));
    assert_eq!(check(&required, &[tunnel, tunnel]), Err(Error::XfrmInTmplMismatch), "one too many");
    assert_eq!(check(&required, &[ah, tunnel]), Ok(2), "AH outside is more than required");

    // Templates are innermost first: ESP in AH.
    let both = spd(Action::Allow, vec![esp, template(Mode::Transport, Protocol::AH)]);
    assert_eq!(check(&both, &[ah, tunnel]), Ok(2));
    assert_eq!(check(&both, &[tunnel]), Err(Error::XfrmInTmplMismatch));
    assert_eq!(check(&both, &[tunnel, ah]), Err(Error::XfrmInTmplMismatch), "the other order");

    let optional = spd(Action::Allow, vec![Template { is_optional: true, ..esp }]);
    assert_eq!(check(&optional, &[]), Ok(0), "level use");
    assert_eq!(check(&optional, &[tunnel]), Ok(1));

    for wrong in [
        Template { reqid: 3, ..esp },
        Template { spi: 3, ..esp },
        Template { src: "192.0.2.9".parse().unwrap(), ..esp },
        Template { mode: Mode::Transport, ..esp },
        Template { proto: Protocol::AH, ..esp },
        Template { aalgos: Some(1 << 5), ..esp },
    ] {
        let spd = spd(Action::Allow, vec![wrong]);
        assert_eq!(check(&spd, &[tunnel]), Err(Error::XfrmInTmplMismatch), "{wrong:?}");
    }
    let any = "0.0.0.0".parse().unwrap();
    for right in [
        Template { src: any, ..esp },
        Template { spi: SPI, ..esp },
        Template { aalgos: Some(1), ..esp },
    ] {
        assert_eq!(check(&spd(Action::Allow, vec![right]), &[tunnel]), Ok(1), "{right:?}");
    }
}

#[test]
fn tunnels_need_a_policy_and_blocks_block() {
    let (tunnel, ah) = states();
    let (tunnel, ah) = (tunnel.state(), ah.state());
    let empty = Spd::default();
    assert_eq!(check(&empty, &[]), Ok(0));
    assert_eq!(check(&empty, &[tunnel]), Err(Error::XfrmInNoPols));
    assert_eq!(check(&empty, &[ah]), Ok(0), "transport mode needs none");
    let blocking = Spd::new([], Order::OldestFirst, [Action::Allow, Action::Allow, Action::Block]);
    assert_eq!(check(&blocking, &[]), Err(Error::XfrmInNoPols));
    assert_eq!(check(&spd(Action::Block, vec![]), &[]), Err(Error::XfrmInPolBlock));
    let allowed = spd(Action::Allow, vec![]);
    assert_eq!(check(&allowed, &[]), Ok(0));
    assert_eq!(check(&allowed, &[tunnel]), Err(Error::XfrmInTmplMismatch));
    let many = vec![template(Mode::Tunnel, Protocol::ESP); MAX_DEPTH];
    assert_eq!(check(&spd(Action::Allow, many), &[]), Err(Error::XfrmInBufferError));
    // A tunnel that an earlier check has required is required no more.
    let flow = flow(1, 2, 3);
    let received = Received { flow, secpath: &[tunnel], verified: 1, if_id: 0, quoted: None };
    assert_eq!(allowed.policy_check(Direction::Fwd, &received), Ok(0));
}

#[test]
fn packets_must_match_the_selector_of_their_sa() {
    let keys = Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new(octets(0x10, 20))));
    let selector = Selector { dst: prefix("10.0.0.3", 32), ..Selector::default() };
    let with = |flags| {
        let config = config(Mode::Tunnel, Family::Ipv4, flags);
        InboundState::new(StateConfig { selector, ..config }, &keys).unwrap()
    };
    let spd = spd(Action::Allow, vec![template(Mode::Tunnel, Protocol::ESP)]);
    let state = with(StateFlags::default());
    assert_eq!(check(&spd, &[state.state()]), Err(Error::XfrmInStateMismatch));
    // An ICMP error about a packet to 10.0.0.3 matches by that packet, with the flag.
    let quoted = Some(flow(1, 0x0a00_0003, 5));
    let error = icmp_error(0x0a00_0001, 0x0a00_0002);
    let no_error = flow(0x0a00_0001, 0x0a00_0002, 5);
    let echo = Flow { sport: 8, ..error };
    let mismatch = Err(Error::XfrmInStateMismatch);
    for (flags, flow, expected) in [
        (StateFlags::default(), error, mismatch),
        (StateFlags::ICMP, error, Ok(1)),
        (StateFlags::ICMP, no_error, mismatch),
        (StateFlags::ICMP, echo, mismatch),
    ] {
        let state = with(flags);
        let secpath = [state.state()];
        let received = Received { flow, secpath: &secpath, verified: 0, if_id: 0, quoted };
        assert_eq!(spd.policy_check(Direction::Fwd, &received), expected);
    }
}

#[test]
fn an_icmp_error_without_a_policy_is_checked_by_what_it_quotes() {
    let (tunnel, _) = states();
    let selector = Selector { dst: prefix("10.0.0.3", 32), ..Selector::default() };
    let quoted = Some(flow(1, 0x0a00_0003, 5));
    let secpath = [tunnel.state()];
    let error = icmp_error(0x0a00_0001, 0x0a00_0002);
    let no_error = flow(0x0a00_0001, 0x0a00_0002, 5);
    for (has_icmp, flow, direction, expected) in [
        (true, error, Direction::Fwd, Ok(1)),
        (false, error, Direction::Fwd, Ok(1)),
        (true, error, Direction::In, Err(Error::XfrmInNoPols)),
        (true, no_error, Direction::Fwd, Err(Error::XfrmInNoPols)),
    ] {
        let received = Received { flow, secpath: &secpath, verified: 0, if_id: 0, quoted };
        let templates = vec![template(Mode::Tunnel, Protocol::ESP)];
        let policy = Policy { has_icmp, templates, ..policy(1, 0, selector) };
        let spd = Spd::new([(direction, policy)], Order::OldestFirst, Default::default());
        assert_eq!(spd.policy_check(direction, &received), expected);
    }
}

#[test]
fn of_equal_priorities_the_policy_added_first_wins_in_either_order() {
    let both = [1, 2].map(|index| (Direction::Out, policy(index, 5, Selector::default())));
    let found = |policies: [_; 2], order| {
        let spd = Spd::new(policies, order, Default::default());
        spd.lookup(Direction::Out, &flow(1, 2, 3), 0).map(|policy| policy.index)
    };
    let [older, newer] = both;
    assert_eq!(found([older.clone(), newer.clone()], Order::OldestFirst), Some(1));
    assert_eq!(found([newer, older], Order::NewestFirst), Some(1), "as a dump has them");
}

/// An SA for sending; what is not given is that of all.
fn sending(spi: u32, change: impl FnOnce(&mut StateConfig)) -> OutboundState {
    let keys = Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new(octets(0x10, 20))));
    let mut config = config(Mode::Tunnel, Family::Ipv4, StateFlags::default());
    config.spi = spi;
    config.usage.add_time_s = 100;
    change(&mut config);
    outbound(&config, &keys, 1)
}

/// The SPI of the best one at 1000 seconds.
fn best(template: Template, policy: &Policy, flow: &Flow, states: &[OutboundState]) -> Option<u32> {
    let of = |order| {
        let found = template.best_outbound(policy, flow, 1000, states, order);
        found.map(|outbound| outbound.state().config().spi)
    };
    let (last, first) = (of(Order::OldestFirst), of(Order::NewestFirst));
    assert_eq!(last, first, "the order does not matter");
    last
}

#[test]
fn the_best_sa_for_sending_is_that_of_the_template_added_last() {
    let state = |spi, reqid, add_time_s| {
        sending(spi, |config| (config.reqid, config.usage.add_time_s) = (reqid, add_time_s))
    };
    let states = [state(1, 7, 100), state(2, 7, 200), state(3, 8, 300)];
    let esp = template(Mode::Tunnel, Protocol::ESP);
    let policy = policy(1, 0, Selector::default());
    let flow = flow(1, 2, 3);
    let best = |template| best(template, &policy, &flow, &states);
    assert_eq!(best(Template { reqid: 7, ..esp }), Some(2));
    assert_eq!(best(Template { reqid: 7, spi: 1, ..esp }), Some(1));
    assert_eq!(best(Template { reqid: 9, ..esp }), None);
    assert_eq!(best(Template { reqid: 7, dst: "192.0.2.7".parse().unwrap(), ..esp }), None);
    // Added in the same second.
    let states = [state(1, 7, 100), state(2, 7, 100)];
    let of = |order| {
        let seven = Template { reqid: 7, ..esp };
        let found = seven.best_outbound(&policy, &flow, 0, &states, order).unwrap();
        found.state().config().spi
    };
    assert_eq!((of(Order::OldestFirst), of(Order::NewestFirst)), (2, 1));
}

#[test]
fn the_mark_of_the_policy_chooses_the_sa_for_sending() {
    let marked = |spi, value| sending(spi, |config| config.mark = Mark { value, mask: 0xff });
    let states = [marked(1, 5), marked(2, 6)];
    let esp = template(Mode::Tunnel, Protocol::ESP);
    let with =
        |value, mask| Policy { mark: Mark { value, mask }, ..policy(1, 0, Selector::default()) };
    let flow = Flow { mark: 6, ..flow(1, 2, 3) };
    assert_eq!(best(esp, &with(5, 0xff), &flow, &states), Some(1), "not that of the packet");
    assert_eq!(best(esp, &with(6, 0xff), &flow, &states), Some(2));
    assert_eq!(best(esp, &with(0, 0), &flow, &states), None);
    let other = Policy { if_id: 3, ..with(5, 0xff) };
    assert_eq!(best(esp, &other, &flow, &states), None, "the interface is the policy's, too");
}

#[test]
fn only_sas_that_work_are_chosen_for_sending() {
    let policy = policy(1, 0, Selector::default());
    let flow = flow(1, 2, 3);
    let esp = template(Mode::Tunnel, Protocol::ESP);
    let best = |states: &[OutboundState]| best(esp, &policy, &flow, states);
    let in_state = |spi, km_state| sending(spi, |config| config.km_state = km_state);
    for ended in [KmState::Error, KmState::Expired, KmState::Dead] {
        assert_eq!(best(&[in_state(1, ended)]), None);
        assert_eq!(best(&[in_state(1, ended), in_state(2, KmState::Valid)]), Some(2));
    }
    let until = |spi, add_s| sending(spi, |config| config.lifetime.add_s = add_s);
    // Added at 100, now it is 1000.
    assert_eq!(best(&[until(1, [0, 900])]), None, "a hard limit without any packet");
    assert_eq!(best(&[until(1, [0, 901])]), Some(1));
    let (dying, older) = (until(1, [900, 0]), sending(2, |config| config.usage.add_time_s = 50));
    assert_eq!(best(&[dying, older]), Some(2), "a soft limit");
    assert_eq!(best(&[until(1, [900, 0])]), Some(1));
    assert_eq!(best(&[sending(1, |config| config.flags |= StateFlags::WILDRECV)]), None);
}

#[test]
fn the_exact_source_is_better_than_none() {
    let policy = policy(1, 0, Selector::default());
    let flow = flow(1, 2, 3);
    let esp = template(Mode::Tunnel, Protocol::ESP);
    let best = |states: &[OutboundState]| best(esp, &policy, &flow, states);
    let wildcard = |spi| {
        sending(spi, |config| {
            (config.src, config.usage.add_time_s) = ("0.0.0.0".parse().unwrap(), 200);
        })
    };
    let other = sending(3, |config| config.src = "192.0.2.9".parse().unwrap());
    assert_eq!(best(&[sending(1, |_| {}), wildcard(2)]), Some(1), "although it is older");
    assert_eq!(best(&[wildcard(2), other]), Some(2));
    // The kernel waits for an SA that is being negotiated, unless another with this source works.
    let acquiring = || sending(0, |config| config.km_state = KmState::Acquiring);
    assert_eq!(best(&[acquiring(), wildcard(2)]), None);
    assert_eq!(best(&[acquiring(), sending(1, |_| {})]), Some(1));
}

#[test]
fn selectors_without_a_family_choose_for_sending_as_the_kernel_does() {
    let policy = policy(1, 0, Selector::default());
    let esp = template(Mode::Tunnel, Protocol::ESP);
    let selector = Selector { dst: prefix("10.0.0.3", 32), ..Selector::default() };
    let of = |selector_family| {
        [sending(1, |config| {
            (config.selector, config.selector_family) = (selector, selector_family)
        })]
    };
    let (inside, outside) = (flow(1, 0x0a00_0003, 5), flow(1, 0x0a00_0004, 5));
    let best = |family, flow| best(esp, &policy, flow, &of(family));
    assert_eq!(
        (best(Some(Family::Ipv4), &inside), best(Some(Family::Ipv4), &outside)),
        (Some(1), None)
    );
    assert_eq!(best(Some(Family::Ipv6), &inside), None);
    assert_eq!(best(None, &outside), Some(1), "not compared");
}
