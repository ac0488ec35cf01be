//! Writes a capture file.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapWriter, RawPcapPacket};
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriter};
use pcap_file::{DataLink, Endianness, PcapError as WriteError, TsResolution};

use super::{PcapError, PcapPort};
use crate::io::out_file::{self, PRIVATE};

/// The snap length in the file header, in octets: tcpdump's default, and far more than our maximum.
const SNAPLEN: u32 = 262_144;

/// if_tsresol: 10^-9 seconds.
const NANOSECONDS: u8 = 9;

type Out = BufWriter<File>;

/// A capture file being written.
pub(super) struct Writer {
    path: PathBuf,
    format: Format,
    offset: u64,
    written: u64,
}

enum Format {
    Pcap(PcapWriter<Out>),
    PcapNg(Box<PcapNgWriter<Out>>),
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn create(path: &Path, ports: &[PcapPort]) -> Result<Writer, PcapError> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let ng = match extension.to_str() {
            Some("pcapng") => true,
            Some("pcap") => false,
            _ => return Err(PcapError::Extension { path: path.to_owned() }),
        };
        let file = out_file::create(path, PRIVATE)
            .map_err(|source| PcapError::Open { path: path.to_owned(), source })?;
        let out = BufWriter::new(file);
        let format = if ng { pcapng(out, ports) } else { pcap(out) };
        match format {
            Ok(format) => Ok(Writer { path: path.to_owned(), format, offset: 0, written: 0 }),
            Err(error) => Err(failed(path, 0, error)),
        }
    }

    pub(super) fn write(
        &mut self,
        port: u16,
        tstamp_ns: u64,
        octets: &[u8],
    ) -> Result<(), PcapError> {
        let stamp = Duration::from_nanos(tstamp_ns);
        let len = octets.len() as u32;
        let result = match &mut self.format {
            Format::Pcap(writer) => writer.write_raw_packet(&RawPcapPacket {
                // Wraps in 2106, as the file format does.
                ts_sec: stamp.as_secs() as u32,
                ts_frac: stamp.subsec_nanos(),
                incl_len: len,
                orig_len: len,
                data: Cow::Borrowed(octets),
            }),
            Format::PcapNg(writer) => writer.write_block(
                &EnhancedPacketBlock {
                    interface_id: port.into(),
                    timestamp: stamp,
                    original_len: len,
                    data: Cow::Borrowed(octets),
                    options: Vec::new(),
                }
                .into_block(),
            ),
        };
        self.offset += result.map_err(|error| failed(&self.path, self.offset, error))? as u64;
        self.written += 1;
        Ok(())
    }

    /// Flushes the buffer. Returns the number of packets written.
    pub(super) fn finish(self) -> Result<u64, PcapError> {
        let mut out = match self.format {
            Format::Pcap(writer) => writer.into_writer(),
            Format::PcapNg(writer) => writer.into_inner(),
        };
        match out.flush() {
            Ok(()) => Ok(self.written),
            Err(error) => Err(failed(&self.path, self.offset, WriteError::IoError(error))),
        }
    }
}

fn pcap(out: Out) -> Result<Format, WriteError> {
    let header = PcapHeader {
        snaplen: SNAPLEN,
        datalink: DataLink::ETHERNET,
        ts_resolution: TsResolution::NanoSecond,
        endianness: Endianness::native(),
        ..PcapHeader::default()
    };
    Ok(Format::Pcap(PcapWriter::with_header(out, header)?))
}

fn pcapng(out: Out, ports: &[PcapPort]) -> Result<Format, WriteError> {
    let mut writer = PcapNgWriter::new(out)?;
    for port in ports {
        let interface = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: SNAPLEN,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(port.ifname.clone())),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        writer.write_block(&interface.into_block())?;
    }
    Ok(Format::PcapNg(Box::new(writer)))
}

fn failed(path: &Path, offset: u64, error: WriteError) -> PcapError {
    let source = match error {
        WriteError::IoError(source) => source,
        other => io::Error::other(other),
    };
    PcapError::Io { path: path.to_owned(), offset, source }
}
