//! Several workers: packets for a port on which their worker has no queue are sent by another worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::clock::{Clock, monotonic_ns};
use super::handoff::{HandoffTx, Waker, channel};
use super::poll::{Parts, PollMode, WorkerFrames};
use super::slow_path::{PuntQueue, Wakeup, frames_max, slow_path};
use super::{
    CallTimeouts, Handoffs, HeartbeatTimeouts, Liveness, NoAnswer, Residence, Worker, WorkerHandle,
};
use crate::capture::{Kind, Records, RingReader, Session, Wanted, ring};
use crate::fib::qsbr::Qsbr;
use crate::io::MemIo;
use crate::io::af_xdp::HeartbeatPage;
use crate::io::device::{NetDeviceOps, SoftwareDriver};
use crate::pipeline::tests::{LEFT, Net, RIGHT, V4, udp};
use crate::pipeline::{PipelineState, RoutedBurst};
use crate::skb::burst::BURST;
use crate::skb::{Burst, MAX_JUMBO, SkBuff, Umem};
use crate::stats::{DropReason, PuntReason, WorkerStats};
use crate::tables::Published;

const FRAMES: u32 = 512;
const TIMEOUT: Duration = Duration::from_secs(60);

/// A worker under test, with a capture of all packets.
struct Bench {
    worker: Worker<MemIo>,
    handle: WorkerHandle<MemIo>,
    captured: RingReader,
    waker: Arc<Waker>,
    /// Packets that the worker punts.
    punts: PuntQueue,
}

fn wakeup() -> Arc<Wakeup> {
    Wakeup::new().expect("an eventfd")
}

fn bench(frames: u32) -> Bench {
    bench_with(frames, None, Clock::start())
}

fn bench_with(frames: u32, liveness: Option<Liveness>, clock: Clock) -> Bench {
    let (slow_path, punts, _) = slow_path(wakeup(), wakeup());
    let published = Arc::new(Published::new(Arc::new(Net::default().tables(1))));
    let (mut worker, handle) = Worker::new(Parts {
        liveness,
        clock,
        io: MemIo::new(2, 256),
        ports: 2,
        state: PipelineState::new(7, 1),
        pool: Umem::anonymous(frames).into_pool(),
        tables: published.subscribe(),
        hooks: Default::default(),
        reader: Qsbr::new(1).reader().expect("room for one"),
        stats: Arc::new(WorkerStats::new(2)),
        residence: Residence::new(2, 1).expect("memory"),
        slow_path,
    });
    let wanted = Wanted {
        ports: None,
        received: true,
        sent: true,
        dropped: true,
        snaplen: 200,
        filter: None,
    };
    let (writer, captured) = ring(4).expect("memory");
    assert!(worker.tap().attach(Session::new(1, wanted, writer)).is_none());
    Bench { worker, handle, captured, waker: Waker::new().expect("an eventfd"), punts }
}

/// Makes `to`, worker number 1, send packets of `from` for the right port.
fn connect(from: &mut Bench, to: &mut Bench, packets: usize) {
    let (out, into) = channel(packets, 1, Arc::clone(&to.waker));
    to.worker.handoffs().add_rx(into, Arc::clone(&to.waker));
    from.worker.handoffs().add(out);
    from.worker.handoffs().set_target(RIGHT, Some(1));
}

/// Packet number `n` of the host on the left to that on the right.
fn frame(n: u32) -> Vec<u8> {
    V4 { payload: udp(&n.to_be_bytes()), ..V4::default() }.frame()
}

fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[42..46].try_into().expect("four octets"))
}

impl Bench {
    fn inject(&mut self, numbers: std::ops::Range<u32>) {
        let (io, pool) = self.worker.io();
        for n in numbers {
            io.inject(LEFT, pool, &frame(n)).expect("room");
        }
    }

    fn sent(&mut self) -> Vec<u32> {
        let (io, pool) = self.worker.io();
        io.take_all_sent(RIGHT, pool).iter().map(|frame| number(frame)).collect()
    }

    /// The captured packets: kind, port, and packet number.
    fn captured(&self) -> Vec<(Kind, u16, u32)> {
        let mut found = Vec::new();
        while let Ok(Some(())) = self.captured.read(|block, _| {
            found.extend(Records::new(block).map(|r| (r.kind, r.port, number(r.data))));
        }) {}
        found
    }

    /// Runs iterations until there is nothing to do; returns what was captured meanwhile.
    fn work(&mut self) -> Vec<(Kind, u16, u32)> {
        let mut captured = Vec::new();
        while self.worker.turn(1) > 0 {
            captured.extend(self.captured());
        }
        captured
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.handle.stats.drops[reason as usize].get()
    }

    fn assert_all_free(&self) {
        let accounting = self.worker.accounting();
        assert_eq!(
            (accounting.free, accounting.is_conserved()),
            (accounting.total, true),
            "{accounting:?}"
        );
        let account = self.worker.packet_account();
        assert!(account.is_balanced(), "{account:?}");
    }
}

#[test]
fn handed_over_packets_stay_in_order_and_are_captured_and_timed_by_the_sender() {
    let (mut one, mut two) = (bench(FRAMES), bench(FRAMES));
    connect(&mut one, &mut two, 256);
    for round in 0..3 {
        one.inject(round * 150..(round + 1) * 150);
        let received = one.work();
        one.assert_all_free();
        let left = two.work();
        let expected: Vec<u32> = (round * 150..(round + 1) * 150).collect();
        assert_eq!(two.sent(), expected);
        assert!(one.sent().is_empty());
        let seen = |kind, port| expected.iter().map(|&n| (kind, port, n)).collect::<Vec<_>>();
        assert_eq!(received, seen(Kind::In, LEFT));
        assert_eq!(left, seen(Kind::Out, RIGHT));
        two.assert_all_free();
    }
    let timed = |bench: &Bench, iif, oif| -> u64 {
        bench.handle.residence.counts(iif, oif).iter().map(|(_, count)| count).sum()
    };
    assert_eq!((timed(&one, LEFT, RIGHT), timed(&two, LEFT, RIGHT)), (0, 450));
    let (from, to) = (&one.handle.stats, &two.handle.stats);
    assert_eq!((from.handed_over_out.get(), from.handed_over_in.get()), (450, 0));
    assert_eq!((to.handed_over_out.get(), to.handed_over_in.get()), (0, 450));
    let tx = |stats: &WorkerStats| stats.ports[usize::from(RIGHT)].tx_packets.get();
    assert_eq!((tx(from), tx(to)), (0, 450));
}

#[test]
fn a_full_channel_drops_the_newest_and_recovers_when_there_is_room() {
    let (mut one, mut two) = (bench(FRAMES), bench(FRAMES));
    connect(&mut one, &mut two, 20);
    one.inject(0..50);
    one.worker.turn(1);
    assert_eq!(one.drops(DropReason::CpuBacklog), 30);
    assert_eq!(one.handle.stats.ports[usize::from(RIGHT)].tx_dropped.get(), 30);
    one.assert_all_free();
    let refused: Vec<_> = one.captured().into_iter().skip(50).collect();
    let expected: Vec<_> =
        (20..50).map(|n| (Kind::Drop(DropReason::CpuBacklog), RIGHT, n)).collect();
    assert_eq!(refused, expected);
    two.worker.turn(1);
    assert_eq!(two.sent(), (0..20).collect::<Vec<_>>());
    one.inject(50..60);
    one.worker.turn(1);
    two.worker.turn(1);
    assert_eq!(two.sent(), (50..60).collect::<Vec<_>>());
    assert_eq!(one.drops(DropReason::CpuBacklog), 30);
}

#[test]
fn handed_over_packets_without_a_frame_or_port_are_dropped() {
    let (mut one, mut two) = (bench(FRAMES), bench(8));
    connect(&mut one, &mut two, 64);
    one.inject(0..20);
    one.worker.turn(1);
    two.worker.turn(1);
    assert_eq!(two.sent(), (0..8).collect::<Vec<_>>());
    assert_eq!(two.drops(DropReason::NoMem), 12);
    let port = &two.handle.stats.ports[usize::from(RIGHT)];
    assert_eq!(port.tx_dropped.get(), 12);
    two.assert_all_free();
    // Its buffers have been returned nevertheless.
    one.inject(20..28);
    one.worker.turn(1);
    assert_eq!(one.drops(DropReason::CpuBacklog), 0);
    let (io, pool) = two.worker.io();
    let stats = WorkerStats::new(2);
    io.device(RIGHT, pool, &stats).stop().expect("closes");
    two.worker.turn(1);
    assert_eq!(two.drops(DropReason::DevNotReady), 8);
    two.assert_all_free();
}

#[test]
fn packets_beyond_the_punt_queue_are_dropped() {
    // As many as the queue holds, and some more.
    let held = frames_max(PuntReason::Local) as u64;
    let sent = 100 * (held / 100 + 1);
    let mut bench = bench(FRAMES);
    let local = V4 { payload: udp(&[0; 8]), ..V4::to("198.18.1.1") }.frame();
    for _ in 0..sent / 100 {
        let (io, pool) = bench.worker.io();
        (0..100).for_each(|_| io.inject(LEFT, pool, &local).expect("room"));
        while bench.worker.turn(1) > 0 {}
    }
    assert_eq!(bench.handle.stats.punt_count(PuntReason::Local), held);
    assert_eq!(bench.drops(DropReason::PuntFailed), sent - held);
    let port = &bench.handle.stats.ports[usize::from(LEFT)];
    assert_eq!((port.punted.get(), port.rx_dropped.get()), (held, sent - held));
    bench.assert_all_free();
    // The kernel accepts none of them.
    assert_eq!(
        bench.punts.drain(1, |frame| {
            bench.handle.stats.undelivered.count(frame.reason, frame.port);
        }),
        1
    );
    let account = bench.worker.packet_account();
    assert_eq!((account.handed_to_kernel, account.dropped), (held - 1, sent - held + 1));
    bench.assert_all_free();
}

#[test]
fn handed_over_packets_not_taken_are_counted_when_a_worker_ends() {
    let (mut one, mut two) = (bench(FRAMES), bench(FRAMES));
    connect(&mut one, &mut two, 64);
    one.inject(0..20);
    one.worker.turn(1);
    let stats = Arc::clone(&two.handle.stats);
    two.worker.handoffs().drop_all(DropReason::Shutdown, &stats);
    assert_eq!((two.drops(DropReason::Shutdown), stats.handed_over_in.get()), (20, 20));
    one.assert_all_free();
    two.assert_all_free();
}

#[test]
fn a_packet_of_several_frames_is_handed_over_whole() {
    let octets: Vec<u8> = (0..MAX_JUMBO).map(|n| (n % 251) as u8).collect();
    let (mut here, mut there) = (Umem::anonymous(8).into_pool(), Umem::anonymous(4).into_pool());
    let waker = Waker::new().expect("an eventfd");
    let (out, into) = channel(2, 1, Arc::clone(&waker));
    let (mut handoffs, stats) = (Handoffs::default(), WorkerStats::new(2));
    handoffs.add_rx(into, waker);
    let mut egress = [RoutedBurst::with_capacity(BURST), RoutedBurst::with_capacity(BURST)];
    for (round, kept) in [(0, 1), (1, 1)] {
        let mut burst = Burst::default();
        burst.push(SkBuff::of_octets(&mut here, &octets).expect("frames")).expect("room");
        out.send(RIGHT, out.room(), 10, &mut burst, &mut here, &stats);
        assert_eq!(here.available(), 8);
        assert_eq!(handoffs.take(0, 10, &mut there, &mut egress, &stats).packets, 1);
        // For the second there are too few frames.
        assert_eq!(egress[1].len(), kept, "round {round}");
    }
    assert_eq!(egress[1].as_slice()[0].whole(&mut Vec::new()), &octets[..]);
    assert_eq!(stats.drops[DropReason::NoMem as usize].get(), 1);
    egress[1].drain(1).for_each(|skb| there.kfree_skb(skb));
    assert_eq!(there.available(), 4);
}

/// A worker with a heartbeat page, and the flag that makes it punt packets.
fn live_bench(
    number: usize,
    timeouts: [Duration; 2],
) -> (Bench, Arc<HeartbeatPage>, Arc<AtomicBool>) {
    let page = HeartbeatPage::anonymous().expect("memory");
    let (clock, hand_back) = (Clock::start(), Arc::default());
    let liveness = Liveness::new(
        Arc::clone(&page),
        [number],
        HeartbeatTimeouts::new(timeouts),
        clock,
        Arc::clone(&hand_back),
    );
    (bench_with(FRAMES, Some(liveness), clock), page, hand_back)
}

#[test]
fn a_worker_that_stalled_after_receiving_punts_the_packets() {
    let (mut bench, page, _) = live_bench(0, [Duration::from_millis(1); 2]);
    page.beat_control(monotonic_ns());
    bench.inject(0..10);
    thread::sleep(Duration::from_millis(5));
    // The iteration began at its clock's zero, when the control thread's heartbeat was fresh.
    assert_eq!(bench.worker.turn(0), 10);
    assert!(bench.sent().is_empty());
    assert_eq!(bench.handle.stats.punt_count(PuntReason::Stalled), 10);
    bench.assert_all_free();
}

#[test]
fn packets_that_waited_in_a_worker_are_dropped_when_they_are_old_or_the_kernel_filters() {
    let minute = Duration::from_secs(60);
    let (mut one, mut two) = (bench(FRAMES), live_bench(1, [minute; 2]));
    connect(&mut one, &mut two.0, 64);
    let (mut two, page, hand_back) = two;
    page.beat_control(monotonic_ns());
    let now_ns = Clock::start().now_ns();
    one.inject(0..10);
    one.worker.turn(now_ns);
    two.worker.turn(now_ns);
    assert_eq!(two.sent().len(), 10);
    // The kernel began to filter after they were handed over.
    one.inject(10..20);
    one.worker.turn(now_ns);
    hand_back.store(true, Ordering::Relaxed);
    two.worker.turn(now_ns);
    assert_eq!((two.sent(), two.drops(DropReason::QueuePurge)), (vec![], 10));
    hand_back.store(false, Ordering::Relaxed);
    // The worker stalled for longer than its limit.
    let later_ns = now_ns + 2 * minute.as_nanos() as u64;
    page.beat_control(monotonic_ns() + 2 * minute.as_nanos() as u64);
    one.inject(20..30);
    one.worker.turn(now_ns);
    two.worker.turn(later_ns);
    assert_eq!((two.sent(), two.drops(DropReason::QueuePurge)), (vec![], 20));
    one.inject(30..94);
    one.worker.turn(now_ns);
    assert_eq!(one.drops(DropReason::CpuBacklog), 0, "all buffers were returned");
    two.worker.handoffs().drop_all(DropReason::Shutdown, &Arc::clone(&two.handle.stats));
    one.assert_all_free();
    two.assert_all_free();
}

#[test]
fn the_sender_of_a_port_may_change_and_change_back() {
    let (mut one, mut two) = (bench(FRAMES), bench(FRAMES));
    connect(&mut one, &mut two, 64);
    one.worker.handoffs().set_target(RIGHT, None);
    one.inject(0..5);
    one.worker.turn(1);
    assert_eq!(one.sent(), [0, 1, 2, 3, 4]);
    one.worker.handoffs().set_target(RIGHT, Some(1));
    one.inject(5..6);
    one.worker.turn(1);
    two.worker.turn(1);
    assert_eq!((one.sent().len(), two.sent()), (0, vec![5]));
}

/// A worker begins a change of its handoffs and is stopped meanwhile: the caller gets an error, so
/// nothing of the change may remain.
#[test]
fn a_late_change_of_handoffs_is_undone() {
    let Bench { worker, handle, waker, .. } = bench(FRAMES);
    let thread = thread::spawn(move || worker.run());
    let ask = |change: fn(&mut Handoffs, HandoffTx), undo: fn(&mut Handoffs), late: bool| {
        let (out, into) = channel(2, 1, Arc::clone(&waker));
        let (go_on, wait) = bounded::<()>(0);
        let timeouts = CallTimeouts { begin: Duration::from_secs(1), finish: Duration::ZERO };
        let answer = handle.change_handoffs_or_undo(
            timeouts,
            move |handoffs| {
                if late {
                    let _ = wait.recv();
                }
                change(handoffs, out);
            },
            move |handoffs, ()| undo(handoffs),
        );
        assert_eq!(answer, if late { Err(NoAnswer::NotFinished) } else { Ok(()) });
        drop((go_on, into));
    };
    let reach = |by: Option<usize>| {
        let look = move |handoffs: &mut Handoffs| {
            handoffs.set_target(RIGHT, by);
            handoffs.set_target(RIGHT, None)
        };
        handle
            .change_handoffs_or_undo(CallTimeouts::brief(TIMEOUT), look, |_, _| {})
            .expect("it answers")
    };
    ask(|handoffs, out| handoffs.add(out), Handoffs::undo_add, true);
    assert_eq!(reach(Some(1)), None, "the channel was removed");
    ask(|handoffs, out| handoffs.add(out), Handoffs::undo_add, false);
    assert_eq!(reach(Some(1)), Some(1));
    handle.stop();
    thread.join().expect("ends well");
}

/// Three workers as threads; two have no queue on the right port. Every packet arrives, whether the third
/// worker sleeps or not, and so do packets in transit when they are stopped.
#[test]
fn a_sleeping_worker_is_woken_and_nothing_is_lost_when_all_stop() {
    const PACKETS: u32 = 2000;
    let mut benches = [bench(FRAMES), bench(FRAMES), bench(FRAMES)];
    let [one, two, three] = &mut benches;
    connect(one, two, 256);
    connect(three, two, 256);
    let mut threads = Vec::new();
    let mut handles = Vec::new();
    for Bench { mut worker, handle, .. } in benches {
        worker.io().0.set_sink(RIGHT, true).expect("port 1");
        worker.set_poll_mode(PollMode::Interrupt);
        threads.push(thread::spawn(move || worker.run()));
        handles.push(handle);
    }
    let sent = || handles[1].stats.ports[usize::from(RIGHT)].tx_packets.get();
    for n in (0..PACKETS).step_by(20) {
        let handle = &handles[if n % 60 == 0 { 0 } else { 2 }];
        let put = handle.call_or_undo(
            CallTimeouts::brief(TIMEOUT),
            move |io, pool, _| (n..n + 20).try_for_each(|n| io.inject(LEFT, pool, &frame(n))),
            |_, _, _, _| {},
        );
        put.expect("it runs").expect("room");
        if n % 100 == 0 {
            // From time to time all of them sleep.
            let begun = Instant::now();
            while sent() < u64::from(n + 20) {
                assert!(begun.elapsed() < TIMEOUT, "{} of {} are sent", sent(), n + 20);
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
    handles.iter().for_each(WorkerHandle::stop);
    let accountings: Vec<WorkerFrames> =
        threads.into_iter().map(|thread| thread.join().expect("ends well")).collect();
    assert!(accountings.iter().all(|accounting| accounting.is_conserved()), "{accountings:?}");
    assert!(
        accountings.iter().all(|accounting| accounting.free == accounting.total),
        "{accountings:?}"
    );
    assert_eq!(sent(), u64::from(PACKETS));
    let crossed = |of: fn(&WorkerStats) -> u64| handles.iter().map(|h| of(&h.stats)).sum::<u64>();
    assert_eq!(crossed(|stats| stats.handed_over_out.get()), u64::from(PACKETS));
    assert_eq!(crossed(|stats| stats.handed_over_in.get()), u64::from(PACKETS));
    assert_eq!(crossed(WorkerStats::drops_total), 0);
    assert!(handles[1].stats.wakeups.get() > 0, "it was never woken");
}
