//! Netlink messages as the mirror receives them, and invariants of the resulting tables.
//!
//! An input is a sequence of records: an octet, two octets of length (little endian), and that many octets
//! of payload: the part after the `nlmsghdr`. The lower four bits of the first octet give the kind of
//! message (as in [`KINDS`]); 14: the payload is a whole datagram, with headers; 15: the tables are
//! compiled. Bits 4 and 5: NLM_F_REPLACE, NLM_F_APPEND. Bit 7: attributes are unchanged; otherwise those
//! with an invalid length get a valid one, so that octets inserted or removed by libFuzzer do not end the
//! message there.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ferroute::control::api::page::{Cursor, page};
use ferroute::control::api::route_get::route_get;
use ferroute::control::api::rows::RowWriter;
use ferroute::control::api::{Family, Filter, Format, Object, ShowRequest, show};
use ferroute::control::mirror::compile::Compiler;
use ferroute::control::mirror::follow::Follower;
use ferroute::control::mirror::publish;
use ferroute::control::mirror::rib::{Rib, RibAddr};
use ferroute::control::mirror::state::DevSysctls;
use ferroute::control::netlink::message::{Message, Messages, Request};
use ferroute::tables::Tables;

/// RTM_NEW* and RTM_DEL* of each object, with the octets of its fixed header.
pub const KINDS: [(u16, usize); 14] = [
    (16, 16),
    (17, 16),
    (20, 8),
    (21, 8),
    (24, 12),
    (25, 12),
    (28, 12),
    (29, 12),
    (32, 12),
    (33, 12),
    (80, 4),
    (81, 4),
    (104, 8),
    (105, 8),
];
/// The kinds for routes.
const ROUTES: [u16; 2] = [24, 25];
/// The octets of their fixed header.
const RTMSG: usize = 12;
const RTA_DST: u16 = 1;
/// An attribute's type without flags.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// The kinds for rules.
const RULES: [u16; 2] = [32, 33];
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_APPEND: u16 = 0x800;
/// Interfaces that are ports, by their ifindex.
const PORTS: [(u32, u16); 3] = [(3, 0), (5, 1), (2, 2)];
/// Maximum messages of one input; for a link's some files are read.
const MESSAGES_MAX: usize = 48;

/// One record.
#[derive(Debug, Clone)]
pub enum Record {
    /// A message without its header.
    Message(u16, u16, Vec<u8>),
    /// Messages with headers.
    Datagram(Vec<u8>),
    /// Compiles the tables.
    Compile,
}

/// The records of an input.
pub fn parse(mut octets: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some((&[kind, low, high], rest)) = octets.split_first_chunk() {
        if records.len() == MESSAGES_MAX {
            break;
        }
        let len = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (payload, rest) = rest.split_at(len);
        octets = rest;
        records.push(match KINDS.get(usize::from(kind & 15)) {
            Some(&(message, header)) => {
                let mut payload = payload.to_vec();
                if kind & 0x80 == 0 {
                    mend_attrs(&mut payload, header);
                }
                let replace = if kind & 0x10 != 0 { NLM_F_REPLACE } else { 0 };
                let append = if kind & 0x20 != 0 { NLM_F_APPEND } else { 0 };
                Record::Message(message, replace | append, payload)
            }
            None if kind & 15 == 14 => Record::Datagram(payload.to_vec()),
            None => Record::Compile,
        });
    }
    records
}

/// Attribute lengths below the header's or beyond the end are set to these limits.
fn mend_attrs(payload: &mut [u8], header: usize) {
    let mut at = header;
    while let Some([low, high]) = payload.get(at..at + 2) {
        let left = payload.len() - at;
        let len = usize::from(u16::from_ne_bytes([*low, *high])).clamp(4, left.max(4));
        payload[at..at + 2].copy_from_slice(&(len as u16).to_ne_bytes());
        at += (len + 3) & !3;
    }
}

/// Clears the bits of a route's destination beyond its prefix length. No message of the kernel has them:
/// it rejects IPv4 routes with them (`rtm_to_fib_config`), and stores IPv6 routes without
/// (`ip6_route_info_create`). In the mirror, two such destinations would be two entries for one prefix of
/// the tables, which would have the entry compiled last.
fn clear_host_bits(payload: &mut [u8]) {
    let Some(prefix_len) = payload.get(1).copied().map(usize::from) else { return };
    let mut at = RTMSG;
    while let Some(&[a, b, c, d]) = payload.get(at..at + 4) {
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let Some(value) = payload.get_mut(at + 4..at + len) else { return };
        if u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK == RTA_DST {
            for (n, octet) in value.iter_mut().enumerate() {
                let kept = prefix_len.saturating_sub(n * 8);
                *octet &= !u8::MAX.checked_shr(kept as u32).unwrap_or(0);
            }
        }
        at += (len + 3) & !3;
    }
}

/// A mirror that receives messages only from an input.
#[derive(Debug)]
pub struct TestMirror {
    /// The mirror's state.
    pub follower: Follower,
    compiler: Compiler,
    now: Instant,
    has_rules: bool,
}

impl Default for TestMirror {
    /// With the kernel's own rules.
    fn default() -> TestMirror {
        let mut compiler = Compiler::new(1);
        compiler.ports = PORTS.into_iter().collect();
        let mut told = TestMirror {
            follower: Follower::default(),
            compiler,
            now: Instant::now(),
            has_rules: false,
        };
        told.follower.touched.links = true;
        for (family, priority, table) in
            [(2, 0, 255), (2, 32766, 254), (2, 32767, 253), (10, 0, 255), (10, 32766, 254)]
        {
            let rule = Request::new(RULES[0], 0, &[family, 0, 0, 0, table, 0, 0, 1, 0, 0, 0, 0])
                .attr(6, &u32::to_ne_bytes(priority))
                .attr(15, &u32::from(table).to_ne_bytes())
                .finish(0);
            told.datagram(&rule);
        }
        told.has_rules = false;
        told
    }
}

impl TestMirror {
    /// Processes a record.
    pub fn take(&mut self, record: &Record) {
        match record {
            Record::Message(kind, flags, payload) => {
                self.message(&Message { kind: *kind, flags: *flags, seq: 0, payload });
            }
            Record::Datagram(octets) => self.datagram(octets),
            Record::Compile => self.compile(),
        }
    }

    fn datagram(&mut self, octets: &[u8]) {
        for message in Messages::new(octets) {
            let _ = message.error();
            self.message(&message);
        }
    }

    fn message(&mut self, message: &Message<'_>) {
        self.has_rules |= RULES.contains(&message.kind);
        let mut payload = message.payload.to_vec();
        if ROUTES.contains(&message.kind) {
            clear_host_bits(&mut payload);
        }
        self.follower.event(&Message { payload: &payload, ..*message }, self.now);
    }

    /// Compiles the tables.
    pub fn compile(&mut self) {
        // Settings of this machine's interfaces with these names are reset to the defaults.
        for own in self.follower.state.sysctls_dev.values_mut() {
            *own = DevSysctls::default();
        }
        publish(&mut self.follower, &mut self.compiler);
        self.compiler.reclaim(&mut self.follower.state, self.now);
        let tables = self.tables();
        for link in tables.links.iter() {
            assert_eq!(tables.links.ifindex(link.ifindex), Some(link));
            if let Some(dev) = link.dev() {
                let found = tables.links.dev(dev).expect("a number leads to its interface");
                assert_eq!(found.dev(), Some(dev));
                assert!(tables.links.port(link.port.expect("it has one")).is_some());
            }
        }
    }

    /// The tables as last compiled.
    pub fn tables(&self) -> &Tables {
        self.compiler.tables()
    }

    /// First and last addresses of all prefixes, and neighbours'.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let state = &self.follower.state;
        let mut addresses = vec![IpAddr::from([0; 4]), IpAddr::from([0; 16])];
        addresses.extend(borders(&state.routes4));
        addresses.extend(borders(&state.routes6));
        addresses.extend(state.neighs.keys().map(|(_, addr)| *addr));
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// Asserts that tables compiled step by step and those compiled at once give the same results. With
    /// rules they may differ: as in the kernel, local and main stay separate once there were rules.
    pub fn assert_same(&self, other: &TestMirror) {
        if self.has_rules {
            return;
        }
        for addr in self.addresses() {
            for iif in [1, 3, 5] {
                let [one, two] =
                    [self, other].map(|told| route_get(told.tables(), addr, None, iif, 0));
                assert_eq!(one, two, "step by step, and at once");
            }
        }
    }

    /// The line that answers a request. It must be the same with short and long pages.
    pub fn answer(&self, request: &ShowRequest) -> Vec<u8> {
        let [short, long] = [0, 1000].map(|seconds| self.answer_in(request, seconds));
        assert!(short == long, "short and long pages differ");
        short
    }

    fn answer_in(&self, request: &ShowRequest, seconds: u64) -> Vec<u8> {
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut line = Vec::new();
        let mut to = RowWriter::new(&mut line, request.format);
        let mut from = Cursor::Start;
        loop {
            let page = page(&self.follower.state, request.object, &request.filter, from, until);
            show::write(&page, request, &mut to).expect("a vector takes everything");
            match page.next {
                Some(next) => from = next,
                None => break,
            }
        }
        to.finish().expect("a vector takes everything");
        line
    }

    /// Prints everything, as `show` does.
    pub fn show(&self) {
        use Object::{Addr, Link, Neigh, Nexthop, Route, Rule};
        for object in [Link, Addr, Route, Rule, Nexthop, Neigh] {
            for format in [Format::Text, Format::Json] {
                for family in [None, Some(Family::Inet6)] {
                    let filter = Filter { family, ..Filter::default() };
                    self.answer(&ShowRequest { object, filter, format, details: false });
                }
            }
        }
    }
}

/// The first and the last address of every prefix.
fn borders<A: RibAddr>(rib: &Rib<A>) -> Vec<IpAddr> {
    rib.iter()
        .flat_map(|(_, (addr, len), _)| {
            let first = addr.to_ip();
            let last = match first {
                IpAddr::V4(addr) => {
                    let ones = u32::MAX.checked_shr(len.into()).unwrap_or(0);
                    IpAddr::V4((addr.to_bits() | ones).into())
                }
                IpAddr::V6(addr) => {
                    let ones = u128::MAX.checked_shr(len.into()).unwrap_or(0);
                    IpAddr::V6((addr.to_bits() | ones).into())
                }
            };
            [first, last]
        })
        .collect()
}
