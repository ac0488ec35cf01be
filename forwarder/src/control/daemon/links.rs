//! `link show -d`: a link, its device in detail, and the port that it is.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::Daemon;
use super::crossroads::{sends_by, worker_of};
use super::port::{Port, State};
use super::report::{add, port_counters};
use crate::control::api::show;
use crate::control::api::{Counters, Rendered, ShowRequest};
use crate::control::mirror::show::LinkView;
use crate::control::netdev::details::Details;
use crate::worker::poll::PollMode;

/// A link with everything that is known of it.
#[derive(Debug, Serialize)]
struct DetailedLink<'a> {
    #[serde(flatten)]
    link: LinkView,
    /// `None`: it came after the devices were read.
    #[serde(flatten)]
    details: Option<&'a Details>,
    /// As a port; `None`: it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<PortDetails>,
}

/// A port of the daemon.
#[derive(Debug, Serialize)]
struct PortDetails {
    /// As `status` has it.
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
    /// Which worker sends by another's queue, having none that sends.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    crossings: Vec<CrossingDetails>,
    /// Milliseconds since a packet was put on a TX ring; `None`: none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_tx_ms: Option<u64>,
    /// What passed through userspace.
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

/// A worker that has no queue by which it could send.
#[derive(Debug, Serialize)]
struct CrossingDetails {
    worker: u32,
    sends_by: u32,
}

impl Daemon {
    /// Answers `link show -d`.
    pub(super) fn detailed_links(
        &self,
        request: &ShowRequest,
        details: &BTreeMap<u32, Details>,
    ) -> Rendered {
        let views = show::links(self.mirror.state(), &request.filter).into_iter().map(|link| {
            let port = self.listed().find(|port| port.ifname == link.ifname);
            DetailedLink {
                details: details.get(&link.ifindex),
                port: port.map(|port| self.port_details(port)),
                link,
            }
        });
        show::render(views, request.format)
    }

    fn port_details(&self, port: &Port) -> PortDetails {
        let mut counters = Counters::new();
        let mut last_tx_ms: Option<u64> = None;
        for worker in &self.workers {
            for (_, slot) in worker.stats.slots_of(port.index, self.max_ports) {
                add(&mut counters, &port_counters(slot));
                let (sent_ns, now_ns) = (slot.last_tx_ns.get(), worker.clock.now_ns());
                let ago = (sent_ns != 0).then(|| now_ns.saturating_sub(sent_ns) / 1_000_000);
                last_tx_ms = last_tx_ms.into_iter().chain(ago).min();
            }
        }
        let socket = |queue: u32| {
            let worker = worker_of(queue, self.workers.len());
            let cpu = self.cpus.get(worker).copied().flatten().map(|cpu| cpu as u32);
            SocketDetails { queue, worker: worker as u32, cpu }
        };
        let active = port.state == State::Active;
        let workers = if active { self.workers.len() as u32 } else { 0 };
        let crossing = |worker: u32| {
            let sends_by = sends_by(worker as usize, port.senders) as u32;
            (sends_by != worker).then_some(CrossingDetails { worker, sends_by })
        };
        PortDetails {
            state: port.state.describe().to_owned(),
            xdp: port.program.as_ref().map_or(String::new(), |p| p.mode().to_string()),
            bind: port.bind_mode.map_or(String::new(), |mode| mode.to_string()),
            no_zerocopy: port.no_zerocopy.clone(),
            multi_buffer: port.multi_buffer,
            poll: self.options.poll,
            rx_ring: self.options.rx_ring,
            tx_ring: self.options.tx_ring,
            sockets: (0..if active { port.queues } else { 0 }).map(socket).collect(),
            crossings: (0..workers).filter_map(crossing).collect(),
            last_tx_ms,
            counters,
        }
    }
}

impl fmt::Display for DetailedLink<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.link)?;
        self.details.map_or(Ok(()), |details| write!(f, "{details}"))?;
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
        for crossing in &self.crossings {
            write!(f, "\n    worker {} sends by worker {}", crossing.worker, crossing.sends_by)?;
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
