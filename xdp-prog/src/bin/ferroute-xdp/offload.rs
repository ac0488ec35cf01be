//! Flow offload: the packets of flows in the table are changed and sent by another port, without userspace. The
//! library half of the package describes the table.
//!
//! Everything is checked before anything is written. A packet that fails a check is treated as one that belongs to no
//! offloaded flow: userspace counts drops and makes ICMP errors.
//!
//! Of a multi-buffer frame only the first buffer is seen. If it contains the whole packet, what follows is padding.

use core::arch::asm;

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, DevMap},
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::btf_map,
    programs::XdpContext,
};
use xdp_prog::offload::{
    Epochs, FlowEntry, NEXT_HOPS_MAX, NextHop, OFFLOADED_MAX, Rewrite, TX_PORTS_MAX, Width,
    epochs4, epochs6, fold,
};
use xdp_prog::{MacWords, PortSettings, Reason};

use crate::checksum::{Checked, NewCheck, check_for};
use crate::marks::{self, Slot};
use crate::steer::{
    EthHdr, Flow, FlowWords, IPPROTO_AH, IPPROTO_TCP, IPPROTO_UDP, IPV4_FRAGMENT, IPV4_NO_OPTIONS,
    Ipv4Hdr, Ipv4Words, Ipv6Hdr, Ipv6Words, Settings, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tags,
    TcpHdr, UdpHdr, header, stalled, wide_ipv4, wide_ipv6,
};

pub const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
static FR_OFF_FLOWS: Array<FlowEntry, OFFLOADED_MAX, MMAPABLE> = Array::new();
#[btf_map]
static FR_OFF_NAT: Array<Rewrite, OFFLOADED_MAX, MMAPABLE> = Array::new();
#[btf_map]
static FR_OFF_HOPS: Array<NextHop, NEXT_HOPS_MAX, MMAPABLE> = Array::new();
#[btf_map]
static FR_OFF_EPOCHS: Array<Epochs, 1, MMAPABLE> = Array::new();
#[btf_map]
static FR_TX_PORTS: DevMap<TX_PORTS_MAX> = DevMap::new();

/// Extension headers of IPv6 (`wire/ipv6_ext.rs`): hop-by-hop options, routing, fragment, destination options,
/// mobility, HIP, Shim6; AH.
const EXTENSIONS: [u8; 8] = [0, 43, 44, 60, 135, 139, 140, IPPROTO_AH];

/// Length of a tag, and the offset of the first one, octets.
const TAG: usize = 4;
const TAGS_AT: usize = 12;

/// Forwards an IPv4 packet. `None`: it is not of an offloaded flow, or it has to be treated as if it were not. Without a
/// `flow`, what is done with it depends on its addresses only.
#[inline(always)]
pub fn ipv4(
    ctx: &XdpContext,
    settings: &Settings<'_>,
    number: u16,
    ip: &Ipv4Hdr,
    flow: Option<&Flow>,
) -> Option<Reason> {
    let is_wide = flow.is_none();
    let found = match flow {
        Some(flow) => Found::of::<true>(flow, number)?,
        None => Found::wide::<true>(wide_ipv4(ip), PREFIX4, number)?,
    };
    let [ttl, protocol] = ip.ttl_protocol;
    let length = u16::from_be(ip.total_length);
    let octets = length.checked_sub(size_of::<Ipv4Hdr>() as u16)?;
    let is_plain = ip.version_ihl_tos[0] == IPV4_NO_OPTIONS
        && ip.fragment & IPV4_FRAGMENT.to_be() == 0
        && has_valid_check(ip);
    if !is_plain || ttl <= 1 || length > found.mtu() {
        return None;
    }
    let l4 = settings.l3() + size_of::<Ipv4Hdr>();
    let seqs = if is_wide { None } else { segment(ctx, l4, protocol, octets)? };
    let is_rewritten = found.has_rewrite(is_wide)?;
    // Not an `Option`, see `decide_ipv4`.
    let rewrite = if is_rewritten { found.rewrite4() } else { Rewrite4 { addresses: 0, rest: 0 } };
    let destination = if is_rewritten { rewrite.destination() } else { ip.destination };
    let hop = Hop::read(found.next_hop)?;
    let epochs = FR_OFF_EPOCHS.get_ptr(0)?;
    let [to_short, to_long] = epochs4(destination.map(u16::from_be));
    let [from_short, from_long] = epochs4(ip.source.map(u16::from_be));
    // SAFETY: positions that the library makes are inside the arrays.
    let sum = unsafe {
        global(epochs)
            .wrapping_add(epoch((&raw const (*epochs).v4_short).cast(), to_short))
            .wrapping_add(epoch((&raw const (*epochs).v4_long).cast(), to_long))
            .wrapping_add(epoch((&raw const (*epochs).v4_short).cast(), from_short))
            .wrapping_add(epoch((&raw const (*epochs).v4_long).cast(), from_long))
    };
    if sum.wrapping_add(hop.epoch) != found.basis || !found.is_still_marked() {
        return None;
    }
    let checked = Checked {
        protocol,
        octets,
        is_tracked: !is_wide,
        is_rewritten,
        delta: transport_delta(rewrite.rest),
        is_maybe_partial: settings.port.flags & PortSettings::PARTIAL_CSUM != 0,
    };
    let check = check_for(ctx, l4, &checked, || {
        u64::from(ip.source[0])
            + u64::from(ip.source[1])
            + u64::from(ip.destination[0])
            + u64::from(ip.destination[1])
    })?;
    if let Some(reason) = stalled(settings.queue) {
        return Some(reason);
    }
    let frame_length = settings.l3() + usize::from(length);
    let padding = hop.redirect(ctx, frame_length)?;
    // After this `ip` is not valid.
    let is_written = trim(ctx, padding, frame_length)
        .and_then(|()| hop.write(ctx, &settings.tags))
        .and_then(|()| write_ipv4(ctx, hop.l3(), check, is_rewritten, rewrite));
    if is_written.is_none() {
        return Some(Reason::SteerIpv4);
    }
    found.count(length, seqs);
    Some(Reason::OffloadIpv4)
}

/// Writes the headers of an IPv4 packet, of which the first is at `l3`.
#[inline(always)]
fn write_ipv4(
    ctx: &XdpContext,
    l3: usize,
    check: NewCheck,
    is_rewritten: bool,
    rewrite: Rewrite4,
) -> Option<()> {
    let ip = header_mut::<Ipv4Hdr>(ctx, l3)?;
    check.write(ctx, l3 + size_of::<Ipv4Hdr>(), is_rewritten, rewrite.rest)?;
    // SAFETY: a pointer into the frame.
    unsafe {
        let ip = &mut *ip;
        ip.check = decrease_ttl(ip.check);
        ip.ttl_protocol[0] -= 1;
        if is_rewritten {
            ip.check = !fold(u64::from(!ip.check) + rewrite.header_delta());
            ip.source = halves(rewrite.addresses as u32);
            ip.destination = rewrite.destination();
        }
    }
    Some(())
}

/// Forwards an IPv6 packet, in the same way.
#[inline(always)]
pub fn ipv6(
    ctx: &XdpContext,
    settings: &Settings<'_>,
    number: u16,
    ip: &Ipv6Hdr,
    flow: Option<&Flow>,
) -> Option<Reason> {
    let is_wide = flow.is_none();
    let found = match flow {
        Some(flow) => Found::of::<false>(flow, number)?,
        None => Found::wide::<false>(wide_ipv6(ip), PREFIX6, number)?,
    };
    let [protocol, hop_limit] = ip.next_header_hop_limit;
    let octets = u16::from_be(ip.payload_length);
    let length = octets.checked_add(size_of::<Ipv6Hdr>() as u16)?;
    let is_plain = u16::from_be(ip.before[0]) >> 12 == 6 && octets != 0 && !is_extension(protocol);
    if !is_plain || hop_limit <= 1 || length > found.mtu() {
        return None;
    }
    let l4 = settings.l3() + size_of::<Ipv6Hdr>();
    let seqs = if is_wide { None } else { segment(ctx, l4, protocol, octets)? };
    let rewrite = match found.has_rewrite(is_wide)? {
        true => Some(found.rewrite6()?),
        false => None,
    };
    // Not in the `Option`, see `decide_ipv4`.
    let rest = rewrite.as_ref().map_or(0, |rewrite| rewrite.rest);
    let is_rewritten = rewrite.is_some();
    let to = rewrite.as_ref().map_or(
        [ip.destination[0], ip.destination[1], ip.destination[2]],
        |rewrite| {
            let [first, second, third, _] = quarters(rewrite.destination[0]);
            [first, second, third]
        },
    );
    let hop = Hop::read(found.next_hop)?;
    let epochs = FR_OFF_EPOCHS.get_ptr(0)?;
    let [to_short, to_long] = epochs6(to.map(u16::from_be));
    let from = [ip.source[0], ip.source[1], ip.source[2]];
    let [from_short, from_long] = epochs6(from.map(u16::from_be));
    // SAFETY: positions that the library makes are inside the arrays.
    let sum = unsafe {
        global(epochs)
            .wrapping_add(epoch((&raw const (*epochs).v6_short).cast(), to_short))
            .wrapping_add(epoch((&raw const (*epochs).v6_long).cast(), to_long))
            .wrapping_add(epoch((&raw const (*epochs).v6_short).cast(), from_short))
            .wrapping_add(epoch((&raw const (*epochs).v6_long).cast(), from_long))
    };
    if sum.wrapping_add(hop.epoch) != found.basis || !found.is_still_marked() {
        return None;
    }
    let checked = Checked {
        protocol,
        octets,
        is_tracked: !is_wide,
        is_rewritten,
        delta: transport_delta(rest),
        is_maybe_partial: settings.port.flags & PortSettings::PARTIAL_CSUM != 0,
    };
    let check = check_for(ctx, l4, &checked, || {
        let words = ip.source.iter().chain(&ip.destination);
        words.fold(0, |sum, word| sum + u64::from(*word))
    })?;
    if let Some(reason) = stalled(settings.queue) {
        return Some(reason);
    }
    let frame_length = settings.l3() + usize::from(length);
    let padding = hop.redirect(ctx, frame_length)?;
    // After this `ip` is not valid.
    let is_written = trim(ctx, padding, frame_length)
        .and_then(|()| hop.write(ctx, &settings.tags))
        .and_then(|()| write_ipv6(ctx, hop.l3(), check, rewrite.as_ref(), rest));
    if is_written.is_none() {
        return Some(Reason::SteerIpv6);
    }
    found.count(length, seqs);
    Some(Reason::OffloadIpv6)
}

/// Writes the headers of an IPv6 packet, of which the first is at `l3`.
#[inline(always)]
fn write_ipv6(
    ctx: &XdpContext,
    l3: usize,
    check: NewCheck,
    rewrite: Option<&Rewrite6>,
    rest: u64,
) -> Option<()> {
    let ip = header_mut::<Ipv6Hdr>(ctx, l3)?;
    check.write(ctx, l3 + size_of::<Ipv6Hdr>(), rewrite.is_some(), rest)?;
    // SAFETY: a pointer into the frame.
    unsafe {
        let ip = &mut *ip;
        ip.next_header_hop_limit[1] -= 1;
        if let Some(rewrite) = rewrite {
            ip.source = ipv6_words(rewrite.source);
            ip.destination = ipv6_words(rewrite.destination);
        }
    }
    Some(())
}

#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    EXTENSIONS.contains(&protocol)
}

/// The words of an entry's key that are its rewrite, of IPv4.
const REWRITE4: [usize; 2] = [1, 3];

/// A flow's entry, as it was read.
struct Found {
    entry: *mut FlowEntry,
    number: u32,
    /// Where its mark is.
    slot: *const u32,
    mark: u32,
    basis: u32,
    next_hop: u16,
    mtu_flags: u16,
}

/// The first 64 bits of an address that are its prefix ([`Width::PREFIX4`], [`Width::PREFIX6`]), in memory order.
const PREFIX4: u64 = (1 << Width::PREFIX4) - 1;
const PREFIX6: u64 = (1 << Width::PREFIX6) - 1;

impl Found {
    /// The entry of packets with these addresses that arrive on the interface, the widest first.
    #[inline(always)]
    fn wide<const IPV4: bool>(words: FlowWords, prefix: u64, number: u16) -> Option<Found> {
        let epochs = FR_OFF_EPOCHS.get_ptr(0)?;
        // SAFETY: inside the map's value; userspace writes whole words at any time.
        let widths = unsafe { (&raw const (*epochs).widths).read_volatile() };
        let [from0, from1, to0, to1, last] = words;
        // Each interface has entries of its own.
        let last = last | u64::from(number) << 48;
        let kind = |width: Width| last | u64::from(width.protocol()) << 32;
        if widths & Width::Prefixes.bit() != 0 {
            let words = [from0 & prefix, 0, to0 & prefix, 0, kind(Width::Prefixes)];
            if let Some(found) = Found::of::<IPV4>(&Flow::new(words), number) {
                return Some(found);
            }
        }
        if widths & Width::ToPrefix.bit() != 0 {
            let words = [from0, from1, to0 & prefix, 0, kind(Width::ToPrefix)];
            if let Some(found) = Found::of::<IPV4>(&Flow::new(words), number) {
                return Some(found);
            }
        }
        if widths & Width::Addresses.bit() == 0 {
            return None;
        }
        Found::of::<IPV4>(&Flow::new([from0, from1, to0, to1, last]), number)
    }

    /// The entry of packets with this key that arrive on the interface.
    #[inline(always)]
    fn of<const IPV4: bool>(flow: &Flow, interface: u16) -> Option<Found> {
        let Slot { at: slot, number, mark } = marks::find(flow.hash)?;
        let entry = FR_OFF_FLOWS.get_ptr_mut(number)?;
        let mut differ = 0;
        for (at, word) in flow.words.iter().enumerate() {
            let number = if at == flow.words.len() - 1 { u64::from(interface) << 48 } else { 0 };
            // Of IPv4 these are not of the key.
            if IPV4 && (at == REWRITE4[0] || at == REWRITE4[1]) {
                continue;
            }
            // SAFETY: inside the map's value; userspace writes whole words at any time.
            let of_entry =
                unsafe { (&raw const (*entry).key).cast::<u64>().add(at).read_volatile() };
            differ |= of_entry ^ (*word | number);
        }
        if differ != 0 {
            return None;
        }
        // SAFETY: as above.
        unsafe {
            Some(Found {
                entry,
                number,
                slot,
                mark,
                basis: (&raw const (*entry).basis).read_volatile(),
                next_hop: (&raw const (*entry).next_hop).read_volatile(),
                mtu_flags: (&raw const (*entry).mtu).read_volatile(),
            })
        }
    }

    #[inline(always)]
    fn mtu(&self) -> u16 {
        self.mtu_flags & !FlowEntry::HAS_REWRITE
    }

    /// Whether packets are rewritten. `None`: they cannot be, without ports in the key.
    #[inline(always)]
    fn has_rewrite(&self, is_wide: bool) -> Option<bool> {
        let has_rewrite = self.mtu_flags & FlowEntry::HAS_REWRITE != 0;
        if has_rewrite && is_wide { None } else { Some(has_rewrite) }
    }

    /// How packets of IPv4 are rewritten.
    #[inline(always)]
    fn rewrite4(&self) -> Rewrite4 {
        let word = |at: usize| {
            // SAFETY: inside the map's value; userspace writes whole words at any time.
            unsafe { (&raw const (*self.entry).key).cast::<u64>().add(at).read_volatile() }
        };
        Rewrite4 { addresses: word(REWRITE4[0]), rest: word(REWRITE4[1]) }
    }

    /// How packets of IPv6 are rewritten.
    #[inline(always)]
    fn rewrite6(&self) -> Option<Rewrite6> {
        FR_OFF_NAT.get_ptr(self.number).map(Rewrite6::read)
    }

    /// Whether what was read from the entry was the flow's: it was not removed meanwhile.
    #[inline(always)]
    fn is_still_marked(&self) -> bool {
        // SAFETY: inside the map's value.
        unsafe { self.slot.read_volatile() == self.mark }
    }

    /// Counts a packet of `length` octets; `seqs`: of TCP, see [`FlowEntry::seqs`].
    #[inline(always)]
    fn count(&self, length: u16, seqs: Option<u64>) {
        // SAFETY: inside the map's value, aligned to 8 octets; other CPUs and userspace access whole words.
        unsafe {
            let count = (&raw mut (*self.entry).count);
            let packet = FlowEntry::ONE_PACKET + u64::from(length);
            // The target has no atomic operations in the standard library: it has no compare and exchange before v3.
            asm!("lock *(u64 *)({} + 0) += {}", in(reg) count, in(reg) packet, options(nostack));
            if let Some(seqs) = seqs {
                (&raw mut (*self.entry).seqs).write_volatile(seqs);
            }
        }
    }
}

/// A [`Rewrite`] of IPv4 as [`Rewrite::inline4`]. As whole words it needs less of the stack, of which there are 512
/// octets.
#[derive(Clone, Copy)]
struct Rewrite4 {
    /// Source and destination.
    addresses: u64,
    /// Ports, header_delta, transport_delta.
    rest: u64,
}

impl Rewrite4 {
    #[inline(always)]
    fn destination(self) -> Ipv4Words {
        halves((self.addresses >> 32) as u32)
    }

    #[inline(always)]
    fn header_delta(self) -> u64 {
        self.rest >> 32 & 0xffff
    }
}

/// [`Rewrite::transport_delta`] of the word after the addresses.
#[inline(always)]
fn transport_delta(rest: u64) -> u16 {
    (rest >> 48) as u16
}

/// A [`Rewrite`] of IPv6 in whole words, as it was read.
struct Rewrite6 {
    source: [u64; 2],
    destination: [u64; 2],
    /// As in [`Rewrite4`].
    rest: u64,
}

impl Rewrite6 {
    #[inline(always)]
    fn read(rewrite: *const Rewrite) -> Self {
        let rewrite = rewrite.cast::<u64>();
        let word = |at: usize| {
            // SAFETY: inside the map's value, which is aligned; userspace writes whole words at any time.
            unsafe { rewrite.add(at).read_volatile() }
        };
        Rewrite6 { source: [word(0), word(1)], destination: [word(2), word(3)], rest: word(4) }
    }
}

/// A word as 16-bit words in memory order.
#[inline(always)]
fn quarters(word: u64) -> [u16; 4] {
    [word as u16, (word >> 16) as u16, (word >> 32) as u16, (word >> 48) as u16]
}

#[inline(always)]
fn ipv6_words([high, low]: [u64; 2]) -> Ipv6Words {
    let ([a, b, c, d], [e, f, g, h]) = (quarters(high), quarters(low));
    [a, b, c, d, e, f, g, h]
}

/// A [`NextHop`]. While there are entries that lead to it, and until those have rested, nothing but its epoch is written:
/// the rest may be read when it is needed, and takes no room on the stack.
struct Hop {
    at: *const NextHop,
    epoch: u32,
}

impl Hop {
    #[inline(always)]
    fn read(number: u16) -> Option<Hop> {
        let at = FR_OFF_HOPS.get_ptr(u32::from(number))?;
        // SAFETY: inside the map's value; userspace writes whole words at any time.
        let epoch = unsafe { (&raw const (*at).epoch).read_volatile() };
        Some(Hop { at, epoch })
    }

    /// TPID and VID of a tag: see [`NextHop::tags`].
    #[inline(always)]
    fn tag(&self, n: usize) -> u32 {
        // SAFETY: as in `read`; the tags are two aligned words.
        unsafe { (&raw const (*self.at).tags).cast::<u32>().add(n).read_volatile() }
    }

    /// Three 16-bit words of destination and source address, from the `from`th on.
    #[inline(always)]
    fn mac(&self, from: usize) -> MacWords {
        let words = self.at.cast::<u16>();
        // SAFETY: as in `read`; the addresses are the first six words.
        [0, 1, 2].map(|word| unsafe { words.add(from + word).read_volatile() })
    }

    #[inline(always)]
    fn port(&self) -> u32 {
        // SAFETY: as in `read`.
        unsafe { (&raw const (*self.at).port).read_volatile() }
    }

    /// Makes the port the one by which the frame leaves if the program returns XDP_REDIRECT; the frame is not changed.
    /// `length`: without padding, octets. Returns how much padding there is. `None`: there is no such port, or the
    /// frame is shorter.
    #[inline(always)]
    fn redirect(&self, ctx: &XdpContext, length: usize) -> Option<i32> {
        // Otherwise the compiler adds the length to an address, which verifiers accept only if they know its bounds.
        let octets = opaque((ctx.data_end() - ctx.data()) as u64);
        let padding = octets as i64 - length as i64;
        if padding < 0 {
            return None;
        }
        FR_TX_PORTS.redirect(self.port(), 0).ok()?;
        Some(padding as i32)
    }

    /// Length of the tags, octets.
    #[inline(always)]
    fn tags_octets(&self) -> usize {
        if self.tag(0) == 0 {
            0
        } else if self.tag(1) == 0 {
            TAG
        } else {
            2 * TAG
        }
    }

    /// Offset of the IP header in frames to it.
    #[inline(always)]
    fn l3(&self) -> usize {
        size_of::<EthHdr>() + self.tags_octets()
    }

    /// Writes addresses and tags, instead of the `received` tags, in front of the EtherType of the packet. `None`:
    /// nothing was written, there is no room.
    #[inline(always)]
    fn write(&self, ctx: &XdpContext, received: &Tags) -> Option<()> {
        let octets = self.tags_octets();
        let more = octets as i32 - received.octets as i32;
        // SAFETY: the context of the program; pointers into the frame are not used after this.
        if more != 0 && unsafe { bpf_xdp_adjust_head(ctx.ctx, -more) } != 0 {
            return None;
        }
        let eth = header_mut::<EthHdr>(ctx, 0)?;
        // SAFETY: in the frame; in front of the packet there is as much room as the tags have octets.
        unsafe {
            (*eth).destination = self.mac(0);
            (*eth).source = self.mac(3);
            if octets != 0 {
                let [tpid, vid] = halves(self.tag(0));
                *header_mut::<[u16; 2]>(ctx, TAGS_AT)? = [tpid, vid | received.priorities[0]];
            }
            if octets > TAG {
                let [tpid, vid] = halves(self.tag(1));
                *header_mut::<[u16; 2]>(ctx, TAGS_AT + TAG)? = [tpid, vid | received.priorities[1]];
            }
        }
        Some(())
    }
}

/// A word as 16-bit words in memory order.
#[inline(always)]
pub fn halves(word: u32) -> [u16; 2] {
    [word as u16, (word >> 16) as u16]
}

/// Trims padding. `length`: without it, octets. `None`: not all of it is in the first buffer of the frame.
#[inline(always)]
fn trim(ctx: &XdpContext, padding: i32, length: usize) -> Option<()> {
    if padding == 0 {
        return Some(());
    }
    // SAFETY: the context of the program; pointers into the frame are not used after this.
    let failed = unsafe { bpf_xdp_adjust_tail(ctx.ctx, -padding) };
    (failed == 0 && ctx.data_end() - ctx.data() == length).then_some(())
}

/// # Safety
/// The pointer is to the map's value.
#[inline(always)]
unsafe fn global(epochs: *const Epochs) -> u32 {
    // SAFETY: as the caller says; userspace writes whole words at any time.
    unsafe { (&raw const (*epochs).global).read_volatile() }
}

/// # Safety
/// `at` is inside the array.
#[inline(always)]
unsafe fn epoch(epochs: *const u32, at: usize) -> u32 {
    // SAFETY: as the caller says; userspace writes whole words at any time.
    unsafe { epochs.add(at).read_volatile() }
}

/// Whether connection tracking takes a packet of `octets` octets after its IP header for valid, and it neither opens
/// nor closes a connection (`Segment::of` in the forwarder). Returns [`FlowEntry::seqs`] for TCP.
#[inline(always)]
fn segment(ctx: &XdpContext, l4: usize, protocol: u8, octets: u16) -> Option<Option<u64>> {
    if protocol == IPPROTO_UDP {
        let udp = header::<UdpHdr>(ctx, l4)?;
        let length = u16::from_be(udp.length);
        let is_valid = usize::from(length) >= size_of::<UdpHdr>() && length <= octets;
        return is_valid.then_some(None);
    }
    if protocol != IPPROTO_TCP {
        // Its key has been found. The checksum of echo is verified later.
        return Some(None);
    }
    let tcp = header::<TcpHdr>(ctx, l4)?;
    let header_octets = u16::from(tcp.offset_flags[0] >> 4) * 4;
    let is_valid = usize::from(header_octets) >= size_of::<TcpHdr>() && header_octets <= octets;
    let flags = tcp.offset_flags[1] & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK);
    if !is_valid || flags != TCP_ACK {
        return None;
    }
    let [seq, ack] = [0, 2].map(|at| {
        let words = [tcp.sequence_ack[at], tcp.sequence_ack[at + 1]].map(u16::from_be);
        u32::from(words[0]) << 16 | u32::from(words[1])
    });
    let after = seq.wrapping_add(u32::from(octets - header_octets));
    Some(Some(u64::from(ack) | u64::from(after) << 32))
}

/// Whether the checksum of a header without options is valid.
#[inline(always)]
fn has_valid_check(ip: &Ipv4Hdr) -> bool {
    let words = [
        u16::from_ne_bytes(ip.version_ihl_tos),
        ip.total_length,
        ip.id,
        ip.fragment,
        u16::from_ne_bytes(ip.ttl_protocol),
        ip.check,
        ip.source[0],
        ip.source[1],
        ip.destination[0],
        ip.destination[1],
    ];
    fold(words.iter().fold(0, |sum, word| sum + u64::from(*word))) == 0xffff
}

/// `ip_decrease_ttl`: the checksum after the TTL was decremented.
#[inline(always)]
fn decrease_ttl(check: u16) -> u16 {
    let sum = u32::from(u16::from_be(check)) + 0x0100;
    ((sum + u32::from(sum >= 0xffff)) as u16).to_be()
}

/// The same number, of which the compiler knows nothing.
#[inline(always)]
pub fn opaque(mut value: u64) -> u64 {
    // SAFETY: an instruction that has no other effect.
    unsafe { asm!("{} += 0", inout(reg) value, options(pure, nomem, nostack)) };
    value
}

/// As [`header`], to write it.
#[inline(always)]
pub fn header_mut<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
}
