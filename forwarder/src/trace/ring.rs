//! Transfer of records from a worker to a reader: both exchange them. When none is free, packets are not traced,
//! and are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use super::record::Record;
use crate::capture::{Filter, Verdict};
use crate::skb::SkBuff;

/// Maximum number of records of one trace on one worker: some 70 KiB each.
pub const RECORDS_MAX: usize = 64;

/// The counts of a trace, of all workers together.
#[derive(Debug)]
pub struct Counts {
    /// Packets that are still to be traced.
    left: AtomicU64,
    /// Packets that matched while some were still to be traced, and for which no record was free.
    missed: AtomicU64,
}

impl Counts {
    /// Of a trace of `packets` packets.
    pub fn new(packets: u64) -> Arc<Counts> {
        Arc::new(Counts { left: AtomicU64::new(packets), missed: AtomicU64::new(0) })
    }

    /// Packets that matched and for which no record was free.
    pub fn missed(&self) -> u64 {
        self.missed.load(Relaxed)
    }

    /// Takes one of those that are to be traced.
    fn take(&self) -> bool {
        self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn miss(&self) {
        self.left.fetch_add(1, Relaxed);
        self.missed.fetch_add(1, Relaxed);
    }
}

/// A trace on one worker.
#[derive(Debug)]
pub struct Session {
    id: u64,
    filter: Option<Filter>,
    empty: Receiver<Box<Record>>,
    full: Sender<Box<Record>>,
    counts: Arc<Counts>,
}

/// The reader's end.
#[derive(Debug)]
pub struct RecordReader {
    empty: Sender<Box<Record>>,
    full: Receiver<Box<Record>>,
}

/// A trace on one worker, and its reader. `id` identifies it; `filter`: which packets, `None`: all; `records`:
/// how many may wait for the reader, 1 to [`RECORDS_MAX`].
pub fn ring(
    id: u64,
    filter: Option<Filter>,
    records: usize,
    counts: &Arc<Counts>,
) -> (Session, RecordReader) {
    let records = records.clamp(1, RECORDS_MAX);
    let (give, empty) = bounded(records);
    let (full, take) = bounded(records);
    for _ in 0..records {
        // There is room for each.
        let _ = give.try_send(Box::new(Record::new()));
    }
    let counts = Arc::clone(counts);
    (Session { id, filter, empty, full, counts }, RecordReader { empty: give, full: take })
}

impl Session {
    /// Its identifier.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// An empty record, if the packet is to be traced and one is free.
    pub(super) fn record(&self, skb: &SkBuff, scratch: &mut Vec<u8>) -> Option<Box<Record>> {
        let is_wanted = self
            .filter
            .as_ref()
            .is_none_or(|filter| filter.judge_skb(skb.data(), skb, scratch) == Verdict::Match);
        if !is_wanted || !self.counts.take() {
            return None;
        }
        self.empty.try_recv().inspect_err(|_| self.counts.miss()).ok()
    }

    /// Hands over a record. There is room for each.
    pub(super) fn give(&self, record: Box<Record>) {
        let _ = self.full.try_send(record);
    }
}

impl RecordReader {
    /// Passes the next record to `read`, if there is one, and returns it to the worker. `None`: there is none
    /// now.
    ///
    /// # Errors
    /// [`Ended`]: there will be none, because the worker's end is gone.
    pub fn read<T>(&self, read: impl FnOnce(&Record) -> T) -> Result<Option<T>, Ended> {
        match self.full.try_recv() {
            Ok(record) => {
                let result = read(&record);
                let _ = self.empty.try_send(record);
                Ok(Some(result))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Ended),
        }
    }
}

/// The worker's end of a ring is gone, and everything in it has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended;
