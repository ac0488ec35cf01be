//! Answers about the carried flows, made on the threads of clients from the table that workers use. The
//! control thread has no part in them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::relay::Relay;
use crate::control::api::flows::{
    self, FIND_MAX, FlowFindReport, FlowFindRequest, FlowFound, FlowTopReport, FlowTopRequest,
    FlowTuple, Sample, TOP_INTERVAL_MS, TOP_MAX, idle_ms,
};
use crate::control::api::rows::{List, ListError, RowWriter};
use crate::control::api::server::Answer;
use crate::control::api::{Family, Format, Response};
use crate::netfilter::conntrack::{Direction, FlowTable, FlowView};
use crate::worker::clock::monotonic_ns;

/// Rates that are measured at a time: each has a sample of all flows, up to 40 MiB.
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
    fn flows(&self) -> Option<Arc<FlowTable>> {
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

    /// Answers with the list of carried flows.
    pub(super) fn show_flows(&self, format: Format, family: Option<Family>) -> Answer {
        Answer::List(format, Box::new(Flows { table: self.flows(), family, next: 0 }))
    }

    /// Answers with the flows of the highest rates, after the interval.
    pub(super) fn top_flows(&self, request: &FlowTopRequest) -> Answer {
        let FlowTopRequest { interval_ms, flows, family } = *request;
        let (shortest, longest) = (TOP_INTERVAL_MS.start(), TOP_INTERVAL_MS.end());
        if !TOP_INTERVAL_MS.contains(&interval_ms) {
            let why = format!("the interval must be between {shortest} and {longest} ms");
            return Response::error(why).into();
        }
        let Some(_permit) = Permit::take() else {
            let why = format!("rates are measured for at most {TOPS_MAX} clients at a time");
            return Response::error(why).into();
        };
        let table = self.flows();
        self.count_offloaded();
        let begun_ns = monotonic_ns();
        let sample = table.as_ref().map(|table| Sample::take(table));
        std::thread::sleep(Duration::from_millis(u64::from(interval_ms)));
        self.count_offloaded();
        let interval_ns = monotonic_ns().saturating_sub(begun_ns);
        let max = flows.min(TOP_MAX) as usize;
        let top = table.zip(sample).map(|(table, sample)| sample.top(&table, family, max));
        let (carried, flows) = top.unwrap_or_default();
        Response::FlowTop(FlowTopReport { interval_ns, carried, flows }).into()
    }
}

/// The list of carried flows, some at a time.
struct Flows {
    table: Option<Arc<FlowTable>>,
    family: Option<Family>,
    next: u32,
}

impl List for Flows {
    fn write_some(&mut self, to: &mut RowWriter<'_>) -> Result<bool, ListError> {
        let Some(table) = &self.table else { return Ok(false) };
        flows::write_some(table, self.family, &mut self.next, monotonic_ns(), to)
    }
}
