//! The routes of one family in the kernel's order: a list for each table and prefix, of which the
//! first usable route is selected. Prefixes with equal routes share a [`RouteBody`], whose id is
//! the leaf in the compiled tables.

mod addr;
mod fingerprint;
mod insert;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

pub use self::addr::RibAddr;
pub use self::fingerprint::{Fingerprints, Summing, Sums};
pub use crate::tables::RT_SCOPE_HOST;

use self::fingerprint::Print;
use self::insert::{insert4, insert6, remove_nexthops};

/// NLM_F_REPLACE.
const NLM_F_REPLACE: u16 = 0x100;
/// NLM_F_APPEND.
const NLM_F_APPEND: u16 = 0x800;

/// RTN_UNICAST.
pub const RTN_UNICAST: u8 = 1;
/// RTN_BLACKHOLE.
pub const RTN_BLACKHOLE: u8 = 6;
/// RTN_LOCAL.
pub const RTN_LOCAL: u8 = 2;
/// RTN_BROADCAST.
pub const RTN_BROADCAST: u8 = 3;
/// RTN_ANYCAST.
pub const RTN_ANYCAST: u8 = 4;
/// RTNH_F_DEAD.
pub const RTNH_F_DEAD: u8 = 1;
/// RTNH_F_LINKDOWN.
pub const RTNH_F_LINKDOWN: u8 = 16;
/// RTNH_F_ONLINK.
pub const RTNH_F_ONLINK: u8 = 4;

const RTPROT_RA: u8 = 9;

/// The first id of a route body; lower ones are the compiler's special leaves.
pub const FIRST_BODY: u32 = 3;

/// RTA_OIF, RTA_GATEWAY or RTA_VIA, and the fields of `struct rtnexthop`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RouteNexthop {
    /// ifindex; 0: none.
    pub oif: u32,
    /// Of either family.
    pub gateway: Option<IpAddr>,
    /// 1 to 256.
    pub weight: u32,
    /// RTNH_F_ONLINK and RTNH_F_PERVASIVE. For multipath routes also RTNH_F_DEAD (and then
    /// RTNH_F_LINKDOWN), which there may have other causes than an interface that is down: it lost
    /// its last IPv4 address, or came up without carrier (IPv6). Otherwise these flags are derived
    /// from the interface, because they change without an event.
    pub flags: u8,
    /// RTA_ENCAP_TYPE and RTA_ENCAP.
    pub encap: Option<(u16, Box<[u8]>)>,
}

/// Whether a route expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Expiry {
    /// It does not expire.
    #[default]
    Never,
    /// It will expire.
    Running,
    /// It has expired and the kernel has not removed it yet: not used.
    Expired,
    /// It is what is left of a multipath route whose first next hop had expired: not known before the next dump.
    Unknown,
}

/// A route without table and prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct RouteBody {
    /// DSCP and ECN octet; IPv4 only.
    pub tos: u8,
    /// RTA_PRIORITY, the metric.
    pub priority: u32,
    /// RTN_*.
    pub kind: u8,
    /// RTPROT_*.
    pub protocol: u8,
    /// RT_SCOPE_*.
    pub scope: u8,
    /// RTA_PREFSRC.
    pub prefsrc: Option<IpAddr>,
    /// Source prefix; IPv6 only.
    pub src: Option<(IpAddr, u8)>,
    /// RTA_NH_ID; 0: none. Otherwise `nexthops` is empty, because the object has the next hops.
    pub nhid: u32,
    /// The next hops.
    pub nexthops: Box<[RouteNexthop]>,
    /// RTAX_* and value; RTAX_LOCK (1) is the mask of locked metrics.
    pub metrics: Box<[(u16, u32)]>,
    /// ICMPV6_ROUTER_PREF_*.
    pub pref: u8,
    /// RTA_FLOW: realms.
    pub realms: u32,
    /// Whether the route expires.
    pub expiry: Expiry,
}

impl RouteBody {
    /// A metric, RTAX_*; 0: not set.
    pub fn metric(&self, rtax: u16) -> u32 {
        self.metrics.iter().find(|(kind, _)| *kind == rtax).map_or(0, |(_, value)| *value)
    }

    /// `rt6_qualify_for_ecmp`: IPv6 routes that the kernel merges to one multipath route. Those
    /// that the kernel learnt from router advertisements do not qualify. Those that a userspace
    /// daemon learnt do, and cannot be distinguished from the former
    /// ([`RouteBody::may_share_ecmp`]).
    fn qualifies_for_ecmp(&self) -> bool {
        self.has_router() && self.protocol != RTPROT_RA
    }

    fn has_router(&self) -> bool {
        self.nhid == 0 && self.nexthops.first().is_some_and(|nh| nh.gateway.is_some())
    }

    /// Whether the kernel may have merged both routes although their protocols do not show it.
    fn may_share_ecmp(&self, other: &RouteBody) -> bool {
        self.has_router()
            && other.has_router()
            && (self.priority, self.src) == (other.priority, other.src)
            && (self.protocol == RTPROT_RA || other.protocol == RTPROT_RA)
    }

    /// Whether the kernel reported a next hop as dead.
    pub fn has_dead(&self) -> bool {
        self.nexthops.iter().any(|nh| nh.flags & RTNH_F_DEAD != 0)
    }

    /// Equal except for flags that change without an event.
    fn same_route(&self, other: &RouteBody) -> bool {
        if self == other {
            return true;
        }
        // The kernel reports the type by the nexthop object as it is now.
        let by_object =
            |body: &RouteBody| body.nhid != 0 && matches!(body.kind, RTN_UNICAST | RTN_BLACKHOLE);
        if self.kind != other.kind && by_object(self) && by_object(other) {
            return self.same_route(&RouteBody { kind: self.kind, ..other.clone() });
        }
        let alive = |body: &RouteBody| {
            let mut body = body.clone();
            let conditions = RTNH_F_DEAD | RTNH_F_LINKDOWN;
            body.nexthops.iter_mut().for_each(|nh| nh.flags &= !conditions);
            body
        };
        (self.has_dead() || other.has_dead()) && alive(self) == alive(other)
    }

    /// Whether the kernel never marks its next hop as dead or without carrier, because an own
    /// address answers on any interface: of host scope in IPv4 (`fib_sync_down_dev`), local or
    /// anycast in IPv6 (`fib6_ifdown`).
    pub fn outlives_its_link(&self, v6: bool) -> bool {
        if v6 { matches!(self.kind, RTN_LOCAL | RTN_ANYCAST) } else { self.scope >= RT_SCOPE_HOST }
    }

    /// Whether it delivers packets to the router itself.
    pub fn is_local(&self) -> bool {
        matches!(self.kind, RTN_LOCAL | RTN_BROADCAST | RTN_ANYCAST)
    }
}

#[derive(Debug, Default)]
struct Slot {
    body: Option<Arc<RouteBody>>,
    refs: u32,
    fingerprint: Print,
}

/// Route bodies by id.
#[derive(Debug, Default)]
pub struct Bodies {
    slots: Vec<Slot>,
    ids: HashMap<Arc<RouteBody>, u32>,
    free: Vec<u32>,
    created: Vec<u32>,
    released: Vec<u32>,
}

impl Bodies {
    /// The body of an id in use.
    pub fn get(&self, id: u32) -> Option<&Arc<RouteBody>> {
        self.slots.get(id as usize)?.body.as_ref()
    }

    /// How many routes have the body.
    pub fn routes(&self, id: u32) -> usize {
        self.slots.get(id as usize).map_or(0, |slot| slot.refs as usize)
    }

    /// All bodies in use.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<RouteBody>)> {
        (0u32..).zip(&self.slots).filter_map(|(id, slot)| Some((id, slot.body.as_ref()?)))
    }

    /// One more than the largest id.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    fn take(&mut self, body: Arc<RouteBody>) -> u32 {
        if let Some(id) = self.ids.get(&*body).copied() {
            self.slots[id as usize].refs += 1;
            return id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            let id = self.slots.len().max(FIRST_BODY as usize);
            self.slots.resize_with(id + 1, Slot::default);
            id as u32
        });
        let fingerprint = fingerprint::of_body((*body).clone());
        self.slots[id as usize] = Slot { body: Some(Arc::clone(&body)), refs: 1, fingerprint };
        self.ids.insert(body, id);
        self.created.push(id);
        id
    }

    /// Those of the routes of a prefix.
    fn fingerprints(&self, ids: Option<&Aliases>) -> impl Iterator<Item = Print> {
        let ids = ids.map_or(&[][..], Aliases::as_slice);
        ids.iter().filter_map(|id| Some(self.slots.get(*id as usize)?.fingerprint))
    }

    fn put(&mut self, id: u32) {
        let slot = &mut self.slots[id as usize];
        slot.refs -= 1;
        if slot.refs == 0
            && let Some(body) = slot.body.take()
        {
            self.ids.remove(&body);
            self.released.push(id);
        }
    }

    /// Ids that got a body since the last call.
    pub fn take_created(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.created)
    }

    /// Ids that no route refers to any more. They are not reused before [`Bodies::give_back`].
    pub fn take_released(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.released)
    }

    /// Frees an id: no worker can use it any more.
    pub fn give_back(&mut self, id: u32) {
        self.free.push(id);
    }
}

/// Ids of the bodies at one prefix, in the kernel's order. Nearly always one.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Aliases {
    One(u32),
    Many(Vec<u32>),
}

impl Aliases {
    fn as_slice(&self) -> &[u32] {
        match self {
            Aliases::One(id) => std::slice::from_ref(id),
            Aliases::Many(ids) => ids,
        }
    }

    fn push(&mut self, id: u32) {
        match self {
            Aliases::One(first) => *self = Aliases::Many(vec![*first, id]),
            Aliases::Many(ids) => ids.push(id),
        }
    }

    fn from_vec(ids: Vec<u32>) -> Option<Aliases> {
        match ids.as_slice() {
            [] => None,
            [only] => Some(Aliases::One(*only)),
            _ => Some(Aliases::Many(ids)),
        }
    }
}

/// A prefix: address without host bits, and length in bits.
pub type Net<A> = (A, u8);

/// The result of applying a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Something changed.
    Changed,
    /// Nothing changed.
    Same,
    /// It contradicts the mirrored state; a dump is needed.
    Doubt,
}

impl Applied {
    /// Returns `Doubt` for `Changed`: the kernel may have made a different change.
    fn doubted(self) -> Applied {
        if self == Applied::Changed { Applied::Doubt } else { self }
    }
}

/// Ordered, so that a table can be shown in pages, each continuing after the previous one.
type Tables<A> = BTreeMap<u32, BTreeMap<Net<A>, Aliases>>;

/// A dump in progress.
#[derive(Debug, Default)]
pub struct Dump<A> {
    tables: Tables<A>,
    len: usize,
}

/// All routes of a family.
#[derive(Debug, Default)]
pub struct Rib<A> {
    tables: Tables<A>,
    bodies: Bodies,
    len: usize,
    dirty: Vec<(u32, Net<A>)>,
    locals: Locals<A>,
    locals_changed: bool,
    fingerprints: Fingerprints,
}

/// Prefixes with a local, broadcast or anycast route.
#[derive(Debug, Default)]
struct Locals<A> {
    /// In how many tables each has one.
    tables: BTreeMap<Net<A>, u32>,
    /// Incremented when a prefix is added or removed.
    version: u64,
}

impl<A: RibAddr> Locals<A> {
    /// Updates the count of one prefix: whether one table had, and now has, such a route.
    fn note(&mut self, net: Net<A>, had: bool, has: bool) {
        match (had, has) {
            (false, true) => {
                let tables = self.tables.entry(net).or_default();
                *tables += 1;
                self.version += u64::from(*tables == 1);
            }
            (true, false) => {
                let Some(tables) = self.tables.get_mut(&net) else { return };
                *tables -= 1;
                if *tables == 0 {
                    self.tables.remove(&net);
                    self.version += 1;
                }
            }
            _ => {}
        }
    }
}

impl<A: RibAddr> Rib<A> {
    /// Number of routes (one with several next hops counts once).
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The route bodies.
    pub fn bodies(&self) -> &Bodies {
        &self.bodies
    }

    /// The route bodies, mutable, to free ids.
    pub fn bodies_mut(&mut self) -> &mut Bodies {
        &mut self.bodies
    }

    /// For the comparison with a dump.
    pub fn fingerprints(&self) -> &Fingerprints {
        &self.fingerprints
    }

    /// Tables that have routes.
    pub fn tables(&self) -> impl Iterator<Item = u32> {
        self.tables.iter().filter(|(_, routes)| !routes.is_empty()).map(|(id, _)| *id)
    }

    /// The prefixes of a table with their routes, by prefix.
    pub fn table(&self, table: u32) -> impl Iterator<Item = (Net<A>, &[u32])> {
        self.tables.get(&table).into_iter().flatten().map(|(net, ids)| (*net, ids.as_slice()))
    }

    /// Iterates over the tables from `first` on, and in each over the prefixes within `bounds`, in
    /// order; the walk can be interrupted and resumed anywhere.
    pub fn walk(
        &self,
        first: u32,
        bounds: impl Fn(u32) -> (Bound<Net<A>>, Bound<Net<A>>),
    ) -> impl Iterator<Item = (u32, Net<A>, &[u32])> {
        self.tables.range(first..).flat_map(move |(table, routes)| {
            let within = routes.range(bounds(*table));
            within.map(move |(net, ids)| (*table, *net, ids.as_slice()))
        })
    }

    /// The routes of exactly a prefix, in the kernel's order.
    pub fn get(&self, table: u32, net: Net<A>) -> &[u32] {
        self.tables.get(&table).and_then(|routes| routes.get(&net)).map_or(&[], Aliases::as_slice)
    }

    /// Every route: table, prefix, body.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Net<A>, &Arc<RouteBody>)> {
        self.tables.iter().flat_map(move |(table, routes)| {
            routes.iter().flat_map(move |(net, ids)| {
                let bodies = ids.as_slice().iter().filter_map(|id| self.bodies.get(*id));
                bodies.map(move |body| (*table, *net, body))
            })
        })
    }

    /// The prefixes whose routes changed since the last call, possibly with duplicates.
    pub fn take_dirty(&mut self) -> Vec<(u32, Net<A>)> {
        std::mem::take(&mut self.dirty)
    }

    /// Prefixes with a local, broadcast or anycast route in any table, each once, in order.
    pub fn locals(&self) -> impl Iterator<Item = Net<A>> {
        self.locals.tables.keys().copied()
    }

    /// Changes whenever [`Rib::locals`] changes.
    pub fn locals_version(&self) -> u64 {
        self.locals.version
    }

    /// Whether a local, broadcast or anycast route was added or removed since the last call.
    pub fn take_locals_changed(&mut self) -> bool {
        std::mem::take(&mut self.locals_changed)
    }

    /// RTM_NEWROUTE with the flags of its header.
    pub fn add(&mut self, table: u32, net: Net<A>, body: RouteBody, flags: u16) -> Applied {
        let mut list = self.bodies_at(table, net);
        let doubtful = A::V6 && list.iter().any(|old| old.may_share_ecmp(&body));
        let applied = match A::V6 {
            true => insert6(&mut list, body, flags),
            false => insert4(&mut list, body, flags),
        };
        let applied = if doubtful { applied.doubted() } else { applied };
        if applied != Applied::Same {
            self.set(table, net, list);
        }
        applied
    }

    /// RTM_DELROUTE.
    pub fn del(&mut self, table: u32, net: Net<A>, body: &RouteBody) -> Applied {
        let mut list = self.bodies_at(table, net);
        let applied = if let Some(at) = list.iter().position(|old| old.same_route(body)) {
            list.remove(at);
            Applied::Changed
        } else if A::V6 {
            remove_nexthops(&mut list, body)
        } else {
            Applied::Same
        };
        let doubtful = A::V6 && list.iter().any(|old| old.may_share_ecmp(body));
        if applied != Applied::Same {
            self.set(table, net, list);
        }
        // The kernel may have removed the route without an event.
        if doubtful { Applied::Doubt } else { applied }
    }

    /// Removes every route whose body satisfies `gone`; used for removals without an event.
    pub fn flush(&mut self, gone: impl Fn(&RouteBody) -> bool) -> bool {
        let mut hit = vec![false; self.bodies.capacity()];
        let mut any = false;
        for (id, _) in self.bodies.iter().filter(|(_, body)| gone(body)) {
            hit[id as usize] = true;
            any = true;
        }
        if !any {
            return false;
        }
        let is_hit = |id: &u32| hit.get(*id as usize).copied().unwrap_or(false);
        let mut nets = Vec::new();
        for (table, routes) in &self.tables {
            for (net, aliases) in routes {
                if aliases.as_slice().iter().any(is_hit) {
                    nets.push((*table, *net));
                }
            }
        }
        for (table, net) in nets {
            let mut list = self.bodies_at(table, net);
            list.retain(|body| !gone(body));
            self.set(table, net, list);
        }
        true
    }

    /// Adds a route to a dump, which contains them in the kernel's order.
    pub fn load(&mut self, dump: &mut Dump<A>, table: u32, net: Net<A>, body: RouteBody) {
        let id = self.bodies.take(Arc::new(body));
        dump.len += 1;
        let routes = dump.tables.entry(table).or_default();
        routes.entry(net).and_modify(|aliases| aliases.push(id)).or_insert(Aliases::One(id));
    }

    /// Drops an interrupted dump.
    pub fn discard(&mut self, dump: Dump<A>) {
        self.put_all(&dump.tables);
    }

    /// Replaces the routes by a dump. Returns whether anything changed.
    pub fn commit(&mut self, dump: Dump<A>) -> bool {
        let old = std::mem::replace(&mut self.tables, dump.tables);
        let before = self.dirty.len();
        self.note_differences(&old);
        self.put_all(&old);
        self.len = dump.len;
        self.dirty.len() != before
    }

    fn put_all(&mut self, tables: &Tables<A>) {
        for aliases in tables.values().flat_map(BTreeMap::values) {
            aliases.as_slice().iter().for_each(|id| self.bodies.put(*id));
        }
    }

    fn note_differences(&mut self, old: &Tables<A>) {
        let is_local = |ids: &Aliases| has_local(&self.bodies, ids.as_slice());
        let bodies = &self.bodies;
        for (table, routes) in &self.tables {
            let old = old.get(table);
            for (net, ids) in routes {
                let old = old.and_then(|routes| routes.get(net));
                if old != Some(ids) {
                    self.dirty.push((*table, *net));
                    self.fingerprints.replace(
                        (*table, *net),
                        bodies.fingerprints(old),
                        bodies.fingerprints(Some(ids)),
                    );
                    let (had, has) = (old.is_some_and(is_local), is_local(ids));
                    self.locals.note(*net, had, has);
                    self.locals_changed |= had || has;
                }
            }
        }
        for (table, routes) in old {
            let new = self.tables.get(table);
            for (net, ids) in routes {
                if new.is_none_or(|routes| !routes.contains_key(net)) {
                    self.dirty.push((*table, *net));
                    self.fingerprints.replace(
                        (*table, *net),
                        bodies.fingerprints(Some(ids)),
                        bodies.fingerprints(None),
                    );
                    let had = is_local(ids);
                    self.locals.note(*net, had, false);
                    self.locals_changed |= had;
                }
            }
        }
    }

    fn bodies_at(&self, table: u32, net: Net<A>) -> Vec<Arc<RouteBody>> {
        self.get(table, net).iter().filter_map(|id| self.bodies.get(*id).cloned()).collect()
    }

    fn set(&mut self, table: u32, net: Net<A>, list: Vec<Arc<RouteBody>>) {
        let ids: Vec<u32> = list.into_iter().map(|body| self.bodies.take(body)).collect();
        let has = has_local(&self.bodies, &ids);
        self.len += ids.len();
        let new = Aliases::from_vec(ids);
        let routes = self.tables.entry(table).or_default();
        let old = match new.clone() {
            Some(aliases) => routes.insert(net, aliases),
            None => routes.remove(&net),
        };
        let bodies = &self.bodies;
        self.fingerprints.replace(
            (table, net),
            bodies.fingerprints(old.as_ref()),
            bodies.fingerprints(new.as_ref()),
        );
        let had = old.as_ref().is_some_and(|old| has_local(&self.bodies, old.as_slice()));
        self.locals.note(net, had, has);
        self.locals_changed |= had || has;
        if let Some(old) = old {
            self.len -= old.as_slice().len();
            old.as_slice().iter().for_each(|id| self.bodies.put(*id));
        }
        self.dirty.push((table, net));
    }
}

fn has_local(bodies: &Bodies, ids: &[u32]) -> bool {
    ids.iter().any(|id| bodies.get(*id).is_some_and(|body| body.is_local()))
}
