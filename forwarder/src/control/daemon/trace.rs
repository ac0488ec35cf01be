//! Traces of packets: connection threads start them, and report what the workers recorded to their clients.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::capture::{LOOK_MS, WORKER_TIMEOUT, has_left};
use super::offload::{Offloads, Paused};
use super::relay::Relay;
use super::snapshot::Snapshot;
use super::trace_report::{References, report};
use crate::capture::Filter;
use crate::control::api::Response;
use crate::control::api::server::{Answer, Follow};
use crate::control::api::trace::{Message, PacketTrace, TraceEnd, TraceGrant, TraceRequest};
use crate::io::Driver;
use crate::netfilter::nft::Nft;
use crate::trace::ring::RECORDS_MAX;
use crate::trace::traces::TRACES_MAX;
use crate::trace::{Counts, RecordReader, ring};
use crate::worker::TraceHandle;

/// How long a worker may take to start a trace.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(2);
/// A client that does not read for this long is disconnected, which ends its trace.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stopping daemon waits for clients to read the last packets.
const LAST_TIMEOUT: Duration = Duration::from_millis(500);
/// Rulesets that a trace keeps to name rules of: those that were applied last.
const RULESETS: usize = 4;

/// Starts traces and counts those that run.
#[derive(Debug, Default)]
pub(super) struct RunningTraces {
    running: Arc<AtomicUsize>,
    next_id: AtomicU64,
}

impl RunningTraces {
    /// Waits until clients have read what the workers, which have ended, recorded.
    pub(super) fn finish(&self) {
        let end = Instant::now() + LAST_TIMEOUT;
        while self.running.load(Relaxed) > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(u64::from(LOOK_MS)));
        }
    }
}

impl Relay {
    /// Starts a trace on every worker.
    pub(super) fn trace(&self, request: &TraceRequest) -> Answer {
        let snapshot = self.snapshot();
        match self.begin_trace(&snapshot, request) {
            Ok(stream) => {
                let ports = snapshot.listed().map(|port| port.ifname.clone()).collect();
                Answer::Follow(Response::Trace(TraceGrant { ports }), Box::new(stream))
            }
            Err(message) => Response::error(message).into(),
        }
    }

    fn begin_trace(&self, snapshot: &Snapshot, request: &TraceRequest) -> Result<Stream, String> {
        let filter = match &request.filter[..] {
            [] => None,
            insns => Some(Filter::new(insns).map_err(|error| error.to_string())?),
        };
        if request.packets == 0 {
            return Err("a trace of 0 packets; must be at least 1".to_owned());
        }
        let traces = &self.view.traces;
        let more = |running| (running < TRACES_MAX).then_some(running + 1);
        traces
            .running
            .fetch_update(Relaxed, Relaxed, more)
            .map_err(|running| format!("{running} traces are running, which is the maximum"))?;
        let mut stream = Stream {
            id: traces.next_id.fetch_add(1, Relaxed),
            _paused: snapshot.offloads.as_ref().map(Offloads::pause),
            handles: Vec::new(),
            readers: Vec::new(),
            counts: Counts::new(request.packets),
            left: request.packets,
            traced: 0,
            relay: self.clone(),
            rulesets: snapshot.nft.iter().cloned().collect(),
            unknown: 0,
            running: Arc::clone(&traces.running),
        };
        stream.attach(snapshot, filter.as_ref())?;
        Ok(stream)
    }
}

/// One trace, from the workers to its client. Dropping it ends the trace.
struct Stream {
    id: u64,
    handles: Vec<TraceHandle<Driver>>,
    /// By worker.
    readers: Vec<RecordReader>,
    counts: Arc<Counts>,
    /// Packets that the client still wants.
    left: u64,
    traced: u64,
    relay: Relay,
    /// Those that were applied last, the newest one last.
    rulesets: Vec<Arc<Nft>>,
    /// The last one that was applied and not found; 0: none.
    unknown: u64,
    running: Arc<AtomicUsize>,
    /// All packets pass the workers meanwhile.
    _paused: Option<Paused>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.detach(WORKER_TIMEOUT);
        self.readers.clear();
        self.running.fetch_sub(1, Relaxed);
    }
}

impl Follow for Stream {
    /// Reports packets until there are enough, the client closes its writing side or is gone, or the workers have
    /// ended.
    fn follow(mut self: Box<Self>, stream: &UnixStream) -> io::Result<()> {
        stream.set_write_timeout(Some(READ_TIMEOUT))?;
        let mut stopping = false;
        while self.left > 0 && !stopping {
            let sent;
            (sent, stopping) = self.send(stream)?;
            if has_left(stream, if sent > 0 { 0 } else { LOOK_MS })? {
                break;
            }
        }
        self.detach(WORKER_TIMEOUT);
        while self.left > 0 && self.send(stream)?.0 > 0 {}
        write(stream, &Message::End(TraceEnd { missed: self.counts.missed(), stopping }))
    }
}

impl Stream {
    /// Attaches the trace to every worker. After a failure, dropping the stream detaches it.
    fn attach(&mut self, snapshot: &Snapshot, filter: Option<&Filter>) -> Result<(), String> {
        let until = Instant::now() + ATTACH_TIMEOUT;
        let records = usize::try_from(self.left).unwrap_or(RECORDS_MAX);
        for (n, worker) in snapshot.workers.iter().enumerate() {
            let (session, reader) = ring(self.id, filter.cloned(), records, &self.counts);
            self.readers.push(reader);
            // Added before the request is sent, so that an attach that completes after the time-out is undone, too.
            self.handles.push(worker.traces());
            worker
                .traces()
                .attach(session, until.saturating_duration_since(Instant::now()))
                .ok_or_else(|| format!("worker {n} does not take the trace; try again"))?;
        }
        Ok(())
    }

    /// Detaches it from every worker; `timeout` is per worker.
    fn detach(&mut self, timeout: Duration) {
        for handle in self.handles.drain(..) {
            // A worker that has ended has no trace.
            let _ = handle.detach(self.id, timeout);
        }
    }

    /// Reports what the workers have recorded, oldest first. Returns the number of packets, and whether all workers
    /// have ended.
    fn send(&mut self, stream: &UnixStream) -> io::Result<(usize, bool)> {
        let (mut packets, mut ended) = (Vec::new(), !self.readers.is_empty());
        let readers = std::mem::take(&mut self.readers);
        for (worker, reader) in readers.iter().enumerate() {
            // As many as a worker can have recorded before this began.
            for _ in 0..RECORDS_MAX {
                match reader.read(|record| self.report(record, worker as u32)) {
                    Ok(Some(packet)) => packets.push(packet),
                    Ok(None) => {
                        ended = false;
                        break;
                    }
                    Err(_) => break,
                }
            }
        }
        self.readers = readers;
        packets.sort_by_key(|packet: &PacketTrace| packet.tstamp_ns);
        let count = packets.len();
        for mut packet in packets {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            self.traced += 1;
            packet.packet = self.traced;
            write(stream, &Message::Packet(Box::new(packet)))?;
        }
        Ok((count, ended && count == 0))
    }

    fn report(&mut self, record: &crate::trace::Record, worker: u32) -> PacketTrace {
        let nft = self.ruleset(record.nft);
        let tables = self.relay.view.tables.load();
        report(record, worker, &References { tables: &tables, nft: nft.as_deref() })
    }

    /// The ruleset with this number, if it is applied now or was applied shortly before.
    fn ruleset(&mut self, id: u64) -> Option<Arc<Nft>> {
        let find = |rulesets: &[Arc<Nft>]| rulesets.iter().find(|nft| nft.id() == id).cloned();
        let known = find(&self.rulesets);
        if known.is_some() || id == 0 || id == self.unknown {
            return known;
        }
        if let Some(newest) = self.relay.snapshot().nft.clone() {
            if self.rulesets.len() == RULESETS {
                self.rulesets.remove(0);
            }
            self.rulesets.push(newest);
        }
        let found = find(&self.rulesets);
        if found.is_none() {
            self.unknown = id;
        }
        found
    }
}

/// Writes a message. After a time-out nothing is written again: that would take as long once more.
fn write(mut stream: &UnixStream, message: &Message) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}
