//! Interrupts of RX queues: reads their affinity, and moves each to its worker's CPU, by a write to
//! `/proc/irq/N/smp_affinity_list`. The previous affinity is restored when the port is closed and, after a
//! crash, at the next start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::keep::{self, Kept};
use super::{napi, sysfs};

/// Prefix of the names of files with saved affinities.
const KIND: &str = "irqs";

/// The interrupt of an RX queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueIrq {
    /// The queue, from 0.
    pub queue: u32,
    /// The interrupt's number.
    pub irq: u32,
}

/// The interrupts of a device's RX queues, by queue, if they can be identified; empty for a device
/// without interrupts (a veth).
///
/// # Errors
/// The system's error.
pub fn of_queues(ifname: &str, ifindex: u32) -> io::Result<Vec<QueueIrq>> {
    let instances = napi::instances(ifindex)?;
    let reported = napi::queues(ifindex)?.into_iter().filter(|queue| queue.kind == "rx");
    let reported = reported.filter_map(|queue| {
        let napi = instances.iter().find(|napi| Some(napi.id) == queue.napi_id)?;
        Some(QueueIrq { queue: queue.id, irq: napi.irq? })
    });
    let mut found: Vec<QueueIrq> = reported.collect();
    if found.is_empty() {
        let named = sysfs::irqs(ifname, ifindex)?.into_iter();
        found = named
            .filter_map(|irq| Some(QueueIrq { queue: rx_queue(&irq.name)?, irq: irq.irq }))
            .collect();
    }
    found.sort_by_key(|irq| (irq.queue, irq.irq));
    Ok(found)
}

/// The RX queue in an interrupt name of a driver: `eth0-TxRx-1`, `eth0-rx-1`, `virtio1-input.1`,
/// `mlx5_comp1@pci:0000:00:05.0`.
fn rx_queue(name: &str) -> Option<u32> {
    let name = name.split('@').next()?.to_lowercase();
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name[stem.len()..].parse().ok()?;
    let word = stem.trim_end_matches(['-', '.']).rsplit(['-', '.', '_']).next()?;
    matches!(word, "rx" | "txrx" | "rxtx" | "input" | "comp").then_some(number)
}

/// The CPU affinity of an interrupt, as `0-3,5`.
///
/// # Errors
/// ENOENT: the interrupt does not exist (any more).
pub fn cpus(irq: u32) -> io::Result<String> {
    Ok(fs::read_to_string(affinity(irq))?.trim().to_owned())
}

fn set_cpus(irq: u32, cpus: &str) -> io::Result<()> {
    fs::write(affinity(irq), cpus).map_err(|error| {
        io::Error::new(error.kind(), format!("interrupt {irq}, CPU {cpus}: {error}"))
    })
}

fn affinity(irq: u32) -> PathBuf {
    Path::new("/proc/irq").join(irq.to_string()).join("smp_affinity_list")
}

/// The saved affinities to restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    ifname: String,
    ifindex: u32,
    irqs: Vec<SavedIrq>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedIrq {
    irq: u32,
    /// The previous affinity.
    before: String,
    /// The affinity set by this process.
    ours: String,
}

/// A port whose queue interrupts were moved to their workers' CPUs. Undone by [`Pinned::restore`].
#[derive(Debug)]
pub struct Pinned {
    saved: Saved,
    kept: Kept,
}

impl Pinned {
    /// Moves the interrupts of a port's queues to the CPUs that `cpu_of` returns. `None`: it has no
    /// interrupts.
    ///
    /// # Errors
    /// If they cannot be read, saved to a file, or moved (EIO, EPERM: the kernel manages them
    /// itself); nothing is changed then.
    pub fn apply(
        directory: &Path,
        ifname: &str,
        ifindex: u32,
        cpu_of: impl Fn(u32) -> Option<usize>,
    ) -> io::Result<Option<Pinned>> {
        let mut irqs = Vec::new();
        for QueueIrq { queue, irq } in of_queues(ifname, ifindex)? {
            if let Some(cpu) = cpu_of(queue) {
                irqs.push(SavedIrq { irq, before: cpus(irq)?, ours: cpu.to_string() });
            }
        }
        if irqs.is_empty() {
            return Ok(None);
        }
        let saved = Saved { ifname: ifname.to_owned(), ifindex, irqs };
        let kept = Kept::save(directory, KIND, ifname, &saved)?;
        let pinned = Pinned { saved, kept };
        let set = pinned.saved.irqs.iter().try_for_each(|irq| set_cpus(irq.irq, &irq.ours));
        match set {
            Ok(()) => Ok(Some(pinned)),
            Err(error) => {
                let _ = pinned.restore();
                Err(error)
            }
        }
    }

    /// The number of moved interrupts.
    pub fn count(&self) -> usize {
        self.saved.irqs.len()
    }

    /// Restores affinities that nobody else has changed since.
    ///
    /// # Errors
    /// The first affinity that could not be restored; the file is kept, and the next start tries
    /// again.
    pub fn restore(self) -> io::Result<()> {
        self.saved.put_back()?;
        self.kept.forget()
    }
}

impl Saved {
    fn put_back(&self) -> io::Result<()> {
        for SavedIrq { irq, before, ours } in &self.irqs {
            // An interrupt that is gone, or that was moved by others, is not restored.
            if cpus(*irq).is_ok_and(|now| now == *ours) {
                set_cpus(*irq, before)?;
            }
        }
        Ok(())
    }
}

/// Restores what terminated processes have left behind. Returns the names of the ports.
///
/// # Errors
/// What could not be read or restored; the others are restored nevertheless.
pub fn restore_leftovers(directory: &Path) -> io::Result<Vec<String>> {
    keep::leftovers(directory, KIND, |saved: Saved| saved.put_back().map(|()| saved.ifname))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_name_interrupts_for_their_rx_queues() {
        for (name, queue) in [
            ("eth0-TxRx-1", Some(1)),
            ("enp1s0-rx-12", Some(12)),
            ("enp1s0-tx-0", None),
            ("eth0-rxtx-0", Some(0)),
            ("eth0-event-2", None),
            ("virtio1-input.1", Some(1)),
            ("virtio1-output.1", None),
            ("virtio1-config", None),
            ("i40e-eth0-TxRx-3", Some(3)),
            ("mlx5_comp3@pci:0000:00:05.0", Some(3)),
            ("mlx5_async0@pci:0000:00:05.0", None),
            ("eth0", None),
            ("nvme0", None),
        ] {
            assert_eq!(rx_queue(name), queue, "{name}");
        }
    }
}
