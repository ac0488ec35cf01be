//! Packet captures. The connection threads start them and send copies to their clients. The control thread
//! reports port changes to the captures and does not wait for any of them.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Supervisor;
use super::offload::{Offloads, Paused};
use super::snapshot::{Snapshot, View};
use crate::capture::record::keep_ports;
use crate::capture::ring::BLOCK;
use crate::capture::tap::SESSIONS_MAX;
use crate::capture::{Filter, RingReader, Session, Wanted, WantedPorts, ring};
use crate::control::api::capture::Message;
use crate::control::api::server::{Answer, Follow};
use crate::control::api::{
    CaptureDirection, CaptureEnd, CaptureGrant, CapturePort, CaptureRequest, Response,
};
use crate::io::Driver;
use crate::worker::TapHandle;

/// A worker ends a capture between two turns, which it may reach late if it does not get its CPU.
pub(super) const WORKER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the rings are checked for copies. Workers do not notify: that would cost them a system call.
pub(super) const LOOK_MS: u16 = 5;
/// Octets of packets in one message, approximately: the copies that all workers made between two checks.
const MESSAGE: usize = 8 << 20;
/// Maximum memory of one capture on one worker, in KiB.
const BUFFER_KIB_MAX: u32 = 1 << 20;
/// Maximum memory of all captures on all workers, in blocks: 1 GiB.
const BLOCKS_MAX: usize = (1 << 30) / BLOCK;
/// How long a worker may take to start a capture, or to end one that it did not start in time.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(2);
/// How often starting a capture is retried because ports changed meanwhile.
const ATTEMPTS: u32 = 5;
/// How long a stopping daemon waits for clients to read the last copies.
const LAST_COPIES_TIMEOUT: Duration = Duration::from_millis(500);

/// State shared by all running captures.
#[derive(Debug, Default)]
struct Shared {
    running: AtomicUsize,
    /// Blocks of their rings.
    blocks: AtomicUsize,
    /// All ports, captured or not, as the control thread last published them.
    ports: ArcSwap<Ports>,
}

/// The ports, and since when each port number belongs to its interface.
#[derive(Debug, Default)]
struct Ports {
    ports: Vec<CapturePort>,
    /// How often a port number has been given to another interface.
    naming: u64,
    /// By port: the value of `naming` when the number was given to this interface.
    since: Vec<u64>,
}

impl Ports {
    /// The value that follows when the ports change to `ports`.
    fn next(&self, ports: Vec<CapturePort>) -> Ports {
        let is_other = |(was, is): (&CapturePort, &CapturePort)| was.ifname != is.ifname;
        let others: Vec<bool> = self.ports.iter().zip(&ports).map(is_other).collect();
        let naming = self.naming + u64::from(others.contains(&true));
        let since = (0..ports.len()).map(|n| match others.get(n) {
            Some(true) => naming,
            Some(false) => self.since[n],
            None => 0,
        });
        Ports { since: since.collect(), ports, naming }
    }

    /// Whether records of a port written at `naming` belong to the interface that has the number now.
    fn own(&self, port: u16, naming: u64) -> bool {
        self.since.get(usize::from(port)).is_none_or(|since| *since <= naming)
    }
}

/// Starts captures and keeps track of those that run.
#[derive(Debug)]
pub(super) struct Captures {
    shared: Arc<Shared>,
    next_id: AtomicU64,
}

impl Captures {
    /// No captures yet.
    pub(super) fn new() -> Captures {
        Captures { shared: Arc::default(), next_id: AtomicU64::new(1) }
    }

    /// Waits until clients have read what the workers, which have ended, copied.
    pub(super) fn finish(&self) {
        let end = Instant::now() + LAST_COPIES_TIMEOUT;
        while self.shared.running.load(Relaxed) > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(u64::from(LOOK_MS)));
        }
    }
}

impl Supervisor {
    /// Informs running captures about ports that are gone, back or renamed. Returns how often a port number
    /// has been given to another interface.
    pub(super) fn notify_captures(&self) -> u64 {
        let ports = &self.clients.view.captures.shared.ports;
        let (was, now) = (ports.load_full(), self.capture_ports());
        if was.ports == now {
            return was.naming;
        }
        let now = was.next(now);
        let naming = now.naming;
        ports.store(Arc::new(now));
        naming
    }

    fn capture_ports(&self) -> Vec<CapturePort> {
        let port = |port: &super::ports::Port| CapturePort {
            ifname: port.ifname.clone(),
            ifindex: port.ifindex(),
            mac: port.mac(),
        };
        self.ports.iter().map(port).collect()
    }
}

impl View {
    /// Starts a capture on every worker.
    pub(super) fn capture(&self, snapshot: &Snapshot, request: &CaptureRequest) -> Answer {
        match self.begin_capture(snapshot, request) {
            Ok(stream) => {
                let grant =
                    CaptureGrant { ports: stream.announced.ports.clone(), pid: std::process::id() };
                Answer::Follow(Response::Capture(grant), Box::new(stream))
            }
            Err(message) => Response::error(message).into(),
        }
    }

    fn begin_capture(
        &self,
        snapshot: &Snapshot,
        request: &CaptureRequest,
    ) -> Result<Stream, String> {
        let blocks = buffer_blocks(request.buffer_kib)?;
        for _ in 0..ATTEMPTS {
            let mut stream = self.captures.open()?;
            let wanted = self.wanted(snapshot, &stream.announced, request)?;
            stream
                .attach(snapshot, &wanted, blocks)
                .inspect_err(|_| stream.detach(ATTACH_TIMEOUT))?;
            // The workers learn that a port number has another interface after it is published here. If the
            // published list has not changed, they will learn it while this capture is attached. If it has
            // changed, they may have learned it before, and this capture still has the old name.
            if Arc::ptr_eq(&stream.announced, &self.captures.shared.ports.load()) {
                return Ok(stream);
            }
        }
        Err("the ports keep changing; try again".into())
    }

    fn wanted(
        &self,
        snapshot: &Snapshot,
        ports: &Ports,
        request: &CaptureRequest,
    ) -> Result<Wanted, String> {
        let names: Vec<&str> = ports.ports.iter().map(|port| port.ifname.as_str()).collect();
        if let Some(stranger) = request.ports.iter().find(|name| !names.contains(&name.as_str())) {
            return Err(self.no_port(snapshot, &names, stranger));
        }
        let has = |direction| request.directions.contains(&direction);
        let filter = match &request.filter[..] {
            [] => None,
            insns => Some(Filter::new(insns).map_err(|error| error.to_string())?),
        };
        Ok(Wanted {
            ports: (!request.ports.is_empty())
                .then(|| WantedPorts::new(&request.ports, names.iter().copied())),
            received: has(CaptureDirection::In),
            sent: has(CaptureDirection::Out),
            dropped: has(CaptureDirection::Drop),
            snaplen: request.snaplen as usize,
            filter,
        })
    }

    /// The error for a name that is not a port, with the names of the ports.
    fn no_port(&self, snapshot: &Snapshot, names: &[&str], stranger: &str) -> String {
        let tables = self.tables.load();
        let link = tables.links.named(stranger);
        if let Some((port, vlan)) = link.and_then(|link| Some((link.port?, link.vlan.as_ref()?)))
            && let Some(port) = names.get(usize::from(port))
        {
            let tags: Vec<String> =
                vlan.tags.iter().map(|egress| format!("vlan {}", egress.tag.vid())).collect();
            return format!(
                "{stranger} is a VLAN of the port {port}: -i {port} {}",
                tags.join(" and ")
            );
        }
        let listed: Vec<&str> = snapshot.listed().map(|port| port.ifname.as_str()).collect();
        format!("{stranger} is not a port of the daemon; it has {}", listed.join(", "))
    }
}

impl Captures {
    /// Creates a capture that is not attached to any worker yet.
    fn open(&self) -> Result<Stream, String> {
        let shared = Arc::clone(&self.shared);
        let more = |running| (running < SESSIONS_MAX).then_some(running + 1);
        shared
            .running
            .fetch_update(Relaxed, Relaxed, more)
            .map_err(|running| format!("{running} captures are running, which is the maximum"))?;
        Ok(Stream {
            id: self.next_id.fetch_add(1, Relaxed),
            taps: Vec::new(),
            rings: Vec::new(),
            announced: shared.ports.load_full(),
            blocks: 0,
            unnamed: 0,
            shared,
            paused: None,
        })
    }
}

fn buffer_blocks(kib: u32) -> Result<usize, String> {
    if kib == 0 || kib > BUFFER_KIB_MAX {
        return Err(format!("a buffer of {kib} KiB; must be 1 to {BUFFER_KIB_MAX} KiB"));
    }
    // With fewer than two the worker would have none while the other is read.
    Ok((kib as usize * 1024).div_ceil(BLOCK).max(2))
}

/// One capture, from the workers' rings to its client. Dropping it ends the capture.
struct Stream {
    id: u64,
    taps: Vec<TapHandle<Driver>>,
    rings: Vec<RingReader>,
    /// The ports as last sent to the client.
    announced: Arc<Ports>,
    /// Blocks of its rings, counted in [`Shared::blocks`].
    blocks: usize,
    /// Copies left out because their port number was given to another interface before they were read.
    unnamed: u64,
    shared: Arc<Shared>,
    /// All packets pass the workers meanwhile.
    paused: Option<Paused>,
}

/// What was read from the rings in one pass.
#[derive(Debug, Default)]
struct Taken {
    records: Vec<u8>,
    /// Offsets where records of another `naming` begin.
    namings: Vec<(usize, u64)>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.detach(WORKER_TIMEOUT);
        self.rings.clear();
        self.shared.blocks.fetch_sub(self.blocks, Relaxed);
        self.shared.running.fetch_sub(1, Relaxed);
    }
}

impl Follow for Stream {
    /// Sends copies until the client closes its writing side or is gone, or the workers have ended.
    fn follow(mut self: Box<Self>, stream: &UnixStream) -> io::Result<()> {
        // A client that does not read is not disconnected: it loses copies.
        stream.set_write_timeout(None)?;
        let (mut taken, mut stopping) = (Taken::default(), false);
        loop {
            stopping |= self.take(&mut taken);
            let more = !taken.records.is_empty();
            self.send(&mut taken, stream)?;
            if stopping || has_left(stream, if more { 0 } else { LOOK_MS })? {
                break;
            }
        }
        self.detach(WORKER_TIMEOUT);
        while !self.take(&mut taken) && !taken.records.is_empty() {
            self.send(&mut taken, stream)?;
        }
        self.send(&mut taken, stream)?;
        let sum = |of: fn(&RingReader) -> u64| self.rings.iter().map(of).sum::<u64>();
        let matched = sum(RingReader::matched);
        let lost = sum(RingReader::lost) + self.unnamed;
        Message::End(CaptureEnd { matched, lost, stopping }).write(stream)
    }
}

impl Stream {
    /// Attaches the capture to every worker. After a failure, dropping the stream detaches it.
    fn attach(
        &mut self,
        snapshot: &Snapshot,
        wanted: &Wanted,
        blocks: usize,
    ) -> Result<(), String> {
        self.paused = snapshot.offloads.as_ref().map(Offloads::pause);
        self.reserve(blocks, snapshot.workers.len())?;
        let until = Instant::now() + ATTACH_TIMEOUT;
        for (n, worker) in snapshot.workers.iter().enumerate() {
            let (writer, reader) =
                ring(blocks).map_err(|_| "no memory for the capture's buffers".to_owned())?;
            let session = Session::new(self.id, wanted.clone(), writer);
            self.rings.push(reader);
            // Added before the request is sent, so that an attach that completes after the time-out is
            // undone, too.
            self.taps.push(worker.taps());
            worker
                .taps()
                .attach(session, until.saturating_duration_since(Instant::now()))
                .ok_or_else(|| format!("worker {n} does not take the capture; try again"))?;
        }
        Ok(())
    }

    /// Reserves memory within the limit of all captures: `blocks` for each of `workers`.
    fn reserve(&mut self, blocks: usize, workers: usize) -> Result<(), String> {
        let wanted = blocks * workers;
        let more = |used: usize| (wanted <= BLOCKS_MAX - used).then(|| used + wanted);
        self.shared.blocks.fetch_update(Relaxed, Relaxed, more).map_err(|used| {
            let kib = |blocks: usize| blocks * (BLOCK / 1024);
            format!(
                "buffers of {} KiB for each of {workers} worker(s) are more than the {} KiB that are \
                 left for captures; use a smaller --buffer-size",
                kib(blocks),
                kib(BLOCKS_MAX - used)
            )
        })?;
        self.blocks = wanted;
        Ok(())
    }

    /// Detaches it from every worker; `timeout` is per worker.
    fn detach(&mut self, timeout: Duration) {
        for tap in self.taps.drain(..) {
            // A worker that has ended has no capture.
            let _ = tap.detach(self.id, timeout);
        }
    }

    /// Collects what the workers have written. Returns whether all of them have ended.
    fn take(&self, taken: &mut Taken) -> bool {
        let mut ended = !self.rings.is_empty();
        for ring in &self.rings {
            loop {
                match ring.read(|block, naming| taken.push(block, naming)) {
                    Ok(Some(())) if taken.records.len() < MESSAGE => {}
                    Ok(_) => {
                        ended = false;
                        break;
                    }
                    Err(_) => break,
                }
            }
        }
        ended
    }

    /// Sends what was taken, preceded by the names of its ports. The names are read after the copies were
    /// taken: names are set before workers write records under them. Records written under an older name
    /// whose port has another name now are left out.
    fn send(&mut self, taken: &mut Taken, stream: &UnixStream) -> io::Result<()> {
        let now = self.shared.ports.load_full();
        if !Arc::ptr_eq(&self.announced, &now) {
            Message::Ports(now.ports.clone()).write(stream)?;
            self.announced = now;
        }
        self.unnamed += taken.keep(&self.announced);
        if !taken.records.is_empty() {
            Message::Packets(&taken.records).write(stream)?;
        }
        taken.records.clear();
        taken.namings.clear();
        Ok(())
    }
}

impl Taken {
    fn push(&mut self, block: &[u8], naming: u64) {
        if self.namings.last().is_none_or(|(_, last)| *last != naming) {
            self.namings.push((self.records.len(), naming));
        }
        self.records.extend_from_slice(block);
    }

    /// Leaves out records of ports that had another interface when they were written. Returns their number.
    fn keep(&mut self, ports: &Ports) -> u64 {
        if self.namings.iter().all(|(_, naming)| *naming == ports.naming) {
            return 0;
        }
        let (mut kept, mut left_out) = (Vec::with_capacity(self.records.len()), 0);
        let ends = self.namings.iter().skip(1).map(|(start, _)| *start);
        for (&(start, naming), end) in self.namings.iter().zip(ends.chain([self.records.len()])) {
            let some = &self.records[start..end];
            left_out += keep_ports(some, &mut kept, |port| ports.own(port, naming));
        }
        self.records = kept;
        left_out
    }
}

/// Whether the client has closed its writing side, within `timeout_ms`.
pub(super) fn has_left(mut stream: &UnixStream, timeout_ms: u16) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(timeout_ms)) {
        Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(false),
        // Clients send nothing here; the content is ignored.
        Ok(_) => Ok(stream.read(&mut [0; 64])? == 0),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Tap;
    use crate::skb::{Burst, HEADROOM, SkBuff, Umem};

    fn ports(names: &[&str]) -> Vec<CapturePort> {
        let port = |name: &&str| CapturePort { ifname: (*name).into(), ..CapturePort::default() };
        names.iter().map(port).collect()
    }

    fn stream(names: &[&str], reader: RingReader) -> Box<Stream> {
        let captures = Captures::new();
        captures.shared.ports.store(Arc::new(Ports::default().next(ports(names))));
        let mut stream = captures.open().expect("the first");
        stream.rings.push(reader);
        Box::new(stream)
    }

    /// Port names and packets by port, as a client receives them, and how many were lost.
    fn followed(stream: Box<Stream>) -> (Vec<Vec<String>>, u64) {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        theirs.shutdown(std::net::Shutdown::Write).expect("connected");
        stream.follow(&ours).expect("the client reads");
        drop(ours);
        let mut octets = Vec::new();
        theirs.read_to_end(&mut octets).expect("an end");
        let (mut said, mut at) = (Vec::new(), 0);
        while let Some((message, length)) = Message::parse(&octets[at..]).expect("sound") {
            at += length;
            match message {
                Message::Ports(ports) => said.push(ports.into_iter().map(|p| p.ifname).collect()),
                Message::Packets(packets) => {
                    let records = crate::capture::Records::new(packets);
                    said.push(records.map(|record| record.port.to_string()).collect());
                }
                Message::End(end) => return (said, end.lost),
            }
        }
        panic!("no end: {said:?}");
    }

    #[test]
    fn all_captures_together_have_a_limit_and_give_back_what_they_had() {
        let captures = Captures::new();
        let mut first = captures.open().expect("the first");
        first.reserve(BLOCKS_MAX / 4, 3).expect("room");
        let mut second = captures.open().expect("another");
        let refusal = second.reserve(BLOCKS_MAX / 4, 2).expect_err("more than is left");
        assert!(refusal.contains("262144 KiB for each of 2 worker(s)"), "{refusal}");
        assert!(refusal.contains("the 262144 KiB that are left"), "{refusal}");
        second.reserve(BLOCKS_MAX / 4, 1).expect("all that is left");
        drop(first);
        drop(second);
        captures.open().expect("a third").reserve(BLOCKS_MAX, 1).expect("all");
    }

    /// One packet from each of two ports, before and after the second is given to another interface. They
    /// are read after that or, with `between`, also before.
    fn renamed(between: bool) -> (Vec<Vec<String>>, u64) {
        let mut pool = Umem::anonymous(4).into_pool();
        let (mut tap, (writer, reader)) = (Tap::new(), ring(4).expect("memory"));
        let wanted = Wanted {
            ports: None,
            received: true,
            sent: false,
            dropped: false,
            snaplen: 64,
            filter: None,
        };
        assert!(tap.attach(Session::new(1, wanted, writer)).is_none());
        let mut burst = Burst::default();
        burst.push(SkBuff::alloc_skb(&mut pool, HEADROOM).expect("a frame")).expect("room");
        let mut receive = |tap: &mut Tap| {
            for port in 0..2 {
                burst.as_mut_slice()[0].port = port;
                tap.received(burst.as_mut_slice());
            }
            tap.hand_over();
        };
        receive(&mut tap);
        let mut stream = stream(&["eth0", "eth5"], reader);
        let mut taken = Taken::default();
        if between {
            assert!(!stream.take(&mut taken));
        }
        let now = stream.announced.next(ports(&["eth0", "eth6"]));
        tap.name_port(1, "eth6", now.naming);
        stream.shared.ports.store(Arc::new(now));
        receive(&mut tap);
        drop(tap);
        if between {
            let (ours, _theirs) = UnixStream::pair().expect("a pair of sockets");
            stream.send(&mut taken, &ours).expect("room");
        }
        let said = followed(stream);
        burst.drain(1).for_each(|skb| pool.kfree_skb(skb));
        said
    }

    #[test]
    fn a_packet_is_never_shown_under_the_name_of_another_interface() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (said, lost) = renamed(false);
        let expected: Vec<Vec<String>> = vec![names(&["eth0", "eth6"]), names(&["0", "0", "1"])];
        assert_eq!((said, lost), (expected, 1));
        // Taken before and sent afterwards: the old name was sent first.
        let (said, lost) = renamed(true);
        assert_eq!((said, lost), (vec![names(&["0", "1"])], 1));
    }

    #[test]
    fn a_number_changes_interface_only_when_it_had_one() {
        let first = Ports::default().next(ports(&["eth0"]));
        let more = first.next(ports(&["eth0", "eth1"]));
        assert_eq!((first.naming, more.naming), (0, 0));
        let reused = more.next(ports(&["eth2", "eth1"]));
        assert_eq!((reused.naming, &reused.since[..]), (1, &[1, 0][..]));
        let own = [(0, 0), (0, 1), (1, 0), (2, 0)].map(|(port, naming)| reused.own(port, naming));
        assert_eq!(own, [false, true, true, true]);
    }
}
