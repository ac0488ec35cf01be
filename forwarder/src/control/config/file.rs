//! A configuration file: its sections, read and checked.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::RunSection;
use super::error::{ConfigError, Located, line_and_column};
use super::static_network::{ReplaySection, StaticNetwork};
use super::suggest::with_suggestion;
use super::xfrm::{StaticXfrm, XfrmSection, with_words_only, without_keys};

/// Permissions of group and others.
const OTHERS: u32 = 0o077;

/// A configuration file.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Options of `run`.
    pub run: Option<RunSection>,
    /// The network of `replay`.
    pub replay: Option<ReplaySection>,
    /// IPsec policies and security associations.
    pub xfrm: Arc<StaticXfrm>,
}

/// The sections of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sections {
    run: Option<RunSection>,
    replay: Option<ReplaySection>,
    xfrm: Option<XfrmSection>,
}

impl Config {
    /// Reads and checks a file. One with keys must be readable for its owner only.
    ///
    /// # Errors
    /// When it cannot be read, for the first error in it, and when others can read its keys.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let failed = |error| ConfigError::Read { path: path.to_owned(), error };
        let mut file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        // Room for all of it: text that is moved leaves a copy of the keys.
        let capacity = usize::try_from(meta.len()).unwrap_or(0).saturating_add(1);
        let mut text = Zeroizing::new(String::with_capacity(capacity));
        file.read_to_string(&mut text).map_err(failed)?;
        let config = Config::parse(&text, path)?;
        let mode = meta.mode() & 0o7777;
        if config.xfrm.has_keys() && mode & OTHERS != 0 {
            return Err(ConfigError::Exposed { path: path.to_owned(), mode });
        }
        Ok(config)
    }

    /// Checks the text of a file named `path`.
    ///
    /// # Errors
    /// For the first error.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let locate = |located: Located| {
            let (line, column) = line_and_column(text, located.span.start);
            let message = match is_of_xfrm(text, located.span.start) {
                true => with_words_only(&without_keys(&located.message)),
                false => without_keys(&located.message),
            };
            let message = with_suggestion(message);
            ConfigError::Invalid { path: path.to_owned(), line, column, message }
        };
        let sections: Sections = toml::from_str(text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            locate(Located::new(span, error.message().trim_end().replace('\n', "; ")))
        })?;
        let Sections { run, replay, xfrm } = sections;
        let xfrm = xfrm.map(StaticXfrm::new).transpose().map_err(locate)?.unwrap_or_default();
        let config = Config { run, replay, xfrm: Arc::new(xfrm) };
        if let Some(run) = &config.run {
            run.check().map_err(locate)?;
            config.xfrm.check_for_run().map_err(locate)?;
        }
        config.network().transpose().map_err(locate)?;
        Ok(config)
    }

    /// The network of the `[replay]` section, with the IPsec of the `[xfrm]` section. `None`: there is no `[replay]`
    /// section.
    ///
    /// # Errors
    /// For the first error, with its place. [`parse`](Self::parse) has found none.
    pub fn network(&self) -> Option<Result<StaticNetwork, Located>> {
        let replay = self.replay.as_ref()?;
        Some(StaticNetwork::new(replay).and_then(|network| network.with_xfrm(&self.xfrm)))
    }
}

/// Whether a place in a file is in the `[xfrm]` section, or may be: the last header before it, or on its line, names it.
fn is_of_xfrm(text: &str, at: usize) -> bool {
    let line_end = text.get(at..).and_then(|rest| rest.find('\n')).map_or(text.len(), |n| at + n);
    let before = text.get(..line_end).unwrap_or(text);
    let mut headers = before.lines().rev().filter(|line| line.trim_start().starts_with('['));
    headers.next().is_some_and(|header| header.contains("xfrm"))
}
