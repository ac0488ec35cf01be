//! Traced packets: messages on a connection after a trace was granted, and their text.
//!
//! The daemon sends one JSON object a line, a [`Message`]; after [`Message::End`] nothing follows. The client sends
//! nothing. It closes its writing side when it wants no more.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::capture::Insn;
use crate::wire::ethernet::MacAddr;

/// Columns of the names of stages: the longest, `ip6_forward_checks`, and two spaces.
const NAME_WIDTH: usize = 20;

/// Requests traces of packets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TraceRequest {
    /// Number of packets, at least 1.
    pub packets: u64,
    /// The filter program; empty: all packets.
    pub filter: Vec<Insn>,
}

/// Answers the request: the trace has started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TraceGrant {
    /// Names of the ports.
    pub ports: Vec<String>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "TraceLine")]
pub enum Message {
    /// A packet.
    Packet(Box<PacketTrace>),
    /// Nothing follows.
    End(TraceEnd),
}

/// Summary of a trace that has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TraceEnd {
    /// Packets that matched and were not traced, because earlier ones had not been read yet.
    pub missed: u64,
    /// It ended because the daemon is stopping.
    pub stopping: bool,
}

/// The way of a packet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PacketTrace {
    /// Its number in the trace, from 1.
    pub packet: u64,
    /// The worker that processed it.
    pub worker: u32,
    /// When, nanoseconds since 1970 UTC.
    pub tstamp_ns: u64,
    /// The port that received it.
    pub port: String,
    /// Its length with the link-layer header, octets.
    pub length: u32,
    /// The packet as received, as `ferroute capture` prints it.
    pub frame: String,
    /// The stages that decided something, and the one where it ended.
    pub stages: Vec<TraceStage>,
    /// How it ended.
    pub disposition: TraceDisposition,
}

/// A stage of the data path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TraceStage {
    /// Its name in ARCHITECTURE.md.
    pub stage: String,
    /// What happened, in order.
    pub steps: Vec<TraceStep>,
}

/// A step of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TraceStep {
    /// Header passed the checks.
    Header {
        /// IP version.
        version: u8,
        /// TTL or hop limit.
        ttl: u8,
        /// Length from the IP header on, octets.
        length: u32,
    },
    /// The interface that counts as the input interface.
    Dev {
        /// Its name.
        dev: String,
    },
    /// The route.
    Route {
        /// The destination.
        dst: IpAddr,
        /// The gateway, if there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        via: Option<IpAddr>,
        /// The output interface.
        dev: String,
        /// IP MTU of the route, octets.
        mtu: u32,
    },
    /// TTL or hop limit after decrementing.
    Ttl {
        /// Its value.
        ttl: u8,
    },
    /// The connection.
    Conntrack {
        /// `established`, `invalid`, or `not carried`.
        state: String,
        /// Number of the carried flow.
        #[serde(skip_serializing_if = "Option::is_none")]
        flow: Option<u32>,
        /// `original` or `reply`.
        #[serde(skip_serializing_if = "Option::is_none")]
        direction: Option<String>,
        /// `ct mark`.
        #[serde(skip_serializing_if = "Option::is_none")]
        mark: Option<u32>,
    },
    /// A translation.
    Nat {
        /// `source` or `destination`.
        end: String,
        /// Before: address and port; of ICMP echo, the source with its identifier, as `ADDRESS id NUMBER`; without ports, the
        /// address.
        from: String,
        /// After, in the same way.
        to: String,
    },
    /// A rule was evaluated.
    Rule {
        /// Family and name of the table.
        table: String,
        /// The chain.
        chain: String,
        /// The rule's handle.
        handle: u64,
        /// The rule, as `ferroute rules show` prints it, without counts.
        rule: String,
        /// `accept`, `drop`, `return`, `continue`, `jump CHAIN`, `goto CHAIN`, `kernel`; `no match`: an
        /// expression did not match.
        result: String,
        /// The expression that did not match.
        #[serde(skip_serializing_if = "Option::is_none")]
        expression: Option<String>,
        /// The value that the packet has, if it has one.
        #[serde(skip_serializing_if = "Option::is_none")]
        value: Option<String>,
    },
    /// The end of a chain, or the policy of a base chain, decided.
    Chain {
        /// Family and name of the table.
        table: String,
        /// The chain.
        chain: String,
        /// `end` or `policy accept` or `policy drop`.
        result: String,
    },
    /// The neighbour.
    Neigh {
        /// Its address.
        dst: IpAddr,
        /// Its link-layer address, if it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        lladdr: Option<String>,
        /// The output interface.
        dev: String,
    },
    /// An ICMP or ICMPv6 error is due.
    Icmp {
        /// The type.
        icmp_type: u8,
        /// The code.
        code: u8,
        /// The second word of the ICMP header: MTU or pointer.
        info: u32,
    },
    /// Anything else, in words.
    Note {
        /// The words.
        text: String,
    },
}

/// How a packet ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TraceDisposition {
    /// Put on the TX ring of a port, or handed to the worker that sends there.
    Sent {
        /// The port.
        port: String,
    },
    /// Dropped.
    Dropped {
        /// The reason, as `ferroute drops` names it.
        reason: String,
        /// What it means.
        help: String,
    },
    /// Dropped, and its sender was sent an ICMP or ICMPv6 error.
    IcmpError {
        /// `icmp` or `icmpv6`.
        protocol: String,
        /// The type.
        icmp_type: u8,
        /// The code.
        code: u8,
        /// The drop reason.
        reason: String,
    },
    /// Handed to the kernel.
    Kernel {
        /// The reason, as `ferroute drops` names it.
        reason: String,
        /// What it means.
        help: String,
        /// The rule or chain that left it to the kernel, and why.
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// Held until the neighbour is resolved.
    Held {
        /// The neighbour's address.
        dst: IpAddr,
        /// Its interface.
        dev: String,
    },
    /// A fragment of an IPsec packet to the router, held until the others have arrived.
    HeldFragment,
    /// Cut into fragments, which were queued for sending.
    Fragmented {
        /// Their number.
        fragments: u32,
        /// The output interface.
        dev: String,
    },
}

impl PacketTrace {
    /// The packet in lines: what it is, its stages, how it ended. Names are not escaped.
    pub fn text(&self) -> String {
        let PacketTrace { packet, worker, port, frame, .. } = self;
        let time = time_of_day(self.tstamp_ns);
        // Without the link-layer header.
        let frame = frame.split_once(": ").map_or(frame.as_str(), |(_, packet)| packet);
        let mut text = format!("packet {packet}, worker {worker}, {time}, {port}: {frame}\n");
        for TraceStage { stage, steps } in &self.stages {
            let mut name = stage.as_str();
            let mut lines: Vec<String> = steps.iter().map(TraceStep::text).collect();
            if lines.is_empty() {
                lines.push("ends here".to_owned());
            }
            for line in lines {
                text.push_str(&format!("  {name:<NAME_WIDTH$}{line}\n"));
                name = "";
            }
        }
        let (name, what) = self.disposition.text();
        text.push_str(&format!("  {name:<NAME_WIDTH$}{what}\n"));
        text
    }
}

/// Hours, minutes, seconds and microseconds, UTC.
fn time_of_day(tstamp_ns: u64) -> String {
    let (s, us) = (tstamp_ns / 1_000_000_000, tstamp_ns / 1000 % 1_000_000);
    format!("{:02}:{:02}:{:02}.{us:06}", s / 3600 % 24, s / 60 % 60, s % 60)
}

impl TraceStep {
    fn text(&self) -> String {
        match self {
            TraceStep::Header { version, ttl, length } => {
                format!("version {version}, ttl {ttl}, length {length}")
            }
            TraceStep::Dev { dev } => format!("dev {dev}"),
            TraceStep::Route { dst, via, dev, mtu } => {
                let via = via.map(|via| format!(" via {via}")).unwrap_or_default();
                format!("{dst}{via} dev {dev}, mtu {mtu}")
            }
            TraceStep::Ttl { ttl } => format!("ttl {ttl}"),
            TraceStep::Conntrack { state, flow, direction, mark } => {
                let mut text = format!("conntrack: {state}");
                if let (Some(flow), Some(direction)) = (flow, direction) {
                    text.push_str(&format!(", {direction}, flow {flow}"));
                }
                if let Some(mark) = mark.filter(|mark| *mark != 0) {
                    text.push_str(&format!(", mark {mark:#x}"));
                }
                text
            }
            TraceStep::Nat { end, from, to } => format!("nat: {end} {from} -> {to}"),
            TraceStep::Rule { table, chain, handle, rule, result, expression, value } => {
                let why = expression.as_ref().map(|expression| {
                    let value = value.as_deref().unwrap_or("none");
                    format!(": {expression}: packet has {value}")
                });
                let why = why.unwrap_or_default();
                format!("{table} {chain} handle {handle}: {rule} -> {result}{why}")
            }
            TraceStep::Chain { table, chain, result } => format!("{table} {chain}: {result}"),
            TraceStep::Neigh { dst, lladdr, dev } => {
                format!("{dst} lladdr {} dev {dev}", lladdr.as_deref().unwrap_or("unknown"))
            }
            TraceStep::Icmp { icmp_type, code, info } => {
                let info =
                    if *info == 0 { String::new() } else { format!(", mtu or pointer {info}") };
                format!("type {icmp_type}, code {code}{info}")
            }
            TraceStep::Note { text } => text.clone(),
        }
    }
}

impl TraceDisposition {
    /// What happened, and details.
    fn text(&self) -> (&'static str, String) {
        match self {
            TraceDisposition::Sent { port } => ("sent", port.clone()),
            TraceDisposition::Dropped { reason, help } => ("dropped", format!("{reason}: {help}")),
            TraceDisposition::IcmpError { protocol, icmp_type, code, reason } => (
                "ICMP error sent",
                format!("{protocol} type {icmp_type}, code {code}; dropped as {reason}"),
            ),
            TraceDisposition::Kernel { reason, help, why } => {
                let why = why.as_deref().unwrap_or(help);
                ("handed to kernel", format!("{reason}: {why}"))
            }
            TraceDisposition::Held { dst, dev } => {
                ("held", format!("for neighbour {dst} dev {dev}"))
            }
            TraceDisposition::HeldFragment => ("held", "for the other fragments".to_owned()),
            TraceDisposition::Fragmented { fragments, dev } => {
                ("fragmented", format!("{fragments} fragments, dev {dev}"))
            }
        }
    }
}

/// A link-layer address as text.
pub fn lladdr(octets: [u8; 6]) -> String {
    MacAddr(octets).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::Request;

    fn packet() -> PacketTrace {
        let stage = |stage: &str, steps| TraceStage { stage: stage.into(), steps };
        let rule =
            |handle, result: &str, expression: Option<&str>, value: Option<&str>| TraceStep::Rule {
                table: "inet fw".into(),
                chain: "forward".into(),
                handle,
                rule: "tcp dport 22 drop".into(),
                result: result.into(),
                expression: expression.map(str::to_owned),
                value: value.map(str::to_owned),
            };
        PacketTrace {
            packet: 1,
            worker: 0,
            tstamp_ns: 76_042_123_456_789,
            port: "rt-left".into(),
            length: 66,
            frame: "02:0 > 02:1, ethertype IPv4 (0x0800), length 66: IP a: TCP".into(),
            stages: vec![
                stage("ip_rcv_core", vec![TraceStep::Header { version: 4, ttl: 64, length: 52 }]),
                stage(
                    "FORWARD",
                    vec![
                        rule(4, "no match", Some("tcp dport 22"), Some("5001")),
                        rule(5, "drop", None, None),
                    ],
                ),
                stage("ip_fragment", vec![]),
            ],
            disposition: TraceDisposition::Sent { port: "rt-right".into() },
        }
    }

    #[test]
    fn the_text_has_a_line_for_each_step() {
        let expected = "\
packet 1, worker 0, 21:07:22.123456, rt-left: IP a: TCP
  ip_rcv_core         version 4, ttl 64, length 52
  FORWARD             inet fw forward handle 4: tcp dport 22 drop -> no match: tcp dport 22: packet has 5001
                      inet fw forward handle 5: tcp dport 22 drop -> drop
  ip_fragment         ends here
  sent                rt-right
";
        assert_eq!(packet().text(), expected);
    }

    #[test]
    fn messages_survive_the_wire() {
        for message in [
            Message::Packet(Box::new(packet())),
            Message::End(TraceEnd { missed: 3, stopping: true }),
        ] {
            let line = serde_json::to_string(&message).expect("writes");
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Message>(&line).expect("reads"), message);
        }
        let filter = vec![Insn { code: 6, jt: 0, jf: 0, k: u32::MAX }];
        let request = Request::Trace(TraceRequest { packets: u64::MAX, filter });
        let line = serde_json::to_string(&request).expect("writes");
        assert_eq!(serde_json::from_str::<Request>(&line).expect("reads"), request);
    }
}
