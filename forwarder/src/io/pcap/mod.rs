//! Ports that are capture files: packets are received from one file and sent into another.
//!
//! Reads pcap (time stamps in µs or ns, either byte order) and pcapng; writes pcap or pcapng
//! depending on the file name extension, with time stamps in nanoseconds. Time is that of the
//! capture: a packet has its time stamp as `tstamp_ns`, and is written with it.
//!
//! A port is an interface of a pcapng file: selected by name if the file contains names, otherwise
//! by number. Packets of interfaces that are not ports are skipped and counted. A pcap file has no
//! interfaces: all its packets are received on one port, and those sent on all ports are written to
//! one file.
//!
//! The order of packets in the file is kept across ports: a port receives nothing until all packets
//! before its next one were taken.

mod reader;
mod writer;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::reader::Reader;
use self::writer::Writer;
use super::device::{SoftwareDriver, SoftwarePort, Timestamping};
use super::{FrameAccounting, PacketIo, drop_all};
use crate::skb::{Burst, FramePool, HEADROOM, MAX_JUMBO, MAX_PACKET, SkBuff};
use crate::stats::{DropReason, WorkerStats};

/// Errors of capture files.
#[derive(Debug, thiserror::Error)]
pub enum PcapError {
    /// It cannot be opened or created.
    #[error("{path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Reading or writing failed.
    #[error("{path}, offset {offset}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Octets read or written so far.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// It is not a capture file, or malformed.
    #[error("{path}, offset {offset}: {what}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Offset of the malformed header or block, in octets.
        offset: u64,
        /// What is malformed.
        what: String,
    },
    /// The name of an output file has no known extension.
    #[error("{path}: the name must end in .pcap or .pcapng")]
    Extension {
        /// The file.
        path: PathBuf,
    },
}

/// Calls `each` with every packet of a capture, of any interface.
///
/// # Errors
/// See [`PcapError`]; earlier packets were passed to `each`.
pub fn packets(path: &Path, mut each: impl FnMut(&[u8])) -> Result<(), PcapError> {
    let mut reader = Reader::open(path, None, 0)?;
    while reader.next(&mut each)?.is_some() {}
    Ok(())
}

/// Configuration of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcapPort {
    /// Name of the interface in pcapng files.
    pub ifname: String,
    /// The iif of packets received on it.
    pub ifindex: u32,
}

/// Ports over capture files.
#[derive(Debug)]
pub struct PcapIo {
    ports: Vec<SoftwarePort>,
    reader: Reader,
    writer: Option<Writer>,
    /// The next packet of the file, until its port takes it.
    next: Option<SkBuff>,
    /// Time stamp of the packet read last, used for packets that the router generates.
    now_ns: u64,
    done: bool,
    error: Option<PcapError>,
    /// Buffer for writing a packet of several frames.
    scratch: Vec<u8>,
}

/// Maximum frames of a packet.
const FRAMES_MAX: usize = MAX_JUMBO.div_ceil(MAX_PACKET);

/// The result of a finished replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Packets read and received on ports.
    pub read: u64,
    /// Packets of interfaces that are not ports.
    pub skipped: u64,
    /// Packets written.
    pub written: u64,
}

impl PcapIo {
    /// Opens `input`, and creates `output` if given (an existing file is overwritten). Packets of
    /// an input without interfaces are received on port number `default_port`.
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
        // Captures may contain packets of any length.
        let port = |port: &PcapPort| {
            SoftwarePort::new(port.ifname.clone(), port.ifindex, SoftwarePort::MTU_MAX)
        };
        Ok(PcapIo {
            ports: ports.iter().map(port).collect(),
            reader,
            writer,
            next: None,
            now_ns: 0,
            done: false,
            error: None,
            scratch: Vec::with_capacity(MAX_JUMBO),
        })
    }

    /// Whether all packets of the input were read and taken, or an error has occurred.
    pub fn is_done(&self) -> bool {
        self.next.is_none() && (self.done || self.error.is_some())
    }

    /// Time stamp of the last packet read, in nanoseconds since 1970: the current time of the
    /// replay.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Ends the replay and flushes the output to the kernel.
    ///
    /// # Errors
    /// The first error of reading or writing.
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

    /// Reads the next packet of the file, if there is none yet and frames are free.
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
                // Longer than any supported MTU: dropped, as a port would.
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

/// Ports are initially open. A closed port drops and counts its packets of the capture. An open one
/// receives all of them, in any receive mode. A frame that is sent through the device gets the time
/// stamp of the packet read last.
impl SoftwareDriver for PcapIo {
    const NAME: &'static str = "pcap";

    fn software_port(&self, port: u16) -> Option<&SoftwarePort> {
        self.ports.get(usize::from(port))
    }

    fn software_port_mut(&mut self, port: u16) -> Option<&mut SoftwarePort> {
        self.ports.get_mut(usize::from(port))
    }

    /// Every packet has the time stamp of the capture.
    fn timestamping(&self) -> Option<Timestamping> {
        Some(Timestamping {
            capabilities: vec!["software-receive".to_owned()],
            rx_filters: vec!["all".to_owned()],
            ..Timestamping::default()
        })
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
            if !self.ports.get(port as usize).is_some_and(|this| this.up) {
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
                // Cannot fail: there was room.
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
        if self.ports.get(port as usize).is_none_or(|this| !this.up) {
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

    /// No effect: packets are written immediately.
    fn kick(&mut self, _pool: &mut FramePool, _stats: &WorkerStats) {}

    /// Returns at once: a file does not wait.
    fn wait(&mut self, _timeout: Duration, _wakeup: Option<BorrowedFd<'_>>) -> bool {
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
