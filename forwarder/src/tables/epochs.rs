//! What flows that the XDP program forwards by itself depend on (flow offload): numbers that are incremented when it
//! changes ([`xdp_prog::offload::Epochs`]). One store voids all flows that depend on it.
//!
//! The control thread increments them after workers can see the change. A worker reads [`Epochs::changes`] before it
//! decides about a packet, and the sum of the epochs afterwards: if there was no change in between, the sum is that of
//! what it has decided by.

use std::fmt::Debug;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};

use xdp_prog::offload::{self, epochs4, epochs6};

/// Memory that is shared with the XDP program.
pub trait SharedWords: Debug + Send + Sync {
    /// It, as 32-bit words.
    fn words(&self) -> &[AtomicU32];
}

impl SharedWords for Box<[AtomicU32]> {
    fn words(&self) -> &[AtomicU32] {
        self
    }
}

/// Words of an [`offload::Epochs`].
pub const WORDS: usize = size_of::<offload::Epochs>() / size_of::<u32>();

/// Positions of the kinds of epochs.
const GLOBAL: usize = offset_of!(offload::Epochs, global) / 4;
const WIDTHS: usize = offset_of!(offload::Epochs, widths) / 4;
const V4_SHORT: usize = offset_of!(offload::Epochs, v4_short) / 4;
const V4_LONG: usize = offset_of!(offload::Epochs, v4_long) / 4;
const V6_SHORT: usize = offset_of!(offload::Epochs, v6_short) / 4;
const V6_LONG: usize = offset_of!(offload::Epochs, v6_long) / 4;

/// The epochs.
#[derive(Debug)]
pub struct Epochs {
    memory: Box<dyn SharedWords>,
    /// How often anything has changed.
    changes: AtomicU64,
    /// Tables are being changed, and epochs are incremented afterwards.
    is_changing: AtomicBool,
    /// How often the link-layer address of a neighbour has changed.
    neigh_changes: AtomicU64,
}

impl Epochs {
    /// In this memory, of which no word changes otherwise. With less than [`WORDS`], nothing can be offloaded.
    pub fn new(memory: Box<dyn SharedWords>) -> Epochs {
        Epochs {
            memory,
            changes: AtomicU64::new(1),
            is_changing: AtomicBool::new(false),
            neigh_changes: AtomicU64::new(0),
        }
    }

    /// Without memory: nothing can be offloaded.
    pub fn none() -> Epochs {
        Epochs::new(Box::new(Box::<[AtomicU32]>::default()))
    }

    /// How often anything has changed. To be read before a decision.
    #[inline]
    pub fn changes(&self) -> u64 {
        self.changes.load(Acquire)
    }

    /// How often a neighbour's address has changed. To be read before a decision.
    pub fn neigh_changes(&self) -> u64 {
        self.neigh_changes.load(Acquire)
    }

    /// The sum of the epochs that a decision about an IPv4 packet depends on, but for that of its next hop. `None`:
    /// something has changed since `changes` was read, or there are no epochs.
    pub fn sum4(&self, saddr: Ipv4Addr, daddr: Ipv4Addr, changes: u64) -> Option<u32> {
        let halves = |address: Ipv4Addr| {
            let [a, b, c, d] = address.octets();
            epochs4([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])])
        };
        self.sum([V4_SHORT, V4_LONG], [halves(saddr), halves(daddr)], changes)
    }

    /// The same of an IPv6 packet.
    pub fn sum6(&self, saddr: Ipv6Addr, daddr: Ipv6Addr, changes: u64) -> Option<u32> {
        let words = |address: Ipv6Addr| {
            let [a, b, c, ..] = address.segments();
            epochs6([a, b, c])
        };
        self.sum([V6_SHORT, V6_LONG], [words(saddr), words(daddr)], changes)
    }

    /// The same of a packet of either family; `None` also if the addresses are not of one family.
    pub fn sum_of(&self, saddr: IpAddr, daddr: IpAddr, changes: u64) -> Option<u32> {
        match (saddr, daddr) {
            (IpAddr::V4(saddr), IpAddr::V4(daddr)) => self.sum4(saddr, daddr, changes),
            (IpAddr::V6(saddr), IpAddr::V6(daddr)) => self.sum6(saddr, daddr, changes),
            _ => None,
        }
    }

    fn sum(&self, kinds: [usize; 2], of: [[usize; 2]; 2], changes: u64) -> Option<u32> {
        let load = |at: usize| self.memory.words().get(at).map(|word| word.load(Acquire));
        let mut sum = load(GLOBAL)?;
        for positions in of {
            for (kind, position) in kinds.into_iter().zip(positions) {
                sum = sum.wrapping_add(load(kind + position)?);
            }
        }
        // The loads above happen before this one.
        fence(Acquire);
        let is_changing = self.is_changing.load(Relaxed);
        (!is_changing && self.changes.load(Relaxed) == changes).then_some(sum)
    }

    /// There are entries of these widths, a sum of [`Width::bit`]: the program looks for no others.
    ///
    /// [`Width::bit`]: xdp_prog::offload::Width::bit
    pub fn set_widths(&self, bits: u32) {
        // Programs read the cache line for each packet: it is not written without need.
        if let Some(widths) = self.memory.words().get(WIDTHS)
            && widths.load(Relaxed) != bits
        {
            widths.store(bits, Relaxed);
        }
    }

    /// Tables are about to be changed in place: what is decided until [`Epochs::changed`] may depend on parts of the old
    /// ones and parts of the new ones.
    pub fn changing(&self) {
        self.is_changing.store(true, Relaxed);
        // Before the stores into the tables.
        fence(SeqCst);
    }

    /// The epochs of all that has changed were incremented.
    pub fn changed(&self) {
        self.is_changing.store(false, Release);
    }

    /// Something has changed that has no epoch of its own.
    pub fn void_all(&self) {
        self.begin();
        self.increment(GLOBAL, 1);
    }

    /// A route of this IPv4 prefix has changed.
    pub fn void4(&self, prefix: Ipv4Addr, len: u8) {
        let [a, b, c, d] = prefix.octets();
        let halves = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
        self.begin();
        match (len, epochs4(halves)) {
            (24.., [_, long]) => self.increment(V4_LONG + long, 1),
            (16.., [short, _]) => self.increment(V4_SHORT + short, 1),
            (len, [short, _]) => {
                let count = 1usize << (16 - len);
                self.increment(V4_SHORT + (short & !(count - 1)), count);
            }
        }
    }

    /// A route of this IPv6 prefix has changed.
    pub fn void6(&self, prefix: Ipv6Addr, len: u8) {
        let [a, b, c, ..] = prefix.segments();
        self.begin();
        match (len, epochs6([a, b, c])) {
            (48.., [_, long]) => self.increment(V6_LONG + long, 1),
            (32.., [short, _]) => self.increment(V6_SHORT + short, 1),
            // Addresses of a short prefix are anywhere.
            _ => self.increment(V6_SHORT, offload::EPOCHS),
        }
    }

    /// The link-layer address of a neighbour has changed. Next hops have epochs of their own, which the caller
    /// increments afterwards.
    pub fn note_neigh_change(&self) {
        self.begin();
        self.neigh_changes.fetch_add(1, AcqRel);
        // Before next hops are looked at; see who enters flows.
        fence(SeqCst);
    }

    /// A change that workers can see. A worker that sees the epoch incremented sees this, too.
    fn begin(&self) {
        self.changes.fetch_add(1, AcqRel);
    }

    fn increment(&self, from: usize, count: usize) {
        let words = self.memory.words().get(from..from + count).unwrap_or_default();
        // Several threads void everything.
        words.iter().for_each(|word| {
            word.fetch_add(1, Release);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs() -> Epochs {
        let words: Box<[AtomicU32]> = (0..WORDS).map(|_| AtomicU32::new(0)).collect();
        Epochs::new(Box::new(words))
    }

    #[test]
    fn a_change_of_a_prefix_voids_its_addresses_and_others_hold() {
        let epochs = epochs();
        let sum = |from: [u8; 4], to: [u8; 4]| {
            epochs.sum4(from.into(), to.into(), epochs.changes()).expect("no change")
        };
        let (near, far) = (sum([10, 0, 0, 1], [10, 1, 2, 3]), sum([10, 0, 0, 1], [10, 2, 2, 3]));
        for (prefix, len) in [([10, 1, 2, 0], 24), ([10, 1, 2, 3], 32), ([10, 1, 0, 0], 16)] {
            let before = sum([10, 0, 0, 1], [10, 1, 2, 3]);
            epochs.void4(prefix.into(), len);
            assert_ne!(sum([10, 0, 0, 1], [10, 1, 2, 3]), before, "{prefix:?}/{len}");
            assert_ne!(sum([10, 1, 2, 3], [10, 2, 0, 1]), 0, "as a source");
        }
        assert_eq!(sum([10, 0, 0, 1], [10, 2, 2, 3]), far);
        assert_ne!(sum([10, 0, 0, 1], [10, 1, 2, 3]), near);
        for (prefix, len) in [([0, 0, 0, 0], 0), ([10, 0, 0, 0], 8), ([10, 2, 0, 0], 15)] {
            let before = sum([10, 0, 0, 1], [10, 2, 2, 3]);
            let other = sum([11, 0, 0, 1], [11, 2, 2, 3]);
            epochs.void4(prefix.into(), len);
            assert_ne!(sum([10, 0, 0, 1], [10, 2, 2, 3]), before, "{prefix:?}/{len}");
            assert_eq!(sum([11, 0, 0, 1], [11, 2, 2, 3]) == other, len != 0, "{prefix:?}/{len}");
        }
        let before = sum([1, 2, 3, 4], [5, 6, 7, 8]);
        epochs.void_all();
        assert_ne!(sum([1, 2, 3, 4], [5, 6, 7, 8]), before);
    }

    #[test]
    fn the_same_for_ipv6() {
        let epochs = epochs();
        let at = |text: &str| -> Ipv6Addr { text.parse().expect("literal") };
        let sum = |from: &str, to: &str| {
            epochs.sum6(at(from), at(to), epochs.changes()).expect("no change")
        };
        for (prefix, len, is_other_void) in [
            ("2001:db8:1::", 48, false),
            ("2001:db8:1:2::", 64, false),
            ("2001:db8::", 32, true),
            ("2001:db8::", 40, true),
            ("2000::", 3, true),
        ] {
            let before = sum("2001:db8:9::1", "2001:db8:1:2::3");
            let other = sum("2001:db8:9::1", "2001:db8:2::3");
            epochs.void6(at(prefix), len);
            assert_ne!(sum("2001:db8:9::1", "2001:db8:1:2::3"), before, "{prefix}/{len}");
            let is_void = sum("2001:db8:9::1", "2001:db8:2::3") != other;
            assert_eq!(is_void, is_other_void, "{prefix}/{len}");
        }
    }

    #[test]
    fn epochs_are_incremented_by_several_threads() {
        let epochs = epochs();
        let before =
            epochs.sum4([1; 4].into(), [2; 4].into(), epochs.changes()).expect("no change");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| epochs.void_all()));
            }
        });
        let after = epochs.sum4([1; 4].into(), [2; 4].into(), epochs.changes());
        assert_eq!(after, Some(before + 40_000));
    }

    #[test]
    fn there_is_no_sum_after_a_change() {
        let epochs = epochs();
        let changes = epochs.changes();
        let sum = || epochs.sum4([1; 4].into(), [2; 4].into(), changes);
        assert!(sum().is_some());
        epochs.void4([9, 9, 9, 0].into(), 24);
        assert_eq!(sum(), None);
        let none = Epochs::none();
        assert_eq!(none.sum4([1; 4].into(), [2; 4].into(), none.changes()), None);
        none.void_all();
        none.void4([0; 4].into(), 0);
    }
}
