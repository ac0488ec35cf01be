//! The header that ICMP (RFC 792) and ICMPv6 (RFC 4443 §2.1) share: type, code, checksum, and four octets
//! whose use depends on the type.
//!
//! Types, the checksum, and the use of those four octets by errors are in [`icmpv4`](super::icmpv4) and
//! [`icmpv6`](super::icmpv6).

use super::error::require;
use super::octets::{array, get_u8, get_u16, put, put_u8, put_u16, slice, slice_mut};
use super::{Error, checksum};

/// Length of the header common to all messages, in octets; data or the quoted packet follows.
pub const HEADER_LEN: usize = 8;

mod field {
    use crate::wire::octets::Field;

    pub const TYPE: usize = 0;
    pub const CODE: usize = 1;
    pub const CHECKSUM: Field = 2..4;
    pub const REST: Field = 4..8;
    pub const IDENT: Field = 4..6;
    pub const SEQ: Field = 6..8;
}

view! {
    /// A message of ICMP or ICMPv6, of which `K` is the message type; the buffer ends where the IP payload
    /// does.
    IcmpPacket<K>
}

impl<K, T: AsRef<[u8]>> IcmpPacket<K, T> {
    /// Whether the buffer has the 8 octets of the header.
    #[inline]
    pub fn check_len(&self) -> Result<(), Error> {
        require(self.as_octets(), HEADER_LEN)
    }

    /// Type.
    #[inline]
    pub fn icmp_type(&self) -> K
    where
        K: From<u8>,
    {
        K::from(get_u8(self.as_octets(), field::TYPE))
    }

    /// Code.
    #[inline]
    pub fn code(&self) -> u8 {
        get_u8(self.as_octets(), field::CODE)
    }

    /// The checksum field.
    #[inline]
    pub fn checksum(&self) -> u16 {
        get_u16(self.as_octets(), field::CHECKSUM)
    }

    /// Octets 4 to 7, whose use depends on the type.
    #[inline]
    pub fn rest_of_header(&self) -> [u8; 4] {
        array(self.as_octets(), field::REST)
    }

    /// Identifier of an echo message, or of an ICMP timestamp message.
    #[inline]
    pub fn ident(&self) -> u16 {
        get_u16(self.as_octets(), field::IDENT)
    }

    /// Sequence number of an echo message, or of an ICMP timestamp message.
    #[inline]
    pub fn seq(&self) -> u16 {
        get_u16(self.as_octets(), field::SEQ)
    }

    /// Data, or the quoted packet of an error.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        slice(self.as_octets(), HEADER_LEN, usize::MAX)
    }
}

impl<K, T: AsRef<[u8]> + AsMut<[u8]>> IcmpPacket<K, T> {
    /// Sets the type without updating the checksum.
    #[inline]
    pub fn set_icmp_type(&mut self, icmp_type: K)
    where
        K: Into<u8>,
    {
        put_u8(self.buffer.as_mut(), field::TYPE, icmp_type.into());
    }

    /// Sets the code without updating the checksum.
    #[inline]
    pub fn set_code(&mut self, code: u8) {
        put_u8(self.buffer.as_mut(), field::CODE, code);
    }

    /// Sets the checksum field.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        put_u16(self.buffer.as_mut(), field::CHECKSUM, checksum);
    }

    /// Sets octets 4 to 7.
    #[inline]
    pub fn set_rest_of_header(&mut self, rest: [u8; 4]) {
        put(self.buffer.as_mut(), field::REST, &rest);
    }

    /// Data or quoted packet, writable.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        slice_mut(self.buffer.as_mut(), HEADER_LEN, usize::MAX)
    }

    /// Computes and writes the checksum of the whole buffer and a pseudo-header with the sum
    /// `pseudo_header`, zero for none.
    #[inline]
    pub(super) fn fill_checksum_from(&mut self, pseudo_header: u32) {
        self.set_checksum(0);
        let checksum = checksum::transport_checksum(pseudo_header, self.as_octets());
        self.set_checksum(checksum);
    }
}

/// Octets 4 to 7 of an echo message.
pub(super) const fn echo_octets(ident: u16, seq: u16) -> [u8; 4] {
    ((ident as u32) << 16 | seq as u32).to_be_bytes()
}

/// Writes type, code and octets 4 to 7. The caller fills in the checksum.
///
/// # Errors
/// [`Error::Truncated`] if `buffer` is shorter than 8 octets.
pub(super) fn write_fields<K: Into<u8>>(
    buffer: &mut [u8],
    icmp_type: K,
    code: u8,
    rest: [u8; 4],
) -> Result<IcmpPacket<K, &mut [u8]>, Error> {
    let mut icmp = IcmpPacket::new_checked(buffer)?;
    icmp.set_icmp_type(icmp_type);
    icmp.set_code(code);
    icmp.set_rest_of_header(rest);
    Ok(icmp)
}
