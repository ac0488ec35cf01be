//! The key of a packet: addresses, ports, protocol (`struct nf_conntrack_tuple`).
//!
//! Where protocols have no ports the kernel's tuples have something else, or nothing: see [`TupleKind`].

use std::net::IpAddr;

use xdp_prog::TupleKind;

use crate::hash_table::hash_words;

/// TCP.
pub(super) const IPPROTO_TCP: u8 = 6;
/// UDP.
pub(super) const IPPROTO_UDP: u8 = 17;
/// ICMP.
pub(super) const IPPROTO_ICMP: u8 = 1;
/// Generic Routing Encapsulation.
pub(super) const IPPROTO_GRE: u8 = 47;
/// ICMPv6.
pub(super) const IPPROTO_ICMPV6: u8 = 58;

/// Number of 64-bit words of a key.
pub(super) const KEY_WORDS: usize = 5;

/// Addresses, ports and protocol of packets of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FlowKey {
    /// Source address, destination address; ports, protocol, family. IPv4 addresses are in the first
    /// octets, and zeros after them.
    words: [u64; KEY_WORDS],
}

impl FlowKey {
    /// Of these addresses, which are of one family, and ports.
    pub fn new(
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        source_port: u16,
        destination_port: u16,
    ) -> FlowKey {
        let ports = ports(source_port, destination_port);
        match (source, destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                FlowKey::ipv4(from.octets(), to.octets(), protocol, ports)
            }
            _ => {
                let octets = |address: IpAddr| match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                    IpAddr::V6(address) => address.octets(),
                };
                FlowKey::ipv6(&octets(source), &octets(destination), protocol, ports)
            }
        }
    }

    /// Of an IPv4 packet; `ports`: the first four octets of its transport header, or what its [`TupleKind`] has instead.
    #[inline]
    pub(super) fn ipv4(from: [u8; 4], to: [u8; 4], protocol: u8, ports: [u8; 4]) -> FlowKey {
        let [from, to] = [from, to].map(|address| u32::from_ne_bytes(address).into());
        FlowKey { words: [from, 0, to, 0, last(ports, protocol, 4)] }
    }

    /// Of an IPv6 packet, in the same way.
    #[inline]
    pub(super) fn ipv6(from: &[u8; 16], to: &[u8; 16], protocol: u8, ports: [u8; 4]) -> FlowKey {
        let [from, to] = [from, to].map(|address| {
            let address = u128::from_ne_bytes(*address);
            [address as u64, (address >> 64) as u64]
        });
        FlowKey { words: [from[0], from[1], to[0], to[1], last(ports, protocol, 6)] }
    }

    /// The key of packets in the other direction, without NAT (`nf_ct_invert_tuple`).
    #[inline]
    pub fn inverted(&self) -> FlowKey {
        let [from0, from1, to0, to1, last] = self.words;
        let ports = match self.protocol() {
            IPPROTO_ICMP | IPPROTO_ICMPV6 => self.answered_echo(),
            _ => (last as u32).rotate_left(16),
        };
        FlowKey { words: [to0, to1, from0, from1, last >> 32 << 32 | u64::from(ports)] }
    }

    /// Of echo, what takes the place of the ports in the other direction: the same identifier, with the type of replies
    /// instead of that of requests, or the other way around (`nf_conntrack_invert_icmp_tuple`).
    #[cold]
    fn answered_echo(&self) -> u32 {
        let [id, [kind, code]] = self.port_octets();
        let [request, reply] = TupleKind::echo_types(if self.is_ipv4() { 4 } else { 6 });
        let kind = if kind == request { reply } else { request };
        u32::from_ne_bytes([id[0], id[1], kind, code])
    }

    /// What it has besides addresses. `None`: no packet has it.
    #[inline]
    pub fn kind(&self) -> Option<TupleKind> {
        TupleKind::of(self.protocol(), if self.is_ipv4() { 4 } else { 6 })
    }

    /// Source and destination address of an IPv4 key.
    #[inline]
    pub(in crate::netfilter) fn addresses4(&self) -> [[u8; 4]; 2] {
        [self.words[0], self.words[2]].map(|word| (word as u32).to_ne_bytes())
    }

    /// Source and destination address of an IPv6 key.
    #[inline]
    pub(in crate::netfilter) fn addresses6(&self) -> [[u8; 16]; 2] {
        let octets = |low: u64, high: u64| (u128::from(low) | u128::from(high) << 64).to_ne_bytes();
        let [from0, from1, to0, to1, _] = self.words;
        [octets(from0, from1), octets(to0, to1)]
    }

    /// Source and destination port as a header has them.
    #[inline]
    pub(super) fn port_octets(&self) -> [[u8; 2]; 2] {
        let [a, b, c, d] = (self.words[4] as u32).to_ne_bytes();
        [[a, b], [c, d]]
    }

    /// Whether it is the same: without a branch for each word, or a call.
    #[inline]
    pub fn is_same(&self, other: &FlowKey) -> bool {
        let words = self.words.iter().zip(&other.words);
        words.fold(0, |differ, (one, other)| differ | (one ^ other)) == 0
    }

    /// A hash of it.
    #[inline]
    pub fn hash(&self, seed: u64) -> u64 {
        let [from, _, to, _, last] = self.words;
        // Of IPv4, the second words are 0, and the first ones have 32 bits.
        if self.is_ipv4() {
            hash_words(seed, &[from | to << 32, last])
        } else {
            hash_words(seed, &self.words)
        }
    }

    /// The words, which are those of the key that the XDP program makes of a packet.
    #[inline]
    pub fn words(&self) -> &[u64; KEY_WORDS] {
        &self.words
    }

    /// Of these words.
    #[inline]
    pub fn of_words(words: [u64; KEY_WORDS]) -> FlowKey {
        FlowKey { words }
    }

    /// Whether it is of IPv4.
    #[inline]
    pub fn is_ipv4(&self) -> bool {
        (self.words[4] >> 40) as u8 == 4
    }

    /// The protocol.
    pub fn protocol(&self) -> u8 {
        (self.words[4] >> 32) as u8
    }

    /// Source and destination address.
    pub fn addresses(&self) -> [IpAddr; 2] {
        match self.is_ipv4() {
            true => self.addresses4().map(IpAddr::from),
            false => self.addresses6().map(IpAddr::from),
        }
    }

    /// Source and destination port.
    pub fn ports(&self) -> [u16; 2] {
        self.port_octets().map(u16::from_be_bytes)
    }
}

/// Ports as a header has them.
fn ports(source: u16, destination: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
    [a, b, c, d]
}

/// The last word.
#[inline]
fn last(ports: [u8; 4], protocol: u8, family: u8) -> u64 {
    u64::from(u32::from_ne_bytes(ports)) | u64::from(protocol) << 32 | u64::from(family) << 40
}
