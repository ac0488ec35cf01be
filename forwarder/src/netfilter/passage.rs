//! Packets that pass all hooks as was decided for their flow, without the functions (as
//! `nf_flow_offload_ip_hook` of the kernel).
//!
//! Nothing is written before it is certain that the packet passes. Until then the caller may give up, and run the
//! functions.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::conntrack::{
    Carried, FlowKey, FoundFlow, IPS_NAT_MASK, NatTarget, Plain, Rewrite4, Segment, Translated,
    nf_nat_both,
};
use super::hook::Hooks;
use super::hook_states::HookStates;
use super::nft::Family;
use crate::skb::{IpSummed, SkBuff};
use crate::tables::{Link, Tables};

/// A packet of a carried flow that neither opens nor closes its connection.
#[derive(Debug)]
pub struct Passage<'a> {
    found: Carried<'a>,
    plain: Plain,
    /// Protocol, and offset of its header from the network header, octets.
    transport: (u8, usize),
    /// Length from the network header on, octets.
    len: usize,
    /// `ct->status`.
    status: u32,
    /// Identifier of the decision, if it is looked at, and the mark that PRE_ROUTING leaves.
    decided: u64,
    mark: u32,
    /// CLOCK_MONOTONIC.
    now_ns: u64,
}

/// What was decided for a packet that may pass.
#[derive(Debug, Clone, Copy)]
pub struct Allowed<'s> {
    /// What counts it.
    pub counters: &'s [u32],
    /// Its flow may be offloaded: what changes the decision voids the entry.
    pub may_be_offloaded: bool,
}

/// Proof that a packet has passed all hooks.
#[derive(Debug)]
pub struct Passed(());

// Inlined: these are parts of one function, and the values stay in registers.
impl<'a> Passage<'a> {
    /// Of the packet with this key at position `n` of a burst, received on `iif`, where
    /// [`HookStates::may_be_decided`]. `None`: the functions must run. `packet`: its head from the network header on,
    /// and its length, octets. `transport`: protocol, and offset of its header from the network header, octets.
    #[inline(always)]
    pub fn of(
        (n, key): (usize, &FlowKey),
        packet: (&[u8], usize),
        transport: (u8, usize),
        iif: &Link,
        (hooks, tables): (&'a Hooks, &Tables),
        own: &HookStates,
        now_ns: u64,
    ) -> Option<Passage<'a>> {
        let found = own.ahead.get(n, key, hooks.flows()?)?;
        let decided = found.decided();
        // PRE_ROUTING accepts packets that come in there.
        let decision = own.decisions.get(decided, hooks.basis(tables))?;
        if decision.iif != iif.ifindex {
            return None;
        }
        let mark = decision.mark;
        let pf = if key.is_ipv4() { Family::Ip } else { Family::Ip6 };
        let passage = Passage::of_found(found, packet, transport, own.monotonic_ns(now_ns))?;
        let may_translate = passage.status & IPS_NAT_MASK == 0 || hooks.translates(pf);
        // What was read is of this flow.
        (may_translate && found.is_current()).then_some(Passage { decided, mark, ..passage })
    }

    /// The same of a packet of a flow that was found earlier, with the same hooks.
    #[inline(always)]
    pub fn again(
        of: FoundFlow,
        packet: (&[u8], usize),
        transport: (u8, usize),
        hooks: &'a Hooks,
        own: &HookStates,
        now_ns: u64,
    ) -> Option<Passage<'a>> {
        let found = hooks.flows()?.again(of)?;
        Passage::of_found(found, packet, transport, own.monotonic_ns(now_ns))
    }

    #[inline(always)]
    fn of_found(
        found: Carried<'a>,
        packet: (&[u8], usize),
        transport: (u8, usize),
        now_ns: u64,
    ) -> Option<Passage<'a>> {
        let status = found.status();
        if found.has_expired(now_ns) {
            return None;
        }
        let (protocol, offset) = transport;
        let Segment::Plain(plain) = Segment::of(protocol, packet, offset)? else {
            return None;
        };
        Some(Passage {
            found,
            plain,
            transport,
            len: packet.1,
            status,
            decided: 0,
            mark: 0,
            now_ns,
        })
    }

    /// The flow, to find it again.
    #[inline(always)]
    pub fn flow(&self) -> FoundFlow {
        self.found.of()
    }

    /// The mark by which it is routed.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        self.mark
    }

    #[inline(always)]
    fn translated(&self) -> Translated {
        Translated::of(self.status, self.found.direction())
    }

    /// The destination by which an IPv4 packet is routed, if it is translated.
    #[inline(always)]
    pub fn daddr4(&self) -> Option<Ipv4Addr> {
        let [_, daddr] = self.target()?.key.addresses4();
        self.translated().destination.then(|| daddr.into())
    }

    /// The destination by which an IPv6 packet is routed, if it is translated.
    #[inline(always)]
    pub fn daddr6(&self) -> Option<Ipv6Addr> {
        let [_, daddr] = self.target()?.key.addresses6();
        self.translated().destination.then(|| daddr.into())
    }

    /// What NAT makes of the packet.
    #[inline(always)]
    fn target(&self) -> Option<NatTarget> {
        (self.status & IPS_NAT_MASK != 0).then(|| self.found.target())
    }

    /// What NAT makes of the flow's packets, if they are translated.
    pub fn target_key(&self) -> Option<FlowKey> {
        self.target().map(|target| target.key)
    }

    /// What is written into each packet of the flow, which has this key. `None`: it is not translated, or not prepared.
    pub fn rewrite(&self, key: &FlowKey) -> Option<Rewrite4> {
        let NatTarget { key: target, .. } = self.target().filter(|_| key.is_ipv4())?;
        Some(Rewrite4::new(key, &target, self.translated()))
    }

    /// What was decided for a packet that leaves by `oif`, if it may pass: also the translation is possible.
    #[inline(always)]
    pub fn may_pass<'s>(
        &self,
        oif: &Link,
        (hooks, tables): (&Hooks, &Tables),
        own: &'s HookStates,
    ) -> Option<Allowed<'s>> {
        let decision = own.decisions.get(self.decided, hooks.basis(tables))?;
        let may_leave = |target: NatTarget| target.may_leave_by(self.found.direction(), Some(oif));
        let holds = decision.oif == 0 || decision.oif == oif.ifindex;
        (holds && self.target().is_none_or(may_leave) && self.found.is_current()).then(|| Allowed {
            counters: decision.counters(),
            may_be_offloaded: !decision.has_other_routes,
        })
    }

    /// The packet passes: it is translated and counted. To be called when it may pass. `rewrite`: see
    /// [`Passage::rewrite`]. `None`: the flow has changed meanwhile, and the packet was not.
    #[inline(always)]
    pub fn pass(
        self,
        skb: &mut SkBuff,
        rewrite: Option<&Rewrite4>,
        counters: &[u32],
        hooks: &Hooks,
        own: &HookStates,
    ) -> Option<Passed> {
        // What was read of the record until now is of this flow; nothing has been written.
        if !self.found.is_current() {
            return None;
        }
        if self.status & IPS_NAT_MASK != 0 {
            skb.headers_may_change();
            match rewrite {
                Some(rewrite) if skb.ip_summed != IpSummed::Partial => {
                    rewrite.apply(skb.network_header_mut(), self.transport.0)?;
                }
                _ => self.translate(skb)?,
            }
        }
        let octets = self.len as u64;
        if let Some(nft) = &hooks.nft {
            nft.count(counters, octets, own.worker);
        }
        self.plain.pass(&self.found);
        self.found.seen(octets, self.now_ns);
        Some(Passed(()))
    }

    /// Translates the packet as the flow's record says.
    #[inline(never)]
    fn translate(&self, skb: &mut SkBuff) -> Option<()> {
        let NatTarget { key: target, .. } = self.target()?;
        if !self.found.is_current() {
            return None;
        }
        nf_nat_both(skb, self.transport, &target, self.translated())
    }
}
