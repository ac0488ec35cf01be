//! Time that frames spend in a worker, as one histogram per pair of ports.
//!
//! The time of a frame begins when its burst has been taken from the RX ring and ends when it has been
//! put on the TX ring of its output port (the ring's index is written once per burst).
//!
//! - **Included**: the processing of the frame and of the other frames in its burst, because a burst is
//!   sent together; sending of earlier bursts on other ports; if another worker sends the frame, the
//!   handoff to that worker, which then records the time; and the wait for a neighbour's address (up to
//!   three seconds), which causes long tails.
//! - **Not included**: the time in the RX ring, which is where the preemption of a worker shows first;
//!   taking the burst from it; the system call that makes the kernel send; the TX ring and the NIC.
//! - **Not counted**: frames that never reach a TX ring (dropped, punted), and the router's own packets.
//!   A packet that leaves in fragments counts once, with its last fragment.
//!
//! On average one frame in `every` is measured, at random distances, so that periodic traffic is sampled
//! evenly. The clock is read only for bursts with such a frame: once on input, once on output. Recording
//! is a load and a store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::clock::Stopwatch;
use crate::pipeline::EGRESS;
use crate::skb::SkBuff;
use crate::stats::HdrCounters;

/// Measurements of one worker; only the worker writes them, any thread may read.
#[derive(Debug)]
pub struct Residence {
    /// 0 from the start to the end, or never. Ro: the worker; wo: the control thread.
    every: AtomicU32,
    ports: usize,
    /// Indexed by in-port × ports + out-port.
    pairs: HdrCounters,
}

impl Residence {
    /// Measures one frame in `every` between `ports` ports; 0 measures nothing. `None`: there is no
    /// memory for that many port pairs (each 216 KiB, backed by memory where counters are used).
    pub fn new(ports: u16, every: u32) -> Option<Residence> {
        let ports = usize::from(ports);
        let pairs = HdrCounters::new(if every == 0 { 0 } else { ports * ports })?;
        Some(Residence { every: AtomicU32::new(every), ports, pairs })
    }

    /// Measures nothing.
    pub fn off() -> Residence {
        Residence { every: AtomicU32::new(0), ports: 0, pairs: HdrCounters::default() }
    }

    #[inline]
    fn every(&self) -> u32 {
        self.every.load(Relaxed)
    }

    /// Measures one frame in `every` from the next measured one on. Nothing changes if nothing is measured until now, for
    /// which there is no memory, and if `every` is 0.
    pub fn set_every(&self, every: u32) {
        if every != 0 && self.every() != 0 {
            self.every.store(every, Relaxed);
        }
    }

    /// Measurements from one port to another: (index, count) as [`HdrCounters::counts`] returns them.
    pub fn counts(&self, iif: u16, oif: u16) -> Vec<(u32, u64)> {
        self.pairs.counts(self.pair(iif, oif))
    }

    #[inline]
    fn pair(&self, iif: u16, oif: u16) -> usize {
        usize::from(iif) * self.ports + usize::from(oif)
    }
}

/// A frame found in an egress burst.
#[derive(Debug, Clone, Copy)]
struct Found {
    position: u32,
    iif: u16,
    taken_ns: u64,
}

/// The worker's sampler.
#[derive(Debug)]
pub(super) struct Sampler {
    residence: Arc<Residence>,
    clock: Stopwatch,
    /// Frames until the next one to be measured.
    skip: usize,
    random: u64,
    /// Whether a measured frame may be among those about to be sent.
    armed: bool,
    found: Vec<Found>,
}

impl Sampler {
    /// `seed` selects which frames are measured.
    pub(super) fn new(residence: Arc<Residence>, seed: u64) -> Sampler {
        let mut sampler = Sampler {
            clock: Stopwatch::start(),
            skip: usize::MAX,
            // A state of zero would stay zero.
            random: seed | 1,
            armed: false,
            found: Vec::with_capacity(EGRESS),
            residence,
        };
        if sampler.residence.every() > 0 {
            sampler.skip = sampler.distance() - 1;
        }
        sampler
    }

    /// Selects among received frames. When nothing is measured, `skip` never reaches 0.
    #[inline]
    pub(super) fn choose(&mut self, burst: &mut [SkBuff]) {
        if self.skip < burst.len() {
            self.stamp(burst);
        } else if self.residence.every() > 0 {
            self.skip -= burst.len();
        }
    }

    fn stamp(&mut self, burst: &mut [SkBuff]) {
        let now_ns = self.clock.now_ns();
        let mut at = self.skip;
        while let Some(skb) = burst.get_mut(at) {
            (skb.timed, skb.tstamp_ns) = (true, now_ns);
            at += self.distance();
        }
        self.skip = at - burst.len();
        self.armed = true;
    }

    /// Held frames may be sent now.
    #[inline]
    pub(super) fn arm(&mut self) {
        self.armed = self.residence.every() > 0;
    }

    /// No measured frame is about to be sent.
    #[inline]
    pub(super) fn disarm(&mut self) {
        self.armed = false;
    }

    /// Looks for measured frames in a burst before it is put on a TX ring.
    #[inline]
    pub(super) fn find(&mut self, egress: &[SkBuff]) {
        if !self.armed {
            return;
        }
        for (position, skb) in egress.iter().enumerate().filter(|(_, skb)| skb.timed) {
            // There is room for a whole burst: nothing is allocated.
            if self.found.len() < self.found.capacity() {
                let position = position as u32;
                self.found.push(Found { position, iif: skb.port, taken_ns: skb.tstamp_ns });
            }
        }
    }

    /// Records the frames found, after the first `put` frames of the burst were put on the TX ring.
    #[inline]
    pub(super) fn record(&mut self, oif: u16, put: usize) {
        if self.found.is_empty() {
            return;
        }
        let now_ns = self.clock.now_ns();
        for found in self.found.drain(..).filter(|found| (found.position as usize) < put) {
            let pair = self.residence.pair(found.iif, oif);
            self.residence.pairs.record(pair, now_ns.saturating_sub(found.taken_ns));
        }
    }

    /// The next distance: 1 to 2 × every − 1, on average `every` (xorshift64, Marsaglia 2003).
    #[inline]
    fn distance(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let range = 2 * u64::from(self.residence.every()) - 1;
        1 + (self.random % range) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skb::{Burst, FramePool, HEADROOM, Umem};

    fn burst(pool: &mut FramePool, len: usize) -> Burst {
        let mut burst = Burst::default();
        for _ in 0..len {
            burst.push(SkBuff::alloc_skb(pool, HEADROOM).expect("a frame")).expect("room");
        }
        burst
    }

    fn sampler(every: u32) -> Sampler {
        Sampler::new(Arc::new(Residence::new(2, every).expect("memory")), 7)
    }

    fn count(sampler: &Sampler, iif: u16, oif: u16) -> u64 {
        sampler.residence.counts(iif, oif).iter().map(|(_, count)| count).sum()
    }

    #[test]
    fn another_rate_takes_effect_while_frames_are_measured() {
        let (sampler, off) = (sampler(1), Residence::off());
        sampler.residence.set_every(1000);
        off.set_every(1000);
        assert_eq!((sampler.residence.every(), off.every()), (1000, 0));
        sampler.residence.set_every(0);
        assert_eq!(sampler.residence.every(), 1000, "there would be no next measured frame");
    }

    #[test]
    fn the_sampling_rate_is_kept_and_positions_vary() {
        let mut pool = Umem::anonymous(64).into_pool();
        let mut burst = burst(&mut pool, 64);
        for (every, expected) in [(0, 0..=0), (1, 64_000..=64_000), (64, 900..=1100)] {
            let mut sampler = sampler(every);
            let mut chosen = [0; 64];
            for _ in 0..1000 {
                sampler.choose(burst.as_mut_slice());
                for (skb, chosen) in burst.as_mut_slice().iter_mut().zip(&mut chosen) {
                    *chosen += u32::from(std::mem::take(&mut skb.timed));
                }
            }
            let total = chosen.iter().sum::<u32>();
            assert!(expected.contains(&total), "one in {every}: {total} of 64000");
            assert!(every == 0 || chosen.iter().all(|&count| count > 0), "{chosen:?}");
        }
    }

    #[test]
    fn packets_beyond_the_ring_are_not_counted_and_pairs_have_a_direction() {
        let mut pool = Umem::anonymous(8).into_pool();
        let mut sampler = sampler(1);
        let mut burst = burst(&mut pool, 8);
        sampler.choose(burst.as_mut_slice());
        sampler.find(burst.as_slice());
        sampler.record(1, 5);
        assert_eq!((count(&sampler, 0, 1), count(&sampler, 1, 0)), (5, 0));
        // Not armed: no search.
        sampler.disarm();
        sampler.find(burst.as_slice());
        sampler.record(1, 8);
        assert_eq!(count(&sampler, 0, 1), 5);
        // Held frames, sent later.
        sampler.arm();
        burst.as_mut_slice().iter_mut().for_each(|skb| skb.port = 1);
        sampler.find(burst.as_slice());
        sampler.record(0, 8);
        assert_eq!((count(&sampler, 0, 1), count(&sampler, 1, 0)), (5, 8));
    }

    #[test]
    fn time_is_of_the_clock() {
        let mut pool = Umem::anonymous(1).into_pool();
        let mut sampler = sampler(1);
        let mut burst = burst(&mut pool, 1);
        sampler.choose(burst.as_mut_slice());
        let taken_ns = burst.as_slice()[0].tstamp_ns;
        std::thread::sleep(std::time::Duration::from_millis(20));
        sampler.find(burst.as_slice());
        sampler.record(1, 1);
        let after_ns = sampler.clock.now_ns();
        let index = sampler.residence.counts(0, 1)[0].0;
        let measured_ns = crate::stats::histogram::value_at(index as usize);
        // A lower bound, and the clock itself as the upper one: valid however long this thread was
        // preempted.
        assert!(measured_ns > 19_000_000, "{measured_ns}");
        assert!(measured_ns <= after_ns - taken_ns, "{measured_ns}");
    }
}
