//! Connections that go on: a client that sends all the time and a server that answers.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{Ferroute, Lab, Netns, eventually, ferroute};

/// The server's port.
pub const PORT: u16 = 5001;
/// Between two packets of a conversation.
const PACE: Duration = Duration::from_millis(1);
/// How long an answer takes at most, unless packets are dropped.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);

/// A connection whose client sends all the time, and whose server answers each message.
#[derive(Debug)]
pub struct Conversation {
    answers: Arc<AtomicU64>,
    /// Nanoseconds from `begun` until the last answer.
    last: Arc<AtomicU64>,
    begun: Instant,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    name: &'static str,
    /// The client's address as the server sees it.
    pub peer: SocketAddr,
}

enum Ends {
    Tcp(TcpStream, TcpStream),
    Udp(UdpSocket, UdpSocket),
}

impl Conversation {
    /// Of TCP (else UDP) from left to right.
    ///
    /// # Errors
    /// When the connection is not opened, or messages are not answered.
    pub fn start(lab: &Lab, to: &str, is_tcp: bool) -> Result<Conversation> {
        let to = SocketAddr::new(to.parse::<IpAddr>()?, PORT);
        Conversation::between(&lab.left, to, &lab.right, to, is_tcp)
    }

    /// Of TCP (else UDP) from `client` to the address `to`, with a server that has the address `at`, from which
    /// `to` may be translated.
    ///
    /// # Errors
    /// As for [`Conversation::start`].
    pub fn between(
        client: &Netns,
        to: SocketAddr,
        server: &Netns,
        at: SocketAddr,
        is_tcp: bool,
    ) -> Result<Conversation> {
        let any = SocketAddr::new(if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() }, 0);
        let peer;
        let ends = if is_tcp {
            let listener = server.enter(|| Ok(TcpListener::bind(at)?))?;
            let client = client.enter(|| {
                let timeout = Duration::from_secs(5);
                TcpStream::connect_timeout(&to, timeout).context("no connection")
            })?;
            let (stream, from) = listener.accept()?;
            peer = from;
            Ends::Tcp(client, stream)
        } else {
            let server = server.enter(|| Ok(UdpSocket::bind(at)?))?;
            let client = client.enter(|| {
                let client = UdpSocket::bind(any)?;
                client.connect(to)?;
                Ok(client)
            })?;
            client.send(&[7; 32])?;
            server.set_read_timeout(Some(Duration::from_secs(5)))?;
            let (len, from) = server.recv_from(&mut [0; 64]).context("no datagram")?;
            server.send_to(&[7; 64][..len], from)?;
            client.set_read_timeout(Some(Duration::from_secs(5)))?;
            client.recv(&mut [0; 64]).context("no answer")?;
            peer = from;
            Ends::Udp(client, server)
        };
        Conversation::begin(ends, peer, if is_tcp { "TCP" } else { "UDP" })
    }

    /// Of a TCP connection that is open already: `client` sends, and `server` answers.
    ///
    /// # Errors
    /// When messages are not answered.
    pub fn over(client: TcpStream, server: TcpStream) -> Result<Conversation> {
        let peer = server.peer_addr()?;
        Conversation::begin(Ends::Tcp(client, server), peer, "TCP")
    }

    fn begin(ends: Ends, peer: SocketAddr, name: &'static str) -> Result<Conversation> {
        let mut it = Conversation {
            // The first message of UDP was answered.
            answers: Arc::new(AtomicU64::new(matches!(ends, Ends::Udp(..)).into())),
            last: Arc::default(),
            begun: Instant::now(),
            stopping: Arc::default(),
            threads: Vec::new(),
            name,
            peer,
        };
        it.converse(ends)?;
        ensure!(it.goes_on(), "{}: no answers at the start", it.name);
        Ok(it)
    }

    fn converse(&mut self, ends: Ends) -> Result<()> {
        let (answers, last, begun) =
            (Arc::clone(&self.answers), Arc::clone(&self.last), self.begun);
        let answered = move || {
            answers.fetch_add(1, Relaxed);
            last.store(begun.elapsed().as_nanos() as u64, Relaxed);
        };
        let stopping = [Arc::clone(&self.stopping), Arc::clone(&self.stopping)];
        let [ours, theirs] = stopping;
        let timeout = Some(Duration::from_millis(50));
        match ends {
            Ends::Tcp(mut client, mut server) => {
                for stream in [&client, &server] {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(timeout)?;
                }
                self.threads.push(thread::spawn(move || {
                    let mut octets = [0; 64];
                    while !theirs.load(Relaxed) {
                        match server.read(&mut octets) {
                            Ok(0) => break,
                            Ok(len) => drop(server.write_all(&octets[..len])),
                            Err(_) => {}
                        }
                    }
                }));
                self.threads.push(thread::spawn(move || {
                    let mut octets = [0; 64];
                    while !ours.load(Relaxed) {
                        if client.write_all(&[7; 32]).is_err() {
                            break;
                        }
                        // Until it is answered: what TCP sends again is answered, too.
                        while !ours.load(Relaxed) {
                            match client.read(&mut octets) {
                                Ok(0) => return,
                                Ok(_) => {
                                    answered();
                                    break;
                                }
                                Err(_) => {}
                            }
                        }
                        thread::sleep(PACE);
                    }
                }));
            }
            Ends::Udp(client, server) => {
                client.set_read_timeout(timeout)?;
                server.set_read_timeout(timeout)?;
                self.threads.push(thread::spawn(move || {
                    let mut octets = [0; 64];
                    while !theirs.load(Relaxed) {
                        if let Ok((len, from)) = server.recv_from(&mut octets) {
                            let _ = server.send_to(&octets[..len], from);
                        }
                    }
                }));
                self.threads.push(thread::spawn(move || {
                    let mut octets = [0; 64];
                    while !ours.load(Relaxed) {
                        let _ = client.send(&[7; 32]);
                        if client.recv(&mut octets).is_ok() {
                            answered();
                        }
                        thread::sleep(PACE);
                    }
                }));
            }
        }
        Ok(())
    }

    /// How many messages were answered.
    pub fn answers(&self) -> u64 {
        self.answers.load(Relaxed)
    }

    /// Whether another 50 messages are answered.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        let before = self.answers();
        eventually(|| self.answers() >= before + 50)
    }

    /// When the last answer arrived, once none arrives any more.
    ///
    /// # Errors
    /// When answers go on.
    pub fn end(&self) -> Result<Instant> {
        let last = || self.begun + Duration::from_nanos(self.last.load(Relaxed));
        ensure!(eventually(|| last().elapsed() > ANSWER_TIMEOUT), "{}: answers go on", self.name);
        Ok(last())
    }

    /// Ends it, and returns how many messages were answered.
    pub fn stop(mut self) -> u64 {
        self.end_threads();
        self.answers()
    }

    fn end_threads(&mut self) {
        self.stopping.store(true, Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.end_threads();
    }
}

/// Whether packets of the conversations bypass the kernel.
#[must_use]
pub fn are_carried(running: &Ferroute, all: &[&Conversation]) -> bool {
    ferroute::by_kernel()
        || eventually(|| {
            let before = running.forwarded_by_kernel().ok();
            all.iter().all(|it| it.goes_on()) && running.forwarded_by_kernel().ok() == before
        })
}

/// Loads an nftables ruleset.
///
/// # Errors
/// Those of `nft -f`.
pub fn nft(router: &Netns, ruleset: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), ruleset)?;
    router.run(&format!("nft -f {}", file.path().display())).map(drop)
}
