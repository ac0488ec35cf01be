//! Runs `ping` and parses its output.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{Netns, eventually};

/// How long an answer takes at most, unless packets are dropped.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);

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

/// A `ping` that goes on until this is dropped.
#[derive(Debug)]
pub struct Pinging {
    child: Child,
    reader: Option<JoinHandle<()>>,
    answers: Arc<AtomicU64>,
    /// Nanoseconds from `begun` until the last answer.
    last: Arc<AtomicU64>,
    begun: Instant,
    args: String,
}

impl Pinging {
    /// Runs `ping -n` with `args`.
    ///
    /// # Errors
    /// When it cannot be started, or is not answered.
    pub fn start(from: &Netns, args: &str) -> Result<Pinging> {
        let mut command = from.command("ping");
        command.arg("-n").args(args.split_whitespace());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("a pipe")?);
        let (answers, last) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let begun = Instant::now();
        let reader = thread::spawn({
            let (answers, last) = (Arc::clone(&answers), Arc::clone(&last));
            move || {
                let is_answer = |line: &String| line.contains("bytes from");
                for _ in output.lines().map_while(Result::ok).filter(is_answer) {
                    answers.fetch_add(1, Relaxed);
                    last.store(begun.elapsed().as_nanos() as u64, Relaxed);
                }
            }
        });
        let args = args.to_owned();
        let it = Pinging { child, reader: Some(reader), answers, last, begun, args };
        ensure!(it.goes_on(), "ping {}: no answers at the start", it.args);
        Ok(it)
    }

    /// How many packets were answered.
    pub fn answers(&self) -> u64 {
        self.answers.load(Relaxed)
    }

    /// Whether another 10 packets are answered.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        let before = self.answers();
        eventually(|| self.answers() >= before + 10)
    }

    /// When the last answer arrived, once none arrives any more.
    ///
    /// # Errors
    /// When answers go on.
    pub fn end(&self) -> Result<Instant> {
        let last = || self.begun + Duration::from_nanos(self.last.load(Relaxed));
        ensure!(eventually(|| last().elapsed() > ANSWER_TIMEOUT), "ping {}: goes on", self.args);
        Ok(last())
    }
}

impl Drop for Pinging {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
        self.reader.take().map(JoinHandle::join);
    }
}
