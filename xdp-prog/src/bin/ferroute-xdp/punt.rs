//! `ferroute_punt`: passes a frame that userspace received but does not handle to the kernel.
//!
//! Userspace writes the frame to a TAP device with the port's ifindex in the destination MAC (the
//! library half contains the layout). On the TAP's ingress this classifier restores the port's MAC
//! and redirects the frame to the port's ingress, so the kernel treats it as received there.
//! Checksums must be complete: the driver's checksum information is lost.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT},
    btf_maps::HashMap,
    helpers::bpf_redirect,
    macros::btf_map,
    programs::TcContext,
};
use xdp_prog::{PUNT_DESTINATION, PUNT_PORTS_MAX, PuntPort};

#[btf_map]
static FR_PUNT_PORTS: HashMap<u32, PuntPort, PUNT_PORTS_MAX> = HashMap::new();

/// Section and symbol are those that `aya_ebpf::macros::classifier` would write. The macro would
/// also declare `ctx` as `*mut __sk_buff`, which names two structures that LLVM only declares in
/// BTF, in an order that differs between builds.
// SAFETY: no other symbol of the object has this name; the loader knows the section's type.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
pub fn ferroute_punt(ctx: *mut c_void) -> i32 {
    // Every frame of the device is a punted one; others are dropped.
    redirect(&TcContext::new(ctx.cast())).unwrap_or(TC_ACT_SHOT)
}

#[inline(always)]
fn redirect(ctx: &TcContext) -> Option<i32> {
    let macs: [u8; 12] = ctx.load(0).ok()?;
    if macs[..2] != PUNT_DESTINATION {
        return None;
    }
    let ifindex = u32::from_be_bytes([macs[2], macs[3], macs[4], macs[5]]);
    // SAFETY: read immediately; if the value is overwritten meanwhile, the port is being changed.
    let port = unsafe { FR_PUNT_PORTS.get(ifindex) }?;
    ctx.store(0, &port.mac, 0).ok()?;
    if port.mark_source != 0 {
        ctx.store(6, &port.punt_source, 0).ok()?;
    }
    // SAFETY: a helper without pointers.
    let action = unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) };
    i32::try_from(action).ok()
}
