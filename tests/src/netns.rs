//! A network namespace by name: commands, sysctls and sockets inside it.
//!
//! [`crate::Lab`] creates and deletes namespaces; this only enters them.

use std::fs::File;
use std::process::{Command, Output};
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A namespace that exists under `/run/netns`.
#[derive(Debug, Clone)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Refers to an existing namespace.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Its name, as `ip netns` prints it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run in the namespace, with its own `/sys`.
    ///
    /// `ip netns exec` is replaced by the command, so the child's process ID is the command's.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a command line, split at blanks, and returns its standard output.
    ///
    /// # Errors
    /// When it cannot be started or fails; the error contains both its outputs.
    pub fn run(&self, line: &str) -> Result<String> {
        let output = self.output(line)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("`{line}` in {}: {}\n{text}{stderr}", self.name, output.status);
        }
        Ok(text)
    }

    /// Runs a command line, split at blanks, and returns its outputs and status.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, line: &str) -> Result<Output> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        self.command(program).args(words).output().with_context(|| format!("starting `{line}`"))
    }

    /// Passes lines to `ip -batch` (`-6` and the like go in `options`).
    ///
    /// # Errors
    /// When one of the lines fails.
    pub fn ip_batch(&self, options: &[&str], lines: &str) -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("batch");
        fs::write(&file, lines)?;
        let output = self.command("ip").args(options).arg("-batch").arg(&file).output()?;
        if !output.status.success() {
            bail!("ip -batch in {}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Calls `f` on a thread inside the namespace. Sockets that it opens belong to the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or those of `f`.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = format!("/run/netns/{}", self.name);
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = File::open(&path).with_context(|| format!("opening {path}"))?;
                setns(file, CloneFlags::CLONE_NEWNET).context("setns")?;
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Writes a sysctl: `("net/ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    /// When the kernel has no such key or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.enter(|| fs::write(&path, value).with_context(|| format!("writing {value} to {path}")))
    }
}
