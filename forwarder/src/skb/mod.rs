//! The socket buffer: a packet in one UMEM frame, or a long one in several.
//!
//! - [`umem`]: the memory of all frames, and the pool of free frames;
//! - [`frame`]: the token that permits access to a frame;
//! - [`skbuff`]: the kernel's `sk_buff` API over a frame;
//! - [`frag`]: the further frames of a packet that does not fit into one;
//! - [`burst`]: a bounded batch of packets.
//!
//! Nothing here allocates after start or depends on a protocol.

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

/// Octets in front of a received packet: XDP_PACKET_HEADROOM of the kernel, which its drivers leave free.
/// Also used for packets of our own.
pub const HEADROOM: usize = 256;

/// Octets of a cache line.
const CACHE_LINE: usize = 64;
/// Number of frame colours, see [`colour`].
pub const COLOURS: usize = 8;

/// How much further back than [`HEADROOM`] packets in frame `index` should start, in octets, where the
/// driver can choose. Frames start at page boundaries, so without it the headers of all packets of a
/// burst would map to the same few sets of an L1 cache, which has only eight or twelve ways, and evict
/// each other.
#[inline]
pub const fn colour(index: u32) -> usize {
    (COLOURS - 1 - index as usize % COLOURS) * CACHE_LINE
}

/// The largest colour offset, that of frame 0, octets.
pub const COLOUR_MAX: usize = colour(0);

/// Longest packet that a driver puts into one frame, link-layer header included, in octets; for any
/// colour.
pub const MAX_PACKET: usize = FRAME_SIZE - HEADROOM - COLOUR_MAX;

/// Largest IP MTU whose packets fit into one frame, with an Ethernet header and two VLAN tags.
pub const MTU_FRAME: u32 = (MAX_PACKET - 14 - 2 * 4) as u32;

/// The largest IP MTU of a port that receives multi-buffer packets, in octets: the usual one for
/// jumbo frames.
pub const JUMBO_MTU: u32 = 9000;

/// Longest packet of such a port, with an Ethernet header and two VLAN tags, octets.
pub const MAX_JUMBO: usize = JUMBO_MTU as usize + 14 + 2 * 4;

/// Octets that drivers guarantee in the head of a longer packet, so that it contains every header that
/// the pipeline reads: Ethernet with two VLAN tags, IPv6, and the longest extension header (RFC 8200
/// §4.3).
pub const HEAD_MIN: usize = 14 + 2 * 4 + 40 + 2048;

#[cfg(test)]
mod tests;
