//! The security association database of inbound SAs: lookup by destination, SPI, protocol, family and mark,
//! as the kernel's `xfrm_state_lookup`. Outbound SAs are referred to by what routes and policies resolve to.
//!
//! Built once from the SAs, which are shared: a new database with one SA more keeps the others' counters and
//! windows.

use std::net::IpAddr;
use std::sync::Arc;

use super::input::{Decapsulated, Located, locate};
use super::selector::{Mark, masked};
use super::state::InboundState;
use super::{Error, Family, Order};
use crate::hash_table::{HashTable, Slot, hash_words};
use crate::wire::Protocol;

/// What identifies an inbound SA, except for its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    dst: u128,
    spi: u32,
    protocol: u8,
    is_ipv6: bool,
}

impl Key {
    #[inline]
    fn new(dst: IpAddr, spi: u32, protocol: Protocol) -> Key {
        let is_ipv6 = Family::of(dst) == Family::Ipv6;
        Key { dst: masked(dst, 128), spi, protocol: protocol.0, is_ipv6 }
    }

    #[inline]
    fn hash(self) -> u64 {
        let spi = u64::from(self.spi) << 8 | u64::from(self.protocol);
        hash_words(spi, &[(self.dst >> 64) as u64, self.dst as u64])
    }
}

/// The first entry of a hash.
#[derive(Clone, Copy, Debug, Default)]
struct First {
    hash: u64,
    /// Its number plus one; 0: the slot is empty.
    number: u32,
}

impl Slot for First {
    type Key = u64;
    type Value = usize;

    #[inline]
    fn key(&self) -> u64 {
        self.hash
    }

    #[inline]
    fn value(&self) -> Option<usize> {
        (self.number as usize).checked_sub(1)
    }

    #[inline]
    fn hash(hash: u64) -> usize {
        hash as usize
    }
}

/// An SA with all that the lookup compares, in one cache line: the lookup does not wait for the SA itself.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Entry {
    key: Key,
    mark: Mark,
    /// Number of the next entry with the same hash plus one; 0: it is the last.
    next: u32,
    state: Arc<InboundState>,
}

/// The database.
#[derive(Debug, Default)]
pub struct Sad {
    /// Newest first: of two that match, the kernel finds the one added last.
    entries: Box<[Entry]>,
    first: HashTable<First>,
}

impl Sad {
    /// Builds it from SAs in the given order. Of several that match a packet the lookup finds the one added
    /// last, as the kernel, which puts new ones at the head of their hash chain (`__xfrm_state_insert`).
    #[must_use]
    pub fn new(states: impl IntoIterator<Item = Arc<InboundState>>, order: Order) -> Sad {
        let entry = |state: Arc<InboundState>| {
            let config = state.state().config();
            let key = Key::new(config.dst, config.spi, state.state().protocol());
            Entry { key, mark: config.mark, next: 0, state }
        };
        let mut entries: Vec<Entry> = order.oldest_first(states.into_iter().map(entry));
        entries.reverse();
        let mut last = std::collections::HashMap::new();
        let mut first = Vec::new();
        for number in 0..entries.len() {
            let Some(hash) = entries.get(number).map(|entry| entry.key.hash()) else { break };
            match last.insert(hash, number).and_then(|before: usize| entries.get_mut(before)) {
                Some(before) => before.next = number as u32 + 1,
                None => first.push(First { hash, number: number as u32 + 1 }),
            }
        }
        Sad { entries: entries.into(), first: HashTable::new(first.iter().copied()) }
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
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
        let key = Key::new(dst, spi, protocol);
        let mut number = self.first.get(key.hash());
        // Each entry comes after those before it, so the loop ends.
        loop {
            let entry = self.entries.get(number?)?;
            if entry.key == key && entry.mark.matches(mark) {
                return Some(&entry.state);
            }
            number = (entry.next as usize).checked_sub(1);
        }
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
