//! First packets to many hosts whose link-layer addresses are not known: as many arrive as when the kernel alone
//! forwards, in the same lab.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::{Ferroute, Lab, ferroute};
use nix::sys::socket::{setsockopt, sockopt};

/// Hosts of one round. The kernel's neighbour tables have room for 1,024 entries of each family (`gc_thresh3`), of all
/// network namespaces together, and a test does not change settings of the machine.
const HOSTS: usize = 800;
/// What may be lost beside what the kernel loses: one packet of a hundred. The queues of a veth, and the receiver's socket,
/// lose a packet here and there while other processes have the CPUs.
const TOLERANCE: usize = HOSTS / 100;
/// Rounds of a stream, each with an empty neighbour table.
const STREAM_ROUNDS: usize = 3;
const PORT: u16 = 4000;
/// Held by tests that need most of the kernel's neighbour tables.
static NEIGHBOUR_TABLES: Mutex<()> = Mutex::new(());
/// The kernel gives up an address after three seconds.
const QUIET: Duration = Duration::from_secs(4);

#[derive(Debug, Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// A host that answers.
    fn live(self, number: usize) -> IpAddr {
        let [high, low] = (number as u16 + 1).to_be_bytes();
        match self {
            Family::V4 => Ipv4Addr::new(198, 19, high, low).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 1, number as u16 + 1).into(),
        }
    }

    /// An address of the same subnet that no host has.
    fn dead(self, number: usize) -> IpAddr {
        let [high, low] = (number as u16 + 1).to_be_bytes();
        match self {
            Family::V4 => Ipv4Addr::new(198, 19, 128 | high, low).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 2, number as u16 + 1).into(),
        }
    }

    fn any(self) -> SocketAddr {
        match self {
            Family::V4 => (Ipv4Addr::UNSPECIFIED, PORT).into(),
            Family::V6 => (Ipv6Addr::UNSPECIFIED, PORT).into(),
        }
    }
}

/// The right host has all addresses of [`Family::live`].
fn lab() -> Result<Lab> {
    let lab = Lab::up()?;
    lab.router.run("ip route add 198.19.0.0/16 dev rt-right")?;
    lab.right.run("ip route add local 198.19.0.0/17 dev lo")?;
    let addresses =
        (0..HOSTS).map(|n| format!("addr add {}/128 dev right nodad\n", Family::V6.live(n)));
    lab.right.ip_batch(&["-6"], &addresses.collect::<String>())?;
    Ok(lab)
}

fn forget(lab: &Lab) -> Result<()> {
    lab.router.run("ip -4 neigh flush dev rt-right")?;
    lab.router.run("ip -6 neigh flush dev rt-right")?;
    Ok(())
}

fn sender(lab: &Lab, family: Family) -> Result<UdpSocket> {
    lab.left.enter(|| Ok(UdpSocket::bind(SocketAddr::new(family.any().ip(), 0))?))
}

fn receiver(lab: &Lab, family: Family) -> Result<UdpSocket> {
    let socket = lab.right.enter(|| Ok(UdpSocket::bind(family.any())?))?;
    setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20))?;
    socket.set_read_timeout(Some(QUIET))?;
    Ok(socket)
}

/// Sends to an address; an error that an earlier packet caused (ICMP) does not count.
fn send(socket: &UdpSocket, octets: &[u8], to: IpAddr) -> Result<()> {
    let first = socket.send_to(octets, (to, PORT));
    first.or_else(|_| socket.send_to(octets, (to, PORT))).with_context(|| format!("to {to}"))?;
    Ok(())
}

/// Sends each host one packet, at most one per `interval`. Returns how many hosts' packets arrive.
fn first_packets(lab: &Lab, family: Family, hosts: usize, interval: Duration) -> Result<usize> {
    let (sender, receiver) = (sender(lab, family)?, receiver(lab, family)?);
    let sending = thread::spawn(move || -> Result<()> {
        let begun = Instant::now();
        for number in 0..hosts {
            let due = begun + interval * number as u32;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            send(&sender, &(number as u32).to_be_bytes(), family.live(number))?;
        }
        Ok(())
    });
    let mut arrived = HashSet::new();
    let mut octets = [0; 4];
    while arrived.len() < hosts && receiver.recv(&mut octets).is_ok() {
        ensure!(arrived.insert(u32::from_be_bytes(octets)), "a packet arrives twice");
    }
    sending.join().expect("the sender does not panic")?;
    Ok(arrived.len())
}

/// What was dropped and punted; thousands of neighbours are left out.
fn counted(ferroute: &Ferroute) -> String {
    let answers = ["drops", "stat"].map(|verb| ferroute.ask(&[verb]));
    answers.map(|answer| answer.unwrap_or_else(|error| format!("{error:#}"))).concat()
}

/// [`first_packets`] to hosts none of which is known.
fn round(lab: &Lab, family: Family, interval: Duration) -> Result<usize> {
    forget(lab)?;
    first_packets(lab, family, HOSTS, interval)
}

/// Waits until no other test needs them: their limits are those of the machine.
pub fn with_neighbour_tables() -> MutexGuard<'static, ()> {
    NEIGHBOUR_TABLES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails unless `rounds` rounds of first packets arrive through Ferroute as through the kernel alone.
fn arrive_as_with_the_kernel(rounds: usize, interval: Duration) -> Result<()> {
    let _alone = with_neighbour_tables();
    let lab = lab()?;
    let arrive = || -> Result<Vec<usize>> {
        let all = Family::ALL.into_iter().flat_map(|family| (0..rounds).map(move |_| family));
        all.map(|family| round(&lab, family, interval)).collect()
    };
    let by_kernel = arrive()?;
    ensure!(
        by_kernel.iter().all(|arrived| *arrived > HOSTS / 2),
        "the kernel loses most: {by_kernel:?}"
    );
    let mut ferroute = Ferroute::start(&lab)?;
    let arrived = arrive()?;
    let is_as_good =
        arrived.iter().zip(&by_kernel).all(|(ours, theirs)| ours + TOLERANCE >= *theirs);
    ensure!(
        is_as_good,
        "{arrived:?} arrive, with the kernel {by_kernel:?}\n{}",
        counted(&ferroute)
    );
    if ferroute::by_kernel() {
        return Ok(());
    }
    let stat = ferroute.json(&["stat"])?;
    // Of a stream, workers may hold all packets themselves.
    let is_held = stat["punts"]["NEIGH_UNRESOLVED"].as_u64() > Some(0);
    ensure!(is_held || !interval.is_zero(), "the kernel holds none: {stat}");
    ensure!(stat["drops"]["PUNT_FAILED"].as_u64().unwrap_or(0) == 0, "{stat}");
    ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn first_packets_of_a_burst_to_new_hosts_arrive_as_with_the_kernel() -> Result<()> {
    arrive_as_with_the_kernel(1, Duration::ZERO)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn first_packets_of_a_stream_to_new_hosts_arrive_as_with_the_kernel() -> Result<()> {
    arrive_as_with_the_kernel(STREAM_ROUNDS, Duration::from_micros(500))
}

/// More addresses than a worker holds packets for are being tried all the time.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_scan_of_dead_addresses_takes_no_first_packet_of_live_hosts() -> Result<()> {
    const LIVE: usize = 100;
    const SCAN_INTERVAL: Duration = Duration::from_millis(10);
    let _alone = with_neighbour_tables();
    let lab = lab()?;
    let ferroute = Ferroute::start(&lab)?;
    for family in Family::ALL {
        forget(&lab)?;
        let scan = sender(&lab, family)?;
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let scanning = thread::spawn(move || -> Result<usize> {
            let mut number = 0;
            while stopped.recv_timeout(SCAN_INTERVAL)
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                send(&scan, &[0; 4], family.dead(number))?;
                number += 1;
            }
            Ok(number)
        });
        // Three seconds of the scan wait at any time from now on.
        thread::sleep(Duration::from_secs(3));
        let arrived = first_packets(&lab, family, LIVE, Duration::from_millis(10))?;
        drop(stop);
        let scanned = scanning.join().expect("the scan does not panic")?;
        ensure!(scanned > 100, "{scanned} addresses were tried");
        ensure!(arrived == LIVE, "{arrived} of {LIVE} arrive\n{}", counted(&ferroute));
    }
    Ok(())
}
