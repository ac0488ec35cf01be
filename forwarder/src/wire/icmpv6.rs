//! ICMPv6 (RFC 4443) and the parts of Neighbour Discovery (RFC 4861) that traces show.
//!
//! Names are those of the kernel's include/uapi/linux/icmpv6.h without their prefix. Whether an error may
//! be sent is decided in the pipeline.

use std::fmt;
use std::net::Ipv6Addr;

use super::icmp::{IcmpPacket, echo_octets, write_fields};
use super::octets::{array, slice};
use super::{Error, Ipv6Packet, Protocol, checksum, print};

pub use super::icmp::HEADER_LEN;

mod field {
    use crate::wire::octets::Field;

    pub const ND_TARGET: Field = 8..24;
}

/// An ICMPv6 message's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Icmpv6Type(pub u8);

impl Icmpv6Type {
    /// Destination unreachable; codes in [`unreach`].
    pub const DEST_UNREACH: Self = Self(1);
    /// Packet too big.
    pub const PKT_TOOBIG: Self = Self(2);
    /// Time exceeded; codes in [`exceeded`].
    pub const TIME_EXCEED: Self = Self(3);
    /// Parameter problem; codes in [`problem`].
    pub const PARAMPROB: Self = Self(4);
    /// Echo request.
    pub const ECHO_REQUEST: Self = Self(128);
    /// Echo reply.
    pub const ECHO_REPLY: Self = Self(129);
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: Self = Self(133);
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: Self = Self(134);
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: Self = Self(135);
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: Self = Self(136);
    /// Redirect.
    pub const REDIRECT: Self = Self(137);

    /// An error message: types with the high bit clear (RFC 4443 §2.1), known or not.
    #[inline]
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & 0x80 == 0
    }

    /// Whether no error may be sent about a message of this type: RFC 4443 §2.4(e.1) and (e.2). The
    /// kernel's `is_ineligible` allows errors about redirects, (e.2).
    #[inline]
    #[must_use]
    pub const fn forbids_error(self) -> bool {
        self.is_error() || matches!(self, Self::REDIRECT)
    }
}

impl From<u8> for Icmpv6Type {
    #[inline]
    fn from(number: u8) -> Self {
        Self(number)
    }
}

impl From<Icmpv6Type> for u8 {
    #[inline]
    fn from(icmp_type: Icmpv6Type) -> Self {
        icmp_type.0
    }
}

/// Codes of [`Icmpv6Type::DEST_UNREACH`].
pub mod unreach {
    /// No route to the destination.
    pub const NOROUTE: u8 = 0;
    /// Administratively prohibited.
    pub const ADM_PROHIBITED: u8 = 1;
    /// Beyond the scope of the source address.
    pub const NOT_NEIGHBOUR: u8 = 2;
    /// The host does not answer.
    pub const ADDR_UNREACH: u8 = 3;
    /// No socket is bound to the port.
    pub const PORT_UNREACH: u8 = 4;
    /// Source address failed ingress or egress policy.
    pub const POLICY_FAIL: u8 = 5;
    /// The route is a reject route.
    pub const REJECT_ROUTE: u8 = 6;
}

/// Codes of [`Icmpv6Type::TIME_EXCEED`].
pub mod exceeded {
    /// Hop limit exceeded in transit.
    pub const EXC_HOPLIMIT: u8 = 0;
    /// Reassembly timed out.
    pub const EXC_FRAGTIME: u8 = 1;
}

/// Codes of [`Icmpv6Type::PARAMPROB`].
pub mod problem {
    /// Erroneous header field.
    pub const HDR_FIELD: u8 = 0;
    /// Unrecognized Next Header.
    pub const UNK_NEXTHDR: u8 = 1;
    /// Unrecognized option.
    pub const UNK_OPTION: u8 = 2;
}

/// An ICMPv6 message; the buffer ends where the IP payload does. The checksum functions take the sum of the
/// pseudo-header, from [`checksum::pseudo_header_v6`].
pub type Icmpv6Packet<T> = IcmpPacket<Icmpv6Type, T>;

impl<T: AsRef<[u8]>> Icmpv6Packet<T> {
    /// Whether the checksum is valid.
    pub fn verify_checksum(&self, pseudo_header: u32) -> bool {
        checksum::is_valid(pseudo_header + checksum::ones_complement_sum(self.as_octets()))
    }

    /// Whether the checksum field holds the folded sum of the pseudo-header, to be completed by a device;
    /// see [`UdpPacket::is_checksum_partial`](super::UdpPacket::is_checksum_partial).
    #[inline]
    pub fn is_checksum_partial(&self, pseudo_header: u32) -> bool {
        self.checksum() == checksum::fold(pseudo_header)
    }

    /// MTU of "packet too big", in octets.
    #[inline]
    pub fn mtu(&self) -> u32 {
        u32::from_be_bytes(self.rest_of_header())
    }

    /// The pointer of a parameter problem, an offset in octets.
    #[inline]
    pub fn pointer(&self) -> u32 {
        u32::from_be_bytes(self.rest_of_header())
    }

    /// Target of a neighbour solicitation, neighbour advertisement or redirect.
    #[inline]
    pub fn nd_target(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<16>(self.as_octets(), field::ND_TARGET))
    }

    /// The packet quoted by an error, if its fixed header is complete. The rest is truncated.
    #[inline]
    pub fn quoted(&self) -> Option<Ipv6Packet<&[u8]>> {
        if !self.icmp_type().is_error() {
            return None;
        }
        Ipv6Packet::new_checked(self.payload()).ok()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Icmpv6Packet<T> {
    /// Computes and writes the checksum of pseudo-header and whole buffer.
    pub fn fill_checksum(&mut self, pseudo_header: u32) {
        self.fill_checksum_from(pseudo_header);
    }
}

/// Contents of octets 4 to 7, by kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Zero: unreachable and time exceeded messages.
    Unused,
    /// MTU in octets, for "packet too big".
    Mtu(u32),
    /// Offset of the invalid octet, for a parameter problem.
    Pointer(u32),
    /// Identifier and sequence number of an echo message.
    Echo(u16, u16),
}

impl Rest {
    /// The four octets.
    #[must_use]
    pub const fn octets(self) -> [u8; 4] {
        match self {
            Self::Unused => [0; 4],
            Self::Mtu(number) | Self::Pointer(number) => number.to_be_bytes(),
            Self::Echo(ident, seq) => echo_octets(ident, seq),
        }
    }
}

/// Writes a message's header to the first 8 octets of `buffer`; the rest is its payload. The checksum
/// covers all of it and the pseudo-header of `src` and `dst`.
///
/// # Errors
/// [`Error::Truncated`] if `buffer` is shorter than 8 octets.
pub fn write_header(
    buffer: &mut [u8],
    icmp_type: Icmpv6Type,
    code: u8,
    rest: Rest,
    (src, dst): (Ipv6Addr, Ipv6Addr),
) -> Result<(), Error> {
    // No buffer reaches 4 GiB.
    let len = buffer.len() as u32;
    let mut icmp = write_fields(buffer, icmp_type, code, rest.octets())?;
    icmp.fill_checksum(checksum::pseudo_header_v6(src, dst, Protocol::ICMPV6, len));
    Ok(())
}

impl<T: AsRef<[u8]>> fmt::Display for Icmpv6Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ICMP6, ")?;
        match self.icmp_type() {
            Icmpv6Type::ECHO_REQUEST => {
                write!(f, "echo request, id {}, seq {}", self.ident(), self.seq())
            }
            Icmpv6Type::ECHO_REPLY => {
                write!(f, "echo reply, id {}, seq {}", self.ident(), self.seq())
            }
            Icmpv6Type::DEST_UNREACH => self.fmt_unreachable(f),
            Icmpv6Type::PKT_TOOBIG => write!(f, "packet too big, mtu {}", self.mtu()),
            Icmpv6Type::TIME_EXCEED if self.code() == exceeded::EXC_FRAGTIME => {
                f.write_str("time exceeded in-transit (reassembly)")
            }
            Icmpv6Type::TIME_EXCEED => {
                write!(f, "time exceeded in-transit for {}", self.quoted_dst())
            }
            Icmpv6Type::PARAMPROB => {
                let what = match self.code() {
                    problem::HDR_FIELD => "erroneous",
                    problem::UNK_NEXTHDR => "next header",
                    problem::UNK_OPTION => "option",
                    _ => "unknown code",
                };
                write!(f, "parameter problem, {what} - octet {}", self.pointer())
            }
            Icmpv6Type::ROUTER_SOLICITATION => f.write_str("router solicitation"),
            Icmpv6Type::ROUTER_ADVERTISEMENT => f.write_str("router advertisement"),
            Icmpv6Type::NEIGHBOUR_SOLICITATION => {
                write!(f, "neighbor solicitation, who has {}", self.nd_target())
            }
            Icmpv6Type::NEIGHBOUR_ADVERTISEMENT => {
                write!(f, "neighbor advertisement, tgt is {}", self.nd_target())
            }
            Icmpv6Type::REDIRECT => write!(f, "redirect to {}", self.nd_target()),
            Icmpv6Type(number) => write!(f, "type-#{number}, code {}", self.code()),
        }?;
        write!(f, ", length {}", self.as_octets().len())
    }
}

impl<T: AsRef<[u8]>> Icmpv6Packet<T> {
    /// Destination of the quoted packet; :: if nothing is quoted.
    fn quoted_dst(&self) -> Ipv6Addr {
        Ipv6Packet::new_unchecked(self.payload()).dst_addr()
    }

    fn fmt_unreachable(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dst = self.quoted_dst();
        f.write_str("destination unreachable, ")?;
        match self.code() {
            unreach::NOROUTE => write!(f, "unreachable route {dst}"),
            unreach::ADM_PROHIBITED => write!(f, "unreachable prohibited {dst}"),
            unreach::NOT_NEIGHBOUR => {
                let src = Ipv6Packet::new_unchecked(self.payload()).src_addr();
                write!(f, "beyond scope {dst}, source address {src}")
            }
            unreach::ADDR_UNREACH => write!(f, "unreachable address {dst}"),
            unreach::PORT_UNREACH => {
                write!(f, "unreachable port, {dst} ")?;
                let quoted = Ipv6Packet::new_unchecked(self.payload());
                match quoted.upper_layer() {
                    Ok(upper) if !upper.later_fragment() => {
                        let octets = slice(quoted.as_octets(), upper.offset, usize::MAX);
                        print::port(f, upper.protocol, octets)
                    }
                    _ => f.write_str("port unknown"),
                }
            }
            unreach::POLICY_FAIL => write!(f, "policy failed for {dst}"),
            unreach::REJECT_ROUTE => write!(f, "reject route {dst}"),
            code => write!(f, "{dst} unknown unreach code ({code})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
    const RIGHT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);

    #[test]
    fn an_echo_request_is_written_as_rfc_4443_draws_it() {
        let mut octets = [0xff; 9];
        octets[8] = b'!';
        write_header(&mut octets, Icmpv6Type::ECHO_REQUEST, 0, Rest::Echo(1, 2), (LEFT, RIGHT))
            .unwrap();
        // 2001 + db8 + 1 + 2 + 2001 + db8 + 2 + 2 + 9 + 3a + 8000 + 1 + 2 + 2100 = fcbf
        assert_eq!(octets, [128, 0, 0x03, 0x40, 0, 1, 0, 2, b'!']);
        let icmp = Icmpv6Packet::new_checked(&octets[..]).unwrap();
        let pseudo = checksum::pseudo_header_v6(LEFT, RIGHT, Protocol::ICMPV6, 9);
        assert!(icmp.verify_checksum(pseudo) && !icmp.is_checksum_partial(pseudo));
        assert_eq!((icmp.ident(), icmp.seq()), (1, 2));
        octets[8] = b'?';
        assert!(!Icmpv6Packet::new_unchecked(&octets[..]).verify_checksum(pseudo));
    }

    #[test]
    fn the_rest_of_the_header_reads_as_it_was_written() {
        let mut octets = [0; 8];
        let mut write = |icmp_type, code, rest| {
            write_header(&mut octets, icmp_type, code, rest, (LEFT, RIGHT)).unwrap();
            Icmpv6Packet::new_unchecked(octets)
        };
        let too_big = write(Icmpv6Type::PKT_TOOBIG, 0, Rest::Mtu(1280));
        assert_eq!(too_big.mtu(), 1280);
        assert_eq!(too_big.to_string(), "ICMP6, packet too big, mtu 1280, length 8");
        let pointed = write(Icmpv6Type::PARAMPROB, problem::UNK_OPTION, Rest::Pointer(0x0102_0304));
        assert_eq!(pointed.pointer(), 0x0102_0304);
        assert_eq!(pointed.rest_of_header(), [1, 2, 3, 4]);
        let short = &mut [0; 7];
        assert!(write_header(short, Icmpv6Type(1), 0, Rest::Unused, (LEFT, RIGHT)).is_err());
    }

    #[test]
    fn errors_are_distinguished_from_informational_messages() {
        for number in 0..=255 {
            assert_eq!(Icmpv6Type(number).is_error(), number < 128);
            assert_eq!(Icmpv6Type(number).forbids_error(), number < 128 || number == 137);
        }
    }
}
