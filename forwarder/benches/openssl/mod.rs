//! OpenSSL's AES-128-GCM, by its own `openssl speed`, in a process of its own on one core.

use std::process::{Command, Stdio};

use crate::median;

/// Runs of each kind, and seconds of each.
const RUNS: usize = 3;
const SECONDS: &str = "1";

/// Prints the time of `len` octets: as one piece of a long message, without nonce and tag of its own, and as a message
/// with additional data, as a record of TLS has them.
pub fn measure(len: usize) {
    for (name, options) in
        [("openssl speed -evp, seal", &[][..]), ("openssl speed -evp -aead, seal", &["-aead"])]
    {
        let runs: Option<Vec<f64>> = (0..RUNS).map(|_| time_ns(options, len)).collect();
        match runs {
            Some(mut runs) => println!("{name:48} {len:6} {:9.1}", median(&mut runs)),
            None => println!("{name:48} {len:6}   not installed (Debian package openssl)"),
        }
    }
}

/// The time of one operation, in nanoseconds.
fn time_ns(options: &[&str], len: usize) -> Option<f64> {
    let mut command = Command::new("openssl");
    command.args(["speed", "-mr"]).args(options).args(["-evp", "aes-128-gcm"]);
    command.args(["-bytes", &len.to_string(), "-seconds", SECONDS]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // "+F:25:AES-128-GCM:5200000000.00": octets per second.
    let line = text.lines().find(|line| line.starts_with("+F:"))?;
    let octets_per_s: f64 = line.rsplit(':').next()?.trim().parse().ok()?;
    Some(len as f64 * 1e9 / octets_per_s)
}
