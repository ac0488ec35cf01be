//! The MIB counters of the packet that is being processed. They take effect when it is known what becomes of the packet:
//! one that is handed to the kernel is counted by the kernel, and not here.
//!
//! What happens after that (fragments, ICMP errors, output) is counted at once.

use std::cell::Cell;

use crate::stats::{Mib, WorkerStats};

const _: () = assert!((Mib::COUNT as u32) < u64::BITS, "a bit for each, and one more");

/// The packet was inside another one, which has counters of its own.
const HAS_OUTER: u64 = 1 << 63;
/// What a packet counts that is forwarded.
const FORWARDED4: u64 = bit(Mib::IpInReceives) | bit(Mib::IpForwDatagrams);
const FORWARDED6: u64 = bit(Mib::Ip6InReceives) | bit(Mib::Ip6OutForwDatagrams);

/// The counters of one packet, a bit for each: none counts a packet twice. Cells, because stages only read the state.
#[derive(Debug, Default)]
pub(super) struct PacketMibs {
    packet: Cell<u64>,
    /// Those of the packet around it, whose protection was removed.
    outer: Cell<u64>,
}

/// Packets of a burst that were forwarded and counted nothing else.
#[derive(Debug, Default)]
pub(super) struct Forwarded {
    v4: u64,
    v6: u64,
}

const fn bit(name: Mib) -> u64 {
    1 << name as u8
}

impl PacketMibs {
    /// A packet begins.
    #[inline(always)]
    pub fn begin(&self) {
        self.packet.set(0);
    }

    /// The packet counts there, unless it is handed to the kernel.
    #[inline(always)]
    pub fn count(&self, name: Mib) {
        self.packet.set(self.packet.get() | bit(name));
    }

    /// The packet becomes the one inside it.
    #[cold]
    pub fn opened(&self) {
        self.outer.set(self.packet.replace(HAS_OUTER));
    }

    /// The packet is not handed to the kernel.
    #[inline(always)]
    pub fn commit(&self, stats: &WorkerStats, forwarded: &mut Forwarded) {
        match self.packet.get() {
            FORWARDED4 => forwarded.v4 += 1,
            FORWARDED6 => forwarded.v6 += 1,
            packet => self.commit_slow(packet, stats),
        }
    }

    #[cold]
    #[inline(never)]
    fn commit_slow(&self, packet: u64, stats: &WorkerStats) {
        let outer = if packet & HAS_OUTER != 0 { self.outer.get() } else { 0 };
        for mut bits in [packet, outer] {
            while bits != 0 {
                // None for HAS_OUTER.
                if let Some(mib) = stats.mib.get(bits.trailing_zeros() as usize) {
                    mib.add(1);
                }
                bits &= bits - 1;
            }
        }
    }
}

impl Forwarded {
    /// The burst has ended.
    #[inline]
    pub fn commit(&self, stats: &WorkerStats) {
        for (packets, names) in [
            (self.v4, [Mib::IpInReceives, Mib::IpForwDatagrams]),
            (self.v6, [Mib::Ip6InReceives, Mib::Ip6OutForwDatagrams]),
        ] {
            if packets != 0 {
                names.iter().for_each(|name| stats.mib[*name as usize].add(packets));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_counts_once_where_it_counts_and_the_one_around_it_by_itself() {
        let (mibs, stats) = (PacketMibs::default(), WorkerStats::new(1));
        let mut forwarded = Forwarded::default();
        let get = |name: Mib| stats.mib[name as usize].get();
        for name in [Mib::IpInReceives, Mib::IpForwDatagrams] {
            mibs.begin();
            mibs.count(Mib::IpInReceives);
            mibs.count(name);
            mibs.count(name);
            mibs.commit(&stats, &mut forwarded);
        }
        // That of a packet that is handed to the kernel has no effect.
        mibs.begin();
        mibs.count(Mib::IpInReceives);
        for inside in [Mib::IpInReceives, Mib::Ip6InReceives] {
            mibs.begin();
            mibs.count(Mib::IpInReceives);
            mibs.count(Mib::IpInDelivers);
            mibs.opened();
            mibs.count(inside);
            mibs.commit(&stats, &mut forwarded);
        }
        forwarded.commit(&stats);
        assert_eq!((get(Mib::IpInReceives), get(Mib::IpForwDatagrams)), (5, 1));
        assert_eq!((get(Mib::IpInDelivers), get(Mib::Ip6InReceives)), (2, 1));
        assert_eq!(stats.mib.iter().map(|mib| mib.get()).sum::<u64>(), 9);
    }
}
