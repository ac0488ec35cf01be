//! What busy polling sets of a port's NAPI instances, and how it is put back: when the port is given
//! up, and, after a crash, at the next start, by a file in [`RUN_DIR`].
//!
//! While the worker polls, a queue's interrupt is to stay off: after each poll the kernel waits
//! `gro_flush_timeout` for the next, and enables the interrupt after `defer_hard_irqs` such waits in
//! vain (Documentation/networking/napi.rst, "IRQ mitigation"). From Linux 6.13 on these are set for
//! each NAPI instance by netlink, before for the device by sysfs.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::napi::{self, NapiSettings};
use super::sysfs::{self, DeviceSettings};
use crate::control::nic;
use crate::io::af_xdp::netns_id;

/// Where the files are: one a port that is polled, named for its namespace and its name.
pub const RUN_DIR: &str = "/run/ferroute";

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
    directory: PathBuf,
    saved: Saved,
    /// Held while the port is polled: who starts later sees that the file is in use.
    _lock: Flock<File>,
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
        let lock = save(directory, &saved)?;
        let tuned = Tuned { directory: directory.to_owned(), saved, _lock: lock };
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
        self._lock = save(&self.directory, &saved)?;
        self.saved = saved;
        fresh.into_iter().try_for_each(|(id, _)| napi::set(id, BUSY))
    }

    /// Puts everything back, as far as it is still there.
    ///
    /// # Errors
    /// What could not be put back; the file stays, and the next start tries again.
    pub fn restore(self) -> io::Result<()> {
        self.saved.put_back()?;
        fs::remove_file(path(&self.directory, &self.saved.ifname)?)
    }
}

impl Saved {
    fn put_back(&self) -> io::Result<()> {
        // The interface may be another one of that name by now.
        let nics = nic::read()?;
        if !nics.iter().any(|nic| nic.ifindex == self.ifindex && nic.name == self.ifname) {
            return Ok(());
        }
        if let Some(device) = self.device {
            sysfs::write(&self.ifname, self.ifindex, device)?;
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
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let prefix = prefix()?;
    let (mut restored, mut failed) = (Vec::new(), Ok(()));
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(&prefix) {
            continue;
        }
        match restore_leftover(&entry.path()) {
            Ok(ifname) => restored.extend(ifname),
            Err(error) => failed = Err(error),
        }
    }
    failed.map(|()| restored)
}

/// `None`: the file is in use.
fn restore_leftover(path: &Path) -> io::Result<Option<String>> {
    let Ok(lock) = Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock) else {
        return Ok(None);
    };
    let saved: Result<Saved, _> = serde_json::from_reader(&*lock);
    // One that cannot be read was not written by us: it says nothing.
    let ifname = match saved {
        Ok(saved) => {
            saved.put_back()?;
            Some(saved.ifname)
        }
        Err(_) => None,
    };
    fs::remove_file(path)?;
    Ok(ifname)
}

/// Writes the file, complete or not at all, and locks it.
fn save(directory: &Path, saved: &Saved) -> io::Result<Flock<File>> {
    if !directory.exists() {
        fs::create_dir_all(directory)?;
        fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    }
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer(&mut file, saved)?;
    file.flush()?;
    let lock = Flock::lock(file.reopen()?, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    file.persist(path(directory, &saved.ifname)?).map_err(|error| error.error)?;
    Ok(lock)
}

fn path(directory: &Path, ifname: &str) -> io::Result<PathBuf> {
    Ok(directory.join(format!("{}{ifname}.json", prefix()?)))
}

fn prefix() -> io::Result<String> {
    Ok(format!("poll-{}-", netns_id()?))
}
