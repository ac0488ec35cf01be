//! `ferroute xfrm` prints what `ip xfrm` prints, octet by octet. SAs with keys are compared in the virtual machine
//! (`scripts/vm.d/check`): the kernel here need not have ESP.

use anyhow::{Result, ensure};
use ferroute_tests::{Lab, Netns, ferroute};
use serde_json::Value;

/// Policies of all kinds, each as the arguments of `ip xfrm policy add`.
const POLICIES: [&str; 14] = [
    "dir fwd src 198.18.1.0/24 dst 198.18.2.0/24 action block",
    "dir fwd src 2001:db8::/32 dst ::/0 priority 4294967295",
    "dir in src ::1.2.3.4/128 dst ::ffff:1.2.3.4/128 proto ipv6-icmp type 3 code 4 flag icmp",
    "dir out src 198.18.1.1/32 dst 198.18.2.1/32 proto tcp sport 10 dport 443 dev rt-right priority 7 flag localok",
    "dir out src 0.0.0.0/0 dst 198.18.3.0/24 proto udp dport 53 flag localok flag icmp",
    "dir fwd src 0.0.0.0/0 dst 198.18.4.0/24 proto gre key 4294967295",
    "dir fwd src 0.0.0.0/0 dst 198.18.4.0/24 proto icmp type 3 code 4",
    "dir fwd src ::/0 dst 2001:db8:4::/48 proto 135 type 3 code 2",
    "dir fwd src 0.0.0.0/0 dst 198.18.4.0/24 proto 253",
    "dir out src 0.0.0.0/0 dst 198.18.5.0/24 mark 0x10 mask 0xff if_id 0x12",
    "dir out src 0.0.0.0/0 dst 198.18.5.0/24 mark 0 mask 1",
    "dir in src 0.0.0.0/0 dst 198.18.6.0/24 limit byte-soft 1000 limit byte-hard 2000 limit packet-soft 3 \
     limit packet-hard 4 limit time-soft 1000 limit time-hard 2000 limit time-use-soft 300 limit time-use-hard 400",
    "dir out src 198.18.1.0/24 dst 198.18.7.0/24 \
     tmpl src 198.18.2.1 dst 198.18.2.2 proto esp spi 0x1234 reqid 9 mode tunnel \
     tmpl proto ah reqid 4294967295 mode transport",
    "dir fwd src 2001:db8:7::/48 dst 2001:db8:1::/48 \
     tmpl src 2001:db8:2::1 dst 2001:db8:2::2 proto esp mode tunnel level use \
     tmpl src 2001:db8:2::1 dst 2001:db8:2::2 proto comp mode transport level use \
     tmpl proto esp mode beet",
];

/// Fails if the two commands do not print the same, with the times of two time zones.
fn is_same(router: &Netns, ferroute: &[&str], ip: &[&str]) -> Result<String> {
    let mut last = String::new();
    for zone in ["UTC", "EST5"] {
        let print = |command: &mut std::process::Command, args: &[&str]| -> Result<String> {
            let output = command.env("TZ", zone).args(args).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(String::from_utf8(output.stdout)?)
        };
        let ours = print(&mut router.command(ferroute::binary()), ferroute)?;
        let theirs = print(&mut router.command("ip"), ip)?;
        let differs = ours.lines().zip(theirs.lines()).find(|(ours, theirs)| ours != theirs);
        ensure!(
            ours == theirs,
            "{ferroute:?} prints\n{ours}\n{ip:?} prints\n{theirs}\nthe first difference: {differs:?}"
        );
        last = ours;
    }
    Ok(last)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn policies_are_printed_as_by_ip() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    for policy in POLICIES {
        lab.router.run(&format!("ip xfrm policy add {policy}"))?;
    }
    let text = is_same(&lab.router, &["xfrm", "policy", "-s"], &["-s", "xfrm", "policy"])?;
    ensure!(text.matches("lifetime config:").count() == POLICIES.len(), "not all are there");
    is_same(&lab.router, &["xfrm", "policy", "show"], &["xfrm", "policy", "show"])?;

    let output = lab.router.command(ferroute::binary()).args(["xfrm", "policy", "-j"]).output()?;
    let policies: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    ensure!(policies.len() == POLICIES.len(), "{policies:?}");
    let port = |policy: &&Value| policy["sel"]["dport"]["value"] == 443;
    let policy = policies.iter().find(port).expect("the policy of port 443");
    ensure!(policy["sel"]["dev"] == "rt-right" && policy["dir"] == "out", "{policy}");
    ensure!(policy["flags"][0] == "localok" && policy["priority"] == 7, "{policy}");
    Ok(())
}

/// An SA without keys is one that the kernel adds without ESP.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn states_that_are_being_negotiated_are_printed_as_by_ip() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    for (src, dst) in [("198.18.2.1", "198.18.2.2"), ("2001:db8:2::1", "2001:db8:2::2")] {
        lab.router.run(&format!(
            "ip xfrm state allocspi src {src} dst {dst} proto esp reqid 5 mode tunnel min 256 max 511"
        ))?;
    }
    let text = is_same(&lab.router, &["xfrm", "state", "-s"], &["-s", "xfrm", "state"])?;
    ensure!(text.matches("proto esp spi 0x00000").count() == 2, "{text}");
    is_same(&lab.router, &["xfrm", "sa"], &["xfrm", "state"])?;

    let details = lab.router.command(ferroute::binary()).args(["xfrm", "state", "-d"]).output()?;
    let details = String::from_utf8(details.stdout)?;
    let line = "\tleft to the kernel: being negotiated: no keys yet\n";
    ensure!(details.matches(line).count() == 2, "{details}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn counters_are_the_kernels() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let stat = |args: &[&str]| -> Result<String> {
        let output =
            lab.router.command(ferroute::binary()).args(["xfrm", "stat"]).args(args).output()?;
        Ok(String::from_utf8([output.stdout, output.stderr].concat())?)
    };
    let Ok(kernels) = lab.router.run("cat /proc/net/xfrm_stat") else {
        let said = stat(&[])?;
        ensure!(said.contains("CONFIG_XFRM_STATISTICS"), "{said}");
        return Ok(());
    };
    ensure!(stat(&["-z"])? == kernels && stat(&[])?.is_empty(), "{}", stat(&["-z"])?);
    let counters: Value = serde_json::from_str(&stat(&["-j"])?)?;
    ensure!(counters["XfrmInTmplMismatch"] == 0, "{counters}");
    // What is for the router itself and has no SA.
    lab.router.run("ip xfrm policy add dir in src 198.18.1.0/24 dst 198.18.1.0/24 action block")?;
    let _blocked = lab.left.output("ping -c 1 -W 1 198.18.1.1");
    let said = stat(&[])?;
    ensure!(said.starts_with("XfrmInPolBlock") && said.lines().count() == 1, "{said}");
    Ok(())
}
