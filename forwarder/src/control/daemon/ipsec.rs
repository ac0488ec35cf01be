//! IPsec: the policies and security associations that the workers apply.

use std::sync::Arc;

use anyhow::{Context, Result};

use super::Supervisor;
use super::sas::{SaFollower, Tracked};
use crate::control::api::IpsecSas;
use crate::ipsec::State;
use crate::netfilter::nft::Tracking;
use crate::tables::XfrmPolicies;

impl Supervisor {
    /// Has the workers use the xfrm interfaces on which nothing filters.
    fn follow_xfrmis(&mut self) {
        let mut filters = self.firewall.of_xfrmis();
        if self.options.ignore_firewall {
            filters.values_mut().for_each(String::clear);
        }
        self.mirror.set_xfrmi_filters(filters);
    }

    /// Has the workers apply the current IPsec policies from their next burst on.
    pub(super) fn follow_policies(&mut self) -> Result<()> {
        self.follow_xfrmis();
        // If they cannot be read, those from before apply until the kernel has all packets.
        let Some(policies) = self.firewall.policies().filter(|_| !self.options.ignore_firewall)
        else {
            return Ok(());
        };
        if policies != self.policies {
            self.policies = policies.to_vec();
            self.follow_ipsec_flows()?;
            self.apply_policies();
        }
        // None without policies, from now on.
        if self.policies.is_empty() { self.follow_sas() } else { Ok(()) }
    }

    /// Follows the kernel's SAs while there are policies.
    pub(super) fn follow_sas(&mut self) -> Result<()> {
        let is_enabled = !self.policies.is_empty() && self.ipsec_filter().is_none();
        if self.sas.is_none() && is_enabled {
            let wakeup = Arc::clone(&self.wakeup);
            let sas = SaFollower::start(self.locals(), &self.mirror.tables().links, move || {
                wakeup.wake()
            })
            .context("cannot start the thread fr-xfrm")?;
            self.sas = Some(sas);
        }
        if let Some(sas) = &mut self.sas {
            sas.set_links(&self.mirror.tables().links);
        }
        if self.sas.as_ref().is_some_and(|sas| sas.set_tracked(self.tracked())) {
            self.steer_sas()?;
        }
        let is_news = self.sas.as_mut().is_some_and(|sas| sas.set_enabled(is_enabled));
        if is_news {
            self.apply_sas()?;
        }
        Ok(())
    }

    /// Takes the SAs that were read: the workers use them from their next burst on.
    pub(super) fn take_sas(&mut self) -> Result<()> {
        self.follow_sas()?;
        match self.sas.as_mut().and_then(SaFollower::take_report) {
            Some(_) => self.apply_sas(),
            None => Ok(()),
        }
    }

    fn apply_sas(&mut self) -> Result<()> {
        let policies = self.compile_policies();
        self.mirror.set_sas(policies);
        // Workers know them before they get their packets.
        self.steer_sas()
    }

    /// A connection may be carried from any moment on, or end.
    pub(super) fn check_sas(&mut self) -> Result<()> {
        if self.tracked().is_some() && self.sas.is_some() { self.steer_sas() } else { Ok(()) }
    }

    /// Has packets of the workers' SAs steered, where connections are tracked those whose connection is carried.
    fn steer_sas(&mut self) -> Result<()> {
        let states = Arc::clone(self.mirror.tables().xfrm.states());
        let tracked = self.tracked();
        let is_steered = |state: &State| {
            let carries = |it: &Tracked| it.carries(state.protocol(), state.config());
            tracked.as_ref().is_none_or(carries)
        };
        self.steering_state.set_ipsec_sas(&states.inbound, is_steered)
    }

    fn apply_policies(&mut self) {
        let policies = self.compile_policies();
        self.mirror.set_policies(policies);
    }

    fn compile_policies(&self) -> Arc<XfrmPolicies> {
        let report = self.sas.as_ref().and_then(SaFollower::report);
        let states = report.map(|report| Arc::clone(&report.states));
        Arc::new(XfrmPolicies::with_states(self.policies.clone(), states.unwrap_or_default()))
    }

    /// For `status`.
    pub(super) fn ipsec_sas(&self) -> Option<IpsecSas> {
        if self.policies.is_empty() {
            return None;
        }
        let filter = self
            .ipsec_filter()
            .map(|filter| format!("only the kernel can filter IPsec packets: {filter}"));
        let Some(report) = self.sas.as_ref().and_then(SaFollower::report) else {
            return Some(IpsecSas { reasons: filter.into_iter().collect(), ..IpsecSas::default() });
        };
        Some(IpsecSas {
            inbound: report.states.inbound.states().count() as u64,
            outbound: report.states.outbound.len() as u64,
            kernel: report.states.kernels.len() as u64,
            reasons: filter.into_iter().chain(report.kernels.iter().cloned()).collect(),
        })
    }

    /// Why the kernel applies all SAs: each packet passes filters with and without protection, and workers cannot run
    /// some of them.
    fn ipsec_filter(&self) -> Option<String> {
        if !self.own_hooks.is_empty() {
            return Some("hook functions of the program".to_owned());
        }
        match self.hooks.nft() {
            Some(nft) => {
                let obstacle = nft.program().ipsec_obstacle();
                let named = |what| format!("the nftables ruleset has {what}");
                obstacle.map(named).or_else(|| self.firewall.local_filter())
            }
            None if self.firewall.has_ruleset() => {
                Some("the nftables ruleset, which is being read".to_owned())
            }
            None => self.firewall.local_filter(),
        }
    }

    /// The connections that workers carry, of the families that are tracked.
    fn tracked(&self) -> Option<Tracked> {
        let tracking = self.hooks.nft()?.program().tracking();
        let families = tracking.map(|it| it != Tracking::Off);
        let flows = self.flows.as_ref().filter(|_| families.contains(&true))?;
        Some(Tracked { flows: Arc::clone(flows.table()), families })
    }

    /// Whether the workers' SAs, if they have any, are those of the kernel.
    pub(super) fn are_sas_current(&self, now_ns: u64) -> bool {
        self.sas.as_ref().is_none_or(|sas| sas.is_current(now_ns))
    }
}
