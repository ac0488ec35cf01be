//! Lock-free publication: the control thread swaps an `Arc`, workers detect a changed counter.
//!
//! A worker never frees a snapshot, because freeing a large one takes long: the control thread keeps
//! every published snapshot until it holds the last reference.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

/// The current value. Shared by the control thread and the workers.
#[derive(Debug)]
pub struct Published<T> {
    newest: ArcSwap<T>,
    generation: AtomicU64,
}

impl<T> Published<T> {
    /// Starts with `value` as generation 0.
    pub fn new(value: Arc<T>) -> Published<T> {
        Published { newest: ArcSwap::new(value), generation: AtomicU64::new(0) }
    }

    /// Replaces the value; returns the previous one, which the caller must keep until `Arc::strong_count`
    /// shows that no worker has it any more.
    #[must_use = "dropping it here may leave the last reference to a worker"]
    pub fn publish(&self, value: Arc<T>) -> Arc<T> {
        let old = self.newest.swap(value);
        self.generation.fetch_add(1, Ordering::Release);
        old
    }

    /// The current value; for readers off the data path.
    pub fn load(&self) -> Arc<T> {
        self.newest.load_full()
    }

    /// A worker's view of it.
    pub fn subscribe(self: &Arc<Self>) -> Snapshot<T> {
        let seen = self.generation.load(Ordering::Acquire);
        Snapshot { current: self.newest.load_full(), seen, published: Arc::clone(self) }
    }
}

/// One worker's view: the value it saw last.
#[derive(Debug)]
pub struct Snapshot<T> {
    current: Arc<T>,
    seen: u64,
    published: Arc<Published<T>>,
}

impl<T: Default> Default for Snapshot<T> {
    /// Of a value that is never replaced.
    fn default() -> Snapshot<T> {
        Arc::new(Published::new(Arc::default())).subscribe()
    }
}

impl<T> Snapshot<T> {
    /// The value, refreshed if a newer one was published; otherwise it costs one atomic load. Returns
    /// whether it changed.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        let generation = self.published.generation.load(Ordering::Acquire);
        if generation == self.seen {
            return false;
        }
        self.seen = generation;
        self.current = self.published.newest.load_full();
        true
    }

    /// The value as of the last refresh.
    #[inline]
    pub fn get(&self) -> &T {
        &self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_the_newest_value_after_refresh_and_the_old_one_stays_with_the_writer() {
        let published = Arc::new(Published::new(Arc::new(1)));
        let mut snapshot = published.subscribe();
        assert!(!snapshot.refresh());
        let old = published.publish(Arc::new(2));
        assert_eq!((*snapshot.get(), Arc::strong_count(&old)), (1, 2));
        assert!(snapshot.refresh());
        assert_eq!((*snapshot.get(), Arc::strong_count(&old)), (2, 1));
        assert!(!snapshot.refresh());
    }
}
