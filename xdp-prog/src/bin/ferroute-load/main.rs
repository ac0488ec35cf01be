//! The BPF object of the load generator: `ferroute_pktgen` makes packets, `ferroute_sink` counts
//! them, `ferroute_catch` gives them to a socket.
//!
//! Built by `scripts/build-xdp` for `bpfel-unknown-none`; the result is committed as `load.bpf.o`.
//! Needs Linux 6.1 (`bpf_ktime_get_tai_ns`; live frames came with 5.18). Maps and their layouts,
//! and how a packet is put together, are in the library half.

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

/// The kernel lends GPL-only helpers to a program that says this.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// What lies at `offset` octets into the frame, if the frame reaches that far.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some(start as *mut T)
}

/// Adds to a counter that other CPUs add to as well. BPF has the instruction from the start, but
/// Rust offers it only for targets that have compare-and-swap too.
///
/// # Safety
/// `counter` lies in a map's value.
#[inline(always)]
unsafe fn add(counter: *mut u64, value: u64) {
    // SAFETY: as the caller says, and the instruction touches nothing else.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {value}", counter = in(reg) counter,
            value = in(reg) value);
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never linked in: the verifier would refuse the loop, so a panic in a program is found when
    // it is loaded.
    loop {}
}
