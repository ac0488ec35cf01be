//! Packets that pass all hooks as was decided for their flow, without the functions (as
//! `nf_flow_offload_ip_hook` of the kernel).
//!
//! Nothing is written before it is certain that the packet passes. Until then the caller may give up, and run the
//! functions.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::conntrack::{Carried, IPS_NAT_MASK, NatTarget, Plain, Segment, Translated, nf_nat_both};
use super::decision::Decision;
use super::hook::Hooks;
use super::hook_states::HookStates;
use super::nft::Family;
use crate::skb::SkBuff;
use crate::tables::{Link, Tables};

/// A packet of a flow for which something was decided, and that neither opens nor closes its connection.
#[derive(Debug)]
pub struct Passage<'a> {
    found: Carried<'a>,
    plain: Plain,
    /// Protocol, and offset of its header from the network header, octets.
    transport: (u8, usize),
    /// `ct->status`.
    status: u32,
    /// Identifier of the decision.
    decided: u64,
    /// CLOCK_MONOTONIC.
    now_ns: u64,
}

/// Proof that a packet has passed all hooks.
#[derive(Debug)]
pub struct Passed(());

// Inlined: these are parts of one function, and the values stay in registers.
impl<'a> Passage<'a> {
    /// Of the packet at position `n` of a burst. `None`: the functions must run. `transport`: protocol, and offset
    /// of its header from the network header, octets.
    #[inline(always)]
    pub fn of(
        n: usize,
        skb: &SkBuff,
        pf: Family,
        transport: (u8, usize),
        hooks: &'a Hooks,
        own: &HookStates,
        now_ns: u64,
    ) -> Option<Passage<'a>> {
        let found = own.ahead.get(n, hooks.decided_flows()?)?;
        let (decided, status) = (found.decided(), found.status());
        let now_ns = own.monotonic_ns(now_ns);
        if decided == 0 || found.has_expired(now_ns) || !found.is_current() {
            return None;
        }
        if status & IPS_NAT_MASK != 0 && !hooks.translates(pf) {
            return None;
        }
        let (protocol, offset) = transport;
        let header = skb.network_header().get(offset..)?;
        let len = skb.network_len().checked_sub(offset)?;
        let Segment::Plain(plain) = Segment::of(protocol, header, len)? else { return None };
        Some(Passage { found, plain, transport, status, decided, now_ns })
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

    /// The decision, if it holds for a packet from `iif` to `oif`.
    #[inline(always)]
    fn decision<'s>(
        &self,
        iif: &Link,
        oif: &Link,
        (hooks, tables): (&Hooks, &Tables),
        own: &'s HookStates,
    ) -> Option<&'s Decision> {
        let decision = own.decisions.get(self.decided, hooks.basis(tables))?;
        let holds =
            decision.iif == iif.ifindex && (decision.oif == 0 || decision.oif == oif.ifindex);
        holds.then_some(decision)
    }

    /// Whether the packet may pass from `iif` to `oif`: it was decided, and the translation is possible.
    #[inline(always)]
    pub fn may_pass(
        &self,
        iif: &Link,
        oif: &Link,
        of: (&Hooks, &Tables),
        own: &HookStates,
    ) -> bool {
        let may_leave = |target: NatTarget| target.may_leave_by(self.found.direction(), Some(oif));
        self.decision(iif, oif, of, own).is_some() && self.target().is_none_or(may_leave)
    }

    /// The packet passes from `iif` to `oif`: it is translated and counted. `None`: it may not, see
    /// [`Passage::may_pass`], or the flow has changed meanwhile, and nothing was changed.
    #[inline(always)]
    pub fn pass(
        self,
        skb: &mut SkBuff,
        (iif, oif): (&Link, &Link),
        of: (&Hooks, &Tables),
        own: &HookStates,
    ) -> Option<Passed> {
        let decision = self.decision(iif, oif, of, own)?;
        if let Some(target) = self.target() {
            if !self.found.is_current() {
                return None;
            }
            skb.headers_may_change();
            nf_nat_both(skb, self.transport, &target.key, self.translated())?;
        }
        let octets = skb.network_len() as u64;
        if let Some(nft) = &of.0.nft {
            nft.count(decision.counters(), octets, own.worker);
        }
        self.plain.pass(&self.found);
        self.found.seen(octets, self.now_ns);
        Some(Passed(()))
    }
}
