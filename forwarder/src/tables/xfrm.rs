//! IPsec policies and security associations of the kernel (`struct netns_xfrm`): which packets policies concern, and
//! which of these workers protect themselves.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::hash_table::{HashTable, Slot};
use crate::ipsec::{
    Action, Direction, Error, Family, Flow, InboundState, Mode, Order, OutboundState, Policy,
    Received, Sad, Spd, State, Template,
};
use crate::wire::Protocol;

/// The security associations that workers use. The default has none.
#[derive(Debug, Default)]
pub struct XfrmStates {
    /// For receiving.
    pub inbound: Sad,
    /// For sending, the oldest first.
    pub outbound: Vec<Arc<OutboundState>>,
    /// SAs that only the kernel can use.
    pub kernels: Vec<Wanted>,
}

/// What a template says of the SA that it wants, and an SA of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// Destination: of the outer header.
    pub dst: IpAddr,
    /// ESP or AH.
    pub proto: Protocol,
    /// The number that policies refer to it by.
    pub reqid: u32,
    /// The xfrm interface that it belongs to; 0: none.
    pub if_id: u32,
}

impl Wanted {
    fn of_state(state: &State) -> Wanted {
        let config = state.config();
        let (dst, proto) = (config.dst, state.protocol());
        Wanted { dst, proto, reqid: config.reqid, if_id: config.if_id }
    }

    fn of_template(policy: &Policy, template: &Template) -> Wanted {
        let Template { dst, proto, reqid, .. } = *template;
        Wanted { dst, proto, reqid, if_id: policy.if_id }
    }
}

/// What happens to a packet that is sent.
#[derive(Clone, Copy, Debug)]
pub enum XfrmLookup<'a> {
    /// It passes unchanged.
    Pass,
    /// Workers protect it.
    Protect(&'a OutboundState),
    /// A policy concerns it that only the kernel can apply now.
    Kernel,
}

/// The SAs of a policy: a part of [`XfrmPolicies::bundles`], by the policy's index.
#[derive(Clone, Copy, Debug, Default)]
struct Bundles {
    index: u32,
    start: u32,
    /// 0: the slot is empty.
    len: u32,
}

impl Slot for Bundles {
    type Key = u32;
    type Value = (usize, usize);

    #[inline]
    fn key(&self) -> u32 {
        self.index
    }

    #[inline]
    fn value(&self) -> Option<(usize, usize)> {
        (self.len != 0).then_some((self.start as usize, (self.start + self.len) as usize))
    }

    #[inline]
    fn hash(index: u32) -> usize {
        // The kernel's indexes count in steps of 8.
        (index >> 3) as usize
    }
}

/// The policies for forwarded packets, and the SAs of these. The default has none.
#[derive(Debug, Default)]
pub struct XfrmPolicies {
    spd: Spd,
    states: Arc<XfrmStates>,
    /// SAs that workers may protect packets of a policy with, together for each policy, and where they are.
    bundles: Vec<Arc<OutboundState>>,
    of_policy: HashTable<Bundles>,
    /// Policies that are not mere permissions, for packets that are received and for those that are sent; by family.
    concerned: [[bool; 2]; 2],
    /// By family: a policy is for marked packets.
    sees_marks: [bool; 2],
    /// By family: a policy for packets that are sent has XFRM_POLICY_ICMP.
    has_icmp: [bool; 2],
    /// A policy is for packets of a protocol, or with ports or a mark.
    sees_upper: bool,
    /// Or judges ICMP errors by what they quote.
    sees_quoted: bool,
    /// They are of a file: see [`of_file`](Self::of_file).
    is_of_file: bool,
    /// And the kernel does not have the same.
    is_unguarded: bool,
    len: usize,
}

impl XfrmPolicies {
    /// Builds them from policies in the order of a dump. Defaults that block are not included.
    #[must_use]
    pub fn new(policies: Vec<(Direction, Policy)>) -> XfrmPolicies {
        XfrmPolicies::with_states(policies, Arc::default())
    }

    /// The same, and workers use these SAs.
    #[must_use]
    pub fn with_states(
        mut policies: Vec<(Direction, Policy)>,
        states: Arc<XfrmStates>,
    ) -> XfrmPolicies {
        // As they were added.
        policies.reverse();
        let mut new = XfrmPolicies { len: policies.len(), ..XfrmPolicies::default() };
        for (direction, policy) in &policies {
            let family = policy.family as usize;
            let at = match direction {
                Direction::In => continue,
                Direction::Fwd => 0,
                Direction::Out => 1,
            };
            new.has_icmp[family] |= policy.has_icmp && at == 1;
            // Of a permission, too, errors may be concerned, see `lookup_error`.
            new.concerned[at][family] |= !is_permission(policy) || (at == 1 && policy.has_icmp);
            new.sees_marks[family] |= policy.mark.mask != 0;
            let selector = &policy.selector;
            let (ports, is_marked) = (selector.sport.1 | selector.dport.1, policy.mark.mask != 0);
            // ICMP errors are judged by what they quote: a policy for received packets is not for them alone.
            new.sees_quoted |= policy.has_icmp || (at == 0 && !is_permission(policy));
            new.sees_upper |= selector.proto != 0 || ports != 0 || is_marked;
        }
        // A dump does not tell which of two policies of equal priority wins if one of them was replaced. The one that
        // is no permission does here: the kernel, which knows, gets the packet.
        policies.sort_by_key(|(_, policy)| is_permission(policy));
        new.bundle(&policies, &states);
        new.states = states;
        new.spd = Spd::new(policies, Order::OldestFirst, [Action::Allow; 3]);
        new
    }

    /// The same, where the SAs are those of a file: the kernel, which has none of them, could neither open nor protect
    /// packets. What a policy concerns is dropped instead of handed over. `is_guarded`: the kernel has the same policies, and
    /// drops what it gets of these packets.
    #[must_use]
    pub fn of_file(self, is_guarded: bool) -> XfrmPolicies {
        XfrmPolicies { is_of_file: true, is_unguarded: !is_guarded, ..self }
    }

    /// Whether packets that a policy concerns must not be handed to the kernel.
    #[inline]
    #[must_use]
    pub fn are_of_file(&self) -> bool {
        self.is_of_file
    }

    /// Whether the kernel would forward in clear what the policies of a file protect.
    #[inline]
    #[must_use]
    pub fn are_unguarded(&self) -> bool {
        self.is_unguarded
    }

    /// Finds the SAs of each policy.
    fn bundle(&mut self, policies: &[(Direction, Policy)], states: &XfrmStates) {
        if states.outbound.is_empty() {
            return;
        }
        let kernels: HashSet<Wanted> = states.kernels.iter().copied().collect();
        let mut by_wanted: HashMap<Wanted, Vec<&Arc<OutboundState>>> = HashMap::new();
        for state in &states.outbound {
            by_wanted.entry(Wanted::of_state(state.state())).or_default().push(state);
        }
        let mut places = Vec::new();
        for (direction, policy) in policies {
            let template = template(policy).filter(|_| *direction == Direction::Out);
            let wanted = template.map(|template| Wanted::of_template(policy, template));
            let Some(wanted) = wanted else { continue };
            // Which of several SAs the kernel takes is known only if all of them are.
            let known = by_wanted.get(&wanted).filter(|_| !kernels.contains(&wanted));
            let Some(known) = known else { continue };
            let start = self.bundles.len() as u32;
            self.bundles.extend(known.iter().map(|state| Arc::clone(state)));
            places.push(Bundles { index: policy.index, start, len: known.len() as u32 });
        }
        self.of_policy = HashTable::new(places.iter().copied());
    }

    /// The SAs that workers use.
    #[must_use]
    pub fn states(&self) -> &Arc<XfrmStates> {
        &self.states
    }

    /// Whether workers have SAs for receiving.
    #[inline]
    #[must_use]
    pub fn has_inbound(&self) -> bool {
        !self.states.inbound.is_empty()
    }

    /// Whether policies or SAs may concern packets at all.
    #[inline]
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.concern_any() || self.has_inbound()
    }

    /// What happens to a packet that is forwarded: `xfrm_lookup` of direction out. Time in seconds.
    #[must_use]
    pub fn lookup_sent(&self, flow: &Flow, now_s: u64) -> XfrmLookup<'_> {
        self.lookup_sent_by(0, flow, now_s)
    }

    /// The same among the policies of an xfrm interface, by which it is sent: `xfrm_lookup_with_ifid`. What passes, such
    /// an interface does not send.
    #[must_use]
    pub fn lookup_sent_by(&self, if_id: u32, flow: &Flow, now_s: u64) -> XfrmLookup<'_> {
        let policy = match self.sent(flow, if_id) {
            None => return XfrmLookup::Pass,
            Some(None) => return XfrmLookup::Kernel,
            Some(Some(policy)) => policy,
        };
        if self.spd.has_rival(Direction::Out, flow, if_id, policy) {
            return XfrmLookup::Kernel;
        }
        let state = || {
            let (start, end) = self.of_policy.get(policy.index)?;
            let states = self.bundles.get(start..end)?.iter().map(Arc::as_ref);
            template(policy)?.best_outbound(policy, flow, now_s, states, Order::OldestFirst)
        };
        state().map_or(XfrmLookup::Kernel, XfrmLookup::Protect)
    }

    /// Whether a forwarded packet that SAs have protected passes (`__xfrm_policy_check` of direction fwd). If not, the
    /// kernel decides. `flow`: without the protection. It was received by the xfrm interface of the SA, if that has one.
    #[must_use]
    pub fn permits_opened(&self, flow: &Flow, state: &InboundState) -> bool {
        let if_id = state.state().config().if_id;
        let is_kernels = |policy: &Policy| {
            policy.is_kernels || self.spd.has_rival(Direction::Fwd, flow, if_id, policy)
        };
        if self.spd.lookup(Direction::Fwd, flow, if_id).is_some_and(is_kernels) {
            return false;
        }
        let secpath = [state.state()];
        let received =
            Received { flow: *flow, secpath: &secpath, verified: 0, if_id, quoted: None };
        self.spd.policy_check(Direction::Fwd, &received).is_ok()
    }

    /// Why a forwarded packet does not pass (`__xfrm_policy_check` of direction fwd). `state`: which SA has protected it.
    /// `None`: it passes.
    #[must_use]
    pub fn refusal(&self, flow: &Flow, state: Option<&InboundState>) -> Option<Error> {
        let secpath = state.map(InboundState::state);
        let secpath = secpath.as_slice();
        let received = Received { flow: *flow, secpath, verified: 0, if_id: 0, quoted: None };
        self.spd.policy_check(Direction::Fwd, &received).err()
    }

    /// Whether a policy drops what it concerns of packets that are sent.
    #[must_use]
    pub fn blocks_sent(&self, flow: &Flow) -> bool {
        self.sent(flow, 0).flatten().is_some_and(|policy| policy.action == Action::Block)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no policy at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a policy may concern forwarded packets of this family.
    #[inline]
    #[must_use]
    pub fn concern(&self, family: Family) -> bool {
        self.concerned[0][family as usize] || self.concerned[1][family as usize]
    }

    /// Whether a policy may concern forwarded packets at all.
    #[inline]
    #[must_use]
    pub fn concern_any(&self) -> bool {
        self.concern(Family::Ipv4) || self.concern(Family::Ipv6)
    }

    /// Whether a policy may concern packets of this family that are sent, the router's own among them.
    #[inline]
    #[must_use]
    pub fn concern_sent(&self, family: Family) -> bool {
        self.concerned[1][family as usize]
    }

    /// Whether what a policy does with a packet depends on its mark.
    #[inline]
    #[must_use]
    pub fn see_marks(&self, family: Family) -> bool {
        self.sees_marks[family as usize]
    }

    /// Whether what a policy does with a packet depends on more than its addresses and the interface that it leaves by.
    #[inline]
    #[must_use]
    pub fn see_more_than_addresses(&self) -> bool {
        self.sees_upper || self.sees_quoted
    }

    /// Whether it depends on the protocol, on ports or on the mark.
    #[inline]
    #[must_use]
    pub fn see_upper_layers(&self) -> bool {
        self.sees_upper
    }

    /// Whether a packet that is forwarded is more than permitted: `xfrm4_policy_check` of direction fwd. `flow`: that
    /// of the packet as received.
    #[must_use]
    pub fn concerns_received(&self, flow: &Flow) -> bool {
        self.concerned[0][flow.family() as usize]
            // The kernel may judge an error by the packet that it quotes (`xfrm_in_fwd_icmp`).
            && (flow.is_icmp_error()
                || self.spd.lookup(Direction::Fwd, flow, 0).is_some_and(|it| !is_permission(it)))
    }

    /// Whether a packet that is sent is to be protected, or dropped: `xfrm_lookup` of direction out.
    #[must_use]
    pub fn concerns_sent(&self, flow: &Flow) -> bool {
        self.sent(flow, 0).is_some()
    }

    /// The policy by which a packet that is sent is protected or dropped. `Some(None)`: it may be one that only the kernel
    /// finds.
    fn sent(&self, flow: &Flow, if_id: u32) -> Option<Option<&Policy>> {
        let family = flow.family() as usize;
        if !self.concerned[1][family] {
            return None;
        }
        if self.has_icmp[family] && flow.is_icmp_error() {
            // The same of those policies, if they have the flag (`xfrm_out_fwd_icmp`).
            return Some(None);
        }
        let policy = self.spd.lookup(Direction::Out, flow, if_id);
        policy.filter(|policy| !is_permission(policy)).map(Some)
    }

    /// What happens to an ICMP error of the router: `icmp_route_lookup`. The kernel may look up the quoted packet, too,
    /// and send the error by the route of that. It does not look the error up with an output interface, and with another
    /// mark than 0 if `fwmark_reflect` is set. Time in seconds.
    #[must_use]
    pub fn lookup_error(&self, flow: &Flow, now_s: u64) -> XfrmLookup<'_> {
        let family = flow.family() as usize;
        if self.has_icmp[family] || self.sees_marks[family] {
            return XfrmLookup::Kernel;
        }
        let lookups = [*flow, Flow { oif: 0, ..*flow }].map(|flow| self.lookup_sent(&flow, now_s));
        match lookups {
            [XfrmLookup::Pass, XfrmLookup::Pass] => XfrmLookup::Pass,
            [XfrmLookup::Protect(one), XfrmLookup::Protect(other)] if std::ptr::eq(one, other) => {
                XfrmLookup::Protect(one)
            }
            _ => XfrmLookup::Kernel,
        }
    }
}

/// The transformation of a policy that workers can apply: one tunnel, with an address of its own.
fn template(policy: &Policy) -> Option<&Template> {
    let [template] = policy.templates.as_slice() else { return None };
    let is_plain = policy.action == Action::Allow
        && !policy.is_kernels
        && template.mode == Mode::Tunnel
        && !template.is_optional
        && template.aalgos.is_none()
        && !template.src.is_unspecified();
    is_plain.then_some(template)
}

/// Whether packets pass unchanged.
fn is_permission(policy: &Policy) -> bool {
    policy.action == Action::Allow && policy.templates.is_empty() && !policy.is_kernels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipsec::{Mode, Prefix, Selector, Template};
    use crate::wire::Protocol;

    fn policy(dst: &str, priority: u32) -> Policy {
        let addr = dst.parse().expect("an address");
        let selector = Selector { dst: Prefix { addr, len: 24 }, ..Selector::default() };
        Policy { priority, ..Policy::new(Family::Ipv4, selector, Action::Allow) }
    }

    fn protected(dst: &str, priority: u32) -> Policy {
        let any = "0.0.0.0".parse().expect("an address");
        let mode = Mode::Transport;
        let esp = Template { mode, ..Template::tunnel(Protocol::ESP, [any, any], 0) };
        Policy { templates: vec![esp], ..policy(dst, priority) }
    }

    fn to(dst: &str) -> Flow {
        let [src, dst] = ["192.0.2.1", dst].map(|it| it.parse().expect("an address"));
        Flow { src, dst, proto: Protocol::UDP, sport: 1, dport: 2, oif: 3, mark: 0 }
    }

    #[test]
    fn packets_that_are_protected_or_dropped_are_concerned() {
        let blocked = Policy { action: Action::Block, ..policy("10.0.2.0", 5) };
        let limited = Policy { is_kernels: true, ..policy("10.0.3.0", 5) };
        let list = vec![
            (Direction::Out, protected("10.0.1.0", 5)),
            (Direction::Fwd, blocked),
            (Direction::Out, limited),
            (Direction::Out, policy("10.0.4.0", 5)),
            (Direction::In, protected("10.0.5.0", 5)),
        ];
        let policies = XfrmPolicies::new(list);
        let concerns =
            |dst| [policies.concerns_received(&to(dst)), policies.concerns_sent(&to(dst))];
        assert_eq!(concerns("10.0.1.9"), [false, true]);
        assert_eq!(concerns("10.0.2.9"), [true, false]);
        assert_eq!(concerns("10.0.3.9"), [false, true]);
        assert_eq!(concerns("10.0.4.9"), [false, false]);
        assert_eq!(concerns("10.0.5.9"), [false, false]);
        assert!(policies.concern(Family::Ipv4) && !policies.concern(Family::Ipv6));
        assert_eq!(policies.len(), 5);
    }

    #[test]
    fn a_permission_holds_only_if_its_priority_is_better() {
        for (permitted, concerned) in [(4, false), (5, true), (6, true)] {
            for turn in [false, true] {
                let mut list = vec![
                    (Direction::Out, policy("10.0.1.0", permitted)),
                    (Direction::Out, protected("10.0.1.0", 5)),
                ];
                if turn {
                    list.reverse();
                }
                let policies = XfrmPolicies::new(list);
                assert_eq!(policies.concerns_sent(&to("10.0.1.9")), concerned, "{permitted}");
            }
        }
    }

    #[test]
    fn permissions_alone_concern_nothing() {
        let policies = XfrmPolicies::new(vec![(Direction::Fwd, policy("10.0.1.0", 5))]);
        assert!(!policies.concern_any() && !policies.is_empty());
        assert!(!policies.see_more_than_addresses());
        let mut of_udp = protected("10.0.1.0", 5);
        of_udp.selector.proto = 17;
        assert!(XfrmPolicies::new(vec![(Direction::Out, of_udp)]).see_more_than_addresses());
        assert!(!XfrmPolicies::default().concern_any());
    }

    #[test]
    fn icmp_errors_may_be_judged_by_what_they_quote() {
        let error = Flow { proto: Protocol::ICMP, sport: 3, ..to("10.0.9.9") };
        let policies = XfrmPolicies::new(vec![(Direction::Fwd, protected("10.0.1.0", 5))]);
        assert!(policies.concerns_received(&error) && policies.see_more_than_addresses());
        assert!(!policies.concerns_received(&Flow { sport: 8, ..error }));
        let passes = |it: &XfrmPolicies| matches!(it.lookup_error(&error, 0), XfrmLookup::Pass);
        assert!(passes(&policies), "it is for received packets");
        let permission = Policy { has_icmp: true, ..policy("10.0.1.0", 5) };
        let policies = XfrmPolicies::new(vec![(Direction::Out, permission)]);
        assert!(policies.concern_sent(Family::Ipv4) && !passes(&policies));
        assert!(policies.concerns_sent(&error), "what it quotes may match");
        assert!(!policies.concerns_sent(&Flow { sport: 8, ..error }));
        // Of errors, the kernel knows neither output interface nor mark.
        let mut of_dev = policy("10.0.9.0", 5);
        of_dev.selector.ifindex = 3;
        let list = vec![(Direction::Out, of_dev), (Direction::Out, protected("10.0.9.0", 6))];
        let policies = XfrmPolicies::new(list);
        assert!(!policies.concerns_sent(&error) && !passes(&policies));
    }
}
