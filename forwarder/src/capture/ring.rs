//! Transfer of copies from a worker to a reader: blocks of memory that both exchange.
//!
//! As in version 3 of PACKET_MMAP, the worker writes records into a block and hands the block over when
//! it is full, or as soon as the reader has taken all earlier ones. Under load the cost of a hand-over is
//! thus shared by many packets, and a single packet is not delayed. When no block is empty, copies are
//! counted as lost.

use std::collections::TryReserveError;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use super::record::{HEAD, Head, Mark, settle};
use crate::skb::SkBuff;
use crate::stats::Counter;

/// Octets of a block. Large compared with a packet, small compared with the L2 cache.
pub const BLOCK: usize = 128 << 10;

/// Reads the clock when the first packet of a burst is copied: the system's real-time clock, which may be
/// set.
#[derive(Debug, Default)]
pub(super) struct Stamp(Option<u64>);

impl Stamp {
    #[inline]
    fn ns(&mut self) -> u64 {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        *self.0.get_or_insert_with(|| now().as_nanos() as u64)
    }
}

/// The worker's counters of one ring.
#[derive(Debug, Default)]
struct Counts {
    matched: Counter,
    lost: Counter,
}

/// A block that is handed over.
#[derive(Debug)]
struct Block {
    /// How often port numbers had become other interfaces' before its records were written.
    naming: u64,
    records: Vec<u8>,
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct RingWriter {
    empty: Receiver<Vec<u8>>,
    full: Sender<Block>,
    /// For the current block, see [`Block`].
    naming: u64,
    /// The current block; without memory if no block was free.
    block: Vec<u8>,
    /// No block was free; checked again after the iteration.
    starved: bool,
    /// Maximum number of octets kept of a packet.
    pub(super) snaplen: usize,
    /// Full blocks whose records are not settled.
    kept: Vec<Vec<u8>>,
    /// While records are not settled: position of the first one in the oldest such block.
    unsettled: Option<usize>,
    counts: Arc<Counts>,
}

/// The reader's end.
#[derive(Debug)]
pub struct RingReader {
    empty: Sender<Vec<u8>>,
    full: Receiver<Block>,
    counts: Arc<Counts>,
}

/// Both ends of a ring of `blocks` blocks of [`BLOCK`] octets, at least 1. Its memory is actually
/// allocated, not only reserved.
///
/// # Errors
/// Out of memory.
pub fn ring(blocks: usize) -> Result<(RingIn, RingReader), TryReserveError> {
    let blocks = blocks.max(1);
    let (give, empty) = bounded(blocks);
    let (full, take) = bounded(blocks);
    for _ in 0..blocks {
        let mut block = Vec::new();
        block.try_reserve_exact(BLOCK)?;
        // The kernel allocates a page on first write.
        block.resize(BLOCK, 1);
        block.clear();
        // There is room for each.
        let _ = give.try_send(block);
    }
    let counts = Arc::new(Counts::default());
    let writer = RingWriter {
        empty,
        full,
        naming: 0,
        block: Vec::new(),
        starved: false,
        snaplen: BLOCK,
        kept: Vec::with_capacity(blocks),
        unsettled: None,
        counts: Arc::clone(&counts),
    };
    Ok((RingIn(writer), RingReader { empty: give, full: take, counts }))
}

/// The worker's end, until it is part of a session.
#[derive(Debug)]
pub struct RingIn(pub(super) RingWriter);

impl RingWriter {
    /// Counts a packet that matched the filter, and copies it if there is room: `packet`, which is the
    /// head of `skb`, and its frags.
    #[inline]
    pub(super) fn push(&mut self, stamp: &mut Stamp, packet: &[u8], skb: &SkBuff, mark: Mark) {
        self.counts.matched.inc();
        let len = packet.len() + skb.data_len();
        let kept = len.min(self.snaplen);
        if self.block.capacity() - self.block.len() < HEAD + kept && !self.next_block() {
            self.counts.lost.inc();
            return;
        }
        let (len, tstamp_ns) = (len as u32, stamp.ns());
        let head = Head { tstamp_ns, len, kept: kept as u32, mark };
        self.block.extend_from_slice(&head.to_octets());
        let head = kept.min(packet.len());
        self.block.extend_from_slice(&packet[..head]);
        if head < kept {
            self.push_frags(skb, kept - head);
        }
    }

    /// The first `left` octets of the frags.
    #[cold]
    fn push_frags(&mut self, skb: &SkBuff, mut left: usize) {
        for frag in skb.frags() {
            let now = frag.len().min(left);
            self.block.extend_from_slice(&frag[..now]);
            left -= now;
        }
    }

    fn next_block(&mut self) -> bool {
        if self.starved {
            return false;
        }
        let Ok(mut next) = self.empty.try_recv() else {
            self.starved = true;
            return false;
        };
        std::mem::swap(&mut self.block, &mut next);
        if next.is_empty() {
            return true;
        }
        if self.unsettled.is_some() {
            // There is room for every block.
            self.kept.push(next);
        } else {
            self.give(next);
        }
        true
    }

    /// From here on records may be [`super::record::kind::LEAVING`].
    pub(super) fn begin_unsettled(&mut self) {
        self.unsettled = Some(self.block.len());
    }

    /// Settles those records; see [`settle`].
    pub(super) fn settle(&mut self, resolve: impl Fn(u32) -> (u8, u8)) {
        let Some(mut start) = self.unsettled.take() else { return };
        let mut void = 0;
        for mut block in self.kept.drain(..) {
            void += settle(&mut block, std::mem::take(&mut start), &resolve);
            let _ = self.full.try_send(Block { naming: self.naming, records: block });
        }
        void += settle(&mut self.block, start, &resolve);
        self.counts.matched.set(self.counts.matched.get() - void);
    }

    /// Hands over the current block, if the reader waits for it.
    #[inline]
    pub(super) fn hand_over(&mut self) {
        self.starved = false;
        if !self.block.is_empty() && self.full.is_empty() {
            self.flush();
        }
    }

    /// Hands over the current block.
    pub(super) fn flush(&mut self) {
        if !self.block.is_empty() {
            let block = std::mem::take(&mut self.block);
            self.give(block);
        }
    }

    /// There is room for every block.
    fn give(&self, records: Vec<u8>) {
        let _ = self.full.try_send(Block { naming: self.naming, records });
    }

    /// Records written so far use the previous names of ports, later ones the new names.
    pub(super) fn begin_naming(&mut self, naming: u64) {
        self.flush();
        self.naming = naming;
    }
}

/// The capture, or the worker, has ended: hands over what was copied.
impl Drop for RingWriter {
    fn drop(&mut self) {
        self.flush();
    }
}

impl RingReader {
    /// Passes the next block to `read`, if there is one, and returns it to the worker; also passes how
    /// often port numbers had become other interfaces' before. `None`: there is none now. An error: there
    /// will be none, because the worker's end is gone.
    ///
    /// # Errors
    /// [`Ended`].
    pub fn read<T>(&self, read: impl FnOnce(&[u8], u64) -> T) -> Result<Option<T>, Ended> {
        let Block { naming, mut records } = match self.full.try_recv() {
            Ok(block) => block,
            Err(TryRecvError::Empty) => return Ok(None),
            Err(TryRecvError::Disconnected) => return Err(Ended),
        };
        let result = read(&records, naming);
        records.clear();
        let _ = self.empty.try_send(records);
        Ok(Some(result))
    }

    /// Number of packets that matched the filter.
    pub fn matched(&self) -> u64 {
        self.counts.matched.get()
    }

    /// Number of those for which there was no room.
    pub fn lost(&self) -> u64 {
        self.counts.lost.get()
    }
}

/// The worker's end of a ring is gone, and everything in it has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended;
