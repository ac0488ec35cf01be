//! Packet headers as views over octets: one header a file, nothing copied.
//!
//! A view wraps anything that is `AsRef<[u8]>` and reads fields where they lie; with
//! `AsMut<[u8]>` it writes them there too. Values cross the interface in host byte order, lengths
//! and offsets in octets, whatever unit the header counts in. Forwarded headers are only ever
//! edited in place: there is no parsed form to lose an option or a DSCP in.
//!
//! **The contract**, the same for every view:
//! - `new_checked` (or `new_unchecked`, then `check_len`) succeeds when the buffer holds the whole
//!   header, options included, and the header's own length field is possible. From then on every
//!   accessor returns what the octets say.
//! - No accessor panics, checked or not. Octets past the end of the buffer read as zero, writes to
//!   them are dropped, and a payload or option area that is not there is empty.
//! - A payload ends where the header's length field says, or where the buffer does if that is
//!   sooner (a packet quoted in an ICMP error is cut short).
//! - `check_len` looks at lengths only. Versions, checksums and addresses are the pipeline's to
//!   judge, because each of its refusals has a name of its own.
//!
//! Left out: fragment reassembly, checksum offload flags, and every decision about what to do with
//! a packet.

macro_rules! view {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name<T: AsRef<[u8]>> {
            buffer: T,
        }

        impl<T: AsRef<[u8]>> $name<T> {
            /// Wraps `buffer` without looking at it.
            #[inline]
            pub const fn new_unchecked(buffer: T) -> Self {
                Self { buffer }
            }

            /// Wraps `buffer` if [`check_len`](Self::check_len) allows it.
            #[inline]
            pub fn new_checked(buffer: T) -> Result<Self, $crate::wire::Error> {
                let view = Self::new_unchecked(buffer);
                view.check_len()?;
                Ok(view)
            }

            /// Gives the buffer back.
            #[inline]
            pub fn into_inner(self) -> T {
                self.buffer
            }

            /// All octets of the buffer, from the first of this header.
            #[inline]
            pub fn as_octets(&self) -> &[u8] {
                self.buffer.as_ref()
            }
        }

        impl<T: AsRef<[u8]>> AsRef<[u8]> for $name<T> {
            fn as_ref(&self) -> &[u8] {
                self.buffer.as_ref()
            }
        }
    };
}

pub mod arp;
pub mod checksum;
mod error;
pub mod ethernet;
pub mod flow;
pub mod icmpv4;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv4_option;
pub mod ipv6;
pub mod ipv6_ext;
mod octets;
mod print;
mod protocol;
pub mod tcp;
pub mod udp;
pub mod vlan;

pub use arp::ArpPacket;
pub use error::Error;
pub use ethernet::{EtherType, EthernetFrame, MacAddr};
pub use flow::FlowKey;
pub use icmpv4::Icmpv4Packet;
pub use icmpv6::Icmpv6Packet;
pub use ipv4::Ipv4Packet;
pub use ipv6::Ipv6Packet;
pub use protocol::Protocol;
pub use tcp::TcpPacket;
pub use udp::UdpPacket;
pub use vlan::VlanTag;

#[cfg(test)]
mod tests;
