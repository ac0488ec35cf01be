//! Which frames the XDP programs redirect to userspace, according to the tables.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tracing::warn;

use super::ports::{Port, PortManager};
use crate::control::mirror::Mirror;
use crate::control::steering::{Attacher, FlowGate, SaGateKey, Steering};
use crate::io::af_xdp::HeartbeatPage;
use crate::ipsec::{InboundState, Sad, State};

/// The programs' maps, and what could not be put into them.
pub(super) struct SteeringState {
    steering: Steering,
    /// Generation of the tables by which the programs' steering was last set.
    generation: u64,
    /// Version of the local addresses in the maps; `None`: not known.
    locals: Option<[u64; 2]>,
    /// Why a family's local addresses are not all in the maps.
    unknown_locals: Option<String>,
    /// Why VLANs are not all in the maps.
    unknown_vlans: Option<String>,
    /// [`Links::id`](crate::tables::Links::id) of the links whose VLANs are in the maps; 0: not all of any are.
    vlans_of: u64,
}

impl SteeringState {
    pub(super) fn new(steering: Steering) -> SteeringState {
        SteeringState {
            steering,
            generation: 0,
            locals: None,
            unknown_locals: None,
            unknown_vlans: None,
            vlans_of: 0,
        }
    }

    /// [`Links::id`](crate::tables::Links::id) of the links whose VLANs the programs know; 0: of none.
    pub(super) fn vlans_of(&self) -> u64 {
        self.vlans_of
    }

    pub(super) fn steering(&self) -> &Steering {
        &self.steering
    }

    pub(super) fn heartbeats(&self) -> &Arc<HeartbeatPage> {
        self.steering.heartbeats()
    }

    pub(super) fn attacher(&self) -> Attacher {
        self.steering.attacher()
    }

    /// How long heartbeats of a worker and of the control thread are valid, for the XDP programs.
    pub(super) fn set_timeouts(&mut self, worker: Duration, control: Duration) -> Result<()> {
        Ok(self.steering.set_timeouts(worker, control)?)
    }

    /// Whether only packets of carried flows are steered, of IPv4 and of IPv6.
    pub(super) fn set_tracking(&mut self, on: [bool; 2]) -> Result<()> {
        Ok(self.steering.set_tracking(on)?)
    }

    /// The SAs whose packets for the router itself are steered, those that `is_steered` says, and with them fragments to the
    /// same address.
    pub(super) fn set_ipsec_sas(
        &mut self,
        sad: &Sad,
        is_steered: impl Fn(&State) -> bool,
    ) -> Result<()> {
        let steered = sad.states().filter(|state| is_steered(state.state()));
        let keys = |state: &Arc<InboundState>| {
            let (config, protocol) = (state.state().config(), state.state().protocol().0);
            let fragments = SaGateKey::of_fragments(config.dst, protocol);
            let whole = SaGateKey::new(config.dst, config.spi, protocol);
            // Fragments of UDP are the kernel's.
            config.encap.is_none().then_some(fragments).into_iter().chain([whole])
        };
        // Those for which there is no room stay with the kernel.
        self.steering.set_ipsec_sas(steered.flat_map(keys))?;
        Ok(())
    }

    /// The map of the carried flows.
    pub(super) fn flow_gate(&self) -> Result<FlowGate> {
        Ok(self.steering.flow_gate()?)
    }

    /// Generation of the tables that the programs steer by.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// What is left to the kernel because the maps could not be filled, for `status`.
    pub(super) fn warnings(&self) -> impl Iterator<Item = &String> {
        self.unknown_locals.iter().chain(&self.unknown_vlans)
    }

    /// Sets local addresses first, then steering: a frame for the router itself is never steered. Unless
    /// `allowed`, the kernel gets every frame.
    pub(super) fn apply(
        &mut self,
        mirror: &Mirror,
        ports: &mut PortManager,
        allowed: bool,
    ) -> Result<()> {
        let tables = mirror.tables();
        self.generation = tables.generation;
        if !allowed {
            let mut open = ports.iter_mut().filter_map(Port::active_mut);
            return open.try_for_each(|port| port.steer(false, false));
        }
        // Without all of a family's local addresses the program does not know which frames are local: the
        // kernel gets that family.
        let version = mirror.locals_version();
        let (mut known4, mut known6) = (Ok(()), Ok(()));
        if self.locals != Some(version) {
            known4 = self.steering.set_local4(&mirror.local4().collect());
            known6 = self.steering.set_local6(&mirror.local6().collect());
            self.locals = (known4.is_ok() && known6.is_ok()).then_some(version);
        }
        let ipv4 = known4.is_ok() && !tables.fib4.punts_all();
        let ipv6 = known6.is_ok() && !tables.fib6.punts_all();
        let unknown = known4.err().or(known6.err()).map(|error| {
            format!(
                "{error}; a family whose local addresses are not all known is left to the kernel"
            )
        });
        remember(&mut self.unknown_locals, unknown);
        let mut unknown = None;
        for port in ports.iter_mut() {
            let index = port.index;
            let result = port.active_mut().map(|active| active.steer_vlans(index, &tables.links));
            if let Some(Err(error)) = result {
                unknown = Some(format!("{error:#}; such VLANs are left to the kernel"));
            }
        }
        self.vlans_of = if unknown.is_none() { tables.links.id } else { 0 };
        remember(&mut self.unknown_vlans, unknown);
        ports.iter_mut().try_for_each(|port| {
            // An interface that is not followed (in a VRF, under a macvlan) is not a port in the tables.
            let followed = tables.links.port(port.index).is_some();
            let Some(active) = port.active_mut() else { return Ok(()) };
            active.steer(ipv4 && followed, ipv6 && followed)
        })
    }
}

/// Stores `now` and logs it if it is new.
fn remember(known: &mut Option<String>, now: Option<String>) {
    if *known == now {
        return;
    }
    if let Some(why) = &now {
        warn!("{why}");
    }
    *known = now;
}
