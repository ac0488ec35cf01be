//! Output of a capture: pcapng, or one line per packet.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriter};
use pcap_file::{DataLink, Endianness, PcapError};
use serde_json::json;

use super::super::{Global, Usage};
use crate::capture::{Kind, Record};
use crate::control::api::CapturePort;
use crate::control::process::signals::Signals;
use crate::control::process::terminal::printable;
use crate::histogram::file::is_stdout;
use crate::io::out_file::{self, PRIVATE};
use crate::wire::EthernetFrame;

/// Octets per write: a pipe that polls as writable accepts this many (PIPE_BUF).
const CHUNK: usize = 4096;
/// How long writing the last packets may take after a signal.
const LAST_TIMEOUT: Duration = Duration::from_secs(2);
/// if_tsresol: 10^-9 seconds.
const NANOSECONDS: u8 = 9;

/// Bits of epb_flags: direction, and to whom the frame is addressed.
mod flags {
    pub const INBOUND: u32 = 0b01;
    pub const OUTBOUND: u32 = 0b10;
    pub const UNICAST: u32 = 1 << 2;
    pub const MULTICAST: u32 = 2 << 2;
    pub const BROADCAST: u32 = 3 << 2;
    pub const PROMISCUOUS: u32 = 4 << 2;
}

/// A packet to write.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The copy.
    pub record: Record<'a>,
    /// The frame is for another station.
    pub promiscuous: bool,
}

/// The output.
pub struct Out {
    format: Format,
    name: String,
    ports: Vec<CapturePort>,
}

enum Format {
    /// Pcapng, with the number of each port's interface block.
    PcapNg {
        writer: Box<PcapNgWriter<BufWriter<Sink>>>,
        interfaces: Vec<Option<u32>>,
        next: u32,
        snaplen: u32,
    },
    Text(BufWriter<Sink>),
    Json(BufWriter<Sink>),
}

impl Out {
    /// Creates the file, or uses standard output.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(
        path: Option<&Path>,
        global: &Global,
        signals: &Rc<Signals>,
        snaplen: u32,
    ) -> Result<Out> {
        let path = path.unwrap_or(Path::new(""));
        let to_stdout = path.as_os_str().is_empty() || is_stdout(path);
        let name =
            if to_stdout { "standard output".to_owned() } else { path.display().to_string() };
        let file = match to_stdout {
            true => io::stdout().as_fd().try_clone_to_owned().map(File::from),
            false => out_file::create(path, PRIVATE),
        };
        let file = file.with_context(|| format!("cannot write {name}"))?;
        let sink = BufWriter::new(Sink { file, signals: Rc::clone(signals), until: None });
        let format = if path.as_os_str().is_empty() {
            if global.output().json { Format::Json(sink) } else { Format::Text(sink) }
        } else {
            if to_stdout && io::IsTerminal::is_terminal(&io::stdout()) {
                let what = "-w -: pcapng is not for a terminal; pipe it, or leave -w out for lines";
                return Err(Usage(what.to_owned()).into());
            }
            let header = SectionHeaderBlock {
                endianness: Endianness::native(),
                options: vec![SectionHeaderOption::UserApplication(
                    concat!("ferroute ", env!("CARGO_PKG_VERSION")).into(),
                )],
                ..SectionHeaderBlock::default()
            };
            let writer = PcapNgWriter::with_section_header(sink, header);
            let writer = writer.map_err(plain).with_context(|| format!("cannot write {name}"))?;
            Format::PcapNg { writer: Box::new(writer), interfaces: Vec::new(), next: 0, snaplen }
        };
        Ok(Out { format, name, ports: Vec::new() })
    }

    /// The ports as they are.
    pub fn ports(&self) -> &[CapturePort] {
        &self.ports
    }

    /// Updates the ports; existing ones that changed get another interface block.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn follow(&mut self, ports: Vec<CapturePort>) -> Result<()> {
        if let Format::PcapNg { writer, interfaces, next, snaplen } = &mut self.format {
            interfaces.resize(ports.len(), None);
            for (n, port) in ports.iter().enumerate() {
                let was = self.ports.get(n);
                if !was.is_some_and(|was| was.ifname == port.ifname && was.mac == port.mac) {
                    interfaces[n] = None;
                }
                if interfaces[n].is_none() && port.ifindex != 0 {
                    let block = interface(port, *snaplen).into_block();
                    writer
                        .write_block(&block)
                        .map_err(plain)
                        .with_context(|| cannot(&self.name))?;
                    interfaces[n] = Some(*next);
                    *next += 1;
                }
            }
        }
        self.ports = ports;
        Ok(())
    }

    /// Writes one packet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, seen: &Seen<'_>) -> Result<()> {
        let port = usize::from(seen.record.port);
        let name = self.ports.get(port).map_or("?", |port| port.ifname.as_str());
        let written = match &mut self.format {
            Format::PcapNg { writer, interfaces, next, snaplen } => {
                if interfaces.len() <= port {
                    interfaces.resize(port + 1, None);
                }
                let mut described = Ok(());
                // The daemon has not announced this port: its own interface block avoids a wrong name.
                let id = *interfaces[port].get_or_insert_with(|| {
                    let port = CapturePort { ifname: name.to_owned(), ..CapturePort::default() };
                    let block = interface(&port, *snaplen).into_block();
                    described = writer.write_block(&block).map(drop);
                    *next += 1;
                    *next - 1
                });
                let block = packet(seen, id).into_block();
                described.and_then(|()| writer.write_block(&block).map(drop)).map_err(plain)
            }
            Format::Text(out) => writeln!(out, "{}", printable(&line(seen, name))),
            Format::Json(out) => writeln!(out, "{}", to_json(seen, name)),
        };
        written.with_context(|| cannot(&self.name))
    }

    /// Writes what is buffered, so that the reader sees it now.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        let flushed = match &mut self.format {
            Format::PcapNg { writer, .. } => writer.get_mut().flush(),
            Format::Text(out) | Format::Json(out) => out.flush(),
        };
        flushed.with_context(|| cannot(&self.name))
    }
}

fn cannot(name: &str) -> String {
    format!("cannot write {name}")
}

fn plain(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

fn interface(port: &CapturePort, snaplen: u32) -> InterfaceDescriptionBlock<'static> {
    InterfaceDescriptionBlock {
        linktype: DataLink::ETHERNET,
        snaplen,
        options: vec![
            InterfaceDescriptionOption::IfName(Cow::Owned(port.ifname.clone())),
            InterfaceDescriptionOption::IfMacAddr(Cow::Owned(port.mac.to_vec())),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ],
    }
}

fn packet<'a>(seen: &Seen<'a>, interface_id: u32) -> EnhancedPacketBlock<'a> {
    let Record { tstamp_ns, kind, len, data, .. } = seen.record;
    let mut options = Vec::new();
    if let Some(comment) = comment(kind) {
        options.push(EnhancedPacketOption::Comment(comment.into()));
    }
    options.push(EnhancedPacketOption::Flags(flags_of(seen)));
    EnhancedPacketBlock {
        interface_id,
        timestamp: Duration::from_nanos(tstamp_ns),
        original_len: len,
        data: Cow::Borrowed(data),
        options,
    }
}

/// The packet's comment: why it was dropped.
fn comment(kind: Kind) -> Option<String> {
    match kind {
        Kind::Drop(reason) => Some(format!("{}: {}", reason.name(), reason.help())),
        Kind::In | Kind::Out => None,
    }
}

fn flags_of(seen: &Seen<'_>) -> u32 {
    let direction = match seen.record.kind {
        Kind::In => flags::INBOUND,
        Kind::Out => flags::OUTBOUND,
        Kind::Drop(_) => 0,
    };
    let to = match seen.record.data {
        _ if seen.promiscuous => flags::PROMISCUOUS,
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, ..] => flags::BROADCAST,
        [first, ..] if first & 1 == 1 => flags::MULTICAST,
        _ => flags::UNICAST,
    };
    direction | to
}

fn word(seen: &Seen<'_>) -> &'static str {
    match seen.record.kind {
        Kind::In if seen.promiscuous => "P",
        Kind::In => "In",
        Kind::Out => "Out",
        Kind::Drop(_) => "Drop",
    }
}

/// A line as `tcpdump -i any -tt -e` prints it, with the reason of a drop.
fn line(seen: &Seen<'_>, name: &str) -> String {
    let Record { tstamp_ns, kind, data, .. } = seen.record;
    let (s, ns) = (tstamp_ns / 1_000_000_000, tstamp_ns % 1_000_000_000);
    let reason = match kind {
        Kind::Drop(reason) => format!(" [{reason}]"),
        Kind::In | Kind::Out => String::new(),
    };
    format!("{s}.{ns:09} {name:<8} {:<4} {}{reason}", word(seen), frame(data))
}

fn frame(data: &[u8]) -> String {
    let frame = EthernetFrame::new_unchecked(data);
    match frame.check_len() {
        Ok(()) => frame.to_string(),
        Err(error) => format!("[{error}]"),
    }
}

fn to_json(seen: &Seen<'_>, name: &str) -> serde_json::Value {
    let Record { tstamp_ns, kind, len, data, .. } = seen.record;
    let mut value = json!({
        "tstamp_ns": tstamp_ns,
        "port": name,
        "direction": word(seen).to_ascii_lowercase(),
        "length": len,
        "packet": frame(data),
    });
    if let Kind::Drop(reason) = kind {
        value["reason"] = json!(reason.name());
    }
    value
}

/// A file that is written in small parts, so that signals are handled while its reader is slow.
struct Sink {
    file: File,
    signals: Rc<Signals>,
    /// Set by a signal: how long the reader has.
    until: Option<Instant>,
}

impl Sink {
    /// Waits until the file can be written.
    fn wait(&mut self) -> io::Result<()> {
        loop {
            let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
            let timeout = match left {
                Some(left) => PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
                None => PollTimeout::NONE,
            };
            let mut fds = [
                PollFd::new(self.file.as_fd(), PollFlags::POLLOUT),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            // A signal is left pending for the loop that ends the capture, and polled for only once.
            let watched = if self.until.is_some() { 1 } else { 2 };
            match poll(&mut fds[..watched], timeout) {
                Ok(0) => {
                    let what = "its reader has stopped reading; the last packets are lost";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
                Ok(_) if fds[0].any().unwrap_or(true) => return Ok(()),
                Ok(_) => self.until = Some(Instant::now() + LAST_TIMEOUT),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Write for Sink {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.wait()?;
        self.file.write(&octets[..octets.len().min(CHUNK)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
