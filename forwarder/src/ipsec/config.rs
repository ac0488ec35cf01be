//! What an SA is without its keys: what XFRM_MSG_NEWSA says.
//!
//! Not included, so that an SA which has one of these is left to the kernel: marks that packets get
//! (XFRMA_SET_MARK), SAs of one CPU (XFRMA_SA_PCPU), offload to a device (XFRMA_OFFLOAD_DEV), security contexts
//! (XFRMA_SEC_CTX), care-of addresses (XFRMA_COADDR), encapsulation other than that of ESP in UDP (XFRMA_ENCAP
//! of type TCP_ENCAP_ESPINTCP), padding of outbound packets (XFRMA_TFCPAD), and flags that
//! [`StateFlags::from_kernel`] does not know.

use std::net::IpAddr;
use std::ops::{BitOr, BitOrAssign};

use super::selector::{Mark, Selector};
use crate::wire::Protocol;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// AF_INET.
    Ipv4,
    /// AF_INET6.
    Ipv6,
}

impl Family {
    /// The family of an address.
    #[inline]
    #[must_use]
    pub const fn of(addr: IpAddr) -> Family {
        if addr.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// What a tunnel's next header is for a packet of this family.
    #[inline]
    #[must_use]
    pub const fn tunnel_protocol(self) -> Protocol {
        match self {
            Family::Ipv4 => Protocol::IPIP,
            Family::Ipv6 => Protocol::IPV6,
        }
    }
}

/// What is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The payload of the packet.
    Transport,
    /// The packet, inside another one.
    Tunnel,
}

/// In which order SAs or policies are given: of several that match, the kernel's choice depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// The last one was added first: the order of a netlink dump of SAs (XFRM_MSG_GETSA) or policies
    /// (XFRM_MSG_GETPOLICY). The kernel puts new ones at the head of the lists that it dumps: `list_add` to
    /// `net->xfrm.state_all` in `__xfrm_state_insert` and to `net->xfrm.policy_all` in `__xfrm_policy_link`,
    /// which `xfrm_state_walk` and `xfrm_policy_walk` read from the head.
    NewestFirst,
    /// The first one was added first: the order of netlink notifications.
    OldestFirst,
}

impl Order {
    /// The items, the oldest first.
    pub(super) fn oldest_first<T>(self, items: impl IntoIterator<Item = T>) -> Vec<T> {
        let mut items: Vec<T> = items.into_iter().collect();
        if self == Order::NewestFirst {
            items.reverse();
        }
        items
    }
}

/// Validity of an SA: XFRM_STATE_VALID and the like. Netlink does not tell it: what is dumped with keys is
/// `Valid` until XFRM_MSG_EXPIRE says that a hard limit was reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum KmState {
    /// It is being negotiated (XFRM_STATE_ACQ), and packets wait for it. The kernel has no keys and perhaps no
    /// SPI for it yet; here it has any keys, which are never used, because another SA takes its place.
    Acquiring,
    /// It works.
    #[default]
    Valid,
    /// Its negotiation failed.
    Error,
    /// It reached a hard limit.
    Expired,
    /// It was deleted.
    Dead,
}

/// Flags of an SA: XFRM_STATE_* in the low octet, XFRM_SA_XFLAG_* above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StateFlags(pub u16);

impl StateFlags {
    /// XFRM_STATE_NOECN: the outer header has ECN 0, and the outer ECN is not combined with the inner one.
    pub const NOECN: Self = Self(1);
    /// XFRM_STATE_DECAP_DSCP: the inner packet gets the outer DSCP. (Without it, the default, it keeps its
    /// own.)
    pub const DECAP_DSCP: Self = Self(2);
    /// XFRM_STATE_NOPMTUDISC: the outer header has DF 0. (Without it DF is copied from inside; of IPv6 it is
    /// 1.)
    pub const NOPMTUDISC: Self = Self(4);
    /// XFRM_STATE_WILDRECV: for receiving from any source; never chosen for sending.
    pub const WILDRECV: Self = Self(8);
    /// XFRM_STATE_ICMP: ICMP errors pass if the packet that they quote matches the selector.
    pub const ICMP: Self = Self(16);
    /// XFRM_STATE_AF_UNSPEC: a selector without a family stays so, and a tunnel carries both. It does not
    /// change a selector that has a family ([`selector_family`](Self::selector_family)).
    pub const AF_UNSPEC: Self = Self(32);
    /// XFRM_STATE_ALIGN4: AH over IPv4 is a multiple of 4 octets, as RFC 4302 §2.6 has it. (Without it of 8,
    /// the default of the kernel.)
    pub const ALIGN4: Self = Self(64);
    /// XFRM_STATE_ESN: sequence numbers have 64 bits.
    pub const ESN: Self = Self(128);
    /// XFRM_SA_XFLAG_DONT_ENCAP_DSCP: the outer header has DSCP 0. (Without it a copy of the inner one.)
    pub const DONT_ENCAP_DSCP: Self = Self(1 << 8);

    /// Those of XFRM_MSG_NEWSA (`flags`) and XFRMA_SA_EXTRA_FLAGS (`extra`). `None`: one of them is unknown
    /// or not supported, such as XFRM_SA_XFLAG_OSEQ_MAY_WRAP; the SA is left to the kernel.
    #[must_use]
    pub const fn from_kernel(flags: u8, extra: u32) -> Option<Self> {
        // All eight bits of `flags` are constants above.
        match extra {
            0 => Some(Self(flags as u16)),
            1 => Some(Self(flags as u16 | Self::DONT_ENCAP_DSCP.0)),
            _ => None,
        }
    }

    /// What [`StateConfig::selector_family`] is, as the kernel's `copy_from_user_state` decides it: the
    /// selector's own family (`sel.family`; `None`: AF_UNSPEC), or without one the SA's, unless the flag
    /// AF_UNSPEC is set.
    #[must_use]
    pub fn selector_family(self, of_selector: Option<Family>, of_state: Family) -> Option<Family> {
        let default = if self.contains(Self::AF_UNSPEC) { None } else { Some(of_state) };
        of_selector.or(default)
    }

    /// Whether all flags of `other` are set.
    #[inline]
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for StateFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for StateFlags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// How ECN passes a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EcnRules {
    /// RFC 6040 §4: CE is copied outward; inward the outer ECN is combined, and CE around a packet that does
    /// not understand it drops the packet.
    #[default]
    Rfc6040,
    /// As the kernel's XFRM (RFC 3168 §9.1.1): CE becomes ECT(0) outward; inward only CE counts, and around a
    /// packet that does not understand it, it is ignored.
    Xfrm,
}

/// Ports of UDP encapsulation (RFC 3948), as the packets of the SA have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UdpPorts {
    /// Source.
    pub src: u16,
    /// Destination.
    pub dst: u16,
}

/// Limits of an SA: `xfrm_lifetime_cfg`. An SA does not work any more when it reaches a hard limit; at a soft
/// one it should be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Octets; soft and hard limit.
    pub bytes: [u64; 2],
    /// Packets; soft and hard limit.
    pub packets: [u64; 2],
    /// Seconds since the SA was added; soft and hard limit, 0 for none.
    pub add_s: [u64; 2],
    /// Seconds since the first packet; soft and hard limit, 0 for none.
    pub use_s: [u64; 2],
}

impl Lifetime {
    /// No limits: the kernel's XFRM_INF.
    pub const INFINITE: Lifetime =
        Lifetime { bytes: [u64::MAX; 2], packets: [u64::MAX; 2], add_s: [0; 2], use_s: [0; 2] };
}

impl Default for Lifetime {
    fn default() -> Lifetime {
        Lifetime::INFINITE
    }
}

/// What an SA has been used for: `xfrm_lifetime_cur`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Octets. As in the kernel: of the inner packet in tunnel mode, of the payload in transport mode.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// When the SA was added, in seconds; not 0 if the lifetime has a limit of seconds since then.
    pub add_time_s: u64,
    /// When the first packet came, in seconds; 0: none did.
    pub use_time_s: u64,
}

/// What an SA is: XFRM_MSG_NEWSA without keys.
#[derive(Clone, Debug)]
pub struct StateConfig {
    /// Source: of the outer header in tunnel mode.
    pub src: IpAddr,
    /// Destination, of the same family; with SPI and protocol it identifies an inbound SA.
    pub dst: IpAddr,
    /// Security parameters index; not 0, unless the SA is being negotiated.
    pub spi: u32,
    /// What templates ask for; 0: nothing in particular.
    pub reqid: u32,
    /// Mode.
    pub mode: Mode,
    /// Flags.
    pub flags: StateFlags,
    /// How ECN passes a tunnel.
    pub ecn: EcnRules,
    /// Packets that may use the SA.
    pub selector: Selector,
    /// Family of `selector`; `None`: of both ([`StateFlags::selector_family`]). Packets inside a tunnel must
    /// be of it.
    pub selector_family: Option<Family>,
    /// Packets with this mark find the SA.
    pub mark: Mark,
    /// XFRMA_IF_ID: the xfrm interface; 0 for none.
    pub if_id: u32,
    /// Whether it works.
    pub km_state: KmState,
    /// Limits.
    pub lifetime: Lifetime,
    /// Usage so far.
    pub usage: Usage,
    /// UDP encapsulation of ESP, or none.
    pub encap: Option<UdpPorts>,
    /// Length of the window against replay in packets; for receiving.
    pub replay_window: u32,
}

impl StateConfig {
    /// An SA for packets of its own family between two addresses, without anything that it may have besides: reqid,
    /// flags, limits, mark, UDP, replay window.
    #[must_use]
    pub fn new(mode: Mode, [src, dst]: [IpAddr; 2], spi: u32) -> StateConfig {
        StateConfig {
            src,
            dst,
            spi,
            reqid: 0,
            mode,
            flags: StateFlags::default(),
            ecn: EcnRules::default(),
            selector: Selector::default(),
            selector_family: Some(Family::of(dst)),
            mark: Mark::default(),
            if_id: 0,
            km_state: KmState::Valid,
            lifetime: Lifetime::INFINITE,
            usage: Usage::default(),
            encap: None,
            replay_window: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_are_not_understood_are_refused() {
        let both = StateFlags::ESN | StateFlags::DONT_ENCAP_DSCP;
        assert_eq!(StateFlags::from_kernel(128, 1), Some(both));
        assert_eq!(StateFlags::from_kernel(0xff, 0), Some(StateFlags(0xff)));
        // XFRM_SA_XFLAG_OSEQ_MAY_WRAP, and what may come.
        for extra in [2, 3, 4, 1 << 8, u32::MAX] {
            assert_eq!(StateFlags::from_kernel(0, extra), None);
        }
    }

    #[test]
    fn the_flag_unspec_is_for_selectors_without_a_family() {
        let (v4, v6) = (Family::Ipv4, Family::Ipv6);
        let none = StateFlags::default();
        assert_eq!(none.selector_family(None, v4), Some(v4));
        assert_eq!(none.selector_family(Some(v6), v4), Some(v6));
        assert_eq!(StateFlags::AF_UNSPEC.selector_family(None, v4), None);
        assert_eq!(StateFlags::AF_UNSPEC.selector_family(Some(v4), v6), Some(v4));
    }
}
