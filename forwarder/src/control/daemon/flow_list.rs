//! Lists of flows, made on the threads of clients, some flows at a time: carried connections first, then entries of the
//! offload table that are of none.

use std::net::IpAddr;
use std::sync::Arc;

use super::flow_rule::name_rules;
use super::flow_way::{Deciding, of_entry};
use super::offload::{OffloadedFlow, Offloads};
use super::relay::Relay;
use crate::control::api::flow_filter::{FilteredConnection, FlowFilter, prefixes};
use crate::control::api::flow_rows::{
    ConnectionRow, DependsOn, DirectionRow, EntryCounts, EntryRow, FlowRow, Forwarding,
};
use crate::control::api::flows::{FlowCountReport, FlowListKind, FlowTuple, idle_ms};
use crate::control::api::rows::{List, ListError, RowWriter};
use crate::control::config::ipnet::IpNet;
use crate::control::conntrack::Tuple;
use crate::netfilter::Hooks;
use crate::netfilter::conntrack::{FlowKey, FlowTable, FlowView};
use crate::tables::Published;
use crate::worker::clock::monotonic_ns;

/// Connections of a part: some 100 µs of the locks of the offload table and of the tables' reader.
pub(super) const CONNECTIONS: usize = 128;
/// Connections that are read for a part, if the filter leaves out most of them.
const READ_MAX: u32 = 1024;
/// Entries of a part.
pub(super) const ENTRIES: usize = 256;

/// The flows that there are, as far as a filter looks at them.
pub(super) struct FlowSource {
    relay: Relay,
    pub(super) filter: FlowFilter,
    /// `None`: the ruleset has never tracked connections.
    pub(super) table: Option<Arc<FlowTable>>,
    /// `None`: nothing is offloaded.
    pub(super) offloads: Option<Arc<Offloads>>,
    hooks: Arc<Published<Hooks>>,
}

/// Where a list continues.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// At the connection with this number.
    Connection(u32),
    /// At the entry with this number.
    Entry(u32),
    /// With the packets that are asked for and that nothing stands for.
    Pair,
}

/// A list.
pub(super) struct FlowList {
    source: FlowSource,
    kind: FlowListKind,
    /// An entry was listed that stands for the packets that are asked for.
    has_pair: bool,
    next: Next,
}

impl FlowSource {
    pub(super) fn new(relay: &Relay, filter: FlowFilter) -> FlowSource {
        let (snapshot, table) = (relay.view.snapshot(), relay.flows());
        let (offloads, hooks) = (snapshot.offloads.clone(), Arc::clone(&snapshot.hooks));
        FlowSource { relay: relay.clone(), filter, table, offloads, hooks }
    }

    /// Whether a connection matches, apart from how its packets are forwarded.
    pub(super) fn passes(&self, view: &FlowView) -> bool {
        let tuples = view.desc.keys.each_ref().map(|key| FlowTuple::of_key(key).tuple());
        let (status, mark) = (view.desc.status, view.desc.mark);
        self.filter.passes_connection(&FilteredConnection { tuples, status, mark })
    }

    /// The rows of connections that match. `is_why`: with what tells why they are not offloaded.
    pub(super) fn connections(
        &self,
        views: &[FlowView],
        is_why: bool,
    ) -> Vec<(ConnectionRow, FlowView)> {
        let keys: Vec<FlowKey> = views.iter().flat_map(|view| view.desc.keys).collect();
        let entries = match &self.offloads {
            Some(offloads) => offloads.find(&keys),
            None => vec![None; keys.len()],
        };
        let (entries, _) = entries.as_chunks::<2>();
        let (hooks, now_ns) = (self.hooks.load(), monotonic_ns());
        let rows = self.relay.view.with_tables(|tables| {
            let offloads = self.offloads.as_deref();
            let deciding = Deciding { offloads, hooks: &hooks, tables, now_ns };
            let row = |(view, entries): (&FlowView, &[Option<OffloadedFlow>; 2])| {
                let entries = entries.each_ref().map(Option::as_ref);
                let ways = deciding.of_connection(view, entries, is_why);
                (connection(view, ways, now_ns), *view)
            };
            views.iter().zip(entries).map(row).collect::<Vec<_>>()
        });
        let passes = |(row, _): &(ConnectionRow, FlowView)| {
            self.passes_way(row.directions.iter().map(|it| &it.forwarding))
        };
        rows.into_iter().filter(passes).collect()
    }

    /// The row of an entry, if it matches.
    pub(super) fn entry(&self, offloads: &Offloads, flow: &OffloadedFlow) -> Option<EntryRow> {
        let row = entry(offloads, flow);
        let is_it = match flow.is_carried {
            true => self.passes_direction(flow, &row),
            false => self.filter.passes_entry(&row.tuple),
        };
        (is_it && self.passes_way([&row.forwarding])).then_some(row)
    }

    /// Whether the connection of an entry matches: it is compared as one of its directions.
    fn passes_direction(&self, flow: &OffloadedFlow, row: &EntryRow) -> bool {
        let reply = row.translated.unwrap_or(row.tuple);
        let reply = Tuple {
            source: reply.destination,
            destination: reply.source,
            source_port: reply.destination_port,
            destination_port: reply.source_port,
            ..reply
        };
        let tuples = [row.tuple, reply];
        // Of one that was removed, nothing else is known.
        let info =
            self.table.as_ref().and_then(|table| table.find(&FlowKey::of_words(flow.view.key)));
        let (status, mark) = info.map_or((0, 0), |info| (info.status, info.mark));
        self.filter.passes_connection(&FilteredConnection { tuples, status, mark })
    }

    fn passes_way<'a>(&self, ways: impl IntoIterator<Item = &'a Forwarding> + Clone) -> bool {
        let is_offloaded = ways.clone().into_iter().any(|way| way.offloaded);
        let interfaces = ways.into_iter().map(|way| (way.iif.as_deref(), way.oif.as_deref()));
        self.filter.passes_way(interfaces, is_offloaded)
    }

    /// How packets between the two addresses of the filter are forwarded, if no connections are tracked.
    fn pair(&self) -> Option<EntryRow> {
        let [source, destination] = self.filter.pair()?;
        let (protocol, source_port, destination_port) = (0, 0, 0);
        let tuple = Tuple { source, destination, protocol, source_port, destination_port };
        let hooks = self.hooks.load();
        if hooks.track_connections() || !self.filter.passes_entry(&tuple) {
            return None;
        }
        let forwarding = self.relay.view.with_tables(|tables| {
            let offloads = self.offloads.as_deref();
            let deciding = Deciding { offloads, hooks: &hooks, tables, now_ns: monotonic_ns() };
            deciding.of_pair([source, destination], self.filter.iif.as_deref())
        });
        let is_it = self.passes_way([&forwarding]);
        is_it.then_some(EntryRow { tuple, translated: None, forwarding, counts: None })
    }
}

/// The row of a connection.
fn connection(view: &FlowView, ways: [Forwarding; 2], now_ns: u64) -> ConnectionRow {
    let mut ways = ways.map(Some);
    let directions = std::array::from_fn(|at| DirectionRow {
        tuple: FlowTuple::of_key(&view.desc.keys[at]).tuple(),
        packets: view.packets[at],
        octets: view.octets[at],
        forwarding: ways[at].take().unwrap_or_default(),
    });
    let idle_ms = idle_ms(view.last_seen_ns, now_ns);
    ConnectionRow { directions, mark: view.desc.mark, idle_ms }
}

/// The row of an entry.
fn entry(offloads: &Offloads, flow: &OffloadedFlow) -> EntryRow {
    let tuple = |key: &FlowKey| FlowTuple::of_key(key).tuple();
    EntryRow {
        tuple: tuple(&FlowKey::of_words(flow.view.key)),
        translated: flow.target.as_ref().map(tuple),
        forwarding: of_entry(offloads, flow),
        counts: Some(EntryCounts {
            packets: flow.packets,
            octets: flow.octets,
            age_ms: flow.age.as_millis() as u64,
            idle_ms: flow.idle.as_millis() as u64,
        }),
    }
}

impl FlowList {
    pub(super) fn new(source: FlowSource, kind: FlowListKind) -> FlowList {
        let next = match kind {
            FlowListKind::Entries => Next::Entry(0),
            FlowListKind::Flows | FlowListKind::Details => Next::Connection(0),
        };
        FlowList { source, kind, has_pair: false, next }
    }

    /// The next rows. `None`: there are no more.
    fn some(&mut self) -> Result<Option<Vec<FlowRow>>, ListError> {
        let is_detailed = self.kind == FlowListKind::Details;
        let mut rows = match self.next {
            Next::Connection(from) => self.connections(from),
            Next::Entry(from) => self.entries(from),
            Next::Pair if !is_detailed || self.has_pair => return Ok(None),
            Next::Pair => {
                self.has_pair = true;
                self.source.pair().into_iter().map(|row| FlowRow::Entry(Box::new(row))).collect()
            }
        };
        if is_detailed {
            self.add_dependences(&mut rows)?;
        }
        Ok(Some(rows))
    }

    fn connections(&mut self, from: u32) -> Vec<FlowRow> {
        let Some(table) = &self.source.table else {
            self.next = Next::Entry(0);
            return Vec::new();
        };
        let mut views = Vec::new();
        let mut next = Next::Entry(0);
        for view in table.views(from) {
            let number = view.number;
            if self.source.passes(&view) {
                views.push(view);
            }
            if views.len() == CONNECTIONS || number - from >= READ_MAX {
                next = Next::Connection(number + 1);
                break;
            }
        }
        self.next = next;
        let is_detailed = self.kind == FlowListKind::Details;
        let rows = self.source.connections(&views, is_detailed).into_iter();
        let hooks = self.source.hooks.load();
        rows.map(|(mut row, view)| {
            if is_detailed {
                name_rules(&hooks, &mut row, &view);
            }
            FlowRow::Connection(Box::new(row))
        })
        .collect()
    }

    fn entries(&mut self, from: u32) -> Vec<FlowRow> {
        let Some(offloads) = &self.source.offloads else {
            self.next = Next::Pair;
            return Vec::new();
        };
        let (flows, next) = offloads.list(from, ENTRIES);
        // Also if it is not listed, for another reason.
        let is_of_pair = self.source.filter.pair().is_some_and(|pair| {
            let is_from = |flow: &OffloadedFlow| {
                let iif = self.source.filter.iif.as_deref();
                iif.is_none_or(|iif| offloads.dev_name(flow.view.in_dev) == iif)
            };
            let covers = |flow: &OffloadedFlow| {
                let tuple = FlowTuple::of_key(&FlowKey::of_words(flow.view.key)).tuple();
                let nets = prefixes(&tuple).into_iter().zip(pair);
                nets.into_iter().all(|(net, host)| net.covers(IpNet::host(host)))
            };
            flows.iter().any(|flow| flow.holds && !flow.is_carried && is_from(flow) && covers(flow))
        });
        let has_all = self.kind == FlowListKind::Entries;
        let flows = flows.iter().filter(|flow| has_all || !flow.is_carried);
        let rows: Vec<EntryRow> =
            flows.filter_map(|flow| self.source.entry(offloads, flow)).collect();
        self.next = next.map_or(Next::Pair, Next::Entry);
        self.has_pair |= is_of_pair;
        rows.into_iter().map(|row| FlowRow::Entry(Box::new(row))).collect()
    }

    /// Adds what entries depend on.
    fn add_dependences(&self, rows: &mut [FlowRow]) -> Result<(), ListError> {
        let mut offloaded: Vec<(&mut Forwarding, [IpAddr; 2], bool)> = Vec::new();
        for row in rows {
            match row {
                FlowRow::Connection(row) => {
                    let [original, reply] = &mut row.directions;
                    let addresses = [original.tuple.source, reply.tuple.source];
                    let [from, to] = addresses;
                    offloaded.push((&mut original.forwarding, [from, to], true));
                    offloaded.push((&mut reply.forwarding, [to, from], true));
                }
                FlowRow::Entry(row) => {
                    let addresses = [row.tuple.source, row.tuple.destination];
                    offloaded.push((&mut row.forwarding, addresses, false));
                }
            }
        }
        offloaded.retain(|(forwarding, ..)| forwarding.offloaded);
        let mut addrs: Vec<IpAddr> = offloaded.iter().flat_map(|(_, of, _)| *of).collect();
        addrs.sort_unstable();
        addrs.dedup();
        let is_by_prefix = self.source.relay.view.with_tables(|tables| {
            let (fib4, fib6) = (tables.fib4.merged, tables.fib6.merged);
            move |addr: &IpAddr| if addr.is_ipv4() { fib4 } else { fib6 }
        });
        addrs.retain(is_by_prefix);
        let routes = self.source.relay.prefixes(addrs)?;
        for (forwarding, [from, to], is_carried) in offloaded {
            forwarding.depends_on = Some(DependsOn {
                route: routes.get(&to).copied(),
                source_route: routes.get(&from).copied(),
                connection: is_carried,
                ruleset: is_carried,
            });
        }
        Ok(())
    }

    /// The number of flows.
    pub(super) fn count(mut self) -> Result<FlowCountReport, ListError> {
        let mut report = FlowCountReport::default();
        while let Some(rows) = self.some()? {
            for row in rows {
                report.offloaded += u64::from(row.is_offloaded());
                match row {
                    FlowRow::Connection(_) => report.carried += 1,
                    FlowRow::Entry(_) => report.entries += 1,
                }
            }
        }
        Ok(report)
    }
}

impl List for FlowList {
    fn write_some(&mut self, to: &mut RowWriter<'_>) -> Result<bool, ListError> {
        let Some(rows) = self.some()? else { return Ok(false) };
        rows.iter().try_for_each(|row| to.row(row))?;
        Ok(true)
    }
}
