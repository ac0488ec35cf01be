//! One port's instance of the XDP program: attached by a link, with its own sockets, settings and
//! counters.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle, Xdp, XdpFlags};
use xdp_prog::{
    PortSettings, QUEUES_MAX, QueueCounters, REASONS, VlanKey, VlanSettings, mac_words,
};

use super::XdpError;
use super::object::{self, Shared};
use crate::io::af_xdp::link::{self, Attachment, LinkMode, XdpLink};

/// Where the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the kernel's receive path, for drivers without XDP: every frame is copied.
    Generic,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
        })
    }
}

/// The settings of [`PortProgram::set_steer`].
const STEER: u32 = PortSettings::STEER_IPV4 | PortSettings::STEER_IPV6;

/// The requested mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttachMode {
    /// Native, or generic if the driver has no native XDP.
    #[default]
    Auto,
    /// Native, or an error.
    Native,
    /// Generic, even if the driver has native XDP.
    Generic,
}

/// The program of one port. Dropping it detaches the program and returns the port to the kernel.
#[derive(Debug)]
pub struct PortProgram {
    /// Declared first, so that it is dropped first.
    link: XdpLink,
    /// The link's attachment when it was created.
    attachment: Attachment,
    mode: XdpMode,
    settings: PortSettings,
    port: MapHandle,
    sockets: MapHandle,
    counts: QueueCounts,
    vlans: MapHandle,
    /// The contents of the VLAN map.
    vlans_set: BTreeMap<VlanKey, VlanSettings>,
}

/// Checks whether a program is still attached where it was.
#[derive(Debug)]
pub struct Witness {
    link: OwnedFd,
    attachment: Attachment,
}

impl Witness {
    /// Whether the same program is on the same interface: it was not detached or replaced, and the
    /// interface was not removed or moved to where it has another index. Takes the kernel's RTNL
    /// lock.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        link::attachment(self.link.as_fd()).is_ok_and(|now| now == self.attachment)
    }
}

/// The interface that a program is for.
pub(super) struct PortId<'a> {
    pub(super) ifindex: u32,
    pub(super) ifname: &'a str,
    pub(super) mac: [u8; 6],
}

impl PortProgram {
    pub(super) fn attach(
        shared: &Shared,
        punt_source: [u8; 6],
        port: &PortId<'_>,
        wanted: AttachMode,
        frags: bool,
    ) -> Result<PortProgram, XdpError> {
        let &PortId { ifindex, ifname, mac } = port;
        let object = shared.load_port(frags)?;
        let program = object::program(&object, xdp_prog::PROGRAM_XDP)?;
        let target = Target { ifindex, ifname, program };
        target.refuse_if_taken()?;
        let (link, mode) = target.attach(wanted)?;
        let attachment = link::attachment(link.as_fd()).map_err(|e| target.error(mode, e))?;
        let generic = if mode == XdpMode::Generic { PortSettings::GENERIC } else { 0 };
        let port = PortProgram {
            link,
            attachment,
            mode,
            settings: PortSettings {
                mac: mac_words(mac),
                punt_source: mac_words(punt_source),
                flags: generic,
            },
            port: object::map(&object, xdp_prog::MAP_PORT)?,
            sockets: object::map(&object, xdp_prog::MAP_SOCKETS)?,
            counts: QueueCounts(Arc::new(object::map(&object, xdp_prog::MAP_QUEUES)?)),
            vlans: object::map(&object, xdp_prog::MAP_VLANS)?,
            vlans_set: BTreeMap::new(),
        };
        port.store_settings()?;
        Ok(port)
    }

    /// Where the program runs.
    #[must_use]
    pub fn mode(&self) -> XdpMode {
        self.mode
    }

    /// A witness to check later whether the program is still attached where it was.
    ///
    /// # Errors
    /// EMFILE.
    pub fn witness(&self) -> io::Result<Witness> {
        let link = self.link.as_fd().try_clone_to_owned()?;
        Ok(Witness { link, attachment: self.attachment })
    }

    /// The port's XSKMAP, for code that sets sockets directly.
    #[must_use]
    pub fn xsks_fd(&self) -> BorrowedFd<'_> {
        self.sockets.as_fd()
    }

    /// Directs the frames of an RX queue to an AF_XDP socket bound to it. The kernel removes the
    /// socket when it is closed.
    ///
    /// # Errors
    /// [`XdpError::Queue`] beyond [`QUEUES_MAX`]; [`XdpError::Map`] if it is not such a socket.
    pub fn set_socket(&self, queue: u32, socket: impl AsRawFd) -> Result<(), XdpError> {
        let key = self.socket_key(queue)?;
        self.sockets
            .update(&key, &socket.as_raw_fd().to_ne_bytes(), MapFlags::ANY)
            .map_err(|source| XdpError::map("put a socket into", &self.sockets, source))
    }

    /// Returns an RX queue to the kernel; no effect if it had no socket.
    ///
    /// # Errors
    /// [`XdpError::Queue`] or [`XdpError::Map`].
    pub fn clear_socket(&self, queue: u32) -> Result<(), XdpError> {
        let key = self.socket_key(queue)?;
        match self.sockets.delete(&key) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(XdpError::map("take a socket out of", &self.sockets, e))
            }
            _ => Ok(()),
        }
    }

    /// Sets the port's MAC after a change.
    ///
    /// # Errors
    /// [`XdpError::Map`].
    pub fn set_mac(&mut self, mac: [u8; 6]) -> Result<(), XdpError> {
        self.settings.mac = mac_words(mac);
        self.store_settings()
    }

    /// Sets whether offloaded flows that arrive are forwarded by the program, as those from port `number`; `None`: they
    /// are not. `partial_csum`: frames may be received with partial checksums.
    ///
    /// # Errors
    /// [`XdpError::Map`].
    pub fn set_offload(&mut self, number: Option<u16>, partial_csum: bool) -> Result<(), XdpError> {
        let mut flags = self.settings.flags & (STEER | PortSettings::GENERIC);
        if let Some(number) = number {
            flags |= PortSettings::OFFLOAD | u32::from(number) << PortSettings::NUMBER_SHIFT;
        }
        if partial_csum {
            flags |= PortSettings::PARTIAL_CSUM;
        }
        if flags != self.settings.flags {
            self.settings.flags = flags;
            self.store_settings()?;
        }
        Ok(())
    }

    /// Sets which families are steered; the others stay with the kernel. None at start.
    ///
    /// # Errors
    /// [`XdpError::Map`].
    pub fn set_steer(&mut self, ipv4: bool, ipv6: bool) -> Result<(), XdpError> {
        let mut flags = self.settings.flags & !STEER;
        if ipv4 {
            flags |= PortSettings::STEER_IPV4;
        }
        if ipv6 {
            flags |= PortSettings::STEER_IPV6;
        }
        if flags != self.settings.flags {
            self.settings.flags = flags;
            self.store_settings()?;
        }
        Ok(())
    }

    /// Sets which tagged frames are steered like untagged ones: the whole set. None at start. Only
    /// changes are written.
    ///
    /// # Errors
    /// [`XdpError::Map`]; earlier changes remain written, and the next call continues from there.
    pub fn set_vlans(&mut self, wanted: &BTreeMap<VlanKey, VlanSettings>) -> Result<(), XdpError> {
        let octets = |key: &VlanKey| key.map(u16::to_ne_bytes).concat();
        let gone = self.vlans_set.keys().filter(|key| !wanted.contains_key(*key));
        for key in gone.copied().collect::<Vec<_>>() {
            match self.vlans.delete(&octets(&key)) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(XdpError::map("remove a VLAN from", &self.vlans, e));
                }
                _ => self.vlans_set.remove(&key),
            };
        }
        for (key, settings) in wanted {
            if self.vlans_set.get(key) != Some(settings) {
                self.vlans
                    .update(&octets(key), &settings.to_bytes(), MapFlags::ANY)
                    .map_err(|source| XdpError::map("add a VLAN to", &self.vlans, source))?;
                self.vlans_set.insert(*key, *settings);
            }
        }
        Ok(())
    }

    /// The program's frame counters, readable from any thread.
    #[must_use]
    pub fn counts(&self) -> QueueCounts {
        self.counts.clone()
    }

    /// The same as [`QueueCounts::queues`].
    ///
    /// # Errors
    /// [`XdpError::Map`].
    pub fn counters(&self, queues: u32) -> Result<Vec<QueueCounters>, XdpError> {
        self.counts.queues(queues)
    }

    /// The same as [`QueueCounts::queue`].
    ///
    /// # Errors
    /// [`XdpError::Map`].
    pub fn queue_counters(&self, queue: u32) -> Result<QueueCounters, XdpError> {
        self.counts.queue(queue)
    }

    fn socket_key(&self, queue: u32) -> Result<[u8; 4], XdpError> {
        if queue < QUEUES_MAX as u32 {
            Ok(queue.to_ne_bytes())
        } else {
            Err(XdpError::Queue { queue })
        }
    }

    fn store_settings(&self) -> Result<(), XdpError> {
        self.port
            .update(&0u32.to_ne_bytes(), &self.settings.to_bytes(), MapFlags::ANY)
            .map_err(|source| XdpError::map("write", &self.port, source))
    }
}

/// Frame counters of a port's program, also after it was detached. One system call per queue.
#[derive(Debug, Clone)]
pub struct QueueCounts(Arc<MapHandle>);

impl QueueCounts {
    /// Frames by reason ([`xdp_prog::Reason`]) for each of the first `queues` RX queues since the
    /// program was attached, summed over all CPUs. One system call per queue.
    ///
    /// # Errors
    /// [`XdpError::Map`].
    pub fn queues(&self, queues: u32) -> Result<Vec<QueueCounters>, XdpError> {
        (0..queues.min(QUEUES_MAX as u32)).map(|queue| self.queue(queue)).collect()
    }

    /// Frames of one queue by [`xdp_prog::Reason`].
    ///
    /// # Errors
    /// [`XdpError::Map`].
    pub fn queue(&self, queue: u32) -> Result<QueueCounters, XdpError> {
        let cpus = self
            .0
            .lookup_percpu(&queue.to_ne_bytes(), MapFlags::ANY)
            .map_err(|source| XdpError::map("read", &*self.0, source))?
            .unwrap_or_default();
        let mut sum = [0; REASONS];
        for cpu in &cpus {
            for (total, value) in sum.iter_mut().zip(cpu.as_chunks::<8>().0) {
                *total += u64::from_ne_bytes(*value);
            }
        }
        Ok(sum)
    }
}

/// A loaded program and the interface it is for.
struct Target<'a> {
    ifindex: u32,
    ifname: &'a str,
    program: OwnedFd,
}

impl Target<'_> {
    fn attach(&self, wanted: AttachMode) -> Result<(XdpLink, XdpMode), XdpError> {
        if wanted != AttachMode::Generic {
            match self.link(LinkMode::Native) {
                Ok(link) => return Ok((link, XdpMode::Native)),
                Err(e) if self.has_no_native(&e) && wanted == AttachMode::Auto => {}
                Err(e) => return Err(self.native_error(e)),
            }
        }
        match self.link(LinkMode::Generic) {
            Ok(link) => Ok((link, XdpMode::Generic)),
            Err(e) => Err(self.error(XdpMode::Generic, e)),
        }
    }

    fn link(&self, mode: LinkMode) -> io::Result<XdpLink> {
        XdpLink::attach(self.program.as_fd(), self.ifindex, mode)
    }

    /// dev_xdp_attach returns EOPNOTSUPP if the driver has no XDP; some drivers return it for
    /// devices on which they do not support it.
    fn has_no_native(&self, error: &io::Error) -> bool {
        error.raw_os_error() == Some(libc::EOPNOTSUPP)
    }

    fn native_error(&self, source: io::Error) -> XdpError {
        let hint = match source.raw_os_error() {
            Some(libc::EOPNOTSUPP) => "it has none, or not with the current offloads",
            // veth and most NICs: a frame has to fit in a page.
            Some(libc::ERANGE | libc::EINVAL | libc::E2BIG) => {
                "lower the MTU (on a veth also the peer's) or switch LRO off"
            }
            Some(libc::ENOMEM | libc::ENOSPC) => {
                "reduce its queues with ethtool -L: XDP needs a TX queue for each CPU, and a veth as \
                 many RX queues as its peer has TX queues"
            }
            _ => return self.error(XdpMode::Native, source),
        };
        XdpError::NativeRefused { ifname: self.ifname.to_owned(), source, hint }
    }

    fn error(&self, mode: XdpMode, source: io::Error) -> XdpError {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => XdpError::not_permitted("attach an XDP program"),
            Some(libc::EMFILE | libc::ENFILE) => XdpError::Descriptors(source),
            // Another program was attached since the query.
            Some(libc::EBUSY | libc::EEXIST) => self.refuse_if_taken().err().unwrap_or_else(|| {
                XdpError::Attach { ifname: self.ifname.to_owned(), mode, source }
            }),
            _ => XdpError::Attach { ifname: self.ifname.to_owned(), mode, source },
        }
    }

    /// Returns an error if the interface has a program in any mode. The kernel permits no native
    /// and generic program side by side, but reports only "busy".
    fn refuse_if_taken(&self) -> Result<(), XdpError> {
        let Ok(ifindex) = i32::try_from(self.ifindex) else { return Ok(()) };
        let (found, _log) =
            object::with_log(|| Xdp::new(self.program.as_fd()).query(ifindex, XdpFlags::NONE));
        // If the query fails, attaching reports the error.
        let Ok(found) = found else { return Ok(()) };
        let programs =
            [(XdpMode::Native, found.drv_prog_id), (XdpMode::Generic, found.skb_prog_id)];
        let Some((mode, id)) = programs.into_iter().find(|(_, id)| *id != 0) else {
            return Ok(());
        };
        Err(XdpError::taken(self.ifname, id, mode))
    }
}

/// The name of a loaded program; `None` if it is gone, or CAP_SYS_ADMIN is missing, as after the start.
pub fn program_name(id: u32) -> Option<String> {
    let program = ProgInfoIter::default().find(|program| program.id == id)?;
    Some(program.name.to_string_lossy().into_owned())
}
