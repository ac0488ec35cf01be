//! The nftables ruleset that the workers apply, with the connections that it needs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Supervisor;
use super::flow_entry::Locals;
use super::flows::FlowFollower;
use crate::control::api::event::{Event, RulesetEvent};
use crate::control::firewall::ruleset::{Compiled, Followed, sets_entries};
use crate::netfilter::nft::{Program, Tracking};

/// How long the start waits for the nftables ruleset; after that, packets are left to the kernel until it
/// has been read.
const RULESET_TIMEOUT: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Has the current nftables ruleset read if the workers do not apply it. Returns whether that is so.
    pub(super) fn follow_ruleset(&mut self) -> Result<bool> {
        let has_ruleset = self.firewall.has_ruleset() && !self.options.ignore_firewall;
        let needs_none = self.firewall.has_no_ruleset() || self.options.ignore_firewall;
        if needs_none && self.hooks.nft().is_some() {
            self.hooks.set_nft(None);
            self.void_offloaded();
            self.steering_state.set_tracking([false; 2])?;
            if let Some(flows) = &self.flows {
                flows.set_ruleset(false, false);
                flows.set_tracking([Tracking::Off; 2]);
            }
        }
        let pending = has_ruleset && self.firewall.is_ruleset_pending();
        if pending && !self.ruleset.request(self.firewall.nftables_notices()) {
            bail!("the thread fr-nft ended by itself, which is a bug; the kernel keeps forwarding");
        }
        Ok(pending)
    }

    /// Takes a ruleset that was read: the workers apply it from their next burst on.
    pub(super) fn take_ruleset(&mut self) -> Result<()> {
        let Some(read) = self.ruleset.try_result() else { return Ok(()) };
        self.firewall.set_followed(match &read {
            Ok(compiled) => Followed::of(compiled),
            Err(error) => Followed::failed(error),
        });
        self.clients.view.events.publish(Event::Ruleset(RulesetEvent {
            generation: read.as_ref().map_or(0, |compiled| compiled.generation),
            applied: read.is_ok(),
            error: read.as_ref().err().map(ToString::to_string),
        }));
        if let Ok(compiled) = read {
            // Until it is known that the workers can apply all of it; `steer` decides.
            self.workers.set_hand_back(true);
            self.apply_ruleset(compiled)?;
        }
        self.follow_firewall()?;
        self.steer()
    }

    /// Whether the carried flows, if the ruleset tracks connections, are those of the kernel's table.
    pub(super) fn are_flows_current(&self, now_ns: u64) -> bool {
        let is_tracked = self.hooks.nft().is_some_and(|nft| nft.program().tracks_connections());
        !is_tracked || self.flows.as_ref().is_none_or(|flows| flows.is_current(now_ns))
    }

    /// Has the workers run a ruleset from their next burst on.
    pub(super) fn apply_ruleset(&mut self, compiled: Compiled) -> Result<()> {
        let tracking = self.tracking_with(&compiled.program);
        let families = compiled.program.tracked_families();
        if tracking != [Tracking::Off; 2] {
            self.start_flows()?;
        }
        if let Some(flows) = &self.flows {
            let old = self.hooks.nft().map(|nft| nft.ruleset());
            let mut rulesets = old.into_iter().chain([&compiled.ruleset]);
            let has_flowtables = rulesets.any(|ruleset| ruleset.flowtables().next().is_some());
            flows.set_ruleset(sets_entries(&compiled.ruleset), has_flowtables);
            flows.set_tracking(tracking);
        }
        self.hooks.set_nft(Some((compiled.ruleset, compiled.program)));
        self.void_offloaded();
        self.steering_state.set_tracking(families)
    }

    /// Has connections followed that IPsec policies, or the last of them that is gone, make worth it.
    pub(super) fn follow_ipsec_flows(&mut self) -> Result<()> {
        let Some(nft) = self.hooks.nft().cloned() else { return Ok(()) };
        let tracking = self.tracking_with(nft.program());
        if tracking != [Tracking::Off; 2] && self.start_flows()? {
            let sets_entries = sets_entries(nft.ruleset());
            let has_flowtables = nft.ruleset().flowtables().next().is_some();
            if let Some(flows) = &self.flows {
                flows.set_ruleset(sets_entries, has_flowtables);
            }
        }
        if let Some(flows) = &self.flows {
            flows.set_tracking(tracking);
        }
        Ok(())
    }

    /// Which connections a ruleset needs that can be carried: those of packets at input and output are IPsec's only.
    fn tracking_with(&self, program: &Program) -> [Tracking; 2] {
        let is_needed = |tracking| tracking != Tracking::Local || !self.policies.is_empty();
        program.tracking().map(|it| if is_needed(it) { it } else { Tracking::Off })
    }

    /// Starts to follow connections. `false`: they are.
    fn start_flows(&mut self) -> Result<bool> {
        if self.flows.is_some() {
            return Ok(false);
        }
        let gate = self.steering_state.flow_gate()?;
        let offloads = self.offload.as_ref().map(|it| Arc::clone(it.offloads()));
        let flows = FlowFollower::start(gate, self.locals(), offloads)
            .context("cannot start the thread fr-ct")?;
        self.hooks.set_flows(Arc::clone(flows.table()));
        if let Some(offload) = &self.offload {
            offload.offloads().set_flows(Arc::clone(flows.table()));
        }
        self.flows = Some(flows);
        Ok(true)
    }

    /// The workers apply other rules from their next burst on: what was decided by the old ones no longer holds.
    fn void_offloaded(&self) {
        self.mirror.tables().epochs.void_all();
    }

    /// The router's own connections are not carried, unless they are of IPsec, and SAs for receiving end at its addresses.
    pub(super) fn tell_locals(&self) {
        if let Some(flows) = &self.flows {
            flows.set_locals(self.locals());
        }
        if let Some(sas) = &self.sas {
            sas.set_locals(self.locals());
        }
    }

    pub(super) fn locals(&self) -> Locals {
        Locals { ipv4: self.mirror.local4().collect(), ipv6: self.mirror.local6().collect() }
    }

    /// Waits until the workers apply the current ruleset, before anything is forwarded.
    pub(super) fn wait_for_ruleset(&mut self) -> Result<()> {
        let end = Instant::now() + RULESET_TIMEOUT;
        while self.ruleset_pending && Instant::now() < end {
            self.signals.check()?;
            std::thread::sleep(Duration::from_millis(1));
            self.watch_firewall()?;
            self.take_ruleset()?;
        }
        Ok(())
    }
}
