//! Flow offload: flows that workers offer are entered into the table by which the XDP program forwards packets itself.
//!
//! The thread `fr-offload` takes offers, adds what the program has forwarded to the counters of ports, rules and
//! connections, and removes entries that are idle or no longer hold. The program does not use an entry that no longer
//! holds from the moment on at which its epochs say so; the thread only makes its place free.

mod installed;
mod lookup;
mod redirects;
mod thread;

use std::collections::HashMap;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_channel::{Receiver, Sender, bounded};
use smallvec::SmallVec;
use xdp_prog::offload::{FlowEntry, NEXT_HOPS_MAX, Rewrite};

use self::installed::{Carried, Installed, InstalledFlows, Ticks};
use self::lookup::Meters;
pub(super) use self::lookup::OffloadedFlow;
use self::redirects::Redirects;
pub(super) use self::thread::Offloader;
use tracing::warn;

use super::report::{named, port_counters};
use crate::control::api::{Counters, OffloadReport};
use crate::control::config::offload::{OffloadMode, OffloadOptions};
use crate::control::netdev::nic;
use crate::control::steering::{
    Action, EntryView, FlowWords, Hop, NextHops, OffloadTable, OffloadedEntries, RedirectFailures,
    Steering, XdpError, hashed,
};
use crate::neigh::NeighTable;
use crate::netfilter::conntrack::{FlowKey, FlowTable, SeqsElsewhere};
use crate::netfilter::nft::Nft;
use crate::pipeline::{Offer, OfferedFlow, OffloadPorts};
use crate::stats::{DropReason, Mib, PacketAccount, WorkerStats};
use crate::tables::{Epochs, Published, Tables, VLAN_FLOWS};
use crate::worker::clock::monotonic_ns;

/// Offers that wait. More are lost, and made again.
const OFFERS: usize = 4096;
/// Offers that are taken at a time, so that other threads get the table meanwhile.
const BATCH: usize = 128;
/// Longest wait for an offer.
const WAIT: Duration = Duration::from_millis(20);
/// How often each entry is looked at.
const SWEEP_NS: u64 = 200_000_000;
/// Entries that are looked at before other threads may have the table.
const SCAN: u32 = 4096;
/// How long an entry is kept without packets.
const IDLE_NS: u64 = 30_000_000_000;
/// An entry with fewer packets is removed after a sixth of that.
const BUSY_PACKETS: u64 = 64;
/// How often it is checked which ports take redirected frames.
const FEATURES_NS: u64 = 100_000_000;

/// A port as far as offload is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OffloadPort {
    pub(super) number: u16,
    pub(super) ifname: String,
    pub(super) ifindex: u32,
    /// Flows that arrive on it may be offloaded.
    pub(super) is_input: bool,
    /// Its program runs in the driver, so that frames can be redirected to it.
    pub(super) is_native: bool,
}

#[derive(Debug)]
struct Inner {
    table: OffloadTable,
    installed: InstalledFlows,
    /// By number, next hops that packets were sent to since their neighbours were last marked as used.
    used: Box<[bool]>,
}

/// How many flows there are and were.
#[derive(Debug, Default)]
pub(super) struct OffloadCounts {
    /// Entered since the start.
    pub(super) installed: AtomicU64,
    /// Not entered: something has changed since the offer.
    pub(super) outdated: AtomicU64,
    /// Not entered for want of room.
    pub(super) full: AtomicU64,
    /// Removed because what they depended on has changed.
    pub(super) voided: AtomicU64,
    /// Removed because they were idle.
    pub(super) aged: AtomicU64,
}

/// The offloaded flows: shared by the thread, the control thread, the thread that follows connections, and clients.
#[derive(Debug)]
pub(super) struct Offloads {
    inner: Mutex<Inner>,
    entries: Arc<OffloadedEntries>,
    next_hops: Arc<NextHops>,
    tables: Arc<Published<Tables>>,
    epochs: Arc<Epochs>,
    /// Which ports take part.
    bits: Arc<OffloadPorts>,
    ports: ArcSwap<Vec<OffloadPort>>,
    /// What the program has forwarded, as a worker would count it; frames that were not sent count as sent, too.
    stats: WorkerStats,
    /// `None`: it is not known which frames were not sent.
    redirects: Option<Redirects>,
    /// The number of workers: the number of this one.
    workers: usize,
    /// [`Links::id`](crate::tables::Links::id) of the links whose VLANs have their numbers in the programs' maps.
    vlans_of: AtomicU64,
    /// The flows of tracked connections.
    flows: ArcSwapOption<FlowTable>,
    /// Captures and traces, which want all packets to pass the workers.
    paused: AtomicUsize,
    /// Number of flows.
    len: AtomicUsize,
    capacity: usize,
    /// The ports have changed since the kernel was asked what they can do.
    has_new_ports: AtomicBool,
    /// Ports whose numbers belong to other interfaces now.
    renamed: (Sender<u16>, Receiver<u16>),
    pub(super) counts: OffloadCounts,
    /// What workers have counted of flows that are not offloaded.
    meters: Meters,
}

/// While there is one, no flow is offloaded.
#[derive(Debug)]
pub(super) struct Paused(Arc<Offloads>);

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.paused.fetch_sub(1, Relaxed);
    }
}

/// The XDP program's maps, with room for flows if any may be offloaded. With `auto`, none are if there is no memory.
pub(super) fn steering(options: &mut OffloadOptions) -> Result<Steering, XdpError> {
    if !options.is_on() {
        return Steering::new();
    }
    match Steering::with_offload(options.flows as usize) {
        Err(error) if options.mode == OffloadMode::Auto => {
            let steering = Steering::new()?;
            let flows = options.flows;
            warn!(
                "no flows are offloaded, there is no room for {flows} (--offload-flows): {error}"
            );
            options.mode = OffloadMode::Off;
            Ok(steering)
        }
        other => other,
    }
}

impl Offloads {
    pub(super) fn new(
        table: OffloadTable,
        tables: Arc<Published<Tables>>,
        ports: usize,
        workers: usize,
        failures: Option<Arc<RedirectFailures>>,
    ) -> Offloads {
        let capacity = table.capacity();
        let installed = InstalledFlows::new(capacity);
        Offloads {
            entries: Arc::clone(table.entries()),
            next_hops: Arc::clone(table.next_hops()),
            len: AtomicUsize::new(0),
            capacity,
            has_new_ports: AtomicBool::new(false),
            renamed: bounded(ports.max(1)),
            inner: Mutex::new(Inner { table, installed, used: vec![false; NEXT_HOPS_MAX].into() }),
            epochs: Arc::clone(&tables.load().epochs),
            tables,
            bits: Arc::new(OffloadPorts::new(ports)),
            ports: ArcSwap::default(),
            stats: WorkerStats::new(ports),
            redirects: failures.map(|failures| Redirects::new(failures, ports)),
            workers,
            vlans_of: AtomicU64::new(0),
            flows: ArcSwapOption::empty(),
            paused: AtomicUsize::new(0),
            counts: OffloadCounts::default(),
            meters: Meters::default(),
        }
    }

    /// The table. A thread that panicked has left nothing that others could not use. Not for the control thread, which
    /// must not wait for others.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which ports take part, for the workers.
    pub(super) fn ports(&self) -> &Arc<OffloadPorts> {
        &self.bits
    }

    /// What the program has forwarded, as a worker would count it.
    pub(super) fn stats(&self) -> &WorkerStats {
        &self.stats
    }

    /// What the program has received and sent by a port, as a worker reports it.
    pub(super) fn port_counters(&self, port: u16) -> Counters {
        let Some(stats) = self.stats.ports.get(usize::from(port)) else { return Counters::new() };
        let mut counters = port_counters(&self.stats, port, stats);
        if let Some(sent) = counters.get_mut("tx_packets") {
            *sent = sent.saturating_sub(stats.tx_dropped.get());
        }
        counters
    }

    /// Where the packets went that the program has received.
    pub(super) fn account(&self) -> PacketAccount {
        let mut account = self.stats.account(0, 0);
        account.sent = account.sent.saturating_sub(account.dropped);
        account
    }

    /// Counts what the program has forwarded until now.
    pub(super) fn count_all(&self) {
        let capacity = self.capacity() as u32;
        for from in (0..capacity).step_by(SCAN as usize) {
            self.sweep(from, from + SCAN, true);
        }
        // After the entries: what is not sent was counted there.
        self.count_failures();
    }

    /// Counts frames that were not sent.
    fn count_failures(&self) {
        if let Some(redirects) = &self.redirects {
            redirects.count(&self.stats);
        }
    }

    /// Answers `stat`, with what has been counted.
    pub(super) fn report(&self) -> OffloadReport {
        let (stats, counts) = (&self.stats, &self.counts);
        let PacketAccount { received, sent, dropped, .. } = self.account();
        let drops = DropReason::ALL.iter().map(|drop| (drop.name(), stats.drop_count(*drop)));
        let flows = [
            ("flows", self.len() as u64),
            ("flows_max", self.capacity() as u64),
            ("installed", counts.installed.load(Relaxed)),
            ("outdated", counts.outdated.load(Relaxed)),
            ("table_full", counts.full.load(Relaxed)),
            ("voided", counts.voided.load(Relaxed)),
            ("aged", counts.aged.load(Relaxed)),
        ];
        OffloadReport {
            mib: named(Mib::ALL.iter().map(|mib| (mib.name(), stats.mib[*mib as usize].get()))),
            packets: named([("received", received), ("sent", sent), ("dropped", dropped)]),
            drops: named(drops.filter(|(_, packets)| *packets > 0)),
            flows: named(flows),
        }
    }

    /// Packets that the program has forwarded.
    pub(super) fn received(&self) -> u64 {
        self.count_all();
        self.account().received
    }

    /// Ports to which no flow can be offloaded, and why, for `status`.
    pub(super) fn warnings(&self) -> Vec<String> {
        let ports = self.ports.load();
        let refusing = ports
            .iter()
            .filter(|port| port.is_native && !self.bits.has(port.number, OffloadPorts::TX));
        refusing
            .map(|port| {
                let why = match self.is_off(port.number) {
                    true => {
                        "does not send frames that are redirected to it (REDIRECT_REFUSED in drops)"
                    }
                    false => "does not take redirected frames",
                };
                format!(
                    "{}: its driver {why}: flows that leave there are not offloaded; of a veth, \
                     switch on GRO at the other end (ethtool -K PEER gro on)",
                    port.ifname
                )
            })
            .collect()
    }

    /// Whether captures or traces want all packets to pass the workers.
    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Relaxed) != 0
    }

    /// Whether a port gets no flows because it refuses their frames.
    fn is_off(&self, number: u16) -> bool {
        self.redirects.as_ref().is_some_and(|redirects| redirects.is_off(number))
    }

    /// Number of flows.
    pub(super) fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    /// Maximum number of flows.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The flows of tracked connections from now on.
    pub(super) fn set_flows(&self, flows: Arc<FlowTable>) {
        flows.set_elsewhere(Box::new(Elsewhere(Arc::clone(&self.entries))));
        self.flows.store(Some(flows));
    }

    /// The name of an interface that packets come from, by its number.
    pub(super) fn dev_name(&self, number: u16) -> String {
        let tables = self.tables.load();
        tables
            .links
            .of_flow_number(number)
            .map_or_else(|| format!("#{number}"), |link| link.name.clone())
    }

    /// The name of an interface.
    pub(super) fn ifname(&self, ifindex: u32) -> String {
        let tables = self.tables.load();
        tables.links.ifindex(ifindex).map_or_else(|| format!("if{ifindex}"), |it| it.name.clone())
    }

    /// The programs' maps have the numbers of the VLANs of these links. Flows of VLANs that were decided by others are
    /// not entered: the number may be another VLAN's there.
    pub(super) fn set_vlans_of(&self, links: u64) {
        self.vlans_of.store(links, Release);
    }

    /// The ports from now on.
    pub(super) fn set_ports(&self, ports: Vec<OffloadPort>) {
        if **self.ports.load() == ports {
            return;
        }
        for number in 0..self.stats.ports.len() as u16 {
            if !ports.iter().any(|port| port.number == number) {
                self.bits.set(number, 0);
            }
        }
        self.ports.store(Arc::new(ports));
        // The thread asks the kernel, which may take long.
        self.has_new_ports.store(true, Release);
    }

    /// No flow is offloaded while the result is kept.
    pub(super) fn pause(self: &Arc<Offloads>) -> Paused {
        self.paused.fetch_add(1, Relaxed);
        // Waits for what is being entered.
        drop(self.lock());
        self.epochs.void_all();
        Paused(Arc::clone(self))
    }

    /// The control thread has new neighbours: next hops that have another address now are void.
    pub(super) fn follow_neighbours(&self, tables: &Tables) {
        self.next_hops.void(|hop| holds(hop, &tables.neigh));
    }

    /// Packets with these keys are not forwarded by the program from now on: what was decided for them may change.
    pub(super) fn forget(&self, keys: &[FlowWords]) {
        // What the flow has become is visible before its entries are looked for; see `enter`.
        fence(SeqCst);
        keys.iter().for_each(|key| self.entries.void(key));
    }

    /// The same of all flows of tracked connections.
    pub(super) fn forget_carried(&self) {
        self.epochs.void_all();
    }

    /// A port's number belongs to another interface from now on: counters restart at 0, soon.
    pub(super) fn forget_port(&self, port: u16) {
        // There is room for each port.
        let _ = self.renamed.0.try_send(port);
    }

    /// Restarts the counters of a port.
    fn restart_counters(&self, port: u16) {
        let mut inner = self.lock();
        let now_ns = monotonic_ns();
        let numbers: Vec<u32> = inner.table.numbers(0, u32::MAX).collect();
        for number in numbers {
            let Some(it) = inner.installed.get(number) else { continue };
            if [it.in_port, it.out_port].contains(&port) {
                self.remove(&mut inner, number, now_ns);
                // Nothing arrives on it, or leaves by it, any more.
                inner.installed.remove(number);
            }
        }
        // With the lock, nobody else counts what is forwarded.
        let reset = || self.stats.forget_port(port, self.stats.ports.len() as u16);
        match &self.redirects {
            Some(redirects) => redirects.forget(port, &self.stats, reset),
            None => reset(),
        }
    }

    /// Enters an offered flow.
    fn enter(&self, inner: &mut Inner, offer: Offer, nft: Option<&Arc<Nft>>) {
        let now_ns = monotonic_ns();
        let is_outdated = self.paused.load(Relaxed) != 0
            || offer.neigh_changes != self.epochs.neigh_changes()
            || (offer.in_dev & VLAN_FLOWS != 0 && offer.links != self.vlans_of.load(Acquire))
            || !self.bits.has(offer.in_port, OffloadPorts::RX)
            || !self.bits.has(offer.out_port, OffloadPorts::TX)
            || !self.is_current(offer.carried.as_ref(), nft)
            || self.basis_of(&offer) != Some(offer.basis);
        if is_outdated {
            self.counts.outdated.fetch_add(1, Relaxed);
            return;
        }
        let Offer { key, in_dev, in_port, out_port: port, tags, .. } = offer;
        let hop = Hop { port, macs: offer.macs, tags, nexthop: offer.nexthop };
        let found: SmallVec<[u32; 2]> = inner.table.entries().find(&hashed(&key, in_dev)).collect();
        for number in found {
            let (Some(view), Some(it)) = (inner.table.read(number), inner.installed.get(number))
            else {
                continue;
            };
            let holds = view.holds && self.holds(&view);
            // Packets with this key come from another interface, too: who was first stays. Or those that were in the
            // receive ring when it was entered are offered again.
            let of = |carried: &OfferedFlow| (carried.flow, carried.nft_id);
            let own = it.carried.as_ref().map(|it| of(&it.flow));
            if holds && (view.in_dev != in_dev || own == offer.carried.as_ref().map(of)) {
                return;
            }
            self.remove(inner, number, now_ns);
        }
        let flow_key = FlowKey::of_words(key);
        let rewrite = match offer.target() {
            None => None,
            Some(target) => match rewrite(&flow_key, &target) {
                None => return,
                rewrite => rewrite,
            },
        };
        let action = Action { basis: offer.basis, mtu: offer.mtu, rewrite };
        let entered = inner.table.insert(&key, in_dev, &hop, &action);
        let Ok(number) = entered else {
            self.counts.full.fetch_add(1, Relaxed);
            return;
        };
        let carried =
            offer.carried.map(|flow| Box::new(Carried { key: flow_key, flow, nft: nft.cloned() }));
        let now = Ticks::of(now_ns);
        let installed = Installed {
            count: 0,
            packets: 0,
            octets: 0,
            carried,
            since: now,
            active: now,
            in_port,
            out_port: port,
            header_lens: offer.header_lens,
            is_ipv4: flow_key.is_ipv4(),
        };
        inner.installed.insert(number, installed);
        self.epochs.set_widths(inner.table.widths());
        self.len.store(inner.table.len(), Relaxed);
        self.counts.installed.fetch_add(1, Relaxed);
        // Who changes the flow, or a neighbour, meanwhile either finds the entry, or is seen here.
        fence(SeqCst);
        let carried = inner.installed.get(number).and_then(|it| it.carried.as_ref());
        let carried = carried.map(|it| &it.flow);
        if offer.neigh_changes != self.epochs.neigh_changes() || !self.is_current(carried, nft) {
            self.remove(inner, number, now_ns);
        }
    }

    /// What an offer's flow depends on now; `None`: it is changing.
    fn basis_of(&self, offer: &Offer) -> Option<u32> {
        let [from, to] = FlowKey::of_words(offer.key).addresses();
        let to = offer.target().map_or(to, |target| target.addresses()[1]);
        self.epochs.sum_of(from, to, self.epochs.changes())
    }

    /// Whether an offer's connection, if it is of one, is as it was.
    fn is_current(&self, carried: Option<&OfferedFlow>, nft: Option<&Arc<Nft>>) -> bool {
        let Some(carried) = carried else { return true };
        let has_rules = nft.is_some_and(|nft| nft.id() == carried.nft_id);
        has_rules && self.flows.load().as_ref().is_some_and(|it| it.is_current(carried.flow))
    }

    /// Adds what an entry has forwarded since the last time to the counters.
    fn count(&self, inner: &mut Inner, number: u32, now_ns: u64) {
        let Some((count, seqs)) = inner.table.counted(number) else { return };
        let Some(it) = inner.installed.get_mut(number) else { return };
        let more = count.wrapping_sub(it.count);
        if more == 0 {
            return;
        }
        it.count = count;
        let packets = more >> (u64::BITS - FlowEntry::PACKETS_BITS);
        let octets = more & (FlowEntry::ONE_PACKET - 1);
        it.packets += packets;
        it.octets += octets;
        it.active = Ticks::of(now_ns);
        if let Some(used) = inner.table.hop_number(number).and_then(|hop| inner.used.get_mut(hop)) {
            *used = true;
        }
        let [received, sent] = it.header_lens.map(|len| octets + packets * u64::from(len));
        let stats = &self.stats;
        if let Some(port) = stats.ports.get(usize::from(it.in_port)) {
            port.rx_packets.add(packets);
            port.rx_bytes.add(received);
        }
        if let Some(port) = stats.ports.get(usize::from(it.out_port)) {
            port.tx_packets.add(packets);
            port.tx_bytes.add(sent);
        }
        let mibs = match it.is_ipv4 {
            true => [Mib::IpInReceives, Mib::IpForwDatagrams],
            false => [Mib::Ip6InReceives, Mib::Ip6OutForwDatagrams],
        };
        mibs.into_iter().for_each(|mib| stats.mib[mib as usize].add(packets));
        if let Some(carried) = &it.carried {
            if let Some(nft) = &carried.nft {
                nft.count_many(&carried.flow.counters, packets, octets, self.workers);
            }
            if let Some(flows) = self.flows.load().as_ref() {
                let seqs = (seqs != 0).then_some((seqs as u32, (seqs >> 32) as u32));
                let flow = (carried.flow.flow, &carried.key);
                flows.carried_elsewhere(flow, (packets, octets), seqs, now_ns);
            }
        }
    }

    /// Removes an entry. Programs may still count in it, until it has rested.
    fn remove(&self, inner: &mut Inner, number: u32, now_ns: u64) {
        self.count(inner, number, now_ns);
        inner.table.remove(number, now_ns);
        self.epochs.set_widths(inner.table.widths());
        self.len.store(inner.table.len(), Relaxed);
    }

    /// Counts for the last time what entries have forwarded that have rested.
    fn reap(&self, inner: &mut Inner, now_ns: u64) {
        while let Some(number) = inner.table.rested(now_ns) {
            self.count(inner, number, now_ns);
            inner.installed.remove(number);
        }
    }

    /// Counts, and removes what is idle or void, of the entries in a range. `is_changed`: epochs may have changed since
    /// they were looked at.
    fn sweep(&self, from: u32, end: u32, is_changed: bool) {
        let mut inner = self.lock();
        let now_ns = monotonic_ns();
        for number in from..end.min(self.capacity as u32) {
            if !inner.table.is_occupied(number as usize) {
                continue;
            }
            self.count(&mut inner, number, now_ns);
            let Some(it) = inner.installed.get(number) else { continue };
            let Some(holds) = inner.table.holds(number) else { continue };
            let is_void = !holds
                || (is_changed && inner.table.read(number).is_some_and(|it| !self.holds(&it)))
                || self.expires_soon(it, now_ns);
            // Many connections end after some packets.
            let idle_ns = if it.packets < BUSY_PACKETS { IDLE_NS / 6 } else { IDLE_NS };
            if !is_void && it.active.elapsed_ns(now_ns) < idle_ns {
                continue;
            }
            let counts = &self.counts;
            let counter = if is_void { &counts.voided } else { &counts.aged };
            counter.fetch_add(1, Relaxed);
            self.remove(&mut inner, number, now_ns);
        }
    }

    /// Marks the neighbours that packets were sent to as used: the kernel checks then whether they are still there.
    fn mark_neighbours(&self) {
        let tables = self.tables.load();
        let Inner { table, used, .. } = &mut *self.lock();
        for (number, used) in used.iter_mut().enumerate().filter(|(_, used)| **used) {
            *used = false;
            if let Some((oif, address)) = table.nexthop(number)
                && let Some(neigh) = tables.neigh.lookup(oif, &address)
            {
                neigh.mark_used();
            }
        }
    }

    /// Whether the kernel's entry of a connection expires before its flow is looked at again: a packet is the kernel's
    /// then, or a worker's, which knows.
    fn expires_soon(&self, it: &Installed, now_ns: u64) -> bool {
        let (Some(carried), Some(flows)) = (&it.carried, self.flows.load_full()) else {
            return false;
        };
        flows.expires_by(carried.flow.flow, now_ns + 3 * SWEEP_NS)
    }

    /// Whether what an entry depends on is as it was, without its next hop.
    fn holds(&self, view: &EntryView) -> bool {
        let [from0, from1, to0, to1, last] = view.key;
        // By which packets are routed.
        let [to0, to1] = view.new_destination.unwrap_or([to0, to1]);
        let [from, to] = FlowKey::of_words([from0, from1, to0, to1, last]).addresses();
        let sum = self.epochs.sum_of(from, to, self.epochs.changes());
        // While something changes it is looked at again later.
        sum.is_none_or(|sum| sum == view.basis)
    }

    /// Asks the kernel which ports take redirected frames: a veth does only while its peer has NAPI (GRO or an XDP
    /// program), and drops them silently otherwise.
    fn follow_features(&self) {
        if let Some(redirects) = &self.redirects {
            let sent_to = |port: u16| {
                self.stats.ports.get(usize::from(port)).map_or(0, |port| port.tx_packets.get())
            };
            redirects.look(&self.stats, sent_to, monotonic_ns());
        }
        let ports = self.ports.load_full();
        if !ports.iter().any(|port| port.is_input) && !self.bits.has_any() {
            return;
        }
        let bit = |has: bool, bit: u8| if has { bit } else { 0 };
        let bits_of = |port: &OffloadPort| {
            let features = || nic::xdp_features(port.ifindex).ok().flatten().unwrap_or(0);
            let has_feature = port.is_native && features() & nic::XDP_NDO_XMIT != 0;
            if let Some(redirects) = &self.redirects {
                redirects.set_feature(port.number, has_feature);
            }
            let takes = has_feature && !self.is_off(port.number);
            let bits = bit(port.is_input, OffloadPorts::RX) | bit(takes, OffloadPorts::TX);
            (port.number, bits)
        };
        let known: HashMap<u16, u8> = ports.iter().map(bits_of).collect();
        // The kernel may have taken long.
        if !Arc::ptr_eq(&ports, &self.ports.load()) {
            return self.has_new_ports.store(true, Release);
        }
        let mut has_lost = false;
        for number in 0..self.stats.ports.len() as u16 {
            let bits = known.get(&number).copied().unwrap_or(0);
            has_lost |= self.bits.set(number, bits) & !bits != 0;
        }
        if has_lost {
            self.epochs.void_all();
        }
    }
}

/// What the program knows of connections.
#[derive(Debug)]
struct Elsewhere(Arc<OffloadedEntries>);

impl SeqsElsewhere for Elsewhere {
    fn seqs(&self, key: &FlowKey) -> Option<(u32, u32)> {
        self.0.seqs(key.words())
    }

    fn void(&self, key: &FlowKey) {
        self.0.void(key.words());
    }
}

/// Whether frames to a next hop still have its addresses.
fn holds(hop: &Hop, neigh: &NeighTable) -> bool {
    let (oif, address) = &hop.nexthop;
    neigh.lookup(*oif, address).is_some_and(|neigh| neigh.lladdr == Some(hop.macs[0]))
}

/// A key as the XDP program has it.
fn xdp_key(key: &FlowKey) -> Option<xdp_prog::FlowKey> {
    let ([source, destination], [source_port, destination_port]) = (key.addresses(), key.ports());
    let protocol = key.protocol();
    xdp_prog::FlowKey::new(source, destination, source_port, destination_port, protocol)
}

/// What makes packets with the key `from` have the key `to`. `None`: they are not of one family.
fn rewrite(from: &FlowKey, to: &FlowKey) -> Option<Rewrite> {
    Some(Rewrite::new(&xdp_key(from)?, &xdp_key(to)?))
}
