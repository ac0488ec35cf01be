//! Counters in the layout of an HDR histogram: one thread adds, any thread reads.
//!
//! A value's counter is found with a shift and an addition, so that recording costs a load and a store.
//! The layout is that of HdrHistogram (`AbstractHistogram.countsArrayIndex`) with one nanosecond as the
//! lowest value and three significant digits: 2048 counters for the first 2048 values, then 1024 for each
//! doubling. Every value is recorded to a thousandth.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use zerocopy::FromZeros;

/// Significant decimal digits that a value keeps.
pub const SIGNIFICANT_DIGITS: u8 = 3;
/// Longest time that can be recorded, nanoseconds: 68.7 s. Longer times count as this one.
pub const HIGHEST_NS: u64 = (1 << (SUB_BUCKET_BITS + DOUBLINGS)) - 1;

/// 2^11 is the first power of two that holds 2 × 10^3 values, as three digits require.
const SUB_BUCKET_BITS: u32 = 11;
/// Number of doublings after the first 2048 values.
const DOUBLINGS: u32 = 25;
/// Number of counters of one histogram.
pub const COUNTERS: usize = (DOUBLINGS as usize + 2) << (SUB_BUCKET_BITS - 1);

/// Index of a value's counter.
#[inline]
pub fn index_of(value_ns: u64) -> usize {
    let value_ns = value_ns.min(HIGHEST_NS);
    let highest_bit = 63 - (value_ns | ((1 << SUB_BUCKET_BITS) - 1)).leading_zeros();
    let doublings = highest_bit - (SUB_BUCKET_BITS - 1);
    ((doublings as usize) << (SUB_BUCKET_BITS - 1)) + (value_ns >> doublings) as usize
}

/// The lowest value counted at an index.
pub fn value_at(index: usize) -> u64 {
    let doublings = (index >> (SUB_BUCKET_BITS - 1)).saturating_sub(1);
    let sub_bucket = index - (doublings << (SUB_BUCKET_BITS - 1));
    (sub_bucket as u64) << doublings
}

/// Several histograms in one allocation, which is backed by memory where counters are used.
#[derive(Debug, Default)]
pub struct HdrCounters {
    counters: Box<[AtomicU64]>,
    /// Number of values of each histogram, so that a reader can skip empty ones.
    totals: Box<[AtomicU64]>,
}

impl HdrCounters {
    /// `histograms` empty ones. `None`: out of memory.
    pub fn new(histograms: usize) -> Option<HdrCounters> {
        let zeroed = |len: usize| <[AtomicU64]>::new_box_zeroed_with_elems(len).ok();
        let counters = zeroed(histograms.checked_mul(COUNTERS)?)?;
        Some(HdrCounters { counters, totals: zeroed(histograms)? })
    }

    /// Number of histograms.
    pub fn histograms(&self) -> usize {
        self.totals.len()
    }

    /// Counts a value; only one thread may call this. An index out of range counts nothing.
    #[inline]
    pub fn record(&self, histogram: usize, value_ns: u64) {
        let at = histogram * COUNTERS + index_of(value_ns);
        if let (Some(total), Some(counter)) = (self.totals.get(histogram), self.counters.get(at)) {
            // There is one writer: a load and a store suffice, without a locked addition.
            counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
            total.store(total.load(Relaxed).wrapping_add(1), Relaxed);
        }
    }

    /// The counters of a histogram that are not zero, as (index, count), by ascending index.
    pub fn counts(&self, histogram: usize) -> Vec<(u32, u64)> {
        if self.totals.get(histogram).is_none_or(|total| total.load(Relaxed) == 0) {
            return Vec::new();
        }
        let counters = &self.counters[histogram * COUNTERS..][..COUNTERS];
        let counts = counters.iter().enumerate().map(|(n, c)| (n as u32, c.load(Relaxed)));
        counts.filter(|(_, count)| *count != 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;
    use proptest::prelude::*;

    fn theirs() -> Histogram<u64> {
        Histogram::new_with_bounds(1, HIGHEST_NS, SIGNIFICANT_DIGITS).expect("sound bounds")
    }

    /// Our counters, read as the control thread does.
    fn read(counters: &HdrCounters, histogram: usize) -> Histogram<u64> {
        let mut read = theirs();
        for (index, count) in counters.counts(histogram) {
            read.record_n(value_at(index as usize), count).expect("in bounds");
        }
        read
    }

    #[test]
    fn the_layout_is_that_of_hdrhistogram_at_every_edge() {
        let histogram = theirs();
        assert_eq!(histogram.distinct_values(), COUNTERS);
        for (index, bucket) in histogram.iter_all().enumerate() {
            let highest = bucket.value_iterated_to();
            let lowest = histogram.lowest_equivalent(highest);
            assert_eq!((index_of(lowest), index_of(highest)), (index, index));
            assert_eq!(value_at(index), lowest);
        }
        assert_eq!(index_of(HIGHEST_NS), COUNTERS - 1);
        assert_eq!(index_of(u64::MAX), COUNTERS - 1);
    }

    #[test]
    fn histograms_do_not_touch_each_other_and_strangers_count_nowhere() {
        let counters = HdrCounters::new(2).expect("memory");
        counters.record(0, HIGHEST_NS);
        counters.record(1, 0);
        counters.record(2, 5);
        assert_eq!(counters.counts(0), [(COUNTERS as u32 - 1, 1)]);
        assert_eq!(counters.counts(1), [(0, 1)]);
        assert_eq!(counters.counts(2), []);
        assert!(HdrCounters::new(usize::MAX).is_none());
    }

    /// Values of all magnitudes, equally likely.
    fn values() -> impl Strategy<Value = Vec<u64>> {
        let value = (0..64u32, any::<u64>()).prop_map(|(shift, value)| value >> shift);
        proptest::collection::vec(value, 1..200)
    }

    proptest! {
        #[test]
        fn counters_read_as_hdrhistogram_records_them(values in values()) {
            let (counters, mut expected) = (HdrCounters::new(3).expect("memory"), theirs());
            for &value in &values {
                counters.record(1, value);
                expected.saturating_record(value);
            }
            let read = read(&counters, 1);
            prop_assert_eq!(&read, &expected);
            prop_assert_eq!(read.len(), values.len() as u64);
            prop_assert_eq!(read.max(), expected.max());
            for percentile in [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0] {
                prop_assert_eq!(
                    read.value_at_percentile(percentile),
                    expected.value_at_percentile(percentile)
                );
            }
        }
    }
}
