//! Properties of an interface that are not available from its AF_XDP socket.

#![expect(unsafe_code, reason = "ioctl and if_indextoname are foreign functions")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::io::device::DriverInfo;

/// `SIOCETHTOOL` command that reports the driver (include/uapi/linux/ethtool.h).
const ETHTOOL_GDRVINFO: u32 = 3;

/// SOL_SOCKET option (include/uapi/asm-generic/socket.h).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DrvInfo {
    cmd: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rest: [u8; 64],
}

const _: () = assert!(size_of::<DrvInfo>() == 196);

/// An ioctl request for an interface of this network namespace; `None`: the name is invalid.
fn request(ifname: &str) -> Option<libc::ifreq> {
    // SAFETY: numbers and a pointer, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if ifname.is_empty() || ifname.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(ifname.bytes()) {
        *to = from as libc::c_char;
    }
    Some(request)
}

/// A socket for ioctl requests on interfaces, which the kernel takes on one of any family: not of IP, so that a
/// sandbox need not permit these.
fn any_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and not owned by anything else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the IP MTU of an interface of this network namespace, in octets.
///
/// # Errors
/// The kernel's error: EINVAL if the driver does not support it.
pub(super) fn set_mtu(ifname: &str, mtu: u32) -> io::Result<()> {
    let mut request = request(ifname).ok_or(io::ErrorKind::InvalidInput)?;
    request.ifr_ifru.ifru_mtu = i32::try_from(mtu).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = any_socket()?;
    // SAFETY: the request contains a NUL-terminated interface name and is valid during the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFMTU, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Name of the driver of an interface of this network namespace, as `ethtool -i` prints it.
pub fn driver_name(ifname: &str) -> Option<String> {
    driver_info(ifname).map(|info| info.driver)
}

/// The driver of an interface of this network namespace, as `ethtool -i` prints it; netlink does
/// not report it. `None`: it has none, or there is no such interface.
pub fn driver_info(ifname: &str) -> Option<DriverInfo> {
    let none = [0; 32];
    let mut info = DrvInfo {
        cmd: ETHTOOL_GDRVINFO,
        driver: none,
        version: none,
        firmware: none,
        bus: none,
        rest: [0; 64],
    };
    let mut request = request(ifname)?;
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    let fd = any_socket().ok()?;
    // SAFETY: the request contains a NUL-terminated interface name and points to an
    // ethtool_drvinfo; both are valid during the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return None;
    }
    let text = |octets: &[u8]| {
        let text = CStr::from_bytes_until_nul(octets).unwrap_or_default().to_string_lossy();
        // Drivers without firmware report "N/A".
        if text == "N/A" { String::new() } else { text.into_owned() }
    };
    Some(DriverInfo {
        driver: text(&info.driver),
        version: text(&info.version),
        firmware: text(&info.firmware),
        bus: text(&info.bus),
    })
}

/// An identifier of the network namespace that is unique since boot (SO_NETNS_COOKIE, Linux 5.14).
///
/// # Errors
/// The system's error; ENOPROTOOPT from an older kernel.
pub fn netns_id() -> io::Result<u64> {
    let fd = any_socket()?;
    let (mut cookie, mut len) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: points to eight octets, as the length says; both are valid during the call.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Whether an interface of this index exists in this network namespace.
pub(in crate::io) fn exists(ifindex: u32) -> bool {
    let mut name = [0 as libc::c_char; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE octets that the function may write.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) };
    !found.is_null() || io::Error::last_os_error().raw_os_error() != Some(libc::ENXIO)
}
