//! What the kernel applies to forwarded packets and Ferroute would bypass: netfilter hooks, traffic
//! control and BPF programs on the ports and their VLANs, defaults of IPsec. Read from the kernel
//! without external tools, and from where functions are registered, so that unknown tools are
//! detected too.
//!
//! - [`Rules`]: a single reading;
//! - [`monitor`]: follows changes;
//! - [`ruleset`]: the nftables ruleset that workers apply instead of the kernel;
//! - `nftables`, `hooks`, `xtables`, `selinux`: netfilter; `xfrm`: IPsec, with the policies that workers apply;
//! - `devices`: filters of single interfaces, kept between readings; `tc`: their tc filters;
//! - `sockets`: the netlink sockets for requests.
//!
//! Left out: bridges (bridge and ebtables rules process frames that are not routed), chains at
//! input and output (Ferroute leaves packets to and from the router itself to the kernel), BPF
//! programs of cgroups and sockets (they see no forwarded packets), routes with an encapsulation or
//! a program (the mirror leaves these to the kernel).

mod devices;
mod hooks;
pub mod monitor;
mod nftables;
pub mod ruleset;
mod selinux;
mod sockets;
mod tc;
mod xfrm;
mod xtables;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Instant;

use self::devices::{Devices, TCX_HOOKS, replace};
pub use self::hooks::Means;
use self::hooks::{Hooks, Reader};
use self::nftables::Nftables;
use self::ruleset::{Compiled, Followed};
use self::sockets::Sockets;
use self::tc::Qdisc;
use self::xfrm::Xfrm;
use crate::control::netdev::nic::{self, Nic};
use crate::control::netlink::autoload::Module;
use crate::control::netlink::message::{Attrs, string};
use crate::ipsec::{Direction, Policy};

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_NETDEV: u8 = 5;
const NFPROTO_IPV6: u8 = 10;

/// Everything that would be bypassed for packets between `ports` and their VLANs, a line each;
/// empty if nothing would be.
///
/// # Errors
/// When a request fails; then nothing is known.
pub fn bypassed(ports: &[String]) -> io::Result<Vec<String>> {
    let mut rules = Rules::read(ports)?;
    rules.follow_ruleset()?;
    Ok(rules.bypassed(ports))
}

/// Whether an interface has a clsact or ingress qdisc, with or without filters.
///
/// # Errors
/// When a request fails.
pub fn has_clsact(ifindex: u32) -> io::Result<bool> {
    Ok(tc::has_clsact(&tc::qdiscs(Sockets::default().route()?)?, ifindex))
}

/// Sockets and files used to read the rules.
#[derive(Debug)]
struct Asker {
    sockets: Sockets,
    nf_tables: Module,
    hooks: Reader,
}

impl Asker {
    fn open() -> io::Result<Asker> {
        let nf_tables = Module::new("nf_tables");
        Ok(Asker { sockets: Sockets::default(), nf_tables, hooks: Reader::open()? })
    }

    fn nftables(&mut self) -> io::Result<Nftables> {
        if !self.nf_tables.may_be_asked() {
            return Ok(Nftables::default());
        }
        let Some(socket) = self.sockets.netfilter()? else { return Ok(Nftables::default()) };
        let nftables = Nftables::read(socket)?;
        if nftables.is_none() {
            self.nf_tables.set_missing();
        }
        Ok(nftables.unwrap_or_default())
    }

    fn xfrm(&mut self) -> io::Result<Xfrm> {
        self.sockets.xfrm()?.map_or_else(|| Ok(Xfrm::default()), Xfrm::read)
    }

    fn qdiscs(&mut self) -> io::Result<BTreeSet<Qdisc>> {
        tc::qdiscs(self.sockets.route()?)
    }

    fn nics(&mut self) -> io::Result<Vec<Nic>> {
        nic::read_by(self.sockets.route()?)
    }
}

/// The rules of the network namespace and of some interfaces.
#[derive(Debug)]
pub struct Rules {
    nics: Vec<Nic>,
    nftables: Nftables,
    followed: Followed,
    /// Changes of nftables without a notification.
    untold_changes: u64,
    hooks: Hooks,
    xfrm: Xfrm,
    qdiscs: BTreeSet<Qdisc>,
    devices: Devices,
    means: Means,
}

impl Rules {
    /// Reads the rules, including those of `ports` and their VLANs.
    ///
    /// # Errors
    /// When a request fails; then nothing is known.
    pub fn read(ports: &[String]) -> io::Result<Rules> {
        Rules::read_by(&mut Asker::open()?, ports)
    }

    fn read_by(asker: &mut Asker, ports: &[String]) -> io::Result<Rules> {
        // nftables is read before the hooks: a chain that is added meanwhile then appears as a
        // function without a chain, and is not missed.
        let mut rules = Rules {
            nics: asker.nics()?,
            nftables: asker.nftables()?,
            followed: Followed::default(),
            untold_changes: 0,
            hooks: asker.hooks.read(true)?,
            xfrm: asker.xfrm()?,
            qdiscs: asker.qdiscs()?,
            devices: Devices::default(),
            means: asker.hooks.means(),
        };
        rules.follow_devices(ports);
        rules.read_devices(asker, None)?;
        Ok(rules)
    }

    /// Reads the nftables ruleset, and takes what workers can apply of it as followed.
    ///
    /// # Errors
    /// When a request fails.
    pub fn follow_ruleset(&mut self) -> io::Result<Compiled> {
        let compiled = Compiled::read(0)?;
        self.followed = Followed::of(&compiled);
        Ok(compiled)
    }

    /// The same as the function [`bypassed`], for ports that were read. The nftables ruleset counts as far
    /// as workers cannot apply it; whether they do yet is another question
    /// ([`monitor::Monitor::is_ruleset_pending`]).
    pub fn bypassed(&self, ports: &[String]) -> Vec<String> {
        let mut found: Vec<String> = match self.has_ruleset() {
            true => self.followed.obstacles().collect(),
            false => Vec::new(),
        };
        found.extend(self.hooks.bypassed(&self.nftables));
        found.extend(self.xfrm.obstacles());
        found.extend(self.own(ports));
        found
    }

    /// Rules of `ports` or their VLANs alone, not those that apply to packets of every port.
    pub fn own(&self, ports: &[String]) -> Vec<String> {
        self.own_of(self.devices(ports).into_iter(), ports)
    }

    fn own_of<'a>(&self, devices: impl Iterator<Item = &'a Nic>, ports: &[String]) -> Vec<String> {
        let mut found = Vec::new();
        for Nic { name, ifindex, xdp_programs, .. } in devices {
            let Some(device) = self.devices.get(*ifindex) else { continue };
            found.extend(hooks::on_device(name, &device.hooks, &self.nftables));
            for (parent, kinds) in &device.filters {
                let line = |kind| tc::describe(name, *ifindex, *parent, kind, &self.qdiscs);
                found.extend(kinds.iter().map(|kind| line(kind)));
            }
            for ((_, place), programs) in TCX_HOOKS.iter().zip(&device.tcx) {
                found.extend(programs.ids.iter().map(|id| {
                    format!(
                        "BPF program {id} (tcx {place}) on {name} (see bpftool net show dev {name})"
                    )
                }));
            }
            // On a port it is reported elsewhere, because it prevents attaching our own program.
            if !ports.contains(name) {
                found.extend(xdp_programs.iter().map(|(mode, id)| {
                    format!("XDP program {id} ({mode}) on {name} (see ip link)")
                }));
            }
        }
        found
    }

    /// What filters packets that are received or sent by each xfrm interface, by ifindex; empty if nothing does. Those
    /// of which that is not known yet are left out.
    pub fn of_xfrmis(&self) -> BTreeMap<u32, String> {
        let known = self.xfrmis().filter(|nic| self.devices.is_known(nic.ifindex));
        known.map(|nic| (nic.ifindex, self.on_xfrmi(nic))).collect()
    }

    fn on_xfrmi(&self, nic: &Nic) -> String {
        let has_clsact = tc::has_clsact(&self.qdiscs, nic.ifindex);
        let mut found = self.own_of(std::iter::once(nic), &[]);
        if found.is_empty() && has_clsact {
            found.push(format!("{} has a qdisc clsact or ingress", nic.name));
        }
        found.join("; ")
    }

    /// The `if_id` of xfrm interfaces that workers use, and the names of interfaces of tunnels, up, that they do not, with
    /// the reason.
    pub fn tunnel_interfaces(&self) -> (BTreeSet<u32>, Vec<String>) {
        let filters = self.of_xfrmis();
        let (mut used, mut left) = (BTreeSet::new(), Vec::new());
        for nic in self.nics.iter().filter(|nic| nic.is_up()) {
            let filters =
                filters.get(&nic.ifindex).map_or("its filters are not known", String::as_str);
            match (nic.kind.as_deref(), nic.if_id) {
                (Some("vti" | "vti6"), _) => left.push(format!("{}: a VTI", nic.name)),
                (Some("xfrm"), None) => left.push(format!("{}: external", nic.name)),
                (Some("xfrm"), _) if nic.master.is_some() => {
                    left.push(format!("{}: in a VRF", nic.name));
                }
                (Some("xfrm"), Some(if_id)) if filters.is_empty() => drop(used.insert(if_id)),
                (Some("xfrm"), _) => left.push(format!("{}: {filters}", nic.name)),
                _ => {}
            }
        }
        (used, left)
    }

    fn xfrmis(&self) -> impl Iterator<Item = &Nic> {
        self.nics.iter().filter(|nic| nic.kind.as_deref() == Some("xfrm"))
    }

    /// Chains at the egress of `ports` or their VLANs: packets that leave there are left to the kernel.
    pub fn at_egress(&self, ports: &[String]) -> Vec<String> {
        let vlans = self.devices(ports).into_iter().map(|nic| nic.name.clone());
        let names: Vec<String> = ports.iter().cloned().chain(vlans).collect();
        self.nftables.at_egress(&names).collect()
    }

    /// IPsec policies, which workers apply: packets that one concerns are left to the kernel. `None`: they were not
    /// read.
    pub fn policies(&self) -> Option<&[(Direction, Policy)]> {
        self.xfrm.policies()
    }

    /// What filters packets to or from the router itself, such as those that IPsec has protected, besides the nftables
    /// ruleset. `None`: nothing does.
    pub fn local_filter(&self) -> Option<String> {
        self.hooks.local(&self.nftables)
    }

    /// Whether there is an nftables ruleset that workers apply.
    pub fn has_ruleset(&self) -> bool {
        let has_ipsec = self.policies().is_none_or(|policies| !policies.is_empty());
        self.nftables.concerns_workers(has_ipsec)
    }

    /// The source from which the netfilter hooks are known.
    pub fn means(&self) -> &Means {
        &self.means
    }

    /// The existing ports and their VLANs.
    fn devices(&self, ports: &[String]) -> Vec<&Nic> {
        let own = self.nics.iter().filter(|nic| ports.contains(&nic.name));
        own.chain(nic::vlans_of(&self.nics, ports)).collect()
    }

    /// Sets the ports to read, with their VLANs and all xfrm interfaces.
    fn follow_devices(&mut self, ports: &[String]) {
        let mut devices = std::mem::take(&mut self.devices);
        let followed: Vec<&Nic> = self.devices(ports).into_iter().chain(self.xfrmis()).collect();
        devices.follow(&followed, &self.qdiscs);
        self.devices = devices;
    }

    /// See [`Devices::read`].
    fn read_devices(&mut self, asker: &mut Asker, end: Option<Instant>) -> io::Result<bool> {
        self.devices.read(asker, &self.nics, &self.qdiscs, end)
    }

    /// Returns whether they changed.
    fn set_qdiscs(&mut self, qdiscs: BTreeSet<Qdisc>) -> bool {
        self.devices.follow_qdiscs(&self.qdiscs, &qdiscs);
        replace(&mut self.qdiscs, qdiscs)
    }
}

/// The family's name in nft; `None` if forwarded packets do not belong to it.
fn family_name(family: u8) -> Option<&'static str> {
    match family {
        NFPROTO_INET => Some("inet"),
        NFPROTO_IPV4 => Some("ip"),
        NFPROTO_IPV6 => Some("ip6"),
        NFPROTO_NETDEV => Some("netdev"),
        _ => None,
    }
}

/// The hook's name in nft.
fn hook_name(family: u8, hook: u32) -> &'static str {
    match (family, hook) {
        (NFPROTO_NETDEV, 0) | (NFPROTO_INET, 5) => "ingress",
        (NFPROTO_NETDEV, 1) => "egress",
        (_, 0) => "prerouting",
        (_, 1) => "input",
        (_, 2) => "forward",
        (_, 3) => "output",
        (_, 4) => "postrouting",
        _ => "unknown",
    }
}

fn find<'a>(mut attrs: Attrs<'a>, kind: u16) -> Option<&'a [u8]> {
    attrs.find(|attr| attr.kind == kind).map(|attr| attr.value)
}

fn be32(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|octets| u32::from_be_bytes(*octets))
}
