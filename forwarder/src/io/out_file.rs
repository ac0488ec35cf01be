//! Opens output files named by a user, safely with respect to other users.
//!
//! A path is resolved component by component. A symbolic link is followed only if no one but its
//! owner and root can have created it; in a directory that others can write to, such as /tmp, it is
//! rejected. In such a directory a file is also rejected if it belongs to another user, or has
//! another hard link: its owner could read the output, or it may be a completely different file (as
//! with the kernel's `fs.protected_symlinks`, `protected_regular` and `protected_hardlinks`, which
//! are not enabled on every machine). Devices, FIFOs and /proc/self/fd are opened as they are.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::{geteuid, getgid};

/// For contents of captured packets: only the owner may read them.
pub const PRIVATE: u32 = 0o600;

/// Maximum number of symbolic links in a path, as in the kernel (MAXSYMLINKS).
const LINKS_MAX: usize = 40;

const LINK: &str = "a symbolic link in a directory that others can write to is not followed";
const STRANGE: &str = "it belongs to another user, in a directory that others can write to";
const SECOND_NAME: &str =
    "it has a second name (a hard link), in a directory that others can write to";

/// Opens a file for writing from the start: creates it with `mode` (less the umask), or truncates
/// an existing regular file.
///
/// # Errors
/// The system's error; PermissionDenied with the reason if others may have prepared the path.
pub fn create(path: &Path, mode: u32) -> io::Result<File> {
    let place = Place::find(path)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
    let file = place.open(flags, Mode::from_bits_truncate(mode))?;
    if file.metadata()?.is_file() && !place.is_magic {
        file.set_len(0)?;
    }
    Ok(file)
}

/// A resolved path: a name in a directory.
#[derive(Debug)]
pub struct Place {
    dir: OwnedFd,
    name: OsString,
    /// The resolved part, without links.
    path: PathBuf,
    /// Others can write to the directory.
    is_shared: bool,
    /// A procfs link, which refers to an open file instead of a path.
    is_magic: bool,
}

impl Place {
    /// Resolves a path; its last component need not exist.
    ///
    /// # Errors
    /// The same as for [`create`]; IsADirectory for a path without a last component.
    pub fn find(path: &Path) -> io::Result<Place> {
        let mut left: VecDeque<OsString> = VecDeque::new();
        let mut at = At::start(path, &mut left)?;
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            let is_last = left.is_empty();
            let Some(stat) = at.stat(&name)? else {
                if is_last {
                    return at.place(name, false);
                }
                return Err(Errno::ENOENT.into());
            };
            if kind(&stat) != SFlag::S_IFLNK {
                if is_last && name != ".." {
                    return at.place(name, false);
                }
                at.enter(&name)?;
                continue;
            }
            if at.is_shared()? {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, LINK));
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::ELOOP.into());
            }
            if is_last && at.is_proc() {
                return at.place(name, true);
            }
            let target = PathBuf::from(readlinkat(&at.dir, name.as_os_str())?);
            let mut before = VecDeque::new();
            if target.is_absolute() {
                at = At::start(&target, &mut before)?;
            } else {
                push(&target, &mut before);
            }
            before.append(&mut left);
            left = before;
        }
        Err(io::ErrorKind::IsADirectory.into())
    }

    /// The resolved path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The existing file; `None` if there is none.
    ///
    /// # Errors
    /// The same as for [`create`].
    pub fn existing(&self) -> io::Result<Option<File>> {
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND;
        match self.open(flags, Mode::empty()) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open(&self, flags: OFlag, mode: Mode) -> io::Result<File> {
        let mut flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        if self.is_magic {
            flags.remove(OFlag::O_CREAT);
        } else {
            // It was no link before; a link that exists now was created by someone else.
            flags |= OFlag::O_NOFOLLOW;
            self.check(self.stat()?.as_ref())?;
        }
        let file = File::from(openat(&self.dir, self.name.as_os_str(), flags, mode)?);
        if !self.is_magic {
            // The file may have been replaced meanwhile.
            self.check(Some(&fstat(&file)?))?;
        }
        Ok(file)
    }

    fn stat(&self) -> io::Result<Option<FileStat>> {
        stat_at(&self.dir, &self.name)
    }

    /// Rejects files that others may have placed there.
    fn check(&self, stat: Option<&FileStat>) -> io::Result<()> {
        let Some(stat) = stat.filter(|_| self.is_shared) else { return Ok(()) };
        let refuse = |why| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        if kind(stat) == SFlag::S_IFLNK {
            return refuse(LINK);
        }
        if stat.st_uid != geteuid().as_raw() {
            return refuse(STRANGE);
        }
        if kind(stat) == SFlag::S_IFREG && stat.st_nlink > 1 {
            return refuse(SECOND_NAME);
        }
        Ok(())
    }
}

/// State of resolving a path.
struct At {
    dir: OwnedFd,
    path: PathBuf,
}

impl At {
    /// Starts at the root or the working directory; adds the components of `path` to the front of
    /// `left`.
    fn start(path: &Path, left: &mut VecDeque<OsString>) -> io::Result<At> {
        let start = if path.is_absolute() { "/" } else { "." };
        push(path, left);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = openat(AT_FDCWD, start, flags, Mode::empty())?;
        let path = if path.is_absolute() { PathBuf::from("/") } else { PathBuf::new() };
        Ok(At { dir, path })
    }

    fn enter(&mut self, name: &OsStr) -> io::Result<()> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        self.dir = openat(&self.dir, name, flags, Mode::empty())?;
        self.path.push(name);
        Ok(())
    }

    fn stat(&self, name: &OsStr) -> io::Result<Option<FileStat>> {
        stat_at(&self.dir, name)
    }

    fn is_proc(&self) -> bool {
        fstatfs(&self.dir).is_ok_and(|fs| fs.filesystem_type() == PROC_SUPER_MAGIC)
    }

    /// Whether users other than this one and root can create files in the directory. For root,
    /// members of its group count as others.
    fn is_shared(&self) -> io::Result<bool> {
        let stat = fstat(&self.dir)?;
        let euid = geteuid();
        let ours = stat.st_uid == euid.as_raw() || stat.st_uid == 0;
        let by_group = stat.st_mode & 0o020 != 0
            && stat.st_gid != 0
            && (euid.is_root() || stat.st_gid != getgid().as_raw());
        Ok(!ours || stat.st_mode & 0o002 != 0 || by_group)
    }

    fn place(self, name: OsString, is_magic: bool) -> io::Result<Place> {
        let (path, is_shared) = (self.path.join(&name), self.is_shared()?);
        Ok(Place { dir: self.dir, name, path, is_shared, is_magic })
    }
}

/// Adds the components of a path before the existing ones.
fn push(path: &Path, left: &mut VecDeque<OsString>) {
    for component in path.components() {
        match component {
            Component::Normal(name) => left.push_back(name.to_owned()),
            Component::ParentDir => left.push_back("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn stat_at(dir: impl AsFd, name: &OsStr) -> io::Result<Option<FileStat>> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A directory that only its owner can write to, and one in it that everybody can write to.
    fn directories() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let top = tempfile::tempdir().expect("a directory");
        let (own, shared) = (top.path().join("own"), top.path().join("shared"));
        for (dir, mode) in [(&own, 0o755), (&shared, 0o1777)] {
            fs::create_dir(dir).expect("makes");
            fs::set_permissions(dir, Permissions::from_mode(mode)).expect("sets");
        }
        (top, own, shared)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("is there").permissions().mode() & 0o777
    }

    fn refusal(path: &Path) -> String {
        create(path, PRIVATE).expect_err("is refused").to_string()
    }

    #[test]
    fn a_new_file_is_private_and_an_existing_one_is_truncated() {
        let (_top, own, shared) = directories();
        for dir in [own, shared] {
            let path = dir.join("file");
            create(&path, PRIVATE).expect("makes").write_all(b"long").expect("writes");
            assert_eq!(mode(&path), 0o600);
            fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("sets");
            create(&path, PRIVATE).expect("opens").write_all(b"new").expect("writes");
            assert_eq!((fs::read(&path).expect("reads"), mode(&path)), (b"new".to_vec(), 0o640));
        }
    }

    #[test]
    fn links_are_followed_only_where_nobody_else_can_create_them() {
        let (_top, own, shared) = directories();
        let target = own.join("target");
        fs::write(&target, "precious").expect("writes");
        symlink("target", own.join("link")).expect("links");
        symlink(own.join("link"), own.join("second")).expect("links");
        create(&own.join("second"), PRIVATE).expect("follows").write_all(b"new").expect("writes");
        assert_eq!(fs::read(&target).expect("reads"), b"new");

        symlink(&target, shared.join("link")).expect("links");
        symlink(shared.join("missing"), shared.join("nowhere")).expect("links");
        symlink(&own, shared.join("directory")).expect("links");
        symlink(shared.join("link"), own.join("by-way-of")).expect("links");
        for path in [
            shared.join("link"),
            shared.join("nowhere"),
            shared.join("directory/file"),
            own.join("by-way-of"),
        ] {
            assert_eq!(refusal(&path), LINK, "{}", path.display());
        }
        assert_eq!(fs::read(&target).expect("reads"), b"new");
        assert!(!shared.join("missing").exists() && !own.join("file").exists());
    }

    #[test]
    fn a_hard_link_is_rejected_where_others_can_have_created_it() {
        let (_top, own, shared) = directories();
        fs::write(own.join("file"), "precious").expect("writes");
        fs::hard_link(own.join("file"), shared.join("name")).expect("links");
        assert_eq!(refusal(&shared.join("name")), SECOND_NAME);
        assert_eq!(fs::read(own.join("file")).expect("reads"), b"precious");
        create(&own.join("file"), PRIVATE).expect("opens");
    }

    #[test]
    fn fifos_devices_and_descriptors_are_opened_as_they_are() {
        let (_top, own, shared) = directories();
        for dir in [&own, &shared] {
            let path = dir.join("fifo");
            nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).expect("makes");
            let reader = {
                let path = path.clone();
                std::thread::spawn(move || fs::read(path).expect("reads"))
            };
            create(&path, PRIVATE).expect("opens").write_all(b"through").expect("writes");
            assert_eq!(reader.join().expect("ends"), b"through");
        }
        create(Path::new("/dev/null"), PRIVATE).expect("opens").write_all(b"x").expect("writes");
        let (mut reader, writer) = io::pipe().expect("a pipe");
        for top in ["/proc/self/fd", "/dev/fd"] {
            let path = PathBuf::from(format!("{top}/{}", writer.as_raw_fd()));
            create(&path, PRIVATE).expect("opens").write_all(b"x").expect("writes");
        }
        drop(writer);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).expect("reads");
        assert_eq!(read, b"xx");
    }

    #[test]
    fn paths_that_cannot_be_files_are_errors() {
        let (_top, own, _) = directories();
        symlink("b", own.join("a")).expect("links");
        symlink("a", own.join("b")).expect("links");
        for (path, expected) in [
            (own.join("a"), "Too many levels"),
            (own.join("missing/file"), "No such file"),
            (own.clone(), "Is a directory"),
            (PathBuf::from("/"), "is a directory"),
            (own.join(".."), "is a directory"),
        ] {
            let error = refusal(&path);
            assert!(error.contains(expected), "{}: {error}", path.display());
        }
        // A link in the user's own directory may point to a missing file.
        symlink("new", own.join("link")).expect("links");
        create(&own.join("link"), PRIVATE).expect("makes");
        assert!(own.join("new").is_file());
    }
}
