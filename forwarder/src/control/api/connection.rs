//! One connection of the control socket: reads requests and writes answers within limits of size and time.
//! Notes what the connection waits for, so that a waiting one can be disconnected for another.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Envelope, Response};

/// Maximum octets of a request: enough for a `route get` of 20,000 addresses; more addresses take several
/// requests.
pub(super) const REQUEST_MAX: usize = 1 << 20;
/// Octets of a request that needs no permit.
const REQUEST_SMALL: usize = 64 << 10;
/// Maximum number of larger requests at a time, of all clients together: each takes some 5 MiB of memory
/// with the addresses read from it.
const LARGE_MAX: usize = 16;
/// How long a request may take to arrive, from its first octet to its newline.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may read nothing of its answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Total time that an answer may wait for its client.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// Octets per read.
const CHUNK: usize = 16 << 10;

/// What a client has sent.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A line.
    Request(Vec<u8>),
    /// The end of its requests.
    End,
    /// An invalid request; the text is for the client. The connection cannot be used any further.
    Wrong(String),
}

/// What a connection waits for, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// Nothing: a request is being answered.
    No,
    /// The next request.
    Request(Instant),
    /// The rest of a request whose first octet came at that time.
    Rest(Instant),
    /// The client, to read more of an answer begun at that time.
    Reader(Instant),
}

/// The part of a connection that is shared by its own thread and the one that makes room.
#[derive(Debug)]
pub(super) struct Shared {
    /// Non-blocking.
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

    /// The wait began when it was connected or answered, not when its thread got to run.
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

/// The number of large requests in progress.
#[derive(Debug, Default)]
pub(super) struct LargeRequests(AtomicUsize);

/// A permit for a large request.
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

/// The part of a connection that only its own thread uses.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    large: Arc<LargeRequests>,
    /// Permit of the request being answered.
    permit: Option<Permit>,
    /// Octets read after the end of a request.
    ahead: Vec<u8>,
    /// When the current answer was begun, and how long it has waited for the client.
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

    /// The stream, for what follows an answer.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.shared.stream
    }

    /// Waits without limit for a request to begin, and reads it.
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
            let left = begun.map(|begun| REQUEST_TIMEOUT.saturating_sub(begun.elapsed()));
            match begun {
                Some(begun) => self.shared.set(Waits::Rest(begun)),
                None => self.shared.wait_for_request(),
            }
            if !is_ready(&self.shared.stream, PollFlags::POLLIN, left.unwrap_or(Duration::MAX))? {
                let most = REQUEST_TIMEOUT.as_secs();
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

    /// Writes a small answer.
    pub(super) fn answer(&mut self, response: &Response) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Envelope::new(response))?;
        line.push(b'\n');
        self.write_all(&line)
    }
}

impl Write for Connection {
    /// Writes when the client reads, within limits. Returns the octets written.
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        loop {
            match (&self.shared.stream).write(octets) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => return other,
            }
            let left = READ_TIMEOUT.min(ANSWER_TIMEOUT.saturating_sub(self.blocked));
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

/// Waits until a stream can be read or written, or has ended. Returns whether it can within `timeout`.
fn is_ready(stream: &UnixStream, events: PollFlags, timeout: Duration) -> io::Result<bool> {
    let begun = Instant::now();
    loop {
        let left = timeout.saturating_sub(begun.elapsed());
        let timeout = if timeout == Duration::MAX {
            PollTimeout::NONE
        } else {
            // Rounded up, so that the last poll does not end too early.
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
