//! The ethtool family of generic netlink (Documentation/networking/ethtool-netlink.rst).
//! EOPNOTSUPP, for what a driver does not have, is returned as `None`.

use std::io;

use netlink_sys::protocols::NETLINK_GENERIC;

use crate::control::netdev::nic::find;
use crate::control::netlink::message::{Attrs, Request};
use crate::control::netlink::query::{GENL_HEADER, NlSock};
use crate::io::device::{ChannelCounts, Channels, Coalescing, Feature, Rings, Timestamping};

const NLA_F_NESTED: u16 = 0x8000;

pub(crate) const FEATURES_GET: u8 = 11;
const RINGS_GET: u8 = 15;
const CHANNELS_GET: u8 = 17;
const COALESCE_GET: u8 = 19;
const TSINFO_GET: u8 = 25;
const RSS_GET: u8 = 38;

/// ETHTOOL_A_*_HEADER: the same in every message.
const HEADER: u16 = 1;
const HEADER_DEV_INDEX: u16 = 1;

const FEATURES_HW: u16 = 2;
const FEATURES_ACTIVE: u16 = 4;
const FEATURES_NOCHANGE: u16 = 5;
const BITSET_BITS: u16 = 3;
const BITSET_BIT_INDEX: u16 = 1;
const BITSET_BIT_NAME: u16 = 2;

/// Sends one request about a device. `Ok(None)`: it does not support it.
pub(crate) fn ask<T>(
    ifindex: u32,
    command: u8,
    parse: impl Fn(Attrs<'_>) -> Option<T>,
) -> io::Result<Option<T>> {
    let mut socket = NlSock::open(NETLINK_GENERIC)?;
    let family = socket.family("ethtool")?;
    // The device's header attribute, copied from a temporary message.
    let device = Request::new(0, 0, &[]).attr(HEADER_DEV_INDEX, &ifindex.to_ne_bytes());
    let device = device.finish(0);
    let device = device.get(16..).unwrap_or_default();
    let answer = socket.get(
        |flags| {
            Request::new(family, flags, &[command, 1, 0, 0]).attr(NLA_F_NESTED | HEADER, device)
        },
        |message| parse(message.attrs(GENL_HEADER)),
    );
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        answer => answer,
    }
}

fn number(attrs: Attrs<'_>, kind: u16) -> Option<u32> {
    find(attrs, kind)?.u32()
}

/// The numbers of queues.
pub fn channels(ifindex: u32) -> io::Result<Option<Channels>> {
    ask(ifindex, CHANNELS_GET, |attrs| {
        let count = |kind| number(attrs, kind).unwrap_or(0);
        // ETHTOOL_A_CHANNELS_RX_MAX and following: maxima of rx, tx, other, combined; then the
        // current values.
        let counts = |first: u16| ChannelCounts {
            rx: count(first),
            tx: count(first + 1),
            other: count(first + 2),
            combined: count(first + 3),
        };
        Some(Channels { max: counts(2), now: counts(6) })
    })
}

/// The RSS indirection table: the RX queue of each entry, which the flow hash selects. `None`:
/// there is none, or the kernel (before 6.3) does not report it.
pub fn rss_table(ifindex: u32) -> io::Result<Option<Vec<u32>>> {
    // ETHTOOL_A_RSS_INDIR.
    let table = ask(ifindex, RSS_GET, |attrs| {
        let table = find(attrs, 4)?.value.as_chunks::<4>().0;
        Some(table.iter().map(|entry| u32::from_ne_bytes(*entry)).collect::<Vec<u32>>())
    })?;
    Ok(table.filter(|table| !table.is_empty()))
}

/// Ring sizes in descriptors.
pub fn rings(ifindex: u32) -> io::Result<Option<Rings>> {
    // ETHTOOL_A_RINGS_RX_MAX, _TX_MAX, _RX, _TX.
    let rings = ask(ifindex, RINGS_GET, |attrs| {
        let count = |kind| number(attrs, kind).unwrap_or(0);
        Some(Rings { rx_max: count(2), tx_max: count(5), rx: count(6), tx: count(9) })
    })?;
    Ok(rings.filter(|rings| *rings != Rings::default()))
}

/// Offloads, in the kernel's order.
pub fn features(ifindex: u32) -> io::Result<Vec<Feature>> {
    let found = ask(ifindex, FEATURES_GET, |attrs| {
        let set = |kind| -> Vec<Bit> { find(attrs, kind).map_or(Vec::new(), |a| bits(a.nested())) };
        let (hw, active, fixed) = (set(FEATURES_HW), set(FEATURES_ACTIVE), set(FEATURES_NOCHANGE));
        let mut all: Vec<&Bit> = hw.iter().chain(&active).collect();
        all.sort();
        all.dedup();
        let feature = |bit: &&Bit| Feature {
            name: bit.name.clone(),
            on: active.contains(bit),
            fixed: fixed.contains(bit) || !hw.contains(bit),
        };
        Some(all.iter().map(feature).collect())
    })?;
    Ok(found.unwrap_or_default())
}

/// A bit of a bitset that is set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Bit {
    index: u32,
    name: String,
}

/// The bits of a bitset without a mask: all listed bits are set.
fn bits(set: Attrs<'_>) -> Vec<Bit> {
    let listed = find(set, BITSET_BITS).map(|bits| bits.nested());
    // Some bits are obsolete and have no name.
    let bit = |bit: crate::control::netlink::message::Attr<'_>| {
        let index = number(bit.nested(), BITSET_BIT_INDEX)?;
        let name = find(bit.nested(), BITSET_BIT_NAME)?.string();
        (!name.is_empty()).then_some(Bit { index, name })
    };
    listed.into_iter().flatten().filter_map(bit).collect()
}

/// Time stamping capabilities.
pub fn timestamping(ifindex: u32) -> io::Result<Option<Timestamping>> {
    // ETHTOOL_A_TSINFO_TIMESTAMPING, _TX_TYPES, _RX_FILTERS, _PHC_INDEX.
    ask(ifindex, TSINFO_GET, |attrs| {
        let names = |kind| -> Vec<String> {
            let set = find(attrs, kind).map_or(Vec::new(), |attr| bits(attr.nested()));
            set.into_iter().map(|bit| bit.name).collect()
        };
        Some(Timestamping {
            capabilities: names(2),
            tx_types: names(3),
            rx_filters: names(4),
            clock: number(attrs, 5),
        })
    })
}

/// Interrupt coalescing.
pub fn coalescing(ifindex: u32) -> io::Result<Option<Coalescing>> {
    // ETHTOOL_A_COALESCE_RX_USECS, _RX_MAX_FRAMES, _TX_USECS, _TX_MAX_FRAMES, _USE_ADAPTIVE_RX, _TX.
    let found = ask(ifindex, COALESCE_GET, |attrs| {
        let flag = |kind| find(attrs, kind)?.u8().map(|on| on != 0);
        Some(Coalescing {
            rx_usecs: number(attrs, 2),
            rx_frames: number(attrs, 3),
            tx_usecs: number(attrs, 6),
            tx_frames: number(attrs, 7),
            adaptive_rx: flag(11),
            adaptive_tx: flag(12),
        })
    })?;
    Ok(found.filter(|found| *found != Coalescing::default()))
}
