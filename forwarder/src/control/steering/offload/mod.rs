//! The flows that the XDP program forwards by itself: the writer of the maps of [`xdp_prog::offload`].
//!
//! One thread at a time writes them, while programs read them on all CPUs. An entry is written before its mark, and
//! not changed while it has one; a removed entry rests before its place is used again, so that a program that has just
//! read the mark reads one entry and not parts of two.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use arc_swap::ArcSwap;
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use xdp_prog::offload::{FlowEntry, NEXT_HOPS_MAX, NextHop, REST_NS, Rewrite, Width};
use xdp_prog::{FLOW_SLOTS, FLOW_WORDS, FlowHash, FlowPlace, VlanKey, mac_words};

use super::XdpError;
use super::flow_gate::{FlowWords, read_hash};
use super::object::OffloadMaps;
use crate::io::af_xdp::mapped_words::MappedWords;

/// 32-bit words of the maps' values.
const ENTRY: usize = size_of::<FlowEntry>() / 4;
const REWRITE: usize = size_of::<Rewrite>() / 4;
const HOP: usize = size_of::<NextHop>() / 4;
/// Positions in a [`FlowEntry`], in 32-bit words.
const BASIS: usize = std::mem::offset_of!(FlowEntry, basis) / 4;
const COUNT: usize = std::mem::offset_of!(FlowEntry, count) / 4;
const SEQS: usize = std::mem::offset_of!(FlowEntry, seqs) / 4;
/// Positions in a [`NextHop`].
const EPOCH: usize = std::mem::offset_of!(NextHop, epoch) / 4;
const TAGS: usize = std::mem::offset_of!(NextHop, tags) / 4;
/// The bits of the number of the interface that packets come from, in the last word of a key.
const DEV_SHIFT: u32 = 48;

/// What is done with packets of a flow.
#[derive(Debug, Clone, Copy)]
pub struct Action {
    /// The sum of the epochs that it depends on, without that of the next hop.
    pub basis: u32,
    /// The longest packet, octets from the IP header on.
    pub mtu: u16,
    /// What is written into each packet besides.
    pub rewrite: Option<Rewrite>,
}

/// Where packets leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hop {
    /// The port's number.
    pub port: u16,
    /// Link-layer addresses of frames: destination, source.
    pub macs: [[u8; 6]; 2],
    /// Tags of frames.
    pub tags: VlanKey,
    /// ifindex of the outgoing interface, and the neighbour's address.
    pub nexthop: (u32, IpAddr),
}

/// A next hop in use. Its place is free when it has no users.
#[derive(Debug)]
struct HopState {
    hop: Hop,
    /// Entries that refer to it, also those that rest.
    users: u32,
    /// Its epoch: it is void when the one in the map is another.
    epoch: u32,
}

/// The next hops, which any thread may void.
#[derive(Debug)]
pub struct NextHops {
    words: MappedWords,
    /// Those in use, by number.
    list: ArcSwap<Vec<(u16, Hop)>>,
}

impl NextHops {
    /// Voids the next hops that no longer hold, and all entries that lead to them. Waits for nobody.
    pub fn void(&self, holds: impl Fn(&Hop) -> bool) {
        for (number, hop) in self.list.load().iter() {
            if !holds(hop)
                && let Some(epoch) = self.word(*number, EPOCH)
            {
                epoch.fetch_add(1, Release);
            }
        }
    }

    fn word(&self, number: u16, at: usize) -> Option<&AtomicU32> {
        self.words.words().get(usize::from(number) * HOP + at)
    }

    fn epoch(&self, number: u16) -> u32 {
        self.word(number, EPOCH).map_or(0, |word| word.load(Acquire))
    }
}

/// What an entry is. See [`OffloadTable::read`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryView {
    /// The key, without the interface.
    pub key: FlowWords,
    /// Number of the interface that packets come from.
    pub in_dev: u16,
    /// The port that they leave by.
    pub out_port: u16,
    /// ifindex of the outgoing interface, and the neighbour that they are sent to.
    pub nexthop: (u32, IpAddr),
    /// Their link-layer address.
    pub lladdr: [u8; 6],
    /// What it depends on, without its next hop.
    pub basis: u32,
    /// Whether its next hop holds, and it was not voided.
    pub holds: bool,
    /// The destination address that it writes, if it does: as in a key.
    pub new_destination: Option<[u64; 2]>,
}

/// Why a flow was not entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotEntered {
    /// Both buckets of its key are full, or another key has the same mark.
    NoPlace,
    /// There is no room for another next hop.
    NoHop,
}

/// Marks and entries, which any thread may read.
#[derive(Debug)]
pub struct OffloadedEntries {
    marks: MappedWords,
    entries: MappedWords,
    hash: FlowHash,
}

/// The writer.
#[derive(Debug)]
pub struct OffloadTable {
    maps: Arc<OffloadedEntries>,
    rewrites: MappedWords,
    next_hops: Arc<NextHops>,
    /// Places with an entry, or a resting one: a bit for each.
    occupied: Vec<u64>,
    /// Removed entries: since when, CLOCK_MONOTONIC, and which.
    resting: VecDeque<(u64, u32)>,
    hops: Vec<Option<HopState>>,
    hop_numbers: HashMap<Hop, u16>,
    len: usize,
    /// Entries by [`Width`], in the order of [`WIDTHS`].
    of_width: [usize; WIDTHS.len()],
}

const WIDTHS: [Width; 3] = [Width::Addresses, Width::ToPrefix, Width::Prefixes];

impl OffloadedEntries {
    /// The entries with this key, from any interface; of wide ones, whose key is [`hashed`], from its own.
    pub fn find(&self, key: &FlowWords) -> impl Iterator<Item = u32> + '_ {
        let (place, key) = (self.hash.place(key), *key);
        let [first, second] = place.buckets;
        let other = (second != first).then_some(second);
        let slots = [first].into_iter().chain(other).flat_map(|bucket| {
            let from = bucket as usize * FLOW_SLOTS;
            from..from + FLOW_SLOTS
        });
        let is_its = move |at: &usize| {
            let has_mark = self.mark(*at).is_some_and(|it| it.load(Relaxed) == place.mark);
            let own = self.key(at - FLOW_SLOTS);
            has_mark && (own == key || with_dev(&own, 0) == key)
        };
        slots.filter(is_its).map(|at| (at - FLOW_SLOTS) as u32)
    }

    fn key(&self, number: usize) -> FlowWords {
        let mut key: FlowWords = std::array::from_fn(|n| self.key_word(number, n));
        if is_ipv4(&key) {
            REWRITE4.iter().for_each(|at| key[*at] = 0);
        }
        key
    }

    fn key_word(&self, number: usize, n: usize) -> u64 {
        let word = |at: usize| self.entry_word(number, at).map_or(0, |it| it.load(Relaxed));
        u64::from(word(2 * n)) | u64::from(word(2 * n + 1)) << 32
    }

    fn mark(&self, at: usize) -> Option<&AtomicU32> {
        self.marks.words().get(at)
    }

    fn entry_word(&self, number: usize, at: usize) -> Option<&AtomicU32> {
        self.entries.words().get(number * ENTRY + at)
    }

    /// Voids the entries with this key: their packets are treated as those of no offloaded flow from now on. Waits for
    /// nobody; the writer removes them later.
    pub fn void(&self, key: &FlowWords) {
        for number in self.find(key) {
            if let Some(hop_mtu) = self.entry_word(number as usize, BASIS + 1) {
                // No packet is as short as the MTU then. Of another flow, if it has the place by now: that one is
                // offered again.
                hop_mtu.fetch_and(u32::from(u16::MAX), Release);
            }
        }
    }

    /// [`FlowEntry::seqs`] of the flow with this key: acknowledgement number, and sequence number after the last
    /// segment. `None`: there is none.
    pub fn seqs(&self, key: &FlowWords) -> Option<(u32, u32)> {
        let number = self.find(key).next()?;
        let seqs = self.entries.long(number as usize * ENTRY + SEQS)?.load(Relaxed);
        // It may be another flow's by now.
        let is_its = self.find(key).any(|other| other == number);
        (is_its && seqs != 0).then_some((seqs as u32, (seqs >> 32) as u32))
    }
}

impl OffloadTable {
    pub(super) fn new(maps: &OffloadMaps) -> Result<OffloadTable, XdpError> {
        let buckets = maps.marks.max_entries() as usize;
        let map = |map: &MapHandle, words: usize| {
            MappedWords::map(map.as_fd(), words).map_err(XdpError::FlowGate)
        };
        let places = buckets.saturating_sub(1) * FLOW_SLOTS;
        Ok(OffloadTable::of(
            map(&maps.marks, buckets * FLOW_SLOTS)?,
            map(&maps.entries, places * ENTRY)?,
            map(&maps.rewrites, places * REWRITE)?,
            map(&maps.next_hops, NEXT_HOPS_MAX * HOP)?,
        ))
    }

    fn of(
        marks: MappedWords,
        entries: MappedWords,
        rewrites: MappedWords,
        hop_words: MappedWords,
    ) -> OffloadTable {
        let places = entries.words().len() / ENTRY;
        OffloadTable {
            maps: Arc::new(OffloadedEntries { hash: read_hash(marks.words()), marks, entries }),
            rewrites,
            next_hops: Arc::new(NextHops { words: hop_words, list: ArcSwap::default() }),
            occupied: vec![0; places.div_ceil(64)],
            resting: VecDeque::new(),
            hops: Vec::new(),
            hop_numbers: HashMap::new(),
            len: 0,
            of_width: [0; WIDTHS.len()],
        }
    }

    /// Number of buckets of a map for `flows` flows, and one for the hash.
    pub(super) fn buckets(flows: usize) -> u32 {
        flows.div_ceil(FLOW_SLOTS).next_power_of_two() as u32 + 1
    }

    /// Maximum number of flows.
    pub fn capacity(&self) -> usize {
        self.maps.entries.words().len() / ENTRY
    }

    /// Marks and entries, for other threads.
    pub fn entries(&self) -> &Arc<OffloadedEntries> {
        &self.maps
    }

    /// The next hops, for other threads.
    pub fn next_hops(&self) -> &Arc<NextHops> {
        &self.next_hops
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The widths that entries have, for [`Epochs::set_widths`](crate::tables::Epochs::set_widths).
    pub fn widths(&self) -> u32 {
        let counts = WIDTHS.iter().zip(&self.of_width);
        counts.filter(|(_, count)| **count > 0).fold(0, |bits, (width, _)| bits | width.bit())
    }

    fn count_of_width(&mut self, key: &FlowWords) -> Option<&mut usize> {
        let width = Width::of((key[FLOW_WORDS - 1] >> 32) as u8)?;
        let at = WIDTHS.iter().position(|it| *it == width)?;
        self.of_width.get_mut(at)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Enters a flow: its packets are forwarded before this returns. An entry with its key and interface is replaced.
    /// Returns its number.
    ///
    /// # Errors
    /// There is no room; see [`NotEntered`].
    pub fn insert(
        &mut self,
        key: &FlowWords,
        in_dev: u16,
        hop: &Hop,
        action: &Action,
    ) -> Result<u32, NotEntered> {
        let place = self.maps.hash.place(&hashed(key, in_dev));
        let at = self.free_slot(&place).ok_or(NotEntered::NoPlace)?;
        let number = at - FLOW_SLOTS;
        let hop = self.take_hop(hop).ok_or(NotEntered::NoHop)?;
        let state = self.hops.get(usize::from(hop)).and_then(Option::as_ref);
        let hop_epoch = state.map_or(0, |state| state.epoch);
        let mut stored = with_dev(key, in_dev);
        let mtu = match &action.rewrite {
            Some(rewrite) => {
                if is_ipv4(key) {
                    let inline = rewrite.inline4();
                    REWRITE4.iter().zip(inline).for_each(|(at, word)| stored[*at] = word);
                } else {
                    self.write_rewrite(number, rewrite);
                }
                action.mtu | FlowEntry::HAS_REWRITE
            }
            None => action.mtu & !FlowEntry::HAS_REWRITE,
        };
        let mut words = [0; ENTRY];
        for (to, word) in words.chunks_exact_mut(2).zip(stored) {
            to.copy_from_slice(&[word as u32, (word >> 32) as u32]);
        }
        words[BASIS] = action.basis.wrapping_add(hop_epoch);
        words[BASIS + 1] = u32::from(hop) | u32::from(mtu) << 16;
        store(self.maps.entries.words(), number * ENTRY, &words);
        self.occupy(number);
        self.len += 1;
        if let Some(count) = self.count_of_width(key) {
            *count += 1;
        }
        // Everything that it leads to is written before.
        if let Some(mark) = self.maps.mark(at) {
            mark.store(place.mark, Release);
        }
        Ok(number as u32)
    }

    /// A free slot for a key with this place; `None`: see [`NotEntered::NoPlace`].
    fn free_slot(&self, place: &FlowPlace) -> Option<usize> {
        let mark_words = place.buckets.map(|bucket| bucket as usize * FLOW_SLOTS);
        let is_mark =
            |at: &usize| self.maps.mark(*at).is_some_and(|it| it.load(Relaxed) == place.mark);
        let mut slots = mark_words.into_iter().flat_map(|from| from..from + FLOW_SLOTS);
        // The program looks at the first of equal marks only.
        if slots.any(|at| is_mark(&at)) {
            return None;
        }
        let is_free = |at: &usize| !self.is_occupied(at - FLOW_SLOTS);
        // Where the program looks first.
        let homes = mark_words.map(|from| from + place.home());
        if let Some(at) = homes.into_iter().find(is_free) {
            return Some(at);
        }
        // Of the bucket with more room, so that both fill evenly.
        let room = |from: usize| (from..from + FLOW_SLOTS).filter(is_free).count();
        let [first, second] = mark_words;
        let from = if room(second) > room(first) { second } else { first };
        (from..from + FLOW_SLOTS).find(is_free)
    }

    /// Whether a flow that has no entry can be entered: there is a place for its key, and for another next hop.
    ///
    /// # Errors
    /// There is none; see [`NotEntered`].
    pub fn has_room(&self, key: &FlowWords, in_dev: u16) -> Result<(), NotEntered> {
        let place = self.maps.hash.place(&hashed(key, in_dev));
        self.free_slot(&place).ok_or(NotEntered::NoPlace)?;
        let has_hop = self.hops.len() < NEXT_HOPS_MAX || self.hops.iter().any(Option::is_none);
        if has_hop { Ok(()) } else { Err(NotEntered::NoHop) }
    }

    /// Removes an entry. A program that found it before still uses it once.
    pub fn remove(&mut self, number: u32, now_ns: u64) {
        let at = number as usize;
        let Some(mark) = self.maps.mark(at + FLOW_SLOTS) else { return };
        if mark.swap(0, Release) == 0 {
            return;
        }
        self.len -= 1;
        if let Some(count) = self.count_of_width(&self.maps.key(at)) {
            *count -= 1;
        }
        self.resting.push_back((now_ns, number));
    }

    /// What an entry is; `None`: there is none with this number.
    pub fn read(&self, number: u32) -> Option<EntryView> {
        let holds = self.holds(number)?;
        let (at, maps) = (number as usize, &self.maps);
        let key = maps.key(at);
        let (hop, mtu) = self.hop_mtu(number)?;
        let hop = self.hops.get(usize::from(hop))?.as_ref()?;
        let basis = maps.entry_word(at, BASIS)?.load(Relaxed).wrapping_sub(hop.epoch);
        let has_rewrite = mtu & FlowEntry::HAS_REWRITE != 0;
        Some(EntryView {
            key: with_dev(&key, 0),
            in_dev: (key[FLOW_WORDS - 1] >> DEV_SHIFT) as u16,
            out_port: hop.hop.port,
            nexthop: hop.hop.nexthop,
            lladdr: hop.hop.macs[0],
            basis,
            holds,
            new_destination: has_rewrite.then(|| self.new_destination(at, is_ipv4(&key))),
        })
    }

    /// Whether the next hop of an entry holds, and it was not voided; `None`: there is no entry, or it rests.
    pub fn holds(&self, number: u32) -> Option<bool> {
        if self.maps.mark(number as usize + FLOW_SLOTS)?.load(Relaxed) == 0 {
            return None;
        }
        let (hop, mtu) = self.hop_mtu(number)?;
        let state = self.hops.get(usize::from(hop))?.as_ref()?;
        Some(self.next_hops.epoch(hop) == state.epoch && mtu != 0)
    }

    /// The number of an entry's next hop.
    pub fn hop_number(&self, number: u32) -> Option<usize> {
        self.hop_mtu(number).map(|(hop, _)| hop.into())
    }

    /// `next_hop` and `mtu` of an entry, also of one that rests.
    fn hop_mtu(&self, number: u32) -> Option<(u16, u16)> {
        let word = self.maps.entry_word(number as usize, BASIS + 1)?.load(Relaxed);
        Some((word as u16, (word >> 16) as u16))
    }

    /// ifindex of the outgoing interface of a next hop in use, and the neighbour's address.
    pub fn nexthop(&self, hop: usize) -> Option<(u32, IpAddr)> {
        Some(self.hops.get(hop)?.as_ref()?.hop.nexthop)
    }

    /// The numbers of entries, resting ones included, from this one on, until `end`.
    pub fn numbers(&self, from: u32, end: u32) -> impl Iterator<Item = u32> + '_ {
        (from..end.min(self.capacity() as u32)).filter(|n| self.is_occupied(*n as usize))
    }

    /// A removed entry that has rested: what it has counted is final. Its place is free when the next one is taken.
    pub fn rested(&mut self, now_ns: u64) -> Option<u32> {
        let (since_ns, number) = self.resting.front().copied()?;
        if now_ns.saturating_sub(since_ns) < REST_NS {
            return None;
        }
        self.resting.pop_front();
        self.leave_hop(self.hop_mtu(number).map_or(0, |(hop, _)| hop));
        if let Some(word) = self.occupied.get_mut(number as usize / 64) {
            *word &= !(1 << (number % 64));
        }
        Some(number)
    }

    /// What an entry has counted, also one that rests: [`FlowEntry::count`] and [`FlowEntry::seqs`].
    pub fn counted(&self, number: u32) -> Option<(u64, u64)> {
        let at = number as usize * ENTRY;
        let load = |word: usize| Some(self.maps.entries.long(at + word)?.load(Relaxed));
        Some((load(COUNT)?, load(SEQS)?))
    }

    /// The number of a next hop, which gets one more user.
    fn take_hop(&mut self, hop: &Hop) -> Option<u16> {
        if let Some(number) = self.hop_numbers.get(hop).copied()
            && let Some(Some(state)) = self.hops.get_mut(usize::from(number))
            && state.epoch == self.next_hops.epoch(number)
        {
            state.users += 1;
            return Some(number);
        }
        // One that entries lead to is not written.
        let number = match self.hops.iter().position(Option::is_none) {
            Some(number) => number,
            None if self.hops.len() < NEXT_HOPS_MAX => {
                self.hops.push(None);
                self.hops.len() - 1
            }
            None => return None,
        };
        let [destination, source] = hop.macs.map(mac_words);
        let pair = |[low, high]: [u16; 2]| u32::from(low) | u32::from(high) << 16;
        let words = [
            pair([destination[0], destination[1]]),
            pair([destination[2], source[0]]),
            pair([source[1], source[2]]),
            u32::from(hop.port),
        ];
        store(self.next_hops.words.words(), number * HOP, &words);
        let [outer, inner] = [&hop.tags[..2], &hop.tags[2..]].map(|tag| pair([tag[0], tag[1]]));
        store(self.next_hops.words.words(), number * HOP + TAGS, &[outer, inner]);
        let epoch = self.next_hops.epoch(number as u16);
        *self.hops.get_mut(number)? = Some(HopState { hop: *hop, users: 1, epoch });
        self.hop_numbers.insert(*hop, number as u16);
        self.list_hops();
        Some(number as u16)
    }

    /// An entry that led to a next hop has rested.
    fn leave_hop(&mut self, number: u16) {
        let Some(Some(state)) = self.hops.get_mut(usize::from(number)) else { return };
        state.users = state.users.saturating_sub(1);
        if state.users != 0 {
            return;
        }
        if self.hop_numbers.get(&state.hop) == Some(&number) {
            self.hop_numbers.remove(&state.hop);
        }
        if let Some(place) = self.hops.get_mut(usize::from(number)) {
            *place = None;
        }
        self.list_hops();
    }

    /// Tells other threads which next hops there are.
    fn list_hops(&self) {
        let of = |(number, state): (usize, &Option<HopState>)| {
            state.as_ref().map(|state| (number as u16, state.hop))
        };
        self.next_hops.list.store(Arc::new(self.hops.iter().enumerate().filter_map(of).collect()));
    }

    fn write_rewrite(&self, number: usize, rewrite: &Rewrite) {
        let octets = rewrite.to_bytes();
        let mut words = [0; REWRITE];
        for (to, octets) in words.iter_mut().zip(octets.as_chunks().0) {
            *to = u32::from_ne_bytes(*octets);
        }
        store(self.rewrites.words(), number * REWRITE, &words);
    }

    fn new_destination(&self, number: usize, is_ipv4: bool) -> [u64; 2] {
        if is_ipv4 {
            return [self.maps.key_word(number, REWRITE4[0]) >> 32, 0];
        }
        let from = number * REWRITE + std::mem::offset_of!(Rewrite, destination) / 4;
        let word = |at: usize| {
            self.rewrites.words().get(from + at).map_or(0, |it| u64::from(it.load(Relaxed)))
        };
        [word(0) | word(1) << 32, word(2) | word(3) << 32]
    }

    /// Whether there is an entry with this number, or one that rests.
    pub fn is_occupied(&self, number: usize) -> bool {
        self.occupied.get(number / 64).is_none_or(|word| word >> (number % 64) & 1 != 0)
    }

    fn occupy(&mut self, number: usize) {
        if let Some(word) = self.occupied.get_mut(number / 64) {
            *word |= 1 << (number % 64);
        }
    }
}

/// What is hashed of a key: with the interface, if it is wide.
pub fn hashed(key: &FlowWords, in_dev: u16) -> FlowWords {
    let [.., last] = key;
    match Width::of((last >> 32) as u8) {
        Some(_) => with_dev(key, in_dev),
        None => *key,
    }
}

/// The words of an entry's key that are its rewrite, of IPv4: see [`Rewrite::inline4`].
const REWRITE4: [usize; 2] = [1, 3];

fn is_ipv4(key: &FlowWords) -> bool {
    (key[FLOW_WORDS - 1] >> 40) as u8 == 4
}

/// A key with the interface that packets come from.
fn with_dev(key: &FlowWords, dev: u16) -> FlowWords {
    let [.., last] = key;
    let mut with = *key;
    with[FLOW_WORDS - 1] = last & !(u64::MAX << DEV_SHIFT) | u64::from(dev) << DEV_SHIFT;
    with
}

/// Stores consecutive words.
fn store(to: &[AtomicU32], from: usize, words: &[u32]) {
    let to = to.get(from..from + words.len()).unwrap_or_default();
    to.iter().zip(words).for_each(|(to, word)| to.store(*word, Relaxed));
}

/// Has frames that are redirected to a port leave by an interface; `None`: they are dropped.
pub(super) fn set_tx_port(
    ports: &MapHandle,
    port: u16,
    ifindex: Option<u32>,
) -> Result<(), XdpError> {
    let key = u32::from(port).to_ne_bytes();
    match ifindex {
        // struct bpf_devmap_val: ifindex, and no program.
        Some(ifindex) => ports
            .update(&key, &[ifindex, 0].map(u32::to_ne_bytes).concat(), MapFlags::ANY)
            .map_err(|source| XdpError::map("add a port to", ports, source)),
        None => match ports.delete(&key) {
            Err(e) if e.kind() != libbpf_rs::ErrorKind::NotFound => {
                Err(XdpError::map("remove a port from", ports, e))
            }
            _ => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests;
