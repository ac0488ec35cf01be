//! What the process must be allowed to do, asked before anything is tried, so that the answer names
//! what is missing.

use anyhow::{Result, bail};
use caps::{CapSet, Capability};

/// Capabilities `run` needs, and what for.
pub const NEEDED: [(Capability, &str); 3] = [
    (Capability::CAP_NET_ADMIN, "attach XDP programs and follow netlink"),
    (Capability::CAP_NET_RAW, "open AF_XDP sockets"),
    (Capability::CAP_BPF, "load XDP programs"),
];

/// The needed capabilities that the process does not have.
pub fn missing() -> Vec<(Capability, &'static str)> {
    let have = |capability| {
        caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
            // CAP_SYS_ADMIN stands for CAP_BPF since before the latter existed.
            || capability == Capability::CAP_BPF
                && caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN)
                    .unwrap_or(false)
    };
    NEEDED.into_iter().filter(|&(capability, _)| !have(capability)).collect()
}

/// Refuses to go on without.
///
/// # Errors
/// Names each missing capability and what it is for.
pub fn require() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> =
        missing.iter().map(|(capability, what)| format!("{capability} ({what})")).collect();
    bail!("not permitted: {} missing; run as root (sudo ferroute …)", list.join(", "))
}
