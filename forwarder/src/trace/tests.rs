//! Records and their transfer.

use super::step::{RuleResult, Stage};
use super::*;
use crate::skb::{FramePool, SkBuff, Umem};
use crate::stats::{DropReason, PuntReason};

fn missed(step: u32) -> Step {
    Step::Rule { step, op: 0, result: RuleResult::NoMatch(Value::new(&[1])) }
}

fn skb(pool: &mut FramePool) -> SkBuff {
    SkBuff::of_octets(pool, &[7; 60]).expect("a frame")
}

#[test]
fn rules_that_do_not_match_leave_room_for_the_rest() {
    let mut record = Record::new();
    let capacity = record.steps().len();
    assert_eq!(capacity, 0);
    record.step(Step::Stage(Stage::Hook(2)));
    (0..10_000).for_each(|step| record.step(missed(step)));
    let last = [Step::Policy { is_drop: true }, Step::Ttl(3)];
    last.into_iter().for_each(|step| record.step(step));
    let steps = record.steps();
    assert_eq!(steps[steps.len() - 2..], last);
    let shown = steps.iter().filter(|step| matches!(step, Step::Rule { .. })).count();
    let omitted = steps.iter().find_map(|step| match step {
        Step::Omitted { rules } => Some(*rules as usize),
        _ => None,
    });
    assert_eq!(omitted.map(|omitted| omitted + shown), Some(10_000));
    // The others have a limit, too.
    (0..10_000).for_each(|_| record.step(Step::Ttl(1)));
    assert!(record.steps().len() <= record::STEPS_MAX);
}

#[test]
fn a_value_has_a_limit() {
    let long: Vec<u8> = (0..100).collect();
    assert_eq!(Value::new(&long).octets(), &long[..step::VALUE_MAX]);
    assert_eq!(Value::new(&[]).octets(), [0u8; 0]);
}

#[test]
fn each_trace_gets_as_many_packets_as_it_wants_and_knows_what_it_missed() {
    let mut pool = Umem::anonymous(4).into_pool();
    let skb = skb(&mut pool);
    let mut traces = Traces::new();
    let (few, many) = (Counts::new(3), Counts::new(u64::MAX));
    let (first, few_reader) = ring(1, None, 8, &few);
    let (second, many_reader) = ring(2, None, 2, &many);
    assert!(traces.attach(first).is_none() && traces.attach(second).is_none());
    for _ in 0..5 {
        traces.begin(&skb);
        traces.step(Step::Ttl(9));
        traces.intend(FinalDisposition::Dropped(DropReason::IpCsum));
        traces.end(0);
        traces.deliver();
    }
    let read = |reader: &RecordReader| {
        let mut count = 0;
        while let Ok(Some(())) = reader.read(|record| {
            assert_eq!(record.steps(), [Step::Ttl(9)]);
            assert_eq!(record.head(), [7; 60]);
            assert_eq!(record.disposition, FinalDisposition::Dropped(DropReason::IpCsum));
        }) {
            count += 1;
        }
        count
    };
    assert_eq!((read(&few_reader), few.missed()), (3, 0));
    assert_eq!((read(&many_reader), many.missed()), (2, 3));
    // The records are free again.
    traces.begin(&skb);
    traces.step(Step::Ttl(9));
    traces.intend(FinalDisposition::Dropped(DropReason::IpCsum));
    traces.end(0);
    traces.deliver();
    assert_eq!((read(&few_reader), read(&many_reader)), (0, 1));
    drop(traces.detach(2));
    assert!(traces.is_on());
    assert_eq!(many_reader.read(|_| ()), Err(ring::Ended));
    pool.kfree_skb(skb);
}

#[test]
fn the_end_is_what_became_of_the_packet_at_last() {
    let mut pool = Umem::anonymous(4).into_pool();
    let skb = skb(&mut pool);
    let mut traces = Traces::new();
    let (session, reader) = ring(1, None, 8, &Counts::new(8));
    assert!(traces.attach(session).is_none());
    let sent = |port| FinalDisposition::Sent { port, ifindex: 2 };
    let full = FinalDisposition::Dropped(DropReason::FullRing);
    let kernel = FinalDisposition::Kernel(PuntReason::Netfilter);
    for (intended, noted, place) in [
        (sent(0), None, 0),
        (sent(0), None, 1),
        (sent(1), None, 5),
        (sent(0), Some(full), 0),
        (kernel, None, 0),
        (kernel, None, 1),
    ] {
        traces.begin(&skb);
        traces.intend(intended);
        noted.into_iter().for_each(|noted| traces.note(noted));
        traces.end(place);
    }
    // Without a current packet nothing is noted.
    traces.note(full);
    traces.refused(0, 1, DropReason::CpuBacklog);
    traces.punt_failed(1);
    traces.deliver();
    let mut ends = Vec::new();
    while let Ok(Some(end)) = reader.read(|record| record.disposition) {
        ends.push(end);
    }
    let dropped = FinalDisposition::Dropped;
    let expected = [
        sent(0),
        dropped(DropReason::CpuBacklog),
        sent(1),
        full,
        kernel,
        dropped(DropReason::PuntFailed),
    ];
    assert_eq!(ends, expected);
    pool.kfree_skb(skb);
}
