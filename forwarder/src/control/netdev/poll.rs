//! What busy polling sets of a port's NAPI instances, and how it is put back: when the port is given
//! up, and, after a crash, at the next start, by a file that is [kept](super::keep).
//!
//! While the worker polls, a queue's interrupt is to stay off: after each poll the kernel waits
//! `gro_flush_timeout` for the next, and enables the interrupt after `defer_hard_irqs` such waits in
//! vain (Documentation/networking/napi.rst, "IRQ mitigation"). From Linux 6.13 on these are set for
//! each NAPI instance by netlink, before for the device by sysfs.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::keep::{self, Kept};
use super::napi::{self, NapiSettings};
use super::sysfs::{self, DeviceSettings};
use crate::control::netdev::nic;

/// What the names of the files begin with.
const KIND: &str = "poll";

/// The interrupt comes back 400 µs after the last poll: long after the next should have come, soon
/// enough that a worker that ended or is held up costs little. `irq_suspend_timeout` bounds how long
/// it stays off for who waits by epoll, which workers do not: as long as a worker sleeps at most.
const BUSY: NapiSettings = NapiSettings {
    defer_hard_irqs: 2,
    gro_flush_timeout: 200_000,
    irq_suspend_timeout: 20_000_000,
};

/// What was found, and is to be put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    ifname: String,
    ifindex: u32,
    /// By NAPI id.
    napis: Vec<(u32, NapiSettings)>,
    /// Where the kernel has them for the device only.
    device: Option<DeviceSettings>,
}

/// A port whose NAPI instances are set for busy polling. Put back by [`Tuned::restore`].
#[derive(Debug)]
pub struct Tuned {
    saved: Saved,
    kept: Kept,
}

impl Tuned {
    /// Sets a port, in its namespace, which is the calling thread's.
    ///
    /// # Errors
    /// When what is set cannot be read, kept in a file, or changed; nothing is changed then.
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

    /// Sets NAPI instances that came since, as they do when a driver resets its link.
    ///
    /// # Errors
    /// As for [`Tuned::apply`].
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

    /// Puts everything back, as far as it is still there.
    ///
    /// # Errors
    /// What could not be put back; the file stays, and the next start tries again.
    pub fn restore(self) -> io::Result<()> {
        // Its name may be another by now.
        self.saved.put_back(|_| true)?;
        self.kept.forget()
    }
}

impl Saved {
    /// If the interface is there and, by its name, `is_it`.
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
            // One that came with our settings has them from the driver's memory of its forerunner.
            let forerunner = self.napis.first().filter(|_| now == BUSY);
            if let Some((_, settings)) = known.or(forerunner) {
                napi::set(id, *settings)?;
            }
        }
        Ok(())
    }
}

/// NAPI instances with what they are set to; none where the kernel has that for the device only.
fn settable(ifindex: u32) -> io::Result<Vec<(u32, NapiSettings)>> {
    let instances = napi::instances(ifindex)?;
    Ok(instances.into_iter().filter_map(|napi| Some((napi.id, napi.settings?))).collect())
}

/// Puts back what processes that are gone have left set in this namespace, and forgets it. Gives
/// the names of the ports.
///
/// # Errors
/// What could not be read or put back; each is tried all the same.
pub fn restore_leftovers(directory: &Path) -> io::Result<Vec<String>> {
    // Numbers are given anew after a restart of the machine, and names to other interfaces.
    keep::leftovers(directory, KIND, |saved: Saved| {
        saved.put_back(|name| name == saved.ifname).map(|()| saved.ifname)
    })
}
