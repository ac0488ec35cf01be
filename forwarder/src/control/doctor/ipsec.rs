//! IPsec: which policies and security associations userspace applies.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use netlink_sys::protocols::NETLINK_XFRM;
use nix::unistd::geteuid;

use super::Finding;
use crate::control::config::RunOptions;
use crate::control::firewall::Rules;
use crate::control::netlink::query::NlSock;
use crate::control::xfrm::store::{NEVER_SENT, Record};
use crate::control::xfrm::{policy, state, store, workers};
use crate::netfilter::nft::Tracking;

/// SAs of the kernel that are named.
const NAMED_MAX: usize = 8;
/// Settings of the namespace.
const SETTINGS: &str = "/proc/sys/net";

/// SAs of a file: whether the kernel has its policies and no SAs, and whether the keys have sequence numbers.
pub fn ipsec_of_file(options: &RunOptions) -> Vec<Finding> {
    let file = &options.xfrm;
    if file.is_empty() {
        return Vec::new();
    }
    let read = || {
        let mut socket = NlSock::open(NETLINK_XFRM)?;
        Ok::<_, io::Error>((policy::read(&mut socket)?, state::read(&mut socket)?))
    };
    let mut findings = Vec::new();
    match read() {
        Err(error) => findings.push(Finding::fail(
            "ipsec",
            format!("the kernel's IPsec policies cannot be read: {error}"),
            "a kernel with CONFIG_XFRM_USER, and CAP_NET_ADMIN",
        )),
        Ok((policies, states)) => {
            let differences = file.differences(&policies.list);
            findings.push(match differences.is_empty() {
                true => Finding::ok("ipsec", "the kernel has the policies of the file"),
                false => Finding::fail(
                    "ipsec",
                    "the kernel does not have the policies of the file: it would forward in clear what they protect",
                    differences.join("; "),
                ),
            });
            if policies.unknown > 0 {
                findings.push(Finding::fail(
                    "ipsec",
                    format!("the kernel has {} policies that Ferroute does not know (type sub): it has all packets", policies.unknown),
                    "delete them (ip xfrm policy)",
                ));
            }
            if let Some(sa) = states.iter().find(|sa| sa.id.spi != 0) {
                findings.push(Finding::fail(
                    "ipsec",
                    format!("the kernel has SAs, such as {}, and so has the file", sa.id),
                    "ip xfrm state delete, or IPsec of the kernel without the section",
                ));
            }
        }
    }
    findings.extend(exempt(Path::new(SETTINGS)));
    findings.extend(tracked());
    findings.push(directory(&options.state_dir));
    let locals = locals();
    findings.extend(file.states().iter().map(|sa| {
        let record = store::read(&options.state_dir, &sa.key_id());
        of_record(&sa.name(), record, locals.contains(&sa.dst()))
    }));
    findings
}

/// Interfaces whose packets pass the kernel's policies. `settings`: [`SETTINGS`].
fn exempt(settings: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (family, key) in
        [("ipv4", "disable_xfrm"), ("ipv4", "disable_policy"), ("ipv6", "disable_policy")]
    {
        for entry in
            fs::read_dir(settings.join(family).join("conf")).into_iter().flatten().flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            let value = fs::read_to_string(entry.path().join(key)).unwrap_or_default();
            if matches!(value.trim(), "" | "0") || matches!(name.as_str(), "lo" | "default") {
                continue;
            }
            let message = format!(
                "net.{family}.conf.{name}.{key} is set: the kernel would forward in clear what policies protect"
            );
            let advice = format!("sysctl -w net/{family}/conf/{name}/{key}=0");
            findings.push(match name.as_str() {
                "all" => Finding::fail("ipsec", message, advice),
                _ => Finding::warn("ipsec", message, format!("{advice}, if it is a port")),
            });
        }
    }
    findings
}

/// A ruleset with which no SA of a file is used. What cannot be read others report.
fn tracked() -> Option<Finding> {
    let ruleset = Rules::read(&[]).and_then(|mut rules| rules.follow_ruleset()).ok()?;
    let is_tracked = ruleset.program.tracking().iter().any(|it| *it != Tracking::Off);
    is_tracked.then(|| {
        Finding::fail(
            "ipsec",
            "the nftables ruleset tracks connections: all that the policies of the file protect is dropped",
            "rules without ct, NAT and notrack, which the kernel cannot apply to tunnels that it does not know",
        )
    })
}

/// Whether the state directory is fit.
fn directory(path: &Path) -> Finding {
    if path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Finding::warn(
            "ipsec",
            format!(
                "the state directory {} does not exist: no key has sequence numbers",
                path.display()
            ),
            "state_dir in the [run] section, if it is another; else ferroute xfrm new-keys -c FILE makes it",
        );
    }
    // Root asks for the daemon's user, who is not known.
    let user = Some(geteuid()).filter(|user| !user.is_root());
    match store::check(path, user) {
        Ok(()) => Finding::ok("ipsec", format!("the state directory is {}", path.display())),
        Err(error) => Finding::fail("ipsec", error.to_string(), "see docs/IPSEC.md"),
    }
}

/// The addresses of this host.
fn locals() -> HashSet<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|it| it.address);
    all.filter_map(|address| {
        let ipv4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        ipv4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
    })
    .collect()
}

/// What is stored for a key; `is_local`: the SA is for receiving.
fn of_record(name: &str, record: io::Result<Option<Record>>, is_local: bool) -> Finding {
    match record {
        Ok(Some(record)) if record.sent == NEVER_SENT && !is_local => Finding::fail(
            "ipsec",
            format!("{name}: the other end sends with its key"),
            "another key, at both ends",
        ),
        Ok(Some(record)) if is_local => {
            Finding::ok("ipsec", format!("{name}: numbers above {} are accepted", record.received))
        }
        Ok(Some(_)) => Finding::ok("ipsec", format!("{name}: its key has sequence numbers")),
        Ok(None) if is_local => {
            Finding::ok("ipsec", format!("{name}: nothing was received with its key"))
        }
        Ok(None) => Finding::warn(
            "ipsec",
            format!("{name}: its key has no sequence numbers, and is not used for sending"),
            "ferroute xfrm new-keys -c FILE, if it was never used; otherwise another key, at both ends",
        ),
        Err(error) => Finding::fail(
            "ipsec",
            format!("{name}: its sequence numbers cannot be read: {error}"),
            "another key, at both ends, if they are lost",
        ),
    }
}

/// Nothing without policies. `obstacle`: why workers cannot run the nftables ruleset on IPsec packets.
pub fn findings(rules: &Rules, obstacle: Option<&str>) -> Vec<Finding> {
    let policies = rules.policies().map_or(0, <[_]>::len);
    if policies == 0 {
        return Vec::new();
    }
    let obstacle = obstacle.map(|what| format!("the nftables ruleset has {what}"));
    if let Some(filter) = obstacle.or_else(|| rules.local_filter()) {
        return vec![Finding::warn(
            "ipsec",
            format!(
                "{policies} IPsec policies: packets that they protect or drop are left to the kernel, because only it \
                 can filter them: {filter}"
            ),
            "nothing, if the kernel is fast enough for them; else filter as docs/IPSEC.md says",
        )];
    }
    let sas = match NlSock::open(NETLINK_XFRM).and_then(|mut socket| state::read(&mut socket)) {
        Ok(sas) => sas,
        Err(error) => {
            return vec![Finding::warn(
                "ipsec",
                format!("{policies} IPsec policies; SAs cannot be read: {error}"),
                "look with ip xfrm state",
            )];
        }
    };
    // Those that are being negotiated have no SPI yet.
    let sas = sas.iter().filter(|sa| sa.id.spi != 0);
    let (interfaces, left) = rules.tunnel_interfaces();
    let obstacle = |sa: &state::KernelState| {
        let if_id = sa.config.if_id;
        let has_interface = if_id == 0 || interfaces.contains(&if_id);
        sa.obstacle().or_else(|| (!has_interface).then(|| workers::no_interface(if_id)))
    };
    let (usable, kernels): (Vec<_>, Vec<_>) = sas.partition(|sa| obstacle(sa).is_none());
    let message = format!(
        "{policies} IPsec policies; userspace uses {} SAs, and leaves packets of {} to the kernel",
        usable.len(),
        kernels.len()
    );
    let name = |sa: &&state::KernelState| Some(format!("{}: {}", sa.id, obstacle(sa)?));
    let reasons = kernels.iter().filter_map(name).chain(left);
    let reasons: Vec<String> = reasons.take(NAMED_MAX).collect();
    vec![match reasons.is_empty() {
        true => Finding::ok("ipsec", message),
        false => Finding::warn(
            "ipsec",
            format!("{message}: {}", reasons.join("; ")),
            "docs/IPSEC.md has the algorithms and interfaces that userspace can use",
        ),
    }]
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::control::doctor::Level;

    #[test]
    fn settings_that_exempt_from_policies_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let set = |path: &str, value: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("one")).expect("makes it");
            fs::write(path, value).expect("writes");
        };
        set("ipv4/conf/eth0/disable_xfrm", "0\n");
        set("ipv4/conf/lo/disable_xfrm", "1\n");
        set("ipv4/conf/lo/disable_policy", "1\n");
        assert_eq!(exempt(dir.path()).len(), 0);
        set("ipv4/conf/all/disable_xfrm", "1\n");
        set("ipv6/conf/eth0.7/disable_policy", "1\n");
        let found = exempt(dir.path());
        let found: Vec<_> = found.iter().map(|it| (it.level, it.message.as_str())).collect();
        let [(Level::Fail, all), (Level::Warn, one)] = found[..] else { panic!("{found:?}") };
        assert!(all.starts_with("net.ipv4.conf.all.disable_xfrm is set"), "{all}");
        assert!(one.starts_with("net.ipv6.conf.eth0.7.disable_policy is set"), "{one}");
    }

    #[test]
    fn keys_are_judged_by_what_they_are_for() {
        let record = |sent| Record { sent, ..Record::new().expect("random numbers") };
        let level = |record, is_local| of_record("x", Ok(record), is_local).level;
        assert_eq!(level(Some(record(5)), false), Level::Ok);
        assert_eq!(level(None, false), Level::Warn);
        assert_eq!(level(None, true), Level::Ok);
        assert_eq!(level(Some(record(NEVER_SENT)), true), Level::Ok);
        assert_eq!(level(Some(record(NEVER_SENT)), false), Level::Fail);
        let damaged = io::Error::from(io::ErrorKind::InvalidData);
        assert_eq!(of_record("x", Err(damaged), true).level, Level::Fail);
    }

    #[test]
    fn the_state_directory_is_looked_at() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = dir.path().join("missing");
        assert_eq!(directory(&missing).level, Level::Warn);
        assert!(!missing.exists());
        for (mode, level) in [(0o700, Level::Ok), (0o750, Level::Fail)] {
            fs::set_permissions(dir.path(), Permissions::from_mode(mode)).expect("changes");
            assert_eq!(directory(dir.path()).level, level, "{mode:o}");
        }
    }
}
