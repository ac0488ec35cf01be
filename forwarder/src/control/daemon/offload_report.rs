//! The list of offloaded flows, made on the threads of clients.

use std::sync::Arc;

use super::offload::{OffloadedFlow, Offloads};
use crate::control::api::Family;
use crate::control::api::flows::FlowTuple;
use crate::control::api::offload::OffloadedRow;
use crate::control::api::rows::{List, ListError, RowWriter};
use crate::netfilter::conntrack::FlowKey;

/// Flows that are read at a time.
const READ_MAX: usize = 512;

/// The list, some flows at a time.
pub(super) struct OffloadedFlows {
    /// `None`: nothing is offloaded.
    pub(super) offloads: Option<Arc<Offloads>>,
    pub(super) family: Option<Family>,
    /// The number at which it continues.
    pub(super) next: u32,
}

impl List for OffloadedFlows {
    fn write_some(&mut self, to: &mut RowWriter<'_>) -> Result<bool, ListError> {
        let Some(offloads) = &self.offloads else { return Ok(false) };
        let (flows, next) = offloads.list(self.next, READ_MAX);
        for flow in flows {
            let row = row(offloads, &flow);
            if self.family.is_none_or(|family| family == Family::of(row.tuple.source)) {
                to.row(&row)?;
            }
        }
        self.next = next.unwrap_or(u32::MAX);
        Ok(next.is_some())
    }
}

fn row(offloads: &Offloads, flow: &OffloadedFlow) -> OffloadedRow {
    let view = &flow.view;
    let tuple = |key: &FlowKey| FlowTuple::of_key(key).tuple();
    OffloadedRow {
        iif: offloads.dev_name(view.in_dev),
        oif: offloads.ifname(view.nexthop.0),
        tuple: tuple(&FlowKey::of_words(view.key)),
        translated: flow.target.as_ref().map(tuple),
        nexthop: view.nexthop.1,
        packets: flow.packets,
        octets: flow.octets,
        age_ms: flow.age.as_millis() as u64,
        idle_ms: flow.idle.as_millis() as u64,
    }
}
