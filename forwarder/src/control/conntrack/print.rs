//! Entries as `conntrack -L` prints them (`__snprintf_conntrack_default` of libnetfilter_conntrack), and in
//! JSON, for which conntrack-tools has no format.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::entry::*;
use super::listed::{Counters, Listed};
use super::parse;
use crate::wire::Protocol;

/// Bits of the status, by name.
pub const STATUS_NAMES: [(u32, &str); 16] = [
    (IPS_EXPECTED, "EXPECTED"),
    (IPS_SEEN_REPLY, "SEEN_REPLY"),
    (IPS_ASSURED, "ASSURED"),
    (IPS_CONFIRMED, "CONFIRMED"),
    (IPS_SRC_NAT, "SRC_NAT"),
    (IPS_DST_NAT, "DST_NAT"),
    (IPS_SEQ_ADJUST, "SEQ_ADJUST"),
    (IPS_SRC_NAT_DONE, "SRC_NAT_DONE"),
    (IPS_DST_NAT_DONE, "DST_NAT_DONE"),
    (IPS_DYING, "DYING"),
    (IPS_FIXED_TIMEOUT, "FIXED_TIMEOUT"),
    (IPS_TEMPLATE, "TEMPLATE"),
    (IPS_UNTRACKED, "UNTRACKED"),
    (IPS_HELPER, "HELPER"),
    (IPS_OFFLOAD, "OFFLOAD"),
    (IPS_HW_OFFLOAD, "HW_OFFLOAD"),
];
/// Protocols by the names that `conntrack` has for them.
const PROTOCOL_NAMES: [(Protocol, &str); 8] = [
    (Protocol::TCP, "tcp"),
    (Protocol::UDP, "udp"),
    (Protocol::ICMP, "icmp"),
    (Protocol::ICMPV6, "icmpv6"),
    (Protocol::SCTP, "sctp"),
    (Protocol::UDPLITE, "udplite"),
    (Protocol::DCCP, "dccp"),
    (Protocol::GRE, "gre"),
];

/// Other names, of /etc/protocols, which it takes and does not print.
const OTHER_NAMES: [(Protocol, &str); 5] = [
    (Protocol::ICMPV6, "ipv6-icmp"),
    (Protocol::IPIP, "ipencap"),
    (Protocol::IPV6, "ipv6"),
    (Protocol::ESP, "esp"),
    (Protocol::AH, "ah"),
];

/// The name of a protocol, as `conntrack` prints it.
pub fn protocol_name(protocol: u8) -> &'static str {
    let known = PROTOCOL_NAMES.iter().find(|(known, _)| known.0 == protocol);
    known.map_or("unknown", |(_, name)| name)
}

/// The protocol with a name, or with a number in decimal.
pub fn protocol_number(text: &str) -> Option<u8> {
    let known = PROTOCOL_NAMES.iter().find(|(_, name)| name.eq_ignore_ascii_case(text));
    match known {
        Some((protocol, _)) => Some(protocol.0),
        None => {
            let other = OTHER_NAMES.iter().find(|(_, name)| name.eq_ignore_ascii_case(text));
            other.map(|(protocol, _)| protocol.0).or_else(|| text.parse().ok())
        }
    }
}

/// Whether tuples of a protocol have ports.
pub fn has_ports(protocol: u8) -> bool {
    parse::has_ports(Protocol(protocol))
}

impl fmt::Display for Tuple {
    /// `src=… dst=… sport=… dport=…`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tuple { source, destination, protocol, source_port, destination_port } = self;
        write!(f, "src={source} dst={destination}")?;
        let [kind, code] = destination_port.to_be_bytes();
        match Protocol(*protocol) {
            Protocol::ICMP | Protocol::ICMPV6 => {
                write!(f, " type={kind} code={code} id={source_port}")
            }
            Protocol::GRE => write!(f, " srckey={source_port:#x} dstkey={destination_port:#x}"),
            _ if has_ports(*protocol) => write!(f, " sport={source_port} dport={destination_port}"),
            _ => Ok(()),
        }
    }
}

/// A tuple in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TupleFields {
    src: IpAddr,
    dst: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    sport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dport: Option<u16>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    srckey: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dstkey: Option<u16>,
}

impl TupleFields {
    /// Of a tuple.
    pub fn of(tuple: &Tuple) -> TupleFields {
        let Tuple { source, destination, protocol, source_port, destination_port } = *tuple;
        let [kind, code] = destination_port.to_be_bytes();
        let is_icmp = matches!(Protocol(protocol), Protocol::ICMP | Protocol::ICMPV6);
        let is_gre = Protocol(protocol) == Protocol::GRE;
        let (with_ports, source_port, destination_port) =
            (has_ports(protocol), Some(source_port), Some(destination_port));
        TupleFields {
            src: source,
            dst: destination,
            sport: source_port.filter(|_| with_ports),
            dport: destination_port.filter(|_| with_ports),
            kind: is_icmp.then_some(kind),
            code: is_icmp.then_some(code),
            id: source_port.filter(|_| is_icmp),
            srckey: source_port.filter(|_| is_gre),
            dstkey: destination_port.filter(|_| is_gre),
        }
    }
}

/// How an entry is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// With the family (`-o extended`).
    pub extended: bool,
    /// With the id (`-o id`).
    pub id: bool,
}

/// An entry to be printed.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// The entry.
    pub listed: &'a Listed,
    /// How.
    pub style: Style,
    /// That Ferroute's workers carry it.
    pub carried: Option<Carried>,
}

/// That workers carry the packets of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// Milliseconds since they carried a packet last; `None`: they have not carried one yet.
    pub idle_ms: Option<u64>,
    /// Packets that were carried, original and reply direction: the kernel's counters are without them.
    pub packets: [u64; 2],
    /// Their octets, from the IP header on.
    pub octets: [u64; 2],
}

impl Line<'_> {
    /// What the kernel has counted of each direction, and the workers.
    fn counters(&self) -> [Option<Counters>; 2] {
        let carried = |at: usize| {
            let of = |carried: Carried| (carried.packets[at], carried.octets[at]);
            self.carried.map(of).unwrap_or_default()
        };
        [0, 1].map(|at| {
            let kernels = self.listed.counters[at]?;
            let (packets, octets) = carried(at);
            Some(Counters {
                packets: kernels.packets.saturating_add(packets),
                octets: kernels.octets.saturating_add(octets),
            })
        })
    }
}

impl fmt::Display for Line<'_> {
    /// As `conntrack -L`, with `[CARRIED]` after `[ASSURED]` and `idle=…ms` at the end if it is carried.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Listed { entry, zone, tuple_zones, .. } = self.listed;
        let counters = self.counters();
        let protocol = entry.original.protocol;
        if self.style.extended {
            write!(f, "{:<8} {} ", family_name(entry), entry.original.family())?;
        }
        write!(f, "{:<8} {protocol} ", protocol_name(protocol))?;
        if let Some(timeout_s) = entry.timeout_s {
            write!(f, "{timeout_s} ")?;
        }
        if let Some(state) = self.listed.state() {
            write!(f, "{state} ")?;
        }
        let direction = |f: &mut fmt::Formatter<'_>, at: usize, name: &str| {
            let tuple = if at == 0 { &entry.original } else { &entry.reply };
            write!(f, "{tuple} ")?;
            if let Some(zone) = tuple_zones.get(at).filter(|zone| **zone != 0) {
                write!(f, "zone-{name}={zone} ")?;
            }
            if let Some(Counters { packets, octets }) = counters.get(at).copied().flatten() {
                write!(f, "packets={packets} bytes={octets} ")?;
            }
            Ok(())
        };
        direction(f, 0, "orig")?;
        if entry.status & IPS_SEEN_REPLY == 0 {
            f.write_str("[UNREPLIED] ")?;
        }
        direction(f, 1, "reply")?;
        if entry.status & IPS_HW_OFFLOAD != 0 {
            f.write_str("[HW_OFFLOAD] ")?;
        } else if entry.status & IPS_OFFLOAD != 0 {
            f.write_str("[OFFLOAD] ")?;
        } else if entry.status & IPS_ASSURED != 0 {
            f.write_str("[ASSURED] ")?;
        }
        if self.carried.is_some() {
            f.write_str("[CARRIED] ")?;
        }
        write!(f, "mark={}", entry.mark)?;
        if let Some(secctx) = &self.listed.secctx {
            write!(f, " secctx={secctx}")?;
        }
        if *zone != 0 {
            write!(f, " zone={zone}")?;
        }
        if let Some(helper) = &self.listed.helper {
            write!(f, " helper={helper}")?;
        }
        if let Some(usage) = self.listed.usage {
            write!(f, " use={usage}")?;
        }
        if let Some(id) = entry.id.filter(|_| self.style.id) {
            write!(f, " id={id}")?;
        }
        if let Some(idle_ms) = self.carried.and_then(|carried| carried.idle_ms) {
            write!(f, " idle={idle_ms}ms")?;
        }
        Ok(())
    }
}

/// `ipv4` or `ipv6`.
fn family_name(entry: &Entry) -> &'static str {
    if entry.original.source.is_ipv4() { "ipv4" } else { "ipv6" }
}

/// A direction in JSON.
#[derive(Debug, Serialize)]
struct DirectionFields {
    #[serde(flatten)]
    tuple: TupleFields,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packets: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    octets: Option<u64>,
}

/// An entry in JSON.
#[derive(Debug, Serialize)]
pub struct Fields<'a> {
    family: &'static str,
    protocol: &'static str,
    protonum: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_s: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    original: DirectionFields,
    reply: DirectionFields,
    status: Vec<&'static str>,
    mark: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    secctx: Option<&'a str>,
    zone: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    helper: Option<&'a str>,
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    usage: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u32>,
    carried: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_ms: Option<u64>,
}

impl<'a> Fields<'a> {
    /// Of an entry.
    pub fn of(line: &Line<'a>) -> Fields<'a> {
        let Listed { entry, zone, tuple_zones, .. } = line.listed;
        let counters = line.counters();
        let direction = |tuple: &Tuple, zone: u16, counters: Option<Counters>| DirectionFields {
            tuple: TupleFields::of(tuple),
            zone: Some(zone).filter(|zone| *zone != 0),
            packets: counters.map(|counters| counters.packets),
            octets: counters.map(|counters| counters.octets),
        };
        let is_set = |(bit, _): &&(u32, &str)| entry.status & bit != 0;
        Fields {
            family: family_name(entry),
            protocol: protocol_name(entry.original.protocol),
            protonum: entry.original.protocol,
            timeout_s: entry.timeout_s,
            state: line.listed.state(),
            original: direction(&entry.original, tuple_zones[0], counters[0]),
            reply: direction(&entry.reply, tuple_zones[1], counters[1]),
            status: STATUS_NAMES.iter().filter(is_set).map(|(_, name)| *name).collect(),
            mark: entry.mark,
            secctx: line.listed.secctx.as_deref(),
            zone: *zone,
            helper: line.listed.helper.as_deref(),
            usage: line.listed.usage,
            id: entry.id,
            carried: line.carried.is_some(),
            idle_ms: line.carried.and_then(|carried| carried.idle_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: [u8; 4], destination: [u8; 4], protocol: u8, ports: [u16; 2]) -> Tuple {
        let (source, destination) = (source.into(), destination.into());
        let [source_port, destination_port] = ports;
        Tuple { source, destination, protocol, source_port, destination_port }
    }

    fn listed(protocol: u8, ports: [u16; 2], status: u32, tcp: Option<u8>) -> Listed {
        let (client, server) = ([192, 0, 2, 1], [198, 51, 100, 2]);
        Listed::of(Entry {
            original: tuple(client, server, protocol, ports),
            reply: tuple(server, client, protocol, [ports[1], ports[0]]),
            status,
            timeout_s: Some(431_999),
            mark: 0,
            zone: 0,
            id: Some(77),
            tcp: tcp.map(|state| TcpInfo { state, flags_original: 0, flags_reply: 0 }),
            has_helper: false,
            is_seq_adjusted: false,
            has_synproxy: false,
            has_labels: false,
            has_master: false,
        })
    }

    fn carried(idle_ms: u64) -> Carried {
        Carried { idle_ms: Some(idle_ms), packets: [3, 4], octets: [300, 400] }
    }

    fn text(listed: &Listed, style: Style, carried: Option<Carried>) -> String {
        Line { listed, style, carried }.to_string()
    }

    /// The expected lines are those of conntrack 1.4.7.
    #[test]
    fn lines_are_those_of_conntrack() {
        let replied = IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED;
        let mut tcp = listed(6, [1024, 80], replied, Some(TCP_CONNTRACK_ESTABLISHED));
        tcp.usage = Some(1);
        let tuples = "src=192.0.2.1 dst=198.51.100.2 sport=1024 dport=80 src=198.51.100.2 \
                      dst=192.0.2.1 sport=80 dport=1024 [ASSURED]";
        assert_eq!(
            text(&tcp, Style::default(), None),
            format!("tcp      6 431999 ESTABLISHED {tuples} mark=0 use=1")
        );
        assert_eq!(
            text(&tcp, Style { extended: true, id: true }, Some(carried(12))),
            format!(
                "ipv4     2 tcp      6 431999 ESTABLISHED {tuples} [CARRIED] mark=0 use=1 id=77 \
                 idle=12ms"
            )
        );
        tcp.counters = [5, 6].map(|packets| Some(Counters { packets, octets: 60 }));
        let counted = text(&tcp, Style::default(), Some(carried(12)));
        assert!(counted.contains(" packets=8 bytes=360 ") && counted.contains("=10 bytes=460 "));
        let mut udp = listed(17, [5, 53], IPS_CONFIRMED, None);
        (udp.counters[0], udp.zone) = (Some(Counters { packets: 2, octets: 99 }), 3);
        (udp.helper, udp.usage) = (Some("sip".into()), Some(2));
        assert_eq!(
            text(&udp, Style::default(), None),
            "udp      17 431999 src=192.0.2.1 dst=198.51.100.2 sport=5 dport=53 packets=2 \
             bytes=99 [UNREPLIED] src=198.51.100.2 dst=192.0.2.1 sport=53 dport=5 mark=0 zone=3 \
             helper=sip use=2"
        );
        let icmp = listed(1, [9, 0x0800], replied, None);
        assert!(text(&icmp, Style::default(), None).contains(" type=8 code=0 id=9 "));
        let ospf = listed(89, [0, 0], IPS_CONFIRMED | IPS_OFFLOAD, None);
        assert_eq!(
            text(&ospf, Style::default(), None),
            "unknown  89 431999 src=192.0.2.1 dst=198.51.100.2 [UNREPLIED] src=198.51.100.2 \
             dst=192.0.2.1 [OFFLOAD] mark=0"
        );
    }

    #[test]
    fn json_has_what_the_line_has() {
        let entry = listed(6, [1024, 80], IPS_SEEN_REPLY | IPS_CONFIRMED, Some(0));
        let carried = Some(carried(5));
        let line = Line { listed: &entry, style: Style::default(), carried };
        let expected = serde_json::json!({
            "family": "ipv4", "protocol": "tcp", "protonum": 6, "timeout_s": 431_999,
            "state": "NONE",
            "original": {"src": "192.0.2.1", "dst": "198.51.100.2", "sport": 1024, "dport": 80},
            "reply": {"src": "198.51.100.2", "dst": "192.0.2.1", "sport": 80, "dport": 1024},
            "status": ["SEEN_REPLY", "CONFIRMED"], "mark": 0, "zone": 0, "id": 77,
            "carried": true, "idle_ms": 5,
        });
        assert_eq!(serde_json::to_value(Fields::of(&line)).expect("JSON"), expected);
    }

    #[test]
    fn protocols_have_names_and_numbers() {
        for (text, number) in
            [("tcp", 6), ("ICMPv6", 58), ("ipv6-icmp", 58), ("esp", 50), ("89", 89)]
        {
            assert_eq!(protocol_number(text), Some(number));
        }
        assert_eq!((protocol_number("tpc"), protocol_number("256")), (None, None));
        assert_eq!((protocol_name(17), protocol_name(89)), ("udp", "unknown"));
    }
}
