//! IPsec: the policies and security associations that the workers apply.

use std::sync::Arc;

use anyhow::{Context, Result};

use super::Supervisor;
use super::sas::SaFollower;
use crate::control::api::IpsecSas;
use crate::tables::XfrmPolicies;

impl Supervisor {
    /// Has the workers apply the current IPsec policies from their next burst on.
    pub(super) fn follow_policies(&mut self) -> Result<()> {
        // If they cannot be read, those from before apply until the kernel has all packets.
        let Some(policies) = self.firewall.policies().filter(|_| !self.options.ignore_firewall)
        else {
            return Ok(());
        };
        if policies != self.policies {
            self.policies = policies.to_vec();
            self.apply_policies();
        }
        self.follow_sas()
    }

    /// Follows the kernel's SAs while there are policies.
    fn follow_sas(&mut self) -> Result<()> {
        let is_enabled = !self.policies.is_empty() && self.ipsec_filter().is_none();
        if self.sas.is_none() && is_enabled {
            let wakeup = Arc::clone(&self.wakeup);
            let sas = SaFollower::start(self.locals(), move || wakeup.wake())
                .context("cannot start the thread fr-xfrm")?;
            self.sas = Some(sas);
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
        let states = Arc::clone(self.mirror.tables().xfrm.states());
        self.steering_state.set_ipsec_sas(&states.inbound)
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
            .map(|filter| format!("packets to or from the router itself are filtered: {filter}"));
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

    /// Why the kernel applies all SAs: where packets are filtered, be it only those to or from the router itself, it has
    /// the filters see each packet with and without protection.
    fn ipsec_filter(&self) -> Option<&str> {
        if self.hooks.nft().is_some() {
            return Some("nftables");
        }
        if !self.own_hooks.is_empty() {
            return Some("hook functions of the program");
        }
        self.firewall.local_filter()
    }

    /// Whether the workers' SAs, if they have any, are those of the kernel.
    pub(super) fn are_sas_current(&self, now_ns: u64) -> bool {
        self.sas.as_ref().is_none_or(|sas| sas.is_current(now_ns))
    }
}
