//! What clients' threads read of the offload table, and why a flow is not in it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::installed::Ticks;
use super::{Inner, Offloads};
use crate::control::api::flow_rows::{CountedPackets, Reason};
use crate::control::steering::{EntryView, NotEntered};
use crate::netfilter::conntrack::FlowKey;
use crate::pipeline::{MeterReader, OffloadPorts};
use crate::worker::clock::{Clock, monotonic_ns};

/// An offloaded flow, for clients.
#[derive(Debug, Clone)]
pub(in crate::control::daemon) struct OffloadedFlow {
    pub(in crate::control::daemon) number: u32,
    pub(in crate::control::daemon) view: EntryView,
    /// The program forwards packets by it now.
    pub(in crate::control::daemon) holds: bool,
    pub(in crate::control::daemon) packets: u64,
    pub(in crate::control::daemon) octets: u64,
    /// When it was entered: another flow with this number has another one.
    pub(in crate::control::daemon) since: u32,
    pub(in crate::control::daemon) age: Duration,
    pub(in crate::control::daemon) idle: Duration,
    /// It is of a tracked connection.
    pub(in crate::control::daemon) is_carried: bool,
    pub(in crate::control::daemon) target: Option<FlowKey>,
}

/// The counts of the workers, with their clocks.
#[derive(Debug, Default)]
pub(super) struct Meters(Mutex<Vec<(MeterReader, Clock)>>);

impl Offloads {
    /// A worker counts packets with this meter.
    pub(in crate::control::daemon) fn add_meter(&self, meter: Option<MeterReader>, clock: Clock) {
        let mut meters = self.meters.0.lock().unwrap_or_else(PoisonError::into_inner);
        meters.extend(meter.map(|meter| (meter, clock)));
    }

    /// The offloaded flows from a number on, at most `max`, and the number to continue at.
    pub(in crate::control::daemon) fn list(
        &self,
        from: u32,
        max: usize,
    ) -> (Vec<OffloadedFlow>, Option<u32>) {
        let now_ns = monotonic_ns();
        let mut inner = self.lock();
        let numbers: Vec<u32> = inner.table.numbers(from, u32::MAX).take(max).collect();
        let next = (numbers.len() == max).then(|| numbers.last().map(|last| last + 1)).flatten();
        let read = |number: u32| self.read(&mut inner, number, now_ns);
        (numbers.into_iter().filter_map(read).collect(), next)
    }

    /// By key, in their order, the entry by which the program forwards packets now, from whatever interface.
    pub(in crate::control::daemon) fn find(&self, keys: &[FlowKey]) -> Vec<Option<OffloadedFlow>> {
        let now_ns = monotonic_ns();
        let mut inner = self.lock();
        let mut find = |key: &FlowKey| {
            let numbers: Vec<u32> = self.entries.find(key.words()).collect();
            let read = |number: u32| self.read(&mut inner, number, now_ns);
            numbers.into_iter().filter_map(read).find(|flow| flow.holds)
        };
        keys.iter().map(&mut find).collect()
    }

    fn read(&self, inner: &mut Inner, number: u32, now_ns: u64) -> Option<OffloadedFlow> {
        self.count(inner, number, now_ns);
        let view = inner.table.read(number)?;
        let it = inner.installed.get(number)?;
        let elapsed = |then: Ticks| Duration::from_nanos(then.elapsed_ns(now_ns));
        Some(OffloadedFlow {
            number,
            holds: view.holds && self.holds(&view),
            view,
            packets: it.packets,
            octets: it.octets,
            since: it.since.number(),
            age: elapsed(it.since),
            idle: elapsed(it.active),
            is_carried: it.carried.is_some(),
            target: it.carried.as_ref().and_then(|carried| carried.flow.target),
        })
    }

    /// Why flows from one port to another are not entered, whatever else is known of them.
    pub(in crate::control::daemon) fn obstacle(&self, iif: u16, oif: u16) -> Option<Reason> {
        let ports = self.ports.load();
        let port = |number: u16| ports.iter().find(|port| port.number == number);
        let (Some(from), Some(to)) = (port(iif), port(oif)) else { return Some(Reason::NotAPort) };
        if self.paused.load(Relaxed) != 0 {
            Some(Reason::CaptureRunning)
        } else if !from.is_native || !to.is_native {
            Some(Reason::GenericMode)
        } else if !from.is_input {
            Some(Reason::Zerocopy)
        } else if !self.bits.has(oif, OffloadPorts::TX) {
            Some(Reason::PortWithoutRedirect)
        } else {
            None
        }
    }

    /// Why a flow with this key, which has no entry, is not entered when it is offered. `dev`: the number of the
    /// interface that it comes from.
    pub(in crate::control::daemon) fn want_of_room(
        &self,
        key: &FlowKey,
        dev: u16,
    ) -> Option<Reason> {
        match self.lock().table.has_room(key.words(), dev) {
            Ok(()) => None,
            Err(NotEntered::NoPlace) => Some(Reason::TableFull),
            Err(NotEntered::NoHop) => Some(Reason::NextHopsFull),
        }
    }

    /// Packets with this key, as the worker that has seen most of them has counted them; `is_carried`: of a carried
    /// flow, otherwise the key is a wide one. `None`: there are no workers.
    pub(in crate::control::daemon) fn counted(
        &self,
        key: &FlowKey,
        is_carried: bool,
    ) -> Option<CountedPackets> {
        let meters = self.meters.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = meters.iter().map(|(meter, clock)| match is_carried {
            true => meter.carried(key, clock.now_ns()),
            false => meter.wide(key, clock.now_ns()),
        });
        let (packets_in_window, threshold) = counts.max()?;
        Some(CountedPackets { packets_in_window, threshold })
    }
}
