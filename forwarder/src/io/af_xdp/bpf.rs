//! Queries about BPF programs of other owners: the programs at an interface's tcx hooks, and BPF
//! links.
//!
//! libbpf-rs has no query by attach type, and its iterator over links ends at the first error as if
//! it were the end: without the required privilege it would find no links. `control::firewall`
//! interprets the results.

#![expect(unsafe_code, reason = "bpf_prog_query_opts and the calls on links have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys;

/// BPF_MPROG_MAX of the kernel (include/linux/bpf_mprog.h).
const PROGRAMS_MAX: usize = 64;

/// A hook of an interface for tcx programs (BPF_TCX_INGRESS, BPF_TCX_EGRESS). Linux 6.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TcxHook {
    /// Received packets, before the protocols.
    Ingress,
    /// Packets to be sent, before the queueing discipline.
    Egress,
}

/// The programs at a hook.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TcxPrograms {
    /// Their BPF ids, in the order in which they run.
    pub ids: Vec<u32>,
    /// Changes with every attachment, detachment and replacement; 0: there never was one.
    pub revision: u64,
}

/// The programs at a hook of the interface `ifindex` of this thread's network namespace, attached
/// with or without a link. Empty if the kernel has no tcx, or the interface is gone. Needs
/// CAP_NET_ADMIN.
///
/// # Errors
/// Other errors of bpf(BPF_PROG_QUERY).
pub fn tcx_programs(ifindex: u32, hook: TcxHook) -> io::Result<TcxPrograms> {
    let Ok(target) = i32::try_from(ifindex) else { return Ok(TcxPrograms::default()) };
    let mut ids = [0u32; PROGRAMS_MAX];
    let mut opts = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as libbpf_sys::size_t,
        prog_ids: ids.as_mut_ptr(),
        __bindgen_anon_1: libbpf_sys::bpf_prog_query_opts__bindgen_ty_1 {
            count: PROGRAMS_MAX as u32,
        },
        ..Default::default()
    };
    let hook = match hook {
        TcxHook::Ingress => libbpf_sys::BPF_TCX_INGRESS,
        TcxHook::Egress => libbpf_sys::BPF_TCX_EGRESS,
    };
    // SAFETY: `opts` contains its own size and points to as many numbers as it says; both are valid
    // during the call.
    let result = unsafe { libbpf_sys::bpf_prog_query_opts(target, hook, &raw mut opts) };
    match -result {
        0 => {}
        // No program was ever attached; no such interface; no such hook in this kernel.
        libc::ENOENT | libc::ENODEV | libc::EINVAL => return Ok(TcxPrograms::default()),
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    // SAFETY: both variants are the same u32.
    let count = unsafe { opts.__bindgen_anon_1.count } as usize;
    let ids = ids[..count.min(PROGRAMS_MAX)].to_vec();
    Ok(TcxPrograms { ids, revision: opts.revision })
}

/// A BPF link at a netfilter hook, in any network namespace: the kernel does not report which one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetfilterLink {
    /// Id of the link.
    pub id: u32,
    /// Id of the program.
    pub program: u32,
    /// NFPROTO_*.
    pub family: u32,
    /// NF_INET_*.
    pub hook: u32,
    /// Lower priorities run first.
    pub priority: i32,
}

/// The lowest id of a link above `id`; `None`: there is none. New links get ascending ids until
/// they wrap at 2³¹. Needs CAP_SYS_ADMIN.
///
/// # Errors
/// EPERM without the capability.
pub fn next_link(id: u32) -> io::Result<Option<u32>> {
    let mut next = 0;
    // SAFETY: points to a u32 that is valid during the call.
    match -unsafe { libbpf_sys::bpf_link_get_next_id(id, &raw mut next) } {
        0 => Ok(Some(next)),
        libc::ENOENT => Ok(None),
        // A kernel without BPF links has none.
        libc::EINVAL => Ok(None),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The netfilter link of that id; `None`: it is another kind of link, or gone. Needs CAP_SYS_ADMIN.
///
/// # Errors
/// EAGAIN for a link that is being created and not attached yet; other errors of bpf(2).
pub fn netfilter_link(id: u32) -> io::Result<Option<NetfilterLink>> {
    // SAFETY: no pointers.
    let fd = unsafe { libbpf_sys::bpf_link_get_fd_by_id(id) };
    if fd < 0 {
        return match -fd {
            libc::ENOENT => Ok(None),
            errno => Err(io::Error::from_raw_os_error(errno)),
        };
    }
    // SAFETY: a new descriptor that nothing else uses.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: only numbers, for which zero is valid. Padding must be zero for older kernels.
    let mut info: libbpf_sys::bpf_link_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as u32;
    // SAFETY: points to `len` octets; both are valid during the call.
    let result = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(fd.as_raw_fd(), (&raw mut info).cast(), &raw mut len)
    };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    if info.type_ != libbpf_sys::BPF_LINK_TYPE_NETFILTER {
        return Ok(None);
    }
    // SAFETY: the variant for this type of link, which contains only numbers.
    let netfilter = unsafe { info.__bindgen_anon_1.netfilter };
    Ok(Some(NetfilterLink {
        id: info.id,
        program: info.prog_id,
        family: netfilter.pf,
        hook: netfilter.hooknum,
        priority: netfilter.priority,
    }))
}
