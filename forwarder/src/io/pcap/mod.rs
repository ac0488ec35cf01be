//! Ports that are capture files: packets are received from one file and sent into another.
//!
//! Reads pcap (stamps in µs or ns, either byte order) and pcapng; writes pcap or pcapng by the
//! name's extension, with stamps in nanoseconds. Time is the capture's: a packet carries its stamp
//! as `tstamp_ns`, and leaves with it.
//!
//! A port is an interface of a pcapng file: by its name where the file names it, else by its
//! number. Packets of interfaces that are no port are skipped and counted. A pcap file knows no
//! interfaces: all its packets come in by one port, and those of all ports go out into one file.
//!
//! The order of the file is kept over all ports: a port gives nothing until the packets before its
//! next one were taken.

mod device;
mod reader;
mod writer;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::device::PortSettings;
use self::reader::Reader;
use self::writer::Writer;
use super::{FrameAccounting, PacketIo, drop_all};
use crate::skb::{Burst, FramePool, HEADROOM, MAX_JUMBO, MAX_PACKET, SkBuff};
use crate::stats::{DropReason, WorkerStats};

pub use device::PcapDevice;

/// What is wrong with a capture file.
#[derive(Debug, thiserror::Error)]
pub enum PcapError {
    /// It cannot be opened or made.
    #[error("{path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Reading or writing failed.
    #[error("{path}, offset {offset}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Octets read or written before.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// It is no capture, or a broken one.
    #[error("{path}, offset {offset}: {what}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Where the header or block begins that is wrong, in octets.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The name of a file to write tells no format.
    #[error("{path}: the name must end in .pcap or .pcapng")]
    Extension {
        /// The file.
        path: PathBuf,
    },
}

/// Shows every packet of a capture to `each`, of whichever interface.
///
/// # Errors
/// See [`PcapError`]; the packets before were shown.
pub fn packets(path: &Path, mut each: impl FnMut(&[u8])) -> Result<(), PcapError> {
    let mut reader = Reader::open(path, None, 0)?;
    while reader.next(&mut each)?.is_some() {}
    Ok(())
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcapPort {
    /// Name of the interface, as it is in pcapng files.
    pub ifname: String,
    /// What packets that come in by it carry as their iif.
    pub ifindex: u32,
}

/// Ports over capture files.
#[derive(Debug)]
pub struct PcapIo {
    ports: Vec<PcapPort>,
    settings: Vec<PortSettings>,
    reader: Reader,
    writer: Option<Writer>,
    /// The next packet of the file, until its port takes it.
    next: Option<SkBuff>,
    /// Stamp of the last packet read, which packets of our own leave with.
    now_ns: u64,
    done: bool,
    error: Option<PcapError>,
    /// A packet of several frames, to be written in one piece.
    scratch: Vec<u8>,
}

/// Frames that the longest packet takes.
const FRAMES_MAX: usize = MAX_JUMBO.div_ceil(MAX_PACKET);

/// What a finished replay has to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Packets read and given to ports.
    pub read: u64,
    /// Packets of interfaces that are no port.
    pub skipped: u64,
    /// Packets written.
    pub written: u64,
}

impl PcapIo {
    /// Opens `input`, and makes `output` if there is to be one (an existing file is overwritten).
    /// Packets of an input without interfaces come in by port number `default_port`.
    ///
    /// # Errors
    /// See [`PcapError`].
    pub fn open(
        input: &Path,
        output: Option<&Path>,
        ports: &[PcapPort],
        default_port: u16,
    ) -> Result<PcapIo, PcapError> {
        let reader = Reader::open(input, Some(ports), default_port)?;
        let writer = output.map(|path| Writer::create(path, ports)).transpose()?;
        Ok(PcapIo {
            ports: ports.to_vec(),
            settings: vec![PortSettings::default(); ports.len()],
            reader,
            writer,
            next: None,
            now_ns: 0,
            done: false,
            error: None,
            scratch: Vec::with_capacity(MAX_JUMBO),
        })
    }

    /// Whether the input has been read and its packets taken, or an error has ended it.
    pub fn is_done(&self) -> bool {
        self.next.is_none() && (self.done || self.error.is_some())
    }

    /// Stamp of the last packet read, in nanoseconds since 1970: the time it is in the replay.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Ends the replay: what was written is on its way to the disk.
    ///
    /// # Errors
    /// The first error there was, in reading or writing.
    pub fn finish(mut self, pool: &mut FramePool) -> Result<Replayed, PcapError> {
        if let Some(skb) = self.next.take() {
            pool.kfree_skb(skb);
        }
        if let Some(error) = self.error {
            return Err(error);
        }
        let written = self.writer.map_or(Ok(0), Writer::finish)?;
        Ok(Replayed { read: self.reader.read, skipped: self.reader.skipped, written })
    }

    /// Fetches the next packet of the file, if there is none yet and frames are free.
    fn fetch(&mut self, pool: &mut FramePool, stats: &WorkerStats) {
        while self.next.is_none() && !self.done && self.error.is_none() {
            if pool.available() < FRAMES_MAX {
                return;
            }
            let Some(mut skb) = SkBuff::alloc_skb(pool, HEADROOM) else { return };
            let mut fits = true;
            let copy = |octets: &[u8]| {
                fits = octets.len() <= MAX_JUMBO && skb.append(octets, pool).is_ok();
            };
            let record = match self.reader.next(copy) {
                Ok(Some(record)) => record,
                end => {
                    self.done = true;
                    self.error = end.err();
                    pool.kfree_skb(skb);
                    return;
                }
            };
            self.now_ns = record.tstamp_ns;
            if !fits {
                // Longer than any MTU of ours: what a port would have dropped.
                stats.rx_drop(DropReason::RxMultiBuffer, record.port);
                pool.kfree_skb(skb);
                continue;
            }
            skb.port = record.port;
            skb.iif = self.ports.get(record.port as usize).map_or(0, |port| port.ifindex);
            skb.tstamp_ns = record.tstamp_ns;
            self.next = Some(skb);
        }
    }
}

impl PacketIo for PcapIo {
    fn ports(&self) -> usize {
        self.ports.len()
    }

    fn rx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        let mut packets = 0;
        while burst.room() > 0 {
            self.fetch(pool, stats);
            let Some(skb) = self.next.take_if(|skb| skb.port == port) else { break };
            if !self.settings.get(port as usize).is_some_and(|settings| settings.up) {
                stats.rx_drop(DropReason::DevNotReady, port);
                pool.kfree_skb(skb);
                continue;
            }
            packets += 1;
            if let Some(counters) = stats.ports.get(port as usize) {
                counters.rx_packets.inc();
                counters.rx_bytes.add(skb.len() as u64);
            }
            if let Err(skb) = burst.push(skb) {
                // There was room.
                pool.kfree_skb(skb);
            }
        }
        packets
    }

    fn tx_room(&self, port: u16) -> usize {
        if (port as usize) < self.ports.len() { usize::MAX } else { 0 }
    }

    fn tx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        if self.settings.get(port as usize).is_none_or(|settings| !settings.up) {
            drop_all(DropReason::DevNotReady, port, pool, burst, stats);
            return 0;
        }
        let mut packets = 0;
        for skb in burst.drain(usize::MAX) {
            let tstamp_ns = if skb.tstamp_ns == 0 { self.now_ns } else { skb.tstamp_ns };
            if let Some(writer) = &mut self.writer
                && self.error.is_none()
                && let Err(error) = writer.write(port, tstamp_ns, skb.whole(&mut self.scratch))
            {
                self.error = Some(error);
            }
            packets += 1;
            if let Some(counters) = stats.ports.get(port as usize) {
                counters.tx_packets.inc();
                counters.tx_bytes.add(skb.len() as u64);
            }
            pool.kfree_skb(skb);
        }
        packets
    }

    /// Nothing to do: what is sent is written at once.
    fn kick(&mut self, _pool: &mut FramePool, _stats: &WorkerStats) {}

    /// Returns at once: a file does not wait.
    fn wait(&mut self, _timeout: Duration, _bell: Option<BorrowedFd<'_>>) -> bool {
        false
    }

    fn accounting(&self) -> FrameAccounting {
        FrameAccounting {
            fill_and_rx: self.next.as_ref().map_or(0, SkBuff::frames),
            ..FrameAccounting::default()
        }
    }
}

#[cfg(test)]
mod tests;
