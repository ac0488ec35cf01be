//! Counts lost, duplicated and reordered packets of generators by the headers of those received.
//!
//! A stream is what one thread of one generator sends, identified by source MAC and thread number. Two
//! generators behind one router have the same source MAC: give each its own sink.

use std::collections::HashMap;

use hdrhistogram::Histogram;
use serde::Serialize;
use xdp_prog::load::MAGIC;

use crate::wire::{EtherType, EthernetFrame, Ipv4Packet, Ipv6Packet, Protocol, UdpPacket, VlanTag};

/// A packet that arrives this many sequence numbers or more behind the highest counts as late: whether it is
/// a duplicate is not known any more.
const WINDOW: u64 = 1 << 16;
/// A stream whose first packet has a number up to this counts as seen from its start.
const FROM_START: u64 = WINDOW;
/// Maximum number of streams. Each takes 8 KiB.
const STREAMS_MAX: usize = 4096;
/// Octets of pktgen's header.
const HEADER: usize = 16;

/// Contents of a packet's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    stream: ([u8; 6], u16),
    sequence: u32,
    /// When it was sent, µs of CLOCK_REALTIME; 0: not given.
    sent_us: u64,
}

/// Counters of the received load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Packets received, each counted once.
    pub received: u64,
    /// Their octets, without the FCS.
    pub octets: u64,
    /// Sequence numbers missing between the first and the highest received. Packets missing at the end of a
    /// stream, after the last one received, cannot be known.
    pub lost: u64,
    /// Packets received again.
    pub duplicated: u64,
    /// Packets received after one with a higher sequence number (RFC 4737).
    pub reordered: u64,
    /// Packets so far behind that they may already have been counted; they are in no other counter.
    pub late: u64,
    /// Streams seen.
    pub streams: u64,
    /// How often a stream started over.
    pub restarts: u64,
}

/// Tracks the streams.
#[derive(Debug)]
pub struct Tracker {
    streams: HashMap<([u8; 6], u16), Stream>,
    tally: Tally,
    latency: Histogram<u64>,
    corrected: Option<Corrected>,
}

#[derive(Debug)]
struct Corrected {
    /// Time from one packet of a stream to the next.
    interval_ns: f64,
    latency: Histogram<u64>,
}

#[derive(Debug)]
struct Stream {
    /// Lowest sequence number that counts as lost if missing.
    first: u64,
    highest: u64,
    /// Send time of the packet with the highest number.
    highest_us: u64,
    received: u64,
    /// One bit for each of the last [`WINDOW`] numbers, at the number modulo the window.
    bits: Box<[u64]>,
    /// A sequence number and when it was due, in ns of CLOCK_REALTIME.
    due: Option<(u64, f64)>,
}

impl Tracker {
    /// No streams yet. `interval_ns` is the time between two packets of a stream if the generator had a
    /// rate: latency is then also measured from when a packet was due.
    pub fn new(interval_ns: Option<f64>) -> Tracker {
        let corrected =
            |interval_ns| Corrected { interval_ns, latency: crate::histogram::histogram() };
        Tracker {
            streams: HashMap::new(),
            tally: Tally::default(),
            latency: crate::histogram::histogram(),
            corrected: interval_ns.map(corrected),
        }
    }

    /// Takes a frame received at `now_ns` of CLOCK_REALTIME. Returns false if it has no pktgen header.
    pub fn take(&mut self, frame: &[u8], now_ns: u64) -> bool {
        let Some(seen) = parse(frame) else { return false };
        if self.streams.len() == STREAMS_MAX && !self.streams.contains_key(&seen.stream) {
            self.tally.late += 1;
            return true;
        }
        let stream = self.streams.entry(seen.stream).or_insert_with(|| Stream::new(seen));
        match stream.place(seen) {
            Placed::New => {}
            Placed::Behind => self.tally.reordered += 1,
            Placed::Again => {
                self.tally.duplicated += 1;
                return true;
            }
            Placed::Late => {
                self.tally.late += 1;
                return true;
            }
            Placed::Restart => {
                self.tally.lost += stream.lost();
                self.tally.restarts += 1;
                *stream = Stream::new(seen);
                stream.place(seen);
            }
        }
        self.tally.received += 1;
        self.tally.octets += frame.len() as u64;
        if seen.sent_us != 0 {
            let sent_ns = seen.sent_us * 1000;
            // If the clock was set back, the latency is 0 and not negative.
            self.latency.saturating_record(now_ns.saturating_sub(sent_ns));
            if let Some(corrected) = &mut self.corrected {
                let number = stream.extend(seen.sequence).unwrap_or(stream.highest);
                let due_ns = stream.due(number, sent_ns as f64, corrected.interval_ns);
                corrected.latency.saturating_record((now_ns as f64 - due_ns).max(0.0) as u64);
            }
        }
        true
    }

    /// The counters so far.
    pub fn tally(&self) -> Tally {
        let lost: u64 = self.streams.values().map(Stream::lost).sum();
        let streams = self.streams.len() as u64;
        Tally { lost: self.tally.lost + lost, streams, ..self.tally }
    }

    /// Latency from sending to receiving, in ns with a resolution of 1 µs.
    pub fn latency(&self) -> &Histogram<u64> {
        &self.latency
    }

    /// Latency from when packets were due, which differs if the generator was delayed; only if it had a
    /// rate.
    pub fn corrected(&self) -> Option<&Histogram<u64>> {
        self.corrected.as_ref().map(|corrected| &corrected.latency)
    }
}

enum Placed {
    New,
    Behind,
    Again,
    Late,
    Restart,
}

impl Stream {
    fn new(seen: Seen) -> Stream {
        let sequence = u64::from(seen.sequence);
        Stream {
            first: if sequence <= FROM_START { sequence.min(1) } else { sequence },
            // Room for lower numbers.
            highest: sequence,
            highest_us: seen.sent_us,
            received: 0,
            bits: vec![0; (WINDOW / 64) as usize].into(),
            due: None,
        }
    }

    /// Extends a packet's 32-bit number to the 64-bit number closest to the highest.
    fn extend(&self, sequence: u32) -> Option<u64> {
        let ahead = sequence.wrapping_sub(self.highest as u32).cast_signed();
        self.highest.checked_add_signed(i64::from(ahead))
    }

    fn place(&mut self, seen: Seen) -> Placed {
        if self.received == 0 {
            self.mark(self.highest);
            self.received = 1;
            return Placed::New;
        }
        // A packet sent later with a lower number comes from a restarted generator.
        let later = seen.sent_us > self.highest_us;
        let number = match self.extend(seen.sequence) {
            Some(number) if number > self.highest => {
                self.advance(number);
                self.highest_us = seen.sent_us;
                self.received += 1;
                return Placed::New;
            }
            _ if later => return Placed::Restart,
            Some(number) => number,
            None => return Placed::Late,
        };
        if number < self.first || self.highest - number >= WINDOW {
            return Placed::Late;
        }
        if self.mark(number) {
            return Placed::Again;
        }
        self.received += 1;
        Placed::Behind
    }

    fn advance(&mut self, number: u64) {
        if number - self.highest >= WINDOW {
            self.bits.fill(0);
        } else {
            for skipped in self.highest + 1..=number {
                let at = skipped % WINDOW;
                self.bits[(at / 64) as usize] &= !(1 << (at % 64));
            }
        }
        self.highest = number;
        self.mark(number);
    }

    /// Marks a number. Returns whether it was marked before.
    fn mark(&mut self, number: u64) -> bool {
        let at = number % WINDOW;
        let word = &mut self.bits[(at / 64) as usize];
        let before = *word >> (at % 64) & 1 == 1;
        *word |= 1 << (at % 64);
        before
    }

    fn lost(&self) -> u64 {
        (self.highest - self.first + 1).saturating_sub(self.received)
    }

    /// When a packet was due. A packet that was sent before it was due shows that the schedule is earlier:
    /// the schedule so far was derived from delayed packets.
    fn due(&mut self, number: u64, sent_ns: f64, interval_ns: f64) -> f64 {
        let due = self
            .due
            .map_or(sent_ns, |(from, due_ns)| due_ns + (number as f64 - from as f64) * interval_ns);
        let due = due.min(sent_ns);
        self.due = Some((number, due));
        due
    }
}

fn parse(frame: &[u8]) -> Option<Seen> {
    let eth = EthernetFrame::new_checked(frame).ok()?;
    let (kind, l3) = match eth.ethertype() {
        EtherType::VLAN => {
            let tag = VlanTag::new_checked(frame.get(14..)?).ok()?;
            (tag.ethertype(), frame.get(18..)?)
        }
        kind => (kind, frame.get(14..)?),
    };
    let l4 = if kind == EtherType::IPV4 {
        let packet = Ipv4Packet::new_checked(l3).ok()?;
        let whole = packet.protocol() == Protocol::UDP && !packet.is_fragment();
        let whole = whole && packet.version() == 4;
        l3.get(packet.header_len()..).filter(|_| whole)?
    } else {
        let packet = Ipv6Packet::new_checked(l3).ok()?;
        let ours = kind == EtherType::IPV6 && packet.version() == 6;
        let ours = ours && packet.next_header() == Protocol::UDP;
        l3.get(40..).filter(|_| ours)?
    };
    let udp = UdpPacket::new_checked(l4).ok()?;
    let payload = udp.payload();
    let word =
        |at: usize| payload.get(at..)?.first_chunk().map(|octets| u32::from_be_bytes(*octets));
    if word(0)? != MAGIC {
        return None;
    }
    let thread = payload.get(HEADER..HEADER + 2).map_or(0, |t| u16::from_be_bytes([t[0], t[1]]));
    let (second, microsecond) = (u64::from(word(8)?), u64::from(word(12)?));
    Some(Seen {
        stream: (eth.src_addr().0, thread),
        sequence: word(4)?,
        sent_us: second * 1_000_000 + microsecond,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Pace, Traffic, frame};

    const START_US: u64 = 1_700_000_000_000_000;

    /// Packet number `n`, from 0, of a thread, sent `at` µs after the start.
    fn packet(thread: usize, n: u64, at: u64) -> Vec<u8> {
        let ip = |text: &str| text.parse().expect("an address");
        let traffic = Traffic::new([2, 0, 0, 0, 0, 2], ip("10.0.0.1"), ip("10.0.0.2"));
        let pace = Pace { threads: 4, ..Pace::default() };
        let config = traffic.configs(&pace, [2, 0, 0, 0, 0, 1]).expect("can be sent")[thread];
        let mut octets = vec![0; 60];
        let us = START_US + at;
        frame::write(&config, n, ((us / 1_000_000) as u32, (us % 1_000_000) as u32), &mut octets);
        octets
    }

    fn tracked(packets: &[(usize, u64, u64)]) -> Tally {
        let mut tracker = Tracker::new(None);
        for (thread, n, at) in packets {
            assert!(tracker.take(&packet(*thread, *n, *at), (START_US + at) * 1000));
        }
        tracker.tally()
    }

    #[test]
    fn gaps_are_lost_and_late_packets_are_reordered() {
        let tally = tracked(&[(0, 0, 0), (0, 1, 1), (0, 5, 5), (0, 3, 3), (0, 6, 6)]);
        assert_eq!((tally.received, tally.lost), (5, 2));
        assert_eq!((tally.reordered, tally.duplicated, tally.late), (1, 0, 0));
    }

    #[test]
    fn losses_at_the_start_count_and_duplicates_count_once() {
        let tally = tracked(&[(0, 2, 2), (0, 3, 3), (0, 2, 2), (0, 3, 3), (0, 1, 1)]);
        assert_eq!((tally.received, tally.lost), (3, 1));
        assert_eq!((tally.reordered, tally.duplicated), (1, 2));
    }

    #[test]
    fn packets_before_a_late_sink_started_are_not_lost() {
        let tally = tracked(&[(0, 1_000_000, 0), (0, 1_000_002, 2)]);
        assert_eq!((tally.received, tally.lost), (2, 1));
    }

    #[test]
    fn each_thread_has_its_own_sequence_numbers() {
        let tally = tracked(&[(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 1), (2, 2, 2)]);
        assert_eq!((tally.streams, tally.received, tally.lost), (3, 5, 1));
        assert_eq!((tally.reordered, tally.duplicated), (0, 0));
    }

    #[test]
    fn a_restarted_generator_sends_no_duplicates() {
        let tally = tracked(&[(0, 0, 0), (0, 1, 1), (0, 3, 3), (0, 0, 9), (0, 1, 10)]);
        assert_eq!((tally.restarts, tally.received, tally.lost), (1, 5, 1));
        assert_eq!((tally.reordered, tally.duplicated), (0, 0));
    }

    #[test]
    fn numbers_continue_after_32_bits_and_beyond_the_window() {
        let end = u64::from(u32::MAX);
        let tally =
            tracked(&[(0, end - 3, 0), (0, end + 1, 4), (0, end, 3), (0, end + 200_001, 9)]);
        assert_eq!((tally.received, tally.reordered, tally.restarts), (4, 1, 0));
        assert_eq!(tally.lost, 200_005 - 4);
        let late = tracked(&[(0, 70_000, 0), (0, 70_001 + WINDOW, 2), (0, 70_001, 1)]);
        assert_eq!((late.late, late.received), (1, 2));
    }

    #[test]
    fn latency_is_from_the_timestamp_and_corrected_from_the_due_time() {
        // Every 10 µs; the generator was delayed by 40 µs before the third packet, and then caught up.
        let mut tracker = Tracker::new(Some(10_000.0));
        for (n, at) in [(0, 0), (1, 10), (2, 60), (3, 60), (4, 60), (5, 60), (6, 60), (7, 70)] {
            tracker.take(&packet(0, n, at), (START_US + at + 5) * 1000);
        }
        assert_eq!(tracker.latency().len(), 8);
        assert_eq!(tracker.latency().max() / 1000, 5);
        let corrected = tracker.corrected().expect("it had a rate");
        let us: Vec<u64> =
            corrected.iter_recorded().map(|v| v.value_iterated_to() / 1000).collect();
        assert_eq!(us, [5, 15, 25, 35, 45]);
    }

    #[test]
    fn a_delayed_first_packet_does_not_shift_the_schedule() {
        let mut tracker = Tracker::new(Some(10_000.0));
        for (n, at) in [(0, 50), (1, 50), (2, 50), (3, 50), (4, 50), (5, 50), (6, 60)] {
            tracker.take(&packet(0, n, at), (START_US + at + 5) * 1000);
        }
        // The due times cannot be derived from the delayed packets alone.
        let corrected = tracker.corrected().expect("it had a rate");
        assert_eq!((corrected.min() / 1000, corrected.max() / 1000), (5, 5));
    }

    #[test]
    fn other_frames_are_recognised() {
        let mut tracker = Tracker::new(None);
        let good = packet(0, 0, 0);
        for len in 0..58 {
            assert!(!tracker.take(&good[..len], 0), "{len}");
        }
        for at in [12, 14, 23, 42, 45] {
            let mut bad = good.clone();
            bad[at] ^= 0x80;
            assert!(!tracker.take(&bad, 0), "octet {at}");
        }
        assert_eq!(tracker.tally(), Tally::default());
    }
}
