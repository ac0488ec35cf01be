//! An XDP program for comparison in benchmarks, not part of the router: it looks up the route in
//! the kernel (`bpf_fib_lookup`) and redirects the frame, as xdp-forward of xdp-tools does.
//!
//! IPv4 without options, and IPv6; everything else goes to the kernel. Built by `scripts/build-xdp`,
//! committed as `peer.bpf.o`, attached by `forwarder/examples/xdp_forward.rs`.

#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::{bpf_fib_lookup, xdp_action::XDP_PASS},
    helpers::{bpf_fib_lookup as fib_lookup, bpf_redirect},
    macros::xdp,
    programs::XdpContext,
};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Octets of an Ethernet header, of an IPv4 header without options, and of an IPv6 header.
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
/// BPF_FIB_LKUP_RET_SUCCESS.
const SUCCESS: i64 = 0;

/// Required by the kernel for programs that use GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[xdp]
pub fn ferroute_peer(ctx: XdpContext) -> u32 {
    forward(&ctx).unwrap_or(XDP_PASS)
}

#[inline(always)]
fn forward(ctx: &XdpContext) -> Option<u32> {
    let start = ctx.data();
    if start + ETHERNET + IPV4 > ctx.data_end() {
        return None;
    }
    let frame = start as *mut u8;
    // SAFETY: the frame reaches to the end of an IPv4 header; frames are 2-octet aligned.
    match u16::from_be(unsafe { *frame.add(12).cast::<u16>() }) {
        // SAFETY: as the function requires.
        ETH_P_IP => unsafe { forward4(ctx, frame) },
        // SAFETY: as the function requires, by this check.
        ETH_P_IPV6 if start + ETHERNET + IPV6 <= ctx.data_end() => unsafe { forward6(ctx, frame) },
        _ => None,
    }
}

/// # Safety
/// The frame, 2-octet aligned, reaches to the end of an IPv4 header.
#[inline(always)]
unsafe fn forward4(ctx: &XdpContext, frame: *mut u8) -> Option<u32> {
    // SAFETY: every offset below is in the header; each four-octet address is read as two halves.
    unsafe {
        let half = |at: usize| frame.add(at).cast::<u16>();
        let word = |at: usize| frame.add(at).cast::<u32>().read_unaligned();
        if *frame.add(14) != 0x45 || *frame.add(22) <= 1 {
            return None;
        }
        let mut params: bpf_fib_lookup = core::mem::zeroed();
        params.family = AF_INET;
        params.l4_protocol = *frame.add(23);
        params.__bindgen_anon_1.tot_len = u16::from_be(*half(16));
        params.__bindgen_anon_2.tos = *frame.add(15);
        params.__bindgen_anon_3.ipv4_src = word(26);
        params.__bindgen_anon_4.ipv4_dst = word(30);
        look_up(ctx, &mut params)?;
        // As ip_decrease_ttl of the kernel.
        let check = u32::from(*half(24)) + u32::from(0x0100u16.to_be());
        *half(24) = (check + u32::from(check >= 0xffff)) as u16;
        *frame.add(22) -= 1;
        Some(send(frame, &params))
    }
}

/// # Safety
/// The frame, 2-octet aligned, reaches to the end of an IPv6 header.
#[inline(always)]
unsafe fn forward6(ctx: &XdpContext, frame: *mut u8) -> Option<u32> {
    // SAFETY: as in `forward4`.
    unsafe {
        let word = |at: usize| frame.add(at).cast::<u32>().read_unaligned();
        let address = |at: usize| [word(at), word(at + 4), word(at + 8), word(at + 12)];
        if *frame.add(14) >> 4 != 6 || *frame.add(21) <= 1 {
            return None;
        }
        let mut params: bpf_fib_lookup = core::mem::zeroed();
        params.family = AF_INET6;
        params.l4_protocol = *frame.add(20);
        params.__bindgen_anon_1.tot_len = u16::from_be(*frame.add(18).cast::<u16>());
        params.__bindgen_anon_2.flowinfo = word(14) & 0x0fff_ffffu32.to_be();
        params.__bindgen_anon_3.ipv6_src = address(22);
        params.__bindgen_anon_4.ipv6_dst = address(38);
        look_up(ctx, &mut params)?;
        *frame.add(21) -= 1;
        Some(send(frame, &params))
    }
}

#[inline(always)]
fn look_up(ctx: &XdpContext, params: &mut bpf_fib_lookup) -> Option<()> {
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the context is the kernel's, and the parameters have this size.
    let result = unsafe {
        params.ifindex = (*ctx.ctx).ingress_ifindex;
        fib_lookup(ctx.ctx.cast(), params, size, 0)
    };
    (i64::from(result) == SUCCESS).then_some(())
}

/// # Safety
/// The frame reaches to the end of an Ethernet header.
#[inline(always)]
unsafe fn send(frame: *mut u8, params: &bpf_fib_lookup) -> u32 {
    let mut at = 0;
    // SAFETY: every offset is in the header.
    unsafe {
        while at < 6 {
            *frame.add(at) = params.dmac[at];
            *frame.add(6 + at) = params.smac[at];
            at += 1;
        }
        bpf_redirect(params.ifindex, 0) as u32
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never linked in: the verifier would reject the loop, so a possible panic in a program is
    // detected when it is loaded.
    loop {}
}
