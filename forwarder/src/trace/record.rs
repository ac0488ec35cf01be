//! The record of one packet. All memory is allocated when it is created.

use super::Tracer;
use super::step::{FinalDisposition, RuleResult, Step};
use crate::stats::DropReason;

/// Maximum number of steps of a packet.
pub const STEPS_MAX: usize = 1024;
/// Of these, kept free of rules that do not match, so that the rest of the way has room.
const STEPS_KEPT: usize = 256;
/// Octets that are kept of the packet as received.
pub const HEAD_MAX: usize = 128;

/// The way of a packet.
#[derive(Debug, Clone)]
pub struct Record {
    /// When it was processed, nanoseconds since 1970 UTC.
    pub tstamp_ns: u64,
    /// ifindex of the port that received it; 0: unknown.
    pub ifindex: u32,
    /// Its length with the link-layer header, octets.
    pub len: u32,
    /// Identifies the ruleset that was applied (`Nft::id`); 0: none.
    pub nft: u64,
    head: [u8; HEAD_MAX],
    head_len: u8,
    steps: Vec<Step>,
    /// Position of [`Step::Omitted`].
    omitted: Option<usize>,
    /// How it ended.
    pub disposition: FinalDisposition,
}

impl Record {
    /// An empty record.
    pub fn new() -> Record {
        Record {
            tstamp_ns: 0,
            ifindex: 0,
            len: 0,
            nft: 0,
            head: [0; HEAD_MAX],
            head_len: 0,
            steps: Vec::with_capacity(STEPS_MAX),
            omitted: None,
            disposition: FinalDisposition::Dropped(DropReason::DevNotReady),
        }
    }

    /// Begins with a received frame: `frame` is its head, `len` its whole length in octets.
    pub(super) fn begin(&mut self, frame: &[u8], len: u32, tstamp_ns: u64) {
        (self.tstamp_ns, self.len) = (tstamp_ns, len);
        (self.ifindex, self.nft) = (0, 0);
        self.steps.clear();
        self.omitted = None;
        let kept = frame.len().min(HEAD_MAX);
        self.head.iter_mut().zip(frame).for_each(|(to, octet)| *to = *octet);
        self.head_len = kept as u8;
        self.disposition = FinalDisposition::Dropped(DropReason::DevNotReady);
    }

    /// Becomes a copy, without allocating.
    pub(super) fn copy(&mut self, from: &Record) {
        let steps = std::mem::take(&mut self.steps);
        *self = Record { steps, head: from.head, ..*from };
        self.steps.clear();
        self.steps.extend_from_slice(&from.steps);
    }

    /// The first octets of the frame as received.
    pub fn head(&self) -> &[u8] {
        self.head.get(..usize::from(self.head_len)).unwrap_or(&[])
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Notes a rule that did not match and for which there is no room.
    #[cold]
    fn omit(&mut self) {
        let at = *self.omitted.get_or_insert(self.steps.len());
        match self.steps.get_mut(at) {
            Some(Step::Omitted { rules }) => *rules += 1,
            _ => self.steps.push(Step::Omitted { rules: 1 }),
        }
    }
}

impl Default for Record {
    fn default() -> Record {
        Record::new()
    }
}

impl Tracer for Record {
    fn is_traced(&self) -> bool {
        true
    }

    fn step(&mut self, step: Step) {
        let is_miss = matches!(step, Step::Rule { result: RuleResult::NoMatch(_), .. });
        let room = if is_miss { STEPS_MAX - STEPS_KEPT } else { STEPS_MAX - 1 };
        if self.steps.len() < room {
            self.steps.push(step);
        } else if self.steps.len() < STEPS_MAX || self.omitted.is_some() {
            self.omit();
        }
    }
}
