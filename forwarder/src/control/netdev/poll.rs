//! Sets a port's NAPI instances for busy polling, and restores them: when the port is closed and,
//! after a crash, at the next start, from a [saved](super::keep) file.
//!
//! A queue's interrupt should stay disabled while the worker polls: after each poll the kernel
//! waits `gro_flush_timeout` for the next one, and enables the interrupt after `defer_hard_irqs`
//! empty waits (Documentation/networking/napi.rst, "IRQ mitigation"). Since Linux 6.13 these are
//! set for each NAPI instance by netlink, before that for the device by sysfs.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::keep::{self, Kept};
use super::napi::{self, NapiSettings};
use super::sysfs::{self, DeviceSettings};
use crate::control::netdev::nic;

/// Prefix of the names of saved files.
const KIND: &str = "poll";

/// The interrupt is enabled 400 µs after the last poll: long after the next poll is due, and soon
/// enough that a worker that ended or is delayed costs little. `irq_suspend_timeout` applies to
/// epoll users, which workers are not; it is set to the maximum sleep of a worker.
const BUSY: NapiSettings = NapiSettings {
    defer_hard_irqs: 2,
    gro_flush_timeout: 200_000,
    irq_suspend_timeout: 20_000_000,
};

/// The saved settings to restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    ifname: String,
    ifindex: u32,
    /// By NAPI id.
    napis: Vec<(u32, NapiSettings)>,
    /// Used if the kernel has the settings per device only.
    device: Option<DeviceSettings>,
}

/// A port whose NAPI instances are set for busy polling. Undone by [`Tuned::restore`].
#[derive(Debug)]
pub struct Tuned {
    saved: Saved,
    kept: Kept,
}

impl Tuned {
    /// Sets a port of the calling thread's namespace.
    ///
    /// # Errors
    /// If the settings cannot be read, saved to a file, or changed; nothing is changed then.
    pub fn apply(directory: &Path, ifname: &str, ifindex: u32) -> io::Result<Tuned> {
        let mut saved =
            Saved { ifname: ifname.to_owned(), ifindex, napis: Vec::new(), device: None };
        saved.napis = settable(ifindex)?;
        if saved.napis.is_empty() {
            saved.device = Some(sysfs::read(ifname, ifindex)?);
        }
        let kept = Kept::save(directory, KIND, ifname, &saved)?;
        let tuned = Tuned { saved, kept };
        match tuned.set() {
            Ok(()) => Ok(tuned),
            Err(error) => {
                let _ = tuned.restore();
                Err(error)
            }
        }
    }

    fn set(&self) -> io::Result<()> {
        for (id, _) in &self.saved.napis {
            napi::set(*id, BUSY)?;
        }
        match self.saved.device {
            Some(_) => sysfs::write(
                &self.saved.ifname,
                self.saved.ifindex,
                DeviceSettings {
                    napi_defer_hard_irqs: BUSY.defer_hard_irqs,
                    gro_flush_timeout: BUSY.gro_flush_timeout,
                },
            ),
            None => Ok(()),
        }
    }

    /// Sets NAPI instances that were added since, as some drivers do when they reset the link.
    ///
    /// # Errors
    /// The same as for [`Tuned::apply`].
    pub fn refresh(&mut self) -> io::Result<()> {
        if self.saved.device.is_some() {
            return Ok(());
        }
        let now = settable(self.saved.ifindex)?;
        let fresh: Vec<_> = now.iter().filter(|(_, settings)| *settings != BUSY).copied().collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let mut saved = self.saved.clone();
        saved.napis.retain(|(id, _)| now.iter().any(|(there, _)| there == id));
        saved.napis.retain(|(id, _)| fresh.iter().all(|(new, _)| new != id));
        saved.napis.extend(&fresh);
        self.kept.replace(&saved)?;
        self.saved = saved;
        fresh.into_iter().try_for_each(|(id, _)| napi::set(id, BUSY))
    }

    /// Restores the settings of everything that still exists.
    ///
    /// # Errors
    /// What could not be restored; the file is kept, and the next start tries again.
    pub fn restore(self) -> io::Result<()> {
        // The interface may have been renamed.
        self.saved.put_back(|_| true)?;
        self.kept.forget()
    }
}

impl Saved {
    /// Restores the settings if the interface exists and its name satisfies `is_it`.
    fn put_back(&self, is_it: impl Fn(&str) -> bool) -> io::Result<()> {
        let nics = nic::read()?;
        let Some(nic) = nics.iter().find(|nic| nic.ifindex == self.ifindex && is_it(&nic.name))
        else {
            return Ok(());
        };
        if let Some(device) = self.device {
            sysfs::write(&nic.name, self.ifindex, device)?;
        }
        for (id, now) in settable(self.ifindex)? {
            let known = self.napis.iter().find(|(saved, _)| *saved == id);
            // A new instance that has our settings inherited them in the driver from the previous
            // one.
            let previous = self.napis.first().filter(|_| now == BUSY);
            if let Some((_, settings)) = known.or(previous) {
                napi::set(id, *settings)?;
            }
        }
        Ok(())
    }
}

/// NAPI instances with their settings; empty if the kernel has them per device only.
fn settable(ifindex: u32) -> io::Result<Vec<(u32, NapiSettings)>> {
    let instances = napi::instances(ifindex)?;
    Ok(instances.into_iter().filter_map(|napi| Some((napi.id, napi.settings?))).collect())
}

/// Restores what terminated processes have left in this namespace, and removes the files. Returns
/// the names of the ports.
///
/// # Errors
/// What could not be read or restored; the others are restored nevertheless.
pub fn restore_leftovers(directory: &Path) -> io::Result<Vec<String>> {
    // After a reboot ids are assigned again, and names may belong to other interfaces.
    keep::leftovers(directory, KIND, |saved: Saved| {
        saved.put_back(|name| name == saved.ifname).map(|()| saved.ifname)
    })
}
