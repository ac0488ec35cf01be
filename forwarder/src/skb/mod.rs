//! The socket buffer: one packet in one UMEM frame, or a long one in several.
//!
//! - [`umem`]: the memory all frames are cut from, and the pool of free frames;
//! - [`frame`]: the token that *is* the permission to touch a frame;
//! - [`skbuff`]: the kernel's `sk_buff` API over a frame;
//! - [`frag`]: the further frames of a packet that one does not hold;
//! - [`burst`]: a bounded batch of packets.
//!
//! Nothing here allocates after start, and nothing here knows a protocol.

pub mod burst;
pub mod frag;
pub mod frame;
pub mod skbuff;
pub mod umem;

pub use burst::Burst;
pub use frag::{Frags, MAX_SKB_FRAGS, Piece};
pub use frame::Frame;
pub use skbuff::{IpSummed, NoRoom, PktType, SkBuff};
pub use umem::{FramePool, Umem};

/// Size of one UMEM frame in octets. AF_XDP allows 2048 or one page; a page holds every packet up
/// to the Ethernet MTU with room for encapsulation in front.
pub const FRAME_SIZE: usize = 4096;

/// Octets in front of a received packet. XDP_PACKET_HEADROOM of the kernel: what its drivers leave
/// free, and what we leave free in packets of our own.
pub const HEADROOM: usize = 256;

/// Octets of a cache line.
const CACHE_LINE: usize = 64;
/// Colours of frames, see [`colour`].
pub const COLOURS: usize = 8;

/// How much further back than [`HEADROOM`] packets in frame `index` should start, in octets, where
/// the driver has a choice. Frames start at pages, so without it the headers of all packets of a
/// burst would fall into the same few lines of a first-level cache, which holds but eight or twelve
/// of them, and drive each other out.
#[inline]
pub const fn colour(index: u32) -> usize {
    (COLOURS - 1 - index as usize % COLOURS) * CACHE_LINE
}

/// The largest of them, octets: that of frame 0.
pub const COLOUR_MAX: usize = colour(0);

/// Longest packet that a driver puts into one frame, link-layer header included, in octets; whatever
/// the frame's colour.
pub const MAX_PACKET: usize = FRAME_SIZE - HEADROOM - COLOUR_MAX;

/// Largest IP MTU whose packets one frame holds, with an Ethernet header and two VLAN tags.
pub const MTU_FRAME: u32 = (MAX_PACKET - 14 - 2 * 4) as u32;

/// The largest IP MTU of a port that takes packets of several frames, in octets: what is usual for
/// jumbo frames.
pub const JUMBO_MTU: u32 = 9000;

/// Longest packet of such a port: two VLAN tags and an Ethernet header beside it.
pub const MAX_JUMBO: usize = JUMBO_MTU as usize + 14 + 2 * 4;

/// Octets that drivers make sure of in the head of a longer packet, so that every header the
/// pipeline reads lies there: Ethernet with two VLAN tags, IPv6, and the longest extension header
/// (RFC 8200 §4.3).
pub const HEAD_MIN: usize = 14 + 2 * 4 + 40 + 2048;

#[cfg(test)]
mod tests;
