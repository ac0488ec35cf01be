//! The counters that `nstat` prints, for packets processed in userspace (RFC 4293, RFC 4884; kernel:
//! include/uapi/linux/snmp.h). A packet that is handed to the kernel is the kernel's to count.

use super::drop_reason::reasons;

reasons! {
    /// A MIB counter.
    Mib {
        /// IPv4 packets received; those that are handed to the kernel are its to count.
        IpInReceives = "IpInReceives",
        /// IPv4 packets with errors in their headers.
        IpInHdrErrors = "IpInHdrErrors",
        /// IPv4 packets with an address that cannot be routed.
        IpInAddrErrors = "IpInAddrErrors",
        /// IPv4 packets shorter than their length fields state.
        IpExtInTruncatedPkts = "IpExtInTruncatedPkts",
        /// IPv4 packets with a wrong header checksum.
        IpExtInCsumErrors = "IpExtInCsumErrors",
        /// IPv4 packets dropped by the reverse path filter.
        TcpExtIPReversePathFilter = "TcpExtIPReversePathFilter",
        /// IPv4 packets discarded although they were valid.
        IpInDiscards = "IpInDiscards",
        /// IPv4 packets delivered to ESP or AH by workers; others are the kernel's to count.
        IpInDelivers = "IpInDelivers",
        /// IPv4 packets forwarded.
        IpForwDatagrams = "IpForwDatagrams",
        /// IPv4 packets without a route.
        IpInNoRoutes = "IpInNoRoutes",
        /// IPv4 packets of our own.
        IpOutRequests = "IpOutRequests",
        /// IPv4 packets that could not be sent for lack of resources.
        IpOutDiscards = "IpOutDiscards",
        /// IPv4 fragments of packets to this host; those that the kernel gets are its to count.
        IpReasmReqds = "IpReasmReqds",
        /// IPv4 packets reassembled.
        IpReasmOKs = "IpReasmOKs",
        /// IPv4 packets that could not be reassembled.
        IpReasmFails = "IpReasmFails",
        /// IPv4 packets fragmented.
        IpFragOKs = "IpFragOKs",
        /// IPv4 packets that could not be fragmented.
        IpFragFails = "IpFragFails",
        /// IPv4 fragments made.
        IpFragCreates = "IpFragCreates",
        /// ICMP messages sent.
        IcmpOutMsgs = "IcmpOutMsgs",
        /// ICMP Destination Unreachable sent.
        IcmpOutDestUnreachs = "IcmpOutDestUnreachs",
        /// ICMP Time Exceeded sent.
        IcmpOutTimeExcds = "IcmpOutTimeExcds",
        /// ICMP Parameter Problem sent.
        IcmpOutParmProbs = "IcmpOutParmProbs",
        /// ICMP Redirect sent.
        IcmpOutRedirects = "IcmpOutRedirects",
        /// ICMP errors not sent because of icmp_msgs_per_sec.
        IcmpOutRateLimitGlobal = "IcmpOutRateLimitGlobal",
        /// ICMP errors not sent because of icmp_ratelimit.
        IcmpOutRateLimitHost = "IcmpOutRateLimitHost",
        /// IPv6 packets received; those that are handed to the kernel are its to count.
        Ip6InReceives = "Ip6InReceives",
        /// IPv6 packets with errors in their headers.
        Ip6InHdrErrors = "Ip6InHdrErrors",
        /// IPv6 packets too big for the next hop's MTU.
        Ip6InTooBigErrors = "Ip6InTooBigErrors",
        /// IPv6 packets with an address that cannot be routed.
        Ip6InAddrErrors = "Ip6InAddrErrors",
        /// IPv6 packets discarded although they were valid.
        Ip6InDiscards = "Ip6InDiscards",
        /// IPv6 packets shorter than their length fields state.
        Ip6InTruncatedPkts = "Ip6InTruncatedPkts",
        /// IPv6 packets without a route.
        Ip6InNoRoutes = "Ip6InNoRoutes",
        /// IPv6 packets delivered to ESP or AH by workers.
        Ip6InDelivers = "Ip6InDelivers",
        /// IPv6 packets forwarded.
        Ip6OutForwDatagrams = "Ip6OutForwDatagrams",
        /// IPv6 packets of our own.
        Ip6OutRequests = "Ip6OutRequests",
        /// IPv6 packets that could not be sent for lack of resources.
        Ip6OutDiscards = "Ip6OutDiscards",
        /// IPv6 fragments of packets to this host; those that the kernel gets are its to count.
        Ip6ReasmReqds = "Ip6ReasmReqds",
        /// IPv6 packets reassembled.
        Ip6ReasmOKs = "Ip6ReasmOKs",
        /// IPv6 packets that could not be reassembled.
        Ip6ReasmFails = "Ip6ReasmFails",
        /// IPv6 packets that would have needed fragmentation.
        Ip6FragFails = "Ip6FragFails",
        /// ICMPv6 messages sent.
        Icmp6OutMsgs = "Icmp6OutMsgs",
        /// ICMPv6 Destination Unreachable sent.
        Icmp6OutDestUnreachs = "Icmp6OutDestUnreachs",
        /// ICMPv6 Packet Too Big sent.
        Icmp6OutPktTooBigs = "Icmp6OutPktTooBigs",
        /// ICMPv6 Time Exceeded sent.
        Icmp6OutTimeExcds = "Icmp6OutTimeExcds",
        /// ICMPv6 Parameter Problem sent.
        Icmp6OutParmProblems = "Icmp6OutParmProblems",
        /// ICMPv6 errors not sent because of icmp.ratelimit.
        Icmp6OutRateLimitHost = "Icmp6OutRateLimitHost",
    }
}
