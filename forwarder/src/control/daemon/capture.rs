//! Captures: begun by the control thread, carried to their clients by the threads of the
//! connections.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Daemon, WORKER_TIMEOUT};
use crate::capture::ring::BLOCK;
use crate::capture::tap::SESSIONS_MAX;
use crate::capture::{Filter, RingReader, Session, Wanted, WantedPorts, ring};
use crate::control::api::{
    CaptureDirection, CaptureEnd, CaptureGrant, CapturePort, CaptureRequest, Response,
};
use crate::control::capture::Message;
use crate::control::server::{Answer, Follow};
use crate::io::af_xdp::AfXdp;
use crate::worker::TapHandle;

/// How often is looked for copies. Workers do not tell: that would cost them a system call.
const LOOK_MS: u16 = 5;
/// Octets of packets in one message, about: those of all workers that came in one look.
const MESSAGE: usize = 8 << 20;
/// Memory of one capture on one worker at most, in KiB.
const BUFFER_KIB_MAX: u32 = 1 << 20;
/// How long a stopping daemon waits for clients to take what was captured.
const LAST_COPIES: Duration = Duration::from_millis(500);

/// What the captures that run have in common.
#[derive(Debug)]
struct Shared {
    running: AtomicUsize,
    /// As the control thread has them; all of them, whichever are captured.
    ports: ArcSwap<Vec<CapturePort>>,
}

/// The control thread's hold on captures.
#[derive(Debug)]
pub(super) struct Captures {
    shared: Arc<Shared>,
    next_id: u64,
}

impl Captures {
    /// None.
    pub(super) fn new() -> Captures {
        let shared = Shared { running: AtomicUsize::new(0), ports: ArcSwap::default() };
        Captures { shared: Arc::new(shared), next_id: 0 }
    }

    /// Waits for clients to take what the workers, which have ended, have copied.
    pub(super) fn finish(&self) {
        let end = Instant::now() + LAST_COPIES;
        while self.shared.running.load(Relaxed) > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(u64::from(LOOK_MS)));
        }
    }
}

impl Daemon {
    /// Tells running captures of ports that are gone, back, or have another name.
    pub(super) fn tell_captures(&self) {
        let ports = &self.captures.shared.ports;
        let now = self.capture_ports();
        if **ports.load() != now {
            ports.store(Arc::new(now));
        }
    }

    fn capture_ports(&self) -> Vec<CapturePort> {
        let port = |port: &super::Port| CapturePort {
            ifname: port.ifname.clone(),
            ifindex: port.ifindex,
            mac: port.mac(),
        };
        self.ports.iter().map(port).collect()
    }

    /// Begins a capture on every worker.
    pub(super) fn capture(&mut self, request: &CaptureRequest) -> Answer {
        match self.begin_capture(request) {
            Ok(stream) => {
                let grant = CaptureGrant {
                    ports: (**stream.shared.ports.load()).clone(),
                    pid: std::process::id(),
                };
                Answer::Follow(Response::Capture(grant), Box::new(stream))
            }
            Err(message) => Response::error(message).into(),
        }
    }

    fn begin_capture(&mut self, request: &CaptureRequest) -> Result<Stream, String> {
        let wanted = self.wanted(request)?;
        let blocks = buffer_blocks(request.buffer_kib)?;
        let running = self.captures.shared.running.load(Relaxed);
        if running >= SESSIONS_MAX {
            return Err(format!(
                "{running} captures run already, which is as many as there can be"
            ));
        }
        self.tell_captures();
        self.captures.next_id += 1;
        self.captures.shared.running.fetch_add(1, Relaxed);
        let mut stream = Stream {
            id: self.captures.next_id,
            taps: Vec::new(),
            rings: Vec::new(),
            shared: Arc::clone(&self.captures.shared),
        };
        for (n, worker) in self.workers.iter().enumerate() {
            let (writer, reader) = ring(blocks);
            let session = Session::new(stream.id, wanted.clone(), writer);
            stream.rings.push(reader);
            // Before it is asked: what it does after we have stopped waiting is to be undone, too.
            stream.taps.push(worker.taps());
            worker
                .taps()
                .attach(session, WORKER_TIMEOUT)
                .ok_or_else(|| format!("worker {n} does not take the capture; try again"))?;
        }
        Ok(stream)
    }

    fn wanted(&self, request: &CaptureRequest) -> Result<Wanted, String> {
        let names: Vec<&str> = self.ports.iter().map(|port| port.ifname.as_str()).collect();
        if let Some(stranger) = request.ports.iter().find(|name| !names.contains(&name.as_str())) {
            let links = self.links();
            let link = links.iter().find(|link| link.name == *stranger);
            if let Some((port, vlan)) =
                link.and_then(|link| Some((link.port?, link.vlan.as_ref()?)))
                && let Some(port) = names.get(usize::from(port))
            {
                let tags: Vec<String> =
                    vlan.tags.iter().map(|egress| format!("vlan {}", egress.tag.vid())).collect();
                return Err(format!(
                    "{stranger} is a VLAN of the port {port}: -i {port} {}",
                    tags.join(" and ")
                ));
            }
            return Err(format!(
                "{stranger} is not a port of the daemon; it has {}",
                names.join(", ")
            ));
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
}

fn buffer_blocks(kib: u32) -> Result<usize, String> {
    if kib == 0 || kib > BUFFER_KIB_MAX {
        return Err(format!("a buffer of {kib} KiB; 1 to {BUFFER_KIB_MAX} are possible"));
    }
    // Fewer than two would leave the worker without one while the other is read.
    Ok((kib as usize * 1024).div_ceil(BLOCK).max(2))
}

/// One capture's way from the workers to its client. The capture ends with it.
struct Stream {
    id: u64,
    taps: Vec<TapHandle<AfXdp>>,
    rings: Vec<RingReader>,
    shared: Arc<Shared>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.detach();
        self.shared.running.fetch_sub(1, Relaxed);
    }
}

impl Follow for Stream {
    /// Until the client has had enough, is gone, or the workers have ended.
    fn follow(mut self: Box<Self>, stream: &UnixStream) -> io::Result<()> {
        // A client that does not read is not cut off: it loses copies.
        stream.set_write_timeout(None)?;
        let mut ports = self.shared.ports.load_full();
        let (mut packets, mut stopping) = (Vec::new(), false);
        loop {
            stopping |= self.take(&mut packets);
            let more = !packets.is_empty();
            send(&mut packets, stream)?;
            let now = self.shared.ports.load_full();
            if !Arc::ptr_eq(&ports, &now) {
                Message::Ports((*now).clone()).write(stream)?;
                ports = now;
            }
            if stopping || has_left(stream, if more { 0 } else { LOOK_MS })? {
                break;
            }
        }
        self.detach();
        while !self.take(&mut packets) && !packets.is_empty() {
            send(&mut packets, stream)?;
        }
        send(&mut packets, stream)?;
        let sum = |of: fn(&RingReader) -> u64| self.rings.iter().map(of).sum();
        let (matched, lost) = (sum(RingReader::matched), sum(RingReader::lost));
        Message::End(CaptureEnd { matched, lost, stopping }).write(stream)
    }
}

impl Stream {
    fn detach(&mut self) {
        for tap in self.taps.drain(..) {
            // A worker that is gone has none.
            let _ = tap.detach(self.id, WORKER_TIMEOUT);
        }
    }

    /// Collects what the workers have handed over. Returns whether all of them have ended.
    fn take(&self, packets: &mut Vec<u8>) -> bool {
        let mut ended = !self.rings.is_empty();
        for ring in &self.rings {
            loop {
                match ring.read(|block| packets.extend_from_slice(block)) {
                    Ok(Some(())) if packets.len() < MESSAGE => {}
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
}

fn send(packets: &mut Vec<u8>, stream: &UnixStream) -> io::Result<()> {
    if !packets.is_empty() {
        Message::Packets(packets).write(stream)?;
        packets.clear();
    }
    Ok(())
}

/// Whether the client has closed its writing side, within `timeout_ms`.
fn has_left(mut stream: &UnixStream, timeout_ms: u16) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(timeout_ms)) {
        Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(false),
        // Whatever it says, it is not asked for.
        Ok(_) => Ok(stream.read(&mut [0; 64])? == 0),
        Err(errno) => Err(errno.into()),
    }
}
