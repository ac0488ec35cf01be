//! The end of a port: which of its packets were sent, and which are dropped.
//!
//! In copy mode the kernel sends in our system calls alone, so nothing moves any more: what it has
//! taken from the TX ring it has sent (or refused, which was counted then), whether it has completed
//! it or not; what it has not taken it never will. A NIC in zero-copy mode sends by itself: it is given
//! some time, and what is not completed then counts as dropped.

use std::time::{Duration, Instant};

use super::port::Port;
use super::slots::{Packets, Slots};
use super::socket::packet_addr;
use super::{BoundMode, PortState};
use crate::skb::FramePool;
use crate::stats::{DropReason, WorkerStats};

/// How long a NIC may take to complete what it has been given: a ring of 2048 packets of 1500 octets
/// takes 25 ms at 1 Gb/s.
const COMPLETION_MAX: Duration = Duration::from_millis(30);
/// A NIC that completes nothing for so long sends nothing.
const COMPLETION_IDLE: Duration = Duration::from_millis(3);
/// Between two looks at the completion ring.
const COMPLETION_PAUSE: Duration = Duration::from_micros(100);

impl Port {
    /// Settles what can be settled before the socket closes: every packet that was given to the port
    /// and every packet that it has received is counted as sent or as dropped.
    pub(super) fn finish(
        &mut self,
        port: u16,
        slots: &mut Slots,
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) {
        self.complete(port, slots, pool, stats);
        let copy = self.mode == BoundMode::Copy;
        if !copy {
            self.wait_for_nic(port, slots, pool, stats);
        }
        self.settle_tx(copy, port, slots, stats);
        let mut slots = slots.of(self.rx_owner);
        for desc in self.socket.rx.take(u32::MAX) {
            let (frame, offset) = slots.take_at(packet_addr(desc.addr));
            self.fill_and_rx -= u32::from(frame.is_some());
            match self.rx_chain.receive(desc, frame, offset, pool) {
                Ok(None) => {}
                Ok(Some(skb)) => {
                    stats.rx_drop(DropReason::DevNotReady, port);
                    pool.kfree_skb(skb);
                }
                Err(reason) => stats.rx_drop(reason, port),
            }
        }
        if let Some(partial) = self.rx_chain.take_partial() {
            stats.rx_drop(DropReason::DevNotReady, port);
            pool.kfree_skb(partial);
        }
    }

    /// Gives a NIC the time to complete what it has.
    fn wait_for_nic(
        &mut self,
        port: u16,
        slots: &mut Slots,
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) {
        let begun = Instant::now();
        let (mut progress, mut left) = (begun, self.sending);
        while left > 0
            && self.state == PortState::Up
            && progress.elapsed() < COMPLETION_IDLE
            && begun.elapsed() < COMPLETION_MAX
        {
            self.wake_tx(port, slots, pool, stats);
            self.complete(port, slots, pool, stats);
            if self.sending < left {
                (progress, left) = (Instant::now(), self.sending);
            }
            std::thread::sleep(COMPLETION_PAUSE);
        }
    }

    /// Counts the packets that are not completed. `taken_is_sent`: what the kernel has taken from the
    /// TX ring it has sent.
    fn settle_tx(
        &mut self,
        taken_is_sent: bool,
        port: u16,
        slots: &mut Slots,
        stats: &WorkerStats,
    ) {
        let slots = slots.of(self.tx_owner);
        let mut untaken = Packets::default();
        for desc in self.socket.tx.untaken() {
            // The kernel may show late what it has taken: what is completed is no longer there.
            untaken.add(slots.packet_len(desc.addr).unwrap_or(0));
        }
        let given = slots.packets();
        let taken = given.count - untaken.count;
        // Those that were refused have been counted as dropped.
        let taken = taken - self.refused.min(taken);
        let (sent, dropped) = match taken_is_sent {
            true => (taken, untaken.count),
            false => (0, untaken.count + taken),
        };
        for _ in 0..dropped {
            stats.tx_drop(DropReason::DevNotReady, port);
        }
        if let Some(counters) = stats.ports.get(port as usize).filter(|_| sent > 0) {
            counters.tx_packets.add(u64::from(sent));
            counters.tx_bytes.add(given.octets - untaken.octets);
        }
        (self.sending, self.refused) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::io::af_xdp::area::Area;
    use crate::skb::{Burst, SkBuff};

    const FRAMES: u32 = 32;

    /// A port with rings in memory, of which the test is the kernel.
    struct Lab {
        port: Port,
        slots: Slots,
        pool: FramePool,
        stats: WorkerStats,
        _area: Arc<Area>,
    }

    impl Lab {
        fn new(mode: BoundMode, segments: usize) -> Lab {
            let (area, pool) = Area::map(FRAMES).expect("maps");
            Lab {
                port: Port::in_memory(mode, segments),
                slots: Slots::new(area.start(), FRAMES),
                pool,
                stats: WorkerStats::new(1),
                _area: area,
            }
        }

        /// Packets of these lengths are put on the TX ring. Gives the addresses of their frames.
        fn send(&mut self, lens: &[usize]) -> Vec<u64> {
            let mut burst = Burst::default();
            for &len in lens {
                let skb = SkBuff::of_octets(&mut self.pool, &vec![0; len]).expect("free frames");
                burst.push(skb).expect("room");
            }
            let before = self.port.socket.tx.untaken().count();
            let Lab { port, slots, pool, stats, .. } = self;
            assert_eq!(port.tx_burst(0, slots, pool, &mut burst, stats), lens.len());
            port.socket.tx.untaken().skip(before).map(|desc| desc.addr).collect()
        }

        fn takes(&self, frames: u32) {
            self.port.socket.tx.taken_by_kernel(frames);
        }

        fn completes(&self, addrs: &[u64]) {
            addrs.iter().for_each(|&addr| self.port.socket.completion.given_by_kernel(addr));
        }

        /// The kernel has completed a packet and said EBUSY.
        fn refuses(&mut self, addr: u64) {
            self.completes(&[addr]);
            self.port.refused += 1;
            self.stats.tx_drop(DropReason::TxError, 0);
        }

        fn finish(&mut self) {
            let Lab { port, slots, pool, stats, .. } = self;
            port.finish(0, slots, pool, stats);
            assert_eq!((port.sending(), port.refused), (0, 0));
            let owners = self.port.owners();
            owners.iter().for_each(|&owner| {
                self.slots.reclaim(owner, &mut self.pool);
            });
            assert_eq!(self.pool.available(), FRAMES as usize, "every frame is back");
        }

        /// Packets sent, their octets, and packets dropped: DEV_READY, TX_ERROR.
        fn counted(&self) -> (u64, u64, u64, u64) {
            let port = &self.stats.ports[0];
            let drops = |reason: DropReason| self.stats.drop_count(reason);
            let (gone, error) = (drops(DropReason::DevNotReady), drops(DropReason::TxError));
            assert_eq!(port.tx_dropped.get(), gone + error);
            (port.tx_packets.get(), port.tx_bytes.get(), gone, error)
        }
    }

    #[test]
    fn in_copy_mode_what_the_kernel_took_is_sent_and_the_rest_is_dropped() {
        // Of six packets the first `taken` were taken, the first `completed` completed.
        for taken in 0..=6usize {
            for completed in 0..=taken {
                let mut lab = Lab::new(BoundMode::Copy, 1);
                let addrs = lab.send(&[60, 61, 62, 63, 64, 65]);
                lab.takes(taken as u32);
                lab.completes(&addrs[..completed]);
                assert_eq!(lab.counted().0, 0, "nothing is sent before it is completed");
                lab.finish();
                let octets = (60..60 + taken as u64).sum();
                let expected = (taken as u64, octets, 6 - taken as u64, 0);
                assert_eq!(lab.counted(), expected, "{taken} {completed}");
            }
        }
    }

    #[test]
    fn what_was_refused_is_dropped_once_however_late_it_shows() {
        // Completed and read, completed and not read; the TX ring's index moved, or not yet.
        for (read, shown) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut lab = Lab::new(BoundMode::Copy, 1);
            let addrs = lab.send(&[60, 61, 62]);
            lab.takes(1);
            lab.completes(&addrs[..1]);
            lab.refuses(addrs[1]);
            if shown {
                lab.takes(1);
            }
            if read {
                let Lab { port, slots, pool, stats, .. } = &mut lab;
                port.complete(0, slots, pool, stats);
                assert_eq!((lab.port.sending(), lab.counted()), (1, (1, 60, 0, 1)));
            }
            lab.finish();
            assert_eq!(lab.counted(), (1, 60, 1, 1), "read {read} shown {shown}");
        }
    }

    #[test]
    fn what_was_refused_and_never_completed_is_dropped_once() {
        let mut lab = Lab::new(BoundMode::Copy, 1);
        lab.send(&[60, 61]);
        lab.takes(1);
        lab.port.refused = 1;
        lab.stats.tx_drop(DropReason::TxError, 0);
        assert_eq!(lab.port.sending(), 1);
        lab.finish();
        let (sent, _, gone, error) = lab.counted();
        assert_eq!((sent, gone, error), (0, 1, 1));
    }

    #[test]
    fn a_packet_of_several_frames_is_sent_when_its_last_one_was_taken() {
        for taken in 0..=3u64 {
            let mut lab = Lab::new(BoundMode::Copy, 18);
            let addrs = lab.send(&[9014]);
            assert_eq!((addrs.len(), lab.port.sending()), (3, 1));
            lab.takes(taken as u32);
            lab.finish();
            let sent = u64::from(taken == 3);
            assert_eq!(lab.counted(), (sent, sent * 9014, 1 - sent, 0), "{taken}");
        }
    }

    #[test]
    fn what_a_nic_has_not_completed_is_dropped() {
        let mut lab = Lab::new(BoundMode::ZeroCopy, 1);
        let addrs = lab.send(&[60, 61, 62, 63]);
        lab.takes(3);
        lab.completes(&addrs[..1]);
        lab.finish();
        assert_eq!(lab.counted(), (1, 60, 3, 0));
    }

    #[test]
    fn what_was_received_and_not_taken_counts_as_received_and_dropped() {
        let mut lab = Lab::new(BoundMode::Copy, 1);
        for _ in 0..3 {
            let frame = lab.pool.alloc().expect("a frame");
            let addr = lab.slots.of(lab.port.rx_owner).give(frame).expect("free place");
            lab.port.fill_and_rx += 1;
            let addr = addr + crate::skb::HEADROOM as u64;
            lab.port.socket.rx.given_by_kernel(libc::xdp_desc { addr, len: 60, options: 0 });
        }
        // An address that was never given.
        let addr = u64::from(FRAMES - 1) * crate::skb::FRAME_SIZE as u64;
        lab.port.socket.rx.given_by_kernel(libc::xdp_desc { addr, len: 60, options: 0 });
        lab.finish();
        let port = &lab.stats.ports[0];
        assert_eq!((port.rx_packets.get(), port.rx_dropped.get()), (4, 4));
        assert_eq!(lab.stats.drop_count(DropReason::DevNotReady), 3);
        assert_eq!(lab.stats.drop_count(DropReason::RxBadDescriptor), 1);
        assert!(lab.stats.account(0, 0).is_balanced());
    }
}
