//! Saves previous device settings in a file while they are changed, so that they can be restored
//! after a crash, at the next start.
//!
//! There is one file for each port and kind, named after the network namespace and the port, in the
//! runtime directory ([`crate::control::process::runtime_dir`]), which the instances of one user
//! may share. The process that changed the settings holds a lock on the file; a file without a lock
//! is left over from a crash.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::io::af_xdp::netns_id;

/// A saved file, locked.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Kept {
    /// Saves the settings to restore for a port.
    pub(super) fn save<T: Serialize>(
        directory: &Path,
        kind: &str,
        ifname: &str,
        found: &T,
    ) -> io::Result<Kept> {
        let path = directory.join(format!("{}{ifname}.json", prefix(kind)?));
        Ok(Kept { _lock: write(&path, found)?, path })
    }

    /// Replaces the saved settings.
    pub(super) fn replace<T: Serialize>(&mut self, found: &T) -> io::Result<()> {
        self._lock = write(&self.path, found)?;
        Ok(())
    }

    /// Removes the file after the settings were restored.
    pub(super) fn forget(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// Writes the file atomically and locks it.
fn write<T: Serialize>(path: &Path, found: &T) -> io::Result<Flock<File>> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer(&mut file, found)?;
    file.flush()?;
    let lock =
        Flock::lock(file.reopen()?, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(lock)
}

/// Restores what terminated processes have left in this namespace, and removes the files.
/// `put_back` returns the name of the port.
pub(super) fn leftovers<T: DeserializeOwned>(
    directory: &Path,
    kind: &str,
    put_back: impl Fn(T) -> io::Result<String>,
) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let prefix = prefix(kind)?;
    let (mut restored, mut failed) = (Vec::new(), Ok(()));
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(&prefix) {
            continue;
        }
        match leftover(&entry.path(), &put_back) {
            Ok(ifname) => restored.extend(ifname),
            Err(error) => failed = Err(error),
        }
    }
    failed.map(|()| restored)
}

/// `None`: the file is in use, or not one of ours.
fn leftover<T: DeserializeOwned>(
    path: &Path,
    put_back: impl Fn(T) -> io::Result<String>,
) -> io::Result<Option<String>> {
    let Ok(lock) = Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock) else {
        return Ok(None);
    };
    // A file that cannot be parsed was not written by us and is ignored.
    let ifname = serde_json::from_reader(&*lock).ok().map(put_back).transpose()?;
    fs::remove_file(path)?;
    Ok(ifname)
}

fn prefix(kind: &str) -> io::Result<String> {
    Ok(format!("{kind}-{}-", netns_id()?))
}
