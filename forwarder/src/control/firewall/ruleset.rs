//! The nftables ruleset that workers apply: read from the kernel and compiled by a thread of its own,
//! because a set may have a hundred thousand elements.

use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::control::netlink::query::{NlSock, is_interrupted};
use crate::control::nftables;
use crate::control::process::privilege;
use crate::control::process::threads::join_until;
use crate::netfilter::nft::ruleset::{Expr, OBJECT_CT_TIMEOUT};
use crate::netfilter::nft::{Program, Ruleset, compile_with_slack};
use crate::worker::clock::monotonic_ns;

/// The next reading waits for this multiple of the time that the last one took.
const READ_REST: u32 = 4;
/// The least time between two readings if the first one failed.
const ERROR_INTERVAL: Duration = Duration::from_millis(50);
/// How far, besides the time that the reading takes, a time of expiry may be from the kernel's, which
/// counts in jiffies and milliseconds.
const EXPIRY_SLACK_NS: u64 = 50_000_000;

/// A ruleset that was read, and its program.
#[derive(Debug)]
pub struct Compiled {
    /// The kernel's generation id.
    pub generation: u32,
    /// Number of notifications before it was asked for, see [`Followed::is`].
    pub notices: u64,
    /// What the kernel has.
    pub ruleset: Ruleset,
    /// What workers run. Times in it are those of CLOCK_MONOTONIC.
    pub program: Program,
}

impl Compiled {
    /// Reads the ruleset of the network namespace and compiles it. `notices`: how many notifications had
    /// been received before.
    ///
    /// # Errors
    /// When a request fails; [`is_interrupted`] if the ruleset changed during every attempt.
    pub fn read(notices: u64) -> io::Result<Compiled> {
        let begun_ns = monotonic_ns();
        let ruleset = match NlSock::open(NETLINK_NETFILTER) {
            Ok(mut socket) => nftables::read(&mut socket)?,
            // The kernel has no netfilter.
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ruleset::default(),
            Err(error) => return Err(error),
        };
        let now_ns = monotonic_ns();
        let slack_ns = now_ns.saturating_sub(begun_ns) + EXPIRY_SLACK_NS;
        let program = compile_with_slack(&ruleset, now_ns, slack_ns);
        Ok(Compiled { generation: ruleset.generation, notices, ruleset, program })
    }

    /// What of the ruleset workers cannot apply so that all packets must be left to the kernel, a line
    /// each; empty if there is nothing.
    pub fn obstacles(&self) -> Vec<String> {
        let program = &self.program;
        program.unsupported().iter().map(|chain| format!("nftables: {chain}")).collect()
    }
}

/// Whether a ruleset may set time-outs of connections or restrict their events (`ct timeout`, `ct event`, the target CT of
/// iptables).
pub fn sets_entries(ruleset: &Ruleset) -> bool {
    let tables = &ruleset.tables;
    let mut rules = tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
    tables.iter().flat_map(|table| &table.objects).any(|object| object.kind == OBJECT_CT_TIMEOUT)
        || rules.any(|rule| {
            let sets = ["xt target CT", "ct event set"];
            let is_set =
                |expr: &Expr| matches!(expr, Expr::Other(it) if sets.contains(&it.name.as_str()));
            rule.exprs.iter().any(is_set)
        })
}

/// The thread `fr-nft`, which reads and compiles the ruleset when asked.
#[derive(Debug)]
pub struct RulesetReader {
    requests: Option<Sender<u64>>,
    results: Receiver<io::Result<Compiled>>,
    thread: Option<JoinHandle<()>>,
}

impl RulesetReader {
    /// Starts the thread; it calls `notify` when there is a result.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(notify: impl Fn() + Send + 'static) -> io::Result<RulesetReader> {
        let (requests, asked) = bounded(1);
        let (answer, results) = bounded(1);
        let thread = std::thread::Builder::new().name("fr-nft".into()).spawn(move || {
            privilege::confine_follower();
            // Ends when either channel is closed.
            while let Ok(notices) = asked.recv() {
                let from = Instant::now();
                let read = Compiled::read(notices);
                // While the ruleset changes all the time, reading it takes at most a fifth of a CPU.
                let mut rest = from.elapsed() * READ_REST;
                if read.is_err() {
                    rest = rest.max(ERROR_INTERVAL);
                }
                if answer.send(read).is_err() {
                    break;
                }
                notify();
                std::thread::sleep(rest);
            }
        })?;
        Ok(RulesetReader { requests: Some(requests), results, thread: Some(thread) })
    }

    /// Asks for the ruleset, after `notices` notifications. If a request already waits, that one is
    /// answered, and the caller has to ask again. Returns whether the thread is still there.
    pub fn request(&self, notices: u64) -> bool {
        match self.requests.as_ref().map(|requests| requests.try_send(notices)) {
            Some(Ok(()) | Err(TrySendError::Full(_))) => true,
            Some(Err(TrySendError::Disconnected(_))) | None => false,
        }
    }

    /// A result, if there is one.
    pub fn try_result(&self) -> Option<io::Result<Compiled>> {
        self.results.try_recv().ok()
    }

    /// Whether the thread has ended, which is a bug.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Ends the thread, and waits for it until `end`.
    pub fn stop(&mut self, end: Instant) {
        self.requests = None;
        // A result that nobody takes would make it wait.
        let _ = self.results.try_recv();
        if let Some(thread) = self.thread.take() {
            join_until(thread, end);
        }
    }
}

/// Which ruleset the workers apply.
#[derive(Debug, Default)]
pub struct Followed {
    /// The generation that they apply, and the number of notifications before it was read. `None`: none.
    applied: Option<(u32, u64)>,
    /// What of it they cannot apply.
    obstacles: Vec<String>,
    /// Why it cannot be read.
    error: Option<String>,
}

impl Followed {
    /// The workers apply this ruleset.
    pub fn of(compiled: &Compiled) -> Followed {
        Followed {
            applied: Some((compiled.generation, compiled.notices)),
            obstacles: compiled.obstacles(),
            error: None,
        }
    }

    /// The ruleset could not be read.
    pub fn failed(error: &io::Error) -> Followed {
        // If it was interrupted it is read again.
        let error = (!is_interrupted(error)).then(|| error.to_string());
        Followed { error, ..Followed::default() }
    }

    /// Whether the workers apply the ruleset of this generation, read after all notifications.
    ///
    /// The generation alone does not show that the ruleset is whole: the kernel increments it before it
    /// applies a transaction, and sends the notification after that (`nf_tables_commit`).
    pub fn is(&self, generation: u32, notices: u64) -> bool {
        self.applied == Some((generation, notices))
    }

    /// What must be left to the kernel although the ruleset was read, a line each.
    pub fn obstacles(&self) -> impl Iterator<Item = String> {
        let error = self.error.iter().map(|error| format!("nftables cannot be read: {error}"));
        error.chain(self.obstacles.iter().cloned())
    }
}
