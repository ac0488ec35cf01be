//! The neighbour table as the data path sees it: (interface, address) → MAC address.
//!
//! Immutable; the control thread builds a new one when a neighbour appears, changes its address or
//! loses its validity (NUD states that are valid for sending are one state here, so REACHABLE →
//! STALE rebuilds nothing). The one thing a worker writes is the `used` mark, from which the
//! control thread learns which entries the kernel has to keep fresh.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A neighbour that may be sent to (NUD_VALID: REACHABLE, STALE, DELAY, PROBE, PERMANENT, NOARP) or
/// is known not to answer (FAILED).
#[derive(Debug)]
pub struct Neighbour {
    /// ifindex of its interface.
    pub oif: u32,
    /// Its address.
    pub addr: IpAddr,
    /// Where frames for it go; `None`: NUD_FAILED.
    pub lladdr: Option<[u8; 6]>,
    /// Set by workers that sent to it, cleared by the control thread.
    used: AtomicBool,
}

impl Neighbour {
    /// An entry, not used yet.
    pub fn new(oif: u32, addr: IpAddr, lladdr: Option<[u8; 6]>) -> Neighbour {
        Neighbour { oif, addr, lladdr, used: AtomicBool::new(false) }
    }

    /// Notes a use. Writes only the first time, so that workers do not fight over the cache line.
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

/// All neighbours: open addressing with linear probing, at most half full.
#[derive(Debug)]
pub struct NeighTable {
    /// Position + 1 in `entries`; 0: empty. A power of two long.
    slots: Box<[u32]>,
    entries: Box<[Neighbour]>,
}

impl Default for NeighTable {
    fn default() -> NeighTable {
        NeighTable::new(Vec::new())
    }
}

impl NeighTable {
    /// Builds the table. Of entries with the same key the last counts.
    pub fn new(entries: Vec<Neighbour>) -> NeighTable {
        let mut slots = vec![0u32; (entries.len() * 2).next_power_of_two().max(8)];
        let mask = slots.len() - 1;
        for (n, entry) in entries.iter().enumerate() {
            let mut at = hash(entry.oif, &entry.addr) & mask;
            while slots[at] != 0 {
                let other = &entries[slots[at] as usize - 1];
                if other.oif == entry.oif && other.addr == entry.addr {
                    break;
                }
                at = (at + 1) & mask;
            }
            slots[at] = n as u32 + 1;
        }
        NeighTable { slots: slots.into(), entries: entries.into() }
    }

    /// `__neigh_lookup`: the entry for an address on an interface.
    #[inline]
    pub fn lookup(&self, oif: u32, addr: &IpAddr) -> Option<&Neighbour> {
        let mask = self.slots.len() - 1;
        let mut at = hash(oif, addr) & mask;
        loop {
            let entry = self.entries.get((*self.slots.get(at)? as usize).checked_sub(1)?)?;
            if entry.oif == oif && entry.addr == *addr {
                return Some(entry);
            }
            at = (at + 1) & mask;
        }
    }

    /// Every entry.
    pub fn iter(&self) -> impl Iterator<Item = &Neighbour> {
        self.entries.iter()
    }
}

/// Fibonacci hashing over the octets that vary.
#[inline]
fn hash(oif: u32, addr: &IpAddr) -> usize {
    let word = match addr {
        IpAddr::V4(addr) => u64::from(addr.to_bits()),
        IpAddr::V6(addr) => {
            let bits = addr.to_bits();
            (bits >> 64) as u64 ^ (bits as u64).rotate_left(23)
        }
    };
    let mixed = (word ^ (u64::from(oif) << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as usize
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
