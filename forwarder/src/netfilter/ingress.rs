//! The hooks of interfaces (`nf_ingress`, `nf_hook_egress`; include/linux/netfilter_netdev.h).

use super::hook::{HookCtx, Hooks, Verdict};
use super::hook_states::HookStates;
use super::nft::{DeviceChains, Family, NftVerdict, Observer};
use crate::skb::SkBuff;
use crate::tables::{Link, Tables};
use crate::trace::Step;
use crate::trace::step::Stage;

/// Interfaces whose chains a worker remembers, by the lowest bits of their ifindexes: a power of two.
const REMEMBERED: usize = 64;
/// The number of the ingress hook in traces (NF_INET_INGRESS).
const INGRESS: u8 = 5;

/// For which interface, hooks and tables the chains are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Key {
    /// [`Hooks::id`].
    hooks: u64,
    /// The tables have the names of interfaces.
    tables: u64,
    ifindex: u32,
}

/// The chains of interfaces that a worker has seen.
#[derive(Debug)]
pub(super) struct RememberedChains([(Key, DeviceChains); REMEMBERED]);

impl Default for RememberedChains {
    fn default() -> RememberedChains {
        RememberedChains([Default::default(); REMEMBERED])
    }
}

/// A packet at the ingress of an interface.
#[derive(Debug, Clone, Copy)]
pub struct AtIngress<'a> {
    /// The interface.
    pub dev: &'a Link,
    /// [`Family::Ip`] or [`Family::Ip6`].
    pub pf: Family,
    /// The frame has one VLAN tag, which is not yet removed.
    pub is_tagged: bool,
}

impl Hooks {
    /// Whether any interface has chains.
    #[inline]
    pub fn have_device_chains(&self) -> bool {
        self.nft.as_ref().is_some_and(|nft| nft.program().has_device_chains())
    }

    /// Whether any interface has chains at egress.
    #[inline]
    pub fn have_egress_chains(&self) -> bool {
        self.nft.as_ref().is_some_and(|nft| nft.program().has_egress_chains())
    }

    /// The chains of an interface.
    pub fn device_chains(&self, dev: &Link, tables: &Tables, own: &mut HookStates) -> DeviceChains {
        let Some(nft) = self.nft.as_ref().filter(|nft| nft.program().has_device_chains()) else {
            return DeviceChains::default();
        };
        let key = Key { hooks: self.id, tables: tables.generation, ifindex: dev.ifindex };
        let slot = own.device_chains.0.get_mut(dev.ifindex as usize & (REMEMBERED - 1));
        match slot {
            Some((of, chains)) if *of == key => *chains,
            slot => {
                let chains = nft.program().device_chains(&dev.name);
                if let Some(slot) = slot {
                    *slot = (key, chains);
                }
                chains
            }
        }
    }

    /// Whether an interface or one below it has a chain at egress.
    pub fn has_egress(&self, dev: &Link, tables: &Tables, own: &mut HookStates) -> bool {
        let below = |dev: &Link| tables.links.ifindex(dev.vlan.as_ref()?.link);
        // A VLAN of a VLAN of a port.
        let devices = std::iter::successors(Some(dev), |dev| below(dev)).take(3);
        let mut is_any = false;
        for dev in devices {
            is_any |= self.device_chains(dev, tables, own).has_egress();
        }
        is_any
    }

    /// `nf_ingress`: runs the chains of an interface on a packet that it has received.
    pub fn run_ingress<T: Observer>(
        &self,
        chains: DeviceChains,
        skb: &mut SkBuff,
        at: AtIngress<'_>,
        ctx: &HookCtx<'_>,
        own: &mut HookStates,
        tracer: &mut T,
    ) -> Verdict {
        let Some(nft) = &self.nft else { return Verdict::Punt };
        if tracer.is_traced() {
            tracer.step(Step::Stage(Stage::Hook(INGRESS)));
        }
        let now_ns = own.monotonic_ns(ctx.now_ns);
        let journal = &mut own.journal;
        let verdict = nft.run_ingress(chains, skb, at, now_ns, journal, tracer);
        // What is decided for a flow is decided for packets without a mark.
        own.is_marked = skb.mark != 0;
        match verdict {
            NftVerdict::Accept => Verdict::Accept,
            NftVerdict::Drop => Verdict::Drop,
            NftVerdict::Kernel(_) => Verdict::Punt,
        }
    }
}
