//! Why octets are not the header they were taken for.

/// Why a header cannot be read.
///
/// Offsets count octets from the start of the IP header where an IP header is concerned, so that a
/// Parameter Problem message can carry them; see [`Error::pointer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The buffer ends before the header does.
    #[error("{available} octets where the header takes {needed}")]
    Truncated {
        /// Octets the header takes.
        needed: usize,
        /// Octets there are.
        available: usize,
    },
    /// The header states a length it cannot have.
    #[error("header length of {len} octets, stated at octet {pointer}, cannot be")]
    BadHeaderLen {
        /// Offset of the length field.
        pointer: usize,
        /// The length it states, in octets.
        len: usize,
    },
    /// An option runs past its area or has no room for its own length.
    #[error("malformed option at octet {pointer}")]
    BadOption {
        /// Offset of the option's first octet.
        pointer: usize,
    },
    /// More IPv6 extension headers than [`MAX_EXT_HEADERS`](super::ipv6_ext::MAX_EXT_HEADERS).
    #[error("too many extension headers, the first one too many at octet {pointer}")]
    TooManyHeaders {
        /// Offset of the first extension header not walked.
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
    /// The octet at fault, if the error has one: what a Parameter Problem's pointer says.
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
