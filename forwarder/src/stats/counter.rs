//! A counter with one writer and any number of readers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts up from zero; wraps at 2^64. Only one thread may call the methods that add.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `count`. A load and a store, not a locked add: there is one writer.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// The value now.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Overwrites the value; for counters that mirror one kept elsewhere.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }
}
