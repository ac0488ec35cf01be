//! Checks of the machine and the namespace.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::{Finding, Level};
use super::{ipsec, rules};
use crate::control::api::client::{Client, ClientError};
use crate::control::api::{Request, Response, StatusReport};
use crate::control::firewall;
use crate::control::process::{kernel, privilege};
use crate::control::steering::Steering;
use crate::control::steering::punt::{self, PuntDevice, PuntError};
use crate::io::af_xdp::rx_handlers::RxHandlerIter;
use crate::netfilter::nft::ORDER_UNKNOWN;

/// The device file for creating TAP devices.
const TUN: &str = "/dev/net/tun";

/// The kernel, and what is needed to hand packets back to it.
pub fn machine() -> Vec<Finding> {
    let mut findings = vec![kernel(), rx_handlers(), jit()];
    findings.extend(hand_back());
    findings.extend(learnt_mtu());
    findings
}

/// Handing packets back to the kernel: a TAP device, and a classifier at its ingress.
fn hand_back() -> Vec<Finding> {
    let tun = of_tun(fs::File::options().read(true).write(true).open(TUN).map(drop));
    if tun.level != Level::Ok {
        return vec![tun];
    }
    vec![tun, of_trial(try_hand_back())]
}

/// `opened`: the result of opening /dev/net/tun, which does not create a device yet.
fn of_tun(opened: io::Result<()>) -> Finding {
    let Err(error) = opened else { return Finding::ok("tun", format!("{TUN} can be opened")) };
    let message = format!(
        "{TUN} cannot be opened: {error}; packets are handed back to the kernel through it"
    );
    Finding::fail("tun", message, punt::tun_advice(&error))
}

/// Result of trying to hand packets back.
enum Trial {
    Works,
    /// It could not be started: why, and what to do.
    NotTried(String, &'static str),
    /// The kernel has no clsact, no BPF classifier, or refuses ours.
    NoClassifier(String),
    Failed(String),
}

/// Creates the device and classifier as `run` does, in a network namespace that ends with this thread.
fn try_hand_back() -> Trial {
    if let Some(need) = privilege::missing(0).first() {
        return Trial::NotTried(
            format!("{} is missing", need.capability),
            "run the doctor as root",
        );
    }
    let trial = thread::spawn(|| {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            return Trial::NotTried(
                format!("no network namespace to try it in: {error}"),
                "this needs CAP_SYS_ADMIN and a free place in user.max_net_namespaces; run does not",
            );
        }
        let steering = match Steering::new() {
            Ok(steering) => steering,
            Err(error) => return Trial::Failed(error.to_string()),
        };
        match PuntDevice::open(&steering) {
            Ok(_) => Trial::Works,
            Err(PuntError::Classifier { source, .. }) => Trial::NoClassifier(source.to_string()),
            Err(error) => Trial::Failed(error.to_string()),
        }
    });
    trial.join().unwrap_or_else(|_| {
        Trial::NotTried("the trial panicked".into(), "this is a bug; please report it")
    })
}

fn of_trial(trial: Trial) -> Finding {
    match trial {
        Trial::Works => Finding::ok("classifier", "packets can be handed back to the kernel"),
        Trial::NotTried(why, advice) => Finding::warn(
            "classifier",
            format!("whether packets can be handed back to the kernel was not tried: {why}"),
            advice,
        ),
        Trial::NoClassifier(error) => Finding::fail(
            "classifier",
            format!("packets cannot be handed back to the kernel: no BPF classifier: {error}"),
            "modprobe -a sch_ingress cls_bpf; a custom kernel needs CONFIG_NET_SCH_INGRESS and \
             CONFIG_NET_CLS_BPF",
        ),
        Trial::Failed(error) => Finding::fail(
            "classifier",
            format!("packets cannot be handed back to the kernel: {}", first_line(&error)),
            "ferroute run prints the whole error",
        ),
    }
}

/// The first line: libbpf's messages may be long.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn kernel() -> Finding {
    let release = kernel::release();
    match kernel::version(&release) {
        Some(version) if version < kernel::OLDEST => {
            let (major, minor) = kernel::OLDEST;
            let message = format!("Linux {release} is older than {major}.{minor}");
            Finding::fail("kernel", message, "boot a newer kernel")
        }
        Some(_) => Finding::ok("kernel", format!("Linux {release}")),
        None => {
            let message = format!("the release `{release}` is not recognized");
            Finding::warn("kernel", message, "make sure that it is Linux 6.1 or later")
        }
    }
}

/// Whether it can be read which interfaces have an rx_handler of another device.
fn rx_handlers() -> Finding {
    match RxHandlerIter::open().and_then(|mut handlers| handlers.read()) {
        Ok(_) => Finding::ok("rx handlers", "the kernel reports which interfaces have one"),
        Err(error) => Finding::warn(
            "rx handlers",
            format!(
                "it cannot be read which interfaces have one: {error}; a macvlan or ipvlan of another \
                 network namespace on a port would not be seen"
            ),
            "run as root on a kernel with CONFIG_DEBUG_INFO_BTF and without lockdown, or have no such \
             interface on a port",
        ),
    }
}

fn jit() -> Finding {
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable") {
        Ok(text) if text.trim() == "0" => Finding::warn(
            "jit",
            "BPF programs are interpreted",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        // Unreadable in a user namespace, or not switchable: then it is on.
        _ => Finding::ok("jit", "BPF programs are compiled"),
    }
}

/// Path MTUs that the kernel has learnt are not mirrored.
fn learnt_mtu() -> Option<Finding> {
    let value = fs::read_to_string("/proc/sys/net/ipv4/ip_forward_use_pmtu").ok()?;
    (value.trim() != "0").then(|| {
        Finding::warn(
            "pmtu",
            "ip_forward_use_pmtu is on: IPv4 stays in the kernel, which forwards by path MTUs it has \
             learnt",
            "sysctl -w net.ipv4.ip_forward_use_pmtu=0",
        )
    })
}

/// Rules that would be bypassed. Rules on `matched` interfaces only do not affect the other interfaces.
pub fn firewall(named: &[String], matched: &[String]) -> Vec<Finding> {
    let ports: Vec<String> = named.iter().chain(matched).cloned().collect();
    let (mut of_rules, mut tracks, mut flowtables) = (Vec::new(), None, Vec::new());
    let mut filters_ipsec = None;
    let rules = firewall::Rules::read(&ports).and_then(|mut rules| {
        let ruleset = rules.follow_ruleset()?;
        (of_rules, tracks) = (rules::findings(&ruleset), ruleset.program.uses_conntrack());
        flowtables.extend(ruleset.ruleset.flowtables());
        filters_ipsec = ruleset.program.ipsec_obstacle();
        Ok(rules)
    });
    let own = |name: &String| {
        let found = rules.as_ref().ok()?.own(std::slice::from_ref(name)).join("; ");
        let finding = Finding::warn(
            "firewall",
            format!("rules on it would be bypassed: {found}; left to the kernel"),
            "nothing, if it is to stay in the kernel; else remove them, or start with --ignore-firewall",
        );
        (!found.is_empty()).then(|| finding.on(name))
    };
    let own: Vec<Finding> = matched.iter().filter_map(own).collect();
    let policies =
        rules.as_ref().map_or_else(|_| Vec::new(), |rules| ipsec::findings(rules, filters_ipsec));
    let hooks = rules.as_ref().ok().map(|rules| of_means(rules.means()));
    let egress = rules.as_ref().map_or_else(|_| Vec::new(), |rules| rules.at_egress(&ports));
    let egress = egress.into_iter().map(|chain| {
        Finding::warn(
            "firewall",
            format!("{chain}: packets that leave there are left to the kernel"),
            "filter at ingress, or at the hook forward or postrouting, instead",
        )
    });
    // Packets of all ports are left to the kernel for these, as for filters that workers do not know.
    let is_order = |line: &String| line.ends_with(ORDER_UNKNOWN);
    let (order, rest) = match rules.map(|rules| rules.bypassed(named)) {
        Ok(found) => {
            let (order, others) = found.into_iter().partition::<Vec<_>, _>(is_order);
            (order, Ok(others))
        }
        Err(error) => (Vec::new(), Err(error)),
    };
    let order = order.into_iter().map(|line| {
        let message = format!("would be bypassed: {line}");
        Finding::fail("firewall", message, "give these chains different priorities")
    });
    let order: Vec<Finding> = order.collect();
    let rest = match rest {
        Ok(found) if found.is_empty() && !order.is_empty() => None,
        Ok(found) if found.is_empty() => {
            Some(Finding::ok("firewall", "no rule or policy of the kernel would be bypassed"))
        }
        Ok(found) => Some(Finding::fail(
            "firewall",
            format!("would be bypassed: {}", found.join("; ")),
            "remove them, or start with --ignore-firewall if they need not hold for the traffic \
             between the ports",
        )),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Some(Finding::warn(
            "firewall",
            format!("rules cannot be read: {error}"),
            "run the doctor as root",
        )),
        Err(error) => Some(Finding::warn(
            "firewall",
            format!("rules cannot be read: {error}"),
            "look with nft list ruleset, iptables-legacy-save and ip xfrm policy",
        )),
    };
    let tracked = tracks.map(|rule| {
        Finding::ok(
            "firewall",
            format!(
                "connections are tracked ({rule}): userspace forwards established connections of TCP and \
                 UDP, lasting pings and tunnels, the kernel all other packets"
            ),
        )
    });
    let offloaded = flowtables.into_iter().map(|flowtable| {
        Finding::warn(
            "firewall",
            format!("nftables: flowtable {flowtable}: {OFFLOADED}"),
            "delete the rules with flow add and the flowtable (OpenWrt: uci set \
             firewall.@defaults[0].flow_offloading=0), and userspace carries these connections",
        )
    });
    own.into_iter()
        .chain(hooks)
        .chain(order)
        .chain(rest)
        .chain(policies)
        .chain(tracked)
        .chain(offloaded)
        .chain(egress)
        .chain(of_rules)
        .collect()
}

/// What a flowtable does with connections.
const OFFLOADED: &str = "the kernel forwards the connections that rules add to it (flow add)";

/// Whether every netfilter hook can be found.
fn of_means(means: &firewall::Means) -> Finding {
    match means {
        firewall::Means::Netlink => {
            Finding::ok("hooks", "the kernel lists netfilter hooks (nfnetlink_hook)")
        }
        firewall::Means::Iterator => Finding::ok(
            "hooks",
            "netfilter hooks are read by a BPF iterator: the kernel has no nfnetlink_hook",
        ),
        firewall::Means::Parts(why) => Finding::warn(
            "hooks",
            format!(
                "netfilter hooks cannot be listed ({}): only nftables, legacy iptables, BPF links and \
                 IPVS are found there",
                first_line(why)
            ),
            "modprobe nfnetlink_hook; a custom kernel needs CONFIG_NETFILTER_NETLINK_HOOK, or \
             CONFIG_DEBUG_INFO_BTF",
        ),
    }
}

/// The daemon, if it answers.
pub struct Daemon {
    /// Its status; `None`: none runs, or it does not answer.
    pub status: Option<StatusReport>,
    /// Findings about it.
    pub findings: Vec<Finding>,
}

/// Requests the daemon's status.
pub fn daemon(control: &Path) -> Daemon {
    let answer = Client::connect(control).and_then(|mut client| client.ask(&Request::Status));
    match answer {
        Ok(Response::Status(report)) => {
            Daemon { findings: of_status(&report), status: Some(*report) }
        }
        Ok(_) => Daemon { status: None, findings: Vec::new() },
        Err(ClientError::NotRunning { .. }) => {
            Daemon { status: None, findings: vec![Finding::ok("daemon", "none runs here")] }
        }
        Err(error) => {
            let finding = Finding::warn("daemon", error.to_string(), "run the doctor as root");
            Daemon { status: None, findings: vec![finding] }
        }
    }
}

fn of_status(report: &StatusReport) -> Vec<Finding> {
    let state = format!("pid {} is {}", report.pid, report.state.name());
    let mut findings = vec![Finding::ok("daemon", state)];
    let see = "see ferroute status";
    findings.extend(report.warnings.iter().map(|text| Finding::warn("daemon", text, see)));
    findings.extend(report.mirror.unmirrored.iter().map(|what| {
        let message = format!("left to the kernel: {what}");
        Finding::warn(
            "mirror",
            message,
            "the kernel forwards its packets; more than it can take back are dropped (PUNT_FAILED)",
        )
    }));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{MirrorStatus, State};

    #[test]
    fn a_missing_tap_device_or_classifier_is_reported_with_a_remedy() {
        assert_eq!(of_tun(Ok(())).level, Level::Ok);
        for (errno, advice) in [
            (libc::ENOENT, "modprobe tun"),
            (libc::ENODEV, "modprobe tun"),
            (libc::EPERM, "DeviceAllow="),
            (libc::EACCES, "chmod 0666"),
            (libc::EMFILE, "ulimit -n"),
        ] {
            let finding = of_tun(Err(io::Error::from_raw_os_error(errno)));
            assert_eq!(finding.level, Level::Fail);
            let said = finding.advice.expect("what to do");
            assert!(said.contains(advice), "{said}");
        }
        assert_eq!(of_trial(Trial::Works).level, Level::Ok);
        assert_eq!(of_trial(Trial::NotTried("no CAP_BPF".into(), "be root")).level, Level::Warn);
        let finding = of_trial(Trial::NoClassifier("No such file or directory".into()));
        assert_eq!(finding.level, Level::Fail);
        assert!(finding.advice.is_some_and(|said| said.contains("sch_ingress cls_bpf")));
        let finding = of_trial(Trial::Failed("no map\nlibbpf: much".into()));
        assert!(finding.message.ends_with("the kernel: no map"), "{}", finding.message);
    }

    #[test]
    fn hooks_that_cannot_be_listed_are_a_warning_with_the_reason() {
        assert_eq!(of_means(&firewall::Means::Netlink).level, Level::Ok);
        assert_eq!(of_means(&firewall::Means::Iterator).level, Level::Ok);
        let finding = of_means(&firewall::Means::Parts("no BTF\nmore of it".into()));
        assert_eq!(finding.level, Level::Warn);
        assert!(finding.message.contains("(no BTF)"), "{}", finding.message);
    }

    #[test]
    fn state_that_the_daemon_cannot_mirror_is_a_warning() {
        let report = StatusReport {
            state: State::Forwarding,
            pid: 9,
            version: String::new(),
            driver: String::new(),
            uptime_seconds: 0,
            ports: Vec::new(),
            workers: Vec::new(),
            mirror: MirrorStatus { unmirrored: vec!["rule 7".into()], ..MirrorStatus::default() },
            carried_flows: None,
            offloaded_flows: None,
            ipsec_policies: None,
            ipsec_sas: None,
            warnings: Vec::new(),
        };
        let findings = of_status(&report);
        assert_eq!(findings[0].message, "pid 9 is forwarding");
        assert_eq!((findings[1].level, findings[1].check.as_str()), (Level::Warn, "mirror"));
        assert_eq!(findings[1].message, "left to the kernel: rule 7");
    }
}
