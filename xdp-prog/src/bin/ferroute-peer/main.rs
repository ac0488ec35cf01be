//! An XDP program for comparison in benchmarks, not part of the router: it looks up the route in
//! the kernel (`bpf_fib_lookup`) and redirects the frame, as xdp-forward of xdp-tools does.
//!
//! IPv4 without options; everything else goes to the kernel. Built by `scripts/build-xdp`,
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
const AF_INET: u8 = 2;
/// Octets of an Ethernet header, and of an IPv4 header without options.
const ETHERNET: usize = 14;
const IPV4: usize = 20;
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
    // SAFETY: the frame reaches to the end of the IPv4 header, as checked above, which includes every
    // offset below; frames are 2-octet aligned, and each four-octet address is read as two halves.
    unsafe {
        let half = |at: usize| frame.add(at).cast::<u16>();
        let word = |at: usize| frame.add(at).cast::<u32>().read_unaligned();
        if *half(12) != ETH_P_IP.to_be() || *frame.add(14) != 0x45 || *frame.add(22) <= 1 {
            return None;
        }
        let mut params: bpf_fib_lookup = core::mem::zeroed();
        params.family = AF_INET;
        params.l4_protocol = *frame.add(23);
        params.__bindgen_anon_1.tot_len = u16::from_be(*half(16));
        params.__bindgen_anon_2.tos = *frame.add(15);
        params.__bindgen_anon_3.ipv4_src = word(26);
        params.__bindgen_anon_4.ipv4_dst = word(30);
        params.ifindex = (*ctx.ctx).ingress_ifindex;
        let size = size_of::<bpf_fib_lookup>() as i32;
        if i64::from(fib_lookup(ctx.ctx.cast(), &raw mut params, size, 0)) != SUCCESS {
            return None;
        }
        // As ip_decrease_ttl of the kernel.
        let check = u32::from(*half(24)) + u32::from(0x0100u16.to_be());
        *half(24) = (check + u32::from(check >= 0xffff)) as u16;
        *frame.add(22) -= 1;
        let mut at = 0;
        while at < 6 {
            *frame.add(at) = params.dmac[at];
            *frame.add(6 + at) = params.smac[at];
            at += 1;
        }
        Some(bpf_redirect(params.ifindex, 0) as u32)
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never linked in: the verifier would reject the loop, so a possible panic in a program is
    // detected when it is loaded.
    loop {}
}
