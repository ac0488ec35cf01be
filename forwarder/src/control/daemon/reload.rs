//! Reloads of the configuration file: what changes without a restart changes, everything else is named.
//!
//! The file is read on the thread of the client that asks for it, or after SIGHUP on a thread of its own, because a
//! file may be on a file system that does not answer. The control thread gets the options, valid as a whole, and applies
//! them between two turns.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use crossbeam_channel::{Sender, bounded};
use tracing::{error, info, warn};

use super::Supervisor;
use super::relay::{Ask, Relay};
use crate::control::api::event::{Event, ReloadEvent};
use crate::control::api::{ReloadReport, Response};
use crate::control::config::RunOptions;
use crate::control::config::effective::toml_text;
use crate::control::config::reload::KeyChange;
use crate::control::config::source::Source;
use crate::control::process::{log, privilege};
use crate::worker::clock::monotonic_ns;

/// The section of IPsec, as a key that has changed.
const XFRM: &str = "xfrm";
/// How long the control thread may take until it applies what was read.
const APPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Options that were read, or why not.
pub(super) type ReadOptions = Result<Box<RunOptions>, String>;

/// Reloads, as the control thread sees them.
pub(super) struct Reloads {
    relay: Arc<Relay>,
    /// The options that the file and the flags have, as far as they are in effect. The daemon's own may differ: the start
    /// changes those that this machine does not permit.
    chosen: RunOptions,
    /// Flow offload was not off at the start.
    is_offloading: bool,
    /// The thread that reads the file after SIGHUP.
    thread: Option<JoinHandle<()>>,
    /// SIGHUP arrived after it had begun.
    again: bool,
    /// What is to be applied, and who waits for it.
    pub(super) pending: VecDeque<(ReadOptions, Sender<Response>)>,
}

impl Reloads {
    /// `options`: the daemon's. `chosen`: the same before the start changed any.
    pub(super) fn new(relay: Arc<Relay>, options: &RunOptions, chosen: RunOptions) -> Reloads {
        let is_offloading = options.offload.is_on();
        Reloads {
            relay,
            chosen,
            is_offloading,
            thread: None,
            again: false,
            pending: VecDeque::new(),
        }
    }

    /// Takes over what can take effect. Returns the keys that differ from before.
    fn take(&mut self, options: &mut RunOptions, new: &RunOptions) -> Vec<KeyChange> {
        take(&mut self.chosen, options, new, self.is_offloading)
    }
}

impl Relay {
    /// Reads the file again and has the options applied.
    pub(super) fn reload(&self) -> Response {
        let Some(source) = &self.source else {
            return Response::error(
                "the daemon was started without a configuration file (run --config FILE), so there is nothing to \
                 read again",
            );
        };
        let options = source.read_again().map(Box::new).map_err(|error| error.to_string());
        let (answer, answered) = bounded(1);
        let sent = self.asks.send_timeout(Ask::Reload { options, answer }, APPLY_TIMEOUT);
        self.wakeup.wake();
        let answer = sent.ok().and_then(|()| answered.recv_timeout(APPLY_TIMEOUT).ok());
        answer.unwrap_or_else(|| {
            Response::error(
                "the control thread does not answer or is stopping (see `status`); what the file has may still be applied",
            )
        })
    }
}

impl Supervisor {
    /// Begins a reload after SIGHUP, and applies what was read. Called once per turn.
    pub(super) fn follow_reloads(&mut self) -> Result<()> {
        self.reloads.again |= self.signals.hung_up();
        while let Some((options, answer)) = self.reloads.pending.pop_front() {
            self.service.reloading(monotonic_ns());
            // The client may be gone.
            let _ = answer.send(self.reload(options)?);
            self.service.reloaded();
        }
        if self.reloads.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            let _ = self.reloads.thread.take().map(JoinHandle::join);
            self.service.reloaded();
        }
        if self.reloads.again && self.reloads.thread.is_none() {
            self.reloads.again = false;
            self.service.reloading(monotonic_ns());
            let relay = Arc::clone(&self.reloads.relay);
            let thread = std::thread::Builder::new().name("fr-reload".into()).spawn(move || {
                privilege::drop_all();
                // It is logged when it is applied or refused.
                let _ = relay.reload();
                // The control thread joins this one.
                relay.wakeup.wake();
            });
            match thread {
                Ok(thread) => self.reloads.thread = Some(thread),
                Err(error) => {
                    error!("no reload, nothing changes: cannot start a thread: {error}");
                    self.service.reloaded();
                }
            }
        }
        Ok(())
    }

    fn reload(&mut self, read: ReadOptions) -> Result<Response> {
        let new = match read {
            Ok(new) => new,
            Err(error) => {
                let refused = Some(error.clone());
                let event = ReloadEvent { refused, ..ReloadEvent::default() };
                self.clients.view.events.say(Event::Reload(event));
                return Ok(Response::error(format!("refused, nothing changes: {error}")));
            }
        };
        let mut options = RunOptions::clone(&self.options);
        let changes = self.reloads.take(&mut options, &new);
        self.options = Arc::new(options);
        for change in &changes {
            self.apply(change)?;
            info!("reload: {}", described(change));
        }
        if changes.is_empty() {
            info!("reload: no key has changed");
        }
        let event = ReloadEvent { changes: changes.clone(), refused: None };
        self.clients.view.events.publish(Event::Reload(event));
        self.publish();
        let file = new.source.as_ref().map(Source::path).unwrap_or("".as_ref());
        let warnings = self.absent_interfaces();
        warnings.iter().for_each(|warning| warn!("reload: {warning}"));
        Ok(Response::Reload(ReloadReport { file: file.to_owned(), changes, warnings }))
    }

    /// Applies a key of `self.options`.
    fn apply(&mut self, change: &KeyChange) -> Result<()> {
        match (change.key.as_str(), change.applied) {
            ("interfaces", true) => self.change_interfaces()?,
            ("latency_sample", true) => {
                let every = self.options.latency_sample;
                self.workers.handles().iter().for_each(|worker| worker.residence.set_every(every));
            }
            ("offload", true) => self.steer()?,
            (XFRM, true) => self.change_xfrm()?,
            ("log_level", true) => log::set_level(self.options.log_level),
            ("offload_threshold", true) => {
                self.workers.set_threshold(self.options.offload.threshold);
            }
            ("worker_timeout_ms" | "control_timeout_ms", true) => {
                let (worker, control) =
                    (self.options.timeouts.worker, self.options.timeouts.control);
                self.workers.set_timeouts([worker, control]);
                self.steering_state.set_timeouts(worker, control)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// As at the start: rules on new ports are known before packets are taken from them.
    fn change_interfaces(&mut self) -> Result<()> {
        self.ports.follow_names(&self.options);
        self.bring_up_ports()?;
        self.watch_ports();
        self.firewall.read_all();
        self.follow_firewall()?;
        // A port that was left out may be the one whose rules have stopped everything.
        self.steer()
    }

    /// Named interfaces that do not exist, which may be typing errors, and those that there is no room for.
    fn absent_interfaces(&self) -> Vec<String> {
        let links = self.links();
        let named = self.options.interfaces.named().iter();
        let absent = named.filter(|name| links.named(name).is_none());
        let mut warnings: Vec<String> = absent
            .map(|name| format!("interface {name} does not exist; it is a port as soon as it does"))
            .collect();
        warnings.extend(self.ports.without_room(&self.options));
        warnings
    }
}

/// Takes over what can take effect, into the daemon's options and into those that were chosen.
fn take(
    chosen: &mut RunOptions,
    options: &mut RunOptions,
    new: &RunOptions,
    is_offloading: bool,
) -> Vec<KeyChange> {
    options.take(new, is_offloading);
    let mut changes = chosen.take(new, is_offloading);
    if chosen.xfrm != new.xfrm {
        // The threads and the directory are there from the start on, or not at all.
        let applied = !chosen.xfrm.is_empty() && !new.xfrm.is_empty();
        let [from, to] = [&chosen.xfrm, &new.xfrm].map(|it| Some(it.summary().into()));
        changes.push(KeyChange { key: XFRM.to_owned(), from, to, applied });
        if applied {
            chosen.xfrm = Arc::clone(&new.xfrm);
            options.xfrm = Arc::clone(&new.xfrm);
        }
    }
    changes
}

/// A change, for the log.
fn described(change: &KeyChange) -> String {
    let text = |value: &Option<serde_json::Value>| match value {
        Some(value) => toml_text(value),
        None => "not set".to_owned(),
    };
    let (from, to) = (text(&change.from), text(&change.to));
    let effect = if change.applied { "applied" } else { "needs a restart" };
    format!("{}: {effect}: {from} -> {to}", change.key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::RunFlags;
    use crate::control::config::offload::OffloadMode;

    #[test]
    fn what_the_start_has_changed_is_not_a_change_of_the_file() {
        let resolve = |names: &[&str]| {
            let interfaces = names.iter().map(|name| (*name).to_owned()).collect();
            let flags = RunFlags { interfaces, ..RunFlags::default() };
            RunOptions::resolve(flags, None).expect("is right")
        };
        let mut chosen = resolve(&["a"]);
        // Without memory for offloaded flows, and without a runtime directory.
        let mut options = RunOptions { runtime_dir: None, ..chosen.clone() };
        options.offload.mode = OffloadMode::Off;
        assert_eq!(take(&mut chosen, &mut options, &resolve(&["a"]), false), []);
        let new = resolve(&["b"]);
        let changes = take(&mut chosen, &mut options, &new, false);
        assert!(changes.len() == 1 && changes[0].applied, "{changes:?}");
        assert_eq!(options.interfaces.named(), ["b"]);
        assert!(options.runtime_dir.is_none() && options.offload.mode == OffloadMode::Off);
        assert_eq!(take(&mut chosen, &mut options, &new, false), []);
    }

    #[test]
    fn changes_are_described_as_in_the_file() {
        let change = KeyChange {
            key: "interfaces".into(),
            from: Some(serde_json::json!(["a"])),
            to: Some(serde_json::json!(["a", "b*"])),
            applied: true,
        };
        assert_eq!(described(&change), "interfaces: applied: [\"a\"] -> [\"a\", \"b*\"]");
        let change = KeyChange { key: "queues".into(), from: None, applied: false, ..change };
        assert_eq!(described(&change), "queues: needs a restart: not set -> [\"a\", \"b*\"]");
    }
}
