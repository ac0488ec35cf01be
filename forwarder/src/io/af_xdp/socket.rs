//! System calls of one AF_XDP socket, independent of ports and frames (include/uapi/linux/if_xdp.h,
//! net/xdp/xsk.c).

#![expect(unsafe_code, reason = "system calls that libc offers as foreign functions")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::area::Area;
use super::error::Step;
use super::ring::{Consumer, Producer};
use super::{BoundMode, RingSizes, XdpStatistics};
use crate::skb::{COLOUR_MAX, FRAME_SIZE, colour};

/// SOL_XDP option since Linux 6.17: how many packets one sendto(2) sends in copy mode, between 32
/// (the default) and the TX ring's size.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// SO_BUSY_POLL in microseconds. Any value but 0 works: for a non-blocking call the kernel polls a
/// queue once and returns (xsk_recvmsg: `sk_busy_loop(sk, 1)`).
const BUSY_POLL_US: libc::c_int = 20;

/// Maximum octets of socket buffer charged for one in-flight packet in copy mode: a frame and its
/// metadata.
const SNDBUF_PER_PACKET: u32 = FRAME_SIZE as u32 + 1024;

/// Where the kernel places received packets in frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// [`HEADROOM`](crate::skb::HEADROOM) octets after the start of the frame, which every driver
    /// supports.
    Aligned,
    /// Further back by the frame's colour: chunks start where the fill ring says
    /// (XDP_UMEM_UNALIGNED_CHUNK_FLAG), with additional headroom of the maximum colour. A chunk
    /// thus starts in the previous frame, where nothing is written, and its packet ends in its own
    /// frame. Only for copy mode: without huge pages, a NIC cannot DMA to chunks that cross pages.
    Coloured,
}

impl Layout {
    /// The layout for a mode.
    pub(super) fn of(mode: BoundMode) -> Layout {
        match mode {
            BoundMode::Copy => Layout::Coloured,
            BoundMode::ZeroCopy => Layout::Aligned,
        }
    }

    /// The fill ring's entry for the frame that starts at `addr`, octets from the area's start.
    #[inline]
    pub(super) fn fill_addr(self, addr: u64) -> u64 {
        match self {
            Layout::Aligned => addr,
            // Frame 0 has the largest colour.
            Layout::Coloured => {
                let colour = colour((addr / FRAME_SIZE as u64) as u32);
                addr - (COLOUR_MAX - colour) as u64
            }
        }
    }

    /// Headroom in addition to the usual one in octets, and flags of XDP_UMEM_REG.
    fn registered(self) -> (u32, u32) {
        match self {
            Layout::Aligned => (0, 0),
            Layout::Coloured => (COLOUR_MAX as u32, libc::XDP_UMEM_UNALIGNED_CHUNK_FLAG),
        }
    }
}

/// The start of a descriptor's packet, in octets from the area's start. For unaligned chunks the
/// kernel returns the chunk's start, and the packet's offset in the upper 16 bits.
#[inline]
pub(super) fn packet_addr(addr: u64) -> u64 {
    (addr & libc::XSK_UNALIGNED_BUF_ADDR_MASK) + (addr >> libc::XSK_UNALIGNED_BUF_OFFSET_SHIFT)
}

/// A socket with its rings, bound or not.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    pub(super) fill: Producer<u64>,
    pub(super) completion: Consumer<u64>,
    pub(super) rx: Consumer<libc::xdp_desc>,
    pub(super) tx: Producer<libc::xdp_desc>,
}

impl Socket {
    /// Opens a socket, registers the area with it, and maps its rings.
    ///
    /// Every socket registers the whole area for itself. With XDP_SHARED_UMEM the first socket
    /// would have to outlive all others and would decide for all of them between copy and
    /// zero-copy (xsk_bind and xp_assign_dev_shared); the kernel pins the same pages either way.
    pub(super) fn open(
        area: &Area,
        layout: Layout,
        sizes: &RingSizes,
    ) -> Result<Socket, (Step, io::Error)> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err((Step::Socket, io::Error::last_os_error()));
        }
        // SAFETY: just opened, and not owned by anything else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        register(fd.as_fd(), area, layout).map_err(|error| (Step::Register, error))?;
        Socket::with_rings(fd, sizes).map_err(|error| (Step::Rings, error))
    }

    fn with_rings(fd: OwnedFd, sizes: &RingSizes) -> io::Result<Socket> {
        let socket = fd.as_fd();
        set(socket, libc::SOL_XDP, libc::XDP_UMEM_FILL_RING, &sizes.fill)?;
        set(socket, libc::SOL_XDP, libc::XDP_UMEM_COMPLETION_RING, &sizes.tx)?;
        set(socket, libc::SOL_XDP, libc::XDP_RX_RING, &sizes.fill)?;
        set(socket, libc::SOL_XDP, libc::XDP_TX_RING, &sizes.tx)?;
        send_many(socket, sizes.tx);
        let at: libc::xdp_mmap_offsets = get(socket, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)?;
        let fill_page = libc::XDP_UMEM_PGOFF_FILL_RING as i64;
        let completion_page = libc::XDP_UMEM_PGOFF_COMPLETION_RING as i64;
        Ok(Socket {
            fill: Producer::map(socket, fill_page, &at.fr, sizes.fill)?,
            completion: Consumer::map(socket, completion_page, &at.cr, sizes.tx)?,
            rx: Consumer::map(socket, libc::XDP_PGOFF_RX_RING, &at.rx, sizes.fill)?,
            tx: Producer::map(socket, libc::XDP_PGOFF_TX_RING, &at.tx, sizes.tx)?,
            fd,
        })
    }

    /// Binds to a queue. `flags` are XDP_COPY, XDP_ZEROCOPY, XDP_USE_NEED_WAKEUP.
    pub(super) fn bind(&self, ifindex: u32, queue: u32, flags: u16) -> io::Result<()> {
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: flags,
            sxdp_ifindex: ifindex,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        // SAFETY: the address is a sockaddr_xdp of the given length, valid during the call.
        check(unsafe {
            libc::bind(
                self.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_xdp>() as libc::socklen_t,
            )
        })
    }

    /// Enables busy polling: the socket's system calls poll the queue, at most `budget` packets
    /// each, in preference to the kernel's polling on interrupts
    /// (Documentation/networking/napi.rst, "Busy polling").
    pub(super) fn prefer_busy_poll(&self, budget: u16) -> io::Result<()> {
        let budget = libc::c_int::from(budget);
        set(self.fd(), libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, &(1 as libc::c_int))?;
        set(self.fd(), libc::SOL_SOCKET, libc::SO_BUSY_POLL, &BUSY_POLL_US)?;
        set(self.fd(), libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, &budget)
    }

    /// Whether the socket was bound zero-copy (XDP_OPTIONS).
    pub(super) fn is_zerocopy(&self) -> io::Result<bool> {
        let options: libc::xdp_options = get(self.fd(), libc::SOL_XDP, libc::XDP_OPTIONS)?;
        Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    /// The kernel's counters of this socket (XDP_STATISTICS).
    pub(super) fn statistics(&self) -> io::Result<XdpStatistics> {
        let raw: libc::xdp_statistics = get(self.fd(), libc::SOL_XDP, libc::XDP_STATISTICS)?;
        Ok(XdpStatistics {
            rx_dropped: raw.rx_dropped,
            rx_invalid_descs: raw.rx_invalid_descs,
            tx_invalid_descs: raw.tx_invalid_descs,
            rx_ring_full: raw.rx_ring_full,
            rx_fill_ring_empty_descs: raw.rx_fill_ring_empty_descs,
            tx_ring_empty_descs: raw.tx_ring_empty_descs,
        })
    }

    /// Makes the kernel process the TX ring.
    #[inline]
    pub(super) fn wake_tx(&self) -> io::Result<()> {
        // SAFETY: no octets and no address are passed.
        check(unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                std::ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null(),
                0,
            )
        } as libc::c_int)
    }

    /// Wakes the driver of a zero-copy socket that prefers busy polling. For such a socket
    /// sendto(2) polls the RX queue's NAPI instance and does not wake the driver (`xsk_no_wakeup`),
    /// but drivers may send in another instance (igb, virtio_net); poll(2) always wakes it
    /// (`xsk_poll`).
    pub(super) fn wake_by_poll(&self) {
        let fd = self.fd.as_raw_fd();
        poll(&mut [libc::pollfd { fd, events: libc::POLLOUT, revents: 0 }], Duration::ZERO);
    }

    /// Makes the kernel read the fill ring again, and poll the queue if the socket prefers busy
    /// polling.
    pub(super) fn wake_rx(&self) {
        // The result does not matter: the ring is read at every burst.
        wake_rx(self.fd());
    }

    /// The descriptor, for the XSKMAP and for poll(2).
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether a socket is still bound to its interface; `mode` is the mode in which it was bound. If
/// the interface was removed or moved to another network namespace, it never will be bound again
/// (`xsk_notifier`: NETDEV_UNREGISTER). Any descriptor of the socket can be used.
///
/// The kernel reports the first such event once; a caller that gets it closes the socket.
pub fn is_bound(socket: BorrowedFd<'_>, mode: BoundMode) -> bool {
    let error = get::<libc::c_int>(socket, libc::SOL_SOCKET, libc::SO_ERROR);
    if error.is_ok_and(|errno| errno == libc::ENETDOWN) {
        return false;
    }
    // In zero-copy mode the driver may return ENXIO (`ndo_xsk_wakeup`) while it resets.
    mode == BoundMode::ZeroCopy || wake_rx(socket) != Some(libc::ENXIO)
}

/// recvfrom(2) without data; returns its errno if it failed.
fn wake_rx(socket: BorrowedFd<'_>) -> Option<i32> {
    // SAFETY: no octets and no address are passed.
    let result = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    if result < 0 { io::Error::last_os_error().raw_os_error() } else { None }
}

/// XDP_UMEM_REG.
fn register(fd: BorrowedFd<'_>, area: &Area, layout: Layout) -> io::Result<()> {
    let (headroom, flags) = layout.registered();
    let reg = libc::xdp_umem_reg {
        addr: area.addr(),
        len: area.len(),
        chunk_size: FRAME_SIZE as u32,
        headroom,
        flags,
        tx_metadata_len: 0,
    };
    set(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &reg)
}

/// Lets one sendto(2) in copy mode send a whole TX ring of `tx` descriptors. It only makes sending
/// faster: what the kernel does not know or allow is done without.
pub(in crate::io) fn send_many(socket: BorrowedFd<'_>, tx: u32) {
    let _ = set(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &tx);
    let sndbuf = tx.saturating_mul(SNDBUF_PER_PACKET).min(i32::MAX as u32 / 2);
    let _ = set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &sndbuf);
}

/// Waits on the sockets of a worker. Allocates only when it is made.
#[derive(Debug)]
pub(in crate::io) struct Poller(Vec<libc::pollfd>);

impl Poller {
    /// For at most `ports` sockets and a wakeup descriptor.
    pub(in crate::io) fn new(ports: usize) -> Poller {
        Poller(Vec::with_capacity(ports + 1))
    }

    /// Waits until one of `fds` is readable (POLLIN), at most `timeout`. Returns whether one is; may
    /// return early.
    pub(in crate::io) fn wait<'a>(
        &mut self,
        fds: impl Iterator<Item = BorrowedFd<'a>>,
        timeout: Duration,
    ) -> bool {
        let pollfd = |fd: BorrowedFd<'_>| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        self.0.clear();
        self.0.extend(fds.map(pollfd));
        poll(&mut self.0, timeout)
    }
}

fn poll(fds: &mut [libc::pollfd], timeout: Duration) -> bool {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: the length is that of the array; both the array and the timeout are valid during the
    // call; no signal mask is passed.
    let ready = unsafe {
        libc::ppoll(
            fds.as_mut_ptr(),
            fds.len() as libc::nfds_t,
            &raw const timeout,
            std::ptr::null(),
        )
    };
    ready > 0
}

fn set<T: Copy>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: points to a value of the given length, valid during the call.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })
}

/// Types that contain only numbers, so that any bits are valid.
trait Plain: Copy {}
impl Plain for libc::xdp_mmap_offsets {}
impl Plain for libc::xdp_options {}
impl Plain for libc::xdp_statistics {}
impl Plain for libc::c_int {}

fn get<T: Plain>(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<T> {
    // SAFETY: only numbers, see Plain.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: points to a value of the given length, valid during the call.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len)
    })?;
    if len as usize != size_of::<T>() {
        return Err(io::Error::other("the kernel is too old (5.4 or later is needed)"));
    }
    Ok(value)
}

#[cfg(test)]
impl Socket {
    /// Rings of `size` entries without a socket, for tests that play the kernel. System calls fail.
    pub(super) fn in_memory(size: u32) -> Socket {
        use super::ring::in_memory::{consumer, producer};
        let file = std::fs::File::open("/dev/null").expect("opens");
        let (fill, completion) = (producer(0, size), consumer(0, size));
        Socket { fd: file.into(), fill, completion, rx: consumer(0, size), tx: producer(0, size) }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skb::{COLOURS, HEADROOM, MAX_PACKET};

    #[test]
    fn every_colour_keeps_its_packet_within_its_frame_and_its_chunk_within_the_area() {
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..64u32 {
            let frame = u64::from(index) * FRAME_SIZE as u64;
            for layout in [Layout::Aligned, Layout::Coloured] {
                let chunk = layout.fill_addr(frame);
                assert!(
                    chunk + FRAME_SIZE as u64 <= frame + FRAME_SIZE as u64,
                    "{layout:?} {index}"
                );
                let offset = u64::from(layout.registered().0) + HEADROOM as u64;
                let addr = chunk | offset << libc::XSK_UNALIGNED_BUF_OFFSET_SHIFT;
                let packet = packet_addr(addr) - frame;
                let colour = if layout == Layout::Aligned { 0 } else { colour(index) };
                assert_eq!(packet, (HEADROOM + colour) as u64, "{layout:?} {index}");
                assert!(packet + MAX_PACKET as u64 <= FRAME_SIZE as u64, "{layout:?} {index}");
                seen.insert(packet);
            }
        }
        assert_eq!(seen.len(), COLOURS);
    }
}
