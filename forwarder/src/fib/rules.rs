//! Policy routing: rules, the tables they refer to, and `fib_lookup` over both.
//!
//! Most hosts have only the kernel's three default rules; main and local are then one table, as in
//! `fib_trie_unmerge`, and a lookup is a single longest-prefix match.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::info::{FibInfo, RouteType};
use super::lpm::Lpm;
use super::prefix::Address;
use crate::stats::PuntReason;

/// A longest-prefix match from an address to a leaf; leaf 0 is no route.
pub trait PrefixMatch {
    /// An address in host byte order: `u32` or `u128`.
    type Addr: Copy + PartialEq;
    /// The leaf of the longest prefix that covers `addr`.
    fn lookup(&self, addr: Self::Addr) -> u32;
    /// `addr` without its host bits, for a prefix of `len` bits.
    fn network(addr: Self::Addr, len: u8) -> Self::Addr;
}

/// The key of a lookup (`flowi4`/`flowi6`). Addresses in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow<A> {
    /// Source address.
    pub saddr: A,
    /// Destination address.
    pub daddr: A,
    /// ifindex of the input interface; 0 for our own packets.
    pub iif: u32,
    /// fwmark.
    pub mark: u32,
}

/// The action of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleAction {
    /// FR_ACT_TO_TBL, by position in [`FamilyFib::tables`]; `None`: the table is empty.
    Lookup(Option<u32>),
    /// FR_ACT_GOTO, by position in the rules.
    Goto(u32),
    /// FR_ACT_NOP, and a goto without a target.
    Nop,
    /// A result: blackhole, unreachable, prohibit; or punt, for what is not mirrored.
    Answer(RouteType),
}

/// One rule, in order of priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule<A> {
    /// Lower values are evaluated first.
    pub priority: u32,
    /// FIB_RULE_INVERT: matches if the selectors do not.
    pub invert: bool,
    /// Source prefix.
    pub from: Option<(A, u8)>,
    /// Destination prefix.
    pub to: Option<(A, u8)>,
    /// Incoming interface; `Some(0)`: an interface that does not exist, which matches nothing.
    pub iif: Option<u32>,
    /// fwmark value and mask.
    pub fwmark: Option<(u32, u32)>,
    /// The action.
    pub action: RuleAction,
}

impl<A: Copy + PartialEq> Rule<A> {
    /// A rule that matches every packet.
    pub const fn for_all(priority: u32, action: RuleAction) -> Rule<A> {
        Rule { priority, invert: false, from: None, to: None, iif: None, fwmark: None, action }
    }

    #[inline]
    fn matches<L: PrefixMatch<Addr = A>>(&self, flow: &Flow<A>) -> bool {
        let in_prefix = |prefix: Option<(A, u8)>, addr: A| {
            prefix.is_none_or(|(net, len)| L::network(addr, len) == net)
        };
        let all = in_prefix(self.from, flow.saddr)
            && in_prefix(self.to, flow.daddr)
            && self.iif.is_none_or(|iif| iif != 0 && iif == flow.iif)
            && self.fwmark.is_none_or(|(mark, mask)| flow.mark & mask == mark & mask);
        all != self.invert
    }
}

/// The routes of one address family.
#[derive(Debug)]
pub struct FamilyFib<L: PrefixMatch> {
    /// Longest-prefix matches, one per routing table; their leaves index [`Self::infos`]. Position 0 is
    /// main and local merged if [`Self::merged`] is set.
    pub tables: Arc<[Arc<L>]>,
    /// Only the kernel's default rules exist: a lookup in position 0 (then `default_table`) is
    /// sufficient.
    pub merged: bool,
    /// RT_TABLE_DEFAULT, when it has routes.
    pub default_table: Option<u32>,
    /// In order of priority; not evaluated when `merged`.
    pub rules: Arc<[Rule<L::Addr>]>,
    /// RT_TABLE_LOCAL, when it is a table of its own that a rule looks up.
    pub local_table: Option<u32>,
    /// A next hop is not used because its interface has no carrier (`ignore_routes_with_linkdown`). Lookups
    /// of rules of nftables would use it.
    pub ignores_linkdown: bool,
    /// IPv6: prefixes of which `ip6_route_lookup` may choose another route than `ip6_route_input` does.
    pub irregular: Arc<[(L::Addr, u8)]>,
    /// By leaf; position 0 is never used.
    pub infos: Arc<[Arc<FibInfo>]>,
    /// Incremented after routes in `tables` have changed in place: what was looked up before may no longer hold.
    pub changes: Arc<AtomicU64>,
}

impl<L: PrefixMatch> FamilyFib<L> {
    /// Whether the route of a packet may depend on its mark.
    pub fn looks_at_marks(&self) -> bool {
        !self.merged && self.rules.iter().any(|rule| rule.fwmark.is_some())
    }
}

/// The result of a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibResult<'a> {
    /// A route; its type gives the action. Never `Throw`.
    Route(&'a FibInfo),
    /// The result of a rule.
    Rule(RouteType),
    /// ENETUNREACH.
    NoRoute,
}

/// A leaf without an info: the tables in use are older than the trie, so the packet is punted.
const STALE: FibResult<'static> = FibResult::Rule(RouteType::Punt(PuntReason::NotReady));

/// Shares everything; written out because a derived one would require `L: Clone`.
impl<L: PrefixMatch> Clone for FamilyFib<L> {
    fn clone(&self) -> FamilyFib<L> {
        FamilyFib {
            tables: Arc::clone(&self.tables),
            merged: self.merged,
            default_table: self.default_table,
            local_table: self.local_table,
            ignores_linkdown: self.ignores_linkdown,
            irregular: Arc::clone(&self.irregular),
            rules: Arc::clone(&self.rules),
            infos: Arc::clone(&self.infos),
            changes: Arc::clone(&self.changes),
        }
    }
}

impl<A: Address> FamilyFib<Lpm<A>> {
    /// The unicast route that all addresses have whose first `len` bits are those of `addr`, whatever else is known of
    /// a packet. `None`: they have several, or another one.
    pub fn uniform_route(&self, addr: A, len: u8) -> Option<&FibInfo> {
        let table = self.tables.first().filter(|_| self.merged)?;
        let (leaf, depth) = table.lookup_depth(addr);
        if depth <= len { self.unicast(leaf) } else { None }
    }
}

impl<L: PrefixMatch> FamilyFib<L> {
    /// A family without routes.
    pub fn empty() -> FamilyFib<L> {
        FamilyFib {
            tables: Arc::new([]),
            merged: true,
            default_table: None,
            local_table: None,
            ignores_linkdown: false,
            irregular: Arc::new([]),
            rules: Arc::new([]),
            infos: Arc::new([]),
            changes: Arc::default(),
        }
    }

    /// How often routes have changed in place. What is looked up after this call is not older.
    #[inline]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Whether a rule makes every packet that is not for this host end as [`RouteType::Punt`]: then
    /// packets need not be brought to userspace at all. Only rules of priority 0 (the local table) may
    /// precede that rule.
    pub fn punts_all(&self) -> bool {
        let everything = |rule: &&Rule<L::Addr>| {
            !rule.invert
                && rule.from.is_none()
                && rule.to.is_none()
                && rule.iif.is_none()
                && rule.fwmark.is_none()
                && matches!(rule.action, RuleAction::Answer(RouteType::Punt(_)))
        };
        !self.merged
            && self.rules.iter().find(|rule| rule.priority != 0).is_some_and(|first| {
                everything(&first)
                    || self.rules.iter().take_while(|r| r.priority == 0).any(|r| everything(&r))
            })
    }

    /// `fib_lookup`: the route for a flow, by evaluating the rules.
    #[inline]
    pub fn fib_lookup(&self, flow: &Flow<L::Addr>) -> FibResult<'_> {
        if !self.merged {
            return self.fib_rules_lookup(flow);
        }
        match self.table_lookup(Some(0), flow.daddr) {
            Some(found) => found,
            None => self.default_lookup(flow),
        }
    }

    /// `fib_table_lookup` in the local table, of which the main table may be a part.
    pub fn local_lookup(&self, daddr: L::Addr) -> FibResult<'_> {
        let table = if self.merged { Some(0) } else { self.local_table };
        match table.filter(|table| (*table as usize) < self.tables.len()) {
            Some(table) => self.table_lookup(Some(table), daddr).unwrap_or(FibResult::NoRoute),
            None => STALE,
        }
    }

    /// The last of the kernel's three rules.
    #[cold]
    fn default_lookup(&self, flow: &Flow<L::Addr>) -> FibResult<'_> {
        self.table_lookup(self.default_table, flow.daddr).unwrap_or(FibResult::NoRoute)
    }

    /// The route of a leaf found before in the merged table, if it is a unicast route.
    #[inline]
    pub fn unicast(&self, leaf: u32) -> Option<&FibInfo> {
        let info = self.infos.get(leaf as usize).filter(|_| leaf != 0)?;
        (info.kind == RouteType::Unicast).then_some(info)
    }

    /// `None`: no route in this table, or a throw; the next rule is evaluated.
    #[inline]
    fn table_lookup(&self, table: Option<u32>, daddr: L::Addr) -> Option<FibResult<'_>> {
        let leaf = self.tables.get(table? as usize)?.lookup(daddr);
        if leaf == 0 {
            return None;
        }
        match self.infos.get(leaf as usize) {
            Some(info) if info.kind == RouteType::Throw => None,
            Some(info) => Some(FibResult::Route(info)),
            None => Some(STALE),
        }
    }

    /// Kernel: `fib_rules_lookup`. A goto only leads forward, so the loop ends.
    #[inline(never)]
    fn fib_rules_lookup(&self, flow: &Flow<L::Addr>) -> FibResult<'_> {
        let mut at = 0;
        while let Some(rule) = self.rules.get(at) {
            at += 1;
            if !rule.matches::<L>(flow) {
                continue;
            }
            match rule.action {
                RuleAction::Lookup(table) => {
                    if let Some(found) = self.table_lookup(table, flow.daddr) {
                        return found;
                    }
                }
                RuleAction::Goto(target) => at = at.max(target as usize),
                RuleAction::Nop => {}
                RuleAction::Answer(kind) => return FibResult::Rule(kind),
            }
        }
        FibResult::NoRoute
    }
}
