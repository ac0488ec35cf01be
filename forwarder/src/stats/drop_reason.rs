//! Why a frame was dropped, or handed back to the kernel. Names follow the kernel's
//! `SKB_DROP_REASON_*` (include/net/dropreason-core.h) without the prefix where it has one for the
//! case.

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];
            /// How many there are.
            pub const COUNT: usize = $name::ALL.len();

            /// The name as it is printed.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }

            /// One line on what it means.
            pub fn help(self) -> &'static str {
                match self { $($name::$variant => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}
pub(crate) use reasons;

reasons! {
    /// Why a frame was dropped.
    DropReason {
        /// Shorter than its link-layer header says, or than an Ethernet header.
        EthTruncated = "ETH_TRUNCATED",
        /// An EtherType that is not routed.
        UnhandledProto = "UNHANDLED_PROTO",
        /// Addressed to another station's MAC address.
        OtherHost = "OTHERHOST",
        /// Shorter than the smallest IP header, or than its own header length.
        IpTruncated = "PKT_TOO_SMALL",
        /// IP version other than the EtherType says (RFC 1812 5.2.2 check 4).
        IpVersion = "IP_VERSION",
        /// IPv4 header length below 20 octets (RFC 1812 5.2.2 check 3).
        IpHeaderLength = "IP_INHDR",
        /// IPv4 header checksum wrong (RFC 1812 5.2.2 check 2).
        IpCsum = "IP_CSUM",
        /// Total length beyond the end of the frame or below the header length (RFC 1812 5.2.2 check 5).
        IpTotalLength = "IP_TOTAL_LENGTH",
        /// A malformed IP option.
        IpOptions = "IP_OPTIONS",
        /// A source route, which is refused as accept_source_route=0 does.
        IpSourceRoute = "IP_SOURCE_ROUTE",
        /// Source address that no packet on the wire may have (martian source).
        IpInvalidSource = "IP_INVALID_SOURCE",
        /// Destination address that is never forwarded (martian destination).
        IpInvalidDest = "IP_INVALID_DEST",
        /// Source address is one of our own (kernel: martian source in fib_validate_source).
        IpLocalSource = "IP_LOCAL_SOURCE",
        /// Reverse path filter: the way back does not lead out by this interface.
        IpRpfilter = "IP_RPFILTER",
        /// Forwarding is off on the interface the packet came in by.
        ForwardingOff = "FORWARDING_OFF",
        /// No route to the destination.
        IpNoRoute = "IP_OUTNOROUTES",
        /// A blackhole route or rule.
        Blackhole = "BLACKHOLE",
        /// An unreachable route or rule.
        Unreachable = "UNREACHABLE",
        /// A prohibit route or rule.
        Prohibit = "PROHIBIT",
        /// Time to live or hop limit ran out.
        TtlExceeded = "TTL_EXCEEDED",
        /// Larger than the next hop's MTU and not to be fragmented.
        PktTooBig = "PKT_TOO_BIG",
        /// A fragment could not be made: no free frame, or a fragment beyond 65535 octets.
        FragFailed = "FRAG_FAILED",
        /// Link-local source or destination that may not cross a router (RFC 4291 2.5.6).
        IpBeyondScope = "IP_BEYOND_SCOPE",
        /// Multicast or broadcast, which is not forwarded here.
        NotUnicast = "NOT_UNICAST",
        /// Received as link-layer broadcast or multicast with a unicast destination (RFC 1122 3.3.6).
        UnicastInL2Multicast = "UNICAST_IN_L2_MULTICAST",
        /// IPv6 extension header malformed.
        Ipv6BadExthdr = "IPV6_BAD_EXTHDR",
        /// IPv6 extension headers beyond what is walked.
        Ipv6TooManyExthdrs = "IPV6_TOO_MANY_EXTHDRS",
        /// More hop-by-hop options than are looked at.
        Ipv6TooManyOptions = "IPV6_TOO_MANY_OPTIONS",
        /// IPv6 is disabled on the interface.
        Ipv6Disabled = "IPV6DISABLED",
        /// Hop-by-hop option that says drop when unknown (RFC 8200 4.2).
        Ipv6UnknownOption = "IPV6_UNKNOWN_OPTION",
        /// Dropped by a netfilter hook.
        NetfilterDrop = "NETFILTER_DROP",
        /// The outgoing interface is down or gone.
        DevNotReady = "DEV_READY",
        /// The next hop did not answer.
        NeighFailed = "NEIGH_FAILED",
        /// Too many packets wait for the next hop's address already.
        NeighQueueFull = "NEIGH_QUEUEFULL",
        /// No free frame.
        NoMem = "NOMEM",
        /// No room in front of the packet for a header.
        SkbNoHeadroom = "SKB_NO_HEADROOM",
        /// The TX ring of the outgoing port is full.
        FullRing = "FULL_RING",
        /// The way to the worker that has a queue of the outgoing port is full.
        CpuBacklog = "CPU_BACKLOG",
        /// A worker stood still, or the kernel began to filter, while the packet waited in the worker.
        QueuePurge = "QUEUE_PURGE",
        /// The kernel took the packet from the TX ring and did not send it (EBUSY).
        TxError = "TX_ERROR",
        /// A descriptor of the RX ring that does not lie in one frame.
        RxBadDescriptor = "RX_BAD_DESCRIPTOR",
        /// A packet longer than a frame on a port that does not take such, or longer than any it takes.
        RxMultiBuffer = "RX_MULTI_BUFFER",
        /// A packet in several frames, and longer than the one that its outgoing port takes.
        TxMultiBuffer = "TX_MULTI_BUFFER",
        /// To be handed back to the kernel, but its queue was full, or the kernel did not take it.
        PuntFailed = "PUNT_FAILED",
        /// Still held when the worker stopped.
        Shutdown = "SHUTDOWN",
    }
}

reasons! {
    /// Why a frame was handed back to the kernel.
    PuntReason {
        /// Addressed to this router itself.
        Local = "LOCAL",
        /// Leaves by an interface that is not a port of ours.
        ForeignOif = "FOREIGN_OIF",
        /// A route of a kind that is not mirrored (encapsulation, multicast, …).
        RouteUnsupported = "ROUTE_UNSUPPORTED",
        /// A rule with a selector or action that is not mirrored.
        RuleUnsupported = "RULE_UNSUPPORTED",
        /// An IP option or extension header that the kernel must see (router alert, routing header).
        IpOption = "IP_OPTION",
        /// The destination is broadcast or multicast, or the source is a broadcast or loopback address
        /// that the kernel may or may not let through.
        NotUnicast = "NOT_UNICAST",
        /// Would leave by the interface it came in by and deserves a redirect.
        Redirect = "REDIRECT",
        /// A fragment that reaches beyond 65535 octets and would have to be cut.
        OversizeFragment = "OVERSIZE_FRAGMENT",
        /// The tables have not been filled yet.
        NotReady = "NOT_READY",
        /// It arrived before a firewall or IPsec policy that only the kernel applies was noticed.
        Filtered = "FILTERED",
        /// The worker or the control thread stood still after the packet was received.
        Stalled = "STALLED",
        /// Not IP.
        NotIp = "NOT_IP",
        /// Tagged for a VLAN that no followed sub-interface of the port has.
        VlanUnknown = "VLAN_UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_numbers_count_from_zero() {
        for (n, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, n);
        }
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::COUNT);
    }

    #[test]
    fn help_is_the_documentation() {
        assert_eq!(DropReason::NetfilterDrop.help(), "Dropped by a netfilter hook.");
    }
}
