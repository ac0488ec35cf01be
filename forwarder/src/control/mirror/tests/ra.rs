//! Router advertisements (RFC 4861 §4.2), sent on one end of a veth pair.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, send, socket,
};

use super::random::Rng;

/// Sends whole frames on one interface.
pub struct Wire(OwnedFd);

impl Wire {
    /// `name` must be an Ethernet interface of this thread's network namespace.
    pub fn open(name: &str) -> Wire {
        let addr = getifaddrs()
            .expect("interfaces")
            .filter(|entry| entry.interface_name == name)
            .find_map(|entry| entry.address.as_ref().and_then(|addr| addr.as_link_addr().copied()))
            .unwrap_or_else(|| panic!("no interface {name}"));
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_NONBLOCK);
        let wire = socket(AddressFamily::Packet, kind, flags, SockProtocol::EthAll);
        let wire = wire.expect("a packet socket");
        bind(wire.as_raw_fd(), &addr).expect("bound");
        Wire(wire)
    }

    /// Returns whether the interface took it: it may be down.
    pub fn send(&self, frame: &[u8]) -> bool {
        send(self.0.as_raw_fd(), frame, MsgFlags::empty()).is_ok()
    }
}

/// Lifetimes in seconds: some end while the test runs.
const LIFETIMES: [u16; 6] = [0, 1, 2, 3, 1800, 9000];
/// ICMPV6_ROUTER_PREF_MEDIUM, HIGH and LOW.
const PREFERENCES: [u8; 3] = [0, 1, 3];

pub fn pick<T: Copy>(rng: &mut Rng, all: &[T]) -> T {
    all[rng.below(all.len() as u64) as usize]
}

/// An advertisement of one of a few routers with random lifetimes, preference, prefixes and routes.
pub fn advertisement(rng: &mut Rng) -> Vec<u8> {
    let [router, prefix] = [1 + rng.below(3) as u8, rng.below(2) as u8];
    let route = pick(rng, &[5, 6, 0x7b]);
    advertisement_of(rng, router, prefix, route)
}

/// An advertisement of a router, with a prefix and a route by their numbers, or without these, and random lifetimes and
/// preferences.
pub fn advertisement_of(rng: &mut Rng, router: u8, prefix: u8, route: u8) -> Vec<u8> {
    let mut icmp = vec![134, 0, 0, 0, pick(rng, &[0, 64, 65]), pick(rng, &PREFERENCES) << 3];
    icmp.extend(pick(rng, &LIFETIMES).to_be_bytes());
    // Reachable time and retransmission timer: unspecified.
    icmp.extend([0; 8]);
    // Source link-layer address.
    icmp.extend([1, 1, 2, 0, 0, 0, 0, router]);
    if rng.below(3) == 0 {
        icmp.extend([5, 1, 0, 0]);
        icmp.extend(pick(rng, &[1280u32, 1400, 1500]).to_be_bytes());
    }
    if rng.below(2) == 0 {
        let valid = u32::from(pick(rng, &LIFETIMES));
        let preferred = valid.min(u32::from(pick(rng, &LIFETIMES)));
        // On-link, autonomous, or both.
        icmp.extend([3, 4, 64, pick(rng, &[0x80, 0x40, 0xc0])]);
        icmp.extend(valid.to_be_bytes());
        icmp.extend(preferred.to_be_bytes());
        icmp.extend([0; 4]);
        icmp.extend([0x20, 1, 0xd, 0xb8, 0, 0x7a, 0, prefix, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    if rng.below(2) == 0 {
        // Route information (RFC 4191 §2.3): a prefix of 48 bits.
        icmp.extend([24, 2, 48, pick(rng, &PREFERENCES) << 3]);
        icmp.extend(u32::from(pick(rng, &LIFETIMES)).to_be_bytes());
        icmp.extend([0x20, 1, 0xd, 0xb8, 0, route, 0, 0]);
    }
    frame(router, icmp)
}

fn frame(router: u8, icmp: Vec<u8>) -> Vec<u8> {
    let mut saddr = [0u8; 16];
    (saddr[0], saddr[1], saddr[15]) = (0xfe, 0x80, 0xf0u8.wrapping_add(router));
    let mut daddr = [0u8; 16];
    (daddr[0], daddr[1], daddr[15]) = (0xff, 0x02, 1);
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, router, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend((icmp.len() as u16).to_be_bytes());
    frame.extend([58, 255]);
    frame.extend(saddr);
    frame.extend(daddr);
    frame.extend(icmp);
    fill_checksum(&mut frame);
    frame
}

/// Sets the ICMPv6 checksum of a frame.
pub fn fill_checksum(frame: &mut [u8]) {
    let (header, icmp) = frame.split_at_mut(54);
    icmp[2..4].fill(0);
    let len = (icmp.len() as u32).to_be_bytes();
    let sum: u32 = [&header[22..], &len, &58u32.to_be_bytes(), icmp]
        .concat()
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    icmp[2..4].copy_from_slice(&(!folded as u16).to_be_bytes());
}
