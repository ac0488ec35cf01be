//! `capture`: copies of packets that pass through userspace or are dropped there, for readers of tcpdump's
//! formats.
//!
//! - [`out`]: writes pcapng or lines;
//! - [`promisc`]: frames for other stations, which never come to userspace.

mod out;
mod promisc;

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use nix::poll::PollTimeout;

use self::out::{Out, Seen};
use self::promisc::Promiscuous;
use super::{Global, Usage, daemon_stream, output, unexpected};
use crate::capture::{Filter, Insn, Kind, Record, Records, compile};
use crate::control::api::capture::Message;
use crate::control::api::client::Client;
use crate::control::api::{
    CaptureDirection, CaptureEnd, CapturePort, CaptureRequest, Request, Response,
};
use crate::control::process::signals::Signals;

/// Octets per read from the daemon.
const READ: usize = 1 << 20;
/// Interval between reads of promiscuous sockets.
const LOOK_MS: u16 = 20;

const ABOUT: &str = "\
XDP redirects packets to userspace before tcpdump could see them, so tcpdump on a port shows only \
what the kernel handles: ARP, packets for the router itself, and those handed back to the kernel. \
This command shows the rest: packets as received, as put on a TX ring, and as they were when they \
were dropped, with the reason as the packet's comment. Use tcpdump for the kernel's packets.

FILTER is in tcpdump's language (man pcap-filter). Without -w a line is printed for each packet, with \
-j in JSON. FILE is pcapng with the ports' names, nanoseconds and directions:

  ferroute capture -i eth0 -w - udp port 53 | wireshark -k -i -
  ferroute capture --direction drop -w drops.pcapng
  tshark -r drops.pcapng -T fields -e frame.comment | sort | uniq -c

A drop is shown at the input port, or at the output port if its TX ring did not accept the packet. A \
packet that the kernel takes from the TX ring and then refuses (TX_ERROR) has been shown as sent. A \
slow reader loses copies, which are counted; forwarding is not affected. With several workers, \
packets of one may come before slightly older ones of another; reordercap puts them in order.

--promisc has the port accept unicast frames for other stations, as tcpdump does: the interface's \
promiscuity counter is one higher while the capture runs (ip -d link). Such frames are shown and \
never forwarded. Use it in the network namespace of the daemon.

A new FILE is readable only by its owner. An existing one is overwritten; if others can write to its \
directory, it must belong to the user, and symbolic links are refused.

Ends after -c packets or with Ctrl-C, and prints on standard error what was captured and lost.";

/// Where packets are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// As received.
    In,
    /// As put on a TX ring.
    Out,
    /// As they were when dropped.
    Drop,
}

/// Flags of `capture`; named as tcpdump's where those exist.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct CaptureArgs {
    /// Capture on this port, or on `any`; repeat for more [default: any].
    #[arg(short, long = "interface", value_name = "PORT")]
    interfaces: Vec<String>,
    /// Write pcapng to a file, or to standard output (`-`).
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Only packets captured there; separated by commas [default: in,out,drop].
    #[arg(short = 'Q', long, value_name = "DIRECTION", value_delimiter = ',')]
    direction: Vec<Direction>,
    /// Octets kept of each packet.
    #[arg(short, long, value_name = "OCTETS", default_value_t = 262_144)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    snaplen: u32,
    /// Stop after this many packets.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Also have the port accept frames for other stations.
    #[arg(long)]
    promisc: bool,
    /// Memory of each worker for copies that wait to be written.
    #[arg(short = 'B', long, value_name = "KIB", default_value_t = 4096)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    buffer_size: u32,
    /// Filter in tcpdump's language [default: all packets].
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
}

impl CaptureArgs {
    fn request(&self, filter: &str) -> Result<CaptureRequest> {
        let filter = match filter.trim() {
            "" => Vec::new(),
            filter => program(filter)?,
        };
        let directions = match &self.direction[..] {
            [] => Direction::value_variants(),
            chosen => chosen,
        };
        let direction = |direction: &Direction| match direction {
            Direction::In => CaptureDirection::In,
            Direction::Out => CaptureDirection::Out,
            Direction::Drop => CaptureDirection::Drop,
        };
        Ok(CaptureRequest {
            ports: self.ports(),
            directions: directions.iter().map(direction).collect(),
            snaplen: self.snaplen,
            buffer_kib: self.buffer_size,
            filter,
        })
    }

    /// The ports' names; empty: all.
    fn ports(&self) -> Vec<String> {
        let any = self.interfaces.iter().any(|name| name == "any");
        if any { Vec::new() } else { self.interfaces.clone() }
    }
}

/// The filter's program, in the form that the daemon accepts.
///
/// # Errors
/// [`Usage`]: libpcap's message.
pub fn program(filter: &str) -> Result<Vec<Insn>> {
    let insns = compile(filter).map_err(|error| Usage(error.to_string()))?;
    Filter::new(&insns).map_err(|error| Usage(format!("`{filter}`: {error}")))?;
    Ok(insns)
}

/// Captures until the end, and reports the result.
pub fn capture(global: &Global, args: &CaptureArgs) -> Result<()> {
    let filter = args.filter.join(" ");
    let request = args.request(&filter)?;
    let signals = Rc::new(Signals::take()?);
    let mut client = Client::connect(&global.control())?;
    let grant = match client.ask(&Request::Capture(request))? {
        Response::Capture(grant) => grant,
        other => return Err(unexpected(&other)),
    };
    let (stream, read) = client.into_stream();
    stream.set_nonblocking(true)?;
    let promiscuous = match args.promisc {
        true => Some(Promiscuous::new(&args.ports(), &filter, args.snaplen, grant.pid)?),
        false => None,
    };
    let out = Out::create(args.write.as_deref(), global, &signals, args.snaplen)?;
    let mut capture = Capture {
        stream,
        read,
        signals,
        out,
        promiscuous,
        granted: true,
        left: args.count.unwrap_or(u64::MAX),
        captured: 0,
        leaving: false,
    };
    capture.follow_ports(grant.ports)?;
    let names: Vec<&str> = match request_names(&args.interfaces) {
        Some(names) => names,
        None => {
            let there = capture.out.ports().iter().filter(|port| port.ifindex != 0);
            there.map(|port| port.ifname.as_str()).collect()
        }
    };
    match &names[..] {
        [] => output::note(format_args!(
            "ferroute: no interface is a port yet; capturing on those that come"
        )),
        names => output::note(format_args!("ferroute: capturing on {}", names.join(", "))),
    }
    let ended = capture.run();
    let flushed = capture.out.flush();
    capture.say(ended.as_ref().ok().copied().flatten());
    let end = match (ended, flushed) {
        (Err(error), _) | (_, Err(error)) if output::is_broken_pipe(&error) => return Ok(()),
        (ended, flushed) => flushed.and(ended)?,
    };
    match end {
        Some(CaptureEnd { stopping: false, .. }) => Ok(()),
        _ => bail!("the daemon has ended"),
    }
}

/// The ports named; `None`: all.
fn request_names(interfaces: &[String]) -> Option<Vec<&str>> {
    let any = interfaces.is_empty() || interfaces.iter().any(|name| name == "any");
    (!any).then(|| interfaces.iter().map(String::as_str).collect())
}

/// The message about a port's change, if any.
fn news(was: Option<&CapturePort>, is: &CapturePort) -> Option<&'static str> {
    let was = was.filter(|was| was.ifname == is.ifname);
    match (was, is.ifindex) {
        (Some(was), index) if was.ifindex == index => None,
        (Some(_), 0) => Some("is gone; its packets are captured when it is back"),
        // It has a number, but is not a port yet.
        (None, 0) => None,
        (Some(was), _) if was.mac != [0; 6] => Some("is back"),
        _ => Some("is a port now"),
    }
}

struct Capture {
    stream: UnixStream,
    /// Octets from the daemon that are not parsed yet.
    read: Vec<u8>,
    signals: Rc<Signals>,
    out: Out,
    promiscuous: Option<Promiscuous>,
    /// The next list of ports is that of the start.
    granted: bool,
    /// Packets left until -c is reached.
    left: u64,
    captured: u64,
    /// The daemon was notified that no more packets are wanted.
    leaving: bool,
}

impl Capture {
    /// Runs until the daemon sends the end. `None`: the connection ended without it.
    fn run(&mut self) -> Result<Option<CaptureEnd>> {
        loop {
            if let Some(end) = self.messages()? {
                return Ok(Some(end));
            }
            self.look_at_others()?;
            self.out.flush()?;
            if self.signals.came() || self.left == 0 {
                self.leave();
            }
            self.wait()?;
            if !daemon_stream::receive(&self.stream, &mut self.read, READ)? {
                return Ok(None);
            }
        }
    }

    /// Has the daemon send the remaining copies and the summary.
    fn leave(&mut self) {
        if !self.leaving {
            // The daemon may have ended; the next read shows that.
            let _ = self.stream.shutdown(Shutdown::Write);
            self.promiscuous = None;
            self.leaving = true;
        }
    }

    fn wait(&self) -> Result<()> {
        let timeout = match self.promiscuous {
            Some(_) => PollTimeout::from(LOOK_MS),
            None => PollTimeout::NONE,
        };
        daemon_stream::wait(&self.stream, &self.signals, timeout)
    }

    /// Handles the complete messages.
    fn messages(&mut self) -> Result<Option<CaptureEnd>> {
        let read = std::mem::take(&mut self.read);
        let mut at = 0;
        while let Some((message, length)) = Message::parse(&read[at..])? {
            at += length;
            match message {
                Message::Packets(packets) => self.packets(packets)?,
                Message::Ports(ports) => self.follow_ports(ports)?,
                Message::End(end) => return Ok(Some(end)),
            }
        }
        self.read = read;
        self.read.drain(..at);
        Ok(None)
    }

    /// The copies of all workers that have come, sorted by time.
    fn packets(&mut self, packets: &[u8]) -> Result<()> {
        let mut records: Vec<Record<'_>> = Records::new(packets).collect();
        records.sort_by_key(|record| record.tstamp_ns);
        for record in records {
            self.packet(record, false)?;
        }
        Ok(())
    }

    fn packet(&mut self, record: Record<'_>, promiscuous: bool) -> Result<()> {
        if self.left > 0 {
            self.out.write(&Seen { record, promiscuous })?;
            self.left -= 1;
            self.captured += 1;
        }
        Ok(())
    }

    /// Reads frames for other stations.
    fn look_at_others(&mut self) -> Result<()> {
        let Some(mut promiscuous) = self.promiscuous.take() else { return Ok(()) };
        let look = promiscuous.look(|port, tstamp_ns, len, data| {
            self.packet(Record { tstamp_ns, port, kind: Kind::In, len, data }, true)
        });
        self.promiscuous = Some(promiscuous);
        look
    }

    fn follow_ports(&mut self, ports: Vec<CapturePort>) -> Result<()> {
        if !self.granted {
            for (n, is) in ports.iter().enumerate() {
                if let Some(what) = news(self.out.ports().get(n), is) {
                    output::note(format_args!("ferroute: interface {} {what}", is.ifname));
                }
            }
        }
        if let Some(promiscuous) = &mut self.promiscuous {
            promiscuous.follow(&ports, self.granted)?;
        }
        self.granted = false;
        self.out.follow(ports)
    }

    /// Prints the summary, as tcpdump does.
    fn say(&mut self, end: Option<CaptureEnd>) {
        let packets = |count: u64| format!("{count} packet{}", if count == 1 { "" } else { "s" });
        output::note(format_args!("{} captured", packets(self.captured)));
        if let Some(CaptureEnd { matched, lost, .. }) = end {
            output::note(format_args!("{} received by filter", packets(matched)));
            let hint = if lost > 0 { ": they came faster than they were written" } else { "" };
            output::note(format_args!("{} lost by the capture{hint}", packets(lost)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ports_are_called_ports() {
        let port = |ifname: &str, ifindex, mac| CapturePort { ifname: ifname.into(), ifindex, mac };
        let (coming, there) = (port("eth5", 0, [0; 6]), port("eth5", 9, [2; 6]));
        let (gone, other) = (port("eth5", 0, [2; 6]), port("eth4", 8, [4; 6]));
        for (was, is, expected) in [
            (None, &coming, None),
            (Some(&other), &coming, None),
            (Some(&coming), &there, Some("is a port now")),
            (None, &there, Some("is a port now")),
            (Some(&other), &there, Some("is a port now")),
            (Some(&there), &there, None),
            (Some(&there), &gone, Some("is gone; its packets are captured when it is back")),
            (Some(&gone), &there, Some("is back")),
            (Some(&gone), &coming, None),
        ] {
            assert_eq!(news(was, is), expected, "{was:?}, {is:?}");
        }
    }
}
