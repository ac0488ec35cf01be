//! Reads a capture file, one packet at a time, in a bounded amount of memory.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use pcap_file::pcap::PcapParser;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgParser};
use pcap_file::{DataLink, PcapError as ParseError, TsResolution};

use super::{PcapError, PcapPort};

/// Octets read at once.
const CHUNK: usize = 256 << 10;

/// Maximum length of a header or block, in octets. Larger than any packet; a greater length is
/// malformed and would waste memory.
const BLOCK_MAX: usize = 16 << 20;

/// Metadata of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) port: u16,
    pub(super) tstamp_ns: u64,
}

/// A capture file being read.
#[derive(Debug)]
pub(super) struct Reader {
    feed: Feed,
    format: Format,
    /// `None`: every interface is port 0.
    ports: Option<Vec<String>>,
    default_port: u16,
    /// Packets returned.
    pub(super) read: u64,
    /// Packets of interfaces that are not ports.
    pub(super) skipped: u64,
    last_ns: u64,
}

enum Format {
    Pcap(PcapParser),
    PcapNg(PcapNgParser),
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::Pcap(_) => "Pcap",
            Format::PcapNg(_) => "PcapNg",
        })
    }
}

impl Reader {
    pub(super) fn open(
        path: &Path,
        ports: Option<&[PcapPort]>,
        default_port: u16,
    ) -> Result<Reader, PcapError> {
        let file =
            File::open(path).map_err(|source| PcapError::Open { path: path.to_owned(), source })?;
        let mut feed = Feed::new(path, file);
        let format = if feed.peek_u32()? == Some(SECTION_HEADER) {
            feed.parse(PcapNgParser::new)?.map(Format::PcapNg)
        } else {
            feed.parse(PcapParser::new)?.map(Format::Pcap)
        };
        let Some(format) = format else {
            return Err(feed.broken("an empty file, not a capture"));
        };
        if let Format::Pcap(parser) = &format {
            let link = parser.header().datalink;
            if link != DataLink::ETHERNET {
                return Err(feed.broken(not_ethernet(link)));
            }
        }
        Ok(Reader {
            feed,
            format,
            ports: ports.map(|ports| ports.iter().map(|port| port.ifname.clone()).collect()),
            default_port,
            read: 0,
            skipped: 0,
            last_ns: 0,
        })
    }

    /// Calls `copy` with the octets of the next packet of a port, and returns its metadata. `None`:
    /// end of file.
    pub(super) fn next(
        &mut self,
        mut copy: impl FnMut(&[u8]),
    ) -> Result<Option<Record>, PcapError> {
        loop {
            let found = match &mut self.format {
                Format::Pcap(parser) => {
                    let port = self.default_port;
                    self.feed.parse(|octets| next_pcap(parser, octets, port, &mut copy))?
                }
                Format::PcapNg(parser) => {
                    let (ports, last_ns) = (self.ports.as_deref(), self.last_ns);
                    self.feed
                        .parse(|octets| next_pcapng(parser, octets, ports, last_ns, &mut copy))?
                }
            };
            match found {
                None => return Ok(None),
                Some(Found::Packet(record)) => {
                    self.last_ns = record.tstamp_ns;
                    self.read += 1;
                    return Ok(Some(record));
                }
                Some(Found::Skipped) => self.skipped += 1,
                Some(Found::Nothing) => {}
                Some(Found::Wrong(what)) => return Err(self.feed.broken(what)),
            }
        }
    }
}

/// First four octets of a pcapng file, the same in either byte order.
const SECTION_HEADER: u32 = 0x0a0d_0d0a;

/// The result of parsing one record or block.
enum Found {
    Packet(Record),
    Skipped,
    Nothing,
    Wrong(String),
}

fn next_pcap<'a>(
    parser: &PcapParser,
    octets: &'a [u8],
    port: u16,
    copy: &mut impl FnMut(&[u8]),
) -> Result<(&'a [u8], Found), ParseError> {
    // The raw packet: the higher-level parser rejects packets truncated to the snap length.
    let (rest, packet) = parser.next_raw_packet(octets)?;
    let unit_ns = match parser.header().ts_resolution {
        TsResolution::MicroSecond => 1000,
        TsResolution::NanoSecond => 1,
    };
    let tstamp_ns = u64::from(packet.ts_sec) * 1_000_000_000 + u64::from(packet.ts_frac) * unit_ns;
    copy(&packet.data);
    Ok((rest, Found::Packet(Record { port, tstamp_ns })))
}

fn next_pcapng<'a>(
    parser: &mut PcapNgParser,
    octets: &'a [u8],
    ports: Option<&[String]>,
    last_ns: u64,
    copy: &mut impl FnMut(&[u8]),
) -> Result<(&'a [u8], Found), ParseError> {
    let (rest, block) = parser.next_block(octets)?;
    // Time stamps are in units that the interface block defines; the parser assumes nanoseconds.
    let (number, units, data, len) = match &block {
        Block::EnhancedPacket(b) => {
            (b.interface_id, Some(b.timestamp.as_nanos() as u64), &b.data, b.data.len())
        }
        Block::SimplePacket(b) => (0, None, &b.data, b.data.len().min(b.original_len as usize)),
        _ => return Ok((rest, Found::Nothing)),
    };
    let Some(interface) = parser.interfaces().get(number as usize) else {
        let what = format!("a packet of interface {number}, which the file does not describe");
        return Ok((rest, Found::Wrong(what)));
    };
    let port = ports.map_or(Some(0), |ports| port_of(interface, number, ports));
    let Some(port) = port else { return Ok((rest, Found::Skipped)) };
    if interface.linktype != DataLink::ETHERNET {
        return Ok((rest, Found::Wrong(not_ethernet(interface.linktype))));
    }
    let tstamp_ns = units.map_or(last_ns, |units| to_ns(interface, units));
    copy(&data[..len]);
    Ok((rest, Found::Packet(Record { port, tstamp_ns })))
}

fn port_of(
    interface: &InterfaceDescriptionBlock<'_>,
    number: u32,
    ports: &[String],
) -> Option<u16> {
    let name = interface.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfName(name) => Some(name.as_ref()),
        _ => None,
    });
    match name {
        Some(name) => ports.iter().position(|port| port == name).map(|port| port as u16),
        None => u16::try_from(number).ok().filter(|&port| usize::from(port) < ports.len()),
    }
}

/// Converts a time stamp to nanoseconds: if_tsresol (a power of ten, or of two if the top bit is
/// set; default microseconds) and if_tsoffset (seconds).
fn to_ns(interface: &InterfaceDescriptionBlock<'_>, units: u64) -> u64 {
    let (mut resolution, mut offset_s) = (6u8, 0u64);
    for option in &interface.options {
        match option {
            InterfaceDescriptionOption::IfTsResol(value) => resolution = *value,
            InterfaceDescriptionOption::IfTsOffset(value) => offset_s = *value,
            _ => {}
        }
    }
    let units = u128::from(units) * 1_000_000_000;
    let exponent = u32::from(resolution & 0x7f);
    let per_second = if resolution & 0x80 == 0 {
        10u128.checked_pow(exponent)
    } else {
        1u128.checked_shl(exponent)
    };
    let ns = per_second.map_or(0, |per_second| units / per_second);
    (ns as u64).wrapping_add(offset_s.wrapping_mul(1_000_000_000))
}

fn not_ethernet(link: DataLink) -> String {
    format!("link type {link:?}, only ETHERNET can be replayed")
}

/// A file that is read in chunks and parsed piece by piece.
#[derive(Debug)]
struct Feed {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    /// Start of the unparsed part of the buffer.
    start: usize,
    /// Offset of `start` in the file.
    offset: u64,
    /// Offset of the piece parsed last, for messages.
    piece: u64,
    ended: bool,
}

impl Feed {
    fn new(path: &Path, file: File) -> Feed {
        Feed {
            path: path.to_owned(),
            file,
            buffer: Vec::new(),
            start: 0,
            offset: 0,
            piece: 0,
            ended: false,
        }
    }

    /// Parses the next piece. `None`: end of file.
    fn parse<T>(
        &mut self,
        mut parse: impl FnMut(&[u8]) -> Result<(&[u8], T), ParseError>,
    ) -> Result<Option<T>, PcapError> {
        self.piece = self.offset;
        loop {
            let octets = &self.buffer[self.start..];
            if octets.is_empty() && self.ended {
                return Ok(None);
            }
            match parse(octets) {
                Ok((rest, value)) => {
                    let used = octets.len() - rest.len();
                    self.start += used;
                    self.offset += used as u64;
                    return Ok(Some(value));
                }
                Err(ParseError::IncompleteBuffer) if self.ended => {
                    return Err(self.broken("the file ends in the middle of this"));
                }
                Err(ParseError::IncompleteBuffer) if octets.len() > BLOCK_MAX => {
                    return Err(self.broken(format!("longer than {BLOCK_MAX} octets")));
                }
                Err(ParseError::IncompleteBuffer) => self.fill()?,
                Err(error) => return Err(self.broken(error.to_string())),
            }
        }
    }

    /// The next four octets as a big-endian number, without parsing them.
    fn peek_u32(&mut self) -> Result<Option<u32>, PcapError> {
        while self.buffer.len() < 4 && !self.ended {
            self.fill()?;
        }
        Ok(self.buffer.first_chunk().map(|octets| u32::from_be_bytes(*octets)))
    }

    fn fill(&mut self) -> Result<(), PcapError> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let len = self.buffer.len();
        self.buffer.resize(len + CHUNK, 0);
        let read = loop {
            match self.file.read(&mut self.buffer[len..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(len + *read.as_ref().unwrap_or(&0));
        let read = read.map_err(|source| PcapError::Io {
            path: self.path.clone(),
            offset: self.offset + len as u64,
            source,
        })?;
        self.ended = read == 0;
        Ok(())
    }

    fn broken(&self, what: impl Into<String>) -> PcapError {
        PcapError::Format { path: self.path.clone(), offset: self.piece, what: what.into() }
    }
}
