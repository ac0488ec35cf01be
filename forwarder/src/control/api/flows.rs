//! The flows that workers carry: which of the kernel's connections are among them, a list of them, and those
//! with the highest rates.
//!
//! The kernel's connection tracking table is read by the command line itself, as `conntrack` does: clients'
//! threads of the daemon have no privileges, and need none. The command line asks for some entries at a time
//! ([`FlowFindRequest`]), so that neither side has more of the table in memory than that.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::rows::{ListError, RowWriter};
use crate::control::conntrack::{Tuple, TupleFields, protocol_name};
use crate::netfilter::conntrack::{FlowKey, FlowTable, FlowView};

/// Maximum number of tuples of a [`FlowFindRequest`]: with IPv6 addresses some 50 KiB, which needs no permit for
/// large requests.
pub const FIND_MAX: usize = 400;
/// Maximum number of flows that [`FlowTopRequest`] returns.
pub const TOP_MAX: u32 = 1000;
/// Shortest and longest interval of a [`FlowTopRequest`], milliseconds. The client waits for it.
pub const TOP_INTERVAL_MS: std::ops::RangeInclusive<u32> = 100..=30_000;
/// Flows that are read between two writes of a list.
const READ_MAX: u32 = 1024;
const NS_PER_MS: u64 = 1_000_000;

/// A tuple: source and destination address, protocol, source and destination port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowFindRequest {
    /// Their tuples of the original direction, at most [`FIND_MAX`].
    pub tuples: Vec<FlowTuple>,
}

/// Answers [`FlowFindRequest`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowFindReport {
    /// The inode of the daemon's network namespace; `None`: not known.
    pub netns: Option<u64>,
    /// In the order of the request; `None`: not carried.
    pub flows: Vec<Option<FlowFound>>,
}

/// A connection that is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowFound {
    /// Milliseconds since a packet was carried last; `None`: none was yet.
    pub idle_ms: Option<u64>,
    /// Packets that were carried, original and reply direction.
    pub packets: [u64; 2],
    /// Their octets, from the IP header on.
    pub octets: [u64; 2],
}

/// Requests the flows with the highest rates. They are counted from the request on; the answer comes after
/// the interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTopRequest {
    /// How long packets are counted, see [`TOP_INTERVAL_MS`].
    pub interval_ms: u32,
    /// Number of flows, at most [`TOP_MAX`].
    pub flows: u32,
    /// Only flows of this family.
    pub family: Option<super::Family>,
}

/// Answers [`FlowTopRequest`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowTopReport {
    /// How long packets were counted, nanoseconds.
    pub interval_ns: u64,
    /// Number of flows that are carried, of the family.
    pub carried: u64,
    /// Flows that carried packets meanwhile: those with most octets first.
    pub flows: Vec<FlowRate>,
}

/// What a flow carried in an interval. By direction: original, reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowRate {
    /// What packets of each direction have, as they are received.
    pub tuples: [FlowTuple; 2],
    /// Packets.
    pub packets: [u64; 2],
    /// Their octets, from the IP header on.
    pub octets: [u64; 2],
}

/// Milliseconds since a packet was carried last; `None`: none was yet.
pub fn idle_ms(last_seen_ns: u64, now_ns: u64) -> Option<u64> {
    (last_seen_ns != 0).then(|| now_ns.saturating_sub(last_seen_ns) / NS_PER_MS)
}

/// A flow of the list.
struct Row {
    view: FlowView,
    tuples: [Tuple; 2],
    now_ns: u64,
}

#[derive(Serialize)]
struct DirectionFields {
    #[serde(flatten)]
    tuple: TupleFields,
    packets: u64,
    octets: u64,
}

#[derive(Serialize)]
struct RowFields {
    protocol: &'static str,
    protonum: u8,
    original: DirectionFields,
    reply: DirectionFields,
    mark: u32,
    idle_ms: Option<u64>,
}

impl Row {
    fn idle_ms(&self) -> Option<u64> {
        idle_ms(self.view.last_seen_ns, self.now_ns)
    }
}

impl Serialize for Row {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let direction = |at: usize| DirectionFields {
            tuple: TupleFields::of(&self.tuples[at]),
            packets: self.view.packets[at],
            octets: self.view.octets[at],
        };
        let fields = RowFields {
            protocol: protocol_name(self.tuples[0].protocol),
            protonum: self.tuples[0].protocol,
            original: direction(0),
            reply: direction(1),
            mark: self.view.desc.mark,
            idle_ms: self.idle_ms(),
        };
        fields.serialize(serializer)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.tuples[0].protocol;
        write!(f, "{:<8} {protocol}", protocol_name(protocol))?;
        for (at, tuple) in self.tuples.iter().enumerate() {
            let (packets, octets) = (self.view.packets[at], self.view.octets[at]);
            write!(f, " {tuple} packets={packets} octets={octets}")?;
        }
        write!(f, " mark={}", self.view.desc.mark)?;
        match self.idle_ms() {
            Some(idle_ms) => writeln!(f, " idle={idle_ms}ms"),
            None => writeln!(f),
        }
    }
}

/// Whether a flow is of a family.
pub fn is_of_family(view: &FlowView, family: Option<super::Family>) -> bool {
    let [source, _] = view.desc.keys[0].addresses();
    family.is_none_or(|family| family == super::Family::of(source))
}

/// Writes the next flows of a list, from the number `next` on, and advances it. Returns whether there may be
/// more. `now_ns`: CLOCK_MONOTONIC.
///
/// # Errors
/// Those of the connection.
pub fn write_some(
    table: &FlowTable,
    family: Option<super::Family>,
    next: &mut u32,
    now_ns: u64,
    to: &mut RowWriter<'_>,
) -> Result<bool, ListError> {
    let end = next.saturating_add(READ_MAX);
    let mut views = table.views(*next);
    loop {
        let Some(view) = views.next() else { return Ok(false) };
        let number = view.number;
        if is_of_family(&view, family) {
            let tuples = view.desc.keys.each_ref().map(|key| FlowTuple::of_key(key).tuple());
            to.row(&Row { view, tuples, now_ns })?;
        }
        if number >= end {
            *next = number + 1;
            return Ok(true);
        }
    }
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

    /// What they have carried since: the number of flows, and at most `max` of those with most octets.
    pub fn top(
        &self,
        table: &FlowTable,
        family: Option<super::Family>,
        max: usize,
    ) -> (u64, Vec<FlowRate>) {
        let max = max.max(1);
        let mut before = self.0.iter().peekable();
        let (mut carried, mut top) = (0, Vec::new());
        // Both are in the order of their numbers.
        for view in table.views(0).filter(|view| is_of_family(view, family)) {
            carried += 1;
            while before.next_if(|count| count.number < view.number).is_some() {}
            let before = before
                .peek()
                .filter(|count| (count.number, count.generation) == (view.number, view.generation));
            // A flow that was not there has carried everything since.
            let (packets, octets) =
                before.map_or(([0; 2], [0; 2]), |count| (count.packets, count.octets));
            let since = |now: [u64; 2], before: [u64; 2]| {
                [now[0].wrapping_sub(before[0]), now[1].wrapping_sub(before[1])]
            };
            let rate = FlowRate {
                tuples: view.desc.keys.each_ref().map(FlowTuple::of_key),
                packets: since(view.packets, packets),
                octets: since(view.octets, octets),
            };
            if rate.packets != [0; 2] {
                top.push(rate);
                if top.len() >= 2 * max {
                    keep_highest(&mut top, max);
                }
            }
        }
        keep_highest(&mut top, max);
        (carried, top)
    }
}

fn keep_highest(top: &mut Vec<FlowRate>, max: usize) {
    let sum = |of: [u64; 2]| of[0].saturating_add(of[1]);
    top.sort_by_key(|rate| std::cmp::Reverse((sum(rate.octets), sum(rate.packets))));
    top.truncate(max);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{Format, Rendered};
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
    fn the_list_has_all_flows_and_counts() {
        let (table, mut writer) = FlowTable::new(3000, 1);
        for n in 0..2500 {
            let number = writer.insert(&desc(n)).expect("room");
            table.seen(number, Direction::Reply, 100, 5_000_000);
        }
        writer.remove(&desc(1024).keys[0]);
        let mut octets = Vec::new();
        let mut to = RowWriter::new(&mut octets, Format::Json);
        let (mut next, mut rounds) = (0, 1);
        while write_some(&table, None, &mut next, 9_000_000, &mut to).expect("a vector") {
            rounds += 1;
        }
        to.finish().expect("a vector");
        assert_eq!(rounds, 3);
        let answer: crate::control::api::Envelope<crate::control::api::Response> =
            serde_json::from_slice(&octets).expect("an answer");
        let crate::control::api::Response::Rendered(Rendered::Json(list)) = answer.body else {
            panic!("no list");
        };
        assert_eq!(list.as_array().map(Vec::len), Some(2499));
        let expected = serde_json::json!({
            "protocol": "udp", "protonum": 17, "mark": 7, "idle_ms": 4,
            "original": {"src": "10.0.0.1", "dst": "192.0.2.1", "sport": 1, "dport": 53,
                         "packets": 0, "octets": 0},
            "reply": {"src": "192.0.2.1", "dst": "10.0.0.1", "sport": 53, "dport": 1,
                      "packets": 1, "octets": 100},
        });
        assert_eq!(list[1], expected);
        let view = table.read(0).expect("it is there");
        let tuples = view.desc.keys.each_ref().map(|key| FlowTuple::of_key(key).tuple());
        assert_eq!(
            Row { view, tuples, now_ns: 9_000_000 }.to_string(),
            "udp      17 src=10.0.0.1 dst=192.0.2.1 sport=0 dport=53 packets=0 octets=0 \
             src=192.0.2.1 dst=10.0.0.1 sport=53 dport=0 packets=1 octets=100 mark=7 idle=4ms\n"
        );
        let mut none = Vec::new();
        let mut to = RowWriter::new(&mut none, Format::Text);
        let family = Some(crate::control::api::Family::Inet6);
        next = 0;
        while write_some(&table, family, &mut next, 0, &mut to).expect("a vector") {}
        assert!(to.is_untouched());
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
        let (carried, top) = sample.top(&table, None, 3);
        assert_eq!(carried, 50);
        let counts: Vec<_> = top.iter().map(|rate| (rate.tuples[0].3, rate.octets)).collect();
        assert_eq!(counts, [(48, [48, 1]), (47, [47, 1]), (46, [46, 1])]);
        assert_eq!(top[0].packets, [1, 1]);
        assert_eq!(sample.top(&table, None, 100).1.len(), 50);
        let (carried, top) = Sample::take(&table).top(&table, None, 100);
        assert_eq!((carried, top), (50, Vec::new()), "idle flows have no rate");
    }
}
