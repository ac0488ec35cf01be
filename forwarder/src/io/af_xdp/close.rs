//! Closes a port: determines which of its packets were sent and which are dropped.
//!
//! In copy mode the kernel sends only in our system calls, so nothing changes any more. Packets
//! that it has taken from the TX ring were sent (or refused, and counted then), whether or not they
//! are completed; packets that it has not taken will never be sent. Up to Linux 6.16 the kernel
//! updates the TX ring's index late: packets that it has neither shown as taken nor completed, and
//! after which no packet is completed, count as dropped, although they may have been sent. A NIC in
//! zero-copy mode sends by itself: it gets some time, and packets that are not completed then count
//! as dropped.

use std::time::{Duration, Instant};

use super::port::Port;
use super::slots::{Packets, Slots};
use super::socket::packet_addr;
use super::{BoundMode, PortState};
use crate::skb::FramePool;
use crate::stats::{DropReason, WorkerStats};

/// Maximum time for a NIC to complete its packets: a ring of 2048 packets of 1500 octets takes 25
/// ms at 1 Gb/s.
const COMPLETION_MAX: Duration = Duration::from_millis(30);
/// A NIC that completes nothing for this long does not send.
const COMPLETION_IDLE: Duration = Duration::from_millis(3);
/// Interval between reads of the completion ring.
const COMPLETION_PAUSE: Duration = Duration::from_micros(100);

impl Port {
    /// Completes the accounting before the socket closes: every packet that was given to the port,
    /// and every packet that it received, is counted as sent or dropped.
    pub(super) fn finish(
        &mut self,
        port: u16,
        slots: &mut Slots,
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) {
        self.complete(port, slots, pool, stats);
        if self.mode == BoundMode::ZeroCopy {
            self.wait_for_nic(port, slots, pool, stats);
        }
        self.settle_tx(port, slots, pool, stats);
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

    /// Waits for a NIC to complete its packets.
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

    /// Counts the packets that are not completed.
    fn settle_tx(
        &mut self,
        port: u16,
        slots: &mut Slots,
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) {
        let mut slots = slots.of(self.tx_owner);
        let mut dropped = 0;
        if self.mode == BoundMode::Copy {
            let mut untaken = Packets::default();
            for desc in self.socket.tx.untaken().rev() {
                // The token of a completed frame was taken from its slot; a frame that was given
                // again is counted at its last descriptor. The kernel takes descriptors in order,
                // so it has taken this one and all before it, although the ring's index may not
                // show that yet: up to Linux 6.16 the kernel updates it only when it has used up
                // the descriptors it saw there (xskq_cons_get_entries).
                let Some((frame, packet_len)) = slots.take_sent(desc.addr) else { break };
                pool.free(frame);
                self.tx_and_completion -= 1;
                untaken.add(packet_len);
            }
            dropped = untaken.count;
        }
        let mut taken = slots.packets();
        // Refused packets were already counted as dropped.
        taken.count = taken.count.saturating_sub(self.refused);
        if self.mode == BoundMode::ZeroCopy {
            dropped = std::mem::take(&mut taken).count;
        }
        for _ in 0..dropped {
            stats.tx_drop(DropReason::DevNotReady, port);
        }
        if let Some(counters) = stats.ports.get(port as usize).filter(|_| taken.count > 0) {
            counters.tx_packets.add(u64::from(taken.count));
            counters.tx_bytes.add(taken.octets);
        }
        (self.sending, self.refused) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::io::af_xdp::area::Area;
    use crate::io::af_xdp::port_table::SocketPort;
    use crate::skb::{Burst, SkBuff};

    const FRAMES: u32 = 32;

    /// A port with rings in memory; the test plays the kernel.
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

        /// Puts packets of these lengths on the TX ring. Returns the addresses of their frames.
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

        /// The kernel completes a packet and returns EBUSY.
        fn refuses(&mut self, addr: u64) {
            self.completes(&[addr]);
            self.port.refused += 1;
            self.stats.tx_drop(DropReason::TxError, 0);
        }

        fn reads_completions(&mut self) {
            let Lab { port, slots, pool, stats, .. } = self;
            port.complete(0, slots, pool, stats);
        }

        fn finish(&mut self) {
            let Lab { port, slots, pool, stats, .. } = self;
            port.finish(0, slots, pool, stats);
            assert_eq!((port.sending(), port.refused), (0, 0));
            let owners = self.port.owners();
            owners.iter().for_each(|&owner| {
                self.slots.reclaim(owner, &mut self.pool);
            });
            assert_eq!(self.pool.available(), FRAMES as usize, "every frame is in the pool");
        }

        /// (packets sent, their octets, packets dropped as DEV_READY, as TX_ERROR).
        fn counted(&self) -> (u64, u64, u64, u64) {
            let port = &self.stats.ports[0];
            let drops = |reason: DropReason| self.stats.drop_count(reason);
            let (gone, error) = (drops(DropReason::DevNotReady), drops(DropReason::TxError));
            assert_eq!(port.tx_dropped.get(), gone + error);
            (port.tx_packets.get(), port.tx_bytes.get(), gone, error)
        }
    }

    #[test]
    fn in_copy_mode_packets_that_the_kernel_took_are_sent_and_others_dropped() {
        // Of six packets, `taken` were taken and `completed` completed.
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
    fn a_refused_packet_is_dropped_once_however_late_it_is_completed() {
        // Completed and read or not read; the TX ring's index updated or not.
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
                lab.reads_completions();
                assert_eq!((lab.port.sending(), lab.counted()), (1, (1, 60, 0, 1)));
            }
            lab.finish();
            assert_eq!(lab.counted(), (1, 60, 1, 1), "read {read} shown {shown}");
        }
    }

    /// Up to Linux 6.16 the kernel updates the TX ring's index only when it has used up the
    /// descriptors it saw there: a completed frame may be given again while its earlier descriptor
    /// still seems to be waiting.
    #[test]
    fn a_frame_given_again_while_its_old_descriptor_seems_untaken_counts_once() {
        let mut lab = Lab::new(BoundMode::Copy, 1);
        let addrs = lab.send(&[60, 61, 62]);
        lab.takes(1);
        lab.completes(&addrs[..1]);
        lab.refuses(addrs[1]);
        lab.reads_completions();
        let again = lab.send(&[63]);
        assert_eq!(again, addrs[1..2], "the pool gives the frame freed last");
        lab.finish();
        assert_eq!(lab.counted(), (1, 60, 2, 1));
    }

    #[test]
    fn the_room_of_a_port_is_limited_by_the_tx_ring() {
        let mut lab = Lab::new(BoundMode::Copy, 1);
        let addrs = lab.send(&[60; 16]);
        // Completed, while the TX ring still seems full.
        lab.completes(&addrs[..5]);
        lab.reads_completions();
        assert_eq!((lab.port.tx_room_up(), lab.port.sending()), (0, 11));
        lab.takes(3);
        assert_eq!(lab.port.tx_room_up(), 3);
        lab.send(&[61; 3]);
        lab.finish();
        assert_eq!(lab.counted(), (5, 300, 14, 0));
    }

    #[test]
    fn a_tx_ring_that_seems_full_of_completed_frames_causes_a_wakeup() {
        let mut lab = Lab::new(BoundMode::Copy, 1);
        // Otherwise the kernel would not request a wakeup.
        lab.port.busy_poll = true;
        let addrs = lab.send(&[60; 16]);
        lab.completes(&addrs);
        lab.reads_completions();
        assert_eq!((lab.port.tx_room_up(), lab.port.sending()), (0, 0));
        let Lab { port, slots, pool, stats, .. } = &mut lab;
        port.kick(0, slots, pool, stats);
        assert_eq!(port.tx_state(), PortState::Gone, "sendto(2) was tried, on no socket");
    }

    #[test]
    fn packets_before_a_completed_one_count_as_sent() {
        let mut lab = Lab::new(BoundMode::Copy, 1);
        let addrs = lab.send(&[60, 61, 62, 63]);
        // All but the last were taken, which the ring's index does not show.
        lab.completes(&addrs[2..3]);
        lab.finish();
        assert_eq!(lab.counted(), (3, 60 + 61 + 62, 1, 0));
    }

    /// An action of the simulated kernel.
    #[derive(Debug, Clone)]
    enum Step {
        Send(usize),
        Take(usize),
        /// Completes one of the taken packets, in any order.
        Complete(usize),
        /// Takes, completes and refuses the next one.
        Refuse,
        /// Updates the TX ring's index.
        Show,
        ReadCompletions,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (1..6usize).prop_map(Step::Send),
            3 => (1..6usize).prop_map(Step::Take),
            6 => any::<usize>().prop_map(Step::Complete),
            1 => Just(Step::Refuse),
            1 => Just(Step::Show),
            3 => Just(Step::ReadCompletions),
        ];
        proptest::collection::vec(step, 0..120)
    }

    proptest! {
        #[test]
        fn every_packet_is_sent_or_dropped_whatever_the_kernel_does(steps in steps()) {
            let mut lab = Lab::new(BoundMode::Copy, 1);
            // Address and length of every packet; those that were completed, and refused.
            let mut given: Vec<(u64, u64)> = Vec::new();
            let (mut completed, mut refused) = (BTreeSet::new(), BTreeSet::new());
            let (mut taken, mut shown) = (0, 0);
            for step in steps {
                match step {
                    Step::Send(packets) => {
                        let lens: Vec<usize> = (0..packets.min(lab.port.tx_room_up()))
                            .map(|n| 60 + given.len() + n)
                            .collect();
                        let addrs = lab.send(&lens);
                        given.extend(addrs.into_iter().zip(lens.iter().map(|&len| len as u64)));
                    }
                    Step::Take(packets) => taken = given.len().min(taken + packets),
                    Step::Complete(nth) => {
                        let left: Vec<usize> =
                            (0..taken).filter(|n| !completed.contains(n)).collect();
                        if let Some(&n) = left.get(nth % left.len().max(1)) {
                            lab.completes(&[given[n].0]);
                            completed.insert(n);
                        }
                    }
                    Step::Refuse => if taken < given.len() {
                        lab.refuses(given[taken].0);
                        lab.reads_completions();
                        completed.insert(taken);
                        refused.insert(taken);
                        taken += 1;
                    },
                    Step::Show => {
                        lab.takes((taken - shown) as u32);
                        shown = taken;
                    }
                    Step::ReadCompletions => lab.reads_completions(),
                }
            }
            lab.finish();
            // Packets known to be taken: up to the index, and up to the last completed one.
            let known = shown.max(completed.last().map_or(0, |last| last + 1));
            let sent: Vec<usize> = (0..known).filter(|n| !refused.contains(n)).collect();
            let octets = sent.iter().map(|&n| given[n].1).sum();
            let dropped = (given.len() - known) as u64;
            let expected = (sent.len() as u64, octets, dropped, refused.len() as u64);
            prop_assert_eq!(lab.counted(), expected);
        }
    }

    #[test]
    fn a_refused_packet_that_is_never_completed_is_dropped_once() {
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
    fn a_packet_of_several_frames_is_sent_if_its_last_frame_was_taken() {
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
    fn packets_that_a_nic_has_not_completed_are_dropped() {
        let mut lab = Lab::new(BoundMode::ZeroCopy, 1);
        let addrs = lab.send(&[60, 61, 62, 63]);
        lab.takes(3);
        lab.completes(&addrs[..1]);
        lab.finish();
        assert_eq!(lab.counted(), (1, 60, 3, 0));
    }

    #[test]
    fn received_packets_left_in_the_ring_count_as_received_and_dropped() {
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
