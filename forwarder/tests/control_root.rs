//! Detection of firewalls, the doctor and the control socket, against the running kernel.
//!
//! Needs root. Each test has a network namespace of its own, which ends with its thread.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use ferroute::control::api::server::{Answer, ControlHandler, Server};
use ferroute::control::api::{Request, Response};
use ferroute::control::config::interfaces::Interfaces;
use ferroute::control::doctor::{Finding, Level, examine};
use ferroute::control::firewall::bypassed;

use netns::run;

mod netns;

/// Runs `test` in a thread with a network namespace of its own.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    netns::in_namespace(|| {
        run("ip link set lo up");
        test();
    });
}

fn found() -> Vec<String> {
    bypassed(&["port".into()]).expect("the kernel can be asked")
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_namespace_without_rules_has_nothing_to_bypass() {
    in_namespace(|| assert_eq!(found(), Vec::<String>::new()));
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_nftables_rules_that_workers_apply_are_not_bypassed() {
    in_namespace(|| {
        run(
            "nft 'table inet t { chain in { type filter hook input priority 0; ct state new accept; }; \
             chain out { type filter hook output priority 0; }; chain plain { accept; }; }'",
        );
        assert_eq!(found(), Vec::<String>::new());
        // Workers apply it.
        run("nft 'table inet t { chain f { type filter hook forward priority filter; \
             policy drop; tcp dport 22 accept; log prefix \"x\"; }; }'");
        assert_eq!(found(), Vec::<String>::new());
        run("nft 'table inet t { chain f { ct state established accept; }; }'");
        assert_eq!(found(), Vec::<String>::new());
        run(
            "nft 'flush ruleset; table ip n { chain p { type nat hook postrouting priority 100; }; }'",
        );
        assert_eq!(found(), Vec::<String>::new());
        run("nft flush ruleset");
        assert_eq!(found(), Vec::<String>::new());
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_classifier_counts_on_a_port_only() {
    in_namespace(|| {
        run("ip link add port type veth peer name other");
        // Chains at ingress are run by workers.
        run(
            "nft 'table netdev t { chain i { type filter hook ingress device port priority 0; }; }'",
        );
        let filter = |device: &str| {
            run(&format!("tc qdisc add dev {device} clsact"));
            run(&format!("tc filter add dev {device} ingress u32 match u32 0 0 classid 1:1"));
            found()
        };
        assert_eq!(filter("other"), Vec::<String>::new());
        let on_port = filter("port");
        assert!(on_port.iter().any(|it| it.contains("port")), "{on_port:?}");
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_iptables_of_either_kind_is_found() {
    in_namespace(|| {
        run("iptables-nft -A FORWARD -j DROP");
        assert_eq!(found(), Vec::<String>::new());
        run("iptables-nft -A FORWARD -m conntrack --ctstate NEW -j DROP");
        assert_eq!(found(), Vec::<String>::new());
    });
    in_namespace(|| {
        // The kernel may have been built without the legacy tables.
        let loads = Command::new("iptables-legacy").args(["-t", "filter", "-S"]).output();
        if !loads.expect("iptables-legacy").status.success() {
            assert_eq!(found(), Vec::<String>::new());
            return;
        }
        assert!(found()[0].starts_with("iptables-legacy: table filter"), "{:?}", found());
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_ipsec_policies_are_followed_and_defaults_found() {
    in_namespace(|| {
        for direction in ["in", "fwd", "out"] {
            run(&format!(
                "ip xfrm policy add dir {direction} src 10.0.0.0/8 dst 10.1.0.0/16 \
                 tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel"
            ));
        }
        run("ip xfrm policy add dir fwd src 2001:db8::/32 dst 2001:db8:1::/48 action block");
        // They are followed.
        assert_eq!(found(), Vec::<String>::new());
        let findings = doctor("lo");
        assert!(one(&findings, "ipsec").message.starts_with("4 IPsec policies"), "{findings:#?}");
    });
    in_namespace(|| {
        // Linux 5.14 and later.
        let set =
            Command::new("ip").args(["xfrm", "policy", "setdefault", "fwd", "block"]).output();
        if set.expect("ip").status.success() {
            assert!(found()[0].contains("blocked by default"), "{:?}", found());
        }
    });
}

struct Never;

impl ControlHandler for Never {
    fn handle(&self, _: Request) -> Answer {
        Response::error("it was asked").into()
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_another_user_is_refused_even_if_the_file_mode_allows_it() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("chmod");
    let path = dir.path().join("control.sock");
    let _server = Server::start(&path, Arc::new(Never)).expect("starts");
    // A copy, because the directory of the build may be closed to others.
    let program = dir.path().join("ferroute");
    // Copied by another process: a file that a concurrent test has inherited open for writing cannot be
    // executed.
    run(&format!("cp {} {}", env!("CARGO_BIN_EXE_ferroute"), program.display()));
    let ask = || {
        let mut command = Command::new(&program);
        command.args(["status", "--control"]).arg(&path).uid(65534).gid(65534);
        let output = command.output().expect("starts");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(ask().contains("permission denied; run this as root"), "{}", ask());
    fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("chmod");
    assert!(ask().contains("user 65534 is not root"), "{}", ask());
}

/// The doctor's findings for `port`, and for the namespace.
fn doctor(port: &str) -> Vec<Finding> {
    let port = Interfaces::parse(&[port]).expect("a name");
    examine(&port, "/nonexistent/control.sock".as_ref())
}

fn one<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
    let found = findings.iter().find(|finding| finding.check == check);
    found.unwrap_or_else(|| panic!("no {check} in {findings:#?}"))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_the_doctor_finds_a_veth_fit_to_forward() {
    in_namespace(|| {
        run("ip link add port type veth peer name peer; ip link set port up; ip link set peer up");
        run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        let findings = doctor("port");
        let fails: Vec<_> = findings.iter().filter(|f| f.level == Level::Fail).collect();
        assert!(fails.is_empty(), "{fails:#?}");
        assert!(one(&findings, "driver").message.starts_with("veth: native XDP"));
        assert!(one(&findings, "queues").message.starts_with("1 RX,"));
        assert_eq!(one(&findings, "xdp").message, "no program attached");
        assert_eq!(one(&findings, "forwarding").message, "IPv4 and IPv6 are on");
        run("ethtool -K port rxvlan off");
        assert_eq!(one(&doctor("port"), "offloads").level, Level::Ok);
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_the_doctor_reports_problems_and_remedies() {
    in_namespace(|| {
        run("ip link add port numrxqueues 64 numtxqueues 64 type veth peer name peer");
        run("ip link set port mtu 9001; ip link add br0 type bridge; ip link set port master br0");
        run("ethtool -L port rx 64 tx 64");
        run("sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.port.rp_filter=1");
        run("ip xfrm policy setdefault fwd block");
        run("tc qdisc add dev port clsact");
        let findings = doctor("port");
        let expect = |check: &str, level, message: &str, advice: &str| {
            let finding = one(&findings, check);
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.message.contains(message), "{finding:?}");
            assert!(finding.advice.as_deref().unwrap_or_default().contains(advice), "{finding:?}");
        };
        expect("link", Level::Fail, "down", "ip link set dev port up");
        expect("mtu", Level::Fail, "9001", "ip link set dev port mtu 9000");
        expect("master", Level::Fail, "bridge br0", "nomaster");
        expect("queues", Level::Ok, "64 RX", "");
        expect("firewall", Level::Fail, "blocked by default", "--ignore-firewall");
        expect("forwarding", Level::Fail, "is off", "net.ipv4.ip_forward=1");
        expect("rp_filter", Level::Ok, "strict", "");
        expect("tc", Level::Warn, "clsact", "tc filter show");
        expect("daemon", Level::Ok, "none runs", "");
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_the_doctor_names_a_foreign_xdp_program() {
    in_namespace(|| {
        run("ip link add port type veth peer name peer; ip link set port up; ip link set peer up");
        let dir = tempfile::tempdir().expect("a directory");
        let (source, object) = (dir.path().join("pass.c"), dir.path().join("pass.o"));
        fs::write(
            &source,
            "__attribute__((section(\"xdp\"), used)) int stranger(void *c) { return 2; }",
        )
        .expect("writes");
        run(&format!("clang -O2 -g -target bpf -c {} -o {}", source.display(), object.display()));
        run(&format!("ip link set dev port xdpgeneric obj {} sec xdp", object.display()));
        let findings = doctor("port");
        let xdp = one(&findings, "xdp");
        assert_eq!(xdp.level, Level::Fail);
        assert!(xdp.message.starts_with("stranger (id "), "{xdp:?}");
        let advice = xdp.advice.as_deref().expect("advice");
        assert!(advice.ends_with("ip link set dev port xdpgeneric off"), "{advice}");
        let findings = doctor("por*");
        let xdp = one(&findings, "xdp");
        assert_eq!(xdp.level, Level::Warn);
        assert!(xdp.message.ends_with("left to the kernel"), "{xdp:?}");
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_problems_of_one_matched_interface_are_no_failure() {
    in_namespace(|| {
        run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        run("ip link add port0 type veth peer name port1; ip link set port0 mtu 9001");
        run("ip link set port0 up; ip link set port1 up; ethtool -K port1 rxvlan off");
        run("tc qdisc add dev port1 clsact");
        run("tc filter add dev port1 ingress u32 match u32 0 0 classid 1:1");
        let fails = |words: &[&str]| {
            let interfaces = Interfaces::parse(words).expect("sound");
            let findings = examine(&interfaces, "/nonexistent/control.sock".as_ref());
            let fails = findings.iter().filter(|f| f.level == Level::Fail).map(|f| f.check.clone());
            (fails.collect::<Vec<_>>(), findings)
        };
        let (failed, findings) = fails(&["port?"]);
        assert!(failed.is_empty(), "{findings:#?}");
        let left = |check: &str, port: &str| {
            let found =
                findings.iter().find(|f| f.check == check && f.port.as_deref() == Some(port));
            let found = found.unwrap_or_else(|| panic!("no {check} of {port} in {findings:#?}"));
            assert!(found.message.ends_with("left to the kernel"), "{found:?}");
        };
        left("mtu", "port0");
        left("firewall", "port1");
        // Named ports must be usable; findings that affect every port are failures.
        assert_eq!(fails(&["port0", "port1"]).0, ["firewall", "mtu"]);
        run("ip xfrm policy setdefault fwd block");
        assert_eq!(fails(&["port?"]).0, ["firewall"]);
    });
}
