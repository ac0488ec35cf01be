//! The BPF object of the load generator: `ferroute_pktgen` generates packets, `ferroute_sink`
//! counts them, `ferroute_catch` redirects them to a socket.
//!
//! Built by `scripts/build-xdp` for `bpfel-unknown-none`; the result is committed as `load.bpf.o`.
//! Needs Linux 6.1 (`bpf_ktime_get_tai_ns`; live frames need 5.18). The library half contains maps
//! and their layouts, and the construction of packets.

#![no_std]
#![no_main]
// For one instruction, see `add`.
#![feature(asm_experimental_arch)]

mod pktgen;
mod sink;

use core::arch::asm;

use aya_ebpf::{btf_maps::Array, macros::btf_map, programs::XdpContext};
use xdp_prog::load::Loop;

#[btf_map]
static FR_LOOP: Array<Loop, 1> = Array::new();
#[btf_map]
static FR_CLOCK: Array<u64, 1> = Array::new();

/// Required by the kernel for programs that use GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The data at `offset` octets into the frame, if the frame is long enough.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some(start as *mut T)
}

/// Atomically adds to a counter that other CPUs add to as well. BPF always had this instruction,
/// but Rust offers atomic addition only for targets that also have compare-and-swap.
///
/// # Safety
/// `counter` points into a map value.
#[inline(always)]
unsafe fn add(counter: *mut u64, value: u64) {
    // SAFETY: guaranteed by the caller, and the instruction accesses nothing else.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {value}", counter = in(reg) counter,
            value = in(reg) value);
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never linked in: the verifier would reject the loop, so a possible panic in a program is
    // detected when it is loaded.
    loop {}
}
