//! A port of the daemon: from an interface's name to frames in userspace, and back to the kernel.
//!
//! ```text
//! Absent ──link appears──▶ Waiting ──up, fits a frame──▶ Active ──gone, too large──▶ Absent/Waiting
//! ```
//! Whatever is not Active is the kernel's: no XDP program is attached, nothing is lost.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xdp_prog::{VlanSettings, mac_words, vlan_key};

use super::WORKER_TIMEOUT;
use super::crossroads::{Crossroads, worker_of};
use crate::control::config::{Mode, RunOptions};
use crate::control::netdev::irq::Pinned;
use crate::control::netdev::keep::RUN_DIR;
use crate::control::netdev::nic::{
    self, Nic, Queues, Stripping, XDP_BASIC, XDP_MULTI_BUFFER, XDP_ZEROCOPY,
};
use crate::control::netdev::poll::Tuned;
use crate::control::steering::punt::PuntDevice;
use crate::control::steering::{AttachMode, PortProgram, Steering, XdpError, XdpMode};
use crate::io::af_xdp::{AfXdp, BindMode, BoundMode, OpenError, PortConfig, PortInfo, driver_name};
use crate::io::device::{DeviceError, NetDeviceOps};
use crate::say;
use crate::skb::{JUMBO_MTU, MTU_FRAME};
use crate::tables::{Link, Links};
use crate::wire::EtherType;
use crate::worker::WorkerHandle;
use crate::worker::poll::PollMode;

/// How long workers have for what lies in the rings of a port that is given up.
const DRAIN: Duration = Duration::from_millis(5);
/// Pause before a queue that was busy is tried again: one just closed stays busy for a while.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause between two attempts to serve a port is 2^6 seconds.
const RETRY_DOUBLINGS: u32 = 6;

/// Why a port is or is not active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// No interface of that name.
    Absent,
    /// The interface cannot be served as it is; the text says why.
    Waiting(String),
    /// Its frames come to userspace.
    Active,
}

impl State {
    /// As `status` prints it.
    pub fn describe(&self) -> &str {
        match self {
            State::Absent => "absent",
            State::Waiting(why) => why,
            State::Active => "forwarding",
        }
    }
}

/// What activating a port needs.
pub struct Equipment<'a> {
    /// The shared maps.
    pub steering: &'a mut Steering,
    /// The way back to the kernel.
    pub punt: Arc<PuntDevice>,
    /// All workers.
    pub workers: &'a [WorkerHandle<AfXdp>],
    /// What the user asked for.
    pub options: &'a RunOptions,
    /// How many ports there can be.
    pub max_ports: u16,
    /// Most queues of one port that a worker can serve.
    pub rounds: u32,
    /// The workers' CPUs.
    pub cpus: &'a [Option<usize>],
    /// The ways between workers.
    pub crossroads: &'a mut Crossroads,
    /// How often a busy queue is tried; once while running, for it is tried again later.
    pub tries: u32,
}

/// One that was named, or an interface that matches a pattern.
#[derive(Debug)]
pub struct Port {
    /// Number among the workers' ports.
    pub index: u16,
    /// Of its interface.
    pub ifname: String,
    /// A pattern took it.
    pub matched: bool,
    /// Since when its number has been free, if it is.
    pub idle_since: Instant,
    /// It waits for an obstacle to go of which an event will tell.
    obstructed: bool,
    /// 0: absent.
    pub ifindex: u32,
    /// Where it stands.
    pub state: State,
    /// RX queues served.
    pub queues: u32,
    /// Of those the first so many can send.
    pub senders: u32,
    /// What the interface had when it was opened.
    pub(super) had: Option<Queues>,
    /// How the sockets are bound.
    pub bind_mode: Option<BoundMode>,
    /// Why they are not bound zero-copy, when they are not.
    pub no_zerocopy: Option<String>,
    /// Whether packets may take several frames.
    pub multi_buffer: bool,
    /// The attached program.
    pub program: Option<PortProgram>,
    /// The interfaces whose VLANs it has been told; tables change more often than they.
    vlans_of: Option<Arc<Links>>,
    /// What is set of its interface while it is polled.
    tuned: Option<Tuned>,
    /// Where its interrupts went before.
    pub(super) pinned: Option<Pinned>,
    /// Queues that get packets to forward and have no socket, with how many they had got when last
    /// looked at.
    pub(super) unserved: BTreeMap<u32, u64>,
    /// With which the driver refused zero-copy.
    zerocopy_errno: Option<i32>,
    mac: [u8; 6],
    /// With which it was last tried to serve the interface.
    mtu: u32,
    /// Failed attempts in a row, and when the next is due.
    failures: u32,
    retry_at: Instant,
}

impl Port {
    /// A port without an interface.
    pub fn new(index: u16, ifname: &str) -> Port {
        Port {
            index,
            ifname: ifname.to_owned(),
            matched: false,
            idle_since: Instant::now(),
            obstructed: false,
            ifindex: 0,
            state: State::Absent,
            queues: 0,
            senders: 0,
            had: None,
            bind_mode: None,
            no_zerocopy: None,
            multi_buffer: false,
            program: None,
            vlans_of: None,
            tuned: None,
            pinned: None,
            unserved: BTreeMap::new(),
            zerocopy_errno: None,
            mac: [0; 6],
            mtu: 0,
            failures: 0,
            retry_at: Instant::now(),
        }
    }

    /// The same, of an interface that matches a pattern.
    pub fn matched(index: u16, ifname: &str) -> Port {
        Port { matched: true, ..Port::new(index, ifname) }
    }

    /// Whether it is one for people: not only a place that another interface may take.
    pub fn is_listed(&self) -> bool {
        !self.matched || self.state != State::Absent
    }

    /// Its hardware address, as far as it has been known.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Whether a port that could not be served is to be tried again: each time after twice as
    /// long, for some NICs reset their link at every attempt.
    pub fn retry_is_due(&self) -> bool {
        matches!(self.state, State::Waiting(_)) && Instant::now() >= self.retry_at
    }

    /// The same, if no event would tell that it can be served.
    pub fn wants_retry(&self) -> bool {
        self.retry_is_due() && !self.obstructed
    }

    /// Whether an obstacle has gone just now.
    pub fn is_unhindered(&mut self) -> bool {
        std::mem::take(&mut self.obstructed)
    }

    /// Waits for an obstacle to go, which an event will tell. Whether that is news.
    pub fn is_hindered_by(&mut self, why: String) -> bool {
        let state = State::Waiting(why);
        let news = self.state != state;
        (self.state, self.obstructed) = (state, true);
        news
    }

    /// Whether a port that could not be served has another MTU since that was tried.
    pub fn mtu_changed(&self, link: &Link) -> bool {
        matches!(self.state, State::Waiting(_)) && self.mtu != link.mtu
    }

    /// Whether packets have become longer than those it was opened for.
    pub fn is_outgrown(&self, link: &Link) -> bool {
        self.state == State::Active && link.mtu > MTU_FRAME && !self.multi_buffer
    }

    /// Whether its number of queues has changed since it was opened.
    pub fn queues_changed(&self) -> bool {
        self.state == State::Active
            && nic::queues(self.ifindex).is_ok_and(|queues| Some(queues) != self.had)
    }

    /// Why it cannot be served any longer: its interface takes tags off since.
    pub fn spoilt(&self, nics: &[Nic]) -> Option<String> {
        let active = self.state == State::Active;
        strips_tags(nics.iter().find(|nic| active && nic.ifindex == self.ifindex)?)
    }

    /// Why an interface cannot be a port as it is; `None`: it can.
    pub fn obstacle(link: &Link, is_up: bool) -> Option<String> {
        if link.mtu > JUMBO_MTU {
            return Some(format!(
                "MTU {} is larger than {JUMBO_MTU}; lower it: ip link set {} mtu {JUMBO_MTU}",
                link.mtu, link.name
            ));
        }
        (!is_up).then(|| format!("down; bring it up: ip link set {} up", link.name))
    }

    /// Follows a change of the number of queues: new ones get sockets beside those there are. Fewer
    /// there are only after the interface was another one for a while: the kernel lets no queue go
    /// that has a socket (ethnl_set_channels). Then, and when the new ones cannot be served, the port
    /// is given back to the kernel.
    pub fn follow_queues(&mut self, with: &mut Equipment<'_>) {
        let Err(error) = self.extend(with) else { return };
        let why = self.without_name(&error);
        say!("interface {}: {why}; left to the kernel", self.ifname);
        self.deactivate(State::Waiting(why), with);
    }

    /// An error, to stand behind the port's name.
    fn without_name(&self, error: &anyhow::Error) -> String {
        let text = format!("{error:#}");
        let rest = text.strip_prefix("interface ").unwrap_or(&text).strip_prefix(&self.ifname);
        let rest = rest.and_then(|rest| rest.strip_prefix(": ").or(rest.strip_prefix(' ')));
        rest.unwrap_or(&text).to_owned()
    }

    fn extend(&mut self, with: &mut Equipment<'_>) -> Result<()> {
        let channels = nic::queues(self.ifindex)
            .with_context(|| format!("{}: cannot read the number of its queues", self.ifname))?;
        let served = self.queues_served(self.ifindex, channels, with)?;
        if served < self.queues {
            bail!("{} has fewer queues than before", self.ifname);
        }
        for queue in self.queues..served {
            let (_, socket) = self.open_socket(queue, with)?;
            // What has a socket is closed with the port.
            self.queues = queue + 1;
            if let Some(program) = &self.program {
                program.set_socket(queue, socket)?;
            }
        }
        self.senders = served.min(channels.tx);
        self.had = Some(channels);
        with.crossroads.lead(self.index, self.senders, with.workers)?;
        self.unserved.clear();
        self.restore_irqs();
        self.pin(with);
        if self.bind_mode == Some(BoundMode::Copy) { self.attach_again(with) } else { Ok(()) }
    }

    /// A veth runs the program on the queues that it had when the program was attached, and on no
    /// others (`veth_enable_range_safe` leaves their `xdp_prog` out). Until [`Port::steer`] the kernel
    /// has what arrives.
    fn attach_again(&mut self, with: &mut Equipment<'_>) -> Result<()> {
        (self.program, self.vlans_of) = (None, None);
        let mode = attach_mode(with.options.mode);
        let (ifindex, mac) = (self.ifindex, self.mac);
        let program = with.steering.attach(ifindex, &self.ifname, mac, mode, self.multi_buffer)?;
        for queue in 0..self.queues {
            let n = worker_of(queue, with.workers.len());
            let slot = self.slot(queue, with);
            let fd = with.workers[n]
                .call(WORKER_TIMEOUT, move |io, _, _| {
                    Some(io.socket_fd(slot)?.try_clone_to_owned())
                })
                .with_context(|| format!("worker {n} does not answer"))?;
            program.set_socket(queue, fd.context("the socket is gone")??)?;
        }
        self.program = Some(program);
        Ok(())
    }

    /// Attaches the program, opens a socket on every queue, and directs the queues to them. Frames
    /// are steered only after [`Port::steer`]. On failure everything is as before.
    pub fn activate(&mut self, link: &Link, with: &mut Equipment<'_>) -> Result<()> {
        self.failures = (self.failures + 1).min(RETRY_DOUBLINGS);
        self.retry_at = Instant::now() + Duration::from_secs(1 << self.failures);
        self.mtu = link.mtu;
        let (channels, queues) = self.look(link, with).inspect_err(|error| {
            self.state = State::Waiting(self.without_name(error));
        })?;
        let attach = attach_mode(with.options.mode);
        self.ifindex = link.ifindex;
        self.mac = link.mac;
        self.had = Some(channels);
        self.queues = queues;
        // A socket sends by a TX queue of its own queue's number, and there may be fewer of those.
        self.senders = queues.min(channels.tx);
        match self.attach(attach, link, with) {
            Ok(program) => {
                self.no_zerocopy = self.why_copy(&program, with);
                self.program = Some(program);
                if with.options.poll == PollMode::Busy {
                    self.tune();
                }
                self.pin(with);
                self.state = State::Active;
                self.failures = 0;
                Ok(())
            }
            Err(error) => {
                self.deactivate(State::Waiting(self.without_name(&error)), with);
                Err(error)
            }
        }
    }

    /// Sockets first: some drivers fill their rings when the program is attached (igb), and the
    /// fill rings are full by then.
    fn attach(
        &mut self,
        mode: AttachMode,
        link: &Link,
        with: &mut Equipment<'_>,
    ) -> Result<PortProgram> {
        let long = link.mtu > MTU_FRAME;
        self.multi_buffer = long;
        let sockets = self.open_sockets(with).and_then(|sockets| match long {
            true if !self.multi_buffer => bail!(
                "interface {name}: MTU {} is larger than a frame holds, and {}; lower it: ip link set \
                 {name} mtu {MTU_FRAME}",
                link.mtu,
                match self.bind_mode {
                    Some(BoundMode::ZeroCopy) => "its zero-copy sockets take one frame a packet",
                    _ => "AF_XDP sockets of packets of several need Linux 6.6",
                },
                name = self.ifname
            ),
            _ => {
                with.crossroads.lead(self.index, self.senders, with.workers)?;
                Ok(sockets)
            }
        });
        // Attached in any case: whose program is there already says more than "busy".
        let program = with.steering.attach(link.ifindex, &self.ifname, link.mac, mode, long);
        let (program, sockets) = match (program, sockets) {
            (
                Err(taken @ (XdpError::ForeignProgram { .. } | XdpError::AlreadyRunning { .. })),
                _,
            ) => {
                return Err(taken.into());
            }
            (program, sockets) => {
                let sockets = sockets?;
                (program?, sockets)
            }
        };
        for (queue, socket) in (0..).zip(sockets) {
            program.set_socket(queue, socket)?;
        }
        with.punt.add_port(link.ifindex, link.mac, program.mode() == XdpMode::Generic)?;
        Ok(program)
    }

    /// The queues that an interface has and those to be served, if it can be.
    fn look(&self, link: &Link, with: &Equipment<'_>) -> Result<(Queues, u32)> {
        self.refuse_unfit(link, with)?;
        let channels = nic::queues(link.ifindex)
            .with_context(|| format!("{}: cannot read the number of its queues", self.ifname))?;
        Ok((channels, self.queues_served(link.ifindex, channels, with)?))
    }

    /// What an interface must be, beside up and small enough.
    fn refuse_unfit(&self, link: &Link, with: &Equipment<'_>) -> Result<()> {
        let name = &self.ifname;
        let nics = nic::read().with_context(|| format!("{name}: cannot be looked at"))?;
        let nic = nics.iter().find(|nic| nic.ifindex == link.ifindex);
        let nic = nic.with_context(|| format!("interface {name} is gone"))?;
        let unfit = if !nic.is_ethernet() || name == with.punt.name() {
            Some("is not an Ethernet interface that packets could be forwarded by".to_owned())
        } else if nic.master.is_some() {
            Some("belongs to a bridge, bond or VRF, which takes its packets".to_owned())
        } else if nic.kind.as_deref() == Some("vlan") {
            let lower = nics.iter().find(|other| Some(other.ifindex) == nic.lower);
            let lower = lower.map_or("the interface it sits on", |lower| &lower.name);
            Some(format!("is a VLAN: name {lower} instead, and its VLANs come along"))
        } else {
            strips_tags(nic).or_else(|| self.too_long(link, with))
        };
        unfit.map_or(Ok(()), |why| bail!("interface {name} {why}"))
    }

    /// Why its packets are too long for the driver; `None`: they are not.
    fn too_long(&self, link: &Link, with: &Equipment<'_>) -> Option<String> {
        if link.mtu <= MTU_FRAME || with.options.mode == Mode::Generic {
            return None;
        }
        let can = nic::xdp_features(link.ifindex).ok().flatten()?;
        if can & XDP_BASIC == 0 || can & XDP_MULTI_BUFFER != 0 {
            return None;
        }
        let (name, driver) = (&self.ifname, driver_name(&self.ifname));
        Some(format!(
            "has an MTU of {}, and its driver, {}, no XDP for packets of several buffers; lower it: \
             ip link set {name} mtu {MTU_FRAME}, or use --mode generic",
            link.mtu,
            driver.unwrap_or_else(|| "unknown".to_owned())
        ))
    }

    /// Queue `q` belongs to worker `q % workers`; its first queue of a port is also the one that a
    /// worker sends by, if it can send.
    fn open_sockets(&mut self, with: &Equipment<'_>) -> Result<Vec<OwnedFd>> {
        let mut sockets = Vec::new();
        for queue in 0..self.queues {
            let (info, fd) = self.open_socket(queue, with)?;
            sockets.push(fd);
            self.bind_mode = Some(info.mode);
            self.multi_buffer = info.multi_buffer;
            self.zerocopy_errno = info.no_zerocopy;
        }
        Ok(sockets)
    }

    /// Waiting for a busy queue is done here, not on the worker: it has other ports to serve.
    fn open_socket(&self, queue: u32, with: &Equipment<'_>) -> Result<(PortInfo, OwnedFd)> {
        let mode = match with.options.mode {
            Mode::Auto => BindMode::Auto,
            Mode::Zerocopy => BindMode::ZeroCopy,
            Mode::Copy | Mode::Generic => BindMode::Copy,
        };
        let config = PortConfig {
            ifname: self.ifname.clone(),
            ifindex: self.ifindex,
            queue,
            mode,
            multi_buffer: self.multi_buffer,
            zerocopy_segments: match self.multi_buffer {
                true => nic::zerocopy_segments(self.ifindex).ok().flatten().unwrap_or(1),
                false => 1,
            },
        };
        let n = worker_of(queue, with.workers.len());
        let slot = self.slot(queue, with);
        let mut tries = with.tries;
        loop {
            tries = tries.saturating_sub(1);
            let config = config.clone();
            let opened = with.workers[n].call(WORKER_TIMEOUT, move |io, pool, stats| {
                io.device(slot, config, pool, stats).open()?;
                let info = io.port_info(slot).context("the socket is gone again")?;
                let fd = io.socket_fd(slot).context("the socket is gone again")?;
                Ok::<(PortInfo, OwnedFd), anyhow::Error>((info, fd.try_clone_to_owned()?))
            });
            match opened.with_context(|| format!("worker {n} does not answer"))? {
                Err(error) if tries > 0 && is_busy(&error) => std::thread::sleep(BUSY_PAUSE),
                opened => return opened,
            }
        }
    }

    /// The place of a queue in its worker's driver.
    fn slot(&self, queue: u32, with: &Equipment<'_>) -> u16 {
        let round = queue as usize / with.workers.len();
        self.index + (round * usize::from(with.max_ports)) as u16
    }

    /// Lets the port's frames through a punt device.
    pub fn admit(&self, punt: &PuntDevice) -> Result<()> {
        let generic = self.program.as_ref().is_some_and(|p| p.mode() == XdpMode::Generic);
        Ok(punt.add_port(self.ifindex, self.mac, generic)?)
    }

    /// Lets the program steer a family, or leaves it to the kernel.
    pub fn steer(&mut self, ipv4: bool, ipv6: bool) -> Result<()> {
        match &mut self.program {
            Some(program) => Ok(program.set_steer(ipv4, ipv6)?),
            None => Ok(()),
        }
    }

    /// Lets the program steer frames of the VLANs that are followed, and those with VID 0, which are
    /// the port's own. What cannot be told it stays with the kernel.
    pub fn steer_vlans(&mut self, links: &Arc<Links>) -> Result<()> {
        let Some(program) = &mut self.program else { return Ok(()) };
        if self.vlans_of.as_ref().is_some_and(|told| Arc::ptr_eq(told, links)) {
            return Ok(());
        }
        let mac = mac_words(self.mac);
        let own = VlanSettings { mac, between: mac };
        let mut wanted = BTreeMap::from(
            [EtherType::VLAN, EtherType::QINQ].map(|tpid| (vlan_key([(tpid.0, 0)]), own)),
        );
        for link in links.iter().filter(|link| link.port == Some(self.index)) {
            let Some(vlan) = &link.vlan else { continue };
            let tags = vlan.tags.iter().map(|egress| (egress.tag.tpid().0, egress.tag.vid()));
            let mac = mac_words(link.mac);
            let between = vlan.between.map_or(mac, mac_words);
            wanted.insert(vlan_key(tags), VlanSettings { mac, between });
        }
        self.vlans_of = None;
        program.set_vlans(&wanted)?;
        self.vlans_of = Some(Arc::clone(links));
        Ok(())
    }

    /// Follows a change of the MAC address.
    pub fn follow(&mut self, link: &Link, punt: &PuntDevice) -> Result<()> {
        if let Some(program) = &mut self.program
            && self.mac != link.mac
        {
            program.set_mac(link.mac)?;
            punt.add_port(link.ifindex, link.mac, program.mode() == XdpMode::Generic)?;
            self.mac = link.mac;
        }
        Ok(())
    }

    /// Gives the interface back to the kernel.
    pub fn deactivate(&mut self, state: State, with: &Equipment<'_>) {
        self.restore_polling();
        self.restore_irqs();
        self.unserved.clear();
        // First the program: from here on the kernel has every frame that arrives. What has
        // arrived before is forwarded meanwhile.
        if self.program.take().is_some() {
            std::thread::sleep(DRAIN);
        }
        for queue in 0..self.queues {
            let worker = &with.workers[worker_of(queue, with.workers.len())];
            let slot = self.slot(queue, with);
            // A worker that does not answer is stopping, and closes its sockets itself.
            let _ = worker
                .call(WORKER_TIMEOUT, move |io, pool, stats| io.remove_port(slot, pool, stats));
        }
        if self.ifindex != 0 {
            let _ = with.punt.remove_port(self.ifindex);
        }
        self.ifindex = 0;
        (self.queues, self.senders, self.had) = (0, 0, None);
        self.bind_mode = None;
        self.no_zerocopy = None;
        self.multi_buffer = false;
        self.vlans_of = None;
        self.idle_since = Instant::now();
        self.state = state;
    }

    /// The driver's interrupts give way to the worker's polls. Where that cannot be had, polling
    /// goes on beside them.
    fn tune(&mut self) {
        match Tuned::apply(Path::new(RUN_DIR), &self.ifname, self.ifindex) {
            Ok(tuned) => self.tuned = Some(tuned),
            Err(error) => say!("interface {}: interrupts stay as they are: {error}", self.ifname),
        }
    }

    /// NAPI instances that came since are set as the others.
    pub fn refresh_polling(&mut self) {
        let Some(tuned) = &mut self.tuned else { return };
        if let Err(error) = tuned.refresh() {
            say!("interface {}: interrupts stay as they are: {error}", self.ifname);
            self.restore_polling();
        }
    }

    /// Puts back what was set while it was polled.
    pub fn restore_polling(&mut self) {
        let Some(Err(error)) = self.tuned.take().map(Tuned::restore) else { return };
        say!(
            "interface {}: cannot put back what was set for polling: {error}; the next start tries \
             again",
            self.ifname
        );
    }

    /// Why sockets that are bound are not zero-copy.
    fn why_copy(&self, program: &PortProgram, with: &Equipment<'_>) -> Option<String> {
        if self.bind_mode == Some(BoundMode::ZeroCopy) {
            return None;
        }
        let driver = driver_name(&self.ifname).unwrap_or_else(|| "unknown".to_owned());
        let can = nic::xdp_features(self.ifindex).ok().flatten();
        Some(match (with.options.mode, self.zerocopy_errno) {
            (Mode::Copy, _) => "--mode copy".to_owned(),
            (Mode::Generic, _) => "--mode generic".to_owned(),
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
}

fn attach_mode(mode: Mode) -> AttachMode {
    match mode {
        Mode::Auto => AttachMode::Auto,
        Mode::Zerocopy | Mode::Copy => AttachMode::Native,
        Mode::Generic => AttachMode::Generic,
    }
}

fn is_busy(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(DeviceError::Open(OpenError::Busy { .. })))
}

fn strips_tags(nic: &Nic) -> Option<String> {
    let Stripping { off, fixed } = nic::vlan_stripping(nic)?;
    let remedy = match fixed {
        false => format!("switch that off: ethtool -K {off}"),
        true => "its driver does not let that be switched off, so it cannot be a port".to_owned(),
    };
    Some(format!(
        "strips VLAN tags, so that packets of a VLAN would be forwarded as untagged ones; {remedy}"
    ))
}
