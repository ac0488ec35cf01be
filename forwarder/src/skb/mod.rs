//! The socket buffer: one packet in one UMEM frame.
//!
//! - [`umem`]: the memory all frames are cut from, and the pool of free frames;
//! - [`frame`]: the token that *is* the permission to touch a frame;
//! - [`skbuff`]: the kernel's `sk_buff` API over a frame;
//! - [`burst`]: a bounded batch of packets.
//!
//! Nothing here allocates after start, and nothing here knows a protocol.

pub mod burst;
pub mod frame;
pub mod skbuff;
pub mod umem;

pub use burst::Burst;
pub use frame::Frame;
pub use skbuff::{IpSummed, NoRoom, PktType, SkBuff};
pub use umem::{FramePool, Umem};

/// Size of one UMEM frame in octets. AF_XDP allows 2048 or one page; a page holds every packet up
/// to the Ethernet MTU with room for encapsulation in front.
pub const FRAME_SIZE: usize = 4096;

/// Octets in front of a received packet. XDP_PACKET_HEADROOM of the kernel: what its drivers leave
/// free, and what we leave free in packets of our own.
pub const HEADROOM: usize = 256;

/// Longest packet that fits one frame, link-layer header included, in octets.
pub const MAX_PACKET: usize = FRAME_SIZE - HEADROOM;
