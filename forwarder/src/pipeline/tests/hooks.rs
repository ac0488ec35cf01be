//! Netfilter hooks in the data path.

use std::sync::{Arc, Mutex};

use super::*;
use crate::netfilter::{
    Answer, Family, Hook, HookCtx, HookState, NetHooks, NfHook, NfHookOps, Verdict, priority,
};
use crate::skb::SkBuff;
use crate::stats::{DropReason, PuntReason};

/// A function without a state.
struct Plain<F>(F);

impl<F> NfHook for Plain<F>
where
    F: Fn(&mut SkBuff, &HookState<'_>, &mut HookCtx<'_>) -> Verdict + Send + Sync + 'static,
{
    type State = ();

    fn state(&self, _worker: usize) {}

    fn hook(
        &self,
        skb: &mut SkBuff,
        at: &HookState<'_>,
        ctx: &mut HookCtx<'_>,
        (): &mut (),
    ) -> Verdict {
        (self.0)(skb, at, ctx)
    }
}

fn at(
    hook: Hook,
    function: impl Fn(&mut SkBuff, &HookState<'_>, &mut HookCtx<'_>) -> Verdict + Send + Sync + 'static,
) -> NfHookOps {
    NfHookOps::new(hook, priority::FILTER, Plain(function))
}

const FORWARDED: [Hook; 3] = [Hook::PreRouting, Hook::Forward, Hook::PostRouting];

#[test]
fn functions_see_the_packet_in_order_and_each_can_drop_it() {
    for (n, dropping) in FORWARDED.into_iter().map(Some).chain([None]).enumerate() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut net = Net::default();
        for hook in Hook::ALL {
            let seen = Arc::clone(&seen);
            net.hooks.push(at(hook, move |skb, at, _| {
                let ttl = skb.network_header()[8];
                let ifindex = |link: Option<&Link>| link.map_or(0, |link| link.ifindex);
                let state = (at.hook, ifindex(at.iif), ifindex(at.oif), ttl);
                seen.lock().expect("one thread").push(state);
                if Some(at.hook) == dropping { Verdict::Drop } else { Verdict::Accept }
            }));
        }
        let mut lab = net.lab();
        let sent = lab.one(V4::default().frame());
        assert_eq!(sent.len(), usize::from(dropping.is_none()));
        assert_eq!(lab.drops(DropReason::NetfilterDrop), u64::from(dropping.is_some()));
        let all = [
            (Hook::PreRouting, 2, 0, 64),
            (Hook::Forward, 2, 3, 63),
            (Hook::PostRouting, 2, 3, 63),
        ];
        assert_eq!(*seen.lock().expect("one thread"), all[..(n + 1).min(3)]);
    }
}

/// Packets to hosts on the link; a function changes the destination of some.
#[test]
fn a_neighbour_is_looked_up_after_the_functions() {
    for hook in FORWARDED {
        let mut net = Net::default();
        net.neigh.push((3, "198.18.2.3", Some([2, 0, 0, 0, 2, 3])));
        net.hooks.push(at(hook, |skb, _, _| {
            let packet = skb.network_header_mut();
            // Every second one, by its type of service.
            if packet[1] & 4 == 0 {
                packet[19] = 5 - packet[19];
            }
            Verdict::Accept
        }));
        let mut lab = net.lab();
        let frame = |tos: u8, dst: &'static str| V4 { tos, ..V4::to(dst) }.frame();
        let to = [
            frame(0, "198.18.2.2"),
            frame(4, "198.18.2.2"),
            frame(8, "198.18.2.2"),
            frame(16, "198.18.2.3"),
            frame(12, "198.18.2.3"),
            frame(20, "198.18.2.2"),
        ];
        lab.receive(LEFT, &to);
        let macs = lab.sent().into_iter().map(|(_, frame)| frame[5]).collect::<Vec<_>>();
        let host = RIGHT_HOST_MAC[5];
        assert_eq!(macs, [3, host, 3, host, 3, host], "{hook:?}");
    }
}

/// The kernel gets a packet as it was received, whatever functions changed.
#[test]
fn a_packet_for_the_kernel_is_as_received() {
    for hook in FORWARDED {
        // With padding, which is trimmed.
        let padded = [V4::default().frame(), vec![0xee; 9]].concat();
        for frame in [V4::default().frame(), V6::default().frame(), padded] {
            let mut net = Net::default();
            for scribbling in FORWARDED {
                net.hooks.push(at(scribbling, |skb, _, _| {
                    // All but the destination, by which it is routed.
                    skb.network_header_mut()[1] ^= 0xff;
                    if let Some(last) = skb.network_header_mut().get_mut(44) {
                        *last ^= 0xff;
                    }
                    skb.mark = 7;
                    Verdict::Accept
                }));
            }
            net.hooks.push(at(hook, |_, _, _| Verdict::Punt));
            let mut lab = net.lab();
            assert_eq!(lab.one(frame.clone()), []);
            assert_eq!(lab.punts(PuntReason::Netfilter), 1, "{hook:?}");
            let len = frame.strip_suffix(&[0xee; 9]).map_or(frame.len(), <[u8]>::len);
            assert_eq!(lab.punted(), [&frame[..len]], "{hook:?}");
        }
    }
}

#[test]
fn a_function_can_answer_with_an_icmp_error() {
    let mut net = Net::default();
    net.hooks.push(at(Hook::Forward, |_, at, ctx| {
        ctx.answer = Some(match at.pf {
            Family::Ip6 => Answer::Icmp { icmp_type: 1, code: 1 },
            _ => Answer::Icmp { icmp_type: 3, code: 13 },
        });
        Verdict::Drop
    }));
    let mut lab = net.lab();
    let sent = lab.one(V4::default().frame());
    assert_eq!((sent[0].0, sent[0].1[34], sent[0].1[35]), (LEFT, 3, 13));
    let sent = lab.one(V6::default().frame());
    assert_eq!((sent[0].0, sent[0].1[54], sent[0].1[55]), (LEFT, 1, 1));
    assert_eq!(lab.drops(DropReason::NetfilterDrop), 2);
}

/// An error that only the kernel may send: it gets the packet, and sends the error itself.
#[test]
fn a_packet_whose_error_is_left_to_the_kernel_goes_to_the_kernel() {
    for hook in [Hook::LocalOut, Hook::PostRouting] {
        let mut net = Net::default();
        net.hooks.push(at(hook, |_, at, _| match at.iif {
            None => Verdict::Punt,
            Some(_) => Verdict::Accept,
        }));
        let mut lab = net.lab();
        let frame = V4 { ttl: 1, ..V4::default() }.frame();
        assert_eq!(lab.one(frame.clone()), []);
        assert_eq!((lab.punts(PuntReason::Netfilter), lab.punted()), (1, vec![frame]));
    }
}

/// The kernel has limits of its own for the errors that it sends: they take nothing from the limits here.
#[test]
fn errors_of_the_kernel_take_nothing_from_the_limits() {
    for dst in ["198.18.2.2", "192.0.2.1"] {
        let mut net = Net::default();
        net.sysctl.icmp_ratelimit_ms = 1000;
        net.sysctl.icmp6_ratelimit_ms = 1000;
        net.sysctl.icmp_msgs_burst = 50;
        let mut lab = net.clone().lab();
        let begun_ns = lab.now_ns;
        net.hooks.push(at(Hook::LocalOut, move |_, _, ctx| match ctx.now_ns == begun_ns {
            true => Verdict::Punt,
            false => Verdict::Accept,
        }));
        let frame4 = V4 { ttl: 1, ..V4::to(dst) }.frame();
        let frame6 = V6 { hop_limit: 1, ..V6::default() }.frame();
        let sent = |lab: &mut Lab, frame: &[u8]| {
            (0..60).filter(|_| !lab.one(frame.to_vec()).is_empty()).count()
        };
        let alone = [&frame4, &frame6].map(|frame| sent(&mut lab, frame));
        let mut lab = net.lab();
        for frame in [&frame4, &frame6] {
            assert_eq!(sent(&mut lab, frame), 0);
        }
        assert_eq!(lab.punted().len(), 120, "{dst}");
        assert_eq!(lab.stats.mib.iter().map(|mib| mib.get()).sum::<u64>(), 0);
        lab.now_ns += 1;
        assert_eq!([&frame4, &frame6].map(|frame| sent(&mut lab, frame)), alone, "{dst}");
        assert!(alone[0] > 0 && alone[0] < 10, "{alone:?}");
    }
}

/// So does a packet whose neighbour is not known: if it cannot be resolved, the error is the kernel's.
#[test]
fn a_packet_to_an_unknown_neighbour_goes_to_the_kernel_if_hooks_see_errors() {
    for hook in [Hook::Forward, Hook::LocalOut, Hook::PostRouting] {
        let mut net = Net::default();
        net.neigh.clear();
        net.hooks.push(at(hook, |_, _, _| Verdict::Accept));
        let mut lab = net.lab();
        for frame in [V4::default().frame(), V6::default().frame()] {
            assert_eq!(lab.one(frame.clone()), []);
            let expected = if hook == Hook::Forward { vec![] } else { vec![frame] };
            assert_eq!(lab.punted(), expected);
        }
        let punted = if hook == Hook::Forward { 0 } else { 2 };
        assert_eq!(lab.punts(PuntReason::NeighUnresolved), punted);
    }
}

#[test]
fn each_verdict_ends_a_packet_as_named() {
    let verdicts = [
        (Verdict::Stolen, DropReason::NetfilterStolen),
        (Verdict::Queue(3), DropReason::NetfilterDrop),
        // It never gives another verdict.
        (Verdict::Repeat, DropReason::NetfilterDrop),
    ];
    for (verdict, reason) in verdicts {
        let mut net = Net::default();
        net.hooks.push(at(Hook::Forward, move |_, _, _| verdict));
        let mut lab = net.lab();
        assert_eq!(lab.one(V4::default().frame()), []);
        assert_eq!(lab.drops(reason), 1, "{verdict:?}");
    }
}

/// Counts the packets of its worker, and has every second one come again.
struct Twice;

impl NfHook for Twice {
    type State = u32;

    fn state(&self, worker: usize) -> u32 {
        worker as u32
    }

    fn hook(
        &self,
        skb: &mut SkBuff,
        _at: &HookState<'_>,
        ctx: &mut HookCtx<'_>,
        state: &mut u32,
    ) -> Verdict {
        *state += 1;
        skb.mark = *state;
        ctx.stats.made.add(0);
        if *state % 2 == 1 { Verdict::Repeat } else { Verdict::Accept }
    }
}

#[test]
fn a_function_keeps_its_state_while_others_come_and_go() {
    let mut lab = Net::default().lab();
    let mut registry = NetHooks::new(1);
    let marks = Arc::new(Mutex::new(Vec::new()));
    let twice = registry.nf_register_net_hook(
        NfHookOps::new(Hook::PreRouting, priority::RAW, Twice).only(Family::Ip),
    );
    let seen = Arc::clone(&marks);
    let reader = registry.nf_register_net_hook(at(Hook::PreRouting, move |skb, _, _| {
        seen.lock().expect("one thread").push(skb.mark);
        Verdict::Accept
    }));
    let run = |registry: &NetHooks, lab: &mut Lab| {
        lab.hooks = registry.published().load();
        lab.state.take_hook_states(&lab.hooks);
        assert_eq!(lab.one(V4::default().frame()).len(), 1);
    };
    run(&registry, &mut lab);
    let more = registry.nf_register_net_hooks([at(Hook::Forward, |_, _, _| Verdict::Accept)]);
    run(&registry, &mut lab);
    assert_eq!(registry.nf_unregister_net_hooks(&more), 1);
    run(&registry, &mut lab);
    assert_eq!(*marks.lock().expect("one thread"), [2, 4, 6]);
    assert!(registry.nf_unregister_net_hook(twice) && !registry.nf_unregister_net_hook(twice));
    run(&registry, &mut lab);
    assert_eq!(marks.lock().expect("one thread").last(), Some(&0));
    assert!(registry.nf_unregister_net_hook(reader));
    assert!(registry.published().load().is_empty());
}
