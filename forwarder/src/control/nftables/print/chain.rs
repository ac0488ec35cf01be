//! Properties of base chains: hooks, priorities, policies.

use super::one_line;
use crate::netfilter::nft::ruleset::{BaseChain, Family};

/// How far from a named priority one is printed relative to it (`prio2str` of nft).
const REACH: u32 = 10;

/// The line of a base chain's properties.
pub fn base_chain(family: Family, base: &BaseChain) -> String {
    let devices: Vec<String> =
        base.devices.iter().map(|name| format!("\"{}\"", one_line(name))).collect();
    let devices = match &devices[..] {
        [] => String::new(),
        [one] => format!(" device {one}"),
        many => format!(" devices = {{ {} }}", many.join(", ")),
    };
    format!(
        "type {} hook {}{devices} priority {}; policy {};",
        one_line(&base.kind),
        hook(family, base.hook),
        priority(family, base),
        policy(base)
    )
}

/// The name of a hook; its number if it has none.
pub fn hook(family: Family, number: u32) -> String {
    let names: &[&str] = match family {
        Family::Netdev => &["ingress", "egress"],
        Family::Other(3) => &["input", "output", "forward"],
        _ => &["prerouting", "input", "forward", "output", "postrouting", "ingress"],
    };
    names.get(number as usize).map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

/// The policy of a base chain.
pub fn policy(base: &BaseChain) -> &'static str {
    if base.policy_drops { "drop" } else { "accept" }
}

fn priority(family: Family, base: &BaseChain) -> String {
    let named: &[(&str, i32)] = match family {
        Family::Ip | Family::Ip6 | Family::Inet => &[
            ("raw", -300),
            ("mangle", -150),
            ("dstnat", -100),
            ("filter", 0),
            ("security", 50),
            ("srcnat", 100),
        ],
        Family::Other(7) => &[("dstnat", -300), ("filter", -200), ("out", 100), ("srcnat", 300)],
        Family::Netdev | Family::Other(3) => &[("filter", 0)],
        Family::Other(_) => &[],
    };
    let hook = hook(family, base.hook);
    let is_at = |name: &str| match name {
        "dstnat" => hook == "prerouting",
        "srcnat" => hook == "postrouting",
        "out" => hook == "output",
        _ => true,
    };
    let near =
        named.iter().find(|(name, value)| base.priority.abs_diff(*value) <= REACH && is_at(name));
    match near {
        None => base.priority.to_string(),
        Some((name, value)) => match base.priority.wrapping_sub(*value) {
            0 => (*name).to_owned(),
            above @ 1.. => format!("{name} + {above}"),
            below => format!("{name} - {}", below.unsigned_abs()),
        },
    }
}
