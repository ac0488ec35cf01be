//! A separate lab for every test: host, router, host, built by `scripts/lab` under unique names.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::Netns;

/// The MAC addresses, the same in every lab so that whole frames can be compared.
pub mod mac {
    /// Of `left`, the left host's port.
    pub const LEFT: [u8; 6] = [0x02, 0xf0, 0, 0, 1, 2];
    /// Of `rt-left`, the router's port to the left.
    pub const RT_LEFT: [u8; 6] = [0x02, 0xf0, 0, 0, 1, 1];
    /// Of `rt-right`, the router's port to the right.
    pub const RT_RIGHT: [u8; 6] = [0x02, 0xf0, 0, 0, 2, 1];
    /// Of `right`, the right host's port.
    pub const RIGHT: [u8; 6] = [0x02, 0xf0, 0, 0, 2, 2];
}

/// Addresses of the lab, as text for command lines.
pub mod addr {
    pub const LEFT4: &str = "198.18.1.2";
    pub const LEFT6: &str = "2001:db8:1::2";
    pub const RT_LEFT4: &str = "198.18.1.1";
    pub const RT_LEFT6: &str = "2001:db8:1::1";
    pub const RT_RIGHT4: &str = "198.18.2.1";
    pub const RT_RIGHT6: &str = "2001:db8:2::1";
    pub const RIGHT4: &str = "198.18.2.2";
    pub const RIGHT6: &str = "2001:db8:2::2";
}

/// Three namespaces, deleted when this is dropped, also after a panic.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    pub left: Netns,
    pub router: Netns,
    pub right: Netns,
}

impl Lab {
    /// Builds the lab of `scripts/lab` with one queue on every port.
    ///
    /// # Errors
    /// Without root, and when `scripts/lab up` fails.
    pub fn up() -> Result<Self> {
        Self::with_queues(1)
    }

    /// As [`Lab::up`], with `queues` receive and transmit queues on every port.
    ///
    /// # Errors
    /// As for [`Lab::up`].
    pub fn with_queues(queues: u32) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            bail!("this test makes network namespaces and needs root: run scripts/test");
        }
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("frt-{}-{next}-", std::process::id());
        let namespace = |host: &str| Netns::named(format!("{prefix}{host}"));
        let (left, router, right) = (namespace("left"), namespace("router"), namespace("right"));
        let lab = Self { left, router, right, prefix };
        // With GRO, hosts join segments, and tests that compare frames would not see them as they were sent.
        let gro = if crate::ferroute::offloads() { &[][..] } else { &["--no-gro"] };
        let queues = queues.to_string();
        lab.script(&[&["up", "--queues", &queues], gro].concat())?;
        Ok(lab)
    }

    /// Prefix of the names of this lab's namespaces.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn script(&self, args: &[&str]) -> Result<()> {
        let path = repository().join("scripts/lab");
        let output = Command::new(&path)
            .args(args)
            .env("FERROUTE_LAB_PREFIX", &self.prefix)
            .output()
            .with_context(|| format!("starting {}", path.display()))?;
        if !output.status.success() {
            bail!("scripts/lab {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.script(&["down"]) {
            eprintln!("the lab {} was not removed: {error:#}", self.prefix);
        }
    }
}

/// The top of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package has a parent").to_owned()
}
