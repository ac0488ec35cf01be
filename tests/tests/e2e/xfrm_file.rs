//! IPsec with the SAs of a configuration file, between two gateways whose kernels have none: what is on the wire between
//! them, whatever dies, and what the kernels would forward by themselves.
//!
//! ```text
//! left ── router ── right (a bridge, where the wire is read) ── gw ── far
//! ```

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferroute_tests::lab::addr::{LEFT4, LEFT6};
use ferroute_tests::ping::{Pinging, ping, ping_all};
use ferroute_tests::{Ferroute, Lab, Netns, eventually, ferroute, threads};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const FAR4: &str = "10.99.0.2";
const FAR6: &str = "2001:db8:99::2";
/// Behind the left and behind the far gateway, and the ends of the tunnel.
const NETS4: [&str; 2] = ["198.18.1.0/24", "10.99.0.0/24"];
const NETS6: [&str; 2] = ["2001:db8:1::/64", "2001:db8:99::/64"];
const ENDS4: [&str; 2] = ["198.18.2.1", "198.18.2.2"];
const ENDS6: [&str; 2] = ["2001:db8:2::1", "2001:db8:2::2"];

/// A lab with a second gateway.
struct Site {
    lab: Lab,
    gw: Netns,
    far: Netns,
    dir: TempDir,
}

impl Site {
    fn up() -> Result<Site> {
        let lab = Lab::up()?;
        let named = |name: &str| Netns::named(format!("{}{name}", lab.prefix()));
        let (gw, far) = (named("gw"), named("far"));
        let site = Site { lab, gw, far, dir: tempfile::tempdir()? };
        for namespace in [&site.gw, &site.far] {
            let made = Command::new("ip").args(["netns", "add", namespace.name()]).status()?;
            ensure!(made.success(), "no namespace {}", namespace.name());
        }
        let (gw, far, wire) = (site.gw.name(), site.far.name(), &site.lab.right);
        for line in [
            "ip addr flush dev right".to_owned(),
            "ip link set right address 02:f0:00:00:02:77".to_owned(),
            "ip link add br0 type bridge mcast_snooping 0".to_owned(),
            format!("ip link add w0 type veth peer name wan netns {gw}"),
            "ip link set right master br0".to_owned(),
            "ip link set w0 master br0 up".to_owned(),
            "ip link set br0 up".to_owned(),
        ] {
            wire.run(&line)?;
        }
        for line in [
            format!("ip link add lan type veth peer name far netns {far}"),
            "ip link set wan address 02:f0:00:00:02:02 up".to_owned(),
            "ip link set lan up".to_owned(),
            "ip addr add 198.18.2.2/24 dev wan".to_owned(),
            "ip addr add 2001:db8:2::2/64 dev wan nodad".to_owned(),
            "ip addr add 10.99.0.1/24 dev lan".to_owned(),
            "ip addr add 2001:db8:99::1/64 dev lan nodad".to_owned(),
            "ip route add 198.18.1.0/24 via 198.18.2.1".to_owned(),
            "ip route add 2001:db8:1::/64 via 2001:db8:2::1".to_owned(),
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1".to_owned(),
        ] {
            site.gw.run(&line)?;
        }
        for line in [
            "ip link set far up",
            "ip addr add 10.99.0.2/24 dev far",
            "ip addr add 2001:db8:99::2/64 dev far nodad",
            "ip route add default via 10.99.0.1",
            "ip route add default via 2001:db8:99::1",
            "ethtool -K far tx off gro off",
        ] {
            site.far.run(line)?;
        }
        let router = &site.lab.router;
        router.run("ip route add 10.99.0.0/24 via 198.18.2.2")?;
        router.run("ip route add 2001:db8:99::/64 via 2001:db8:2::2")?;
        // What forwards without IPsec.
        for to in [FAR4, FAR6] {
            ensure!(eventually(|| ping_all(&site.lab.left, &format!("-c 1 -W 1 {to}")).is_ok()));
        }
        Ok(site)
    }

    /// The file of a gateway. `spi`: the first of four; `rest`: SAs besides.
    fn write(&self, at: Gateway, states: &str) -> Result<PathBuf> {
        let (interfaces, name, dirs) = match at {
            Gateway::Near => ("\"rt-left\", \"rt-right\"", "near", ["out", "fwd"]),
            Gateway::Far => ("\"wan\", \"lan\"", "far", ["fwd", "out"]),
        };
        let state_dir = self.state_dir(at);
        let mut text = format!(
            "[run]\ninterfaces = [{interfaces}]\noffload = \"off\"\nstate_dir = \"{}\"\n{states}",
            state_dir.display()
        );
        for (nets, ends, proto, reqid) in [(NETS4, ENDS4, "esp", 1), (NETS6, ENDS6, "ah", 2)] {
            for (dir, [from, to]) in dirs.iter().zip([[0, 1], [1, 0]]) {
                write!(
                    text,
                    "[[xfrm.policy]]\nsrc = \"{}\"\ndst = \"{}\"\ndir = \"{dir}\"\npriority = 100\n\
                     tmpl = {{ src = \"{}\", dst = \"{}\", proto = \"{proto}\", reqid = {reqid}, mode = \"tunnel\" }}\n",
                    nets[from], nets[to], ends[from], ends[to]
                )?;
            }
        }
        let path = self.dir.path().join(format!("{name}.toml"));
        fs::write(&path, text)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(path)
    }

    fn state_dir(&self, at: Gateway) -> PathBuf {
        self.dir.path().join(if at == Gateway::Near { "near" } else { "far" })
    }

    fn namespace(&self, at: Gateway) -> &Netns {
        if at == Gateway::Near { &self.lab.router } else { &self.gw }
    }

    /// Gives the kernel the policies of a file: the commands that `run` wants are all that is needed.
    fn guard(&self, at: Gateway, file: &Path) -> Result<()> {
        let namespace = self.namespace(at);
        let refusal = Ferroute::refusal(namespace, &["-c", text(file)])?;
        let commands: Vec<&str> =
            refusal.lines().map(str::trim).filter(|it| it.starts_with("ip xfrm policy")).collect();
        ensure!(commands.len() == 4, "not a command for each policy: {refusal}");
        commands.iter().try_for_each(|command| namespace.run(command).map(drop))
    }

    fn start(&self, at: Gateway, file: &Path) -> Result<Ferroute> {
        Ferroute::start_in(self.namespace(at), &["-c", text(file)])
    }

    fn answers(&self) -> bool {
        [FAR4, FAR6].iter().all(|to| {
            let from = &self.lab.left;
            ping_all(from, &format!("-c 1 -W 1 {to}")).is_ok()
        })
    }

    /// Nothing arrives at the far host.
    fn is_stopped(&self) -> Result<()> {
        for to in [FAR4, FAR6] {
            let received = ping(&self.lab.left, &format!("-c 2 -i 0.2 -W 1 {to}"))?.received;
            ensure!(received == 0, "{to} answers");
        }
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for namespace in [&self.gw, &self.far] {
            // The lab says what is left.
            let _ = Command::new("ip").args(["netns", "del", namespace.name()]).status();
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gateway {
    Near,
    Far,
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// A key of its own for each SPI.
fn key(spi: u32, octets: usize) -> String {
    (0..octets).fold(String::from("0x"), |text, n| {
        text + &format!("{:02x}", ((spi >> (8 * (n % 4))) as usize ^ (n * 7)) & 0xff)
    })
}

/// ESP with AES-GCM for IPv4, and AH for IPv6, one for each direction.
fn states(spi: u32) -> String {
    let mut text = String::new();
    for (n, (ends, [from, to])) in
        [(ENDS4, [0, 1]), (ENDS4, [1, 0]), (ENDS6, [0, 1]), (ENDS6, [1, 0])].iter().enumerate()
    {
        let spi = spi + n as u32;
        let (proto, reqid, keys) = match n {
            0 | 1 => {
                let key = key(spi, 20);
                let aead = "aead = { name = \"rfc4106(gcm(aes))\"";
                ("esp", 1, format!("flag = [\"esn\"]\n{aead}, key = \"{key}\", icv = 128 }}"))
            }
            _ => {
                let key = key(spi, 32);
                let auth = "auth-trunc = { name = \"hmac(sha256)\"";
                ("ah", 2, format!("{auth}, key = \"{key}\", trunc = 128 }}"))
            }
        };
        text += &format!(
            "[[xfrm.state]]\nsrc = \"{}\"\ndst = \"{}\"\nproto = \"{proto}\"\nspi = {spi}\nmode = \"tunnel\"\n\
             reqid = {reqid}\n{keys}\n",
            ends[*from], ends[*to]
        );
    }
    text
}

/// What passes the bridge.
struct Wire {
    file: PathBuf,
    tcpdump: Child,
}

impl Wire {
    fn read(site: &Site) -> Result<Wire> {
        let file = site.dir.path().join("wire.pcap");
        let tcpdump = site
            .lab
            .right
            .command("tcpdump")
            .args(["-Z", "root", "-U", "--immediate-mode", "-i", "right", "-w"])
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()?;
        let wire = Wire { file, tcpdump };
        ensure!(eventually(|| fs::metadata(&wire.file).is_ok_and(|it| it.len() >= 24)), "no wire");
        Ok(wire)
    }

    fn stop(&mut self) -> Result<()> {
        // By SIGTERM it writes what it has.
        kill(Pid::from_raw(self.tcpdump.id() as i32), Signal::SIGTERM)?;
        self.tcpdump.wait()?;
        Ok(())
    }

    fn tshark(&self, args: &[&str]) -> Result<Vec<String>> {
        let output = Command::new("tshark").arg("-nr").arg(&self.file).args(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tshark {args:?}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    /// Nothing of the two networks is in clear: their addresses are only in what an ICMP error quotes, and behind AH,
    /// which hides nothing.
    fn has_nothing_in_clear(&self) -> Result<()> {
        let filter = "(ip.addr == 10.99.0.0/24 || ipv6.addr == 2001:db8:99::/64) && !ah && !icmp && !icmpv6.type == 1";
        let clear = self.tshark(&["-Y", filter])?;
        ensure!(clear.is_empty(), "in clear: {clear:?}");
        let echo = self.tshark(&["-Y", "(icmp.type == 8 || icmpv6.type == 128) && !ah"])?;
        ensure!(echo.is_empty(), "in clear: {echo:?}");
        Ok(())
    }

    /// SPI and sequence number of each packet, which must all differ.
    fn numbers(&self) -> Result<Vec<(String, u64)>> {
        let fields = ["-T", "fields", "-e", "esp.spi", "-e", "ah.spi", "-e", "esp.sequence"];
        // Not what an ICMP error quotes.
        let outer = "frame.protocols matches \"^eth:ethertype:ip(v6)?:(esp|ah)\"";
        let more = ["-e", "ah.sequence", "-Y", outer];
        let lines = self.tshark(&[&fields[..], &more].concat())?;
        let numbers: Vec<(String, u64)> = lines
            .iter()
            .filter_map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let [spi, number] = words[..] else { return None };
                Some((spi.to_owned(), number.parse().ok()?))
            })
            .collect();
        ensure!(numbers.len() == lines.len(), "not one SPI and number each: {lines:?}");
        let all: HashSet<_> = numbers.iter().collect();
        ensure!(all.len() == numbers.len(), "a number was sent twice: {numbers:?}");
        Ok(numbers)
    }

    /// Another implementation opens what was sent: how many echo requests it finds.
    fn opened_by_scapy(&self, spi: u32) -> Result<usize> {
        const SCRIPT: &str = "import sys\n\
            from scapy.all import rdpcap, IP, ICMP\n\
            from scapy.layers.ipsec import ESP, SecurityAssociation\n\
            file, spi, key = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])\n\
            sa = SecurityAssociation(ESP, spi=spi, crypt_algo='AES-GCM', crypt_key=key, esn_en=True, esn=0,\n\
            \x20   tunnel_header=IP(src='198.18.2.1', dst='198.18.2.2'))\n\
            found = [sa.decrypt(p[IP]) for p in rdpcap(file) if IP in p and p[IP].proto == 50 and p[ESP].spi == spi]\n\
            print(sum(1 for p in found if p[ICMP].type == 8 and p[IP].dst == '10.99.0.2'))\n";
        let output = Command::new("/usr/bin/python3")
            .args(["-c", SCRIPT, text(&self.file), &spi.to_string(), &key(spi, 20)[2..]])
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "Scapy: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

fn new_keys(file: &Path) -> Result<()> {
    let output =
        Command::new(ferroute::binary()).args(["xfrm", "new-keys", "-c"]).arg(file).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn drops(running: &Ferroute, reason: &str) -> Result<u64> {
    Ok(running.json(&["stat"])?["drops"][reason].as_u64().unwrap_or(0))
}

fn reasons(running: &Ferroute) -> Result<String> {
    Ok(running.json(&["status"])?["ipsec_sas"]["reasons"].to_string())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn no_number_is_sent_twice_and_nothing_in_clear_whatever_dies() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let site = Site::up()?;
    let mut wire = Wire::read(&site)?;
    let files = [Gateway::Near, Gateway::Far].map(|at| site.write(at, &states(0x1001)));
    let [near, far] = files;
    let (near, far) = (near?, far?);
    site.guard(Gateway::Near, &near)?;
    site.guard(Gateway::Far, &far)?;
    // What Ferroute does not do, the kernels do not do either.
    site.is_stopped()?;

    let running = site.start(Gateway::Near, &near)?;
    let other = site.start(Gateway::Far, &far)?;
    ensure!(eventually(|| reasons(&running).is_ok_and(|it| it.contains("new-keys"))));
    site.is_stopped()?;
    ensure!(drops(&running, "XFRM_OUT_NO_STATES")? >= 4, "{}", running.account());
    // Taken up without a restart.
    new_keys(&near)?;
    new_keys(&far)?;
    ensure!(eventually(|| site.answers()), "{}{}", running.account(), other.account());
    let status = running.ask(&["status"])?;
    let expected = "ipsec 4 policies, SAs: workers 2 in, 2 out, of the file";
    ensure!(status.contains(expected), "{status}");
    let pid = running.pid().context("it runs")?;
    let threads = threads::read_each(pid, "status")?;
    let keeper = threads.iter().find(|it| it.name == "fr-sa-store").context("no fr-sa-store")?;
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        let none = format!("{set}:\t0000000000000000");
        ensure!(keeper.text.contains(&none), "{}", keeper.text);
    }

    let mut running = running;
    for round in 0..3 {
        match round {
            0 | 1 => running.kill()?,
            _ => running.terminate()?,
        }
        site.is_stopped()?;
        drop(running);
        running = site.start(Gateway::Near, &near)?;
        ensure!(eventually(|| site.answers()), "round {round}: {}", running.account());
    }
    // Clear packets from the wire are refused, and what is to be protected has nowhere else to go.
    ensure!(drops(&other, "XFRM_IN_STATE_SEQ_ERROR")? == 0, "{}", other.account());

    // A state directory that is lost is not one of new keys.
    running.terminate()?;
    drop(running);
    let stored = site.state_dir(Gateway::Near);
    for entry in fs::read_dir(&stored)? {
        let path = entry?.path();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if text.contains(&format!("spi {:#010x}", 0x1001)) {
            fs::write(&path, text.replace("sent ", "sent 0"))?;
        } else if text.contains(&format!("spi {:#010x}", 0x1003)) {
            fs::remove_file(&path)?;
        }
    }
    let running = site.start(Gateway::Near, &near)?;
    site.is_stopped()?;
    let why = reasons(&running)?;
    ensure!(why.contains("is damaged") && why.contains("no sequence numbers are stored"), "{why}");

    wire.stop()?;
    wire.has_nothing_in_clear()?;
    let numbers = wire.numbers()?;
    let near_sent = |spi: u32| {
        let spi = format!("{spi:#010x}");
        let of = numbers.iter().filter(move |(it, _)| *it == spi);
        of.map(|(_, number)| *number).collect::<Vec<_>>()
    };
    for spi in [0x1001, 0x1003] {
        let sent = near_sent(spi);
        ensure!(sent.len() >= 4 && sent.is_sorted(), "{spi:#x}: {sent:?}");
        // Twice killed: two ranges are given up.
        ensure!(sent.last().is_some_and(|last| *last > 2 << 17), "{spi:#x}: {sent:?}");
    }
    let found = wire.opened_by_scapy(0x1001)?;
    ensure!(found == near_sent(0x1001).len(), "Scapy opens {found} of {:?}", near_sent(0x1001));
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn keys_are_replaced_by_a_reload_without_loss() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let site = Site::up()?;
    let first = states(0x1001);
    let (near, far) = (site.write(Gateway::Near, &first)?, site.write(Gateway::Far, &first)?);
    for (at, file) in [(Gateway::Near, &near), (Gateway::Far, &far)] {
        site.guard(at, file)?;
        new_keys(file)?;
    }
    let (running, other) = (site.start(Gateway::Near, &near)?, site.start(Gateway::Far, &far)?);
    ensure!(eventually(|| site.answers()), "{}{}", running.account(), other.account());
    let mut wire = Wire::read(&site)?;
    let pings =
        [FAR4, FAR6].map(|to| Pinging::start(&site.lab.left, &format!("-i 0.02 -W 2 {to}")));
    let [one, two] = pings;
    let (one, two) = (one?, two?);
    ensure!(one.goes_on() && two.goes_on());
    // The new SAs, which do not send yet where the old ones come after them, then those alone.
    let second = states(0x2001);
    let steps = [format!("{second}{first}"), format!("{first}{second}"), second.clone()];
    for (n, step) in steps.iter().enumerate() {
        for (at, daemon) in [(Gateway::Far, &other), (Gateway::Near, &running)] {
            let file = site.write(at, step)?;
            new_keys(&file)?;
            let report = daemon.ask(&["reload"])?;
            ensure!(report.contains("xfrm"), "step {n}: {report}");
        }
        // Workers have them, and have ended the old ones.
        std::thread::sleep(Duration::from_millis(1500));
        ensure!(one.goes_on() && two.goes_on(), "step {n}: {}", running.account());
    }
    let lost = |running: &Ferroute| -> Result<u64> {
        let stat = running.json(&["stat"])?;
        let Some(drops) = stat["drops"].as_object() else { bail!("no drops") };
        Ok(drops.iter().filter_map(|(_, count)| count.as_u64()).sum())
    };
    let dropped = (lost(&running)?, lost(&other)?);
    ensure!(dropped == (0, 0), "{dropped:?}{}{}", running.account(), other.account());
    wire.stop()?;
    wire.has_nothing_in_clear()?;
    let spis: HashSet<String> = wire.numbers()?.into_iter().map(|(spi, _)| spi).collect();
    ensure!(spis.len() == 8, "{spis:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn without_the_kernels_policies_nothing_is_protected_or_passes() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let site = Site::up()?;
    let all = states(0x1001);
    let (near, far) = (site.write(Gateway::Near, &all)?, site.write(Gateway::Far, &all)?);
    for (at, file) in [(Gateway::Near, &near), (Gateway::Far, &far)] {
        site.guard(at, file)?;
        new_keys(file)?;
    }
    let (running, other) = (site.start(Gateway::Near, &near)?, site.start(Gateway::Far, &far)?);
    ensure!(eventually(|| site.answers()), "{}{}", running.account(), other.account());
    let router = &site.lab.router;
    let [near4, far4] = NETS4;
    let policy = format!("src {near4} dst {far4} dir out");
    let template = "priority 100 tmpl src 198.18.2.1 dst 198.18.2.2 proto esp reqid 1 mode tunnel";
    for (change, back, why) in [
        (
            format!("ip xfrm policy delete {policy}"),
            format!("ip xfrm policy add {policy} {template}"),
            format!("ip xfrm policy add {policy} {template}"),
        ),
        (
            format!("ip xfrm policy add src {near4} dst {far4} proto udp dir out"),
            format!("ip xfrm policy delete src {near4} dst {far4} proto udp dir out"),
            format!("ip xfrm policy delete src {near4} dst {far4} proto 17 dir out"),
        ),
        (
            "sysctl -qw net.ipv4.conf.rt-right.disable_xfrm=1".to_owned(),
            "sysctl -qw net.ipv4.conf.rt-right.disable_xfrm=0".to_owned(),
            "net.ipv4.conf.rt-right.disable_xfrm is set".to_owned(),
        ),
    ] {
        let before = drops(&running, "XFRM_OUT_NO_STATES")?;
        router.run(&change)?;
        let said = || reasons(&running).is_ok_and(|it| it.contains(&why));
        ensure!(eventually(said), "{change}: {}", reasons(&running)?);
        // What a worker gets is dropped; the kernel alone would have forwarded it now.
        let is_dropped = || {
            let pinged = ping(&site.lab.left, &format!("-c 2 -i 0.2 -W 1 {FAR4}"));
            pinged.is_ok_and(|it| it.received == 0)
                && drops(&running, "XFRM_OUT_NO_STATES").is_ok_and(|it| it > before)
        };
        ensure!(eventually(is_dropped), "{change}: {}", running.account());
        router.run(&back)?;
        ensure!(eventually(|| site.answers()), "{back}: {}", running.account());
    }
    // From the left to hosts that no policy is about, and to the router itself, all is as before.
    ping_all(&site.lab.left, "-c 2 -i 0.2 -W 2 198.18.2.2")?;
    ping_all(&site.far, &format!("-c 2 -i 0.2 -W 2 {LEFT4}"))?;
    ping_all(&site.far, &format!("-c 2 -i 0.2 -W 2 {LEFT6}"))?;
    Ok(())
}
