//! Accounting of a worker's packets.

use super::{Counter, DropReason, WorkerStats};

/// The packets of one worker, between two iterations of its loop.
///
/// Each packet that the worker received, created or was handed by another worker is counted in exactly
/// one of the other fields: [`PacketAccount::is_balanced`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PacketAccount {
    /// Taken from RX rings, valid or not.
    pub received: u64,
    /// Created by the router: ICMP errors, fragments, and packets made of fragments.
    pub made: u64,
    /// Handed over by other workers for sending.
    pub handed_over_in: u64,
    /// Sent: reported as completed by the kernel, or by whatever takes a driver's packets.
    pub sent: u64,
    /// Dropped, each by one [`DropReason`].
    pub dropped: u64,
    /// Handed to the kernel, each by one [`super::PuntReason`].
    pub handed_to_kernel: u64,
    /// Replaced by their fragments.
    pub fragmented: u64,
    /// Fragments that were replaced by the packet that they make.
    pub reassembled: u64,
    /// Handed over to other workers for sending.
    pub handed_over_out: u64,
    /// Held until a neighbour is resolved, or the other fragments have arrived.
    pub held: u64,
    /// On TX rings, and not yet reported as completed.
    pub sending: u64,
}

impl PacketAccount {
    /// `received + made + handed_over_in = sent + dropped + handed_to_kernel + fragmented + reassembled +
    /// handed_over_out + held + sending`.
    pub fn is_balanced(&self) -> bool {
        let came = self.received + self.made + self.handed_over_in;
        let went = self.sent + self.dropped + self.handed_to_kernel + self.fragmented;
        came == went + self.reassembled + self.handed_over_out + self.held + self.sending
    }

    /// The fields with their names.
    pub fn named(&self) -> [(&'static str, u64); 11] {
        let PacketAccount {
            received,
            made,
            handed_over_in,
            sent,
            dropped,
            handed_to_kernel,
            fragmented,
            reassembled,
            handed_over_out,
            held,
            sending,
        } = *self;
        [
            ("received", received),
            ("made", made),
            ("handed_over_in", handed_over_in),
            ("sent", sent),
            ("dropped", dropped),
            ("handed_to_kernel", handed_to_kernel),
            ("fragmented", fragmented),
            ("reassembled", reassembled),
            ("handed_over_out", handed_over_out),
            ("held", held),
            ("sending", sending),
        ]
    }
}

impl WorkerStats {
    /// The counters, with the packets that are `held` and those that are on TX rings (`sending`).
    /// Balanced if the worker calls it between two iterations.
    pub fn account(&self, held: u64, sending: u64) -> PacketAccount {
        let [received, sent] = self.forgotten.each_ref().map(Counter::get);
        let ports = |of: fn(&super::PortStats) -> &Counter| -> u64 {
            self.ports.iter().map(|port| of(port).get()).sum()
        };
        let undelivered = self.undelivered.total();
        let dropped: u64 = self.drops.iter().map(Counter::get).sum();
        let handed: u64 = self.punts.iter().map(Counter::get).sum();
        PacketAccount {
            received: received + ports(|port| &port.rx_packets),
            made: self.made.get(),
            handed_over_in: self.handed_over_in.get(),
            sent: sent + ports(|port| &port.tx_packets),
            dropped: dropped + undelivered,
            handed_to_kernel: handed.saturating_sub(undelivered),
            fragmented: self.fragmented.get(),
            reassembled: self.reassembled.get(),
            handed_over_out: self.handed_over_out.get(),
            held,
            sending,
        }
    }

    /// Drops for one reason.
    pub fn drop_count(&self, reason: DropReason) -> u64 {
        let late = if reason == DropReason::PuntFailed { self.undelivered.total() } else { 0 };
        self.drops[reason as usize].get() + late
    }

    /// Packets that the kernel took for one reason.
    pub fn punt_count(&self, reason: super::PuntReason) -> u64 {
        let undelivered = self.undelivered.of_reason(reason);
        self.punts[reason as usize].get().saturating_sub(undelivered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::PuntReason;

    #[test]
    fn a_punted_packet_that_the_kernel_did_not_take_counts_as_dropped() {
        let stats = WorkerStats::new(2);
        for _ in 0..3 {
            stats.ports[1].rx_packets.inc();
            stats.punt(PuntReason::Local, 1);
        }
        stats.undelivered.count(PuntReason::Local, 1);
        let account = stats.account(0, 0);
        assert_eq!((account.handed_to_kernel, account.dropped), (2, 1));
        assert!(account.is_balanced(), "{account:?}");
        assert_eq!(stats.punt_count(PuntReason::Local), 2);
        assert_eq!(stats.drop_count(DropReason::PuntFailed), 1);
        assert_eq!(stats.drops_total(), 1);
        assert_eq!((stats.undelivered.of_port(1), stats.undelivered.of_port(0)), (1, 0));
    }

    #[test]
    fn packets_of_a_reset_port_remain_in_the_account() {
        let stats = WorkerStats::new(4);
        stats.ports[3].rx_packets.add(7);
        stats.ports[1].tx_packets.add(5);
        stats.ports[0].rx_packets.add(1);
        stats.drops[DropReason::Blackhole as usize].add(2);
        stats.forget_port(1, 2);
        assert_eq!(stats.ports[3].rx_packets.get(), 0);
        let account = stats.account(1, 0);
        assert_eq!((account.received, account.sent), (8, 5));
        assert!(account.is_balanced(), "{account:?}");
        assert!(!PacketAccount { held: 0, ..account }.is_balanced());
    }
}
