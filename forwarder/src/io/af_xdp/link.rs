//! A BPF link that holds an XDP program on an interface.
//!
//! libbpf-rs attaches XDP by a link only in the mode that the kernel chooses. The mode matters to
//! us, so the one call that takes it is made here; programs and maps are `control::xdp`'s.

#![expect(unsafe_code, reason = "links of XDP programs have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys;

/// The XDP mode asked for: XDP_FLAGS_DRV_MODE and XDP_FLAGS_SKB_MODE of linux/if_link.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkMode {
    /// In the driver, before an sk_buff is made.
    Native,
    /// In the kernel's receive path, on sk_buffs.
    Generic,
}

/// An attached XDP program. Dropping it detaches the program; so does the end of the process,
/// however it ends.
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
        // SAFETY: `opts` lives through the call and says its own size; everything else is a number,
        // which the kernel checks.
        let fd = unsafe {
            libbpf_sys::bpf_link_create(program.as_raw_fd(), target, libbpf_sys::BPF_XDP, &opts)
        };
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd));
        }
        // SAFETY: a new descriptor that nothing else knows of.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(XdpLink { fd })
    }
}

/// What a link holds where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attachment {
    /// The interface; 0: none, because it was removed or the link was detached (`bpf_link_detach`).
    pub ifindex: u32,
    /// The id of the program.
    pub program: u32,
}

/// Asks the kernel what a link of an XDP program holds (BPF_OBJ_GET_INFO_BY_FD,
/// `bpf_xdp_link_fill_link_info`). Takes the kernel's RTNL lock.
///
/// # Errors
/// The kernel's errno: EINVAL if the descriptor is of something else.
pub fn attachment(link: BorrowedFd<'_>) -> io::Result<Attachment> {
    let mut info = libbpf_sys::bpf_link_info::default();
    let mut len = size_of::<libbpf_sys::bpf_link_info>() as u32;
    // SAFETY: `info` has the octets that `len` says, and both live through the call.
    let result = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(link.as_raw_fd(), (&raw mut info).cast(), &raw mut len)
    };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    if info.type_ != libbpf_sys::BPF_LINK_TYPE_XDP {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: of a link of that type the kernel fills this part; all parts are numbers, zero before.
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
        // Closing the descriptor would do, but older kernels detach in a work queue then, and who
        // attaches next finds the interface busy. It fails only if the interface is gone.
        //
        // SAFETY: the descriptor is open until after this.
        unsafe { libbpf_sys::bpf_link_detach(self.fd.as_raw_fd()) };
    }
}
