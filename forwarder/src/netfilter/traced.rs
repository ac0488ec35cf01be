//! Steps of traced packets at the hooks, other than those of rules.

use std::net::IpAddr;

use super::conntrack::{Ct, CtInfo, Direction};
use super::hook::{HookState, Verdict};
use crate::netfilter::Family;
use crate::skb::SkBuff;
use crate::trace::step::{Conntrack, FunctionVerdict};
use crate::trace::{Step, Tracer};

/// Source and destination, each with its port; `None`: the packet is too short.
pub(super) type Endpoints = Option<[(IpAddr, u16); 2]>;

/// Records the connection that was found, if one was.
#[cold]
pub(super) fn conntrack<T: Tracer>(ct: Ct, verdict: Verdict, tracer: &mut T) {
    tracer.step(Step::Conntrack(match ct {
        Ct::Established(CtInfo { flow, direction, mark, .. }) => {
            Conntrack::Established { flow, is_reply: direction == Direction::Reply, mark }
        }
        _ if verdict == Verdict::Accept => Conntrack::Invalid,
        _ => Conntrack::NotCarried,
    }));
}

/// Addresses and ports of a packet with ports.
#[cold]
pub(super) fn endpoints(skb: &SkBuff, at: &HookState<'_>) -> Endpoints {
    let packet = skb.network_header();
    let (_, transport) = at.transport.l4?;
    let ports = packet.get(transport..)?.first_chunk::<4>()?;
    let addresses: [IpAddr; 2] = match at.pf {
        Family::Ip => {
            let octets = |at: usize| Some(*packet.get(at..)?.first_chunk::<4>()?);
            [octets(12)?.into(), octets(16)?.into()]
        }
        _ => {
            let octets = |at: usize| Some(*packet.get(at..)?.first_chunk::<16>()?);
            [octets(8)?.into(), octets(24)?.into()]
        }
    };
    let [a, b, c, d] = *ports;
    let ports = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
    Some([(addresses[0], ports[0]), (addresses[1], ports[1])])
}

/// Records a translation.
#[cold]
pub(super) fn nat<T: Tracer>(
    before: Endpoints,
    after: Endpoints,
    done: Option<()>,
    tracer: &mut T,
) {
    if done.is_none() {
        return tracer.step(Step::NatLeft);
    }
    let (Some(before), Some(after)) = (before, after) else { return };
    for ((from, to), is_source) in before.into_iter().zip(after).zip([true, false]) {
        if from != to {
            tracer.step(Step::Nat { is_source, from, to });
        }
    }
}

/// Records the verdict of a registered function.
#[cold]
pub(super) fn function<T: Tracer>(verdict: Verdict, tracer: &mut T) {
    tracer.step(Step::Function(match verdict {
        Verdict::Accept => FunctionVerdict::Accept,
        Verdict::Stolen => FunctionVerdict::Stolen,
        Verdict::Punt => FunctionVerdict::Punt,
        Verdict::Drop | Verdict::Queue(_) | Verdict::Repeat => FunctionVerdict::Drop,
    }));
}
