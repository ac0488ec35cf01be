//! IPv4 reception up to the routing decision: `ip_rcv_core` of the kernel.
//!
//! The checks are those of RFC 1812 §5.2.2, in the kernel's order; each failed check has its own drop
//! reason and increments the kernel's counter.

use super::Exit;
use super::headers::Iphdr;
use super::packet_mibs::PacketMibs;
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib};
use crate::wire::checksum;
use crate::wire::ipv4::{HEADER_LEN_MIN, Ipv4Packet};

/// First octet of a header without options.
const VERSION_4_NO_OPTIONS: u8 = 0x45;

/// Validates a received packet and returns its header. Trims the padding of short frames (RFC 894).
#[inline(always)]
pub(super) fn ip_rcv_core(skb: &mut SkBuff, mibs: &PacketMibs) -> Result<Iphdr, Exit> {
    mibs.count(Mib::IpInReceives);
    // 1. Long enough for a header.
    let Some(fixed) = skb.network_chunk::<HEADER_LEN_MIN>() else {
        return header_error(mibs, DropReason::IpTruncated);
    };
    let ipv4 = Ipv4Packet::new_unchecked(fixed);
    // 2. Checksum; the fast case, a header without options, also passes checks 3 and 4.
    let (intact, header_len) = if fixed[0] == VERSION_4_NO_OPTIONS {
        (checksum::verify(fixed), HEADER_LEN_MIN)
    } else {
        let header_len = ipv4.header_len();
        // 4. Version, and 3. header length: checked before the checksum, as in the kernel.
        if ipv4.version() != 4 {
            return header_error(mibs, DropReason::IpVersion);
        }
        if header_len < HEADER_LEN_MIN {
            return header_error(mibs, DropReason::IpHeaderLength);
        }
        let Some(header) = skb.network_header().get(..header_len) else {
            return header_error(mibs, DropReason::IpTruncated);
        };
        (checksum::verify(header), header_len)
    };
    if !intact {
        mibs.count(Mib::IpExtInCsumErrors);
        return header_error(mibs, DropReason::IpCsum);
    }
    // 5. Total length: within the frame, and not shorter than the header.
    let total_len = usize::from(ipv4.total_len());
    let len = skb.network_len();
    if total_len > len {
        mibs.count(Mib::IpExtInTruncatedPkts);
        return Err(Exit::Drop(DropReason::IpTotalLength));
    }
    if total_len < header_len {
        return header_error(mibs, DropReason::IpTotalLength);
    }
    let iph = Iphdr::read(fixed);
    if total_len < len {
        skb.trim(skb.network_offset() + total_len);
    }
    skb.set_network_header_len(header_len);
    Ok(iph)
}

#[cold]
fn header_error(mibs: &PacketMibs, reason: DropReason) -> Result<Iphdr, Exit> {
    mibs.count(Mib::IpInHdrErrors);
    Err(Exit::Drop(reason))
}
