//! Packets that are forwarded only with some settings, and which of them a router forwards.
//!
//! Every source with every destination, hop-by-hop options in number and length, unicast neighbour
//! discovery, frames to group addresses. The handling of rejected ones (an error or nothing) is compared
//! elsewhere.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::Result;
use ferroute_tests::packet::{
    ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMPV6, Ipv4, Ipv6, UDP, be16, ethernet, icmpv6, udp,
};
use ferroute_tests::tap;

use crate::input::{data, hardware, is_from_router};
use crate::world::{Side, World};

const HOP_BY_HOP: u8 = 0;
const NEIGHBOUR_SOLICITATION: u8 = 135;

/// Both worlds have finished when nothing came for this long.
const IDLE_TIMEOUT: Duration = Duration::from_millis(60);

const SOURCES4: [[u8; 4]; 22] = [
    [198, 18, 1, 2],
    [198, 18, 1, 66],
    // The router's own, its broadcast addresses, and possible ones.
    [198, 18, 1, 1],
    [198, 18, 2, 1],
    [198, 18, 1, 255],
    [198, 18, 2, 255],
    [198, 18, 1, 0],
    [198, 18, 1, 77],
    // Martians, and addresses that no longer are.
    [0, 0, 0, 0],
    [0, 1, 2, 3],
    [127, 0, 0, 1],
    [127, 9, 9, 9],
    [224, 0, 0, 5],
    [239, 255, 0, 1],
    [240, 0, 0, 9],
    [255, 255, 255, 255],
    [169, 254, 7, 7],
    // Of the other side, behind a router, without a route, and local in some worlds.
    [198, 18, 2, 3],
    [203, 0, 113, 7],
    [198, 51, 100, 3],
    [10, 9, 9, 9],
    [10, 77, 0, 5],
];

const DESTINATIONS4: [[u8; 4]; 10] = [
    [198, 18, 2, 2],
    [198, 18, 1, 3],
    [203, 0, 113, 5],
    [198, 51, 100, 3],
    [198, 51, 100, 200],
    [100, 64, 1, 1],
    [10, 1, 1, 1],
    [10, 77, 0, 9],
    [10, 78, 0, 9],
    [198, 18, 2, 255],
];

const SOURCES6: [&str; 12] = [
    "2001:db8:1::2",
    "2001:db8:1::66",
    "2001:db8:1::1",
    "2001:db8:2::1",
    "2001:db8:2::3",
    "::",
    "::1",
    "ff0e::7",
    "fe80::1234",
    "::ffff:198.18.1.2",
    "fec0::1",
    "2001:db8:77::5",
];

const DESTINATIONS6: [&str; 10] = [
    "2001:db8:2::2",
    "2001:db8:1::3",
    "2001:db8:3::5",
    "2001:db8:b1::9",
    "2001:db8:b4::9",
    "2001:db8:5::5",
    "2001:db8:77::9",
    "2001:db8:78::9",
    "2001:db8:2::",
    "fec0::9",
];

/// A frame to send from the left, numbered from 1.
#[derive(Debug)]
pub struct Probe {
    index: u16,
    frame: Vec<u8>,
    what: String,
}

/// All probes.
pub fn all() -> Vec<Probe> {
    let mut probes = Probes(Vec::new());
    for src in SOURCES4 {
        for dst in DESTINATIONS4 {
            probes.add4(src.into(), dst.into(), hardware(Side::Left).0);
        }
    }
    for src in SOURCES6.map(address) {
        for dst in DESTINATIONS6.map(address) {
            probes.add6(src, dst, (UDP, &[]), "", hardware(Side::Left).0);
        }
    }
    for to in [[0xff; 6], [0x01, 0, 0x5e, 0, 0, 1]] {
        probes.add4(SOURCES4[0].into(), DESTINATIONS4[0].into(), to);
        let (src, dst) = (address(SOURCES6[0]), address(DESTINATIONS6[0]));
        probes.add6(src, dst, (UDP, &[]), "to a group", to);
    }
    for (what, options) in hop_by_hop() {
        let (src, dst) = (address(SOURCES6[0]), address(DESTINATIONS6[0]));
        let to = hardware(Side::Left).0;
        probes.add6(src, dst, (HOP_BY_HOP, &extension(UDP, &options)), what, to);
    }
    for dst in ["2001:db8:2::2", "2001:db8:3::5"] {
        probes.solicitation(address(SOURCES6[0]), address(dst));
    }
    probes.0
}

struct Probes(Vec<Probe>);

impl Probes {
    fn push(&mut self, what: String, frame: impl FnOnce(u16) -> Vec<u8>) {
        let index = self.0.len() as u16 + 1;
        self.0.push(Probe { index, frame: frame(index), what });
    }

    fn add4(&mut self, src: Ipv4Addr, dst: Ipv4Addr, to: [u8; 6]) {
        self.push(format!("{src} > {dst} {to:02x?}"), |index| {
            let mut header = Ipv4::new(src, dst, UDP);
            header.id = index;
            let datagram = udp(&src.octets(), &dst.octets(), (4000, 4001), &data(index, 26));
            ethernet(to, hardware(Side::Left).1, ETHERTYPE_IPV4, &header.packet(&datagram))
        });
    }

    fn add6(
        &mut self,
        src: Ipv6Addr,
        dst: Ipv6Addr,
        (next, extension): (u8, &[u8]),
        what: &str,
        to: [u8; 6],
    ) {
        self.push(format!("{src} > {dst} {what}"), |index| {
            let mut header = Ipv6::new(src, dst, next);
            header.flow_label = index.into();
            let datagram = udp(&src.octets(), &dst.octets(), (4000, 4001), &data(index, 26));
            let packet = header.packet(&[extension, &datagram].concat());
            ethernet(to, hardware(Side::Left).1, ETHERTYPE_IPV6, &packet)
        });
    }

    /// RFC 4861 §4.3, by unicast as when confirming a neighbour.
    fn solicitation(&mut self, src: Ipv6Addr, dst: Ipv6Addr) {
        self.push(format!("{src} > {dst} neighbour solicitation"), |index| {
            let mut header = Ipv6::new(src, dst, ICMPV6);
            header.flow_label = index.into();
            header.hop_limit = 255;
            let kind = (NEIGHBOUR_SOLICITATION, 0, [0; 4]);
            let message = icmpv6(src, dst, kind, &dst.octets());
            let (to, from) = hardware(Side::Left);
            ethernet(to, from, ETHERTYPE_IPV6, &header.packet(&message))
        });
    }
}

fn address(text: &str) -> Ipv6Addr {
    text.parse().expect("the lists hold addresses")
}

/// Options to be skipped if unknown, one to ten of them and a long one; known options.
fn hop_by_hop() -> Vec<(&'static str, Vec<u8>)> {
    let mut all: Vec<(&'static str, Vec<u8>)> =
        (1..=10).map(|count| ("options to be skipped", [0x1e, 2, 1, 2].repeat(count))).collect();
    all.push(("a long option", [&[0x1e, 100][..], &[0; 100]].concat()));
    all.push(("padding only", vec![1, 4, 0, 0, 0, 0]));
    // An IOAM trace with room for one node, as in RFC 9197 §4.4.
    let trace = [0x31, 14, 0, 0, 0, 7, 0x08, 1, 0x80, 0, 0, 0, 0, 0, 0, 0];
    all.push(("IOAM", [&[1, 0][..], &trace].concat()));
    all.push(("IOAM, not aligned", trace.to_vec()));
    all
}

/// An extension header with options, padded to 8 octets.
fn extension(next: u8, options: &[u8]) -> Vec<u8> {
    let mut header = [&[next, 0], options].concat();
    while !header.len().is_multiple_of(8) {
        header.push(0);
    }
    header[1] = (header.len() / 8 - 1) as u8;
    header
}

/// How each forwarded probe was sent: the host that received it and the destination MAC address.
pub type Forwarded = BTreeMap<u16, Vec<(Side, [u8; 6])>>;

/// Sends the probes into both worlds.
pub fn forwarded(worlds: [&World; 2], probes: &[Probe]) -> Result<[Forwarded; 2]> {
    let mut all = [Forwarded::new(), Forwarded::new()];
    for batch in probes.chunks(64) {
        for world in worlds {
            for probe in batch {
                world.left.send(&probe.frame)?;
            }
        }
        let mut silent_since = Instant::now();
        while silent_since.elapsed() < IDLE_TIMEOUT {
            let [one, other] = worlds;
            tap::wait(&[&one.left, &one.right, &other.left, &other.right], IDLE_TIMEOUT / 4);
            for (world, forwarded) in worlds.iter().zip(&mut all) {
                for side in [Side::Left, Side::Right] {
                    while let Some(frame) = world.tap(side).receive() {
                        silent_since = Instant::now();
                        if let Some((index, to)) = probe_of(&frame) {
                            forwarded.entry(index).or_default().push((side, to));
                        }
                    }
                }
            }
        }
    }
    Ok(all)
}

/// The probe in a frame and its destination MAC address; an error about a probe does not count.
fn probe_of(frame: &[u8]) -> Option<(u16, [u8; 6])> {
    let network = frame.get(ETH_LEN..).filter(|_| is_from_router(frame))?;
    let to = frame.first_chunk().copied()?;
    match be16(frame, 12)? {
        ETHERTYPE_IPV4 if *network.get(9)? == UDP => Some((be16(network, 4)?, to)),
        ETHERTYPE_IPV6 => {
            let kind = *network.get(40)?;
            let solicits = kind == NEIGHBOUR_SOLICITATION
                && address(SOURCES6[0]).octets()[..] == *network.get(8..24)?;
            let is_probe = match *network.get(6)? {
                ICMPV6 => solicits,
                UDP => true,
                // Reports of group membership follow a router alert.
                HOP_BY_HOP => kind == UDP,
                _ => false,
            };
            is_probe.then_some((be16(network, 2)?, to))
        }
        _ => None,
    }
}

/// Differences of the second world from the first, a line each.
pub fn differences(probes: &[Probe], [kernel, other]: &[Forwarded; 2]) -> Vec<String> {
    let differs = |probe: &&Probe| kernel.get(&probe.index) != other.get(&probe.index);
    let line = |probe: &Probe| {
        let (kernel, other) = (kernel.get(&probe.index), other.get(&probe.index));
        let kind = match (kernel, other) {
            (None, _) => "LAXER",
            (_, None) => "stricter",
            _ => "sent differently",
        };
        format!("{kind}: {}: kernel {kernel:02x?}, other {other:02x?}", probe.what)
    };
    probes.iter().filter(differs).map(line).collect()
}
