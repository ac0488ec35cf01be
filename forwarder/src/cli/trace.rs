//! `trace`: the way of single packets through the data path, stage by stage.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::poll::PollTimeout;

use super::capture::program;
use super::output::Output;
use super::{Global, daemon_stream, output, unexpected};
use crate::control::api::client::Client;
use crate::control::api::trace::{Message, TraceEnd, TraceRequest};
use crate::control::api::{Request, Response};
use crate::control::process::signals::Signals;

/// Octets per read from the daemon.
const READ: usize = 64 << 10;

const ABOUT: &str = "\
For each packet that matches, a block: the packet as received; the stages of the data path that decided \
something, with the kernel's names; at hooks, each rule that was evaluated and what it decided, and of rules \
that do not match the expression that did not, with the value that the packet has; and how the packet ended: \
sent, dropped (reason), ICMP error sent, handed to the kernel (reason, and the rule), held for a neighbour, or \
fragmented. `nft monitor trace` and VPP's `show trace` are similar.

FILTER is in tcpdump's language (man pcap-filter) and is applied to packets as received:

  ferroute trace -n 1 host 192.0.2.1 and tcp port 80
  ferroute trace -j | jq -c .disposition

With -j a JSON object is printed for each packet, on a line of its own.

Only packets that come to userspace are traced. What the XDP program passes to the kernel is not: `ferroute \
stat` counts it by reason, and `nft monitor trace` shows how the kernel's rules judge it. A packet that is \
handed to the kernel is shown up to there; its counts are the kernel's.

Tracing changes neither what happens to packets nor what is counted. While a trace runs, packets take longer; \
if they match faster than they are printed, some are not traced, and their number is printed.

Ends after -n packets or with Ctrl-C.";

/// Flags of `trace`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct TraceArgs {
    /// Stop after this many packets.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Filter in tcpdump's language [default: all packets].
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
}

/// Traces until the end, and reports what was missed.
pub fn trace(global: &Global, args: &TraceArgs) -> Result<()> {
    let filter = args.filter.join(" ");
    let filter = match filter.trim() {
        "" => Vec::new(),
        filter => program(filter)?,
    };
    let signals = Signals::take()?;
    let mut client = Client::connect(&global.control())?;
    let request = TraceRequest { packets: args.count, filter };
    let grant = match client.ask(&Request::Trace(request))? {
        Response::Trace(grant) => grant,
        other => return Err(unexpected(&other)),
    };
    match &grant.ports[..] {
        [] => output::note(format_args!(
            "ferroute: no interface is a port yet; tracing on those that come"
        )),
        ports => output::note(format_args!("ferroute: tracing on {}", ports.join(", "))),
    }
    let (stream, read) = client.into_stream();
    stream.set_nonblocking(true)?;
    let mut trace = Trace { stream, read, out: global.output(), traced: 0, leaving: false };
    let end = match trace.run(&signals) {
        Err(error) if output::is_broken_pipe(&error) => return Ok(()),
        end => end?,
    };
    trace.say(end);
    match end {
        Some(TraceEnd { stopping: false, .. }) => Ok(()),
        _ => bail!("the daemon has ended"),
    }
}

struct Trace {
    stream: UnixStream,
    /// Octets from the daemon that are not parsed yet.
    read: Vec<u8>,
    out: Output,
    traced: u64,
    /// The daemon was notified that no more packets are wanted.
    leaving: bool,
}

impl Trace {
    /// Runs until the daemon sends the end. `None`: the connection ended without it.
    fn run(&mut self, signals: &Signals) -> Result<Option<TraceEnd>> {
        loop {
            if let Some(end) = self.messages()? {
                return Ok(Some(end));
            }
            if signals.came() && !self.leaving {
                // The daemon may have ended; the next read shows that.
                let _ = self.stream.shutdown(Shutdown::Write);
                self.leaving = true;
            }
            daemon_stream::wait(&self.stream, signals, PollTimeout::NONE)?;
            if !daemon_stream::receive(&self.stream, &mut self.read, READ)? {
                return Ok(None);
            }
        }
    }

    /// Prints the packets that have come completely.
    fn messages(&mut self) -> Result<Option<TraceEnd>> {
        let read = std::mem::take(&mut self.read);
        let mut end = None;
        for line in read.split_inclusive(|octet| *octet == b'\n') {
            if line.last() != Some(&b'\n') {
                self.read = line.to_vec();
                break;
            }
            match serde_json::from_slice(line).context("invalid message from the daemon")? {
                Message::Packet(packet) if self.out.json => {
                    self.traced += 1;
                    self.out.json(&packet)?;
                }
                Message::Packet(packet) => {
                    // An empty line between two packets.
                    let between = if self.traced == 0 { "" } else { "\n" };
                    self.traced += 1;
                    self.out.text(&format!("{between}{}", packet.text()))?;
                }
                Message::End(last) => end = Some(last),
            }
        }
        Ok(end)
    }

    /// Prints what was not traced, and why.
    fn say(&self, end: Option<TraceEnd>) {
        let missed = end.map_or(0, |end| end.missed);
        if missed > 0 {
            output::note(format_args!(
                "{missed} packet(s) matched and were not traced: they came faster than they were printed"
            ));
        }
        if self.traced == 0 {
            output::note(format_args!(
                "no packet matched; packets that the XDP program passes to the kernel are not seen: \
                 `ferroute stat` counts them by reason, `nft monitor trace` shows what the kernel's \
                 rules do with them"
            ));
        }
    }
}
