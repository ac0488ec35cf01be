//! What the driver must know of an interface and no socket tells.

#![expect(unsafe_code, reason = "ioctl and if_indextoname are foreign functions")]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `SIOCETHTOOL` command that names the driver (include/uapi/linux/ethtool.h).
const ETHTOOL_GDRVINFO: u32 = 3;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DrvInfo {
    cmd: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

const _: () = assert!(size_of::<DrvInfo>() == 196);

/// Name of the driver of an interface of this network namespace, as `ethtool -i` gives it.
pub fn driver_name(ifname: &str) -> Option<String> {
    let mut info = DrvInfo { cmd: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    // SAFETY: numbers and a pointer, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if ifname.is_empty() || ifname.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(ifname.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: just opened, and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the request names an interface, ends in a NUL, and points to an ethtool_drvinfo;
    // both live through the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return None;
    }
    let name = CStr::from_bytes_until_nul(&info.driver).ok()?;
    Some(name.to_string_lossy().into_owned())
}

/// Whether an interface of this index exists in this network namespace.
pub(super) fn exists(ifindex: u32) -> bool {
    let mut name = [0 as libc::c_char; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE octets the function may write.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) };
    !found.is_null() || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENXIO)
}
