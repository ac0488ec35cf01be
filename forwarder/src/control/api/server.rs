//! The control socket: accepts the command line's connections and answers through a [`ControlHandler`]. It
//! does not interpret requests.
//!
//! Only root and the daemon's own user are served: the file's mode allows no others, and every peer's
//! credentials are checked in addition. A client costs a thread and a place among
//! [`CLIENTS_MAX`](super::clients::CLIENTS_MAX), its request at most
//! [`REQUEST_MAX`](super::connection::REQUEST_MAX) octets, its answer a row and a buffer.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use serde::Deserialize;

use super::clients::{self, Clients, Place};
use super::connection::{Connection, Incoming};
use super::listen::{Listening, ServerError, SocketFiles, listen};
use super::rows::{List, ListError, RowWriter};
use crate::control::api::{API_VERSION, Envelope, Format, Request, Response};
use crate::control::process::threads::join_until;
use crate::control::process::{limits, privilege};

/// Pause after accept(2) failed: descriptors or memory must be released first.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// How long the end waits for the accepting thread, which is woken for it.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(1);

/// Answers requests. Called on the threads of the connections, several at a time.
pub trait ControlHandler: Send + Sync {
    /// The answer; errors are [`Response::Error`].
    fn handle(&self, request: Request) -> Answer;
}

/// How a request is answered.
pub enum Answer {
    /// With a response.
    Response(Response),
    /// With a list, which is made while it is written.
    List(Format, Box<dyn List>),
    /// With a response; then the connection has another use and ends.
    Follow(Response, Box<dyn Follow>),
}

/// The use of a connection after an answer.
pub trait Follow: Send {
    /// Uses the connection, on its thread, without a time limit.
    ///
    /// # Errors
    /// Those of the stream; the connection is closed in either case.
    fn follow(self: Box<Self>, stream: &UnixStream) -> io::Result<()>;
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Answer::Response(response) | Answer::Follow(response, _) => response.fmt(f),
            Answer::List(format, _) => write!(f, "a list as {format:?}"),
        }
    }
}

impl From<Response> for Answer {
    fn from(response: Response) -> Answer {
        Answer::Response(response)
    }
}

/// The listening socket and its thread. Closed and removed when dropped.
#[derive(Debug)]
pub struct Server {
    files: SocketFiles,
    /// Dropping it wakes the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `path` and starts answering. A stale socket is replaced.
    ///
    /// # Errors
    /// As for [`listen`] and [`Server::serve`].
    pub fn start(path: &Path, handler: Arc<dyn ControlHandler>) -> Result<Server, ServerError> {
        Server::serve(listen(path)?, handler)
    }

    /// Starts answering on a socket.
    ///
    /// # Errors
    /// When a system call fails.
    pub fn serve(
        socket: Listening,
        handler: Arc<dyn ControlHandler>,
    ) -> Result<Server, ServerError> {
        let Listening { listener, files } = socket;
        let path = files.path();
        let failed = |what| move |error| ServerError::Io { path: path.to_owned(), what, error };
        listener.set_nonblocking(true).map_err(failed("set it up"))?;
        let (stop, stopped) = UnixStream::pair().map_err(failed("set it up"))?;
        let thread = thread::Builder::new()
            .name("fr-control".into())
            .spawn(move || {
                // The threads of clients inherit this.
                privilege::drop_all();
                accept_loop(&listener, &stopped, &handler);
            })
            .map_err(failed("start its thread"))?;
        Ok(Server { files, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.files.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = join_until(thread, Instant::now() + ACCEPT_TIMEOUT);
        }
    }
}

fn accept_loop(listener: &UnixListener, stopped: &UnixStream, handler: &Arc<dyn ControlHandler>) {
    let clients = Arc::new(Clients::default());
    // Released when no other descriptor is left.
    let mut reserve = reserve_descriptor();
    loop {
        let mut fds = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
        if fds[1].any().unwrap_or(true) {
            return;
        }
        match listener.accept() {
            // The last descriptors are for forwarding and for following the kernel.
            Ok((stream, _))
                if limits::are_descriptors_scarce(clients.threads()) && !clients.replace_idle() =>
            {
                clients::say(&stream, "no descriptor is left for clients (ulimit -n); try again");
                thread::sleep(ACCEPT_RETRY_INTERVAL);
            }
            Ok((stream, _)) => serve_in_thread(stream, &clients, handler),
            Err(error) if is_gone(&error) => {}
            // Out of descriptors or memory. An idle client is disconnected; if there is none, the reserve
            // descriptor serves one client, and the others wait in the backlog.
            Err(_) if clients.disconnect_idle() => thread::sleep(ACCEPT_RETRY_INTERVAL),
            Err(_) if reserve.take().is_some() => continue,
            Err(_) => thread::sleep(ACCEPT_RETRY_INTERVAL),
        }
        reserve = reserve.or_else(reserve_descriptor);
    }
}

/// Whether a client left before it was accepted.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock)
}

fn reserve_descriptor() -> Option<File> {
    File::open("/dev/null").ok()
}

fn serve_in_thread(stream: UnixStream, clients: &Arc<Clients>, handler: &Arc<dyn ControlHandler>) {
    // Checked first, so that other users cost neither a thread nor a place.
    let peer = getsockopt(&stream, PeerCredentials).map_or(u32::MAX, |peer| peer.uid());
    if !may_ask(peer, geteuid().as_raw()) {
        return clients::say(&stream, &format!("user {peer} is not root"));
    }
    let Some(place) = clients.admit(stream) else { return };
    let handler = Arc::clone(handler);
    // If no thread can be created, the connection closes, which the client reports.
    let _ = thread::Builder::new().name("fr-client".into()).spawn(move || {
        // A client that is slow, gone or sends invalid requests only loses its connection.
        let _ = serve(&place, &*handler);
        // Its memory is freed before its place.
    });
}

fn serve(place: &Place, handler: &dyn ControlHandler) -> io::Result<()> {
    let mut connection = Connection::new(Arc::clone(&place.shared), place.large());
    loop {
        let line = match connection.receive()? {
            Incoming::Request(line) => line,
            Incoming::End => return Ok(()),
            Incoming::Wrong(why) => return connection.answer(&Response::error(why)),
        };
        let request = parse(&line);
        drop(line);
        let answer = match request {
            Ok(request) => handler.handle(request),
            Err(message) => Response::error(message).into(),
        };
        match answer {
            Answer::Response(response) => connection.answer(&response)?,
            Answer::List(format, list) => write_list(list, format, &mut connection)?,
            Answer::Follow(response, follow) => {
                connection.answer(&response)?;
                connection.stream().set_nonblocking(false)?;
                return follow.follow(connection.stream());
            }
        }
    }
}

fn write_list(mut list: Box<dyn List>, format: Format, to: &mut Connection) -> io::Result<()> {
    let mut writer = RowWriter::new(to, format);
    loop {
        match list.write_some(&mut writer) {
            Ok(true) => {}
            Ok(false) => return writer.finish(),
            Err(ListError::Io(error)) => return Err(error),
            Err(ListError::Refused(why)) if writer.is_untouched() => {
                drop(writer);
                return to.answer(&Response::error(why));
            }
            // An error cannot be reported within an answer: the line stays without a newline.
            Err(ListError::Refused(why)) => return Err(io::Error::other(why)),
        }
    }
}

/// Whether a user may send requests: root, and the daemon's user.
fn may_ask(peer_uid: u32, own_uid: u32) -> bool {
    peer_uid == 0 || peer_uid == own_uid
}

/// Parses a request from a line. Public for tests/fuzz.
///
/// # Errors
/// The error for the client.
#[doc(hidden)]
pub fn parse(line: &[u8]) -> Result<Request, String> {
    // The version first, whatever the format of the rest.
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } =
        serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    if version != API_VERSION {
        return Err(format!(
            "the daemon is ferroute {} and speaks version {API_VERSION} of the control protocol, \
             the client version {version}; use the same program, or restart the daemon",
            env!("CARGO_PKG_VERSION")
        ));
    }
    let envelope: Envelope<Request> =
        serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    Ok(envelope.body)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Instant;

    use super::super::clients::CLIENTS_MAX;
    use super::super::connection::REQUEST_MAX;
    use super::*;
    use crate::control::api::client::{Client, ClientError};
    use crate::control::api::{Rendered, RouteGetRequest};
    use std::path::PathBuf;

    /// Answers `route get` with the addresses, everything else with an error.
    struct Echo;

    struct Addrs(std::vec::IntoIter<IpAddr>);

    impl List for Addrs {
        fn write_some(&mut self, to: &mut RowWriter<'_>) -> Result<bool, ListError> {
            if let Some(addr) = self.0.next() {
                to.row(&addr)?;
            }
            Ok(!self.0.as_slice().is_empty())
        }
    }

    impl ControlHandler for Echo {
        fn handle(&self, request: Request) -> Answer {
            match request {
                Request::RouteGet(RouteGetRequest { addrs, format, .. }) => {
                    Answer::List(format, Box::new(Addrs(addrs.into_iter())))
                }
                other => Response::error(format!("{other:?}")).into(),
            }
        }
    }

    fn socket() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control.sock");
        (dir, path)
    }

    fn served() -> (tempfile::TempDir, Server) {
        let (dir, path) = socket();
        (dir, Server::start(&path, Arc::new(Echo)).expect("starts"))
    }

    fn route_get(addrs: u32, format: Format) -> Request {
        let addrs = (0..addrs).map(|n| Ipv4Addr::from(n).into()).collect();
        Request::RouteGet(RouteGetRequest { addrs, from: None, iif: None, mark: 0, format })
    }

    /// Whether a new client is answered.
    fn is_answered(server: &Server) -> bool {
        let asked =
            Client::connect(server.path()).and_then(|mut client| client.ask(&Request::Stat));
        asked.is_err_and(|error| error.to_string() == "Stat")
    }

    /// What comes until the end.
    fn rest_of(mut stream: &UnixStream) -> String {
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
        let mut octets = Vec::new();
        // A server that has not read everything resets the connection after its answer.
        let _ = stream.read_to_end(&mut octets);
        String::from_utf8_lossy(&octets).into_owned()
    }

    #[test]
    fn requests_are_answered_in_turn_and_large_ones_too() {
        let (_dir, server) = served();
        let path = server.path().to_owned();
        let mut client = Client::connect(&path).expect("connects");
        for count in [20_000, 0, 1] {
            let Ok(Response::Rendered(Rendered::Text(text))) =
                client.ask(&route_get(count, Format::Text))
            else {
                panic!("no text");
            };
            assert_eq!(text.lines().count(), count as usize);
            let Ok(Response::Rendered(Rendered::Json(json))) =
                client.ask(&route_get(count, Format::Json))
            else {
                panic!("no JSON");
            };
            assert_eq!(json.as_array().map(Vec::len), Some(count as usize));
        }
        let refused = client.ask(&Request::Stat).expect_err("an error");
        assert_eq!(refused.to_string(), "Stat");
        drop(server);
        assert!(!path.exists());
        assert!(matches!(Client::connect(&path), Err(ClientError::NotRunning { .. })));
    }

    #[test]
    fn another_version_and_invalid_requests_get_an_error() {
        let (_dir, server) = served();
        let nested = format!("{}{}\n", "[".repeat(100_000), "]".repeat(100_000));
        let nested_body = format!("{{\"version\":1,\"body\":{nested}");
        let invalid: &[u8] = b"{\"version\":1,\"body\":\"\xff\xfe\"}\n";
        for (line, expected) in [
            (&b"{\"version\":999,\"body\":\"from_the_future\"}\n"[..], "speaks version"),
            (b"{\"version\":1,\"body\":\"unheard_of\"}\n", "not a request"),
            (b"{\"version\":1e999,\"body\":\"status\"}\n", "not a request"),
            (b"{\"version\":99999999999999999999,\"body\":\"status\"}\n", "not a request"),
            (b"\n", "not a request"),
            (b"\0\0\0\n", "not a request"),
            (b"{\"version\":1,\"body\":\"status\"}", "cut short"),
            (invalid, "not a request"),
            (nested.as_bytes(), "not a request"),
            (nested_body.as_bytes(), "not a request"),
        ] {
            let mut stream = UnixStream::connect(server.path()).expect("connects");
            stream.write_all(line).expect("writes");
            stream.shutdown(std::net::Shutdown::Write).expect("shuts down");
            let text = rest_of(&stream);
            assert!(text.contains(expected), "{:?}: {text}", String::from_utf8_lossy(line));
        }
        assert!(is_answered(&server));
    }

    #[test]
    fn root_and_the_own_user_may_ask() {
        assert!(may_ask(0, 1000) && may_ask(1000, 1000) && may_ask(0, 0));
        assert!(!may_ask(1000, 0) && !may_ask(1001, 1000));
    }

    #[test]
    fn the_oldest_silent_client_is_disconnected_for_a_new_one() {
        let (_dir, server) = served();
        let connect = |_| UnixStream::connect(server.path()).expect("connects");
        let silent: Vec<UnixStream> = (0..CLIENTS_MAX).map(connect).collect();
        assert!(is_answered(&server));
        assert!(rest_of(&silent[0]).contains("idle longest"));
        // The others still have their places.
        let mut last = Client::connect(server.path()).expect("connects");
        let text = last.ask(&route_get(1, Format::Text)).expect("an answer");
        assert_eq!(text, Response::Rendered(Rendered::Text("0.0.0.0\n".into())));
        (&silent[CLIENTS_MAX - 1]).write_all(b"\n").expect("is connected");
        silent[CLIENTS_MAX - 1].shutdown(std::net::Shutdown::Write).expect("shuts down");
        assert!(rest_of(&silent[CLIENTS_MAX - 1]).contains("not a request"));
    }

    #[test]
    fn a_thousand_clients_at_once_leave_room() {
        let (_dir, server) = served();
        let connect = |_| UnixStream::connect(server.path()).expect("connects");
        let silent: Vec<UnixStream> = (0..1000).map(connect).collect();
        assert!(is_answered(&server));
        drop(silent);
        assert!(is_answered(&server));
    }

    #[test]
    fn a_request_that_is_too_long_is_refused_before_its_end() {
        let (_dir, server) = served();
        let mut stream = UnixStream::connect(server.path()).expect("connects");
        let block = [b' '; 1 << 16];
        let taken = (0..1u64 << 14).take_while(|_| stream.write_all(&block).is_ok()).count();
        assert!(taken * block.len() < 4 * REQUEST_MAX, "{taken} blocks were read");
        assert!(rest_of(&stream).contains("longer than 1024 KiB"));
        assert!(is_answered(&server));
    }

    #[test]
    fn a_request_has_limited_time_however_it_arrives() {
        let (_dir, server) = served();
        let begun = Instant::now();
        let mut stream = UnixStream::connect(server.path()).expect("connects");
        while begun.elapsed() < Duration::from_secs(60) && stream.write_all(b" ").is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
        assert!(rest_of(&stream).contains("longer than 5 s"));
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn clients_with_old_unread_answers_are_disconnected_for_new_ones() {
        let (_dir, server) = served();
        let mut request =
            serde_json::to_vec(&Envelope::new(route_get(20_000, Format::Json))).expect("a request");
        request.push(b'\n');
        let ask = |_| {
            let mut stream = UnixStream::connect(server.path()).expect("connects");
            // A refused client's connection may be closed before its request was read.
            let _ = stream.write_all(&request);
            stream
        };
        // This is the limit of concurrent large requests.
        let unread: Vec<UnixStream> = (0..16).map(ask).collect();
        let refused = rest_of(&ask(0));
        assert!(refused.contains("too many large requests"), "{refused}");
        let idle: Vec<UnixStream> = (16..CLIENTS_MAX)
            .map(|_| UnixStream::connect(server.path()).expect("connects"))
            .collect();
        assert!(is_answered(&server));
        drop((unread, idle));
    }
}
