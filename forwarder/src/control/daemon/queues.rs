//! A port's queues: how many are served, which get packets without being served, and where their
//! interrupts go.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail};

use super::crossroads::worker_of;
use super::port::{Equipment, Port};
use crate::control::config::QUEUES_MAX;
use crate::control::device::ethtool;
use crate::control::device::irq::Pinned;
use crate::control::device::keep::RUN_DIR;
use crate::control::nic::Queues;
use crate::io::af_xdp::driver_name;

/// Queues that are looked at for packets beyond those a driver tells of.
const QUEUES_UNTOLD: u32 = 16;

impl Port {
    /// Every queue is served or the port is refused: a queue without a socket would leave its share
    /// of the flows to the kernel, so it is the user who decides for that.
    pub(super) fn queues_served(
        &self,
        ifindex: u32,
        channels: Queues,
        with: &Equipment<'_>,
    ) -> Result<u32> {
        let (name, queues) = (&self.ifname, channels.rx);
        let possible = (with.rounds * with.workers.len() as u32).min(QUEUES_MAX);
        match with.options.queues {
            Some(wanted) if wanted > channels.rx_max => bail!(
                "{name} has {queues} RX queue(s) and can have {} at most, --queues {wanted} asked \
                 for; leave --queues out to serve all",
                channels.rx_max
            ),
            Some(wanted) if wanted > queues => bail!(
                "{name} has {queues} RX queue(s), --queues {wanted} asked for; set the number \
                 (ethtool -L {name} combined {wanted}) or leave --queues out to serve all"
            ),
            Some(wanted) if wanted < queues => self.first_queues(ifindex, queues, wanted),
            _ if queues > possible => bail!(
                "{name} has {queues} RX queues, and no more than {possible} can be served; reduce \
                 them (ethtool -L {name} combined {possible}){}",
                if possible < QUEUES_MAX { ", or restart ferroute" } else { "" }
            ),
            _ => Ok(queues),
        }
    }

    /// Only the first `wanted` queues, if no packet comes by the others.
    fn first_queues(&self, ifindex: u32, queues: u32, wanted: u32) -> Result<u32> {
        let name = &self.ifname;
        let table = ethtool::rss_table(ifindex).ok().flatten();
        let others: BTreeSet<u32> = match &table {
            Some(table) => table.iter().copied().filter(|&queue| queue >= wanted).collect(),
            None => (wanted..queues).collect(),
        };
        if others.is_empty() {
            return Ok(wanted);
        }
        let why = match table {
            Some(_) => format!("its RSS table has packets for {}", list(&others)),
            None => format!("it has no RSS table that keeps packets from {}", list(&others)),
        };
        bail!(
            "{name} has {queues} RX queue(s), --queues {wanted} asked for, and {why}; set the number \
             (ethtool -L {name} combined {wanted}), keep packets to the first (ethtool -X {name} \
             equal {wanted}), or leave --queues out to serve all"
        )
    }

    /// Looks for queues that get packets to forward and have no socket, whatever sent them there: the
    /// kernel forwards those. Whether there are some that there were not before.
    pub fn look_for_unserved(&mut self) -> bool {
        let (Some(program), Some(had)) = (&self.program, self.had) else { return false };
        // A driver that does not tell may have more than it tells.
        let end = had.rx_max.max(self.queues + QUEUES_UNTOLD).min(QUEUES_MAX);
        let mut found = false;
        for queue in self.queues..end {
            let counters = program.queue_counters(queue).unwrap_or_default();
            let count = counters[xdp_prog::Reason::PassNoSocket as usize];
            if count > self.unserved.get(&queue).copied().unwrap_or(0) {
                found |= self.unserved.insert(queue, count).is_none();
            }
        }
        found
    }

    /// What `look_for_unserved` has found, and what to do.
    pub fn unserved(&self) -> Option<String> {
        let name = &self.ifname;
        let queues: BTreeSet<u32> = self.unserved.keys().copied().collect();
        (!queues.is_empty()).then(|| {
            format!(
                "{name}: {} without a socket: its packets are left to the kernel; keep packets to the \
                 {} that are served (ethtool -X {name} equal {}) or have no more (ethtool -L {name} \
                 combined {})",
                list(&queues), self.queues, self.queues, self.queues
            )
        })
    }

    /// Interrupts of queues to their workers' CPUs, where that is asked for.
    pub(super) fn pin(&mut self, with: &Equipment<'_>) {
        if !with.options.pin_irqs {
            return;
        }
        let (queues, cpus) = (self.queues, with.cpus);
        let cpu_of = |queue: u32| match queue < queues {
            true => cpus.get(worker_of(queue, cpus.len())).copied().flatten(),
            false => None,
        };
        match Pinned::apply(Path::new(RUN_DIR), &self.ifname, self.ifindex, cpu_of) {
            Ok(Some(pinned)) => {
                say!("interface {}: {} interrupt(s) pinned", self.ifname, pinned.count());
                self.pinned = Some(pinned);
            }
            Ok(None) => {
                let driver = driver_name(&self.ifname).unwrap_or_else(|| "its driver".to_owned());
                say!(
                    "interface {}: no interrupt to pin: {driver} has none for a queue",
                    self.ifname
                );
            }
            Err(error) => {
                say!("interface {}: interrupts stay where they are: {error}", self.ifname);
            }
        }
    }

    /// Puts interrupts back where they went before.
    pub fn restore_irqs(&mut self) {
        let Some(Err(error)) = self.pinned.take().map(Pinned::restore) else { return };
        say!(
            "interface {}: cannot put its interrupts back: {error}; the next start tries again",
            self.ifname
        );
    }
}

/// `queue 3`, `queues 2, 3`.
fn list(queues: &BTreeSet<u32>) -> String {
    let names: Vec<String> = queues.iter().map(u32::to_string).collect();
    format!("queue{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}
