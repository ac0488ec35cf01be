//! Settings that kernels before 6.13 have per device and in sysfs only: `napi_defer_hard_irqs`
//! (5.11) and `gro_flush_timeout`.
//!
//! Also the interrupts of a device, which the netdev family reports for few drivers.
//!
//! A mounted sysfs shows the network namespace of the process that mounted it, in which another
//! interface may have the name. Therefore a private sysfs is mounted, in a thread with its own
//! mount namespace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

/// Settings of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSettings {
    /// Number of empty polls before an interrupt is enabled again.
    pub napi_defer_hard_irqs: u32,
    /// Nanoseconds between these polls.
    pub gro_flush_timeout: u64,
}

/// Reads the settings of a device of the calling thread's namespace.
///
/// # Errors
/// The system's error: EPERM without CAP_SYS_ADMIN, ENOENT for a kernel before 5.11.
pub fn read(ifname: &str, ifindex: u32) -> io::Result<DeviceSettings> {
    within(ifname, ifindex, |device| {
        Ok(DeviceSettings {
            napi_defer_hard_irqs: number(&device.join("napi_defer_hard_irqs"))?,
            gro_flush_timeout: number(&device.join("gro_flush_timeout"))?,
        })
    })
}

/// Changes the settings of a device of the calling thread's namespace.
///
/// # Errors
/// The same as for [`read`].
pub fn write(ifname: &str, ifindex: u32, settings: DeviceSettings) -> io::Result<()> {
    within(ifname, ifindex, move |device| {
        let set = |file: &str, value: String| fs::write(device.join(file), value);
        set("napi_defer_hard_irqs", settings.napi_defer_hard_irqs.to_string())?;
        set("gro_flush_timeout", settings.gro_flush_timeout.to_string())
    })
}

/// An interrupt of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Irq {
    /// Its number.
    pub irq: u32,
    /// Its name in the driver, including the queue: `eth0-TxRx-0`, `virtio1-input.0`.
    pub name: String,
}

/// The message-signalled interrupts of a device of the calling thread's namespace; empty if it has
/// none.
///
/// # Errors
/// The same as for [`read`].
pub fn irqs(ifname: &str, ifindex: u32) -> io::Result<Vec<Irq>> {
    let numbers = within(ifname, ifindex, |device| {
        // A virtio device has them at its parent PCI device.
        let places = ["device/msi_irqs", "device/../msi_irqs"].map(|place| device.join(place));
        let Some(Ok(entries)) = places.iter().map(fs::read_dir).find(Result::is_ok) else {
            return Ok(Vec::new());
        };
        let numbers = entries.flatten().map(|entry| entry.file_name().to_string_lossy().parse());
        Ok(numbers.collect::<Result<Vec<u32>, _>>().unwrap_or_default())
    })?;
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    let mut irqs = named(&fs::read_to_string("/proc/interrupts")?);
    irqs.retain(|irq| numbers.contains(&irq.irq));
    Ok(irqs)
}

/// The NUMA node of a device; `None`: it is not reported, or the device has none.
///
/// # Errors
/// The same as for [`read`].
pub fn numa_node(ifname: &str, ifindex: u32) -> io::Result<Option<u32>> {
    within(ifname, ifindex, |device| {
        let places = ["device/numa_node", "device/../numa_node"];
        // -1: none.
        Ok(places.iter().find_map(|place| number::<u32>(&device.join(place)).ok()))
    })
}

/// Lines of /proc/interrupts with a number: number, counts by CPU, chip and kind, name.
fn named(interrupts: &str) -> Vec<Irq> {
    let irq = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        let name = rest.split_whitespace().next_back()?.to_owned();
        Some(Irq { irq: number.trim().parse().ok()?, name })
    };
    interrupts.lines().filter_map(irq).collect()
}

/// Runs `work` with the device's directory in a sysfs of this namespace.
fn within<T: Send>(
    ifname: &str,
    ifindex: u32,
    work: impl FnOnce(PathBuf) -> io::Result<T> + Send,
) -> io::Result<T> {
    let body = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        match mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none) {
            // The sysfs mounted there shows this namespace.
            Ok(()) | Err(nix::errno::Errno::EBUSY) => {}
            Err(errno) => return Err(errno.into()),
        }
        let device = Path::new("/sys/class/net").join(ifname);
        if number::<u32>(&device.join("ifindex"))? != ifindex {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        work(device)
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("fr-sysfs".into()).spawn_scoped(scope, body)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn number<T: std::str::FromStr>(path: &Path) -> io::Result<T> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{}: {text:?}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_are_read_with_their_names() {
        let text = "            CPU0       CPU1\n  4:        7         0   IO-APIC   4-edge      ttyS0\n \
                    25:        0        91  PCI-MSIX-0000:00:02.0   1-edge      virtio1-input.0\n \
                    NMI:          0          0   Non-maskable interrupts\n";
        let found = named(text);
        let found: Vec<_> = found.iter().map(|irq| (irq.irq, irq.name.as_str())).collect();
        assert_eq!(found, [(4, "ttyS0"), (25, "virtio1-input.0")]);
    }
}
