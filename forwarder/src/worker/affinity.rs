//! Pinning a thread to a CPU.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The thread cannot be bound to the CPU.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot run a worker on CPU {cpu}: {source}; see `taskset -p $$` and /sys/devices/system/cpu/online for those allowed"
)]
pub struct PinError {
    /// The requested CPU.
    pub cpu: usize,
    source: Errno,
}

/// Binds the calling thread to one CPU.
///
/// # Errors
/// EINVAL when the CPU is offline, does not exist, or is outside the cgroup's cpuset.
pub fn pin_to(cpu: usize) -> Result<(), PinError> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|source| PinError { cpu, source })
}

/// The CPUs that the calling thread may run on, in ascending order; never empty.
pub fn allowed_cpus() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_else(|_| CpuSet::new());
    let allowed: Vec<usize> =
        (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect();
    if allowed.is_empty() { vec![0] } else { allowed }
}
