//! As `reflector`, but over the crate xsk-rs (libxdp's rings) instead of Ferroute's own driver: the
//! throughput of a forwarder of a hundred lines on this machine. A reference for Ferroute's driver in
//! benchmarks; not part of the product.
//!
//!     reflector_xsk IFACE IFACE CPU [SECONDS]
//!
//! Same arguments, steering and output as `reflector`. Not included, although a router needs it: ports
//! that are removed and added, zero-copy as well as copy mode, accounting of frames.

#![expect(unsafe_code, reason = "every ring call of xsk-rs is unsafe")]

use std::error::Error;
use std::num::NonZeroU32;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ferroute::control::steering::{AttachMode, PortProgram, Steering};
use ferroute::skb::{FRAME_SIZE, burst::BURST};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use xsk_rs::config::{BindFlags, FrameSize, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

/// Iterations longer than this were preempted, and are not counted.
const PREEMPTED_MIN: Duration = Duration::from_millis(1);
/// As many descriptors as Ferroute's rings have.
const RING: u32 = 2048;
/// sendto(2) calls per iteration: in copy mode each sends 32 frames, and a burst is 64 from either side.
const KICKS: usize = 4;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [left, right, cpu, rest @ ..] = args.as_slice() else {
        return Err("usage: reflector_xsk IFACE IFACE CPU [SECONDS]".into());
    };
    let seconds = rest.first().map_or(Ok(u64::MAX), |s| s.parse::<u64>())?;
    let mut cpus = CpuSet::new();
    cpus.set(cpu.parse()?)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;

    let config = UmemConfig::builder()
        .frame_size(FrameSize::new(FRAME_SIZE as u32)?)
        .fill_queue_size(QueueSize::new(RING)?)
        .comp_queue_size(QueueSize::new(RING)?)
        .build()?;
    let frames = NonZeroU32::new(4 * RING).ok_or("no frames")?;
    let (umem, descs) = Umem::new(config, frames, false)?;
    // One pool: a frame received on one port and sent on the other is then free for either.
    let mut free = descs;
    let mut ports = [Port::open(&umem, left, &mut free)?, Port::open(&umem, right, &mut free)?];
    let mut steering = Steering::new()?;
    let programs =
        [attach(&mut steering, left, &ports[0])?, attach(&mut steering, right, &ports[1])?];
    run(&mut ports, &mut free, seconds);
    drop(programs);
    Ok(())
}

struct Port {
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    comp: CompQueue,
    /// Frames in the TX or the completion ring.
    sending: usize,
}

impl Port {
    fn open(umem: &Umem, ifname: &str, free: &mut Vec<FrameDesc>) -> Result<Port> {
        let config = SocketConfig::builder()
            .rx_queue_size(QueueSize::new(RING)?)
            .tx_queue_size(QueueSize::new(RING)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        // SAFETY: no program is loaded by libxdp, and each (interface, queue) is bound once.
        let (tx, rx, rings) = unsafe { Socket::new(config, umem, &ifname.parse()?, 0)? };
        let (fill, comp) = rings.ok_or("the socket came without rings")?;
        let mut port = Port { rx, tx, fill, comp, sending: 0 };
        port.refill(free);
        Ok(port)
    }

    fn refill(&mut self, free: &mut Vec<FrameDesc>) {
        // The ring takes all or nothing.
        let left = free.len().saturating_sub(self.fill.nb_free_exact() as usize);
        // SAFETY: free frames belong to this umem and have no other owner.
        let given = unsafe { self.fill.produce(&free[left..]) };
        if given > 0 {
            free.truncate(left);
        }
    }

    fn kick(&mut self, free: &mut Vec<FrameDesc>, descs: &mut [FrameDesc]) {
        for _ in 0..KICKS {
            if self.sending == 0 {
                break;
            }
            if self.tx.needs_wakeup() {
                // After EAGAIN or EBUSY the next kick continues.
                let _ = self.tx.wakeup();
            }
            // SAFETY: the descriptors are of this umem, and are overwritten.
            let done = unsafe { self.comp.consume(descs) };
            free.extend_from_slice(&descs[..done]);
            self.sending -= done;
        }
        self.refill(free);
    }
}

fn attach(steering: &mut Steering, ifname: &str, port: &Port) -> Result<PortProgram> {
    let mac = nix::ifaddrs::getifaddrs()?
        .filter(|i| i.interface_name == ifname)
        .find_map(|i| i.address?.as_link_addr()?.addr())
        .ok_or("no MAC address")?;
    let ifindex = nix::net::if_::if_nametoindex(ifname)?;
    let mut program = steering.attach(ifindex, ifname, mac, AttachMode::Auto, false)?;
    program.set_socket(0, port.rx.fd().as_raw_fd())?;
    program.set_steer(true, true)?;
    Ok(program)
}

fn run(ports: &mut [Port; 2], free: &mut Vec<FrameDesc>, seconds: u64) {
    let mut descs = [FrameDesc::default(); BURST];
    let mut dropped = 0;
    for _ in 0..seconds {
        let (mut packets, mut timed) = (0, 0);
        let (mut user, mut kick) = (Duration::ZERO, Duration::ZERO);
        let second = Instant::now();
        while second.elapsed() < Duration::from_secs(1) {
            let start = Instant::now();
            let mut taken = 0;
            for port in 0..2 {
                // SAFETY: the descriptors are of this umem, and are overwritten.
                let got = unsafe { ports[port].rx.consume(&mut descs) };
                let out = &mut ports[1 - port];
                // SAFETY: the frames were received just now, and have no other owner.
                let sent = unsafe { out.tx.produce(&descs[..got]) };
                out.sending += sent;
                free.extend_from_slice(&descs[sent..got]);
                dropped += got - sent;
                taken += got;
            }
            let moved = start.elapsed();
            ports.iter_mut().for_each(|port| port.kick(free, &mut descs));
            let all = start.elapsed();
            packets += taken;
            if taken > 0 && all < PREEMPTED_MIN {
                timed += taken;
                user += moved;
                kick += all - moved;
            }
        }
        let per_packet = |time: Duration| time.as_nanos() as f64 / timed.max(1) as f64;
        println!(
            "{packets} packets, userspace {:.1} ns, kick {:.1} ns per packet, {dropped} dropped",
            per_packet(user),
            per_packet(kick),
        );
    }
}
