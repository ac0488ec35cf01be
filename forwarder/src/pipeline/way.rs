//! What is remembered of a packet on its way, beside the packet itself.

use super::Exit;
use super::dst::Dst;
use super::original::Original;
use super::secpath::Secpath;
use crate::stats::PuntReason;
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

    /// Whether an xfrm interface counts as the one that received it: errors about it are the kernel's.
    #[inline]
    pub fn is_by_xfrmi(&self) -> bool {
        self.secpath.is_some_and(|secpath| secpath.state.state().config().if_id != 0)
    }

    /// How it ends, if a stage ends it.
    #[cold]
    pub fn exit(&self, exit: Exit) -> Exit {
        match exit {
            Exit::Icmp(_) if self.is_by_xfrmi() => Exit::Punt(PuntReason::Xfrm),
            exit => exit,
        }
    }
}
