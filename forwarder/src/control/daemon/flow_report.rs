//! Answers about flows, made on the threads of clients from the tables that workers and the thread `fr-offload` use. The
//! control thread has no part in them, but for the prefixes of routes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::flow_list::{CONNECTIONS, ENTRIES, FlowList, FlowSource};
use super::offload::{OffloadedFlow, Offloads};
use super::relay::Relay;
use crate::control::api::Response;
use crate::control::api::flow_filter::FlowFilter;
use crate::control::api::flows::{
    Carried, FIND_MAX, FlowFindReport, FlowFindRequest, FlowFound, FlowListKind, FlowRate,
    FlowShowRequest, FlowTopReport, FlowTopRequest, FlowTuple, Highest, Sample, TOP_INTERVAL_MS,
    TOP_MAX, idle_ms,
};
use crate::control::api::rows::ListError;
use crate::control::api::server::Answer;
use crate::netfilter::conntrack::{Direction, FlowTable, FlowView};
use crate::worker::clock::monotonic_ns;

/// Rates that are measured at a time: each has a sample of all flows, up to 40 MiB, and
/// one of all entries of the offload table, up to 32 octets each.
const TOPS_MAX: usize = 4;

/// Number of rates that are being measured.
static TOPS: AtomicUsize = AtomicUsize::new(0);

/// Permission to measure rates.
struct Permit;

impl Permit {
    fn take() -> Option<Permit> {
        let more = |count| (count < TOPS_MAX).then_some(count + 1);
        TOPS.fetch_update(Relaxed, Relaxed, more).ok().map(|_| Permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        TOPS.fetch_sub(1, Relaxed);
    }
}

impl Relay {
    /// The carried flows; `None`: the ruleset has never tracked connections.
    pub(super) fn flows(&self) -> Option<Arc<FlowTable>> {
        // It stays the same until the end, so that an old snapshot serves as well as a new one.
        self.view.snapshot().flows.clone().or_else(|| self.snapshot().flows.clone())
    }

    /// Answers which connections are carried.
    pub(super) fn find_flows(&self, request: &FlowFindRequest) -> Answer {
        if request.tuples.len() > FIND_MAX {
            return Response::error(format!("at most {FIND_MAX} connections at a time")).into();
        }
        let (table, now_ns) = (self.flows(), monotonic_ns());
        let find = |tuple: &FlowTuple| {
            let table = table.as_ref()?;
            // The key of another connection's answers has the same form.
            let info = table.find(&tuple.key())?;
            let is_it =
                info.direction == Direction::Original && !table.has_expired(info.flow, now_ns);
            let FlowView { last_seen_ns, packets, octets, .. } = table.read(info.flow)?;
            let idle_ms = idle_ms(last_seen_ns, now_ns);
            is_it.then_some(FlowFound { idle_ms, packets, octets })
        };
        let flows = request.tuples.iter().map(find).collect();
        let netns = fs::metadata("/proc/thread-self/ns/net").map(|netns| netns.ino()).ok();
        Response::FlowFind(FlowFindReport { netns, flows }).into()
    }

    /// Whether there are the interfaces of a filter.
    fn check_filter(&self, filter: &FlowFilter) -> Result<(), String> {
        let tables = self.view.tables.load();
        let unknown = |name: &&String| tables.links.named(name).is_none();
        match [&filter.iif, &filter.oif].into_iter().flatten().find(unknown) {
            Some(name) => Err(format!("there is no interface {name}; `ferroute link` lists them")),
            None => Ok(()),
        }
    }

    /// Answers with a list of flows.
    pub(super) fn show_flows(&self, request: FlowShowRequest) -> Answer {
        let FlowShowRequest { format, filter, list } = request;
        if let Err(why) = self.check_filter(&filter) {
            return Response::error(why).into();
        }
        let source = FlowSource::new(self, filter);
        Answer::List(format, Box::new(FlowList::new(source, list)))
    }

    /// Answers with the number of flows.
    pub(super) fn count_flows(&self, filter: FlowFilter) -> Answer {
        if let Err(why) = self.check_filter(&filter) {
            return Response::error(why).into();
        }
        let source = FlowSource::new(self, filter);
        match FlowList::new(source, FlowListKind::Flows).count() {
            Ok(report) => Response::FlowCount(report).into(),
            Err(ListError::Refused(why)) => Response::error(why).into(),
            Err(ListError::Io(error)) => Response::error(error).into(),
        }
    }

    /// Answers with the flows of the highest rates, after the interval.
    pub(super) fn top_flows(&self, request: &FlowTopRequest) -> Answer {
        let interval_ms = request.interval_ms;
        let (shortest, longest) = (TOP_INTERVAL_MS.start(), TOP_INTERVAL_MS.end());
        if !TOP_INTERVAL_MS.contains(&interval_ms) {
            let why = format!("the interval must be between {shortest} and {longest} ms");
            return Response::error(why).into();
        }
        if let Err(why) = self.check_filter(&request.filter) {
            return Response::error(why).into();
        }
        let Some(_permit) = Permit::take() else {
            let why = format!("rates are measured for at most {TOPS_MAX} clients at a time");
            return Response::error(why).into();
        };
        let source = FlowSource::new(self, request.filter.clone());
        self.count_offloaded();
        let begun_ns = monotonic_ns();
        let sample = source.table.as_ref().map(|table| Sample::take(table));
        let entries = source.entry_counts();
        std::thread::sleep(Duration::from_millis(u64::from(interval_ms)));
        self.count_offloaded();
        let interval_ns = monotonic_ns().saturating_sub(begun_ns);
        let mut highest = Highest::new(request.sort, request.flows.min(TOP_MAX) as usize);
        let carried = sample.map_or(0, |sample| source.carried_since(&sample, &mut highest));
        let entries = source.entries_since(&entries, &mut highest);
        let flows = highest.finish();
        Response::FlowTop(FlowTopReport { interval_ns, carried, entries, flows }).into()
    }
}

/// What an entry of the offload table had counted: its number, since when it is there; packets, octets.
type EntryCount = ((u32, u32), [u64; 2]);

impl FlowSource {
    /// Calls `each` with the entries that are of no connection, in the order of their numbers.
    fn each_entry(&self, mut each: impl FnMut(&Offloads, &OffloadedFlow)) {
        let Some(offloads) = &self.offloads else { return };
        let mut from = Some(0);
        while let Some(number) = from {
            let (flows, next) = offloads.list(number, ENTRIES);
            flows.iter().filter(|flow| !flow.is_carried).for_each(|flow| each(offloads, flow));
            from = next;
        }
    }

    fn entry_counts(&self) -> Vec<EntryCount> {
        let mut counts = Vec::new();
        self.each_entry(|_, flow| {
            counts.push(((flow.number, flow.since), [flow.packets, flow.octets]));
        });
        counts
    }

    /// Adds the rates of carried connections, and returns the number of those that match.
    fn carried_since(&self, sample: &Sample, highest: &mut Highest) -> u64 {
        let Some(table) = &self.table else { return 0 };
        let mut carried = 0;
        let mut batch: Vec<Carried> = Vec::new();
        let mut add = |batch: &mut Vec<Carried>| -> u64 {
            let views: Vec<FlowView> = batch.iter().map(|it| it.view).collect();
            let rows = self.connections(&views, false);
            let mut rest = batch.drain(..);
            for (row, view) in &rows {
                // Both are in one order.
                let Some(it) = rest.find(|it| it.view.number == view.number) else { continue };
                let [original, _] = &row.directions;
                if it.packets != [0; 2] {
                    highest.add(FlowRate {
                        tuples: view.desc.keys.iter().map(FlowTuple::of_key).collect(),
                        packets: it.packets,
                        octets: it.octets,
                        offloaded: row.directions.each_ref().map(|it| it.forwarding.offloaded),
                        iif: original.forwarding.iif.clone(),
                        oif: original.forwarding.oif.clone(),
                    });
                }
            }
            rows.len() as u64
        };
        for it in sample.since(table).filter(|it| self.passes(&it.view)) {
            // How idle ones are forwarded is only looked at if it matters.
            if it.packets == [0; 2] && !self.filter.has_way() {
                carried += 1;
                continue;
            }
            batch.push(it);
            if batch.len() == CONNECTIONS {
                carried += add(&mut batch);
            }
        }
        carried + add(&mut batch)
    }

    /// Adds the rates of entries, and returns the number of those that match.
    fn entries_since(&self, before: &[EntryCount], highest: &mut Highest) -> u64 {
        let mut entries = 0;
        self.each_entry(|offloads, flow| {
            let Some(row) = self.entry(offloads, flow) else { return };
            entries += 1;
            let at = before.binary_search_by_key(&flow.number, |(it, _)| it.0);
            let counted = at.ok().and_then(|at| before.get(at));
            let is_it = |it: &&EntryCount| it.0.1 == flow.since;
            let [packets, octets] = counted.filter(is_it).map_or([0; 2], |it| it.1);
            let packets = flow.packets.saturating_sub(packets);
            if packets == 0 {
                return;
            }
            highest.add(FlowRate {
                tuples: vec![FlowTuple::of(&row.tuple)],
                packets: [packets, 0],
                octets: [flow.octets.saturating_sub(octets), 0],
                offloaded: [row.forwarding.offloaded, false],
                iif: row.forwarding.iif,
                oif: row.forwarding.oif,
            });
        });
        entries
    }
}
