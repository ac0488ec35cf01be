//! Parsing of IPv4 options (RFC 791 §3.1).
//!
//! The iterator checks what `__ip_options_compile` checks for every option: that it has a length and that
//! the length fits. The caller checks the fields of an option.

use super::Error;
use super::ipv4::HEADER_LEN_MIN;
use super::octets::get_u8;

/// An option's first octet: copied flag, class and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OptionKind(pub u8);

impl OptionKind {
    /// End of option list.
    pub const EOL: Self = Self(0);
    /// No operation.
    pub const NOP: Self = Self(1);
    /// Record route.
    pub const RR: Self = Self(7);
    /// Internet timestamp.
    pub const TS: Self = Self(68);
    /// Security (RFC 1108).
    pub const SEC: Self = Self(130);
    /// Loose source and record route.
    pub const LSRR: Self = Self(131);
    /// CIPSO.
    pub const CIPSO: Self = Self(134);
    /// Stream identifier.
    pub const SID: Self = Self(136);
    /// Strict source and record route.
    pub const SSRR: Self = Self(137);
    /// Router alert (RFC 2113).
    pub const RA: Self = Self(148);

    /// Whether the option is copied to every fragment, not only the first one.
    #[inline]
    #[must_use]
    pub const fn copied(self) -> bool {
        self.0 & 0x80 != 0
    }

    /// Loose or strict source route.
    #[inline]
    #[must_use]
    pub const fn is_source_route(self) -> bool {
        matches!(self, Self::LSRR | Self::SSRR)
    }
}

/// One option in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Option<'a> {
    /// Its kind.
    pub kind: OptionKind,
    /// Offset of its first octet from the start of the IP header.
    pub offset: usize,
    /// All its octets, kind and length included: one for EOL and NOP, two or more otherwise.
    pub octets: &'a [u8],
}

impl<'a> Ipv4Option<'a> {
    /// The octets after kind and length.
    #[inline]
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        self.octets.get(2..).unwrap_or(&[])
    }

    /// The pointer of RR, LSRR, SSRR and TS: counts octets of the option from 1. Zero if the
    /// option is too short to have one.
    #[inline]
    #[must_use]
    pub fn pointer(&self) -> u8 {
        get_u8(self.octets, 2)
    }

    /// The overflow count (high four bits) and flag (low four) of TS. Zero if there is no such octet.
    #[inline]
    #[must_use]
    pub fn overflow_flag(&self) -> u8 {
        get_u8(self.octets, 3)
    }
}

/// Iterates over the options of one header. EOL is the last option; padding follows it. Nothing is
/// returned after an error.
#[derive(Clone, Debug)]
pub struct Ipv4Options<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Ipv4Options<'a> {
    /// Takes the octets of the options only.
    #[inline]
    #[must_use]
    pub const fn new(octets: &'a [u8]) -> Self {
        Self { rest: octets, offset: HEADER_LEN_MIN }
    }
}

impl<'a> Iterator for Ipv4Options<'a> {
    /// The error is [`Error::BadOption`] with the offset of the option's first octet.
    type Item = Result<Ipv4Option<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let kind = OptionKind(*self.rest.first()?);
        let len = match kind {
            OptionKind::EOL | OptionKind::NOP => 1,
            _ => usize::from(get_u8(self.rest, 1)),
        };
        let fits = len >= 2 || matches!(kind, OptionKind::EOL | OptionKind::NOP);
        let offset = self.offset;
        let Some((octets, rest)) = self.rest.split_at_checked(len).filter(|_| fits) else {
            self.rest = &[];
            return Some(Err(Error::BadOption { pointer: offset }));
        };
        self.rest = if kind == OptionKind::EOL { &[] } else { rest };
        self.offset += len;
        Some(Ok(Ipv4Option { kind, offset, octets }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(octets: &[u8]) -> Vec<Result<(u8, usize, usize), Error>> {
        Ipv4Options::new(octets)
            .map(|option| option.map(|option| (option.kind.0, option.offset, option.octets.len())))
            .collect()
    }

    #[test]
    fn options_are_returned_in_order_with_their_offsets() {
        // NOP, RR with one slot, EOL, padding.
        let octets = [1, 7, 7, 4, 0, 0, 0, 0, 0, 9, 9, 9];
        assert_eq!(walk(&octets), [Ok((1, 20, 1)), Ok((7, 21, 7)), Ok((0, 28, 1))]);
        let route = Ipv4Options::new(&octets).nth(1).unwrap().unwrap();
        assert_eq!(route.pointer(), 4);
        assert_eq!(route.data(), [4, 0, 0, 0, 0]);
        assert_eq!(walk(&[]), []);
    }

    #[test]
    fn a_bad_length_reports_its_option_and_ends_parsing() {
        let bad = |pointer| Err(Error::BadOption { pointer });
        assert_eq!(walk(&[1, 7, 1, 4]), [Ok((1, 20, 1)), bad(21)]);
        assert_eq!(walk(&[7, 0, 1, 1]), [bad(20)]);
        assert_eq!(walk(&[1, 1, 7, 3]), [Ok((1, 20, 1)), Ok((1, 21, 1)), bad(22)]);
        assert_eq!(
            walk(&[1, 1, 1, 148]),
            [Ok((1, 20, 1)), Ok((1, 21, 1)), Ok((1, 22, 1)), bad(23)]
        );
    }

    #[test]
    fn the_copied_flag_is_the_first_bit() {
        let copied = [OptionKind::SEC, OptionKind::LSRR, OptionKind::SSRR, OptionKind::RA];
        assert!(copied.iter().all(|kind| kind.copied()));
        let first_only = [OptionKind::EOL, OptionKind::NOP, OptionKind::RR, OptionKind::TS];
        assert!(!first_only.iter().any(|kind| kind.copied()));
    }
}
