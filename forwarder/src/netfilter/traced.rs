//! Steps of traced packets at the hooks, other than those of rules.

use super::conntrack::{Ct, CtInfo, Direction, TupleKind, flow_key_of};
use super::hook::{HookState, Verdict};
use crate::skb::SkBuff;
use crate::trace::step::{Conntrack, Endpoint, FunctionVerdict};
use crate::trace::{Step, Tracer};

/// Source and destination; `None`: the packet is too short.
pub(super) type Endpoints = Option<[Endpoint; 2]>;

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

/// The ends of a packet of a carried connection.
#[cold]
pub(super) fn endpoints(skb: &SkBuff, at: &HookState<'_>) -> Endpoints {
    let key = flow_key_of(skb.network_header(), at.pf)?;
    let ([source, destination], [sport, dport]) = (key.addresses(), key.ports());
    Some(match key.kind()? {
        TupleKind::Ports => [Endpoint::Port(source, sport), Endpoint::Port(destination, dport)],
        TupleKind::Echo => [Endpoint::Echo(source, sport), Endpoint::Address(destination)],
        TupleKind::Addresses => [Endpoint::Address(source), Endpoint::Address(destination)],
    })
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
