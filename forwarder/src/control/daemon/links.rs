//! `link show -d`: a link with details of its device and its port.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::ports::{sends_by, worker_of};
use super::relay::Relay;
use super::report::{add, port_counters};
use super::snapshot::{PortView, Snapshot};
use crate::control::api::page::Rows;
use crate::control::api::rows::{List, ListError, RowWriter};
use crate::control::api::{Counters, ShowRequest, show};
use crate::control::mirror::show::LinkView;
use crate::control::netdev::KernelDevice;
use crate::control::netdev::details::Details;
use crate::worker::poll::PollMode;

/// A link and all its details.
#[derive(Debug, Serialize)]
struct DetailedLink {
    #[serde(flatten)]
    link: LinkView,
    /// `None`: the device is gone.
    #[serde(flatten)]
    details: Option<Details>,
    /// `None`: it is not a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<PortDetails>,
}

/// A port of the daemon, in detail.
#[derive(Debug, Serialize)]
struct PortDetails {
    /// As in `status`.
    state: String,
    /// `native` or `generic`; empty: no program is attached.
    xdp: String,
    /// `zero-copy` or `copy`; empty: no socket is bound.
    bind: String,
    /// Why not zero-copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_zerocopy: Option<String>,
    /// Whether packets may take several frames.
    multi_buffer: bool,
    poll: PollMode,
    /// Descriptors of its sockets' fill and RX rings.
    rx_ring: u32,
    /// Descriptors of their TX and completion rings.
    tx_ring: u32,
    /// Which worker serves which queue.
    sockets: Vec<SocketDetails>,
    /// Workers that have no sending queue on this port, and the worker that sends for each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    handoffs: Vec<CrossingDetails>,
    /// Milliseconds since a packet was last put on a TX ring; `None`: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_tx_ms: Option<u64>,
    /// Counters of the packets that passed through userspace.
    counters: Counters,
}

/// One socket of a port.
#[derive(Debug, Serialize)]
struct SocketDetails {
    queue: u32,
    worker: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<u32>,
}

/// A worker without a sending queue, and the worker that sends for it.
#[derive(Debug, Serialize)]
struct CrossingDetails {
    worker: u32,
    sends_by: u32,
}

/// All links that a request matches. Reading a device takes many system calls, and the result is not
/// cached.
pub(super) struct DetailedLinks {
    relay: Relay,
    request: Arc<ShowRequest>,
}

impl DetailedLinks {
    pub(super) fn new(relay: Relay, request: ShowRequest) -> DetailedLinks {
        DetailedLinks { relay, request: Arc::new(request) }
    }
}

impl List for DetailedLinks {
    fn write_some(&mut self, to: &mut RowWriter<'_>) -> Result<bool, ListError> {
        let Rows::Shared(state) = self.relay.first_page(&self.request)?.rows else {
            return Err(ListError::Refused("link show: no links".into()));
        };
        let snapshot = self.relay.snapshot();
        self.relay.count_offloaded();
        for link in show::links(&state, &self.request.filter) {
            let device = KernelDevice { name: link.ifname.clone(), ifindex: link.ifindex };
            let details = Details::read(&device)
                .map_err(|error| ListError::Refused(format!("link show: {error}")))?;
            let port = snapshot.listed().find(|port| port.ifname == link.ifname);
            let port = port.map(|port| snapshot.port_details(port));
            to.row(&DetailedLink { link, details, port })?;
        }
        Ok(false)
    }
}

impl Snapshot {
    fn port_details(&self, port: &PortView) -> PortDetails {
        let mut counters = Counters::new();
        let mut last_tx_ms: Option<u64> = None;
        for worker in &*self.workers {
            for (at, slot) in worker.stats.slots_of(port.index, self.max_ports) {
                add(&mut counters, &port_counters(&worker.stats, at, slot));
                let (sent_ns, now_ns) = (slot.last_tx_ns.get(), worker.clock.now_ns());
                let ago = (sent_ns != 0).then(|| now_ns.saturating_sub(sent_ns) / 1_000_000);
                last_tx_ms = last_tx_ms.into_iter().chain(ago).min();
            }
        }
        if let Some(offloads) = &self.offloads {
            add(&mut counters, &offloads.port_counters(port.index));
        }
        let socket = |queue: u32| {
            let worker = worker_of(queue, self.workers.len());
            let cpu = self.cpus.get(worker).copied().flatten().map(|cpu| cpu as u32);
            SocketDetails { queue, worker: worker as u32, cpu }
        };
        let active = port.is_active;
        let workers = if active { self.workers.len() as u32 } else { 0 };
        let handoff = |worker: u32| {
            let sends_by = sends_by(worker as usize, port.tx_queues) as u32;
            (sends_by != worker).then_some(CrossingDetails { worker, sends_by })
        };
        PortDetails {
            state: port.state.clone(),
            xdp: port.xdp_mode.clone(),
            bind: port.bind_mode.map_or(String::new(), |mode| mode.to_string()),
            no_zerocopy: port.no_zerocopy.clone(),
            multi_buffer: port.multi_buffer,
            poll: self.poll,
            rx_ring: self.rings[0],
            tx_ring: self.rings[1],
            sockets: (0..if active { port.queues } else { 0 }).map(socket).collect(),
            handoffs: (0..workers).filter_map(handoff).collect(),
            last_tx_ms,
            counters,
        }
    }
}

impl fmt::Display for DetailedLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.link)?;
        self.details.as_ref().map_or(Ok(()), |details| write!(f, "{details}"))?;
        self.port.as_ref().map_or(Ok(()), |port| write!(f, "{port}"))
    }
}

impl fmt::Display for PortDetails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n    port {}", self.state)?;
        if !self.xdp.is_empty() {
            write!(f, " xdp {} {}", self.xdp, self.bind)?;
        }
        if self.multi_buffer {
            write!(f, " multi-buffer")?;
        }
        if let Some(why) = &self.no_zerocopy {
            write!(f, " (not zero-copy: {why})")?;
        }
        let poll = match self.poll {
            PollMode::Busy => "busy",
            PollMode::Adaptive => "adaptive",
            PollMode::Interrupt => "interrupt",
        };
        write!(f, "\n    poll {poll} ring rx {} tx {}", self.rx_ring, self.tx_ring)?;
        for socket in &self.sockets {
            write!(f, "\n    socket queue {} worker {}", socket.queue, socket.worker)?;
            socket.cpu.map_or(Ok(()), |cpu| write!(f, " cpu {cpu}"))?;
        }
        for handoff in &self.handoffs {
            write!(f, "\n    worker {} sends by worker {}", handoff.worker, handoff.sends_by)?;
        }
        match self.last_tx_ms {
            Some(ms) => write!(f, "\n    last transmit {}.{:03} s ago", ms / 1000, ms % 1000)?,
            None => write!(f, "\n    last transmit never")?,
        }
        let count = |name: &str| self.counters.get(name).copied().unwrap_or(0);
        write!(
            f,
            "\n    userspace RX: bytes {} packets {} dropped {} punted {}\n    userspace TX: bytes {} \
             packets {} dropped {}",
            count("rx_bytes"),
            count("rx_packets"),
            count("rx_dropped"),
            count("punted"),
            count("tx_bytes"),
            count("tx_packets"),
            count("tx_dropped")
        )
    }
}
