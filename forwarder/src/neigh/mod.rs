//! The neighbour table as the data path sees it: (interface, address) → MAC address.
//!
//! Immutable; the control thread builds a new table when a neighbour appears, changes its address or
//! becomes invalid (all NUD states that are valid for sending are one state here, so REACHABLE → STALE
//! rebuilds nothing). Workers write only the `used` mark, from which the control thread learns which
//! entries the kernel must keep fresh.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::hash_table::{HashTable, Slot, mix};

/// A neighbour that is valid for sending (NUD_VALID: REACHABLE, STALE, DELAY, PROBE, PERMANENT, NOARP) or
/// is known not to answer (FAILED).
#[derive(Debug)]
pub struct Neighbour {
    /// ifindex of its interface.
    pub oif: u32,
    /// Its address.
    pub addr: IpAddr,
    /// Its link-layer address; `None`: NUD_FAILED.
    pub lladdr: Option<[u8; 6]>,
    /// Set by workers that sent to it, cleared by the control thread.
    used: AtomicBool,
}

impl Neighbour {
    /// An entry, not yet used.
    pub fn new(oif: u32, addr: IpAddr, lladdr: Option<[u8; 6]>) -> Neighbour {
        Neighbour { oif, addr, lladdr, used: AtomicBool::new(false) }
    }

    /// Marks it as used. Writes only the first time, to avoid contention for the cache line.
    #[inline]
    pub fn mark_used(&self) {
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
    }

    /// Whether it was used since the last call.
    pub fn take_used(&self) -> bool {
        self.used.swap(false, Relaxed)
    }
}

/// All neighbours.
#[derive(Debug)]
pub struct NeighTable {
    entries: Box<[Neighbour]>,
    /// Indexed by interface and IPv4 address in one word.
    v4: HashTable<Position<u64>>,
    v6: HashTable<Position<(u128, u32)>>,
}

impl Default for NeighTable {
    fn default() -> NeighTable {
        NeighTable::new(Vec::new())
    }
}

impl NeighTable {
    /// Builds the table. Of entries with the same key the last one is used.
    pub fn new(entries: Vec<Neighbour>) -> NeighTable {
        let numbered = entries.iter().zip(1u32..);
        let v4 = HashTable::new(numbered.clone().filter_map(|(entry, position_plus_1)| {
            let IpAddr::V4(addr) = entry.addr else { return None };
            Some(Position { key: key4(entry.oif, addr), position_plus_1 })
        }));
        let v6 = HashTable::new(numbered.filter_map(|(entry, position_plus_1)| {
            let IpAddr::V6(addr) = entry.addr else { return None };
            Some(Position { key: key6(entry.oif, addr), position_plus_1 })
        }));
        NeighTable { entries: entries.into(), v4, v6 }
    }

    /// `__neigh_lookup`: the entry of an address on an interface.
    #[inline]
    pub fn lookup(&self, oif: u32, addr: &IpAddr) -> Option<&Neighbour> {
        let at = match addr {
            IpAddr::V4(addr) => self.v4.get(key4(oif, *addr))?,
            IpAddr::V6(addr) => self.v6.get(key6(oif, *addr))?,
        };
        self.entries.get(at as usize)
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = &Neighbour> {
        self.entries.iter()
    }
}

#[inline]
fn key4(oif: u32, addr: Ipv4Addr) -> u64 {
    u64::from(oif) << 32 | u64::from(addr.to_bits())
}

#[inline]
fn key6(oif: u32, addr: Ipv6Addr) -> (u128, u32) {
    (addr.to_bits(), oif)
}

/// The position of a neighbour among the entries, by its key.
#[derive(Debug, Clone, Copy, Default)]
struct Position<K> {
    key: K,
    /// 0: the slot is empty.
    position_plus_1: u32,
}

impl Slot for Position<u64> {
    type Key = u64;
    type Value = u32;

    #[inline]
    fn key(&self) -> u64 {
        self.key
    }

    #[inline]
    fn value(&self) -> Option<u32> {
        self.position_plus_1.checked_sub(1)
    }

    #[inline]
    fn hash(key: u64) -> usize {
        (mix(key) >> 32) as usize
    }
}

impl Slot for Position<(u128, u32)> {
    type Key = (u128, u32);
    type Value = u32;

    #[inline]
    fn key(&self) -> (u128, u32) {
        self.key
    }

    #[inline]
    fn value(&self) -> Option<u32> {
        self.position_plus_1.checked_sub(1)
    }

    #[inline]
    fn hash((addr, oif): (u128, u32)) -> usize {
        let word = (addr >> 64) as u64 ^ (addr as u64).rotate_left(23);
        (mix(word ^ (u64::from(oif) << 40)) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_entry_and_nothing_else() {
        let addr = |n: u32| IpAddr::V4((0x0a00_0000 + n).into());
        let table = NeighTable::new(
            (0..1000).map(|n| Neighbour::new(n % 3, addr(n), Some([n as u8; 6]))).collect(),
        );
        for n in 0..1000 {
            let entry = table.lookup(n % 3, &addr(n)).expect("was put in");
            assert_eq!(entry.lladdr, Some([n as u8; 6]));
            assert!(table.lookup(n % 3 + 1, &addr(n)).is_none());
        }
        assert!(table.lookup(0, &addr(1000)).is_none());
        assert!(NeighTable::default().lookup(1, &addr(1)).is_none());
    }

    #[test]
    fn the_last_of_equal_keys_counts() {
        let addr: IpAddr = "2001:db8::1".parse().expect("an address");
        let table = NeighTable::new(vec![
            Neighbour::new(1, addr, None),
            Neighbour::new(1, addr, Some([9; 6])),
        ]);
        assert_eq!(table.lookup(1, &addr).and_then(|n| n.lladdr), Some([9; 6]));
    }
}
