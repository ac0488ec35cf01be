//! IPsec policies and security associations with static keys, described in a file instead of by the kernel. The words
//! are those of `ip xfrm policy` and `ip xfrm state`.
//!
//! ```toml
//! [[xfrm.state]]
//! src = "198.18.2.1"
//! dst = "198.18.2.2"
//! proto = "esp"              # ah
//! spi = 0x1001
//! mode = "tunnel"
//! reqid = 1
//! aead = { name = "rfc4106(gcm(aes))", key = "0x0102…", icv = 128 }
//! # or  enc = { name = "cbc(aes)", key = "0x…" }
//! #     auth-trunc = { name = "hmac(sha256)", key = "0x…", trunc = 128 }
//! # replay-window = 64, flag = ["esn", "af-unspec", "decap-dscp", "nopmtudisc", …],
//! # extra-flag = ["dont-encap-dscp"], dir = "out",
//! # encap = { type = "espinudp", sport = 4500, dport = 4500 }
//!
//! [[xfrm.policy]]
//! src = "10.1.0.0/24"        # also proto, sport, dport
//! dst = "10.2.0.0/24"
//! dir = "out"                # in, fwd
//! priority = 100             # action = "block"
//! tmpl = { src = "198.18.2.1", dst = "198.18.2.2", proto = "esp", reqid = 1, mode = "tunnel" } # spi, level = "use"
//! ```
//!
//! - `section`: the keys of the file; `key`: secret ones; `resolve`: the policies and SAs that they describe; `of_run`: what
//!   `run` requires of them and makes of them.
//!
//! What is made of them are the structures of [`control::xfrm`](crate::control::xfrm), and the tables that workers have of
//! the kernel's.
//!
//! Left out: what only the kernel can use, such as transport mode, marks and interfaces; limits; selectors of SAs.

mod key;
mod of_run;
mod resolve;
mod section;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use crate::control::config::Located;
use crate::control::xfrm::ae::KernelReplay;
use crate::control::xfrm::workers::{self, WorkersState};
use crate::ipsec::{Direction, Keys, Order, Policy, Sad, StateConfig, UdpPorts};
use crate::tables::{XfrmPolicies, XfrmStates};
use crate::wire::Protocol;
use crate::wire::esp::UDP_PORT;

pub(super) use key::{with_words_only, without_keys};
pub use of_run::Identity;
pub(super) use section::XfrmSection;

/// The policies and SAs of a file.
#[derive(Debug, Default)]
pub struct StaticXfrm {
    /// In the order of the file.
    states: Vec<StaticState>,
    /// In the order of the file.
    policies: Vec<(Direction, Policy)>,
    /// Where these are in the file.
    policy_spans: Vec<Range<usize>>,
}

/// An SA.
pub struct StaticState {
    config: StateConfig,
    proto: Protocol,
    keys: Keys,
    direction: Option<Direction>,
    /// Where it is in the file.
    span: Range<usize>,
}

impl fmt::Debug for StaticState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticState").field("config", &self.config).finish_non_exhaustive()
    }
}

impl StaticXfrm {
    pub(super) fn new(section: XfrmSection) -> Result<StaticXfrm, Located> {
        resolve::resolve(section)
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty() && self.policies.is_empty()
    }

    /// Whether there are keys, so that others must not read the file.
    pub(super) fn has_keys(&self) -> bool {
        !self.states.is_empty()
    }

    /// The policies, in the order of a dump.
    pub fn policies(&self) -> Vec<(Direction, Policy)> {
        self.policies.iter().rev().cloned().collect()
    }

    /// The tables of workers, with SAs that have neither sent nor received, and no reserved sequence numbers. `is_local`:
    /// whether an address is the router's own: SAs to it receive, others send.
    ///
    /// # Errors
    /// For the first SA that cannot be used, with its place.
    pub fn tables(&self, is_local: impl Fn(IpAddr) -> bool) -> Result<XfrmPolicies, Located> {
        let (mut inbound, mut states) = (Vec::new(), XfrmStates::default());
        for state in &self.states {
            match state.make(is_local(state.config.dst))? {
                WorkersState::Inbound(state) => inbound.push(state),
                WorkersState::Outbound(state) => states.outbound.push(state),
            }
        }
        states.inbound = Sad::new(inbound, Order::OldestFirst);
        Ok(XfrmPolicies::with_states(self.policies(), Arc::new(states)))
    }
}

impl StaticState {
    fn make(&self, is_local: bool) -> Result<WorkersState, Located> {
        let (config, unused) = (self.config.clone(), KernelReplay::default());
        let made = match config.encap {
            Some(UdpPorts { dst, .. }) if is_local && dst != UDP_PORT => {
                Err(format!("dport of encap is {dst}, expected {UDP_PORT} for receiving"))
            }
            _ => workers::make(config, &self.keys, self.direction, &unused, is_local),
        };
        made.map_err(|message| Located::new(self.span.clone(), message))
    }
}
