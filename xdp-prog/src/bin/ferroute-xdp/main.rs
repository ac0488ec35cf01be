//! The BPF object: the XDP program that steers frames or forwards them, and the classifier for punted frames.
//!
//! Built by `scripts/build-xdp` for `bpfel-unknown-none`; the result is committed as
//! `ferroute.bpf.o`. Only helpers that Linux 5.15 has are used. Maps and their layouts are
//! described in the library half.

#![no_std]
#![no_main]
// For the atomic addition of counters. The target is unstable as well.
#![feature(asm_experimental_arch)]

mod checksum;
mod ipsec;
mod marks;
mod offload;
mod punt;
mod steer;
mod tuple;

/// Required by the kernel for programs that use GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never linked in: the verifier would reject the loop, so a possible panic in a program is
    // detected when it is loaded.
    loop {}
}
