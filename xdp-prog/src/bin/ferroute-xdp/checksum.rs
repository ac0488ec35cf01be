//! Transport checksums of offloaded packets: updated where addresses and ports are rewritten, and completed where they
//! are partial (`pipeline/csum_partial.rs` of the forwarder). On ports with partial checksums, tunnels and SCTP are left to
//! userspace, which completes those of the packets inside, and CRCs.
//!
//! Sums are of 16-bit words in memory order: they do not depend on the byte order (RFC 1071 §2(B)).

use core::arch::asm;
use core::ptr::null_mut;

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_csum_diff, programs::XdpContext};
use xdp_prog::offload::fold;

use crate::offload::{halves, header_mut};
use crate::steer::{
    IPPROTO_GRE, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, UdpHdr, header,
};

/// Offsets of the checksum in a TCP, UDP and ICMP header, octets.
const TCP_CHECK: usize = 16;
const UDP_CHECK: usize = 6;
const ICMP_CHECK: usize = 2;
/// Offset of the identifier of echo, octets.
const ICMP_ID: usize = 4;
/// Protocols whose packets contain others, or have another checksum.
const IPPROTO_IPIP: u8 = 4;
const IPPROTO_IPV6: u8 = 41;
const IPPROTO_SCTP: u8 = 132;
/// Length of the headers of VXLAN and Geneve, without options, octets.
const TUNNEL_LEN: usize = 8;
/// CSUM_MANGLED_0: of a UDP checksum, 0 means that there is none.
const CSUM_MANGLED_0: u16 = 0xffff;

/// What octets `bpf_csum_diff` sums at a time at most (MAX_BPF_STACK).
const PART: u32 = 512;
/// Maximum number of such parts: jumbo frames have 9000 octets.
const PARTS_MAX: u32 = 18;
/// Result of [`transport_sum`] for a packet that is longer than the frame, or than it sums.
const NO_SUM: u64 = u64::MAX;

/// A packet whose checksum may change.
pub struct Checked {
    pub protocol: u8,
    /// Octets after the IP header.
    pub octets: u16,
    /// It is of a tracked connection.
    pub is_tracked: bool,
    /// Pseudo-header and ports change, and what their sum grows by. Not an `Option`, see `decide_ipv4`.
    pub is_rewritten: bool,
    pub delta: u16,
    /// The checksum may be a partial one.
    pub is_maybe_partial: bool,
}

/// What is written into a transport header.
#[derive(Clone, Copy)]
pub struct NewCheck {
    value: u16,
    /// The offset of the checksum, octets; 0: neither it nor ports are written.
    at: usize,
}

impl NewCheck {
    const NONE: NewCheck = NewCheck { value: 0, at: 0 };

    /// Writes it into the header at `offset`, and if that `is_rewritten` the lowest 16-bit words of `rest`, which are ports,
    /// or the identifier of echo.
    #[inline(always)]
    pub fn write(
        self,
        ctx: &XdpContext,
        offset: usize,
        is_rewritten: bool,
        rest: u64,
    ) -> Option<()> {
        if self.at == TCP_CHECK {
            self.write_at::<TCP_CHECK>(ctx, offset, is_rewritten, rest)
        } else if self.at == UDP_CHECK {
            self.write_at::<UDP_CHECK>(ctx, offset, is_rewritten, rest)
        } else if self.at == ICMP_CHECK {
            // Nothing is, unless it is rewritten.
            let id = header_mut::<u16>(ctx, offset + ICMP_ID)?;
            // SAFETY: inside the frame; the checksum is before the identifier.
            unsafe {
                *header_mut::<u16>(ctx, offset + ICMP_CHECK)? = self.value;
                *id = rest as u16;
            }
            Some(())
        } else {
            Some(())
        }
    }

    #[inline(always)]
    fn write_at<const AT: usize>(
        self,
        ctx: &XdpContext,
        offset: usize,
        is_rewritten: bool,
        rest: u64,
    ) -> Option<()> {
        let check = header_mut::<u16>(ctx, offset + AT)?;
        // SAFETY: inside the frame; ports are before the checksum.
        unsafe {
            *check = self.value;
            if is_rewritten {
                *header_mut::<[u16; 2]>(ctx, offset)? = halves(rest as u32);
            }
        }
        Some(())
    }
}

/// The checksum of a packet whose transport header is at `offset`. `addresses`: the sum of the words of both addresses
/// as received. `None`: the packet is left to userspace.
#[inline(always)]
pub fn check_for(
    ctx: &XdpContext,
    offset: usize,
    packet: &Checked,
    addresses: impl FnOnce() -> u64,
) -> Option<NewCheck> {
    if packet.is_tracked && matches!(packet.protocol, IPPROTO_ICMP | IPPROTO_ICMPV6) {
        return check_echo(ctx, offset, packet, addresses);
    }
    if !packet.is_maybe_partial && !packet.is_rewritten {
        return Some(NewCheck::NONE);
    }
    match packet.protocol {
        IPPROTO_TCP => check_at::<TCP_CHECK>(ctx, offset, packet, addresses),
        // The checksum of a packet inside may be the partial one.
        IPPROTO_UDP if packet.is_maybe_partial && is_udp_tunnel(ctx, offset) => None,
        IPPROTO_UDP => check_at::<UDP_CHECK>(ctx, offset, packet, addresses),
        IPPROTO_IPIP | IPPROTO_IPV6 | IPPROTO_GRE | IPPROTO_SCTP if packet.is_maybe_partial => None,
        _ => Some(NewCheck::NONE),
    }
}

/// That of echo. `None`: the present one is wrong, with which connection tracking may call the packet invalid
/// (`nf_conntrack_icmpv4_error`, `nf_conntrack_icmpv6_error`).
#[inline(always)]
fn check_echo(
    ctx: &XdpContext,
    offset: usize,
    packet: &Checked,
    addresses: impl FnOnce() -> u64,
) -> Option<NewCheck> {
    let pseudo_header = match packet.protocol {
        IPPROTO_ICMPV6 => {
            let words = [u16::from(IPPROTO_ICMPV6), packet.octets];
            words.iter().fold(addresses(), |sum, word| sum + u64::from(word.to_be()))
        }
        _ => 0,
    };
    let sum = transport_sum(ctx.ctx, offset as u32, u32::from(packet.octets));
    if sum == NO_SUM || fold(pseudo_header + sum) != 0xffff {
        return None;
    }
    if !packet.is_rewritten {
        return Some(NewCheck::NONE);
    }
    let old = *header::<u16>(ctx, offset + ICMP_CHECK)?;
    Some(NewCheck { value: !fold(u64::from(!old) + u64::from(packet.delta)), at: ICMP_CHECK })
}

/// Whether the UDP datagram whose header is at `offset` begins as that of a VXLAN or Geneve tunnel does
/// (`pipeline/encap.rs` of the forwarder).
#[inline(always)]
fn is_udp_tunnel(ctx: &XdpContext, offset: usize) -> bool {
    let Some(header) = header::<[u8; TUNNEL_LEN]>(ctx, offset + size_of::<UdpHdr>()) else {
        return false;
    };
    let is_vxlan = header[0] & 0x7b == 0x08 && header[1] & !0x48 == 0;
    let is_geneve = header[0] < 0x40
        && header[1] & 0x3f == 0
        && matches!([header[2], header[3]], [0x65, 0x58] | [0x08, 0] | [0x86, 0xdd]);
    header[7] == 0 && (is_vxlan || is_geneve)
}

/// `AT`: the offset of the checksum in the transport header, octets.
#[inline(always)]
fn check_at<const AT: usize>(
    ctx: &XdpContext,
    offset: usize,
    packet: &Checked,
    addresses: impl FnOnce() -> u64,
) -> Option<NewCheck> {
    if usize::from(packet.octets) < AT + size_of::<u16>() {
        return Some(NewCheck::NONE);
    }
    let old = *header::<u16>(ctx, offset + AT)?;
    let of = |sum: u64| {
        let value = !fold(sum);
        let value = if AT == UDP_CHECK && value == 0 { CSUM_MANGLED_0 } else { value };
        Some(NewCheck { value, at: AT })
    };
    let delta = u64::from(packet.delta);
    if packet.is_maybe_partial {
        let protocol = u16::from(packet.protocol).to_be();
        let pseudo_header = addresses() + u64::from(protocol) + u64::from(packet.octets.to_be());
        if old == fold(pseudo_header) {
            let sum = transport_sum(ctx.ctx, offset as u32, u32::from(packet.octets));
            if sum == NO_SUM {
                return None;
            }
            // By chance, once in 65,536 packets, the checksum is complete.
            if fold(pseudo_header + sum) != 0xffff {
                return of(sum + delta);
            }
        }
    }
    if !packet.is_rewritten {
        return Some(NewCheck::NONE);
    }
    if AT == UDP_CHECK && old == 0 {
        // It stays what it is; ports are written.
        return Some(NewCheck { value: 0, at: AT });
    }
    of(u64::from(!old) + delta)
}

/// The sum of `octets` octets at `offset` into the frame, or [`NO_SUM`]. A global function, which the verifier follows
/// once, instead of once for each way to each call.
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn transport_sum(ctx: *mut xdp_md, offset: u32, octets: u32) -> u64 {
    sum_of(&XdpContext::new(ctx), offset, octets).unwrap_or(NO_SUM)
}

#[inline(always)]
fn sum_of(ctx: &XdpContext, offset: u32, octets: u32) -> Option<u64> {
    // If offsets were constants, the verifier would note for each length of a packet how much of the frame was
    // checked, and follow the rest of the program for each.
    let end = opaque_sum(u64::from(offset), u64::from(octets)) as u32;
    let mut rest = Rest { end, left: octets, sum: 0 };
    for _ in 0..PARTS_MAX {
        if rest.left < PART {
            break;
        }
        rest.add::<PART>(ctx)?;
    }
    if rest.left >= PART {
        return None;
    }
    rest.add_if::<256>(ctx)?;
    rest.add_if::<128>(ctx)?;
    rest.add_if::<64>(ctx)?;
    rest.add_if::<32>(ctx)?;
    rest.add_if::<16>(ctx)?;
    rest.add_if::<8>(ctx)?;
    rest.add_if::<4>(ctx)?;
    let mut sum = u64::from(rest.sum);
    if rest.left & 2 != 0 {
        sum += u64::from(*header::<u16>(ctx, rest.at())?);
        rest.left -= 2;
    }
    if rest.left & 1 != 0 {
        // The low octet of a word whose other octet is 0. It is read with the one before it, because the verifier
        // makes nothing of a comparison of its own address with the end of the frame.
        rest.left = 2;
        sum += u64::from(header::<[u8; 2]>(ctx, rest.at())?[1]);
    }
    Some(sum)
}

/// The octets that are not summed yet.
struct Rest {
    /// Offset of their end in the frame.
    end: u32,
    left: u32,
    sum: u32,
}

impl Rest {
    /// Offset of the first one in the frame, which is a small number also for the verifier.
    #[inline(always)]
    fn at(&self) -> usize {
        (self.end.wrapping_sub(self.left) & 0x3fff) as usize
    }

    /// Adds `N` octets if the length has this bit.
    #[inline(always)]
    fn add_if<const N: u32>(&mut self, ctx: &XdpContext) -> Option<()> {
        if self.left & N != 0 { self.add::<N>(ctx) } else { Some(()) }
    }

    #[inline(always)]
    fn add<const N: u32>(&mut self, ctx: &XdpContext) -> Option<()> {
        let start = ctx.data() + self.at();
        if start + N as usize > ctx.data_end() {
            return None;
        }
        // SAFETY: `N` octets in the frame, as just checked.
        let sum = unsafe { bpf_csum_diff(null_mut(), 0, start as *mut u32, N, self.sum) };
        self.sum = u32::try_from(sum).ok()?;
        self.left -= N;
        Some(())
    }
}

/// The sum, of which the compiler knows nothing.
#[inline(always)]
fn opaque_sum(mut a: u64, b: u64) -> u64 {
    // SAFETY: an instruction that has no other effect.
    unsafe { asm!("{a} += {b}", a = inout(reg) a, b = in(reg) b, options(pure, nomem, nostack)) };
    a
}
