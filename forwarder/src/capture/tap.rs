//! The capture points of a worker.
//!
//! A packet is captured as it was received, before the pipeline; as it is put on a TX ring; and as it was
//! when it was dropped, with the reason. Frames that a driver could not take from its RX ring are not
//! captured, nor are those that the XDP program passes to the kernel.
//!
//! Without captures, the cost is one comparison: [`Tap::is_on`].

use super::filter::{Filter, Verdict};
use super::record::{Mark, kind};
use super::ring::{RingIn, RingWriter, Stamp};
use crate::skb::{MAX_JUMBO, SkBuff};
use crate::stats::{DropReason, WorkerStats};

/// Maximum number of concurrent captures.
pub const SESSIONS_MAX: usize = 8;

/// Drop reasons of drivers on output; the first whose counter has changed is reported.
const TX_REASONS: [DropReason; 5] = [
    DropReason::DevNotReady,
    DropReason::FullRing,
    DropReason::EthTruncated,
    DropReason::TxMultiBuffer,
    DropReason::TxError,
];

/// Selection of the packets of a capture.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// `None`: every port.
    pub ports: Option<WantedPorts>,
    /// Received packets.
    pub received: bool,
    /// Sent packets.
    pub sent: bool,
    /// Dropped packets.
    pub dropped: bool,
    /// Maximum number of octets kept of each.
    pub snaplen: usize,
    /// The filter; `None`: all packets.
    pub filter: Option<Filter>,
}

/// The selected ports of a capture.
#[derive(Debug, Clone)]
pub struct WantedPorts {
    names: Vec<String>,
    /// By port, whether its name is one of the names.
    by_port: Vec<bool>,
}

impl WantedPorts {
    /// Selects the ports with these names among `ports`, the names of the existing ports.
    pub fn new<'a>(names: &[String], ports: impl Iterator<Item = &'a str>) -> WantedPorts {
        let by_port = ports.map(|port| names.iter().any(|name| name == port)).collect();
        WantedPorts { names: names.to_vec(), by_port }
    }

    fn name_port(&mut self, port: u16, name: &str) {
        let port = usize::from(port);
        if port >= self.by_port.len() {
            self.by_port.resize(port + 1, false);
        }
        self.by_port[port] = self.names.iter().any(|wanted| wanted == name);
    }
}

/// One capture on one worker.
#[derive(Debug)]
pub struct Session {
    id: u64,
    wanted: Wanted,
    ring: RingWriter,
}

/// A worker's captures.
#[derive(Debug, Default)]
pub struct Tap {
    /// At most [`SESSIONS_MAX`], for which room is allocated.
    sessions: Vec<Session>,
    /// The driver's drop counters before it was given packets to send.
    before: TxDrops,
    /// A multi-buffer packet as one slice, for a filter that reads beyond the first frame.
    scratch: Vec<u8>,
    /// How often a port number was assigned to another interface.
    naming: u64,
}

impl Session {
    /// Its identifier.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// A capture whose copies go into `ring`. `id` identifies it.
    pub fn new(id: u64, wanted: Wanted, ring: RingIn) -> Session {
        let mut ring = ring.0;
        ring.snaplen = wanted.snaplen;
        Session { id, wanted, ring }
    }

    #[inline]
    fn wants_port(&self, port: u16) -> bool {
        let ports = self.wanted.ports.as_ref();
        let wants = |ports: &WantedPorts| ports.by_port.get(usize::from(port)).copied();
        ports.is_none_or(|ports| wants(ports).unwrap_or(false))
    }

    /// Whether it captures a packet. `bit`: its own in `unmatched_captures`.
    #[inline(always)]
    fn concerns(&self, skb: &SkBuff, packet: &[u8], bit: u8, scratch: &mut Vec<u8>) -> bool {
        let filter = self.wanted.filter.as_ref();
        skb.unmatched_captures() & bit == 0
            && filter.is_none_or(|filter| filter.judge_skb(packet, skb, scratch) == Verdict::Match)
    }
}

impl Tap {
    /// No capture.
    pub fn new() -> Tap {
        Tap {
            sessions: Vec::with_capacity(SESSIONS_MAX),
            before: Default::default(),
            scratch: Vec::with_capacity(MAX_JUMBO),
            naming: 0,
        }
    }

    /// Whether anything is captured.
    #[inline]
    pub fn is_on(&self) -> bool {
        !self.sessions.is_empty()
    }

    /// Begins a capture; returns it when there are [`SESSIONS_MAX`] already.
    pub fn attach(&mut self, mut session: Session) -> Option<Session> {
        if self.sessions.len() == SESSIONS_MAX {
            return Some(session);
        }
        session.ring.begin_naming(self.naming);
        self.sessions.push(session);
        None
    }

    /// Ends a capture. Its copies are handed over when the session is dropped, which frees memory.
    pub fn detach(&mut self, id: u64) -> Option<Session> {
        let at = self.sessions.iter().position(|session| session.id == id)?;
        Some(self.sessions.remove(at))
    }

    /// Records that a port is another interface from now on: captures select it by its new name.
    /// `naming`: how often that has happened; readers get it with later records.
    pub fn name_port(&mut self, port: u16, name: &str, naming: u64) {
        self.naming = naming;
        for session in &mut self.sessions {
            session.ring.begin_naming(naming);
            if let Some(ports) = &mut session.wanted.ports {
                ports.name_port(port, name);
            }
        }
    }

    /// Captures packets received on one port.
    pub fn received(&mut self, packets: &mut [SkBuff]) {
        let Some(port) = packets.first().map(|skb| skb.port) else { return };
        let mut stamp = Stamp::default();
        for (n, session) in self.sessions.iter_mut().enumerate() {
            if !session.wanted.received || !session.wants_port(port) {
                continue;
            }
            for some in packets.chunks_mut(64) {
                let (matched, for_good) = match &session.wanted.filter {
                    Some(filter) => filter.run_burst(some, &mut self.scratch),
                    None => (u64::MAX, 0),
                };
                match for_good {
                    0 => {}
                    _ if for_good.count_ones() as usize == some.len() => {
                        some.iter_mut().for_each(|skb| skb.note_unmatched(1 << n));
                    }
                    _ => {
                        for (at, skb) in some.iter_mut().enumerate() {
                            skb.note_unmatched(((for_good >> at & 1) as u8) << n);
                        }
                    }
                }
                if matched != 0 {
                    for (_, skb) in some.iter().enumerate().filter(|(at, _)| matched >> at & 1 == 1)
                    {
                        session.ring.push(&mut stamp, skb.data(), skb, Mark::new(port, kind::IN));
                    }
                }
            }
        }
    }

    /// Copies packets that are about to be given to the driver of `port`, which will certainly take the
    /// first `certain` of them. [`Tap::left`] must follow.
    pub fn leaving(&mut self, port: u16, packets: &[SkBuff], certain: usize, stats: &WorkerStats) {
        let mut stamp = Stamp::default();
        let (sure, unsure) = packets.split_at(certain.min(packets.len()));
        if !unsure.is_empty() {
            self.before = TxDrops::of(stats);
        }
        for (n, session) in self.sessions.iter_mut().enumerate() {
            if !session.wants_port(port) {
                continue;
            }
            let bit = 1 << n;
            if session.wanted.sent {
                for skb in sure {
                    if session.concerns(skb, skb.data(), bit, &mut self.scratch) {
                        session.ring.push(&mut stamp, skb.data(), skb, Mark::new(port, kind::OUT));
                    }
                }
            }
            if !unsure.is_empty() && (session.wanted.sent || session.wanted.dropped) {
                session.ring.begin_unsettled();
                for (skb, place) in unsure.iter().zip(certain as u32..) {
                    if session.concerns(skb, skb.data(), bit, &mut self.scratch) {
                        let mark = Mark { place, ..Mark::new(port, kind::LEAVING) };
                        session.ring.push(&mut stamp, skb.data(), skb, mark);
                    }
                }
            }
        }
    }

    /// Settles the copies: the driver took the first `put` packets, and dropped the others.
    pub fn left(&mut self, put: usize, stats: &WorkerStats) {
        let before = self.before;
        let reason = || before.reason(stats) as u8;
        for Session { wanted, ring, .. } in &mut self.sessions {
            ring.settle(|place| match (place as usize) < put {
                true if wanted.sent => (kind::OUT, 0),
                false if wanted.dropped => (kind::DROP, reason()),
                _ => (kind::VOID, 0),
            });
        }
    }

    /// Captures packets for `port` that were dropped before they were given to a driver.
    #[cold]
    pub fn refused(&mut self, port: u16, packets: &[SkBuff], reason: DropReason) {
        let mut stamp = Stamp::default();
        for (n, session) in self.sessions.iter_mut().enumerate() {
            if !session.wanted.dropped || !session.wants_port(port) {
                continue;
            }
            for skb in packets {
                if session.concerns(skb, skb.data(), 1 << n, &mut self.scratch) {
                    let mark = Mark { reason: reason as u8, ..Mark::new(port, kind::DROP) };
                    session.ring.push(&mut stamp, skb.data(), skb, mark);
                }
            }
        }
    }

    /// Captures a dropped packet.
    #[cold]
    pub fn dropped(&mut self, skb: &SkBuff, reason: DropReason) {
        let mut stamp = Stamp::default();
        for (n, session) in self.sessions.iter_mut().enumerate() {
            if !session.wanted.dropped || !session.wants_port(skb.port) {
                continue;
            }
            let packet = skb.mac_header();
            if session.concerns(skb, packet, 1 << n, &mut self.scratch) {
                let mark = Mark { reason: reason as u8, ..Mark::new(skb.port, kind::DROP) };
                session.ring.push(&mut stamp, packet, skb, mark);
            }
        }
    }

    /// At the end of an iteration: hands over records for which readers wait.
    pub fn hand_over(&mut self) {
        self.sessions.iter_mut().for_each(|session| session.ring.hand_over());
    }
}

/// Drop counters of drivers on output, from which the reason of a drop is found.
#[derive(Debug, Clone, Copy, Default)]
pub struct TxDrops([u64; TX_REASONS.len()]);

impl TxDrops {
    /// The counters now.
    pub fn of(stats: &WorkerStats) -> TxDrops {
        TxDrops(TX_REASONS.map(|reason| stats.drops[reason as usize].get()))
    }

    /// The first reason whose counter has changed since.
    pub fn reason(&self, stats: &WorkerStats) -> DropReason {
        let now = TxDrops::of(stats).0;
        let moved = now.into_iter().zip(self.0).position(|(now, was)| now != was);
        TX_REASONS[moved.unwrap_or(0)]
    }
}
