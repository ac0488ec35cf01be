//! A file that is either complete or absent: written under a temporary name, and renamed when done.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use tempfile::TempPath;

use crate::io::out_file::Place;

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct FileError {
    /// The path as the user gave it.
    pub path: PathBuf,
    source: io::Error,
}

/// An output file. Created early, so that an unwritable path is reported before any work.
#[derive(Debug)]
pub struct OutFile {
    path: PathBuf,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Stdout,
    /// Not a regular file, such as /dev/null or a pipe: it cannot be replaced by renaming.
    Special(BufWriter<File>),
    Beside {
        file: BufWriter<File>,
        temporary: TempPath,
        path: PathBuf,
    },
    /// Already has its name.
    Named(BufWriter<File>),
}

/// Whether a path means standard output.
pub fn is_stdout(path: &Path) -> bool {
    ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"]
        .iter()
        .any(|name| path.as_os_str() == *name)
}

impl OutFile {
    /// Begins a file; `-` is standard output. An existing file is unchanged until [`Self::commit`].
    ///
    /// # Errors
    /// The path cannot be written.
    pub fn create(path: &Path) -> Result<OutFile, FileError> {
        let target = Target::of(path).map_err(|error| error_at(path, error))?;
        Ok(OutFile { path: path.to_owned(), target })
    }

    /// Writes with `write`.
    ///
    /// # Errors
    /// The error of `write`, with the path.
    pub fn write(
        &mut self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), FileError> {
        let written = match &mut self.target {
            Target::Stdout => {
                let mut stdout = BufWriter::new(io::stdout().lock());
                write(&mut stdout).and_then(|()| stdout.flush())
            }
            Target::Special(file) | Target::Named(file) | Target::Beside { file, .. } => {
                write(file).and_then(|()| file.flush())
            }
        };
        written.map_err(|source| self.error(source))
    }

    /// Renames the file to its name, replacing an existing file. Later writes are appended to it.
    ///
    /// # Errors
    /// Errors of the system; an existing file is unchanged.
    pub fn commit(&mut self) -> Result<(), FileError> {
        if !matches!(self.target, Target::Beside { .. }) {
            return Ok(());
        }
        let target = std::mem::replace(&mut self.target, Target::Stdout);
        let Target::Beside { file, temporary, path } = target else { return Ok(()) };
        // A full disk may be reported only now.
        let synced = file.get_ref().sync_all();
        let named = synced.and_then(|()| temporary.persist(path).map_err(|error| error.error));
        named.map_err(|source| self.error(source))?;
        self.target = Target::Named(file);
        Ok(())
    }

    fn error(&self, source: io::Error) -> FileError {
        error_at(&self.path, source)
    }
}

fn error_at(path: &Path, source: io::Error) -> FileError {
    FileError { path: path.to_owned(), source }
}

impl Target {
    fn of(path: &Path) -> io::Result<Target> {
        if is_stdout(path) {
            return Ok(Target::Stdout);
        }
        // A symbolic link is kept, and its target is replaced.
        let place = Place::find(path)?;
        // Opened, because renaming would ignore the mode of the existing file, which may forbid writing.
        if let Some(file) = place.existing()?
            && !file.metadata()?.is_file()
        {
            return Ok(Target::Special(BufWriter::new(file)));
        }
        let path = place.path().to_owned();
        let directory = directory(&path);
        // Report errors of the directory without the name of a temporary file in it.
        access(directory, AccessFlags::W_OK)?;
        let temporary = tempfile::Builder::new()
            .prefix(".ferroute-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory)?;
        let (file, temporary) = temporary.into_parts();
        Ok(Target::Beside { file: BufWriter::new(file), temporary, path })
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a whole file with `write`; `-` is standard output.
///
/// # Errors
/// As for [`OutFile`]; an existing file is unchanged.
pub fn write(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), FileError> {
    let mut file = OutFile::create(path)?;
    file.write(write)?;
    file.commit()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn files(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("a directory").flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn chain(error: FileError) -> String {
        format!("{:#}", anyhow::Error::from(error))
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("out");
        write(&path, |w| w.write_all(b"first")).expect("writes");
        let error = write(&path, |w| {
            w.write_all(b"half of the sec")?;
            Err(io::Error::from_raw_os_error(28))
        });
        let error = chain(error.expect_err("fails"));
        let expected = format!("cannot write {}: No space left on device", path.display());
        assert!(error.starts_with(&expected), "{error}");
        assert_eq!(fs::read(&path).expect("is there"), b"first");
        assert_eq!(files(dir.path()), ["out"], "no temporary file remains");

        let mut file = OutFile::create(&path).expect("can be written");
        file.write(|w| w.write_all(b"second")).expect("writes");
        assert_eq!(fs::read(&path).expect("is there"), b"first", "unchanged until it is complete");
        file.commit().expect("renames");
        assert_eq!(fs::read(&path).expect("is there"), b"second");
        file.write(|w| w.write_all(b", and more")).expect("writes");
        file.commit().expect("nothing to do");
        assert_eq!(fs::read(&path).expect("is there"), b"second, and more");
        assert_eq!(files(dir.path()), ["out"]);
    }

    #[test]
    fn a_full_disk_and_an_invalid_path_are_reported() {
        let full = chain(write(Path::new("/dev/full"), |w| w.write_all(b"x")).expect_err("full"));
        assert!(full.starts_with("cannot write /dev/full: No space left on device"), "{full}");
        let missing = Path::new("/nonexistent/file");
        let error = chain(OutFile::create(missing).expect_err("no directory"));
        assert_eq!(error, "cannot write /nonexistent/file: No such file or directory (os error 2)");
        let error = chain(OutFile::create(Path::new("/")).expect_err("a directory"));
        assert_eq!(error, "cannot write /: is a directory");
        write(Path::new("/dev/null"), |w| w.write_all(b"x")).expect("takes everything");
        assert!(!fs::metadata("/dev/null").expect("is there").is_file(), "still a device");
    }

    #[test]
    fn a_link_that_others_may_have_put_there_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let [shared, file] = ["shared", "file"].map(|name| dir.path().join(name));
        fs::create_dir(&shared).expect("makes");
        fs::set_permissions(&shared, Permissions::from_mode(0o1777)).expect("sets");
        fs::write(&file, "precious").expect("writes");
        std::os::unix::fs::symlink(&file, shared.join("link")).expect("links");
        let error = chain(OutFile::create(&shared.join("link")).expect_err("is refused"));
        assert!(error.contains("a symbolic link in a directory that others"), "{error}");
        assert_eq!(fs::read(&file).expect("is there"), b"precious");
        write(&shared.join("file"), |w| w.write_all(b"x")).expect("writes");
    }

    #[test]
    fn standard_output_has_several_names_and_none_of_them_is_replaced() {
        for name in ["-", "/dev/stdout", "/dev/fd/1"] {
            let file = OutFile::create(Path::new(name)).expect("is open");
            assert!(matches!(file.target, Target::Stdout), "{name}");
        }
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let path = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
        write(Path::new(&path), |w| w.write_all(b"x")).expect("writes");
        drop(writer);
        let mut read = Vec::new();
        io::Read::read_to_end(&mut reader, &mut read).expect("reads");
        assert_eq!(read, b"x");
    }

    #[test]
    fn a_link_is_followed_and_the_mode_is_that_of_any_new_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let [link, file] = ["link", "file"].map(|name| dir.path().join(name));
        fs::write(&file, "old").expect("writes");
        std::os::unix::fs::symlink(&file, &link).expect("links");
        write(&link, |w| w.write_all(b"new")).expect("writes");
        assert_eq!(fs::read(&file).expect("is there"), b"new");
        assert!(fs::symlink_metadata(&link).expect("is there").is_symlink());
        let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode();
        let [ours, plain] = ["ours", "plain"].map(|name| dir.path().join(name));
        write(&ours, |_| Ok(())).expect("writes");
        fs::write(&plain, "").expect("writes");
        assert_eq!(mode(&ours), mode(&plain));
    }
}
