//! `ping` and what it says.

use anyhow::{Context, Result, ensure};

use crate::Netns;

/// What `ping` printed and counted.
#[derive(Debug, Clone)]
pub struct Ping {
    pub sent: u32,
    pub received: u32,
    /// All of it, errors received included.
    pub text: String,
}

/// Runs `ping -n` with `args`, whatever comes of it.
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
/// When one is not; the message has what `ping` printed.
pub fn ping_all(from: &Netns, args: &str) -> Result<Ping> {
    let result = ping(from, args)?;
    ensure!(result.received == result.sent, "ping {args}:\n{}", result.text);
    Ok(result)
}

/// Pings `count` times, one after the other, and fails unless every one is answered.
///
/// Not by one `ping -c COUNT`: that waits for its last answers only twice as long as the others took,
/// whatever `-W` says, which is less than a busy machine may keep them.
///
/// # Errors
/// When one is not; the message has what `ping` printed.
pub fn ping_each(from: &Netns, to: &str, count: u32) -> Result<()> {
    (0..count).try_for_each(|_| ping_all(from, &format!("-c 1 -W 10 {to}")).map(drop))
}
