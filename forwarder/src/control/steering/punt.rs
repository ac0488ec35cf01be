//! The punt device: returns a received frame that userspace must not handle to the kernel.
//!
//! A TAP device that carries nothing else. [`PuntDevice::inject`] writes the port's ifindex into
//! the frame's destination MAC and the frame to the TAP; the classifier `ferroute_punt` on its
//! ingress restores the port's MAC and redirects the frame to the port's ingress. The kernel then
//! treats it as received on the port: routing rules, netfilter and reverse-path filter of that port
//! apply. (xdp-prog contains the layout and the program.)
//!
//! Not done here: checksums. The driver's checksum information is lost, so checksums must be
//! complete in the frame.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};

use libbpf_rs::{MapCore, MapFlags, MapHandle, TC_INGRESS, TcHook};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tappers::{Interface, Tap};
use xdp_prog::{PUNT_DESTINATION, PuntPort};

use crate::control::steering::{Steering, XdpError, with_log};

/// The kernel replaces %d by the first free number.
const NAME: &str = "ferroute%d";

/// Length of an Ethernet header in octets: the minimum length of a frame.
const ETH_HLEN: usize = 14;

/// Whether the name matches that of a punt device.
pub fn is_own(name: &str) -> bool {
    let number = name.strip_prefix(NAME.trim_end_matches("%d")).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|octet| octet.is_ascii_digit())
}

/// Errors of the punt device.
#[derive(Debug, thiserror::Error)]
pub enum PuntError {
    /// The TAP device cannot be created.
    #[error("cannot create a TAP device: {0}; {advice}", advice = tun_advice(.0))]
    Create(io::Error),
    /// The device cannot be configured.
    #[error("cannot set up the TAP device {name}: {source}")]
    SetUp {
        /// The device.
        name: String,
        /// The kernel's errno.
        source: io::Error,
    },
    /// The classifier cannot be attached.
    #[error("cannot attach the classifier to {name}: {source}{}\n{log}", classifier_advice(source))]
    Classifier {
        /// The device.
        name: String,
        /// libbpf's error.
        source: libbpf_rs::Error,
        /// libbpf's log.
        log: String,
    },
    /// The table of ports could not be written.
    #[error(transparent)]
    Ports(#[from] XdpError),
}

/// What to do if /dev/net/tun cannot be opened or creates no device.
pub fn tun_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "modprobe tun; a container needs the device (--device /dev/net/tun), a custom \
             kernel needs CONFIG_TUN"
        }
        Some(libc::EACCES) => {
            "let this user open it (chmod 0666 /dev/net/tun, the default of udev: creating a device \
             requires CAP_NET_ADMIN in any case), or run as root"
        }
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit on open files (ulimit -n)",
        Some(libc::EPERM) => {
            "CAP_NET_ADMIN is needed, and a container or service needs access to the device \
             (--device /dev/net/tun, DeviceAllow=/dev/net/tun rw)"
        }
        _ => "see whether another program can make one: ip tuntap add mode tap",
    }
}

fn classifier_advice(source: &libbpf_rs::Error) -> &'static str {
    use libbpf_rs::ErrorKind::{InvalidInput, NotFound, Unsupported};
    match source.kind() {
        InvalidInput | NotFound | Unsupported => "; the modules sch_ingress and cls_bpf are needed",
        _ => "",
    }
}

/// The device. It is removed when this is dropped, or when the process ends.
pub struct PuntDevice {
    tap: Tap,
    name: String,
    ports: MapHandle,
    /// The ports in the map `ports`, by ifindex.
    admitted: Mutex<BTreeSet<u32>>,
    punt_source: [u8; 6],
}

impl std::fmt::Debug for PuntDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PuntDevice").field("name", &self.name).finish_non_exhaustive()
    }
}

impl PuntDevice {
    /// Creates the device in this thread's network namespace.
    ///
    /// # Errors
    /// [`PuntError`], each with what is missing.
    pub fn open(steering: &Steering) -> Result<PuntDevice, PuntError> {
        let tap = Interface::new(NAME).and_then(Tap::new_named).map_err(PuntError::Create)?;
        let interface = tap.name().map_err(PuntError::Create)?;
        let name = interface.name().to_string_lossy().into_owned();
        let set_up = |source| PuntError::SetUp { name: name.clone(), source };
        let ifindex = interface.index().map_err(set_up)?;
        configure(ifindex).map_err(set_up)?;
        let (attached, log) = with_log(|| attach(steering, ifindex));
        attached.map_err(|source| PuntError::Classifier { name: name.clone(), source, log })?;
        let ports = MapHandle::try_from(steering.punt_ports())
            .map_err(|source| XdpError::map("open", steering.punt_ports(), source))?;
        let (admitted, punt_source) = (Mutex::default(), steering.punt_source());
        Ok(PuntDevice { tap, name, ports, admitted, punt_source })
    }

    /// The device's name, "ferroute0" if that was free.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Permits frames of a port, or changes its MAC. `generic`: the port's XDP program runs in
    /// generic mode, so it receives the frames again and has to recognise them.
    ///
    /// # Errors
    /// [`PuntError::Ports`].
    pub fn add_port(&self, ifindex: u32, mac: [u8; 6], generic: bool) -> Result<(), PuntError> {
        let port = PuntPort { mac, punt_source: self.punt_source, mark_source: u32::from(generic) };
        self.ports
            .update(&ifindex.to_ne_bytes(), &port.to_bytes(), MapFlags::ANY)
            .map_err(|source| XdpError::map("add a port to", &self.ports, source))?;
        self.admitted().insert(ifindex);
        Ok(())
    }

    /// Drops frames of a port from now on; no effect if it was not added.
    ///
    /// # Errors
    /// [`PuntError::Ports`].
    pub fn remove_port(&self, ifindex: u32) -> Result<(), PuntError> {
        self.admitted().remove(&ifindex);
        match self.ports.delete(&ifindex.to_ne_bytes()) {
            Err(e) if e.kind() != libbpf_rs::ErrorKind::NotFound => {
                Err(XdpError::map("remove a port from", &self.ports, e).into())
            }
            _ => Ok(()),
        }
    }

    /// Passes a frame, starting at its Ethernet header, to the kernel as received on the port
    /// `ifindex`. Overwrites its destination MAC. One system call; may be called from any thread.
    /// On success the kernel has accepted the frame.
    ///
    /// # Errors
    /// InvalidInput for less than an Ethernet header; NotFound for a port that was not added, or
    /// was removed; errors of write(2) to the TAP, mostly ENOMEM.
    pub fn inject(&self, ifindex: u32, frame: &mut [u8]) -> io::Result<()> {
        if frame.len() < ETH_HLEN {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // The classifier would drop it silently.
        if !self.admitted().contains(&ifindex) {
            return Err(io::ErrorKind::NotFound.into());
        }
        frame[..2].copy_from_slice(&PUNT_DESTINATION);
        frame[2..6].copy_from_slice(&ifindex.to_be_bytes());
        self.tap.send(frame).map(|_| ())
    }

    fn admitted(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        // No thread panics while it holds the lock.
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Attaches the punt program to the device's ingress. It is removed with the device.
fn attach(steering: &Steering, ifindex: u32) -> libbpf_rs::Result<()> {
    let ifindex =
        i32::try_from(ifindex).map_err(|_| libbpf_rs::Error::from_raw_os_error(libc::ENODEV))?;
    let mut hook = TcHook::new(steering.punt_program());
    hook.ifindex(ifindex).attach_point(TC_INGRESS).handle(1).priority(1);
    hook.create()?;
    hook.attach()?;
    Ok(())
}

/// Brings the device up so that it sends nothing of its own: no IPv6 address, hence no router
/// solicitation, and no ARP.
fn configure(ifindex: u32) -> io::Result<()> {
    let inet6 = vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])];
    let quiet = link(ifindex, LinkFlags::Noarp, vec![LinkAttribute::AfSpecUnspec(inet6)]);
    match request(quiet) {
        // A kernel without IPv6, or with IPv6 disabled for new devices, rejects the setting.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EINVAL)) => {}
        other => other?,
    }
    request(link(ifindex, LinkFlags::Up | LinkFlags::Noarp, Vec::new()))
}

fn link(ifindex: u32, flags: LinkFlags, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.flags = flags;
    message.header.change_mask = flags;
    message.attributes = attributes;
    message
}

/// Sends one RTM_NEWLINK and reads the kernel's reply.
fn request(message: LinkMessage) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut message =
        NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::NewLink(message)));
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    socket.send(&buffer, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    match answer.payload {
        // The acknowledgement is an error message with code 0.
        NetlinkPayload::Error(e) if e.code.is_some() => Err(e.to_io()),
        _ => Ok(()),
    }
}
