//! Compiles policy rules for workers, and determines the tables they need.

use crate::control::mirror::rib::{Rib, RibAddr};
use crate::control::mirror::state::{Family, RouterState, RuleState};
use crate::fib::{Prefix, RouteType, Rule, RuleAction};
use crate::stats::PuntReason;

/// RT_TABLE_DEFAULT.
pub const RT_TABLE_DEFAULT: u32 = 253;
/// RT_TABLE_MAIN.
pub const RT_TABLE_MAIN: u32 = 254;
/// RT_TABLE_LOCAL.
pub const RT_TABLE_LOCAL: u32 = 255;

const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_GOTO: u8 = 2;
const FR_ACT_NOP: u8 = 3;
const FR_ACT_BLACKHOLE: u8 = 6;
const FR_ACT_UNREACHABLE: u8 = 7;
const FR_ACT_PROHIBIT: u8 = 8;

/// FRA_L3MDEV.
const FRA_L3MDEV: u16 = 19;

/// A table as one rule looks it up. With suppress_prefixlength n, a successful lookup of a prefix
/// of up to n bits is ignored and the next rule is evaluated (`fib4_rule_suppress`,
/// `fib6_rule_suppress`). Routes that reject packets are not ignored: the kernel checks for
/// suppression only after a successful lookup (`fib_rules_lookup`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeKey {
    /// RT_TABLE_*.
    pub table: u32,
    /// Shortest prefix length, in bits, that is not suppressed.
    pub shortest: u32,
}

impl TreeKey {
    /// The whole table.
    pub fn whole(table: u32) -> TreeKey {
        TreeKey { table, shortest: 0 }
    }
}

fn tree_key(rule: &RuleState) -> TreeKey {
    let suppressed = rule.suppress_prefixlen.and_then(|len| u32::try_from(len).ok());
    let shortest = suppressed.map_or(0, |len| len.saturating_add(1));
    TreeKey { table: rule.table, shortest }
}

/// The kernel's initial rules (`fib_default_rules_init`, `fib6_rules_net_init`), as (priority,
/// table).
fn default_rules(family: Family) -> &'static [(u32, u32)] {
    match family {
        Family::V4 => &[(0, RT_TABLE_LOCAL), (32766, RT_TABLE_MAIN), (32767, RT_TABLE_DEFAULT)],
        Family::V6 => &[(0, RT_TABLE_LOCAL), (32766, RT_TABLE_MAIN)],
    }
}

/// Whether the rules are exactly the kernel's initial ones.
pub fn has_default(rules: &[RuleState], family: Family) -> bool {
    is_default(rules, default_rules(family))
}

fn is_default(rules: &[RuleState], default: &[(u32, u32)]) -> bool {
    rules.len() == default.len()
        && rules.iter().zip(default).all(|(rule, (priority, table))| {
            rule.priority == *priority
                && tree_key(rule) == TreeKey::whole(*table)
                && rule.action == FR_ACT_TO_TBL
                && is_bare(rule)
        })
}

/// IPv6: whether some of the initial rules are missing and there are no others. Until another rule
/// has existed, the kernel ignores its rules and looks up local and main (`fib6_has_custom_rules`);
/// it does not report this state.
pub fn is_undecided(rules: &[RuleState], family: Family) -> bool {
    let default = default_rules(family);
    let is_one = |rule: &RuleState| {
        default.iter().any(|one| is_default(std::slice::from_ref(rule), std::slice::from_ref(one)))
    };
    family == Family::V6 && rules.len() < default.len() && rules.iter().all(is_one)
}

/// Has no selector.
fn is_bare(rule: &RuleState) -> bool {
    !rule.invert
        && rule.from.is_none()
        && rule.to.is_none()
        && rule.iif.is_none()
        && rule.oif.is_none()
        && rule.fwmark.is_none()
        && rule.tos == 0
        && rule.other.is_empty()
}

/// A rule that sends traffic to VRFs. Interfaces in a VRF are not followed, and packets received on
/// others do not match it (`l3mdev_fib_rule_match`).
fn is_l3mdev(rule: &RuleState) -> bool {
    matches!(rule.other.as_slice(), [(FRA_L3MDEV, _)])
}

/// Which part of a rule is not supported; `None` if all of it is.
pub fn unsupported(rule: &RuleState) -> Option<String> {
    if rule.tos != 0 {
        return Some("selects by tos".into());
    }
    if is_l3mdev(rule) && rule.invert {
        return Some("matches packets that are not in a VRF".into());
    }
    if !is_l3mdev(rule)
        && let Some((attr, _)) = rule.other.first()
    {
        return Some(match attr {
            12 => "selects by tun_id".into(),
            13 => "suppresses by interface group".into(),
            19 => "leads into a VRF".into(),
            20 => "selects by uidrange".into(),
            22 => "selects by ipproto".into(),
            23 | 28 => "selects by sport".into(),
            24 | 29 => "selects by dport".into(),
            25 | 30 => "selects by dscp".into(),
            26 | 27 => "selects by flowlabel".into(),
            other => format!("has an unknown attribute (FRA {other})"),
        });
    }
    let known = [
        FR_ACT_TO_TBL,
        FR_ACT_GOTO,
        FR_ACT_NOP,
        FR_ACT_BLACKHOLE,
        FR_ACT_UNREACHABLE,
        FR_ACT_PROHIBIT,
    ];
    (!known.contains(&rule.action)).then(|| format!("unknown action {}", rule.action))
}

/// The tables that rules look up and that have routes, each once.
pub fn trees<A: RibAddr>(rules: &[RuleState], rib: &Rib<A>) -> Vec<TreeKey> {
    let mut keys: Vec<TreeKey> = rules
        .iter()
        .filter(|rule| rule.action == FR_ACT_TO_TBL && unsupported(rule).is_none())
        .map(tree_key)
        .filter(|key| rib.table(key.table).next().is_some())
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Compiles the rules; `trees` gives the index of each table.
pub fn compile<A: RibAddr>(
    state: &RouterState,
    rules: &[RuleState],
    trees: &[TreeKey],
) -> Vec<Rule<A>> {
    rules.iter().map(|rule| compile_rule(state, rules, rule, trees)).collect()
}

fn compile_rule<A: RibAddr>(
    state: &RouterState,
    rules: &[RuleState],
    rule: &RuleState,
    trees: &[TreeKey],
) -> Rule<A> {
    let punt = RuleAction::Answer(RouteType::Punt(PuntReason::RuleUnsupported));
    let unsupported = unsupported(rule).is_some();
    if unsupported && rule.invert {
        // It is unknown which packets match it, so any packet may.
        return Rule::for_all(rule.priority, punt);
    }
    let action = match rule.action {
        _ if unsupported => punt,
        FR_ACT_TO_TBL => {
            let at = trees.iter().position(|key| *key == tree_key(rule));
            RuleAction::Lookup(at.map(|at| at as u32))
        }
        FR_ACT_GOTO => {
            let target = rules.iter().position(|other| Some(other.priority) == rule.goto);
            target.map_or(RuleAction::Nop, |at| RuleAction::Goto(at as u32))
        }
        FR_ACT_BLACKHOLE => RuleAction::Answer(RouteType::Blackhole),
        FR_ACT_UNREACHABLE => RuleAction::Answer(RouteType::Unreachable),
        FR_ACT_PROHIBIT => RuleAction::Answer(RouteType::Prohibit),
        _ => RuleAction::Nop,
    };
    let ifindex = |name: &str| {
        state.links.values().find(|link| link.name == name).map_or(0, |link| link.ifindex)
    };
    // A packet has no output interface before it is routed, so such a rule does not match.
    let never = rule.oif.is_some() || is_l3mdev(rule);
    Rule {
        priority: rule.priority,
        invert: rule.invert,
        from: prefix(rule.from),
        to: prefix(rule.to),
        iif: if never { Some(0) } else { rule.iif.as_deref().map(ifindex) },
        fwmark: rule.fwmark,
        action,
    }
}

fn prefix<A: RibAddr>(prefix: Option<(std::net::IpAddr, u8)>) -> Option<(A, u8)> {
    let (addr, len) = prefix?;
    let prefix = Prefix::truncated(A::from_ip(addr)?, len).ok()?;
    Some((prefix.bits(), prefix.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::mirror::tests::leaves::default_rule;

    #[test]
    fn prefixes_up_to_the_length_are_suppressed_and_none_by_a_negative_one() {
        let shortest = |suppress_prefixlen| {
            let rule = default_rule(Family::V4, 500, 100);
            tree_key(&RuleState { suppress_prefixlen, ..rule }).shortest
        };
        assert_eq!([None, Some(0), Some(16)].map(shortest), [0, 1, 17]);
        assert_eq!([Some(-6), Some(i32::MIN)].map(shortest), [0, 0]);
    }
}
