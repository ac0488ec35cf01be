//! A client of HTTP/1.1 for tests of the metrics server: one request for each connection.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::Netns;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Headers, their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// A header; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn parse(octets: &[u8]) -> Result<Answer> {
        let text = std::str::from_utf8(octets).context("not UTF-8")?;
        let (head, body) =
            text.split_once("\r\n\r\n").with_context(|| format!("no head: {text:?}"))?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let headers: BTreeMap<String, String> = lines.filter_map(header).collect();
        if let Some(length) = headers.get("content-length") {
            ensure!(length.parse() == Ok(body.len()), "{length} octets, and {} came", body.len());
        }
        Ok(Answer { status: status.context("no status")?, headers, body: body.to_owned() })
    }
}

/// The octets of a request.
pub fn request(path: &str, headers: &[&str]) -> String {
    let mut text = format!("GET {path} HTTP/1.1\r\n");
    if !headers.iter().any(|header| header.starts_with("Host:")) {
        text += "Host: localhost\r\n";
    }
    headers.iter().for_each(|header| text += &format!("{header}\r\n"));
    text + "\r\n"
}

/// Reads an answer to its end.
///
/// # Errors
/// When it is incomplete or not HTTP.
pub fn receive(mut stream: impl Read) -> Result<Answer> {
    let mut octets = Vec::new();
    stream.read_to_end(&mut octets)?;
    Answer::parse(&octets)
}

/// Asks a server at a unix socket.
///
/// # Errors
/// When there is no complete answer in time.
pub fn get_unix(socket: &Path, path: &str, headers: &[&str]) -> Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(request(path, headers).as_bytes())?;
    receive(stream)
}

/// Connects to a server of a namespace, by TCP.
///
/// # Errors
/// When no server listens there.
pub fn connect(namespace: &Netns, addr: &str) -> Result<TcpStream> {
    let stream = namespace.enter(|| Ok(TcpStream::connect(addr)?))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// Asks a server of a namespace, by TCP.
///
/// # Errors
/// When there is no complete answer in time.
pub fn get(namespace: &Netns, addr: &str, path: &str, headers: &[&str]) -> Result<Answer> {
    let mut stream = connect(namespace, addr)?;
    stream.write_all(request(path, headers).as_bytes())?;
    receive(stream)
}

/// The samples of a scrape: name with labels, and value.
pub fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    lines.filter_map(sample).collect()
}
