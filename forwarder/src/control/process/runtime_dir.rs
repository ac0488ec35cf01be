//! The runtime directory: the default place of the control socket, and of settings to restore after
//! a crash (see [`crate::control::netdev::keep`]).
//!
//! It belongs to the daemon's user alone, so that nobody else can place a file or a symbolic link
//! there, hold a lock that the daemon waits for, or read saved settings. It is created if missing;
//! one that others own or may write to is rejected.

use std::env;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User, geteuid};

/// The default path.
pub const DEFAULT: &str = "/run/ferroute";
/// Set by systemd for a service with RuntimeDirectory= (systemd.exec(5)).
const ENVIRONMENT: &str = "RUNTIME_DIRECTORY";
/// Name of the control socket in the directory.
const SOCKET: &str = "control.sock";
/// Permission bits: write for the group and for others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Why a directory cannot be the runtime directory.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeDirError {
    /// It does not exist and cannot be created.
    #[error(
        "runtime directory {}: cannot create it: {error}; create it as root (install -d -m 0700 -o \
         {user} {}), let systemd do so (RuntimeDirectory=ferroute), or name another with \
         --runtime-dir", path.display(), path.display()
    )]
    Create {
        /// The directory.
        path: PathBuf,
        /// The user of the process.
        user: String,
        /// The error.
        error: io::Error,
    },
    /// It is not a directory.
    #[error(
        "runtime directory {}: it is a symbolic link or not a directory; remove it, or name another \
         with --runtime-dir", path.display()
    )]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// It belongs to another user.
    #[error(
        "runtime directory {}: it belongs to user {owner}, and this is user {user}; change that \
         (chown {user} {}), or name another with --runtime-dir", path.display(), path.display()
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: String,
        /// The user of the process.
        user: String,
    },
    /// Others may write to it.
    #[error(
        "runtime directory {}: users other than its owner may write to it (mode {mode:04o}); \
         change that (chmod 0700 {}), or name another with --runtime-dir",
        path.display(), path.display()
    )]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It cannot be opened.
    #[error("runtime directory {}: cannot open it: {error}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
}

/// The path according to the environment: the first directory that systemd created for the service,
/// otherwise [`DEFAULT`].
pub fn default_path() -> PathBuf {
    from_environment(env::var_os(ENVIRONMENT).as_deref()).unwrap_or_else(|| DEFAULT.into())
}

/// Several directories are separated by colons.
fn from_environment(value: Option<&OsStr>) -> Option<PathBuf> {
    let first = value?.as_bytes().split(|octet| *octet == b':').next()?;
    let path = PathBuf::from(OsStr::from_bytes(first));
    path.is_absolute().then_some(path)
}

/// The control socket in a runtime directory.
pub fn socket_in(directory: &Path) -> PathBuf {
    directory.join(SOCKET)
}

/// Creates the directory with mode 0700 if it does not exist, and checks its owner.
///
/// # Errors
/// [`RuntimeDirError`]; the directory was not used then.
pub fn prepare(path: &Path) -> Result<(), RuntimeDirError> {
    let path = without_slash(path);
    match DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        // An existing directory may be usable even if it cannot be created: a read-only /run.
        Err(_) if path.symlink_metadata().is_ok() => {}
        Err(error) => {
            return Err(RuntimeDirError::Create { path, user: name_of(geteuid()), error });
        }
    }
    check(&path)
}

/// Removes a trailing slash, which would cause a symbolic link to be followed.
fn without_slash(path: &Path) -> PathBuf {
    path.components().collect()
}

/// Checks the owner of an existing directory.
///
/// # Errors
/// [`RuntimeDirError`].
pub fn check(path: &Path) -> Result<(), RuntimeDirError> {
    let path = without_slash(path);
    let user = || name_of(geteuid());
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let directory = match File::options().read(true).custom_flags(flags).open(&path) {
        Ok(directory) => directory,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => {
            return Err(RuntimeDirError::NotADirectory { path });
        }
        // 0700 of another user: report the owner.
        Err(error) => match path.symlink_metadata() {
            Ok(meta) if meta.uid() != geteuid().as_raw() => {
                let owner = name_of(Uid::from_raw(meta.uid()));
                return Err(RuntimeDirError::Owner { path, owner, user: user() });
            }
            _ => return Err(RuntimeDirError::Open { path, error }),
        },
    };
    let meta = directory
        .metadata()
        .map_err(|error| RuntimeDirError::Open { path: path.clone(), error })?;
    if meta.uid() != geteuid().as_raw() {
        let owner = name_of(Uid::from_raw(meta.uid()));
        return Err(RuntimeDirError::Owner { path, owner, user: user() });
    }
    if meta.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(RuntimeDirError::Writable { path, mode: meta.mode() & 0o7777 });
    }
    Ok(())
}

/// A user's name, or the number if it has none.
pub fn name_of(uid: Uid) -> String {
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("is there").mode() & 0o7777
    }

    #[test]
    fn it_is_created_for_its_owner_alone_and_accepted_again() {
        let top = tempfile::tempdir().expect("a directory");
        let path = top.path().join("ferroute");
        for _ in 0..2 {
            prepare(&path).expect("is made, then there");
            assert_eq!(mode(&path), 0o700);
        }
        // Readable by others is accepted: it is systemd's default.
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("changes");
        prepare(&path).expect("is accepted");
        assert_eq!(mode(&path), 0o755);
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_rejected() {
        let top = tempfile::tempdir().expect("a directory");
        let path = top.path().join("ferroute");
        prepare(&path).expect("is made");
        for wrong in [0o770, 0o702, 0o1777] {
            fs::set_permissions(&path, Permissions::from_mode(wrong)).expect("changes");
            let error = prepare(&path).expect_err("is refused").to_string();
            assert!(error.contains(&format!("{wrong:04o}")), "{error}");
        }
    }

    #[test]
    fn a_symbolic_link_and_a_file_are_rejected() {
        let top = tempfile::tempdir().expect("a directory");
        let (real, link) = (top.path().join("real"), top.path().join("link"));
        prepare(&real).expect("is made");
        symlink(&real, &link).expect("links");
        let with_slash = PathBuf::from(format!("{}/", link.display()));
        let (nowhere, file) = (top.path().join("nowhere"), top.path().join("file"));
        symlink("/nonexistent/x", &nowhere).expect("links");
        fs::write(&file, "").expect("writes");
        for path in [&link, &with_slash, &nowhere, &file] {
            let error = prepare(path).expect_err("is refused");
            assert!(matches!(error, RuntimeDirError::NotADirectory { .. }), "{error}");
        }
    }

    #[test]
    fn the_error_for_one_that_cannot_be_created_has_advice() {
        let error = prepare(Path::new("/nonexistent/ferroute")).expect_err("is refused");
        let text = error.to_string();
        for word in ["/nonexistent/ferroute", "--runtime-dir", "RuntimeDirectory=", "install -d"] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn the_path_of_systemd_is_used_and_invalid_values_are_ignored() {
        let from = |text: &str| from_environment(Some(OsStr::new(text)));
        assert_eq!(from("/run/a").as_deref(), Some(Path::new("/run/a")));
        assert_eq!(from("/run/a:/run/b").as_deref(), Some(Path::new("/run/a")));
        assert_eq!((from(""), from("a"), from_environment(None)), (None, None, None));
    }
}
