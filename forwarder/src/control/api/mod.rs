//! The protocol between the command line and the daemon.
//!
//! Line-delimited JSON over a unix stream socket: a client sends one [`Envelope`] with a [`Request`] and a
//! newline, and gets one with a [`Response`]; any number of such pairs may follow on one connection. Both
//! sides state [`API_VERSION`]; a mismatch is answered with an error, so that a program updated under a
//! running daemon fails with a reason.

pub mod capture;
pub mod client;
mod clients;
mod connection;
pub mod event;
pub mod flow_filter;
pub mod flow_rows;
pub mod flows;
pub mod listen;
pub mod page;
pub mod route_get;
pub mod rows;
pub mod rules;
pub mod schema;
pub mod server;
pub mod show;
mod stat;
pub mod subscribe;
pub mod trace;

use std::net::IpAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::stat::{Counters, OffloadReport, PortReport, StatReport, WorkerReport};

use self::flows::{
    FlowCountReport, FlowFindReport, FlowFindRequest, FlowShowRequest, FlowTopReport,
    FlowTopRequest,
};
use crate::capture::Insn;
use crate::control::config::ipnet::IpNet;
use crate::control::config::reload::KeyChange;

/// Incremented when a request or response changes its meaning.
pub const API_VERSION: u32 = 1;

/// One line on the socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "{T}Line")]
pub struct Envelope<T> {
    /// [`API_VERSION`] of the sender.
    pub version: u32,
    /// The request or response.
    pub body: T,
}

impl<T> Envelope<T> {
    /// An envelope with this program's version.
    pub fn new(body: T) -> Envelope<T> {
        Envelope { version: API_VERSION, body }
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// The daemon's state: answered with [`Response::Status`].
    Status,
    /// A list of mirrored objects: answered with [`Response::Rendered`].
    Show(ShowRequest),
    /// Where packets would go: answered with [`Response::Rendered`], one element per address (JSON: of an
    /// array; text: a line), in the order of the request. A destination without a usable route has a type
    /// for it: `noroute`, `blackhole`, `unreachable`, `prohibit`; it is the line's first word.
    RouteGet(RouteGetRequest),
    /// Counters, with those that only workers have: answered with [`Response::Stat`]. Each worker does a little work for
    /// it, and one that has no turn delays the answer by 200 ms.
    Stat,
    /// Counters that are in shared memory: answered with [`Response::Counters`]. Workers have no part in it.
    Counters,
    /// Drop counters: answered with [`Response::Drops`].
    Drops,
    /// The nftables ruleset that workers apply: answered with [`Response::Rendered`] (JSON: an array of
    /// tables).
    Rules {
        /// The format.
        format: Format,
    },
    /// Which connections are carried: answered with [`Response::FlowFind`].
    FlowFind(FlowFindRequest),
    /// The flows, carried and offloaded ones: answered with [`Response::Rendered`].
    FlowShow(FlowShowRequest),
    /// Their number: answered with [`Response::FlowCount`].
    FlowCount(flow_filter::FlowFilter),
    /// The flows with the highest rates: answered with [`Response::FlowTop`] after an interval.
    FlowTop(FlowTopRequest),
    /// How long frames stayed in userspace: answered with [`Response::Latency`].
    Latency {
        /// Count from zero after this answer.
        reset: bool,
    },
    /// Copies of packets: answered with [`Response::Capture`], then the connection carries the [`capture`].
    Capture(CaptureRequest),
    /// The configuration file is to be read again: answered with [`Response::Reload`].
    Reload,
    /// The way of packets: answered with [`Response::Trace`], then the connection carries the [`trace`].
    Trace(trace::TraceRequest),
    /// Counters, drops and events: answered with [`Response::Subscribe`], then the connection carries the lines of the
    /// [`subscribe`]d topics.
    Subscribe(subscribe::SubscribeRequest),
}

/// Requests copies of packets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CaptureRequest {
    /// Names of ports; empty: all.
    pub ports: Vec<String>,
    /// Where packets are captured.
    pub directions: Vec<CaptureDirection>,
    /// Octets kept of each packet.
    pub snaplen: u32,
    /// Memory of each worker for copies that wait for the client, in KiB.
    pub buffer_kib: u32,
    /// The filter program; empty: all packets.
    pub filter: Vec<Insn>,
}

/// Where a packet is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CaptureDirection {
    /// As it was received.
    In,
    /// As it was put on a TX ring.
    Out,
    /// As it was when it was dropped.
    Drop,
}

/// Format of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// As `ip` prints it.
    Text,
    /// As `ip -j` prints it.
    Json,
}

/// A kind of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    /// Interfaces.
    Link,
    /// Addresses.
    Addr,
    /// Routes.
    Route,
    /// Rules.
    Rule,
    /// Nexthop objects.
    Nexthop,
    /// Neighbours.
    Neigh,
}

/// Requests a list of objects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShowRequest {
    /// The kind of objects.
    pub object: Object,
    /// The filter.
    pub filter: Filter,
    /// The format.
    pub format: Format,
    /// Links: with everything that can be read of the device and of its port.
    #[serde(default)]
    pub details: bool,
}

/// An address family on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// AF_INET.
    Inet,
    /// AF_INET6.
    Inet6,
}

impl Family {
    /// The family of an address.
    pub fn of(addr: IpAddr) -> Family {
        if addr.is_ipv6() { Family::Inet6 } else { Family::Inet }
    }
}

/// Which objects of a kind are shown. A field that is not given matches everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Filter {
    /// `-4`, `-6`.
    pub family: Option<Family>,
    /// `dev NAME`.
    pub dev: Option<String>,
    /// `table ID` of routes and rules; `None`: all tables. The command line asks for main (254)
    /// when the user names none for `route show`, as `ip` does.
    pub table: Option<u32>,
    /// Destination of routes, address of addr and neigh.
    pub to: Option<Selector>,
    /// `type T` of routes.
    pub kind: Option<String>,
    /// `proto P` of routes, a name or number as `ip` prints it.
    pub protocol: Option<String>,
    /// `via A` of routes.
    pub via: Option<IpAddr>,
    /// `id N` of nexthops.
    pub id: Option<u32>,
    /// `up` of links and addr.
    pub up: bool,
}

/// How a prefix is compared, `to [root|match|exact] PREFIX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    /// The prefix and everything inside it.
    Root(IpNet),
    /// The prefix and everything that covers it.
    Match(IpNet),
    /// The prefix alone.
    Exact(IpNet),
}

impl Selector {
    /// Whether a prefix passes.
    pub fn passes(&self, net: IpNet) -> bool {
        match *self {
            Selector::Root(root) => root.covers(net),
            Selector::Match(inner) => net.covers(inner),
            Selector::Exact(exact) => exact == net,
        }
    }
}

/// Requests the routes of packets, `route get`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RouteGetRequest {
    /// Destinations.
    pub addrs: Vec<IpAddr>,
    /// `from A`.
    pub from: Option<IpAddr>,
    /// `iif NAME`; `None`: a packet that the router itself sends.
    pub iif: Option<String>,
    /// `mark M`.
    pub mark: u32,
    /// The format.
    pub format: Format,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<StatusReport>),
    /// To [`Request::Show`], [`Request::RouteGet`], [`Request::Rules`] and [`Request::FlowShow`].
    Rendered(Rendered),
    /// To [`Request::Stat`].
    Stat(StatReport),
    /// To [`Request::Counters`]: without `frames` and `silent` of workers and `driver` of ports.
    Counters(StatReport),
    /// To [`Request::Drops`].
    Drops(DropsReport),
    /// To [`Request::FlowFind`].
    FlowFind(FlowFindReport),
    /// To [`Request::FlowCount`].
    FlowCount(FlowCountReport),
    /// To [`Request::FlowTop`].
    FlowTop(FlowTopReport),
    /// To [`Request::Latency`].
    Latency(LatencyReport),
    /// To [`Request::Capture`].
    Capture(CaptureGrant),
    /// To [`Request::Trace`].
    Trace(trace::TraceGrant),
    /// To [`Request::Reload`].
    Reload(ReloadReport),
    /// To [`Request::Subscribe`].
    Subscribe(subscribe::SubscribeGrant),
    /// The request failed.
    Error {
        /// What failed and why, for the user.
        message: String,
    },
}

impl Response {
    /// An error with its message.
    pub fn error(message: impl std::fmt::Display) -> Response {
        Response::Error { message: message.to_string() }
    }
}

/// What a reload has changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReloadReport {
    /// The file.
    pub file: PathBuf,
    /// Keys with another value than before.
    pub changes: Vec<KeyChange>,
    /// For the user to check.
    pub warnings: Vec<String>,
}

/// A list, in the requested format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rendered {
    /// Lines as `ip` prints them, each with its line end.
    Text(String),
    /// An array as `ip -j` prints it.
    Json(Value),
}

/// The daemon's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Ports or tables are not ready: everything is left to the kernel.
    Starting,
    /// Packets go through userspace.
    Forwarding,
    /// Packets go through userspace on some ports; others are down, gone or refused.
    Degraded,
    /// The daemon is stopping.
    Stopping,
}

impl State {
    /// The name as printed.
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Forwarding => "forwarding",
            State::Degraded => "degraded",
            State::Stopping => "stopping",
        }
    }
}

/// Answers [`Request::Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatusReport {
    /// The daemon's state.
    pub state: State,
    /// The daemon's process ID.
    pub pid: u32,
    /// The program's version.
    pub version: String,
    /// By which driver it has its ports: `af_xdp`, `xsk-rs`.
    #[serde(default)]
    pub driver: String,
    /// Since the start.
    pub uptime_seconds: u64,
    /// The ports, in the order given to `run`.
    pub ports: Vec<PortStatus>,
    /// The workers.
    pub workers: Vec<WorkerStatus>,
    /// The state mirrored from the kernel.
    pub mirror: MirrorStatus,
    /// Number of connections that workers carry; absent: the ruleset does not track connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried_flows: Option<u64>,
    /// Number of flows that are offloaded to the XDP program, each of which is one direction; absent: `--offload off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offloaded_flows: Option<u64>,
    /// Number of IPsec policies of the kernel that are followed; absent: there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipsec_policies: Option<u64>,
    /// The security associations; absent: there are no policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipsec_sas: Option<IpsecSas>,
    /// Warnings to the user: traffic left to the kernel and why, a bypassed firewall, ….
    pub warnings: Vec<String>,
}

/// The security associations of IPsec.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IpsecSas {
    /// Number of SAs by which workers receive.
    pub inbound: u64,
    /// Number of SAs by which workers send.
    pub outbound: u64,
    /// Number of SAs that only the kernel uses.
    pub kernel: u64,
    /// Why these are the kernel's, a line each for some of them; or why all are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// They are those of the configuration file: what they cannot protect is dropped, and `reasons` say why.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_file: bool,
}

/// One port.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PortStatus {
    /// Interface name.
    pub ifname: String,
    /// A pattern matched it; it was not named.
    #[serde(default)]
    pub matched: bool,
    /// 0: the interface is gone.
    pub ifindex: u32,
    /// `forwarding`, `down`, `absent`, or what is missing.
    pub state: String,
    /// How the XDP program is attached: `native`, `generic`; empty: not attached.
    pub xdp_mode: String,
    /// How the sockets are bound: `zerocopy`, `copy`; empty: not bound.
    pub bind_mode: String,
    /// RX queues that are served.
    pub queues: u32,
    /// IP MTU in octets.
    pub mtu: u32,
    /// VLAN interfaces on it that are followed.
    #[serde(default)]
    pub vlans: Vec<String>,
}

/// One worker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerStatus {
    /// From 0.
    pub worker: u32,
    /// CPU it is pinned to.
    pub cpu: Option<u32>,
    /// What it does for each served port.
    #[serde(default)]
    pub ports: Vec<WorkerPort>,
    /// Turns of its loop, busy and idle.
    pub loops: u64,
    /// Turns that moved a packet.
    pub busy_loops: u64,
}

/// What one worker does for one port.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerPort {
    /// Interface name.
    pub ifname: String,
    /// RX queues of the port that it serves.
    pub queues: Vec<u32>,
    /// The worker whose queue it sends by on the port; another one if it has no sending queue itself.
    pub sends_by: u32,
}

/// The netlink mirror.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MirrorStatus {
    /// Whether every dump has ended.
    pub ready: bool,
    /// Number of publications of the tables.
    pub generation: u64,
    /// Interfaces.
    pub links: u64,
    /// Addresses.
    pub addrs: u64,
    /// IPv4 routes, all tables.
    pub routes4: u64,
    /// IPv6 routes, all tables.
    pub routes6: u64,
    /// Rules.
    pub rules: u64,
    /// Nexthop objects.
    pub nexthops: u64,
    /// Neighbours.
    pub neighbours: u64,
    /// How often everything was read again after messages were lost (ENOBUFS).
    pub resyncs: u64,
    /// How often the self-check found a part that differed from the kernel's without an event, and replaced it.
    #[serde(default)]
    pub corrections: u64,
    /// Routes and rules that cannot be mirrored; their traffic stays in the kernel.
    pub unmirrored: Vec<String>,
    /// Milliseconds for which the control thread has had no turn, if that is too long: the data about
    /// tables and ports is that old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled_ms: Option<u64>,
}

/// Answers [`Request::Drops`]: every reason, including those at zero.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DropsReport {
    /// In the order of `DropReason::ALL`.
    pub drops: Vec<NamedCount>,
    /// Frames handed back to the kernel, in the order of `PuntReason::ALL`.
    pub punts: Vec<NamedCount>,
}

/// A named count and what it means.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NamedCount {
    /// As `DropReason::name`.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// One line on what it means.
    pub help: String,
}

/// Answers [`Request::Latency`]: how long frames stayed with the workers, for each pair of ports, since the
/// start or the last reset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyReport {
    /// One frame in this many is measured; 0: none.
    pub sample: u32,
    /// Number of resets before this answer.
    pub resets: u64,
    /// Microseconds since the start or the last reset.
    pub age_us: u64,
    /// Every port, in the order given to `run`.
    pub ports: Vec<String>,
    /// Pairs with at least one frame, all workers together.
    pub pairs: Vec<PairLatency>,
    /// With `run --offload`, since the start: packets that the XDP program has forwarded itself, which are not
    /// measured, and all that were received to be forwarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offloaded: Option<[u64; 2]>,
}

/// Measurements of the frames forwarded from one port to another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PairLatency {
    /// The port they came in by.
    pub iif: String,
    /// The port they left by.
    pub oif: String,
    /// The buckets of an HDR histogram ([`crate::histogram::histogram`]) that are not empty: the lowest
    /// value in nanoseconds, the count.
    pub counts: Vec<(u64, u64)>,
}

/// Answers [`Request::Capture`]: the capture has started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CaptureGrant {
    /// All ports, by the number that copies use.
    pub ports: Vec<CapturePort>,
    /// The daemon's process ID.
    pub pid: u32,
}

/// A port, as a capture reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CapturePort {
    /// Interface name.
    pub ifname: String,
    /// 0: the interface is gone.
    pub ifindex: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// Summary of a capture that has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CaptureEnd {
    /// Packets that passed the filter.
    pub matched: u64,
    /// Those of them that were not copied because the client was too slow.
    pub lost: u64,
    /// It ended because the daemon is stopping.
    pub stopping: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T>(value: T)
    where
        T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug + Clone,
    {
        let line = serde_json::to_string(&Envelope::new(value.clone())).expect("writes");
        assert!(!line.contains('\n'), "one line: {line}");
        let back: Envelope<T> = serde_json::from_str(&line).expect("reads");
        assert_eq!(back, Envelope::new(value));
    }

    #[test]
    fn requests_survive_the_wire() {
        round_trip(Request::Status);
        round_trip(Request::Stat);
        round_trip(Request::Counters);
        round_trip(Request::Drops);
        round_trip(Request::Rules { format: Format::Json });
        round_trip(Request::Latency { reset: true });
        round_trip(Request::Capture(CaptureRequest {
            ports: vec!["eth0".into()],
            directions: vec![CaptureDirection::In, CaptureDirection::Drop],
            snaplen: 96,
            buffer_kib: 4096,
            filter: vec![Insn { code: 6, jt: 0, jf: 0, k: u32::MAX }],
        }));
        round_trip(Request::Show(ShowRequest {
            object: Object::Route,
            filter: Filter {
                family: Some(Family::Inet6),
                dev: Some("eth0".into()),
                table: Some(254),
                to: Some(Selector::Root("2001:db8::/32".parse().expect("a prefix"))),
                ..Filter::default()
            },
            format: Format::Json,
            details: false,
        }));
        round_trip(Request::RouteGet(RouteGetRequest {
            addrs: vec!["192.0.2.1".parse().expect("an address"); 3],
            from: Some("2001:db8::1".parse().expect("an address")),
            iif: Some("eth0".into()),
            mark: u32::MAX,
            format: Format::Text,
        }));
    }

    #[test]
    fn responses_survive_the_wire() {
        round_trip(Response::error("no: \"such\"\nthing"));
        round_trip(Response::Rendered(Rendered::Text("a\nb\n".into())));
        round_trip(Response::Rendered(Rendered::Json(serde_json::json!([{"dst": "default"}]))));
        round_trip(Response::Status(Box::new(StatusReport {
            state: State::Degraded,
            pid: 1,
            version: "0".into(),
            driver: "xsk-rs".into(),
            uptime_seconds: u64::MAX,
            ports: vec![PortStatus::default()],
            workers: vec![WorkerStatus { cpu: Some(3), ..WorkerStatus::default() }],
            mirror: MirrorStatus { stalled_ms: Some(3200), ..MirrorStatus::default() },
            carried_flows: Some(3),
            offloaded_flows: Some(4),
            ipsec_policies: Some(5),
            ipsec_sas: Some(IpsecSas {
                inbound: 1,
                reasons: vec!["x".into()],
                ..IpsecSas::default()
            }),
            warnings: vec!["mind".into()],
        })));
        round_trip(Response::Drops(DropsReport::default()));
        let counts = vec![(1, u64::MAX), (u64::MAX, 1)];
        let pairs = vec![PairLatency { iif: "a".into(), oif: "b".into(), counts }];
        round_trip(Response::Latency(LatencyReport { pairs, ..LatencyReport::default() }));
    }

    #[test]
    fn selectors_compare_as_iproute2_does() {
        let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
        assert!(Selector::Root(net("10.0.0.0/8")).passes(net("10.1.0.0/16")));
        assert!(!Selector::Root(net("10.0.0.0/8")).passes(net("0.0.0.0/0")));
        assert!(Selector::Match(net("10.1.0.0/16")).passes(net("0.0.0.0/0")));
        assert!(!Selector::Exact(net("10.0.0.0/8")).passes(net("10.0.0.0/16")));
    }
}
