//! The AF_XDP driver alone: packets received on one interface are sent on the other, unchanged.
//!
//! Everything else that the router does is its own cost; benchmarks run both side by side.
//!
//!     reflector IFACE IFACE CPU [SECONDS]
//!
//! Frames must be IPv4 or IPv6 and addressed to the interface's MAC, as for the router. Prints a line per
//! second: packets, and the time per packet in userspace and in the kernel's sendto(2), both over
//! iterations that had packets and took less than a millisecond (longer ones were preempted). Without
//! SECONDS it runs until it is killed; the XDP programs are detached when the process ends.

use std::error::Error;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ferroute::control::steering::{AttachMode, PortProgram, Steering};
use ferroute::io::PacketIo;
use ferroute::io::af_xdp::{AfXdp, BindMode, Options, PortConfig};
use ferroute::skb::{Burst, FramePool};
use ferroute::stats::WorkerStats;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Iterations longer than this were preempted, and are not counted.
const PREEMPTED_MIN: Duration = Duration::from_millis(1);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [left, right, cpu, rest @ ..] = args.as_slice() else {
        return Err("usage: reflector IFACE IFACE CPU [SECONDS]".into());
    };
    let seconds = rest.first().map_or(Ok(u64::MAX), |s| s.parse::<u64>())?;
    let mut cpus = CpuSet::new();
    cpus.set(cpu.parse()?)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;

    let ports = [config(left)?, config(right)?];
    let (mut io, pool) = AfXdp::open(&ports, &Options::default())?;
    let mut steering = Steering::new()?;
    let mut programs = Vec::new();
    for (port, config) in ports.iter().enumerate() {
        programs.push(attach(&mut steering, &io, port as u16, config)?);
        let info = io.port_info(port as u16).ok_or("a port that is not there")?;
        println!("{}: {}", config.ifname, info.mode);
    }
    Reflector::new(io, pool).run(seconds);
    drop(programs);
    Ok(())
}

fn config(ifname: &str) -> Result<PortConfig> {
    let ifindex = nix::net::if_::if_nametoindex(ifname)?;
    Ok(PortConfig {
        ifname: ifname.to_owned(),
        ifindex,
        mode: BindMode::Auto,
        ..PortConfig::default()
    })
}

fn attach(
    steering: &mut Steering,
    io: &AfXdp,
    port: u16,
    config: &PortConfig,
) -> Result<PortProgram> {
    let mac = nix::ifaddrs::getifaddrs()?
        .filter(|i| i.interface_name == config.ifname)
        .find_map(|i| i.address?.as_link_addr()?.addr())
        .ok_or("no MAC address")?;
    let mut program =
        steering.attach(config.ifindex, &config.ifname, mac, AttachMode::Auto, false)?;
    let socket = io.socket_fd(port).ok_or("a port that is not there")?;
    program.set_socket(config.queue, socket.as_raw_fd())?;
    program.set_steer(true, true)?;
    Ok(program)
}

struct Reflector {
    io: AfXdp,
    pool: FramePool,
    stats: WorkerStats,
    burst: Burst,
}

/// The counters of one second.
#[derive(Default)]
struct Second {
    packets: usize,
    /// Packets of the iterations that were timed.
    timed: usize,
    user: Duration,
    kick: Duration,
}

impl Reflector {
    fn new(io: AfXdp, pool: FramePool) -> Reflector {
        Reflector { io, pool, stats: WorkerStats::new(2), burst: Burst::default() }
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds {
            let (mut second, start) = (Second::default(), Instant::now());
            while start.elapsed() < Duration::from_secs(1) {
                self.turn(&mut second);
            }
            let per_packet = |time: Duration| time.as_nanos() as f64 / second.timed.max(1) as f64;
            println!(
                "{} packets, userspace {:.1} ns, kick {:.1} ns per packet, {} dropped",
                second.packets,
                per_packet(second.user),
                per_packet(second.kick),
                self.stats.drops_total(),
            );
        }
    }

    fn turn(&mut self, second: &mut Second) {
        let start = Instant::now();
        let mut taken = 0;
        for port in 0..2 {
            taken += self.io.rx_burst(port, &mut self.pool, &mut self.burst, &self.stats);
            if !self.burst.is_empty() {
                self.io.tx_burst(1 - port, &mut self.pool, &mut self.burst, &self.stats);
            }
        }
        let user = start.elapsed();
        self.io.kick(&mut self.pool, &self.stats);
        let all = start.elapsed();
        second.packets += taken;
        if taken > 0 && all < PREEMPTED_MIN {
            second.timed += taken;
            second.user += user;
            second.kick += all - user;
        }
    }
}
