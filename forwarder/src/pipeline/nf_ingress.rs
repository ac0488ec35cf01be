//! The netfilter hooks of interfaces (`nf_ingress` in `__netif_receive_skb_core`, `nf_hook_egress` in
//! `__dev_queue_xmit`).
//!
//! The kernel runs the chains of a port on a frame before it finds the VLAN, and then those of the VLAN. A packet
//! that these leave to the kernel enters at the ingress of its port, where the kernel runs all of them. Chains at
//! egress are the kernel's: packets that leave by an interface with one are left to it.

use super::Ctx;
use super::exit::Exit;
use super::mode::Mode;
use crate::netfilter::{AtIngress, Family, HookCtx, Verdict};
use crate::skb::{PktType, SkBuff};
use crate::stats::{DropReason, PuntReason};
use crate::tables::Link;
use crate::trace::NoTrace;
use crate::wire::EtherType;
use crate::wire::ethernet::{EthernetFrame, HEADER_LEN};
use crate::wire::vlan::HEADER_LEN as TAG_LEN;

const KERNEL: Exit = Exit::Punt(PuntReason::Netfilter);

/// Runs the chains at ingress on a received packet for `dev`, a port or a VLAN of it.
///
/// # Errors
/// Its end, if the rules drop it or leave it to the kernel.
#[inline]
pub(super) fn nf_ingress<M: Mode>(
    skb: &mut SkBuff,
    ethertype: EtherType,
    dev: &Link,
    ctx: &mut Ctx<'_>,
) -> Result<(), Exit> {
    if !M::HOOKED || !ctx.hooks.have_device_chains() {
        return Ok(());
    }
    nf_ingress_slow::<M>(skb, ethertype, dev, ctx)
}

#[inline(never)]
fn nf_ingress_slow<M: Mode>(
    skb: &mut SkBuff,
    ethertype: EtherType,
    dev: &Link,
    ctx: &mut Ctx<'_>,
) -> Result<(), Exit> {
    let pf = if ethertype == EtherType::IPV4 { Family::Ip } else { Family::Ip6 };
    let port = ctx.tables.links.port(skb.port).ok_or(Exit::Punt(PuntReason::NotReady))?;
    let mut run = |skb: &mut SkBuff, dev: &Link, tags: usize| {
        let (hooks, own) = (ctx.hooks, &mut ctx.state.hooks);
        let chains = hooks.device_chains(dev, ctx.tables, own);
        if !chains.has_ingress() {
            return Ok(());
        }
        // With several tags the kernel removes one after the other.
        if tags > 1 {
            return Err(KERNEL);
        }
        // PACKET_OTHERHOST until its VLAN, which has another address, is found.
        if tags > 0 && skb.pkt_type == PktType::Host && !is_to(skb, dev) {
            return Err(KERNEL);
        }
        let (worker, now_ns) = (own.worker, ctx.now_ns);
        let env = HookCtx { now_ns, tables: ctx.tables, stats: ctx.stats, worker, answer: None };
        let at = AtIngress { dev, pf, is_tagged: tags > 0 };
        let verdict = match M::TRACED {
            true => hooks.run_ingress(chains, skb, at, &env, own, &mut ctx.out.trace),
            false => hooks.run_ingress(chains, skb, at, &env, own, &mut NoTrace),
        };
        match verdict {
            Verdict::Accept => Ok(()),
            Verdict::Drop => Err(Exit::Drop(DropReason::NetfilterDrop)),
            _ => Err(KERNEL),
        }
    };
    let tags = skb.network_offset().saturating_sub(HEADER_LEN) / TAG_LEN;
    run(skb, port, tags)?;
    let Some(vlan) = &dev.vlan else { return Ok(()) };
    if vlan.link != port.ifindex
        && let Some(between) = ctx.tables.links.ifindex(vlan.link)
    {
        run(skb, between, tags)?;
    }
    run(skb, dev, if tags > 1 { tags } else { 0 })
}

/// Whether the frame is to the interface's own address.
fn is_to(skb: &SkBuff, dev: &Link) -> bool {
    skb.mac_chunk::<HEADER_LEN>()
        .is_some_and(|header| EthernetFrame::new_unchecked(header).dst_addr().0 == dev.mac)
}

/// Before a packet is changed.
///
/// # Errors
/// The interface by which it leaves has a chain at egress: the packet is the kernel's.
#[inline]
pub(super) fn check_egress<M: Mode>(dev: &Link, ctx: &mut Ctx<'_>) -> Result<(), Exit> {
    if M::HOOKED
        && ctx.hooks.have_egress_chains()
        && ctx.hooks.has_egress(dev, ctx.tables, &mut ctx.state.hooks)
    {
        return Err(Exit::Punt(PuntReason::NetfilterEgress));
    }
    Ok(())
}
