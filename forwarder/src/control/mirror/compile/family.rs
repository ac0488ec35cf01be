//! The routes of one family: longest-prefix-match trees kept in sync with the RIB, and the
//! `FibInfo` of each leaf.
//!
//! A leaf is the id of a route body: a route without table and prefix, shared by all prefixes with
//! equal routes. When next hops change (an interface goes down, a nexthop
//! object is replaced), only the infos are published again; no tree changes, however many prefixes
//! use the body.
//!
//! The order of updates matters, because workers read trees while they change. The info of a new
//! leaf is published before a tree refers to it. A worker that still has older infos finds a leaf
//! beyond their end and leaves the packet to the kernel. A leaf that no tree refers to keeps its
//! info until every worker has passed a quiescent state. Its info is then replaced by that of leaf
//! 0, which leaves packets to the kernel too. Its id is free after a second quiescent period.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::info::fib_info;
use super::rules::{self, RT_TABLE_DEFAULT, RT_TABLE_LOCAL, RT_TABLE_MAIN, TreeKey};
use super::vlans::Devs;
use crate::control::mirror::rib::{Expiry, FIRST_BODY, Net, Rib, RibAddr};
use crate::control::mirror::state::{Family, RouterState, RuleState};
use crate::fib::qsbr::Token;
use crate::fib::{
    FamilyFib, FibError, FibInfo, Lpm, LpmWriter, Prefix, Qsbr, RouteType, Rule, RuleAction,
};
use crate::stats::PuntReason;

/// The leaf of prefixes whose routes are not supported.
const LEAF_UNSUPPORTED: u32 = 1;
/// The leaf of prefixes whose routes a rule suppresses: the lookup continues with the next rule.
const LEAF_SUPPRESSED: u32 = 2;
/// Irregular prefixes that are published one by one: lookups compare an address with each.
const IRREGULAR_MAX: usize = 16;
/// ifindex of the loopback device in every namespace; no packet is received on it.
const IFINDEX_LOOPBACK: u32 = 1;

#[derive(Debug)]
struct Tree<A> {
    key: TreeKey,
    writer: LpmWriter<A>,
}

/// An id that is being freed.
#[derive(Debug)]
struct PendingFree {
    id: u32,
    after: Token,
    /// Its info has been replaced and published.
    replaced: bool,
}

/// What has to be recompiled.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stale {
    /// Anything that next hops depend on: links, nexthop objects, netconf, ports.
    pub nexthops: bool,
    /// Rules, or the interface names in them.
    pub rules: bool,
}

/// The compiled state of one family.
#[derive(Debug)]
pub struct FamilyCompiler<A> {
    family: Family,
    qsbr: Arc<Qsbr>,
    trees: Vec<Tree<A>>,
    merged: bool,
    /// IPv4: the kernel keeps main and local separate forever once other rules have existed
    /// (`fib_unmerge`).
    unmerged_forever: bool,
    /// IPv4, merged: prefixes of the local table other than 127.0.0.0/8 and host routes. For a
    /// route of main within one of them it is unknown whether the kernel looks up local first: it
    /// does if other rules ever existed.
    wide_locals: Vec<Net<A>>,
    /// `wide_locals` changed: every prefix has to be synchronised again.
    refill: bool,
    /// IPv6: main has routes more specific than ff00::/8, which is in local.
    multicast_in_main: bool,
    rules: Arc<[Rule<A>]>,
    infos: Vec<Arc<FibInfo>>,
    usable: Vec<bool>,
    pending_frees: VecDeque<PendingFree>,
    /// Ids whose infos were replaced and not yet published.
    unpublished: Vec<u32>,
    /// The trees could not store a route; they are not used.
    broken: Option<FibError>,
    /// A next hop is not used because its interface has no carrier.
    ignores_linkdown: bool,
    /// IPv6: see [`FamilyFib::irregular`]; by table.
    irregular: BTreeSet<(u32, Net<A>)>,
    /// `irregular` changed since it was published.
    irregular_changed: bool,
    /// The kernel's routing decision cannot be predicted; the kernel forwards this family.
    undecided: bool,
    /// See [`FamilyFib::changes`].
    changes: Arc<AtomicU64>,
    /// Prefixes of which a tree has changed since they were taken.
    changed: Vec<Net<A>>,
}

/// The result of [`FamilyCompiler::prepare`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Prepared {
    /// Infos changed: publish them before the trees are changed.
    pub publish: bool,
    /// Every prefix has to be synchronised again.
    pub all: bool,
    /// Infos of routes that exist have changed.
    pub changed: bool,
}

impl<A: RibAddr> FamilyCompiler<A> {
    /// Creates a compiler without routes.
    pub fn new(family: Family, qsbr: Arc<Qsbr>) -> FamilyCompiler<A> {
        let unsupported = FibInfo::special(RouteType::Punt(PuntReason::RouteUnsupported));
        let suppressed = FibInfo::special(RouteType::Throw);
        FamilyCompiler {
            family,
            qsbr,
            trees: Vec::new(),
            merged: true,
            unmerged_forever: false,
            wide_locals: Vec::new(),
            refill: false,
            multicast_in_main: false,
            rules: Arc::new([]),
            infos: vec![not_ready(), Arc::new(unsupported), Arc::new(suppressed)],
            usable: vec![false; FIRST_BODY as usize],
            pending_frees: VecDeque::new(),
            unpublished: Vec::new(),
            broken: None,
            ignores_linkdown: false,
            irregular: BTreeSet::new(),
            irregular_changed: false,
            undecided: false,
            changes: Arc::default(),
            changed: Vec::new(),
        }
    }

    /// Why the trees are not used; `None` if they are.
    pub fn broken(&self) -> Option<&FibError> {
        self.broken.as_ref()
    }

    /// First step: compiles the infos of new bodies, and of all bodies when next hops changed.
    pub fn prepare(
        &mut self,
        state: &RouterState,
        rib: &mut Rib<A>,
        devs: &Devs,
        stale: Stale,
    ) -> Prepared {
        let created = rib.bodies_mut().take_created();
        let bodies = rib.bodies();
        if self.infos.len() < bodies.capacity() {
            self.infos.resize_with(bodies.capacity(), not_ready);
            self.usable.resize(bodies.capacity(), false);
        }
        let mut prepared = Prepared { publish: !created.is_empty(), ..Prepared::default() };
        for id in created {
            if let Some(body) = bodies.get(id) {
                let (info, usable) = fib_info(state, self.family, body, devs);
                self.infos[id as usize] = Arc::new(info);
                self.usable[id as usize] = usable;
            }
        }
        if stale.nexthops {
            for (id, body) in bodies.iter() {
                let (info, usable) = fib_info(state, self.family, body, devs);
                let at = id as usize;
                if *self.infos[at] != info {
                    // Rules suppress routes that forward, but not those that reject packets.
                    prepared.all |= self.infos[at].kind != info.kind;
                    self.infos[at] = Arc::new(info);
                    (prepared.publish, prepared.changed) = (true, true);
                    // The choice among routes of equal metric may depend on which next hops of each
                    // are alive.
                    prepared.all |= A::V6;
                }
                prepared.all |= self.usable[at] != usable;
                self.usable[at] = usable;
            }
        }
        prepared
    }

    /// Second step: compiles the rules and the trees of the tables they use. Returns whether to
    /// publish.
    pub fn arrange(
        &mut self,
        state: &RouterState,
        rib: &Rib<A>,
        dirty: &[(u32, Net<A>)],
        stale: Stale,
    ) -> bool {
        let rule_states = state.rules(self.family).as_slice();
        let undecided = is_undecided(state, self.family);
        let mut decided = undecided != std::mem::replace(&mut self.undecided, undecided);
        if stale.nexthops {
            let ignores = ignores_linkdown(state, self.family);
            decided |= ignores != std::mem::replace(&mut self.ignores_linkdown, ignores);
        }
        let merged = self.may_merge(rule_states, rib, dirty);
        self.note_wide_locals(rib, dirty);
        let mut keys = if merged {
            vec![TreeKey::whole(RT_TABLE_MAIN), TreeKey::whole(RT_TABLE_DEFAULT)]
        } else {
            rules::trees(rule_states, rib)
        };
        // IPv6 has no rule that looks up this table.
        if merged && (self.family == Family::V6 || rib.table(RT_TABLE_DEFAULT).next().is_none()) {
            keys.truncate(1);
        }
        let have = |key: &TreeKey| self.trees.iter().any(|tree| tree.key == *key);
        let surplus = self.trees.iter().any(|tree| !keys.contains(&tree.key));
        let rearranged =
            merged != self.merged || !keys.iter().all(have) || (surplus && stale.rules);
        if !rearranged && !stale.rules {
            return decided;
        }
        if rearranged {
            self.replace_trees(rib, &keys, merged);
        }
        let keys: Vec<TreeKey> = self.trees.iter().map(|tree| tree.key).collect();
        let rules = rules::compile(state, rule_states, &keys);
        let changed = decided || rearranged || *self.rules != *rules;
        self.rules = rules.into();
        changed
    }

    fn may_merge(&mut self, rules: &[RuleState], rib: &Rib<A>, dirty: &[(u32, Net<A>)]) -> bool {
        let default = rules::has_default(rules, self.family);
        if !A::V6 {
            // Before the first dump there are no rules.
            self.unmerged_forever |= !default && !rules.is_empty();
            return default && !self.unmerged_forever;
        }
        // IPv6 looks up local, then main; one longest-prefix match is equivalent if no route of
        // main is more specific than a route of local.
        let below_multicast = |net: &Net<A>| net.1 > 8 && net.0.bits_at(0, 8) == 0xff;
        self.multicast_in_main |=
            dirty.iter().any(|(table, net)| *table == RT_TABLE_MAIN && below_multicast(net));
        let harmless = |net: &Net<A>| {
            net.1 == A::LEN
                || (net.1 == 8 && net.0.bits_at(0, 8) == 0xff && !self.multicast_in_main)
        };
        default && rib.table(RT_TABLE_LOCAL).all(|(net, _)| harmless(&net))
    }

    fn note_wide_locals(&mut self, rib: &Rib<A>, dirty: &[(u32, Net<A>)]) {
        if A::V6 || !dirty.iter().any(|(table, _)| *table == RT_TABLE_LOCAL) {
            return;
        }
        let is_wide = |net: &Net<A>| net.1 < A::LEN && (net.1 < 8 || net.0.bits_at(0, 8) != 127);
        let nets = rib.table(RT_TABLE_LOCAL).map(|(net, _)| net);
        let mut wide: Vec<Net<A>> = nets.filter(is_wide).collect();
        wide.sort_unstable();
        self.refill |= wide != self.wide_locals;
        self.wide_locals = wide;
    }

    /// Fills new trees before they are published; trees that are still needed are kept.
    fn replace_trees(&mut self, rib: &Rib<A>, keys: &[TreeKey], merged: bool) {
        let mut old = std::mem::take(&mut self.trees);
        // The contents of the main tree depend on whether it is merged.
        let keep = merged == self.merged;
        self.merged = merged;
        self.irregular.retain(|(table, _)| keys.iter().any(|key| key.table == *table));
        for key in keys {
            let kept = old.iter().position(|tree| keep && tree.key == *key);
            if let Some(at) = kept {
                self.trees.push(old.swap_remove(at));
                continue;
            }
            match LpmWriter::new(Arc::clone(&self.qsbr)) {
                Ok(writer) => self.trees.push(Tree { key: *key, writer }),
                Err(error) => {
                    self.broken = Some(error);
                    return;
                }
            }
            let at = self.trees.len() - 1;
            self.fill(rib, at);
        }
    }

    fn fill(&mut self, rib: &Rib<A>, at: usize) {
        let table = self.trees[at].key.table;
        let with_local = self.merged && table == RT_TABLE_MAIN;
        let local = with_local.then(|| rib.table(RT_TABLE_LOCAL)).into_iter().flatten();
        for (net, _) in rib.table(table).chain(local) {
            self.sync(rib, at, net);
        }
    }

    /// Third step: applies changed prefixes to the trees. Returns whether to publish, because a
    /// tree grew.
    pub fn apply(&mut self, rib: &Rib<A>, dirty: &[(u32, Net<A>)], all: bool) -> bool {
        let all = all || std::mem::take(&mut self.refill);
        for at in 0..self.trees.len() {
            if all {
                self.fill(rib, at);
            }
            let table = self.trees[at].key.table;
            let with_local = self.merged && table == RT_TABLE_MAIN;
            for (changed, net) in dirty {
                if *changed == table || (with_local && *changed == RT_TABLE_LOCAL) {
                    self.sync(rib, at, *net);
                }
            }
        }
        if !self.changed.is_empty() {
            self.changes.fetch_add(1, Ordering::Release);
        }
        // `take_regrown` must be called on every tree, so this does not use `any`.
        let regrown = self.trees.iter_mut().filter_map(|tree| tree.writer.take_regrown()).count();
        std::mem::take(&mut self.irregular_changed) | (regrown != 0)
    }

    /// Prefixes whose routes have changed in place, since the last call.
    pub fn take_changed(&mut self) -> Vec<Net<A>> {
        std::mem::take(&mut self.changed)
    }

    /// Synchronises one prefix of one tree with the RIB.
    fn sync(&mut self, rib: &Rib<A>, at: usize, net: Net<A>) {
        let key = self.trees[at].key;
        let with_local = self.merged && key.table == RT_TABLE_MAIN;
        let local = if with_local { self.best(rib, net, rib.get(RT_TABLE_LOCAL, net)) } else { 0 };
        let mut leaf = match local {
            0 => self.best(rib, net, rib.get(key.table, net)),
            local => local,
        };
        let within = |wide: &Net<A>| {
            wide.1 < net.1 && Prefix::truncated(net.0, wide.1).is_ok_and(|at| at.bits() == wide.0)
        };
        if with_local && local == 0 && leaf != 0 && self.wide_locals.iter().any(within) {
            leaf = LEAF_UNSUPPORTED;
        }
        // Whether the type of an address is looked up in main, too, depends on whether other rules ever
        // existed. Packets for such addresses are the kernel's in any case.
        if !A::V6 && with_local && local == 0 && self.is_for_us(leaf) {
            leaf = LEAF_UNSUPPORTED;
        }
        self.note_irregular(rib, key.table, with_local, net);
        if u32::from(net.1) < key.shortest && self.lookup_succeeds(leaf) {
            leaf = LEAF_SUPPRESSED;
        }
        let Ok(prefix) = Prefix::truncated(net.0, net.1) else { return };
        let writer = &mut self.trees[at].writer;
        let result = match writer.get_exact(prefix).unwrap_or(0) {
            old if old == leaf => return,
            _ if leaf == 0 => writer.remove(prefix),
            _ => writer.insert(prefix, leaf),
        };
        self.changed.push(net);
        if let Err(error) = result {
            self.broken = Some(error);
        }
    }

    /// The leaf of the route that the kernel's lookup selects at one prefix; 0: none.
    fn best(&self, rib: &Rib<A>, net: Net<A>, ids: &[u32]) -> u32 {
        if let [only] = ids
            && rib.bodies().get(*only).is_some_and(|body| body.tos == 0 && body.src.is_none())
        {
            return if self.is_usable(*only) { *only } else { 0 };
        }
        let body = |id: &u32| rib.bodies().get(*id);
        if ids.iter().filter_map(body).any(|body| body.tos != 0 || body.src.is_some()) {
            return LEAF_UNSUPPORTED;
        }
        if A::V6 && self.is_chosen_by_iif(rib, net, ids) {
            return LEAF_UNSUPPORTED;
        }
        self.candidates(rib, ids).first().copied().unwrap_or(0)
    }

    /// Whether the kernel's lookup returns a route, which a rule may suppress, rather than an
    /// error.
    fn lookup_succeeds(&self, leaf: u32) -> bool {
        use RouteType::{Anycast, Broadcast, Local, Multicast, Unicast};
        let info = self.infos.get(leaf as usize).filter(|_| leaf != 0);
        info.is_some_and(|info| {
            matches!(info.kind, Unicast | Local | Broadcast | Multicast | Anycast)
        })
    }

    /// Whether a leaf is of a route that delivers packets to the router.
    fn is_for_us(&self, leaf: u32) -> bool {
        use RouteType::{Anycast, Broadcast, Local, Multicast};
        let info = self.infos.get(leaf as usize).filter(|_| leaf != 0);
        info.is_some_and(|info| matches!(info.kind, Local | Broadcast | Multicast | Anycast))
    }

    /// Notes whether `ip6_route_lookup` may choose another route of a prefix: of several routes, it takes
    /// the first or one by the source address, and it takes a route that has expired.
    fn note_irregular(&mut self, rib: &Rib<A>, table: u32, with_local: bool, net: Net<A>) {
        if !A::V6 || is_multicast_or_link_local(net) {
            return;
        }
        let expired =
            |id: &u32| rib.bodies().get(*id).is_some_and(|body| body.expiry == Expiry::Expired);
        let is_odd = |ids: &[u32]| ids.len() > 1 || ids.iter().any(expired);
        let is_odd =
            is_odd(rib.get(table, net)) || (with_local && is_odd(rib.get(RT_TABLE_LOCAL, net)));
        let has_changed = match is_odd {
            true => self.irregular.insert((table, net)),
            false => self.irregular.remove(&(table, net)),
        };
        if has_changed {
            self.irregular_changed = true;
            // What rules find with `fib` may differ, even if the route for packets is the same.
            self.changed.push(net);
        }
    }

    fn is_usable(&self, id: u32) -> bool {
        self.usable.get(id as usize).copied().unwrap_or(false)
    }

    /// The usable routes of the lowest metric; for IPv6, those of the highest router preference
    /// (`rt6_score_route`). The first one is used.
    fn candidates(&self, rib: &Rib<A>, ids: &[u32]) -> Vec<u32> {
        let body = |id: &u32| rib.bodies().get(*id);
        let mut left: Vec<u32> = ids.iter().copied().filter(|id| self.is_usable(*id)).collect();
        let metric = left.first().and_then(body).map(|body| body.priority);
        left.retain(|id| body(id).map(|body| body.priority) == metric);
        if A::V6 {
            let score = |id: &u32| body(id).map(|body| (body.pref ^ 2) & 3);
            let best = left.iter().map(score).max().flatten();
            left.retain(|id| score(id) == best);
        }
        left
    }

    /// IPv6: among equal routes the kernel prefers one whose output interface is the input
    /// interface (`ip6_pol_route_input` passes flowi6_iif). Whether this applies to the prefix.
    fn is_chosen_by_iif(&self, rib: &Rib<A>, net: Net<A>, ids: &[u32]) -> bool {
        // Nothing is forwarded to link-local or multicast addresses, which exist on all links.
        if is_multicast_or_link_local(net) {
            return false;
        }
        let candidates = self.candidates(rib, ids);
        let hops = |id: &u32| self.infos[*id as usize].nexthops.iter().filter(|nh| !nh.dead);
        let Some((first, others)) = candidates.split_first() else { return false };
        let of_first: Vec<u32> = hops(first).map(|nh| nh.oif).collect();
        let mut oifs = others.iter().flat_map(hops).map(|nh| nh.oif);
        oifs.any(|oif| oif > IFINDEX_LOOPBACK && !of_first.contains(&oif))
    }

    /// Prefixes with several equal routes among which the kernel chooses by input interface.
    pub fn chosen_by_iif(&self, rib: &Rib<A>) -> Vec<(u32, Net<A>)> {
        if !A::V6 {
            return Vec::new();
        }
        let all = rib.tables().flat_map(|table| rib.table(table).map(move |at| (table, at)));
        let several = all.filter(|(_, (_, ids))| ids.len() > 1);
        several
            .filter(|(_, (net, ids))| self.is_chosen_by_iif(rib, *net, ids))
            .map(|(table, (net, _))| (table, net))
            .collect()
    }

    /// Last step, after publishing: frees unused ids that all workers have released. Returns
    /// whether infos were replaced and have to be published.
    pub fn reclaim(&mut self, rib: &mut Rib<A>) -> bool {
        let released = rib.bodies_mut().take_released();
        if !released.is_empty() {
            let after = self.qsbr.advance();
            let pending = |id| PendingFree { id, after, replaced: false };
            self.pending_frees.extend(released.into_iter().map(pending));
        }
        let mut replaced = false;
        while let Some(oldest) = self.pending_frees.front() {
            if !self.qsbr.check(oldest.after) {
                break;
            }
            let Some(oldest) = self.pending_frees.pop_front() else { break };
            if oldest.replaced {
                rib.bodies_mut().give_back(oldest.id);
            } else {
                // The info of leaf 0.
                self.infos[oldest.id as usize] = Arc::clone(&self.infos[0]);
                self.unpublished.push(oldest.id);
                replaced = true;
            }
        }
        replaced
    }

    /// Ids that wait for readers.
    pub fn pending_frees(&self) -> usize {
        self.pending_frees.len() + self.unpublished.len()
    }

    /// The token that the oldest waiting id waits for.
    pub fn oldest_pending_free(&self) -> Option<Token> {
        self.pending_frees.front().map(|oldest| oldest.after)
    }

    /// The infos were published: ids whose infos were replaced wait for a second quiescent period.
    pub fn published(&mut self) {
        if self.unpublished.is_empty() {
            return;
        }
        let after = self.qsbr.advance();
        let pending = |id| PendingFree { id, after, replaced: true };
        self.pending_frees.extend(self.unpublished.drain(..).map(pending));
    }

    /// The tables for workers.
    pub fn publishable(&self) -> FamilyFib<Lpm<A>> {
        if self.broken.is_some() || self.undecided {
            return self.punt_all();
        }
        let tables: Vec<_> = self.trees.iter().map(|t| Arc::clone(t.writer.table())).collect();
        let at = |table| self.trees.iter().position(|tree| tree.key == TreeKey::whole(table));
        FamilyFib {
            tables: tables.into(),
            merged: self.merged,
            default_table: at(RT_TABLE_DEFAULT).filter(|_| self.merged).map(|at| at as u32),
            local_table: at(RT_TABLE_LOCAL).filter(|_| !self.merged).map(|at| at as u32),
            ignores_linkdown: self.ignores_linkdown,
            irregular: match self.irregular.len() {
                0..=IRREGULAR_MAX => self.irregular.iter().map(|(_, net)| *net).collect(),
                // All addresses.
                _ => Arc::new([(A::default(), 0)]),
            },
            rules: Arc::clone(&self.rules),
            infos: self.infos.as_slice().into(),
            changes: Arc::clone(&self.changes),
        }
    }

    /// Tables that leave the whole family to the kernel.
    fn punt_all(&self) -> FamilyFib<Lpm<A>> {
        let punt = RuleAction::Answer(RouteType::Punt(PuntReason::RouteUnsupported));
        // The priority is greater than that of the local rule, as `punts_all` expects.
        let rule = Rule::for_all(1, punt);
        FamilyFib { merged: false, rules: Arc::new([rule]), ..FamilyFib::empty() }
    }
}

/// IPv6: whether a prefix is within ff00::/8 or fe80::/10.
fn is_multicast_or_link_local<A: RibAddr>(net: Net<A>) -> bool {
    let multicast = net.1 >= 8 && net.0.bits_at(0, 8) == 0xff;
    let link_local = net.1 >= 10 && net.0.bits_at(0, 10) == 0xfe80 >> 6;
    multicast || link_local
}

/// Whether next hops of an interface are not used because it has no carrier.
fn ignores_linkdown(state: &RouterState, family: Family) -> bool {
    let mut without_carrier = state.links.values().filter(|link| link.is_up());
    without_carrier.any(|link| state.nexthop_is_dead(family, link.ifindex))
}

/// Whether the kernel routes by information that it does not report: learnt path MTUs, or possibly
/// the history of its rules.
fn is_undecided(state: &RouterState, family: Family) -> bool {
    (family == Family::V4 && state.sysctls.ip_forward_use_pmtu)
        || rules::is_undecided(state.rules(family), family)
}

/// The info of an unused leaf: the kernel decides.
fn not_ready() -> Arc<FibInfo> {
    Arc::new(FibInfo::special(RouteType::Punt(PuntReason::NotReady)))
}
