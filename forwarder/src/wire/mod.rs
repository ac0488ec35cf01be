//! Packet headers as views of octets: one header per file, no copying.
//!
//! A view wraps anything that is `AsRef<[u8]>` and reads fields in place; with `AsMut<[u8]>` it also
//! writes them in place. Values are in host byte order, lengths and offsets in octets, whatever the unit
//! of the header field. Forwarded headers are only edited in place: there is no parsed form that could
//! lose an option or a DSCP.
//!
//! **The contract**, the same for every view:
//! - `new_checked` (or `new_unchecked`, then `check_len`) succeeds when the buffer holds the whole
//!   header, options included, and the header's own length field is valid. Then every accessor returns
//!   the contents of the buffer.
//! - No accessor panics, checked or not. Octets beyond the end of the buffer read as zero, writes to them
//!   are ignored, and a missing payload or option area is empty.
//! - A payload ends where the header's length field states, or at the end of the buffer if that is
//!   earlier (a packet quoted in an ICMP error is truncated).
//! - `check_len` checks lengths only. Versions, checksums and addresses are checked by the pipeline,
//!   which has a drop reason for each.
//!
//! Not included: fragment reassembly, checksum offload flags, and decisions about packets.

macro_rules! view {
    // `$kind`: a type parameter that distinguishes headers of the same layout.
    ($(#[$doc:meta])* $name:ident $(<$kind:ident>)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name<$($kind,)? T: AsRef<[u8]>> {
            buffer: T,
            $(kind: std::marker::PhantomData<$kind>,)?
        }

        impl<$($kind,)? T: AsRef<[u8]>> $name<$($kind,)? T> {
            /// Wraps `buffer` without checks.
            #[inline]
            pub const fn new_unchecked(buffer: T) -> Self {
                Self { buffer, $(kind: std::marker::PhantomData::<$kind>)? }
            }

            /// Wraps `buffer` if [`check_len`](Self::check_len) succeeds.
            #[inline]
            pub fn new_checked(buffer: T) -> Result<Self, $crate::wire::Error> {
                let view = Self::new_unchecked(buffer);
                view.check_len()?;
                Ok(view)
            }

            /// Returns the buffer.
            #[inline]
            pub fn into_inner(self) -> T {
                self.buffer
            }

            /// All octets of the buffer, starting with this header.
            #[inline]
            pub fn as_octets(&self) -> &[u8] {
                self.buffer.as_ref()
            }
        }

        impl<$($kind,)? T: AsRef<[u8]>> AsRef<[u8]> for $name<$($kind,)? T> {
            fn as_ref(&self) -> &[u8] {
                self.buffer.as_ref()
            }
        }
    };
}

pub mod ah;
pub mod arp;
pub mod checksum;
mod error;
pub mod esp;
pub mod ethernet;
pub mod flow;
pub mod icmp;
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

pub use ah::AhPacket;
pub use arp::ArpPacket;
pub use error::Error;
pub use esp::EspPacket;
pub use ethernet::{EtherType, EthernetFrame, MacAddr};
pub use flow::{FlowKey, HashFields};
pub use icmp::IcmpPacket;
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
