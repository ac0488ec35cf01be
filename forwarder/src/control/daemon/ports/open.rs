//! Opens and closes a port: sockets, program, and settings of the interface. Runs on the port thread,
//! because drivers may take seconds.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::active::ActivePort;
use super::error::PortError;
use super::handoff::worker_of;
use super::thread::PortContext;
use crate::control::config::Mode;
use crate::control::netdev::nic::{
    self, Nic, Stripping, XDP_BASIC, XDP_MULTI_BUFFER, XDP_ZEROCOPY,
};
use crate::control::steering::punt::PuntDevice;
use crate::control::steering::{AttachMode, PortProgram, XdpMode};
use crate::io::DriverKind;
use crate::io::af_xdp::{BindMode, BoundMode, PortConfig, driver_name};
use crate::skb::MTU_FRAME;
use crate::tables::Link;
use crate::worker::poll::PollMode;

/// How long workers have for packets in the rings of a port that is being closed.
const DRAIN_TIME: Duration = Duration::from_millis(5);
/// Pause before a busy queue is tried again: one just closed stays busy for a while.
const BUSY_INTERVAL: Duration = Duration::from_millis(20);

/// A request to open a port.
#[derive(Debug)]
pub(super) struct OpenRequest {
    /// Number of the port.
    pub(super) index: u16,
    /// Number of this opening, unique among all openings of all ports.
    pub(super) generation: u64,
    pub(super) link: Link,
    /// How often a busy queue is tried, [`BUSY_INTERVAL`] apart.
    pub(super) tries: u32,
    /// See `Port::naming`.
    pub(super) naming: Option<u64>,
    /// The device that hands packets back to the kernel.
    pub(super) punt: Arc<PuntDevice>,
}

/// Opens a port: a socket on every queue, the program, and the program's map of the sockets. Frames are
/// steered only after [`ActivePort::steer`].
///
/// # Errors
/// Why it cannot be opened; everything is then as before.
pub(super) fn open(request: &OpenRequest, with: &mut PortContext) -> Result<ActivePort, PortError> {
    let mut sockets = Sockets::default();
    let opened = request.open(&mut sockets, with);
    if opened.is_err() {
        let queues = sockets.fds.len() as u32;
        drop(sockets);
        close_sockets(request.index, queues, with);
    }
    opened
}

/// Closes a port: the kernel gets its frames.
pub(super) fn close(index: u16, mut port: ActivePort, punt: &PuntDevice, with: &mut PortContext) {
    port.restore_polling();
    port.restore_irqs();
    let ActivePort { program, sockets, ifindex, queues, .. } = port;
    // First the program: from here on the kernel has every frame that arrives. Packets that have arrived
    // are forwarded meanwhile.
    drop(program);
    std::thread::sleep(DRAIN_TIME);
    // A socket is closed with its last descriptor, which must be the worker's.
    drop(sockets);
    close_sockets(index, queues, with);
    // This fails only for lack of memory; the entry then allows frames of an interface that is not a port,
    // which has no effect.
    let _ = punt.remove_port(ifindex);
}

fn close_sockets(index: u16, queues: u32, with: &mut PortContext) {
    for queue in 0..queues {
        let slot = with.slot(index, queue);
        with.workers.close(worker_of(queue, with.workers.len()), slot);
    }
}

/// The sockets opened so far and their properties.
#[derive(Debug, Default)]
struct Sockets {
    /// By queue.
    fds: Vec<OwnedFd>,
    multi_buffer: bool,
    /// The errno with which the driver refused zero-copy.
    zerocopy_errno: Option<i32>,
}

impl OpenRequest {
    fn open(&self, sockets: &mut Sockets, with: &mut PortContext) -> Result<ActivePort, PortError> {
        let (link, name) = (&self.link, &self.link.name);
        let mode = self.refuse_unfit(with)?;
        let channels = nic::queues(link.ifindex).map_err(PortError::Queues)?;
        let queues = with.queues_served(name, link.ifindex, channels)?;
        // A socket sends on the TX queue with the number of its RX queue, and there may be fewer TX queues.
        let tx_queues = queues.min(channels.tx);
        let (bind_mode, program) = self.open_and_attach(queues, mode, sockets, with)?;
        with.handoffs.lead(self.index, tx_queues, &mut with.workers)?;
        for (queue, socket) in (0..).zip(&sockets.fds) {
            program.set_socket(queue, socket.as_raw_fd())?;
        }
        let generic = program.mode() == XdpMode::Generic;
        self.punt.add_port(link.ifindex, link.mac, generic)?;
        let no_zerocopy = self.why_copy(bind_mode, mode, sockets, &program, with);
        let mut port = ActivePort {
            program,
            ifname: name.clone(),
            ifindex: link.ifindex,
            mtu: link.mtu,
            mac: link.mac,
            generation: self.generation,
            opened: Instant::now(),
            queues,
            tx_queues,
            had: channels,
            bind_mode,
            no_zerocopy,
            multi_buffer: sockets.multi_buffer,
            sockets: std::mem::take(&mut sockets.fds),
            vlans_of: None,
            tuned: None,
            pinned: None,
            without_socket: BTreeMap::new(),
            has_rss_table: false,
            down_since: None,
        };
        // Without a directory to store the earlier settings in, nothing is set.
        if let Some(directory) = &with.options.runtime_dir {
            if with.options.poll == PollMode::Busy {
                port.tune(&directory.path);
            }
            if with.options.pin_irqs {
                port.pin(&directory.path, &with.cpus);
            }
        }
        Ok(port)
    }

    /// Sockets first: some drivers (igb) fill their rings when the program is attached, and the fill rings
    /// must be full by then.
    fn open_and_attach(
        &self,
        queues: u32,
        mode: Mode,
        sockets: &mut Sockets,
        with: &mut PortContext,
    ) -> Result<(BoundMode, PortProgram), PortError> {
        let opened = self.open_sockets(queues, mode, sockets, with);
        if let Err(stalled @ PortError::WorkerStalled(_)) = opened {
            return Err(stalled);
        }
        let driver = with.options.driver;
        let opened =
            opened.and_then(|bound| self.refuse_too_long(driver, bound, sockets).map(|()| bound));
        let mode = match mode {
            Mode::Auto => AttachMode::Auto,
            Mode::Zerocopy | Mode::Copy => AttachMode::Native,
            Mode::Generic => AttachMode::Generic,
        };
        // Tried even without sockets: a program attached by another process explains more than "busy".
        let (link, long) = (&self.link, self.link.mtu > MTU_FRAME);
        match with.attacher.attach(link.ifindex, &link.name, link.mac, mode, long) {
            Err(error) if PortError::is_taken(&error) => Err(error.into()),
            program => Ok((opened?, program?)),
        }
    }

    /// Checks what an interface must be, besides up and within the MTU limit. Returns its mode.
    fn refuse_unfit(&self, with: &PortContext) -> Result<Mode, PortError> {
        let name = &self.link.name;
        let nics = nic::read().map_err(PortError::Unreadable)?;
        let nic = nics.iter().find(|nic| nic.ifindex == self.link.ifindex);
        let nic = nic.ok_or(PortError::Gone)?;
        let unfit = if !nic.is_named_as_told {
            Some(
                "has a name that is not UTF-8; give it another: ip link set NAME name NEW"
                    .to_owned(),
            )
        } else if !nic.is_ethernet() || name == self.punt.name() {
            Some("is not an Ethernet interface, or is Ferroute's own TAP device".to_owned())
        } else if nic.master.is_some() {
            Some("belongs to a bridge, bond or VRF, which takes its packets".to_owned())
        } else if nic.kind.as_deref() == Some("vlan") {
            let lower = nics.iter().find(|other| Some(other.ifindex) == nic.lower);
            let lower = lower.map_or("its parent interface", |lower| &lower.name);
            Some(format!("is a VLAN: name {lower} instead; its VLANs are included"))
        } else {
            strips_tags(nic)
        };
        if let Some(why) = unfit {
            return Err(PortError::Unfit(why));
        }
        let mode = mode_of(nic, with.options.mode)?;
        self.too_long_for_driver(mode, with).map_or(Ok(mode), |why| Err(PortError::Unfit(why)))
    }

    /// Why the driver does not support packets of its MTU; `None`: it does.
    fn too_long_for_driver(&self, mode: Mode, with: &PortContext) -> Option<String> {
        let link = &self.link;
        if link.mtu <= MTU_FRAME || mode == Mode::Generic {
            return None;
        }
        let can = nic::xdp_features(link.ifindex).ok().flatten()?;
        if can & XDP_BASIC == 0 || can & XDP_MULTI_BUFFER != 0 {
            return None;
        }
        // The sockets of xsk-rs do not support such an MTU in any mode.
        let remedy = match with.options.driver {
            DriverKind::AfXdp => "or use --mode generic",
            DriverKind::XskRs => "or use --driver af_xdp --mode generic",
        };
        Some(format!(
            "has an MTU of {}, and its driver, {}, does not support multi-buffer XDP; lower the MTU: \
             ip link set {} mtu {MTU_FRAME}, {remedy}",
            link.mtu,
            self.driver(),
            link.name
        ))
    }

    /// Checks that the sockets that were opened support packets of its MTU.
    fn refuse_too_long(
        &self,
        driver: DriverKind,
        mode: BoundMode,
        sockets: &Sockets,
    ) -> Result<(), PortError> {
        if self.link.mtu <= MTU_FRAME || sockets.multi_buffer {
            return Ok(());
        }
        let (why, remedy) = match mode {
            _ if driver == DriverKind::XskRs => {
                ("--driver xsk-rs supports one frame per packet", ", or use --driver af_xdp")
            }
            BoundMode::ZeroCopy => ("its zero-copy sockets support one frame per packet", ""),
            BoundMode::Copy => ("multi-buffer AF_XDP sockets need Linux 6.6", ""),
        };
        Err(PortError::Unfit(format!(
            "has an MTU of {}, which exceeds the {MTU_FRAME} octets of a frame, and {why}; lower the MTU: \
             ip link set {} mtu {MTU_FRAME}{remedy}",
            self.link.mtu, self.link.name
        )))
    }

    /// Queue `q` belongs to worker `q % workers`. A worker sends on its first queue of a port, if that can
    /// send.
    fn open_sockets(
        &self,
        queues: u32,
        mode: Mode,
        sockets: &mut Sockets,
        with: &mut PortContext,
    ) -> Result<BoundMode, PortError> {
        sockets.multi_buffer = self.link.mtu > MTU_FRAME;
        let mut bind_mode = BoundMode::Copy;
        for queue in 0..queues {
            let config = self.socket_config(queue, sockets.multi_buffer, mode);
            let worker = worker_of(queue, with.workers.len());
            let slot = with.slot(self.index, queue);
            let mut tries = self.tries;
            let (info, fd) = loop {
                tries = tries.saturating_sub(1);
                match with.workers.open(worker, slot, config.clone()) {
                    // Waited for here and not on the worker, which has other ports to serve.
                    Err(error) if tries > 0 && error.is_busy() && !with.signals.is_pending() => {
                        std::thread::sleep(BUSY_INTERVAL);
                    }
                    opened => break opened?,
                }
            };
            sockets.fds.push(fd);
            sockets.multi_buffer = info.multi_buffer;
            sockets.zerocopy_errno = info.no_zerocopy;
            bind_mode = info.mode;
        }
        Ok(bind_mode)
    }

    fn socket_config(&self, queue: u32, multi_buffer: bool, mode: Mode) -> PortConfig {
        let ifindex = self.link.ifindex;
        PortConfig {
            ifname: self.link.name.clone(),
            ifindex,
            queue,
            mode: match mode {
                Mode::Auto => BindMode::Auto,
                Mode::Zerocopy => BindMode::ZeroCopy,
                Mode::Copy | Mode::Generic => BindMode::Copy,
            },
            multi_buffer,
            zerocopy_segments: match multi_buffer {
                true => nic::zerocopy_segments(ifindex).ok().flatten().unwrap_or(1),
                false => 1,
            },
        }
    }

    /// Why bound sockets are not zero-copy.
    fn why_copy(
        &self,
        bound: BoundMode,
        mode: Mode,
        sockets: &Sockets,
        program: &PortProgram,
        with: &PortContext,
    ) -> Option<String> {
        if bound == BoundMode::ZeroCopy {
            return None;
        }
        let can = nic::xdp_features(self.link.ifindex).ok().flatten();
        let driver = self.driver();
        Some(match (with.options.mode, sockets.zerocopy_errno) {
            (Mode::Copy, _) => "--mode copy".to_owned(),
            (Mode::Generic, _) => "--mode generic".to_owned(),
            _ if mode == Mode::Generic => "frames of a bond are received by its members".to_owned(),
            _ if with.options.driver == DriverKind::XskRs => "--driver xsk-rs".to_owned(),
            _ if program.mode() == XdpMode::Generic => {
                format!("the driver, {driver}, has no XDP")
            }
            _ if can.is_some_and(|acts| acts & XDP_ZEROCOPY == 0) => {
                format!("the driver, {driver}, has no zero-copy AF_XDP")
            }
            (_, Some(errno)) => {
                let error = std::io::Error::from_raw_os_error(errno);
                format!("the driver, {driver}, refused: {error}")
            }
            _ => "not tried".to_owned(),
        })
    }

    fn driver(&self) -> String {
        driver_name(&self.link.name).unwrap_or_else(|| "unknown".to_owned())
    }
}

/// The mode of an interface. A bond attaches the program to its members in native mode, and sockets of the bond receive
/// nothing of what arrives there (`xsk_rcv_check`); in generic mode the program sees the frames of the bond.
fn mode_of(nic: &Nic, mode: Mode) -> Result<Mode, PortError> {
    match mode {
        Mode::Auto if nic.is_bond() => Ok(Mode::Generic),
        Mode::Zerocopy | Mode::Copy if nic.is_bond() => Err(PortError::Unfit(
            "is a bond, whose frames its members receive: use --mode auto or generic".to_owned(),
        )),
        mode => Ok(mode),
    }
}

/// Why an interface that strips VLAN tags cannot be a port.
pub(super) fn strips_tags(nic: &Nic) -> Option<String> {
    let Stripping { off, fixed } = nic::vlan_stripping(nic)?;
    let remedy = match fixed {
        false => format!("switch that off: ethtool -K {off}"),
        true => "its driver cannot switch that off, so it cannot be a port".to_owned(),
    };
    Some(format!(
        "strips VLAN tags, so that packets of a VLAN would be forwarded untagged; {remedy}"
    ))
}
