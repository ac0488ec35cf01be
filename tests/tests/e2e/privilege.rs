//! A separate user with only the documented capabilities, and the privileges that a running daemon has
//! dropped.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use ferroute_tests::ferroute::ended;
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6};
use ferroute_tests::ping::ping_all;
use ferroute_tests::{Ferroute, Lab, eventually, ferroute, http, threads};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A user ID that no machine uses.
const USER: u32 = 4242;
/// The daemon's capabilities, as setpriv names them.
const NEEDED: [&str; 5] = ["net_admin", "net_raw", "bpf", "perfmon", "ipc_lock"];
/// Their bits in the capability sets in /proc (linux/capability.h).
const BITS: [u64; 5] = [1 << 12, 1 << 13, 1 << 39, 1 << 38, 1 << 14];

/// The user's directory with a copy of the program.
struct Home {
    dir: TempDir,
    lab: Lab,
}

impl Home {
    fn new() -> Result<Home> {
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        // The build's directory may be closed to others. Copied by another process: a file that is open for
        // writing in another test's child process cannot be executed.
        let copied = Command::new("cp").arg(ferroute::binary()).arg(dir.path()).status()?;
        ensure!(copied.success());
        let own = dir.path().join("own");
        fs::create_dir(&own)?;
        fs::set_permissions(&own, Permissions::from_mode(0o700))?;
        chown(&own, Some(USER), Some(USER))?;
        Ok(Home { dir, lab: Lab::up()? })
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("ferroute")
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("own/control.sock")
    }

    /// The program run as the user with these capabilities. /dev/net/tun is as udev makes it: accessible to
    /// all.
    fn command(&self, capabilities: &[&str], args: &[&str]) -> Command {
        let mut list = "-all".to_owned();
        capabilities.iter().for_each(|name| list.push_str(&format!(",+{name}")));
        let script = "mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && \
                      exec setpriv --reuid 4242 --regid 4242 --clear-groups --no-new-privs \
                      --inh-caps \"$1\" --ambient-caps \"$1\" --bounding-set \"$1\" \"${@:2}\"";
        let mut command = self.lab.router.command("bash");
        command.arg("-c").arg(script).arg("bash").arg(list).arg(self.program()).args(args);
        command.env("RUNTIME_DIRECTORY", self.dir.path().join("own"));
        command.env_remove("FERROUTE_CONTROL");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, capabilities: &[&str], more: &[&str]) -> Command {
        let args = [&["run", "-i", "rt-left", "-i", "rt-right"], more].concat();
        let mut command = self.command(capabilities, &args);
        command.stdout(Stdio::null());
        command
    }

    /// Runs `status` as a user without capabilities.
    fn ask_as(&self, user: u32) -> Result<Output> {
        let mut command = Command::new(self.program());
        command.args(["status", "--control"]).arg(self.socket()).uid(user).gid(user);
        Ok(command.output()?)
    }
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

/// For each thread of a process, its name and a capability set.
fn sets(pid: u32, kind: &str) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for thread in threads::read_each(pid, "status")? {
        let mut lines = thread.text.lines();
        let value = lines.find_map(|line| line.strip_prefix(kind)?.strip_prefix(':'));
        let value = value.with_context(|| format!("no {kind}"))?.trim();
        found.push((thread.name, u64::from_str_radix(value, 16)?));
    }
    Ok(found)
}

/// Fails unless every thread has dropped all capabilities except its own, and its system calls are filtered.
fn confined(pid: u32) -> Result<()> {
    // SECCOMP_MODE_FILTER
    for (name, mode) in sets(pid, "Seccomp")? {
        ensure!(mode == 2, "{name} may make all system calls");
    }
    let all = BITS.iter().fold(0, |sum, bit| sum | bit);
    let [net_admin, net_raw, _, _, ipc_lock] = BITS;
    for kind in ["CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"] {
        for (name, set) in sets(pid, kind)? {
            let may = match kind {
                "CapBnd" => all,
                "CapInh" | "CapAmb" => 0,
                _ if name.starts_with("fr-worker") => net_raw | ipc_lock,
                // It opens ports that return.
                "CapEff" | "CapPrm" if name == "fr-ports" => all,
                "CapEff" | "CapPrm" if name == "fr-nft" => net_admin,
                _ if name.starts_with("fr-") => 0,
                _ => all,
            };
            ensure!(set & !may == 0, "{kind} of {name}: {set:x} is more than {may:x}");
        }
    }
    for (name, set) in sets(pid, "NoNewPrivs")? {
        ensure!(set == 1, "{name} may gain privileges");
    }
    let control = sets(pid, "CapEff")?.into_iter().find(|(name, _)| !name.starts_with("fr-"));
    ensure!(
        control.is_some_and(|(_, set)| set == all),
        "the control thread has less than it needs"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_separate_user_can_run_and_query_it() -> Result<()> {
    let home = Home::new()?;
    // The doctor names the missing capabilities that it needs.
    let doctor =
        home.command(&[], &["-j", "doctor", "-i", "rt-left", "-i", "rt-right"]).output()?;
    let missing = text(&doctor.stdout);
    for name in NEEDED {
        let name = format!("CAP_{}", name.to_uppercase());
        ensure!(missing.contains(&name), "no word about {name}: {missing}");
    }

    let child = home.run(&NEEDED, &[]).spawn()?;
    let pid = child.id();
    let facts = || -> Result<()> {
        let asked = |user| home.ask_as(user).is_ok_and(|output| output.status.success());
        ensure!(eventually(|| asked(0)), "root gets no answer");
        ensure!(asked(USER), "its own user gets no answer");
        let stranger = home.ask_as(4343)?;
        let said = text(&stranger.stderr);
        ensure!(!stranger.status.success() && said.contains("permission denied"), "{said}");
        ensure!(said.contains("user 4242"), "{said}");
        let before = ferroute_tests::counters::forwarded_by_kernel(&home.lab.router)?;
        for to in [RIGHT4, RIGHT6] {
            ping_all(&home.lab.left, &format!("-c 3 -i 0.1 -W 5 {to}"))?;
        }
        let after = ferroute_tests::counters::forwarded_by_kernel(&home.lab.router)?;
        ensure!(before == after, "the kernel forwards: {after:?}");
        // A port that returns is opened with the capabilities that were kept.
        home.lab.router.run("ip link set rt-right down")?;
        home.lab.router.run("ip link set rt-right up")?;
        ensure!(eventually(|| asked(USER)), "a port that was down does not come back");
        ping_all(&home.lab.left, &format!("-c 3 -i 0.1 -W 5 {RIGHT4}"))?;
        confined(pid)
    };
    let facts = facts();
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM)?;
    let output = ended(child)?;
    facts.with_context(|| text(&output.stderr))?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn each_capability_that_is_missing_is_named() -> Result<()> {
    let home = Home::new()?;
    for without in NEEDED {
        let rest: Vec<&str> = NEEDED.into_iter().filter(|name| *name != without).collect();
        let mut command = home.run(&rest, &[]);
        let output = ended(command.spawn()?)?;
        let said = text(&output.stderr);
        ensure!(!output.status.success(), "it starts without {without}");
        let name = format!("CAP_{} (", without.to_uppercase());
        ensure!(said.contains(&name), "no word about {name}: {said}");
        ensure!(said.contains("AmbientCapabilities"), "{said}");
        let others =
            rest.iter().filter(|name| said.contains(&format!("CAP_{} (", name.to_uppercase())));
        ensure!(others.count() == 0, "without {without}: {said}");
        ensure!(!home.socket().exists(), "a socket is left behind");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn tables_that_only_root_can_list_are_found_by_a_user_too() -> Result<()> {
    let home = Home::new()?;
    home.lab.router.run("iptables-legacy -A FORWARD -s 203.0.113.0/24 -j DROP")?;
    let output = ended(home.run(&NEEDED, &[]).spawn()?)?;
    let said = text(&output.stderr);
    ensure!(!output.status.success() && said.contains("iptables-legacy"), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_device_that_only_root_can_open_is_named() -> Result<()> {
    let home = Home::new()?;
    let script = "mount -t tmpfs none /dev/net && mknod -m 600 /dev/net/tun c 10 200 && \
                  exec setpriv --reuid 4242 --regid 4242 --clear-groups --inh-caps \"$1\" \
                  --ambient-caps \"$1\" \"${@:2}\"";
    let list: Vec<String> = NEEDED.iter().map(|name| format!("+{name}")).collect();
    let mut command = home.lab.router.command("bash");
    command.arg("-c").arg(script).arg("bash").arg(list.join(",")).arg(home.program());
    command.args(["run", "-i", "rt-left", "-i", "rt-right", "--control"]).arg(home.socket());
    let output = ended(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)?;
    let said = text(&output.stderr);
    ensure!(!output.status.success() && said.contains("chmod 0666 /dev/net/tun"), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_drops_privileges_that_a_running_daemon_does_not_need() -> Result<()> {
    let lab = Lab::up()?;
    let mut ferroute = Ferroute::start_with(&lab, &["--metrics"])?;
    let Some(pid) = ferroute.pid() else { return Ok(()) };
    // The thread that reads for the metrics server exists from the first scrape on.
    http::get(&lab.router, "127.0.0.1:9112", "/metrics", &[])?;
    for name in ["fr-metrics", "fr-metrics-read"] {
        threads::find(pid, name)?;
    }
    confined(pid)?;
    // Also for a thread that serves a client.
    let command = ferroute.command(&["status"]);
    let mut variables = command.get_envs();
    let socket = variables.find(|(name, _)| *name == "FERROUTE_CONTROL").and_then(|(_, path)| path);
    let _client = UnixStream::connect(socket.context("no control socket")?)?;
    ensure!(eventually(|| threads::find(pid, "fr-client").is_ok()), "no thread serves the client");
    // The thread gets its name just before it drops its capabilities.
    ensure!(eventually(|| confined(pid).is_ok()), "{:#}", confined(pid).unwrap_err());
    ferroute.terminate()
}
