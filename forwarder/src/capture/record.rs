//! One copy: a head of 24 octets, then as much of the packet as is kept. All numbers are
//! little-endian.
//!
//! | octets | |
//! | --- | --- |
//! | 0–7 | when it was copied, nanoseconds since 1970 UTC |
//! | 8–11 | octets the packet has |
//! | 12–15 | octets of it that follow |
//! | 16–17 | port, as the router numbers them |
//! | 18 | [`Kind`] |
//! | 19 | number of the [`DropReason`] of a drop |
//! | 20–23 | place in its burst, while it is not known whether the packet leaves |

use crate::stats::DropReason;

/// Octets of a head.
pub const HEAD: usize = 24;

/// Where a packet was when it was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Received, as it came.
    In,
    /// Put on a TX ring.
    Out,
    /// Dropped, as it was then.
    Drop(DropReason),
}

/// Octet 18.
pub(super) mod kind {
    /// Taken back: nothing to be shown.
    pub const VOID: u8 = 0;
    pub const IN: u8 = 1;
    pub const OUT: u8 = 2;
    pub const DROP: u8 = 3;
    /// About to be put on a TX ring.
    pub const LEAVING: u8 = 4;
}

/// What a record says of a packet beside its octets.
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

/// A head, as the worker writes it.
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

/// Resolves the records from `start` on that were [`kind::LEAVING`]: `resolve` gives kind and reason
/// by the place in the burst. Returns how many were taken back.
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

/// Appends the records of a block to `to`, without those of ports that are not to be kept. Returns how
/// many packets were left out.
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

/// A copy that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// When it was copied, nanoseconds since 1970 UTC.
    pub tstamp_ns: u64,
    /// The port: the one a packet came in by or leaves by.
    pub port: u16,
    /// Where the packet was.
    pub kind: Kind,
    /// Octets the packet has, link-layer header included.
    pub len: u32,
    /// The first of them, as many as are kept.
    pub data: &'a [u8],
}

/// The records of a block, oldest first. Ends before one that is cut off or says nonsense.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Of whole blocks, one behind the other.
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
