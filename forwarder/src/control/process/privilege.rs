//! The privileges that the process needs, checked before they are used, so that an error names the
//! missing ones; and dropping all others.
//!
//! Capabilities belong to threads. [`confine`] is called while there is one thread; threads that it
//! starts inherit the remaining capabilities and drop more: workers by [`confine_worker`], those
//! that serve clients by [`drop_all`].

use std::fmt;

use anyhow::{Context, Result, bail};
use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;

use super::limits;

/// A capability, and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The capability.
    pub capability: Capability,
    /// The operation that requires it.
    pub purpose: &'static str,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.capability, self.purpose)
    }
}

const fn need(capability: Capability, purpose: &'static str) -> Need {
    Need { capability, purpose }
}

/// The capabilities that `run` requires.
pub const NEEDED: [Need; 4] = [
    need(
        Capability::CAP_NET_ADMIN,
        "attach XDP programs, create the TAP device, read the firewall's rules",
    ),
    need(Capability::CAP_NET_RAW, "open AF_XDP sockets"),
    need(Capability::CAP_BPF, "load BPF programs and create their maps"),
    // bpf_allow_ptr_leaks: without it the verifier rejects comparisons of packet pointers.
    need(Capability::CAP_PERFMON, "load the XDP program, which compares packet pointers"),
];

/// Also required, unless enough memory may be locked without it (`xdp_umem_account_pages`).
pub const IPC_LOCK: Need =
    need(Capability::CAP_IPC_LOCK, "lock packet memory beyond the limit of RLIMIT_MEMLOCK");

/// How to grant missing capabilities.
pub const ADVICE: &str = "run as root (sudo ferroute …), or grant them to a dedicated user: \
                          AmbientCapabilities= in a systemd service, setpriv --ambient-caps";

fn has(set: CapSet, capability: Capability) -> bool {
    caps::has_cap(None, set, capability).unwrap_or(false)
}

/// Whether the thread has an effective capability; CAP_SYS_ADMIN includes those that were split
/// from it in Linux 5.8 (`bpf_capable`, `perfmon_capable`).
fn is_capable(capability: Capability) -> bool {
    let split_off = matches!(capability, Capability::CAP_BPF | Capability::CAP_PERFMON);
    has(CapSet::Effective, capability)
        || split_off && has(CapSet::Effective, Capability::CAP_SYS_ADMIN)
}

/// Whether this thread has no limit on locked memory.
pub fn may_lock_memory() -> bool {
    has(CapSet::Effective, Capability::CAP_IPC_LOCK)
}

/// The required capabilities that the thread lacks. `locked`: minimum octets of memory that must be
/// lockable.
pub fn missing(locked: u64) -> Vec<Need> {
    let mut missing: Vec<Need> =
        NEEDED.into_iter().filter(|need| !is_capable(need.capability)).collect();
    if !may_lock_memory() && limits::memlock().is_some_and(|limit| limit.soft < locked) {
        missing.push(IPC_LOCK);
    }
    missing
}

/// Returns an error if any required capability is missing.
///
/// # Errors
/// Names each missing capability, its purpose, and how to grant it.
pub fn require(locked: u64) -> Result<()> {
    let missing = missing(locked);
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(Need::to_string).collect();
    let or_limit = if missing.contains(&IPC_LOCK) {
        format!(
            "; instead of CAP_IPC_LOCK, a limit on locked memory of at least {locked} octets suffices \
             (ulimit -l, LimitMEMLOCK=infinity)"
        )
    } else {
        String::new()
    };
    bail!("not permitted: {} missing; {ADVICE}{or_limit}", list.join(", "))
}

/// Why the kernel refused an operation that the required capabilities permit: which of them are
/// missing, or that something else prevents it.
pub fn why_not_permitted() -> String {
    let missing: Vec<String> = missing(0).iter().map(Need::to_string).collect();
    match missing.is_empty() {
        false => format!("{} missing; {ADVICE}", missing.join(", ")),
        true => {
            "the capabilities are present; a seccomp filter, a security module, lockdown or a user \
                 namespace prevents it (a container must be permitted to use bpf(2))"
                .to_owned()
        }
    }
}

/// The capabilities that the control thread keeps: those for ports that are opened again.
/// `interrupts`: it may change the coalescing or affinity of ports' interrupts.
fn kept(interrupts: bool) -> CapsHashSet {
    let mut kept: CapsHashSet = NEEDED.iter().map(|need| need.capability).collect();
    kept.insert(Capability::CAP_IPC_LOCK);
    // A sysfs of the network namespace is mounted for what is only there: settings of busy polling
    // before Linux 6.13, interrupts of some drivers (`netdev::sysfs`).
    let stands_for = NEEDED.iter().any(|need| !has(CapSet::Permitted, need.capability));
    if interrupts || stands_for {
        kept.insert(Capability::CAP_SYS_ADMIN);
    }
    kept
}

/// Permanently drops the privileges that an execve(2) would add: by PR_SET_NO_NEW_PRIVS, and, if
/// CAP_SETPCAP is available, by reducing the bounding set to what a running daemon keeps. Applies
/// to this thread and those it starts from now on. `interrupts`: the daemon may change the
/// coalescing or affinity of ports' interrupts.
///
/// # Errors
/// When the kernel refuses.
pub fn seal(interrupts: bool) -> Result<()> {
    prctl::set_no_new_privs().context("cannot set no_new_privs")?;
    let drop_bounding = || -> Result<(), CapsError> {
        let bounding = caps::read(None, CapSet::Bounding)?;
        let kept = kept(interrupts);
        bounding.difference(&kept).try_for_each(|one| caps::drop(None, CapSet::Bounding, *one))
    };
    if has(CapSet::Effective, Capability::CAP_SETPCAP) {
        drop_bounding().context("cannot reduce the bounding set of capabilities")?;
    }
    Ok(())
}

/// Permanently drops every capability except those that a running daemon needs: [`NEEDED`],
/// CAP_IPC_LOCK, and CAP_SYS_ADMIN if it changes `interrupts` of ports, as in [`seal`]. Applies to
/// this thread and those it starts from now on.
///
/// # Errors
/// When the kernel refuses.
pub fn confine(interrupts: bool) -> Result<()> {
    keep(&kept(interrupts)).context("cannot drop capabilities")
}

/// Whether this thread may mount file systems, of which only those that change interrupts have need.
pub fn may_mount() -> bool {
    has(CapSet::Permitted, Capability::CAP_SYS_ADMIN)
}

/// Leaves a worker the capabilities to open sockets. `busy`: it busy-polls queues through its
/// sockets; SO_PREFER_BUSY_POLL requires CAP_NET_ADMIN.
///
/// # Errors
/// When the kernel refuses.
pub fn confine_worker(busy: bool) -> Result<()> {
    let mut kept = CapsHashSet::from([Capability::CAP_NET_RAW, Capability::CAP_IPC_LOCK]);
    if busy {
        kept.insert(Capability::CAP_NET_ADMIN);
    }
    keep(&kept).context("cannot drop capabilities")
}

/// Leaves a thread that reads or changes what the kernel has, by netlink, the capability to do so, CAP_NET_ADMIN. Failure
/// is ignored: the thread needs no less.
pub fn confine_follower() {
    let _ = keep(&[Capability::CAP_NET_ADMIN].into_iter().collect());
}

/// Drops every capability of this thread, which only serves clients, or reads what everybody may. Failure is ignored: the
/// thread needs no capability.
pub fn drop_all() {
    let _ = keep(&CapsHashSet::new());
}

/// Drops the thread's capabilities that are not in `kept`.
fn keep(kept: &CapsHashSet) -> Result<(), CapsError> {
    let of = |set| -> Result<CapsHashSet, CapsError> {
        Ok(caps::read(None, set)?.intersection(kept).copied().collect())
    };
    let (effective, permitted) = (of(CapSet::Effective)?, of(CapSet::Permitted)?);
    caps::clear(None, CapSet::Ambient)?;
    caps::set(None, CapSet::Effective, &effective)?;
    caps::set(None, CapSet::Permitted, &permitted)?;
    caps::clear(None, CapSet::Inheritable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn each_needed_capability_is_named_with_its_purpose() {
        // In a separate thread, which then has no capabilities: they belong to threads.
        let text = thread::spawn(|| {
            drop_all();
            require(0).expect_err("nothing is left").to_string()
        });
        let text = text.join().expect("ends");
        for need in NEEDED {
            assert!(text.contains(&need.to_string()), "{need} is not in {text}");
        }
        assert!(text.contains("AmbientCapabilities") && !text.contains("IPC_LOCK"), "{text}");
    }

    #[test]
    fn locked_memory_is_required_only_if_the_limit_is_too_low() {
        let text = thread::spawn(|| {
            drop_all();
            require(u64::MAX - 1).expect_err("nothing is left").to_string()
        });
        let text = text.join().expect("ends");
        let limited = limits::memlock().is_some_and(|limit| limit.soft < u64::MAX - 1);
        assert_eq!(text.contains("CAP_IPC_LOCK (lock packet memory"), limited, "{text}");
        assert_eq!(text.contains("LimitMEMLOCK"), limited, "{text}");
    }

    #[test]
    fn the_service_has_exactly_the_required_capabilities() {
        let unit = include_str!("../../../../scripts/ferroute.service");
        let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key));
        let names: Vec<String> = NEEDED.iter().map(|need| need.capability.to_string()).collect();
        for key in ["AmbientCapabilities=", "CapabilityBoundingSet="] {
            assert_eq!(value(key), Some(names.join(" ").as_str()), "{key}");
        }
        assert_eq!(value("LimitMEMLOCK="), Some("infinity"), "otherwise CAP_IPC_LOCK is needed");
    }

    #[test]
    fn threads_keep_only_their_own_capabilities() {
        let has = |set| caps::read(None, set).expect("are readable");
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let before = has(CapSet::Permitted);
                confine_worker(false).expect("drops capabilities");
                let may: CapsHashSet = [Capability::CAP_NET_RAW, Capability::CAP_IPC_LOCK].into();
                let expected: CapsHashSet = before.intersection(&may).copied().collect();
                (has(CapSet::Permitted) == expected, has(CapSet::Effective).is_subset(&expected))
            });
            assert_eq!(worker.join().expect("ends"), (true, true));
            let client = scope.spawn(move || {
                drop_all();
                [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient]
                    .map(|set| has(set).is_empty())
            });
            assert_eq!(client.join().expect("ends"), [true; 4]);
        });
    }
}
