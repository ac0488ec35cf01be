//! IPv4 output after POST_ROUTING, and fragmentation (RFC 791 §2.3, RFC 1812 §4.2.2.7):
//! `ip_finish_output` and the slow path of `ip_do_fragment` of the kernel, with the kernel's fragment
//! sizes.
//!
//! A fragment may itself be fragmented. The payload of every fragment but the last is a multiple of eight
//! octets; options without the copied flag go into the first one only.

use std::ops::Range;

use super::Ctx;
use super::csum_partial::skb_checksum_help;
use super::dst::Dst;
use super::ip_options::ip_options_fragment;
use super::ip_output::finish_output2;
use super::post_routing::PostRouted;
use crate::skb::{FRAME_SIZE, HEADROOM, MAX_PACKET, NoRoom, SkBuff};
use crate::stats::{DropReason, Mib};
use crate::trace::FinalDisposition;
use crate::wire::EtherType;
use crate::wire::ipv4::{HEADER_LEN_MAX, HEADER_LEN_MIN, Ipv4Packet};

/// The packet to be fragmented.
struct Whole {
    header: [u8; HEADER_LEN_MAX],
    header_len: usize,
    payload_len: usize,
    /// Offset of its payload in the original packet, if it is itself a fragment, octets.
    offset: usize,
    more_frags: bool,
    /// Maximum payload of one fragment, octets.
    room: usize,
}

/// `ip_finish_output`: sends a packet, in fragments if it is longer than the MTU.
pub(super) fn ip_finish_output(skb: SkBuff, dst: &Dst<'_>, routed: &PostRouted, ctx: &mut Ctx<'_>) {
    if !dst.fits(&skb) {
        return ip_fragment(skb, dst, routed, ctx);
    }
    finish_output2(skb, EtherType::IPV4, dst, routed, ctx);
}

/// `ip_fragment`: sends a packet in fragments. DF was checked in `ip_forward`.
#[cold]
fn ip_fragment(mut skb: SkBuff, dst: &Dst<'_>, routed: &PostRouted, ctx: &mut Ctx<'_>) {
    skb_checksum_help(&mut skb);
    let fragments = measure(&skb, dst.mtu);
    let affordable = fragments.as_ref().is_some_and(|(_, frames)| *frames <= ctx.pool.available());
    let Some((mut whole, _)) = fragments.filter(|_| affordable) else {
        ctx.stats.mib(Mib::IpFragFails);
        return ctx.drop_output(skb, DropReason::FragFailed);
    };
    let (mut done, mut count) = (0, 0);
    while done < whole.payload_len {
        let Some((fragment, len)) = next_fragment(&skb, &whole, done, ctx) else {
            ctx.stats.mib(Mib::IpFragFails);
            return ctx.drop_output(skb, DropReason::FragFailed);
        };
        if whole.offset + done == 0 {
            // Applied once, to the copy of the header that later fragments use.
            ip_options_fragment(&mut whole.header[HEADER_LEN_MIN..whole.header_len]);
        }
        done += len;
        count += 1;
        ctx.stats.made.inc();
        ctx.stats.mib(Mib::IpFragCreates);
        let routed = routed.clone_for_fragment(&fragment);
        finish_output2(fragment, EtherType::IPV4, dst, &routed, ctx);
    }
    ctx.stats.fragmented.inc();
    ctx.out.trace.note(FinalDisposition::Fragmented { fragments: count, oif: dst.dev.ifindex });
    ctx.stats.mib(Mib::IpFragOKs);
    ctx.consume_skb(skb);
}

/// Whether the packet can be fragmented, and the maximum number of frames of its fragments.
fn measure(skb: &SkBuff, mtu: u32) -> Option<(Whole, usize)> {
    let packet = skb.network_header();
    let ipv4 = Ipv4Packet::new_checked(packet).ok()?;
    let header_len = ipv4.header_len();
    let payload_len = (packet.len() + skb.data_len()).checked_sub(header_len)?;
    let offset = usize::from(ipv4.frag_offset());
    let room = (mtu as usize).checked_sub(header_len).filter(|&room| room >= 8)?;
    // ip_forward has punted these; an offset beyond 16 bits cannot be written.
    if offset + payload_len > usize::from(u16::MAX) {
        return None;
    }
    let mut header = [0; HEADER_LEN_MAX];
    header[..header_len].copy_from_slice(ipv4.header());
    let more_frags = ipv4.more_frags();
    let whole = Whole { header, header_len, payload_len, offset, more_frags, room };
    let longest = skb.network_offset() + header_len + room.min(payload_len);
    let frames = 1 + longest.saturating_sub(MAX_PACKET).div_ceil(FRAME_SIZE);
    Some((whole, payload_len.div_ceil(room & !7) * frames))
}

/// `ip_frag_next`: the fragment whose payload starts `done` octets into the whole packet's, and its
/// payload length.
fn next_fragment(
    skb: &SkBuff,
    whole: &Whole,
    done: usize,
    ctx: &mut Ctx<'_>,
) -> Option<(SkBuff, usize)> {
    let left = whole.payload_len - done;
    // The last fragment need not be a multiple of eight, so it can use room that others cannot.
    let len = if left <= whole.room { left } else { whole.room & !7 };
    let mut fragment = SkBuff::alloc_skb(ctx.pool, HEADROOM)?;
    (fragment.port, fragment.iif, fragment.mark) = (skb.port, skb.iif, skb.mark);
    fragment.tstamp_ns = skb.tstamp_ns;
    // The packet counts as sent when its last fragment is.
    fragment.timed = skb.timed && len == left;
    let filled = fill(&mut fragment, skb, whole, done, len);
    if filled.and_then(|payload| copy_payload(&mut fragment, skb, payload, ctx)).is_err() {
        ctx.consume_skb(fragment);
        return None;
    }
    Some((fragment, len))
}

/// Writes link-layer and IP header; returns the range of the payload in the original packet.
fn fill(
    fragment: &mut SkBuff,
    skb: &SkBuff,
    whole: &Whole,
    done: usize,
    len: usize,
) -> Result<Range<usize>, NoRoom> {
    // Keeps the received tags, whose priority is used on output.
    let link_layer = skb.network_offset();
    let octets = fragment.put(link_layer + whole.header_len)?;
    let (mac, header) = octets.split_at_mut(link_layer);
    let mac_source = skb.mac_header().get(..link_layer).unwrap_or(&[]);
    if mac_source.len() != link_layer {
        return Err(NoRoom { wanted: link_layer, available: mac_source.len() });
    }
    mac.copy_from_slice(mac_source);
    header.copy_from_slice(&whole.header[..whole.header_len]);
    let mut ipv4 = Ipv4Packet::new_unchecked(header);
    let more_frags = done + len < whole.payload_len || whole.more_frags;
    ipv4.set_frag(false, more_frags, (whole.offset + done) as u16);
    ipv4.set_total_len((whole.header_len + len) as u16);
    ipv4.fill_checksum();
    fragment.reset_mac_header();
    fragment.set_network_header(link_layer);
    fragment.set_transport_header(link_layer + whole.header_len);
    let from = skb.network_offset() + whole.header_len + done;
    Ok(from..from + len)
}

/// Copies payload; source and fragment may both have several frames.
fn copy_payload(
    fragment: &mut SkBuff,
    skb: &SkBuff,
    payload: Range<usize>,
    ctx: &mut Ctx<'_>,
) -> Result<(), NoRoom> {
    let (wanted, headers) = (payload.len(), fragment.len());
    for slice in skb.slices(payload.start, wanted) {
        fragment.append(slice, ctx.pool)?;
    }
    let available = fragment.len() - headers;
    if available < wanted { Err(NoRoom { wanted, available }) } else { Ok(()) }
}
