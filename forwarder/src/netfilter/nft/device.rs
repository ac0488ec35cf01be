//! Base chains at the ingress and egress of interfaces: those of family netdev, and of family inet with hook
//! ingress (net/netfilter/nft_chain_filter.c).
//!
//! Chains at ingress are run by workers. Packets for an interface with a chain at egress are left to the kernel,
//! before anything is changed in them: see `pipeline/nf_ingress.rs`.

use super::learn::Observer;
use super::packet::{Packet, Transport, is_valid};
use super::program::{Base, BaseChainId, Journal, NftVerdict, Program};
use super::ruleset::{BaseChain, Chain, Expr, Family, MetaKey, PayloadBase, Table};
use crate::tables::Link;
use crate::trace::Step;

const NF_NETDEV_INGRESS: u32 = 0;
const NF_NETDEV_EGRESS: u32 = 1;
pub(super) const NF_INET_INGRESS: u32 = 5;
/// Length of both addresses of a frame, octets.
const ADDRS_LEN: u32 = 12;

/// Maximum number of chains at ingress: positions in a set of 64 bits.
pub const DEVICE_CHAINS_MAX: usize = 64;

/// A base chain of interfaces.
#[derive(Debug)]
pub(super) struct DeviceChain {
    pub(super) base: BaseChainId,
    /// Names, or prefixes with a trailing `*`.
    devices: Vec<String>,
    priority: i32,
    /// Of family inet: packets with invalid headers are dropped before its rules.
    is_inet: bool,
    /// It is of family inet, and has expressions that differ at ingress.
    differs: bool,
    /// Rules read what is behind the addresses of the link-layer header. At the ingress of a VLAN, that depends on
    /// its flag REORDER_HDR.
    reads_tags: bool,
    /// A rule reads the link-layer addresses and what is behind them with one expression.
    crosses_tag: bool,
    /// Rules set marks.
    sets_mark: bool,
    /// It runs before or after another one, which is not known, and sees a mark or sets one.
    is_undecided: bool,
}

impl DeviceChain {
    fn is_on(&self, name: &str) -> bool {
        self.devices.iter().any(|device| match device.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == device,
        })
    }

    /// Whether an interface may have both chains.
    fn may_meet(&self, other: &DeviceChain) -> bool {
        self.devices.iter().any(|device| {
            let prefix = device.strip_suffix('*');
            other.devices.iter().any(|it| match (prefix, it.strip_suffix('*')) {
                (None, None) => device == it,
                (Some(own), Some(other)) => own.starts_with(other) || other.starts_with(own),
                (Some(own), None) => it.starts_with(own),
                (None, Some(other)) => device.starts_with(other),
            })
        })
    }
}

/// The chains at the ingress of an interface, and whether there is one at its egress: made of names, once for
/// each interface and kept by workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceChains {
    /// By bit, positions of chains at ingress.
    ingress: u64,
    has_egress: bool,
}

impl DeviceChains {
    /// Whether packets that the interface receives meet rules.
    #[inline]
    pub fn has_ingress(self) -> bool {
        self.ingress != 0
    }

    /// Whether packets that leave by the interface meet rules.
    #[inline]
    pub fn has_egress(self) -> bool {
        self.has_egress
    }
}

/// The expressions that packets of a base chain may reach: its own, and those of chains that it may jump to.
fn reached<'a>(table: &'a Table, chain: &'a Chain) -> impl Iterator<Item = &'a Expr> {
    let others = table.chains.iter().filter(|other| other.base.is_none());
    others.chain([chain]).flat_map(|chain| &chain.rules).flat_map(|rule| &rule.exprs)
}

/// The hook of a base chain of interfaces: its number in family netdev.
fn device_hook(family: Family, base: &BaseChain) -> Option<u32> {
    match family {
        Family::Netdev => Some(base.hook),
        Family::Inet if base.hook == NF_INET_INGRESS => Some(NF_NETDEV_INGRESS),
        _ => None,
    }
}

/// Adds a base chain of interfaces to the program. Returns whether it is one.
pub(super) fn register(program: &mut Program, table: &Table, chain: &Chain, number: u32) -> bool {
    let Some((base, hook)) =
        chain.base.as_ref().and_then(|base| Some((base, device_hook(table.family, base)?)))
    else {
        return false;
    };
    if table.dormant {
        return true;
    }
    let name = format!("{} {} {}", table.family, table.name, chain.name);
    let id = BaseChainId(program.bases.len() as u32);
    let reads_tags = |expr: &Expr| match expr {
        Expr::Payload { base: PayloadBase::Link, offset, len, .. } => {
            offset.saturating_add((*len).into()) > ADDRS_LEN
        }
        _ => false,
    };
    // `nft_payload_need_vlan_adjust`; until Linux 6.6 only the offset counted.
    let crosses_tag = |expr: &Expr| match expr {
        Expr::Payload { base: PayloadBase::Link, offset, len, .. } => {
            *offset < ADDRS_LEN && offset.saturating_add((*len).into()) > ADDRS_LEN
        }
        _ => false,
    };
    let is_other = |expr: &Expr| {
        matches!(expr, Expr::Xt(_) | Expr::Connmark(_) | Expr::Fib { .. } | Expr::Xfrm { .. })
    };
    let device_chain = DeviceChain {
        base: id,
        devices: base.devices.clone(),
        priority: base.priority,
        is_inet: table.family == Family::Inet,
        differs: table.family == Family::Inet && reached(table, chain).any(is_other),
        reads_tags: reached(table, chain).any(reads_tags),
        crosses_tag: reached(table, chain).any(crosses_tag),
        sets_mark: reached(table, chain).any(|expr| matches!(expr, Expr::SetMark { .. })),
        is_undecided: false,
    };
    match hook {
        NF_NETDEV_INGRESS if base.kind == "filter" => program.ingress.push(device_chain),
        NF_NETDEV_EGRESS => program.egress.push(device_chain),
        _ => {
            let BaseChain { kind, hook, .. } = base;
            program.unsupported.push(format!("chain {name} (type {kind}, hook {hook})"));
            return true;
        }
    }
    program.bases.push(Base {
        chain: number,
        policy_drops: base.policy_drops,
        priority: base.priority,
        is_route: false,
        name,
    });
    true
}

/// Puts the chains into the order in which they run.
pub(super) fn order(program: &mut Program) {
    // As for the other hooks: of chains with the same priority the last one runs first.
    program.ingress.reverse();
    program.ingress.sort_by_key(|chain| chain.priority);
    // The order on an interface is that in which the chains got it, of chains of one table, too.
    let is_undecided: Vec<bool> = (program.ingress.iter().enumerate())
        .map(|(at, one)| {
            program.ingress.iter().enumerate().any(|(other_at, other)| {
                at != other_at
                    && one.priority == other.priority
                    && (one.sets_mark || other.sets_mark)
                    && one.may_meet(other)
            })
        })
        .collect();
    for (chain, is_undecided) in program.ingress.iter_mut().zip(is_undecided) {
        chain.is_undecided = is_undecided;
    }
    if program.ingress.len() > DEVICE_CHAINS_MAX {
        let count = program.ingress.len();
        program.unsupported.push(format!("{count} chains at ingress: {DEVICE_CHAINS_MAX} at most"));
    }
}

/// Whether an expression of a chain at ingress does what it does at the hooks of IP.
pub(super) fn is_evaluated(expr: &Expr) -> bool {
    // NFPROTO_NETDEV; connections and routes are not known there; what is written there could not be undone.
    !matches!(
        expr,
        Expr::Meta { key: MetaKey::NfProto, .. }
            | Expr::Ct { .. }
            | Expr::SetCtMark { .. }
            | Expr::Connmark(_)
            | Expr::Notrack
            | Expr::Fib { .. }
            | Expr::Xfrm { .. }
            | Expr::Xt(_)
            | Expr::SetPayload(_)
            | Expr::Mangle(_)
    )
}

impl Program {
    /// Whether there are chains of interfaces.
    pub fn has_device_chains(&self) -> bool {
        !self.ingress.is_empty() || !self.egress.is_empty()
    }

    /// Whether there are chains at egress.
    pub fn has_egress_chains(&self) -> bool {
        !self.egress.is_empty()
    }

    /// The chains of an interface.
    #[cold]
    pub fn device_chains(&self, name: &str) -> DeviceChains {
        let mut ingress = 0;
        for (n, chain) in self.ingress.iter().take(DEVICE_CHAINS_MAX).enumerate() {
            ingress |= u64::from(chain.is_on(name)) << n;
        }
        DeviceChains { ingress, has_egress: self.egress.iter().any(|chain| chain.is_on(name)) }
    }

    /// The base chains at ingress, which workers run.
    pub fn ingress_chains(&self) -> impl Iterator<Item = BaseChainId> {
        self.ingress.iter().map(|chain| chain.base)
    }

    /// `nf_ingress`: runs the chains of an interface on a packet that it has received.
    pub(in crate::netfilter) fn run_ingress<T: Observer>(
        &self,
        chains: DeviceChains,
        dev: &Link,
        packet: &mut Packet<'_>,
        journal: &mut Journal,
        tracer: &mut T,
    ) -> NftVerdict {
        let is_valid = is_valid(packet.skb, packet.family);
        if !is_valid {
            // `nft_set_pktinfo_unspec`.
            packet.transport = Transport::default();
        }
        let mut rest = chains.ingress;
        while rest != 0 {
            let n = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let Some(chain) = self.ingress.get(n) else { break };
            if chain.is_undecided {
                return NftVerdict::Kernel(super::program::ORDER);
            }
            if chain.differs {
                return NftVerdict::Kernel(super::program::DIFFERS);
            }
            if chain.is_inet && !is_valid {
                return NftVerdict::Kernel(super::program::NO_TRANSPORT_HEADER);
            }
            let is_crossed = chain.crosses_tag && packet.is_tagged;
            if is_crossed || (chain.reads_tags && dev.vlan.is_some()) {
                return NftVerdict::Kernel(super::program::VLAN_HEADER);
            }
            if tracer.is_traced() {
                tracer.step(Step::BaseChain(chain.base.0));
            }
            let verdict = self.run_traced(chain.base, packet, journal, tracer);
            if let NftVerdict::Kernel(reason) = verdict
                && tracer.is_traced()
            {
                tracer.step(Step::Left(reason));
            }
            if verdict != NftVerdict::Accept {
                return verdict;
            }
        }
        NftVerdict::Accept
    }
}
