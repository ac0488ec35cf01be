//! A BPF link that attaches an XDP program to an interface.
//!
//! libbpf-rs attaches XDP by a link only in the mode that the kernel chooses. Ferroute has to
//! choose the mode, so the call with a mode is made here; `control::steering` handles programs and
//! maps.

#![expect(unsafe_code, reason = "links of XDP programs have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys;

/// The requested XDP mode: XDP_FLAGS_DRV_MODE and XDP_FLAGS_SKB_MODE of linux/if_link.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkMode {
    /// In the driver, before an sk_buff is allocated.
    Native,
    /// In the kernel's receive path, on sk_buffs.
    Generic,
}

/// An attached XDP program. It is detached when this is dropped, or when the process ends in any
/// way.
#[derive(Debug)]
pub struct XdpLink {
    fd: OwnedFd,
}

impl XdpLink {
    /// Attaches `program` to the interface `ifindex` of this thread's network namespace. Linux 5.9.
    ///
    /// # Errors
    /// The kernel's errno: EBUSY or EEXIST if a program is attached, EOPNOTSUPP if the driver has
    /// no native XDP (dev_xdp_attach in net/core/dev.c), or the driver's own.
    pub fn attach(program: BorrowedFd<'_>, ifindex: u32, mode: LinkMode) -> io::Result<XdpLink> {
        let target =
            i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
        let opts = libbpf_sys::bpf_link_create_opts {
            sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
            flags: match mode {
                LinkMode::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
                LinkMode::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
            },
            ..Default::default()
        };
        // SAFETY: `opts` is valid during the call and contains its own size; everything else is a
        // number, which the kernel checks.
        let fd = unsafe {
            libbpf_sys::bpf_link_create(program.as_raw_fd(), target, libbpf_sys::BPF_XDP, &opts)
        };
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd));
        }
        // SAFETY: a new descriptor that nothing else uses.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(XdpLink { fd })
    }
}

/// The interface and program of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attachment {
    /// The interface; 0: none, because it was removed or the link was detached (`bpf_link_detach`).
    pub ifindex: u32,
    /// The id of the program.
    pub program: u32,
}

/// Queries the interface and program of an XDP link (BPF_OBJ_GET_INFO_BY_FD,
/// `bpf_xdp_link_fill_link_info`). Takes the kernel's RTNL lock.
///
/// # Errors
/// The kernel's errno: EINVAL if the descriptor is of another type.
pub fn attachment(link: BorrowedFd<'_>) -> io::Result<Attachment> {
    let mut info = libbpf_sys::bpf_link_info::default();
    let mut len = size_of::<libbpf_sys::bpf_link_info>() as u32;
    // SAFETY: `info` has `len` octets, and both are valid during the call.
    let result = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(link.as_raw_fd(), (&raw mut info).cast(), &raw mut len)
    };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    if info.type_ != libbpf_sys::BPF_LINK_TYPE_XDP {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the kernel fills this part for a link of this type; all parts are numbers, initially
    // zero.
    let ifindex = unsafe { info.__bindgen_anon_1.xdp.ifindex };
    Ok(Attachment { ifindex, program: info.prog_id })
}

impl AsFd for XdpLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for XdpLink {
    fn drop(&mut self) {
        // Closing the descriptor would detach too, but older kernels then detach in a work queue,
        // and the next attach fails with EBUSY. Detaching fails only if the interface is gone.
        //
        // SAFETY: the descriptor is still open.
        unsafe { libbpf_sys::bpf_link_detach(self.fd.as_raw_fd()) };
    }
}
