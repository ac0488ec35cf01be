//! Traced packets: how each ends, and that tracing changes nothing.

use proptest::prelude::*;

use super::conservation::nearly_right;
use super::*;
use crate::netfilter::{Hook, HookCtx, HookState, NfHook, NfHookOps, Verdict, priority};
use crate::stats::PuntReason;
use crate::trace::step::FunctionVerdict;
use crate::trace::{Counts, FinalDisposition, Record, RecordReader, Step, ring};

/// Traces all packets.
fn trace(lab: &mut Lab) -> RecordReader {
    let (session, reader) = ring(1, None, 64, &Counts::new(u64::MAX));
    assert!(lab.out.trace.attach(session).is_none());
    reader
}

fn records(lab: &mut Lab, reader: &RecordReader) -> Vec<Record> {
    lab.out.trace.deliver();
    let mut records = Vec::new();
    while let Ok(Some(record)) = reader.read(Record::clone) {
        records.push(record);
    }
    records
}

/// The record of one packet.
fn one(net: Net, frame: Vec<u8>) -> Record {
    let mut lab = net.lab();
    let reader = trace(&mut lab);
    lab.receive(LEFT, &[frame]);
    let mut records = records(&mut lab, &reader);
    assert_eq!(records.len(), 1);
    records.remove(0)
}

#[test]
fn each_packet_ends_once() {
    let dropped = FinalDisposition::Dropped;
    let error = |is_ipv6, icmp_type, code, reason| FinalDisposition::IcmpError {
        is_ipv6,
        icmp_type,
        code,
        reason,
    };
    let sent = FinalDisposition::Sent { port: RIGHT, ifindex: 3 };
    let large = vec![0; 1600];
    for (frame, expected) in [
        (V4::default().frame(), sent),
        (V6::default().frame(), sent),
        (V4 { ttl: 1, ..V4::default() }.frame(), error(false, 11, 0, DropReason::TtlExceeded)),
        (V4::to("192.0.2.1").frame(), error(false, 3, 0, DropReason::IpNoRoute)),
        (V6::to("2001:db8:a:9::1").frame(), dropped(DropReason::Blackhole)),
        (V6::to("2001:db8:a:11::1").frame(), error(true, 1, 1, DropReason::Prohibit)),
        (V4::to("198.18.1.1").frame(), FinalDisposition::Kernel(PuntReason::Local)),
        (
            V4::to("198.18.2.9").frame(),
            FinalDisposition::Held { addr: addr4("198.18.2.9").into(), oif: 3 },
        ),
        (
            V4 { payload: large.clone(), ..V4::default() }.frame(),
            FinalDisposition::Fragmented { fragments: 2, oif: 3 },
        ),
        (
            V4 { dont_frag: true, payload: large, ..V4::default() }.frame(),
            error(false, 3, 4, DropReason::PktTooBig),
        ),
        (
            V6 { payload: vec![0; 1300], ..V6::to("2001:db8:a:12::1") }.frame(),
            error(true, 2, 0, DropReason::PktTooBig),
        ),
    ] {
        let record = one(Net::default(), frame);
        assert_eq!(record.disposition, expected, "{:?}", record.steps());
        assert_eq!(record.ifindex, 2);
    }
}

/// A function with one verdict.
struct Says(Verdict);

impl NfHook for Says {
    type State = ();

    fn state(&self, _worker: usize) {}

    fn hook(&self, _: &mut SkBuff, _: &HookState<'_>, _: &mut HookCtx<'_>, (): &mut ()) -> Verdict {
        self.0
    }
}

#[test]
fn verdicts_of_hook_functions_are_steps() {
    for (verdict, expected, step) in [
        (
            Verdict::Accept,
            FinalDisposition::Sent { port: RIGHT, ifindex: 3 },
            FunctionVerdict::Accept,
        ),
        (
            Verdict::Drop,
            FinalDisposition::Dropped(DropReason::NetfilterDrop),
            FunctionVerdict::Drop,
        ),
        (Verdict::Punt, FinalDisposition::Kernel(PuntReason::Netfilter), FunctionVerdict::Punt),
    ] {
        let mut net = Net::default();
        net.hooks.push(NfHookOps::new(Hook::Forward, priority::FILTER, Says(verdict)));
        let record = one(net, V4::default().frame());
        assert_eq!(record.disposition, expected);
        assert!(record.steps().contains(&Step::Function(step)), "{:?}", record.steps());
    }
}

#[test]
fn an_error_that_a_rule_drops_is_not_sent() {
    let mut net = Net::default();
    net.hooks.push(NfHookOps::new(Hook::LocalOut, priority::FILTER, Says(Verdict::Drop)));
    let record = one(net, V4 { ttl: 1, ..V4::default() }.frame());
    assert_eq!(record.disposition, FinalDisposition::Dropped(DropReason::TtlExceeded));
    assert!(record.steps().contains(&Step::Function(FunctionVerdict::Drop)));
}

/// Frames sent, by port, frames for the kernel, and all counters.
type Done = (Vec<(u16, Vec<u8>)>, Vec<Vec<u8>>, Vec<u64>);

/// What became of frames.
fn result_of(lab: &mut Lab, frames: &[Vec<u8>]) -> Done {
    lab.receive(LEFT, frames);
    let counters = lab.stats.drops.iter().chain(&lab.stats.mib).map(|counter| counter.get());
    let counters = counters.chain([lab.stats.made.get(), lab.stats.fragmented.get()]).collect();
    // An ICMP error may be sent before an earlier packet, and is not in a trace.
    let mut sent = lab.sent();
    sent.sort();
    (sent, lab.punted(), counters)
}

proptest! {
    #[test]
    fn a_trace_changes_nothing(frames in prop::collection::vec(nearly_right(700), 1..30)) {
        for has_hooks in [false, true] {
            let lab = || {
                let mut net = vlan::net();
                net.links[2].mtu = 576;
                if has_hooks {
                    let ops = NfHookOps::new(Hook::Forward, priority::FILTER, Says(Verdict::Accept));
                    net.hooks.push(ops);
                }
                net.lab()
            };
            let (mut plain, mut traced) = (lab(), lab());
            let reader = trace(&mut traced);
            let expected = result_of(&mut plain, &frames);
            let found = result_of(&mut traced, &frames);
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(plain.state.held_packets(), traced.state.held_packets());
            let records = records(&mut traced, &reader);
            prop_assert_eq!(records.len(), frames.len());
            let count = |of: fn(&FinalDisposition) -> bool| {
                records.iter().filter(|record| of(&record.disposition)).count()
            };
            let kernel = count(|end| matches!(end, FinalDisposition::Kernel(_)));
            prop_assert_eq!(kernel, found.1.len());
            let fragmented = count(|end| matches!(end, FinalDisposition::Fragmented { .. }));
            prop_assert_eq!(fragmented as u64, traced.stats.fragmented.get());
        }
    }
}
