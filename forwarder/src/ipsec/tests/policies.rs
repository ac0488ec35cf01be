//! Policies: which one is found, and what passes.

use proptest::prelude::*;

use super::*;
use crate::wire::Protocol;

fn prefix(addr: &str, len: u8) -> Prefix {
    Prefix { addr: addr.parse().unwrap(), len }
}

fn policy(index: u32, priority: u32, selector: Selector) -> Policy {
    Policy {
        index,
        priority,
        family: Family::Ipv4,
        selector,
        mark: Mark::default(),
        if_id: 0,
        action: Action::Allow,
        has_icmp: false,
        templates: Vec::new(),
    }
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
        let spd = Spd::new(policies.iter().map(|it| (Direction::Out, it.clone())), Default::default());
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
    let spd = Spd::new([(Direction::Fwd, only)], Default::default());
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
    Spd::new([(Direction::Fwd, policy)], Default::default())
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
    let blocking = Spd::new([], [Action::Allow, Action::Allow, Action::Block]);
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
        (false, error, Direction::Fwd, Err(Error::XfrmInNoPols)),
        (true, error, Direction::In, Err(Error::XfrmInNoPols)),
        (true, no_error, Direction::Fwd, Err(Error::XfrmInNoPols)),
    ] {
        let received = Received { flow, secpath: &secpath, verified: 0, if_id: 0, quoted };
        let templates = vec![template(Mode::Tunnel, Protocol::ESP)];
        let policy = Policy { has_icmp, templates, ..policy(1, 0, selector) };
        let spd = Spd::new([(direction, policy)], Default::default());
        assert_eq!(spd.policy_check(direction, &received), expected);
    }
}

#[test]
fn the_best_sa_for_sending_is_that_of_the_template_added_last() {
    let keys = Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new(octets(0x10, 20))));
    let state = |spi, reqid, add_time_s| {
        let usage = Usage { add_time_s, ..Usage::default() };
        let config = config(Mode::Tunnel, Family::Ipv4, StateFlags::default());
        let config = StateConfig { spi, reqid, usage, ..config };
        OutboundState::new(config, &keys, &IvSeed::random([1; 16])).unwrap()
    };
    let states = [state(1, 7, 100), state(2, 7, 200), state(3, 8, 300)];
    let esp = template(Mode::Tunnel, Protocol::ESP);
    let best = |template: Template| {
        let found = template.best_outbound(&flow(1, 2, 3), 0, &states);
        found.map(|outbound| outbound.state().config().spi)
    };
    assert_eq!(best(Template { reqid: 7, ..esp }), Some(2));
    assert_eq!(best(Template { reqid: 7, spi: 1, ..esp }), Some(1));
    assert_eq!(best(Template { reqid: 9, ..esp }), None);
    assert_eq!(best(Template { reqid: 7, dst: "192.0.2.7".parse().unwrap(), ..esp }), None);
}
