//! The flows that workers carry, and those that the XDP program forwards by itself: which of the kernel's connections
//! are carried, requests for a list ([`super::flow_rows`]) and for numbers, and the flows with the highest rates.
//!
//! The kernel's connection tracking table is read by the command line itself, as `conntrack` does: clients'
//! threads of the daemon have no privileges, and need none. The command line asks for some entries at a time
//! ([`FlowFindRequest`]), so that neither side has more of the table in memory than that.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Format;
use super::flow_filter::FlowFilter;
use crate::control::conntrack::Tuple;
use crate::netfilter::conntrack::{FlowKey, FlowTable, FlowView};

/// Maximum number of tuples of a [`FlowFindRequest`]: with IPv6 addresses some 50 KiB, which needs no permit for
/// large requests.
pub const FIND_MAX: usize = 400;
/// Maximum number of flows that [`FlowTopRequest`] returns.
pub const TOP_MAX: u32 = 1000;
/// Shortest and longest interval of a [`FlowTopRequest`], milliseconds. The client waits for it.
pub const TOP_INTERVAL_MS: std::ops::RangeInclusive<u32> = 100..=30_000;
const NS_PER_MS: u64 = 1_000_000;

/// A tuple: source and destination address, protocol, source and destination port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct FlowTuple(pub IpAddr, pub IpAddr, pub u8, pub u16, pub u16);

impl FlowTuple {
    /// Of a tuple of the kernel's table.
    pub fn of(tuple: &Tuple) -> FlowTuple {
        let Tuple { source, destination, protocol, source_port, destination_port } = *tuple;
        FlowTuple(source, destination, protocol, source_port, destination_port)
    }

    /// Of the key of a flow.
    pub fn of_key(key: &FlowKey) -> FlowTuple {
        let ([source, destination], [source_port, destination_port]) =
            (key.addresses(), key.ports());
        FlowTuple(source, destination, key.protocol(), source_port, destination_port)
    }

    /// The key of a flow with it.
    pub fn key(&self) -> FlowKey {
        FlowKey::new(self.0, self.1, self.2, self.3, self.4)
    }

    /// As a tuple of the kernel's table.
    pub fn tuple(&self) -> Tuple {
        let FlowTuple(source, destination, protocol, source_port, destination_port) = *self;
        Tuple { source, destination, protocol, source_port, destination_port }
    }
}

/// Requests which connections are carried.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowFindRequest {
    /// Their tuples of the original direction, at most [`FIND_MAX`].
    pub tuples: Vec<FlowTuple>,
}

/// Answers [`FlowFindRequest`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowFindReport {
    /// The inode of the daemon's network namespace; `None`: not known.
    pub netns: Option<u64>,
    /// In the order of the request; `None`: not carried.
    pub flows: Vec<Option<FlowFound>>,
}

/// A connection that is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowFound {
    /// Milliseconds since a packet was carried last; `None`: none was yet.
    pub idle_ms: Option<u64>,
    /// Packets that were carried, original and reply direction.
    pub packets: [u64; 2],
    /// Their octets, from the IP header on.
    pub octets: [u64; 2],
}

/// Requests a list of flows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowShowRequest {
    /// The format.
    pub format: Format,
    /// Which flows.
    pub filter: FlowFilter,
    /// Which kind of list.
    pub list: FlowListKind,
}

/// Which kind of list of flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowListKind {
    /// Connections, and entries of the offload table that are of none.
    Flows,
    /// The same, with what entries depend on, and why a flow has none.
    Details,
    /// All entries of the offload table.
    Entries,
}

/// Answers [`FlowFilter`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowCountReport {
    /// Carried connections.
    pub carried: u64,
    /// Entries of the offload table that are of no connection.
    pub entries: u64,
    /// How many of both are offloaded now, in at least one direction.
    pub offloaded: u64,
}

/// Requests the flows with the highest rates. They are counted from the request on; the answer comes after
/// the interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowTopRequest {
    /// How long packets are counted, see [`TOP_INTERVAL_MS`].
    pub interval_ms: u32,
    /// Number of flows, at most [`TOP_MAX`].
    pub flows: u32,
    /// Which rate is looked at.
    #[serde(default)]
    pub sort: RateKey,
    /// Which flows.
    #[serde(default)]
    pub filter: FlowFilter,
}

/// By which rate flows are sorted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RateKey {
    /// Bits per second.
    #[default]
    Bits,
    /// Packets per second.
    Packets,
}

/// Answers [`FlowTopRequest`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowTopReport {
    /// How long packets were counted, nanoseconds.
    pub interval_ns: u64,
    /// Number of carried flows that are looked at.
    pub carried: u64,
    /// Number of entries of the offload table that are of no connection, and are looked at.
    pub entries: u64,
    /// Flows that had packets meanwhile: those with the highest rate first.
    pub flows: Vec<FlowRate>,
}

/// What a flow carried in an interval. By direction: original, reply; entries of the offload table have one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowRate {
    /// What packets of each direction have, as they are received.
    pub tuples: Vec<FlowTuple>,
    /// Packets.
    pub packets: [u64; 2],
    /// Their octets, from the IP header on.
    pub octets: [u64; 2],
    /// Whether the XDP program forwards them by itself.
    pub offloaded: [bool; 2],
    /// The interface that packets of the first direction arrive on.
    pub iif: Option<String>,
    /// The interface that they leave by.
    pub oif: Option<String>,
}

impl FlowRate {
    /// By which it is sorted.
    fn key(&self, sort: RateKey) -> (u64, u64) {
        let sum = |of: [u64; 2]| of[0].saturating_add(of[1]);
        match sort {
            RateKey::Bits => (sum(self.octets), sum(self.packets)),
            RateKey::Packets => (sum(self.packets), sum(self.octets)),
        }
    }
}

/// The flows with the highest rates, of those that are added.
#[derive(Debug)]
pub struct Highest {
    sort: RateKey,
    max: usize,
    flows: Vec<FlowRate>,
}

impl Highest {
    /// At most `max` flows.
    pub fn new(sort: RateKey, max: usize) -> Highest {
        Highest { sort, max: max.max(1), flows: Vec::new() }
    }

    /// Adds one, for which there may be no place.
    pub fn add(&mut self, rate: FlowRate) {
        self.flows.push(rate);
        if self.flows.len() >= 2 * self.max {
            self.keep();
        }
    }

    fn keep(&mut self) {
        self.flows.sort_by_key(|rate| std::cmp::Reverse(rate.key(self.sort)));
        self.flows.truncate(self.max);
    }

    /// The highest first.
    pub fn finish(mut self) -> Vec<FlowRate> {
        self.keep();
        self.flows
    }
}

/// Milliseconds since a packet was carried last; `None`: none was yet.
pub fn idle_ms(last_seen_ns: u64, now_ns: u64) -> Option<u64> {
    (last_seen_ns != 0).then(|| now_ns.saturating_sub(last_seen_ns) / NS_PER_MS)
}

/// What the flows had carried at one time.
#[derive(Debug)]
pub struct Sample(Vec<Count>);

/// Of one flow: 40 octets.
#[derive(Debug)]
struct Count {
    number: u32,
    generation: u32,
    packets: [u64; 2],
    octets: [u64; 2],
}

impl Sample {
    /// What the flows have carried now.
    pub fn take(table: &FlowTable) -> Sample {
        let count = |view: FlowView| Count {
            number: view.number,
            generation: view.generation,
            packets: view.packets,
            octets: view.octets,
        };
        Sample(table.views(0).map(count).collect())
    }

    /// The flows in the order of their numbers, with the packets and octets that each has carried since.
    pub fn since<'a>(&'a self, table: &'a FlowTable) -> impl Iterator<Item = Carried> + 'a {
        let mut before = self.0.iter().peekable();
        // Both are in the order of their numbers.
        table.views(0).map(move |view| {
            while before.next_if(|count| count.number < view.number).is_some() {}
            let before = before
                .peek()
                .filter(|count| (count.number, count.generation) == (view.number, view.generation));
            // A flow that was not there has carried everything since.
            let (packets, octets) =
                before.map_or(([0; 2], [0; 2]), |count| (count.packets, count.octets));
            let since = |now: [u64; 2], before: [u64; 2]| {
                [now[0].saturating_sub(before[0]), now[1].saturating_sub(before[1])]
            };
            let (packets, octets) = (since(view.packets, packets), since(view.octets, octets));
            Carried { view, packets, octets }
        })
    }
}

/// What a flow has carried since a [`Sample`].
#[derive(Debug, Clone, Copy)]
pub struct Carried {
    /// The flow.
    pub view: FlowView,
    /// Packets by direction.
    pub packets: [u64; 2],
    /// Their octets, from the IP header on.
    pub octets: [u64; 2],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::conntrack::{Direction, FlowDesc};

    fn key(from: [u8; 4], to: [u8; 4], ports: [u16; 2]) -> FlowKey {
        FlowKey::new(from.into(), to.into(), 17, ports[0], ports[1])
    }

    fn desc(n: u16) -> FlowDesc {
        let (client, server) = ([10, 0, 0, 1], [192, 0, 2, 1]);
        let keys = [key(client, server, [n, 53]), key(server, client, [53, n])];
        FlowDesc { keys, status: 0, mark: 7, expires_ns: u64::MAX, is_masqueraded: false }
    }

    #[test]
    fn tuples_and_keys_are_the_same() {
        let tuple = FlowTuple::of_key(&desc(9).keys[0]);
        assert_eq!(tuple.key(), desc(9).keys[0]);
        assert_eq!(FlowTuple::of(&tuple.tuple()), tuple);
        let json = serde_json::to_string(&tuple).expect("JSON");
        assert_eq!(json, r#"["10.0.0.1","192.0.2.1",17,9,53]"#);
        let six = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff".parse().expect("an address");
        let longest = FlowTuple(six, six, 17, u16::MAX, u16::MAX);
        let len = serde_json::to_string(&longest).expect("JSON").len() + 1;
        assert!(len * FIND_MAX < 60 << 10, "{len} octets each");
    }

    #[test]
    fn rates_are_what_was_carried_since_the_sample() {
        let (table, mut writer) = FlowTable::new(100, 1);
        let numbers: Vec<u32> = (0..50).filter_map(|n| writer.insert(&desc(n))).collect();
        let seen = |number: u32, direction, octets| table.seen(number, direction, octets, 1);
        numbers.iter().for_each(|number| seen(*number, Direction::Original, 1_000_000));
        let sample = Sample::take(&table);
        for number in &numbers {
            seen(*number, Direction::Original, u64::from(*number));
            seen(*number, Direction::Reply, 1);
        }
        // One was removed, and one has come.
        writer.remove(&desc(49).keys[0]);
        let new = writer.insert(&desc(99)).expect("room");
        seen(new, Direction::Reply, 40);
        let top = |sample: &Sample, sort, max| {
            let mut highest = Highest::new(sort, max);
            for Carried { view, packets, octets } in sample.since(&table) {
                if packets != [0; 2] {
                    let tuples = view.desc.keys.iter().map(FlowTuple::of_key).collect();
                    let (offloaded, iif, oif) = ([false; 2], None, None);
                    highest.add(FlowRate { tuples, packets, octets, offloaded, iif, oif });
                }
            }
            highest.finish()
        };
        let by_bits = top(&sample, RateKey::Bits, 3);
        let counts: Vec<_> = by_bits.iter().map(|rate| (rate.tuples[0].3, rate.octets)).collect();
        assert_eq!(counts, [(48, [48, 1]), (47, [47, 1]), (46, [46, 1])]);
        assert_eq!(by_bits[0].packets, [1, 1]);
        assert_eq!(top(&sample, RateKey::Bits, 100).len(), 50);
        seen(numbers[1], Direction::Original, 1);
        assert_eq!(top(&sample, RateKey::Packets, 1)[0].packets, [2, 1]);
        assert_eq!(top(&Sample::take(&table), RateKey::Bits, 100), [], "idle flows have no rate");
    }
}
