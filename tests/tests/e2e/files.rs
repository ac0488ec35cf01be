//! Files that `ferroute` writes for root: nobody else can read captures, and nobody else can decide where
//! they are written.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Output, Stdio};

use anyhow::{Result, ensure};
use ferroute_tests::lab::addr::RIGHT4;
use ferroute_tests::ping::ping_all;
use ferroute_tests::{Ferroute, Lab, eventually, ferroute};

/// First octets of a pcapng file.
const MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// Captures one packet into `file`, while packets are forwarded.
fn capture(lab: &Lab, ferroute: &Ferroute, file: &str) -> Result<Output> {
    let mut command = ferroute.command(&["capture", "-c", "1", "-w", file, "icmp"]);
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut capture = command.spawn()?;
    let ended = eventually(|| {
        let _ = ping_all(&lab.left, &format!("-c 1 -W 1 {RIGHT4}"));
        !matches!(capture.try_wait(), Ok(None))
    });
    ensure!(ended, "capture -w {file} does not end");
    Ok(capture.wait_with_output()?)
}

fn written(lab: &Lab, ferroute: &Ferroute, file: &Path) -> Result<()> {
    let output = capture(lab, ferroute, &file.to_string_lossy())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", file.display());
    ensure!(fs::read(file)?.starts_with(&MAGIC), "{} is not pcapng", file.display());
    Ok(())
}

fn refused(lab: &Lab, ferroute: &Ferroute, file: &Path) -> Result<()> {
    let output = capture(lab, ferroute, &file.to_string_lossy())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "{} is written", file.display());
    let expected = format!("cannot write {}: ", file.display());
    ensure!(said.contains(&expected) && said.contains("others can write to"), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn captures_are_private_and_no_link_of_others_is_followed() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut ferroute = Ferroute::start(&lab)?;
    let top = tempfile::tempdir()?;
    let (own, shared) = (top.path().join("own"), top.path().join("shared"));
    for (dir, mode) in [(&own, 0o755), (&shared, 0o1777)] {
        fs::create_dir(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(mode))?;
    }
    for dir in [&own, &shared] {
        let file = dir.join("new.pcapng");
        written(&lab, &ferroute, &file)?;
        let mode = fs::metadata(&file)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{mode:o}");
        // Once more, overwriting it.
        fs::write(&file, vec![b'x'; 1 << 20])?;
        written(&lab, &ferroute, &file)?;
        ensure!(fs::metadata(&file)?.len() < 1 << 16);
    }
    let precious = own.join("precious");
    fs::write(&precious, "precious")?;
    symlink(&precious, shared.join("link"))?;
    symlink(shared.join("made"), shared.join("nowhere"))?;
    fs::hard_link(&precious, shared.join("name"))?;
    fs::write(shared.join("theirs"), "theirs")?;
    std::os::unix::fs::chown(shared.join("theirs"), Some(65534), None)?;
    for name in ["link", "nowhere", "name", "theirs"] {
        refused(&lab, &ferroute, &shared.join(name))?;
    }
    ensure!(fs::read(&precious)? == b"precious" && !shared.join("made").exists());
    let hgrm = shared.join("link").to_string_lossy().into_owned();
    let latency = ferroute.command(&["latency", "--hgrm", &hgrm]).output()?;
    ensure!(!latency.status.success() && fs::read(&precious)? == b"precious");
    // The user's own link is followed.
    symlink(own.join("led-to"), own.join("link"))?;
    written(&lab, &ferroute, &own.join("link"))?;
    ensure!(own.join("led-to").is_file());
    ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_capture_goes_to_standard_output_by_any_name_and_through_a_fifo() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut ferroute = Ferroute::start(&lab)?;
    for name in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let output = capture(&lab, &ferroute, name)?;
        ensure!(output.status.success() && output.stdout.starts_with(&MAGIC), "-w {name}");
    }
    let dir = tempfile::tempdir()?;
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
    let reader = {
        let fifo = fifo.clone();
        std::thread::spawn(move || -> Result<Vec<u8>> {
            let mut read = Vec::new();
            fs::File::open(fifo)?.read_to_end(&mut read)?;
            Ok(read)
        })
    };
    let output = capture(&lab, &ferroute, &fifo.to_string_lossy())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = reader.join().expect("it does not panic")?;
    ensure!(read.starts_with(&MAGIC), "{} octets came through the FIFO", read.len());
    ferroute.terminate()
}
