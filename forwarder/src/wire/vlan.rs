//! The 802.1Q and 802.1ad tag, treated as the header that follows EtherType 0x8100 or 0x88a8.

use std::fmt;

use super::error::require;
use super::octets::{get_u16, put_u16, slice, slice_mut};
use super::{Error, EtherType};

/// Length of a tag after its EtherType, in octets: tag control information and inner EtherType.
pub const HEADER_LEN: usize = 4;
/// The highest VLAN identifier of a VLAN (IEEE 802.1Q table 9-2 reserves 4095).
pub const VID_MAX: u16 = 4094;

mod field {
    use crate::wire::octets::Field;

    pub const TCI: Field = 0..2;
    pub const ETHERTYPE: Field = 2..4;
}

view! {
    /// A VLAN tag and its payload; starts after the EtherType of the tag.
    VlanTag
}

impl<T: AsRef<[u8]>> VlanTag<T> {
    /// Whether the buffer has the 4 octets of the tag.
    #[inline]
    pub fn check_len(&self) -> Result<(), Error> {
        require(self.as_octets(), HEADER_LEN)
    }

    /// The tag control information: PCP, DEI and VID.
    #[inline]
    pub fn tci(&self) -> u16 {
        get_u16(self.as_octets(), field::TCI)
    }

    /// Priority code point, 0–7.
    #[inline]
    pub fn pcp(&self) -> u8 {
        (self.tci() >> 13) as u8
    }

    /// Drop eligible indicator.
    #[inline]
    pub fn dei(&self) -> bool {
        self.tci() & 0x1000 != 0
    }

    /// VLAN identifier, 0–4095; 0 is a priority tag.
    #[inline]
    pub fn vid(&self) -> u16 {
        self.tci() & 0x0fff
    }

    /// EtherType of the payload.
    #[inline]
    pub fn ethertype(&self) -> EtherType {
        EtherType(get_u16(self.as_octets(), field::ETHERTYPE))
    }

    /// The octets after the tag, padding included.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        slice(self.as_octets(), HEADER_LEN, usize::MAX)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> VlanTag<T> {
    /// Sets the tag control information; bits of `pcp` above 7 and of `vid` above 4095 are ignored.
    #[inline]
    pub fn set_tci(&mut self, pcp: u8, dei: bool, vid: u16) {
        let tci = u16::from(pcp & 7) << 13 | u16::from(dei) << 12 | (vid & 0x0fff);
        put_u16(self.buffer.as_mut(), field::TCI, tci);
    }

    /// Sets the EtherType of the payload.
    #[inline]
    pub fn set_ethertype(&mut self, ethertype: EtherType) {
        put_u16(self.buffer.as_mut(), field::ETHERTYPE, ethertype.0);
    }

    /// The octets after the tag, writable.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        slice_mut(self.buffer.as_mut(), HEADER_LEN, usize::MAX)
    }
}

impl<T: AsRef<[u8]>> fmt::Display for VlanTag<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dei = if self.dei() { ", DEI" } else { "" };
        write!(f, "vlan {}, p {}{dei}, ethertype {}", self.vid(), self.pcp(), self.ethertype())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_at_the_tags_offsets() {
        let mut octets = [0u8; 6];
        let mut tag = VlanTag::new_unchecked(&mut octets[..]);
        tag.set_tci(5, true, 0xabc);
        tag.set_ethertype(EtherType::IPV4);
        tag.payload_mut().copy_from_slice(&[1, 2]);
        assert_eq!(octets, [0xba, 0xbc, 0x08, 0x00, 1, 2]);
        let tag = VlanTag::new_checked(&octets[..]).unwrap();
        assert_eq!((tag.pcp(), tag.dei(), tag.vid()), (5, true, 0xabc));
        assert_eq!(tag.ethertype(), EtherType::IPV4);
        assert_eq!(tag.payload(), [1, 2]);
        assert_eq!(tag.to_string(), "vlan 2748, p 5, DEI, ethertype IPv4 (0x0800)");
    }

    #[test]
    fn a_short_tag_is_truncated() {
        assert!(VlanTag::new_checked(&[0; 3][..]).is_err());
    }
}
