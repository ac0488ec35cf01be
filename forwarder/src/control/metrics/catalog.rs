//! Every metric: name, type, unit, labels and meaning. `docs/METRICS.md` is made of this.
//!
//! Names follow Prometheus' rules: base units, `_total` for counters, `_info` for what only has labels. A label
//! divides what may be summed; counters that may not be summed have names of their own.

use std::borrow::Cow;

use prometheus_client::registry::Unit;

use crate::stats::Mib;

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; named with `_total`.
    Counter,
    /// May have any value.
    Gauge,
    /// Only has labels; named with `_info`.
    Info,
    /// Counts by upper bounds, their number and sum.
    Histogram,
}

impl Kind {
    /// The name of the type.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Info => "info",
            Kind::Histogram => "histogram",
        }
    }
}

/// A metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Its name, without its unit and without what its type adds.
    pub base: Cow<'static, str>,
    /// Its unit, which is part of its name.
    pub unit: Option<Unit>,
    /// Its type.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: Cow<'static, str>,
}

impl Metric {
    /// The name of its samples, apart from those that a histogram has.
    pub fn name(&self) -> String {
        let unit = self.unit.as_ref().map(|unit| format!("_{}", unit.as_str()));
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        format!("{}{}{suffix}", self.base, unit.unwrap_or_default())
    }
}

macro_rules! catalog {
    ($($(#[doc = $help:literal])+ $id:ident = $kind:ident $base:literal $($unit:ident)? [$($label:literal),*];)+) => {
        $($(#[doc = $help])+
        pub const $id: Metric = Metric {
            base: Cow::Borrowed($base),
            unit: catalog!(@unit $($unit)?),
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: Cow::Borrowed(concat!($($help,)+).trim_ascii()),
        };)+

        /// Every metric except those of [`mib`].
        pub const CATALOG: &[Metric] = &[$($id,)+];
    };
    (@unit) => { None };
    (@unit $unit:ident) => { Some(Unit::$unit) };
}

catalog! {
    /// Version of the program, and the driver of its ports.
    BUILD = Info "ferroute_build" ["version", "driver"];
    /// When the daemon started, since 1970 UTC.
    START_TIME = Gauge "ferroute_start_time" Seconds [];
    /// The daemon's state, which is 1; the others are 0.
    STATE = Gauge "ferroute_state" ["state"];
    /// 1 if packets go through userspace on every port that is named, else 0.
    FORWARDING = Gauge "ferroute_forwarding" [];
    /// Number of warnings of `ferroute status`.
    WARNINGS = Gauge "ferroute_warnings" [];
    /// The warnings, 1 for each: why packets are left to the kernel, and what else needs attention.
    WARNING = Gauge "ferroute_warning" ["text"];
    /// Series that are left out because a limit is reached, by what has them.
    LEFT_OUT = Gauge "ferroute_left_out_series" ["of"];

    /// 1 if packets that arrive on the port go through userspace, else 0.
    PORT_FORWARDING = Gauge "ferroute_port_forwarding" ["port"];
    /// 1 if the port's link is up, else 0.
    PORT_UP = Gauge "ferroute_port_up" ["port"];
    /// State of the port as `ferroute status` has it, how its XDP program is attached and its sockets are bound.
    PORT = Info "ferroute_port" ["port", "state", "xdp", "bind"];
    /// IP MTU of the port.
    PORT_MTU = Gauge "ferroute_port_mtu" Bytes ["port"];
    /// RX queues of the port that are served.
    PORT_QUEUES = Gauge "ferroute_port_queues" ["port"];
    /// VLAN interfaces on the port that are followed.
    PORT_VLANS = Gauge "ferroute_port_vlans" ["port"];
    /// Packets that userspace and the XDP program took from the port to forward them.
    PORT_RX_PACKETS = Counter "ferroute_port_receive_packets" ["port"];
    /// Octets of these packets that are valid, with the Ethernet header.
    PORT_RX_BYTES = Counter "ferroute_port_receive" Bytes ["port"];
    /// Packets that userspace and the XDP program sent by the port.
    PORT_TX_PACKETS = Counter "ferroute_port_transmit_packets" ["port"];
    /// Octets of these packets, with the Ethernet header.
    PORT_TX_BYTES = Counter "ferroute_port_transmit" Bytes ["port"];
    /// Packets received on the port that were dropped before they reached the queue of an outgoing port.
    PORT_RX_DROPS = Counter "ferroute_port_receive_drops" ["port"];
    /// Packets for the port that were dropped at its queue or after it.
    PORT_TX_DROPS = Counter "ferroute_port_transmit_drops" ["port"];
    /// Packets received on the port that userspace handed to the kernel.
    PORT_PUNTS = Counter "ferroute_port_punts" ["port"];
    /// Frames that the XDP program redirected and that found no room in a socket of the port: its RX ring was full, or it had no memory.
    PORT_MISSED = Counter "ferroute_port_missed_packets" ["port", "cause"];
    /// How often the kernel found the fill ring of a socket of the port empty.
    PORT_FILL_EMPTY = Counter "ferroute_port_fill_ring_empty" ["port"];
    /// How often the kernel found the TX ring of a socket of the port empty.
    PORT_TX_EMPTY = Counter "ferroute_port_transmit_ring_empty" ["port"];
    /// Descriptors that the kernel refused, by direction.
    PORT_INVALID = Counter "ferroute_port_invalid_descriptors" ["port", "direction"];
    /// Frames that the XDP program saw on the port, by what it did with them: `pass_…` to the kernel, `steer_…` to userspace, `offload_…` by itself.
    PORT_XDP = Counter "ferroute_port_xdp_packets" ["port", "reason"];
    /// Frames of an RX queue since the XDP program was attached, by where they went: `userspace`, `offload`, `kernel`.
    QUEUE_PACKETS = Counter "ferroute_port_queue_packets" ["port", "queue", "to"];

    /// CPU that the worker is pinned to; `any`: to none.
    WORKER = Info "ferroute_worker" ["worker", "cpu"];
    /// Age of the worker's heartbeat. Its queues are left to the kernel when it is older than `--worker-timeout`.
    WORKER_HEARTBEAT = Gauge "ferroute_worker_heartbeat_age" Seconds ["worker"];
    /// Time without packets, polling or asleep. The busy share is 1 minus the rate of this.
    WORKER_IDLE = Counter "ferroute_worker_idle" Seconds ["worker"];
    /// Turns of the worker's loop.
    WORKER_POLLS = Counter "ferroute_worker_polls" ["worker"];
    /// Turns that took a packet.
    WORKER_BUSY_POLLS = Counter "ferroute_worker_polls_with_packets" ["worker"];
    /// Bursts that were full: more packets may have been waiting.
    WORKER_FULL = Counter "ferroute_worker_full_bursts" ["worker"];
    /// How often the worker slept.
    WORKER_SLEEPS = Counter "ferroute_worker_sleeps" ["worker"];
    /// Sleeps that a packet ended.
    WORKER_WAKEUPS = Counter "ferroute_worker_wakeups" ["worker"];
    /// Packets that the worker received.
    WORKER_RX = Counter "ferroute_worker_receive_packets" ["worker"];
    /// Packets that the worker sent.
    WORKER_TX = Counter "ferroute_worker_transmit_packets" ["worker"];
    /// Packets that the worker dropped.
    WORKER_DROPS = Counter "ferroute_worker_drops" ["worker"];
    /// Packets that the worker handed to the kernel.
    WORKER_PUNTS = Counter "ferroute_worker_punts" ["worker"];
    /// Packets that the worker gave to another one to send.
    WORKER_HANDOFFS = Counter "ferroute_worker_handoffs" ["worker"];

    /// Packets that were received to be forwarded, by userspace or the XDP program.
    RECEIVED = Counter "ferroute_received_packets" [];
    /// Packets that were sent.
    SENT = Counter "ferroute_sent_packets" [];
    /// Packets that the router made: ICMP errors, fragments, and packets made of fragments.
    MADE = Counter "ferroute_made_packets" [];
    /// Packets that were replaced by their fragments.
    FRAGMENTED = Counter "ferroute_fragmented_packets" [];
    /// Fragments that were replaced by the packet that they make.
    REASSEMBLED = Counter "ferroute_reassembled_packets" [];
    /// Packets dropped, by reason as `ferroute drops` names it.
    DROPS = Counter "ferroute_drops" ["reason"];
    /// Packets that userspace handed to the kernel, by reason as `ferroute drops` names it.
    PUNTS = Counter "ferroute_punts" ["reason"];

    /// Packets that a rule with a counter has counted, by rule, and by whom; what the kernel had counted is as of the last reading of the ruleset.
    RULE_PACKETS = Counter "ferroute_rule_packets" ["table", "chain", "handle", "counted_by"];
    /// Octets of these packets.
    RULE_BYTES = Counter "ferroute_rule" Bytes ["table", "chain", "handle", "counted_by"];
    /// Packets that a counter with a name has counted, and by whom, as for rules.
    OBJECT_PACKETS = Counter "ferroute_nft_object_packets" ["table", "name", "counted_by"];
    /// Octets of these packets.
    OBJECT_BYTES = Counter "ferroute_nft_object" Bytes ["table", "name", "counted_by"];

    /// Connections that workers carry, if the ruleset tracks connections.
    CARRIED = Gauge "ferroute_conntrack_carried_connections" [];
    /// Entries of the kernel's connection tracking table (`nf_conntrack_count`).
    CONNTRACK = Gauge "ferroute_conntrack_entries" [];
    /// Entries that the kernel's table may have (`nf_conntrack_max`); 0: unlimited.
    CONNTRACK_MAX = Gauge "ferroute_conntrack_entries_limit" [];

    /// Flows, each of which is one direction, that the XDP program forwards by itself.
    OFFLOAD_FLOWS = Gauge "ferroute_offload_flows" [];
    /// Flows for which the offload table has room.
    OFFLOAD_FLOWS_MAX = Gauge "ferroute_offload_flows_limit" [];
    /// Flows that were entered into the offload table.
    OFFLOAD_INSTALLED = Counter "ferroute_offload_installed_flows" [];
    /// Offers of workers that were not entered: `outdated`: something has changed since; `table_full`: no room.
    OFFLOAD_REFUSED = Counter "ferroute_offload_refused_flows" ["reason"];
    /// Flows that were removed: `voided`: what they depend on has changed; `aged`: they were idle.
    OFFLOAD_REMOVED = Counter "ferroute_offload_removed_flows" ["reason"];
    /// Packets that the XDP program took to forward them by itself.
    OFFLOAD_RECEIVED = Counter "ferroute_offload_received_packets" [];
    /// Those that were sent.
    OFFLOAD_SENT = Counter "ferroute_offload_sent_packets" [];
    /// Those that the kernel or a driver did not send.
    OFFLOAD_DROPS = Counter "ferroute_offload_drops" [];
    /// Directions of the examined connections that are not offloaded, by reason as `ferroute flows show -v` names it.
    NOT_OFFLOADED = Gauge "ferroute_offload_not_offloaded_directions" ["reason"];
    /// Carried connections that were examined for that.
    EXAMINED = Gauge "ferroute_offload_examined_connections" [];

    /// 1 if the kernel's tables have been read, else 0.
    MIRROR_READY = Gauge "ferroute_mirror_ready" [];
    /// Publications of the tables to the workers.
    PUBLICATIONS = Counter "ferroute_mirror_publications" [];
    /// How often everything was read again after the kernel lost netlink messages (ENOBUFS).
    RESYNCS = Counter "ferroute_netlink_resyncs" [];
    /// How often the self-check found a part that differed from the kernel's without an event, and replaced it.
    CORRECTIONS = Counter "ferroute_mirror_corrections" [];
    /// Interfaces that are mirrored.
    LINKS = Gauge "ferroute_links" [];
    /// Addresses that are mirrored.
    ADDRS = Gauge "ferroute_addresses" [];
    /// Routes that are mirrored, all tables.
    ROUTES = Gauge "ferroute_routes" ["family"];
    /// Routing rules that are mirrored.
    RULES = Gauge "ferroute_routing_rules" [];
    /// Nexthop objects that are mirrored.
    NEXTHOPS = Gauge "ferroute_nexthops" [];
    /// Neighbours that are mirrored.
    NEIGHBOURS = Gauge "ferroute_neighbours" [];
    /// Routes and rules that are left to the kernel.
    UNMIRRORED = Gauge "ferroute_unmirrored" [];
    /// Time since the control thread's last turn; it has one every 0.1 s.
    TURN_AGE = Gauge "ferroute_control_turn_age" Seconds [];
    /// Age of the control thread's heartbeat. Everything is left to the kernel when it is older than `--control-timeout`.
    CONTROL_HEARTBEAT = Gauge "ferroute_control_heartbeat_age" Seconds [];

    /// IPsec policies that are followed.
    POLICIES = Gauge "ferroute_ipsec_policies" [];
    /// Security associations, by who uses them: `workers_in`, `workers_out`, `kernel`.
    SAS = Gauge "ferroute_ipsec_sas" ["used_by"];
    /// The kernel's counters of IPsec errors (`/proc/net/xfrm_stat`).
    XFRM_STAT = Counter "ferroute_xfrm_errors" ["error"];

    /// Time that frames spent in userspace, of the frames that were measured, by pair of ports; `ferroute latency --reset` resets it.
    LATENCY = Histogram "ferroute_latency" Seconds ["iif", "oif"];
    /// Share of frames that are measured; 0: none.
    LATENCY_SAMPLE = Gauge "ferroute_latency_sample_ratio" [];

    /// Readings of the daemon for scrapes; scrapes within half a second share one.
    READINGS = Counter "ferroute_metrics_readings" [];
    /// How long the reading of this scrape took.
    READING_TIME = Gauge "ferroute_metrics_reading_duration" Seconds [];
    /// Connections of clients that were closed for new ones, or because they took too long.
    CLOSED = Counter "ferroute_metrics_connections_closed" [];
}

/// The metric of a MIB counter.
pub fn mib(counter: Mib) -> Metric {
    Metric {
        base: Cow::Owned(format!("ferroute_mib_{}", snake_case(counter.name()))),
        unit: None,
        kind: Kind::Counter,
        labels: &[],
        help: Cow::Owned(format!("{} of `nstat`: {}", counter.name(), counter.help())),
    }
}

/// Every metric.
pub fn all() -> impl Iterator<Item = Metric> {
    CATALOG.iter().cloned().chain(Mib::ALL.iter().map(|counter| mib(*counter)))
}

/// `TcpExtIPReversePathFilter` as `tcp_ext_ip_reverse_path_filter`.
fn snake_case(name: &str) -> String {
    // As a word: the kernel writes it in two ways.
    let name: Vec<char> = name.replace("OKs", "Oks").chars().collect();
    let mut text = String::new();
    for (at, letter) in name.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| name[at]);
        let begins_word = letter.is_ascii_uppercase()
            && before.is_some_and(|before| {
                !before.is_ascii_uppercase()
                    || name.get(at + 1).is_some_and(char::is_ascii_lowercase)
            });
        if begins_word {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// The text of `docs/METRICS.md`.
#[cfg(test)]
pub(super) fn document() -> String {
    let mut text = String::from(
        "# Metrics\n\nThis file is generated: `UPDATE_METRICS=1 cargo test -p forwarder --lib metrics` writes it.\n\
         [MONITORING.md](MONITORING.md#metrics) describes how to enable the server and how to read the metrics.\n\n\
         | metric | type | labels | meaning |\n| --- | --- | --- | --- |\n",
    );
    for metric in all() {
        let labels: Vec<String> = metric.labels.iter().map(|it| format!("`{it}`")).collect();
        let (name, kind) = (metric.name(), metric.kind.name());
        text += &format!("| `{name}` | {kind} | {} | {} |\n", labels.join(", "), metric.help);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn mib_counters_have_names_by_the_rules() {
        for (name, expected) in [
            ("IpForwDatagrams", "ip_forw_datagrams"),
            ("Ip6InNoRoutes", "ip6_in_no_routes"),
            ("TcpExtIPReversePathFilter", "tcp_ext_ip_reverse_path_filter"),
            ("IpReasmOKs", "ip_reasm_oks"),
        ] {
            assert_eq!(snake_case(name), expected);
        }
        assert_eq!(mib(Mib::IpForwDatagrams).name(), "ferroute_mib_ip_forw_datagrams_total");
    }

    #[test]
    fn names_are_unique_and_have_a_meaning() {
        let mut names = BTreeSet::new();
        for metric in all() {
            assert!(metric.help.ends_with('.'), "{}", metric.name());
            assert!(!metric.help.contains('|'), "it would end the table's cell: {}", metric.name());
            assert!(names.insert(metric.name()), "{} is there twice", metric.name());
        }
    }

    #[test]
    fn the_document_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/METRICS.md");
        if std::env::var_os("UPDATE_METRICS").is_some() {
            std::fs::write(&path, document()).expect("is writable");
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            text == document(),
            "docs/METRICS.md is not current: UPDATE_METRICS=1 cargo test -p forwarder --lib metrics writes it"
        );
    }
}
