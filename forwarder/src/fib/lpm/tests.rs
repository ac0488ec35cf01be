//! The tables compared with a scan over all routes, also while they change; and reuse of their space,
//! which must not be too early.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use proptest::sample::select;

use super::block::place_of;
use super::pool::{BATCH, WORDS_MAX};
use super::table::{NODE, ROOT_BITS, STRIDE};
use super::*;
use crate::fib::prefix::Prefix4;

/// The reference.
#[derive(Default)]
struct Scan<A>(BTreeMap<Prefix<A>, u32>);

impl<A: Address> Scan<A> {
    fn lookup(&self, addr: A) -> u32 {
        let covering = self.0.iter().filter(|(prefix, _)| prefix.contains(addr));
        covering.max_by_key(|(prefix, _)| prefix.len()).map_or(0, |(_, leaf)| *leaf)
    }
}

#[derive(Debug, Clone, Copy)]
enum Op<A: Address> {
    Insert(Prefix<A>, u32),
    Remove(Prefix<A>),
}

impl<A: Address> Op<A> {
    fn prefix(&self) -> &Prefix<A> {
        match self {
            Op::Insert(prefix, _) | Op::Remove(prefix) => prefix,
        }
    }
}

fn step<A: Number>(addr: A, up: bool) -> A {
    // Numbers wrap at the ends of the address space, which also gives useful probes.
    let n = addr.to_number();
    A::from_number(if up { n.wrapping_add(1) } else { n.wrapping_sub(1) })
}

/// A number of either size, for the tests' arithmetic.
trait Number: Address {
    fn to_number(self) -> u128;
    fn from_number(n: u128) -> Self;
}

impl Number for u32 {
    fn to_number(self) -> u128 {
        self.into()
    }
    fn from_number(n: u128) -> Self {
        n as u32
    }
}

impl Number for u128 {
    fn to_number(self) -> u128 {
        self
    }
    fn from_number(n: u128) -> Self {
        n
    }
}

/// Prefixes that often nest, adjoin and coincide: near few places, with one bit flipped, of every length.
fn prefix<A: Number>() -> impl Strategy<Value = Prefix<A>> {
    let places = vec![0, u128::MAX, 0x2001_0db8_0a00_0000_u128 << 64, 0x2001_0db8_0a01_ff00 << 64];
    (select(places), 0..=A::LEN, 0..=A::LEN, any::<bool>()).prop_map(|(place, len, bit, near)| {
        let place = A::from_number(if A::LEN == 32 { place >> 64 } else { place });
        let turned = A::netmask(bit).and(A::netmask(bit.saturating_sub(1)).not());
        let place = A::from_number(place.to_number() ^ turned.to_number());
        Prefix::masked(place, if near { (bit + 1).min(len) } else { len })
    })
}

fn ops<A: Number>() -> impl Strategy<Value = Vec<Op<A>>> {
    // Few leaves, so that neighbours are often equal; of both widths.
    let leaf = select(vec![1, 2, 3, 0xffff, 0x1_0000, LEAF_MAX]);
    let op = (prefix::<A>(), leaf, any::<bool>(), any::<proptest::sample::Index>());
    prop::collection::vec(op, 1..120).prop_map(|steps| {
        let mut had: Vec<Prefix<A>> = Vec::new();
        let mut ops = Vec::new();
        for (prefix, leaf, insert, index) in steps {
            if insert || had.is_empty() {
                had.push(prefix);
                ops.push(Op::Insert(prefix, leaf));
            } else {
                // May have been removed already.
                ops.push(Op::Remove(had[index.index(had.len())]));
            }
        }
        ops
    })
}

/// Words of the blocks that a reader can reach from `word`.
fn reachable<A: Address>(table: &Lpm<A>, word: u32, depth: u8) -> usize {
    if word & NODE == 0 {
        return 0;
    }
    assert!(depth < A::LEN, "blocks are within the address length");
    // Only one word refers to a block, so none is counted twice.
    let below = (0..64).map(|slot| table.blocks().word(word, slot));
    let below = below.map(|word| reachable(table, word, depth + STRIDE));
    place_of(table, word).1 + below.sum::<usize>()
}

fn reachable_words<A: Address>(table: &Lpm<A>) -> usize {
    let roots = table.root.iter().map(|word| word.load(Ordering::Relaxed));
    roots.map(|word| reachable(table, word, ROOT_BITS)).sum()
}

fn check<A: Address>(table: &Lpm<A>, scan: &Scan<A>, probes: &[A]) {
    let mut leaves = vec![u32::MAX; probes.len()];
    table.lookup_bulk(probes, &mut leaves);
    for (addr, bulk) in probes.iter().zip(leaves) {
        let expected = scan.lookup(*addr);
        let addr_std = addr.into_std();
        assert_eq!(table.lookup(*addr), expected, "lookup of {addr_std}");
        assert_eq!(bulk, expected, "bulk lookup of {addr_std}");
    }
}

fn agrees_with_a_scan<A: Number>(ops: &[Op<A>], words: usize) {
    let qsbr = Qsbr::new(1);
    let mut writer = LpmWriter::<A>::with_words(qsbr, words).unwrap();
    let mut table = Arc::clone(writer.table());
    let mut scan = Scan(BTreeMap::new());
    let mut probes = vec![A::ZERO, A::ZERO.not()];
    for op in ops {
        let p = *op.prefix();
        probes.extend([p.bits(), p.last(), step(p.bits(), false), step(p.last(), true)]);
        match *op {
            Op::Insert(p, leaf) => {
                assert_eq!(writer.insert(p, leaf).unwrap(), scan.0.insert(p, leaf));
                assert_eq!(writer.get_exact(p), Some(leaf));
            }
            Op::Remove(p) => {
                assert_eq!(writer.remove(p).unwrap(), scan.0.remove(&p));
                assert_eq!(writer.get_exact(p), None);
            }
        }
        if let Some(regrown) = writer.take_regrown() {
            table = regrown;
        }
        check(&table, &scan, &probes);
        assert_eq!(writer.len(), scan.0.len());
    }
    assert!(writer.iter().eq(scan.0.iter().map(|(prefix, leaf)| (*prefix, *leaf))));
    assert_eq!(writer.pool.live_words(), reachable_words(&table), "no block is lost");
    for prefix in scan.0.keys() {
        writer.remove(*prefix).unwrap();
    }
    check(writer.table(), &Scan(BTreeMap::new()), &probes);
    assert!(writer.is_empty() && writer.iter().next().is_none());
    assert_eq!(writer.pool.live_words(), 0);
    assert_eq!(writer.routes.node_count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn ipv4_agrees_with_a_scan_after_every_step(ops in ops::<u32>()) {
        agrees_with_a_scan(&ops, 1 << 14);
    }

    #[test]
    fn ipv6_agrees_with_a_scan_after_every_step(ops in ops::<u128>()) {
        agrees_with_a_scan(&ops, 1 << 14);
    }

    #[test]
    fn a_table_that_must_grow_agrees_with_a_scan(ops in ops::<u128>()) {
        agrees_with_a_scan(&ops, 64);
    }
}

/// A block from two elements to 64 and back, narrow, wide, and changing between them; without spare room,
/// so that the table grows meanwhile.
#[test]
fn blocks_of_every_size_agree_with_a_scan() {
    let leaves: [fn(u32) -> u32; 3] =
        [|n| 1 + n, |n| 0x1_0000 + n, |n| if n % 8 == 7 { LEAF_MAX - n } else { 1 + n }];
    for leaf in leaves {
        let routes = (0..64).map(|n| {
            // Every entry once, not in order.
            let slot = n * 37 % 64;
            Op::Insert(Prefix4::truncated(0x0a00_0000 | slot << 8, 24).unwrap(), leaf(n))
        });
        let mut ops: Vec<_> = routes.collect();
        let removals = ops.iter().rev().map(|op| Op::Remove(*op.prefix())).collect::<Vec<_>>();
        ops.extend(removals);
        agrees_with_a_scan(&ops, 64);
        agrees_with_a_scan(&ops, 1 << 14);
    }
}

#[test]
fn lookups_in_bulk_go_as_far_as_both_slices() {
    let table = Lpm::from_routes([(Prefix4::DEFAULT, 7)]).unwrap();
    for n in [0, 1, 31, 32, 33, 100] {
        let mut leaves = vec![0; n];
        table.lookup_bulk(&vec![1; 100], &mut leaves);
        assert!(leaves.iter().all(|leaf| *leaf == 7));
        let mut leaves = vec![0; 100];
        table.lookup_bulk(&vec![1; n], &mut leaves);
        assert_eq!(leaves.iter().filter(|leaf| **leaf == 7).count(), n);
    }
}

#[test]
fn leaves_out_of_range_are_rejected_without_changes() {
    let mut writer = LpmWriter::<u32>::new(Qsbr::new(0)).unwrap();
    writer.insert(Prefix4::DEFAULT, LEAF_MAX).unwrap();
    for leaf in [0, LEAF_MAX + 1, u32::MAX] {
        assert_eq!(writer.insert(Prefix4::DEFAULT, leaf), Err(FibError::Leaf { leaf }));
    }
    assert_eq!((writer.lookup(1), writer.len()), (LEAF_MAX, 1));
}

/// Prefixes 10.0.N.0/24 to /28 in turn, each with a leaf of its own.
fn churned(n: u32) -> (Prefix4, u32) {
    let len = 24 + (n % 5) as u8;
    (Prefix4::truncated(0x0a00_0000 | n << 8, len).unwrap(), 1 + n)
}

#[test]
fn space_is_used_again_once_readers_have_passed() {
    let qsbr = Qsbr::new(1);
    let reader = qsbr.reader().unwrap();
    let mut writer = LpmWriter::<u32>::new(qsbr).unwrap();
    let mut churn = |rounds: u32, reader: Option<&crate::fib::Reader>| {
        for round in 0..rounds {
            for n in 0..1000 {
                let (prefix, leaf) = churned(n);
                match round % 2 {
                    0 => writer.insert(prefix, leaf).unwrap(),
                    _ => writer.remove(prefix).unwrap(),
                };
                reader.inspect(|reader| reader.quiescent());
            }
        }
        writer.table().memory_octets()
    };
    let settled = churn(4, Some(&reader));
    // The space that waits for reuse varies by a few batches.
    let settled = settled..settled + 4 * BATCH * WORDS_MAX * 8;
    assert!(settled.contains(&churn(200, Some(&reader))), "churn alone takes no memory");
    reader.offline();
    assert!(settled.contains(&churn(20, None)), "nor while the reader sleeps");
}

#[test]
fn space_is_not_used_again_before_the_reader_has_passed() {
    let qsbr = Qsbr::new(1);
    let reader = qsbr.reader().unwrap();
    let mut writer = LpmWriter::<u32>::new(qsbr).unwrap();
    for n in 0..1000 {
        let (prefix, leaf) = churned(n);
        writer.insert(prefix, leaf).unwrap();
    }
    // From here on the reader is not quiescent: whatever is unlinked must remain.
    reader.quiescent();
    writer.pool.reclaim();
    let table = Arc::clone(writer.table());
    let words = |table: &Lpm<u32>| -> Vec<u32> {
        table.root.iter().map(|word| word.load(Ordering::Relaxed)).collect()
    };
    let held = words(&table);
    let seen = |held: &[u32]| -> Vec<u32> {
        let addrs = (0..1000u32).map(|n| 0x0a00_0000 | n << 8);
        addrs
            .map(|addr| {
                let word = held[(addr >> 14) as usize];
                if word & NODE == 0 { word } else { table.blocks().word(word, addr >> 8 & 63) }
            })
            .collect()
    };
    let before = seen(&held);
    let settled = table.memory_octets();
    assert!(before.iter().any(|word| *word != 0));
    for round in 0..6 {
        for n in 0..1000 {
            let (prefix, leaf) = churned(n);
            // The root's words that lead to these blocks are all replaced.
            match round % 2 {
                0 => writer.remove(prefix).unwrap(),
                _ => writer.insert(prefix, leaf + 1000).unwrap(),
            };
        }
    }
    let kept = |(before, after): (&u32, &u32)| {
        // A word of a block below may have been replaced in place; a leaf may not.
        before == after || before & NODE != 0
    };
    assert!(
        before.iter().zip(&seen(&held)).all(kept),
        "a block held by the reader was overwritten"
    );
    let grown = writer.table().memory_octets();
    reader.quiescent();
    writer.pool.reclaim();
    for round in 0..4 {
        for n in 0..1000 {
            let (prefix, leaf) = churned(n);
            match round % 2 {
                0 => writer.remove(prefix).unwrap(),
                _ => writer.insert(prefix, leaf).unwrap(),
            };
        }
        reader.quiescent();
    }
    let more = writer.table().memory_octets() - grown;
    assert!(more < (grown - settled) / 4, "space is reused after the reader was quiescent");
}

/// Routes that never change, and nested routes below them that are added and removed. A leaf identifies
/// its prefix, so a reader can detect a result that was never right.
#[test]
fn readers_see_only_the_route_before_or_after_an_update() {
    let mut prefixes = vec![Prefix4::DEFAULT, "10.1.0.0/16".parse().unwrap()];
    for n in 0..400u32 {
        let len = [17, 18, 19, 22, 23, 24, 25, 27, 30, 32][n as usize % 10];
        let addr = 0x0a01_0000 | n.wrapping_mul(2_654_435_761) >> 16;
        let prefix = Prefix4::truncated(addr, len).unwrap();
        if !prefixes.contains(&prefix) {
            prefixes.push(prefix);
        }
    }
    let qsbr = Qsbr::new(2);
    let mut writer = LpmWriter::<u32>::with_words(Arc::clone(&qsbr), 1 << 16).unwrap();
    for (n, prefix) in prefixes.iter().take(2).enumerate() {
        writer.insert(*prefix, n as u32 + 1).unwrap();
    }
    let table = Arc::clone(writer.table());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in [1u32, 2] {
            let reader = qsbr.reader().unwrap();
            let (table, prefixes, done) = (&table, &prefixes, &done);
            scope.spawn(move || {
                let mut random = seed;
                let mut leaves = [0; 64];
                while !done.load(Ordering::Relaxed) {
                    let addrs: [u32; 64] = std::array::from_fn(|_| {
                        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        0x0a01_0000 | random >> 16
                    });
                    table.lookup_bulk(&addrs, &mut leaves);
                    for (addr, leaf) in addrs.into_iter().zip(leaves) {
                        for leaf in [leaf, table.lookup(addr)] {
                            let prefix = prefixes.get(leaf.wrapping_sub(1) as usize);
                            assert!(leaf > 1 && prefix.is_some_and(|p| p.contains(addr)));
                        }
                    }
                    reader.quiescent();
                }
            });
        }
        let mut random = 3u32;
        for update in 0..60_000 {
            // However slow the readers are, the same few slots are reused.
            if update % 256 == 0 {
                let token = qsbr.advance();
                while !qsbr.check(token) && !done.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            }
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let n = 2 + (random >> 8) as usize % (prefixes.len() - 2);
            match writer.get_exact(prefixes[n]) {
                Some(_) => writer.remove(prefixes[n]).unwrap(),
                None => writer.insert(prefixes[n], n as u32 + 1).unwrap(),
            };
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(writer.take_regrown().is_none(), "the table did not grow");
}
