//! Where the options of a daemon come from: a file and the flags that override it. Both are kept, so that the file can
//! be read again.

use std::path::{Path, PathBuf};

use super::{Config, ConfigError, RunFlags, RunOptions};

/// The file that the systemd unit gives to `run`.
pub const DEFAULT_FILE: &str = "/etc/ferroute/ferroute.toml";

/// A file and flags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    path: PathBuf,
    flags: RunFlags,
}

/// Why there are no options.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file is wrong.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// The options of flags and file together are wrong.
    #[error("{0}")]
    Options(String),
}

impl Source {
    /// The file at `path`, whose options `flags` override. The path is kept as an absolute one if possible.
    pub fn new(path: &Path, flags: RunFlags) -> Source {
        Source { path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()), flags }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The options of file and flags.
    ///
    /// # Errors
    /// When either is wrong.
    pub fn read(&self) -> Result<RunOptions, SourceError> {
        let config = Config::load(&self.path)?;
        let options = RunOptions::resolve(self.flags.clone(), config.run);
        let options = options.map_err(SourceError::Options)?;
        let wrong = |message: &str| {
            SourceError::Options(format!("config {}: {message}", self.path.display()))
        };
        if !config.xfrm.is_empty() {
            if options.ignore_firewall {
                return Err(wrong(
                    "ignore_firewall ignores IPsec policies, and the file has an [xfrm] section; leave out one of the two",
                ));
            }
            // Without a [run] section it has not been checked.
            config.xfrm.check_for_run().map_err(|error| wrong(&error.message))?;
        }
        Ok(RunOptions { source: Some(self.clone()), xfrm: config.xfrm, ..options })
    }

    /// As [`Source::read`], later and again.
    ///
    /// # Errors
    /// As for [`Source::read`]. Also if the path is no longer that of a file: opening a pipe could block indefinitely.
    pub fn read_again(&self) -> Result<RunOptions, SourceError> {
        let failed = |error| ConfigError::Read { path: self.path.clone(), error };
        if !std::fs::metadata(&self.path).map_err(failed)?.is_file() {
            return Err(SourceError::Options(format!(
                "config {}: it is not a file that can be read again",
                self.path.display()
            )));
        }
        self.read()
    }
}
