//! IPsec: the policies and security associations that the workers apply.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tracing::{error, info};

use super::Supervisor;
use super::sas::{SaFollower, Tracked};
use crate::control::api::IpsecSas;
use crate::ipsec::{OutboundState, State};
use crate::netfilter::nft::Tracking;
use crate::tables::{LOOPBACK_IFINDEX, XfrmPolicies};

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
        let is_first = self.sas.is_none() && self.has_file();
        if policies != self.policies || is_first {
            self.policies = policies.to_vec();
            if self.has_file() {
                self.check_guard(is_first)?;
            }
            self.follow_ipsec_flows()?;
            self.apply_policies();
        }
        // None without policies, from now on.
        if self.policies.is_empty() || is_first { self.follow_sas() } else { Ok(()) }
    }

    /// Whether SAs and policies are those of the configuration file.
    fn has_file(&self) -> bool {
        !self.options.xfrm.is_empty()
    }

    /// Whether the kernel has the policies of the file and no others, and applies them, so that it drops what it gets of
    /// their packets.
    fn is_guarded(&self) -> bool {
        self.sas.as_ref().is_none_or(SaFollower::is_guarded) && self.exempt().is_none()
    }

    /// Compares the kernel's policies with those of the file.
    ///
    /// # Errors
    /// At the start, if they differ.
    fn check_guard(&mut self, is_first: bool) -> Result<()> {
        let differences = self.options.xfrm.differences(&self.policies);
        let is_guarded = differences.is_empty();
        if is_first {
            let exempt = self.exempt();
            ensure!(is_guarded, unguarded(&differences));
            ensure!(exempt.is_none(), "[xfrm]: {}", exempt.unwrap_or_default());
        }
        let is_news = self.sas.as_mut().is_some_and(|sas| sas.set_guarded(is_guarded));
        match is_guarded {
            _ if !is_news => {}
            true => info!("IPsec: the kernel has the policies of the file again"),
            false => error!("IPsec: no SA of the file is used: {}", unguarded(&differences)),
        }
        Ok(())
    }

    /// The first interface whose packets pass the kernel's policies.
    fn exempt(&self) -> Option<String> {
        let state = self.mirror.state();
        let all = &state.sysctls_all;
        state.sysctls_dev.iter().filter(|(ifindex, _)| **ifindex != LOOPBACK_IFINDEX).find_map(
            |(ifindex, own)| {
                let settings = [
                    ("ipv4", "disable_xfrm", own.disable_xfrm || all.disable_xfrm),
                    ("ipv4", "disable_policy", own.disable_policy4 || all.disable_policy4),
                    ("ipv6", "disable_policy", own.disable_policy6 || all.disable_policy6),
                ];
                let (family, key, _) = settings.into_iter().find(|(.., is_set)| *is_set)?;
                let name = &state.links.get(ifindex)?.name;
                Some(format!(
                    "net.{family}.conf.{name}.{key} is set for it or for all: the kernel would forward in clear what policies \
                     protect; set it to 0"
                ))
            },
        )
    }

    /// The file has other SAs or policies from now on.
    pub(super) fn change_xfrm(&mut self) -> Result<()> {
        self.check_guard(false)?;
        if let Some(sas) = &self.sas {
            sas.set_file(Arc::clone(&self.options.xfrm));
        }
        self.apply_policies();
        self.follow_sas()
    }

    /// Follows the kernel's SAs while there are policies.
    pub(super) fn follow_sas(&mut self) -> Result<()> {
        let is_enabled = match self.has_file() {
            true => self.is_guarded() && self.ipsec_filter().is_none() && self.tracked().is_none(),
            false => !self.policies.is_empty() && self.ipsec_filter().is_none(),
        };
        if self.sas.is_none() && (is_enabled || self.has_file()) {
            let wakeup = Arc::clone(&self.wakeup);
            let notify = move || wakeup.wake();
            self.sas = Some(match self.has_file() {
                true => {
                    let (file, directory) = (&self.options.xfrm, &self.options.state_dir);
                    SaFollower::start_with_file(Arc::clone(file), directory, self.locals(), notify)?
                }
                false => SaFollower::start(self.locals(), &self.mirror.tables().links, notify)
                    .context("cannot start the thread fr-xfrm")?,
            });
        }
        if let Some(sas) = &mut self.sas {
            sas.set_links(&self.mirror.tables().links);
        }
        if self.sas.as_ref().is_some_and(|sas| sas.set_tracked(self.tracked())) {
            self.steer_sas()?;
        }
        let is_news = self.sas.as_mut().is_some_and(|sas| sas.set_enabled(is_enabled));
        // SAs may have been disabled before the kernel stopped to drop what it gets of their packets.
        let is_guard_news = self.has_file()
            && is_other_guard(&self.mirror.tables().xfrm, self.sas.is_some(), self.is_guarded());
        if is_news || is_guard_news { self.apply_sas() } else { Ok(()) }
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
        let states = report.map(|report| Arc::clone(&report.states)).unwrap_or_default();
        if !self.has_file() {
            return Arc::new(XfrmPolicies::with_states(self.policies.clone(), states));
        }
        let is_guarded = self.is_guarded();
        let (policies, states) = match is_guarded {
            true => (self.options.xfrm.policies(), states),
            // What either has is dropped.
            false => {
                ([self.policies.clone(), self.options.xfrm.policies()].concat(), Arc::default())
            }
        };
        Arc::new(XfrmPolicies::with_states(policies, states).of_file(is_guarded))
    }

    /// For `status`.
    pub(super) fn ipsec_sas(&self) -> Option<IpsecSas> {
        if self.policies.is_empty() && !self.has_file() {
            return None;
        }
        let filter = self
            .ipsec_filter()
            .map(|filter| format!("only the kernel can filter IPsec packets: {filter}"))
            .or_else(|| self.why_dropped());
        let Some(report) = self.sas.as_ref().and_then(SaFollower::report) else {
            let reasons = filter.into_iter().collect();
            return Some(IpsecSas { reasons, of_file: self.has_file(), ..IpsecSas::default() });
        };
        // Those of a file that have no numbers do not send.
        let is_in_use = |state: &OutboundState| !self.has_file() || state.sequence().has_numbers();
        Some(IpsecSas {
            inbound: report.states.inbound.states().count() as u64,
            outbound: report.states.outbound.iter().filter(|state| is_in_use(state)).count() as u64,
            kernel: report.states.kernels.len() as u64,
            reasons: filter.into_iter().chain(report.kernels.iter().cloned()).collect(),
            of_file: self.has_file(),
        })
    }

    /// Why all that the policies of a file protect is dropped.
    fn why_dropped(&self) -> Option<String> {
        if !self.has_file() {
            return None;
        }
        let differences = self.options.xfrm.differences(&self.policies);
        let is_tracked = || {
            self.tracked().map(|_| {
                "the nftables ruleset tracks connections, and the kernel, which has no SA of the file, cannot admit those of \
                 tunnels"
                    .to_owned()
            })
        };
        match differences.is_empty() {
            true => self.exempt().or_else(is_tracked),
            false => Some(unguarded(&differences)),
        }
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

/// Whether the workers have policies of a file that were made while the kernel did, or did not, have the same.
fn is_other_guard(published: &XfrmPolicies, has_sas: bool, is_guarded: bool) -> bool {
    has_sas && published.are_of_file() && published.are_unguarded() == is_guarded
}

/// What is wrong if the kernel's policies are not those of the file.
fn unguarded(differences: &[String]) -> String {
    format!(
        "the kernel's IPsec policies differ from those in the [xfrm] section: it would forward in clear what they protect, while \
         Ferroute does not run and of what it hands over. A kernel with CONFIG_XFRM_USER needs no ESP for this; run:\n  {}",
        differences.join("\n  ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_made_again_when_the_guard_changes_whatever_uses_sas() {
        let of_file = |is_guarded| XfrmPolicies::default().of_file(is_guarded);
        let is_other = |published, is_guarded| is_other_guard(&published, true, is_guarded);
        assert!(is_other(of_file(true), false) && is_other(of_file(false), true));
        assert!(!is_other(of_file(true), true) && !is_other(of_file(false), false));
        assert!(!is_other(XfrmPolicies::default(), false), "they are the kernel's");
        assert!(!is_other_guard(&of_file(true), false, false), "nothing has been started");
    }
}
