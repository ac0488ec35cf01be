//! Ethernet II frames (RFC 894, IEEE 802.3) without preamble and frame check sequence.

use std::fmt;
use std::str::FromStr;

use super::Error;
use super::error::require;
use super::octets::{array, get_u16, put, put_u16, slice, slice_mut};

/// Length of an untagged header, in octets.
pub const HEADER_LEN: usize = 14;
/// Length of both addresses, in octets: the offset of the EtherType in an untagged header.
pub const ADDRS_LEN: usize = 12;

mod field {
    use crate::wire::octets::Field;

    pub const DESTINATION: Field = 0..6;
    pub const SOURCE: Field = 6..12;
    pub const ETHERTYPE: Field = 12..14;
}

view! {
    /// An Ethernet II frame.
    EthernetFrame
}

impl<T: AsRef<[u8]>> EthernetFrame<T> {
    /// Whether the buffer has the 14 octets of the header.
    #[inline]
    pub fn check_len(&self) -> Result<(), Error> {
        require(self.as_octets(), HEADER_LEN)
    }

    /// Destination address.
    #[inline]
    pub fn dst_addr(&self) -> MacAddr {
        MacAddr(array(self.as_octets(), field::DESTINATION))
    }

    /// Source address.
    #[inline]
    pub fn src_addr(&self) -> MacAddr {
        MacAddr(array(self.as_octets(), field::SOURCE))
    }

    /// EtherType of the payload. Below 0x0600 it is an IEEE 802.3 length instead.
    #[inline]
    pub fn ethertype(&self) -> EtherType {
        EtherType(get_u16(self.as_octets(), field::ETHERTYPE))
    }

    /// The octets after the header, padding included.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        slice(self.as_octets(), HEADER_LEN, usize::MAX)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> EthernetFrame<T> {
    /// Sets the destination address.
    #[inline]
    pub fn set_dst_addr(&mut self, addr: MacAddr) {
        put(self.buffer.as_mut(), field::DESTINATION, &addr.0);
    }

    /// Sets the source address.
    #[inline]
    pub fn set_src_addr(&mut self, addr: MacAddr) {
        put(self.buffer.as_mut(), field::SOURCE, &addr.0);
    }

    /// Sets the EtherType.
    #[inline]
    pub fn set_ethertype(&mut self, ethertype: EtherType) {
        put_u16(self.buffer.as_mut(), field::ETHERTYPE, ethertype.0);
    }

    /// The octets after the header, writable.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        slice_mut(self.buffer.as_mut(), HEADER_LEN, usize::MAX)
    }
}

impl<T: AsRef<[u8]>> fmt::Display for EthernetFrame<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} > {}, ethertype {}, length {}",
            self.src_addr(),
            self.dst_addr(),
            self.ethertype(),
            self.as_octets().len()
        )?;
        f.write_str(": ")?;
        super::print::ethertype(f, self.ethertype(), self.payload())
    }
}

/// A 48-bit Ethernet address, in transmission order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// 00:00:00:00:00:00, which is not a station's address.
    pub const ZERO: Self = Self([0; 6]);

    /// The six octets.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Group address (broadcast included): the I/G bit, first on the wire, is set.
    #[inline]
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 0x01 != 0
    }

    /// All ones.
    #[inline]
    #[must_use]
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }

    /// All zeros.
    #[inline]
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    /// A station's address, as by the kernel's `is_valid_ether_addr`: neither group nor zero.
    #[inline]
    #[must_use]
    pub fn is_valid_unicast(self) -> bool {
        !self.is_multicast() && !self.is_zero()
    }
}

impl From<[u8; 6]> for MacAddr {
    fn from(octets: [u8; 6]) -> Self {
        Self(octets)
    }
}

/// From a slice of exactly six octets, as in netlink attributes.
impl TryFrom<&[u8]> for MacAddr {
    type Error = Error;

    fn try_from(octets: &[u8]) -> Result<Self, Error> {
        match octets.try_into() {
            Ok(octets) => Ok(Self(octets)),
            Err(_) => Err(Error::Truncated { needed: 6, available: octets.len() }),
        }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text was not six pairs of hexadecimal digits separated by colons or hyphens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an Ethernet address: six pairs of hexadecimal digits such as 02:00:5e:10:00:01")]
pub struct ParseMacAddrError;

impl FromStr for MacAddr {
    type Err = ParseMacAddrError;

    fn from_str(text: &str) -> Result<Self, ParseMacAddrError> {
        let mut octets = [0; 6];
        let mut pairs = text.split([':', '-']);
        for octet in &mut octets {
            let pair = pairs.next().ok_or(ParseMacAddrError)?;
            if pair.len() != 2 || !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(ParseMacAddrError);
            }
            *octet = u8::from_str_radix(pair, 16).map_err(|_| ParseMacAddrError)?;
        }
        if pairs.next().is_some() {
            return Err(ParseMacAddrError);
        }
        Ok(Self(octets))
    }
}

/// An EtherType (IEEE 802 numbers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4.
    pub const IPV4: Self = Self(0x0800);
    /// ARP.
    pub const ARP: Self = Self(0x0806);
    /// An 802.1Q tag follows.
    pub const VLAN: Self = Self(0x8100);
    /// IPv6.
    pub const IPV6: Self = Self(0x86dd);
    /// MPLS, unicast.
    pub const MPLS: Self = Self(0x8847);
    /// An 802.1ad service tag follows.
    pub const QINQ: Self = Self(0x88a8);
    /// LLDP.
    pub const LLDP: Self = Self(0x88cc);

    /// Whether an 802.1Q or 802.1ad tag follows.
    #[inline]
    #[must_use]
    pub fn is_vlan(self) -> bool {
        matches!(self, Self::VLAN | Self::QINQ)
    }
}

impl From<u16> for EtherType {
    fn from(number: u16) -> Self {
        Self(number)
    }
}

impl From<EtherType> for u16 {
    fn from(ethertype: EtherType) -> Self {
        ethertype.0
    }
}

impl fmt::Display for EtherType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::IPV4 => "IPv4",
            Self::ARP => "ARP",
            Self::VLAN => "802.1Q",
            Self::IPV6 => "IPv6",
            Self::MPLS => "MPLS unicast",
            Self::QINQ => "802.1Q-QinQ",
            Self::LLDP => "LLDP",
            _ => "Unknown",
        };
        write!(f, "{name} ({:#06x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_at_the_headers_offsets() {
        let mut octets = [0u8; 16];
        let mut frame = EthernetFrame::new_unchecked(&mut octets[..]);
        frame.set_dst_addr(MacAddr([1, 2, 3, 4, 5, 6]));
        frame.set_src_addr(MacAddr([7, 8, 9, 10, 11, 12]));
        frame.set_ethertype(EtherType::IPV6);
        frame.payload_mut().copy_from_slice(&[13, 14]);
        assert_eq!(octets, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x86, 0xdd, 13, 14]);
        let frame = EthernetFrame::new_checked(&octets[..]).unwrap();
        assert_eq!(frame.dst_addr(), MacAddr([1, 2, 3, 4, 5, 6]));
        assert_eq!(frame.src_addr(), MacAddr([7, 8, 9, 10, 11, 12]));
        assert_eq!(frame.ethertype(), EtherType::IPV6);
        assert_eq!(frame.payload(), [13, 14]);
    }

    #[test]
    fn a_short_frame_is_truncated() {
        let error = EthernetFrame::new_checked(&[0; 13][..]).unwrap_err();
        assert_eq!(error, Error::Truncated { needed: 14, available: 13 });
    }

    #[test]
    fn addresses_read_as_they_print() {
        let addr = MacAddr([0x02, 0x00, 0x5e, 0x10, 0xab, 0xff]);
        assert_eq!(addr.to_string(), "02:00:5e:10:ab:ff");
        assert_eq!("02:00:5e:10:AB:ff".parse(), Ok(addr));
        assert_eq!("02-00-5e-10-ab-ff".parse(), Ok(addr));
        for wrong in
            ["", "02:00:5e:10:ab", "02:00:5e:10:ab:ff:00", "2:0:5e:10:ab:ff", "+2:00:5e:10:ab:ff"]
        {
            assert_eq!(wrong.parse::<MacAddr>(), Err(ParseMacAddrError), "{wrong}");
        }
    }

    #[test]
    fn address_kinds() {
        assert!(MacAddr::BROADCAST.is_multicast());
        assert!(MacAddr([0x33, 0x33, 0, 0, 0, 1]).is_multicast());
        assert!(!MacAddr([2, 0, 0, 0, 0, 1]).is_multicast());
        assert!(!MacAddr::ZERO.is_valid_unicast());
        assert!(MacAddr([2, 0, 0, 0, 0, 1]).is_valid_unicast());
    }
}
