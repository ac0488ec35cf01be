//! ICMP for IPv4 (RFC 792, RFC 1191's next-hop MTU, RFC 1812 §5.2.7's codes).
//!
//! Names are those of the kernel's include/uapi/linux/icmp.h without their prefix. Whether an error may
//! be sent is decided in the pipeline.

use std::fmt;
use std::net::Ipv4Addr;

use super::icmp::{IcmpPacket, echo_octets, write_fields};
use super::octets::get_u16;
use super::{Error, Ipv4Packet, Protocol, checksum, print};

pub use super::icmp::HEADER_LEN;

mod field {
    use crate::wire::octets::Field;

    pub const MTU: Field = 6..8;
}

/// An ICMP message's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Icmpv4Type(pub u8);

impl Icmpv4Type {
    /// Echo reply.
    pub const ECHOREPLY: Self = Self(0);
    /// Destination unreachable; codes in [`unreach`].
    pub const DEST_UNREACH: Self = Self(3);
    /// Source quench, deprecated (RFC 6633).
    pub const SOURCE_QUENCH: Self = Self(4);
    /// Redirect.
    pub const REDIRECT: Self = Self(5);
    /// Echo request.
    pub const ECHO: Self = Self(8);
    /// Time exceeded; codes in [`exceeded`].
    pub const TIME_EXCEEDED: Self = Self(11);
    /// Parameter problem.
    pub const PARAMETERPROB: Self = Self(12);
    /// Timestamp request.
    pub const TIMESTAMP: Self = Self(13);
    /// Timestamp reply.
    pub const TIMESTAMPREPLY: Self = Self(14);

    /// An error message, which quotes the packet it is about.
    #[inline]
    #[must_use]
    pub const fn is_error(self) -> bool {
        matches!(
            self,
            Self::DEST_UNREACH
                | Self::SOURCE_QUENCH
                | Self::REDIRECT
                | Self::TIME_EXCEEDED
                | Self::PARAMETERPROB
        )
    }

    /// Whether no error may be sent about a message of this type (RFC 1812 §4.3.2.7): error messages, and
    /// all types that may be errors, as in the kernel's `icmp_pointers`.
    #[inline]
    #[must_use]
    pub const fn forbids_error(self) -> bool {
        matches!(self.0, 1..=7 | 9..=12 | 19..)
    }
}

impl From<u8> for Icmpv4Type {
    #[inline]
    fn from(number: u8) -> Self {
        Self(number)
    }
}

impl From<Icmpv4Type> for u8 {
    #[inline]
    fn from(icmp_type: Icmpv4Type) -> Self {
        icmp_type.0
    }
}

/// Codes of [`Icmpv4Type::DEST_UNREACH`].
pub mod unreach {
    /// No route to the network.
    pub const NET_UNREACH: u8 = 0;
    /// The host does not answer.
    pub const HOST_UNREACH: u8 = 1;
    /// The protocol is not supported by the host.
    pub const PROT_UNREACH: u8 = 2;
    /// No socket is bound to the port.
    pub const PORT_UNREACH: u8 = 3;
    /// Too long for the next hop, and DF is set.
    pub const FRAG_NEEDED: u8 = 4;
    /// Source route failed.
    pub const SR_FAILED: u8 = 5;
    /// Network unknown.
    pub const NET_UNKNOWN: u8 = 6;
    /// Host unknown.
    pub const HOST_UNKNOWN: u8 = 7;
    /// Network administratively prohibited.
    pub const NET_ANO: u8 = 9;
    /// Host administratively prohibited.
    pub const HOST_ANO: u8 = 10;
    /// Communication administratively prohibited by filtering.
    pub const PKT_FILTERED: u8 = 13;
}

/// Codes of [`Icmpv4Type::TIME_EXCEEDED`].
pub mod exceeded {
    /// TTL exceeded in transit.
    pub const EXC_TTL: u8 = 0;
    /// Reassembly timed out.
    pub const EXC_FRAGTIME: u8 = 1;
}

/// An ICMP message; the buffer ends where the IP payload does.
pub type Icmpv4Packet<T> = IcmpPacket<Icmpv4Type, T>;

impl<T: AsRef<[u8]>> Icmpv4Packet<T> {
    /// Whether the checksum is valid.
    pub fn verify_checksum(&self) -> bool {
        checksum::is_valid(checksum::ones_complement_sum(self.as_octets()))
    }

    /// Next-hop MTU of "fragmentation needed", in octets; zero from a router that predates RFC 1191.
    #[inline]
    pub fn mtu(&self) -> u16 {
        get_u16(self.as_octets(), field::MTU)
    }

    /// The pointer of a parameter problem, an offset in octets.
    #[inline]
    pub fn pointer(&self) -> u8 {
        self.rest_of_header()[0]
    }

    /// The gateway of a redirect.
    #[inline]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.rest_of_header())
    }

    /// The packet quoted by an error, if its IP header is complete. Its payload is truncated.
    #[inline]
    pub fn quoted(&self) -> Option<Ipv4Packet<&[u8]>> {
        if !self.icmp_type().is_error() {
            return None;
        }
        Ipv4Packet::new_checked(self.payload()).ok()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Icmpv4Packet<T> {
    /// Computes and writes the checksum of the whole buffer.
    pub fn fill_checksum(&mut self) {
        self.fill_checksum_from(0);
    }
}

/// Contents of octets 4 to 7, by kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Zero: unreachable and time exceeded messages.
    Unused,
    /// Next-hop MTU in octets, for "fragmentation needed" (RFC 1191 §4).
    Mtu(u16),
    /// Offset of the invalid octet, for a parameter problem.
    Pointer(u8),
    /// Identifier and sequence number of an echo message.
    Echo(u16, u16),
}

impl Rest {
    /// The four octets.
    #[must_use]
    pub const fn octets(self) -> [u8; 4] {
        match self {
            Self::Unused => [0; 4],
            Self::Mtu(mtu) => (mtu as u32).to_be_bytes(),
            Self::Pointer(pointer) => [pointer, 0, 0, 0],
            Self::Echo(ident, seq) => echo_octets(ident, seq),
        }
    }
}

/// Writes a message's header to the first 8 octets of `buffer`; the rest is its payload, and the checksum
/// covers all of it.
///
/// # Errors
/// [`Error::Truncated`] if `buffer` is shorter than 8 octets.
pub fn write_header(
    buffer: &mut [u8],
    icmp_type: Icmpv4Type,
    code: u8,
    rest: Rest,
) -> Result<(), Error> {
    write_fields(buffer, icmp_type, code, rest.octets())?.fill_checksum();
    Ok(())
}

impl<T: AsRef<[u8]>> fmt::Display for Icmpv4Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ICMP ")?;
        match self.icmp_type() {
            Icmpv4Type::ECHO => write!(f, "echo request, id {}, seq {}", self.ident(), self.seq()),
            Icmpv4Type::ECHOREPLY => {
                write!(f, "echo reply, id {}, seq {}", self.ident(), self.seq())
            }
            Icmpv4Type::DEST_UNREACH => self.fmt_unreachable(f),
            Icmpv4Type::TIME_EXCEEDED if self.code() == exceeded::EXC_FRAGTIME => {
                f.write_str("ip reassembly time exceeded")
            }
            Icmpv4Type::TIME_EXCEEDED => f.write_str("time exceeded in-transit"),
            Icmpv4Type::PARAMETERPROB => {
                write!(f, "parameter problem - octet {}", self.pointer())
            }
            Icmpv4Type::REDIRECT => {
                write!(f, "redirect {} to host {}", self.quoted_dst(), self.gateway())
            }
            Icmpv4Type(number) => write!(f, "type-#{number}, code {}", self.code()),
        }?;
        write!(f, ", length {}", self.as_octets().len())
    }
}

impl<T: AsRef<[u8]>> Icmpv4Packet<T> {
    /// Destination of the quoted packet; 0.0.0.0 if nothing is quoted.
    fn quoted_dst(&self) -> Ipv4Addr {
        Ipv4Packet::new_unchecked(self.payload()).dst_addr()
    }

    fn fmt_unreachable(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dst = self.quoted_dst();
        match self.code() {
            unreach::NET_UNREACH => write!(f, "net {dst} unreachable"),
            unreach::HOST_UNREACH => write!(f, "host {dst} unreachable"),
            unreach::PROT_UNREACH => {
                let protocol = self.quoted().map_or(Protocol(0), |quoted| quoted.protocol());
                write!(f, "{dst} protocol {} unreachable", protocol.0)
            }
            unreach::PORT_UNREACH => {
                write!(f, "{dst} ")?;
                let quoted = self.quoted();
                let (protocol, payload) =
                    quoted.as_ref().map_or((Protocol(0), &[][..]), |q| (q.protocol(), q.payload()));
                print::port(f, protocol, payload)?;
                f.write_str(" unreachable")
            }
            unreach::FRAG_NEEDED => {
                write!(f, "{dst} unreachable - need to frag (mtu {})", self.mtu())
            }
            unreach::SR_FAILED => write!(f, "{dst} unreachable - source route failed"),
            unreach::NET_ANO => write!(f, "net {dst} unreachable - admin prohibited"),
            unreach::HOST_ANO => write!(f, "host {dst} unreachable - admin prohibited"),
            unreach::PKT_FILTERED => write!(f, "host {dst} unreachable - admin prohibited filter"),
            code => write!(f, "{dst} unreachable - #{code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_request_is_written_as_rfc_792_draws_it() {
        let mut octets = [0xff; 12];
        octets[8..].copy_from_slice(b"ping");
        write_header(&mut octets, Icmpv4Type::ECHO, 0, Rest::Echo(0x1234, 7)).unwrap();
        // 0800 + 1234 + 0007 + 7069 + 6e67 = f90b
        assert_eq!(octets, [8, 0, 0x06, 0xf4, 0x12, 0x34, 0, 7, b'p', b'i', b'n', b'g']);
        let icmp = Icmpv4Packet::new_checked(&octets[..]).unwrap();
        assert!(icmp.verify_checksum());
        assert_eq!((icmp.ident(), icmp.seq()), (0x1234, 7));
        assert_eq!(icmp.payload(), b"ping");
        assert_eq!(icmp.quoted(), None);
        octets[11] = b'k';
        assert!(!Icmpv4Packet::new_unchecked(&octets[..]).verify_checksum());
    }

    #[test]
    fn the_rest_of_the_header_reads_as_it_was_written() {
        let mut octets = [0; 8];
        let mut write = |icmp_type, code, rest| {
            write_header(&mut octets, icmp_type, code, rest).unwrap();
            Icmpv4Packet::new_unchecked(octets)
        };
        let frag_needed = write(Icmpv4Type::DEST_UNREACH, unreach::FRAG_NEEDED, Rest::Mtu(1280));
        assert_eq!(frag_needed.mtu(), 1280);
        assert_eq!(frag_needed.rest_of_header(), [0, 0, 5, 0]);
        let problem = write(Icmpv4Type::PARAMETERPROB, 0, Rest::Pointer(20));
        assert_eq!(problem.pointer(), 20);
        assert_eq!(problem.rest_of_header(), [20, 0, 0, 0]);
        assert!(write_header(&mut [0; 7], Icmpv4Type::ECHO, 0, Rest::Unused).is_err());
    }

    #[test]
    fn errors_are_distinguished_from_queries() {
        let errors: Vec<u8> = (0..=255).filter(|&t| Icmpv4Type(t).is_error()).collect();
        assert_eq!(errors, [3, 4, 5, 11, 12]);
        let may_be_answered: Vec<u8> =
            (0..=255).filter(|&t| !Icmpv4Type(t).forbids_error()).collect();
        assert_eq!(may_be_answered, [0, 8, 13, 14, 15, 16, 17, 18]);
    }
}
