//! The client of the control socket, for the command line.

use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Uid;
use serde::Deserialize;

use crate::control::api::{API_VERSION, Envelope, Request, Response};
use crate::control::process::runtime_dir::name_of;

/// How long an answer may take to begin, and how long it may pause.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No process listens.
    #[error("no ferroute runs here: control socket {}: {error}; start one with `ferroute run`, or \
             name its socket with --control", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// This user has no access to the socket.
    #[error("control socket {}: permission denied; run this as root{}", path.display(), or_as(path))]
    NotPermitted {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed.
    #[error("control socket {}: {error}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The daemon has another version.
    #[error(
        "the daemon speaks version {theirs} of the control protocol, this program version \
             {API_VERSION}; use the same program, or restart the daemon"
    )]
    Version {
        /// The daemon's version of the protocol.
        theirs: u32,
    },
    /// The daemon's answer is invalid.
    #[error("the daemon's answer cannot be read: {0}")]
    Nonsense(serde_json::Error),
    /// The daemon refuses the request.
    #[error("{0}")]
    Refused(String),
}

/// The daemon's user, as far as its files show: this user may not be allowed to look into the socket's
/// directory.
fn or_as(path: &Path) -> String {
    let meta = path.symlink_metadata().or_else(|error| match path.parent() {
        Some(directory) => directory.symlink_metadata(),
        None => Err(error),
    });
    match meta.map(|meta| meta.uid()) {
        Ok(uid) if uid != 0 => format!(", or as user {}", name_of(Uid::from_raw(uid))),
        _ => String::new(),
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] when no process listens at `path`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path: path.to_owned(), error }
            }
            io::ErrorKind::PermissionDenied => ClientError::NotPermitted { path: path.to_owned() },
            _ => ClientError::Io { path: path.to_owned(), error },
        })?;
        let failed = |error| ClientError::Io { path: path.to_owned(), error };
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
        Ok(Client { path: path.to_owned(), reader: BufReader::with_capacity(1 << 16, stream) })
    }

    /// Sends a request and waits for the answer.
    ///
    /// # Errors
    /// When the connection breaks or the daemon refuses: an answer is never [`Response::Error`].
    pub fn ask(&mut self, request: &Request) -> Result<Response, ClientError> {
        let sent = self.send(request);
        let line = match self.receive() {
            // Refused before the request was read: its error matters more than the failed write.
            Ok(line) => line,
            Err(error) => {
                let error = sent.err().unwrap_or(error);
                return Err(ClientError::Io { path: self.path.clone(), error });
            }
        };
        match read(&line)? {
            Response::Error { message } => Err(ClientError::Refused(message)),
            response => Ok(response),
        }
    }

    /// The connection, for what follows an answer, and what has already been read of that.
    pub fn into_stream(self) -> (UnixStream, Vec<u8>) {
        let read = self.reader.buffer().to_vec();
        (self.reader.into_inner(), read)
    }

    fn send(&mut self, request: &Request) -> io::Result<()> {
        let mut writer = BufWriter::with_capacity(1 << 16, self.reader.get_ref());
        serde_json::to_writer(&mut writer, &Envelope::new(request))?;
        writer.write_all(b"\n")?;
        writer.flush()
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        match self.reader.read_until(b'\n', &mut line) {
            Ok(_) if line.last() == Some(&b'\n') => Ok(line),
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the daemon closed the connection without an answer",
            )),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the daemon does not answer"))
            }
            Err(error) => Err(error),
        }
    }
}

fn read(line: &[u8]) -> Result<Response, ClientError> {
    match serde_json::from_slice::<Envelope<Response>>(line) {
        Ok(Envelope { version: API_VERSION, body }) => Ok(body),
        Ok(Envelope { version, .. }) => Err(ClientError::Version { theirs: version }),
        Err(error) => {
            #[derive(Deserialize)]
            struct Version {
                version: u32,
            }
            match serde_json::from_slice(line) {
                Ok(Version { version }) if version != API_VERSION => {
                    Err(ClientError::Version { theirs: version })
                }
                _ => Err(ClientError::Nonsense(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_version_says_so() {
        let error = read(b"{\"version\":7,\"body\":{\"stat\":[]}}\n").expect_err("refused");
        assert!(matches!(error, ClientError::Version { theirs: 7 }), "{error}");
        let error = read(b"{\"version\":1,\"body\":3}\n").expect_err("refused");
        assert!(matches!(error, ClientError::Nonsense(_)), "{error}");
    }
}
