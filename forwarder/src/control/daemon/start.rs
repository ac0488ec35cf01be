//! Prepares the process: its directory and socket, settings left by an earlier run; then drops the
//! privileges that are no longer needed and starts the [`Supervisor`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tracing::{info, warn};

use super::Supervisor;
use super::metrics::Sockets;
use crate::control::api::listen::listen;
use crate::control::config::RunOptions;
use crate::control::config::metrics::MetricsAddr;
use crate::control::metrics::MetricsSocket;
use crate::control::netdev::{irq, nic, poll};
use crate::control::process::sandbox::{self, Writable};
use crate::control::process::signals::{Signals, StartGuard};
use crate::control::process::{privilege, runtime_dir};
use crate::control::steering::{XdpError, XdpMode};
use crate::control::xfrm::store;
use crate::netfilter::NfHookOps;

/// How long an XDP program may belong to a process that is ending: the kernel detaches it after the process's memory and
/// sockets are freed.
const ENDING_TIME: Duration = Duration::from_secs(1);
/// How often it is looked for.
const ENDING_POLL: Duration = Duration::from_millis(50);

/// Starts the daemon.
///
/// # Errors
/// What prevents the start; [`Interrupted`](crate::control::process::signals::Interrupted) when a signal
/// came. Nothing is left behind then.
pub(super) fn start(
    mut options: RunOptions,
    signals: Arc<Signals>,
    hooks: Vec<NfHookOps>,
) -> Result<Supervisor> {
    let chosen = options.clone();
    prepare_runtime_dir(&mut options)?;
    if !options.xfrm.is_empty() {
        // Of the kernel's policies nothing would be read then.
        ensure!(
            !options.ignore_firewall,
            "the [xfrm] section and ignore_firewall exclude each other"
        );
        store::prepare(&options.state_dir)?;
    }
    let control = listen(&options.control)?;
    let metrics = options.metrics.as_ref().map(MetricsSocket::open).transpose()?;
    let sockets = Sockets { control, metrics };
    // From here on there is something to remove. Dropped when the start has ended, successfully or not.
    let _guard = StartGuard::new(Arc::clone(&signals), sockets.remover())?;
    if let Some(directory) = &options.runtime_dir {
        log_leftovers(poll::restore_leftovers(&directory.path), "for polling");
        log_leftovers(irq::restore_leftovers(&directory.path), "of interrupts");
    }
    privilege::confine(options.changes_interrupts())?;
    if !options.no_sandbox {
        enter_sandbox(&options);
    }
    Supervisor::start(options, chosen, signals, sockets, hooks)
}

/// Restricts what the process may ask of the kernel. What the kernel does not have is told, and no error: it is a second line
/// of defence.
fn enter_sandbox(options: &RunOptions) {
    let may_mount = privilege::may_mount();
    // Landlock forbids mounting, and settings of interrupts are files.
    if !may_mount && !options.changes_interrupts() {
        let metrics = options.metrics.as_ref().and_then(MetricsAddr::path);
        let sockets = [Some(options.control.as_path()), metrics].into_iter().flatten();
        let runtime = options.runtime_dir.iter().map(|directory| directory.path.clone());
        let stored = Some(options.state_dir.clone()).filter(|_| !options.xfrm.is_empty());
        let writable = Writable {
            own: runtime.chain(stored).collect(),
            sockets: sockets.map(directory_of).collect(),
        };
        if let Err(error) = sandbox::restrict_files(&writable) {
            info!("files are not protected by Landlock: {error:#}");
        }
    }
    if let Err(error) = sandbox::filter_system_calls(may_mount) {
        info!("system calls are not filtered: {error:#}");
    }
}

/// Refuses what is known before anything is loaded.
///
/// # Errors
/// Rules that would be bypassed, or an XDP program on a named interface.
pub(super) fn refuse(bypassed: &[String], options: &RunOptions, signals: &Signals) -> Result<()> {
    if !bypassed.is_empty() && !options.ignore_firewall {
        bail!(
            "Ferroute would bypass rules that the kernel applies to forwarded packets:\n  {}\n\
             remove them, or start with --ignore-firewall if they need not hold for the traffic \
             between the ports",
            bypassed.join("\n  ")
        );
    }
    refuse_taken(options.interfaces.named(), signals)
}

/// Another program on an interface would prevent attaching ours as well, but only after the kernel's verifier has read it for
/// half a second of CPU time, and a service manager starts what has failed again and again. The program of a process that
/// is just ending is waited for.
fn refuse_taken(ports: &[String], signals: &Signals) -> Result<()> {
    let end = Instant::now() + ENDING_TIME;
    loop {
        let nics = nic::read().context("cannot read the interfaces")?;
        let own = nics.iter().filter(|nic| ports.contains(&nic.name));
        let programs = own.flat_map(|nic| nic.xdp_programs.iter().map(move |it| (&nic.name, *it)));
        let mut taken = programs.filter_map(|(ifname, (mode, id))| match mode {
            "native" => Some(XdpError::taken(ifname, id, XdpMode::Native)),
            "generic" => Some(XdpError::taken(ifname, id, XdpMode::Generic)),
            // In the card: attaching tells.
            _ => None,
        });
        let Some(error) = taken.next() else { return Ok(()) };
        if Instant::now() >= end {
            return Err(error.into());
        }
        signals.check()?;
        thread::sleep(ENDING_POLL);
    }
}

fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Creates and checks the runtime directory. An unusable directory is an error if the user named it or the
/// control socket is to be in it; otherwise what would be stored there is not set.
fn prepare_runtime_dir(options: &mut RunOptions) -> Result<()> {
    let Some(directory) = &options.runtime_dir else { return Ok(()) };
    match runtime_dir::prepare(&directory.path) {
        Ok(()) => {}
        Err(error) if directory.required => return Err(error.into()),
        Err(error) => {
            if options.changes_interrupts() {
                warn!("{error}; interrupts stay as they are, because they could not be restored");
            }
            options.runtime_dir = None;
        }
    }
    Ok(())
}

/// Logs what was restored that an earlier run had set, and what could not be restored.
fn log_leftovers(restored: std::io::Result<Vec<String>>, what: &str) {
    match restored {
        Ok(names) if names.is_empty() => {}
        Ok(names) => info!("{}: restored what an earlier run had set {what}", names.join(", ")),
        Err(error) => warn!("cannot restore what an earlier run had set {what}: {error}"),
    }
}
