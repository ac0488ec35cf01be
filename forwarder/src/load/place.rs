//! One end of a load: an interface, optionally in another network namespace.

use std::fs::File;
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};

use super::LoadError;
use crate::control::netdev::nic::{self, Nic};

/// An interface by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its network namespace: a name of `ip netns`, or a path; `None`: the caller's.
    pub netns: Option<String>,
    /// Its name.
    pub ifname: String,
}

impl Place {
    /// An interface of the caller's namespace.
    pub fn here(ifname: &str) -> Place {
        Place { netns: None, ifname: ifname.to_owned() }
    }

    /// An interface of a namespace.
    pub fn within(netns: &str, ifname: &str) -> Place {
        Place { netns: Some(netns.to_owned()), ifname: ifname.to_owned() }
    }

    /// Moves the calling thread into the namespace permanently. This affects only networking: files,
    /// including `/sys`, remain the caller's.
    ///
    /// # Errors
    /// [`LoadError::Netns`].
    pub fn enter(&self) -> Result<(), LoadError> {
        let Some(name) = &self.netns else { return Ok(()) };
        let path = match name.contains('/') {
            true => PathBuf::from(name),
            false => PathBuf::from("/run/netns").join(name),
        };
        let error = |source| LoadError::Netns { name: name.clone(), source };
        let file = File::open(path).map_err(error)?;
        setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| error(errno.into()))
    }

    /// Calls `f` on a thread inside the namespace. What `f` opens stays in that namespace.
    ///
    /// # Errors
    /// [`LoadError::Netns`], or those of `f`.
    pub fn run<T: Send>(
        &self,
        f: impl FnOnce() -> Result<T, LoadError> + Send,
    ) -> Result<T, LoadError> {
        if self.netns.is_none() {
            return f();
        }
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The interface's current state.
    ///
    /// # Errors
    /// [`LoadError::NoInterface`], [`LoadError::Netlink`], [`LoadError::Netns`].
    pub fn nic(&self) -> Result<Nic, LoadError> {
        self.run(|| {
            let nics = nic::read().map_err(LoadError::Netlink)?;
            let found = nics.into_iter().find(|nic| nic.name == self.ifname);
            found.ok_or_else(|| LoadError::NoInterface(self.to_string()))
        })
    }

    /// The interface, if it can carry load: it must be Ethernet, up, and have carrier.
    ///
    /// # Errors
    /// As for [`Place::nic`]; [`LoadError::NotEthernet`], [`LoadError::Down`],
    /// [`LoadError::NoCarrier`].
    pub fn usable(&self) -> Result<Nic, LoadError> {
        let nic = self.nic()?;
        if !nic.is_ethernet() || nic.mac.is_none() {
            return Err(LoadError::NotEthernet(self.to_string()));
        }
        if !nic.is_up() {
            return Err(LoadError::Down(self.to_string(), self.ifname.clone()));
        }
        if !nic.has_carrier() {
            return Err(LoadError::NoCarrier(self.to_string()));
        }
        Ok(nic)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.netns {
            Some(netns) => write!(f, "{} (in {netns})", self.ifname),
            None => f.write_str(&self.ifname),
        }
    }
}
