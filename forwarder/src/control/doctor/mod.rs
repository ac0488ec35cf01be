//! Checks a machine for what prevents forwarding or makes it slow: one line per finding, each with what to
//! do. Works without the daemon, and as far as possible without root.
//!
//! All information comes from the kernel by netlink, in the network namespace of the calling thread; sysfs
//! would show the namespace in which it was mounted.
//!
//! - `host`: the machine and the namespace; `rules`: rules that only the kernel evaluates;
//! - `process`: privileges and limits of `run`;
//! - `port`: whether an interface, as [`crate::control::netdev::nic`] reads it, can be a port;
//! - `queues`: its queues and the workers that serve them.

mod host;
mod ipsec;
mod port;
mod process;
mod queues;
mod rules;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::ipsec::ipsec_of_file;
use crate::control::config::interfaces::{Candidate, Interfaces};
use crate::control::netdev::nic;

/// Checks that can keep an interface from being a port.
const UNFIT: [&str; 3] = ["xdp", "mtu", "vlan"];

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// In order.
    Ok,
    /// Works, but slower or differently than the user may expect.
    Warn,
    /// Does not work.
    Fail,
}

impl Level {
    /// The name as printed.
    pub fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was checked: `kernel`, `mtu`, ….
    pub check: String,
    /// The interface; `None`: the whole machine.
    pub port: Option<String>,
    /// The severity.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do; `None`: nothing.
    pub advice: Option<String>,
}

impl Finding {
    fn ok(check: &str, message: impl Into<String>) -> Finding {
        Finding {
            check: check.into(),
            port: None,
            level: Level::Ok,
            message: message.into(),
            advice: None,
        }
    }

    fn warn(check: &str, message: impl Into<String>, advice: impl Into<String>) -> Finding {
        let advice = Some(advice.into());
        Finding { level: Level::Warn, advice, ..Finding::ok(check, message) }
    }

    fn fail(check: &str, message: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { level: Level::Fail, ..Finding::warn(check, message, advice) }
    }

    /// For an interface that only matches a pattern: being unfit as a port is not a failure.
    fn of_matched(self) -> Finding {
        match self.level {
            Level::Fail if UNFIT.contains(&&*self.check) => Finding {
                level: Level::Warn,
                message: format!("{}; left to the kernel", self.message),
                ..self
            },
            _ => self,
        }
    }

    fn on(self, port: &str) -> Finding {
        Finding { port: Some(port.into()), ..self }
    }
}

/// Checks the machine and `interfaces`. Without any: the ports of the daemon behind `control`, or else
/// every Ethernet interface that is up.
pub fn examine(interfaces: &Interfaces, control: &Path) -> Vec<Finding> {
    let daemon = host::daemon(control);
    let nics = nic::read();
    let mut matched = Vec::new();
    let mut ports: Vec<String> = match (interfaces.is_empty(), &daemon.status) {
        (true, Some(status)) => {
            let (taken, named): (Vec<_>, Vec<_>) =
                status.ports.iter().partition(|port| port.matched);
            matched = taken.into_iter().map(|port| port.ifname.clone()).collect();
            named.into_iter().map(|port| port.ifname.clone()).collect()
        }
        (true, None) => {
            // VLANs are served with their lower interface.
            let own = |nic: &nic::Nic| nic.kind.as_deref() != Some("vlan");
            let usable = |nic: &&nic::Nic| nic.is_ethernet() && nic.is_up() && own(nic);
            nics.iter().flatten().filter(usable).map(|nic| nic.name.clone()).collect()
        }
        (false, _) => {
            let all: Vec<Candidate<'_>> = nics.iter().flatten().map(Candidate::from).collect();
            // Interfaces that are down are not selected until they are up.
            let matching = interfaces.matching(&all).into_iter().filter(|found| found.is_up);
            matched = matching.map(|found| found.name.to_owned()).collect();
            interfaces.named().to_vec()
        }
    };
    let mut findings = host::machine();
    let all = || ports.iter().chain(&matched);
    let queues = nics.iter().flatten().filter(|nic| all().any(|name| *name == nic.name));
    let queues = queues.map(|nic| nic::queues(nic.ifindex).map_or(1, |queues| queues.rx.into()));
    // A router has two ports.
    let count = all().count().max(2) as u64;
    findings.extend(process::examine(count, queues.sum::<u64>().max(count), control));
    findings.extend(host::firewall(&ports, &matched));
    ports.extend_from_slice(&matched);
    findings.extend(daemon.findings);
    match nics {
        Err(error) => findings.push(Finding::fail(
            "links",
            format!("interfaces cannot be listed: {error}"),
            "check that rtnetlink is allowed here (seccomp, sandbox)",
        )),
        Ok(_) if ports.is_empty() && interfaces.has_patterns() => findings.push(Finding::warn(
            "links",
            format!("no interface that is up matches {}", interfaces.patterns()),
            "nothing, if one will be added; else check the names with ip link",
        )),
        Ok(_) if ports.is_empty() => findings.push(Finding::fail(
            "links",
            "no Ethernet interface is up",
            "name the ports with -i IFACE",
        )),
        Ok(nics) => {
            for name in &ports {
                let port = daemon.status.iter().flat_map(|status| &status.ports);
                let port = port.into_iter().find(|port| port.ifname == *name);
                let found = port::examine(name, &nics, port.is_some()).into_iter();
                let is_matched = matched.contains(name);
                findings.extend(found.map(|f| if is_matched { f.of_matched() } else { f }));
                let served = queues::Served {
                    queues: port.map_or(0, |port| port.queues),
                    workers: daemon.status.as_ref().map_or(&[], |status| &status.workers),
                };
                let nic = nics.iter().find(|nic| nic.name == *name);
                let found = nic.into_iter().flat_map(|nic| queues::examine(nic, &served));
                findings.extend(found.map(|finding| finding.on(name)));
            }
        }
    }
    findings
}
