//! The AF_XDP drivers against the running kernel: two veth ports, one packet memory, the project's
//! own XDP program. What the driver xsk-rs can do as well it is tested for, too, when built with that
//! feature.
//!
//! Needs root. Each test has a network namespace of its own, which ends with its thread.
//!
//! With `FERROUTE_TEST_NICS` set, no interfaces are created: `port0`, `port1` and their peers `peer0`,
//! `peer1` must exist, and the tests run in the current namespace, one at a time. In a virtual machine
//! the same tests thus cover zero-copy: set the variable to the expected mode (`copy` or `zero-copy`).

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ferroute::control::steering::{AttachMode, PortProgram, Steering};
use ferroute::io::af_xdp::{
    AfXdp, BindMode, BoundMode, OpenError, Options, PortConfig, PortState, RingSizes, driver_name,
};
use ferroute::io::{Driver, DriverKind, PacketIo};
use ferroute::skb::{Burst, FramePool, SkBuff};
use ferroute::stats::{DropReason, WorkerStats};

use netns::run;
use wire::Wire;

mod netns;
mod wire;
#[cfg(feature = "xsk-rs")]
mod xsk_rs;

const PORT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0a];
const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0b];

/// Timeout of expected events.
const PATIENCE: Duration = Duration::from_secs(20);

/// Small rings, so that they wrap around often.
const RINGS: RingSizes = RingSizes { fill: 256, tx: 128 };

/// Runs `test` in a thread with a network namespace of its own: two veth pairs, without IPv6 traffic.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    netns::need_root();
    if mode_of_nics().is_some() {
        return test();
    }
    netns::in_namespace(|| {
        run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        veth(0);
        veth(1);
        test();
    });
}

/// Runs `test` for each driver that is built, each in a namespace of its own.
fn with_each_driver(test: fn(DriverKind)) {
    for driver in [DriverKind::AfXdp, DriverKind::XskRs] {
        // xsk-rs cannot release a queue within a process, so that NICs would stay busy for the next.
        if driver.is_built() && (driver == DriverKind::AfXdp || mode_of_nics().is_none()) {
            in_namespace(move || test(driver));
        }
    }
}

fn mode_of_nics() -> Option<String> {
    std::env::var("FERROUTE_TEST_NICS").ok()
}

/// The veth pair `port0`–`peer0` or `port1`–`peer1`, both up.
fn veth(n: usize) {
    run(&format!(
        "ip link add port{n} address 02:00:00:00:00:0a type veth peer name peer{n} address \
         02:00:00:00:00:0b; ip link set port{n} up; ip link set peer{n} up"
    ));
}

fn config(n: usize) -> PortConfig {
    let ifname = format!("port{n}");
    let ifindex = nix::net::if_::if_nametoindex(ifname.as_str()).expect("an interface");
    let copy = mode_of_nics().is_some_and(|mode| mode == BoundMode::Copy.to_string());
    let mode = if copy { BindMode::Copy } else { BindMode::Auto };
    PortConfig { ifname, ifindex, mode, ..PortConfig::default() }
}

fn options() -> Options {
    Options { rings: RINGS, reserve: 64, ..Options::default() }
}

/// Whether a port of ours sent it.
fn forwarded(frame: &[u8]) -> bool {
    frame.len() >= 14 && frame[12..14] == [8, 0] && frame[..6] == PORT_MAC
}

/// An Ethernet frame of `len` octets with an IPv4 header that the XDP program steers, number `id`.
fn frame(id: u16, len: usize) -> Vec<u8> {
    let mut frame = [&PORT_MAC[..], &PEER_MAC, &[8, 0]].concat();
    let total = (len - 14) as u16;
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend(id.to_be_bytes());
    frame.extend([0, 0, 64, 17, 0, 0, 192, 0, 2, 2, 203, 0, 113, 9]);
    frame.extend((frame.len()..len).map(|n| (n as u16).wrapping_add(id) as u8));
    frame
}

/// The environment of a worker without a pipeline: packets received by one port are sent by the other.
struct Rig {
    steering: Steering,
    programs: Vec<Option<PortProgram>>,
    io: Driver,
    pool: FramePool,
    stats: WorkerStats,
    burst: Burst,
    wires: Vec<Wire>,
}

impl Rig {
    fn new(driver: DriverKind) -> Rig {
        Rig::with(driver, &options(), false)
    }

    /// A rig with an MTU of 9000 everywhere.
    fn jumbo() -> Rig {
        for interface in ["port0", "port1", "peer0", "peer1"] {
            run(&format!("ip link set {interface} mtu 9000"));
        }
        let rig = Rig::with(DriverKind::AfXdp, &options(), true);
        // So that what one burst brings fits the TX ring.
        Rig { burst: Burst::with_capacity(20), ..rig }
    }

    fn with(driver: DriverKind, options: &Options, multi_buffer: bool) -> Rig {
        let (mut io, mut pool) = Driver::with_slots(driver, 2, 2, options).expect("memory");
        for n in 0..2 {
            let config = PortConfig { multi_buffer, ..config(n) };
            io.add_port(n as u16, &config, &mut pool).expect("a port");
        }
        let mut rig = Rig {
            steering: Steering::new().expect("load"),
            programs: Vec::new(),
            io,
            pool,
            stats: WorkerStats::new(2),
            burst: Burst::default(),
            wires: vec![Wire::on("peer0"), Wire::on("peer1")],
        };
        for n in 0..2 {
            let program = rig.attach_for(n, multi_buffer);
            rig.programs.push(Some(program));
        }
        rig
    }

    fn attach(&mut self, n: usize) -> PortProgram {
        self.attach_for(n, false)
    }

    fn attach_for(&mut self, n: usize, multi_buffer: bool) -> PortProgram {
        let PortConfig { ifname, ifindex, queue, .. } = config(n);
        let mode = AttachMode::Native;
        let attached = self.steering.attach(ifindex, &ifname, PORT_MAC, mode, multi_buffer);
        let mut program = attached.expect("attach");
        let socket = self.io.socket_fd(n as u16).expect("an open port");
        program.set_socket(queue, socket.as_raw_fd()).expect("into the XSKMAP");
        program.set_steer(true, true).expect("steer");
        program
    }

    /// One iteration of a worker. Returns the number of packets taken.
    fn turn(&mut self) -> usize {
        let mut taken = 0;
        for port in 0..2u16 {
            taken += self.io.rx_burst(port, &mut self.pool, &mut self.burst, &self.stats);
            assert!(self.burst.as_slice().iter().all(|skb| skb.port == port && skb.iif != 0));
            self.io.tx_burst(1 - port, &mut self.pool, &mut self.burst, &self.stats);
        }
        self.io.kick(&mut self.pool, &self.stats);
        self.assert_conserved();
        if taken == 0 {
            self.io.wait(Duration::from_millis(1), None);
        }
        taken
    }

    fn assert_conserved(&self) {
        let all = self.pool.available() + self.burst.frames() + self.io.accounting().total();
        assert_eq!(all, self.pool.total() as usize, "{:?}", self.io.accounting());
    }

    /// Sends `frames` to port `from` and asserts that the other port sends them, intact and in order.
    fn assert_forwards(&mut self, from: usize, frames: &[Vec<u8>]) {
        let start = Instant::now();
        let mut arrived = 0;
        // Emulated NICs drop packets that arrive faster than they are emulated.
        let batch = if mode_of_nics().is_some() { 16 } else { 64 };
        for batch in frames.chunks(batch) {
            batch.iter().for_each(|frame| self.wires[from].send(frame));
            let expected = arrived + batch.len();
            while arrived < expected {
                assert!(start.elapsed() < PATIENCE, "{arrived} of {} arrived", frames.len());
                self.turn();
                while let Some(got) = self.wires[1 - from].receive(Duration::ZERO, forwarded) {
                    // The number first: which of many were lost is more useful than their octets.
                    assert_eq!(got[18..20], frames[arrived][18..20], "{:?}", self.stats.ports);
                    assert_eq!(got, frames[arrived], "frame {arrived}");
                    arrived += 1;
                }
            }
        }
    }

    /// Runs iterations until all packets have been sent.
    fn settle(&mut self) {
        let start = Instant::now();
        while self.turn() > 0 || self.io.accounting().tx_and_completion > 0 {
            assert!(start.elapsed() < PATIENCE, "{:?}", self.io.accounting());
        }
    }

    /// Frames of closed ports that a NIC may still write to.
    fn reclaim(&mut self) -> usize {
        match &mut self.io {
            Driver::AfXdp(io) => io.reclaim(&mut self.pool),
            #[cfg(feature = "xsk-rs")]
            Driver::XskRs(_) => 0,
        }
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.stats.drops[reason as usize].get()
    }

    /// Closes everything and asserts that every frame came home. Those of the first socket of xsk-rs
    /// stay with it.
    fn close(mut self) {
        self.programs.clear();
        self.io.close_all(&mut self.pool, &self.stats);
        self.assert_conserved();
        assert_eq!(self.io.accounting().sending, 0);
        let Rig { io, mut pool, stats, .. } = self;
        match io {
            Driver::AfXdp(io) => {
                assert_eq!(io.close(&mut pool, &stats), 0);
                assert_eq!(pool.available(), pool.total() as usize);
            }
            #[cfg(feature = "xsk-rs")]
            Driver::XskRs(io) => {
                assert!(io.accounting().draining <= (RINGS.fill + RINGS.tx) as usize);
                assert_eq!(io.accounting().total(), io.accounting().draining);
            }
        }
    }
}

fn frames(count: u16) -> Vec<Vec<u8>> {
    (0..count).map(|id| frame(id, 60 + usize::from(id) * 37 % 1455)).collect()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_frames_of_every_size_cross_intact_and_in_order_both_ways() {
    with_each_driver(|driver| {
        let mut rig = Rig::new(driver);
        for port in 0..2 {
            let info = rig.io.port_info(port).expect("open");
            let expected = mode_of_nics().unwrap_or_else(|| BoundMode::Copy.to_string());
            assert_eq!((info.mode.to_string(), info.state), (expected, PortState::Up));
        }
        let frames = frames(3000);
        rig.assert_forwards(0, &frames);
        rig.assert_forwards(1, &frames);
        rig.settle();
        assert_eq!(rig.stats.drops_total(), 0);
        let octets = frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        for port in &rig.stats.ports {
            assert_eq!((port.rx_packets.get(), port.rx_bytes.get()), (3000, octets));
            assert_eq!((port.tx_packets.get(), port.tx_bytes.get()), (3000, octets));
        }
        let kernel = rig.io.statistics(0).expect("statistics");
        assert_eq!((kernel.rx_invalid_descs, kernel.tx_invalid_descs), (0, 0));
        rig.close();
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_packet_that_grew_or_shrank_at_its_head_is_sent_as_it_is() {
    with_each_driver(|driver| {
        let mut rig = Rig::new(driver);
        let mut sent = 0;
        for change in [-20isize, -4, 4, 200] {
            rig.wires[0].send(&frame(1, 300));
            let start = Instant::now();
            while rig.io.rx_burst(0, &mut rig.pool, &mut rig.burst, &rig.stats) == 0 {
                assert!(start.elapsed() < PATIENCE, "nothing arrived");
            }
            let skb = &mut rig.burst.as_mut_slice()[0];
            let header = skb.data()[..14].to_vec();
            if change < 0 {
                skb.pull(change.unsigned_abs()).expect("long enough");
            } else {
                skb.push(change.unsigned_abs()).expect("headroom").fill(0xee);
            }
            skb.data_mut()[..14].copy_from_slice(&header);
            let expected = skb.data().to_vec();
            rig.io.tx_burst(1, &mut rig.pool, &mut rig.burst, &rig.stats);
            rig.settle();
            sent += 1;
            let got = rig.wires[1].receive(Duration::ZERO, forwarded).expect("sent");
            assert_eq!(got.len() as isize, 300 + change);
            assert!(got.ends_with(&frame(1, 300)[200..]));
            assert_eq!(got, expected);
        }
        assert_eq!(rig.stats.ports[1].tx_packets.get(), sent);
        rig.close();
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_what_the_tx_ring_cannot_take_is_dropped_and_counted() {
    with_each_driver(|driver| {
        let mut rig = Rig::new(driver);
        let total = RINGS.tx as usize + 10;
        (0..total).for_each(|id| rig.wires[0].send(&frame(id as u16, 60)));
        // No kick in between, so nothing completes.
        let start = Instant::now();
        let mut taken = 0;
        while taken < total {
            assert!(start.elapsed() < PATIENCE, "{taken} arrived");
            taken += rig.io.rx_burst(0, &mut rig.pool, &mut rig.burst, &rig.stats);
            rig.io.tx_burst(1, &mut rig.pool, &mut rig.burst, &rig.stats);
        }
        assert_eq!(rig.drops(DropReason::FullRing), 10);
        assert_eq!(rig.stats.ports[1].tx_dropped.get(), 10);
        rig.settle();
        let arrived =
            std::iter::from_fn(|| rig.wires[1].receive(Duration::ZERO, forwarded)).count();
        assert_eq!(arrived, RINGS.tx as usize);
        rig.close();
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_jumbo_frames_cross_intact_and_in_order_both_ways() {
    // Not every driver has them: see docs/HARDWARE.md.
    if mode_of_nics().is_some() {
        return;
    }
    in_namespace(|| {
        let mut rig = Rig::jumbo();
        assert!(rig.io.port_info(0).is_some_and(|info| info.multi_buffer));
        // Around every frame boundary, and some others.
        let sizes = [3391, 3392, 3393, 3840, 4096, 6783, 6784, 6785, 7680, 9013, 9014].into_iter();
        let sizes: Vec<usize> = sizes.chain((60..9014).step_by(97)).collect();
        let frames: Vec<_> = (0..).zip(sizes).map(|(id, len)| frame(id, len)).collect();
        rig.assert_forwards(0, &frames);
        rig.assert_forwards(1, &frames);
        rig.settle();
        assert_eq!(rig.stats.drops_total(), 0);
        rig.close();
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_packet_of_several_frames_is_sent_whole_or_not_at_all() {
    if mode_of_nics().is_some() {
        return;
    }
    in_namespace(|| {
        let mut rig = Rig::jumbo();
        let fit = RINGS.tx as usize / 3;
        rig.burst = Burst::with_capacity(fit + 2);
        let frames: Vec<_> = (0..fit + 2).map(|id| frame(id as u16, 9014)).collect();
        for frame in &frames {
            let skb = SkBuff::of_octets(&mut rig.pool, frame).expect("free frames");
            assert_eq!(skb.frames(), 3);
            rig.burst.push(skb).expect("room");
        }
        assert_eq!(rig.io.tx_burst(1, &mut rig.pool, &mut rig.burst, &rig.stats), fit);
        assert_eq!(rig.drops(DropReason::FullRing), 2);
        assert_eq!(rig.io.accounting().tx_and_completion, 3 * fit);
        rig.settle();
        let arrived: Vec<_> =
            std::iter::from_fn(|| rig.wires[1].receive(Duration::ZERO, forwarded)).collect();
        assert!(arrived == frames[..fit], "{} of {fit}", arrived.len());
        rig.close();
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_port_for_single_frames_sends_a_packet_in_one_piece_or_names_the_drop() {
    with_each_driver(|driver| {
        let mut rig = Rig::new(driver);
        let small = frame(1, 1400);
        let mut skb = SkBuff::of_octets(&mut rig.pool, &small[..600]).expect("a free frame");
        for part in small[600..].chunks(300) {
            let mut memory = rig.pool.alloc().expect("a free frame");
            memory.bytes_mut()[7..7 + part.len()].copy_from_slice(part);
            skb.add_frag(memory, 7, part.len(), &mut rig.pool).expect("room");
        }
        rig.burst.push(skb).expect("room");
        let long = SkBuff::of_octets(&mut rig.pool, &frame(2, 9014)).expect("free frames");
        rig.burst.push(long).expect("room");
        assert_eq!(rig.io.tx_burst(1, &mut rig.pool, &mut rig.burst, &rig.stats), 1);
        assert_eq!(rig.drops(DropReason::TxMultiBuffer), 1);
        rig.settle();
        assert_eq!(rig.wires[1].receive(Duration::ZERO, forwarded).expect("sent"), small);
        rig.close();
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_runt_is_not_given_to_the_kernel() {
    with_each_driver(|driver| {
        let mut rig = Rig::new(driver);
        let skb = SkBuff::alloc_skb(&mut rig.pool, 256).expect("a free frame");
        rig.burst.push(skb).expect("room");
        assert_eq!(rig.io.tx_burst(0, &mut rig.pool, &mut rig.burst, &rig.stats), 0);
        assert_eq!(rig.drops(DropReason::EthTruncated), 1);
        rig.settle();
        rig.close();
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_runt_of_several_frames_is_one_too() {
    with_each_driver(|driver| {
        let mut rig = Rig::new(driver);
        let mut skb = SkBuff::of_octets(&mut rig.pool, &[0; 9014]).expect("free frames");
        skb.trim(13);
        rig.burst.push(skb).expect("room");
        assert_eq!(rig.io.tx_burst(0, &mut rig.pool, &mut rig.burst, &rig.stats), 0);
        assert_eq!(rig.drops(DropReason::EthTruncated), 1);
        rig.settle();
        rig.close();
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_the_kernel_counts_what_finds_no_room() {
    with_each_driver(|driver| {
        let mut rig = Rig::new(driver);
        let total = RINGS.fill + 50;
        (0..total).for_each(|id| rig.wires[0].send(&frame(id as u16, 60)));
        let start = Instant::now();
        let lost = |rig: &Rig| {
            let kernel = rig.io.statistics(0).expect("statistics");
            kernel.rx_dropped + kernel.rx_ring_full + kernel.rx_fill_ring_empty_descs
        };
        while lost(&rig) < 50 {
            assert!(start.elapsed() < PATIENCE, "{:?}", rig.io.statistics(0));
            std::thread::sleep(Duration::from_millis(1));
        }
        rig.settle();
        assert_eq!(rig.stats.ports[0].rx_packets.get(), u64::from(RINGS.fill));
        rig.close();
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_deleted_interface_stops_its_port_and_no_other_and_can_come_back() {
    with_each_driver(|driver| {
        let mut rig = Rig::new(driver);
        rig.assert_forwards(0, &frames(100));
        rig.programs[1] = None;
        run("ip link del port1");
        // Traffic for it continues.
        (0..200).for_each(|id| rig.wires[0].send(&frame(id, 60)));
        let start = Instant::now();
        while rig.stats.ports[0].rx_packets.get() < 300 {
            assert!(start.elapsed() < PATIENCE, "not all frames arrived");
            rig.turn();
        }
        assert_eq!(rig.io.port_info(1).expect("not removed yet").state, PortState::Gone);
        assert!(rig.drops(DropReason::DevNotReady) > 0);
        rig.io.remove_port(1, &mut rig.pool, &rig.stats);
        assert_eq!(rig.io.port_info(1), None);
        assert_eq!(rig.io.accounting().draining, 0);
        rig.wires[0].send(&frame(1, 60));
        while rig.stats.ports[0].rx_packets.get() < 301 {
            assert!(start.elapsed() < PATIENCE, "nothing arrived");
            rig.turn();
        }
        // Every received frame was sent before, or is counted after.
        let sent = rig.stats.ports[1].tx_packets.get();
        assert!(sent + rig.drops(DropReason::DevNotReady) >= 301);

        veth(1);
        rig.wires[1] = Wire::on("peer1");
        rig.io.add_port(1, &config(1), &mut rig.pool).expect("bind anew");
        let program = rig.attach(1);
        rig.programs[1] = Some(program);
        rig.assert_forwards(0, &frames(200));
        rig.assert_forwards(1, &frames(200));
        rig.settle();
        rig.close();
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_the_first_port_can_be_closed_and_opened_again_under_traffic() {
    with_each_driver(|driver| {
        let mut rig = Rig::new(driver);
        for _ in 0..5 {
            rig.assert_forwards(0, &frames(100));
            (0..20).for_each(|id| rig.wires[0].send(&frame(id, 60)));
            rig.io.remove_port(0, &mut rig.pool, &rig.stats);
            rig.assert_conserved();
            let start = Instant::now();
            while rig.reclaim() > 0 {
                assert!(mode_of_nics().is_some(), "copied frames are free at once");
                assert!(start.elapsed() < PATIENCE, "{:?}", rig.io.accounting());
            }
            rig.io.add_port(0, &config(0), &mut rig.pool).expect("bind anew");
            let socket = rig.io.socket_fd(0).expect("open").as_raw_fd();
            let program = rig.programs[0].as_ref().expect("attached");
            program.set_socket(0, socket).expect("into the XSKMAP");
            while rig.turn() > 0 {}
            while rig.wires[1].receive(Duration::ZERO, forwarded).is_some() {}
        }
        rig.assert_forwards(1, &frames(100));
        rig.settle();
        rig.close();
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_an_interface_that_is_down_gets_nothing_and_recovers() {
    with_each_driver(|driver| {
        let mut rig = Rig::new(driver);
        run("ip link set port1 down");
        let start = Instant::now();
        let mut id = 0;
        while rig.drops(DropReason::DevNotReady) == 0 {
            assert!(start.elapsed() < PATIENCE, "the link state was not detected");
            rig.wires[0].send(&frame(id, 60));
            id += 1;
            rig.turn();
        }
        assert_eq!(rig.io.port_info(1).expect("open").state, PortState::Down);
        run("ip link set port1 up");
        let sent = rig.stats.ports[1].tx_packets.get();
        while rig.stats.ports[1].tx_packets.get() == sent {
            assert!(start.elapsed() < PATIENCE, "sending was not resumed");
            rig.wires[0].send(&frame(id, 60));
            rig.turn();
        }
        rig.settle();
        while rig.wires[1].receive(Duration::ZERO, forwarded).is_some() {}
        rig.assert_forwards(0, &frames(100));
        rig.close();
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_what_the_kernel_refuses_to_send_is_dropped_and_not_sent_also_while_the_worker_sleeps() {
    if mode_of_nics().is_some() {
        return;
    }
    with_each_driver(|driver| {
        let mut rig = Rig::new(driver);
        run("ip link set peer1 down");
        for id in 0..10 {
            let skb = SkBuff::of_octets(&mut rig.pool, &frame(id, 60)).expect("a free frame");
            rig.burst.push(skb).expect("room");
        }
        assert_eq!(rig.io.tx_burst(1, &mut rig.pool, &mut rig.burst, &rig.stats), 10);
        // poll(2) also sends from the TX ring (xsk_poll), and does not report an error.
        for _ in 0..20 {
            rig.io.wait(Duration::from_millis(1), None);
        }
        rig.settle();
        assert_eq!(rig.stats.ports[1].tx_packets.get(), 0);
        assert_eq!(rig.drops(DropReason::TxError), 10);
        assert_eq!(rig.io.accounting().sending, 0);
        rig.close();
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_at_the_close_of_a_port_every_packet_was_sent_or_is_dropped() {
    if mode_of_nics().is_some() {
        return;
    }
    with_each_driver(|driver| {
        let mut rig = Rig::new(driver);
        let (mut put, mut arrived) = (0, 0);
        for round in 0..30u16 {
            for burst in 0..3 {
                for id in 0..20 {
                    let frame = frame(round * 100 + burst * 20 + id, 60);
                    let skb = SkBuff::of_octets(&mut rig.pool, &frame).expect("a free frame");
                    rig.burst.push(skb).expect("room");
                }
                put += rig.io.tx_burst(1, &mut rig.pool, &mut rig.burst, &rig.stats);
                // In some rounds the kernel is notified of all packets, in others of none.
                if burst < round % 4 {
                    rig.io.kick(&mut rig.pool, &rig.stats);
                }
            }
            rig.io.remove_port(1, &mut rig.pool, &rig.stats);
            rig.assert_conserved();
            rig.io.add_port(1, &config(1), &mut rig.pool).expect("bind anew");
            while rig.wires[1].receive(Duration::from_millis(20), forwarded).is_some() {
                arrived += 1;
            }
        }
        assert_eq!(rig.stats.ports[1].tx_packets.get(), arrived);
        assert_eq!(arrived + rig.drops(DropReason::DevNotReady), put as u64);
        assert!(arrived > 0 && arrived < put as u64, "{arrived} of {put}");
        rig.close();
    });
}

/// The error of opening a port that cannot be opened.
fn refusal(config: PortConfig) -> OpenError {
    let options = Options { busy_tries: 2, ..options() };
    match AfXdp::open(&[config], &options) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_what_cannot_be_opened_says_why() {
    in_namespace(|| {
        let _held = AfXdp::open(&[config(0)], &options()).expect("one port");
        let error = refusal(config(0));
        assert!(matches!(&error, OpenError::Busy { queue: 0, .. }), "{error}");
        assert!(error.to_string().contains("queue 0 of port0 is in use"), "{error}");
        let error = refusal(PortConfig { queue: 9, ..config(1) });
        assert!(matches!(error, OpenError::NoQueue { queue: 9, .. }), "{error}");
        let error = refusal(PortConfig { ifindex: 9999, ..config(1) });
        assert!(matches!(error, OpenError::NoInterface { ifindex: 9999, .. }), "{error}");
        let error = refusal(PortConfig { mode: BindMode::ZeroCopy, ..config(1) });
        assert!(matches!(error, OpenError::NoZeroCopy { .. }), "{error}");
        assert!(error.to_string().contains("driver veth"), "{error}");
        assert_eq!(driver_name("port1").as_deref(), Some("veth"));
        assert_eq!(driver_name("nothing"), None);

        let cap = caps::Capability::CAP_NET_RAW;
        caps::drop(None, caps::CapSet::Effective, cap).expect("drop CAP_NET_RAW");
        let error = refusal(config(1));
        assert!(matches!(error, OpenError::NoPermission), "{error}");
        caps::raise(None, caps::CapSet::Effective, cap).expect("raise it again");
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_many_openings_and_closings_leave_the_queue_usable() {
    in_namespace(|| {
        for _ in 0..10 {
            let (io, mut pool) = AfXdp::open(&[config(0), config(1)], &options()).expect("open");
            assert_eq!(io.close(&mut pool, &WorkerStats::new(2)), 0);
            assert_eq!(pool.available(), pool.total() as usize);
        }
    });
}
