//! Fingerprints of a family's routes: with them a table that is too large to be replayed is compared with a dump of it.
//!
//! Prefixes are spread over buckets; a bucket's fingerprint is the sum of the hashes of its routes, so that it does not
//! depend on the order in which they came, and a change costs the hashes of one prefix.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Expiry, Net, RTNH_F_DEAD, RTNH_F_LINKDOWN, RibAddr, RouteBody};
use crate::hash_table::mix;

/// Also how finely a table is compared while it changes: a bucket that changed since the dump began is not.
const BUCKETS: usize = 4096;

/// Fingerprint of each bucket.
pub type Sums = Box<[u64]>;

/// The fingerprints of the mirrored routes of a family.
#[derive(Debug)]
pub struct Fingerprints {
    sums: Sums,
    /// The value of `changes` after each bucket's last change.
    changed: Sums,
    changes: u64,
}

impl Default for Fingerprints {
    fn default() -> Fingerprints {
        let zeros = || vec![0; BUCKETS].into_boxed_slice();
        Fingerprints { sums: zeros(), changed: zeros(), changes: 0 }
    }
}

impl Fingerprints {
    /// Replaces the routes of a prefix, given as the fingerprints of their bodies in the kernel's order.
    pub fn replace<A: RibAddr>(
        &mut self,
        prefix: (u32, Net<A>),
        old: impl Iterator<Item = Print>,
        new: impl Iterator<Item = Print>,
    ) {
        let key = of_prefix(prefix);
        let Some(sum) = self.sums.get_mut(bucket(key)) else { return };
        *sum = sum.wrapping_sub(of_prints(key, old)).wrapping_add(of_prints(key, new));
        self.changes += 1;
        if let Some(changed) = self.changed.get_mut(bucket(key)) {
            *changed = self.changes;
        }
    }

    /// The number of changes so far.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// How many buckets differ from those of a dump, except for those that have changed after the first `changes`.
    pub fn differences(&self, dumped: &[u64], changes: u64) -> usize {
        let all = self.sums.iter().zip(&self.changed).zip(dumped);
        all.filter(|((ours, changed), theirs)| **changed <= changes && ours != theirs).count()
    }
}

/// Adds up the fingerprints of the routes of a dump, which has those of a prefix and source prefix one after the other.
#[derive(Debug)]
pub struct Summing<A> {
    sums: Sums,
    last: Option<(u32, Net<A>, u64)>,
    position: u64,
}

impl<A: RibAddr> Default for Summing<A> {
    fn default() -> Summing<A> {
        Summing { sums: vec![0; BUCKETS].into_boxed_slice(), last: None, position: 0 }
    }
}

impl<A: RibAddr> Summing<A> {
    /// Adds the next route.
    pub fn add(&mut self, prefix: (u32, Net<A>), body: RouteBody) {
        let print = of_body(body);
        let place = Some((prefix.0, prefix.1, print.src));
        self.position = if self.last == place { self.position + 1 } else { 0 };
        self.last = place;
        let key = of_prefix(prefix);
        if let Some(sum) = self.sums.get_mut(bucket(key)) {
            *sum = sum.wrapping_add(of_route(key, self.position, print));
        }
    }

    /// The result.
    pub fn sums(self) -> Sums {
        self.sums
    }
}

/// The fingerprint of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Print {
    /// Of its source prefix. Routes of one prefix have an order among those with the same source prefix; the kernel keeps
    /// and dumps others apart (CONFIG_IPV6_SUBTREES).
    src: u64,
    body: u64,
}

/// The fingerprint of a body, without what changes by itself: whether it has expired, and whether next hops are dead.
pub fn of_body(mut body: RouteBody) -> Print {
    if body.expiry != Expiry::Never {
        body.expiry = Expiry::Running;
    }
    for nexthop in &mut body.nexthops {
        nexthop.flags &= !(RTNH_F_DEAD | RTNH_F_LINKDOWN);
    }
    Print { src: body.src.map_or(0, |src| hash(&src)), body: hash(&body) }
}

/// Of the routes of a prefix, in the kernel's order. There may be thousands: a default route of each router that sends
/// advertisements.
fn of_prints(key: u64, prints: impl Iterator<Item = Print>) -> u64 {
    let mut first = None;
    // Hardly any prefix has routes for different sources.
    let mut others = HashMap::new();
    let with_position = prints.map(|print| {
        let (first_src, of_first) = first.get_or_insert((print.src, 0u64));
        let next = match *first_src == print.src {
            true => of_first,
            false => others.entry(print.src).or_insert(0),
        };
        let position = *next;
        *next += 1;
        of_route(key, position, print)
    });
    with_position.fold(0, u64::wrapping_add)
}

fn of_prefix<A: RibAddr>(prefix: (u32, Net<A>)) -> u64 {
    hash(&prefix)
}

fn of_route(prefix: u64, position: u64, print: Print) -> u64 {
    let low = mix(prefix ^ mix(print.body).rotate_left(32) ^ position);
    mix(low ^ low >> 32)
}

fn bucket(prefix: u64) -> usize {
    // 12 bits.
    (prefix >> 52) as usize % BUCKETS
}

/// The same in each thread.
fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::super::{Dump, NLM_F_APPEND, Rib, RouteNexthop};
    use super::*;

    const NET: Net<u32> = (0x0a01_0000, 16);

    type Routes = Vec<(u32, Net<u32>, RouteBody)>;

    fn body(gateway: u8) -> RouteBody {
        let nexthop = RouteNexthop {
            oif: 2,
            gateway: Some([10, 0, 0, gateway].into()),
            weight: 1,
            flags: 0,
            encap: None,
        };
        RouteBody { kind: 1, nexthops: Box::new([nexthop]), ..RouteBody::default() }
    }

    fn dumped(routes: &[(u32, Net<u32>, RouteBody)]) -> Sums {
        let mut summing = Summing::default();
        for (table, net, body) in routes {
            summing.add((*table, *net), body.clone());
        }
        summing.sums()
    }

    /// The routes that events make, and the dump of them.
    fn routes() -> (Rib<u32>, Routes) {
        let mut rib = Rib::default();
        for n in 0..100u32 {
            rib.add(254, (n << 8, 24), body(9), 0);
        }
        rib.add(254, NET, body(1), 0);
        rib.add(254, NET, body(2), NLM_F_APPEND);
        rib.add(100, NET, body(1), 0);
        rib.del(254, (0, 24), &body(9));
        let all = rib.iter().map(|(table, net, body)| (table, net, (**body).clone()));
        let mut all: Vec<_> = all.collect();
        // Another order of prefixes.
        all.rotate_left(30);
        (rib, all)
    }

    #[test]
    fn a_dump_of_the_same_routes_does_not_differ() {
        let (mut rib, mut all) = routes();
        assert_eq!(rib.fingerprints().differences(&dumped(&all), u64::MAX), 0);
        // What changes by itself.
        all[5].2.nexthops[0].flags = RTNH_F_DEAD | RTNH_F_LINKDOWN;
        assert_eq!(rib.fingerprints().differences(&dumped(&all), u64::MAX), 0);
        // A dump that replaces the routes, with one more and one fewer.
        let mut dump = Dump::default();
        all.remove(3);
        all.push((7, NET, body(3)));
        for (table, net, body) in &all {
            rib.load(&mut dump, *table, *net, body.clone());
        }
        assert_ne!(rib.fingerprints().differences(&dumped(&all), u64::MAX), 0);
        rib.commit(dump);
        assert_eq!(rib.fingerprints().differences(&dumped(&all), u64::MAX), 0);
        rib.flush(|_| true);
        assert_eq!(rib.fingerprints().differences(&dumped(&[]), u64::MAX), 0);
    }

    #[test]
    fn each_change_is_a_difference() {
        type Change = fn(&mut Routes);
        let changes: [Change; 7] = [
            |all| drop(all.pop()),
            |all| all.push((254, (1, 32), body(9))),
            |all| all[7].0 = 99,
            |all| all[7].1.1 = 25,
            |all| all[7].2.nexthops[0].gateway = None,
            |all| all[7].2.expiry = Expiry::Expired,
            |all| {
                let is_first =
                    |route: &&mut (u32, Net<u32>, RouteBody)| route.1 == NET && route.0 == 254;
                let mut twins = all.iter_mut().filter(is_first);
                let (one, other) = (twins.next().expect("one"), twins.next().expect("another"));
                std::mem::swap(&mut one.2, &mut other.2);
            },
        ];
        for (n, change) in changes.into_iter().enumerate() {
            let (rib, mut all) = routes();
            change(&mut all);
            assert_ne!(rib.fingerprints().differences(&dumped(&all), u64::MAX), 0, "change {n}");
        }
    }

    #[test]
    fn what_changed_after_the_dump_began_is_not_compared() {
        let (mut rib, all) = routes();
        let begun = rib.fingerprints().changes();
        rib.add(254, NET, body(3), 0);
        let dump = dumped(&all);
        assert_eq!(rib.fingerprints().differences(&dump, begun), 0);
        assert_eq!(rib.fingerprints().differences(&dump, begun + 1), 1);
    }
}
