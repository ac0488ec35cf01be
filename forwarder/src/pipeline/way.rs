//! What is remembered of a packet on its way, beside the packet itself.

use super::dst::Dst;
use super::original::Original;
use super::secpath::Secpath;
use crate::wire::EtherType;

/// What is remembered of a packet on its way.
#[derive(Debug, Default)]
pub(super) struct Way<'a> {
    /// What it was if hook functions may have changed its octets.
    pub original: Option<Original>,
    /// See [`Original::len_of`].
    pub received_len: usize,
    /// It was received with this protection.
    pub secpath: Option<Secpath<'a>>,
    /// It is sent with protection: protocol and route of the outer packet.
    pub protected: Option<(EtherType, Dst<'a>)>,
}

impl Way<'_> {
    /// Whether IPsec has protected it or does.
    #[inline]
    pub fn is_of_ipsec(&self) -> bool {
        self.secpath.is_some() || self.protected.is_some()
    }
}
