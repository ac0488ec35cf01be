//! The HTTP server: one thread for all connections, with limits on their number, their time and the size of a request.
//!
//! | path | answer |
//! | --- | --- |
//! | `/metrics` | OpenMetrics if the client asks for it, else the text format |
//! | `/api/v1/overview` | [`Overview`] |
//! | `/` | the page, which shows the overview |
//!
//! Each connection has one request. A client that is slow, silent or sends too much only loses its connection; if there
//! are as many connections as may be, the oldest one is closed for a new one. What a thousand clients cost is bounded:
//! their sockets, and one reading of the daemon for all.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, watch};

use super::listen::{Listener, MetricsSocket};
use super::page;
use super::samples::{LastCounts, ServerCounts, samples};
use super::text::{self, Texts, wants_openmetrics};
use super::view::Overview;
use super::{MetricsError, READING_INTERVAL, Source};
use crate::control::api::listen::SocketFiles;
use crate::control::config::metrics::MetricsAddr;
use crate::control::process::threads::join_until;
use crate::control::process::{limits, privilege};

/// Connections at one time. Others wait in the socket's backlog.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a request may take to arrive.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a connection may take.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(15);
/// Maximum length of a request's head, octets.
const HEAD_MAX: usize = 16 << 10;
/// Age at which a connection whose request has not arrived may be closed for another one.
const SILENT_AGE_MIN: Duration = Duration::from_millis(100);
/// Age at which one that does not read its answer may be.
const UNREAD_AGE_MIN: Duration = Duration::from_secs(2);
/// How often it is checked whether a connection has ended, if there are as many as may be.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// Pause after accept(2) failed: descriptors must be released first.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// How long the end waits for the thread, which is woken for it.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// The server and its thread. Dropping it ends both.
#[derive(Debug)]
pub struct MetricsServer {
    /// Removed when this is dropped.
    _files: Option<SocketFiles>,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Starts answering on a socket.
    ///
    /// # Errors
    /// When a thread or the runtime cannot be created.
    pub fn serve(
        socket: MetricsSocket,
        source: Arc<dyn Source>,
    ) -> Result<MetricsServer, MetricsError> {
        let MetricsSocket { addr, listener, files } = socket;
        let failed = |what| {
            let addr = addr.clone();
            move |error| MetricsError::Io { addr, what, error }
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            // Readings, which block, have a thread of their own.
            .max_blocking_threads(1)
            .thread_name("fr-metrics-read")
            .build()
            .map_err(failed("set up its runtime"))?;
        let listener = {
            let _runtime = runtime.enter();
            AsyncListener::new(listener).map_err(failed("set it up"))?
        };
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let shared = Arc::new(Shared::new(source, &addr));
        let serve = move || {
            // The thread of readings, which this one starts, inherits it.
            privilege::drop_all();
            runtime.block_on(async {
                let accepting = tokio::spawn(accept(listener, shared));
                stopped.notified().await;
                accepting.abort();
            });
            // A reading may wait for workers; it is not waited for.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("fr-metrics".into()).spawn(serve);
        let thread = thread.map_err(failed("start its thread"))?;
        Ok(MetricsServer { _files: files, stop, thread: Some(thread) })
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = join_until(thread, Instant::now() + STOP_TIMEOUT);
        }
    }
}

/// What all connections share.
struct Shared {
    source: Arc<dyn Source>,
    /// The last reading and when it ended; `None`: there is none, or it failed.
    last: watch::Sender<Option<(Instant, Arc<Rendered>)>>,
    /// Only changed on the server's thread.
    is_reading: AtomicBool,
    readings: AtomicU64,
    /// Only used during a reading.
    counts: Mutex<LastCounts>,
    closed: AtomicU64,
    /// Whether only names of this machine are allowed in `Host`: a web page of elsewhere could otherwise read answers
    /// under a name of its own that leads here (DNS rebinding).
    is_local: bool,
}

/// A reading in all of its forms.
#[derive(Debug, Default)]
struct Rendered {
    openmetrics: Bytes,
    text: Bytes,
    overview: Bytes,
}

impl Shared {
    fn new(source: Arc<dyn Source>, addr: &MetricsAddr) -> Shared {
        Shared {
            source,
            last: watch::Sender::new(None),
            is_reading: AtomicBool::new(false),
            readings: AtomicU64::new(0),
            counts: Mutex::default(),
            closed: AtomicU64::new(0),
            is_local: matches!(addr, MetricsAddr::Tcp(_)) && addr.is_local(),
        }
    }

    /// The last reading, or a new one if that is too old. Clients that come meanwhile wait for the same one.
    async fn current(self: &Arc<Self>) -> Option<Arc<Rendered>> {
        let mut last = self.last.subscribe();
        if let Some((at, rendered)) = &*last.borrow_and_update()
            && at.elapsed() < READING_INTERVAL
        {
            return Some(Arc::clone(rendered));
        }
        if !self.is_reading.swap(true, Relaxed) {
            // Not a part of the connection, which ends when its client disconnects: the reading goes on then, and its
            // result has to be kept, or each such client would cause a reading of its own.
            tokio::spawn(Arc::clone(self).refresh());
        }
        last.changed().await.ok()?;
        last.borrow().as_ref().map(|(_, rendered)| Arc::clone(rendered))
    }

    /// Reads, and publishes the result to all that wait.
    async fn refresh(self: Arc<Self>) {
        let shared = Arc::clone(&self);
        let rendered = tokio::task::spawn_blocking(move || Arc::new(shared.read())).await.ok();
        self.is_reading.store(false, Relaxed);
        self.last.send_replace(rendered.map(|rendered| (Instant::now(), rendered)));
    }

    fn read(&self) -> Rendered {
        let begun = Instant::now();
        let reading = self.source.read();
        let server = ServerCounts {
            readings: self.readings.fetch_add(1, Relaxed) + 1,
            took: begun.elapsed(),
            closed: self.closed.load(Relaxed),
        };
        let mut families = samples(&reading, server);
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).keep(&mut families);
        let Texts { openmetrics, text } = Texts::of(families);
        let overview = Overview::of(&reading);
        let overview = serde_json::to_vec(&overview).unwrap_or_else(|_| b"null".to_vec());
        Rendered { openmetrics: openmetrics.into(), text: text.into(), overview: overview.into() }
    }
}

/// A connection that is served.
struct Served {
    since: Instant,
    has_request: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    fn may_be_closed(&self) -> bool {
        let least = if self.has_request.load(Relaxed) { UNREAD_AGE_MIN } else { SILENT_AGE_MIN };
        self.since.elapsed() >= least
    }
}

/// A listener that the runtime knows.
enum AsyncListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl AsyncListener {
    fn new(listener: Listener) -> io::Result<AsyncListener> {
        Ok(match listener {
            Listener::Tcp(listener) => AsyncListener::Tcp(TcpListener::from_std(listener)?),
            Listener::Unix(listener) => AsyncListener::Unix(UnixListener::from_std(listener)?),
        })
    }

    /// Accepts a connection and serves it.
    async fn accept(&self, shared: &Arc<Shared>) -> io::Result<Served> {
        Ok(match self {
            AsyncListener::Tcp(listener) => serve(listener.accept().await?.0, shared),
            AsyncListener::Unix(listener) => serve(listener.accept().await?.0, shared),
        })
    }
}

async fn accept(listener: AsyncListener, shared: Arc<Shared>) {
    let mut served: Vec<Served> = Vec::new();
    loop {
        make_room(&mut served, &shared).await;
        match listener.accept(&shared).await {
            Ok(one) => served.push(one),
            Err(_) => tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await,
        }
    }
}

/// Waits until one more connection may be served, for which one that is old enough is closed.
async fn make_room(served: &mut Vec<Served>, shared: &Shared) {
    loop {
        // Requests that have arrived are read before it is decided who is silent.
        tokio::task::yield_now().await;
        served.retain(|connection| !connection.task.is_finished());
        // The last descriptors are for forwarding and for following the kernel.
        let is_scarce = !served.is_empty() && limits::are_descriptors_scarce(0);
        if served.len() < CONNECTIONS_MAX && !is_scarce {
            return;
        }
        // The oldest is the first.
        if let Some(at) = served.iter().position(Served::may_be_closed) {
            served.remove(at).task.abort();
            // With the next turn its task ends, and closes the descriptor.
            shared.closed.fetch_add(1, Relaxed);
        } else {
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }
}

fn serve<S>(stream: S, shared: &Arc<Shared>) -> Served
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let has_request = Arc::new(AtomicBool::new(false));
    let (shared, asked) = (Arc::clone(shared), Arc::clone(&has_request));
    let task = tokio::spawn(async move {
        let answer = service_fn(|request| {
            asked.store(true, Relaxed);
            let shared = Arc::clone(&shared);
            async move { Ok::<_, Infallible>(answer(&request, &shared).await) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(REQUEST_TIME_MAX)
            .max_buf_size(HEAD_MAX)
            .keep_alive(false);
        let connection = http.serve_connection(TokioIo::new(stream), answer);
        // Its errors are the client's: it only loses its connection.
        if tokio::time::timeout(CONNECTION_TIME_MAX, connection).await.is_err() {
            shared.closed.fetch_add(1, Relaxed);
        }
    });
    Served { since: Instant::now(), has_request, task }
}

async fn answer(request: &Request<Incoming>, shared: &Arc<Shared>) -> Response<Full<Bytes>> {
    let text = |status, text: &'static str| {
        response(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
    };
    if shared.is_local && !is_of_this_machine(request) {
        let why = "The name in Host is not one of this machine: use localhost or an IP address.\n";
        return text(StatusCode::MISDIRECTED_REQUEST, why);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "Only GET and HEAD are allowed.\n");
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let path = request.uri().path();
    if path == "/" {
        let html = Bytes::from_static(page::HTML.as_bytes());
        let mut page = response(StatusCode::OK, "text/html; charset=utf-8", html);
        page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, page::POLICY.clone());
        page.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        return page;
    }
    if !matches!(path, "/metrics" | "/api/v1/overview") {
        return text(StatusCode::NOT_FOUND, "There are /, /metrics and /api/v1/overview.\n");
    }
    let Some(current) = shared.current().await else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "The daemon is stopping.\n");
    };
    if path == "/api/v1/overview" {
        return response(StatusCode::OK, "application/json", current.overview.clone());
    }
    let accept = request.headers().get_all(header::ACCEPT).iter();
    match accept.filter_map(|value| value.to_str().ok()).any(wants_openmetrics) {
        true => response(StatusCode::OK, text::OPENMETRICS, current.openmetrics.clone()),
        false => response(StatusCode::OK, text::TEXT, current.text.clone()),
    }
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Whether `Host` is an IP address or `localhost`, or missing, as in requests of HTTP/1.0.
fn is_of_this_machine(request: &Request<Incoming>) -> bool {
    let Some(host) = request.headers().get(header::HOST) else { return true };
    host.to_str().is_ok_and(names_this_machine)
}

fn names_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    use super::*;
    use crate::control::metrics::Reading;

    /// Counts its readings, each of which takes a while.
    #[derive(Default)]
    struct Counted(AtomicU64);

    impl Source for Counted {
        fn read(&self) -> Reading {
            self.0.fetch_add(1, Relaxed);
            thread::sleep(Duration::from_millis(50));
            Reading::default()
        }
    }

    fn served() -> (tempfile::TempDir, PathBuf, Arc<Counted>, MetricsServer) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("m.sock");
        let socket = MetricsSocket::open(&MetricsAddr::Unix(path.clone())).expect("opens");
        let source = Arc::new(Counted::default());
        let server = MetricsServer::serve(socket, Arc::clone(&source) as Arc<dyn Source>);
        (dir, path, source, server.expect("starts"))
    }

    fn ask(path: &PathBuf, request: &str) -> String {
        let mut stream = UnixStream::connect(path).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        stream.write_all(request.as_bytes()).expect("writes");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        text
    }

    #[test]
    fn clients_at_the_same_time_share_a_reading() {
        let (_dir, path, source, server) = served();
        let begun = Instant::now();
        thread::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(|| {
                    let text = ask(&path, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
                    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
                    assert!(text.contains("\nferroute_metrics_readings_total "), "{text}");
                });
            }
        });
        let most = begun.elapsed().div_duration_f64(READING_INTERVAL) as u64 + 1;
        let readings = source.0.load(Relaxed);
        assert!((1..=most).contains(&readings), "{readings} readings, at most {most}");
        drop(server);
        assert!(UnixStream::connect(&path).is_err(), "it still listens");
    }

    #[test]
    fn clients_that_do_not_wait_for_the_answer_share_a_reading() {
        let (_dir, path, source, _server) = served();
        let begun = Instant::now();
        while begun.elapsed() < 2 * READING_INTERVAL {
            let mut stream = UnixStream::connect(&path).expect("connects");
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("writes");
            thread::sleep(Duration::from_millis(5));
        }
        let most = begun.elapsed().div_duration_f64(READING_INTERVAL) as u64 + 1;
        // Readings that wait for their turn would be counted as well.
        thread::sleep(Duration::from_millis(200));
        let readings = source.0.load(Relaxed);
        assert!((1..=most).contains(&readings), "{readings} readings, at most {most}");
    }

    #[test]
    fn a_request_has_one_answer_and_head_has_no_body() {
        let (_dir, path, source, _server) = served();
        let head = ask(&path, "HEAD / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
        for (request, status) in [
            ("GET /metrics/ HTTP/1.1\r\n\r\n", 404),
            ("POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
            ("nonsense\r\n\r\n", 400),
        ] {
            let text = ask(&path, request);
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {text}");
        }
        assert_eq!(source.0.load(Relaxed), 0, "none of these needs a reading");
        let overview = ask(&path, "GET /api/v1/overview HTTP/1.0\r\n\r\n");
        assert!(overview.ends_with("\r\n\r\nnull"), "nothing is known yet: {overview}");
    }

    #[test]
    fn silent_clients_are_disconnected_for_new_ones() {
        let (_dir, path, _source, _server) = served();
        let silent: Vec<_> = (0..CONNECTIONS_MAX * 2)
            .map(|_| UnixStream::connect(&path).expect("connects"))
            .collect();
        let begun = Instant::now();
        let text = ask(&path, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        // Otherwise they would be waited for.
        assert!(begun.elapsed() < REQUEST_TIME_MAX, "{:?}", begun.elapsed());
        drop(silent);
    }

    #[test]
    fn names_of_other_machines_are_refused() {
        for host in ["localhost", "localhost:9112", "127.0.0.1:9112", "[::1]:9112", "a.localhost"] {
            assert!(names_this_machine(host), "{host}");
        }
        for host in
            ["", "example.org", "evil.example:9112", "127.0.0.1.example.org", "localhost.example"]
        {
            assert!(!names_this_machine(host), "{host}");
        }
    }
}
