//! What the service manager is told: that the start has ended, the line of status, and that the control
//! thread and all workers are alive.
//!
//! The start has ended when packets are forwarded, as `status --wait` has it. If the kernel has to forward
//! instead, because of its rules, because no interface matches yet, or because the control thread does not keep
//! up with its changes, that may last; then the start has ended as well after [`READY_TIMEOUT`], or a boot would wait for it, and the line of status has the reason.
//! The watchdog gets no ping while a worker gives no heartbeat. The kernel forwards what a worker that hangs
//! should forward (`worker/liveness.rs`), and the manager restarts the process if that lasts.

use std::time::{Duration, Instant};

use super::Supervisor;
use super::ports::Port;
use crate::control::api::State;
use crate::control::process::notify::Notifier;
use crate::control::process::terminal::printable;
use crate::io::af_xdp::is_fresh;
use crate::worker::clock::monotonic_ns;

/// How long packets may not be forwarded after the ports were opened, until the start has ended nevertheless:
/// longer than rules and links need that change meanwhile.
const READY_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the line of status is made.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);
/// A worker gives a heartbeat at least every 20 ms if it has its CPU. An older one is none for the watchdog, however
/// long `--worker-timeout` is.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pings in the watchdog's time. The manual recommends two; one that is due while a worker is without its CPU
/// for a moment comes some 100 ms later.
const PINGS: u32 = 3;

/// The service manager, and what it knows.
pub(super) struct Service {
    notifier: Option<Notifier>,
    /// Since when the ports were opened for the first time.
    opened: Option<Instant>,
    is_ready: bool,
    is_reloading: bool,
    /// When the line of status was last made.
    status_made: Option<Instant>,
    /// When it last got a ping.
    pinged: Option<Instant>,
}

impl Service {
    pub(super) fn from_environment() -> Service {
        Service {
            notifier: Notifier::from_environment(),
            opened: None,
            is_ready: false,
            is_reloading: false,
            status_made: None,
            pinged: None,
        }
    }

    /// A reload begins, at `now_ns` of CLOCK_MONOTONIC.
    pub(super) fn reloading(&mut self, now_ns: u64) {
        if let Some(notifier) = self.notifier.as_mut().filter(|_| self.is_ready)
            && !std::mem::replace(&mut self.is_reloading, true)
        {
            notifier.reloading(now_ns);
        }
    }

    /// A reload has ended, with success or not.
    pub(super) fn reloaded(&mut self) {
        if std::mem::take(&mut self.is_reloading)
            && let Some(notifier) = &mut self.notifier
        {
            notifier.ready();
        }
    }

    /// The process is about to end.
    pub(super) fn stopping(&mut self) {
        if let Some(notifier) = &mut self.notifier {
            notifier.stopping();
        }
    }
}

impl Supervisor {
    /// Called once per turn. `is_beating`: this turn has given a heartbeat.
    pub(super) fn notify_service(&mut self, is_beating: bool) {
        let Some(mut notifier) = self.service.notifier.take() else { return };
        let now = Instant::now();
        let opened = *self.service.opened.get_or_insert(now);
        let silent = self.silent_worker();
        if !self.service.is_ready {
            let forwards = is_beating && self.state() == State::Forwarding && silent.is_none();
            if forwards || now.duration_since(opened) >= READY_TIMEOUT {
                notifier.set_status(&self.service_status(silent));
                notifier.ready();
                self.service.is_ready = true;
                self.service.status_made = Some(now);
            }
        }
        let is_older = |since: Option<Instant>, age| since.is_none_or(|at| now - at >= age);
        if self.service.is_ready && is_older(self.service.status_made, STATUS_INTERVAL) {
            notifier.set_status(&self.service_status(silent));
            self.service.status_made = Some(now);
        }
        if let Some(time) = notifier.watchdog()
            && silent.is_none()
            && is_older(self.service.pinged, time / PINGS)
            && notifier.ping()
        {
            self.service.pinged = Some(now);
        }
        notifier.flush();
        self.service.notifier = Some(notifier);
    }

    /// A worker that gives no heartbeat.
    fn silent_worker(&self) -> Option<usize> {
        self.silent_workers().iter().position(|silent| *silent)
    }

    /// By worker: it gives no heartbeat.
    pub(super) fn silent_workers(&self) -> Vec<bool> {
        let heartbeats = self.steering_state.heartbeats();
        let now_ns = monotonic_ns();
        let timeout = self.options.timeouts.worker.min(HEARTBEAT_TIMEOUT);
        let timeout_ns = timeout.as_nanos() as u64;
        // A worker's first queue has the worker's number.
        let is_alive = |worker: &usize| {
            heartbeats.queue(*worker).is_some_and(|word| is_fresh(word, now_ns, timeout_ns))
        };
        (0..self.workers.handles().len()).map(|worker| !is_alive(&worker)).collect()
    }

    /// How many ports forward, or why the kernel does: one line.
    pub(super) fn service_status(&self, silent: Option<usize>) -> String {
        let listed: Vec<&Port> = self.ports.listed().collect();
        let active = listed.iter().filter(|port| port.is_active()).count();
        let left = || {
            let port = listed.iter().find(|port| !port.is_active())?;
            Some(format!("interface {}: {}", port.ifname, port.describe()))
        };
        let line = if !self.steering_allowed() {
            let why = match self.bypassed.first() {
                Some(rule) => rule.as_str(),
                None if self.ruleset_pending => "the nftables ruleset is being read",
                None if self.punter.is_broken() => "the TAP device does not take frames",
                None => "a port with rules of its own is being closed",
            };
            format!("the kernel forwards: {why}")
        } else if self.beat.elapsed() > self.options.timeouts.control {
            "the kernel forwards: its changes have not been followed in time".to_owned()
        } else if active == 0 {
            let why = left().or_else(|| self.unmatched());
            format!("the kernel forwards: {}", why.unwrap_or_else(|| "there is no port".into()))
        } else {
            let ports = if listed.len() == 1 { "port forwards" } else { "ports forward" };
            let rest = left().map_or(String::new(), |left| format!("; {left}"));
            format!("{active} of {} {ports}{rest}", listed.len())
        };
        let silent = silent.map_or(String::new(), |n| {
            format!("; worker {n} gives no heartbeat, and the kernel forwards what is its own")
        });
        printable(&format!("{line}{silent}")).into_owned()
    }
}
