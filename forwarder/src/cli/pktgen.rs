//! `pktgen`: generates packets, with the options of the kernel's pktgen.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{Global, Usage};
use crate::control::config::CpuList;
use crate::control::netdev::nic::Nic;
use crate::control::process::signals::Signals;
use crate::io::af_xdp::BindMode;
use crate::load::capture::Capture;
use crate::load::{Circuit, Generator, LoadError, Pace, Place, Sent};
use crate::load::{Sizes, Span, Traffic, Vlan, af_xdp, next_hop};
use crate::wire::MacAddr;

/// Explanation of the options, printed after the help.
const NOTES: &str = "\
Options are those of the kernel's pktgen with dashes (Documentation/networking/pktgen.rst); sizes
are without the FCS, ranges include their last value. Packets carry pktgen's header (magic,
sequence number, seconds and microseconds), so `ferroute sink` also counts the kernel's packets.
The number of the generator's thread follows the header in two octets.

--engine xdp runs an XDP program over recycled frames, which the driver's ndo_xdp_xmit sends. On a
veth this needs an XDP program or GRO at the other end (ferroute run attaches a program). It keeps a
CPU busy even at a low rate. --engine af_xdp sends through AF_XDP sockets, one queue per thread.

Ends after --count packets, after --duration, or with Ctrl-C, and prints what was sent.";

/// Interval between checks whether it is to end.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Interval between updates of the progress bar.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// How packets are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
enum Engine {
    /// XDP live frames (BPF_PROG_RUN).
    Xdp,
    /// An AF_XDP socket.
    AfXdp,
}

/// Flags of the kernel's pktgen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
enum Flag {
    /// Random source addresses from their range.
    IpsrcRnd,
    /// Random destination addresses from their range.
    IpdstRnd,
    /// Random UDP source ports from their range.
    UdpsrcRnd,
    /// Random UDP destination ports from their range.
    UdpdstRnd,
    /// Flows one after the other instead of random flows.
    FlowSeq,
    /// Compute UDP checksums over IPv4.
    Udpcsum,
    /// No timestamp in the packets.
    NoTimestamp,
}

/// Sizes and their weights: `60,7 576,4 1500,1`.
#[derive(Debug, Clone)]
struct Weights(Vec<(u16, u32)>);

impl FromStr for Weights {
    type Err = String;

    fn from_str(text: &str) -> Result<Weights, String> {
        let one = |word: &str| {
            let (size, weight) = word.split_once(',')?;
            Some((size.parse().ok()?, weight.parse().ok()?))
        };
        let weights: Option<Vec<_>> = text.split_whitespace().map(one).collect();
        let weights = weights.filter(|weights| !weights.is_empty());
        weights.map(Weights).ok_or_else(|| {
            "expected sizes in octets, each with a weight, like `60,7 576,4 1500,1`".to_owned()
        })
    }
}

/// Arguments of `pktgen`.
#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub struct PktgenArgs {
    /// Send on this interface.
    #[arg(short, long, value_name = "IFACE")]
    interface: String,
    /// How packets are sent [default: xdp; af_xdp with --replay].
    #[arg(long)]
    engine: Option<Engine>,
    /// Number of packets [default: until stopped; with --replay the capture once].
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// Stop after this many seconds.
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Millions of bits per second, of frames without FCS, preamble and gap.
    #[arg(long, value_name = "MBIT", conflicts_with_all = ["ratep", "delay"])]
    rate: Option<f64>,
    /// Packets per second.
    #[arg(long, value_name = "PPS", conflicts_with = "delay")]
    ratep: Option<f64>,
    /// Nanoseconds from one packet to the next.
    #[arg(long, value_name = "NS")]
    delay: Option<u64>,
    /// Threads that share count and rate.
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// CPUs for the threads, like 0-3,5.
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,
    /// Send a capture's frames (pcap, pcapng) unchanged, without pktgen's header.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["packet", "flag"])]
    replay: Option<PathBuf>,
    /// Destination MAC [default: of the gateway or neighbour; with --replay the frame's own].
    #[arg(short = 'm', long, value_name = "MAC")]
    dst_mac: Option<MacAddr>,
    /// Source MAC [default: the interface's; with --replay the frame's own].
    #[arg(long, value_name = "MAC")]
    src_mac: Option<MacAddr>,
    #[command(flatten)]
    packet: PacketArgs,
    /// A flag of pktgen; repeat for more.
    #[arg(long, value_name = "FLAG", ignore_case = true)]
    flag: Vec<Flag>,
}

/// Contents of the packets.
#[derive(Debug, Args)]
#[group(id = "packet", multiple = true)]
struct PacketArgs {
    /// Frame size in octets without the FCS [default: the smallest: 60, 80 for IPv6].
    #[arg(short = 's', long, value_name = "OCTETS", conflicts_with = "imix_weights")]
    pkt_size: Option<u16>,
    /// Frame sizes with their weights: "60,7 576,4 1500,1".
    #[arg(long, value_name = "SIZE,WEIGHT…")]
    imix_weights: Option<Weights>,
    /// Destination address, or the first of a range.
    #[arg(short = 'd', long, visible_aliases = ["dst", "dst6-min", "dst6"], value_name = "IP")]
    dst_min: Option<IpAddr>,
    /// The last destination address.
    #[arg(long, visible_alias = "dst6-max", value_name = "IP", requires = "dst_min")]
    dst_max: Option<IpAddr>,
    /// Source address, or the first of a range [default: the interface's].
    #[arg(long, visible_aliases = ["src", "src6-min", "src6"], value_name = "IP")]
    src_min: Option<IpAddr>,
    /// The last source address.
    #[arg(long, visible_alias = "src6-max", value_name = "IP", requires = "src_min")]
    src_max: Option<IpAddr>,
    /// UDP source port, or the first of a range.
    #[arg(long, value_name = "PORT", default_value_t = 9)]
    udp_src_min: u16,
    /// The last UDP source port.
    #[arg(long, value_name = "PORT")]
    udp_src_max: Option<u16>,
    /// UDP destination port, or the first of a range.
    #[arg(long, value_name = "PORT", default_value_t = 9)]
    udp_dst_min: u16,
    /// The last UDP destination port.
    #[arg(long, value_name = "PORT")]
    udp_dst_max: Option<u16>,
    /// Number of flows, each with its own addresses and ports [default: they change with every packet].
    #[arg(long, value_name = "N", default_value_t = 0)]
    flows: u64,
    /// Consecutive packets of a flow.
    #[arg(long, value_name = "N", default_value_t = 1)]
    flowlen: u64,
    /// Add an 802.1Q tag with this VLAN ID.
    #[arg(long, value_name = "ID")]
    vlan_id: Option<u16>,
    /// Priority (PCP) in the tag.
    #[arg(long, value_name = "0-7", default_value_t = 0, requires = "vlan_id")]
    vlan_p: u8,
    /// TOS octet or traffic class, hexadecimal.
    #[arg(long, value_name = "XX", value_parser = hex_octet, default_value = "00")]
    #[arg(visible_alias = "traffic-class")]
    tos: u8,
}

fn hex_octet(text: &str) -> Result<u8, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u8::from_str_radix(digits, 16).map_err(|_| "expected two hexadecimal digits".to_owned())
}

/// What was sent.
#[derive(Debug, Serialize)]
struct Report {
    interface: String,
    engine: Engine,
    #[serde(flatten)]
    sent: Sent,
    pps: f64,
    /// Bits per second, without FCS, preamble and gap.
    bps: f64,
}

/// Sends, and reports what was sent.
pub fn pktgen(global: &Global, args: &PktgenArgs) -> Result<()> {
    if args.duration.is_some_and(|s| !(s > 0.0 && s.is_finite())) {
        return Err(Usage("--duration: more than 0 seconds".into()).into());
    }
    let place = Place::here(&args.interface);
    let source = args.source(&place)?;
    let pace = args.pace(&source)?;
    let signals = Signals::take()?;
    let engine = args.engine();
    // The circuit is dropped after the generator.
    let (mut circuit, generator);
    match (&source, engine) {
        (af_xdp::Source::Traffic(traffic), Engine::Xdp) => {
            traffic.check().map_err(|error| Usage(error.to_string()))?;
            circuit = Some(Circuit::new()?);
            let made = circuit.as_ref().map(|c| c.generator(&place, traffic, &pace));
            generator = made.context("just made")??;
        }
        _ => {
            circuit = None;
            generator = af_xdp::start(&place, &source, &pace, BindMode::Auto)?;
        }
    }
    let sent = watch(generator, &pace, args.duration, &signals);
    circuit.take();
    let report = Report::new(&args.interface, engine, sent?);
    let output = global.output();
    if output.json { output.json(&report) } else { output.text(&report.text()) }
}

/// Shows progress until the generator ends.
fn watch(
    generator: Generator,
    pace: &Pace,
    duration: Option<f64>,
    signals: &Signals,
) -> Result<Sent, LoadError> {
    let bar = progress_bar(pace.count);
    let started = Instant::now();
    let mut shown = started;
    while !generator.is_finished()
        && !signals.came()
        && duration.is_none_or(|seconds| started.elapsed().as_secs_f64() < seconds)
    {
        std::thread::sleep(CHECK_INTERVAL);
        if shown.elapsed() >= PROGRESS_INTERVAL {
            shown = Instant::now();
            let sent = generator.sent()?;
            bar.set_position(sent.packets);
            bar.set_message(format!("{:.0} packets/s", rate(sent.packets, sent.elapsed_s)));
        }
    }
    bar.finish_and_clear();
    generator.stop()
}

/// A progress bar on standard error, if that is a terminal.
fn progress_bar(count: Option<u64>) -> ProgressBar {
    let template = match count {
        Some(_) => "{elapsed_precise} [{wide_bar}] {human_pos}/{human_len} {msg}",
        None => "{elapsed_precise} {spinner} {human_pos} packets, {msg}",
    };
    let style = ProgressStyle::with_template(template);
    let bar = count.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn rate(packets: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { packets as f64 / seconds } else { 0.0 }
}

impl PktgenArgs {
    fn engine(&self) -> Engine {
        let default = if self.replay.is_some() { Engine::AfXdp } else { Engine::Xdp };
        self.engine.unwrap_or(default)
    }

    fn source(&self, place: &Place) -> Result<af_xdp::Source> {
        let Some(path) = &self.replay else {
            return Ok(af_xdp::Source::Traffic(self.traffic(place)?));
        };
        if self.engine() == Engine::Xdp {
            return Err(Usage("--replay needs --engine af_xdp".into()).into());
        }
        let mac = |mac: Option<MacAddr>| mac.map(|mac| mac.0);
        let capture = Capture::read(path, mac(self.src_mac), mac(self.dst_mac))?;
        Ok(af_xdp::Source::Capture(capture))
    }

    fn pace(&self, source: &af_xdp::Source) -> Result<Pace> {
        let (octets, once) = match source {
            af_xdp::Source::Traffic(traffic) => (traffic.size_mean(), None),
            af_xdp::Source::Capture(capture) => (capture.size_mean(), Some(capture.len() as u64)),
        };
        let rate = match (self.rate, self.delay) {
            (Some(mbit), _) => Some(mbit * 1e6 / 8.0 / octets),
            (_, Some(0)) => None,
            (_, Some(delay)) => Some(1e9 / delay as f64),
            _ => self.ratep,
        };
        let cpus = self.cpus.as_ref().map_or_else(Vec::new, |list| list.cpus().to_vec());
        let count = self.count.or(once.filter(|_| self.duration.is_none()));
        let pace = Pace { count, rate, window: None, threads: self.threads, cpus };
        if self.threads == 0 {
            return Err(Usage("--threads 0: at least one has to send".into()).into());
        }
        pace.check().map_err(|error| Usage(error.to_string()))?;
        Ok(pace)
    }

    fn traffic(&self, place: &Place) -> Result<Traffic> {
        let packet = &self.packet;
        let destination = packet.dst_min.ok_or_else(|| {
            Usage("no destination: give --dst-min (or --dst) IP, or --replay FILE".into())
        })?;
        let nic = place.usable()?;
        let (source, mac) = self.source_and_mac(&nic, destination)?;
        let flag = |flag| self.flag.contains(&flag);
        let mut traffic = Traffic::new(mac.0, source, destination);
        traffic.source_mac = self.src_mac.map(|mac| mac.0);
        traffic.vlan = packet.vlan_id.map(|id| Vlan { id, priority: packet.vlan_p });
        let span = |min, max: Option<IpAddr>, random| Span { min, max: max.unwrap_or(min), random };
        traffic.source = span(source, packet.src_max, flag(Flag::IpsrcRnd));
        traffic.destination = span(destination, packet.dst_max, flag(Flag::IpdstRnd));
        let span = |min, max: Option<u16>, random| Span { min, max: max.unwrap_or(min), random };
        traffic.source_port = span(packet.udp_src_min, packet.udp_src_max, flag(Flag::UdpsrcRnd));
        traffic.destination_port =
            span(packet.udp_dst_min, packet.udp_dst_max, flag(Flag::UdpdstRnd));
        traffic.sizes = match (&packet.imix_weights, packet.pkt_size) {
            (Some(weights), _) => Sizes::Imix(weights.0.clone()),
            (_, size) => Sizes::Fixed(size.unwrap_or(traffic.size_min() as u16)),
        };
        (traffic.flows, traffic.flow_len) = (packet.flows, packet.flowlen);
        traffic.flows_in_turn = flag(Flag::FlowSeq);
        traffic.udp_checksum = flag(Flag::Udpcsum);
        traffic.timestamp = !flag(Flag::NoTimestamp);
        traffic.tos = packet.tos;
        traffic.check().map_err(|error| Usage(error.to_string()))?;
        Ok(traffic)
    }

    /// Source address and destination MAC: as given, or from the kernel's route and neighbour.
    fn source_and_mac(&self, nic: &Nic, destination: IpAddr) -> Result<(IpAddr, MacAddr)> {
        if let (Some(source), Some(mac)) = (self.packet.src_min, self.dst_mac) {
            return Ok((source, mac));
        }
        let name = &nic.name;
        let way = next_hop::look_up(nic.ifindex, destination).with_context(|| {
            format!("no route to {destination} by {name}; give --src-min and --dst-mac")
        })?;
        let source = self.packet.src_min.or(way.source).with_context(|| {
            format!("{name} has no address to send to {destination} from: give --src-min")
        })?;
        let mac = match self.dst_mac {
            Some(mac) => mac,
            None => {
                let found = next_hop::resolve(nic.ifindex, name, way.next_hop);
                let hop = way.next_hop;
                let silent =
                    || format!("{hop} on {name} does not answer with its MAC: give --dst-mac");
                MacAddr(found.with_context(silent)?.with_context(silent)?)
            }
        };
        Ok((source, mac))
    }
}

impl Report {
    fn new(interface: &str, engine: Engine, sent: Sent) -> Report {
        let pps = rate(sent.packets, sent.elapsed_s);
        let bps = rate(sent.octets * 8, sent.elapsed_s);
        Report { interface: interface.to_owned(), engine, sent, pps, bps }
    }

    fn text(&self) -> String {
        let Sent { packets, octets, port_dropped, elapsed_s } = self.sent;
        format!(
            "{}: sent {packets} packets, {octets} octets in {elapsed_s:.2} s: \
             {:.0} packets/s, {:.1} Mbit/s; the port dropped {port_dropped}\n",
            self.interface,
            self.pps,
            self.bps / 1e6,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_pairs() {
        let weights: Weights = "60,7 576,4  1500,1".parse().expect("is right");
        assert_eq!(weights.0, [(60, 7), (576, 4), (1500, 1)]);
        for wrong in ["", "60", "60,", ",7", "60;7", "70000,1", "60,-1"] {
            assert!(wrong.parse::<Weights>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_report_says_what_was_sent_and_how_fast() {
        let sent = Sent { packets: 1000, octets: 60_000, port_dropped: 2, elapsed_s: 0.5 };
        let report = Report::new("eth0", Engine::AfXdp, sent);
        let text = "eth0: sent 1000 packets, 60000 octets in 0.50 s: 2000 packets/s, \
                    1.0 Mbit/s; the port dropped 2\n";
        assert_eq!(report.text(), text);
        let json = serde_json::to_value(&report).expect("writes");
        assert_eq!(json["engine"], "af_xdp");
        assert_eq!((&json["packets"], &json["seconds"]), (&1000.into(), &0.5.into()));
    }
}
