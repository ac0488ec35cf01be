//! `SkBuff`: the kernel's `sk_buff` API over UMEM frames.
//!
//! ```text
//!  head            data                    tail            end
//!   | headroom      | the packet            | tailroom      |
//!   0 ……………………… mac_header  network_header  transport_header … FRAME_SIZE
//! ```
//! `head` is 0 and `end` is [`FRAME_SIZE`]; every offset is in octets from `head`. As in the kernel,
//! [`SkBuff::put`] and [`SkBuff::push`] grow the packet, [`SkBuff::pull`] and [`SkBuff::trim`] shrink it;
//! unlike in the kernel, exceeding the available room is an error, not a panic. There is no cloning: each
//! packet has one owner.
//!
//! A packet that does not fit into one frame continues in frags, one frame each, as in the kernel. The
//! first frame is its head: [`SkBuff::data`] and the header accessors return octets of the head only,
//! [`SkBuff::len`] counts all, and [`SkBuff::slices`] and [`SkBuff::copy_bits`] read all.

use std::ops::Range;

use super::frag::{Frags, Link, Piece};
use super::{FRAME_SIZE, Frame, FramePool, HEADROOM};

/// A header or the packet would exceed its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} octets requested, {available} available in the frame")]
pub struct NoRoom {
    /// Octets requested.
    pub wanted: usize,
    /// Octets available.
    pub available: usize,
}

/// State of the transport checksum, as `skb->ip_summed` in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IpSummed {
    /// Unknown: the packet's checksum is used as it is.
    #[default]
    None,
    /// The checksum field holds only the pseudo-header sum; it must be completed before the packet is
    /// sent.
    Partial,
    /// The same of a packet inside tunnels, or of SCTP, whose field holds 0.
    PartialOther {
        /// The number of tunnels.
        depth: u8,
    },
}

/// `skb->pkt_type`, as far as a router distinguishes it: the destination of the link-layer header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PktType {
    /// PACKET_HOST: to us.
    #[default]
    Host,
    /// PACKET_MULTICAST, PACKET_BROADCAST: to a group.
    Multicast,
}

/// One packet and its metadata.
#[derive(Debug)]
pub struct SkBuff {
    pub(super) frame: Frame,
    /// Further frames of the packet.
    pub(super) frags: Option<Link>,
    pub(super) data: u16,
    pub(super) tail: u16,
    mac_header: u16,
    network_header: u16,
    transport_header: u16,
    /// Index of the input port (among the worker's ports); for own packets, the port of the packet that
    /// they reply to.
    pub port: u16,
    /// `skb->skb_iif`: ifindex of the input interface; 0 for own packets.
    pub iif: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// State of the transport checksum.
    pub ip_summed: IpSummed,
    /// Whether the frame was addressed to us or to a group.
    pub pkt_type: PktType,
    /// Captures whose filters do not match the packet, however it is forwarded; one bit each.
    unmatched_captures: u8,
    /// Whether the packet's residence time is measured; `tstamp_ns` is set then.
    pub timed: bool,
    /// When the packet was taken from the RX ring, in nanoseconds of the clock for timed packets; for
    /// packets of a capture file, when they were captured; for own packets, when they were created. Else
    /// 0.
    pub tstamp_ns: u64,
}

/// No drop glue: packets are moved often, and each move would have to check.
const _: () = assert!(!std::mem::needs_drop::<SkBuff>());

/// Offsets are 16 bits wide.
const _: () = assert!(FRAME_SIZE <= u16::MAX as usize);

impl SkBuff {
    /// `alloc_skb` and `skb_reserve`: an empty packet with `headroom` octets free in front.
    /// `None` when the pool is empty or the headroom is more than a frame.
    pub fn alloc_skb(pool: &mut FramePool, headroom: usize) -> Option<SkBuff> {
        if headroom > FRAME_SIZE {
            return None;
        }
        // Cannot fail: the headroom was checked, and the packet is empty.
        SkBuff::receive(pool.alloc()?, headroom, 0).ok()
    }

    /// A packet as a driver received it: `len` octets at `offset` in the frame, starting with the
    /// link-layer header.
    ///
    /// # Errors
    /// Returns the frame when the packet would exceed it.
    #[inline]
    pub fn receive(frame: Frame, offset: usize, len: usize) -> Result<SkBuff, Frame> {
        if offset > FRAME_SIZE || len > FRAME_SIZE - offset {
            return Err(frame);
        }
        let (data, tail) = (offset as u16, (offset + len) as u16);
        Ok(SkBuff {
            frame,
            frags: None,
            data,
            tail,
            mac_header: data,
            network_header: data,
            transport_header: data,
            port: 0,
            iif: 0,
            mark: 0,
            ip_summed: IpSummed::None,
            pkt_type: PktType::Host,
            unmatched_captures: 0,
            timed: false,
            tstamp_ns: 0,
        })
    }

    /// Captures whose filters are known not to match the packet, one bit each.
    #[inline]
    pub fn unmatched_captures(&self) -> u8 {
        self.unmatched_captures
    }

    /// Records that the filters of `captures`, one bit each, do not match the packet, and will not after
    /// its TTL, checksum and link-layer addresses have been rewritten.
    #[inline]
    pub fn note_unmatched(&mut self, captures: u8) {
        self.unmatched_captures |= captures;
    }

    /// Makes captures apply their filters to the packet again. To be called before the packet is changed
    /// by more than plain forwarding (by a hook function, or its tags), or waits while captures may
    /// begin.
    #[inline]
    pub fn headers_may_change(&mut self) {
        self.unmatched_captures = 0;
    }

    /// Address of the head frame, which identifies the packet while it exists.
    #[inline]
    #[cfg(debug_assertions)]
    pub(crate) fn head_addr(&self) -> usize {
        self.frame.bytes().as_ptr().addr()
    }

    /// An empty packet over a frame, as `alloc_skb` makes it: data and tail at [`HEADROOM`].
    pub fn empty(frame: Frame) -> SkBuff {
        match SkBuff::receive(frame, HEADROOM, 0) {
            Ok(skb) => skb,
            Err(_) => unreachable!("HEADROOM < FRAME_SIZE"),
        }
    }

    /// A packet of these octets, link-layer header first, in as many frames as needed. `None`: too few
    /// are free, or it is longer than a packet may be.
    pub fn of_octets(pool: &mut FramePool, octets: &[u8]) -> Option<SkBuff> {
        let mut skb = SkBuff::alloc_skb(pool, HEADROOM)?;
        if skb.append(octets, pool).is_err() {
            pool.kfree_skb(skb);
            return None;
        }
        Some(skb)
    }

    /// Takes the packet apart into its head and its frags. If the frames are not used, call
    /// [`FramePool::kfree_skb`] instead.
    #[inline]
    pub fn into_frames(self) -> (Piece, Frags) {
        let (offset, len) = (self.data as usize, self.headlen());
        (Piece { frame: self.frame, offset, len }, Frags(self.frags))
    }

    /// `skb_reserve`: moves data and tail of an *empty* packet by `len` octets.
    ///
    /// # Errors
    /// [`NoRoom`] when the packet is not empty (nothing is available then) or the frame is exceeded.
    pub fn reserve(&mut self, len: usize) -> Result<(), NoRoom> {
        let available = if self.is_empty() { self.tailroom() } else { 0 };
        if len > available {
            return Err(NoRoom { wanted: len, available });
        }
        self.data += len as u16;
        self.tail = self.data;
        Ok(())
    }

    /// `skb_put`: `len` more octets at the end, returned for writing.
    ///
    /// # Errors
    /// [`NoRoom`] when the tailroom is smaller; a packet with frags has none.
    #[inline]
    pub fn put(&mut self, len: usize) -> Result<&mut [u8], NoRoom> {
        let available = self.tailroom();
        if len > available {
            return Err(NoRoom { wanted: len, available });
        }
        let at = self.tail as usize;
        self.tail += len as u16;
        Ok(&mut self.frame.bytes_mut()[at..at + len])
    }

    /// `skb_push`: `len` more octets in front, returned for writing.
    ///
    /// # Errors
    /// [`NoRoom`] when the headroom is smaller.
    #[inline]
    pub fn push(&mut self, len: usize) -> Result<&mut [u8], NoRoom> {
        let available = self.headroom();
        if len > available {
            return Err(NoRoom { wanted: len, available });
        }
        self.data -= len as u16;
        let at = self.data as usize;
        Ok(&mut self.frame.bytes_mut()[at..at + len])
    }

    /// `skb_pull`: removes `len` octets from the front.
    ///
    /// # Errors
    /// [`NoRoom`] when the head is shorter; see [`SkBuff::may_pull`].
    #[inline]
    pub fn pull(&mut self, len: usize) -> Result<(), NoRoom> {
        if len > self.headlen() {
            return Err(NoRoom { wanted: len, available: self.headlen() });
        }
        self.data += len as u16;
        Ok(())
    }

    /// `pskb_trim`: shortens the packet to `len` octets; a longer `len` changes nothing. Frames that are
    /// no longer used stay with the packet until it is freed.
    #[inline]
    pub fn trim(&mut self, len: usize) {
        if self.frags.is_some() {
            self.trim_frags(len);
        }
        if len < self.headlen() {
            self.tail = self.data + len as u16;
        }
    }

    /// Length of the packet in octets.
    #[inline]
    pub fn len(&self) -> usize {
        self.headlen() + self.data_len()
    }

    /// `skb_headlen`: octets in the head, from data to tail.
    #[inline]
    pub fn headlen(&self) -> usize {
        (self.tail - self.data) as usize
    }

    /// `skb->data_len`: octets in frags.
    #[inline]
    pub fn data_len(&self) -> usize {
        if self.frags.is_none() { 0 } else { self.frags_len() }
    }

    /// Whether the packet has no octets.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `skb_is_nonlinear`: whether the packet has octets beyond the head.
    #[inline]
    pub fn is_nonlinear(&self) -> bool {
        self.data_len() != 0
    }

    /// Number of frames of the packet: the head, and one for each frag.
    #[inline]
    pub fn frames(&self) -> usize {
        if self.frags.is_none() { 1 } else { 1 + self.frags().count() }
    }

    /// `skb_tailroom`: octets free behind the packet; none when it has frags.
    #[inline]
    pub fn tailroom(&self) -> usize {
        if self.frags.is_some() { 0 } else { FRAME_SIZE - self.tail as usize }
    }

    /// Offset of the packet's first octet in its frame.
    #[inline]
    pub fn data_offset(&self) -> usize {
        self.data as usize
    }

    /// The packet's head, from data to tail: the packet without its frags.
    #[inline]
    pub fn data(&self) -> &[u8] {
        self.tail_from(self.data)
    }

    /// The packet's head, writable.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        self.tail_from_mut(self.data)
    }

    /// `skb_reset_mac_header`: the link-layer header starts at data.
    #[inline]
    pub fn reset_mac_header(&mut self) {
        self.mac_header = self.data;
    }

    /// Makes the packet start `len` octets in front of its network header, as its new link-layer header,
    /// which is returned for writing with its previous contents.
    ///
    /// # Errors
    /// [`NoRoom`] when `len` exceeds the octets in front.
    #[inline]
    pub fn set_mac_header(&mut self, len: usize) -> Result<&mut [u8], NoRoom> {
        let network = self.network_header as usize;
        let Some(start) = network.checked_sub(len) else {
            return Err(NoRoom { wanted: len, available: network });
        };
        self.data = start as u16;
        self.mac_header = self.data;
        Ok(self.frame.bytes_mut().get_mut(start..network).unwrap_or(&mut []))
    }

    /// [`SkBuff::set_mac_header`] for a length known at compile time.
    #[inline]
    pub fn set_mac_chunk<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        let network = self.network_header as usize;
        let start = network.checked_sub(N)?;
        (self.data, self.mac_header) = (start as u16, start as u16);
        self.frame.bytes_mut().get_mut(start..start + N)?.first_chunk_mut()
    }

    /// `skb_set_network_header`: the network header starts `offset` octets after data.
    #[inline]
    pub fn set_network_header(&mut self, offset: usize) {
        self.network_header = self.offset_from_data(offset);
    }

    /// `skb_set_transport_header`: the transport header starts `offset` octets after data.
    #[inline]
    pub fn set_transport_header(&mut self, offset: usize) {
        self.transport_header = self.offset_from_data(offset);
    }

    /// `skb_mac_header`: from the link-layer header to the tail.
    #[inline]
    pub fn mac_header(&self) -> &[u8] {
        self.tail_from(self.mac_header)
    }

    /// The octets from the link-layer header to the tail, writable.
    #[inline]
    pub fn mac_header_mut(&mut self) -> &mut [u8] {
        self.tail_from_mut(self.mac_header)
    }

    /// `skb_network_header`: from the network header to the tail.
    #[inline]
    pub fn network_header(&self) -> &[u8] {
        self.tail_from(self.network_header)
    }

    /// The octets from the network header to the tail, writable.
    #[inline]
    pub fn network_header_mut(&mut self) -> &mut [u8] {
        self.tail_from_mut(self.network_header)
    }

    /// The first `N` octets of the link-layer header, if the packet has them: as [`Self::mac_header`],
    /// with one bounds check.
    #[inline]
    pub fn mac_chunk<const N: usize>(&self) -> Option<&[u8; N]> {
        self.chunk(self.mac_header as usize)
    }

    /// The first `N` octets of the network header, if the packet has them.
    #[inline]
    pub fn network_chunk<const N: usize>(&self) -> Option<&[u8; N]> {
        self.network_chunk_at(0)
    }

    /// `N` octets at offset `at` from the network header, if the packet's head has them.
    #[inline]
    pub fn network_chunk_at<const N: usize>(&self, at: usize) -> Option<&[u8; N]> {
        self.chunk((self.network_header as usize).saturating_add(at))
    }

    /// [`Self::network_chunk`], writable.
    #[inline]
    pub fn network_chunk_mut<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        self.chunk_mut(self.network_header as usize)
    }

    /// `skb_transport_header`: from the transport header to the tail.
    #[inline]
    pub fn transport_header(&self) -> &[u8] {
        self.tail_from(self.transport_header)
    }

    /// The octets from the transport header to the tail, writable.
    #[inline]
    pub fn transport_header_mut(&mut self) -> &mut [u8] {
        self.tail_from_mut(self.transport_header)
    }

    /// `skb_network_offset`: offset of the network header from data, octets.
    #[inline]
    pub fn network_offset(&self) -> usize {
        self.network_header.saturating_sub(self.data) as usize
    }

    /// `skb_transport_offset`: offset of the transport header from data, octets.
    #[inline]
    pub fn transport_offset(&self) -> usize {
        self.transport_header.saturating_sub(self.data) as usize
    }

    /// Octets from the network header to the end of the packet.
    #[inline]
    pub fn network_len(&self) -> usize {
        let (start, end) = (usize::from(self.network_header), usize::from(self.tail));
        end.saturating_sub(start) + self.data_len()
    }

    /// Makes the transport header start `len` octets after the network header.
    #[inline]
    pub fn set_network_header_len(&mut self, len: usize) {
        self.transport_header = (self.network_header as usize + len).min(self.tail as usize) as u16;
    }

    /// Moves the head's octets so that it starts at `offset` in its frame; for drivers whose descriptors
    /// cannot express the start of a packet. Header offsets are adjusted.
    ///
    /// # Errors
    /// [`NoRoom`] when the head would exceed the frame.
    pub fn move_to(&mut self, offset: usize) -> Result<(), NoRoom> {
        let len = self.headlen();
        if offset + len > FRAME_SIZE {
            return Err(NoRoom { wanted: offset + len, available: FRAME_SIZE });
        }
        let old = self.data as usize;
        if old == offset {
            return Ok(());
        }
        self.frame.bytes_mut().copy_within(old..old + len, offset);
        let moved = |header: u16| (header as usize + offset).saturating_sub(old) as u16;
        self.mac_header = moved(self.mac_header);
        self.network_header = moved(self.network_header);
        self.transport_header = moved(self.transport_header);
        self.data = offset as u16;
        self.tail = (offset + len) as u16;
        Ok(())
    }

    /// The whole frame of a packet without frags, and where in it the octets from the network header on are. `None`: it
    /// has frags.
    #[inline]
    pub fn linear_mut(&mut self) -> Option<(&mut [u8], Range<usize>)> {
        let packet = usize::from(self.network_header)..usize::from(self.tail);
        self.frags.is_none().then(|| (self.frame.bytes_mut().as_mut_slice(), packet))
    }

    /// Octets in front of the network header in its frame.
    #[inline]
    pub fn network_headroom(&self) -> usize {
        usize::from(self.network_header)
    }

    /// Makes the octets at `packet` in the frame the packet, from its network header on; the `link_layer` octets in front
    /// are its link-layer header. The packet has no frags.
    ///
    /// # Errors
    /// [`NoRoom`] when the frame would be exceeded, or the packet has frags.
    #[inline]
    pub fn set_packet(&mut self, packet: Range<usize>, link_layer: usize) -> Result<(), NoRoom> {
        let start = packet.start.checked_sub(link_layer).filter(|_| self.frags.is_none());
        let (Some(start), true) = (start, packet.start <= packet.end && packet.end <= FRAME_SIZE)
        else {
            return Err(NoRoom { wanted: packet.end.max(link_layer), available: FRAME_SIZE });
        };
        (self.data, self.mac_header) = (start as u16, start as u16);
        (self.network_header, self.transport_header) = (packet.start as u16, packet.start as u16);
        self.tail = packet.end as u16;
        Ok(())
    }

    /// Limited to the frame, so that no header offset can make an accessor panic.
    #[inline]
    fn offset_from_data(&self, offset: usize) -> u16 {
        (self.data as usize + offset).min(self.tail as usize) as u16
    }

    /// From `start` to the tail; empty when a pull or trim has passed the header.
    #[inline]
    fn tail_from(&self, start: u16) -> &[u8] {
        self.frame.bytes().get(start as usize..self.tail as usize).unwrap_or(&[])
    }

    #[inline]
    fn chunk<const N: usize>(&self, start: usize) -> Option<&[u8; N]> {
        let end = start.checked_add(N)?;
        let within = end <= self.tail as usize;
        self.frame.bytes().get(start..end).filter(|_| within)?.first_chunk()
    }

    #[inline]
    fn chunk_mut<const N: usize>(&mut self, start: usize) -> Option<&mut [u8; N]> {
        let end = start.checked_add(N)?;
        let within = end <= self.tail as usize;
        self.frame.bytes_mut().get_mut(start..end).filter(|_| within)?.first_chunk_mut()
    }

    #[inline]
    fn tail_from_mut(&mut self, start: u16) -> &mut [u8] {
        self.frame.bytes_mut().get_mut(start as usize..self.tail as usize).unwrap_or(&mut [])
    }
}
