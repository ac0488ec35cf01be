//! IPv4 output behind POST_ROUTING, and fragmentation (RFC 791 §2.3, RFC 1812 §4.2.2.7):
//! `ip_finish_output` and `ip_do_fragment` of the kernel, by its slow path, so that sizes are the
//! kernel's.
//!
//! A fragment may itself be fragmented. Every fragment but the last of a packet is a multiple of
//! eight octets; options without the copied flag go with the first one alone.

use std::ops::Range;

use super::Ctx;
use super::csum_partial::skb_checksum_help;
use super::dst::Dst;
use super::ip_options::ip_options_fragment;
use super::ip_output::finish_output2;
use super::post_routing::PostRouted;
use crate::skb::{FRAME_SIZE, HEADROOM, MAX_PACKET, NoRoom, SkBuff};
use crate::stats::{DropReason, Mib};
use crate::wire::EtherType;
use crate::wire::ipv4::{HEADER_LEN_MAX, HEADER_LEN_MIN, Ipv4Packet};

/// The packet to be cut.
struct Whole {
    header: [u8; HEADER_LEN_MAX],
    header_len: usize,
    payload_len: usize,
    /// Where its payload lies in that of the packet it may be a fragment of, octets.
    offset: usize,
    more_frags: bool,
    /// Most payload of one fragment.
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
        return ctx.drop_skb(skb, DropReason::FragFailed);
    };
    let mut done = 0;
    while done < whole.payload_len {
        let Some((fragment, len)) = next_fragment(&skb, &whole, done, ctx) else {
            ctx.stats.mib(Mib::IpFragFails);
            return ctx.drop_skb(skb, DropReason::FragFailed);
        };
        if whole.offset + done == 0 {
            // Once, on the copy of the header that the rest is made from.
            ip_options_fragment(&mut whole.header[HEADER_LEN_MIN..whole.header_len]);
        }
        done += len;
        ctx.stats.made.inc();
        ctx.stats.mib(Mib::IpFragCreates);
        let routed = routed.clone_for_fragment(&fragment);
        finish_output2(fragment, EtherType::IPV4, dst, &routed, ctx);
    }
    ctx.stats.fragmented.inc();
    ctx.stats.mib(Mib::IpFragOKs);
    ctx.consume_skb(skb);
}

/// Whether the packet can be cut, and how many frames its fragments take at most.
fn measure(skb: &SkBuff, mtu: u32) -> Option<(Whole, usize)> {
    let packet = skb.network_header();
    let ipv4 = Ipv4Packet::new_checked(packet).ok()?;
    let header_len = ipv4.header_len();
    let payload_len = (packet.len() + skb.data_len()).checked_sub(header_len)?;
    let offset = usize::from(ipv4.frag_offset());
    let room = (mtu as usize).checked_sub(header_len).filter(|&room| room >= 8)?;
    // ip_forward has handed these back; an offset beyond 16 bits cannot be written.
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

/// `ip_frag_next`: the fragment whose payload starts `done` octets into the whole one, and how much
/// of it there is.
fn next_fragment(
    skb: &SkBuff,
    whole: &Whole,
    done: usize,
    ctx: &mut Ctx<'_>,
) -> Option<(SkBuff, usize)> {
    let left = whole.payload_len - done;
    // The last one may end in the middle of eight octets, and so use room that others cannot.
    let len = if left <= whole.room { left } else { whole.room & !7 };
    let mut fragment = SkBuff::alloc_skb(ctx.pool, HEADROOM)?;
    (fragment.port, fragment.iif, fragment.mark) = (skb.port, skb.iif, skb.mark);
    fragment.tstamp_ns = skb.tstamp_ns;
    // The packet has left when its last fragment has.
    fragment.timed = skb.timed && len == left;
    let filled = fill(&mut fragment, skb, whole, done, len);
    if filled.and_then(|payload| copy_payload(&mut fragment, skb, payload, ctx)).is_err() {
        ctx.consume_skb(fragment);
        return None;
    }
    Some((fragment, len))
}

/// Writes link-layer and IP header; returns which octets of the packet are the payload.
fn fill(
    fragment: &mut SkBuff,
    skb: &SkBuff,
    whole: &Whole,
    done: usize,
    len: usize,
) -> Result<Range<usize>, NoRoom> {
    // With the tags that it came with, whose priority is kept.
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

/// Of a packet in several frames, too, and into as many as the fragment takes.
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
