//! Address prefixes, parsed and printed as iproute2 does, and the bit arithmetic on addresses that the
//! tables need.
//!
//! An address is a number here: `u32` for IPv4, `u128` for IPv6, most significant bit first on the wire
//! (`u32::from_be_bytes`). Nothing in this file depends on routes.

use std::fmt::{self, Debug, Display};
use std::hash::Hash;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

/// An IPv4 prefix.
pub type Prefix4 = Prefix<u32>;
/// An IPv6 prefix.
pub type Prefix6 = Prefix<u128>;

/// Why a prefix is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PrefixError {
    /// The part before the slash is not an address of this family.
    #[error("\"{text}\" is not an {family} address")]
    Address {
        /// What was given.
        text: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// The length is not a decimal number, or longer than the address.
    #[error("prefix length \"{text}\" is not a number from 0 to {max}")]
    Length {
        /// What was given.
        text: String,
        /// Longest prefix of the family, in bits.
        max: u8,
    },
    /// Bits are set beyond the prefix length; the kernel rejects such routes too.
    #[error("{address}/{len} has host bits set; the network is {network}/{len}")]
    HostBits {
        /// The address that was given.
        address: String,
        /// Prefix length in bits.
        len: u8,
        /// The address without the host bits.
        network: String,
    },
}

/// An address and the number of its leading bits that are significant. Canonical: all bits beyond `len`
/// are zero.
///
/// Ordered by address, then length, so that a covering prefix precedes the prefixes it covers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix<A> {
    bits: A,
    len: u8,
}

impl<A: Address> Prefix<A> {
    /// The prefix of all addresses, `default` in iproute2.
    pub const DEFAULT: Self = Self { bits: A::ZERO, len: 0 };

    /// The prefix `addr/len`; an error if `len` (in bits) is longer than the address or bits beyond it
    /// are set.
    pub fn new(addr: A::Std, len: u8) -> Result<Self, PrefixError> {
        let bits = A::from_std(addr);
        let prefix = Self::truncated(bits, len)?;
        if prefix.bits != bits {
            return Err(PrefixError::HostBits {
                address: addr.to_string(),
                len,
                network: prefix.addr().to_string(),
            });
        }
        Ok(prefix)
    }

    /// The prefix of `len` bits that contains `bits`; an error if `len` is longer than the address.
    pub fn truncated(bits: A, len: u8) -> Result<Self, PrefixError> {
        if len > A::LEN {
            return Err(PrefixError::Length { text: len.to_string(), max: A::LEN });
        }
        Ok(Self::masked(bits, len))
    }

    /// The prefix of this single address.
    pub fn host(bits: A) -> Self {
        Self { bits, len: A::LEN }
    }

    /// As [`Prefix::truncated`] for a length known to be valid: a longer one is limited to the address's
    /// length.
    pub(crate) fn masked(bits: A, len: u8) -> Self {
        let len = len.min(A::LEN);
        Self { bits: bits.and(A::netmask(len)), len }
    }

    /// The network address.
    pub fn addr(&self) -> A::Std {
        self.bits.into_std()
    }

    /// The network address as a number.
    pub fn bits(&self) -> A {
        self.bits
    }

    /// The prefix length in bits.
    #[expect(clippy::len_without_is_empty, reason = "a prefix length, not a container's")]
    pub fn len(&self) -> u8 {
        self.len
    }

    /// The last address in the prefix.
    pub fn last(&self) -> A {
        self.bits.or(A::netmask(self.len).not())
    }

    /// Whether `addr` is in the prefix.
    pub fn contains(&self, addr: A) -> bool {
        addr.and(A::netmask(self.len)) == self.bits
    }

    /// Whether every address of `other` is in the prefix; a prefix covers itself.
    pub fn covers(&self, other: &Self) -> bool {
        self.len <= other.len && self.contains(other.bits)
    }
}

/// As iproute2 prints a destination: `default`, a host without a length, all others as `address/length`.
impl<A: Address> Display for Prefix<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.len {
            0 => "default".to_owned(),
            len if len == A::LEN => self.addr().to_string(),
            len => format!("{}/{len}", self.addr()),
        };
        f.pad(&text)
    }
}

impl<A: Address> Debug for Prefix<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.len)
    }
}

/// Parses the output of [`Display`], and always `address/length`.
impl<A: Address> FromStr for Prefix<A> {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        if matches!(text, "default" | "any" | "all") {
            return Ok(Self::DEFAULT);
        }
        let (addr, len) = match text.split_once('/') {
            Some((addr, len)) => (addr, Some(len)),
            None => (text, None),
        };
        let addr: A::Std = addr
            .parse()
            .map_err(|_| PrefixError::Address { text: addr.to_owned(), family: A::FAMILY })?;
        let len = match len {
            None => A::LEN,
            // u8::from_str accepts a sign; a prefix length has none.
            Some(len) => Some(len)
                .filter(|len| len.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|len| len.parse().ok())
                .filter(|len| *len <= A::LEN)
                .ok_or_else(|| PrefixError::Length { text: len.to_owned(), max: A::LEN })?,
        };
        Self::new(addr, len)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u32 {}
    impl Sealed for u128 {}
}

/// An address as a number: only `u32` or `u128`.
pub trait Address: sealed::Sealed + Copy + Ord + Hash + Debug + Send + Sync + 'static {
    /// The address's length in bits.
    const LEN: u8;
    /// All bits zero.
    const ZERO: Self;
    /// The family's name in messages.
    const FAMILY: &'static str;
    /// The standard library's type of the same address.
    type Std: Copy + Eq + Debug + Display + FromStr;

    /// From the standard library's type.
    fn from_std(addr: Self::Std) -> Self;
    /// As the standard library's type.
    fn into_std(self) -> Self::Std;
    /// Bitwise AND.
    fn and(self, other: Self) -> Self;
    /// Bitwise OR.
    fn or(self, other: Self) -> Self;
    /// Bitwise NOT.
    fn not(self) -> Self;
    /// The first `len` bits set. `len` is at most [`Address::LEN`].
    fn netmask(len: u8) -> Self;
    /// `count` bits (1 to 32) starting at bit `depth`, bit 0 being the most significant; zeros beyond the
    /// end. With a `depth` of [`Address::LEN`] or more, the result is unspecified.
    fn bits_at(self, depth: u8, count: u8) -> u32;
    /// The address that has `value` in the `count` bits starting at `depth` and zeros elsewhere. `depth +
    /// count` is at most [`Address::LEN`].
    fn from_bits_at(value: u32, depth: u8, count: u8) -> Self;
}

macro_rules! address {
    ($int:ty, $std:ty, $family:literal) => {
        impl Address for $int {
            const LEN: u8 = <$int>::BITS as u8;
            const ZERO: Self = 0;
            const FAMILY: &'static str = $family;
            type Std = $std;

            fn from_std(addr: $std) -> Self {
                addr.to_bits()
            }

            fn into_std(self) -> $std {
                <$std>::from_bits(self)
            }

            fn and(self, other: Self) -> Self {
                self & other
            }

            fn or(self, other: Self) -> Self {
                self | other
            }

            fn not(self) -> Self {
                !self
            }

            fn netmask(len: u8) -> Self {
                <$int>::MAX.checked_shl(u32::from(Self::LEN - len)).unwrap_or(0)
            }

            #[inline(always)]
            fn bits_at(self, depth: u8, count: u8) -> u32 {
                (self.wrapping_shl(u32::from(depth)) >> (Self::LEN - count)) as u32
            }

            fn from_bits_at(value: u32, depth: u8, count: u8) -> Self {
                <$int>::from(value).checked_shl(u32::from(Self::LEN - depth - count)).unwrap_or(0)
            }
        }
    };
}

address!(u32, Ipv4Addr, "IPv4");
address!(u128, Ipv6Addr, "IPv6");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints_as_iproute2() {
        for (text, printed) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1/32", "192.0.2.1"),
            ("0.0.0.0/0", "default"),
            ("default", "default"),
        ] {
            assert_eq!(text.parse::<Prefix4>().unwrap().to_string(), printed);
        }
        for (text, printed) in [
            ("2001:DB8::/32", "2001:db8::/32"),
            ("::1", "::1"),
            ("::1/128", "::1"),
            ("::/0", "default"),
            ("::ffff:192.0.2.0/120", "::ffff:192.0.2.0/120"),
        ] {
            assert_eq!(text.parse::<Prefix6>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn invalid_prefixes_are_rejected_with_a_reason() {
        let error = |text: &str| text.parse::<Prefix4>().unwrap_err().to_string();
        assert_eq!(error("10.0.0.1/8"), "10.0.0.1/8 has host bits set; the network is 10.0.0.0/8");
        assert_eq!(error("10.0.0.0/33"), "prefix length \"33\" is not a number from 0 to 32");
        assert_eq!(error("10.0.0.0/+8"), "prefix length \"+8\" is not a number from 0 to 32");
        assert_eq!(error("10.0.0.0/"), "prefix length \"\" is not a number from 0 to 32");
        assert_eq!(error("10.0.0/8"), "\"10.0.0\" is not an IPv4 address");
        assert_eq!(error("::/0"), "\"::\" is not an IPv4 address");
        assert_eq!(
            "1.2.3.4/8".parse::<Prefix6>().unwrap_err().to_string(),
            "\"1.2.3.4\" is not an IPv6 address"
        );
        assert!(Prefix4::truncated(0, 33).is_err());
    }

    #[test]
    fn contains_and_covers_at_the_edges() {
        let p: Prefix4 = "10.1.0.0/16".parse().unwrap();
        assert!(p.contains(0x0a01_0000) && p.contains(0x0a01_ffff));
        assert!(!p.contains(0x0a00_ffff) && !p.contains(0x0a02_0000));
        assert_eq!(p.last(), 0x0a01_ffff);
        assert!(p.covers(&p) && p.covers(&"10.1.2.0/24".parse().unwrap()));
        assert!(!p.covers(&"10.0.0.0/8".parse().unwrap()));
        assert!(Prefix4::DEFAULT.covers(&p) && Prefix4::DEFAULT.contains(u32::MAX));
        let h = Prefix6::host(u128::MAX);
        assert!(h.contains(u128::MAX) && !h.contains(u128::MAX - 1));
        assert_eq!(h.last(), u128::MAX);
    }

    #[test]
    fn bits_at_inverts_from_bits_at() {
        assert_eq!(0x1234_5678u32.bits_at(0, 18), 0x1234_5678 >> 14);
        assert_eq!(0x1234_5678u32.bits_at(30, 6), 0, "zeros beyond the end");
        assert_eq!(0xffff_ffffu32.bits_at(30, 6), 0b11_0000);
        assert_eq!(u32::from_bits_at(0b11, 30, 2), 3);
        assert_eq!(u128::from_bits_at(1, 0, 1), 1 << 127);
        assert_eq!(u128::MAX.bits_at(126, 6), 0b11_0000);
        assert_eq!(u32::from_bits_at(0, 0, 0), 0);
    }
}
