//! An open port: the resources that only an open port has, and the settings of its program.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use tracing::warn;
use xdp_prog::{VlanSettings, mac_words, vlan_key};

use crate::control::netdev::irq::Pinned;
use crate::control::netdev::nic::Queues;
use crate::control::netdev::poll::Tuned;
use crate::control::steering::punt::PuntDevice;
use crate::control::steering::{PortProgram, XdpMode};
use crate::io::af_xdp::{self, BoundMode};
use crate::skb::MTU_FRAME;
use crate::tables::{Link, Links};
use crate::wire::EtherType;

/// An open port. Closed by the thread that opened it (`close` in `open.rs`).
#[derive(Debug)]
pub(in crate::control::daemon) struct ActivePort {
    /// First, so that it is dropped first: from then on the kernel has every frame that arrives.
    pub(super) program: PortProgram,
    pub(super) ifname: String,
    pub(super) ifindex: u32,
    /// IP MTU in octets with which it was opened.
    pub(super) mtu: u32,
    pub(super) mac: [u8; 6],
    /// Number of this opening, unique among all openings of all ports.
    pub(super) generation: u64,
    pub(super) opened: Instant,
    /// RX queues served.
    pub(super) queues: u32,
    /// TX queues: the first `tx_queues` of the served queues can send.
    pub(super) tx_queues: u32,
    /// The interface's queues when it was opened.
    pub(super) had: Queues,
    pub(super) bind_mode: BoundMode,
    pub(super) no_zerocopy: Option<String>,
    pub(super) multi_buffer: bool,
    /// Descriptors of the workers' sockets, by queue.
    pub(super) sockets: Vec<OwnedFd>,
    /// The interfaces whose VLANs are set in the program; tables change more often than these.
    pub(super) vlans_of: Option<Arc<Links>>,
    /// Settings changed on its interface while it is polled.
    pub(super) tuned: Option<Tuned>,
    /// The earlier affinity of its interrupts.
    pub(super) pinned: Option<Pinned>,
    /// Frames by queue that the program passed for lack of a socket, as of the last check.
    pub(super) without_socket: BTreeMap<u32, u64>,
    /// Whether the interface has an RSS table, as of when such a queue was found.
    pub(super) has_rss_table: bool,
    /// Since when its sockets do not send although its link is up.
    pub(super) down_since: Option<Instant>,
}

impl ActivePort {
    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Lets the program steer each family, or leaves it to the kernel.
    pub(in crate::control::daemon) fn steer(&mut self, ipv4: bool, ipv6: bool) -> Result<()> {
        Ok(self.program.set_steer(ipv4, ipv6)?)
    }

    /// See [`PortProgram::set_offload`].
    pub(in crate::control::daemon) fn set_offload(
        &mut self,
        number: Option<u16>,
        partial_csum: bool,
    ) -> Result<()> {
        Ok(self.program.set_offload(number, partial_csum)?)
    }

    /// Where the program runs.
    pub(in crate::control::daemon) fn xdp_mode(&self) -> XdpMode {
        self.program.mode()
    }

    pub(in crate::control::daemon) fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Lets the program steer frames of the VLANs that are followed, and frames with VID 0, which belong to
    /// the port itself. VLANs that cannot be set in the program stay with the kernel. `port`: the port's
    /// number.
    pub(in crate::control::daemon) fn steer_vlans(
        &mut self,
        port: u16,
        links: &Arc<Links>,
    ) -> Result<()> {
        if self.vlans_of.as_ref().is_some_and(|told| Arc::ptr_eq(told, links)) {
            return Ok(());
        }
        let mac = mac_words(self.mac);
        let own = VlanSettings { mac, between: mac, number: 0 };
        let mut wanted = BTreeMap::from(
            [EtherType::VLAN, EtherType::QINQ].map(|tpid| (vlan_key([(tpid.0, 0)]), own)),
        );
        for link in links.iter().filter(|link| link.port == Some(port)) {
            let Some(vlan) = &link.vlan else { continue };
            let tags = vlan.tags.iter().map(|egress| (egress.tag.tpid().0, egress.tag.vid()));
            let mac = mac_words(link.mac);
            let between = vlan.between.map_or(mac, mac_words);
            let number = link.flow_number().unwrap_or(0);
            wanted.insert(vlan_key(tags), VlanSettings { mac, between, number });
        }
        self.vlans_of = None;
        self.program.set_vlans(&wanted)?;
        self.vlans_of = Some(Arc::clone(links));
        Ok(())
    }

    /// Follows a change of the MAC address.
    pub(super) fn follow_mac(&mut self, link: &Link, punt: &PuntDevice) -> Result<()> {
        if self.mac != link.mac {
            self.program.set_mac(link.mac)?;
            self.mac = link.mac;
            self.admit(punt)?;
        }
        Ok(())
    }

    /// Lets the punt device accept the port's frames.
    pub(in crate::control::daemon) fn admit(&self, punt: &PuntDevice) -> Result<()> {
        Ok(punt.add_port(self.ifindex, self.mac, self.program.mode() == XdpMode::Generic)?)
    }

    /// Whether packets may be longer now than those the port was opened for.
    pub(super) fn is_outgrown(&self, link: &Link) -> bool {
        link.mtu > MTU_FRAME && !self.multi_buffer
    }

    /// Whether every socket is still bound to the interface.
    pub(super) fn has_its_sockets(&self) -> bool {
        // Every socket is checked: the kernel notifies only some of them of a detached interface.
        let unbound = |socket: &&OwnedFd| !af_xdp::is_bound(socket.as_fd(), self.bind_mode);
        self.sockets.iter().filter(unbound).count() == 0
    }

    /// Applies the settings to NAPI instances that were added since.
    pub(in crate::control::daemon) fn refresh_polling(&mut self) {
        let Some(tuned) = &mut self.tuned else { return };
        if let Err(error) = tuned.refresh() {
            warn!(
                interface = self.ifname,
                "interface {}: interrupts stay as they are: {error}", self.ifname
            );
            self.restore_polling();
        }
    }

    /// The worker's polls replace the driver's interrupts. Where this is not possible, the worker polls in
    /// addition to them.
    pub(super) fn tune(&mut self, directory: &Path) {
        match Tuned::apply(directory, &self.ifname, self.ifindex) {
            Ok(tuned) => self.tuned = Some(tuned),
            Err(error) => warn!(
                interface = self.ifname,
                "interface {}: interrupts stay as they are: {error}", self.ifname
            ),
        }
    }

    /// Restores the settings from before it was polled.
    pub(in crate::control::daemon) fn restore_polling(&mut self) {
        let Some(Err(error)) = self.tuned.take().map(Tuned::restore) else { return };
        warn!(
            interface = self.ifname,
            "interface {}: cannot restore the previous settings of polling: {error}; the next start tries \
             again",
            self.ifname
        );
    }

    /// Restores the affinity of its interrupts.
    pub(in crate::control::daemon) fn restore_irqs(&mut self) {
        let Some(Err(error)) = self.pinned.take().map(Pinned::restore) else { return };
        warn!(
            interface = self.ifname,
            "interface {}: cannot restore the affinity of its interrupts: {error}; the next start tries again",
            self.ifname
        );
    }
}
