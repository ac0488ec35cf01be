//! Events that no single place brings about: the control thread compares its state with that of the last look.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Supervisor;
use super::ports::Port;
use crate::control::api::event::{
    Event, OffloadChange, OffloadState, PortChange, StateChange, TableCounts, TablesChange,
};
use crate::control::api::{IpsecSas, State};
use crate::control::config::offload::OffloadMode;
use crate::control::mirror::state::Family;

/// How often the state is compared: changes between are one event.
const OBSERVE_INTERVAL: Duration = Duration::from_millis(100);

/// What was seen last.
pub(super) struct Observed {
    at: Instant,
    state: State,
    why: String,
    generation: u64,
    /// Tables that were read again; for lost notifications.
    resyncs: (u64, u64),
    corrections: u64,
    notifications: TableCounts,
    offload: OffloadChange,
    /// By worker: it gives no heartbeat.
    silent: Vec<bool>,
    /// By name: open ports, up and with a carrier.
    up: HashMap<String, bool>,
    ipsec: (u64, Option<IpsecSas>),
}

impl Observed {
    /// Before anything has happened.
    pub(super) fn new() -> Observed {
        Observed {
            at: Instant::now(),
            state: State::Starting,
            why: String::new(),
            generation: 0,
            resyncs: (0, 0),
            corrections: 0,
            notifications: TableCounts::default(),
            offload: OffloadChange { state: OffloadState::Off, refused: Vec::new() },
            silent: Vec::new(),
            up: HashMap::new(),
            ipsec: (0, None),
        }
    }
}

impl Supervisor {
    /// Called once per turn: publishes what has changed.
    pub(super) fn observe(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.observed.at) < OBSERVE_INTERVAL {
            return;
        }
        self.observed.at = now;
        self.observe_workers();
        self.observe_state();
        self.observe_ports();
        self.observe_tables();
        self.observe_offload();
        self.observe_ipsec();
    }

    fn publish_event(&self, event: Event) {
        self.clients.view.events.publish(event);
    }

    /// The state at the end, when there is no turn any more.
    pub(super) fn observe_stop(&mut self) {
        let was = std::mem::replace(&mut self.observed.state, State::Stopping);
        let why = "the daemon stops; the kernel forwards".to_owned();
        self.publish_event(Event::State(StateChange { state: State::Stopping, was, why }));
    }

    fn observe_state(&mut self) {
        let silent = self.observed.silent.iter().position(|silent| *silent);
        let (mut state, why) = (self.state(), self.service_status(silent));
        if state == State::Forwarding && silent.is_some() {
            state = State::Degraded;
        }
        if (state, &why) == (self.observed.state, &self.observed.why) {
            return;
        }
        self.observed.why.clone_from(&why);
        let was = std::mem::replace(&mut self.observed.state, state);
        self.publish_event(Event::State(StateChange { state, was, why }));
    }

    fn observe_workers(&mut self) {
        let silent = self.silent_workers();
        for (n, is_silent) in silent.iter().enumerate() {
            if self.observed.silent.get(n).copied().unwrap_or(false) != *is_silent {
                self.publish_event(Event::Worker { worker: n as u32, stalled: *is_silent });
            }
        }
        self.observed.silent = silent;
    }

    fn observe_ports(&mut self) {
        let links = self.links();
        let is_up = |port: &Port| {
            let link = links.ifindex(port.ifindex()).filter(|_| port.is_active())?;
            Some((port.ifname.clone(), link.up))
        };
        let up: HashMap<String, bool> = self.ports.iter().filter_map(is_up).collect();
        for (ifname, is_up) in &up {
            if self.observed.up.get(ifname).is_some_and(|was_up| was_up != is_up) {
                let change = if *is_up { PortChange::Up } else { PortChange::Down };
                self.publish_event(Event::port(ifname, change, None));
            }
        }
        self.observed.up = up;
    }

    fn observe_tables(&mut self) {
        let counters = self.mirror.counters();
        if self.observed.generation == 0 {
            // What the start has read is no change.
            self.observed.resyncs = (counters.resyncs, counters.enobufs);
            self.observed.corrections = counters.corrections;
        }
        // Notifications that were lost are counted before the tables are read.
        let now = (counters.resyncs, counters.enobufs);
        if self.observed.resyncs.0 != now.0 {
            let before = std::mem::replace(&mut self.observed.resyncs, now);
            self.publish_event(Event::Resync { resyncs: now.0, lost: before.1 != now.1 });
        }
        let before = std::mem::replace(&mut self.observed.corrections, counters.corrections);
        if before != counters.corrections {
            self.publish_event(Event::Correction { corrections: counters.corrections });
        }
        let generation = self.mirror.tables().generation;
        let was = std::mem::replace(&mut self.observed.generation, generation);
        let [links, addrs, routes, rules, nexthops, neighbours] = counters.kinds;
        let now = TableCounts { links, addrs, routes, rules, nexthops, neighbours };
        let before = self.observed.notifications;
        // Routes go into the tables in place where possible, without a new generation. Of neighbours most notifications
        // change nothing for workers.
        let is_same = TableCounts { neighbours: before.neighbours, ..now } == before;
        if was != generation || !is_same {
            self.observed.notifications = now;
            let notifications = now.since(&before);
            let objects = self.table_counts();
            self.publish_event(Event::Tables(TablesChange {
                generation,
                was,
                objects,
                notifications,
            }));
        }
    }

    fn table_counts(&self) -> TableCounts {
        let state = self.mirror.state();
        TableCounts {
            links: state.links.len() as u64,
            addrs: state.addrs.len() as u64,
            routes: (state.routes4.len() + state.routes6.len()) as u64,
            rules: (state.rules(Family::V4).len() + state.rules(Family::V6).len()) as u64,
            nexthops: state.nexthops.len() as u64,
            neighbours: state.neighs.len() as u64,
        }
    }

    fn observe_offload(&mut self) {
        let state = match &self.offload {
            Some(offload) if self.options.offload.mode != OffloadMode::Off => {
                if offload.offloads().is_paused() { OffloadState::Paused } else { OffloadState::On }
            }
            _ => OffloadState::Off,
        };
        let offload = self.offload.iter().filter(|_| state != OffloadState::Off);
        let refused = offload.flat_map(|it| it.offloads().warnings()).collect();
        let change = OffloadChange { state, refused };
        if change != self.observed.offload {
            self.observed.offload = change.clone();
            self.publish_event(Event::Offload(change));
        }
    }

    fn observe_ipsec(&mut self) {
        let ipsec = (self.mirror.tables().xfrm.len() as u64, self.ipsec_sas());
        if ipsec != self.observed.ipsec {
            self.observed.ipsec = ipsec.clone();
            let (policies, sas) = ipsec;
            self.publish_event(Event::Ipsec { policies, sas });
        }
    }
}
