//! The XDP program: loading, attaching, and the maps that determine what is steered.
//!
//! One [`Steering`] for the process holds what all ports share: the router's own addresses and the
//! punt program. Each port gets its own instance of the XDP program ([`PortProgram`]) with its own
//! sockets, settings and counters. A port's program steers nothing until a socket is set and
//! steering is enabled. All of it is removed when it is dropped, or when the process ends.
//!
//! `xdp-prog` contains the rules. The code that fills the maps from netlink is elsewhere.

mod error;
mod flow_gate;
mod object;
mod offload;
mod port;
pub mod punt;
mod redirects;
mod sa_gate;

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
pub use xdp_prog::SaGateKey;
use xdp_prog::SharedSettings;

pub(crate) use self::error::Refusal;
pub use self::error::XdpError;
pub use self::flow_gate::{FlowGate, FlowWords};
use self::object::Shared;
pub(crate) use self::object::with_log;
pub use self::offload::{
    Action, EntryView, Hop, NextHops, NotEntered, OffloadTable, OffloadedEntries, hashed,
};
use self::port::PortId;
pub use self::port::{AttachMode, PortProgram, QueueCounts, Witness, XdpMode, program_name};
pub use self::redirects::RedirectFailures;
use self::sa_gate::SaGate;
use crate::io::af_xdp::HeartbeatPage;
use crate::io::af_xdp::mapped_words::MappedWords;
use crate::tables::{Epochs, epochs};

/// The state that all ports share.
#[derive(Debug)]
pub struct Steering {
    shared: Arc<Shared>,
    settings: SharedSettings,
    heartbeats: Arc<HeartbeatPage>,
    local4: BTreeSet<(Ipv4Addr, u8)>,
    local6: BTreeSet<(Ipv6Addr, u8)>,
    sa_gate: SaGate,
    punt_source: [u8; 6],
}

impl Steering {
    /// Loads the shared maps and the punt program. No flow can be offloaded.
    ///
    /// # Errors
    /// [`XdpError::NotPermitted`] without CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN;
    /// [`XdpError::Load`] with libbpf's log if the kernel rejects the object.
    pub fn new() -> Result<Steering, XdpError> {
        Steering::with_offload(0)
    }

    /// The same with room for offloaded flows, each of which is one direction.
    ///
    /// # Errors
    /// As [`Steering::new`].
    pub fn with_offload(offloaded: usize) -> Result<Steering, XdpError> {
        let shared = Arc::new(Shared::load(offloaded)?);
        let heartbeats = HeartbeatPage::map(shared.heartbeats.as_fd());
        let steering = Steering {
            heartbeats: heartbeats.map_err(XdpError::Heartbeats)?,
            shared,
            settings: SharedSettings {
                flags: SharedSettings::WIDE4 | SharedSettings::WIDE6,
                worker_timeout_ns: SharedSettings::NO_TIMEOUT_NS,
                control_timeout_ns: SharedSettings::NO_TIMEOUT_NS,
                ..SharedSettings::default()
            },
            local4: BTreeSet::new(),
            local6: BTreeSet::new(),
            sa_gate: SaGate::default(),
            punt_source: new_punt_source(),
        };
        steering.store_settings()?;
        Ok(steering)
    }

    /// Attaches a new instance of the program to a port, see [`Attacher::attach`].
    ///
    /// # Errors
    /// As for [`Attacher::attach`].
    pub fn attach(
        &mut self,
        ifindex: u32,
        ifname: &str,
        mac: [u8; 6],
        mode: AttachMode,
        multi_buffer: bool,
    ) -> Result<PortProgram, XdpError> {
        self.attacher().attach(ifindex, ifname, mac, mode, multi_buffer)
    }

    /// Returns an attacher, for a thread that may wait for drivers.
    #[must_use]
    pub fn attacher(&self) -> Attacher {
        Attacher { shared: Arc::clone(&self.shared), punt_source: self.punt_source }
    }

    /// Sets the router's own IPv4 addresses: the whole set, each with its prefix length (32 for an
    /// address, including broadcast addresses; shorter for local routes of a prefix). Only changes
    /// are written.
    ///
    /// # Errors
    /// [`XdpError::Map`]; earlier changes remain written, and the next call continues from there.
    pub fn set_local4(&mut self, wanted: &BTreeSet<(Ipv4Addr, u8)>) -> Result<(), XdpError> {
        let prefixes = wanted.iter().any(|(_, len)| *len < 32);
        // Enable trie lookups before the trie is filled, and disable them after it is empty.
        if prefixes {
            self.set_flag(SharedSettings::PREFIXES4, true)?;
        }
        let maps = LocalMaps { full: &self.shared.local4, prefix: &self.shared.local_prefix4 };
        sync(&maps, &mut self.local4, wanted, |a| a.octets())?;
        self.set_flag(SharedSettings::PREFIXES4, prefixes)
    }

    /// Sets the router's own IPv6 addresses, in the same way as [`Steering::set_local4`] (128 for
    /// an address).
    ///
    /// # Errors
    /// The same as for [`Steering::set_local4`].
    pub fn set_local6(&mut self, wanted: &BTreeSet<(Ipv6Addr, u8)>) -> Result<(), XdpError> {
        let prefixes = wanted.iter().any(|(_, len)| *len < 128);
        if prefixes {
            self.set_flag(SharedSettings::PREFIXES6, true)?;
        }
        let maps = LocalMaps { full: &self.shared.local6, prefix: &self.shared.local_prefix6 };
        sync(&maps, &mut self.local6, wanted, |a| a.octets())?;
        self.set_flag(SharedSettings::PREFIXES6, prefixes)
    }

    /// Sets how long heartbeats of a worker and of the control thread are valid. Forever at start.
    ///
    /// # Errors
    /// [`XdpError::Map`].
    pub fn set_timeouts(&mut self, worker: Duration, control: Duration) -> Result<(), XdpError> {
        let longest = SharedSettings::NO_TIMEOUT_NS;
        let ns = |limit: Duration| u64::try_from(limit.as_nanos()).unwrap_or(longest).min(longest);
        self.settings.worker_timeout_ns = ns(worker);
        self.settings.control_timeout_ns = ns(control);
        self.store_settings()
    }

    /// The handle by which threads update their heartbeats.
    #[must_use]
    pub fn heartbeats(&self) -> &Arc<HeartbeatPage> {
        &self.heartbeats
    }

    /// Sets the SAs whose packets to the router itself are steered, of all ports: the whole set; none at start. Those
    /// that are gone are removed before new ones are added, and only changes are written. Returns how many found no
    /// place ([`xdp_prog::IPSEC_SAS_MAX`]): their packets stay with the kernel. Frames that were steered before may still be
    /// in the RX rings.
    ///
    /// # Errors
    /// The same as for [`Steering::set_local4`].
    pub fn set_ipsec_sas(
        &mut self,
        keys: impl IntoIterator<Item = SaGateKey>,
    ) -> Result<usize, XdpError> {
        let wanted = keys.into_iter().collect();
        let left_out = self.sa_gate.set(&self.shared.ipsec_sas, &wanted);
        // Also after an error: the map may have got its first key, or lost its last one.
        let flag = self.set_flag(SharedSettings::IPSEC_SAS, !self.sa_gate.is_empty());
        let left_out = left_out?;
        flag.map(|()| left_out)
    }

    /// Sets whether only packets of known flows ([`Steering::flow_gate`]) are steered, of IPv4 and of
    /// IPv6, on all ports.
    /// Off at start. Takes effect with one write for all ports; a port attached later follows it
    /// from its first frame. Frames that were steered before may still be in the RX rings.
    ///
    /// # Errors
    /// [`XdpError::Map`].
    pub fn set_tracking(&mut self, [ipv4, ipv6]: [bool; 2]) -> Result<(), XdpError> {
        self.set_flags(&[
            (SharedSettings::TRACK4, ipv4),
            (SharedSettings::TRACK6, ipv6),
            (SharedSettings::WIDE4, !ipv4),
            (SharedSettings::WIDE6, !ipv6),
        ])
    }

    /// The writer of the offloaded flows. There must be one.
    ///
    /// # Errors
    /// [`XdpError::FlowGate`] when their memory cannot be mapped.
    pub fn offload_table(&self) -> Result<OffloadTable, XdpError> {
        OffloadTable::new(&self.shared.offload)
    }

    /// What offloaded flows depend on.
    ///
    /// # Errors
    /// As [`Steering::offload_table`].
    pub fn epochs(&self) -> Result<Epochs, XdpError> {
        let map = self.shared.offload.epochs.as_fd();
        let memory = MappedWords::map(map, epochs::WORDS).map_err(XdpError::FlowGate)?;
        Ok(Epochs::new(Box::new(memory)))
    }

    /// Has offloaded flows that leave by a port leave by an interface; `None`: by none.
    ///
    /// # Errors
    /// [`XdpError::Map`].
    pub fn set_tx_port(&self, port: u16, ifindex: Option<u32>) -> Result<(), XdpError> {
        let maps = &self.shared.offload.tx_ports;
        maps.iter().try_for_each(|map| offload::set_tx_port(map, port, ifindex))
    }

    /// Counts frames that are redirected to ports and not sent, from now on.
    ///
    /// # Errors
    /// [`XdpError::RedirectFailures`] when the kernel cannot tell.
    pub fn redirect_failures(&self) -> Result<RedirectFailures, XdpError> {
        RedirectFailures::watch(&self.shared.offload.tx_ports)
    }

    /// The handle by which a thread adds and removes known flows: there must be one. There are no flows when it has been
    /// made, and they do not depend on [`Steering::set_tracking`].
    ///
    /// # Errors
    /// [`XdpError::Descriptors`].
    pub fn flow_gate(&self) -> Result<FlowGate, XdpError> {
        FlowGate::new(&self.shared.flows)
    }

    pub(super) fn punt_program(&self) -> BorrowedFd<'_> {
        self.shared.punt_program.as_fd()
    }

    pub(super) fn punt_ports(&self) -> &MapHandle {
        &self.shared.punt_ports
    }

    /// The source MAC by which a generic-mode program recognises a frame that userspace punted.
    pub(super) fn punt_source(&self) -> [u8; 6] {
        self.punt_source
    }

    fn set_flag(&mut self, flag: u32, on: bool) -> Result<(), XdpError> {
        self.set_flags(&[(flag, on)])
    }

    /// Sets or clears flags with one write.
    fn set_flags(&mut self, changes: &[(u32, bool)]) -> Result<(), XdpError> {
        let apply =
            |flags, (flag, on): &(u32, bool)| if *on { flags | flag } else { flags & !flag };
        let flags = changes.iter().fold(self.settings.flags, apply);
        if flags == self.settings.flags {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.settings.flags, flags);
        // After an error the next call has to write it.
        self.store_settings().inspect_err(|_| self.settings.flags = before)
    }

    fn store_settings(&self) -> Result<(), XdpError> {
        let value = self.settings.to_bytes();
        self.shared
            .settings
            .update(&0u32.to_ne_bytes(), &value, MapFlags::ANY)
            .map_err(|source| XdpError::map("write", &self.shared.settings, source))
    }
}

/// Attaches programs to ports. Some drivers reset their link meanwhile, which takes seconds.
#[derive(Debug, Clone)]
pub struct Attacher {
    shared: Arc<Shared>,
    punt_source: [u8; 6],
}

impl Attacher {
    /// Attaches a new instance of the program to the port `ifindex` of this thread's network
    /// namespace. `mac` is the port's address: frames to other addresses stay with the kernel.
    ///
    /// # Errors
    /// [`XdpError::AlreadyRunning`] or [`XdpError::ForeignProgram`] if the port has an XDP program;
    /// [`XdpError::NativeRefused`] or [`XdpError::Attach`] if the kernel rejects ours.
    pub fn attach(
        &self,
        ifindex: u32,
        ifname: &str,
        mac: [u8; 6],
        mode: AttachMode,
        multi_buffer: bool,
    ) -> Result<PortProgram, XdpError> {
        let port = PortId { ifindex, ifname, mac };
        match self.load_and_attach(&port, mode, multi_buffer) {
            // Because of its MTU, or on a veth its peer's, which the driver supports with a
            // multi-buffer program.
            Err(refused) if !multi_buffer && refused.is_of_mtu() => {
                self.load_and_attach(&port, mode, true).map_err(|_| refused)
            }
            attached => attached,
        }
    }

    fn load_and_attach(
        &self,
        port: &PortId<'_>,
        mode: AttachMode,
        frags: bool,
    ) -> Result<PortProgram, XdpError> {
        PortProgram::attach(&self.shared, self.punt_source, port, mode, frags)
    }
}

/// A locally administered MAC that no neighbour can guess: with it, a neighbour could make a port
/// in generic mode leave frames to the kernel.
fn new_punt_source() -> [u8; 6] {
    let [a, b, c, d, ..] = RandomState::new().hash_one("punt source").to_ne_bytes();
    [0x02, 0xfe, a, b, c, d]
}

struct LocalMaps<'a> {
    full: &'a MapHandle,
    prefix: &'a MapHandle,
}

/// Changes the maps from `have` to `wanted`, and updates `have` at each step.
fn sync<A: Copy + Ord, const N: usize>(
    maps: &LocalMaps<'_>,
    have: &mut BTreeSet<(A, u8)>,
    wanted: &BTreeSet<(A, u8)>,
    octets: impl Fn(A) -> [u8; N],
) -> Result<(), XdpError> {
    let entry = |(address, len): (A, u8)| -> (&MapHandle, Vec<u8>) {
        let address = octets(address);
        if usize::from(len) < 8 * N {
            // struct bpf_lpm_trie_key_u8
            (maps.prefix, [&u32::from(len).to_ne_bytes()[..], &address].concat())
        } else {
            (maps.full, address.to_vec())
        }
    };
    // Add before removing: an address whose prefix length changes is never missing.
    for new in wanted.difference(&have.clone()) {
        let (map, key) = entry(*new);
        map.update(&key, &[1], MapFlags::ANY)
            .map_err(|source| XdpError::map("add a local address to", map, source))?;
        have.insert(*new);
    }
    for old in have.clone().difference(wanted) {
        let (map, key) = entry(*old);
        match map.delete(&key) {
            Err(e) if e.kind() != libbpf_rs::ErrorKind::NotFound => {
                return Err(XdpError::map("remove a local address from", map, e));
            }
            _ => have.remove(old),
        };
    }
    Ok(())
}
