//! One connection of the control socket: requests read and answers written within bounds of size
//! and time, and what the connection waits for, so that one that only waits can give way.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Envelope, Response};

/// Octets of one request: room for a `route get` of 20,000 addresses; more of them take several
/// requests.
pub(super) const REQUEST_MAX: usize = 1 << 20;
/// Octets of a request that anyone may send at any time.
const REQUEST_SMALL: usize = 64 << 10;
/// Requests larger than that at a time, of all clients together: they are what memory goes to, some
/// 5 MiB each with the addresses read from it.
const LARGE_MAX: usize = 16;
/// How long a request may take to arrive, from its first octet to its line end.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long a client may take nothing of its answer.
const STALL_MAX: Duration = Duration::from_secs(30);
/// How long in all an answer may wait for its client.
const BLOCKED_MAX: Duration = Duration::from_secs(300);
/// Octets read at once.
const CHUNK: usize = 16 << 10;

/// What a client has sent.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A line.
    Request(Vec<u8>),
    /// It wants no more.
    End,
    /// Nothing that could be answered; why, for the client. Its connection is of no more use.
    Wrong(String),
}

/// What a connection waits for, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// Nothing: a request is being answered.
    No,
    /// The next request.
    Request(Instant),
    /// The rest of a request that began then.
    Rest(Instant),
    /// The client, to take more of an answer that it was given the first of then.
    Reader(Instant),
}

/// A connection, for the threads that look at it: its own, and the one that makes room.
#[derive(Debug)]
pub(super) struct Shared {
    /// Does not block.
    pub(super) stream: UnixStream,
    waits: Mutex<Waits>,
}

impl Shared {
    pub(super) fn new(stream: UnixStream) -> io::Result<Shared> {
        stream.set_nonblocking(true)?;
        Ok(Shared { stream, waits: Mutex::new(Waits::Request(Instant::now())) })
    }

    pub(super) fn waits(&self) -> Waits {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, waits: Waits) {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = waits;
    }

    /// It has waited since it was connected or answered, not since its thread got to run.
    fn wait_for_request(&self) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*waits, Waits::Request(_)) {
            *waits = Waits::Request(Instant::now());
        }
    }

    /// Whether there is something to read.
    pub(super) fn has_input(&self) -> bool {
        is_ready(&self.stream, PollFlags::POLLIN, Duration::ZERO).unwrap_or(true)
    }
}

/// How many large requests there are.
#[derive(Debug, Default)]
pub(super) struct LargeRequests(AtomicUsize);

/// The right to send a large one.
#[derive(Debug)]
struct Permit(Arc<LargeRequests>);

impl LargeRequests {
    fn permit(self: &Arc<Self>) -> Option<Permit> {
        let more = |count| (count < LARGE_MAX).then_some(count + 1);
        self.0.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Permit(Arc::clone(self)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// A connection, for its own thread.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    large: Arc<LargeRequests>,
    /// Of the request being answered.
    permit: Option<Permit>,
    /// What was read behind the end of a request.
    ahead: Vec<u8>,
    /// When the answer being written was begun, and how long it has waited for the client.
    begun: Instant,
    blocked: Duration,
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, large: Arc<LargeRequests>) -> Connection {
        Connection {
            shared,
            large,
            permit: None,
            ahead: Vec::new(),
            begun: Instant::now(),
            blocked: Duration::ZERO,
        }
    }

    /// The stream, for what follows an answer on it.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.shared.stream
    }

    /// Waits for a request as long as it takes to begin, and reads it.
    pub(super) fn receive(&mut self) -> io::Result<Incoming> {
        self.permit = None;
        let mut line = std::mem::take(&mut self.ahead);
        let mut begun = (!line.is_empty()).then(Instant::now);
        let mut searched = 0;
        loop {
            if let Some(at) = line[searched..].iter().position(|octet| *octet == b'\n') {
                self.ahead = line.split_off(searched + at + 1);
                self.shared.set(Waits::No);
                (self.begun, self.blocked) = (Instant::now(), Duration::ZERO);
                return Ok(Incoming::Request(line));
            }
            searched = line.len();
            if line.len() > REQUEST_MAX {
                let most = REQUEST_MAX >> 10;
                return Ok(Incoming::Wrong(format!("the request is longer than {most} KiB")));
            }
            if line.len() > REQUEST_SMALL && self.permit.is_none() {
                self.permit = self.large.permit();
                if self.permit.is_none() {
                    let why = "too many large requests at once; try again, or ask for less";
                    return Ok(Incoming::Wrong(why.into()));
                }
            }
            let left = begun.map(|begun| REQUEST_TIME.saturating_sub(begun.elapsed()));
            match begun {
                Some(begun) => self.shared.set(Waits::Rest(begun)),
                None => self.shared.wait_for_request(),
            }
            if !is_ready(&self.shared.stream, PollFlags::POLLIN, left.unwrap_or(Duration::MAX))? {
                let most = REQUEST_TIME.as_secs();
                return Ok(Incoming::Wrong(format!("the request took longer than {most} s")));
            }
            let mut chunk = [0; CHUNK];
            match (&self.shared.stream).read(&mut chunk) {
                Ok(0) if line.is_empty() => return Ok(Incoming::End),
                Ok(0) => return Ok(Incoming::Wrong("the request is cut short".into())),
                Ok(octets) => line.extend_from_slice(&chunk[..octets]),
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
            begun = begun.or_else(|| Some(Instant::now()));
        }
    }

    /// Writes an answer that is small.
    pub(super) fn answer(&mut self, response: &Response) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Envelope::new(response))?;
        line.push(b'\n');
        self.write_all(&line)
    }
}

impl Write for Connection {
    /// Waits for the client to take something, within limits.
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        loop {
            match (&self.shared.stream).write(octets) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => return other,
            }
            let left = STALL_MAX.min(BLOCKED_MAX.saturating_sub(self.blocked));
            self.shared.set(Waits::Reader(self.begun));
            let since = Instant::now();
            let ready = is_ready(&self.shared.stream, PollFlags::POLLOUT, left);
            self.blocked += since.elapsed();
            self.shared.set(Waits::No);
            if !ready? {
                let error = "the client does not take its answer";
                return Err(io::Error::new(io::ErrorKind::TimedOut, error));
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until a stream can be read or written, or is at its end. Whether it can.
fn is_ready(stream: &UnixStream, events: PollFlags, patience: Duration) -> io::Result<bool> {
    let begun = Instant::now();
    loop {
        let left = patience.saturating_sub(begun.elapsed());
        let timeout = if patience == Duration::MAX {
            PollTimeout::NONE
        } else {
            // Rounded up, so that the last look is not before the end.
            let ms = left.as_micros().div_ceil(1000).min(60_000) as u16;
            PollTimeout::from(ms)
        };
        let mut fds = [PollFd::new(stream.as_fd(), events)];
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
