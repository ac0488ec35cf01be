//! Runs `ping` and parses its output.

use anyhow::{Context, Result, ensure};

use crate::Netns;

/// Results of `ping`.
#[derive(Debug, Clone)]
pub struct Ping {
    pub sent: u32,
    pub received: u32,
    /// The whole output, including errors received.
    pub text: String,
}

/// Runs `ping -n` with `args`; lost packets are no error.
///
/// # Errors
/// When it cannot be started or prints no statistics.
pub fn ping(from: &Netns, args: &str) -> Result<Ping> {
    let output = from.output(&format!("ping -n {args}"))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| line.contains("packets transmitted"));
    let line = line.with_context(|| format!("ping {args} has no statistics:\n{text}"))?;
    let before = |what: &str| {
        let end = line.find(what)?;
        line[..end].trim_end().rsplit([' ', ',']).next()?.parse().ok()
    };
    let (sent, received) = (before("packets transmitted"), before("received"));
    let context = || format!("ping printed: {line}");
    Ok(Ping { sent: sent.with_context(context)?, received: received.with_context(context)?, text })
}

/// Runs `ping` and fails unless every packet is answered.
///
/// # Errors
/// When one is not answered; the error contains the output of `ping`.
pub fn ping_all(from: &Netns, args: &str) -> Result<Ping> {
    let result = ping(from, args)?;
    ensure!(result.received == result.sent, "ping {args}:\n{}", result.text);
    Ok(result)
}

/// Pings `count` times, one after the other, and fails unless every one is answered.
///
/// Not a single `ping -c COUNT`: that waits for its last answers only twice as long as the others took,
/// whatever `-W` specifies, which is less than a busy machine may delay them.
///
/// # Errors
/// When one is not answered; the error contains the output of `ping`.
pub fn ping_each(from: &Netns, to: &str, count: u32) -> Result<()> {
    (0..count).try_for_each(|_| ping_all(from, &format!("-c 1 -W 10 {to}")).map(drop))
}
