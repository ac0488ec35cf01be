//! Packets that pass all hooks as was decided for their flow, without the functions (as
//! `nf_flow_offload_ip_hook` of the kernel).
//!
//! Nothing is written before it is certain that the packet passes. Until then the caller may give up, and run the
//! functions.

use std::net::IpAddr;

use super::conntrack::{Carried, CtInfo, NatTarget, Plain, Segment, nf_nat_both};
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
    info: CtInfo,
    target: Option<NatTarget>,
    /// Protocol, and offset of its header from the network header, octets.
    transport: (u8, usize),
    /// Identifier of the decision.
    decided: u64,
    /// CLOCK_MONOTONIC.
    now_ns: u64,
}

/// Proof that a packet has passed all hooks.
#[derive(Debug)]
pub struct Passed(());

impl<'a> Passage<'a> {
    /// Of a packet of a flow. `None`: the functions must run. `transport`: protocol, and offset of its header from
    /// the network header, octets. `now_ns`: CLOCK_MONOTONIC.
    #[inline]
    pub fn of(
        found: Carried<'a>,
        skb: &SkBuff,
        transport: (u8, usize),
        hooks: &Hooks,
        now_ns: u64,
    ) -> Option<Passage<'a>> {
        let decided = found.decided();
        if decided == 0 || found.has_expired(now_ns) {
            return None;
        }
        let (protocol, offset) = transport;
        let header = skb.network_header().get(offset..)?;
        let len = skb.network_len().checked_sub(offset)?;
        let Segment::Plain(plain) = Segment::of(protocol, header, len)? else { return None };
        let (info, target) = found.read()?;
        if let Some(target) = &target {
            let pf = if target.key.is_ipv4() { Family::Ip } else { Family::Ip6 };
            if !hooks.translates(pf) {
                return None;
            }
        }
        Some(Passage { found, plain, info, target, transport, decided, now_ns })
    }

    /// The destination by which the packet is routed, if it is translated.
    #[inline]
    pub fn daddr(&self) -> Option<IpAddr> {
        let key = self.target.as_ref()?.destination(&self.info)?;
        let [_, daddr] = key.addresses();
        Some(daddr)
    }

    /// The decision, if it holds for a packet from `iif` to `oif`.
    #[inline]
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
    #[inline]
    pub fn may_pass(
        &self,
        iif: &Link,
        oif: &Link,
        of: (&Hooks, &Tables),
        own: &HookStates,
    ) -> bool {
        let may_leave = self.target.is_none_or(|target| target.may_leave_by(&self.info, Some(oif)));
        may_leave && self.decision(iif, oif, of, own).is_some()
    }

    /// The packet passes from `iif` to `oif`: it is translated and counted. `None`: it may not, see
    /// [`Passage::may_pass`], and nothing has changed.
    #[inline]
    pub fn pass(
        self,
        skb: &mut SkBuff,
        (iif, oif): (&Link, &Link),
        of: (&Hooks, &Tables),
        own: &HookStates,
    ) -> Option<Passed> {
        let decision = self.decision(iif, oif, of, own)?;
        if let Some(target) = &self.target {
            skb.headers_may_change();
            nf_nat_both(skb, self.transport, oif, &self.info, target)?;
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
