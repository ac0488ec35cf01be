//! Quiescent-state-based reclamation: the writer learns that no reader can still hold a reference to what
//! it unlinked.
//!
//! A reader announces, once per burst, that it holds nothing it read before ([`Reader::quiescent`]: one
//! load and one store). The writer unlinks, takes a token ([`Qsbr::advance`]) and may reuse the memory
//! once every online reader has announced a quiescent state since ([`Qsbr::check`]). Nothing blocks: a
//! reader that does not announce only delays reuse. Which objects are protected is up to the user.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// The value of a reader's slot while it holds nothing.
const OFFLINE: u64 = 0;

/// One reader's announcement; in a cache line of its own, so that readers do not slow each other down
/// (two lines, as Intel's prefetcher fetches them in pairs).
#[derive(Debug)]
#[repr(align(128))]
struct Slot {
    /// The last epoch announced by this reader, or [`OFFLINE`].
    seen: AtomicU64,
    claimed: AtomicBool,
    /// See [`Qsbr::background_reader`].
    is_background: AtomicBool,
}

impl Slot {
    fn check(&self, token: Token) -> bool {
        // Acquire pairs with the reader's release: its lookups before the announcement happen before
        // anything the writer does next.
        let seen = self.seen.load(Ordering::Acquire);
        seen == OFFLINE || seen >= token.0
    }
}

/// The writer's epoch, and a slot for each reader.
#[derive(Debug)]
pub struct Qsbr {
    epoch: AtomicU64,
    slots: Box<[Slot]>,
}

/// A point in time after unlinking; see [`Qsbr::check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(u64);

impl Qsbr {
    /// Room for `readers` concurrent readers.
    pub fn new(readers: usize) -> Arc<Self> {
        let slot = || Slot {
            seen: AtomicU64::new(OFFLINE),
            claimed: AtomicBool::new(false),
            is_background: AtomicBool::new(false),
        };
        Arc::new(Self {
            epoch: AtomicU64::new(OFFLINE + 1),
            slots: (0..readers).map(|_| slot()).collect(),
        })
    }

    /// A new reader, online; `None` when all slots are taken.
    pub fn reader(self: &Arc<Self>) -> Option<Reader> {
        self.claim(false)
    }

    /// A new reader that may take long: what it may hold is not reused, but the writer does not expect it
    /// to be quiescent soon (see [`Qsbr::late`]).
    pub fn background_reader(self: &Arc<Self>) -> Option<Reader> {
        self.claim(true)
    }

    fn claim(self: &Arc<Self>, is_background: bool) -> Option<Reader> {
        let slot = self.slots.iter().position(|slot| !slot.claimed.swap(true, Ordering::AcqRel))?;
        self.slots[slot].is_background.store(is_background, Ordering::Relaxed);
        let reader = Reader { qsbr: Arc::clone(self), slot };
        reader.online();
        Some(reader)
    }

    /// Called by the writer after unlinking; returns the token to wait for.
    pub fn advance(&self) -> Token {
        // SeqCst with the fence: see `Reader::online`.
        let token = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        fence(Ordering::SeqCst);
        Token(token)
    }

    /// Whether every reader has been quiescent or offline since `token`: what was unlinked before it was
    /// taken can be reused.
    pub fn check(&self, token: Token) -> bool {
        self.slots.iter().all(|slot| slot.check(token))
    }

    /// The slots of readers, except background ones, that have not been quiescent or offline since
    /// `token`.
    pub fn late(&self, token: Token) -> impl Iterator<Item = usize> {
        let is_late =
            move |slot: &Slot| !slot.check(token) && !slot.is_background.load(Ordering::Relaxed);
        self.slots.iter().enumerate().filter(move |(_, slot)| is_late(slot)).map(|(at, _)| at)
    }
}

/// A reader's handle; belongs to one thread at a time. Dropping it takes the reader offline.
#[derive(Debug)]
pub struct Reader {
    qsbr: Arc<Qsbr>,
    slot: usize,
}

impl Reader {
    fn slot(&self) -> &AtomicU64 {
        &self.qsbr.slots[self.slot].seen
    }

    /// Announces that nothing read before is held any more: one load, one store. Not for an offline
    /// reader, which returns by [`Reader::online`].
    #[inline]
    pub fn quiescent(&self) {
        // Acquire: a reader that sees the epoch sees what was unlinked before it.
        let epoch = self.qsbr.epoch.load(Ordering::Acquire);
        self.slot().store(epoch, Ordering::Release);
    }

    /// Announces that nothing is held and nothing will be looked up until [`Reader::online`]; called
    /// before sleeping.
    pub fn offline(&self) {
        self.slot().store(OFFLINE, Ordering::Release);
    }

    /// Announces that lookups may follow.
    pub fn online(&self) {
        let epoch = self.qsbr.epoch.load(Ordering::Acquire);
        self.slot().store(epoch, Ordering::SeqCst);
        // Either the writer, reading after its own fence, sees this reader online, or this reader sees
        // all that was unlinked before that fence.
        fence(Ordering::SeqCst);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.offline();
        self.qsbr.slots[self.slot].claimed.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_passes_when_every_online_reader_has_announced_itself() {
        let q = Qsbr::new(2);
        assert!(q.check(q.advance()), "no readers, nothing to wait for");
        let (a, b) = (q.reader().unwrap(), q.reader().unwrap());
        let token = q.advance();
        assert!(!q.check(token));
        a.quiescent();
        assert!(!q.check(token));
        b.quiescent();
        assert!(q.check(token));
        let later = q.advance();
        a.quiescent();
        assert!(!q.check(later) && q.check(token));
        b.offline();
        assert!(q.check(later));
        b.online();
        assert!(q.check(later), "it came online after unlinking");
        assert!(!q.check(q.advance()));
    }

    #[test]
    fn readers_in_the_background_are_not_late_and_keep_what_they_hold() {
        let q = Qsbr::new(3);
        let (a, b) = (q.reader().unwrap(), q.background_reader().unwrap());
        let token = q.advance();
        assert_eq!(q.late(token).collect::<Vec<_>>(), [0]);
        a.quiescent();
        assert_eq!(q.late(token).count(), 0);
        assert!(!q.check(token));
        b.offline();
        assert!(q.check(token));
        drop(b);
        let _worker = q.reader().unwrap();
        assert_eq!(q.late(q.advance()).collect::<Vec<_>>(), [0, 1], "the slot has been reused");
    }

    #[test]
    fn slots_are_limited_and_given_back() {
        let q = Qsbr::new(1);
        let a = q.reader().unwrap();
        assert!(q.reader().is_none());
        let token = q.advance();
        drop(a);
        assert!(q.check(token), "a dropped reader holds nothing");
        assert!(q.reader().is_some());
    }
}
