//! A numbered UDP stream from one host to the other, which records which packets were lost, and when.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::Netns;

/// How long the receiver continues after the last packet was sent.
const ARRIVAL_TIMEOUT: Duration = Duration::from_millis(500);

/// Interval between checks of what has arrived.
const CHECK_INTERVAL: Duration = Duration::from_millis(1);
/// When nothing has arrived for this long, the stream has stopped.
const IDLE_TIMEOUT: Duration = Duration::from_millis(300);

/// A running stream.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<Vec<bool>>,
    receiver: JoinHandle<Vec<u32>>,
    done: Arc<AtomicBool>,
}

/// Results of a stream.
#[derive(Debug, Clone)]
pub struct Report {
    /// Packets handed to the kernel.
    pub sent: usize,
    /// Different packets that arrived.
    pub received: usize,
    /// Packets that arrived more than once.
    pub duplicates: usize,
    /// The longest run of consecutive lost packets.
    pub longest_gap: usize,
}

impl Report {
    /// Packets that did not arrive.
    pub fn lost(&self) -> usize {
        self.sent - self.received
    }
}

impl Stream {
    /// Sends 64-octet datagrams from one namespace to an address of another, one per `interval`.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub fn start(from: &Netns, to: &Netns, address: &str, interval: Duration) -> Result<Self> {
        let address: IpAddr = address.parse()?;
        let receiving = to.enter(|| {
            let socket = UdpSocket::bind(SocketAddr::new(address, 0))?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(socket)
        })?;
        let target = receiving.local_addr()?;
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let sending = from.enter(|| UdpSocket::bind(any).context("bind"))?;

        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (sent, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let sender = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            thread::spawn(move || send_all(&sending, target, interval, &stop, &sent))
        };
        let receiver = {
            let (done, received) = (Arc::clone(&done), Arc::clone(&received));
            thread::spawn(move || receive_all(&receiving, &done, &received))
        };
        Ok(Self { stop, sent, received, sender, receiver, done })
    }

    /// Packets that have arrived so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Packets that have been sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until `more` further packets have arrived; returns false if they do not.
    pub fn flows(&self, more: u64) -> bool {
        let goal = self.received() + more;
        crate::eventually(|| self.received() >= goal)
    }

    /// How long it takes from now until `more` packets have arrived.
    ///
    /// # Errors
    /// When they do not within `timeout`.
    pub fn until_flowing(&self, more: u64, timeout: Duration) -> Result<Duration> {
        let begun = Instant::now();
        let goal = self.received() + more;
        while self.received() < goal {
            ensure!(begun.elapsed() < timeout, "nothing arrives");
            thread::sleep(CHECK_INTERVAL);
        }
        Ok(begun.elapsed())
    }

    /// How long packets keep arriving from now on, until none has arrived for 300 ms.
    ///
    /// # Errors
    /// When they still arrive after `timeout`.
    pub fn until_dry(&self, timeout: Duration) -> Result<Duration> {
        let begun = Instant::now();
        let (mut last, mut seen) = (begun, self.received());
        while last.elapsed() < IDLE_TIMEOUT {
            let now = self.received();
            if now != seen {
                (last, seen) = (Instant::now(), now);
            }
            ensure!(begun.elapsed() < timeout, "packets keep arriving");
            thread::sleep(CHECK_INTERVAL);
        }
        Ok(last - begun)
    }

    /// Stops sending, waits for packets in flight, and counts.
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let accepted = self.sender.join().expect("the sender does not panic");
        thread::sleep(ARRIVAL_TIMEOUT);
        self.done.store(true, Ordering::Relaxed);
        let arrived = self.receiver.join().expect("the receiver does not panic");
        report(&accepted, &arrived)
    }
}

fn report(accepted: &[bool], arrived: &[u32]) -> Report {
    let mut seen = vec![0usize; accepted.len()];
    for &number in arrived {
        if let Some(times) = seen.get_mut(number as usize) {
            *times += 1;
        }
    }
    let (mut gap, mut longest_gap) = (0, 0);
    for (times, accepted) in seen.iter().zip(accepted) {
        match (*times, *accepted) {
            (0, true) => gap += 1,
            (0, false) => {}
            _ => gap = 0,
        }
        longest_gap = longest_gap.max(gap);
    }
    Report {
        sent: accepted.iter().filter(|accepted| **accepted).count(),
        received: seen.iter().filter(|times| **times > 0).count(),
        duplicates: seen.iter().map(|times| times.saturating_sub(1)).sum(),
        longest_gap,
    }
}

/// For every number sent, whether the host's kernel accepted the packet (a link may be down).
fn send_all(
    socket: &UdpSocket,
    target: SocketAddr,
    interval: Duration,
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> Vec<bool> {
    let mut accepted = Vec::new();
    let mut datagram = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        datagram[..4].copy_from_slice(&(accepted.len() as u32).to_be_bytes());
        let mut result = socket.send_to(&datagram, target);
        if result.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
            || result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EHOSTUNREACH))
        {
            // The error belonged to an earlier packet (ICMP); this one has not been sent yet.
            result = socket.send_to(&datagram, target);
        }
        accepted.push(result.is_ok());
        if result.is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(interval);
    }
    accepted
}

fn receive_all(socket: &UdpSocket, done: &AtomicBool, received: &AtomicU64) -> Vec<u32> {
    let mut arrived = Vec::new();
    let mut datagram = [0; 128];
    loop {
        match socket.recv(&mut datagram) {
            Ok(octets) if octets >= 4 => {
                let number = [datagram[0], datagram[1], datagram[2], datagram[3]];
                arrived.push(u32::from_be_bytes(number));
                received.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(_) if done.load(Ordering::Relaxed) => return arrived,
            Err(_) => {}
        }
    }
}
