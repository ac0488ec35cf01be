//! `ferroute_pktgen`: generates one packet per run.
//!
//! Run by BPF_PROG_RUN with BPF_F_TEST_XDP_LIVE_FRAMES and a large repeat. Frames are reused, with
//! the contents that receivers left: all headers are written each time. XDP_TX sends on the
//! interface in the context; XDP_DROP sends nothing, and the frame is reused.

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_TX},
    btf_maps::Array,
    helpers::{bpf_ktime_get_tai_ns, bpf_xdp_adjust_tail},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use xdp_prog::load::{GeneratorConfig, GeneratorState, Header, INTERVAL_SHIFT, header_octets};

use crate::{FR_CLOCK, FR_LOOP, add, at};

#[btf_map]
static FR_GEN_CONFIG: Array<GeneratorConfig, 1> = Array::new();
#[btf_map]
static FR_GEN_STATE: Array<GeneratorState, 1> = Array::new();
#[btf_map]
static FR_FORGIVEN: Array<u64, 1> = Array::new();

#[xdp]
pub fn ferroute_pktgen(ctx: XdpContext) -> u32 {
    if send(&ctx).is_some() { XDP_TX } else { XDP_DROP }
}

#[inline(always)]
fn send(ctx: &XdpContext) -> Option<()> {
    let config = FR_GEN_CONFIG.get(0)?;
    let state = FR_GEN_STATE.get_ptr_mut(0)?;
    // SAFETY: the value belongs to this thread, and nothing else writes it.
    let state = unsafe { &mut *state };
    if config.stop != 0 || (config.count != 0 && state.sent >= config.count) {
        return None;
    }
    if config.window != 0 && !window_has_room(config.window) {
        state.held += 1;
        return None;
    }
    let stamp = time(config, state)?;
    const VLAN: u32 = GeneratorConfig::VLAN;
    const IPV6: u32 = GeneratorConfig::IPV6;
    const IPV6_VLAN: u32 = IPV6 | VLAN;
    match config.flags & IPV6_VLAN {
        0 => write::<false, false>(ctx, config, state, stamp)?,
        VLAN => write::<false, true>(ctx, config, state, stamp)?,
        IPV6 => write::<true, false>(ctx, config, state, stamp)?,
        _ => write::<true, true>(ctx, config, state, stamp)?,
    }
    state.sent += 1;
    if config.window != 0 {
        let counters = FR_LOOP.get_ptr_mut(0)?;
        // SAFETY: points into a map value.
        unsafe { add(&raw mut (*counters).sent, 1) };
    }
    Some(())
}

/// Whether fewer than `window` packets are in flight. Generators on several CPUs may exceed the
/// limit by one packet each.
#[inline(always)]
fn window_has_room(window: u64) -> bool {
    let (Some(counters), Some(forgiven)) = (FR_LOOP.get_ptr_mut(0), FR_FORGIVEN.get_ptr_mut(0))
    else {
        return false;
    };
    // SAFETY: points into a map value; others write whole words to it concurrently.
    let (sent, received, forgiven) = unsafe {
        (
            (&raw const (*counters).sent).read_volatile(),
            (&raw const (*counters).received).read_volatile(),
            forgiven.read_volatile(),
        )
    };
    let gone = received.wrapping_add(forgiven);
    // If packets that were given up arrive after all, the difference is negative.
    (sent.wrapping_sub(gone) as i64) < window as i64
}

/// The time stamp of the packet; `None`: the packet is not due yet.
#[inline(always)]
fn time(config: &GeneratorConfig, state: &mut GeneratorState) -> Option<(u32, u32)> {
    if !config.is_stamped() && config.interval == 0 {
        return Some((0, 0));
    }
    // SAFETY: a helper without pointers.
    let now = unsafe { bpf_ktime_get_tai_ns() };
    if state.first_ns == 0 {
        state.first_ns = now;
    }
    if config.interval != 0 {
        let due = state.sent.wrapping_mul(config.interval) >> INTERVAL_SHIFT;
        if now.wrapping_sub(state.first_ns) < due {
            return None;
        }
    }
    state.last_ns = now;
    if !config.is_stamped() {
        return Some((0, 0));
    }
    let real = now.wrapping_add(*FR_CLOCK.get(0)?);
    Some(state.stamp(real))
}

#[inline(always)]
fn write<const V6: bool, const VLAN: bool>(
    ctx: &XdpContext,
    config: &GeneratorConfig,
    state: &mut GeneratorState,
    stamp: (u32, u32),
) -> Option<()> {
    let size = config.size(state.sent);
    let cut = config.frame_max as i32 - i32::from(size);
    if cut > 0 {
        // SAFETY: the context is the kernel's; pointers into the frame are created after this.
        let result = unsafe { bpf_xdp_adjust_tail(ctx.ctx, -cut) };
        if result != 0 {
            return None;
        }
    }
    let header = config.header::<V6, VLAN>(state.sent, size, stamp);
    match const { header_octets(V6, VLAN) } {
        60 => store::<7, true>(ctx, &header)?,
        64 => store::<8, false>(ctx, &header)?,
        80 => store::<10, false>(ctx, &header)?,
        _ => store::<10, true>(ctx, &header)?,
    }
    state.octets += u64::from(size);
    Some(())
}

/// Writes `N` times 8 octets, and 4 more if `HALF`.
#[inline(always)]
fn store<const N: usize, const HALF: bool>(ctx: &XdpContext, header: &Header) -> Option<()> {
    let from = core::ptr::from_ref(header).cast::<u64>();
    let to = at::<[u64; N]>(ctx, 0)?.cast::<u64>();
    let mut n = 0;
    while n < N {
        // SAFETY: inside the frame, as checked, and inside the longer header. Live frames start at
        // a multiple of 8 (struct xdp_page_head in net/bpf/test_run.c), as the header does.
        unsafe { to.add(n).write(from.add(n).read()) };
        n += 1;
    }
    if HALF {
        let to = at::<u32>(ctx, 8 * N)?;
        // SAFETY: as above.
        unsafe { to.write(from.add(N).cast::<u32>().read()) };
    }
    Some(())
}
