//! Reads filters that are only in /proc: iptables-legacy tables and IPVS virtual servers. The files
//! show the network namespace of this thread, even after it changes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Maximum octets read of a file: a list of five names, or the beginning of a list of servers.
const READ_MAX: usize = 512;
/// Header lines of /proc/net/ip_vs.
const IPVS_HEAD: usize = 3;

/// Tables that the kernel has created for one of the programs. Their rules cannot be read without
/// changing the kernel's state, so a table counts as rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tables {
    /// Their names; empty if the kernel has no such tables.
    Named(Vec<String>),
    /// Only the root user can open the file, regardless of capabilities.
    Unreadable,
}

/// The files, opened once, which makes reading them cheap.
#[derive(Debug)]
pub struct Files {
    v4: Source,
    v6: Source,
    ipvs: Source,
}

impl Files {
    /// Opens them in the network namespace of this thread.
    pub fn open() -> Files {
        let source =
            |name: &str| Source { path: format!("/proc/thread-self/net/{name}"), file: None };
        Files {
            v4: source("ip_tables_names"),
            v6: source("ip6_tables_names"),
            ipvs: source("ip_vs"),
        }
    }

    /// Tables of iptables-legacy.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn tables4(&mut self) -> io::Result<Tables> {
        self.v4.tables()
    }

    /// Tables of ip6tables-legacy.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn tables6(&mut self) -> io::Result<Tables> {
        self.v6.tables()
    }

    /// Whether IPVS has a virtual server.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn has_virtual_servers(&mut self) -> io::Result<bool> {
        match self.ipvs.read() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            text => Ok(text?.lines().count() > IPVS_HEAD),
        }
    }
}

/// A file that a module may add later.
#[derive(Debug)]
struct Source {
    path: String,
    file: Option<File>,
}

impl Source {
    fn tables(&mut self) -> io::Result<Tables> {
        match self.read() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Tables::Unreadable),
            text => Ok(Tables::Named(text?.lines().map(str::to_owned).collect())),
        }
    }

    /// Reads the beginning; empty if the file does not exist.
    fn read(&mut self) -> io::Result<String> {
        if self.file.is_none() {
            self.file = match File::open(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
                file => Some(file?),
            };
        }
        let Some(file) = &self.file else { return Ok(String::new()) };
        let mut text = [0; READ_MAX];
        match file.read_at(&mut text, 0) {
            Ok(len) => Ok(String::from_utf8_lossy(&text[..len]).into_owned()),
            Err(error) => {
                // The module or the namespace is gone: the file is opened again next time.
                self.file = None;
                let gone = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EIO));
                if gone { Ok(String::new()) } else { Err(error) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_has_no_tables_and_is_read_once_it_exists() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("names").to_string_lossy().into_owned();
        let mut source = Source { path: path.clone(), file: None };
        assert_eq!(source.tables().expect("reads"), Tables::Named(vec![]));
        std::fs::write(&path, "nat\nfilter\n").expect("writes");
        let tables = Tables::Named(vec!["nat".into(), "filter".into()]);
        assert_eq!(source.tables().expect("reads"), tables);
        std::fs::write(&path, "").expect("writes");
        assert_eq!(source.tables().expect("reads"), Tables::Named(vec![]));
    }
}
