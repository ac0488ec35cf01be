//! Errors of parsing headers.

/// Why a header cannot be parsed.
///
/// For IP headers, offsets count octets from the start of the IP header, so that they can be used in a
/// Parameter Problem message; see [`Error::pointer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The buffer ends before the header does.
    #[error("truncated header: {available} of {needed} octets")]
    Truncated {
        /// Octets that the header needs.
        needed: usize,
        /// Octets available.
        available: usize,
    },
    /// The header states an impossible length.
    #[error("invalid header length of {len} octets at octet {pointer}")]
    BadHeaderLen {
        /// Offset of the length field.
        pointer: usize,
        /// The stated length, in octets.
        len: usize,
    },
    /// An option exceeds its area or has no room for its own length.
    #[error("malformed option at octet {pointer}")]
    BadOption {
        /// Offset of the option's first octet.
        pointer: usize,
    },
    /// More IPv6 extension headers than [`MAX_EXT_HEADERS`](super::ipv6_ext::MAX_EXT_HEADERS).
    #[error("too many extension headers: parsing stopped at octet {pointer}")]
    TooManyHeaders {
        /// Offset of the first extension header that was not parsed.
        pointer: usize,
    },
    /// ARP for something other than IPv4 over Ethernet.
    #[error("ARP for hardware type {hardware_type} and protocol {protocol_type:#06x}")]
    NotIpv4OverEthernet {
        /// The hardware type (`ar$hrd`).
        hardware_type: u16,
        /// The protocol type (`ar$pro`).
        protocol_type: u16,
    },
}

impl Error {
    /// Offset of the invalid octet, if the error has one, for a Parameter Problem's pointer.
    #[must_use]
    pub const fn pointer(self) -> Option<usize> {
        match self {
            Self::BadHeaderLen { pointer, .. }
            | Self::BadOption { pointer }
            | Self::TooManyHeaders { pointer } => Some(pointer),
            Self::Truncated { .. } | Self::NotIpv4OverEthernet { .. } => None,
        }
    }
}

/// Fails unless `data` has `needed` octets.
#[inline]
pub(super) fn require(data: &[u8], needed: usize) -> Result<(), Error> {
    if data.len() < needed {
        return Err(Error::Truncated { needed, available: data.len() });
    }
    Ok(())
}
