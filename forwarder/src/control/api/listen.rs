//! Opens the control socket: a socket file of mode 0600. A stale one is replaced; one that a process
//! listens on is left alone. [`super::server`] serves it.
//!
//! A lock file beside the socket keeps two daemons that start at once apart, so that neither takes the
//! other's new socket for a stale one. It is a file of the daemon's own with mode 0600 and not the
//! directory, because any process that may open a directory may lock it. Nothing here waits for another
//! process.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt,
};
use nix::unistd::{Uid, geteuid};

use crate::control::process::runtime_dir::name_of;

/// How often opening the lock file is retried because its last holder removed it meanwhile.
const LOCK_TRIES: u32 = 100;

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another process listens there or is about to.
    #[error("another ferroute runs here ({}control socket {}); stop it, or give this one another \
             socket with --control", pid_of(*pid), path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The process that listens; 0: not known.
        pid: i32,
    },
    /// The path exists and is not a socket.
    #[error("control socket {}: there is a file of that name that is not a socket; remove it, or \
             name another with --control", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The lock file belongs to another user or is accessible to others.
    #[error("control socket {}: its lock file {} is not this user's alone ({what}); remove it, or \
             name another socket with --control", path.display(), lock.display())]
    ForeignLock {
        /// The socket.
        path: PathBuf,
        /// The lock file.
        lock: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A system call failed.
    #[error("control socket {}: cannot {what}: {error}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What failed.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
}

fn pid_of(pid: i32) -> String {
    if pid > 0 { format!("pid {pid}, ") } else { String::new() }
}

/// The listening socket and its files.
#[derive(Debug)]
pub struct Listening {
    /// The socket.
    pub listener: UnixListener,
    /// Its name in the file system.
    pub files: SocketFiles,
}

/// The socket's file and its lock, both removed when this is dropped.
#[derive(Debug)]
pub struct SocketFiles {
    socket: OwnFile,
    lock: OwnFile,
    /// Released last.
    _lock: Flock<File>,
}

impl SocketFiles {
    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.socket.path
    }

    /// A function that removes both files, for ending the process without dropping this.
    pub fn remover(&self) -> impl FnOnce() + Send + 'static {
        let files = [self.socket.clone(), self.lock.clone()];
        move || files.iter().for_each(OwnFile::remove)
    }
}

impl Drop for SocketFiles {
    fn drop(&mut self) {
        self.socket.remove();
        self.lock.remove();
    }
}

/// A file that this process created; another file may have its name since.
#[derive(Debug, Clone)]
struct OwnFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl OwnFile {
    fn remove(&self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds the socket, unless another process serves it. A stale socket is replaced.
///
/// # Errors
/// [`ServerError::InUse`] when another process listens there or is about to, and errors of system calls.
pub fn listen(path: &Path) -> Result<Listening, ServerError> {
    let failed = |what| move |error| ServerError::Io { path: path.to_owned(), what, error };
    let (lock_path, lock) = lock(path)?;
    let lock_file = lock.metadata().map_err(failed("look at its lock file"))?;
    let lock_file = OwnFile { path: lock_path, id: (lock_file.dev(), lock_file.ino()) };
    let listener = bind(path).inspect_err(|_| lock_file.remove())?;
    let meta = fs::symlink_metadata(path).map_err(failed("look at it"))?;
    let socket = OwnFile { path: path.to_owned(), id: (meta.dev(), meta.ino()) };
    Ok(Listening { listener, files: SocketFiles { socket, lock: lock_file, _lock: lock } })
}

fn bind(path: &Path) -> Result<UnixListener, ServerError> {
    let failed = |what| move |error| ServerError::Io { path: path.to_owned(), what, error };
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(failed("create it"))?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed("set its mode"))?;
    Ok(listener)
}

/// Locks a socket's lock file, or reports who holds the lock. The file contains the process ID of the
/// holder; it is empty if its file system had no room.
fn lock(path: &Path) -> Result<(PathBuf, Flock<File>), ServerError> {
    let failed = |what| move |error| ServerError::Io { path: path.to_owned(), what, error };
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    for _ in 0..LOCK_TRIES {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            // Opening a FIFO of that name must not block.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&lock_path)
            .map_err(failed("open its lock file"))?;
        let meta = file.metadata().map_err(failed("look at its lock file"))?;
        if let Some(what) = foreign(&meta) {
            return Err(ServerError::ForeignLock { path: path.to_owned(), lock: lock_path, what });
        }
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                let pid = text.trim().parse().unwrap_or(0);
                return Err(ServerError::InUse { path: path.to_owned(), pid });
            }
            Err((_, errno)) => return Err(failed("lock its lock file")(errno.into())),
        };
        // The last holder may have removed the file: another process may have created a new one then.
        let there = fs::symlink_metadata(&lock_path);
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (meta.dev(), meta.ino())) {
            let pid = format!("{}\n", std::process::id());
            lock.set_len(0).map_err(failed("write its lock file"))?;
            match lock.write_all(pid.as_bytes()) {
                Ok(()) => {}
                // The lock holds without it, and a full /run is no reason not to forward.
                Err(error) if is_full(&error) => {
                    let _ = lock.set_len(0);
                }
                Err(error) => return Err(failed("write its lock file")(error)),
            }
            return Ok((lock_path, lock));
        }
    }
    Err(failed("lock its lock file")(io::Error::from_raw_os_error(libc::EAGAIN)))
}

/// Whether there is no room for what is written.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Why a file cannot be a lock that only this user can hold.
fn foreign(meta: &fs::Metadata) -> Option<String> {
    let mode = meta.mode() & 0o7777;
    if !meta.is_file() {
        return Some("it is not a regular file".to_owned());
    }
    if meta.uid() != geteuid().as_raw() {
        return Some(format!("it belongs to user {}", name_of(Uid::from_raw(meta.uid()))));
    }
    (mode & 0o077 != 0).then(|| format!("mode {mode:04o}"))
}

fn remove_stale(path: &Path) -> Result<(), ServerError> {
    let failed = |what| move |error| ServerError::Io { path: path.to_owned(), what, error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at it")(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ServerError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match who_listens(path) {
        Ok(pid) => Err(ServerError::InUse { path: path.to_owned(), pid }),
        // No process listens: the one that did has ended.
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(failed("remove the stale one")),
        Err(errno) => Err(failed("ask who listens")(errno.into())),
    }
}

/// The process ID of the listener; 0: its backlog is full, so it is not known.
fn who_listens(path: &Path) -> Result<i32, Errno> {
    // A blocking connect(2) to a listener with a full backlog would wait without limit.
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let client = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(client.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => Ok(getsockopt(&client, sockopt::PeerCredentials).map_or(0, |peer| peer.pid())),
        Err(Errno::EAGAIN) => Ok(0),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{Backlog, bind as bind_socket, listen as listen_on};

    fn socket_path() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control.sock");
        (dir, path)
    }

    fn pid_in_use(path: &Path) -> i32 {
        match listen(path).expect_err("is in use") {
            ServerError::InUse { pid, .. } => pid,
            error => panic!("{error}"),
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let (dir, path) = socket_path();
        drop(UnixListener::bind(&path).expect("binds"));
        assert!(path.exists(), "left behind");
        let first = listen(&path).expect("replaces it");
        assert_eq!(fs::metadata(&path).expect("is there").mode() & 0o777, 0o600);
        assert_eq!(pid_in_use(&path), std::process::id() as i32);
        assert!(path.exists());
        drop(first);
        let left: Vec<_> = fs::read_dir(dir.path()).expect("is read").flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_socket_served_without_a_lock_is_left_alone() {
        let (_dir, path) = socket_path();
        let _other = UnixListener::bind(&path).expect("binds");
        assert_eq!(pid_in_use(&path), std::process::id() as i32);
        assert!(path.exists());
    }

    #[test]
    fn a_listener_with_a_full_queue_is_not_waited_for() {
        let (_dir, path) = socket_path();
        let kind = (SockType::Stream, SockFlag::SOCK_CLOEXEC);
        let other = socket(AddressFamily::Unix, kind.0, kind.1, None).expect("a socket");
        bind_socket(other.as_raw_fd(), &UnixAddr::new(&path).expect("fits")).expect("binds");
        listen_on(&other, Backlog::new(0).expect("is allowed")).expect("listens");
        let _clients: Vec<_> = (0..8)
            .map_while(|_| {
                let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
                let client = socket(AddressFamily::Unix, kind.0, flags, None).ok()?;
                connect(client.as_raw_fd(), &UnixAddr::new(&path).ok()?).ok()?;
                Some(client)
            })
            .collect();
        assert_eq!(pid_in_use(&path), 0);
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_left_alone() {
        let (_dir, path) = socket_path();
        fs::write(&path, "precious").expect("writes");
        let error = listen(&path).expect_err("refuses");
        assert!(matches!(error, ServerError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read(&path).expect("is there"), b"precious");
    }

    #[test]
    fn a_lock_on_the_directory_does_not_matter() {
        let (dir, path) = socket_path();
        let directory = File::open(dir.path()).expect("opens");
        let _held = Flock::lock(directory, FlockArg::LockExclusive).expect("is free");
        listen(&path).expect("starts");
    }

    #[test]
    fn the_holder_of_the_lock_is_named() {
        let (dir, path) = socket_path();
        let lock = dir.path().join("control.sock.lock");
        fs::write(&lock, "4711\n").expect("writes");
        fs::set_permissions(&lock, Permissions::from_mode(0o600)).expect("changes");
        let held = Flock::lock(File::open(&lock).expect("opens"), FlockArg::LockExclusive);
        assert_eq!(pid_in_use(&path), 4711);
        drop(held);
        listen(&path).expect("one that was left behind is taken");
    }

    #[test]
    fn a_lock_that_others_can_hold_is_refused() {
        let (dir, path) = socket_path();
        let lock = dir.path().join("control.sock.lock");
        fs::write(&lock, "").expect("writes");
        fs::set_permissions(&lock, Permissions::from_mode(0o644)).expect("changes");
        let error = listen(&path).expect_err("refuses").to_string();
        assert!(error.contains("mode 0644") && error.contains("control.sock.lock"), "{error}");
        fs::remove_file(&lock).expect("removes");
        std::os::unix::fs::symlink("/dev/null", &lock).expect("links");
        listen(&path).expect_err("a symbolic link is not followed");
    }
}
