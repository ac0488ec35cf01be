//! Outbound sequence numbers: taken from a range that the owner of the SA has reserved.
//!
//! A sequence number that is used twice with one key breaks counter modes (RFC 3686 §2.1, RFC 4106 §3.1), and
//! the kernel may send on the same SA. Therefore this library never makes numbers of its own: the caller
//! reserves ranges, and workers take numbers from them without a lock. When a range is used up, sending fails
//! until there is another.
//!
//! To reserve from the kernel without a guard against what it sends meanwhile, in this order: make the kernel unable to send on the SA (a policy that blocks,
//! or no route that leads to it), read its counter, set the counter to the end of the range, never backwards,
//! and only then use the range here and let the kernel send again. Reading and setting are two requests: a
//! kernel that sends between them gets its counter set back, and uses numbers twice, unless the range begins above all
//! that it can have sent by then.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Error;

/// The last sequence number of an SA without ESN: the next one would be 0 again.
const SEQ_MAX: u64 = u32::MAX as u64;

/// `next` of a closed sequence: no range ends behind it.
const CLOSED: u64 = u64::MAX;

/// A range that cannot be reserved: the sequence is closed, or the range contains 0, or numbers before
/// the end of an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sequence numbers from {start}: the first that may be reserved is {first_free}")]
pub struct BadRange {
    /// Start of the rejected range.
    pub start: u64,
    /// The lowest start that is accepted.
    pub first_free: u64,
}

/// The sequence numbers of one outbound SA.
#[derive(Debug)]
pub struct Sequence {
    /// The number that is taken next.
    next: AtomicU64,
    /// The end of the reserved range: `next` never passes it.
    end: AtomicU64,
    /// Whether numbers have 64 bits (ESN).
    is_extended: bool,
    /// Numbers are needed: see [`want`](Self::want).
    is_wanted: AtomicBool,
    /// See [`leave`](Self::leave).
    is_left: AtomicBool,
    /// Only [`extend`](Self::extend) takes it, to be alone: the data path does not.
    extending: Mutex<()>,
}

impl Sequence {
    /// Without any reserved number. `first_free`: the lowest number that nobody has used or reserved with the
    /// keys of the SA: 1 for keys that are new, the kernel's counter plus one, or of an SA that this one
    /// replaces the start of what [`close`](Self::close) returned. No range before it can be reserved.
    /// `is_extended`: numbers have 64 bits (XFRM_STATE_ESN).
    #[must_use]
    pub fn new(is_extended: bool, first_free: u64) -> Sequence {
        // 0 is not sent: the first packet has number 1 (RFC 4303 §3.3.3).
        let first_free = first_free.max(1);
        Sequence {
            next: AtomicU64::new(first_free),
            end: AtomicU64::new(first_free),
            is_extended,
            is_wanted: AtomicBool::new(false),
            is_left: AtomicBool::new(false),
            extending: Mutex::new(()),
        }
    }

    /// Whether numbers have 64 bits.
    #[inline]
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.is_extended
    }

    /// Adds a range of numbers that nobody else uses. If it continues the reserved one, numbers that are not
    /// used yet are kept; otherwise they are given up. Not for the data path.
    ///
    /// # Errors
    /// [`BadRange`] if a number of the range may have been used, or after [`close`](Self::close).
    pub fn extend(&self, range: Range<u64>) -> Result<(), BadRange> {
        let alone = self.extending.lock();
        let end = self.end.load(Ordering::Relaxed);
        if self.next.load(Ordering::Relaxed) == CLOSED {
            return Err(BadRange { start: range.start, first_free: CLOSED });
        }
        if range.start < end {
            return Err(BadRange { start: range.start, first_free: end });
        }
        if range.start > end {
            // `next` first: while it is beyond the old end, there is nothing to take. A worker that has read
            // the old `next` cannot take it any more, because `next` only grows.
            self.next.store(range.start, Ordering::SeqCst);
        }
        self.end.store(range.end.max(range.start), Ordering::SeqCst);
        drop(alone);
        Ok(())
    }

    /// Ends the sequence: no number is given any more, and none can be reserved. Returns the numbers that are
    /// reserved and not used, for the SA with the same keys that takes the place of this one: its first free
    /// number is the start of the range, which it may reserve. After the first call the range is empty and its
    /// start is [`u64::MAX`].
    pub fn close(&self) -> Range<u64> {
        let alone = self.extending.lock();
        // A thread that has read the previous value fails to exchange it, and takes no number.
        let start = self.next.swap(CLOSED, Ordering::SeqCst);
        let end = self.end.load(Ordering::SeqCst);
        drop(alone);
        start..end.max(start)
    }

    /// Gives up the numbers that are reserved and not used: somebody else has used higher ones, after which the peer
    /// refuses these. They are never taken again.
    pub fn give_up(&self) {
        let alone = self.extending.lock();
        // A thread that has read the previous end may still take one, which is unique.
        let next = self.next.load(Ordering::SeqCst);
        if next != CLOSED {
            self.end.fetch_min(next, Ordering::SeqCst);
        }
        drop(alone);
    }

    /// Takes the next number. Any number of threads may do so at once.
    ///
    /// # Errors
    /// [`Error::SequenceRangeUsed`] if no reserved number is left or the sequence was closed, and
    /// [`Error::XfrmOutStateSeqError`] if the protocol has no more: without ESN after 2³² − 1, as the kernel's
    /// `xfrm_replay_overflow`.
    #[inline]
    pub fn take(&self) -> Result<u64, Error> {
        let mut next = self.next.load(Ordering::SeqCst);
        loop {
            if next > SEQ_MAX && !self.is_extended && next != CLOSED {
                return Err(Error::XfrmOutStateSeqError);
            }
            if next >= self.end.load(Ordering::SeqCst) {
                return Err(Error::SequenceRangeUsed);
            }
            // Not `fetch_add`: it would pass the end, where others send.
            let taken =
                self.next.compare_exchange_weak(next, next + 1, Ordering::SeqCst, Ordering::SeqCst);
            match taken {
                Ok(number) => return Ok(number),
                Err(now) => next = now,
            }
        }
    }

    /// Whether a reserved number is left.
    #[inline]
    #[must_use]
    pub fn has_numbers(&self) -> bool {
        self.left() != 0
    }

    /// Tells the owner, who asks [`take_want`](Self::take_want), that a packet needs a number and there is none.
    #[inline]
    pub fn want(&self) {
        if !self.is_wanted.load(Ordering::Relaxed) {
            self.is_wanted.store(true, Ordering::Relaxed);
        }
    }

    /// Whether numbers are wanted.
    #[inline]
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    /// Whether numbers were wanted since the last call.
    pub fn take_want(&self) -> bool {
        self.is_wanted.swap(false, Ordering::Relaxed)
    }

    /// Tells the owner, who asks [`is_left`](Self::is_left), that a packet is left to somebody else who sends on the SA: no
    /// number should be taken until the owner ends that by [`take_up`](Self::take_up).
    pub fn leave(&self) {
        self.is_left.store(true, Ordering::Relaxed);
    }

    /// Whether somebody else sends on the SA.
    #[inline]
    #[must_use]
    pub fn is_left(&self) -> bool {
        self.is_left.load(Ordering::Relaxed)
    }

    /// Numbers may be taken again.
    pub fn take_up(&self) {
        self.is_left.store(false, Ordering::Relaxed);
    }

    /// Reserved numbers that are left. The owner reserves more while there are some.
    #[must_use]
    pub fn left(&self) -> u64 {
        let limit = if self.is_extended { u64::MAX } else { SEQ_MAX + 1 };
        let end = self.end.load(Ordering::SeqCst).min(limit);
        end.saturating_sub(self.next.load(Ordering::SeqCst))
    }

    /// The number that would be taken next, also if it is not reserved; [`u64::MAX`] after
    /// [`close`](Self::close).
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_are_taken_from_reserved_ranges_only() {
        let sequence = Sequence::new(false, 1);
        assert_eq!(sequence.take(), Err(Error::SequenceRangeUsed));
        sequence.extend(1..3).unwrap();
        assert_eq!([sequence.take(), sequence.take()], [Ok(1), Ok(2)]);
        assert_eq!(sequence.take(), Err(Error::SequenceRangeUsed));
        // The kernel has sent 3 to 9.
        sequence.extend(10..11).unwrap();
        assert_eq!([sequence.take(), sequence.take()], [Ok(10), Err(Error::SequenceRangeUsed)]);
        // Numbers that are left are kept if the next range continues theirs.
        sequence.extend(11..13).unwrap();
        sequence.extend(13..14).unwrap();
        assert_eq!(sequence.left(), 3);
        assert_eq!([sequence.take(), sequence.take()], [Ok(11), Ok(12)]);
    }

    #[test]
    fn a_range_that_may_have_been_used_is_refused() {
        let sequence = Sequence::new(true, 1);
        assert_eq!(sequence.extend(0..4), Err(BadRange { start: 0, first_free: 1 }));
        sequence.extend(1..100).unwrap();
        assert_eq!(sequence.extend(99..200), Err(BadRange { start: 99, first_free: 100 }));
        let mut backwards = 200..300;
        std::mem::swap(&mut backwards.start, &mut backwards.end);
        sequence.extend(backwards).unwrap();
        assert_eq!(sequence.take(), Err(Error::SequenceRangeUsed));
    }

    #[test]
    fn a_sequence_continues_where_another_was_closed() {
        for is_extended in [false, true] {
            let old = Sequence::new(is_extended, 500);
            assert_eq!(old.extend(1..900), Err(BadRange { start: 1, first_free: 500 }));
            old.extend(500..510).unwrap();
            assert_eq!([old.take(), old.take()], [Ok(500), Ok(501)]);
            let left = old.close();
            assert_eq!(left, 502..510);
            assert_eq!((old.take(), old.left()), (Err(Error::SequenceRangeUsed), 0));
            assert_eq!(old.extend(600..700).unwrap_err().first_free, u64::MAX);
            assert!(old.close().is_empty(), "the numbers are given away once");
            let new = Sequence::new(is_extended, left.start);
            new.extend(left).unwrap();
            assert_eq!(new.take(), Ok(502));
        }
        assert_eq!(Sequence::new(true, 0).extend(0..1).unwrap_err().first_free, 1);
    }

    #[test]
    fn a_sequence_closed_while_numbers_are_taken_gives_none_twice() {
        let old = Sequence::new(true, 1);
        old.extend(1..100_000).unwrap();
        let take_all = |sequence: &Sequence| -> Vec<u64> {
            std::iter::from_fn(|| sequence.take().ok()).collect()
        };
        let (mut taken, left) = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..3).map(|_| scope.spawn(|| take_all(&old))).collect();
            while old.next() < 100 {
                std::hint::spin_loop();
            }
            let left = old.close();
            let taken = workers.into_iter().flat_map(|worker| worker.join().unwrap());
            (taken.collect::<Vec<_>>(), left)
        });
        taken.extend(left);
        taken.sort_unstable();
        assert!(taken.into_iter().eq(1..100_000), "each number is taken or left");
    }

    #[test]
    fn numbers_end_and_never_wrap() {
        let last = u64::from(u32::MAX);
        let sequence = Sequence::new(false, 1);
        sequence.extend(last..last + 10).unwrap();
        assert_eq!(sequence.left(), 1);
        assert_eq!(sequence.take(), Ok(last));
        assert_eq!(sequence.take(), Err(Error::XfrmOutStateSeqError));

        let sequence = Sequence::new(true, 1);
        sequence.extend(last..u64::MAX).unwrap();
        assert_eq!([sequence.take(), sequence.take()], [Ok(last), Ok(last + 1)]);
        let at_end = Sequence::new(true, 1);
        at_end.extend(u64::MAX - 1..u64::MAX).unwrap();
        assert_eq!(
            [at_end.take(), at_end.take()],
            [Ok(u64::MAX - 1), Err(Error::SequenceRangeUsed)]
        );
    }

    #[test]
    fn several_threads_take_each_number_once_while_ranges_are_added() {
        const THREADS: u64 = 4;
        const RANGES: u64 = 50;
        let sequence = Sequence::new(true, 1);
        let taken: Vec<u64> = std::thread::scope(|scope| {
            let work = || {
                let mut numbers = Vec::new();
                loop {
                    match sequence.take() {
                        // Past the last range, which holds one number for each thread.
                        Ok(number) if number >= RANGES * 1000 => return numbers,
                        Ok(number) => numbers.push(number),
                        Err(_) => std::hint::spin_loop(),
                    }
                }
            };
            let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
            // Ranges with gaps, which the kernel uses.
            for range in 0..RANGES {
                sequence.extend(range * 1000 + 1..range * 1000 + 900).unwrap();
                while sequence.left() > 100 {
                    std::thread::yield_now();
                }
            }
            sequence.extend(RANGES * 1000..RANGES * 1000 + THREADS).unwrap();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        assert!(taken.iter().all(|number| (1..900).contains(&(number % 1000))), "not reserved");
        assert_eq!(taken.iter().collect::<HashSet<_>>().len(), taken.len(), "taken twice");
    }
}
