//! The security association database of inbound SAs: lookup by destination, SPI, protocol, family and mark,
//! as the kernel's `xfrm_state_lookup`. Outbound SAs are referred to by what routes and policies resolve to.
//!
//! Built once from the SAs, which are shared: a new database with one SA more keeps the others' counters and
//! windows.

use std::net::IpAddr;
use std::sync::Arc;

use prefetch_index::prefetch_index;

use super::input::{Decapsulated, Located, locate};
use super::selector::{Mark, masked};
use super::state::{InboundState, State};
use super::{Error, Family, Order};
use crate::hash_table::{HashTable, Slot, hash_words};
use crate::wire::{AhPacket, EspPacket, Ipv4Packet, Ipv6Packet, Protocol, ipv4, ipv6, udp};

/// What identifies an inbound SA, except for its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    dst: IpAddr,
    spi: u32,
    protocol: Protocol,
}

impl Key {
    #[inline]
    fn of_state(state: &State) -> Key {
        Key { dst: state.hot.dst, spi: state.hot.spi, protocol: state.hot.protocol }
    }

    #[inline]
    fn hash(self) -> u32 {
        let is_ipv6 = u64::from(Family::of(self.dst) == Family::Ipv6);
        let spi = is_ipv6 << 40 | u64::from(self.spi) << 8 | u64::from(self.protocol.0);
        let dst = masked(self.dst, 128);
        hash_words(spi, &[(dst >> 64) as u64, dst as u64]) as u32
    }
}

/// The hash of the addresses and the protocol, which all fragments of a packet have.
#[inline]
fn hash_of_path(src: IpAddr, dst: IpAddr, protocol: Protocol) -> u32 {
    let is_ipv6 = Family::of(dst) == Family::Ipv6;
    let (src, dst) = (masked(src, 128), masked(dst, 128));
    let words = [(src >> 64) as u64, src as u64, (dst >> 64) as u64, dst as u64];
    hash_words(u64::from(protocol.0) << 1 | u64::from(is_ipv6), &words) as u32
}

/// The first entry of a hash. Eight octets, so that the table of thousands of SAs stays in the cache.
#[derive(Clone, Copy, Debug, Default)]
struct First {
    hash: u32,
    /// Its number plus one; 0: the slot is empty.
    number: u32,
}

impl Slot for First {
    type Key = u32;
    type Value = usize;

    #[inline]
    fn key(&self) -> u32 {
        self.hash
    }

    #[inline]
    fn value(&self) -> Option<usize> {
        (self.number as usize).checked_sub(1)
    }

    #[inline]
    fn hash(hash: u32) -> usize {
        hash as usize
    }
}

/// An SA. What the lookup compares is in the SA, in a cache line that its packet needs in any case.
#[derive(Clone, Debug)]
struct Entry {
    state: Arc<InboundState>,
    mark: Mark,
    /// Number of the next entry with the same hash plus one; 0: it is the last.
    next: u32,
}

/// The database.
#[derive(Debug, Default)]
pub struct Sad {
    /// Newest first: of two that match, the kernel finds the one added last.
    entries: Box<[Entry]>,
    first: HashTable<First>,
    /// By [`hash_of_path`], an SA that is not in UDP. SAs of another path may have the same hash.
    of_path: HashTable<First>,
}

/// Where the lookups of a burst of packets begin ([`Sad::look_ahead`]).
#[derive(Clone, Copy, Debug, Default)]
pub struct LookedAhead {
    hash: u32,
    /// The number of the first entry plus one; 0: none.
    number: u32,
}

impl LookedAhead {
    /// Of a packet that starts with its IP header, without options or extension headers: where an IPsec header would be,
    /// with or without UDP. Nothing is checked: it is only a guess what [`locate`] will find.
    #[inline]
    #[must_use]
    pub fn of_packet(packet: &[u8]) -> Option<LookedAhead> {
        let (dst, protocol, payload): (IpAddr, _, _) = match packet.first()? >> 4 {
            4 => {
                let (fixed, payload) = packet.split_first_chunk::<{ ipv4::HEADER_LEN_MIN }>()?;
                let ip = Ipv4Packet::new_unchecked(fixed);
                (ip.dst_addr().into(), ip.protocol(), payload)
            }
            _ => {
                let (fixed, payload) = packet.split_first_chunk::<{ ipv6::HEADER_LEN }>()?;
                let ip = Ipv6Packet::new_unchecked(fixed);
                (ip.dst_addr().into(), ip.next_header(), payload)
            }
        };
        let (protocol, spi) = match protocol {
            Protocol::ESP => (protocol, EspPacket::new_checked(payload).ok()?.spi()),
            Protocol::AH => (protocol, AhPacket::new_unchecked(payload.first_chunk::<12>()?).spi()),
            Protocol::UDP => {
                let (_, payload) = payload.split_first_chunk::<{ udp::HEADER_LEN }>()?;
                (Protocol::ESP, EspPacket::new_checked(payload).ok()?.spi())
            }
            _ => return None,
        };
        Some(LookedAhead { hash: Key { dst, spi, protocol }.hash(), number: 0 })
    }
}

impl Sad {
    /// Builds it from SAs in the given order. Of several that match a packet the lookup finds the one added
    /// last, as the kernel, which puts new ones at the head of their hash chain (`__xfrm_state_insert`).
    #[must_use]
    pub fn new(states: impl IntoIterator<Item = Arc<InboundState>>, order: Order) -> Sad {
        let entry = |state: Arc<InboundState>| {
            let mark = state.state().config().mark;
            Entry { state, mark, next: 0 }
        };
        let mut entries: Vec<Entry> = order.oldest_first(states.into_iter().map(entry));
        entries.reverse();
        let mut last = std::collections::HashMap::new();
        let mut first = Vec::new();
        for number in 0..entries.len() {
            let hash = |entry: &Entry| Key::of_state(entry.state.state()).hash();
            let Some(hash) = entries.get(number).map(hash) else { break };
            match last.insert(hash, number).and_then(|before: usize| entries.get_mut(before)) {
                Some(before) => before.next = number as u32 + 1,
                None => first.push(First { hash, number: number as u32 + 1 }),
            }
        }
        let of_path: Vec<First> = entries
            .iter()
            .zip(1..)
            .filter_map(|(entry, number)| {
                let config = entry.state.state().config();
                let hash = hash_of_path(config.src, config.dst, entry.state.state().protocol());
                config.encap.is_none().then_some(First { hash, number })
            })
            .collect();
        Sad {
            entries: entries.into(),
            first: HashTable::new(first.iter().copied()),
            of_path: HashTable::new(of_path.iter().copied()),
        }
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many SAs there are.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The SAs, newest first.
    pub fn states(&self) -> impl Iterator<Item = &Arc<InboundState>> {
        self.entries.iter().map(|entry| &entry.state)
    }

    /// The SA for packets to `dst` with this SPI, protocol and mark.
    #[inline]
    #[must_use]
    pub fn lookup(
        &self,
        dst: IpAddr,
        spi: u32,
        protocol: Protocol,
        mark: u32,
    ) -> Option<&Arc<InboundState>> {
        let key = Key { dst, spi, protocol };
        self.find(self.first.get(key.hash()), key, mark)
    }

    /// Looks for the SAs of a burst's packets, so that their cache misses overlap. Then come
    /// [`prefetch`](Self::prefetch), a few packets before each, and [`lookup_again`](Self::lookup_again).
    #[inline]
    pub fn look_ahead(&self, burst: &mut [LookedAhead]) {
        burst.iter().for_each(|ahead| self.first.prefetch(ahead.hash));
        for ahead in &mut *burst {
            let number = self.first.get(ahead.hash);
            ahead.number = number.map_or(0, |number| number as u32 + 1);
            prefetch_index(&*self.entries, number.unwrap_or(0));
        }
    }

    /// Asks for the cache lines of the SA that a packet probably has.
    #[inline]
    pub fn prefetch(&self, ahead: LookedAhead) {
        let number = (ahead.number as usize).checked_sub(1);
        if let Some(entry) = number.and_then(|number| self.entries.get(number)) {
            entry.state.prefetch();
        }
    }

    /// As [`lookup`](Self::lookup), for a packet that [`look_ahead`](Self::look_ahead) has seen; if it was another one,
    /// the result is the same, but takes longer.
    #[inline]
    #[must_use]
    pub fn lookup_again(
        &self,
        ahead: LookedAhead,
        (dst, spi, protocol): (IpAddr, u32, Protocol),
        mark: u32,
    ) -> Option<&Arc<InboundState>> {
        let key = Key { dst, spi, protocol };
        let number = (ahead.number as usize).checked_sub(1);
        let first = number.and_then(|number| self.entries.get(number));
        match first {
            Some(first) if Key::of_state(first.state.state()) == key => {
                self.find(number, key, mark)
            }
            // All entries with this hash follow the first one.
            _ => self.find(self.first.get(key.hash()), key, mark),
        }
    }

    /// Searches from an entry on.
    #[inline]
    fn find(&self, from: Option<usize>, key: Key, mark: u32) -> Option<&Arc<InboundState>> {
        let mut number = from;
        // Each entry comes after those before it, so the loop ends.
        loop {
            let entry = self.entries.get(number?)?;
            if Key::of_state(entry.state.state()) == key && entry.mark.matches(mark) {
                return Some(&entry.state);
            }
            number = (entry.next as usize).checked_sub(1);
        }
    }

    /// Whether there may be an SA, not in UDP, for packets from `src` to `dst`: for fragments, of which only the first has
    /// the SPI. The answer may be wrong that there is one.
    #[inline]
    #[must_use]
    pub fn may_have(&self, src: IpAddr, dst: IpAddr, protocol: Protocol) -> bool {
        self.of_path.get(hash_of_path(src, dst, protocol)).is_some()
    }

    /// Finds the IPsec header and the SA, and removes the protection: [`locate`], [`lookup`](Self::lookup)
    /// and [`InboundState::open`]. `Ok(None)`: it is no IPsec packet. A packet in transport mode may have
    /// another IPsec header; the caller limits the depth to [`MAX_DEPTH`](super::MAX_DEPTH).
    ///
    /// # Errors
    /// [`Error::XfrmInNoStates`]: there is no such SA; otherwise as the functions named.
    #[inline]
    pub fn open(
        &self,
        packet: &mut [u8],
        mark: u32,
        udp_ports: &[u16],
        now_s: u64,
    ) -> Result<Option<Opened<'_>>, Error> {
        let Some(located) = locate(packet, udp_ports)? else { return Ok(None) };
        let Located { dst, spi, protocol, .. } = located;
        let state = self.lookup(dst, spi, protocol, mark).ok_or(Error::XfrmInNoStates)?;
        let packet = state.open(packet, &located, now_s)?;
        Ok(Some(Opened { state, located, packet }))
    }
}

/// A packet without its protection, and what it had.
#[derive(Clone, Debug)]
pub struct Opened<'a> {
    /// The SA: an entry of the packet's secpath.
    pub state: &'a Arc<InboundState>,
    /// The header that was removed.
    pub located: Located,
    /// The packet.
    pub packet: Decapsulated,
}
