//! The number of the protocol that follows an IP header: IPv4 Protocol, IPv6 Next Header.

use std::fmt;

/// An IP protocol number (IANA "Assigned Internet Protocol Numbers"), also used for IPv6 extension
/// headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Protocol(pub u8);

impl Protocol {
    /// IPv6 Hop-by-Hop Options, RFC 8200 §4.3.
    pub const HOP_BY_HOP: Self = Self(0);
    /// ICMP, RFC 792.
    pub const ICMP: Self = Self(1);
    /// IGMP, RFC 3376.
    pub const IGMP: Self = Self(2);
    /// IPv4 in IP, RFC 2003.
    pub const IPIP: Self = Self(4);
    /// TCP, RFC 9293.
    pub const TCP: Self = Self(6);
    /// UDP, RFC 768.
    pub const UDP: Self = Self(17);
    /// DCCP, RFC 4340.
    pub const DCCP: Self = Self(33);
    /// IPv6 in IP, RFC 4213.
    pub const IPV6: Self = Self(41);
    /// IPv6 Routing header, RFC 8200 §4.4.
    pub const ROUTING: Self = Self(43);
    /// IPv6 Fragment header, RFC 8200 §4.5.
    pub const FRAGMENT: Self = Self(44);
    /// GRE, RFC 2784.
    pub const GRE: Self = Self(47);
    /// Encapsulating Security Payload, RFC 4303.
    pub const ESP: Self = Self(50);
    /// Authentication Header, RFC 4302.
    pub const AH: Self = Self(51);
    /// ICMPv6, RFC 4443.
    pub const ICMPV6: Self = Self(58);
    /// IPv6 No Next Header, RFC 8200 §4.7.
    pub const NO_NEXT_HEADER: Self = Self(59);
    /// IPv6 Destination Options, RFC 8200 §4.6.
    pub const DEST_OPTS: Self = Self(60);
    /// OSPF, RFC 2328.
    pub const OSPF: Self = Self(89);
    /// IPv6 Mobility Header, RFC 6275 §6.1.
    pub const MOBILITY: Self = Self(135);
    /// VRRP, RFC 9568.
    pub const VRRP: Self = Self(112);
    /// SCTP, RFC 9260.
    pub const SCTP: Self = Self(132);
    /// UDP-Lite, RFC 3828.
    pub const UDPLITE: Self = Self(136);
}

impl Protocol {
    /// The name, if it is one of the constants above.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::HOP_BY_HOP => "HBH",
            Self::ICMP => "ICMP",
            Self::IGMP => "IGMP",
            Self::IPIP => "IPIP",
            Self::TCP => "TCP",
            Self::UDP => "UDP",
            Self::DCCP => "DCCP",
            Self::IPV6 => "IPv6",
            Self::ROUTING => "Routing",
            Self::FRAGMENT => "Fragment",
            Self::GRE => "GRE",
            Self::ESP => "ESP",
            Self::AH => "AH",
            Self::ICMPV6 => "ICMPv6",
            Self::NO_NEXT_HEADER => "none",
            Self::DEST_OPTS => "DSTOPT",
            Self::OSPF => "OSPF",
            Self::VRRP => "VRRP",
            Self::SCTP => "SCTP",
            Self::UDPLITE => "UDPLite",
            _ => return None,
        })
    }
}

impl From<u8> for Protocol {
    fn from(number: u8) -> Self {
        Self(number)
    }
}

impl From<Protocol> for u8 {
    fn from(protocol: Protocol) -> Self {
        protocol.0
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "ip-proto-{}", self.0),
        }
    }
}
