//! The BPF object that counts frames which the XDP program redirected to a port, and which were not sent.
//!
//! The kernel frees such frames without a trace in any counter that all drivers have. Its tracepoints tell:
//! `xdp_redirect_err`, when it refuses a frame, and `xdp_devmap_xmit`, when a driver did not take all frames of a bulk.
//! The library half (`redirect.rs`) describes the maps. Loaded apart from the router's object, which works without it.

#![no_std]
#![no_main]
// For the atomic addition of counters. The target is unstable as well.
#![feature(asm_experimental_arch)]

use core::arch::asm;

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap},
    helpers::bpf_probe_read_kernel,
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};
use xdp_prog::offload::TX_PORTS_MAX;
use xdp_prog::redirect::{Failures, WatchSettings};

#[btf_map]
static FR_RD_SETTINGS: Array<WatchSettings, 1> = Array::new();
#[btf_map]
static FR_RD_PORTS: HashMap<u32, u32, TX_PORTS_MAX> = HashMap::new();
#[btf_map]
static FR_RD_FAILED: Array<Failures, TX_PORTS_MAX, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Required by the kernel for programs that read kernel memory.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// `xdp_redirect_err(dev, xdp, tgt, err, map_type, map_id, index)`: a frame was not put into the bulk of a port.
#[raw_tracepoint(tracepoint = "xdp_redirect_err")]
pub fn ferroute_redir(ctx: RawTracePointContext) -> i32 {
    let (map_id, port) = (ctx.arg::<u32>(5), ctx.arg::<u32>(6));
    if let Some(settings) = FR_RD_SETTINGS.get(0)
        && settings.tx_ports.contains(&map_id)
    {
        count(port, 1, true);
    }
    0
}

/// `xdp_devmap_xmit(from_dev, to_dev, sent, drops, err)`: a bulk of frames was given to a driver. `err`, if it is
/// negative, is what the driver answered for all of them.
#[raw_tracepoint(tracepoint = "xdp_devmap_xmit")]
pub fn ferroute_xmit(ctx: RawTracePointContext) -> i32 {
    let (drops, err) = (ctx.arg::<i32>(3), ctx.arg::<i32>(4));
    // Frames that come from other devices are other programs'.
    if drops > 0
        && port_of(ctx.arg::<u64>(0)).is_some()
        && let Some(port) = port_of(ctx.arg::<u64>(1))
    {
        count(port, drops as u64, err < 0);
    }
    0
}

/// The number of the port that a `struct net_device` of the router's network namespace is.
#[inline(always)]
fn port_of(dev: u64) -> Option<u32> {
    let settings = FR_RD_SETTINGS.get(0)?;
    let net = read::<u64>(dev, settings.dev_net)?;
    if read::<u64>(net, settings.net_cookie)? != settings.cookie {
        return None;
    }
    let ifindex = read::<u32>(dev, settings.dev_ifindex)?;
    // SAFETY: read at once; if it is overwritten meanwhile, the port is being changed.
    unsafe { FR_RD_PORTS.get(&ifindex) }.copied()
}

/// A member of a structure of the kernel.
#[inline(always)]
fn read<T>(structure: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel((structure + u64::from(offset)) as *const T) }.ok()
}

#[inline(always)]
fn count(port: u32, frames: u64, is_refused: bool) {
    let Some(failures) = FR_RD_FAILED.get_ptr_mut(port) else { return };
    // SAFETY: inside the map's value, aligned to 8 octets; other CPUs and userspace access whole words.
    unsafe {
        let refused = (&raw mut (*failures).refused);
        let counter = if is_refused { refused } else { &raw mut (*failures).dropped };
        // The target has no atomic operations in the standard library: it has no compare and exchange before v3.
        asm!("lock *(u64 *)({} + 0) += {}", in(reg) counter, in(reg) frames, options(nostack));
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never linked in: the verifier would reject the loop, so a possible panic in a program is
    // detected when it is loaded.
    loop {}
}
