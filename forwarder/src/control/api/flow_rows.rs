//! The list of flows: carried connections, and entries of the offload table that are of no connection.

use std::fmt;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xdp_prog::offload::Width;

use super::flow_filter::prefixes;
use crate::control::config::ipnet::IpNet;
use crate::control::conntrack::{Tuple, TupleFields, protocol_name};
use crate::control::nftables::print::one_line;

/// Why the XDP program does not forward the packets of a flow by itself. The names in JSON do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// `--offload off`, or the table could not be allocated.
    OffloadOff,
    /// Captures and traces see every packet.
    CaptureRunning,
    /// There is no route by which the packets are forwarded.
    NoRoute,
    /// There is one that is not followed.
    RouteUnsupported,
    /// Rules of routing look at marks, and rules of nftables set them: it is not known here where they are sent.
    RoutedByMark,
    /// They arrive on, or leave by, an interface of the kernel.
    NotAPort,
    /// With `auto`.
    Zerocopy,
    /// A port in generic mode neither offers flows nor takes them.
    GenericMode,
    /// The driver of the outgoing port drops redirected frames.
    PortWithoutRedirect,
    /// They leave by the interface that they came from.
    SameInterface,
    /// They leave by a VLAN with such a map.
    EgressQosMap,
    /// The route has several next hops.
    Multipath,
    /// Chains at ingress are evaluated for each packet.
    IngressChain,
    /// The ruleset looks at more than the flow, or at routes of which an entry knows nothing.
    RulesPerPacket,
    /// There are rules, which do not track connections.
    RulesWithoutTracking,
    /// An IPsec policy concerns it; without connections, also if one looks at more than addresses.
    IpsecPolicy,
    /// The kernel answers neighbour solicitations for others.
    ProxyNdp,
    /// The link-layer address is not known.
    NeighbourUnresolved,
    /// The kernel's entry of the connection is about to expire.
    Expiring,
    /// There is no place in the table.
    TableFull,
    /// There are as many next hops as the table may have.
    NextHopsFull,
    /// Nothing prevents it, but too few packets were seen.
    BelowThreshold,
}

impl Reason {
    /// It in words.
    pub fn text(self) -> &'static str {
        match self {
            Reason::OffloadOff => "flow offload is off (--offload off, or no memory for the table)",
            Reason::CaptureRunning => "a capture or a trace runs, which sees all packets",
            Reason::NoRoute => "no unicast route to the destination",
            Reason::RouteUnsupported => "the kernel routes its packets: the route is not followed",
            Reason::RoutedByMark => {
                "not known: packets may be routed by a mark (ip rule fwmark) that rules set"
            }
            Reason::NotAPort => "the kernel sends its packets: an interface is not a port",
            Reason::Zerocopy => "it arrives on a port in zero-copy mode (--offload on: these, too)",
            Reason::GenericMode => "a port is in generic mode",
            Reason::PortWithoutRedirect => {
                "the driver of the outgoing port does not take redirected frames; see doctor"
            }
            Reason::SameInterface => "it leaves by the interface that it comes from",
            Reason::EgressQosMap => "it leaves by a VLAN with an egress-qos-map",
            Reason::Multipath => "its route has several next hops",
            Reason::IngressChain => "an interface has a chain at ingress",
            Reason::RulesPerPacket => {
                "rules look at more than its connection, or at routes to addresses before or after NAT"
            }
            Reason::RulesWithoutTracking => "there are rules, and they do not track connections",
            Reason::IpsecPolicy => {
                "an IPsec policy concerns it, or (without connections) looks at more than addresses"
            }
            Reason::ProxyNdp => "proxy_ndp is on, or IPv6 forwarding off, where it arrives",
            Reason::NeighbourUnresolved => "the link-layer address of the next hop is not known",
            Reason::Expiring => "the kernel's entry of the connection is about to expire",
            Reason::TableFull => "the table has no place for it (--offload-flows)",
            Reason::NextHopsFull => "the table has no place for another next hop",
            Reason::BelowThreshold => "too few packets in the present window of 8 seconds",
        }
    }

    /// Its name in JSON.
    pub fn key(self) -> String {
        let name = serde_json::to_value(self).ok();
        name.and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// Why a flow is not offloaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotOffloaded {
    /// The reason.
    pub reason: Reason,
    /// With [`Reason::RulesPerPacket`]: the first rule that is evaluated for each packet, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// With [`Reason::BelowThreshold`].
    #[serde(flatten)]
    pub counted: Option<CountedPackets>,
}

/// Packets that were seen, and from how many on a flow is offloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CountedPackets {
    /// In the present window of 8 seconds.
    pub packets_in_window: u16,
    /// From how many on.
    pub threshold: u16,
}

/// How packets of a direction are forwarded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Forwarding {
    /// The interface that they arrive on. If they are not offloaded: by which packets to their source leave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    /// The interface that they leave by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oif: Option<String>,
    /// The neighbour that they are sent to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nexthop: Option<IpAddr>,
    /// Its link-layer address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lladdr: Option<String>,
    /// The XDP program forwards them by itself now.
    pub offloaded: bool,
    /// Why it does not; with details.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_offloaded: Option<NotOffloaded>,
    /// What the entry depends on; with details.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depends_on: Option<DependsOn>,
}

/// What voids an entry when it changes, besides its next hop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DependsOn {
    /// The prefix of the route to the destination. `None`: rules of policy routing decide, or it has just been removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<IpNet>,
    /// The same to the source: which sources are valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_route: Option<IpNet>,
    /// The kernel's entry of a connection.
    pub connection: bool,
    /// The nftables ruleset decided about it. Otherwise that there is none.
    pub ruleset: bool,
}

/// A direction of a carried connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectionRow {
    /// What packets have, as they are received.
    pub tuple: Tuple,
    /// Packets that were carried.
    pub packets: u64,
    /// Their octets, from the IP header on.
    pub octets: u64,
    /// How they are forwarded.
    pub forwarding: Forwarding,
}

/// A carried connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionRow {
    /// Original and reply.
    pub directions: [DirectionRow; 2],
    /// `ct->mark`.
    pub mark: u32,
    /// Milliseconds since a packet was carried last; `None`: none was yet.
    pub idle_ms: Option<u64>,
}

/// Packets of one direction that are of no carried connection, or of one that entries are listed of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntryRow {
    /// The packets; the protocol may be that of a [`Width`]: all with these addresses, or of these prefixes.
    #[serde(serialize_with = "entry_tuple")]
    pub tuple: Tuple,
    /// What NAT makes of them.
    #[serde(serialize_with = "optional_tuple", skip_serializing_if = "Option::is_none")]
    pub translated: Option<Tuple>,
    /// How they are forwarded.
    #[serde(flatten)]
    pub forwarding: Forwarding,
    /// What the entry has counted; `None`: there is no entry.
    #[serde(flatten)]
    pub counts: Option<EntryCounts>,
}

/// What an entry has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EntryCounts {
    /// Packets since it was offloaded.
    pub packets: u64,
    /// Their octets, from the IP header on.
    pub octets: u64,
    /// Since when it is offloaded, milliseconds.
    pub age_ms: u64,
    /// Since when no packet was seen, milliseconds; exact to 200 ms.
    pub idle_ms: u64,
}

/// A flow of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum FlowRow {
    /// A carried connection.
    Connection(Box<ConnectionRow>),
    /// Packets of one direction.
    Entry(Box<EntryRow>),
}

impl FlowRow {
    /// How its directions are forwarded.
    pub fn forwarding(&self) -> impl Iterator<Item = &Forwarding> {
        let (connection, entry) = match self {
            FlowRow::Connection(row) => (Some(row), None),
            FlowRow::Entry(row) => (None, Some(&row.forwarding)),
        };
        let directions = connection.into_iter().flat_map(|row| &row.directions);
        directions.map(|direction| &direction.forwarding).chain(entry)
    }

    /// Whether packets of one of its directions are offloaded.
    pub fn is_offloaded(&self) -> bool {
        self.forwarding().any(|it| it.offloaded)
    }
}

impl Serialize for ConnectionRow {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Direction<'a> {
            #[serde(flatten)]
            tuple: TupleFields,
            packets: u64,
            octets: u64,
            #[serde(flatten)]
            forwarding: &'a Forwarding,
        }
        #[derive(Serialize)]
        struct Fields<'a> {
            protocol: &'static str,
            protonum: u8,
            original: Direction<'a>,
            reply: Direction<'a>,
            mark: u32,
            idle_ms: Option<u64>,
        }
        let direction = |at: usize| {
            let DirectionRow { tuple, packets, octets, forwarding } = &self.directions[at];
            let (tuple, packets, octets) = (TupleFields::of(tuple), *packets, *octets);
            Direction { tuple, packets, octets, forwarding }
        };
        let protonum = self.directions[0].tuple.protocol;
        let fields = Fields {
            protocol: protocol_name(protonum),
            protonum,
            original: direction(0),
            reply: direction(1),
            mark: self.mark,
            idle_ms: self.idle_ms,
        };
        fields.serialize(serializer)
    }
}

fn entry_tuple<S: serde::Serializer>(tuple: &Tuple, serializer: S) -> Result<S::Ok, S::Error> {
    EntryTuple::of(tuple).serialize(serializer)
}

fn optional_tuple<S: serde::Serializer>(
    tuple: &Option<Tuple>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    tuple.as_ref().map(EntryTuple::of).serialize(serializer)
}

/// The packets that an entry stands for, in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EntryTuple {
    protocol: &'static str,
    protonum: u8,
    #[serde(flatten)]
    tuple: TupleFields,
    /// Lengths of prefixes, bits, as `ip -j rule` has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    srclen: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dstlen: Option<u8>,
}

impl EntryTuple {
    /// Of a tuple, whose protocol may be that of a [`Width`].
    pub fn of(tuple: &Tuple) -> EntryTuple {
        let [srclen, dstlen] = prefixes(tuple).map(length);
        let is_wide = Width::of(tuple.protocol).is_some();
        EntryTuple {
            protocol: entry_protocol(tuple.protocol),
            protonum: tuple.protocol,
            tuple: TupleFields::of(&Tuple {
                protocol: if is_wide { 0 } else { tuple.protocol },
                ..*tuple
            }),
            srclen,
            dstlen,
        }
    }
}

/// The length of a prefix that is not a single address.
fn length(net: IpNet) -> Option<u8> {
    (net != IpNet::host(net.addr)).then_some(net.len)
}

/// The name of an entry's protocol; `all` for one that stands for all packets with its addresses.
pub fn entry_protocol(protocol: u8) -> &'static str {
    if Width::of(protocol).is_some() { "all" } else { protocol_name(protocol) }
}

/// A prefix; of a single address the address alone.
pub fn prefix_text(net: IpNet) -> String {
    match length(net) {
        Some(_) => net.to_string(),
        None => net.addr.to_string(),
    }
}

impl fmt::Display for Forwarding {
    /// ` oif=… via=… lladdr=…`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(oif) = &self.oif {
            write!(f, " oif={oif}")?;
        }
        if let Some(nexthop) = &self.nexthop {
            write!(f, " via={nexthop}")?;
        }
        match &self.lladdr {
            Some(lladdr) => write!(f, " lladdr={lladdr}"),
            None => Ok(()),
        }
    }
}

impl Forwarding {
    /// A line with what is only shown with details, after `title`.
    fn write_details(&self, title: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(NotOffloaded { reason, rule, counted }) = &self.not_offloaded {
            write!(f, "    {title}not offloaded, {}: {}", reason.key(), reason.text())?;
            if let Some(rule) = rule {
                write!(f, ": {}", one_line(rule))?;
            }
            if let Some(CountedPackets { packets_in_window, threshold }) = counted {
                write!(f, " ({packets_in_window} of {threshold})")?;
            }
            writeln!(f)?;
        }
        let Some(DependsOn { route, source_route, connection, ruleset }) = &self.depends_on else {
            return Ok(());
        };
        write!(f, "    {title}offloaded, depends on:")?;
        match route {
            Some(route) => write!(f, " route {route}")?,
            None => write!(f, " rules of policy routing")?,
        }
        if let Some(route) = source_route {
            write!(f, ", route to the source {route}")?;
        }
        if let (Some(nexthop), Some(oif)) = (&self.nexthop, &self.oif) {
            write!(f, ", neighbour {nexthop} dev {oif}")?;
        }
        if *connection {
            write!(f, ", conntrack entry")?;
        }
        writeln!(f, "{}", if *ruleset { ", ruleset" } else { ", no ruleset" })
    }
}

impl fmt::Display for ConnectionRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.directions[0].tuple.protocol;
        write!(f, "{:<8} {protocol}", protocol_name(protocol))?;
        for DirectionRow { tuple, packets, octets, forwarding } in &self.directions {
            write!(f, " {tuple} packets={packets} octets={octets}")?;
            if let Some(iif) = &forwarding.iif {
                write!(f, " iif={iif}")?;
            }
            write!(f, "{forwarding}{}", if forwarding.offloaded { " [OFFLOAD]" } else { "" })?;
        }
        write!(f, " mark={}", self.mark)?;
        match self.idle_ms {
            Some(idle_ms) => writeln!(f, " idle={idle_ms}ms")?,
            None => writeln!(f)?,
        }
        let [original, reply] = &self.directions;
        original.forwarding.write_details("original: ", f)?;
        reply.forwarding.write_details("reply: ", f)
    }
}

impl fmt::Display for EntryRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(iif) = &self.forwarding.iif {
            write!(f, "iif={iif} ")?;
        }
        write!(f, "{}", entry_protocol(self.tuple.protocol))?;
        match Width::of(self.tuple.protocol) {
            Some(_) => {
                let [from, to] = prefixes(&self.tuple).map(prefix_text);
                write!(f, " src={from} dst={to}")?;
            }
            None => write!(f, " {}", self.tuple)?,
        }
        if let Some(translated) = &self.translated {
            write!(f, " -> {translated}")?;
        }
        write!(f, "{}", self.forwarding)?;
        if let Some(EntryCounts { packets, octets, age_ms, idle_ms }) = self.counts {
            write!(f, " packets={packets} octets={octets} age={age_ms}ms idle={idle_ms}ms")?;
        }
        writeln!(f, "{}", if self.forwarding.offloaded { " [OFFLOAD]" } else { "" })?;
        self.forwarding.write_details("", f)
    }
}

impl fmt::Display for FlowRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FlowRow::Connection(row) => row.fmt(f),
            FlowRow::Entry(row) => row.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn tuple(source: &str, destination: &str, protocol: u8, ports: [u16; 2]) -> Tuple {
        let [source_port, destination_port] = ports;
        let (source, destination) = (address(source), address(destination));
        Tuple { source, destination, protocol, source_port, destination_port }
    }

    fn offloaded() -> Forwarding {
        Forwarding {
            iif: Some("lan".into()),
            oif: Some("wan".into()),
            nexthop: Some(address("198.51.100.2")),
            lladdr: Some("02:00:00:00:00:01".into()),
            offloaded: true,
            ..Forwarding::default()
        }
    }

    fn entry() -> EntryRow {
        let tuple = tuple("10.0.0.1", "192.0.2.9", 17, [1000, 53]);
        EntryRow {
            tuple,
            translated: Some(Tuple { source: address("198.51.100.1"), ..tuple }),
            forwarding: offloaded(),
            counts: Some(EntryCounts { packets: 3, octets: 120, age_ms: 5000, idle_ms: 20 }),
        }
    }

    fn json(row: &FlowRow) -> Value {
        serde_json::to_value(row).expect("JSON")
    }

    #[test]
    fn entries_are_text_and_json() {
        let row = FlowRow::Entry(Box::new(entry()));
        assert_eq!(
            row.to_string(),
            "iif=lan udp src=10.0.0.1 dst=192.0.2.9 sport=1000 dport=53 -> src=198.51.100.1 \
             dst=192.0.2.9 sport=1000 dport=53 oif=wan via=198.51.100.2 lladdr=02:00:00:00:00:01 \
             packets=3 octets=120 age=5000ms idle=20ms [OFFLOAD]\n"
        );
        assert!(row.is_offloaded());
        let expected = json!({
            "tuple": {"protocol": "udp", "protonum": 17, "src": "10.0.0.1", "dst": "192.0.2.9",
                      "sport": 1000, "dport": 53},
            "translated": {"protocol": "udp", "protonum": 17, "src": "198.51.100.1",
                           "dst": "192.0.2.9", "sport": 1000, "dport": 53},
            "iif": "lan", "oif": "wan", "nexthop": "198.51.100.2",
            "lladdr": "02:00:00:00:00:01", "offloaded": true,
            "packets": 3, "octets": 120, "age_ms": 5000, "idle_ms": 20,
        });
        assert_eq!(json(&row), expected);
    }

    #[test]
    fn wide_entries_have_prefixes_and_say_what_they_depend_on() {
        let forwarding = Forwarding {
            depends_on: Some(DependsOn {
                route: Some("10.7.0.0/16".parse().expect("a prefix")),
                source_route: Some("10.0.0.0/24".parse().expect("a prefix")),
                ..DependsOn::default()
            }),
            ..offloaded()
        };
        let tuple = tuple("10.0.0.1", "10.7.1.0", Width::ToPrefix.protocol(), [0, 0]);
        let row =
            FlowRow::Entry(Box::new(EntryRow { tuple, translated: None, forwarding, ..entry() }));
        assert_eq!(
            row.to_string(),
            "iif=lan all src=10.0.0.1 dst=10.7.1.0/24 oif=wan via=198.51.100.2 \
             lladdr=02:00:00:00:00:01 packets=3 octets=120 age=5000ms idle=20ms [OFFLOAD]\n    \
             offloaded, depends on: route 10.7.0.0/16, route to the source 10.0.0.0/24, neighbour \
             198.51.100.2 dev wan, no ruleset\n"
        );
        let json = json(&row);
        let tuple = json!({"protocol": "all", "protonum": 254, "src": "10.0.0.1", "dst": "10.7.1.0",
                           "dstlen": 24});
        assert_eq!((&json["tuple"], json.get("translated")), (&tuple, None));
        let depends = json!({"route": "10.7.0.0/16", "source_route": "10.0.0.0/24",
                             "connection": false, "ruleset": false});
        assert_eq!(json["depends_on"], depends);
    }

    #[test]
    fn connections_say_of_each_direction_whether_it_is_offloaded() {
        let counted = Some(CountedPackets { packets_in_window: 2, threshold: 4 });
        let why = NotOffloaded { reason: Reason::BelowThreshold, rule: None, counted };
        let slow = Forwarding { not_offloaded: Some(why.clone()), ..Forwarding::default() };
        let direction = |source, destination, ports, forwarding| DirectionRow {
            tuple: tuple(source, destination, 6, ports),
            packets: 7,
            octets: 280,
            forwarding,
        };
        let row = FlowRow::Connection(Box::new(ConnectionRow {
            directions: [
                direction("10.0.0.1", "192.0.2.9", [1000, 80], offloaded()),
                direction("192.0.2.9", "10.0.0.1", [80, 1000], slow),
            ],
            mark: 5,
            idle_ms: Some(4),
        }));
        assert_eq!(
            row.to_string(),
            "tcp      6 src=10.0.0.1 dst=192.0.2.9 sport=1000 dport=80 packets=7 octets=280 \
             iif=lan oif=wan via=198.51.100.2 lladdr=02:00:00:00:00:01 [OFFLOAD] src=192.0.2.9 \
             dst=10.0.0.1 sport=80 dport=1000 packets=7 octets=280 mark=5 idle=4ms\n    reply: \
             not offloaded, below_threshold: too few packets in the present window of 8 seconds \
             (2 of 4)\n"
        );
        let json = json(&row);
        assert_eq!(json["original"]["offloaded"], true);
        assert_eq!(json["original"]["nexthop"], "198.51.100.2");
        let why = json!({"reason": "below_threshold", "packets_in_window": 2, "threshold": 4});
        assert_eq!(json["reply"]["not_offloaded"], why);
        assert_eq!((&json["mark"], &json["idle_ms"]), (&json!(5), &json!(4)));
    }

    #[test]
    fn reasons_have_names_that_do_not_change() {
        for (reason, name) in [
            (Reason::OffloadOff, "offload_off"),
            (Reason::NotAPort, "not_a_port"),
            (Reason::PortWithoutRedirect, "port_without_redirect"),
            (Reason::RulesPerPacket, "rules_per_packet"),
            (Reason::ProxyNdp, "proxy_ndp"),
        ] {
            assert_eq!(reason.key(), name);
        }
    }
}
