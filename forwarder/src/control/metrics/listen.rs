//! Opens the socket that metrics are served at.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::Path;

use socket2::{Domain, Socket, Type};

use crate::control::api::listen::{Listening, ServerError, SocketFiles, listen};
use crate::control::config::metrics::MetricsAddr;

/// Connections that wait until they are accepted.
const BACKLOG: i32 = 1024;

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// Another process listens there.
    #[error(
        "metrics: {addr} is in use; stop the program that listens there (`ss -lntp`, `ss -lxp`), or give another \
             address with --metrics"
    )]
    InUse {
        /// The address.
        addr: MetricsAddr,
    },
    /// The address is of no interface.
    #[error(
        "metrics: no interface of this machine (or network namespace) has the address of {addr}; add it, or give \
             another address with --metrics"
    )]
    NotHere {
        /// The address.
        addr: MetricsAddr,
    },
    /// The sandbox permits no sockets of IP.
    #[error(
        "metrics: {addr}: this process may not open IP sockets; permit it by `RestrictAddressFamilies=AF_INET AF_INET6` in \
         a drop-in of the systemd unit (systemctl edit), or use --metrics unix:PATH"
    )]
    Family {
        /// The address.
        addr: MetricsAddr,
    },
    /// Sockets of IPv4 can be opened, and those of IPv6 cannot.
    #[error(
        "metrics: {addr}: there are no sockets of IPv6: the kernel is without IPv6, or RestrictAddressFamilies of the systemd \
         unit does not have AF_INET6; give an IPv4 address or unix:PATH with --metrics"
    )]
    NoIpv6 {
        /// The address.
        addr: MetricsAddr,
    },
    /// The path cannot be used.
    #[error("metrics: {addr}: {why}; give another path with --metrics unix:PATH")]
    Path {
        /// The address.
        addr: MetricsAddr,
        /// What is wrong with it.
        why: String,
    },
    /// A system call failed.
    #[error("metrics: {addr}: cannot {what}: {error}")]
    Io {
        /// The address.
        addr: MetricsAddr,
        /// What failed.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
}

/// A listening socket. A unix socket's files are removed when it is dropped.
#[derive(Debug)]
pub struct MetricsSocket {
    pub(super) addr: MetricsAddr,
    pub(super) listener: Listener,
    pub(super) files: Option<SocketFiles>,
}

#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Whether this process may open sockets of IPv4.
fn has_ipv4() -> bool {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).is_ok()
}

impl MetricsSocket {
    /// Listens at an address. A unix socket has mode 0600; a stale one is replaced.
    ///
    /// # Errors
    /// When another process listens there, when the address is not one of this machine, and those of system calls.
    pub fn open(addr: &MetricsAddr) -> Result<MetricsSocket, MetricsError> {
        let (listener, files) = match addr {
            MetricsAddr::Tcp(tcp) => {
                let failed = |error: io::Error| match error.raw_os_error() {
                    Some(libc::EADDRINUSE) => MetricsError::InUse { addr: addr.clone() },
                    Some(libc::EADDRNOTAVAIL) => MetricsError::NotHere { addr: addr.clone() },
                    Some(libc::EAFNOSUPPORT) if tcp.is_ipv6() && has_ipv4() => {
                        MetricsError::NoIpv6 { addr: addr.clone() }
                    }
                    Some(libc::EAFNOSUPPORT) => MetricsError::Family { addr: addr.clone() },
                    _ => MetricsError::Io { addr: addr.clone(), what: "listen there", error },
                };
                (Listener::Tcp(listen_tcp(*tcp).map_err(failed)?), None)
            }
            MetricsAddr::Unix(path) => {
                let Listening { listener, files } = listen_unix(path, addr)?;
                (Listener::Unix(listener), Some(files))
            }
        };
        Ok(MetricsSocket { addr: addr.clone(), listener, files })
    }

    /// A function that removes the files, for ending the process without dropping this.
    pub fn remover(&self) -> impl FnOnce() + Send + 'static {
        let remover = self.files.as_ref().map(SocketFiles::remover);
        move || {
            if let Some(remove) = remover {
                remove();
            }
        }
    }
}

fn listen_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    // Connections that have ended may be remembered by the kernel for a minute.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        // The address that is given, and no other.
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn listen_unix(path: &Path, addr: &MetricsAddr) -> Result<Listening, MetricsError> {
    let addr = addr.clone();
    let socket = listen(path).map_err(|error| match error {
        ServerError::InUse { .. } => MetricsError::InUse { addr: addr.clone() },
        ServerError::NotASocket { .. } => {
            let why = "there is a file of that name that is not a socket".to_owned();
            MetricsError::Path { addr: addr.clone(), why }
        }
        ServerError::ForeignLock { lock, what, .. } => {
            let why = format!("its lock file {} is not this user's alone ({what})", lock.display());
            MetricsError::Path { addr: addr.clone(), why }
        }
        ServerError::Io { what, error, .. } => MetricsError::Io { addr: addr.clone(), what, error },
    })?;
    let nonblocking = socket.listener.set_nonblocking(true);
    nonblocking.map_err(|error| MetricsError::Io { addr, what: "set it up", error })?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_address_in_use_is_named() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let addr = MetricsAddr::Tcp(held.local_addr().expect("it has one"));
        let error = MetricsSocket::open(&addr).expect_err("is in use").to_string();
        assert!(error.starts_with(&format!("metrics: {addr} is in use; stop")), "{error}");
        assert!(error.contains("--metrics"), "{error}");
        drop(held);
        MetricsSocket::open(&addr).expect("is free now");
    }

    #[test]
    fn an_address_of_another_machine_is_named() {
        let addr: MetricsAddr = "192.0.2.77:9112".parse().expect("an address");
        let error = MetricsSocket::open(&addr).expect_err("is not here").to_string();
        assert!(error.contains("no interface of this machine") && error.contains("192.0.2.77"));
    }

    #[test]
    fn a_unix_socket_is_private_and_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("m.sock");
        let addr = MetricsAddr::Unix(path.clone());
        let socket = MetricsSocket::open(&addr).expect("opens");
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let error = MetricsSocket::open(&addr).expect_err("is in use").to_string();
        assert!(error.contains("is in use"), "{error}");
        drop(socket);
        assert_eq!(fs::read_dir(dir.path()).expect("is readable").count(), 0);
        fs::write(&path, "x").expect("writes");
        let error = MetricsSocket::open(&addr).expect_err("is a file").to_string();
        assert!(error.contains("not a socket") && !error.contains("--control"), "{error}");
    }
}
