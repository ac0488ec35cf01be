//! Conditions for each frame that leaves the router or is handed back to the kernel.
//!
//! A packet that leaves is one that was received and may be forwarded, with a decremented hop count and no
//! other change except of the link-layer header, IPv4 options, and a partial checksum; or a fragment of
//! one; or an ICMP error about one. It leaves through the interface and to the neighbour that the routes give,
//! in a frame that fits the interface.

use std::net::IpAddr;

use ferroute::tables::{Link, Tables};

use crate::bench::{Bench, PortFrame};
use crate::lab::{Lab, Settings};
use crate::packet::{Frame, Ip, V4, V6, addresses, be16, sum};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// INADDR_DUMMY: the source of errors of a router without an address (RFC 7600 §4.8).
const DUMMY: [u8; 4] = [192, 0, 0, 8];

/// Checks everything that left a router of the lab.
#[derive(Debug)]
pub struct Judge<'a> {
    settings: Settings,
    lab: &'a Lab,
    tables: &'a Tables,
    received: Vec<Received<'a>>,
}

#[derive(Debug)]
struct Received<'a> {
    octets: &'a [u8],
    /// Its checksum may be partial.
    partial: bool,
    /// Packets received there are not forwarded.
    refused: bool,
    ip: Option<Ip<'a>>,
}

impl<'a> Judge<'a> {
    /// Creates a judge for the frames received.
    pub fn new(settings: Settings, tables: &'a Tables, received: &'a [PortFrame]) -> Judge<'a> {
        let received = received
            .iter()
            .map(|(port, octets)| Received {
                octets,
                partial: *port == 0 && settings.partial_csum(),
                refused: *port == 0 && !settings.left_forwards(),
                ip: Frame::parse(octets).and_then(|frame| frame.ip()),
            })
            .collect();
        Judge { settings, lab: Lab::of(settings), tables, received }
    }

    /// Checks everything that left.
    pub fn all(&self, bench: &Bench) {
        bench.sent.iter().for_each(|(port, frame)| self.sent(*port, frame));
        bench.punted.iter().for_each(|frame| self.punted(frame));
    }

    fn sent(&self, port: u16, octets: &[u8]) {
        let frame = Frame::parse(octets).expect("a frame that leaves has a header");
        let link = self.link(port, &frame.tags);
        assert!(link.up, "{} is down", link.name);
        assert_eq!(frame.macs[1], link.mac, "the source of a frame is its interface");
        let ip = frame.ip().expect("a frame that leaves has a whole IP packet");
        let (len, mtu, daddr) = match ip {
            Ip::V4(v4) => {
                let daddr = IpAddr::V4(v4.daddr());
                // `ip_dst_mtu_maybe_forward`: a route's MTU counts, also above the interface's.
                let of_route = self.lab.route(daddr).map_or(0, |route| route.info.mtu);
                (v4.len(), link.mtu.max(of_route), daddr)
            }
            // `ip6_forward` takes no MTU for smaller; the kernel has no IPv6 routes out by such an
            // interface.
            Ip::V6(v6) => (v6.octets.len(), link.mtu6.max(1280), IpAddr::V6(v6.daddr())),
        };
        assert_eq!(octets.len(), frame.header_len + len, "nothing behind the packet");
        assert!(len <= mtu as usize, "{len} octets, and the MTU of {} is {mtu}", link.name);
        let by_interface = matches!(ip, Ip::V6(v6) if is_link_local(v6));
        if !self.settings.has_rules() && !by_interface {
            assert!(
                self.lab.leads(daddr, link.ifindex, frame.macs[0]),
                "no route to {daddr} leads out by {} to {:02x?}",
                link.name,
                frame.macs[0]
            );
        }
        match ip {
            Ip::V4(v4) => self.sent4(&v4),
            Ip::V6(v6) => self.sent6(&v6),
        }
    }

    /// The interface whose frames have these tags.
    fn link(&self, port: u16, tags: &[(u16, u16)]) -> &Link {
        let has = |link: &&Link| {
            let own = link.vlan.iter().flat_map(|vlan| &vlan.tags);
            let own = own.map(|egress| (egress.tag.tpid().0, egress.tag.vid()));
            link.port == Some(port) && own.eq(tags.iter().map(|(tpid, tci)| (*tpid, tci & 0xfff)))
        };
        self.tables.links.iter().find(has).expect("tags of a followed interface")
    }

    fn sent4(&self, v4: &V4<'_>) {
        assert_eq!(sum([v4.header]), 0xffff, "the header's checksum is right");
        let forwarded = self.received.iter().any(|received| match received.ip {
            Some(Ip::V4(came)) if !received.refused => is_forwarded4(&came, v4, received.partial),
            _ => false,
        });
        if forwarded {
            return;
        }
        let saddr = v4.saddr();
        assert!(
            self.lab.is_own(saddr.into()) || saddr.octets() == DUMMY,
            "unknown source: {v4:02x?}"
        );
        assert!(v4.header[9] == ICMP && v4.len() <= 576, "not an ICMP error: {v4:02x?}");
        assert_eq!(sum([v4.payload]), 0xffff, "the ICMP checksum is right");
        assert!(matches!(v4.payload[0], 3 | 11 | 12), "not an ICMP error: {v4:02x?}");
        self.quoted(&v4.payload[8..], v4.daddr().into());
    }

    fn sent6(&self, v6: &V6<'_>) {
        let forwarded = self.received.iter().any(|received| match received.ip {
            Some(Ip::V6(came)) if !received.refused => is_forwarded6(&came, v6, received.partial),
            _ => false,
        });
        if forwarded {
            return;
        }
        assert!(self.lab.is_own(v6.saddr().into()), "unknown source: {v6:02x?}");
        assert!(
            v6.octets[6] == ICMPV6 && v6.octets.len() <= 1280,
            "not an ICMPv6 error: {v6:02x?}"
        );
        assert!(v6.transport_is_right(), "the ICMPv6 checksum is right");
        assert!(matches!(v6.octets[40], 1..=4), "not an ICMPv6 error: {v6:02x?}");
        self.quoted(&v6.octets[48..], v6.daddr().into());
    }

    /// An error goes to the source of the packet that it quotes, which must have been received.
    fn quoted(&self, quote: &[u8], daddr: IpAddr) {
        let of = addresses(quote).expect("the quote has addresses");
        assert_eq!(of[0], daddr, "an error goes to the source of what it quotes");
        let is_quoted = |received: &&Received<'_>| {
            let frame = Frame::parse(received.octets);
            frame.and_then(|frame| addresses(frame.payload)).is_some_and(|came| came[0] == of[0])
        };
        assert!(
            self.received.iter().any(|received| is_quoted(&received)),
            "the quoted packet was not received: {of:?}"
        );
    }

    /// The kernel gets received frames, changed at most by removing padding and completing the checksum.
    fn punted(&self, octets: &[u8]) {
        let same = |received: &Received<'_>| {
            let Some(came) = received.octets.get(..octets.len()) else { return false };
            if came == octets {
                return true;
            }
            let frame = Frame::parse(octets);
            let at = frame.as_ref().and_then(|frame| Some((frame.header_len, frame.ip()?)));
            let Some((base, ip)) = at.filter(|_| received.partial) else { return false };
            let field = match ip {
                Ip::V4(v4) => v4.checksum_at().map(|at| v4.header.len() + at),
                Ip::V6(v6) => v6.checksum_at(),
            };
            let right = match ip {
                Ip::V4(v4) => v4.transport_is_right(),
                Ip::V6(v6) => v6.transport_is_right(),
            };
            field.is_some_and(|field| right && same_but(came, octets, base + field))
        };
        assert!(self.received.iter().any(same), "handed back, but not received: {octets:02x?}");
    }
}

fn is_link_local(v6: V6<'_>) -> bool {
    v6.daddr().is_unicast_link_local()
}

/// Whether two slices of one length differ only in the two octets at `field`.
fn same_but(one: &[u8], other: &[u8], field: usize) -> bool {
    one.len() == other.len()
        && (0..one.len()).all(|n| (field..field + 2).contains(&n) || one[n] == other[n])
}

fn is_forwarded4(came: &V4<'_>, left: &V4<'_>, partial: bool) -> bool {
    let (before, after) = (came.header, left.header);
    let fields = before[1] == after[1]
        && before[4..6] == after[4..6]
        && before[9] == after[9]
        && before[12..16] == after[12..16];
    // A source route changes the destination.
    let daddr = before[16..20] == after[16..20] || before.len() > 20;
    let hops = before[8] > 1 && after[8] == before[8] - 1;
    if !(fields && daddr && hops) {
        return false;
    }
    let Some(at) = left.offset().checked_sub(came.offset()) else { return false };
    let end = at + left.payload.len();
    let Some(part) = came.payload.get(at..end) else { return false };
    let whole = part.len() == came.payload.len();
    let more = end < came.payload.len() || came.more();
    let flags = left.more() == more
        && left.dont_frag() == (whole && came.dont_frag())
        && (whole || !came.dont_frag())
        && (part.len().is_multiple_of(8) || end == came.payload.len());
    // Fragments after the first have only the options with the copied flag.
    let header = before.len() == after.len() || !whole;
    flags && header && (part == left.payload || (partial && is_completed4(came, left, part)))
}

/// Whether a sent packet is the received one with its checksum completed.
fn is_completed4(came: &V4<'_>, left: &V4<'_>, part: &[u8]) -> bool {
    let Some(field) = came.checksum_at().filter(|_| left.offset() == 0) else { return false };
    let whole = part.len() == came.payload.len() && !left.more();
    same_but(part, left.payload, field) && (!whole || left.transport_is_right())
}

fn is_forwarded6(came: &V6<'_>, left: &V6<'_>, partial: bool) -> bool {
    let (before, after) = (came.octets, left.octets);
    if before.len() != after.len() || before[7] <= 1 || after[7] != before[7] - 1 {
        return false;
    }
    if before[..7] == after[..7] && before[8..] == after[8..] {
        return true;
    }
    let field = came.checksum_at().filter(|_| partial);
    field.is_some_and(|field| {
        before[..7] == after[..7]
            && same_but(&before[8..], &after[8..], field - 8)
            && left.transport_is_right()
            && be16(after, field) != 0
    })
}
