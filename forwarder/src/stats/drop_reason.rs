//! Reasons for dropping a frame or punting it. Names follow the kernel's `SKB_DROP_REASON_*`
//! (include/net/dropreason-core.h) without the prefix, if it has one for the case.

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            /// All reasons, in numerical order.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];
            /// Number of reasons.
            pub const COUNT: usize = $name::ALL.len();

            /// The printed name.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }

            /// A one-line description.
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
        /// Shorter than its link-layer header requires, or than an Ethernet header.
        EthTruncated = "ETH_TRUNCATED",
        /// An EtherType that is not routed.
        UnhandledProto = "UNHANDLED_PROTO",
        /// Addressed to another station's MAC address.
        OtherHost = "OTHERHOST",
        /// Shorter than the smallest IP header, or than its own header length.
        IpTruncated = "PKT_TOO_SMALL",
        /// IP version differs from the EtherType (RFC 1812 5.2.2 check 4).
        IpVersion = "IP_VERSION",
        /// IPv4 header length below 20 octets (RFC 1812 5.2.2 check 3).
        IpHeaderLength = "IP_INHDR",
        /// IPv4 header checksum wrong (RFC 1812 5.2.2 check 2).
        IpCsum = "IP_CSUM",
        /// Total length beyond the end of the frame or below the header length (RFC 1812 5.2.2 check 5).
        IpTotalLength = "IP_TOTAL_LENGTH",
        /// A malformed IP option.
        IpOptions = "IP_OPTIONS",
        /// A source route, rejected as by accept_source_route=0.
        IpSourceRoute = "IP_SOURCE_ROUTE",
        /// Source address that must not appear on the wire (martian source).
        IpInvalidSource = "IP_INVALID_SOURCE",
        /// Destination address that is never forwarded (martian destination).
        IpInvalidDest = "IP_INVALID_DEST",
        /// Source address is one of our own (kernel: martian source in fib_validate_source).
        IpLocalSource = "IP_LOCAL_SOURCE",
        /// Reverse path filter: the reverse route does not lead through this interface.
        IpRpfilter = "IP_RPFILTER",
        /// Forwarding is disabled on the input interface.
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
        /// Longer than the next hop's MTU and must not be fragmented.
        PktTooBig = "PKT_TOO_BIG",
        /// A fragment could not be made: no free frame, or a fragment beyond 65535 octets.
        FragFailed = "FRAG_FAILED",
        /// Link-local source or destination that must not cross a router (RFC 4291 2.5.6).
        IpBeyondScope = "IP_BEYOND_SCOPE",
        /// Multicast or broadcast, which is not forwarded here.
        NotUnicast = "NOT_UNICAST",
        /// Received as link-layer broadcast or multicast with a unicast destination (RFC 1122 3.3.6).
        UnicastInL2Multicast = "UNICAST_IN_L2_MULTICAST",
        /// IPv6 extension header malformed.
        Ipv6BadExthdr = "IPV6_BAD_EXTHDR",
        /// Too many IPv6 extension headers.
        Ipv6TooManyExthdrs = "IPV6_TOO_MANY_EXTHDRS",
        /// Too many hop-by-hop options.
        Ipv6TooManyOptions = "IPV6_TOO_MANY_OPTIONS",
        /// IPv6 is disabled on the interface.
        Ipv6Disabled = "IPV6DISABLED",
        /// Unknown hop-by-hop option whose type requests a drop (RFC 8200 4.2).
        Ipv6UnknownOption = "IPV6_UNKNOWN_OPTION",
        /// Dropped by a netfilter hook.
        NetfilterDrop = "NETFILTER_DROP",
        /// Taken by a netfilter hook function (NF_STOLEN).
        NetfilterStolen = "NETFILTER_STOLEN",
        /// The outgoing interface is down or gone.
        DevNotReady = "DEV_READY",
        /// The next hop did not answer.
        NeighFailed = "NEIGH_FAILED",
        /// Too many packets already wait for the next hop's address.
        NeighQueueFull = "NEIGH_QUEUEFULL",
        /// No free frame.
        NoMem = "NOMEM",
        /// No room in front of the packet for a header.
        SkbNoHeadroom = "SKB_NO_HEADROOM",
        /// The TX ring of the outgoing port is full.
        FullRing = "FULL_RING",
        /// The kernel did not send a frame that the XDP program redirected (flow offload): the outgoing port
        /// is down, or its driver takes no such frames.
        RedirectRefused = "REDIRECT_REFUSED",
        /// The queue to the worker that sends on the outgoing port is full.
        CpuBacklog = "CPU_BACKLOG",
        /// A worker stalled, or the kernel began to filter, while the packet waited in the worker.
        QueuePurge = "QUEUE_PURGE",
        /// The kernel took the packet from the TX ring but did not send it (EBUSY).
        TxError = "TX_ERROR",
        /// An invalid RX descriptor: it exceeds its frame.
        RxBadDescriptor = "RX_BAD_DESCRIPTOR",
        /// Longer than a frame on a port without multi-buffer support, or than any supported packet.
        RxMultiBuffer = "RX_MULTI_BUFFER",
        /// A multi-buffer packet, and its outgoing port supports one frame per packet.
        TxMultiBuffer = "TX_MULTI_BUFFER",
        /// To be passed to the kernel, but the queue of such packets was full, or the kernel did not take it.
        PuntFailed = "PUNT_FAILED",
        /// A fragment of an IPsec packet to this router that overlaps another one (RFC 5722).
        FragOverlap = "FRAG_OVERLAP",
        /// A fragment of an IPsec packet to this router that was received before.
        DupFrag = "DUP_FRAG",
        /// IPsec: a sequence number that was received before or is left of the window.
        XfrmInStateSeqError = "XFRM_IN_STATE_SEQ_ERROR",
        /// IPsec: a wrong ICV, length or padding.
        XfrmInStateProtoError = "XFRM_IN_STATE_PROTO_ERROR",
        /// IPsec: what was protected is not what the SA carries, or must be dropped for its ECN.
        XfrmInStateModeError = "XFRM_IN_STATE_MODE_ERROR",
        /// IPsec: the SA for receiving has reached a hard limit.
        XfrmInStateExpired = "XFRM_IN_STATE_EXPIRED",
        /// IPsec: a dummy packet, which is no error (RFC 4303 2.6).
        XfrmInDummy = "XFRM_IN_DUMMY",
        /// IPsec: the packet could not be protected.
        XfrmOutError = "XFRM_OUT_ERROR",
        /// IPsec from a file: a packet in clear, or by another SA, that a policy requires to be protected.
        XfrmInTmplMismatch = "XFRM_IN_TMPL_MISMATCH",
        /// IPsec from a file: no policy permits what came through a tunnel.
        XfrmInNoPols = "XFRM_IN_NO_POLS",
        /// IPsec from a file: a policy for received packets drops it.
        XfrmInPolBlock = "XFRM_IN_POL_BLOCK",
        /// IPsec from a file: what the policies look at cannot be read.
        XfrmInHdrError = "XFRM_IN_HDR_ERROR",
        /// IPsec from a file: it came through a tunnel, and only the kernel could go on, such as one for this router.
        XfrmInError = "XFRM_IN_ERROR",
        /// IPsec from a file: there is no SA to protect it.
        XfrmOutNoStates = "XFRM_OUT_NO_STATES",
        /// IPsec from a file: a policy for packets that are sent drops it.
        XfrmOutPolBlock = "XFRM_OUT_POL_BLOCK",
        /// IPsec from a file: there is no route by which the protected packet can be sent.
        XfrmOutBundleGenError = "XFRM_OUT_BUNDLE_GEN_ERROR",
        /// IPsec from a file: no sequence number is reserved.
        XfrmOutStateSeqError = "XFRM_OUT_STATE_SEQ_ERROR",
        /// Still held when the worker stopped.
        Shutdown = "SHUTDOWN",
    }
}

reasons! {
    /// Why a frame was passed to the kernel.
    PuntReason {
        /// Addressed to this router itself.
        Local = "LOCAL",
        /// The outgoing interface is not one of our ports.
        ForeignOif = "FOREIGN_OIF",
        /// The outgoing interface is a port that is left to the kernel, for the reason in `ferroute status`.
        OifLeft = "OIF_LEFT",
        /// A route that only the kernel can apply (encapsulation, multicast, a resilient nexthop group, …).
        RouteUnsupported = "ROUTE_UNSUPPORTED",
        /// A rule with a selector or action that is not mirrored.
        RuleUnsupported = "RULE_UNSUPPORTED",
        /// An IP option or extension header that the kernel must see (router alert, routing header).
        IpOption = "IP_OPTION",
        /// The destination is broadcast or multicast, or the source is a broadcast or loopback address
        /// that the kernel may accept.
        NotUnicast = "NOT_UNICAST",
        /// Would leave through its input interface and needs a redirect.
        Redirect = "REDIRECT",
        /// A fragment that reaches beyond 65535 octets and would have to be fragmented.
        OversizeFragment = "OVERSIZE_FRAGMENT",
        /// The tables have not been filled yet.
        NotReady = "NOT_READY",
        /// Received before a firewall or IPsec policy that only the kernel applies was detected.
        Filtered = "FILTERED",
        /// The worker or the control thread stalled after the packet was received.
        Stalled = "STALLED",
        /// Not IP.
        NotIp = "NOT_IP",
        /// Tagged for a VLAN that is not a mirrored sub-interface of the port.
        VlanUnknown = "VLAN_UNKNOWN",
        /// A rule of the firewall, or a hook function, that only the kernel can apply.
        Netfilter = "NETFILTER",
        /// It leaves by an interface with an nftables chain at egress.
        NetfilterEgress = "NETFILTER_EGRESS",
        /// An IPsec policy protects or drops it, or an error about it.
        Xfrm = "XFRM",
        /// A fragment of an IPsec packet to this router that only the kernel can reassemble: others are missing, the
        /// packet is too long, or there is no memory.
        Fragment = "FRAGMENT",
        /// An ICMP error is due, which the kernel sends with an extension (RFC 4884).
        IcmpExtension = "ICMP_EXTENSION",
        /// The neighbour is not resolved, and the worker has no room to hold the packet; or the kernel would have to send
        /// the error if it cannot be: hook functions or IPsec policies see the router's own packets, or settings want it.
        NeighUnresolved = "NEIGH_UNRESOLVED",
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
