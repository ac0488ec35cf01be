//! IPsec: which policies and security associations userspace applies.

use netlink_sys::protocols::NETLINK_XFRM;

use super::Finding;
use crate::control::config::RunOptions;
use crate::control::firewall::Rules;
use crate::control::netlink::query::NlSock;
use crate::control::xfrm::{policy, state, store, workers};

/// SAs of the kernel that are named.
const NAMED_MAX: usize = 8;

/// SAs of a file: whether the kernel has its policies and no SAs, and whether the keys have sequence numbers.
pub fn ipsec_of_file(options: &RunOptions) -> Vec<Finding> {
    let file = &options.xfrm;
    if file.is_empty() {
        return Vec::new();
    }
    let read = || {
        let mut socket = NlSock::open(NETLINK_XFRM)?;
        Ok::<_, std::io::Error>((policy::read(&mut socket)?.list, state::read(&mut socket)?))
    };
    let mut findings = Vec::new();
    match read() {
        Err(error) => findings.push(Finding::fail(
            "ipsec",
            format!("the kernel's IPsec policies cannot be read: {error}"),
            "a kernel with CONFIG_XFRM_USER, and CAP_NET_ADMIN",
        )),
        Ok((policies, states)) => {
            let differences = file.differences(&policies);
            findings.push(match differences.is_empty() {
                true => Finding::ok("ipsec", "the kernel has the policies of the file"),
                false => Finding::fail(
                    "ipsec",
                    "the kernel does not have the policies of the file: it would forward in clear what they protect",
                    differences.join("; "),
                ),
            });
            if let Some(sa) = states.iter().find(|sa| sa.id.spi != 0) {
                findings.push(Finding::fail(
                    "ipsec",
                    format!("the kernel has SAs, such as {}, and so has the file", sa.id),
                    "ip xfrm state delete, or IPsec of the kernel without the section",
                ));
            }
        }
    }
    for sa in file.states() {
        let name = sa.name();
        match store::read(&options.state_dir, &sa.key_id()) {
            Ok(Some(_)) => findings.push(Finding::ok("ipsec", format!("{name}: its key has sequence numbers"))),
            Ok(None) => findings.push(Finding::warn(
                "ipsec",
                format!("{name}: its key has no sequence numbers, and is not used for sending"),
                "ferroute xfrm new-keys -c FILE, if it was never used; otherwise another key, at both ends",
            )),
            Err(error) => findings.push(Finding::fail(
                "ipsec",
                format!("{name}: its sequence numbers cannot be read: {error}"),
                "another key, at both ends, if they are lost",
            )),
        }
    }
    findings
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
