//! What the process must be allowed to do, asked before anything is tried, so that the answer names
//! what is missing; and giving up everything else.
//!
//! Capabilities are of threads. [`confine`] is called while there is one; the threads that it starts
//! inherit what it has left, and give up more: workers by [`confine_worker`], those that serve
//! clients by [`drop_all`].

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
    /// What cannot be done without it.
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

/// What `run` cannot do without.
pub const NEEDED: [Need; 4] = [
    need(
        Capability::CAP_NET_ADMIN,
        "attach XDP programs, make the TAP device, read the firewall's rules",
    ),
    need(Capability::CAP_NET_RAW, "open AF_XDP sockets"),
    need(Capability::CAP_BPF, "load BPF programs and create their maps"),
    // bpf_allow_ptr_leaks: without it the verifier refuses to compare a packet's pointers.
    need(Capability::CAP_PERFMON, "have the kernel's verifier take the XDP program"),
];

/// Needed as well, unless enough memory may be locked without it (`xdp_umem_account_pages`).
pub const IPC_LOCK: Need =
    need(Capability::CAP_IPC_LOCK, "lock packet memory beyond the limit of RLIMIT_MEMLOCK");

/// How to give the process what it has not.
pub const ADVICE: &str = "run as root (sudo ferroute …), or give them to a user of its own: \
                          AmbientCapabilities= in a systemd service, setpriv --ambient-caps";

fn has(set: CapSet, capability: Capability) -> bool {
    caps::has_cap(None, set, capability).unwrap_or(false)
}

/// Whether the thread has a capability in effect; CAP_SYS_ADMIN stands for those that were split off
/// it in Linux 5.8 (`bpf_capable`, `perfmon_capable`).
fn is_capable(capability: Capability) -> bool {
    let split_off = matches!(capability, Capability::CAP_BPF | Capability::CAP_PERFMON);
    has(CapSet::Effective, capability)
        || split_off && has(CapSet::Effective, Capability::CAP_SYS_ADMIN)
}

/// Whether locked memory has no limit for this thread.
pub fn may_lock_memory() -> bool {
    has(CapSet::Effective, Capability::CAP_IPC_LOCK)
}

/// The needed capabilities that the thread does not have. `locked`: octets of memory that must be
/// lockable at least.
pub fn missing(locked: u64) -> Vec<Need> {
    let mut missing: Vec<Need> =
        NEEDED.into_iter().filter(|need| !is_capable(need.capability)).collect();
    if !may_lock_memory() && limits::memlock().is_some_and(|limit| limit.soft < locked) {
        missing.push(IPC_LOCK);
    }
    missing
}

/// Refuses to go on without.
///
/// # Errors
/// Names each missing capability, what it is for, and how to give it.
pub fn require(locked: u64) -> Result<()> {
    let missing = missing(locked);
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(Need::to_string).collect();
    let or_limit = if missing.contains(&IPC_LOCK) {
        format!(
            "; for CAP_IPC_LOCK it will do to let {locked} octets and more of memory be locked \
             (ulimit -l, LimitMEMLOCK=infinity)"
        )
    } else {
        String::new()
    };
    bail!("not permitted: {} missing; {ADVICE}{or_limit}", list.join(", "))
}

/// Why the kernel did not permit what the needed capabilities permit: which of them are missing, or
/// that something else stands in the way.
pub fn why_not_permitted() -> String {
    let missing: Vec<String> = missing(0).iter().map(Need::to_string).collect();
    match missing.is_empty() {
        false => format!("{} missing; {ADVICE}", missing.join(", ")),
        true => {
            "the capabilities are there; a seccomp filter, a security module, lockdown or a user \
                 namespace stands in the way (a container has to be allowed bpf(2))"
                .to_owned()
        }
    }
}

/// What the control thread keeps of what it has: what ports that come back need. `interrupts`: it may
/// change when the interrupts of ports come, or where they go.
fn kept(interrupts: bool) -> CapsHashSet {
    let mut kept: CapsHashSet = NEEDED.iter().map(|need| need.capability).collect();
    kept.insert(Capability::CAP_IPC_LOCK);
    // A sysfs of the network namespace is mounted for what the kernel tells there only: settings of
    // busy polling before Linux 6.13, interrupts of some drivers (`netdev::sysfs`).
    let stands_for = NEEDED.iter().any(|need| !has(CapSet::Permitted, need.capability));
    if interrupts || stands_for {
        kept.insert(Capability::CAP_SYS_ADMIN);
    }
    kept
}

/// Gives up for good the privileges that an execve(2) would bring: by PR_SET_NO_NEW_PRIVS, and in the
/// bounding set, where CAP_SETPCAP lets it, all but what a running daemon keeps. Of this thread, and
/// of those that it starts from now on. `interrupts`: the daemon may change when interrupts of ports
/// come, or where they go.
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

/// Gives up for good every capability but those that a running daemon needs: of [`NEEDED`],
/// CAP_IPC_LOCK, and CAP_SYS_ADMIN where it changes `interrupts` of ports, as `seal` is told. Of this
/// thread, and of those that it starts from now on.
///
/// # Errors
/// When the kernel refuses.
pub fn confine(interrupts: bool) -> Result<()> {
    keep(&kept(interrupts)).context("cannot give up capabilities")
}

/// Leaves a worker what it opens sockets with. `busy`: it polls queues by its sockets, which
/// SO_PREFER_BUSY_POLL asks CAP_NET_ADMIN for.
///
/// # Errors
/// When the kernel refuses.
pub fn confine_worker(busy: bool) -> Result<()> {
    let mut kept = CapsHashSet::from([Capability::CAP_NET_RAW, Capability::CAP_IPC_LOCK]);
    if busy {
        kept.insert(Capability::CAP_NET_ADMIN);
    }
    keep(&kept).context("cannot give up capabilities")
}

/// Gives up every capability of this thread, as one does that only talks to clients. One that cannot
/// goes on: it does nothing that asks for any.
pub fn drop_all() {
    let _ = keep(&CapsHashSet::new());
}

/// Leaves the thread those of its capabilities that are in `kept`.
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
        // In a thread of its own, which has none then: capabilities are of threads.
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
    fn locked_memory_is_asked_for_only_where_the_limit_is_too_low() {
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
    fn the_service_has_what_is_needed_and_no_more() {
        let unit = include_str!("../../../../scripts/ferroute.service");
        let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key));
        let names: Vec<String> = NEEDED.iter().map(|need| need.capability.to_string()).collect();
        for key in ["AmbientCapabilities=", "CapabilityBoundingSet="] {
            assert_eq!(value(key), Some(names.join(" ").as_str()), "{key}");
        }
        assert_eq!(value("LimitMEMLOCK="), Some("infinity"), "else CAP_IPC_LOCK is needed");
    }

    #[test]
    fn threads_keep_what_is_theirs_and_no_more() {
        let has = |set| caps::read(None, set).expect("is told");
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let before = has(CapSet::Permitted);
                confine_worker(false).expect("gives up");
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
