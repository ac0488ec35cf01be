//! Checks whether an interface can be a port.

use std::fs;
use std::io;

use super::Finding;
use crate::control::firewall;
use crate::control::netdev::nic::{
    self, Nic, Stripping, XDP_BASIC, XDP_MULTI_BUFFER, XDP_NDO_XMIT, XDP_ZEROCOPY,
};
use crate::control::steering::program_name;
use crate::io::af_xdp::driver_name;
use crate::skb::{JUMBO_MTU, MTU_FRAME};

/// Features that put more than one frame into one buffer, and `ethtool -K`'s name for each.
const COALESCING: [(&str, &str); 2] = [("rx-lro", "lro"), ("rx-gro-hw", "rx-gro-hw")];

/// All findings of one port. `served`: it is a port of the running daemon.
pub fn examine(name: &str, nics: &[Nic], served: bool) -> Vec<Finding> {
    let Some(nic) = nics.iter().find(|nic| nic.name == name) else {
        let advice = "check the name with ip link; in another namespace, use ip netns exec";
        return vec![Finding::fail("link", "no such interface", advice).on(name)];
    };
    let mut findings = vec![link(nic)];
    if nic.kind.as_deref() == Some("vlan") {
        let lower = nics.iter().find(|other| Some(other.ifindex) == nic.lower);
        let lower = lower.map_or("its parent interface", |lower| &lower.name);
        let advice = format!("name {lower} instead; its VLANs are included");
        return vec![Finding::fail("link", "is a VLAN", advice).on(name)];
    }
    if !nic.is_ethernet() {
        let advice = "only Ethernet interfaces can be ports";
        findings.push(Finding::fail("link", "not an Ethernet interface", advice));
    }
    findings.extend(master(nic, nics));
    findings.push(driver(nic));
    findings.extend(redirects(nic));
    findings.push(xdp_program(nic, served));
    findings.push(mtu(nic));
    findings.extend(offloads(nic));
    findings.push(vlans(nic, nics));
    findings.extend(tc(nic));
    findings.push(forwarding(name));
    findings.push(rp_filter(name));
    findings.into_iter().map(|finding| finding.on(name)).collect()
}

fn link(nic: &Nic) -> Finding {
    let name = &nic.name;
    match (nic.is_up(), nic.has_carrier()) {
        (false, _) => Finding::fail("link", "down", format!("ip link set dev {name} up")),
        (true, false) => Finding::warn("link", "up, without carrier", "check the cable or peer"),
        (true, true) => Finding::ok("link", "up"),
    }
}

fn master(nic: &Nic, nics: &[Nic]) -> Option<Finding> {
    let master = nics.iter().find(|other| Some(other.ifindex) == nic.master)?;
    let kind = master.kind.as_deref().unwrap_or("device");
    let message = format!("belongs to the {kind} {}", master.name);
    if kind == "vrf" {
        let advice =
            "VRFs are not followed: leave this interface out, its packets stay in the kernel";
        return Some(Finding::fail("master", message, advice));
    }
    let advice = format!("ip link set dev {} nomaster, or leave this interface out", nic.name);
    Some(Finding::fail("master", message, advice))
}

fn driver(nic: &Nic) -> Finding {
    let driver = driver_name(&nic.name).or(nic.kind.clone());
    let driver = driver.as_deref().filter(|name| !name.is_empty()).unwrap_or("unknown driver");
    match nic::xdp_features(nic.ifindex) {
        _ if nic.is_bond() => Finding::warn(
            "driver",
            format!("{driver}: its members receive its frames"),
            "works in generic mode, much slower; for more than one link, use routes with several next hops",
        ),
        Ok(Some(features)) if features & XDP_BASIC == 0 => Finding::warn(
            "driver",
            format!("{driver}: no native XDP"),
            "works in generic mode, much slower; check whether a newer driver or another of its \
             settings supports XDP",
        ),
        Ok(Some(features)) if features & XDP_ZEROCOPY == 0 => {
            Finding::ok("driver", format!("{driver}: native XDP, AF_XDP in copy mode"))
        }
        Ok(Some(_)) => Finding::ok("driver", format!("{driver}: native XDP, AF_XDP zero-copy")),
        // Kernels before 6.3, and namespaces without the permission.
        Ok(None) | Err(_) => {
            Finding::ok("driver", format!("{driver}: the kernel does not report its XDP features"))
        }
    }
}

/// Whether frames can be redirected to it, for flows that are offloaded.
fn redirects(nic: &Nic) -> Option<Finding> {
    let features = nic::xdp_features(nic.ifindex).ok().flatten()?;
    if features & XDP_BASIC == 0 || features & XDP_NDO_XMIT != 0 {
        return None;
    }
    let advice = match nic.kind.as_deref() {
        Some("veth") => "switch on GRO at the other end: ethtool -K PEER gro on",
        _ => "its driver may need an XDP program on it, or another of its settings",
    };
    let message = "takes no redirected frames: flows that leave here are not offloaded";
    Some(Finding::ok("offload", format!("{message}; {advice}")))
}

fn xdp_program(nic: &Nic, served: bool) -> Finding {
    let Some((mode, id)) = nic.xdp_programs.first() else {
        return Finding::ok("xdp", "no program attached");
    };
    let program = program_name(*id);
    let ours = program.as_deref() == Some(xdp_prog::PROGRAM_XDP);
    let shown = format!("{} (id {id}, {mode} mode)", program.as_deref().unwrap_or("a program"));
    if served && ours {
        return Finding::ok("xdp", shown);
    }
    if ours {
        let message = format!("{shown} of another ferroute");
        let advice = "find it with ferroute status --control PATH, and stop it";
        return Finding::fail("xdp", message, advice);
    }
    let option = if *mode == "generic" { "xdpgeneric" } else { "xdp" };
    let advice = format!(
        "it is not replaced: stop what attached it, or ip link set dev {} {option} off",
        nic.name
    );
    Finding::fail("xdp", format!("{shown} is attached"), advice)
}

fn mtu(nic: &Nic) -> Finding {
    let Nic { mtu, name, .. } = nic;
    match *mtu {
        mtu if mtu > JUMBO_MTU => Finding::fail(
            "mtu",
            format!("{mtu} is larger than {JUMBO_MTU}"),
            format!("ip link set dev {name} mtu {JUMBO_MTU} or less"),
        ),
        mtu if mtu > MTU_FRAME => jumbo(nic, nic::xdp_features(nic.ifindex).ok().flatten()),
        mtu => Finding::ok("mtu", format!("{mtu}, a frame holds {MTU_FRAME}")),
    }
}

/// An MTU that needs multi-buffer packets, given the driver's XDP features.
fn jumbo(nic: &Nic, features: Option<u64>) -> Finding {
    let Nic { mtu, name, .. } = nic;
    match features {
        Some(can) if can & XDP_MULTI_BUFFER != 0 => {
            Finding::ok("mtu", format!("{mtu}, with multi-buffer XDP (a frame holds {MTU_FRAME})"))
        }
        Some(can) if can & XDP_BASIC == 0 => {
            Finding::ok("mtu", format!("{mtu}, with multi-buffer XDP in generic mode"))
        }
        Some(_) => Finding::fail(
            "mtu",
            format!(
                "{mtu} exceeds the {MTU_FRAME} octets of a frame, and the driver does not support \
                 multi-buffer XDP"
            ),
            format!("ip link set dev {name} mtu {MTU_FRAME} or less, or run with --mode generic"),
        ),
        None => Finding::fail(
            "mtu",
            format!(
                "{mtu} exceeds the {MTU_FRAME} octets of a frame; multi-buffer XDP needs Linux 6.6"
            ),
            format!("ip link set dev {name} mtu {MTU_FRAME} or less"),
        ),
    }
}

fn offloads(nic: &Nic) -> Vec<Finding> {
    let features = match nic::features(nic.ifindex) {
        Ok(features) => features,
        Err(error) => {
            let message = format!("features cannot be read: {error}");
            let advice = format!("see ethtool -k {}", nic.name);
            return vec![Finding::warn("offloads", message, advice)];
        }
    };
    let mut findings = Vec::new();
    for (feature, option) in COALESCING {
        if features.contains(feature) {
            let message = format!("{option} is on: frames that it merges are too long");
            let advice = format!("ethtool -K {} {option} off", nic.name);
            findings.push(Finding::warn("offloads", message, advice));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok("offloads", "none that changes frames before they are seen"));
    }
    findings
}

/// Whether frames keep their tags, and which VLANs there are.
fn vlans(nic: &Nic, nics: &[Nic]) -> Finding {
    let names = nic::vlans_of(nics, std::slice::from_ref(&nic.name));
    let names: Vec<&str> = names.iter().map(|vlan| vlan.name.as_str()).collect();
    if let Some(Stripping { off, fixed }) = nic::vlan_stripping(nic) {
        let message = "VLAN tags are stripped: tagged frames would be forwarded untagged";
        let advice = match fixed {
            false => format!("ethtool -K {off}"),
            true => "its driver cannot switch that off: it cannot be a port".to_owned(),
        };
        return Finding::fail("vlan", message, advice);
    }
    if nic.kind.as_deref() == Some("veth") && !names.is_empty() {
        return Finding::warn(
            "vlan",
            format!(
                "{}: on a veth, tags may be beside the frames, where XDP does not see them",
                names.join(", ")
            ),
            "on the sending side: ethtool -K PEER txvlan off tx-vlan-stag-hw-insert off",
        );
    }
    match &names[..] {
        [] if nic.kind.as_deref() == Some("veth") => {
            Finding::ok("vlan", "none; frames whose tag is beside them count as untagged")
        }
        [] => Finding::ok("vlan", "none; tags are left in the frames"),
        _ => Finding::ok("vlan", format!("{} included", names.join(", "))),
    }
}

fn tc(nic: &Nic) -> Option<Finding> {
    let hooked = firewall::has_clsact(nic.ifindex).unwrap_or(false);
    hooked.then(|| {
        Finding::warn(
            "tc",
            "has a clsact or ingress qdisc: its filters do not see packets that pass through userspace",
            format!("see tc filter show dev {} ingress, and egress", nic.name),
        )
    })
}

/// A sysctl of this thread's namespace.
fn sysctl(family: &str, port: &str, name: &str) -> io::Result<String> {
    let text = fs::read_to_string(format!("/proc/sys/net/{family}/conf/{port}/{name}"))?;
    Ok(text.trim().to_owned())
}

fn forwarding(port: &str) -> Finding {
    let on = |family, port| sysctl(family, port, "forwarding").is_ok_and(|value| value != "0");
    let v4 = "sysctl -w net.ipv4.ip_forward=1";
    let v6 = "sysctl -w net.ipv6.conf.all.forwarding=1";
    let off = |what: &str| format!("{what} forwarding is off, in the kernel and so in ferroute");
    // IPv6 has one switch for all (`ip6_forward`).
    match (on("ipv4", port), on("ipv6", "all")) {
        (true, true) => Finding::ok("forwarding", "IPv4 and IPv6 are on"),
        (true, false) => Finding::warn("forwarding", off("IPv6"), v6),
        (false, true) => Finding::warn("forwarding", off("IPv4"), v4),
        (false, false) => Finding::fail("forwarding", off("IPv4 and IPv6"), format!("{v4}; {v6}")),
    }
}

fn rp_filter(port: &str) -> Finding {
    let value = |whose| sysctl("ipv4", whose, "rp_filter").ok()?.parse::<u8>().ok();
    // Kernel: IN_DEV_RPFILTER is the larger of all and own.
    match value("all").max(value(port)) {
        Some(1) => Finding::ok("rp_filter", "strict: followed"),
        Some(2) => Finding::ok("rp_filter", "loose: followed"),
        Some(_) => Finding::ok("rp_filter", "off"),
        None => Finding::warn("rp_filter", "cannot be read", "is /proc/sys mounted?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::doctor::Level;

    fn nic(mtu: u32) -> Nic {
        Nic { name: "p".into(), mtu, ..Nic::default() }
    }

    #[test]
    fn an_interface_that_is_not_there_is_one_finding() {
        let findings = examine("nope", &[nic(1500)], false);
        assert_eq!(findings.len(), 1);
        assert_eq!((findings[0].level, findings[0].port.as_deref()), (Level::Fail, Some("nope")));
    }

    #[test]
    fn the_mtu_is_compared_with_the_limits_of_a_frame_and_a_port() {
        assert_eq!(mtu(&nic(1500)).level, Level::Ok);
        assert_eq!(mtu(&nic(MTU_FRAME)).level, Level::Ok);
        // This is not an existing interface, so it has no driver either.
        assert_eq!(mtu(&nic(MTU_FRAME + 1)).level, Level::Fail);
        assert_eq!(mtu(&nic(9001)).level, Level::Fail);
        for (features, level) in [
            (None, Level::Fail),
            (Some(0), Level::Ok),
            (Some(XDP_BASIC), Level::Fail),
            (Some(XDP_BASIC | XDP_MULTI_BUFFER), Level::Ok),
        ] {
            assert_eq!(jumbo(&nic(9000), features).level, level, "{features:?}");
        }
    }

    #[test]
    fn a_down_link_says_how_to_bring_it_up() {
        let finding = link(&nic(1500));
        assert_eq!(finding.advice.as_deref(), Some("ip link set dev p up"));
    }

    #[test]
    fn a_bridge_port_is_refused() {
        let bridge =
            Nic { ifindex: 7, name: "br0".into(), kind: Some("bridge".into()), ..Nic::default() };
        let port = Nic { master: Some(7), ..nic(1500) };
        let finding = master(&port, std::slice::from_ref(&bridge)).expect("a finding");
        assert_eq!(finding.level, Level::Fail);
        assert!(finding.message.contains("bridge br0"), "{}", finding.message);
        assert!(master(&nic(1500), &[bridge]).is_none());
    }
}
