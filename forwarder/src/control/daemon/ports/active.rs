//! A port that is open: what only such a one has, and what is told to its program.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use xdp_prog::{VlanSettings, mac_words, vlan_key};

use crate::control::netdev::irq::Pinned;
use crate::control::netdev::nic::Queues;
use crate::control::netdev::poll::Tuned;
use crate::control::steering::punt::PuntDevice;
use crate::control::steering::{PortProgram, XdpMode};
use crate::io::af_xdp::{self, BoundMode};
use crate::say;
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
    /// No other opening of any port has this number.
    pub(super) generation: u64,
    pub(super) opened: Instant,
    /// RX queues served.
    pub(super) queues: u32,
    /// Of those the first so many can send.
    pub(super) tx_queues: u32,
    /// What the interface had when it was opened.
    pub(super) had: Queues,
    pub(super) bind_mode: BoundMode,
    pub(super) no_zerocopy: Option<String>,
    pub(super) multi_buffer: bool,
    /// Descriptors of the workers' sockets, by queue.
    pub(super) sockets: Vec<OwnedFd>,
    /// The interfaces whose VLANs the program has been told; tables change more often than they.
    pub(super) vlans_of: Option<Arc<Links>>,
    /// What is set of its interface while it is polled.
    pub(super) tuned: Option<Tuned>,
    /// Where its interrupts went before.
    pub(super) pinned: Option<Pinned>,
    /// Frames by queue that the program passed for lack of a socket, when last looked at.
    pub(super) without_socket: BTreeMap<u32, u64>,
    /// Whether the interface has an RSS table, as of when a queue was found there.
    pub(super) has_rss_table: bool,
    /// Since when its sockets do not send though its link is up.
    pub(super) down_since: Option<Instant>,
}

impl ActivePort {
    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Lets the program steer a family, or leaves it to the kernel.
    pub(in crate::control::daemon) fn steer(&mut self, ipv4: bool, ipv6: bool) -> Result<()> {
        Ok(self.program.set_steer(ipv4, ipv6)?)
    }

    /// Lets the program steer frames of the VLANs that are followed, and those with VID 0, which are
    /// the port's own. What cannot be told it stays with the kernel. `port`: its number.
    pub(in crate::control::daemon) fn steer_vlans(
        &mut self,
        port: u16,
        links: &Arc<Links>,
    ) -> Result<()> {
        if self.vlans_of.as_ref().is_some_and(|told| Arc::ptr_eq(told, links)) {
            return Ok(());
        }
        let mac = mac_words(self.mac);
        let own = VlanSettings { mac, between: mac };
        let mut wanted = BTreeMap::from(
            [EtherType::VLAN, EtherType::QINQ].map(|tpid| (vlan_key([(tpid.0, 0)]), own)),
        );
        for link in links.iter().filter(|link| link.port == Some(port)) {
            let Some(vlan) = &link.vlan else { continue };
            let tags = vlan.tags.iter().map(|egress| (egress.tag.tpid().0, egress.tag.vid()));
            let mac = mac_words(link.mac);
            let between = vlan.between.map_or(mac, mac_words);
            wanted.insert(vlan_key(tags), VlanSettings { mac, between });
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

    /// Lets the port's frames through a punt device.
    pub(in crate::control::daemon) fn admit(&self, punt: &PuntDevice) -> Result<()> {
        Ok(punt.add_port(self.ifindex, self.mac, self.program.mode() == XdpMode::Generic)?)
    }

    /// Whether packets have become longer than those it was opened for.
    pub(super) fn is_outgrown(&self, link: &Link) -> bool {
        link.mtu > MTU_FRAME && !self.multi_buffer
    }

    /// Whether every socket is still bound to the interface.
    pub(super) fn has_its_sockets(&self) -> bool {
        // Each is asked: the kernel tells some of it only once.
        let unbound = |socket: &&OwnedFd| !af_xdp::is_bound(socket.as_fd(), self.bind_mode);
        self.sockets.iter().filter(unbound).count() == 0
    }

    /// NAPI instances that came since are set as the others.
    pub(in crate::control::daemon) fn refresh_polling(&mut self) {
        let Some(tuned) = &mut self.tuned else { return };
        if let Err(error) = tuned.refresh() {
            say!("interface {}: interrupts stay as they are: {error}", self.ifname);
            self.restore_polling();
        }
    }

    /// The driver's interrupts give way to the worker's polls. Where that cannot be had, polling
    /// goes on beside them.
    pub(super) fn tune(&mut self, directory: &Path) {
        match Tuned::apply(directory, &self.ifname, self.ifindex) {
            Ok(tuned) => self.tuned = Some(tuned),
            Err(error) => say!("interface {}: interrupts stay as they are: {error}", self.ifname),
        }
    }

    /// Puts back what was set while it was polled.
    pub(in crate::control::daemon) fn restore_polling(&mut self) {
        let Some(Err(error)) = self.tuned.take().map(Tuned::restore) else { return };
        say!(
            "interface {}: cannot put back what was set for polling: {error}; the next start tries \
             again",
            self.ifname
        );
    }

    /// Puts interrupts back where they went before.
    pub(in crate::control::daemon) fn restore_irqs(&mut self) {
        let Some(Err(error)) = self.pinned.take().map(Pinned::restore) else { return };
        say!(
            "interface {}: cannot put its interrupts back: {error}; the next start tries again",
            self.ifname
        );
    }
}
