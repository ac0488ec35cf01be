//! `ferroute_sink`: counts and drops packets with pktgen's header and passes the rest to the
//! kernel. `ferroute_catch`: redirects such packets to the queue's AF_XDP socket instead.

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT},
    btf_maps::{PerCpuArray, XskMap},
    helpers::bpf_ktime_get_tai_ns,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use xdp_prog::QUEUES_MAX;
use xdp_prog::load::{LATENCY_BUCKETS, MAGIC, latency_bucket};

use crate::{FR_CLOCK, FR_LOOP, add, at};

#[btf_map]
static FR_LATENCY: PerCpuArray<u64, LATENCY_BUCKETS> = PerCpuArray::new();
#[btf_map]
static FR_CATCH: XskMap<QUEUES_MAX> = XskMap::new();

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const IPPROTO_UDP: u16 = 17;

#[xdp]
pub fn ferroute_sink(ctx: XdpContext) -> u32 {
    let Some(counters) = FR_LOOP.get_ptr_mut(0) else { return XDP_PASS };
    let Some(header) = pktgen_header(&ctx) else {
        // SAFETY: points into a map value.
        unsafe { add(&raw mut (*counters).other, 1) };
        return XDP_PASS;
    };
    record_latency(be32(header, 4), be32(header, 6));
    // SAFETY: points into a map value.
    unsafe {
        add(&raw mut (*counters).received_octets, (ctx.data_end() - ctx.data()) as u64);
        add(&raw mut (*counters).received, 1);
    }
    XDP_DROP
}

#[xdp]
pub fn ferroute_catch(ctx: XdpContext) -> u32 {
    let Some(counters) = FR_LOOP.get_ptr_mut(0) else { return XDP_PASS };
    if pktgen_header(&ctx).is_none() {
        // SAFETY: points into a map value.
        unsafe { add(&raw mut (*counters).other, 1) };
        return XDP_PASS;
    }
    // The flags are the action for a queue without a socket.
    match FR_CATCH.redirect(ctx.rx_queue_index(), u64::from(XDP_PASS)) {
        Ok(_) => XDP_REDIRECT,
        Err(_) => XDP_PASS,
    }
}

/// Pktgen's header, if the packet has one.
#[inline(always)]
fn pktgen_header(ctx: &XdpContext) -> Option<&[u16; 8]> {
    let header = at::<[u16; 8]>(ctx, udp(ctx)? + 8)?;
    // SAFETY: inside the frame, 2-octet aligned as every header here is.
    let header = unsafe { &*header };
    if be32(header, 0) == MAGIC { Some(header) } else { None }
}

/// Offset of the UDP header, in octets. `None`: no UDP, or after options or extension headers.
#[inline(always)]
fn udp(ctx: &XdpContext) -> Option<usize> {
    let (ethertype, l3) = match word(ctx, 12)? {
        ETH_P_8021Q => (word(ctx, 16)?, 18),
        other => (other, 14),
    };
    match ethertype {
        // Whole packets only: no fragments, not even a first one with the header.
        ETH_P_IP
            if word(ctx, l3)? >> 8 == 0x45
                && word(ctx, l3 + 6)? & 0x3fff == 0
                && word(ctx, l3 + 8)? & 0xff == IPPROTO_UDP =>
        {
            Some(l3 + 20)
        }
        ETH_P_IPV6 if word(ctx, l3 + 6)? >> 8 == IPPROTO_UDP => Some(l3 + 40),
        _ => None,
    }
}

#[inline(always)]
fn word(ctx: &XdpContext, offset: usize) -> Option<u16> {
    // SAFETY: inside the frame; frames are 2-octet aligned and `offset` is even.
    at::<u16>(ctx, offset).map(|word| u16::from_be(unsafe { *word }))
}

#[inline(always)]
fn be32(words: &[u16; 8], at: usize) -> u32 {
    u32::from(u16::from_be(words[at])) << 16 | u32::from(u16::from_be(words[at + 1]))
}

#[inline(always)]
fn record_latency(second: u32, microsecond: u32) {
    let Some(offset) = FR_CLOCK.get(0) else { return };
    if second == 0 {
        return;
    }
    // SAFETY: a helper without pointers.
    let now_us = unsafe { bpf_ktime_get_tai_ns() }.wrapping_add(*offset) / 1000;
    let sent_us = u64::from(second) * 1_000_000 + u64::from(microsecond);
    // If the clock was set back meanwhile, the latency is 0, not negative.
    let latency = if now_us > sent_us { now_us - sent_us } else { 0 };
    if let Some(count) = FR_LATENCY.get_ptr_mut(latency_bucket(latency)) {
        // SAFETY: this CPU's value.
        unsafe { *count += 1 };
    }
}
