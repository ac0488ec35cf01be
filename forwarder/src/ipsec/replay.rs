//! The anti-replay window (RFC 4303 §3.4.3, RFC 4302 §3.4.3), with the high half of extended sequence numbers
//! (RFC 4303 appendix A2).
//!
//! Several workers may receive on one SA, so the window has no lock. It is a ring of words; each records 32
//! sequence numbers, and which ones: their round, the number of times that the ring has been passed. A worker
//! accepts a number by setting its bit in one compare-and-swap; a word of an earlier round is replaced, one of
//! a later round means that the number is far left of the window. Nothing is cleared when the window moves, so
//! the work does not depend on how far it moves. The ring has more words than the window needs, and therefore
//! two numbers of one window never share a word with different rounds.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Error;

/// The largest window, in packets: that of the kernel (XFRMA_REPLAY_ESN_MAX).
pub const WINDOW_MAX: u32 = 4096;
/// Sequence numbers recorded in one word; its upper half is the round.
const NUMBERS_PER_WORD: u64 = 32;

/// Words that are part of the SA, to be prefetched with it: enough for windows of up to 192 packets.
const WORDS_INLINE: usize = 8;

/// A window that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadWindow {
    /// Longer than [`WINDOW_MAX`].
    #[error("a replay window of {0} packets: at most {WINDOW_MAX}")]
    TooLong(u32),
    /// ESN needs a window: the high half is inferred from it (RFC 4303 §2.2.1).
    #[error("extended sequence numbers need a replay window")]
    EsnWithoutWindow,
}

/// What an inbound SA had received at some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplaySnapshot {
    /// The highest number received.
    pub top: u64,
    /// Whether `top - n` was received, by `n`; as many as the window is long.
    received: Vec<bool>,
}

impl ReplaySnapshot {
    /// Whether a number was received; false left of the window.
    #[must_use]
    pub fn is_received(&self, number: u64) -> bool {
        let back = self.top.checked_sub(number).and_then(|back| usize::try_from(back).ok());
        back.and_then(|back| self.received.get(back)).copied().unwrap_or(false)
    }

    /// Length of the window, in packets.
    #[must_use]
    pub fn window(&self) -> u32 {
        self.received.len() as u32
    }
}

/// What an inbound SA knows of the sequence numbers received. It has the size of one and a half cache lines, of which
/// the SA fills up the second one.
#[derive(Debug)]
#[repr(C)]
pub struct ReplayWindow {
    /// The highest number accepted.
    top: AtomicU64,
    /// Length of the window, in packets; 0: nothing is checked.
    window: u32,
    /// Whether numbers have 64 bits.
    is_extended: bool,
    /// The words of a window that needs more than [`WORDS_INLINE`]: a power of two.
    long: Box<[AtomicU64]>,
    short: [AtomicU64; WORDS_INLINE],
}

impl ReplayWindow {
    /// A window of `window` packets before the first packet; 0: repeated packets are accepted.
    ///
    /// # Errors
    /// [`BadWindow`].
    pub fn new(window: u32, is_extended: bool) -> Result<ReplayWindow, BadWindow> {
        if window > WINDOW_MAX {
            return Err(BadWindow::TooLong(window));
        }
        if window == 0 && is_extended {
            return Err(BadWindow::EsnWithoutWindow);
        }
        // A window touches one word more than it fills, and one more is the first word of the next round.
        let needed = u64::from(window).div_ceil(NUMBERS_PER_WORD) + 2;
        let len = needed.next_power_of_two() as usize;
        let long = (0..len).filter(|_| len > WORDS_INLINE).map(|_| AtomicU64::new(0)).collect();
        let short = Default::default();
        Ok(ReplayWindow { top: AtomicU64::new(0), window, is_extended, long, short })
    }

    /// A power of two of words; none: nothing is checked.
    #[inline]
    fn words(&self) -> &[AtomicU64] {
        match (self.window, self.long.is_empty()) {
            (0, _) => &[],
            (_, true) => &self.short,
            (_, false) => &self.long,
        }
    }

    /// Continues where another, such as the kernel, has stopped: `top` is the highest number received, and
    /// `is_received(n)` whether `top - n` was, for each `n` below the length of the window. Only before the
    /// window is used.
    pub fn restore(&mut self, top: u64, is_received: impl Fn(u32) -> bool) {
        self.top = AtomicU64::new(0);
        self.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
        // The rounds up to now: a word that is too many rounds behind would count as one of a later round.
        for back in 0..self.words().len() as u64 {
            let number = top.saturating_sub(back * NUMBERS_PER_WORD);
            if let Some((word, round, _)) = self.word(number) {
                word.fetch_max(round << NUMBERS_PER_WORD, Ordering::Relaxed);
            }
        }
        let numbers = (0..self.window).rev().filter(|&back| is_received(back));
        for back in numbers {
            if let Some(number) = top.checked_sub(u64::from(back)) {
                // Numbers come in ascending order, so none is left of the window.
                let _ = self.accept(number);
            }
        }
        self.top.fetch_max(top, Ordering::Relaxed);
    }

    /// Whether numbers have 64 bits.
    #[inline]
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.is_extended
    }

    /// Length of the window, in packets.
    #[inline]
    #[must_use]
    pub fn window(&self) -> u32 {
        self.window
    }

    /// The highest number accepted; 0 before the first packet.
    #[inline]
    #[must_use]
    pub fn top(&self) -> u64 {
        self.top.load(Ordering::Relaxed)
    }

    /// Whether the number was accepted; false left of the window.
    #[must_use]
    pub fn is_received(&self, number: u64) -> bool {
        let Some((word, round, bit)) = self.word(number) else { return false };
        let value = word.load(Ordering::Relaxed);
        self.is_within(number) && value >> NUMBERS_PER_WORD == round && value & bit != 0
    }

    /// The whole number of a packet that has `seq` in its header, if it was not received before. A cheap
    /// check before decryption; after it comes [`accept`](Self::accept).
    ///
    /// # Errors
    /// [`Error::XfrmInStateSeqError`]: the number is left of the window, was received before, or is 0.
    #[inline]
    pub fn check(&self, seq: u32) -> Result<u64, Error> {
        let number = if self.is_extended { self.extend(seq)? } else { u64::from(seq) };
        if self.window == 0 {
            return Ok(number);
        }
        if number == 0 || !self.is_within(number) || self.is_received(number) {
            return Err(Error::XfrmInStateSeqError);
        }
        Ok(number)
    }

    /// Records the number of a packet whose ICV is right. Of several workers with the same number one
    /// succeeds.
    ///
    /// # Errors
    /// [`Error::XfrmInStateSeqError`]: the number is left of the window, or was accepted before.
    #[inline]
    pub fn accept(&self, number: u64) -> Result<(), Error> {
        let Some((word, round, bit)) = self.word(number) else { return Ok(()) };
        if !self.is_within(number) {
            return Err(Error::XfrmInStateSeqError);
        }
        let mut value = word.load(Ordering::Relaxed);
        loop {
            let recorded = value >> NUMBERS_PER_WORD;
            // How many rounds the word is behind, in the 32 bits that it has for them.
            let behind = (round.wrapping_sub(recorded) << NUMBERS_PER_WORD) as i64;
            let new = match behind {
                0 if value & bit != 0 => return Err(Error::XfrmInStateSeqError),
                0 => value | bit,
                // All its numbers are left of the window.
                1.. => round << NUMBERS_PER_WORD | bit,
                _ => return Err(Error::XfrmInStateSeqError),
            };
            // One word is all that decides, so no order among words is needed.
            match word.compare_exchange_weak(value, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => value = now,
            }
        }
        // Most numbers of a worker that shares the SA are below those of another: a read does not take the line.
        if number > self.top() {
            self.top.fetch_max(number, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Records what another, such as the kernel, has received, too: `top` and `is_received` as for
    /// [`restore`](Self::restore). At any time.
    pub fn merge(&self, top: u64, is_received: impl Fn(u32) -> bool) {
        for back in (0..self.window).rev().filter(|&back| is_received(back)) {
            if let Some(number) = top.checked_sub(u64::from(back)) {
                // Numbers that are left of the window, or were recorded before, change nothing.
                let _ = self.accept(number);
            }
        }
    }

    /// What was received so far, at some time during the call.
    #[must_use]
    pub fn snapshot(&self) -> ReplaySnapshot {
        let top = self.top();
        // What the window has passed meanwhile is not accepted any more.
        let is_received = |back: u32| {
            top.checked_sub(u64::from(back))
                .is_some_and(|number| self.is_received(number) || !self.is_within(number))
        };
        ReplaySnapshot { top, received: (0..self.window).map(is_received).collect() }
    }

    /// The number with low half `seq` that is nearest to the window: RFC 4303 appendix A2.2, the kernel's
    /// `xfrm_replay_seqhi`.
    #[inline]
    fn extend(&self, seq: u32) -> Result<u64, Error> {
        let top = self.top();
        let (top_high, top_low) = ((top >> 32) as u32, top as u32);
        let bottom = top_low.wrapping_sub(self.window - 1);
        let high = if top_low >= self.window - 1 {
            // Case A: the window is within one subspace; a lower number is of the next one.
            if seq >= bottom { Some(top_high) } else { top_high.checked_add(1) }
        } else {
            // Case B: it spans two; a high number is of the previous one, which the first has not.
            if seq >= bottom { top_high.checked_sub(1) } else { Some(top_high) }
        };
        let high = high.ok_or(Error::XfrmInStateSeqError)?;
        Ok(u64::from(high) << 32 | u64::from(seq))
    }

    /// Whether the number is in the window or right of it.
    #[inline]
    fn is_within(&self, number: u64) -> bool {
        number.saturating_add(u64::from(self.window)) > self.top()
    }

    /// The word of a number, its round, and its bit. `None`: nothing is checked.
    #[inline]
    fn word(&self, number: u64) -> Option<(&AtomicU64, u64, u64)> {
        let block = number / NUMBERS_PER_WORD;
        let words = self.words();
        let word = words.get(block as usize & words.len().wrapping_sub(1))?;
        // Of the round the low 32 bits. A word is only mistaken for one of a later round if all its numbers
        // were lost for 2³¹ rounds, 2³⁹ numbers at least; its numbers are then refused, not accepted twice.
        let round = block >> words.len().trailing_zeros() & (u64::MAX >> NUMBERS_PER_WORD);
        Some((word, round, 1 << (number % NUMBERS_PER_WORD)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    /// The window as the RFC describes it, with all numbers ever received.
    #[derive(Default)]
    struct Model {
        received: BTreeSet<u64>,
        window: u64,
        is_extended: bool,
    }

    impl Model {
        fn top(&self) -> u64 {
            self.received.last().copied().unwrap_or(0)
        }

        /// The whole number: the candidate that is not left of the window and lowest (RFC 4303 A2.1).
        fn whole(&self, seq: u32) -> Option<u64> {
            if !self.is_extended {
                return Some(u64::from(seq));
            }
            let bottom = self.top() as i128 - (self.window as i128 - 1);
            let candidates =
                (-1..=1).map(|step| ((self.top() as i128 >> 32) + step) << 32 | i128::from(seq));
            candidates.filter(|&number| number >= bottom).min()?.try_into().ok()
        }

        fn receive(&mut self, seq: u32) -> bool {
            let Some(number) = self.whole(seq) else { return false };
            let is_right = number + self.window > self.top();
            is_right && number != 0 && self.received.insert(number)
        }
    }

    fn receive(window: &ReplayWindow, seq: u32) -> bool {
        window.check(seq).is_ok_and(|number| window.accept(number).is_ok())
    }

    /// Steps near the window's edges, repeats, and jumps.
    fn steps(window: u32) -> impl Strategy<Value = Vec<i64>> {
        let window = i64::from(window);
        let step = prop_oneof![
            4 => -4..6i64,
            2 => -window - 3..=-window + 3,
            2 => -window..window,
            1 => window - 40..window * 3 + 40,
            1 => 0..1i64 << 33,
        ];
        proptest::collection::vec(step, 1..300)
    }

    proptest! {
        #[test]
        fn the_window_equals_the_model(
            (window, steps) in prop_oneof![Just(1u32), Just(32), Just(64), 1..200u32, Just(4096)]
                .prop_flat_map(|window| (Just(window), steps(window))),
            start in prop_oneof![Just(0u64), Just((1 << 32) - 50), Just((7 << 32) - 5), 0..1u64 << 50],
            is_extended: bool,
        ) {
            let start = if is_extended { start } else { start & 0x7fff_ffff };
            let mut real = ReplayWindow::new(window, is_extended).unwrap();
            real.restore(start, |back| back == 0 && start != 0);
            let mut model = Model { window: window.into(), is_extended, ..Model::default() };
            model.received.extend((start != 0).then_some(start));
            for step in steps {
                let seq = model.top().wrapping_add_signed(step) as u32;
                prop_assert_eq!(receive(&real, seq), model.receive(seq), "{}", seq);
                prop_assert_eq!(real.top(), model.top());
            }
            for back in 0..u64::from(window) {
                let number = model.top().saturating_sub(back);
                prop_assert_eq!(real.is_received(number), model.received.contains(&number));
            }
        }
    }

    #[test]
    fn two_windows_are_merged() {
        for is_extended in [false, true] {
            let [ours, kernels] = [0, 1].map(|_| ReplayWindow::new(64, is_extended).unwrap());
            [1, 2, 40, 100].iter().for_each(|&number| ours.accept(number).unwrap());
            [41, 99, 110].iter().for_each(|&number| kernels.accept(number).unwrap());
            let snapshot = kernels.snapshot();
            assert_eq!((snapshot.top, snapshot.window()), (110, 64));
            let numbers: Vec<u64> = (1..=120).filter(|&n| snapshot.is_received(n)).collect();
            assert_eq!(numbers, [99, 110], "41 is left of the window");
            ours.merge(snapshot.top, |back| snapshot.is_received(snapshot.top - u64::from(back)));
            let received: Vec<u64> = (1..=120).filter(|&n| ours.is_received(n)).collect();
            assert_eq!(received, [99, 100, 110]);
            assert_eq!(ours.top(), 110);
            // Something older changes nothing.
            ours.merge(20, |_| true);
            assert_eq!((1..=120).filter(|&n| ours.is_received(n)).count(), 3);
        }
    }

    #[test]
    fn the_high_half_follows_the_window_through_a_wrap() {
        let mut window = ReplayWindow::new(64, true).unwrap();
        window.restore(0xffff_fff0, |back| back == 0);
        // Case A of RFC 4303 A2.1: within one subspace; a low number is of the next.
        assert_eq!(window.check(0xffff_fff5), Ok(0xffff_fff5));
        assert_eq!(window.check(3), Ok(0x1_0000_0003));
        window.accept(0x1_0000_0003).unwrap();
        // Case B: the window spans two subspaces.
        assert_eq!(window.check(0xffff_fff5), Ok(0xffff_fff5));
        assert_eq!(window.check(4), Ok(0x1_0000_0004));
        assert_eq!(window.check(0xffff_fff0), Err(Error::XfrmInStateSeqError), "received");
        assert_eq!(window.check(0x8000_0000), Ok(0x1_8000_0000));
        // Nothing is before the first subspace.
        let window = ReplayWindow::new(64, true).unwrap();
        assert_eq!(window.check(0xffff_fff5), Err(Error::XfrmInStateSeqError));
    }

    #[test]
    fn zero_is_never_a_number_and_without_a_window_all_others_are_right() {
        let window = ReplayWindow::new(32, false).unwrap();
        assert_eq!(window.check(0), Err(Error::XfrmInStateSeqError));
        let none = ReplayWindow::new(0, false).unwrap();
        assert!([7, 7, 3].iter().all(|&seq| receive(&none, seq)));
        assert_eq!(ReplayWindow::new(0, true).unwrap_err(), BadWindow::EsnWithoutWindow);
        assert_eq!(ReplayWindow::new(4097, true).unwrap_err(), BadWindow::TooLong(4097));
    }

    #[test]
    fn several_threads_accept_each_number_once() {
        const NUMBERS: u64 = 200_000;
        for window in [1, 64, 4096] {
            // Without ESN: a thread that lags behind the window would infer another high half.
            let window = ReplayWindow::new(window, false).unwrap();
            let accepted = AtomicU64::new(0);
            let twice: Vec<AtomicU64> = (0..=NUMBERS).map(|_| AtomicU64::new(0)).collect();
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        for number in 1..=NUMBERS {
                            if receive(&window, number as u32) {
                                accepted.fetch_add(1, Ordering::Relaxed);
                                twice[number as usize].fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    });
                }
            });
            assert!(twice.iter().all(|count| count.load(Ordering::Relaxed) <= 1));
            assert!(accepted.into_inner() > 0);
            assert_eq!(window.top(), NUMBERS);
        }
    }

    #[test]
    fn one_thread_accepts_all_numbers_once() {
        const NUMBERS: u32 = 200_000;
        for size in [1, 64, 4096] {
            let window = ReplayWindow::new(size, false).unwrap();
            assert_eq!(
                (1..=NUMBERS).filter(|&number| receive(&window, number)).count() as u32,
                NUMBERS
            );
            assert!(!(1..=NUMBERS).any(|number| receive(&window, number)));
            // In any order within the window.
            let window = ReplayWindow::new(size, false).unwrap();
            let blocks = (0..NUMBERS / size).map(|block| block * size);
            let backwards = blocks.flat_map(|first| (1..=size).rev().map(move |n| first + n));
            let accepted = backwards.filter(|&number| receive(&window, number)).count() as u32;
            assert_eq!(accepted, NUMBERS / size * size);
        }
    }
}
