//! A port's queues: how many are served, which get packets without being served, and the affinity of their
//! interrupts.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::path::Path;

use tracing::{info, warn};

use super::active::ActivePort;
use super::error::PortError;
use super::handoff::worker_of;
use super::thread::PortContext;
use crate::control::config::QUEUES_MAX;
use crate::control::netdev::ethtool;
use crate::control::netdev::irq::Pinned;
use crate::control::netdev::nic::Queues;
use crate::control::steering::XdpError;
use crate::io::af_xdp::driver_name;

/// Queues that are checked for packets beyond those that a driver reports.
const QUEUES_UNTOLD: u32 = 16;

impl PortContext {
    /// Every queue must be served, or the port is refused: a queue without a socket would leave its share
    /// of the flows to the kernel, and only the user may choose that.
    pub(super) fn queues_served(
        &self,
        name: &str,
        ifindex: u32,
        channels: Queues,
    ) -> Result<u32, PortError> {
        let queues = channels.rx;
        let possible = (self.queues_per_worker * self.workers.len() as u32).min(QUEUES_MAX);
        let unfit = match self.options.queues {
            Some(wanted) if wanted > channels.rx_max => format!(
                "has {queues} RX queue(s) and can have {} at most, --queues {wanted} asked for; leave \
                 --queues out to serve all",
                channels.rx_max
            ),
            Some(wanted) if wanted > queues => format!(
                "has {queues} RX queue(s), --queues {wanted} asked for; set the number ({}) or leave \
                 --queues out to serve all",
                channels.command(name, wanted)
            ),
            Some(wanted) if wanted < queues => {
                let table = ethtool::rss_table(ifindex).ok().flatten();
                return first_queues(name, channels, wanted, table.as_deref())
                    .map_err(PortError::Unfit);
            }
            _ if queues > possible => format!(
                "has {queues} RX queues, and no more than {possible} can be served; reduce them ({}){}",
                channels.command(name, possible),
                if possible < QUEUES_MAX { ", or restart ferroute" } else { "" }
            ),
            _ => return Ok(queues),
        };
        Err(PortError::Unfit(unfit))
    }
}

impl ActivePort {
    /// Looks for queues that get packets to forward although the program finds no socket for them; the
    /// kernel forwards those packets. A queue whose socket exists is set in the map again. Returns whether
    /// there are queues without a socket that were not known before.
    ///
    /// # Errors
    /// When a socket cannot be put into the map.
    pub(super) fn find_unserved_queues(&mut self) -> Result<bool, XdpError> {
        // A driver may have more queues than it reports.
        let end = self.had.rx_max.max(self.queues + QUEUES_UNTOLD).min(QUEUES_MAX);
        let mut found = false;
        for queue in 0..end {
            let counters = self.program.queue_counters(queue).unwrap_or_default();
            let count = counters[xdp_prog::Reason::PassNoSocket as usize];
            if count <= self.without_socket.get(&queue).copied().unwrap_or(0) {
                continue;
            }
            let is_new = self.without_socket.insert(queue, count).is_none();
            match self.sockets.get(queue as usize) {
                Some(socket) => {
                    warn!(
                        interface = self.ifname,
                        "interface {}: queue {queue} has lost its socket; set again", self.ifname
                    );
                    self.program.set_socket(queue, socket.as_raw_fd())?;
                }
                None => found |= is_new,
            }
        }
        if found {
            // Read here and not by `status`, because it takes the kernel's RTNL lock.
            self.has_rss_table = ethtool::rss_table(self.ifindex).is_ok_and(|t| t.is_some());
        }
        Ok(found)
    }

    /// Message about queues without a socket that get packets, and what to do.
    pub(super) fn unserved_queues(&self, name: &str) -> Option<String> {
        let unserved = self.without_socket.keys().copied();
        let queues: BTreeSet<u32> = unserved.filter(|queue| *queue >= self.queues).collect();
        if queues.is_empty() {
            return None;
        }
        Some(tell_unserved(name, &queues, self.queues, self.had, self.has_rss_table))
    }

    /// Moves the queues' interrupts to their workers' CPUs.
    pub(super) fn pin(&mut self, directory: &Path, cpus: &[Option<usize>]) {
        let (name, queues) = (&self.ifname, self.queues);
        let cpu_of = |queue: u32| match queue < queues {
            true => cpus.get(worker_of(queue, cpus.len())).copied().flatten(),
            false => None,
        };
        match Pinned::apply(directory, name, self.ifindex, cpu_of) {
            Ok(Some(pinned)) => {
                info!(interface = name, "interface {name}: {} interrupt(s) pinned", pinned.count());
                self.pinned = Some(pinned);
            }
            Ok(None) => {
                let driver = driver_name(name).unwrap_or_else(|| "its driver".to_owned());
                info!(
                    interface = name,
                    "interface {name}: no interrupt to pin: {driver} has none for a queue"
                );
            }
            Err(error) => {
                warn!(
                    interface = name,
                    "interface {name}: interrupts stay where they are: {error}"
                );
            }
        }
    }
}

/// Only the first `wanted` queues, if no packets arrive on the others; `table`: the RSS indirection table.
fn first_queues(
    name: &str,
    channels: Queues,
    wanted: u32,
    table: Option<&[u32]>,
) -> Result<u32, String> {
    let (queues, set) = (channels.rx, channels.command(name, wanted));
    let others: BTreeSet<u32> = match table {
        Some(table) => table.iter().copied().filter(|&queue| queue >= wanted).collect(),
        None => (wanted..queues).collect(),
    };
    if others.is_empty() {
        return Ok(wanted);
    }
    let (others, asked) = (list(&others), format!("--queues {wanted} asked for"));
    Err(match table {
        Some(_) => format!(
            "has {queues} RX queue(s), {asked}, and its RSS table has packets for {others}; set the \
             number ({set}), keep packets to the first (ethtool -X {name} equal {wanted}), or leave \
             --queues out to serve all"
        ),
        None => format!(
            "has {queues} RX queue(s), {asked}, and it has no RSS table that keeps packets from \
             {others}; set the number ({set}), or leave --queues out to serve all"
        ),
    })
}

fn tell_unserved(
    name: &str,
    queues: &BTreeSet<u32>,
    served: u32,
    channels: Queues,
    has_table: bool,
) -> String {
    let keep = match has_table {
        true => format!(
            "keep packets to the {served} that are served (ethtool -X {name} equal {served}) or "
        ),
        false => String::new(),
    };
    format!(
        "{name}: {} without a socket: its packets are left to the kernel; {keep}have no more ({})",
        list(queues),
        channels.command(name, served)
    )
}

/// `queue 3`, `queues 2, 3`.
fn list(queues: &BTreeSet<u32>) -> String {
    let names: Vec<String> = queues.iter().map(u32::to_string).collect();
    format!("queue{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::netdev::nic::QueuesSetBy;

    const NIC: Queues =
        Queues { rx: 4, tx: 4, rx_max: 8, tx_max: 8, set_by: QueuesSetBy::Combined };
    const VETH: Queues = Queues { set_by: QueuesSetBy::Apart, ..NIC };

    #[test]
    fn only_the_first_queues_are_served_if_the_others_get_no_packets() {
        assert_eq!(first_queues("p", NIC, 2, Some(&[0, 1, 0, 1])).expect("kept away"), 2);
        let said =
            |channels, table| first_queues("p", channels, 2, table).expect_err("packets come");
        let with = said(NIC, Some(&[0, 1, 2, 3][..]));
        assert!(with.contains("its RSS table has packets for queues 2, 3"), "{with}");
        assert!(with.contains("ethtool -L p combined 2"), "{with}");
        assert!(with.contains("ethtool -X p equal 2"), "{with}");
        let without = said(VETH, None);
        assert!(without.contains("ethtool -L p rx 2 tx 2"), "{without}");
        assert!(!without.contains("combined") && !without.contains("-X"), "{without}");
    }

    #[test]
    fn the_advice_for_queues_without_a_socket_fits_the_interface() {
        let queues = BTreeSet::from([3]);
        let nic = tell_unserved("p", &queues, 2, NIC, true);
        assert!(nic.contains("ethtool -X p equal 2) or have no more (ethtool -L p combined 2)"));
        let veth = tell_unserved("p", &queues, 2, VETH, false);
        assert!(veth.ends_with("left to the kernel; have no more (ethtool -L p rx 2 tx 2)"));
    }
}
