//! IPsec policies of the kernel (`struct netns_xfrm`), and which packets they concern.

use crate::ipsec::{Action, Direction, Family, Flow, Order, Policy, Spd};

/// The policies for forwarded packets. The default has none.
#[derive(Debug, Default)]
pub struct XfrmPolicies {
    spd: Spd,
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
    len: usize,
}

impl XfrmPolicies {
    /// Builds them. Defaults that block are not included.
    #[must_use]
    pub fn new(mut policies: Vec<(Direction, Policy)>) -> XfrmPolicies {
        let mut new = XfrmPolicies { len: policies.len(), ..XfrmPolicies::default() };
        for (direction, policy) in &policies {
            let family = policy.family as usize;
            let at = match direction {
                Direction::In => continue,
                Direction::Fwd => 0,
                Direction::Out => 1,
            };
            new.has_icmp[family] |= policy.has_icmp && at == 1;
            // Of a permission, too, errors may be concerned, see `concerns_error`.
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
        new.spd = Spd::new(policies, Order::OldestFirst, [Action::Allow; 3]);
        new
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
            && (flow.is_icmp_error() || self.concerns(Direction::Fwd, flow))
    }

    /// Whether a packet that is sent is to be protected, or dropped: `xfrm_lookup` of direction out.
    #[must_use]
    pub fn concerns_sent(&self, flow: &Flow) -> bool {
        let family = flow.family() as usize;
        // The same of those policies, if they have the flag (`xfrm_out_fwd_icmp`).
        let by_quoted = || self.has_icmp[family] && flow.is_icmp_error();
        self.concerned[1][family] && (by_quoted() || self.concerns(Direction::Out, flow))
    }

    /// Whether an ICMP error of the router is to be protected, or dropped: `icmp_route_lookup`. The kernel may look up
    /// the quoted packet, too, and send the error by the route of that. It does not look the error up with an output
    /// interface, and with another mark than 0 if `fwmark_reflect` is set.
    #[must_use]
    pub fn concerns_error(&self, flow: &Flow) -> bool {
        let family = flow.family() as usize;
        self.has_icmp[family]
            || self.sees_marks[family]
            || self.concerns_sent(flow)
            || self.concerns_sent(&Flow { oif: 0, ..*flow })
    }

    fn concerns(&self, direction: Direction, flow: &Flow) -> bool {
        self.spd.lookup(direction, flow, 0).is_some_and(|policy| !is_permission(policy))
    }
}

/// Whether packets pass unchanged.
fn is_permission(policy: &Policy) -> bool {
    policy.action == Action::Allow && policy.templates.is_empty() && !policy.is_kernels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipsec::{Mark, Mode, Prefix, Selector, Template};
    use crate::wire::Protocol;

    fn policy(dst: &str, priority: u32) -> Policy {
        Policy {
            index: 1,
            priority,
            family: Family::Ipv4,
            selector: Selector {
                dst: Prefix { addr: dst.parse().expect("an address"), len: 24 },
                ..Selector::default()
            },
            mark: Mark::default(),
            if_id: 0,
            action: Action::Allow,
            has_icmp: false,
            is_kernels: false,
            templates: Vec::new(),
        }
    }

    fn protected(dst: &str, priority: u32) -> Policy {
        let any = "0.0.0.0".parse().expect("an address");
        let esp = Template {
            src: any,
            dst: any,
            spi: 0,
            proto: Protocol::ESP,
            mode: Mode::Transport,
            reqid: 0,
            is_optional: false,
            aalgos: None,
        };
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
        assert!(!policies.concerns_error(&error), "it is for received packets");
        let permission = Policy { has_icmp: true, ..policy("10.0.1.0", 5) };
        let policies = XfrmPolicies::new(vec![(Direction::Out, permission)]);
        assert!(policies.concern_sent(Family::Ipv4) && policies.concerns_error(&error));
        assert!(policies.concerns_sent(&error), "what it quotes may match");
        assert!(!policies.concerns_sent(&Flow { sport: 8, ..error }));
        // Of errors, the kernel knows neither output interface nor mark.
        let mut of_dev = policy("10.0.9.0", 5);
        of_dev.selector.ifindex = 3;
        let list = vec![(Direction::Out, of_dev), (Direction::Out, protected("10.0.9.0", 6))];
        let policies = XfrmPolicies::new(list);
        assert!(!policies.concerns_sent(&error) && policies.concerns_error(&error));
    }
}
