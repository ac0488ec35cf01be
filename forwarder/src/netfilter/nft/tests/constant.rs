//! What a ruleset does with packets of a flow is the same for all of them, if the learner says so.

use proptest::prelude::*;

use super::random::{Rng, input, ruleset};
use super::*;
use crate::netfilter::Learner;
use crate::netfilter::conntrack::{TupleKind, flow_key_of};

/// Runs all base chains of the hook. `None`: a chain does not accept.
fn learn(program: &Program, input: &Input) -> Option<(Vec<u32>, bool)> {
    let mut pool = Umem::anonymous(4).into_pool();
    let mut skb = input.skb(&mut pool);
    let (mut journal, mut learner) = (Journal::new(), Learner::default());
    for chain in program.chains(input.family, input.hook) {
        let (iif, oif) = (input.iif.as_ref(), input.oif.as_ref());
        let mut packet = Packet::new(&mut skb, input.family, input.hook, iif, oif, input.now_ns);
        packet.ct = input.ct;
        match program.run_traced(*chain, &mut packet, &mut journal, &mut learner) {
            NftVerdict::Accept => {}
            _ => return None,
        }
    }
    let passed = journal.entries().iter().map(|(counter, _)| *counter);
    Some((passed.collect(), learner.varies))
}

/// Whether packets of this kind are carried.
fn is_carried(input: &Input) -> bool {
    let net = &input.net;
    let is_long = net.len() >= if input.family == Family::Ip { 40 } else { 60 };
    let has_version = is_long && (input.family == Family::Ip || net[0] >> 4 == 6);
    let is_plain = has_version && flow_key_of(net, input.family).is_some();
    let is_received = input.iif.is_some() && input.mac.is_some();
    is_plain && is_received && input.head.is_none() && matches!(input.ct, Ct::Established(_))
}

/// Another packet of the same flow.
fn another(rng: &mut Rng, of: &Input) -> Input {
    let mut input = of.clone();
    let transport = if input.family == Family::Ip { 20 } else { 40 };
    let fields: &[usize] = match input.family {
        // DSCP and ECN, the identification, TTL, checksum.
        Family::Ip => &[1, 4, 5, 8, 10, 11],
        // Traffic class and flow label, hop limit.
        _ => &[1, 2, 3, 7],
    };
    for at in fields {
        input.net[*at] = rng.next() as u8;
    }
    if input.family == Family::Ip {
        input.net[6] = if rng.one_in(2) { 0x40 } else { 0 };
    }
    for _ in 0..rng.below(60) {
        input.net.push(rng.next() as u8);
    }
    let kind = flow_key_of(&of.net, of.family).and_then(|key| key.kind());
    // A TCP header of 20 octets stays one, and GRE of version 0.
    let kept: &[usize] = match kind {
        Some(TupleKind::Ports) => &[0, 1, 2, 3, 12],
        Some(TupleKind::Echo) => &[0, 1, 4, 5],
        _ => &[1],
    };
    for at in (transport..input.net.len()).filter(|at| !kept.contains(&(at - transport))) {
        input.net[at] = rng.next() as u8;
    }
    input.mac = input.mac.map(|_| std::array::from_fn(|_| rng.next() as u8));
    input
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn packets_of_a_flow_get_the_same_if_nothing_varies(seed: u64) {
        let mut rng = Rng(seed);
        let program = compile(&ruleset(&mut rng), 1_000_000_000);
        let mut learnt = 0;
        for _ in 0..60 {
            let first = Input { mark: 0, pkt_type: PktType::Host, ..input(&mut rng) };
            let Some((counters, false)) = learn(&program, &first).filter(|_| is_carried(&first))
            else {
                continue;
            };
            for _ in 0..8 {
                let other = another(&mut rng, &first);
                let found = learn(&program, &other);
                prop_assert_eq!(found, Some((counters.clone(), false)), "{:?} {:?}", first, other);
            }
            learnt += 1;
            if learnt == 8 {
                break;
            }
        }
    }
}

/// Flows are decided, so that the comparison means something.
#[test]
fn some_flows_are_decided() {
    let (mut decided, mut all) = (0, 0);
    for seed in 0..200 {
        let mut rng = Rng(seed);
        let program = compile(&ruleset(&mut rng), 1_000_000_000);
        for _ in 0..20 {
            let input = Input { mark: 0, ..input(&mut rng) };
            if is_carried(&input) {
                all += 1;
                decided += u32::from(learn(&program, &input).is_some_and(|(_, varies)| !varies));
            }
        }
    }
    assert!(all > 200 && decided > all / 20, "{decided} of {all}");
}
