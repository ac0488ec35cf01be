//! The start of `ferroute run`: locks by others, an unusable runtime directory, tight resource limits, and
//! signals during it.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::ferroute::ended;
use ferroute_tests::lab::addr::{LEFT4, RIGHT4};
use ferroute_tests::ping::ping_all;
use ferroute_tests::{Ferroute, Lab, eventually, ferroute};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const PORTS: [&str; 4] = ["-i", "rt-left", "-i", "rt-right"];
/// An unused user ID.
const STRANGER: u32 = 4343;

fn lock(path: &Path) -> Result<Flock<File>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// `ferroute run` without the control socket that tests give it otherwise.
fn run(lab: &Lab, args: &[&str]) -> Command {
    let mut command = lab.router.command(ferroute::binary());
    command.arg("run").args(PORTS).args(args).env_remove("FERROUTE_CONTROL");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Its standard error when it must refuse to start.
fn refusal(mut command: Command) -> Result<String> {
    let output = ended(command.spawn()?)?;
    let said = said(&output);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    ensure!(!said.contains("panicked at"), "{said}");
    Ok(said)
}

/// Names of interfaces and what is attached to them.
fn links(lab: &Lab) -> Result<String> {
    let text = lab.router.run("ip -o link show")?;
    let fact =
        |line: &str| (line.split_whitespace().nth(1).map(str::to_owned), line.contains("xdp"));
    Ok(format!("{:?}", text.lines().map(fact).collect::<Vec<_>>()))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn locks_on_shared_directories_block_nothing() -> Result<()> {
    let lab = Lab::up()?;
    let shared = tempfile::tempdir()?;
    fs::set_permissions(shared.path(), Permissions::from_mode(0o1777))?;
    let _held = [lock(Path::new("/run"))?, lock(shared.path())?];
    let socket = shared.path().join("control.sock");
    let mut child = run(&lab, &[]).arg("--control").arg(&socket).spawn()?;
    let status = |path: &Path| {
        let mut command = Command::new(ferroute::binary());
        command.arg("--control").arg(path).arg("status").output()
    };
    let forwards = eventually(|| status(&socket).is_ok_and(|output| output.status.success()));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM)?;
    let output = match forwards {
        true => ended(child)?,
        false => {
            child.kill()?;
            child.wait_with_output()?
        }
    };
    ensure!(forwards && output.status.success(), "{}", said(&output));
    ensure!(fs::read_dir(shared.path())?.next().is_none(), "something is left in the directory");
    Ok(())
}

/// `ferroute run` with a directory in RUNTIME_DIRECTORY, as set by systemd.
fn in_directory(lab: &Lab, directory: &Path) -> Command {
    let mut command = run(lab, &[]);
    command.env("RUNTIME_DIRECTORY", directory);
    command
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_socket_is_in_the_runtime_directory_where_the_clients_find_it() -> Result<()> {
    let lab = Lab::up()?;
    let top = tempfile::tempdir()?;
    let directory = top.path().join("ferroute");
    let first = in_directory(&lab, &directory).spawn()?;
    let pid = first.id();
    let ask = || {
        let mut command = Command::new(ferroute::binary());
        command.arg("status").env("RUNTIME_DIRECTORY", &directory).env_remove("FERROUTE_CONTROL");
        command.output()
    };
    let forwards = eventually(|| ask().is_ok_and(|output| output.status.success()));
    let facts = || -> Result<()> {
        ensure!(forwards, "it does not forward");
        let mode = |path: &Path| -> Result<u32> { Ok(fs::metadata(path)?.mode() & 0o777) };
        ensure!(mode(&directory)? == 0o700);
        ensure!(mode(&directory.join("control.sock"))? == 0o600);
        let second = refusal(in_directory(&lab, &directory))?;
        ensure!(second.contains(&format!("pid {pid}")), "{second}");
        ensure!(second.contains("another ferroute runs here"), "{second}");
        let mut command = Command::new(ferroute::binary());
        command.args(["status", "--runtime-dir"]).arg(&directory).env_remove("FERROUTE_CONTROL");
        ensure!(command.output()?.status.success(), "--runtime-dir is ignored");
        Ok(())
    };
    let facts = facts();
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM)?;
    let output = ended(first)?;
    facts.with_context(|| said(&output))?;
    ensure!(output.status.success(), "{}", said(&output));
    ensure!(fs::read_dir(&directory)?.next().is_none(), "something is left in the directory");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_runtime_directory_that_is_not_its_own_is_refused() -> Result<()> {
    let lab = Lab::up()?;
    let top = tempfile::tempdir()?;
    let at = |name: &str| top.path().join(name);
    for name in ["foreign", "open", "target"] {
        fs::create_dir(at(name))?;
        fs::set_permissions(at(name), Permissions::from_mode(0o700))?;
    }
    chown(at("foreign"), Some(STRANGER), None)?;
    fs::set_permissions(at("open"), Permissions::from_mode(0o777))?;
    symlink(at("target"), at("link"))?;
    fs::write(at("file"), "")?;
    for (name, words) in [
        ("foreign", ["belongs to user 4343", "chown"]),
        ("open", ["mode 0777", "chmod 0700"]),
        ("link", ["symbolic link", "--runtime-dir"]),
        ("file", ["not a directory", "--runtime-dir"]),
        ("not/there", ["cannot create it", "RuntimeDirectory="]),
    ] {
        let text = refusal(in_directory(&lab, &at(name)))?;
        for word in words {
            ensure!(text.contains(word), "{name}: no word about {word}: {text}");
        }
    }
    ensure!(fs::read_dir(at("target"))?.next().is_none(), "a symbolic link was followed");
    // With a socket elsewhere the directory is not needed, unless it is given explicitly.
    let control = at("control.sock");
    let mut command = run(&lab, &["--control"]);
    command.arg(&control).arg("--runtime-dir").arg(at("open"));
    ensure!(refusal(command)?.contains("mode 0777"));
    Ok(())
}

/// Occupies queue 0 of a port with an AF_XDP socket that needs no XDP program, until it is dropped.
struct QueueHolder(Child);

impl QueueHolder {
    fn of_rt_left(lab: &Lab) -> Result<QueueHolder> {
        let line = format!("pktgen -i rt-left --dst {LEFT4} --engine af_xdp -n 100000 --ratep 100");
        let mut command = lab.router.command(ferroute::binary());
        command.args(line.split(' ')).stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let holder = QueueHolder(child);
        // Wait until packets arrive.
        let received = || -> Result<u64> {
            Ok(lab.left.run("cat /sys/class/net/left/statistics/rx_packets")?.trim().parse()?)
        };
        let before = received()?;
        ensure!(eventually(|| received().is_ok_and(|now| now > before + 20)), "it does not send");
        Ok(holder)
    }
}

impl Drop for QueueHolder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_signal_ends_a_start_that_waits_for_a_queue() -> Result<()> {
    let lab = Lab::up()?;
    let before = links(&lab)?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let _holder = QueueHolder::of_rt_left(&lab)?;
        let top = tempfile::tempdir()?;
        let socket = top.path().join("control.sock");
        let child = run(&lab, &["--control"]).arg(&socket).spawn()?;
        // Wait until signals are handled; the queue is tried for a second before that is an error.
        ensure!(eventually(|| socket.exists()), "no socket");
        kill(Pid::from_raw(child.id() as i32), signal)?;
        let output = ended(child)?;
        let said = said(&output);
        ensure!(output.status.success() && said.contains("ended by a signal"), "{said}");
        ensure!(fs::read_dir(top.path())?.next().is_none(), "something is left behind");
    }
    ensure!(eventually(|| links(&lab).is_ok_and(|now| now == before)), "{}", links(&lab)?);
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn without_descriptors_it_says_so_and_nothing_is_left_behind() -> Result<()> {
    let lab = Lab::up()?;
    let before = links(&lab)?;
    let top = tempfile::tempdir()?;
    let mut refused = 0;
    for limit in (6..60).step_by(3) {
        let mut command = lab.router.command("prlimit");
        command.arg(format!("--nofile={limit}:{limit}")).arg(ferroute::binary());
        command.arg("run").args(PORTS).arg("--control").arg(top.path().join("control.sock"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn()?;
        let pid = Pid::from_raw(child.id() as i32);
        let socket = top.path().join("control.sock");
        let status = || {
            let mut command = Command::new(ferroute::binary());
            command.arg("--control").arg(&socket).arg("status").output()
        };
        let mut child = child;
        let decided = eventually(|| {
            child.try_wait().is_ok_and(|end| end.is_some())
                || status().is_ok_and(|output| output.status.success())
        });
        ensure!(decided, "{limit}: neither runs nor ends");
        let _ = kill(pid, Signal::SIGTERM);
        let output = ended(child)?;
        let said = said(&output);
        ensure!(!said.contains("panicked at") && !said.contains("6.1"), "{limit}: {said}");
        if !output.status.success() {
            refused += 1;
            let about = ["Too many open files", "os error 24", "ulimit -n", "descriptor"];
            ensure!(about.iter().any(|word| said.contains(word)), "{limit}: {said}");
        }
        ensure!(fs::read_dir(top.path())?.next().is_none(), "{limit}: something is left behind");
        ensure!(eventually(|| links(&lab).is_ok_and(|now| now == before)), "{}", links(&lab)?);
    }
    ensure!(refused > 5, "{refused} were refused");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn without_memory_it_ends_with_a_message_and_nothing_is_left_behind() -> Result<()> {
    let lab = Lab::up()?;
    let before = links(&lab)?;
    let top = tempfile::tempdir()?;
    for megabytes in [64, 96, 128, 192, 256] {
        let mut command = lab.router.command("prlimit");
        command.arg(format!("--as={}", megabytes << 20)).arg(ferroute::binary());
        command.arg("run").args(PORTS).arg("--control").arg(top.path().join("control.sock"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        // If the memory is sufficient, it runs.
        let end = Instant::now() + Duration::from_secs(2);
        while child.try_wait()?.is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
        let output = ended(child)?;
        let said = said(&output);
        ensure!(!said.contains("panicked at") && !said.contains("6.1"), "{megabytes}: {said}");
        ensure!(output.status.success() || !said.trim().is_empty(), "{megabytes}: no message");
        ensure!(eventually(|| links(&lab).is_ok_and(|now| now == before)), "{}", links(&lab)?);
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn clients_that_take_all_descriptors_do_not_end_forwarding() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let top: TempDir = tempfile::tempdir()?;
    let socket = top.path().join("control.sock");
    let mut command = lab.router.command("prlimit");
    command.arg("--nofile=110:110").arg(ferroute::binary());
    command.arg("run").args(PORTS).arg("--control").arg(&socket);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn()?;
    let status = || {
        let mut command = Command::new(ferroute::binary());
        command.arg("--control").arg(&socket).arg("status").output()
    };
    let facts = || -> Result<()> {
        ensure!(eventually(|| status().is_ok_and(|output| output.status.success())));
        let clients: Vec<UnixStream> =
            (0..100).map_while(|_| UnixStream::connect(&socket).ok()).collect();
        ensure!(clients.len() > 30, "{} clients", clients.len());
        // Longer than the interval of periodic checks.
        for _ in 0..4 {
            let before = ferroute_tests::counters::forwarded_by_kernel(&lab.router)?;
            ping_all(&lab.left, &format!("-c 5 -i 0.1 -W 5 {RIGHT4}"))?;
            let after = ferroute_tests::counters::forwarded_by_kernel(&lab.router)?;
            ensure!(before == after, "the kernel forwards: {after:?}");
        }
        drop(clients);
        ensure!(eventually(|| status().is_ok_and(|output| output.status.success())));
        Ok(())
    };
    let facts = facts();
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    let output = ended(child)?;
    facts.with_context(|| said(&output))
}

/// Twelve ports with fewer descriptors than they may need, and with as many as the message requests.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn cached_descriptors_are_released_when_others_are_needed() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut ports: Vec<String> = PORTS.iter().map(|word| (*word).to_owned()).collect();
    for n in 0..10 {
        lab.router.run(&format!("ip link add p{n} up type veth peer name q{n}"))?;
        lab.router.run(&format!("ip link set q{n} up"))?;
        ports.extend(["-i".to_owned(), format!("p{n}")]);
    }
    let top: TempDir = tempfile::tempdir()?;
    let socket = top.path().join("control.sock");
    let run = |limit: u64, clients: usize| -> Result<String> {
        let mut command = lab.router.command("prlimit");
        command.arg(format!("--nofile={limit}:{limit}")).arg(ferroute::binary());
        command.arg("run").args(&ports).arg("--control").arg(&socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn()?;
        let status = || -> Result<serde_json::Value> {
            let mut command = Command::new(ferroute::binary());
            let output =
                command.arg("--control").arg(&socket).args(["--json", "status"]).output()?;
            Ok(serde_json::from_slice(&output.stdout)?)
        };
        let facts = || -> Result<()> {
            let is_forwarding = || status().is_ok_and(|status| status["state"] == "forwarding");
            ensure!(eventually(is_forwarding), "{:?}", status());
            let silent: Vec<UnixStream> =
                (0..clients).map(|_| UnixStream::connect(&socket)).collect::<Result<_, _>>()?;
            // Longer than the interval between full readings of the firewall.
            for _ in 0..3 {
                std::thread::sleep(Duration::from_secs(1));
                let warnings = status()?["warnings"].to_string();
                ensure!(!warnings.contains("cannot be read"), "{warnings}");
                let before = ferroute_tests::counters::forwarded_by_kernel(&lab.router)?;
                ping_all(&lab.left, &format!("-c 3 -i 0.1 -W 5 {RIGHT4}"))?;
                let after = ferroute_tests::counters::forwarded_by_kernel(&lab.router)?;
                ensure!(before == after, "the kernel forwards: {after:?}");
            }
            drop(silent);
            Ok(())
        };
        let facts = facts();
        let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
        let said = said(&ended(child)?);
        facts.with_context(|| said.clone())?;
        Ok(said)
    };
    let said = run(160, 0)?;
    let wanted = said.split("may need ").nth(1).and_then(|rest| rest.split(';').next());
    let wanted = wanted.with_context(|| format!("no warning: {said}"))?.parse()?;
    let said = run(wanted, 60)?;
    ensure!(!said.contains("files may be open"), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn instances_of_several_namespaces_share_the_machine() -> Result<()> {
    let (one, other) = (Lab::up()?, Lab::up()?);
    let mut first = Ferroute::start_with(&one, &["--poll", "busy"])?;
    let mut second = Ferroute::start_with(&other, &["--poll", "busy"])?;
    for lab in [&one, &other] {
        ping_all(&lab.left, &format!("-c 1 -W 5 {RIGHT4}"))?;
    }
    second.terminate()?;
    first.wait_until_forwarding()?;
    first.terminate()
}
