//! The format of one copy: a header of 24 octets, then the kept octets of the packet. All numbers are
//! little-endian.
//!
//! | octets | |
//! | --- | --- |
//! | 0–7 | time of the copy, nanoseconds since 1970 UTC |
//! | 8–11 | length of the packet, octets |
//! | 12–15 | number of its octets that follow |
//! | 16–17 | port, the router's port number |
//! | 18 | [`Kind`] |
//! | 19 | number of the [`DropReason`], for a drop |
//! | 20–23 | position in its burst, until it is known whether the packet was sent |

use crate::stats::DropReason;

/// Length of a header, octets.
pub const HEAD: usize = 24;

/// The capture point of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Received.
    In,
    /// Put on a TX ring.
    Out,
    /// Dropped; copied as it was then.
    Drop(DropReason),
}

/// Octet 18.
pub(super) mod kind {
    /// Cancelled: not to be shown.
    pub const VOID: u8 = 0;
    pub const IN: u8 = 1;
    pub const OUT: u8 = 2;
    pub const DROP: u8 = 3;
    /// About to be put on a TX ring.
    pub const LEAVING: u8 = 4;
}

/// The metadata of a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub port: u16,
    pub kind: u8,
    pub reason: u8,
    pub place: u32,
}

impl Mark {
    pub(super) fn new(port: u16, kind: u8) -> Mark {
        Mark { port, kind, reason: 0, place: 0 }
    }
}

/// A header, as the worker writes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub tstamp_ns: u64,
    pub len: u32,
    pub kept: u32,
    pub mark: Mark,
}

impl Head {
    #[inline]
    pub(super) fn to_octets(self) -> [u8; HEAD] {
        let mut octets = [0; HEAD];
        octets[..8].copy_from_slice(&self.tstamp_ns.to_le_bytes());
        octets[8..12].copy_from_slice(&self.len.to_le_bytes());
        octets[12..16].copy_from_slice(&self.kept.to_le_bytes());
        octets[16..18].copy_from_slice(&self.mark.port.to_le_bytes());
        octets[18] = self.mark.kind;
        octets[19] = self.mark.reason;
        octets[20..].copy_from_slice(&self.mark.place.to_le_bytes());
        octets
    }

    pub(super) fn of(octets: &[u8; HEAD]) -> Head {
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| octets[at + n]));
        Head {
            tstamp_ns: u64::from(u32_at(0)) | u64::from(u32_at(4)) << 32,
            len: u32_at(8),
            kept: u32_at(12),
            mark: Mark {
                port: u16::from_le_bytes([octets[16], octets[17]]),
                kind: octets[18],
                reason: octets[19],
                place: u32_at(20),
            },
        }
    }
}

/// Resolves the records from `start` on that are [`kind::LEAVING`]: `resolve` returns kind and reason for
/// the position in the burst. Returns the number of cancelled records.
pub(super) fn settle(block: &mut [u8], start: usize, resolve: impl Fn(u32) -> (u8, u8)) -> u64 {
    let (mut at, mut void) = (start, 0);
    while let Some(octets) = block.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<HEAD>()) {
        let head = Head::of(octets);
        if head.mark.kind == kind::LEAVING {
            (octets[18], octets[19]) = resolve(head.mark.place);
            void += u64::from(octets[18] == kind::VOID);
        }
        at += HEAD + head.kept as usize;
    }
    void
}

/// Appends the records of a block to `to`, without those of ports that are not to be kept. Returns the
/// number of packets left out.
pub fn keep_ports(block: &[u8], to: &mut Vec<u8>, keep: impl Fn(u16) -> bool) -> u64 {
    let (mut rest, mut left_out) = (block, 0);
    while let Some(octets) = rest.first_chunk::<HEAD>() {
        let Head { kept, mark, .. } = Head::of(octets);
        let Some((record, behind)) = rest.split_at_checked(HEAD + kept as usize) else { break };
        match keep(mark.port) {
            true => to.extend_from_slice(record),
            false => left_out += u64::from(mark.kind != kind::VOID),
        }
        rest = behind;
    }
    left_out
}

/// A copy read from a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Time of the copy, nanoseconds since 1970 UTC.
    pub tstamp_ns: u64,
    /// The input or output port.
    pub port: u16,
    /// The capture point.
    pub kind: Kind,
    /// Length of the packet with its link-layer header, octets.
    pub len: u32,
    /// The kept octets, from the first on.
    pub data: &'a [u8],
}

/// The records of a block, oldest first. Ends before a truncated or invalid record.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Records of whole blocks, one after the other.
    pub fn new(blocks: &'a [u8]) -> Records<'a> {
        Records { rest: blocks }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        loop {
            let (octets, rest) = self.rest.split_first_chunk::<HEAD>()?;
            let head = Head::of(octets);
            let (data, rest) = rest.split_at_checked(head.kept as usize)?;
            self.rest = rest;
            let Head { tstamp_ns, len, mark, .. } = head;
            let kind = match mark.kind {
                kind::IN => Kind::In,
                kind::OUT => Kind::Out,
                kind::DROP => Kind::Drop(*DropReason::ALL.get(usize::from(mark.reason))?),
                _ => continue,
            };
            return Some(Record { tstamp_ns, port: mark.port, kind, len, data });
        }
    }
}
