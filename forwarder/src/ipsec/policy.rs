//! Policies and the check of received packets against them: the kernel's `xfrm_policy` and
//! `__xfrm_policy_check`.
//!
//! Not included: policies of sockets, sub-policies (XFRM_POLICY_TYPE_SUB), security contexts, and lifetimes of
//! policies. A host that has them leaves packets to the kernel.

use std::cmp::Ordering;
use std::net::IpAddr;

use super::config::{Family, KmState, Mode, Order, StateFlags};
use super::selector::{Flow, Mark, Selector};
use super::spd::Spd;
use super::state::{Algorithm, OutboundState, State};
use super::{Auth, Error, EspAlgorithm};
use crate::wire::Protocol;

/// Limit of the transformations of one packet: XFRM_MAX_DEPTH.
pub const MAX_DEPTH: usize = 6;

/// Which packets a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Received for the host.
    In,
    /// Sent, by the host or forwarded.
    Out,
    /// Received and forwarded.
    Fwd,
}

/// What a policy does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Action {
    /// Passes packets, with the transformations of its templates.
    #[default]
    Allow,
    /// Drops packets.
    Block,
}

/// A transformation that a policy requires: `xfrm_tmpl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Template {
    /// Source of the outer header; unspecified: any. For tunnel mode.
    pub src: IpAddr,
    /// Destination of the outer header. For tunnel mode.
    pub dst: IpAddr,
    /// SPI; 0: any.
    pub spi: u32,
    /// ESP or AH.
    pub proto: Protocol,
    /// Mode.
    pub mode: Mode,
    /// The SA's reqid; 0: any.
    pub reqid: u32,
    /// `level use`: packets pass without the transformation, too.
    pub is_optional: bool,
    /// Authentication algorithms permitted, a bit for each number of PF_KEY. `None`: all algorithms of any
    /// kind.
    pub aalgos: Option<u32>,
}

impl Template {
    /// A tunnel between two addresses, by an SA with this reqid.
    #[must_use]
    pub fn tunnel(proto: Protocol, [src, dst]: [IpAddr; 2], reqid: u32) -> Template {
        let mode = Mode::Tunnel;
        Template { src, dst, spi: 0, proto, mode, reqid, is_optional: false, aalgos: None }
    }
}

/// A policy: XFRM_MSG_NEWPOLICY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The kernel's index, which identifies it.
    pub index: u32,
    /// Lower values first; of equal ones the policy added first ([`Spd::new`]).
    pub priority: u32,
    /// Family of the packets.
    pub family: Family,
    /// The packets.
    pub selector: Selector,
    /// Marks of the packets.
    pub mark: Mark,
    /// The xfrm interface of the packets; 0: none.
    pub if_id: u32,
    /// What happens to them.
    pub action: Action,
    /// XFRM_POLICY_ICMP: of direction out, ICMP errors without a policy of their own are protected as the packet
    /// that they quote (`XFRM_LOOKUP_ICMP`).
    pub has_icmp: bool,
    /// Only the kernel can do what the policy requires: it has a limit, a security context, or a transformation
    /// other than ESP and AH in transport or tunnel mode. Packets that match it are the kernel's.
    pub is_kernels: bool,
    /// Transformations, the innermost first; fewer than [`MAX_DEPTH`]: with so many, which netlink accepts, all
    /// received packets are dropped.
    pub templates: Vec<Template>,
}

impl Policy {
    /// A policy of index 1 and the best priority, without transformations.
    #[must_use]
    pub fn new(family: Family, selector: Selector, action: Action) -> Policy {
        Policy {
            index: 1,
            priority: 0,
            family,
            selector,
            mark: Mark::default(),
            if_id: 0,
            action,
            has_icmp: false,
            is_kernels: false,
            templates: Vec::new(),
        }
    }
}

/// A received packet to be checked.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Its flow, after all transformations.
    pub flow: Flow,
    /// The SAs whose protection was removed, the outermost first.
    pub secpath: &'a [&'a State],
    /// How many of them an earlier check has found to be required: 0 for the first check of a packet.
    pub verified: usize,
    /// The xfrm interface that received it; 0: none.
    pub if_id: u32,
    /// Of an ICMP error the flow of the quoted packet, [reversed](Flow::reversed). For SAs and policies with
    /// the flag ICMP. Ignored unless `flow` is that of an ICMP error.
    pub quoted: Option<Flow>,
}

impl Spd {
    /// Whether a received packet may pass: `__xfrm_policy_check`. Returns how many SAs of the secpath policies
    /// have required so far.
    ///
    /// # Errors
    /// [`Error::XfrmInStateMismatch`]: an SA is not for this packet. [`Error::XfrmInNoPols`]: it came through a
    /// tunnel, or the default is to drop, and there is no policy. [`Error::XfrmInPolBlock`]: the policy drops.
    /// [`Error::XfrmInTmplMismatch`]: the policy requires other transformations; a packet in clear that should
    /// have been protected is one such case. [`Error::XfrmInBufferError`]: too many templates.
    pub fn policy_check(
        &self,
        direction: Direction,
        received: &Received<'_>,
    ) -> Result<usize, Error> {
        let Received { flow, secpath, verified, if_id, quoted } = received;
        // Any other packet could name a flow that is permitted, and pass as that one.
        let quoted = quoted.as_ref().filter(|_| flow.is_icmp_error());
        // First the SAs, from the innermost.
        for state in secpath.iter().rev() {
            let selector = &state.config().selector;
            let is_icmp = state.has(StateFlags::ICMP)
                && quoted.is_some_and(|quoted| selector.matches(quoted));
            if !selector.matches(flow) && !is_icmp {
                return Err(Error::XfrmInStateMismatch);
            }
        }
        // The kernel's `xfrm_in_fwd_icmp` (Linux 6.9), which does not ask for XFRM_POLICY_ICMP.
        let by_quoted = || {
            let quoted = quoted.filter(|_| direction == Direction::Fwd)?;
            self.lookup(direction, quoted, *if_id)
        };
        let Some(policy) = self.lookup(direction, flow, *if_id).or_else(by_quoted) else {
            let is_blocked = self.default_action(direction) == Action::Block;
            return match has_nontransport(secpath, 0, *verified) || is_blocked {
                true => Err(Error::XfrmInNoPols),
                false => Ok(*verified),
            };
        };
        if policy.action == Action::Block {
            return Err(Error::XfrmInPolBlock);
        }
        if policy.templates.len() >= MAX_DEPTH {
            return Err(Error::XfrmInBufferError);
        }
        // Templates from the outermost, each by the next SAs of the secpath.
        let mut used = 0;
        for template in policy.templates.iter().rev() {
            used =
                template.find(secpath, used, *verified, *if_id).ok_or(Error::XfrmInTmplMismatch)?;
        }
        if has_nontransport(secpath, used, *verified) {
            return Err(Error::XfrmInTmplMismatch);
        }
        Ok(used)
    }
}

/// Whether there is a tunnel from `start` on that no earlier check has required: `secpath_has_nontransport`.
fn has_nontransport(secpath: &[&State], start: usize, verified: usize) -> bool {
    secpath.iter().skip(start.max(verified)).any(|state| state.config().mode != Mode::Transport)
}

impl Template {
    /// The kernel's `xfrm_policy_ok`: where the search for the next template continues. `None`: no SA of the
    /// secpath from `start` on is the one required.
    fn find(&self, secpath: &[&State], start: usize, verified: usize, if_id: u32) -> Option<usize> {
        if self.is_optional && self.mode == Mode::Transport {
            return Some(start);
        }
        for (at, state) in secpath.iter().enumerate().skip(start) {
            if self.is_met_by(state, if_id) {
                return Some(at + 1);
            }
            // No other SA is found behind a tunnel, unless an earlier check has required the tunnel.
            if state.config().mode != Mode::Transport && at >= verified {
                break;
            }
        }
        self.is_optional.then_some(start)
    }

    /// Whether an SA is what the template requires: `xfrm_state_ok`.
    #[must_use]
    pub fn is_met_by(&self, state: &State, if_id: u32) -> bool {
        let config = state.config();
        let is_algo = self.aalgos.is_none_or(|aalgos| aalgos & 1 << auth_number(state) != 0);
        state.protocol() == self.proto
            && (self.spi == 0 || self.spi == config.spi)
            && (self.reqid == 0 || self.reqid == config.reqid)
            && config.mode == self.mode
            && is_algo
            && (self.mode == Mode::Transport || is_any_or(self.src, config.src))
            && (if_id == 0 || if_id == config.if_id)
    }

    /// The best of the outbound SAs for a flow, of a template of `policy`: the kernel's `xfrm_state_find` and
    /// `xfrm_state_look_at`, without asking for a new one. SAs with the wanted source address are better than
    /// those with an unspecified one, of these the ones below their soft limits, then those added last, which
    /// `add_time_s` and then `order` say. Time in seconds.
    ///
    /// `None`: there is no SA, or one is being negotiated; the packet is the kernel's, which asks for one or
    /// waits. In tunnel mode with an unspecified `src` the kernel takes the source address of its route to
    /// `dst`; here any will do: put the address into the template to have the same.
    #[must_use]
    pub fn best_outbound<'a>(
        &self,
        policy: &Policy,
        flow: &Flow,
        now_s: u64,
        states: impl IntoIterator<Item = &'a OutboundState>,
        order: Order,
    ) -> Option<&'a OutboundState> {
        let (src, dst) = match self.mode {
            Mode::Tunnel => (self.src, self.dst),
            Mode::Transport => (flow.src, flow.dst),
        };
        // By whether the source is as wanted: the best, and whether one is being negotiated.
        let mut found: [(Option<&OutboundState>, bool); 2] = [(None, false); 2];
        for outbound in states {
            let state = outbound.state();
            let config = state.config();
            if config.dst != dst || !self.may_use(policy, state) {
                continue;
            }
            let is_wildcard = match is_any_or(src, config.src) {
                true => false,
                false if config.src.is_unspecified() => true,
                false => continue,
            };
            let [exact, wildcard] = &mut found;
            let (best, is_acquiring) = if is_wildcard { wildcard } else { exact };
            match state.km_state() {
                KmState::Valid
                    if state.check_time(now_s)
                        && state.is_for(flow)
                        && best.is_none_or(|best| is_better(state, best.state(), order)) =>
                {
                    *best = Some(outbound);
                }
                KmState::Acquiring => *is_acquiring = true,
                _ => {}
            }
        }
        let [exact, wildcard] = found;
        match exact {
            (Some(best), _) => Some(best),
            // The kernel waits for it, and does not try those without a source.
            (None, true) => None,
            (None, false) => wildcard.0,
        }
    }

    /// What an outbound SA has from template and policy, except for addresses. The mark is the policy's: that
    /// of the packet has found the policy, and does not count any more.
    fn may_use(&self, policy: &Policy, state: &State) -> bool {
        let config = state.config();
        state.protocol() == self.proto
            && (self.spi == 0 || self.spi == config.spi)
            && self.reqid == config.reqid
            && config.mode == self.mode
            && config.if_id == policy.if_id
            && config.mark.matches(policy.mark.value & policy.mark.mask)
            && !state.has(StateFlags::WILDRECV)
    }
}

impl State {
    /// Whether the selector is for a flow that is sent. As in `xfrm_state_look_at`, one without a family is for
    /// all.
    fn is_for(&self, flow: &Flow) -> bool {
        let config = self.config();
        config.selector_family.is_none()
            || self.carries(flow.family()) && config.selector.matches(flow)
    }
}

/// Whether `state` is better than the best one before it.
fn is_better(state: &State, best: &State, order: Order) -> bool {
    let rank = |state: &State| (!state.is_dying(), state.config().usage.add_time_s);
    match rank(state).cmp(&rank(best)) {
        Ordering::Greater => true,
        Ordering::Equal => order == Order::OldestFirst,
        Ordering::Less => false,
    }
}

fn is_any_or(wanted: IpAddr, addr: IpAddr) -> bool {
    wanted.is_unspecified() || wanted == addr
}

/// The authentication algorithm's number of PF_KEY (include/uapi/linux/pfkeyv2.h), `props.aalgo`.
fn auth_number(state: &State) -> u32 {
    let auth = match state.algorithm() {
        Algorithm::Ah(auth) | Algorithm::Esp(EspAlgorithm::EncryptThenMac(_, auth)) => auth,
        // Combined algorithms have none.
        Algorithm::Esp(EspAlgorithm::Combined(_)) => return 0,
    };
    match auth {
        Auth::HmacSha1_96 => 3,
        Auth::HmacSha256_128 => 5,
        Auth::HmacSha384_192 => 6,
        Auth::HmacSha512_256 => 7,
    }
}
